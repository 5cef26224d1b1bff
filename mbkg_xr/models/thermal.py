"""How two skies differ, first of all: in their mix of sunlight and thermal light, and in one line.

The sky of JWST is sunlight scattered by dust and thermal light of dust and telescope; from one
epoch to another their shares and the temperature of the latter change, and so the ratio of two
skies is a step over a fifth of the band rather than a slope. A spline takes eight and more
coefficients for it, the right functions two. The template's own shares tell which: a power law plus
a black body is fitted to it, h is the black body's share, l that of He I 1.083, and

    ratio = a0 + a1 u + a2 h + a3 dh/dT + a4 l,

u the detector-pixel coordinate, by weighted least squares from the moments, with a weak prior on
the last three. What is left of the ratio is the spline's.
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
_USUAL = (-0.7, 270.0)  # slope of scattered light (MJy/sr), and K: where the search begins
_HOT = (150.0, 400.0)  # K
# Standard deviations expected of a2, a3 and a4: skies differ by half their thermal light, by 20 K,
# and by half the line.
_PRIOR = (0.5, 20.0, 0.5)
_HELIUM = 1.0833  # um
_WIDE, _BESIDE = 3, 4  # spans on either side of its own that a line fills, and that tell its foot
_LEAST = 0.2  # a ratio below this of its mean is no sky's
_STEP = 5.0  # K


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
    ratio, variance
        ``(span,)``: the ratio at the middle of each span, and the variance of what it has more than
        a constant and a slope, relative to it. Ones and zeros where the template tells of no such
        mix, or the data do not bear it.
    """
    size = problem.grid.size
    plain = np.ones(size), np.zeros(size)
    inside = np.isfinite(known[:, 0])
    share, change = _thermal_share(known, problem.grid, inside)
    first, last = problem.domain
    u = (2 * np.arange(size) - first - last) / max(last - first, 1)
    line = _line_share(known, problem.grid, inside)
    terms = np.stack([np.ones(size), u, share, change, line], axis=1)
    mean = np.where(inside[:, None], known, 0.0) @ PIXEL_MEAN.T
    moments = problem.moments.sum(axis=0)
    square = sum(
        mean[:, p] * mean[:, q] * moments[:, p + q] for p in range(4) for q in range(4)
    ) * np.ones(size)
    data = (mean * moments[:, 7:11]).sum(axis=1)
    gram = terms.T @ (square[:, None] * terms)
    right = terms.T @ data
    usual = right[0] / gram[0, 0] if gram[0, 0] > 0 else 0.0
    if not usual > 0:
        return plain
    prior = np.array([0.0, 0.0, *(1 / np.square(usual * np.array(_PRIOR)))])
    try:
        covariance = np.linalg.inv(gram + np.diag(prior))
        of_straight = np.linalg.inv(gram[:2, :2])
    except np.linalg.LinAlgError:
        return plain
    ratio = terms @ (covariance @ right)
    used = problem.count.any(axis=0)
    if not (ratio[used] > _LEAST * usual).all():
        return plain
    straight = terms[:, :2]
    more = np.einsum("sk,kl,sl->s", terms, covariance, terms)
    more -= np.einsum("sk,kl,sl->s", straight, of_straight, straight)
    # Past the data the ratio stays as it is at their ends.
    ends = np.flatnonzero(used)[[0, -1]]
    ratio = ratio[np.clip(np.arange(size), *ends)]
    return ratio, np.maximum(more, 0) / np.square(ratio)


def _thermal_share(known: Array, grid: SpanGrid, inside: NDArray[np.bool_]) -> tuple[Array, Array]:
    """``(span,)``: share of thermal light in the template, and its change with temperature, 1/K."""
    level = known[inside] @ (1 / np.arange(1, 5))
    good = level > 0
    wavelength, level = grid.centres[inside][good], level[good]
    middle = float(np.median(wavelength))
    top = float(wavelength[-1])

    def light(p: Array, temperature: float) -> Array:
        return np.exp(p[2]) * _black_body(wavelength, temperature) / _black_body(top, _USUAL[1])

    def away(p: Array) -> Array:
        found = np.exp(p[0]) * (wavelength / middle) ** p[1] + light(p, p[3])
        return np.log(found / level)

    blue = float(np.median(level[wavelength <= middle]))
    start = np.array([np.log(blue), _USUAL[0], np.log(level[-1]), _USUAL[1]])
    low = np.array([-np.inf, -5.0, start[2] - 12, _HOT[0]])
    high = np.array([np.inf, 5.0, start[2] + 5, _HOT[1]])
    # Lines and bands are not of this, and must not bend it.
    p = least_squares(away, start, bounds=(low, high), loss="soft_l1", f_scale=0.03, max_nfev=200).x
    share, change = np.zeros(grid.size), np.zeros(grid.size)
    at = np.flatnonzero(inside)[good]
    share[at] = np.clip(light(p, p[3]) / level, 0, 1)
    change[at] = (light(p, p[3] + _STEP) - light(p, p[3] - _STEP)) / (2 * _STEP * level)
    return share, change


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
