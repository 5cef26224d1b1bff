"""From moments to coefficients: against direct least squares on the points."""

import numpy as np
import pytest
from scipy.interpolate import BSpline as ScipyBSpline

import mbkg_xr as mx
from mbkg_xr.models import Problem, pixel_mean
from mbkg_xr.models.basis import dense
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


@pytest.mark.parametrize("spacing", [2, 4, 9])
@pytest.mark.parametrize("penalty", [1e-6, 0.1])
def test_moments_give_the_direct_solution(spacing, penalty):
    grid, x, y, w, group = _points()
    problem = _problem(grid, x, y, w, group)
    fitted = mx.BSpline(spacing=spacing, penalty=penalty).fit(problem)
    knots, basis = spline_basis(grid, *problem.domain, spacing)
    system = PenalisedSystem.build(problem, basis, knots, spacing=spacing, order=2)
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


def test_one_group_falls_back_to_gcv():
    grid, x, y, w, group = _points()
    fitted = mx.BSpline().fit(_problem(grid, x, y, w, 0 * group))
    assert fitted.table[0]["criterion"] == "gcv"
    assert fitted.heldout.size == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: mx.BSpline(spacing=0),
        lambda: mx.BSpline(spacing=2.5),
        lambda: mx.BSpline(penalty=0),
        lambda: mx.LogPolynomial(degree=-1),
        lambda: mx.LogPolynomial(method="magic"),
    ],
)
def test_bad_parameters(make):
    with pytest.raises(mx.MbkgError, match="expected"):
        make()
