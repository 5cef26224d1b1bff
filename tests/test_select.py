"""Which pixels are sky."""

import numpy as np
import pytest
import xarray as xr

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN


def _expected(ds, windows):
    """The selection, written plainly."""
    source = np.where(ds.is_background, np.nan, ds.source_shutter).astype(float)[:, None, None]
    yrel = ds.yrel.values
    good = (ds.quality.values & (1 | 16 | 2**28 | 2**29)) == 0
    good &= np.isfinite(ds.flux.values) & np.isfinite(ds.wavelength.values)
    with np.errstate(invalid="ignore"):
        good &= np.isfinite(ds.error.values) & (ds.error.values > 0)
        good &= ~(np.abs(yrel - source) <= 0.5)
        return good & np.any([(yrel >= a) & (yrel <= b) for a, b in windows], axis=0)


@pytest.mark.parametrize("windows", [mx.SHUTTER_CENTRES, [(-1.5, 0.1), (0.3, 0.35)]])
def test_selection_is_what_it_says(program, windows):
    chosen = mx.select_background(program, yrel=windows).load()
    np.testing.assert_array_equal(chosen.selected.values, _expected(chosen, windows))
    assert chosen.selected.values.any()


@pytest.mark.parametrize("n_shutters", [1, 2, 3, 5])
def test_sky_slits_give_all_rows_but_the_bars(n_shutters):
    ds = mx.simulate_program(exposures=2, slits=4, background_slits=2, n_shutters=n_shutters)
    chosen = mx.select_background(ds, median_window=None).load()
    sky = chosen.is_background.values
    centres = _expected(chosen, mx.SHUTTER_CENTRES)
    np.testing.assert_array_equal(chosen.selected.values[~sky], centres[~sky])
    shutters = np.arange(n_shutters) - (n_shutters - 1) // 2
    rows = _expected(chosen, [(k - 0.4, k + 0.4) for k in shutters])
    np.testing.assert_array_equal(chosen.selected.values[sky], rows[sky])
    assert rows[sky].sum() > 1.6 * (rows & centres)[sky].sum()


def test_without_a_profile_the_fit_keeps_to_the_centres():
    ds = mx.simulate_program(exposures=2, slits=3, background_slits=3).compute()
    chosen = mx.select_background(ds)
    centres = mx.select_background(ds, yrel=mx.SHUTTER_CENTRES)
    model = mx.BSpline(spacing=12)
    plain = mx.fit_master(chosen, model=model, profile=False)
    same = mx.fit_master(centres, model=model, profile=False)
    np.testing.assert_allclose(plain.polynomial, same.polynomial, rtol=1e-12)
    used = [int(m.n_used.sum()) for m in (mx.fit_master(chosen, model=model), plain)]
    assert used[0] > 1.6 * used[1]
    # Its moments are of these pixels, too.
    again = mx.fit_master(mx.moments(chosen, plain), model=model)
    np.testing.assert_allclose(again.polynomial, plain.polynomial, rtol=1e-7)
    assert int(again.n_used.sum()) == used[1]


def test_emission_lines_of_sources_are_not_flagged(real):
    """The median filter judges sky pixels only."""
    chosen = mx.select_background(real)
    changed = chosen.quality.values != real.quality.values
    shutter = np.round(chosen.yrel.values)
    source = chosen.source_shutter.values[:, None, None]
    assert changed.any()
    assert not changed[shutter == source].any()
    assert not chosen.selected.values[changed].any()


def test_lazy_equals_eager(program):
    lazy = mx.select_background(program)
    eager = mx.select_background(program.compute())
    xr.testing.assert_identical(lazy.compute(), eager)


def test_real_pixels(real):
    """3,920 good pixels of empty shutters, as counted when the files were first looked at."""
    chosen = mx.select_background(real, median_window=None)
    assert abs(int(chosen.selected.sum()) - 3920) <= 5
    shutter = np.round(chosen.yrel.values)
    source = chosen.source_shutter.values[:, None, None]
    assert not chosen.selected.values[shutter == source].any()


def test_sky_slits_only(program):
    chosen = mx.select_background(program, slits="background")
    used = chosen.selected.any(("y", "x")).values
    np.testing.assert_array_equal(used, program.is_background.values)


def test_named_slitlets(program):
    number = int(program.slitlet.values[~program.is_background.values][0])
    chosen = mx.select_background(program, slits=[number])
    used = chosen.selected.any(("y", "x")).values
    np.testing.assert_array_equal(used, program.slitlet.values == number)
    with pytest.raises(mx.MbkgError, match="not in the dataset"):
        mx.select_background(program, slits=[999])


def test_unknown_source_is_not_taken_for_sky(program):
    blind = program.assign_coords(source_shutter=program.source_shutter * np.nan)
    chosen = mx.select_background(blind)
    used = chosen.selected.any(("y", "x")).values
    np.testing.assert_array_equal(used, program.is_background.values)


def _running_median(row, half):
    near = [row[max(0, j - half) : j + half + 1] for j in range(row.size)]
    return np.array([np.nanmedian(n) if np.isfinite(n).any() else np.nan for n in near])


def _in_line(flux, i, j, allowed):
    """Whether four rows on either side show the same, give or take a column."""
    rows = [k for k in range(i - 4, i + 5) if k != i and 0 <= k < len(flux)]
    beside = [flux[k, max(0, j - 1) : j + 2] for k in rows if np.isfinite(flux[k, j])]
    if len(beside) < 3:
        return False
    low, high = np.median([[np.nanmin(b), np.nanmax(b)] for b in beside], axis=0)
    return low - allowed <= flux[i, j] <= high + allowed


def test_median_filter_against_a_plain_one(real):
    one = real.isel(slit=[0])
    flux = np.where((one.quality.values[0] & 1) == 0, one.flux.values[0], np.nan).astype(float)
    error = np.where(np.isfinite(flux), one.error.values[0], np.nan).astype(float)
    expected = np.zeros(flux.shape, dtype=bool)
    for i in np.flatnonzero(np.isfinite(flux).any(axis=1)):
        with np.errstate(invalid="ignore"):
            deviation = np.abs(flux[i] - _running_median(flux[i], 5))
            allowed = 4 * _running_median(error[i], 5)
            expected[i] = deviation > allowed
        for j in np.flatnonzero(expected[i]):
            expected[i, j] = not _in_line(flux, i, j, allowed[j])
    flagged = mx.flag_outliers(one, window=11, threshold=4)
    np.testing.assert_array_equal((flagged.quality.values[0] & 16) > 0, expected)
    assert expected.any()


def test_median_filter_flags_or_replaces(real):
    flagged = mx.flag_outliers(real)
    replaced = mx.flag_outliers(real, apply=True)
    outlier = (flagged.quality.values & 16) > 0
    np.testing.assert_array_equal(flagged.flux.values, real.flux.values)
    np.testing.assert_array_equal(replaced.flux.values[~outlier], real.flux.values[~outlier])
    assert np.all(replaced.flux.values[outlier] != real.flux.values[outlier])
    np.testing.assert_array_equal(replaced.quality.values, real.quality.values)
    assert "median of 15 pixels" in replaced.flux.attrs["median_filter"]
    # Replaced pixels take part in the fit, as in the recipe this comes from.
    seed = mx.select_background(real, median_apply=True)
    sky = seed.selected.values
    assert (sky & outlier).any()
    np.testing.assert_array_equal(seed.flux.values[sky], replaced.flux.values[sky])
    np.testing.assert_array_equal(seed.flux.values[~sky], real.flux.values[~sky])
    # Nothing else of the flags is touched.
    np.testing.assert_array_equal(flagged.quality.values & ~np.uint32(16), real.quality.values)


def test_median_filter_finds_cosmic_rays(faint):
    """It finds what stands out, and throws out as many low pixels as high ones of the rest."""
    truth = faint.outlier.values
    flagged = (mx.flag_outliers(faint).quality.values & 16) > 0
    size = np.abs(faint.flux - faint.true_background).values / faint.error.values
    strong = truth & (size > 15) & ((faint.quality.values & 1) == 0)
    assert strong.sum() > 50
    assert flagged[strong].mean() > 0.9
    others = flagged & ~truth & ((faint.quality.values & 1) == 0)
    high = (faint.flux > faint.true_background).values[others]
    assert others.sum() < 1e-3 * truth.size
    assert abs(high.mean() - 0.5) < 4 * 0.5 / np.sqrt(high.size)


@pytest.mark.parametrize("window", [2, 4, 1, 7.5])
def test_bad_windows(program, window):
    with pytest.raises(mx.MbkgError, match="median window"):
        mx.flag_outliers(program, window=window)


def test_lines_of_the_sky_are_no_outliers():
    """At a signal to noise of 60 He I stands out of the running median, in all rows alike."""
    ds = mx.simulate_program(
        exposures=1, slits=6, background_slits=6, nods=1, signal_to_noise=60, seed=5, **CLEAN
    ).compute()
    flagged = (mx.flag_outliers(ds).quality.values & 16) > 0
    wave, usable = ds.wavelength.values, (ds.quality.values & 1) == 0
    usable &= np.isfinite(ds.flux.values) & (np.abs(ds.yrel.values) < 1.4)
    line = usable & (np.abs(wave - 1.083) < 0.02) & ~ds.outlier.values
    assert line.sum() > 100
    assert flagged[line].mean() < 0.05
    # And outliers are found as before.
    wild = usable & ds.outlier.values & (wave > 1.2)
    assert flagged[wild].mean() > 0.6
