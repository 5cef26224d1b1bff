"""From moments to coefficients: against direct least squares on the points."""

import numpy as np
import pytest
from scipy.interpolate import BSpline as ScipyBSpline

import mbkg_xr as mx
from mbkg_xr.models import Problem, pixel_mean
from mbkg_xr.models.banded import (
    banded_factor,
    banded_solve,
    inverse_bands,
    likely_weights,
    trace_of_product,
    without_each,
)
from mbkg_xr.models.basis import ERROR_NODES, FEW_GROUPS, bands_of, choose, dense
from mbkg_xr.models.bspline import spline_basis
from mbkg_xr.models.penalised import PenalisedSystem
from mbkg_xr.spans import SpanGrid


def _points(seed=0, n=4000, groups=4, noise=0.02):
    rng = np.random.default_rng(seed)
    grid = SpanGrid(np.cumsum(np.concatenate([[1.0], rng.uniform(0.01, 0.03, 80)])))
    x = np.sort(rng.uniform(grid.edges[2], grid.edges[-3], n))
    truth = 0.2 + 0.1 * np.sin(5 * x) + 0.02 * np.exp(x)
    variance = rng.uniform(0.5, 2, n) * noise**2
    y = truth + rng.normal(size=n) * np.sqrt(variance)
    return grid, x, y, 1 / variance, rng.integers(0, groups, n)


def _problem(grid, x, y, w, group, log=False):
    if log:
        keep = y > 0
        x, y, w, group = x[keep], np.log(y[keep]), np.ones(keep.sum()), group[keep]
    u = grid.pixel_coordinate(x)
    n = u.astype(int)
    t = u - n
    g = group.max() + 1
    moments = np.zeros((g, grid.size, 12))
    for m in range(7):
        np.add.at(moments[..., m], (group, n), w * t**m)
    for m in range(4):
        np.add.at(moments[..., 7 + m], (group, n), w * y * t**m)
    np.add.at(moments[..., 11], (group, n), w * y * y)
    count = np.zeros((g, grid.size), dtype=np.int64)
    np.add.at(count, (group, n), 1)
    return Problem(grid, moments, count, np.full(grid.size, 0.3))


def _direct(system, grid, x, y, w, penalty):
    """Penalised least squares with a dense design matrix of pixel means."""
    u = grid.pixel_coordinate(x)
    n = u.astype(int)
    powers = np.vander(u - n, 4, increasing=True)
    basis = system.averaged
    position = np.searchsorted(basis.spans, n)
    design = np.zeros((x.size, basis.size))
    for a in range(4):
        np.add.at(
            design,
            (np.arange(x.size), basis.first[position] + a),
            np.einsum("pm,pm->p", powers, basis.coef[position, :, a]),
        )
    normal = design.T @ (w[:, None] * design) + dense(system.penalty_bands(penalty))
    return np.linalg.solve(normal, design.T @ (w * y)), design, normal


def test_banded_algebra_is_that_of_dense_matrices():
    rng = np.random.default_rng(0)
    k, width = 30, 4
    groups = np.zeros((3, width, k))
    for g in range(3):
        a = np.tril(np.triu(rng.normal(size=(k, k)), -1), 2)  # a a^T has four lower bands
        groups[g] = bands_of(a @ a.T)[:width]
        groups[g, 0] += 0.1
    rhs = rng.normal(size=(3, k))
    total, right = groups.sum(axis=0), rhs.sum(axis=0)
    inverse = np.linalg.inv(dense(total))
    factor = banded_factor(total)
    np.testing.assert_allclose(banded_solve(factor, right), inverse @ right, rtol=1e-8)
    for d in range(width):
        mine, true = inverse_bands(factor)[d, : k - d], np.diagonal(inverse, -d)
        np.testing.assert_allclose(mine, true, atol=1e-11)
    other = np.trace(inverse @ dense(groups[0]))
    assert abs(trace_of_product(inverse_bands(factor), groups[0]) - other) < 1e-10
    found, inverses = without_each(total, right, groups, rhs, inverse=True)
    for g in range(3):
        part = dense(total - groups[g])
        np.testing.assert_allclose(found[g], np.linalg.solve(part, right - rhs[g]), rtol=1e-7)
        np.testing.assert_allclose(inverses[g, 0], np.diagonal(np.linalg.inv(part)), rtol=1e-8)
    many = np.tile(groups, (6, 1, 1)), np.tile(rhs, (6, 1))  # more than are solved in step
    alone, _ = without_each(total, right, *many)
    np.testing.assert_allclose(alone, np.tile(found, (6, 1)), rtol=1e-7)
    with pytest.raises(np.linalg.LinAlgError):
        without_each(-total, right, *many)
    with pytest.raises(np.linalg.LinAlgError):
        banded_factor(-total)


@pytest.mark.parametrize("dispersion", [np.nan, 0.7])
def test_weights_move_as_in_dense_matrices(dispersion):
    rng = np.random.default_rng(1)
    k, pixels = 20, 200
    y = rng.normal(size=pixels)
    at = np.sort(rng.integers(0, k - 3, pixels))
    design = np.zeros((pixels, k))
    for a in range(4):
        design[np.arange(pixels), at + a] = rng.uniform(0.2, 1, pixels)
    gram, right = design.T @ design, design.T @ y
    information = rng.uniform(1, 5, k - 2)
    hats = np.array([np.interp(np.arange(k - 2), [0, 8, 17], row) for row in np.eye(3)])
    weight, prior = np.array([1.0, 0.1, 3.0]), 0.5
    found = weight.copy()
    assert likely_weights(
        bands_of(gram)[:4], right, information, hats, found, prior, 2, dispersion,
        pixels, y @ y, 1e-9, 1e7,
    )  # fmt: skip
    second = np.diff(np.eye(k), 2, axis=0)
    for _ in range(2):
        d = weight @ hats
        inverse = np.linalg.inv(gram + second.T @ ((information * d)[:, None] * second))
        c = inverse @ right
        excess = dispersion
        if np.isnan(dispersion):
            excess = np.square(y - design @ c).sum() / (pixels - np.trace(inverse @ gram))
        told = 1 / d - information * np.einsum("ji,ik,jk->j", second, inverse, second)
        asked = hats @ (information * np.square(second @ c)) / excess
        weight = (weight * (hats @ told) + prior) / (asked + prior / np.median(weight))
    np.testing.assert_allclose(found, weight, rtol=1e-8)


@pytest.mark.parametrize("spacing", [2, 4, 9])
@pytest.mark.parametrize("penalty", [1e-6, 0.1])
def test_moments_give_the_direct_solution(spacing, penalty):
    grid, x, y, w, group = _points()
    problem = _problem(grid, x, y, w, group)
    fitted = mx.BSpline(spacing=spacing, penalty=penalty).fit(problem)
    knots, basis = spline_basis(grid, *problem.domain, spacing)
    system = PenalisedSystem.build(problem, basis, knots, spacing=spacing)
    expected, design, normal = _direct(system, grid, x, y, w, penalty)
    np.testing.assert_allclose(fitted.coefficient, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(fitted.covariance, np.linalg.inv(normal), rtol=1e-7, atol=1e-13)
    row = fitted.table[0]
    chi2 = (w * (y - design @ expected) ** 2).sum()
    assert abs(row["chi2"] / chi2 - 1) < 1e-9
    gram = design.T @ (w[:, None] * design)
    assert abs(row["dof"] - np.trace(np.linalg.solve(normal, gram))) < 1e-7
    # Without each group, scored on it: as if the others alone had been fitted.
    score = 0.0
    for g in range(group.max() + 1):
        other = group != g
        part, _, _ = _direct(system, grid, x[other], y[other], w[other], penalty)
        at = design[~other] @ part
        score += (w[~other] * (y[~other] - at) ** 2).sum()
    assert abs(row["heldout"] / (score / x.size) - 1) < 1e-9


def _with_line(noise, seed=3):
    """A smooth sky with one line, three spans wide."""
    grid, x, y, w, group = _points(seed=seed, noise=noise)
    line = 0.15 * np.exp(-0.5 * ((x - grid.centres[50]) / (1.2 * grid.widths[50])) ** 2)
    return grid, x, y + line, w, group


def test_adapted_penalty_gives_the_direct_solution():
    """Weights that change along the spline: fit, errors, scores and held-out fits."""
    grid, x, y, w, group = _with_line(0.02)
    problem = _problem(grid, x, y, w, group)
    fitted = mx.BSpline(spacing=1, adapted=True, penalty=2.0).fit(problem)
    basis = spline_basis(grid, *problem.domain, 1)[1]
    system = PenalisedSystem.build(problem, basis, fitted.knots, spacing=1)
    weight = 2.0 * system.adapted_penalty()
    expected, design, normal = _direct(system, grid, x, y, w, weight)
    np.testing.assert_allclose(fitted.coefficient, expected, rtol=1e-7, atol=1e-9)
    row, score = fitted.table[0], 0.0
    for g in range(group.max() + 1):
        other = group != g
        part, _, _ = _direct(system, grid, x[other], y[other], w[other], weight)
        score += (w[~other] * (y[~other] - design[~other] @ part) ** 2).sum()
    assert abs(row["heldout"] / (score / x.size) - 1) < 1e-8
    # The error at a node, from the dense covariance and what the choice costs.
    covariance = np.linalg.inv(normal)
    more = system._errors_of_choice(weight, fitted.coefficient, covariance)
    covariance += more @ more.T
    np.testing.assert_allclose(fitted.covariance, covariance, rtol=1e-6, atol=1e-12)
    span, node = 40, 2
    i = int(np.flatnonzero(system.averaged.spans == span)[0])
    at = np.zeros(system.averaged.size)
    begin = system.averaged.first[i]
    at[begin : begin + 4] = ERROR_NODES[node] ** np.arange(4) @ system.averaged.coef[i]
    assert abs(fitted.sky_error[span, node] / np.sqrt(at @ covariance @ at) - 1) < 1e-7


def test_errors_of_choice_by_brute_force():
    """The weights' errors from the covariance of the points, their effect by finite differences."""
    grid, x, y, w, group = _points(n=400, noise=0.05)
    problem = _problem(grid, x, y, w, group)
    knots, basis = spline_basis(grid, *problem.domain, 4)
    system = PenalisedSystem.build(problem, basis, knots, spacing=4)
    weight = system.adapted_penalty()
    fit, design, normal = _direct(system, grid, x, y, w, weight)
    more = system._errors_of_choice(weight, fit, np.linalg.inv(normal))
    second = np.diff(np.eye(basis.size), 2, axis=0)
    inverse = design @ np.linalg.pinv(second)
    d = system.information * weight
    covariance = np.diag(1 / w) + (inverse / d) @ inverse.T
    line = design @ (np.arange(basis.size) ** np.arange(2.0)[:, None]).T
    solved = np.linalg.solve(covariance, line)
    rest = np.linalg.inv(covariance) - solved @ np.linalg.solve(line.T @ solved, solved.T)
    nodes = weight[np.argmax(system.hats, axis=1)]
    change, each = [], []
    for hat, node in zip(system.hats, nodes, strict=True):
        grown = weight + node * hat * 1e-5
        change.append((_direct(system, grid, x, y, w, grown)[0] - fit) / 1e-5)
        each.append(rest @ (inverse * (system.information * hat * node / d**2)) @ inverse.T)
    told = np.array([[0.5 * np.trace(a @ b) for a in each] for b in each])
    told += np.diag(0.5 * system.prior * nodes / np.median(weight))
    chi2 = (w * (y - design @ fit) ** 2).mean()
    expected = np.array(change).T @ np.linalg.solve(told, np.array(change)) / chi2
    np.testing.assert_allclose(more @ more.T, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_adapted_penalty_falls_at_a_line_only():
    grid, x, y, w, group = _with_line(0.02)
    problem = _problem(grid, x, y, w, group)
    knots, basis = spline_basis(grid, *problem.domain, 1)
    weight = PenalisedSystem.build(problem, basis, knots, spacing=1).adapted_penalty()
    at = 50 - problem.domain[0]
    assert weight[at - 1 : at + 2].max() < 0.03 * np.median(weight)
    away = np.abs(np.arange(weight.size) - at) > 16
    assert weight[away].min() > 0.1 * np.median(weight)


def test_lines_are_kept_and_the_rest_is_smoother():
    """Beside the best single penalty, over several noises: nearer to the truth, line and all."""
    rms, left = {True: [], False: []}, {True: [], False: []}
    for seed in range(4):
        grid, x, y, w, group = _with_line(0.05, seed=seed)
        _, _, clean, _, _ = _with_line(1e-9, seed=seed)
        problem, truth = _problem(grid, x, y, w, group), _problem(grid, x, clean, w, group)
        exact = mx.BSpline(spacing=1, penalty=1e-6).fit(truth, heldout=False).expected
        for adapted in (True, False):
            found = mx.BSpline(adapted=adapted).fit(problem, heldout=False).expected
            departure = (found - exact) @ 0.5 ** np.arange(4)
            rms[adapted].append(np.mean(departure[3:-4] ** 2))
            left[adapted].append(departure[49:52].mean())
    assert np.mean(rms[True]) < 0.8 * np.mean(rms[False])
    assert abs(np.mean(left[True])) < 0.05 * 0.15


def test_choice_by_other_criteria_and_the_one_error_rule():
    grid, x, y, w, group = _points(noise=0.3, groups=FEW_GROUPS)
    problem = _problem(grid, x, y, w, group)
    for criterion in ("heldout", "reml", "gcv", "aicc", "bic"):
        table = mx.BSpline(criterion=criterion).fit(problem, heldout=False).table
        chosen = next(row for row in table if row["chosen"])
        assert chosen["criterion"] == criterion
        assert chosen[criterion] == min(row[criterion] for row in table)
    best = mx.BSpline().fit(problem, heldout=False)
    smooth = mx.BSpline(one_error=True).fit(problem, heldout=False)
    row = next(r for r in smooth.table if r["chosen"])
    lowest = min(r["heldout"] for r in smooth.table)
    near = [r for r in smooth.table if r["heldout"] - lowest <= r["heldout_se"]]
    assert smooth.dof <= best.dof
    assert row in near
    assert row["dof"] == min(r["dof"] for r in near)


@pytest.mark.parametrize("spans", [1, 2, 3, 5])
def test_a_domain_of_few_spans(spans):
    """As few functions as a spline can have, with and without a penalty that follows the sky."""
    grid, x, y, w, group = _points()
    keep = (x > grid.edges[20]) & (x < grid.edges[20 + spans])
    problem = _problem(grid, x[keep], y[keep], w[keep], group[keep])
    fitted = mx.BSpline().fit(problem)
    n = np.searchsorted(grid.edges, x[keep], side="right") - 1
    t = (x[keep] - grid.edges[n]) / grid.widths[n]
    found = (fitted.expected[n] * t[:, None] ** np.arange(4)).sum(axis=1)
    assert 0.6 < (w[keep] * (y[keep] - found) ** 2).mean() < 1.4
    assert fitted.sky_error[n].min() > 0


def test_one_error_rule_by_hand():
    table = [
        {"heldout": 1.0, "dof": 30.0, "by_group": np.array([1.0, 0.8, 1.2])},
        {"heldout": 1.1, "dof": 10.0, "by_group": np.array([1.35, 0.8, 1.15])},
        {"heldout": 1.5, "dof": 5.0, "by_group": np.array([1.5, 1.3, 1.7])},
    ]
    assert choose([dict(r) for r in table]) == 0
    assert choose([dict(r) for r in table], one_error=True) == 1


def test_the_spline_is_scipys():
    """The span polynomials are those of a B-spline with the knots the master states."""
    grid, x, y, w, group = _points()
    fitted = mx.BSpline(spacing=5, penalty=1e-4).fit(_problem(grid, x, y, w, group))
    spline = ScipyBSpline(fitted.knots, fitted.coefficient, 3)
    inside = np.flatnonzero(np.isfinite(fitted.polynomial[:, 0]))[1:-1]
    for t in (0.0, 0.3, 0.99):
        wave = grid.edges[inside] + t * grid.widths[inside]
        found = fitted.polynomial[inside] @ t ** np.arange(4)
        np.testing.assert_allclose(found, spline(wave), rtol=1e-9)


def test_pixel_mean_is_the_integral():
    rng = np.random.default_rng(1)
    poly = rng.normal(size=(1, 4))
    from numpy.polynomial import Polynomial

    integral = Polynomial(poly[0]).integ()
    for t in (0.0, 0.4, 1.0):
        expected = integral(t + 0.5) - integral(t - 0.5)
        assert abs(pixel_mean(poly)[0] @ t ** np.arange(4) - expected) < 1e-12


def test_log_link_is_least_squares_in_flux():
    """Gauss-Newton on moments finds what a general optimiser finds on the points."""
    from numpy.polynomial import chebyshev
    from scipy.optimize import least_squares

    grid, x, y, w, group = _points(noise=0.05)
    problem = _problem(grid, x, y, w, group)
    fitted = mx.LogPolynomial(degree=4).fit(problem)
    low, high = fitted.description["low"], fitted.description["high"]
    position = np.searchsorted(grid.edges, x, side="right") - 1
    half = 0.5 * grid.widths[position]
    nodes, weights = np.polynomial.legendre.leggauss(3)

    def mean(c):
        # The mean over the pixel, by quadrature.
        values = [
            np.exp(chebyshev.chebval(2 * (x + half * t - low) / (high - low) - 1, c)) for t in nodes
        ]
        return np.average(values, axis=0, weights=weights)

    direct = least_squares(
        lambda c: np.sqrt(w) * (y - mean(c)), fitted.coefficient + 0.01, xtol=1e-15, ftol=1e-15
    )
    wave = np.linspace(low, high, 50)
    scaled = 2 * (wave - low) / (high - low) - 1
    found = chebyshev.chebval(scaled, fitted.coefficient)
    np.testing.assert_allclose(found, chebyshev.chebval(scaled, direct.x), atol=2e-6)


def test_seed_is_a_polynomial_of_logarithms():
    grid, x, y, w, group = _points(noise=0.3)
    assert (y <= 0).any()
    fitted = mx.LogPolynomial(method="seed", max_degree=6).fit(
        _problem(grid, x, y, w, group, log=True)
    )
    keep = y > 0
    expected = np.polynomial.Chebyshev.fit(
        x[keep],
        np.log(y[keep]),
        6,
        domain=[fitted.description["low"], fitted.description["high"]],
    )
    np.testing.assert_allclose(fitted.coefficient, expected.coef, rtol=1e-5, atol=1e-6)
    # The lowest chi2 always takes the highest degree.
    assert [row["degree"] for row in fitted.table if row["chosen"]] == [6]


def test_held_out_score_does_not_take_the_highest_degree():
    grid, x, y, w, group = _points(noise=0.3)
    fitted = mx.LogPolynomial(max_degree=15).fit(_problem(grid, x, y, w, group))
    assert fitted.description["degree"] < 15
    assert fitted.table[0]["criterion"] == "heldout"


def test_few_groups_are_no_judges():
    """Restricted likelihood in place of held-out scores; GCV of models that tell none."""
    grid, x, y, w, group = _points()
    fitted = mx.BSpline().fit(_problem(grid, x, y, w, 0 * group))
    assert fitted.table[0]["criterion"] == "reml"
    assert fitted.heldout.size == 0
    log = mx.LogPolynomial().fit(_problem(grid, x, y, w, 0 * group))
    assert log.table[0]["criterion"] == "gcv"
    assert mx.BSpline().fit(_problem(grid, x, y, w, group)).table[0]["criterion"] == "reml"
    many = np.random.default_rng(0).integers(0, FEW_GROUPS, x.size)
    fitted = mx.BSpline().fit(_problem(grid, x, y, w, many))
    assert fitted.table[0]["criterion"] == "heldout"


@pytest.mark.parametrize("spacing", [2, 9])
def test_restricted_likelihood_is_that_of_the_points(spacing):
    """The density of the data without their line, from the dense covariance of points."""
    grid, x, y, w, group = _points(n=300)
    problem = _problem(grid, x, y, w, group)
    knots, basis = spline_basis(grid, *problem.domain, spacing)
    system = PenalisedSystem.build(problem, basis, knots, spacing=spacing)
    found, direct = [], []
    for penalty in (1e-3, 0.1, 10.0):
        found.append(system.solve(penalty)["reml"])
        _, design, _ = _direct(system, grid, x, y, w, penalty)
        second = np.diff(np.eye(basis.size), 2, axis=0)
        inverse = np.linalg.pinv(second)
        prior = inverse @ np.diag(1 / (penalty * system.information)) @ inverse.T
        covariance = np.diag(1 / w) + design @ prior @ design.T
        line = design @ (np.arange(basis.size) ** np.arange(2.0)[:, None]).T
        solved = np.linalg.solve(covariance, np.column_stack([line, y]))
        gram = line.T @ solved[:, :2]
        rest = y @ solved[:, 2] - (line.T @ solved[:, 2]) @ np.linalg.solve(
            gram, line.T @ solved[:, 2]
        )
        free = x.size - 2
        likelihood = free * np.log(rest / free) + np.linalg.slogdet(covariance)[1]
        plain = np.linalg.slogdet((line.T * w) @ line)[1]
        direct.append(likelihood + np.linalg.slogdet(gram)[1] + np.log(w).sum() - plain)
    np.testing.assert_allclose(found, direct, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mx.BSpline(spacing=0),
        lambda: mx.BSpline(spacing=2.5),
        lambda: mx.BSpline(penalty=0),
        lambda: mx.BSpline(spacing=8, adapted=True),
        lambda: mx.BSpline(criterion="luck"),
        lambda: mx.BSpline(strengths=(0.0,)),
        lambda: mx.LogPolynomial(degree=-1),
        lambda: mx.LogPolynomial(method="magic"),
    ],
)
def test_bad_parameters(make):
    with pytest.raises(mx.MbkgError, match="expected"):
        make()
