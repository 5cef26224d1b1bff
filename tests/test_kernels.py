"""The fused kernels beside plain numpy, on pixels of every awkward kind."""

from contextlib import ExitStack

import dask
import numpy as np
import pytest

import mbkg_xr as mx
from mbkg_xr.columns import kept, packed
from mbkg_xr.spans import span_grid


@pytest.fixture(scope="module")
def awkward():
    """Slits with NaN, infinite and wild values, flags and outliers, and a response."""
    ds = mx.simulate_program(exposures=2, slits=8, background_slits=3, seed=11).compute()
    rng = np.random.default_rng(0)
    for name, values in {"flux": [np.nan, np.inf, 50], "error": [0, -1, np.nan, 1e27]}.items():
        where = rng.random(ds[name].shape) < 0.01
        ds[name].values[where] = rng.choice(values, where.sum())
    quality = ds.quality.values
    quality[rng.random(quality.shape) < 0.02] |= 2**29
    response = rng.choice(np.float32([0, 1, 1, 1, 1, 1.5, np.nan]), quality.shape)
    return ds.assign_coords(response=(("slit", "y", "x"), response))


def _plain(ds, exclude):
    """Selection before the median filter, written plainly."""
    with np.errstate(invalid="ignore"):
        good = (ds.quality.values & exclude) == 0
        good &= np.isfinite(ds.flux.values) & np.isfinite(ds.wavelength.values)
        good &= np.isfinite(ds.error.values) & (ds.error.values > 0)
        good &= np.isfinite(ds.response.values) & (ds.response.values > 0)
        yrel = ds.yrel.values
        count = ds.n_shutters.values[:, None, None]
        shutter = np.round(yrel)
        opened = (shutter >= -((count - 1) // 2)) & (shutter <= count // 2)
        rows = opened & (np.abs(yrel - shutter) <= 0.4)
        centres = np.any([(yrel >= a) & (yrel <= b) for a, b in mx.SHUTTER_CENTRES], axis=0)
        good &= np.where(ds.is_background.values[:, None, None], rows, centres)
        for s in range(ds.sizes["slit"]):
            taken = [] if ds.is_background.values[s] else [float(ds.source_shutter.values[s])]
            for shutter in [*taken, *map(float, ds.occupied.values[s].split())]:
                good[s] &= ~(np.abs(yrel[s] - shutter) <= 0.5)
    known = ds.is_background.values | np.isfinite(ds.source_shutter.values)
    return good & known[:, None, None]


def test_selection_in_one_kernel(awkward):
    exclude = 1 | 16 | 2**28 | 2**29
    plain = _plain(awkward, exclude)
    alone = mx.select_background(awkward, median_window=None)
    np.testing.assert_array_equal(alone.selected.values, plain)
    # The filter judges sky only, and counts all pixels that are good enough.
    found = mx.flag_outliers(awkward)
    outlier = (found.quality.values & ~awkward.quality.values) != 0
    both = mx.select_background(awkward)
    np.testing.assert_array_equal(both.selected.values, plain & ~outlier)
    changed = both.quality.values != awkward.quality.values
    np.testing.assert_array_equal(changed, plain & outlier)
    assert (plain & outlier).sum() > 20


def test_subtraction_in_one_kernel(awkward):
    nods = mx.subtract_nods(awkward)
    background, other = nods.background.values, nods.background_error.values
    with np.errstate(invalid="ignore", over="ignore"):
        flux = (awkward.flux.values - background).astype(np.float32)
        error = np.hypot(awkward.error.values.astype(float), other.astype(float))
    np.testing.assert_array_equal(nods.flux.values, flux)
    np.testing.assert_allclose(nods.error.values, error, rtol=1e-6)
    missing = np.isfinite(awkward.wavelength.values) & ~np.isfinite(background)
    np.testing.assert_array_equal(nods.quality.values, awkward.quality.values | missing)


@pytest.mark.parametrize("lazy", [False, True])
def test_packed_pixels_are_the_selected_ones(awkward, lazy, tmp_path):
    ds = mx.select_background(awkward)
    given = ds.chunk({"slit": 3}) if lazy else ds
    use = ds.selected.values
    grid = span_grid(ds)
    span = np.floor(np.nan_to_num(grid.pixel_coordinate(ds.wavelength.values), nan=-1))
    slit = np.indices(use.shape)[0]
    for memory, stacked in ((0, False), (0, True), (2**30, False)):
        place = dask.config.set({"temporary-directory": str(tmp_path)})
        with place, ExitStack() as stack:
            args = (stack,) if stacked else ()
            sky = packed(kept(given, memory), memory, grid, *args)
            inside = sky.selected.values
            assert bool(list(tmp_path.rglob("*.npy"))) == stacked
            assert (sky.flux.shape == ds.flux.shape) == (memory == 0 and not stacked)
            np.testing.assert_array_equal(inside.sum(axis=(1, 2)), use.sum(axis=(1, 2)))
            # Kept, they are in the order of the spans; pixels of one span in that of the rows.
            order = np.lexsort([span[use], slit[use]]) if memory or stacked else slice(None)
            for name in ("flux", "error", "wavelength", "yrel", "var_rnoise"):
                found = sky[name].values[inside]
                np.testing.assert_array_equal(found, ds[name].values[use][order])


def test_scratch_files_are_gone_after_a_fit(tmp_path):
    ds = mx.simulate_program(exposures=2, slits=6, background_slits=3, seed=1, chunks=4)
    sky, seen = mx.select_background(ds), []
    model = mx.BSpline(spacing=16, penalty=1e-2)
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        mx.fit_master(
            sky,
            model=model,
            memory=0,
            on_pass=lambda line: seen.append(list(tmp_path.rglob("*.npy"))),
        )
        assert len(seen[-1]) == 3  # one a chunk
        assert not list(tmp_path.iterdir())
        with pytest.raises(mx.MbkgError):
            mx.fit_master(sky.assign(flux=sky.flux * np.nan), model=model, memory=0)
        assert not list(tmp_path.iterdir())
    with dask.config.set({"temporary-directory": str(tmp_path / "missing")}):
        mx.fit_master(sky, model=model, memory=0)  # read again


def test_one_master_whatever_is_kept():
    """Read again or kept, in any chunks, in any order of exposures, on any scheduler."""
    ds = mx.simulate_program(exposures=3, slits=8, background_slits=3, seed=12).compute()
    model = mx.BSpline(spacing=16, penalty=1e-2)

    def sky(ds, **options):
        return mx.fit_master(mx.select_background(ds), model=model, **options).polynomial.values

    expected = sky(ds)
    order = np.argsort(ds.exposure.values, kind="stable")[::-1]
    turned = ds.isel(slit=order).chunk({"slit": 7})
    others = [sky(ds.chunk({"slit": 5}), memory=0), sky(turned)]
    with dask.config.set(scheduler="sync"):
        others.append(sky(ds.chunk({"slit": 1}), memory=2**21))
    level = np.nanmax(np.abs(expected[:, 0]))
    for other in others:
        np.testing.assert_allclose(other, expected, rtol=0, atol=1e-9 * level)
