"""The loop of robust passes over some pixels: noise, clipping, what slits differ by, the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .checks import CONVERGED, FAR, NO_SKY, Model, check_slits, sky_level
from .differences import Differences, find_differences
from .drift import Drift, without_trend
from .errors import FitError
from .models import BSpline, Drifted, Fitted, Problem, fit_drift, products, relative_change
from .moments import PassState, PassSums, accumulate
from .robust import BIN_PIXELS, CHOOSE_PASS, Rule, next_state, scatter_of
from .scales import Scales
from .shutters import ShutterSight
from .sources import Source
from .terms import Terms

__all__ = ["Progress", "Work", "begin", "begin_with", "iterate"]

Array = NDArray[np.float64]

#: What differs from slit to slit is found anew after passes up to this one, but for that which uses
#: what was chosen with few candidates.
SETTLED = 5
# And after so many more, while it moves the master by more than this part of its error.
_FURTHER, _AGAIN = 2, 0.5
_RESCALINGS = 8


@dataclass(frozen=True)
class Work:
    """What the passes go over, and what they are to find: parameters as for `fit_master`.

    Attributes
    ----------
    pixels, sight
        The pixels, and which of them looks see; None where slits are taken to be alike.
    groups, n_groups
        ``(slit,)``, what is left out together.
    time
        ``(slit, order + 1)``, functions of each slit's time, where the sky may change.
    along
        What a pedestal is along the slits (`mbkg_xr.bars`).
    """

    pixels: Source
    sight: ShutterSight | None
    groups: NDArray[np.int64]
    n_groups: int
    time: Array | None
    along: Array
    model: Model
    scales: Scales | None
    profile: bool
    rule: Rule
    drift: Drift | None
    say: Callable[[str], None]

    def part(self, rows: NDArray[np.int64], stack: ExitStack) -> Work:
        """The same for some of the slits."""
        few, n = rows.size, self.groups.size
        return replace(
            self,
            pixels=self.pixels.part(rows, stack),
            sight=None if self.sight is None else self.sight.part(rows),
            groups=self.groups[rows],
            time=None if self.time is None else self.time[rows],
            say=lambda text: self.say(f"{text} ({few:,} of {n:,} slits)"),
        )


@dataclass
class Progress:
    """How far the passes have come.

    Attributes
    ----------
    number
        Of the last pass.
    scale
        ``(span,)``, a first guess of the sky.
    state, differ
        For the next pass.
    current
        The model that the next pass fits; from `CHOOSE_PASS` on what was chosen.
    table
        All candidates of the choice.
    history
        One row a pass.
    sums, problem, fitted, drifted
        Of the last pass.
    """

    number: int
    scale: Array
    state: PassState
    differ: Differences
    current: Model
    table: list[dict] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    sums: PassSums | None = None
    problem: Problem | None = None
    fitted: Fitted | None = None
    drifted: Drifted | None = None


def begin(work: Work, ds: xr.Dataset, scale: Array, state: PassState, bad_slits: str) -> Progress:
    """From a running median (`mbkg_xr.start`), by the noise about it.

    `ds` has all pixels of the slits, to say why a slit has none that is selected.
    """
    pixels = work.pixels
    terms = Terms.none(pixels.slits.sizes["slit"], pixels.grid.size)
    differ = Differences(terms, along=work.along)
    work.say("noise")
    sums = accumulate(pixels, state, work.groups, work.n_groups, differ.terms)
    check_slits(ds, sums, bad_slits)
    for _ in range(_RESCALINGS):
        factor = scatter_of(sums)
        if 1 / FAR < factor < FAR or sums.pixels[:, 0].sum() < BIN_PIXELS:
            break
        # Errors so far from the scatter that the histogram of z cannot hold it.
        state = replace(state, unit=state.unit * float(np.clip(factor, 0.05, 20)))
        sums = accumulate(pixels, state, work.groups, work.n_groups, differ.terms)
    state = next_state(state, sums, work.rule, state.model)
    out = Progress(0, scale, state, differ, work.model.provisional())
    if work.sight is not None:
        # Slits that are not sky are known before they spoil the first pass.
        problem = Problem(pixels.grid, sums.moments, sums.count, scale)
        fitted = out.current.fit(problem, heldout=False)
        rows = [_row(sums, state, None, fitted)]
        seen = replace(out, sums=sums, problem=problem, fitted=fitted, history=rows)
        if _lit(seen):
            used = sums.pixels[:, 1].astype(np.float64)
            out.differ = _look(work, seen, problem.constrained, used, None)
    return out


def begin_with(work: Work, few: Progress) -> Progress:
    """From what passes over some of the slits came to, and a look at all of them.

    The model is chosen anew: more slits tell more.
    """
    assert few.fitted is not None and few.problem is not None and few.sums is not None
    pixels, known = work.pixels, few.differ.terms
    state = next_state(few.state, few.sums, work.rule, few.fitted.expected, few.number)
    terms = replace(
        Terms.none(pixels.slits.sizes["slit"], pixels.grid.size),
        phase=known.phase,
        profile=known.profile,
        kind=known.profile.index(pixels.slits["n_shutters"].values),
    )
    if few.drifted is not None:
        terms = _changing(terms, few.drifted, work.time)
    differ = Differences(terms, along=work.along)
    out = Progress(CHOOSE_PASS - 1, few.scale, state, differ, work.model, history=few.history)
    if work.sight is not None and _lit(few):
        even = np.ones(terms.kind.size)
        out.differ = _look(work, out, few.problem.constrained, even, few.drifted)
    return out


def iterate(work: Work, now: Progress, last: int, *, settled: int) -> Progress:
    """Passes until the master changes no more, but not beyond the pass of number `last`.

    Goes on with `now` itself: a copy would keep what slits were found to differ by at first.

    What differs from slit to slit is found anew after passes up to number `settled`, and further
    ones that changed much.
    """
    model, drift, time = work.model, work.drift, work.time
    while True:
        now.number += 1
        work.say(f"pass {len(now.history) + 1}")
        drifted = now.drifted
        follow = (
            time is not None and now.number >= CHOOSE_PASS and (drifted is None or drifted.changes)
        )
        weights = products(time)[:, 1:] if follow and time is not None else None
        terms = now.differ.terms
        sums = accumulate(work.pixels, now.state, work.groups, work.n_groups, terms, weights)
        problem = Problem(work.pixels.grid, sums.moments, sums.count, now.scale)
        if not sums.count.any():
            raise FitError(
                "no pixel left after clipping",
                found=f"clip={work.rule.limit:g}",
                remedy="clip less hard",
            )
        if now.number == CHOOSE_PASS:
            now.current = model
        previous, fitted = now.fitted, now.current.fit(problem, heldout=False)
        if now.number == CHOOSE_PASS:
            now.table = fitted.table
            now.current = model.fixed(fitted)
        if follow and drift is not None and isinstance(now.current, BSpline):
            drifted = fit_drift(
                problem, sums.changing, fitted, now.current, drift.penalties, drifted, heldout=False
            )
            fitted = drifted.fitted
        now.sums, now.problem, now.fitted, now.drifted = sums, problem, fitted, drifted
        now.history = [*now.history, _row(sums, now.state, previous, fitted)]
        # What is found after the last pass would belong to no moments.
        change = now.history[-1]["change"]
        if now.number == last or (now.number > settled and change < CONVERGED):
            return now
        now.state = next_state(now.state, sums, work.rule, fitted.expected, now.number)
        if drifted is not None:
            now.differ = replace(now.differ, terms=_changing(now.differ.terms, drifted, time))
        # Slits cannot differ by fractions of a sky that is not there.
        further = now.number <= SETTLED + _FURTHER and change > _AGAIN
        due = now.number not in (1, CHOOSE_PASS - 1) and (now.number <= settled or further)
        if work.sight is not None and due and _lit(now):
            used = sums.pixels[:, 1].astype(np.float64)
            now.differ = _look(work, now, problem.constrained, used, drifted)


def _lit(now: Progress) -> bool:
    assert now.fitted is not None and now.problem is not None
    scatter = now.history[-1]["scatter"]
    return sky_level(now.fitted, now.problem.constrained, scatter) > NO_SKY


def _look(
    work: Work,
    now: Progress,
    constrained: NDArray[np.bool_],
    used: Array,
    drifted: Drifted | None,
) -> Differences:
    """What differs from slit to slit; `used (slit,)` is how much each counts in the master."""
    assert work.sight is not None
    work.say("slits")
    differ = find_differences(
        work.pixels,
        work.sight,
        replace(now.state, unit=now.history[-1]["scatter"]),
        now.differ,
        constrained,
        scales=work.scales,
        # What light sources spill, which a profile must be told from, a first look does not know.
        profile=work.profile and now.sums is not None,
        provisional=now.number < CHOOSE_PASS - 1,
    )
    if work.time is not None and (drifted is None or drifted.changes):
        return without_trend(differ, work.time, used)
    return differ


def _changing(terms: Terms, drifted: Drifted, time: Array | None) -> Terms:
    """Terms by which the master of a slit's time is told from the mean."""
    if time is None or not drifted.changes:
        return terms
    return replace(terms, times=time[:, 1:], drift=relative_change(drifted))


def _row(sums: PassSums, state: PassState, previous: Fitted | None, fitted: Fitted) -> dict:
    scatter = scatter_of(sums) * state.unit
    return {
        "slits": len(sums.pixels),
        "selected": int(sums.pixels[:, 0].sum()),
        "used": int(sums.pixels[:, 1].sum()),
        "scatter": scatter,
        "change": _change(previous, fitted) / scatter,
    }


def _change(previous: Fitted | None, fitted: Fitted) -> float:
    """Largest change of the expected sky between passes, in units of its error."""
    if previous is None:
        return np.inf
    with np.errstate(invalid="ignore"):
        change = np.abs(fitted.expected - previous.expected)[:, 0] / fitted.sky_error[:, 0]
    return float(np.nanmax(change))
