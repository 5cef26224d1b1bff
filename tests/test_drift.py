"""A sky that changes with time: against dense least squares, and against simulated truth."""

from __future__ import annotations

from dataclasses import replace

import dask
import numpy as np
import pytest
import xarray as xr
from conftest import CLEAN
from plain_moments import plain_design, plain_pixels

import mbkg_xr as mx
from mbkg_xr.drift import Clock
from mbkg_xr.models import ERROR_NODES, fit_drift, products
from mbkg_xr.models.basis import dense
from mbkg_xr.models.drifting import DriftSystem, pairs
from mbkg_xr.moment_fit import group_sums, problem_of
from mbkg_xr.spans import span_grid

MODEL = mx.BSpline(spacing=6, penalty=1e-2)
FIXED = mx.Drift(penalties=(1e4,))


def _programme(trend, **options) -> xr.Dataset:
    settings = {"exposures": 4, "slits": 6, "background_slits": 6, "seed": 2, **CLEAN, **options}
    return mx.select_background(mx.simulate_program(sky_trend=trend, **settings).compute())


@pytest.fixture(scope="module")
def slits() -> xr.Dataset:
    """Sunlight grows by 10 %, thermal light by 30 %, over four exposures."""
    return _programme((0.1, 0.3))


@pytest.fixture(scope="module")
def changing(slits) -> xr.Dataset:
    return mx.fit_master(slits, model=MODEL, drift=FIXED)


def _off(ds, master) -> tuple[np.ndarray, np.ndarray]:
    """Background over truth less 1, and in its errors, of the selected pixels."""
    found = mx.project_master(ds, master)
    use = ds.selected.values & (ds.wavelength.values > 0.7) & (ds.wavelength.values < 5.2)
    wrong = (found.background.values - ds.true_background.values)[use]
    return wrong / ds.true_background.values[use], wrong / found.background_error.values[use]


def test_joint_solution_is_that_of_dense_least_squares(slits):
    """Two orders in time: normal equations, solution, covariance and fits without each group."""
    alike = {"model": MODEL, "scales": None, "profile": False}
    master = mx.fit_master(slits, **alike)
    made = mx.moments(slits, master)
    pixels = plain_pixels(slits, master)
    clock = Clock.of(slits, 2)
    time = clock.functions(slits.mjd.values)
    tau = (slits.mjd.values - slits.mjd.values.mean()) / np.ptp(slits.mjd.values) * 2
    np.testing.assert_allclose(time, np.stack([tau**0, tau, 1.5 * tau**2 - 0.5], 1), atol=1e-9)
    groups = np.arange(made.sizes["slit"]) % 3
    sums = group_sums(made, groups, 3, products(time)[:, 1:])
    problem = problem_of(made, sums.moments)
    fitted = MODEL.fit(problem)
    system = DriftSystem(problem, sums.changing, fitted, MODEL.fixed(fitted))
    assert len(pairs(2)) == sums.changing.shape[0] + 1 == 6

    mean = plain_design(made.edge.values, fitted.knots, pixels)
    powers = pixels.t[:, None] ** np.arange(4)
    at = np.searchsorted(system.averaged.spans, pixels.span)
    first = system.averaged.first[at]
    design = np.zeros((pixels.w.size, 3 * mean.shape[1]))
    design[:, 0::3] = mean
    for column in range(4):  # products with the sky known so far, which have no oracle in scipy
        values = (powers * system.averaged.coef[at, :, 3 * column + 1]).sum(axis=1)
        for term in (1, 2):
            place = first + 3 * column + term
            design[np.arange(place.size), place] = values * time[pixels.slit, term]
    penalty = dense(system.penalty(1e2))

    def solve(use):
        a, w = design[use], pixels.w[use]
        normal = a.T @ (w[:, None] * a)
        return np.linalg.solve(normal + penalty, a.T @ (w * pixels.y[use])), normal

    expected, gram = solve(np.ones(pixels.w.size, dtype=bool))
    bands, rhs = system.equations
    total = dense(bands.sum(axis=0))
    np.testing.assert_allclose(total, gram, rtol=0, atol=1e-10 * np.abs(gram).max())
    right = design.T @ (pixels.w * pixels.y)
    np.testing.assert_allclose(rhs.sum(axis=0), right, rtol=0, atol=1e-10 * np.abs(right).max())

    found = system.solve(1e2, [], heldout=True)
    covariance = np.linalg.inv(gram + penalty)
    use = slice(0, None, 97)
    node = np.zeros((1, design.shape[1]))
    sky = (powers * (found.fitted.expected[pixels.span])).sum(axis=1)
    np.testing.assert_allclose(sky[use], (mean @ expected[0::3])[use], rtol=1e-8)
    span = 200
    i = int(np.flatnonzero(system.averaged.spans == span)[0])
    for a in range(3):
        for b in range(3):
            rows = []
            for term in (a, b):
                row = np.zeros_like(node)
                begin = system.averaged.first[i]
                for column in range(4):
                    row[0, begin + 3 * column + term] = (
                        0.5 ** np.arange(4) @ system.averaged.coef[i, :, 3 * column + term]
                    )
                rows.append(row)
            direct = (rows[0] @ covariance @ rows[1].T).item()
            scale = np.sqrt(found.covariance[a, a, span, 2] * found.covariance[b, b, span, 2])
            assert abs(found.covariance[a, b, span, 2] - direct) < 1e-8 * scale
    score = 0.0
    inside = problem.scored.count > 0
    for g in range(3):
        mine = groups[pixels.slit] == g
        without, _ = solve(~mine)
        mine &= inside[groups[pixels.slit], pixels.span]
        score += (pixels.w[mine] * (pixels.y[mine] - design[mine] @ without) ** 2).sum()
    row = system.candidate(1e2)
    assert abs(row["heldout"] / (score / problem.scored.count.sum()) - 1) < 1e-8


def test_a_change_is_found_and_one_master_beaten(slits):
    fine = mx.BSpline(spacing=1, adapted=True, penalty=1.0)
    one = mx.fit_master(slits, model=fine, scales=None)
    master = mx.fit_master(slits, model=fine, scales=None, drift=mx.Drift())
    chosen = master.drift_candidate.values[master.drift_score_chosen.values]
    assert chosen[0].startswith("change")
    relative, pull = _off(slits, master)
    before, _ = _off(slits, one)
    assert relative.std() < 0.15 * before.std()
    assert abs(relative.mean()) < 0.003
    assert 0.75 < pull.std() < 1.35
    held = mx.subtract(slits, master, heldout=True)
    z = (held.background - slits.true_background) / held.background_error
    use = slits.selected.values & np.isfinite(z.values)
    assert 0.75 < z.values[use].std() < 1.5


def test_the_sky_owns_the_change(slits, changing):
    """Scales have no trend in time: what they would take of it is the sky's."""
    assert np.abs(_off(slits, changing)[0]).mean() < 0.01
    weight = changing.n_used.values
    tau = Clock.of(slits, 1).tau(slits.mjd.values)
    tau = tau - np.average(tau, weights=weight)
    for values in (*changing.scale.values.T, changing.pedestal.values):
        # The weights were the pixels used when scales were last found, nearly those used now.
        assert abs(np.sum(weight * tau * values)) < 1e-4 * np.sum(weight * tau**2)
    usual = mx.fit_master(slits, model=MODEL).scale.values[:, 0]
    assert np.average(tau * usual, weights=weight) / np.average(tau**2, weights=weight) > 0.03
    first, last = (mx.master_at(changing, t) for t in slits.mjd.values[[0, -1]])
    # The same slitlet in both, on the same pixels.
    skies = [slits.true_sky.values[i].astype(float) for i in (0, 18)]
    assert slits.slitlet.values[0] == slits.slitlet.values[18]
    for wave in (1.5, 2.5, 3.5, 4.8):
        near = np.abs(slits.wavelength.values[0] - wave) < 0.02
        truth = np.median(skies[1][near]) / np.median(skies[0][near])
        ratio = mx.evaluate(last, wave) / mx.evaluate(first, wave)
        assert abs(ratio / truth - 1) < 0.012


def test_nothing_is_lost_where_nothing_changes():
    ds = _programme((0.0, 0.0))
    one, master = (mx.fit_master(ds, model=MODEL, drift=d) for d in (None, mx.Drift()))
    assert master.drift_candidate.values[master.drift_score_chosen.values] == ["no change"]
    assert "drift_polynomial" not in master
    before, found = (_off(ds, m)[0].std() for m in (one, master))
    assert found < 1.01 * before


def test_the_same_from_moments_and_for_any_chunks_and_order(slits, changing):
    made = mx.moments(slits, changing)
    again = mx.fit_master(made, model=MODEL, drift=FIXED)
    for name in ("polynomial", "drift_polynomial", "drift_covariance", "heldout_drift"):
        expected = changing[name].values
        atol = 1e-9 * np.nanmax(np.abs(expected))
        np.testing.assert_allclose(again[name].values, expected, rtol=0, atol=atol, err_msg=name)
    order = np.random.default_rng(1).permutation(slits.sizes["slit"])
    other = slits.isel(slit=order).chunk({"slit": 5})
    for data in (other, made.isel(slit=order).chunk({"slit": 7})):
        fit = mx.fit_master(data, model=MODEL, drift=FIXED)
        for name in ("polynomial", "drift_polynomial"):
            expected = changing[name].values
            atol = 1e-9 * np.nanmax(np.abs(changing.polynomial.values))
            np.testing.assert_allclose(fit[name].values, expected, rtol=0, atol=atol)


def test_saved_lazy_and_outside_its_time(slits, changing, tmp_path, compute_nothing):
    with dask.config.set(scheduler="sync"):
        mx.save({"prism-clear/master": changing}, tmp_path / "m.zarr")
        back = mx.open_program(tmp_path / "m.zarr")["prism-clear/master"].to_dataset().load()
    xr.testing.assert_identical(back, changing)
    coords = {c: v for c, v in slits.coords.items() if v.ndim == 1}
    lazy = mx.subtract(slits.chunk({"slit": 4}).assign_coords(coords), back)
    assert lazy.flux.chunks[0] == (4,) * 6
    expected = mx.subtract(slits, changing)
    with dask.config.set(scheduler="sync"):
        np.testing.assert_array_equal(lazy.flux.values, expected.flux.values)
    late = slits.assign_coords(
        mjd=("slit", slits.mjd.values + np.where(slits.mjd > 60000.03, 1, 0))
    )
    with pytest.warns(UserWarning, match="no master for mjd"):
        found = mx.subtract(late, changing)
    gone = late.mjd.values > 60001
    assert 0 < gone.sum() < gone.size
    assert np.isnan(found.flux.values[gone]).all()
    np.testing.assert_array_equal(found.flux.values[~gone], expected.flux.values[~gone])


def test_a_drift_in_each_visit():
    ds = _programme((0.2, 0.2), visits=2, exposures=2, slits=5, background_slits=5)
    master = mx.fit_master(ds, by="visit", drift=FIXED, model=MODEL, scales=None)
    relative, _ = _off(ds, master)
    alone = mx.fit_master(ds.isel(slit=slice(0, 10)), drift=FIXED, model=MODEL, scales=None)
    xr.testing.assert_identical(mx.master_part(master, master.part.values[0]), alone)
    assert relative.std() < 0.02


def test_what_makes_no_sense(slits, changing):
    still = slits.assign_coords(mjd=("slit", np.full(24, 60000.0)))
    blind = slits.assign_coords(mjd=("slit", np.where(np.arange(24) == 3, np.nan, slits.mjd)))
    for ds, options, message in (
        (slits, {"model": mx.LogPolynomial(), "drift": mx.Drift()}, "only a spline"),
        (still, {"drift": mx.Drift()}, "too few exposures"),
        (blind, {"drift": mx.Drift()}, "no drift without times"),
    ):
        with pytest.raises(mx.MbkgError, match=message):
            mx.fit_master(ds, **options)
    for options in ({"order": 0}, {"penalties": ()}, {"penalties": (-1.0,)}):
        with pytest.raises(mx.MbkgError, match="unusable drift"):
            mx.Drift(**options)
    with pytest.raises(mx.MbkgError, match="outside the time of the fit"):
        mx.master_at(changing, 61000.0)
    with pytest.raises(mx.MbkgError, match="does not change with time"):
        mx.master_at(mx.master_at(changing, float(slits.mjd[0])), 60000.0)


def test_a_pass_may_reach_further_than_the_last(slits, changing):
    """The sky known so far ends before the data do."""
    made = mx.moments(slits, changing)
    n = made.sizes["slit"]
    time = Clock.of(slits, 1).functions(slits.mjd.values)
    sums = group_sums(made, np.arange(n) % 2, 2, products(time)[:, 1:])
    problem = problem_of(made, sums.moments)
    fitted = MODEL.fit(problem)
    first, last = problem.domain
    shorter = fitted.polynomial.copy()
    shorter[[first - 1, first, last - 1, last]] = np.nan
    fixed = MODEL.fixed(fitted)
    for known in (fitted.polynomial, shorter):
        start = replace(fitted, polynomial=known)
        found = fit_drift(problem, sums.changing, start, fixed, (1e4,))
        assert np.isfinite(found.polynomial[0, first:last]).all()
        np.testing.assert_allclose(
            found.fitted.polynomial[first:last],
            changing.polynomial.values[first:last],
            rtol=0,
            atol=1e-9,
        )


def test_errors_of_one_time_go_together_along_wavelength(slits, changing):
    """The factor at any time gives that time's errors; sums of pixels take it."""
    for mjd in np.linspace(*slits.mjd.values[[0, -1]], 5):
        one = mx.master_at(changing, mjd)
        diagonal = np.sqrt(np.square(one.covariance_factor.values).sum(axis=2))
        inside = one.constrained.values
        np.testing.assert_allclose(diagonal[inside], one.sky_error.values[inside], rtol=5e-3)
    sub = mx.subtract(slits, changing)
    bins = {"slit": None, "wavelength": [1.0, 2.0, 4.0]}
    found = mx.propagate(sub, changing, by=bins)
    rows = np.flatnonzero(slits.exposure.values == slits.exposure.values[-1])
    last = mx.master_at(changing, float(slits.mjd[-1]))
    alone = mx.propagate(mx.subtract(slits.isel(slit=rows), last), last, by=bins)
    np.testing.assert_allclose(found.variance.values[rows], alone.variance.values, rtol=1e-6)


def test_errors_of_sums_over_several_times(slits):
    """What the sky errs by at one time and at another is the same few errors: by hand."""
    master = mx.fit_master(slits, model=MODEL, drift=FIXED, scales=None, profile=False)
    sub = mx.subtract(slits, master).compute()
    rng = np.random.default_rng(3)
    use = sub.selected & np.isfinite(sub.background) & ((sub.quality & 1) == 0)
    weights = (use * rng.normal(size=sub.flux.shape)).astype(np.float32)
    found = mx.propagate(sub, master, weights=weights, by={"wavelength": [1.0, 2.0, 4.0]})
    grid = span_grid(sub)
    error = np.zeros((2, master.sizes["rank"]))
    for s in range(sub.sizes["slit"]):
        factor = mx.master_at(master, float(sub.mjd[s])).covariance_factor.values
        good = use.values[s]
        h = weights.values[s][good].astype(float)
        wave = sub.wavelength.values[s][good].astype(float)
        u = grid.pixel_coordinate(wave)
        n, t = u.astype(int), u % 1
        lagrange = np.ones((t.size, 4))
        for m, at in enumerate(ERROR_NODES):
            for other in np.delete(ERROR_NODES, m):
                lagrange[:, m] *= (t - other) / (at - other)
        rows = np.einsum("p,pm,pmr->pr", h, lagrange, factor[n])
        for b, (low, high) in enumerate([(1, 2), (2, 4)]):
            error[b] += rows[(wave >= low) & (wave < high)].sum(axis=0)
    np.testing.assert_allclose(
        found.variance_master.values, np.square(error).sum(axis=1), rtol=1e-4
    )
    each = mx.propagate(sub, master, weights=weights, by={"slit": None, "wavelength": [1, 2, 4]})
    for name in ("value", "variance_noise"):
        np.testing.assert_allclose(found[name], each[name].sum("slit"), rtol=1e-9)
    # Not as if each slit's sky erred for itself.
    assert (found.variance_master > 0).all()
    assert not np.allclose(found.variance_master, each.variance_master.sum("slit"), rtol=0.1)
    lazy = mx.propagate(
        sub.chunk({"slit": 3}), master, weights=weights, by={"wavelength": [1, 2, 4]}
    )
    np.testing.assert_allclose(lazy.variance.values, found.variance.values, rtol=1e-9)
