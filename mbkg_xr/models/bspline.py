"""The penalised cubic B-spline, the default model of the sky."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline as ScipyBSpline
from scipy.linalg import cho_solve_banded, cholesky_banded

from ..errors import ParameterError
from ..spans import SpanGrid
from .basis import (
    NODES,
    PIXEL_MEAN,
    TO_POWERS,
    Basis,
    Fitted,
    Problem,
    choose,
    dense,
    no_solution,
    normal_equations,
    scores_of,
    solve_banded,
    too_few_pixels,
)

__all__ = ["BSpline"]

Array = NDArray[np.float64]


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
        Weight of the penalty, or None to choose among `penalties`. Second differences of the
        coefficients count in units of what the data tell of them: 1 makes a difference of one
        standard deviation cost as much as a pixel that is off by one.
    spacings, penalties
        The candidates.

    Examples
    --------
    >>> BSpline(spacing=8).spacing
    8
    """

    spacing: int | None = None
    penalty: float | None = None
    spacings: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24)
    penalties: tuple[float, ...] = tuple(10.0**k for k in range(-5, 4))
    name: str = field(default="bspline", init=False)
    log_data: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self._spacings or not self._penalties:
            raise ParameterError(
                "no candidate", expected="at least one spacing and one penalty", found="none"
            )
        for spacing in self._spacings:
            if int(spacing) != spacing or spacing < 1:
                raise ParameterError(
                    "unusable knot spacing", expected="whole detector pixels >= 1", found=spacing
                )
        for penalty in self._penalties:
            if not (penalty > 0 and np.isfinite(penalty)):
                raise ParameterError(
                    "unusable penalty", expected="a positive number", found=penalty
                )

    @property
    def _spacings(self) -> tuple[int, ...]:
        return self.spacings if self.spacing is None else (self.spacing,)

    @property
    def _penalties(self) -> tuple[float, ...]:
        return self.penalties if self.penalty is None else (self.penalty,)

    def provisional(self) -> BSpline:
        """A few candidates only, enough to clip by."""
        few = self.spacings[1::3] or self.spacings, self.penalties[2::3] or self.penalties
        return replace(self, spacings=few[0], penalties=few[1])

    def fixed(self, fitted: Fitted) -> BSpline:
        """The same with what was chosen written in."""
        chosen = fitted.description
        return replace(self, spacing=int(chosen["spacing"]), penalty=float(chosen["penalty"]))

    def fit(self, problem: Problem, *, heldout: bool = True) -> Fitted:
        """Choose spacing and penalty by the held-out score, and solve.

        Without `heldout` the scores are found all the same, but the held-out masters are not made.
        """
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
            if _smallest_basis(first, last, self._spacings) <= problem.n_pixels:
                raise no_solution("B-spline")
            smallest = _smallest_basis(first, last, self._spacings)
            raise too_few_pixels(problem.n_pixels, smallest, "B-spline")
        system, spacing, penalty = keep[choose(table)]
        description: dict[str, float | str] = {"spacing": float(spacing), "penalty": penalty}
        return system.finish(penalty, description, table, heldout)


def _smallest_basis(first: int, last: int, spacings: tuple[int, ...]) -> int:
    """Coefficients of the coarsest candidate."""
    return 3 + max(1, round((last - first) / max(spacings)))


def _bspline_basis(grid: SpanGrid, first: int, last: int, spacing: int) -> tuple[Array, Basis]:
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
    x = grid.edges[spans, None] + grid.widths[spans, None] * NODES
    matrix = ScipyBSpline.design_matrix(x.ravel(), knots, 3)
    values = matrix.data.reshape(spans.size, NODES.size, 4)
    start = matrix.indices.reshape(spans.size, NODES.size, 4)[:, 0, 0].astype(np.int64)
    coef = np.einsum("mn,snw->smw", TO_POWERS, values)
    # The half pixel past either end belongs to pixels whose centre is inside.
    outer = [s for s in (first - 1, last) if 0 <= s < grid.size]
    for s in outer:
        at = 0 if s < first else -1
        near = first if s < first else last - 1
        t = (grid.edges[s] + grid.widths[s] * NODES - grid.edges[near]) / grid.widths[near]
        continued = TO_POWERS @ np.vander(t, 4, increasing=True) @ coef[at]
        coef = np.concatenate([continued[None], coef] if at == 0 else [coef, continued[None]])
        start = np.insert(start, 0 if at == 0 else start.size, start[at])
        spans = np.insert(spans, 0 if at == 0 else spans.size, s)
    return knots, Basis(spans, start, coef, knots.size - 4)


@dataclass
class _SplineSystem:
    """Normal equations of one knot set: one factorisation a penalty serves all questions."""

    problem: Problem
    basis: Basis
    averaged: Basis
    knots: Array
    bands: Array
    rhs: Array
    scored: tuple[Array, Array]
    penalty_bands: Array

    @classmethod
    def build(cls, problem: Problem, basis: Basis, knots: Array) -> _SplineSystem:
        averaged = Basis(
            basis.spans,
            basis.first,
            np.einsum("nm,smw->snw", PIXEL_MEAN, basis.coef),
            basis.size,
        )
        zero = np.zeros((problem.grid.size, 4))
        bands, rhs = normal_equations(averaged, problem, zero)
        scored = (bands, rhs)
        if problem.scored is not problem:
            scored = normal_equations(averaged, problem.scored, zero)
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
        return cls(problem, basis, averaged, knots, bands, rhs, scored, penalty)

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
                each = self._without_each(regular)
                heldout = self._chi2(each, self.problem.scored, *self.scored)
        except np.linalg.LinAlgError:
            return None
        dof = float(np.trace(cho_solve_banded((factor, True), dense(total))))
        chi2 = float(self._chi2(coefficient, problem, self.bands, self.rhs).sum())
        return scores_of(problem, chi2, dof, heldout)

    def _chi2(self, coefficient: Array, problem: Problem, bands: Array, rhs: Array) -> Array:
        """chi2 of each group, from its own normal equations."""
        c = np.broadcast_to(coefficient, rhs.shape)
        product = bands[:, 0] * c
        k = self.basis.size
        for d in range(1, bands.shape[1]):
            band = bands[:, d, : k - d]
            product[:, d:] += band * c[:, : k - d]
            product[:, : k - d] += band * c[:, d:]
        squares = problem.moments[..., 11].sum(axis=1)
        return squares - 2 * (c * rhs).sum(axis=1) + (c * product).sum(axis=1)

    def _expected(self, coefficient: Array) -> Array:
        return self.averaged.combine(coefficient, self.problem.grid.size)

    def _without_each(self, regular: Array) -> Array:
        """Coefficients without each group."""
        total, rhs = self.bands.sum(axis=0), self.rhs.sum(axis=0)
        each = zip(self.bands, self.rhs, strict=True)
        return np.array([solve_banded(total - b + regular, rhs - r) for b, r in each])

    def finish(
        self, penalty: float, description: dict, table: list[dict], with_heldout: bool
    ) -> Fitted:
        regular = penalty * self.penalty_bands
        factor = cholesky_banded(self.bands.sum(axis=0) + regular, lower=True)
        coefficient = cho_solve_banded((factor, True), self.rhs.sum(axis=0))
        covariance = cho_solve_banded((factor, True), np.eye(self.basis.size))
        n = self.problem.grid.size
        heldout, heldout_error = np.empty((0, n, 4)), np.empty((0, n, 4))
        if with_heldout and self.problem.groups.size > 1:
            heldout = np.array([self.basis.combine(c, n) for c in self._without_each(regular)])
            total, eye = self.bands.sum(axis=0) + regular, np.eye(self.basis.size)
            covariances = (solve_banded(total - b, eye) for b in self.bands)
            heldout_error = np.array([self.averaged.standard_error(v, n) for v in covariances])
        return Fitted(
            polynomial=self.basis.combine(coefficient, n),
            expected=self._expected(coefficient),
            sky_error=self.averaged.standard_error(covariance, n),
            heldout=heldout,
            heldout_error=heldout_error,
            coefficient=coefficient,
            covariance=covariance,
            dof=next(r["dof"] for r in table if r["chosen"]),
            description=description,
            knots=self.knots,
            table=table,
        )
