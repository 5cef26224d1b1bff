"""From moments to coefficients: the spline and polynomial models of the sky.

Every model becomes, span by span, a cubic polynomial in t. Its basis is *local*: on each span only
a few consecutive functions differ from zero (four for a cubic B-spline, all for a polynomial), so
one set of banded normal equations serves all models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.interpolate import BSpline as _ScipyBSpline
from scipy.linalg import cho_solve_banded, cholesky_banded

from .errors import FitError, ParameterError
from .spans import SpanGrid

__all__ = ["BSpline", "Fitted", "LogPolynomial", "Model", "Problem", "pixel_mean"]

Array = NDArray[np.float64]

# A pixel measures the mean over its own width, which is one span: the mean of t^2 over [t-1/2,
# t+1/2] is t^2 + 1/12, that of t^3 is t^3 + t/4.
_PIXEL_MEAN = np.array([[1, 0, 1 / 12, 0], [0, 1, 0, 1 / 4], [0, 0, 1, 0], [0, 0, 0, 1.0]])
_NODES = np.array([0.05, 0.35, 0.65, 0.95])
_TO_POWERS = np.linalg.inv(np.vander(_NODES, 4, increasing=True))
#: Positions t within a span at which the standard error of the sky is kept.
ERROR_NODES = np.array([0.0, 0.25, 0.5, 0.75])


def pixel_mean(polynomial: Array) -> Array:
    """Span polynomials of the mean over one detector pixel, from those of the sky itself.

    Exact within a span; across a knot it continues the span's own cubic, which errs by
    1/384 of the jump of the third derivative.

    Parameters
    ----------
    polynomial
        ``(..., span, 4)``, powers of t.

    Examples
    --------
    >>> pixel_mean(np.array([[0.0, 0.0, 12.0, 0.0]])).tolist()
    [[1.0, 0.0, 12.0, 0.0]]
    """
    return polynomial @ _PIXEL_MEAN.T


@dataclass(frozen=True)
class Problem:
    """Moments of all groups of slits, and where they have data.

    Attributes
    ----------
    grid
        The spans.
    moments
        ``(group, span, 12)``.
    count
        ``(group, span)``, pixels.
    scale
        ``(span,)``, a positive first guess of the sky, the unit of the spline's penalty.
    """

    grid: SpanGrid
    moments: Array
    count: NDArray[np.int64]
    scale: Array

    @property
    def domain(self) -> tuple[int, int]:
        """First span with pixels and the one past the last."""
        filled = np.flatnonzero(self.count.sum(axis=0))
        return int(filled[0]), int(filled[-1]) + 1

    @property
    def n_pixels(self) -> int:
        """Pixels used."""
        return int(self.count.sum())

    @property
    def groups(self) -> NDArray[np.int64]:
        """Groups that have pixels."""
        return np.flatnonzero(self.count.sum(axis=1))


@dataclass
class Fitted:
    """A model with its coefficients found.

    Attributes
    ----------
    polynomial
        ``(span, 4)``, the sky S on each span in powers of t; NaN outside the model's domain.
    expected
        ``(span, 4)``, what a pixel is expected to measure (the mean of S over it).
    sky_error
        ``(span, 4)``, standard error of ``expected`` at `ERROR_NODES`, for unit variance scale.
    heldout
        ``(group, span, 4)``, S fitted without each group; empty where there is only one.
    coefficient, covariance
        Of the model's own parameters, for unit variance scale.
    dof
        Effective number of parameters.
    description
        Scalars that define the model: knot spacing, penalty, degree ...
    knots
        Wavelengths of the knots, um; empty for polynomials.
    table
        One dict a candidate tried: its label, dof, scores, and whether it was chosen.
    """

    polynomial: Array
    expected: Array
    sky_error: Array
    heldout: Array
    coefficient: Array
    covariance: Array
    dof: float
    description: dict[str, float | str]
    knots: Array = field(default_factory=lambda: np.empty(0))
    table: list[dict] = field(default_factory=list)


class Model(Protocol):
    """What `fit_master` asks of a model."""

    name: str
    log_data: bool

    def fit(self, problem: Problem) -> Fitted:
        """Choose among the candidates and solve."""
        ...

    def expected(self, polynomial: Array) -> Array:
        """What a pixel measures, from the sky's span polynomials."""
        ...


# ------------------------------------------------------------------------------------------------
# Linear algebra of local bases


@dataclass(frozen=True)
class _Basis:
    """Functions on spans: ``coef[i, :, a]`` is function ``first[i] + a`` on span ``spans[i]``."""

    spans: NDArray[np.int64]
    first: NDArray[np.int64]
    coef: Array
    size: int

    def combine(self, coefficient: Array, n_spans: int) -> Array:
        """Span polynomials of a linear combination, NaN on spans without basis."""
        out = np.full((n_spans, 4), np.nan)
        index = self.first[:, None] + np.arange(self.coef.shape[2])
        out[self.spans] = np.einsum("smw,sw->sm", self.coef, coefficient[index])
        return out

    def standard_error(self, covariance: Array, n_spans: int) -> Array:
        """Standard error at `ERROR_NODES` of each span."""
        powers = np.vander(ERROR_NODES, 4, increasing=True)
        values = np.einsum("em,smw->sew", powers, self.coef)
        index = self.first[:, None] + np.arange(self.coef.shape[2])
        local = covariance[index[:, :, None], index[:, None, :]]
        out = np.full((n_spans, ERROR_NODES.size), np.nan)
        variance = np.einsum("sew,swv,sev->se", values, local, values)
        out[self.spans] = np.sqrt(np.maximum(variance, 0))
        return out


def _hankel(moments: Array) -> Array:
    """``(..., 4, 4)`` Gram matrices of the powers of t."""
    return moments[..., np.add.outer(np.arange(4), np.arange(4))]


def _normal(basis: _Basis, moments: Array, offset: Array) -> tuple[Array, Array]:
    """Banded normal equations (lower form) and right-hand sides of each group.

    `offset` holds span polynomials to take off the data first.
    """
    width, k = basis.coef.shape[2], basis.size
    part = moments[:, basis.spans]
    gram = _hankel(part[..., :7])
    data = part[..., 7:11] - np.einsum("gsml,sl->gsm", gram, offset[basis.spans])
    local = np.einsum("smw,gsml,slv->gswv", basis.coef, gram, basis.coef, optimize=True)
    right = np.einsum("smw,gsm->gsw", basis.coef, data)
    bands = np.zeros((moments.shape[0], width, k))
    rhs = np.zeros((moments.shape[0], k))
    everything = slice(None)
    for a in range(width):
        np.add.at(rhs, (everything, basis.first + a), right[:, :, a])
        for b in range(a + 1):
            np.add.at(bands[:, a - b], (everything, basis.first + b), local[:, :, a, b])
    return bands, rhs


def _solve(bands: Array, rhs: Array) -> Array:
    return cho_solve_banded((cholesky_banded(bands, lower=True), True), rhs)


def _dense(bands: Array) -> Array:
    k = bands.shape[1]
    out = np.zeros((k, k))
    for d in range(bands.shape[0]):
        i = np.arange(k - d)
        out[i + d, i] = bands[d, : k - d]
        out[i, i + d] = bands[d, : k - d]
    return out


def _chi2(polynomial: Array, moments: Array) -> Array:
    """chi2 of each group's pixels against span polynomials (``(span, 4)`` or one a group)."""
    p = np.nan_to_num(polynomial)
    p = np.broadcast_to(p, (moments.shape[0], *p.shape[-2:]))
    quadratic = np.einsum("gsm,gsml,gsl->g", p, _hankel(moments[..., :7]), p, optimize=True)
    linear = np.einsum("gsm,gsm->g", p, moments[..., 7:11])
    return moments[..., 11].sum(axis=1) - 2 * linear + quadratic


def _scores(problem: Problem, chi2: float, dof: float, heldout: Array | None) -> dict:
    """Information criteria, and the held-out score: chi2 a pixel of groups left out of the fit."""
    n = problem.n_pixels
    row = {
        "dof": dof,
        "chi2": chi2,
        "gcv": n * chi2 / (n - dof) ** 2,
        "aicc": n * np.log(chi2 / n) + 2 * dof + 2 * dof * (dof + 1) / max(n - dof - 1, 1),
        "bic": n * np.log(chi2 / n) + dof * np.log(n),
        "heldout": np.nan,
        "heldout_se": np.nan,
    }
    if heldout is not None:
        groups = problem.groups
        counts = problem.count.sum(axis=1)[groups]
        each = heldout[groups] / counts
        row["heldout"] = heldout[groups].sum() / counts.sum()
        row["heldout_se"] = each.std(ddof=1) / np.sqrt(groups.size)
    return row


def _best(table: list[dict], criterion: str | None = None) -> int:
    """Index of the chosen row: lowest held-out score, or GCV where nothing can be left out."""
    if criterion is None:
        criterion = "heldout" if np.isfinite([r["heldout"] for r in table]).any() else "gcv"
    values = np.array([r[criterion] for r in table])
    best = int(np.nanargmin(values))
    for i, row in enumerate(table):
        row["chosen"] = i == best
        row["criterion"] = criterion
    return best


def _too_few(n_pixels: int, needed: int, what: str) -> FitError:
    return FitError(
        "fewer pixels than coefficients",
        where=what,
        expected=f"at least {needed} selected pixels",
        found=n_pixels,
        remedy="select more pixels (wider yrel windows, more slits) or a model with fewer "
        "coefficients",
    )


# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BSpline:
    """Penalised cubic spline with knots uniform in detector pixels.

    Minimises ``sum w (y - S)^2 + penalty * sum (second differences of c / scale)^2`` (Eilers &
    Marx 1996), in linear flux, S being the mean of the spline over each pixel.

    Parameters
    ----------
    spacing
        Knot distance in detector pixels, or None to choose among `spacings`.
    penalty
        Relative weight of the penalty, or None to choose among `penalties`. 1 makes the penalty's
        trace equal to that of the normal equations.
    spacings, penalties
        The candidates.

    Examples
    --------
    >>> BSpline(spacing=8).spacing
    8
    """

    spacing: int | None = None
    penalty: float | None = None
    spacings: tuple[int, ...] = (3, 4, 6, 8, 12, 16, 24, 32)
    penalties: tuple[float, ...] = tuple(10.0**k for k in range(-5, 4))
    name: str = field(default="bspline", init=False)
    log_data: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for spacing in self._spacings:
            if int(spacing) != spacing or spacing < 1:
                raise ParameterError(
                    "unusable knot spacing", expected="whole detector pixels >= 1", found=spacing
                )
        for penalty in self._penalties:
            if not penalty > 0:
                raise ParameterError(
                    "unusable penalty", expected="a positive number", found=penalty
                )

    @property
    def _spacings(self) -> tuple[int, ...]:
        return self.spacings if self.spacing is None else (self.spacing,)

    @property
    def _penalties(self) -> tuple[float, ...]:
        return self.penalties if self.penalty is None else (self.penalty,)

    def expected(self, polynomial: Array) -> Array:
        """Mean of the spline over one detector pixel."""
        return pixel_mean(polynomial)

    def fit(self, problem: Problem) -> Fitted:
        """Choose spacing and penalty by the held-out score, and solve."""
        first, last = problem.domain
        table: list[dict] = []
        keep: list[tuple] = []
        for spacing in self._spacings:
            knots, basis = _bspline_basis(problem.grid, first, last, spacing)
            if basis.size > problem.n_pixels:
                continue
            system = _SplineSystem.build(problem, basis, knots)
            for penalty in self._penalties:
                solved = system.solve(penalty)
                if solved is None:
                    continue
                row = {"spacing": float(spacing), "penalty": penalty, "degree": np.nan}
                table.append({"label": f"{spacing} px, {penalty:.0e}", **row, **solved})
                keep.append((system, spacing, penalty))
        if not keep:
            smallest = 3 + max(1, round((last - first) / max(self._spacings)))
            raise _too_few(problem.n_pixels, smallest, "B-spline")
        system, spacing, penalty = keep[_best(table)]
        return system.finish(penalty, {"spacing": float(spacing), "penalty": penalty}, table)


def _bspline_basis(grid: SpanGrid, first: int, last: int, spacing: int) -> tuple[Array, _Basis]:
    """Cubic B-splines on the spans of a domain, continued by one span at either end."""
    pieces = max(1, round((last - first) / spacing))
    inner = np.round(np.linspace(first, last, pieces + 1)).astype(int)
    edges = grid.edges[inner]
    # Knots past the ends go on at the outer distance: the penalty then treats the ends as any
    # other place, which knots heaped up at the ends do not.
    low = edges[0] - (edges[1] - edges[0]) * np.arange(3, 0, -1)
    high = edges[-1] + (edges[-1] - edges[-2]) * np.arange(1, 4)
    knots = np.concatenate([low, edges, high])
    spans = np.arange(first, last)
    x = grid.edges[spans, None] + grid.widths[spans, None] * _NODES
    matrix = _ScipyBSpline.design_matrix(x.ravel(), knots, 3)
    values = matrix.data.reshape(spans.size, _NODES.size, 4)
    start = matrix.indices.reshape(spans.size, _NODES.size, 4)[:, 0, 0].astype(np.int64)
    coef = np.einsum("mn,snw->smw", _TO_POWERS, values)
    # The half pixel past either end belongs to pixels whose centre is inside.
    outer = [s for s in (first - 1, last) if 0 <= s < grid.size]
    for s in outer:
        at = 0 if s < first else -1
        near = first if s < first else last - 1
        t = (grid.edges[s] + grid.widths[s] * _NODES - grid.edges[near]) / grid.widths[near]
        continued = _TO_POWERS @ np.vander(t, 4, increasing=True) @ coef[at]
        coef = np.concatenate([continued[None], coef] if at == 0 else [coef, continued[None]])
        start = np.insert(start, 0 if at == 0 else start.size, start[at])
        spans = np.insert(spans, 0 if at == 0 else spans.size, s)
    return knots, _Basis(spans, start, coef, knots.size - 4)


@dataclass
class _SplineSystem:
    """Normal equations of one knot set: one factorisation a penalty serves all questions."""

    problem: Problem
    basis: _Basis
    averaged: _Basis
    knots: Array
    bands: Array
    rhs: Array
    penalty_bands: Array

    @classmethod
    def build(cls, problem: Problem, basis: _Basis, knots: Array) -> _SplineSystem:
        averaged = _Basis(
            basis.spans,
            basis.first,
            np.einsum("nm,smw->snw", _PIXEL_MEAN, basis.coef),
            basis.size,
        )
        zero = np.zeros((problem.grid.size, 4))
        bands, rhs = _normal(averaged, problem.moments, zero)
        # Second differences count in units of what the data can tell there, so that the noisy end
        # of the spectrum is smoothed as hard, in its own errors, as the rest; never in units of
        # the flux, whose noise would become part of the model.
        information = np.convolve(bands.sum(axis=0)[0], np.ones(5) / 5, "same")
        weight = np.sqrt(np.maximum(information, 0.01 * np.median(information)))
        k = basis.size
        penalty = np.zeros((4, k))
        difference = np.array([1.0, -2.0, 1.0])
        for d in range(3):
            for a in range(3 - d):
                i = np.arange(k - 2) + a
                product = difference[a] * difference[a + d]
                np.add.at(penalty[d], i, product * weight[i] * weight[i + d])
        return cls(problem, basis, averaged, knots, bands, rhs, penalty)

    def solve(self, penalty: float) -> dict | None:
        """Scores with one penalty, None where the system is singular."""
        problem = self.problem
        total = self.bands.sum(axis=0)
        regular = penalty * self.penalty_bands
        try:
            factor = cholesky_banded(total + regular, lower=True)
            coefficient = cho_solve_banded((factor, True), self.rhs.sum(axis=0))
            heldout = None
            if problem.groups.size > 1:
                heldout = _chi2(self._without_each(regular), problem.moments)
        except np.linalg.LinAlgError:
            return None
        dof = float(np.trace(cho_solve_banded((factor, True), _dense(total))))
        chi2 = float(_chi2(self._expected(coefficient), problem.moments).sum())
        return _scores(problem, chi2, dof, heldout)

    def _expected(self, coefficient: Array) -> Array:
        return self.averaged.combine(coefficient, self.problem.grid.size)

    def _coefficients_without_each(self, regular: Array) -> Array:
        total, rhs = self.bands.sum(axis=0), self.rhs.sum(axis=0)
        return np.array(
            [_solve(total - b + regular, rhs - r) for b, r in zip(self.bands, self.rhs, strict=True)]
        )

    def _without_each(self, regular: Array) -> Array:
        return np.array([self._expected(c) for c in self._coefficients_without_each(regular)])

    def finish(self, penalty: float, description: dict, table: list[dict]) -> Fitted:
        regular = penalty * self.penalty_bands
        factor = cholesky_banded(self.bands.sum(axis=0) + regular, lower=True)
        coefficient = cho_solve_banded((factor, True), self.rhs.sum(axis=0))
        covariance = cho_solve_banded((factor, True), np.eye(self.basis.size))
        n = self.problem.grid.size
        heldout = np.empty((0, n, 4))
        if self.problem.groups.size > 1:
            each = self._coefficients_without_each(regular)
            heldout = np.array([self.basis.combine(c, n) for c in each])
        return Fitted(
            polynomial=self.basis.combine(coefficient, n),
            expected=self._expected(coefficient),
            sky_error=self.averaged.standard_error(covariance, n),
            heldout=heldout,
            coefficient=coefficient,
            covariance=covariance,
            dof=next(r["dof"] for r in table if r["chosen"]),
            description=description,
            knots=self.knots,
            table=table,
        )


# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogPolynomial:
    """Exponential of a polynomial in wavelength.

    Parameters
    ----------
    degree
        Degree of the polynomial, or None to choose among 1 ... `max_degree`.
    max_degree
        The highest candidate.
    method
        ``"link"`` fits ``exp(polynomial)`` to the flux itself, by Gauss-Newton (a generalised
        linear model with logarithmic link): unbiased, and negative flux is welcome. ``"seed"``
        is the recipe this toolkit began with: drop flux that is not positive, take the
        logarithm, fit polynomials of increasing degree without weights, keep the one with the
        lowest chi2. It is biased: the logarithm of noisy flux averages low, and dropping what is
        not positive averages high. Measured: see the README.

    Examples
    --------
    >>> LogPolynomial(method="seed").max_degree
    15
    """

    degree: int | None = None
    max_degree: int = 15
    method: str = "link"

    def __post_init__(self) -> None:
        if self.method not in ("link", "seed"):
            raise ParameterError(
                "unknown method", expected="'link' or 'seed'", found=self.method
            )
        for degree in (self.max_degree, 1 if self.degree is None else self.degree):
            if int(degree) != degree or not 0 <= degree <= 40:
                raise ParameterError("unusable degree", expected="0 ... 40", found=degree)

    @property
    def name(self) -> str:
        return "logpoly" if self.method == "link" else "seed"

    @property
    def log_data(self) -> bool:
        """Whether the moments must be of ln flux."""
        return self.method == "seed"

    def expected(self, polynomial: Array) -> Array:
        """Mean over a pixel; the seed's recipe takes the value at the pixel's centre."""
        return polynomial if self.log_data else pixel_mean(polynomial)

    def fit(self, problem: Problem) -> Fitted:
        """Choose the degree by the held-out score (the seed: by lowest chi2), and solve."""
        degrees = range(1, self.max_degree + 1) if self.degree is None else (self.degree,)
        degrees = [d for d in degrees if d < problem.n_pixels]
        if not degrees:
            raise _too_few(problem.n_pixels, (self.degree or 1) + 1, "log-polynomial")
        system = _LogSystem(problem, self.log_data)
        table, solutions = [], []
        for degree in degrees:
            coefficient, scores = system.solve(degree)
            label = {"label": f"degree {degree}", "degree": float(degree)}
            table.append({**label, "spacing": np.nan, "penalty": np.nan, **scores})
            solutions.append(coefficient)
        best = _best(table, "chi2" if self.log_data else None)
        return system.finish(solutions[best], table)


class _LogSystem:
    """Log-polynomials of any degree on one problem."""

    def __init__(self, problem: Problem, log_data: bool):
        self.problem, self.log_data = problem, log_data
        grid = problem.grid
        first, last = problem.domain
        self.spans = np.arange(max(first - 1, 0), min(last + 1, grid.size))
        self.low, self.high = float(grid.edges[first]), float(grid.edges[last])
        wave = grid.edges[self.spans, None] + grid.widths[self.spans, None] * _NODES
        self.x = 2 * (wave - self.low) / (self.high - self.low) - 1
        self.start: Array | None = None

    def _basis(self, factor: Array | None, degree: int) -> _Basis:
        """Chebyshev polynomials on the spans, times the sky where that is the derivative."""
        values = chebyshev.chebvander(self.x, degree)
        if factor is not None:
            values = values * factor[..., None]
        coef = np.einsum("mn,snw->smw", _TO_POWERS, values)
        if not self.log_data:
            coef = np.einsum("nm,smw->snw", _PIXEL_MEAN, coef)
        return _Basis(self.spans, np.zeros(self.spans.size, dtype=np.int64), coef, degree + 1)

    def _sky(self, coefficient: Array) -> Array:
        """Span polynomials of exp(polynomial)."""
        out = np.full((self.problem.grid.size, 4), np.nan)
        values = np.exp(np.clip(chebyshev.chebval(self.x, coefficient), -300, 300))
        out[self.spans] = values @ _TO_POWERS.T
        return out

    def _model(self, coefficient: Array) -> Array:
        """Span polynomials of what the moments are of: ln flux for the seed, else pixel means."""
        if self.log_data:
            basis = self._basis(None, coefficient.size - 1)
            return basis.combine(coefficient, self.problem.grid.size)
        return pixel_mean(self._sky(coefficient))

    def _step(self, coefficient: Array) -> tuple[_Basis, Array, Array]:
        """Normal equations of a Gauss-Newton step from here."""
        factor = None
        if not self.log_data:
            factor = np.exp(chebyshev.chebval(self.x, coefficient))
        basis = self._basis(factor, coefficient.size - 1)
        offset = np.nan_to_num(self._model(coefficient))
        bands, rhs = _normal(basis, self.problem.moments, offset)
        return basis, bands, rhs

    def solve(self, degree: int) -> tuple[Array, dict]:
        problem = self.problem
        coefficient = self._first_guess(degree)
        chi2 = float(_chi2(self._model(coefficient), problem.moments).sum())
        for _ in range(50):
            _, bands, rhs = self._step(coefficient)
            step = self._regular_solve(bands.sum(axis=0), rhs.sum(axis=0))
            for _halving in range(12):
                trial = coefficient + step
                new = float(_chi2(self._model(trial), problem.moments).sum())
                if new <= chi2 or not np.isfinite(chi2):
                    break
                step = step / 2
            done = chi2 - new <= 1e-9 * abs(chi2)
            if new <= chi2 or not np.isfinite(chi2):
                coefficient, chi2 = trial, new
            if done:
                break
        self.start = coefficient
        heldout = None
        if problem.groups.size > 1:
            heldout = _chi2(
                np.array([self._model(c) for c in self._without_each(coefficient)]),
                problem.moments,
            )
        return coefficient, _scores(problem, chi2, float(degree + 1), heldout)

    def _first_guess(self, degree: int) -> Array:
        """The solution of the degree below, or the logarithm of the running median."""
        if self.start is not None and self.start.size <= degree + 1:
            return np.pad(self.start, (0, degree + 1 - self.start.size))
        inside = self.spans
        level = np.log(self.problem.scale[inside])
        weight = np.sqrt(self.problem.count.sum(axis=0)[inside])
        return chebyshev.chebfit(self.x.mean(axis=1), level, min(degree, 6), w=weight + 1e-3) @ (
            np.eye(min(degree, 6) + 1, degree + 1)
        )

    @staticmethod
    def _regular_solve(bands: Array, rhs: Array) -> Array:
        # A ridge of rounding size keeps high degrees solvable where the columns nearly depend.
        ridge = np.zeros_like(bands)
        ridge[0] = 1e-13 * bands[0].max()
        return _solve(bands + ridge, rhs)

    def _without_each(self, coefficient: Array) -> Array:
        """Coefficients without each group: one Gauss-Newton step from the common solution."""
        _, bands, rhs = self._step(coefficient)
        total, right = bands.sum(axis=0), rhs.sum(axis=0)
        return np.array(
            [
                coefficient + self._regular_solve(total - b, right - r)
                for b, r in zip(bands, rhs, strict=True)
            ]
        )

    def finish(self, coefficient: Array, table: list[dict]) -> Fitted:
        n = self.problem.grid.size
        polynomial = self._sky(coefficient)
        basis, bands, _ = self._step(coefficient)
        total = bands.sum(axis=0)
        covariance = self._regular_solve(total, np.eye(coefficient.size))
        error = basis.standard_error(covariance, n)
        expected = polynomial
        if self.log_data:
            # The moments are of ln flux with unit weights: scale to relative errors, then to flux.
            variance = next(r["chi2"] for r in table if r["chosen"]) / self.problem.n_pixels
            covariance = covariance * variance
            level = polynomial @ np.vander(ERROR_NODES, 4, increasing=True).T
            error = np.sqrt(variance) * error * level
        else:
            expected = pixel_mean(polynomial)
        heldout = np.empty((0, n, 4))
        if self.problem.groups.size > 1:
            heldout = np.array([self._sky(c) for c in self._without_each(coefficient)])
        return Fitted(
            polynomial=polynomial,
            expected=expected,
            sky_error=error,
            heldout=heldout,
            coefficient=coefficient,
            covariance=covariance,
            dof=float(coefficient.size),
            description={"degree": float(coefficient.size - 1), "low": self.low, "high": self.high},
            table=table,
        )
