"""Robust passes over the pixels: clipping, noise, what differs between slits, and the model.

Each pass reads the selected pixels once and brings back moments, a histogram of normalised
residuals and noise sums (`mbkg_xr.moments`). Between passes everything happens on those.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .bars import pedestal_along
from .checks import CONVERGED, FAR, NO_SKY, Model, check_slits, sky_level
from .columns import held
from .differences import Differences, find_differences, shutter_sight
from .drift import Clock, Drift, without_trend
from .errors import FitError
from .models import BSpline, Drifted, Fitted, Problem, fit_drift, products, relative_change
from .moments import PassState, PassSums, accumulate
from .robust import BIN_PIXELS, CHOOSE_PASS, Rule, next_state, scatter_of
from .scales import Scales
from .spans import SpanGrid
from .start import start
from .terms import Terms

__all__ = ["Passes", "robust_passes"]

Array = NDArray[np.float64]

_DIFFER_PASSES = (1, 2, 4, 5)  # what differs from slit to slit is found anew after these
_RESCALINGS = 8


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
    **options: Any,
) -> Passes:
    """Passes until the master changes no more (parameters as for `fit_master`)."""
    with ExitStack() as stack:
        return _passes(ds, grid, groups, n_groups, model, stack=stack, **options)


def _passes(
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
    bad_slits: str,
    memory: int,
    stack: ExitStack,
    drift: Drift | None,
    say: Callable[[str], None],
) -> Passes:
    say("selection")
    differs = (scales is not None or profile) and not model.log_data
    # What differs between slits is looked for in other pixels than the selected ones, too.
    sight = shutter_sight(ds, profile=profile) if differs else None
    sky = held(ds, grid, memory=memory, sight=sight, stack=stack)
    time = None if drift is None else Clock.of(ds, drift.order).functions(ds["mjd"].values)
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
    # Held-out masters are costly, and only those of the last pass are kept.
    fitted = current.fit(problem)
    if drift is not None and drifted is not None and isinstance(current, BSpline):
        drifted = fit_drift(problem, sums.changing, fitted, current, drift.penalties, drifted)
        fitted = drifted.fitted
    fitted.table = table
    differ = differ.with_errors()
    return Passes(problem, fitted, state, differ, sums.pixels, history, drifted)


def _changing(terms: Terms, drifted: Drifted, time: Array | None) -> Terms:
    """Terms by which the master of a slit's time is told from the mean."""
    if time is None or not drifted.changes:
        return terms
    return replace(terms, times=time[:, 1:], drift=relative_change(drifted))


def _row(sums: PassSums, state: PassState, previous: Fitted | None, fitted: Fitted) -> dict:
    scatter = scatter_of(sums) * state.unit
    return {
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
