"""Nodded subtraction: the mean of the same detector pixel at the other nods, however many."""

import tracemalloc

import dask
import numpy as np
import pytest
import xarray as xr

import mbkg_xr as mx
from mbkg_xr import nods
from mbkg_xr.blocks import reduce_blocks
from mbkg_xr.quality import DEFAULT_EXCLUDE, flag_mask
from mbkg_xr.schema import occupied_shutters


def plain(ds):
    """Mean of the other nods and its error, by what is said of them, slit by slit."""
    values = {n: ds[n].values for n in ("flux", "error", "yrel", "quality")}
    flux, error = (values[n].astype(float) for n in ("flux", "error"))
    bad = (values["quality"] & flag_mask(ds["quality"], DEFAULT_EXCLUDE, missing="ignore")) != 0
    for s, shutters in enumerate(occupied_shutters(ds)):
        for shutter in shutters.ravel()[np.isfinite(shutters.ravel())]:
            bad[s] |= np.abs(values["yrel"][s] - shutter) <= 0.5
    bad |= ~(error > 0) | ~np.isfinite(flux)
    same = ["visit", "detector", "slitlet"]
    keys = list(zip(*(ds[c].values.tolist() for c in same), strict=True))
    ny, nx = flux.shape[1:]
    mean, sigma = (np.full(flux.shape, np.nan) for _ in range(2))
    for s, key in enumerate(keys):
        total, variance, count = (np.zeros((ny, nx)) for _ in range(3))
        for o, other in enumerate(keys):
            if other != key or ds.nod.values[o] == ds.nod.values[s]:
                continue
            dy = int(ds.y_start.values[s] - ds.y_start.values[o])
            dx = int(ds.x_start.values[s] - ds.x_start.values[o])
            for i in range(max(0, -dy), min(ny, ny - dy)):
                here = slice(max(0, -dx), min(nx, nx - dx))
                there = slice(here.start + dx, here.stop + dx)
                good = ~bad[o, i + dy, there]
                total[i, here][good] += flux[o, i + dy, there][good]
                variance[i, here][good] += error[o, i + dy, there][good] ** 2
                count[i, here] += good
        known = (count > 0) & ~np.isnan(values["yrel"][s])
        mean[s][known] = total[known] / count[known]
        sigma[s][known] = np.sqrt(variance[known]) / count[known]
    return mean, sigma


@pytest.fixture(scope="module")
def program():
    ds = mx.simulate_program(exposures=7, slits=4, background_slits=2, visits=2, nods=3)
    # Cut-outs of one slitlet may begin on other rows and columns.
    ds = ds.assign_coords(y_start=ds.y_start + (ds.slit % 5 == 0), x_start=ds.x_start - ds.slit % 3)
    return ds.compute()


@pytest.fixture(scope="module")
def expected(program):
    return plain(program)


def agree(found, expected):
    for got, want in zip((found.background, found.background_error), expected, strict=True):
        np.testing.assert_allclose(got.values, want, rtol=2e-7, equal_nan=True)


def test_mean_of_the_same_detector_pixel(program, expected):
    assert np.isfinite(expected[0]).mean() > 0.2
    agree(mx.subtract_nods(program), expected)


@pytest.mark.parametrize("few", [0, 4, 100])
@pytest.mark.parametrize("length", [1, 3, 16, 100])
def test_any_chunks_and_however_exposures_are_read(program, expected, length, few, monkeypatch):
    monkeypatch.setattr(nods, "_FEW", few)
    monkeypatch.setattr(nods, "_LOT", 3)
    agree(mx.subtract_nods(program.chunk(slit=length)), expected)


@pytest.mark.parametrize("most", [1, 2**21, 2**30])
def test_blocks_of_any_size(program, expected, most, monkeypatch):
    monkeypatch.setattr(nods, "_MOST", most)
    monkeypatch.setattr(nods, "_FEW", 0)
    agree(mx.subtract_nods(program), expected)
    agree(mx.subtract_nods(program.chunk(slit=5)), expected)


def test_any_order_of_slits(program):
    order = np.random.default_rng(0).permutation(program.sizes["slit"])
    mixed = mx.subtract_nods(program.isel(slit=order).chunk(slit=5))
    xr.testing.assert_allclose(
        mixed[["background", "background_error"]].compute(),
        mx.subtract_nods(program)[["background", "background_error"]].isel(slit=order),
        rtol=1e-6,
    )


def test_nothing_is_computed(compute_nothing):
    lazy = mx.simulate_program(exposures=20, slits=4, background_slits=2)
    mx.residuals(mx.subtract_nods(lazy))


def peak(exposures):
    """Bytes that a sum over nodded residuals takes."""
    ds = mx.simulate_program(exposures=exposures, slits=8, background_slits=4, chunks=8)
    nodded = mx.residuals(mx.subtract_nods(ds))
    with dask.config.set(num_workers=1):
        tracemalloc.start()
        try:
            names = ["flux", "residual", "background_error"]
            total = reduce_blocks(nodded, names, lambda i, a, s: np.nansum(a[1]), np.add)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert np.isfinite(total)


def test_memory_does_not_grow_with_the_exposures_of_a_visit():
    peak(24)  # loads and compiles
    few, many = peak(24), peak(120)
    assert many < 1.3 * few
