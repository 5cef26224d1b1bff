"""What a fit refuses before it begins, and what it warns of when it is done."""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import DatasetError, ParameterError
from .models import BSpline, Fitted, LogPolynomial, Template
from .moments import PassState, PassSums
from .robust import CHOOSE_PASS
from .schema import UNSUBTRACTED, refuse_subtracted
from .select import why_empty
from .vetoes import Veto

__all__ = [
    "CONVERGED",
    "FAR",
    "NO_SKY",
    "Model",
    "check_model",
    "check_parameters",
    "check_slits",
    "require_slits",
    "sky_level",
    "warn_of_passes",
    "warn_of_slits",
    "warn_without_sky",
]

Model = BSpline | LogPolynomial | Template

FAR = 3.0  # a scatter this many times the error, or its inverse, is not what the errors say
CONVERGED = 0.02  # change of the master between passes, in units of its standard error
NO_SKY = 2.0  # sky over its error: 13 and more at a signal to noise of 0.2 a pixel, 0 after nodding


def check_model(model: Model | None) -> Model:
    """The model asked for, or the usual one."""
    if model is None:
        return BSpline()
    if not isinstance(model, Model):
        raise ParameterError(
            "not a model",
            expected="BSpline(...), LogPolynomial(...) or Template(...)",
            found=repr(model),
        )
    return model


def require_slits(ds: xr.Dataset) -> None:
    """Refuse a dataset of no slits."""
    if not ds.sizes["slit"]:
        raise DatasetError("no slit to fit", expected="at least one slit", found="none")


def check_parameters(ds: xr.Dataset, max_passes: int, bad_slits: str) -> None:
    require_slits(ds)
    refuse_subtracted(ds)
    if "selected" not in ds:
        raise DatasetError(
            "no pixels are marked as sky",
            expected="variable selected",
            remedy="call select_background first",
        )
    if max_passes <= CHOOSE_PASS:
        raise ParameterError(
            "too few passes", expected=f"at least {CHOOSE_PASS + 1}", found=max_passes
        )
    if bad_slits not in ("raise", "skip"):
        raise ParameterError(
            "unknown treatment of bad slits", expected="'raise' or 'skip'", found=bad_slits
        )


def check_slits(ds: xr.Dataset, sums: PassSums, bad_slits: str) -> None:
    """Find out why slits without a single selected pixel have none."""
    empty = np.flatnonzero(sums.pixels[:, 0] == 0)
    if empty.size == sums.pixels.shape[0]:
        raise why_empty(ds, [0])[0]
    if bad_slits == "skip":
        return
    for error in why_empty(ds, empty) if empty.size else []:
        # Science slits of a single shutter have no sky, and that is in order.
        if not error.cause.startswith("no sky pixel"):
            raise error


def warn_of_passes(last: dict, state: PassState, vetoed: int = 0) -> None:
    """Say what a user should know before trusting the master; `vetoed` pixels are of slits that
    are left out as a whole.
    """
    if last["change"] >= CONVERGED:
        warnings.warn(
            f"the fit has not converged: it still changed by {last['change']:.2g} of its error in "
            "the last pass; raise max_passes",
            stacklevel=4,
        )
    if not 1 / FAR < last["scatter"] < FAR:
        warnings.warn(
            f"the pixels scatter {last['scatter']:.3g} times as much as their errors say: check "
            "the errors and their units",
            stacklevel=4,
        )
    if last["used"] < 0.9 * (last["selected"] - vetoed):
        warnings.warn(
            f"clipping left out {1 - last['used'] / (last['selected'] - vetoed):.0%} of the "
            "selected pixels",
            stacklevel=4,
        )
    if not np.isfinite(state.gain).any():
        warnings.warn(
            "the photon noise could not be told from the data: weights follow the errors as given, "
            "which may pull the sky low",
            stacklevel=4,
        )


def warn_of_slits(veto: Veto | None) -> None:
    """Say which whole slits are not taken for sky, and where too many seem not to be."""
    if veto is None or not veto.suspect:
        return
    left, some = int(veto.slit.sum()), f"{veto.suspect} of {veto.judged} slits"
    if veto.refused:
        warnings.warn(
            f"{some} depart from the others by more than {veto.limit:g} sigma, "
            f"{left or 'none'} of which are left out of the fit: too many to tell what is sky; see "
            "slit_departure of the master, or choose the sky slits yourself",
            stacklevel=4,
        )
    else:
        warnings.warn(
            f"{left} of {veto.judged} slits are left out of the fit: they depart from the others "
            f"by more than {veto.limit:g} sigma, or most exposures of their slitlet do; see "
            "left_out_slits(master)",
            stacklevel=4,
        )


def sky_level(fitted: Fitted, constrained: NDArray[np.bool_], scatter: float) -> float:
    """The sky over its error, median over wavelength; NaN where nothing is known."""
    with np.errstate(invalid="ignore", divide="ignore"):
        level = (fitted.expected[:, 0] / (fitted.sky_error[:, 0] * scatter))[constrained]
    level = level[np.isfinite(level)]
    return float(np.median(level)) if level.size else float("nan")


def warn_without_sky(fitted: Fitted, constrained: NDArray[np.bool_], scatter: float) -> None:
    """Say so where there was nothing to fit: headers of nodded products may be silent."""
    level = sky_level(fitted, constrained, scatter)
    if level < NO_SKY:
        warnings.warn(
            f"the selected pixels hold no sky: the master is {level:.1f} of its errors "
            f"(median over wavelength). If the background was subtracted before, {UNSUBTRACTED}",
            stacklevel=4,
        )
