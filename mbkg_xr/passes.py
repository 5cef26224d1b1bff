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
from .differences import Differences, shutter_sight
from .drift import Clock, Drift
from .groups import few_slits
from .held import held
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
