"""Log-polynomials: with a logarithmic link, and the first recipe, on logarithms of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from ..errors import ParameterError
from .basis import (
    ERROR_NODES,
    NODES,
    PIXEL_MEAN,
    TO_POWERS,
    Basis,
    Fitted,
    Problem,
    bands_of,
    chi2_by_group,
    choose,
    no_solution,
    normal_equations,
    pixel_mean,
    scores_of,
    solve_banded,
    too_few_pixels,
)
from .factor import covariance_factor

__all__ = ["LogPolynomial"]

Array = NDArray[np.float64]

_MOST = 150.0  # of ln flux, in whatever units: the squares of more cannot be summed


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
        linear model with logarithmic link, McCullagh & Nelder 1989): unbiased, and negative flux
        is welcome. ``"seed"`` is the recipe this toolkit began with: drop flux that is not
        positive, take the logarithm, fit polynomials of increasing degree without weights, keep
        the one with the lowest chi2. It is biased: the logarithm of noisy flux averages low, and
        dropping what is not positive averages high. Measured: see the README.

    Raises
    ------
    ParameterError
        On values that make no sense.

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
            raise ParameterError("unknown method", expected="'link' or 'seed'", found=self.method)
        degree, least = (self.max_degree, 1) if self.degree is None else (self.degree, 0)
        if int(degree) != degree or not least <= degree <= 40:
            raise ParameterError("unusable degree", expected=f"{least} ... 40", found=degree)

    @property
    def name(self) -> str:
        return "logpoly" if self.method == "link" else "seed"

    @property
    def log_data(self) -> bool:
        """Whether the moments must be of ln flux."""
        return self.method == "seed"

    def provisional(self) -> LogPolynomial:
        """A few candidates only, enough to clip by."""
        return replace(self, max_degree=min(self.max_degree, 8))

    def fixed(self, fitted: Fitted) -> LogPolynomial:
        """The same with what was chosen written in."""
        return replace(self, degree=int(fitted.description["degree"]))

    def fit(self, problem: Problem, *, heldout: bool = True) -> Fitted:
        """Choose the degree by the held-out score (the seed: by lowest chi2), and solve.

        Without `heldout` the scores are found all the same, but the held-out masters are not made.
        """
        wanted = range(1, self.max_degree + 1) if self.degree is None else (self.degree,)
        degrees = [d for d in wanted if d < problem.n_pixels]
        if not degrees:
            raise too_few_pixels(problem.n_pixels, (self.degree or 1) + 1, "log-polynomial")
        system = _LogSystem(problem, self.log_data)
        table: list[dict] = []
        solutions: list[Array] = []
        for degree in degrees:
            try:
                coefficient, scores = system.solve(degree)
            except (np.linalg.LinAlgError, ValueError) as error:
                if solutions:
                    break  # higher degrees are no better conditioned
                raise no_solution(f"log-polynomial of degree {degree}") from error
            label = {"label": f"degree {degree}", "degree": float(degree)}
            table.append({**label, "spacing": np.nan, "penalty": np.nan, "adapted": 0.0, **scores})
            solutions.append(coefficient)
        best = choose(table, "chi2" if self.log_data else None)
        return system.finish(solutions[best], table, heldout)


class _LogSystem:
    """Log-polynomials of any degree on one problem."""

    def __init__(self, problem: Problem, log_data: bool):
        self.problem, self.log_data = problem, log_data
        grid = problem.grid
        first, last = problem.domain
        self.spans = np.arange(max(first - 1, 0), min(last + 1, grid.size))
        self.low, self.high = float(grid.edges[first]), float(grid.edges[last])
        wave = grid.edges[self.spans, None] + grid.widths[self.spans, None] * NODES
        self.x = 2 * (wave - self.low) / (self.high - self.low) - 1
        self.start: Array | None = None

    def _basis(self, factor: Array | None, degree: int) -> Basis:
        """Chebyshev polynomials on the spans, times the sky where that is the derivative."""
        values = chebyshev.chebvander(self.x, degree)
        if factor is not None:
            values = values * factor[..., None]
        coef = np.einsum("mn,snw->smw", TO_POWERS, values)
        if not self.log_data:
            coef = np.einsum("nm,smw->snw", PIXEL_MEAN, coef)
        return Basis(self.spans, np.zeros(self.spans.size, dtype=np.int64), coef, degree + 1)

    def _sky(self, coefficient: Array) -> Array:
        """Span polynomials of exp(polynomial)."""
        out = np.full((self.problem.grid.size, 4), np.nan)
        out[self.spans] = self._exponential(coefficient) @ TO_POWERS.T
        return out

    def _exponential(self, coefficient: Array) -> Array:
        """exp(polynomial) at the nodes of the spans, kept within what a float can hold."""
        return np.exp(np.clip(chebyshev.chebval(self.x, coefficient), -_MOST, _MOST))

    def _model(self, coefficient: Array) -> Array:
        """Span polynomials of what the moments are of: ln flux for the seed, else pixel means."""
        if self.log_data:
            basis = self._basis(None, coefficient.size - 1)
            return basis.combine(coefficient, self.problem.grid.size)
        return pixel_mean(self._sky(coefficient))

    def _step(self, coefficient: Array, problem: Problem) -> tuple[Basis, Array, Array]:
        """Normal equations of a Gauss-Newton step from here, of each group of a problem."""
        factor = None
        if not self.log_data:
            factor = self._exponential(coefficient)
        basis = self._basis(factor, coefficient.size - 1)
        offset = np.nan_to_num(self._model(coefficient))
        bands, rhs = normal_equations(basis, problem, offset)
        return basis, bands, rhs

    def solve(self, degree: int) -> tuple[Array, dict]:
        problem, total = self.problem, self.problem.total
        coefficient = self._first_guess(degree)
        chi2 = float(chi2_by_group(self._model(coefficient), total)[0])
        for _ in range(50):
            _, bands, rhs = self._step(coefficient, total)
            step = self._regular_solve(bands[0], rhs[0])
            for _halving in range(12):
                trial = coefficient + step
                new = float(chi2_by_group(self._model(trial), total)[0])
                if new <= chi2 or not np.isfinite(chi2):
                    break
                step = step / 2
            done = chi2 - new <= 1e-9 * abs(chi2)
            if new <= chi2 or not np.isfinite(chi2):
                coefficient, chi2 = trial, new
            if done:
                break
        if np.abs(chebyshev.chebval(self.x, coefficient)).max() >= _MOST:
            raise np.linalg.LinAlgError("the sky runs away to zero or infinity")
        self.start = coefficient
        heldout = None
        if problem.groups.size > 1:
            heldout = chi2_by_group(
                np.array([self._model(c) for c in self._without_each(coefficient)[0]]),
                problem.scored,
            )
        return coefficient, scores_of(problem, chi2, float(degree + 1), heldout)

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
        return solve_banded(bands + ridge, rhs)

    def _without_each(self, coefficient: Array) -> tuple[Array, Array]:
        """Coefficients without each group, and their covariances.

        By one Gauss-Newton step from the common solution.
        """
        _, bands, rhs = self._step(coefficient, self.problem)
        total, right = bands.sum(axis=0), rhs.sum(axis=0)
        eye = np.eye(coefficient.size)
        each = zip(bands, rhs, strict=True)
        solved = [
            self._regular_solve(total - b, np.column_stack([right - r, eye])) for b, r in each
        ]
        return np.array([coefficient + x[:, 0] for x in solved]), np.array(
            [x[:, 1:] for x in solved]
        )

    def finish(self, coefficient: Array, table: list[dict], with_heldout: bool) -> Fitted:
        n = self.problem.grid.size
        polynomial = self._sky(coefficient)
        basis, bands, _ = self._step(coefficient, self.problem.total)
        covariance = self._regular_solve(bands[0], np.eye(coefficient.size))
        # The seed's moments are of ln flux with unit weights: scale to relative errors, then flux.
        variance = 1.0
        if self.log_data:
            chi2 = next(r["chi2"] for r in table if r["chosen"])
            variance = chi2 / self.problem.n_pixels
        level: Any = 1.0
        if self.log_data:
            level = polynomial @ np.vander(ERROR_NODES, 4, increasing=True).T

        def error(matrix: Array) -> Array:
            return np.sqrt(variance) * basis.standard_error(bands_of(matrix), n) * level

        factor = np.sqrt(variance) * covariance_factor(basis, covariance, n)
        if self.log_data:
            factor = factor * np.nan_to_num(level)[..., None]
        heldout, heldout_error = np.empty((0, n, 4)), np.empty((0, n, 4))
        if with_heldout and self.problem.groups.size > 1:
            coefficients, covariances = self._without_each(coefficient)
            heldout = np.array([self._sky(c) for c in coefficients])
            heldout_error = np.array([error(v) for v in covariances])
        return Fitted(
            polynomial=polynomial,
            expected=polynomial if self.log_data else pixel_mean(polynomial),
            sky_error=error(covariance),
            heldout=heldout,
            heldout_error=heldout_error,
            coefficient=coefficient,
            covariance=covariance * variance,
            factor=factor,
            dof=float(coefficient.size),
            description={"degree": float(coefficient.size - 1), "low": self.low, "high": self.high},
            table=table,
        )
