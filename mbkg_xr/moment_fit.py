"""A fit of moments that were made before: no pixel is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .applied import APPLIED_ATTRS, as_master_variables
from .blocks import reduce_blocks
from .checks import Model, require_slits, warn_without_sky
from .differences import Differences
from .drift import Clock, Drift, drift_variables, with_drift
from .errors import FitError, ParameterError
from .groups import add_up, leave_out_groups, weighted
from .master import build_master
from .models import BSpline, Drifted, Problem, fit_drift, products
from .moments import N_MOMENTS
from .spans import SpanGrid
from .terms import Terms

__all__ = ["GroupSums", "fit_moments", "group_sums", "problem_of"]

Array = NDArray[np.float64]


@dataclass
class GroupSums:
    """Moments of groups of slits, and what is counted by slit. All of it adds.

    Attributes
    ----------
    moments
        ``(group, span, 14)``, as those of slits.
    pixels
        ``(slit, 2)``: pixels selected, and used.
    changing
        ``(product, group, span, 12)``: moments weighted with products of functions of time.
    """

    moments: Array
    pixels: NDArray[np.int64]
    changing: Array

    def __add__(self, other: GroupSums) -> GroupSums:
        return GroupSums(
            self.moments + other.moments,
            np.concatenate([self.pixels, other.pixels]),
            self.changing + other.changing,
        )


def group_sums(
    ds: xr.Dataset, groups: NDArray[np.int64], n_groups: int, products: Array | None = None
) -> GroupSums:
    """Moments of groups of slits, from those of slits, chunk by chunk. Computes."""

    def block(start: int, arrays: Sequence[Any], shared: Any) -> GroupSums:
        values = np.asarray(arrays[0], dtype=np.float64)
        part = slice(start, start + values.shape[0])
        own = np.empty((values.shape[0], 0)) if products is None else products[part]
        counted = values[..., [N_MOMENTS + 1, N_MOMENTS]].sum(axis=1)
        return GroupSums(
            add_up(values, groups[part], n_groups),
            counted.astype(np.int64),
            weighted(values[..., :N_MOMENTS], groups[part], n_groups, own),
        )

    return reduce_blocks(ds, ["moments"], block, lambda a, b: a + b)


def problem_of(ds: xr.Dataset, moments: Array) -> Problem:
    """What models are fitted to, from moments of groups ``(group, span, 14)``."""
    level = np.abs(ds["weight_model"].values[:, 0])
    scale = np.maximum(level, 0.05 * np.median(level) or 1.0)
    return Problem(
        SpanGrid(ds["edge"].values),
        np.ascontiguousarray(moments[..., :N_MOMENTS]),
        moments[..., N_MOMENTS].astype(np.int64),
        scale,
    )


def fit_moments(
    ds: xr.Dataset,
    *,
    model: Model,
    leave_out: str,
    most: int,
    drift: Drift | None,
    say: Callable[[str], None],
) -> xr.Dataset:
    """The master of moments (see `fit_master`). Computes."""
    if model.log_data != (ds.attrs["data"] == "ln flux"):
        raise ParameterError(
            "the model cannot be fitted to these moments",
            expected="moments of ln flux" if model.log_data else "moments of flux",
            found=f"moments of {ds.attrs['data']}",
            remedy="make them with a master of the same kind of model",
        )
    require_slits(ds)
    say("moments")
    groups, names = leave_out_groups(ds, leave_out, most)
    clock = None if drift is None else Clock.of(ds, drift.order)
    weights = None if clock is None else products(clock.functions(ds["mjd"].values))[:, 1:]
    sums = group_sums(ds, groups, len(names), weights)
    problem = problem_of(ds, sums.moments)
    if not problem.count.any():
        raise FitError(
            "no pixel in these moments",
            expected="slits with pixels used",
            found=f"{ds.sizes['slit']} slits without any",
        )
    fitted = model.fit(problem)
    drifted: Drifted | None = None
    if drift is not None and isinstance(model, BSpline):
        drifted = fit_drift(problem, sums.changing, fitted, model.fixed(fitted), drift.penalties)
        drifted.fitted.table = fitted.table
        fitted = drifted.fitted
    # The seed's errors come from its own residuals and need no scaling.
    scatter = 1.0 if model.log_data else float(ds.attrs["scatter"])
    selected, used = sums.pixels.sum(axis=0).tolist()
    warn_without_sky(fitted, problem.constrained, scatter)
    master = build_master(
        fitted,
        problem.grid,
        constrained=problem.constrained & np.isfinite(fitted.expected[:, 0]),
        heldout_constrained=problem.constrained_without & np.isfinite(fitted.expected[:, 0]),
        scatter=scatter,
        gain=ds["photon_gain"].values,
        history=[
            {
                "slits": ds.sizes["slit"],
                "selected": selected,
                "used": used,
                "scatter": scatter,
                "change": 0.0,
            }
        ],
        slits=ds,
        groups=groups,
        pixels=sums.pixels,
        differ=Differences(Terms.none(ds.sizes["slit"], problem.grid.size)),
        attrs={
            "model": model.name,
            "configuration": ds.attrs["configuration"],
            "units": ds.attrs["units"],
            "clip": ds.attrs["clip"],
            "left_out": leave_out,
            "n_pixels": used,
            "converged": 1,
        },
    )
    done = as_master_variables(ds)
    if clock is not None and drifted is not None:
        more = drift_variables(drifted, clock, scatter, ds.attrs["units"])
        master = with_drift(master, more)
    attrs = {k: ds.attrs[k] for k in APPLIED_ATTRS if k in ds.attrs and k != "scatter"}
    return master.assign(done.data_vars).assign_coords(done.coords).assign_attrs(attrs)
