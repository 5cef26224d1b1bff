"""One pass over the pixels: against a plain numpy twin, and for any chunking and order."""

import dask
import numpy as np
import pytest
import xarray as xr
from plain_moments import trust_of

import mbkg_xr as mx
from mbkg_xr.moments import (
    BIN_SPANS,
    HISTOGRAM_EDGES,
    N_MOMENTS,
    PassState,
    accumulate,
)
from mbkg_xr.pass_kernel import BIWEIGHT, HUBER, TAPERED
from mbkg_xr.planes import Planes
from mbkg_xr.spans import SpanGrid, dispersion, span_grid
from mbkg_xr.start import median_start


def _state(grid, *, log=False, gain=2e-3, cut=3.0, rule=TAPERED):
    rng = np.random.default_rng(0)
    n = grid.size
    model = np.zeros((n, 4))
    model[:, 0] = 0.1
    model[:, 1] = 0.01 * rng.normal(size=n)
    return PassState(
        model,
        gain=np.full(n, gain),
        floor=np.full(n, 1e-4),
        centre=np.full(n, 0.1),
        cut=np.full(n, cut),
        usual=np.full(n, 0.05),
        log=log,
        rule=rule,
        by_class=np.array([0.9, 1.2, 1.5, 2.0, 2.5]),
    )


def _plain(ds, grid, state, groups, n_groups):
    """The same sums, pixel by pixel in numpy."""
    sel = ds.selected.values
    wave = ds.wavelength.values[sel].astype(float)
    flux = ds.flux.values[sel].astype(float)
    e2 = ds.error.values[sel].astype(float) ** 2
    slit = np.broadcast_to(np.arange(ds.sizes["slit"])[:, None, None], sel.shape)[sel]
    n = np.searchsorted(grid.edges, wave, side="right") - 1
    ok = (n >= 0) & (n < grid.size)
    t = (wave - grid.edges[n.clip(0, grid.size - 1)]) / grid.widths[n.clip(0, grid.size - 1)]
    model = np.einsum("pm,pm->p", state.model[n], np.vander(t, 4, increasing=True))
    factor = 1000.0 / ds.exposure_time.values[slit]
    rest = ds.var_rnoise.values[sel].astype(float)
    kind = np.searchsorted([1, 2, 4, 8], rest / state.floor[n])
    photon = state.by_class[kind] * state.gain[n] * factor * np.maximum(model, 0)
    variance = np.where((state.gain[n] >= 0) & (rest > 0), rest + photon, e2)
    z = (flux - model) / np.sqrt(variance)
    histogram = np.zeros((-(-grid.size // BIN_SPANS), HISTOGRAM_EDGES.size + 1), dtype=int)
    place = np.clip(np.floor((z + 20) / 0.02).astype(int), -1, HISTOGRAM_EDGES.size - 1) + 1
    np.add.at(histogram, (n[ok] // BIN_SPANS, place[ok]), 1)
    beyond = np.abs(z - state.centre[n]) / state.cut[n]
    name = {TAPERED: "clip", HUBER: "huber", BIWEIGHT: "biweight"}[state.rule]
    trust = np.where(beyond <= 1, 1.0, 0.0) if state.log else trust_of(name, beyond)
    used = ok & (trust > 0)
    if state.log:
        used &= flux > 0
    weight = np.ones_like(flux) if state.log else trust / variance
    y = np.log(np.where(used, flux, 1.0)) if state.log else flux
    moments = np.zeros((n_groups, grid.size, N_MOMENTS))
    for m in range(7):
        np.add.at(moments[..., m], (groups[slit][used], n[used]), (weight * t**m)[used])
    for m in range(4):
        np.add.at(moments[..., 7 + m], (groups[slit][used], n[used]), (weight * y * t**m)[used])
    np.add.at(moments[..., 11], (groups[slit][used], n[used]), (weight * y * y)[used])
    return moments, histogram, np.bincount(slit[used], minlength=ds.sizes["slit"])


@pytest.mark.parametrize(
    ("log", "rule"), [(False, TAPERED), (True, TAPERED), (False, HUBER), (False, BIWEIGHT)]
)
def test_against_plain_numpy(selected, log, rule):
    ds = selected.compute()
    grid = span_grid(ds)
    groups = np.arange(ds.sizes["slit"]) % 5
    state = _state(grid, log=log, rule=rule)
    sums = accumulate(Planes.of(ds, grid), state, groups, 5)
    moments, histogram, used = _plain(ds, grid, state, groups, 5)
    np.testing.assert_allclose(sums.moments, moments, rtol=1e-12, atol=1e-12 * moments.max())
    # A residual on a bin's edge may fall to either side.
    assert np.abs(sums.histogram - histogram).sum() <= 4
    np.testing.assert_array_equal(sums.pixels[:, 1], used)


def test_errors_alone(selected):
    """Without variance arrays, and before the noise is known."""
    ds = selected.compute()
    grid = span_grid(ds)
    groups = np.zeros(ds.sizes["slit"], dtype=np.int64)
    bare = ds.drop_vars(["var_rnoise", "var_poisson"])
    unknown = _state(grid, gain=np.nan, cut=1e9)
    first = accumulate(Planes.of(bare, grid), unknown, groups, 1)
    sel = ds.selected.values & np.isfinite(grid.pixel_coordinate(ds.wavelength.values))
    np.testing.assert_allclose(
        first.moments[..., 0].sum(), (1 / ds.error.values[sel].astype(float) ** 2).sum(), rtol=1e-10
    )


@pytest.mark.parametrize("length", [1, 3, 24])
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_any_chunking(program, length, scheduler):
    whole = mx.select_background(program.compute())
    grid = span_grid(whole)
    groups = np.arange(whole.sizes["slit"]) % 3
    expected = accumulate(Planes.of(whole, grid), _state(grid), groups, 3)
    with dask.config.set(scheduler=scheduler):
        found = accumulate(Planes.of(whole.chunk({"slit": length}), grid), _state(grid), groups, 3)
    np.testing.assert_allclose(found.moments, expected.moments, rtol=1e-12)
    np.testing.assert_array_equal(found.histogram, expected.histogram)
    np.testing.assert_array_equal(found.pixels, expected.pixels)


def test_median_start(selected):
    ds = selected.compute()
    grid = span_grid(ds)
    wavelength, flux, error = median_start(Planes.of(ds, grid))
    sel = ds.selected.values
    n = np.floor(grid.pixel_coordinate(ds.wavelength.values[sel])) // 8
    for i in range(2, wavelength.size - 2, 5):
        near = n == np.floor(grid.pixel_coordinate(wavelength[i]) // 8)
        for found, name in ((flux[i], "flux"), (error[i], "error")):
            exact = np.median(ds[name].values[sel][near])
            assert abs(found / exact - 1) < 0.04


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_median_start_takes_any_units(selected, sign, scale):
    ds = selected.compute()
    grid = span_grid(ds)
    other = ds.assign(flux=(ds.flux * (sign * scale)).astype("f4"))
    np.testing.assert_allclose(
        median_start(Planes.of(other, grid))[1],
        sign * scale * median_start(Planes.of(ds, grid))[1],
        rtol=0.04,
    )


def test_spans_count_detector_pixels():
    for name in ("prism-clear", "g395m-f290lp", "g140h-f100lp"):
        grating = name.split("-")[0]
        grid = span_grid(xr.Dataset(attrs={"configuration": name}))
        np.testing.assert_allclose(grid.widths / dispersion(grating, grid.centres), 1, rtol=1e-4)


def test_locating_spans():
    rng = np.random.default_rng(3)
    edges = np.cumsum(rng.uniform(0.1, 1, 60))
    grid = SpanGrid(edges)
    for value in [*rng.uniform(edges[0], edges[-1], 500), *edges[:-1]]:
        n, t = grid.locate(value)
        assert n == np.searchsorted(edges, value, side="right") - 1
        assert 0 <= t < 1
    assert grid.locate(edges[-1])[0] == -1
    assert grid.locate(np.nan)[0] == -1
