"""Penalised least squares in a local basis: one system serves all penalties and questions.

The penalty is ``sum_j d_j (second difference of the coefficients)_j^2``. Either all ``d_j`` are
alike in units of what the data tell there (one number to choose), or they follow the sky:
`adapted_penalty`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded

from ..errors import ParameterError
from .banded import (
    DIFFERENCE,
    banded_factor,
    banded_solve,
    inverse_bands,
    likely_weights,
    quadratic_forms,
    second_differences,
    trace_of_product,
    without_each,
)
from .basis import (
    ERROR_NODES,
    FEW_GROUPS,
    PIXEL_MEAN,
    Basis,
    Fitted,
    Problem,
    choose,
    normal_equations,
    scores_of,
)
from .factor import TO_NODES, covariance_factor

__all__ = ["CRITERIA", "Candidate", "OnOffer", "PenalisedSystem", "best_of", "check_choice"]

Array = NDArray[np.float64]

_WINDOW = 8  # detector pixels over which an adapted penalty may change
# Local weights begin this much below the common one: a line that was smoothed away at first would
# leave no trace to find it by.
_ROUGH = 1e-4
# Beyond these the penalty, or the data, lose their digits in the sum of both.
_LEAST, _MOST = 1e-9, 1e7
# A fixed number of steps, not a tolerance: the penalty is then a smooth function of the moments,
# and the same to rounding for any order of the pixels.
_COMMON_STEPS, _LOCAL_STEPS = 15, 25


#: What candidates may be chosen by.
CRITERIA = ("heldout", "reml", "gcv", "aicc", "bic")


@dataclass
class PenalisedSystem:
    """Normal equations of one basis.

    Attributes
    ----------
    problem
        The moments.
    basis, averaged
        The model on each span, and its pixel means.
    knots
        Wavelengths of its knots.
    spacing
        Their distance in detector pixels, the least where it is not the same for all.
    even
        Whether it is.
    prior
        An adapted penalty is drawn to its median over the band with the weight of so many
        differences: without evidence that the sky is rougher there than elsewhere it stays.
    bands, rhs
        Normal equations of each group; ``scored`` those of the pixels that held-out fits are
        scored on.
    information
        ``(difference,)``, what the data tell about each difference: the unit of the penalty.
    """

    problem: Problem
    basis: Basis
    averaged: Basis
    knots: Array
    spacing: int
    even: bool
    prior: float
    bands: Array
    rhs: Array
    scored: tuple[Array, Array]
    information: Array

    @classmethod
    def build(
        cls,
        problem: Problem,
        basis: Basis,
        knots: Array,
        *,
        spacing: int,
        even: bool = True,
        prior: float = 0.5,
    ) -> PenalisedSystem:
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
        # Differences count in units of what the data can tell there, so that the noisy end of the
        # spectrum is smoothed as hard, in its own errors, as the rest; never in units of the flux,
        # whose noise would become part of the model.
        # ("same" would return five where there are but four functions.)
        near = np.convolve(bands.sum(axis=0)[0], np.ones(5) / 5)[2:-2]
        near = np.sqrt(np.maximum(near, 0.01 * np.median(near)))
        information = near[:-2] * near[2:]
        return cls(
            problem, basis, averaged, knots, spacing, even, prior, bands, rhs, scored, information
        )

    @cached_property
    def total(self) -> tuple[Array, Array]:
        """Normal equations of all groups together."""
        return self.bands.sum(axis=0), self.rhs.sum(axis=0)

    @cached_property
    def squares(self) -> Array:
        """``(group,)``, weighted sum of the squares of the data."""
        return self.problem.moments[..., 11].sum(axis=1)

    def penalty_bands(self, weight: float | Array) -> Array:
        """Bands of the penalty with one weight for all differences, or one for each."""
        out = np.zeros_like(self.total[0])
        out[:3] = second_differences(self.information * weight)
        return out

    def adapted_penalty(self, dispersion: float | None = None) -> Array:
        """Weights ``(difference,)`` that follow the sky: low where it bends more than its errors.

        The weights are linear between nodes `_WINDOW` detector pixels apart, and maximise the
        restricted likelihood of the data, the penalty being the prior of the differences, by the
        update of Wood & Fasiolo (2017, Biometrics 73, 1071), one common weight first. Where the sky
        has a line they fall by orders of magnitude, over a few pixels. `dispersion` is the variance
        of the data in units of that which the weights state; None to take it from the fit itself.
        """
        n, hats = self.information.size, self.hats
        common = self._likely(np.ones((1, n)), np.ones(1), 0.0, _COMMON_STEPS, dispersion)
        start = np.full(len(hats), _ROUGH * common[0])
        return self._likely(hats, start, self.prior, _LOCAL_STEPS, dispersion) @ hats

    @cached_property
    def hats(self) -> Array:
        """``(node, difference)``: what the weights of an adapted penalty are made of."""
        n = self.information.size
        pieces = max(1, round(n * self.spacing / _WINDOW))
        nodes = np.linspace(0, n - 1, pieces + 1)
        return np.array([np.interp(np.arange(n), nodes, row) for row in np.eye(pieces + 1)])

    def _errors_of_choice(self, weight: Array, coefficient: Array, covariance: Array) -> Array:
        """``(coefficient, node)``: what the coefficients err by because weights were found.

        A factor of the covariance that comes on top of that for weights that are certain, for unit
        variance of the data: the change of the coefficients with the logarithm of each node's
        weight, times the error of that, from the expected curvature of the restricted likelihood
        (Wood, Pya & Saefken 2016, J. Am. Stat. Assoc. 111, 1548, the term of first order).
        """
        n, hats = self.information.size, self.hats
        node = np.argmax(hats, axis=1)
        d = self.information * weight
        share = hats * (weight[node][:, None] * self.information)
        second = np.convolve(coefficient, DIFFERENCE, "valid")
        half = covariance[:, :-2] - 2 * covariance[:, 1:-1] + covariance[:, 2:]
        explained = -(half[:-2] - 2 * half[1:-1] + half[2:])
        explained[np.diag_indices(n)] += 1 / d
        curvature = 0.5 * share @ np.square(explained) @ share.T
        # What draws the weights to the usual one tells of them, too.
        curvature[np.diag_indices(len(hats))] += 0.5 * self.prior * weight[node] / np.median(weight)
        change = half @ (share * second).T
        (total, right), pixels = self.total, self.problem.n_pixels
        chi2 = self.squares.sum() + float(
            quadratic_forms(total[None], right[None], coefficient[None])[0]
        )
        dispersion = max(chi2, np.finfo(float).tiny) / pixels
        values, vectors = np.linalg.eigh(curvature)
        return (change @ vectors) / np.sqrt(values * dispersion)

    def _likely(
        self,
        hats: Array,
        weight: Array,
        prior: float,
        steps: int,
        dispersion: float | None,
    ) -> Array:
        """Weights of maximal restricted likelihood, each a factor of one of the hats."""
        bands, right = self.total
        weight = weight.copy()
        settled = likely_weights(
            bands, right, self.information, hats, weight, prior, steps,
            np.nan if dispersion is None else dispersion,
            self.problem.n_pixels, self.squares.sum(), _LEAST, _MOST,
        )  # fmt: skip
        if not settled:
            raise np.linalg.LinAlgError("not positive definite")
        return weight

    def solve(self, weight: float | Array) -> dict | None:
        """Scores with one penalty, None where the system is singular."""
        problem, (total, right) = self.problem, self.total
        regular = self.penalty_bands(weight)
        try:
            factor = banded_factor(total + regular)
            coefficient = banded_solve(factor, right)
            heldout = None
            if problem.groups.size > 1:
                each, _ = without_each(total + regular, right, self.bands, self.rhs)
                squares = problem.scored.moments[..., 11].sum(axis=1)
                heldout = squares + quadratic_forms(*self.scored, each)
        except np.linalg.LinAlgError:
            return None
        dof = trace_of_product(inverse_bands(factor), total)
        chi2 = float((self.squares + quadratic_forms(self.bands, self.rhs, coefficient)).sum())
        reml = self._restricted(weight, factor, coefficient)
        return scores_of(problem, chi2, dof, heldout, reml)

    def _restricted(self, weight: float | Array, factor: Array, coefficient: Array) -> float:
        """-2 ln of the restricted likelihood, the penalty being the prior of the differences.

        The variance of the data is the fit's own (Patterson & Thompson 1971; Wood 2011, J. R.
        Stat. Soc. B 73, 3). What no penalty touches, coefficients on a straight line, counts in
        units of what the data tell of it, so that different bases, and a sky and a ratio of skies,
        can be compared.
        """
        total, right = self.total
        free = max(self.problem.n_pixels - 2, 1)
        chi2 = max(float(self.squares.sum() - right @ coefficient), np.finfo(float).tiny)
        line = np.arange(self.basis.size) ** np.arange(2.0)[:, None]
        untouched = np.array([[_banded_product(total, a, b) for a in line] for b in line])
        prior = np.log(self.information * weight).sum() + np.linalg.slogdet(untouched)[1]
        return float(free * np.log(chi2 / free) + 2 * np.log(factor[:, 0]).sum() - prior)

    def left_of(self, weight: float | Array, values: Array) -> Array:
        """What is left of functions of wavelength, were they in the data, when they are fitted.

        `values` are ``(span, node, function)``, at `ERROR_NODES`; so is what is left.
        """
        polynomial = np.einsum("mn,snk->ksm", TO_NODES, np.nan_to_num(values))
        one = self.problem.total
        moments = np.repeat(one.moments, polynomial.shape[0], axis=0)
        moments[..., 7:11] = np.einsum("sml,ksl->ksm", one.gram[0], polynomial)
        zero = np.zeros((one.grid.size, 4))
        _, rhs = normal_equations(self.averaged, replace(one, moments=moments), zero)
        factor = banded_factor(self.total[0] + self.penalty_bands(weight))
        powers = np.vander(ERROR_NODES, 4, increasing=True).T
        taken = [self.averaged.combine(banded_solve(factor, r), one.grid.size) for r in rhs]
        out = np.array(values)
        for k, each in enumerate(taken):
            out[..., k] -= np.nan_to_num(each @ powers)
        return out

    def finish(
        self,
        weight: float | Array,
        description: dict[str, float | str],
        table: list[dict],
        with_heldout: bool,
    ) -> Fitted:
        """The fit with one penalty."""
        total, right = self.total
        system = total + self.penalty_bands(weight)
        factor = banded_factor(system)
        coefficient = banded_solve(factor, right)
        # Of many slits the errors are as they should be without: 1.00 at 9 x 60.
        few = np.ndim(weight) > 0 and self.problem.groups.size < FEW_GROUPS
        covariance = np.empty((0, 0))
        if few or with_heldout:
            covariance = cho_solve_banded(
                (np.ascontiguousarray(factor.T), True), np.eye(self.basis.size)
            )
        n = self.problem.grid.size
        bands = inverse_bands(factor)
        extra = np.zeros_like(bands)
        if few:
            more = self._errors_of_choice(np.asarray(weight), coefficient, covariance)
            covariance += more @ more.T
            for d in range(bands.shape[0]):
                extra[d, : self.basis.size - d] = (more[d:] * more[: self.basis.size - d]).sum(
                    axis=1
                )
        # Costly too, and wanted of the last fit only.
        factor_of_covariance = np.empty((n, ERROR_NODES.size, 0))
        if with_heldout:
            factor_of_covariance = covariance_factor(self.averaged, covariance, n)
        heldout, heldout_error = np.empty((0, n, 4)), np.empty((0, n, 4))
        if with_heldout and self.problem.groups.size > 1:
            each, inverses = without_each(system, right, self.bands, self.rhs, inverse=True)
            heldout = np.array([self.basis.combine(c, n) for c in each])
            heldout_error = np.array([self.averaged.standard_error(v + extra, n) for v in inverses])
        return Fitted(
            polynomial=self.basis.combine(coefficient, n),
            expected=self.averaged.combine(coefficient, n),
            sky_error=self.averaged.standard_error(bands + extra, n),
            heldout=heldout,
            heldout_error=heldout_error,
            coefficient=coefficient,
            covariance=covariance,
            factor=factor_of_covariance,
            dof=next(r["dof"] for r in table if r["chosen"]),
            description=description,
            knots=self.knots,
            table=table,
        )

    def candidates(
        self, name: str, penalties: tuple[float, ...], strengths: tuple[float, ...]
    ) -> list[Candidate]:
        """The basis with each common penalty, and with an adapted one times each strength."""
        tried: list[tuple[str, float, bool, float | Array]]
        tried = [(f"{name}, {p:.0e}", p, False, p) for p in penalties]
        if strengths:
            try:
                adapted = self.adapted_penalty()
            except np.linalg.LinAlgError:
                strengths = ()
            tried += [(f"{name}, adapted x {f:g}", f, True, f * adapted) for f in strengths]
        out = []
        for label, penalty, is_adapted, weight in tried:
            scores = self.solve(weight)
            if scores is None:
                continue
            described: dict[str, float | str] = {
                "spacing": float(self.spacing) if self.even else np.nan,
                "penalty": float(penalty),
                "adapted": float(is_adapted),
            }
            out.append(
                Candidate(
                    self,
                    weight,
                    described,
                    {"label": label, **described, "degree": np.nan, **scores},
                )
            )
        return out


def _banded_product(bands: Array, a: Array, b: Array) -> float:
    """``a A b`` of a matrix held by its lower bands."""
    out = float((bands[0] * a * b).sum())
    for d in range(1, bands.shape[0]):
        n = bands.shape[1] - d
        out += float((bands[d, :n] * (a[d:] * b[:n] + a[:n] * b[d:])).sum())
    return out


@dataclass
class Candidate:
    """One basis with one penalty: what describes it, and its scores."""

    system: PenalisedSystem
    weight: float | Array
    description: dict[str, float | str]
    row: dict


def best_of(
    candidates: list[Candidate], criterion: str, one_error: bool, with_heldout: bool
) -> tuple[Fitted, Candidate]:
    """The candidate that scores best, and its fit; all are in its table."""
    table = [c.row for c in candidates]
    best = candidates[choose(table, criterion, one_error=one_error)]
    return best.system.finish(best.weight, best.description, table, with_heldout), best


class OnOffer:
    """Spacings, common penalties and strengths of adapted ones that a penalised model offers."""

    spacing: int | None
    penalty: float | None
    adapted: bool | None
    spacings: tuple[int, ...]
    penalties: tuple[float, ...]
    strengths: tuple[float, ...]

    @property
    def _spacings(self) -> tuple[int, ...]:
        return self.spacings if self.spacing is None else (self.spacing,)

    @property
    def _penalties(self) -> tuple[float, ...]:
        if self.adapted:
            return ()
        return self.penalties if self.penalty is None else (self.penalty,)

    @property
    def _strengths(self) -> tuple[float, ...]:
        if self.adapted is False or (self.adapted is None and self.penalty is not None):
            return ()
        return self.strengths if self.penalty is None else (self.penalty,)


def check_choice(spacings: tuple[int, ...], penalties: tuple[float, ...], criterion: str) -> None:
    """Refuse candidates that make no sense."""
    for spacing in spacings:
        if int(spacing) != spacing or spacing < 1:
            raise ParameterError(
                "unusable knot spacing", expected="whole detector pixels >= 1", found=spacing
            )
    for penalty in penalties:
        if not (penalty > 0 and np.isfinite(penalty)):
            raise ParameterError("unusable penalty", expected="a positive number", found=penalty)
    if criterion not in CRITERIA:
        raise ParameterError("unknown criterion", expected=" ".join(CRITERIA), found=criterion)
