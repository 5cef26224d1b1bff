"""Robust passes over the pixels: clipping, noise, what differs between slits, and the model.

Each pass reads the selected pixels once and brings back moments, a histogram of normalised
residuals and noise sums (`mbkg_xr.moments`). Between passes everything happens on those.

Of many slits the first passes see some, chosen by what they are: these tell noise, clipping and
profile nearly as well as all do, and what is left for passes over all slits is to choose the model,
to find each slit's own terms, and to converge.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .bars import pedestal_along
from .checks import Model, check_slits
from .columns import held
from .differences import Differences, shutter_sight
from .drift import Clock, Drift
from .groups import few_slits
from .models import BSpline, Drifted, Fitted, Problem, fit_drift
from .moments import PassState
from .pass_loop import SETTLED, Progress, Work, begin, begin_with, iterate
from .robust import CHOOSE_PASS, Rule
from .scales import Scales
from .spans import SpanGrid
from .start import start

__all__ = ["Passes", "robust_passes"]

Array = NDArray[np.float64]

_ENOUGH = 100_000  # selected pixels of some slits, to begin with these


@dataclass
class Passes:
    """What the passes came to.

    Attributes
    ----------
    problem
        The moments of the last pass, by group.
    fitted
        The last fit, with the table of all candidates.
    state, differ
        Weights, clipping and terms that those moments were made with.
    pixels
        ``(slit, 2)``: pixels selected, and used.
    history
        One row a pass.
    drifted
        The sky and its change, where it was asked for.
    """

    problem: Problem
    fitted: Fitted
    state: PassState
    differ: Differences
    pixels: NDArray[np.int64]
    history: list[dict]
    drifted: Drifted | None = None

    @property
    def scatter(self) -> float:
        """True scatter in units of the model's error."""
        return float(self.history[-1]["scatter"])


def robust_passes(
    ds: xr.Dataset,
    grid: SpanGrid,
    groups: NDArray[np.int64],
    n_groups: int,
    model: Model,
    *,
    scales: Scales | None,
    profile: bool,
    rule: Rule,
    max_passes: int,
    first_slits: int,
    bad_slits: str,
    memory: int,
    drift: Drift | None,
    say: Callable[[str], None],
) -> Passes:
    """Passes until the master changes no more (parameters as for `fit_master`)."""
    differs = (scales is not None or profile) and not model.log_data
    settled = SETTLED if differs else CHOOSE_PASS
    time = None if drift is None else Clock.of(ds, drift.order).functions(ds["mjd"].values)
<<<<<<< HEAD
    drifted: Drifted | None = None
    differ = Differences(Terms.none(ds.sizes["slit"], grid.size))
    if sight is not None and scales is not None and scales.pedestal:
        differ.along = pedestal_along(ds, grid, sight.kinds)
    say("running median")
    scale, state = start(sky, log_data=model.log_data, slits=ds)
    say("noise")
    sums = accumulate(sky, state, groups, n_groups, differ.terms)
    check_slits(ds, sums, bad_slits)
    for _ in range(_RESCALINGS):
        factor = scatter_of(sums)
        if 1 / FAR < factor < FAR or sums.pixels[:, 0].sum() < BIN_PIXELS:
            break
        # Errors so far from the scatter that the histogram of z cannot hold it.
        state = replace(state, unit=state.unit * float(np.clip(factor, 0.05, 20)))
        sums = accumulate(sky, state, groups, n_groups, differ.terms)
    state = next_state(state, sums, rule, state.model)

    settled = max(_DIFFER_PASSES) if differs else CHOOSE_PASS
    history: list[dict] = []
    fitted: Fitted | None = None
    table: list[dict] = []
    current = model.provisional()
    for number in range(1, max_passes + 1):
        say(f"pass {number}")
        follow = time is not None and number >= CHOOSE_PASS and (drifted is None or drifted.changes)
        weights = products(time)[:, 1:] if follow and time is not None else None
        sums = accumulate(sky, state, groups, n_groups, differ.terms, weights)
        problem = Problem(grid, sums.moments, sums.count, scale)
        if not sums.count.any():
            raise FitError(
                "no pixel left after clipping",
                found=f"clip={rule.limit:g}",
                remedy="clip less hard",
            )
        if number == CHOOSE_PASS:
            current = model
        previous, fitted = fitted, current.fit(problem, heldout=False)
        if number == CHOOSE_PASS:
            table = fitted.table
            current = model.fixed(fitted)
        if follow and drift is not None and isinstance(current, BSpline):
            drifted = fit_drift(
                problem, sums.changing, fitted, current, drift.penalties, drifted, heldout=False
            )
            fitted = drifted.fitted
        history.append(_row(sums, state, previous, fitted))
        # What is found after the last pass would belong to no moments.
        if number == max_passes or (number > settled and history[-1]["change"] < CONVERGED):
            break
        state = next_state(state, sums, rule, fitted.expected, number)
        if drifted is not None:
            differ = replace(differ, terms=_changing(differ.terms, drifted, time))
        # Slits cannot differ by fractions of a sky that is not there.
        lit = sky_level(fitted, problem.constrained, history[-1]["scatter"]) > NO_SKY
        if sight is not None and lit and number in _DIFFER_PASSES:
            say("slits")
            seen = replace(state, unit=history[-1]["scatter"])
            differ = find_differences(
                sky,
                sight,
                seen,
                differ,
                problem.constrained,
                scales=scales,
                profile=profile,
                provisional=number < CHOOSE_PASS,
            )
            if time is not None and (drifted is None or drifted.changes):
                differ = without_trend(differ, time, sums.pixels[:, 1].astype(np.float64))
=======
    with ExitStack() as stack:
        say("selection")
        # What differs between slits is looked for in other pixels than the selected ones, too.
        sight = shutter_sight(ds, profile=profile) if differs else None
        pixels = held(ds, grid, memory=memory, sight=sight, stack=stack)
        along = np.empty((0, 0, 0))
        if sight is not None and scales is not None and scales.pedestal:
            along = pedestal_along(ds, grid, sight.kinds)
        work = Work(
            pixels, sight, groups, n_groups, time, along, model, scales, profile, rule, drift, say
        )
        say("running median")
        first = start(pixels, log_data=model.log_data, slits=ds)
        few = _over_few(work, ds, first, first_slits, settled, stack)
        if few is None:
            begun = begin(work, ds, *first, bad_slits)
        else:
            begun, settled = begin_with(work, few), CHOOSE_PASS
        done = iterate(work, begun, max_passes, settled=settled)
    sums, problem, drifted = done.sums, done.problem, done.drifted
    assert sums is not None and problem is not None
    if few is not None:
        check_slits(ds, sums, bad_slits)
>>>>>>> 1651b21 (Of many slits the first passes see some, chosen by what they are)
    # Held-out masters are costly, and only those of the last pass are kept.
    fitted = done.current.fit(problem)
    if drift is not None and drifted is not None and isinstance(done.current, BSpline):
        drifted = fit_drift(problem, sums.changing, fitted, done.current, drift.penalties, drifted)
        fitted = drifted.fitted
    fitted.table = done.table
    differ = done.differ.with_errors()
    return Passes(problem, fitted, done.state, differ, sums.pixels, done.history, drifted)


def _over_few(
    work: Work,
    ds: xr.Dataset,
    first: tuple[Array, PassState],
    first_slits: int,
    settled: int,
    stack: ExitStack,
) -> Progress | None:
    """Passes over some of the slits, where there are many more; None where they would not help."""
    rows = few_slits(ds, first_slits)
    if rows is None:
        return None
    few = work.part(rows, stack)
    if few.pixels.size < _ENOUGH:
        return None
    begun = begin(few, ds.isel(slit=rows), *first, "skip")
    return iterate(few, begun, settled + 1, settled=settled)
