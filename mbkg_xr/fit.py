"""The fit: passes over the pixels, clipping, noise, and the choice of the model.

Each pass reads the selected pixels once and brings back moments, a histogram of normalised
residuals and noise sums (`mbkg_xr.moments`). Between passes everything happens on those.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .differences import Differences, find_differences
from .errors import DatasetError, FitError, ParameterError, SelectionError
from .master import build_master
from .models import BSpline, Fitted, LogPolynomial, Problem, Template
from .moments import PassState, PassSums, accumulate, median_start
from .robust import BIN_PIXELS, next_state, scatter_of
from .scales import Scales
from .schema import SLIT_IDENTITY, UNSUBTRACTED, refuse_subtracted, validate
from .select import why_empty
from .spans import SpanGrid, span_grid
from .terms import Terms

__all__ = ["fit_master"]

Array = NDArray[np.float64]

DEFAULT_SCALES = Scales()
_MAX_GROUPS = 64
_CHOOSE_PASS = 4  # the model is chosen among all candidates in this pass, then kept
_DIFFER_PASSES = (1, 2, 4, 6)  # what differs from slit to slit is found anew after these
_USUAL = 3.0  # pixels with errors beyond this many medians say nothing of the usual noise
_FAR = 3.0  # a scatter this many times the error, or its inverse, is not what the errors say
_RESCALINGS = 8
_NO_SKY = (
    2.0  # sky over its error: 13 and more at a signal to noise of 0.2 a pixel, 0 after nodding
)
_CONVERGED = 0.02  # change of the master between passes, in units of its standard error


def fit_master(
    ds: xr.Dataset,
    *,
    model: BSpline | LogPolynomial | Template | None = None,
    by: str | None = None,
    scales: Scales | None = DEFAULT_SCALES,
    profile: bool = True,
    clip: float = 4.0,
    max_passes: int = 10,
    leave_out: str = "slit",
    bad_slits: str = "raise",
    grid: SpanGrid | None = None,
    memory: int = 2**30,
    on_pass: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Fit the master spectrum to the selected pixels of all slits. Computes.

    Weights are 1 / variance with the photon noise of the *model*, not of the datum: STScI errors
    come from the pixel's own counts, and weights from those pull the sky low by several per cent.
    Pixels are clipped about a running centre at `clip` times a running, scaled MAD.

    Parameters
    ----------
    ds
        A slit dataset with ``selected`` (see `select_background`).
    model
        `BSpline` (default), `LogPolynomial` or `Template`.
    by
        None: one master for all slits, the only choice so far. For one master a visit, fit each
        visit's slits apart.
    scales
        How slits may differ in throughput and colour (`Scales`); None: they are all alike.
    profile
        Find the residual bar-shadow profile from sky slits.
    clip
        Clipping limit in units of the local scatter.
    max_passes
        Upper limit of the robust passes.
    leave_out
        What is left out together for the held-out score: ``"slit"``, or a slit coordinate such
        as ``"nod"``, ``"exposure"`` or ``"slitlet"``. More than 64 groups are merged to 64.
    bad_slits
        ``"raise"`` where a slit is all flagged or has no valid errors, or ``"skip"`` it (its
        ``n_selected`` is then 0).
    grid
        Spans, for dispersers mbkg_xr does not know.
    memory
        Bytes of pixels that may be kept between passes; more than that is read again.
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
        ``pass_*(pass)``, the clip history; ``n_selected`` and ``n_used`` by slit.
        ``attrs["scatter"]`` is the true scatter in units of the model's error.

    Raises
    ------
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
    validate(ds)
    model = BSpline() if model is None else model
    if by is not None:
        raise ParameterError(
            "one master a group is not available yet",
            expected="by=None",
            found=f"by={by!r}",
            remedy=f"select the slits of each {by} and fit them apart",
        )
    if not isinstance(model, BSpline | LogPolynomial | Template):
        raise ParameterError(
            "not a model",
            expected="BSpline(...), LogPolynomial(...) or Template(...)",
            found=repr(model),
        )
    _check_parameters(ds, clip, max_passes, bad_slits)
    grid = span_grid(ds) if grid is None else grid
    ds = _kept(_per_unit_sky(ds), memory)
    say = on_pass or (lambda text: None)
    groups, group_names = _groups(ds, leave_out)
    differ = Differences(Terms.none(ds.sizes["slit"], grid.size))

    say("running median")
    scale, state = _start(ds, grid, log_data=model.log_data)
    say("noise")
    sums = accumulate(ds, grid, state, groups, len(group_names), differ.terms)
    _check_slits(ds, sums, bad_slits)
    for _ in range(_RESCALINGS):
        factor = scatter_of(sums)
        if 1 / _FAR < factor < _FAR or sums.pixels[:, 0].sum() < BIN_PIXELS:
            break
        # Errors so far from the scatter that the histogram of z cannot hold it.
        state = replace(state, unit=state.unit * float(np.clip(factor, 0.05, 20)))
        sums = accumulate(ds, grid, state, groups, len(group_names), differ.terms)
    state = next_state(state, sums, clip, state.model)

    differs = (scales is not None or profile) and not model.log_data
    settled = max(_DIFFER_PASSES) if differs else _CHOOSE_PASS
    history: list[dict] = []
    fitted: Fitted | None = None
    table: list[dict] = []
    current: BSpline | LogPolynomial | Template = model.provisional()
    for number in range(1, max_passes + 1):
        say(f"pass {number}")
        sums = accumulate(ds, grid, state, groups, len(group_names), differ.terms)
        problem = Problem(grid, sums.moments, sums.count, scale)
        if not sums.count.any():
            raise FitError(
                "no pixel left after clipping", found=f"clip={clip}", remedy="clip less hard"
            )
        if number == _CHOOSE_PASS:
            current = model
        previous, fitted = fitted, current.fit(problem, heldout=False)
        if number == _CHOOSE_PASS:
            table = fitted.table
            current = model.fixed(fitted)
        scatter = scatter_of(sums) * state.unit
        change = _change(previous, fitted) / scatter
        history.append(
            {
                "selected": int(sums.pixels[:, 0].sum()),
                "used": int(sums.pixels[:, 1].sum()),
                "scatter": scatter,
                "change": change,
            }
        )
        if number > settled and change < _CONVERGED:
            break
        state = next_state(state, sums, clip, fitted.expected)
        if differs and number in _DIFFER_PASSES:
            say("slits")
            seen = replace(state, unit=scatter)
            differ = find_differences(
                ds, grid, seen, differ, problem.constrained, scales=scales, profile=profile
            )
    # Held-out masters are costly, and only those of the last pass are kept.
    fitted = current.fit(problem)
    fitted.table = table
    _warn(history[-1], state)
    _warn_without_sky(fitted, problem.constrained, scatter)
    return build_master(
        fitted,
        grid,
        # A template may end before the data do.
        constrained=problem.constrained & np.isfinite(fitted.expected[:, 0]),
        heldout_constrained=problem.constrained_without & np.isfinite(fitted.expected[:, 0]),
        # The seed's errors come from its own residuals and need no scaling.
        scatter=1.0 if model.log_data else scatter,
        gain=state.gain,
        history=history,
        slits=ds,
        groups=groups,
        pixels=sums.pixels,
        differ=differ,
        attrs={
            "model": model.name,
            "configuration": ds.attrs["configuration"],
            "units": ds["flux"].attrs["units"],
            "clip": float(clip),
            "left_out": leave_out,
            "n_pixels": int(sums.pixels[:, 1].sum()),
            "converged": int(history[-1]["change"] < _CONVERGED),
        },
    )


def _per_unit_sky(ds: xr.Dataset) -> xr.Dataset:
    """Flux and errors a unit of uniform sky, where the calibration was made for something else."""
    if "response" not in ds.coords:
        return ds
    columns = {"flux": 1, "error": 1, "var_rnoise": 2, "var_poisson": 2}
    scaled = {
        name: (ds[name].dims, (ds[name] / ds["response"] ** power).data, ds[name].attrs)
        for name, power in columns.items()
        if name in ds
    }
    return ds.assign(scaled)


def _kept(ds: xr.Dataset, memory: int) -> xr.Dataset:
    """The columns that every pass reads, kept in memory where they are small enough."""
    used = ["flux", "error", "selected", "wavelength", "var_rnoise", "var_poisson"]
    columns = ds[[name for name in used if name in ds.variables]]
    if columns.nbytes > memory:
        return ds
    kept = columns.persist()
    return ds.assign({name: kept[name] for name in columns.data_vars}).assign_coords(
        wavelength=kept["wavelength"]
    )


def _check_parameters(ds: xr.Dataset, clip: float, max_passes: int, bad_slits: str) -> None:
    refuse_subtracted(ds)
    if "selected" not in ds:
        raise DatasetError(
            "no pixels are marked as sky",
            expected="variable selected",
            remedy="call select_background first",
        )
    if not clip > 1:
        raise ParameterError("unusable clipping limit", expected="more than 1 sigma", found=clip)
    if max_passes <= _CHOOSE_PASS:
        raise ParameterError(
            "too few passes", expected=f"at least {_CHOOSE_PASS + 1}", found=max_passes
        )
    if bad_slits not in ("raise", "skip"):
        raise ParameterError(
            "unknown treatment of bad slits", expected="'raise' or 'skip'", found=bad_slits
        )


def _groups(ds: xr.Dataset, leave_out: str) -> tuple[NDArray[np.int64], list[str]]:
    """Group of each slit, from what the slits are and never from their order."""
    if leave_out == "slit":
        keys = [
            "|".join(map(str, k)) for k in zip(*(ds[c].values for c in SLIT_IDENTITY), strict=True)
        ]
    elif leave_out in ds.coords and ds[leave_out].dims == ("slit",):
        keys = ds[leave_out].values.astype(str).tolist()
    else:
        raise ParameterError(
            "cannot leave out by this",
            expected="'slit' or the name of a slit coordinate",
            found=leave_out,
        )
    names = sorted(set(keys))
    rank = {name: i % _MAX_GROUPS for i, name in enumerate(names)}
    return np.array([rank[k] for k in keys], dtype=np.int64), names[:_MAX_GROUPS]


def _start(ds: xr.Dataset, grid: SpanGrid, *, log_data: bool) -> tuple[Array, PassState]:
    """First guess of the sky (positive, as a scale) and the state of the first pass."""
    wavelength, median, error = median_start(ds, grid)
    if median.size == 0:
        raise why_empty(ds, 0)
    edge_values = np.interp(grid.edges, wavelength, median)
    model = np.zeros((grid.size, 4))
    model[:, 0], model[:, 1] = edge_values[:-1], np.diff(edge_values)
    floor = 0.05 * np.median(np.abs(median))
    centre = np.interp(grid.centres, wavelength, median)
    scale = np.maximum(centre, floor if floor > 0 else 1.0)
    n = grid.size
    # Before the noise is known z is in units of the error as given; a wide cut keeps what is wild
    # out of the noise sums.
    state = PassState(
        model,
        gain=np.full(n, np.nan),
        floor=np.zeros(n),
        centre=np.zeros(n),
        cut=np.full(n, 10.0),
        usual=_USUAL * np.interp(grid.centres, wavelength, error),
        log=log_data,
    )
    return scale, state


def _change(previous: Fitted | None, fitted: Fitted) -> float:
    """Largest change of the expected sky between passes, in units of its error."""
    if previous is None:
        return np.inf
    with np.errstate(invalid="ignore"):
        change = np.abs(fitted.expected - previous.expected)[:, 0] / fitted.sky_error[:, 0]
    return float(np.nanmax(change))


def _warn(last: dict, state: PassState) -> None:
    """Say what a user should know before trusting the master."""
    if last["change"] >= _CONVERGED:
        warnings.warn(
            f"the fit has not converged: it still changed by {last['change']:.2g} of its error in "
            "the last pass; raise max_passes",
            stacklevel=3,
        )
    if not 1 / _FAR < last["scatter"] < _FAR:
        warnings.warn(
            f"the pixels scatter {last['scatter']:.3g} times as much as their errors say: check "
            "the errors and their units",
            stacklevel=3,
        )
    if last["used"] < 0.9 * last["selected"]:
        warnings.warn(
            f"clipping left out {1 - last['used'] / last['selected']:.0%} of the selected pixels",
            stacklevel=3,
        )
    if not np.isfinite(state.gain).any():
        warnings.warn(
            "the photon noise could not be told from the data: weights follow the errors as given, "
            "which may pull the sky low",
            stacklevel=3,
        )


def _warn_without_sky(fitted: Fitted, constrained: NDArray[np.bool_], scatter: float) -> None:
    """Say so where there was nothing to fit: headers of nodded products may be silent."""
    with np.errstate(invalid="ignore", divide="ignore"):
        level = (fitted.expected[:, 0] / (fitted.sky_error[:, 0] * scatter))[constrained]
    level = level[np.isfinite(level)]
    if level.size and np.median(level) < _NO_SKY:
        warnings.warn(
            f"the selected pixels hold no sky: the master is {np.median(level):.1f} of its errors "
            f"(median over wavelength). If the background was subtracted before, {UNSUBTRACTED}",
            stacklevel=3,
        )


def _check_slits(ds: xr.Dataset, sums: PassSums, bad_slits: str) -> None:
    """Find out why slits without a single selected pixel have none."""
    empty = np.flatnonzero(sums.pixels[:, 0] == 0)
    if empty.size == sums.pixels.shape[0]:
        raise why_empty(ds, 0)
    if bad_slits == "skip":
        return
    for index in empty:
        error: SelectionError = why_empty(ds, int(index))
        # Science slits of a single shutter have no sky, and that is in order.
        if not error.cause.startswith("no sky pixel"):
            raise error
