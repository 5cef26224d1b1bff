"""The master on each slit's own pixels: exact means, the rebinned grid, and the fitted range."""

import numpy as np
import pytest
from scipy.integrate import quad

import mbkg_xr as mx


def test_rebinned_grid_and_exact_mean_agree_on_the_real_slitlets(real, real_master):
    exact = mx.project_master(real, real_master).background.values
    rebinned = mx.project_master(real, real_master, method="rebin2d")
    np.testing.assert_array_equal(np.isfinite(exact), np.isfinite(rebinned.background.values))
    inside = np.isfinite(exact)
    assert inside.sum() > 18_000
    assert np.max(np.abs(rebinned.background.values[inside] / exact[inside] - 1)) < 1e-3
    np.testing.assert_allclose(rebinned.coverage.values[inside], 1, atol=1e-6)


def test_they_agree_on_lines_too(selected, master):
    ds = selected.isel(slit=slice(0, 4)).compute()
    exact = mx.project_master(ds, master).background.values
    rebinned = mx.project_master(ds, master, method="rebin2d").background.values
    difference = np.abs(rebinned / exact - 1)
    # He I 1.083 is narrower than a tilted pixel: there the tilt itself counts.
    assert np.nanpercentile(difference, 99) < 1e-3
    assert np.nanmax(difference) < 5e-3


def test_exact_mean_is_the_integral(real, real_selected):
    real_master = mx.fit_master(real_selected, scales=None, profile=False)
    background = mx.project_master(real, real_master).background.values
    wave = real.wavelength.values.astype(float)
    for j in (60, 150, 300):
        row = wave[0, 12]
        low = (9 * (row[j - 1] + row[j]) - row[j - 2] - row[j + 1]) / 16
        high = (9 * (row[j] + row[j + 1]) - row[j - 1] - row[j + 2]) / 16
        total, _ = quad(
            lambda w: float(mx.evaluate(real_master, w)), low, high, epsabs=1e-12, limit=200
        )
        assert abs(background[0, 12, j] / (total / (high - low)) - 1) < 1e-6


def test_sampling_is_fine_enough(master, real_master):
    for one in (master, real_master):
        sampled = mx.sample_master(one)
        assert sampled.attrs["sampling_loss"] < 1e-3
        wave = np.linspace(*one.attrs["wavelength_range"], 50_001)[1:-1]
        linear = np.interp(wave, sampled.wavelength, sampled.sky)
        assert np.max(np.abs(linear / mx.evaluate(one, wave) - 1)) < 1e-3
    finer = mx.sample_master(real_master, tolerance=1e-5)
    assert finer.attrs["sampling_loss"] < 1e-5
    assert finer.sizes["wavelength"] > mx.sample_master(real_master).sizes["wavelength"]


def test_two_dimensional_master_is_constant_along_the_slit(real_master):
    image = mx.master_image(real_master)
    assert image.sky.dims == ("yrel", "wavelength")
    assert np.ptp(image.sky.values, axis=0).max() == 0
    assert image.sky.attrs["units"] == "MJy/sr"
    with pytest.raises(mx.MbkgError, match="yrel range"):
        mx.master_image(real_master, yrel=(1, -1))


def test_nothing_outside_the_fitted_range(program):
    ds = program.compute()
    wave = ds.wavelength
    short = ds.assign(flux=ds.flux.where((wave > 1.5) & (wave < 3.0)))
    master = mx.fit_master(mx.select_background(short))
    low, high = master.attrs["wavelength_range"]
    assert 1.48 < low < 1.55
    assert 2.95 < high < 3.05
    sub = mx.subtract(ds, master)
    outside = ((wave < low) | (wave > high)).values
    assert np.isnan(sub.background.values[outside]).all()
    assert np.isnan(sub.flux.values[outside]).all()
    assert ((sub.quality.values[outside] & 1) == 1).all()
    inside = ((wave > low) & (wave < high)).values
    assert np.isfinite(sub.background.values[inside]).all()
    np.testing.assert_array_equal(sub.quality.values[inside], ds.quality.values[inside])
    assert np.isnan(mx.evaluate(master, [1.0, 4.0])).all()


def test_a_gap_stays_a_gap(program):
    ds = program.compute()
    wave = ds.wavelength
    gap = ds.assign(flux=ds.flux.where((wave < 2.0) | (wave > 2.6)))
    master = mx.fit_master(mx.select_background(gap))
    assert np.isnan(mx.evaluate(master, 2.3))
    assert np.isfinite(mx.evaluate(master, [1.8, 2.8])).all()
    background = mx.project_master(ds, master).background.values
    deep = ((wave > 2.15) & (wave < 2.45)).values
    assert np.isnan(background[deep]).all()
    fine = mx.sample_master(master)
    assert np.isnan(np.interp(2.3, fine.wavelength, fine.sky))
    rebinned = mx.project_master(ds.isel(slit=slice(0, 2)), master, method="rebin2d")
    assert np.isnan(rebinned.background.values[deep[:2]]).all()


def test_response_scales_the_background(selected, master):
    ds = selected.isel(slit=slice(0, 2)).compute()
    half = ds.assign_coords(response=(ds.flux.dims, np.full(ds.flux.shape, 0.5, np.float32)))
    for method in ("exact", "rebin2d"):
        whole = mx.project_master(ds, master, method=method)
        scaled = mx.project_master(half, master, method=method)
        for name in ("background", "background_error"):
            np.testing.assert_allclose(scaled[name], 0.5 * whole[name], rtol=1e-6)


def test_other_units_or_configuration(real, master):
    with pytest.raises(mx.MbkgError, match="differ in configuration"):
        mx.project_master(real.assign_attrs(configuration="g395m-f290lp"), master)
    other = real.assign(flux=real.flux.assign_attrs(units="DN/s"))
    with pytest.raises(mx.MbkgError, match="differ in units"):
        mx.project_master(other, master)
    with pytest.raises(mx.MbkgError, match="unknown method"):
        mx.project_master(real, master, method="nearest")
    with pytest.raises(mx.MbkgError, match="not a master"):
        mx.project_master(real, real)


def test_held_out_master_of_unknown_slits(real, real_master):
    stranger = real.assign_coords(slitlet=real.slitlet + 1)
    with pytest.raises(mx.MbkgError, match="unknown to the master"):
        mx.project_master(stranger, real_master, heldout=True)


@pytest.mark.parametrize("direction", [1, -1])
def test_either_direction_of_dispersion(selected, master, direction):
    """Detectors that are read the other way round, as in NIPS products."""
    ds = selected.isel(slit=[0]).compute()
    turned = ds.isel(x=slice(None, None, direction))
    found = mx.project_master(turned, master).background.values[..., ::direction]
    expected = mx.project_master(ds, master).background.values
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("layout", "remedy"), [(0, "fit it anew"), (99, "update mbkg_xr")])
def test_a_master_of_another_version(selected, master, layout, remedy):
    other = master.assign_attrs(master_layout=layout)
    if not layout:
        del other.attrs["master_layout"]
    with pytest.raises(mx.MbkgError, match=f"another version.*layout {layout}.*{remedy}"):
        mx.subtract(selected, other)
