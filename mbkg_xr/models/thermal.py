"""How two skies differ, first of all: in their mix of sunlight and thermal light, and in one line.

The sky of JWST is sunlight scattered by dust and thermal light of dust and telescope; from one
epoch to another their shares, the colour of the former and the temperature of the latter change,
and so the ratio of two skies is a step over a fifth of the band rather than a slope. A spline takes
eight and more coefficients for it, the right functions four. The template tells its own shares: the
Sun's black body times a power of wavelength, plus a black body of temperature T, are fitted to it;
h is the latter's share, l that of He I 1.083, and

    ratio = a [(1 - h) (lambda / 2 um)^d + h exp(c) B(T + D) / B(T) + e l],

B of equal light where the template ends. The five numbers are found by weighted least squares from
the moments (Gauss-Newton), all but the level with a weak prior. What is left of the ratio, a slope
first of all, is the spline's: found with them, it would take up most of what tells d and c.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ..spans import SpanGrid
from .basis import PIXEL_MEAN, Problem

__all__ = ["mixed_ratio"]

Array = NDArray[np.float64]

_HC_K = 14387.77  # second radiation constant, um K
_SUN = 5772.0  # effective temperature of the Sun, K (IAU 2015 nominal value)
_USUAL = 270.0  # K, where the search for thermal light begins
_HOT = (150.0, 400.0)  # K
_COLOUR_AT = 2.0  # um
# Standard deviations expected of d, c, D and e: skies differ by 20 % in colour over the band, by
# half their thermal light, by 20 K, and the line comes and goes.
_PRIOR = (0.1, 0.5, 20.0, 1.0)
_STEPS, _LONGEST = 10, (0.3, 0.5, 20.0, 1.0)
_HELIUM = 1.0833  # um
_WIDE, _BESIDE = 3, 4  # spans on either side of its own that a line fills, and that tell its foot
_LEAST = 0.2  # a ratio below this of its mean is no sky's


def mixed_ratio(known: Array, problem: Problem) -> tuple[Array, Array]:
    """The ratio of the data to a template, by their mix of light.

    Parameters
    ----------
    known
        ``(span, 4)``, the template on each span, powers of t; NaN where it has no value.
    problem
        The moments, of spans where it has one.

    Returns
    -------
    ratio, doubt
        ``(span,)``: the ratio at the middle of each span. ``(span, 4)``: a factor of the covariance
        of its errors, relative to it, but for the level, which is the spline's. Ones and nothing
        where the template tells of no such mix, or the data do not bear it.
    """
    size = problem.grid.size
    plain = np.ones(size), np.zeros((size, 0))
    inside = np.isfinite(known[:, 0])
    share, temperature, top = _thermal_share(known, problem.grid, inside)
    line = _line_share(known, problem.grid, inside)
    mean = np.where(inside[:, None], known, 0.0) @ PIXEL_MEAN.T
    moments = problem.moments.sum(axis=0)
    square = np.zeros(size)
    for p in range(4):
        for q in range(4):
            square += mean[:, p] * mean[:, q] * moments[:, p + q]
    data = (mean * moments[:, 7:11]).sum(axis=1)
    if not (square.sum() > 0 and data.sum() > 0):
        return plain
    usual = data.sum() / square.sum()
    prior = np.array([0.0, *(1 / np.square(_PRIOR))])
    x = np.array([usual, 0.0, 0.0, 0.0, 0.0])
    try:
        for _ in range(_STEPS):
            ratio, change = _ratio(x, share, line, problem.grid.centres, temperature, top)
            gram = change.T @ (square[:, None] * change) + np.diag(prior)
            step = np.linalg.solve(gram, change.T @ (data - square * ratio) - prior * x)
            x[0] += step[0]
            x[1:] += np.clip(step[1:], -np.array(_LONGEST), _LONGEST)
            x[3] = np.clip(temperature + x[3], *_HOT) - temperature
        ratio, change = _ratio(x, share, line, problem.grid.centres, temperature, top)
        covariance = np.linalg.inv(change.T @ (square[:, None] * change) + np.diag(prior))
        root = np.linalg.cholesky(covariance[1:, 1:])
    except np.linalg.LinAlgError:
        return plain
    used = problem.count.any(axis=0)
    if not (np.isfinite(ratio).all() and (ratio[used] > _LEAST * usual).all()):
        return plain
    # Past the data the ratio stays as it is at their ends.
    at = np.clip(np.arange(size), *np.flatnonzero(used)[[0, -1]])
    return ratio[at], (change[:, 1:] @ root / ratio[:, None])[at]


def _ratio(
    x: Array, share: Array, line: Array, wavelength: Array, temperature: float, top: float
) -> tuple[Array, Array]:
    """``(span,)`` the ratio, and ``(span, 5)`` its derivatives by a, d, c, D and e."""
    level, colour, more, hotter, helium = x
    now = temperature + hotter
    power = np.log(wavelength / _COLOUR_AT)
    scattered = (1 - share) * np.exp(colour * power)
    grown = _black_body(wavelength, now) / _black_body(wavelength, temperature)
    grown *= _black_body(top, temperature) / _black_body(top, now)
    thermal = share * np.exp(more) * grown
    per_kelvin = _log_slope(wavelength, now) - _log_slope(top, now)
    total = scattered + thermal + helium * line
    each = [scattered * power, thermal, thermal * per_kelvin, line]
    return level * total, np.stack([total, *(level * one for one in each)], axis=1)


def _thermal_share(
    known: Array, grid: SpanGrid, inside: NDArray[np.bool_]
) -> tuple[Array, float, float]:
    """``(span,)`` share of thermal light in the template, its temperature, and where it ends."""
    level = known[inside] @ (1 / np.arange(1, 5))
    good = level > 0
    wavelength, level = grid.centres[inside][good], level[good]
    middle = float(np.median(wavelength))
    top = float(wavelength[-1])

    def lights(p: Array) -> tuple[Array, Array]:
        sun = _black_body(wavelength, _SUN) / _black_body(middle, _SUN)
        scattered = np.exp(p[0]) * sun * (wavelength / middle) ** p[1]
        return scattered, np.exp(p[2]) * _black_body(wavelength, p[3]) / _black_body(top, _USUAL)

    def away(p: Array) -> Array:
        return np.log(sum(lights(p)) / level)

    blue = float(np.median(level[wavelength <= middle]))
    start = np.array([np.log(blue), 0.0, np.log(level[-1]), _USUAL])
    low = np.array([-np.inf, -5.0, start[2] - 12, _HOT[0]])
    high = np.array([np.inf, 5.0, start[2] + 5, _HOT[1]])
    # Lines and bands are not of this, and must not bend it.
    p = least_squares(away, start, bounds=(low, high), loss="soft_l1", f_scale=0.03, max_nfev=200).x
    scattered, thermal = lights(p)
    share = np.zeros(grid.size)
    share[np.flatnonzero(inside)[good]] = thermal / (scattered + thermal)
    return share, float(p[3]), top


def _line_share(known: Array, grid: SpanGrid, inside: NDArray[np.bool_]) -> Array:
    """``(span,)``: share of He I 1.083 in the template, over a straight line beneath it."""
    share = np.zeros(grid.size)
    at = int(np.searchsorted(grid.edges, _HELIUM)) - 1
    around = np.arange(at - _WIDE - _BESIDE, at + _WIDE + _BESIDE + 1)
    if around[0] < 0 or around[-1] >= grid.size or not inside[around].all():
        return share
    level = known[around] @ (1 / np.arange(1, 5))
    beside = np.abs(around - at) > _WIDE
    foot = np.polyval(np.polyfit(around[beside], level[beside], 1), around)
    if (level > 0).all():
        share[around] = np.where(beside, 0.0, (level - foot) / level)
    return share


def _black_body(wavelength: Array | float, temperature: float) -> Array:
    """Per frequency, but for a factor."""
    x = _HC_K / (np.asarray(wavelength) * temperature)
    return np.asarray(wavelength) ** -3.0 * np.exp(-x) / (1 - np.exp(-x))


def _log_slope(wavelength: Array | float, temperature: float) -> Array:
    """Slope of ln B by temperature, 1/K."""
    x = _HC_K / (np.asarray(wavelength) * temperature)
    return x / temperature / (1 - np.exp(-x))
