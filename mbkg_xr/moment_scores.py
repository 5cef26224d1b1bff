"""What moments say of single slits: chi2, scale, and a fit of all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blas import serial_blas
from .blocks import reduce_blocks
from .checks import Model
from .errors import ParameterError
from .models import BSpline, LogPolynomial, Problem, chi2_by_group, hankel, pixel_mean
from .moment_fit import group_sums, problem_of
from .moments import N_MOMENTS
from .slit_moments import require_moments

__all__ = ["score_moments"]

Array = NDArray[np.float64]

_USED = N_MOMENTS  # of the columns of moments


@serial_blas
def score_moments(
    moments: xr.Dataset, master: xr.Dataset, *, heldout: bool = False, model: Model | None = None
) -> xr.Dataset:
    """How well a master fits each slit, and the slit's own scale, from moments. Computes.

    With p the master on a span in powers of t, H the matrix of the ``w t^m`` and R the vector of
    the ``w y t^m``, a slit has ``chi2 = sum w y^2 - 2 p R + p H p``, and the scale that fits it
    best is ``p R / p H p`` with variance ``1 / p H p`` (weighted least squares).

    Parameters
    ----------
    moments
        From `moments`, lazy or not; they are gone through chunk by chunk.
    master
        From `fit_master`, of these moments or of their pixels.
    heldout
        Hold each slit against a master fitted to all others: exactly one slit is left out at a
        time, whatever their number.
    model
        For `heldout`, the model to fit without the slit. None: that of the master, with its choice.

    Returns
    -------
    xarray.Dataset
        By ``slit``: ``chi2`` (for unit scatter), ``pixels`` it is summed over, ``scale`` beyond
        what the moments already have taken out and ``scale_error`` (which counts
        ``attrs["scatter"]``). NaN for slits without pixels where the master is fitted.

    Raises
    ------
    DatasetError
        Where the first is not from `moments`.
    ParameterError
        Where the master's model cannot be made anew from what it says: give `model`.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds, model=mx.BSpline(spacing=8))
    >>> scores = mx.score_moments(mx.moments(ds, master), master, heldout=True)
    >>> bool((abs(scores.scale - 1) < 0.1).all())
    True
    """
    require_moments(moments)
    inside = master["constrained"].values
    total = None
    if heldout:
        model = _model_of(master) if model is None else model
        everyone = np.zeros(moments.sizes["slit"], dtype=np.int64)
        total = group_sums(moments, everyone, 1).moments
    common = np.where(inside[:, None], master["expected"].values, 0.0)

    def block(start: int, arrays: Sequence[Any], shared: Any) -> Array:
        values = np.asarray(arrays[0], dtype=np.float64)
        if total is None or model is None:
            problem = problem_of(moments, values).within(inside)
            return _scores(problem, np.broadcast_to(common, (values.shape[0], *common.shape)))
        return _heldout_scores(moments, values, total, model)

    found = reduce_blocks(moments, ["moments"], block, lambda a, b: np.concatenate([a, b]))
    scatter = float(moments.attrs["scatter"])
    chi2, pixels, scale, error = found.T
    return xr.Dataset(
        {
            "chi2": ("slit", chi2, {"long_name": "weighted sum of squares about the master"}),
            "pixels": ("slit", pixels.astype(np.int64), {"long_name": "pixels used"}),
            "scale": ("slit", scale, {"long_name": "slit over master"}),
            "scale_error": ("slit", error * scatter, {"long_name": "standard error of scale"}),
        },
        {c: moments[c] for c in moments.coords if moments[c].dims == ("slit",)},
        {
            "scatter": scatter,
            "heldout": int(heldout),
            "configuration": moments.attrs["configuration"],
        },
    )


def _heldout_scores(moments: xr.Dataset, values: Array, total: Array, model: Model) -> Array:
    """Scores of slits against fits of all slits but one."""
    rest = total - values.sum(axis=0, keepdims=True)
    rest[rest[..., _USED] < 0.5] = 0.0  # what is left of sums that cancel
    problem = problem_of(moments, np.concatenate([values, rest]))
    fitted = model.fit(problem)
    polynomials = fitted.heldout if model.log_data else pixel_mean(fitted.heldout)
    if not polynomials.size:  # one slit in all
        return np.full((values.shape[0], 4), np.nan)
    return _scores(problem.scored, polynomials)[:-1]


def _scores(problem: Problem, polynomials: Array) -> Array:
    """``(group, 4)``: chi2, pixels, scale and its error."""
    p = np.nan_to_num(polynomials)
    level = np.einsum("gsm,gsml,gsl->g", p, hankel(problem.moments[..., :7]), p, optimize=True)
    cross = np.einsum("gsm,gsm->g", p, problem.moments[..., 7:11])
    pixels = problem.count.sum(axis=1)
    chi2 = np.where(pixels > 0, chi2_by_group(p, problem), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([chi2, pixels, cross / level, 1 / np.sqrt(level)], axis=1)


def _model_of(master: xr.Dataset) -> Model:
    """The model of a master with its choice, from what the master says."""
    attrs, name = master.attrs, master.attrs["model"]
    if name == "bspline":
        even = "spacing" in attrs
        return BSpline(
            spacing=int(attrs["spacing"]) if even else None,
            knots=None if even else tuple(master["knots"].values[3:-3].tolist()),
            penalty=float(attrs["penalty"]),
            adapted=bool(attrs["adapted"]),
        )
    if name in ("logpoly", "seed"):
        method = "link" if name == "logpoly" else "seed"
        return LogPolynomial(degree=int(attrs["degree"]), method=method)
    raise ParameterError(
        "the master does not hold all of its model",
        where=str(name),
        expected="model=, as it was given to fit_master",
        found="None",
    )
