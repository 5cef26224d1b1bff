"""The fit: from slits to the master, by passes over their pixels or from their moments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import xarray as xr

from .applied import applied_variables
from .blas import serial_blas
from .checks import (
    CONVERGED,
    Model,
    check_model,
    check_parameters,
    warn_of_passes,
    warn_of_slits,
    warn_without_sky,
)
from .drift import Clock, Drift, drift_variables, with_drift
from .errors import FitError, MbkgError, ParameterError, SelectionError
from .groups import MOST_GROUPS, leave_out_groups
from .master import build_master
from .models import BSpline
from .moment_fit import fit_moments
from .parts import join_parts, split_slits
from .passes import robust_passes
from .robust import Rule
from .room import pixel_room
from .scales import Scales
from .schema import validate
from .select import centres_only
from .slit_moments import is_moments
from .sources import per_unit_sky
from .spans import SpanGrid, span_grid
from .tasks import await_workers

__all__ = ["fit_master"]

DEFAULT_SCALES = Scales()


@serial_blas
def fit_master(
    ds: xr.Dataset,
    *,
    model: Model | None = None,
    by: str | Sequence[str] | None = None,
    drift: Drift | None = None,
    scales: Scales | None = DEFAULT_SCALES,
    profile: bool = True,
    weights: str = "clip",
    clip: float | None = None,
    max_passes: int = 10,
    first_slits: int = 1_500,
    leave_out: str = "slit",
    max_groups: int = MOST_GROUPS,
    bad_slits: str = "raise",
    grid: SpanGrid | None = None,
    memory: int | None = None,
    on_pass: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Fit the master spectrum to the selected pixels of all slits. Computes.

    Weights are 1 / variance with the photon noise of the *model*, not of the datum: STScI errors
    come from the pixel's own counts, and weights from those pull the sky low by several per cent.
    The weights of pixels fall with their distance from a running centre, in units of a running,
    scaled MAD (`weights`).

    Parameters
    ----------
    ds
        A slit dataset with ``selected`` (see `select_background`), or moments of slits (see
        `moments`): those are weighted and clipped already, so that only `model`, `by`,
        `leave_out` and `max_groups` have a meaning, and no pixel is read.
    model
        `BSpline` (default), `LogPolynomial` or `Template`.
    by
        None: one master for all slits. A slit coordinate such as ``"visit"``, or several: one for
        each of their values, with its own model, clipping and scales, all in one dataset with
        the dimension ``part`` (see `master_part`). Each slit is then given its own part's sky.
    drift
        Let the sky change smoothly with time (`Drift`), for `BSpline` only: each exposure then has
        its own sky and error. What all slits have of such a change is the sky's: their scales and
        pedestals are left without a trend in time. None: what exposures differ by goes to scales.
    scales
        How slits may differ in throughput and colour (`Scales`); None: they are all alike.
    profile
        Find the residual bar-shadow profile from sky slits. Without it, and in the seed's recipe,
        only shutter centres are used, unless windows were asked for.
    weights
        How the weights of pixels far off fall: ``"clip"``, to nothing about `clip`; ``"huber"``, as
        1 / distance beyond `clip` (Huber 1964); ``"biweight"``, as
        (1 - (distance / clip)^2)^2, after passes with Huber's (Beaton & Tukey 1974).
    clip
        Limit in units of the local scatter; None: 3, 1.345 and 4.685.
    max_passes
        Upper limit of the robust passes.
    first_slits
        Of more than twice as many slits the first passes see so many, chosen by what they are,
        whatever the order; passes over all slits go on from there. The master differs by a small
        part of its error. 0: all passes see all slits.
    leave_out
        What is left out together for the held-out score: ``"slit"``, or a slit coordinate such
        as ``"nod"``, ``"exposure"`` or ``"slitlet"``.
    max_groups
        More groups than this are merged to so many.
    bad_slits
        ``"raise"`` where a slit is all flagged or has no valid errors, or ``"skip"`` it (its
        ``n_selected`` is then 0).
    grid
        Spans, for dispersers mbkg_xr does not know.
    memory
        Bytes of pixels that may be kept in memory between passes. None: few (`predict_memory`),
        since the others go to a scratch file (in dask's ``temporary-directory``, ``TMPDIR``, or
        ``/var/tmp``), which is read nearly as fast. On a cluster its workers hold them, and spill
        what passes their own limit; where they have none and the pixels do not fit, they are read
        again.
    on_pass
        Called with a line of text as each pass begins.

    Returns
    -------
    xarray.Dataset
        ``polynomial(span, power)``: the sky as a cubic in t on each span between consecutive
        ``edge``; ``expected``: its pixel mean; ``sky_error(span, node)``; ``constrained(span)``;
        ``coefficient``, ``covariance``, ``knots`` of the model (those of `LogPolynomial` are
        Chebyshev coefficients of ln flux on ``attrs["low"]`` to ``attrs["high"]`` um);
        ``heldout_polynomial(leave_out, span, power)``; ``score_*(candidate)``, every model tried
        (``score_heldout``: chi2 a pixel of slits left out, in ln flux for the seed's recipe;
        ``score_heldout_se``: standard error of its difference from the chosen one's);
        ``pass_*(pass)``, the history of passes (``pass_slits``: how many slits each saw);
        ``n_selected`` and ``n_used`` by slit; ``slit_used(slit)``, false where a slit was left out
        as a whole (`left_out_slits` says why).
        With `drift`, ``drift_score_*(drift_candidate)``, and, where a change was found,
        ``drift_polynomial(drift_term, span, power)``: the sky at mjd t is ``polynomial`` plus the
        sum of ``P_k(tau)`` times these, tau from -1 to 1 over the time of the exposures, the middle
        and half of which are ``attrs["drift_mjd"]``; ``drift_covariance`` of all terms. `master_at`
        puts them together.
        ``attrs["scatter"]`` is the true scatter in units of the model's error.

    Raises
    ------
    DatasetError
        Where `ds` does not keep the contract of slit datasets, has no ``selected``, or holds slits
        whose background is subtracted already.
    ParameterError
        On values that make no sense, a drift of another model than `BSpline`, or, with moments,
        choices that moments no longer leave.
    SelectionError
        Where nothing is selected, with the reason.
    FitError
        Where there are fewer pixels than coefficients.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds, model=mx.BSpline(spacing=12))
    >>> master.attrs["model"]
    'bspline'
    """
    model = check_model(model)
    say = on_pass or (lambda text: None)
    await_workers(say)
    rule = Rule.of(weights, clip)
    if model.log_data and rule.name != "clip":
        raise ParameterError(
            "the seed's recipe clips", where="weights", expected="'clip'", found=weights
        )
    if drift is not None and not isinstance(model, BSpline):
        raise ParameterError(
            "only a spline can change with time", expected="BSpline(...)", found=model.name
        )
    if is_moments(ds):
        _refuse_applied(
            scales=scales, profile=profile, weights=weights, clip=clip, max_passes=max_passes,
            first_slits=first_slits, grid=grid,
        )  # fmt: skip
        fit = partial(fit_moments, model=model, leave_out=leave_out, most=max_groups, drift=drift)
    else:
        validate(ds)
        check_parameters(ds, max_passes, bad_slits)
        if model.log_data or not profile:
            ds = centres_only(ds)
        grid = span_grid(ds) if grid is None else grid
        ds = per_unit_sky(ds)
        fit = partial(
            _fit_pixels,
            grid=grid,
            model=model,
            scales=scales,
            profile=profile,
            rule=rule,
            max_passes=max_passes,
            first_slits=first_slits,
            leave_out=leave_out,
            most=max_groups,
            bad_slits=bad_slits,
            memory=pixel_room(ds.sizes["slit"]) if memory is None else memory,
            drift=drift,
        )
    if by is None:
        return fit(ds, say=say)
    return _fit_parts(ds, by, fit, skip=bad_slits == "skip", say=say)


def _fit_parts(
    ds: xr.Dataset,
    by: str | Sequence[str],
    fit: Callable[..., xr.Dataset],
    *,
    skip: bool,
    say: Callable[[str], None],
) -> xr.Dataset:
    """One master for each value of a coordinate."""
    values, rank, name = split_slits(ds, by)
    masters, rows, kept_values = [], [], []
    problem: MbkgError | None = None
    for index, value in enumerate(values):
        where = np.flatnonzero(rank == index)
        try:
            one = fit(ds.isel(slit=where), say=_prefixed(say, f"{name} {value}"))
        except (SelectionError, FitError) as error:
            problem = _in_part(error, f"{name} {value}")
            if not skip:
                raise problem from error
            warnings.warn(f"left out: {problem}", stacklevel=3)
            continue
        masters.append(one)
        rows.append(where)
        kept_values.append(index)
    if not masters and problem is not None:
        raise problem
    return join_parts(masters, values[kept_values], rows, name)


def _prefixed(say: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: say(f"{name}: {text}")


def _in_part(error: MbkgError, part: str) -> MbkgError:
    """The same error, saying in which part it arose."""
    where = f"{part}, {error.where}" if error.where else part
    return type(error)(
        error.cause,
        where=where,
        expected=error.expected,
        found=error.found,
        remedy=error.remedy,
    )


_DEFAULTS = {
    "scales": DEFAULT_SCALES,
    "profile": True,
    "weights": "clip",
    "clip": None,
    "max_passes": 10,
    "first_slits": 1_500,
    "grid": None,
}


def _refuse_applied(**given: object) -> None:
    """Refuse what moments no longer leave open."""
    for name, value in given.items():
        if value != _DEFAULTS[name]:
            raise ParameterError(
                "moments are weighted and clipped already",
                where=name,
                expected="as it was when the moments were made",
                found=value,
                remedy="make moments anew from pixels, with a master fitted so",
            )


def _fit_pixels(
    ds: xr.Dataset,
    *,
    grid: SpanGrid,
    model: Model,
    scales: Scales | None,
    profile: bool,
    rule: Rule,
    max_passes: int,
    first_slits: int,
    leave_out: str,
    most: int,
    bad_slits: str,
    memory: int,
    drift: Drift | None,
    say: Callable[[str], None],
) -> xr.Dataset:
    groups, names = leave_out_groups(ds, leave_out, most)
    done = robust_passes(
        ds,
        grid,
        groups,
        len(names),
        model,
        scales=scales,
        profile=profile,
        rule=rule,
        max_passes=max_passes,
        first_slits=first_slits,
        bad_slits=bad_slits,
        memory=memory,
        drift=drift,
        say=say,
    )
    fitted, problem = done.fitted, done.problem
    veto = None if done.differ.scales is None else done.differ.scales.veto
    vetoed = 0 if veto is None else int(done.pixels[veto.slit, 0].sum())
    warn_of_passes(done.history[-1], done.state, vetoed)
    warn_of_slits(veto)
    warn_without_sky(fitted, problem.constrained, done.scatter)
    # A template may end before the data do.
    known = np.isfinite(fitted.expected[:, 0])
    units = ds["flux"].attrs["units"]
    master = build_master(
        fitted,
        grid,
        constrained=problem.constrained & known,
        heldout_constrained=problem.constrained_without & known,
        # The seed's errors come from its own residuals and need no scaling.
        scatter=1.0 if model.log_data else done.scatter,
        gain=done.state.gain,
        history=done.history,
        slits=ds,
        groups=groups,
        pixels=done.pixels,
        differ=done.differ,
        attrs={
            "model": model.name,
            "configuration": ds.attrs["configuration"],
            "units": units,
            "weights": rule.name,
            "clip": rule.limit,
            "clip_unit": float(done.state.unit),
            "left_out": leave_out,
            "rows": ds["selected"].attrs.get("rows", "as asked"),
            "n_pixels": int(done.pixels[:, 1].sum()),
            "converged": int(done.history[-1]["change"] < CONVERGED),
        },
    )
    master = master.assign(applied_variables(done.state, done.differ.terms, units))
    if drift is None or done.drifted is None:
        return master
    clock = Clock.of(ds, drift.order)
    if "weight_drift" in master:
        master = master.assign_attrs(weight_mjd=[clock.middle, clock.half])
    return with_drift(master, drift_variables(done.drifted, clock, done.scatter, units))
