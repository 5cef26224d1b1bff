"""The fit: from slits to the master, by passes over their pixels or from their moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from .applied import applied_variables
from .checks import (
    CONVERGED,
    Model,
    check_model,
    check_parameters,
    warn_of_passes,
    warn_without_sky,
)
from .columns import kept, per_unit_sky
from .errors import ParameterError
from .groups import MOST_GROUPS, leave_out_groups
from .master import build_master
from .moment_fit import fit_moments
from .passes import robust_passes
from .scales import Scales
from .schema import validate
from .slit_moments import is_moments
from .spans import SpanGrid, span_grid

__all__ = ["fit_master"]

DEFAULT_SCALES = Scales()


def fit_master(
    ds: xr.Dataset,
    *,
    model: Model | None = None,
    by: str | None = None,
    scales: Scales | None = DEFAULT_SCALES,
    profile: bool = True,
    clip: float = 4.0,
    max_passes: int = 10,
    leave_out: str = "slit",
    max_groups: int = MOST_GROUPS,
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
        A slit dataset with ``selected`` (see `select_background`), or moments of slits (see
        `moments`): those are weighted and clipped already, so that only `model`, `by`,
        `leave_out` and `max_groups` have a meaning, and no pixel is read.
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
        as ``"nod"``, ``"exposure"`` or ``"slitlet"``.
    max_groups
        More groups than this are merged to so many.
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
    model = check_model(model)
    if by is not None:
        raise ParameterError(
            "one master a group is not available yet",
            expected="by=None",
            found=f"by={by!r}",
            remedy=f"select the slits of each {by} and fit them apart",
        )
    if is_moments(ds):
        _refuse_applied(scales=scales, profile=profile, clip=clip, max_passes=max_passes, grid=grid)
        return fit_moments(ds, model, leave_out=leave_out, most=max_groups)
    validate(ds)
    check_parameters(ds, clip, max_passes, bad_slits)
    grid = span_grid(ds) if grid is None else grid
    return _fit_pixels(
        kept(per_unit_sky(ds), memory),
        grid,
        model,
        scales=scales,
        profile=profile,
        clip=clip,
        max_passes=max_passes,
        leave_out=leave_out,
        most=max_groups,
        bad_slits=bad_slits,
        say=on_pass or (lambda text: None),
    )


_DEFAULTS = {"scales": DEFAULT_SCALES, "profile": True, "clip": 4.0, "max_passes": 10, "grid": None}


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
    grid: SpanGrid,
    model: Model,
    *,
    scales: Scales | None,
    profile: bool,
    clip: float,
    max_passes: int,
    leave_out: str,
    most: int,
    bad_slits: str,
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
        clip=clip,
        max_passes=max_passes,
        bad_slits=bad_slits,
        say=say,
    )
    fitted, problem = done.fitted, done.problem
    warn_of_passes(done.history[-1], done.state)
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
            "clip": float(clip),
            "clip_unit": float(done.state.unit),
            "left_out": leave_out,
            "n_pixels": int(done.pixels[:, 1].sum()),
            "converged": int(done.history[-1]["change"] < CONVERGED),
        },
    )
    return master.assign(applied_variables(done.state, done.differ.terms, units))
