"""Sums of passes and looks beside plain numpy, with all that slits may differ by."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from plain_moments import trust_of
from plain_sums import plain_look, plain_pass

import mbkg_xr as mx
from mbkg_xr.applied import applied_state, applied_terms
from mbkg_xr.differences import shutter_sight
from mbkg_xr.held import held
from mbkg_xr.moments import accumulate
from mbkg_xr.pass_kernel import BIWEIGHT, HUBER, TAPERED
from mbkg_xr.planes import Planes
from mbkg_xr.shutters import ProfileSums, look
from mbkg_xr.spans import span_grid
from mbkg_xr.terms import bin_phase


@pytest.fixture(scope="module")
def made():
    """Slits with sources, leaks and wild pixels; state and terms of a fit, with a change in time.

    Some values are made larger than a fit would find them, so that all terms are seen.
    """
    ds = mx.simulate_program(exposures=3, slits=8, background_slits=4, seed=5).compute()
    rng = np.random.default_rng(0)
    for name, values in {"flux": [np.nan, np.inf, 5.0, -1.0], "error": [0, np.nan, 1e27]}.items():
        where = rng.random(ds[name].shape) < 0.01
        ds[name].values[where] = rng.choice(values, where.sum())
    raised = rng.random(ds.flux.shape) < 0.05
    ds.var_rnoise.values[raised] *= rng.choice([1.5, 3, 5, 20], raised.sum()).astype("f4")
    ds.var_rnoise.values[rng.random(ds.flux.shape) < 0.01] = np.nan
    ds = mx.select_background(ds)
    use = ds.selected.values | (rng.random(ds.flux.shape) < 0.01)
    ds = ds.assign(selected=(("slit", "y", "x"), use, ds.selected.attrs))
    master = mx.fit_master(ds, model=mx.BSpline(spacing=8, penalty=1e-2))
    state, terms = applied_state(master), applied_terms(ds, master)
    n = ds.sizes["slit"]
    grid = span_grid(ds)
    state = replace(
        state,
        usual=np.full(grid.size, np.nanmedian(ds.error.values) * 2),
        by_class=np.array([0.9, 1.0, 1.1, 1.3, 2.0]),
    )
    used = terms.used.copy()
    used[2, 3] = False
    terms = replace(
        terms,
        used=used,
        leak=rng.uniform(0, 0.05, terms.leak.shape),
        light=rng.uniform(0, 2, terms.light.shape),
        level=rng.normal(0, 0.01, terms.level.shape),
        times=rng.normal(0, 1, (n, 2)),
        drift=0.02 * rng.normal(0, 1, (2, grid.size)),
    )
    assert terms.profile.pedestal.size and terms.pedestal.any() and (terms.kind >= 0).any()
    return ds, state, terms


def _rules(state):
    yield replace(state, rule=TAPERED, cut=state.cut), lambda b: trust_of("clip", b)
    yield replace(state, rule=HUBER), lambda b: trust_of("huber", b)
    yield (
        replace(state, rule=BIWEIGHT, unit=1.5),
        lambda b: np.where(b <= 1, (1 - np.minimum(b, 1) ** 2) ** 2, -1.0),
    )


@pytest.mark.parametrize("rule", [0, 1, 2])
@pytest.mark.parametrize("variances", [True, False])
def test_passes(made, rule, variances):
    ds, state, terms = made
    state, trust = list(_rules(state))[rule]
    grid = span_grid(ds)
    if not variances:
        ds = ds.drop_vars(["var_rnoise", "var_poisson"])
        floor = (("slit", "y", "x"), np.zeros(ds.flux.shape, "f4"))
        plain = ds.assign(var_poisson=floor, var_rnoise=floor)
        n = np.searchsorted(grid.edges, np.nan_to_num(ds.wavelength.values), side="right") - 1
        read = state.floor[np.clip(n, 0, grid.size - 1)]
        plain = plain.assign(var_rnoise=(("slit", "y", "x"), read))
        state = replace(state, by_class=np.ones(5))
    else:
        plain = ds
    expected = plain_pass(plain, ds.selected.values, state, terms, grid, trust)
    if not variances:
        expected["noise"][:, 6:] = 0
    assert expected["pixels"][:, 1].sum() > 5000 and expected["noise"][:, 0].sum() > 2000
    groups = np.zeros(ds.sizes["slit"], dtype=np.int64)
    for source in (held(ds, grid, memory=2**30), Planes.of(ds, grid)):
        found = accumulate(source, state, groups, 1, terms)
        # A residual within rounding of a bin's edge may be counted beside it.
        assert np.abs(found.histogram - expected["histogram"]).sum() <= 2
        np.testing.assert_array_equal(
            found.histogram.sum(axis=1), expected["histogram"].sum(axis=1)
        )
        np.testing.assert_array_equal(found.pixels[:, 0], expected["pixels"][:, 0])
        np.testing.assert_array_equal(found.pixels[:, 1], expected["pixels"][:, 1])
        scale = np.abs(expected["noise"]).max(axis=0)
        np.testing.assert_allclose(found.noise, expected["noise"], rtol=0, atol=1e-12 * scale.max())
        for k in range(16):
            atol = 1e-12 * scale[k]
            np.testing.assert_allclose(found.noise[:, k], expected["noise"][:, k], 1e-12, atol)


@pytest.mark.parametrize("profile", [True, False])
def test_looks(made, profile):
    ds, state, terms = made
    grid = span_grid(ds)
    state = replace(state, unit=1.2)
    sight = shutter_sight(ds, profile=True)
    if not profile:
        terms = replace(terms, kind=np.full_like(terms.kind, -1))
    mask = sight.mask(slice(None), ds.quality.values, ds.yrel.values)
    has = terms.kind >= 0
    expected = plain_look(ds, mask, state, terms, grid, sight, has)
    phase = bin_phase(grid.edges, np.ones(grid.size, bool))[1]
    of, seen = ProfileSums.of, []

    def watched(weight, data, *rest):
        seen.append((weight.copy(), data.copy()))
        return of(weight, data, *rest)

    with mock.patch.object(ProfileSums, "of", watched):
        source = held(ds, grid, memory=2**30, sight=sight)
        found = look(source, state, terms, sight=sight, sky=sight.sky, phase=phase)
    assert expected["far"].any() and expected["weight"].any()
    for name, tolerance in (("weight", 1e-12), ("excess", 1e-12), ("far", 1e-6)):
        value = getattr(found, name)
        atol = tolerance * np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=atol)
    rows = np.flatnonzero((sight.kind >= 0) & sight.sky.any(axis=1))
    for k in range(2):
        value = np.concatenate([pair[k] for pair in seen])
        assert value.shape[0] == rows.size
        atol = 1e-12 * np.abs(expected["along"][k]).max()
        np.testing.assert_allclose(value, expected["along"][k][rows], rtol=1e-10, atol=atol)
