"""How slits differ: what may be asked for, and what is found (see `mbkg_xr.mixed` for how)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .vetoes import Veto

__all__ = ["Scales", "SlitScales"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scales:
    """How slits may differ from the master.

    Parameters
    ----------
    order
        Degree of the Legendre series of a slit's scale over the fitted range; 0 is one number.
    prior
        Standard deviation expected of the scale of a slit: 0.05, since STScI quotes 5 % from
        shutter to shutter. The data correct it.
    colour
        The same of each higher coefficient.
    smooth
        Let the scale follow a quadratic over each MSA quadrant, so that slits without sky shutters
        get more than the mean.
    pedestal
        Find an offset for each exposure and detector.
    veto
        A shutter that exceeds what the others of its slit allow by this many standard deviations
        is left out.
    slit_veto
        A slit whose level, colour or any bin of wavelength lies this many standard deviations from
        the middle of all slits is left out as a whole; None: none is. Of 40 % of the slits at most:
        where more would go, none goes, with a warning.

    Raises
    ------
    ParameterError
        On values that make no sense.

    Examples
    --------
    >>> Scales(order=1).order
    1
    """

    order: int = 3
    prior: float = 0.05
    colour: float = 0.02
    smooth: bool = True
    pedestal: bool = True
    veto: float = 2.5
    slit_veto: float | None = 5.0

    def __post_init__(self) -> None:
        if not (isinstance(self.order, int) and 0 <= self.order <= 8):
            raise ParameterError(
                "unusable order of scales", where="order", expected="0 to 8", found=self.order
            )
        for name in ("prior", "colour", "veto", "slit_veto"):
            value = getattr(self, name)
            if value is None and name == "slit_veto":
                continue
            if not (value > 0 and np.isfinite(value)):
                raise ParameterError(
                    "unusable scales", where=name, expected="a positive number", found=value
                )


@dataclass
class SlitScales:
    """What was found.

    Attributes
    ----------
    scale, covariance
        ``(slit, order)`` and ``(slit, order, order)``: Legendre coefficients of f - 1.
    without
        ``(slit, shutter, order)``: the same from all but one shutter, for held-out scores.
    without_covariance
        ``(slit, shutter, order, order)``.
    level, level_variance
        ``(slit, shutter)``: what each shutter adds to f of its own, and its variance given the
        coefficients.
    level_slope
        ``(slit, shutter, order)``: what the level found changes by with each of the coefficients:
        where the data tell their sum well an error of one is made good by the other.
    used
        ``(slit, shutter)``: shutters that tell of sky.
    excess
        ``(slit, shutter)``: by how many standard deviations each exceeds the others.
    pedestal
        ``(slit,)``, in units of the shape given.
    spread
        Standard deviations ``(3, order)`` of slitlets, slits and exposures about their means.
    floor
        What shutters differ by, bin by bin, beyond noise and the errors of all that was found.
    own_spread
        That of shutters about their slit.
    leak
        Share of a source's light in the shutter beside it: mean and scatter.
    light
        ``(slit, bin)``: the source's light as a share of the master.
    stray
        ``(slit, shutter)``: share of that light in each shutter.
    reached
        Populations, and what shutters hold of their own, where the search ended.
    veto
        Whole slits that are left out, and what they were judged by.
    """

    scale: Array
    covariance: Array
    without: Array
    without_covariance: Array
    level: Array
    level_variance: Array
    level_slope: Array
    used: NDArray[np.bool_]
    excess: Array
    pedestal: Array
    spread: Array
    floor: float
    own_spread: float
    leak: tuple[float, float]
    light: Array
    stray: Array
    reached: Any
    veto: Veto
