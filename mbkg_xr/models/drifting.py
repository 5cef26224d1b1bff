"""A spline sky that changes smoothly with time, solved jointly from moments.

    S(l, t) = sum_k P_k(tau) S_k(l),   S_k(l) = known(l) r_k(l)  for k >= 1,

S_0 the mean over time, a penalised spline; each r_k, the change relative to the sky known so far, a
spline on the same knots whose second differences are penalised far more. The coefficients of all
terms at one knot stand together, so that the normal equations stay banded: 4 (order + 1) bands.
Of the moments of a slit only sums with weights P_a P_b are needed, beside those of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .banded import (
    banded_factor,
    banded_solve,
    inverse_bands,
    quadratic_forms,
    trace_of_product,
    without_each,
)
from .basis import (
    ERROR_NODES,
    PIXEL_MEAN,
    Basis,
    Fitted,
    Problem,
    choose,
    dense,
    normal_equations,
    scores_of,
)
from .bspline import BSpline
from .cubics import product_basis
from .factor import low_rank
from .penalised import PenalisedSystem

__all__ = ["DriftSystem", "Drifted", "fit_drift", "pairs", "products", "relative_change"]

Array = NDArray[np.float64]

_DIFFERENCE = np.array([1.0, -2.0, 1.0])
_USUAL = 0.5  # standard deviation of relative changes that are not expected: a prior of no weight
_SETTLE = 20  # rounds at most until the sky that the change is relative to is the sky found
_LEAST_SKY = 0.02  # of the typical sky: where there is next to none, fractions of it say nothing


def pairs(order: int) -> list[tuple[int, int]]:
    """Pairs of functions of time whose products weigh moments; the mean's own comes first."""
    return [(a, b) for a in range(order + 1) for b in range(a, order + 1)]


def products(functions: Array) -> Array:
    """``(slit, pair)``: those products, from ``(slit, order + 1)`` functions of time."""
    order = functions.shape[1] - 1
    return np.stack([functions[:, a] * functions[:, b] for a, b in pairs(order)], axis=1)


@dataclass
class Drifted:
    """A sky that changes.

    Attributes
    ----------
    fitted
        The mean over time, as of a model without drift; its errors are of the joint solution.
    polynomial
        ``(term, span, 4)``, S_1 and so on in powers of t.
    factor
        ``(term, span, node, rank)``: factor of the covariance along wavelength of all terms, those
        of the mean first; at a time, that of the sky is the sum of it times the functions of time.
    covariance
        ``(term, term, span, node)``, of the pixel means of S_0, S_1 and so on, for unit scatter.
    heldout, heldout_covariance
        The same without each group, ``(group, term, span, 4)`` and
        ``(group, term, term, span, node)``; empty where not asked for.
    penalty
        Of the change; NaN where none was found.
    table
        One dict a candidate.
    """

    fitted: Fitted
    polynomial: Array
    factor: Array
    covariance: Array
    heldout: Array
    heldout_covariance: Array
    penalty: float
    table: list[dict]

    @property
    def changes(self) -> bool:
        """Whether a change was found."""
        return bool(np.isfinite(self.penalty))


class DriftSystem:
    """Normal equations of the mean sky and its changes.

    Parameters
    ----------
    problem
        Moments of the groups.
    changing
        ``(pair, group, span, 12)``: moments weighted with products of functions of time, in the
        order of `pairs`, without the first.
    fitted
        A fit of the mean alone.
    model
        The model of the mean, with its choice.
    """

    def __init__(self, problem: Problem, changing: Array, fitted: Fitted, model: BSpline):
        self.problem, self.changing, self.fitted = problem, changing, fitted
        self.known = fitted.polynomial
        self.order = int(np.sqrt(2 * changing.shape[0] + 2)) - 1
        assert model.penalty is not None
        spacing, knots, basis = next(model.bases(problem))
        self.mean = PenalisedSystem.build(problem, basis, knots, spacing=spacing)
        self.weight = model.penalty * (self.mean.adapted_penalty() if model.adapted else 1.0)
        self.width, self.size = self.order + 1, basis.size
        change = product_basis(_floored(fitted.polynomial, basis), basis)
        self.basis = _interleaved([basis, *[change] * self.order])
        averaged = np.einsum("nm,smw->snw", PIXEL_MEAN, self.basis.coef)
        self.averaged = replace(self.basis, coef=averaged)

    @cached_property
    def equations(self) -> tuple[Array, Array]:
        """``(group, bands, size)`` and ``(group, size)``."""
        return self._equations(self.problem, np.ones(self.problem.grid.size, dtype=np.bool_))

    def _equations(self, problem: Problem, inside: NDArray[np.bool_]) -> tuple[Array, Array]:
        q, n = self.width, self.width * self.size
        column = np.arange(n)
        band = np.arange(4 * q)[:, None]
        row_term, column_term = (column + band) % q, np.broadcast_to(column % q, (4 * q, n))
        zero = np.zeros((problem.grid.size, 4))
        bands = np.zeros((problem.moments.shape[0], 4 * q, n))
        rhs = np.zeros((problem.moments.shape[0], n))
        for index, (a, b) in enumerate(pairs(self.order)):
            moments = problem.moments
            if index:
                moments = np.where(inside[..., None], self.changing[index - 1], 0.0)
            one = replace(problem, moments=moments)
            found, right = normal_equations(self.averaged, one, zero)
            here = (row_term == a) & (column_term == b) | (row_term == b) & (column_term == a)
            bands += np.where(here, found, 0.0)
            if a == 0:
                rhs += np.where(column % q == b, right, 0.0)
        return bands, rhs

    @cached_property
    def scored(self) -> tuple[Array, Array]:
        """The equations of the pixels that held-out fits are scored on."""
        if self.problem.scored is self.problem:
            return self.equations
        return self._equations(self.problem.scored, self.problem.constrained_without)

    def penalty(self, weight: float) -> Array:
        """Bands of the penalties of all terms."""
        bands = self.equations[0].sum(axis=0)
        out = np.zeros_like(bands)
        q = self.width
        own = self.mean.penalty_bands(self.weight)
        for d in range(own.shape[0]):
            out[d * q, 0::q] += own[d]
        for term in range(1, q):
            near = np.maximum(bands[0, term::q], 1e-3 * np.median(bands[0, term::q]))
            information = np.sqrt(near[:-2] * near[2:])
            for a in range(3):
                for b in range(a + 1):
                    part = weight * _DIFFERENCE[a] * _DIFFERENCE[b] * information
                    out[(a - b) * q, term + b * q : term + (b + part.size) * q : q] += part
            out[0, term::q] += 1 / (_USUAL**2 * self.size)
        return out

    def candidate(self, weight: float) -> dict | None:
        """Scores with one penalty of the change, None where there is no solution."""
        bands, rhs = self.equations
        total, right = bands.sum(axis=0), rhs.sum(axis=0)
        system = total + self.penalty(weight)
        problem = self.problem
        squares = problem.moments[..., 11].sum(axis=1)
        try:
            factor = banded_factor(system)
            coefficient = banded_solve(factor, right)
            heldout = None
            if problem.groups.size > 1:
                each, _ = without_each(system, right, bands, rhs)
                heldout = problem.scored.moments[..., 11].sum(axis=1)
                heldout = heldout + quadratic_forms(*self.scored, each)
        except np.linalg.LinAlgError:
            return None
        dof = trace_of_product(inverse_bands(factor), total)
        chi2 = float((squares + quadratic_forms(bands, rhs, coefficient)).sum())
        label = {"label": f"change, {weight:.0e}", "penalty": float(weight)}
        return {**label, **scores_of(problem, chi2, dof, heldout)}

    def still(self) -> dict:
        """Scores without a change."""
        scores = self.mean.solve(self.weight)
        assert scores is not None
        return {"label": "no change", "penalty": np.nan, **scores}

    def best(self, penalties: Sequence[float]) -> tuple[float, list[dict]]:
        """The penalty chosen, NaN for no change, and all candidates with their scores."""
        table = [self.still()]
        table += [row for p in penalties if (row := self.candidate(p)) is not None]
        best = choose(table)
        row = table[best]
        # A change has to say more of slits left out than chance would.
        if best and table[0]["criterion"] == "heldout":
            gain = table[0]["heldout"] - row["heldout"]
            if not gain > table[0]["heldout_se"]:
                best = 0
        for index, row in enumerate(table):
            row["chosen"] = index == best
        return float(table[best]["penalty"]), table

    def mean_sky(self, weight: float) -> Array:
        """``(span, 4)``, S_0 of the joint solution with one penalty of the change."""
        bands, rhs = self.equations
        factor = banded_factor(bands.sum(axis=0) + self.penalty(weight))
        return self._terms(banded_solve(factor, rhs.sum(axis=0)))[0]

    def solve(self, weight: float, table: list[dict], *, heldout: bool) -> Drifted:
        """The sky with one penalty of the change; NaN for none."""
        n, q = self.problem.grid.size, self.width
        if not np.isfinite(weight):
            none = np.empty((0, n, 4))
            return Drifted(self.fitted, none, none, none, none, none, weight, table)
        bands, rhs = self.equations
        right = rhs.sum(axis=0)
        system = bands.sum(axis=0) + self.penalty(weight)
        factor = banded_factor(system)
        coefficient, inverse = banded_solve(factor, right), inverse_bands(factor)
        terms = self._terms(coefficient)
        covariance = self._covariances(inverse)
        each, each_covariance = np.empty((0, q, n, 4)), np.empty((0, q, q, n, ERROR_NODES.size))
        if heldout and self.problem.groups.size > 1:
            solved, inverses = without_each(system, right, bands, rhs, inverse=True)
            each = np.array([self._terms(c) for c in solved])
            each_covariance = np.array([self._covariances(v) for v in inverses])
        full = np.asarray(np.linalg.inv(dense(system)), dtype=np.float64)
        factors = np.empty((q, n, ERROR_NODES.size, 0))
        if heldout:
            factors = self._factors(full)
        old = self.fitted
        fitted = replace(
            old,
            polynomial=terms[0],
            expected=_meaned(terms[0]),
            sky_error=np.sqrt(covariance[0, 0]),
            heldout=each[:, 0] if each.size else old.heldout[:0],
            heldout_error=(
                np.sqrt(each_covariance[:, 0, 0]) if each.size else old.heldout_error[:0]
            ),
            coefficient=coefficient[0::q],
            covariance=full[0::q, 0::q],
            factor=factors[0],
        )
        return Drifted(fitted, terms[1:], factors, covariance, each, each_covariance, weight, table)

    def _terms(self, coefficient: Array) -> Array:
        """``(term, span, 4)``: the sky's terms."""
        n, q = self.problem.grid.size, self.width
        own = np.arange(coefficient.size) % q
        return np.array(
            [self.basis.combine(np.where(own == k, coefficient, 0.0), n) for k in range(q)]
        )

    def _factors(self, covariance: Array) -> Array:
        """``(term, span, node, rank)``, with little lost at as many times as there are terms."""
        q, n, basis = self.width, self.problem.grid.size, self.averaged
        spans, nodes = basis.spans.size, ERROR_NODES.size
        powers = np.vander(ERROR_NODES, 4, increasing=True)
        values = np.einsum("em,smw->sew", powers, basis.coef)
        column = np.repeat(basis.first[:, None] + np.arange(4 * q), nodes, axis=0).ravel()
        start = np.arange(spans * nodes + 1) * 4 * q
        shape = (spans * nodes, covariance.shape[0])
        variances, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
        root = vectors * np.sqrt(np.maximum(variances, 0.0))
        own = np.arange(root.shape[0]) % q
        design = csr_array((values.ravel(), column, start), shape=shape)
        rows = np.array([design @ np.where((own == k)[:, None], root, 0.0) for k in range(q)])
        times = legendre.legvander(np.linspace(-1, 1, q), self.order)
        at_times = np.tensordot(times, rows, axes=1)
        small = low_rank(at_times.reshape(q * spans * nodes, -1)).reshape(q, spans * nodes, -1)
        small = np.tensordot(np.linalg.inv(times), small, axes=1)
        out = np.zeros((q, n, nodes, small.shape[-1]))
        out[:, basis.spans] = small.reshape(q, spans, nodes, -1)
        return out

    def _covariances(self, inverse: Array) -> Array:
        """``(term, term, span, node)``, from the bands of a covariance."""
        q, basis = self.width, self.averaged
        powers = np.vander(ERROR_NODES, 4, increasing=True)
        values = np.einsum("em,smw->sew", powers, basis.coef)
        a, b = np.indices((4 * q, 4 * q))
        local = inverse[np.abs(a - b), basis.first[:, None, None] + np.minimum(a, b)]
        n = self.problem.grid.size
        out = np.full((q, q, n, ERROR_NODES.size), np.nan)
        for i in range(q):
            for j in range(q):
                part = np.einsum(
                    "sea,sab,seb->se",
                    values[..., i::q], local[:, i::q, j::q], values[..., j::q], optimize=True,
                )  # fmt: skip
                out[i, j, basis.spans] = part
        return out


def fit_drift(
    problem: Problem,
    changing: Array,
    fitted: Fitted,
    model: BSpline,
    penalties: Sequence[float],
    before: Drifted | None = None,
    *,
    heldout: bool = True,
) -> Drifted:
    """The sky and its change: the penalty is chosen once, and kept where there is one before."""
    if before is not None and not before.changes:
        return replace(before, fitted=fitted)
    if before is not None:
        # The change is relative to the sky: the last one is nearer than that without a change.
        fitted = replace(fitted, polynomial=before.fitted.polynomial)
    system = DriftSystem(problem, changing, fitted, model)
    penalty, table = system.best(penalties) if before is None else (before.penalty, before.table)
    for _ in range(_SETTLE if np.isfinite(penalty) else 0):
        mean = system.mean_sky(penalty)
        away = np.nanmax(np.abs(mean - system.known)) / np.nanmax(np.abs(mean))
        if away < 1e-13:
            break
        system = DriftSystem(problem, changing, replace(fitted, polynomial=mean), model)
    return system.solve(penalty, table, heldout=heldout)


def relative_change(drifted: Drifted) -> Array:
    """``(term, span)``: the change over the mean sky, at the middle of each span; 0 beyond."""
    middle = 0.5 ** np.arange(4)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = drifted.polynomial @ middle / (drifted.fitted.polynomial @ middle)
    return np.clip(np.nan_to_num(found), -2.0, 2.0)


def _meaned(polynomial: Array) -> Array:
    return polynomial @ PIXEL_MEAN.T


def _floored(polynomial: Array, basis: Basis) -> Array:
    """The sky on the spans of a basis, nowhere next to nothing."""
    out = np.array(polynomial)
    # The last pass may have had pixels on fewer spans.
    least = _LEAST_SKY * float(np.nanmedian(np.abs(out[basis.spans, 0])))
    low = np.flatnonzero(~(out[:, 0] > least) & np.isfinite(out[:, 0]))
    out[low] = [least, 0.0, 0.0, 0.0]
    return out


def _interleaved(terms: Sequence[Basis]) -> Basis:
    """One basis whose functions are those of several in turn, on the same spans and knots."""
    q = len(terms)
    first = terms[0]
    coef = np.stack([one.coef for one in terms], axis=-1)
    return Basis(
        first.spans,
        first.first * q,
        np.ascontiguousarray(coef.reshape(*first.coef.shape[:2], -1)),
        first.size * q,
    )
