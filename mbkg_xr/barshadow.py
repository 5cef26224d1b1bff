"""What the bars between shutters leave of uniform light, and where a slitlet's shutters lie."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

__all__ = [
    "BAR_FLOOR",
    "REFERENCE_BARS",
    "bar_transmission",
    "reference_bars",
    "reference_profile",
    "shutter_positions",
]

Array = NDArray[np.float64]

#: The profile products are corrected with: transmission of a shutter against yrel, an opening of
#: half height h about its centre + offset, blurred by a Gaussian of width sigma, in pitches.
#: Source: a fit to the BARSHADOW extension of three CEERS slitlets (1.4 to 5.4 um, rms 0.023; 0.013
#: within 0.2 of the centres; no change with wavelength beyond that).
REFERENCE_BARS = (0.407, -0.0256, 0.1150)
#: BARSHADOW of those slitlets beyond the outer edges of the slitlet, where no light falls.
BAR_FLOOR = 0.42

_STEP = 1 / 256


def shutter_positions(n_shutters: int) -> NDArray[np.int64]:
    """Yrel of the shutter centres of a slitlet, always integers.

    Slitlets of an even number of shutters have no middle one: 0 is then the one below the middle,
    so the shutters of a two-shutter slitlet lie at 0 and +1 (half a pitch is added to the distance
    from the slitlet's middle).

    Examples
    --------
    >>> shutter_positions(3).tolist(), shutter_positions(2).tolist()
    ([-1, 0, 1], [0, 1])
    """
    return np.arange(n_shutters) - (n_shutters - 1) // 2


def bar_transmission(
    yrel: Array,
    shutters: NDArray,
    half: float | Array,
    offset: float | Array,
    sigma: float | Array,
) -> Array:
    """Uniform light behind open shutters, relative to that at a shutter's centre.

    Parameters
    ----------
    yrel
        Positions, in shutter pitches.
    shutters
        Centres of the open shutters.
    half, offset, sigma
        As of `REFERENCE_BARS`; arrays broadcast against `yrel`.
    """
    width = np.sqrt(2.0) * np.asarray(sigma)

    def one(d: float | Array) -> Array:
        return (erf((d + half) / width) - erf((d - half) / width)) / 2

    return sum(one(yrel - offset - k) for k in shutters) / one(0.0)


def reference_bars(yrel: Array, shutters: NDArray) -> Array:
    """The profile that products are divided by, at any positions.

    Parameters
    ----------
    yrel
        Positions, in shutter pitches.
    shutters
        Centres of the slitlet's open shutters, ascending.

    Returns
    -------
    numpy.ndarray
        It repeats with the pitch between open shutters, and is `BAR_FLOOR` beyond the outermost
        ones and behind closed ones.

    Examples
    --------
    >>> reference_bars(np.array([0.0, 0.5, 1.7]), np.array([-1, 0, 1])).round(2).tolist()
    [1.0, 0.43, 0.42]
    """
    around = np.arange(shutters[0] - 1, shutters[-1] + 2)
    profile = bar_transmission(yrel, around, *REFERENCE_BARS)
    light = (np.abs(np.asarray(yrel)[..., None] - shutters) <= 0.5).any(axis=-1)
    profile[~light] = BAR_FLOOR
    return profile


def reference_profile(yrel: NDArray, state: str) -> Array:
    """`reference_bars` of a slitlet by its shutter state, quickly.

    Parameters
    ----------
    yrel
        Positions, in shutter pitches; NaN stays NaN.
    state
        One character a shutter, ``"0"`` where it is closed, as the keyword SHUTSTA writes it.

    Examples
    --------
    >>> reference_profile(np.array([-1.0, 0.0]), "101").round(2).tolist()
    [1.0, 0.42]
    """
    first, table = _table(state)
    out = np.interp(yrel, first + _STEP * np.arange(table.size), table)
    return np.where(np.isfinite(yrel), out, np.nan)


@lru_cache(maxsize=64)
def _table(state: str) -> tuple[float, Array]:
    positions = shutter_positions(len(state))
    is_open = np.array([c != "0" for c in state])
    shutters = positions[is_open] if is_open.any() else positions
    yrel = np.arange(positions[0] - 1.0, positions[-1] + 1 + _STEP / 2, _STEP)
    return float(yrel[0]), reference_bars(yrel, shutters)
