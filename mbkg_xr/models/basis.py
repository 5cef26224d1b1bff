"""What all models share: the problem, the answer, and the linear algebra of local bases.

Every model becomes, span by span, a cubic polynomial in t. Its basis is *local*: on each span only
a few consecutive functions differ from zero (four for a cubic B-spline, all for a polynomial), so
one set of banded normal equations serves all models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded

from ..errors import FitError
from ..spans import SpanGrid
from .banded import accumulate_normal

__all__ = [
    "ERROR_NODES",
    "FEW_GROUPS",
    "NODES",
    "PIXEL_MEAN",
    "TO_POWERS",
    "Basis",
    "Fitted",
    "Problem",
    "bands_of",
    "chi2_by_group",
    "choose",
    "covered",
    "dense",
    "no_solution",
    "normal_equations",
    "pixel_mean",
    "scores_of",
    "solve_banded",
    "too_few_pixels",
]

Array = NDArray[np.float64]

# A pixel measures the mean over its own width, which is one span: the mean of t^2 over [t-1/2,
# t+1/2] is t^2 + 1/12, that of t^3 is t^3 + t/4.
PIXEL_MEAN = np.array([[1, 0, 1 / 12, 0], [0, 1, 0, 1 / 4], [0, 0, 1, 0], [0, 0, 0, 1.0]])
NODES = np.array([0.05, 0.35, 0.65, 0.95])
TO_POWERS = np.linalg.inv(np.vander(NODES, 4, increasing=True))
#: Positions t within a span at which the standard error of the sky is kept.
ERROR_NODES = np.array([0.0, 0.25, 0.5, 0.75])
#: With fewer groups to leave out than this, held-out scores are too uncertain to choose by.
FEW_GROUPS = 12


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
    return polynomial @ PIXEL_MEAN.T


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
        ``(span,)``, a positive first guess of the sky, from where log-polynomials start.
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

    @cached_property
    def total(self) -> Problem:
        """The same pixels as one group."""
        return Problem(
            self.grid,
            self.moments.sum(axis=0, keepdims=True),
            self.count.sum(axis=0, keepdims=True),
            self.scale,
        )

    @cached_property
    def gram(self) -> Array:
        """``(group, span, 4, 4)`` Gram matrices of the powers of t."""
        return hankel(self.moments[..., :7])

    @cached_property
    def constrained(self) -> NDArray[np.bool_]:
        """``(span,)``, where the pixels say something."""
        return covered(self.count.sum(axis=0))

    @cached_property
    def constrained_without(self) -> NDArray[np.bool_]:
        """``(group, span)``, where the pixels of the other groups say something."""
        return np.array([covered(self.count.sum(axis=0) - c) for c in self.count])

    @cached_property
    def scored(self) -> Problem:
        """The pixels that held-out fits are scored on: those where the others have pixels."""
        inside = self.constrained_without
        if inside[self.count > 0].all():
            return self
        moments = np.where(inside[..., None], self.moments, 0.0)
        return Problem(self.grid, moments, np.where(inside, self.count, 0), self.scale)

    def within(self, inside: NDArray[np.bool_]) -> Problem:
        """The pixels in some spans only."""
        if inside[self.count.any(axis=0)].all():
            return self
        moments = np.where(inside[:, None], self.moments, 0.0)
        return Problem(self.grid, moments, np.where(inside, self.count, 0), self.scale)

    @property
    def groups(self) -> NDArray[np.int64]:
        """Groups that have pixels."""
        return np.flatnonzero(self.count.sum(axis=1))


def covered(count: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Spans between the first and the last with pixels, with enough of them about."""
    filled = np.flatnonzero(count)
    inside = np.zeros(count.size, dtype=np.bool_)
    if filled.size:
        inside[filled[0] : filled[-1] + 1] = True
    return inside & (np.convolve(count, np.ones(9), "same") >= 4)


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
        ``(group, span, 4)``, S fitted without each group; empty where there is only one, or
        where it was not asked for.
    heldout_error
        ``(group, span, 4)``, its standard error.
    coefficient, covariance
        Of the model's own parameters, for unit variance scale; the second may be empty where
        held-out masters were not asked for.
    factor
        ``(span, 4, rank)``, low-rank factor of the covariance of ``expected`` at `ERROR_NODES`,
        for unit variance scale (see `mbkg_xr.models.factor`).
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
    heldout_error: Array
    coefficient: Array
    covariance: Array
    factor: Array
    dof: float
    description: dict[str, float | str]
    knots: Array = field(default_factory=lambda: np.empty(0))
    table: list[dict] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------
# Linear algebra of local bases


@dataclass(frozen=True)
class Basis:
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
        """Standard error at `ERROR_NODES` of each span, from the bands of a covariance."""
        powers = np.vander(ERROR_NODES, 4, increasing=True)
        values = np.einsum("em,smw->sew", powers, self.coef)
        width = self.coef.shape[2]
        a, b = np.indices((width, width))
        local = covariance[np.abs(a - b), self.first[:, None, None] + np.minimum(a, b)]
        out = np.full((n_spans, ERROR_NODES.size), np.nan)
        variance = (np.matmul(values, local) * values).sum(axis=2)
        out[self.spans] = np.sqrt(np.maximum(variance, 0))
        return out


def hankel(moments: Array) -> Array:
    """``(..., 4, 4)`` Gram matrices of the powers of t."""
    return moments[..., np.add.outer(np.arange(4), np.arange(4))]


def normal_equations(basis: Basis, problem: Problem, offset: Array) -> tuple[Array, Array]:
    """Banded normal equations (lower form) and right-hand sides of each group.

    `offset` holds span polynomials to take off the data first.
    """
    groups = problem.moments.shape[0]
    bands = np.zeros((groups, basis.coef.shape[2], basis.size))
    rhs = np.zeros((groups, basis.size))
    accumulate_normal(
        np.ascontiguousarray(problem.moments, dtype=np.float64),
        basis.spans,
        basis.first,
        np.ascontiguousarray(basis.coef),
        np.ascontiguousarray(offset),
        bands,
        rhs,
    )
    return bands, rhs


def solve_banded(bands: Array, rhs: Array) -> Array:
    return cho_solve_banded((cholesky_banded(bands, lower=True), True), rhs)


def dense(bands: Array) -> Array:
    k = bands.shape[1]
    out = np.zeros((k, k))
    for d in range(bands.shape[0]):
        i = np.arange(k - d)
        out[i + d, i] = bands[d, : k - d]
        out[i, i + d] = bands[d, : k - d]
    return out


def bands_of(matrix: Array) -> Array:
    """All lower bands of a dense symmetric matrix."""
    k = matrix.shape[0]
    out = np.zeros((k, k))
    for d in range(k):
        out[d, : k - d] = np.diagonal(matrix, -d)
    return out


def chi2_by_group(polynomial: Array, problem: Problem) -> Array:
    """chi2 of each group's pixels against span polynomials (``(span, 4)`` or one a group)."""
    p = np.nan_to_num(polynomial)
    moments = problem.moments
    p = np.broadcast_to(p, (moments.shape[0], *p.shape[-2:]))
    quadratic = np.einsum("gsm,gsm->g", p, np.einsum("gsml,gsl->gsm", problem.gram, p))
    linear = np.einsum("gsm,gsm->g", p, moments[..., 7:11])
    return moments[..., 11].sum(axis=1) - 2 * linear + quadratic


def scores_of(
    problem: Problem, chi2: float, dof: float, heldout: Array | None, reml: float = np.nan
) -> dict:
    """Information criteria, and the held-out score: chi2 a pixel of groups left out of the fit.

    `reml` is what the model says of its own restricted likelihood.
    """
    n = problem.n_pixels
    chi2 = max(chi2, np.finfo(float).tiny)
    row = {
        "dof": dof,
        "chi2": chi2,
        "gcv": n * chi2 / max(n - dof, 1e-6) ** 2,
        "aicc": n * np.log(chi2 / n) + 2 * dof + 2 * dof * (dof + 1) / max(n - dof - 1, 1),
        "bic": n * np.log(chi2 / n) + dof * np.log(n),
        "reml": reml,
        "heldout": np.nan,
        "heldout_se": np.nan,
    }
    if heldout is not None:
        groups = problem.scored.groups
        counts = problem.scored.count.sum(axis=1)[groups]
        each = heldout[groups] / counts
        row["heldout"] = heldout[groups].sum() / counts.sum()
        row["by_group"] = each
    return row


def choose(table: list[dict], criterion: str | None = None, *, one_error: bool = False) -> int:
    """Index of the chosen row: lowest held-out score, or GCV where nothing can be left out.

    Few groups cannot say by what is left out how smooth a sky is: where there are fewer than
    `FEW_GROUPS`, and the models tell it, the restricted likelihood is taken in place of held-out
    scores.

    With `one_error`, the row of fewest effective parameters whose held-out score is within one
    standard error of the lowest (Breiman et al. 1984). Marks the row, and gives every row
    ``heldout_se``: the standard error of the difference of its held-out score from that of the
    best one.
    """
    if criterion in (None, "heldout"):
        groups = min((r["by_group"].size for r in table if "by_group" in r), default=0)
        few = groups < FEW_GROUPS and criterion is not None and not (one_error and groups)
        if few and _all_finite(table, "reml"):
            criterion = "reml"
        else:
            criterion = "heldout" if _any_finite(table, "heldout") else "gcv"
    values = np.array([r[criterion] for r in table])
    best = int(np.nanargmin(values))
    reference = table[best].get("by_group")
    for row in table:
        row["criterion"] = criterion
        each = row.pop("by_group", None)
        if each is not None:
            # Slits differ far more than models do: what counts is the difference on the same slits.
            row["heldout_se"] = (each - reference).std(ddof=1) / np.sqrt(each.size)
    if one_error and criterion == "heldout":
        near = [i for i, r in enumerate(table) if r["heldout"] - values[best] <= r["heldout_se"]]
        best = min([best, *near], key=lambda i: table[i]["dof"])
    for i, row in enumerate(table):
        row["chosen"] = i == best
    return best


def _any_finite(table: list[dict], key: str) -> bool:
    return bool(np.isfinite([r[key] for r in table]).any())


def _all_finite(table: list[dict], key: str) -> bool:
    return bool(np.isfinite([r.get(key, np.nan) for r in table]).all())


def no_solution(what: str) -> FitError:
    """The error of a system without a finite solution."""
    return FitError(
        "the model cannot be fitted to these pixels",
        where=what,
        expected="a solution with finite coefficients",
        found="a singular system, or values that are not finite",
        remedy="use the B-spline, a stronger penalty or a lower degree; a log-polynomial needs a "
        "sky that is positive",
    )


def too_few_pixels(n_pixels: int, needed: int, what: str) -> FitError:
    return FitError(
        "fewer pixels than coefficients",
        where=what,
        expected=f"at least {needed} selected pixels",
        found=n_pixels,
        remedy="select more pixels (wider yrel windows, more slits) or a model with fewer "
        "coefficients",
    )
