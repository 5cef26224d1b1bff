"""The penalised cubic B-spline, the default model of the sky."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline as ScipyBSpline

from ..errors import ParameterError
from ..spans import SpanGrid
from .basis import NODES, TO_POWERS, Basis, Fitted, Problem, no_solution, too_few_pixels
from .penalised import Candidate, OnOffer, PenalisedSystem, best_of, check_choice

__all__ = ["FINE", "BSpline", "spline_basis"]

Array = NDArray[np.float64]

#: Knots further apart than this many detector pixels leave nothing to adapt.
FINE = 4


@dataclass(frozen=True)
class BSpline(OnOffer):
    """Penalised cubic spline with knots uniform in detector pixels, or where they are wanted.

    Minimises ``sum w (y - S)^2 + sum_j d_j (second difference of c)_j^2`` (Eilers & Marx 1996), in
    linear flux, S being the mean of the spline over each pixel. The weights ``d_j`` are either one
    penalty in units of what the data tell of each difference, or adapted: they follow the sky and
    fall where it has a line, so that it is smoothed hard where it is smooth and not at all where it
    is not (restricted likelihood, Wood & Fasiolo 2017). Their profile is found from all slits, and
    competes on held-out slits with common penalties.

    Parameters
    ----------
    spacing
        Knot distance in detector pixels, or None to choose among `spacings`.
    penalty
        Weight of the penalty, or None to choose. Differences of the coefficients count in units of
        what the data tell of them: 1 makes a difference of one standard deviation cost as much as
        a pixel that is off by one. With `adapted`, the factor of the adapted penalty.
    adapted
        True for adapted penalties only, False for common ones only, None for both (common ones
        only, where `penalty` is given).
    spacings, penalties, strengths
        The candidates: knot distances, common penalties, and factors of the adapted one.
    knots
        Wavelengths of the knots in um, in place of any spacing; each is moved to the nearest edge
        of a detector pixel, and the ends of the data are knots, too. The penalty is on differences
        of the coefficients: where knots are closer the sky may bend more.
    criterion
        What is lowest in the model that is chosen: ``"heldout"`` (chi2 a pixel of slits left out;
        where there are fewer than 12, restricted likelihood), ``"reml"`` (restricted likelihood),
        ``"gcv"``, ``"aicc"`` or ``"bic"``.
    one_error
        Choose the smoothest model whose held-out score is within one standard error of the best.

    Raises
    ------
    ParameterError
        On values that make no sense.

    Examples
    --------
    >>> BSpline(spacing=8).spacing
    8
    """

    spacing: int | None = None
    penalty: float | None = None
    adapted: bool | None = None
    spacings: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24)
    penalties: tuple[float, ...] = tuple(10.0**k for k in range(-5, 4))
    strengths: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    knots: tuple[float, ...] | None = None
    criterion: str = "heldout"
    one_error: bool = False
    name: str = field(default="bspline", init=False)
    log_data: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self._spacings or not self._penalties + self._strengths:
            raise ParameterError(
                "no candidate", expected="at least one spacing and one penalty", found="none"
            )
        check_choice(self._spacings, self._penalties + self._strengths, self.criterion)
        if self.knots is not None:
            _check_knots(self.knots, self.spacing)
        elif self.adapted and min(self._spacings) > FINE:
            raise ParameterError(
                "knots too far apart for an adapted penalty",
                expected=f"a spacing of at most {FINE} detector pixels",
                found=min(self._spacings),
            )

    def provisional(self) -> BSpline:
        """A few candidates only, enough to clip by."""
        spacings = self.spacings[1::3] or self.spacings
        penalties = self.penalties[2::3] or self.penalties
        middle = len(self.strengths) // 2
        strengths = self.strengths[middle : middle + 1]
        return replace(self, spacings=spacings, penalties=penalties, strengths=strengths)

    def fixed(self, fitted: Fitted) -> BSpline:
        """The same with what was chosen written in."""
        chosen = fitted.description
        return replace(
            self,
            spacing=None if self.knots is not None else int(chosen["spacing"]),
            penalty=float(chosen["penalty"]),
            adapted=bool(chosen["adapted"]),
        )

    def fit(self, problem: Problem, *, heldout: bool = True) -> Fitted:
        """Choose spacing and penalty, and solve.

        Without `heldout` the scores are found all the same, but the held-out masters are not made.
        """
        return best_of(self.candidates(problem), self.criterion, self.one_error, heldout)[0]

    def candidates(self, problem: Problem) -> list[Candidate]:
        """All candidates with their scores."""
        out: list[Candidate] = []
        smallest = problem.grid.size
        for spacing, knots, basis in self.bases(problem):
            smallest = min(smallest, basis.size)
            if basis.size > problem.n_pixels:
                continue
            even = self.knots is None
            system = PenalisedSystem.build(problem, basis, knots, spacing=spacing, even=even)
            strengths = self._strengths if spacing <= FINE else ()
            name = f"{spacing} px" if even else "knots as given"
            out += system.candidates(name, self._penalties, strengths)
        if out:
            return out
        if smallest <= problem.n_pixels:
            raise no_solution("B-spline")
        raise too_few_pixels(problem.n_pixels, smallest, "B-spline")

    def bases(self, problem: Problem) -> Iterator[tuple[int, Array, Basis]]:
        """Spacing in detector pixels (of given knots their least), knots and basis of each."""
        first, last = problem.domain
        if self.knots is None:
            for spacing in self._spacings:
                yield spacing, *spline_basis(problem.grid, first, last, spacing)
            return
        u = problem.grid.pixel_coordinate(self.knots)
        inner = np.unique(np.rint(u[(u > first) & (u < last)]).astype(int))
        inner = np.concatenate([[first], inner[(inner > first) & (inner < last)], [last]])
        yield int(np.diff(inner).min()), *basis_on(problem.grid, inner)


def _check_knots(knots: tuple[float, ...], spacing: int | None) -> None:
    wanted = np.asarray(knots, dtype=float)
    increasing = wanted.ndim == 1 and bool(np.all(np.diff(wanted) > 0))
    if spacing is not None or not (increasing and np.isfinite(wanted).all()):
        raise ParameterError(
            "unusable knots",
            where="knots",
            expected="increasing wavelengths in um, and no spacing beside them",
            found=f"{wanted.size} knots, spacing={spacing}",
        )


def spline_basis(grid: SpanGrid, first: int, last: int, spacing: int) -> tuple[Array, Basis]:
    """Cubic B-splines with knots every `spacing` spans of a domain."""
    pieces = max(1, round((last - first) / spacing))
    return basis_on(grid, np.round(np.linspace(first, last, pieces + 1)).astype(int))


def basis_on(grid: SpanGrid, inner: NDArray[np.int64]) -> tuple[Array, Basis]:
    """Cubic B-splines with knots on some edges of spans, continued by one span at either end."""
    first, last = int(inner[0]), int(inner[-1])
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
