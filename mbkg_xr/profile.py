"""The residual bar-shadow profile: how the light of uniform sky varies along the slit.

Calibrated products have the bars between shutters divided out, but the profile that was used is
not the true one. What is left, g(yrel, wavelength), is the same in all slitlets of as many
shutters, and is found from sky slits; where there is none of as many shutters, from the empty
shutters of slits with sources, the less the nearer to the source. It is told at nodes along the
slit, a parabola in wavelength at each, with a prior that neighbouring nodes go on smoothly (a
Gaussian random walk of second order). How smoothly, at the bars, between them, and of the change
with wavelength, the data decide by their marginal likelihood: where slits show no profile none is
applied, nor its noise.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .models.banded import banded_factor, banded_solve, inverse_bands
from .shutters import CENTRE, PROFILE_FIRST, PROFILE_STEP
from .terms import ProfileTable

__all__ = ["solve_profile"]

Array = NDArray[np.float64]

_ORDER = 2
#: Standard deviation of second differences between nodes: of the profile and of its change with
#: wavelength. The steepest bars of real slitlets fall by 0.4 within 0.1 pitches.
_BEND = (0.05, 0.015, 0.015)
_STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01)  # that are tried, as shares of these
_WIDE = (0.5, 0.1, 0.1)  # standard deviation of the profile itself, and of its change
_BAR = 0.3  # from this far off a shutter's centre on the bar may show
_DIFFERENCE = (1.0, -2.0, 1.0)
_ENOUGH = 1e4  # information (1 / variance of the mean) below which nothing is said of a kind


def solve_profile(profile: Array, phase: Array, kinds: tuple[int, ...]) -> ProfileTable:
    """Profiles from the sums of `mbkg_xr.shutters.look`.

    Parameters
    ----------
    profile
        ``(2, kind, node, bin)``: weight, and weighted data over model.
    phase
        ``(bin,)``, -1 to 1 over the fitted range.
    kinds
        Numbers of open shutters.

    Returns
    -------
    ProfileTable
        1 at shutter centres on average; kinds without enough data are left out.
    """
    found = [i for i in range(len(kinds)) if profile[0, i].sum() > _ENOUGH]
    solved = [_solve(profile[:, i], phase, kinds[i]) for i in found]
    if not solved:
        return ProfileTable()
    values, errors = (np.array(part) for part in zip(*solved, strict=True))
    known = tuple(kinds[i] for i in found)
    return ProfileTable(PROFILE_FIRST, PROFILE_STEP, values, errors, known)


def _solve(sums: Array, phase: Array, n_shutters: int) -> tuple[Array, Array]:
    weight, data = sums
    basis = legendre.legvander(phase, _ORDER).astype(np.float64)
    filled = np.flatnonzero(weight.sum(axis=1) > 0)
    first, last = filled[0], filled[-1] + 1
    w, d = weight[first:last], data[first:last]
    r = PROFILE_FIRST + PROFILE_STEP * np.arange(first, last)
    gram = np.einsum("nb,bk,bl->nkl", w, basis, basis)
    # Departures from a profile of 1.
    right = (d - w) @ basis
    opened = (np.rint(r) >= -((n_shutters - 1) // 2)) & (np.rint(r) <= n_shutters // 2)
    h, blocks = _averaged(gram, right, ~opened | (np.abs(r - np.rint(r)) > _BAR))
    h[:, 0] += 1
    values = h @ basis.T
    errors = np.sqrt(np.maximum(np.einsum("bk,nkl,bl->nb", basis, blocks, basis), 0))
    # One at the centres of the shutters, where scales are found: the two cannot both be free.
    centre = opened & (np.abs(r - np.rint(r)) <= CENTRE + 1e-9)
    level = _centre_level(h, w, basis, centre) @ basis.T
    values, errors = values / level, errors / level
    # Beyond the last data the profile stays as it is there.
    whole = np.clip(np.arange(weight.shape[0]), first, last - 1) - first
    return values[whole], errors[whole]


def _averaged(gram: Array, right: Array, bar: NDArray[np.bool_]) -> tuple[Array, Array]:
    """``(node, order)`` and ``(node, order, order)``: means and covariances over all strengths.

    Each strength of the prior counts by its marginal likelihood, so that the result is a smooth
    function of the data.
    """
    n, k = right.shape
    data = np.zeros((3 * k, n * k))
    for a in range(k):
        for b in range(a + 1):
            data[a - b, b::k] = gram[:, a, b]
    found = []
    for strengths in product(_STRENGTHS, _STRENGTHS, _STRENGTHS):
        prior = _prior_bands(n, k, bar, *strengths)
        factor = banded_factor(data + prior)
        mean = banded_solve(factor, right.ravel())
        determinants = _log_determinant(factor) - _log_determinant(banded_factor(prior))
        found.append((0.5 * (mean @ right.ravel() - determinants), mean, inverse_bands(factor)))
    evidence, means, inverses = (np.array(part) for part in zip(*found, strict=True))
    chance = np.exp(evidence - evidence.max())
    chance /= chance.sum()
    mean = chance @ means
    inverse = np.tensordot(chance, inverses, 1)
    blocks = np.empty((n, k, k))
    away = (means - mean).reshape(-1, n, k)
    for a in range(k):
        for b in range(a + 1):
            blocks[:, a, b] = blocks[:, b, a] = inverse[a - b, b::k]
    blocks += np.einsum("s,sna,snb->nab", chance, away, away, optimize=True)
    return mean.reshape(n, k), blocks


def _prior_bands(
    n: int, k: int, bar: NDArray[np.bool_], centre: float, edge: float, colour: float
) -> Array:
    """Bands of the prior's precision: second differences along the slit, and a wide normal."""
    out = np.zeros((3 * k, n * k))
    at = np.where(bar[1:-1], edge, centre)
    for order in range(k):
        d = 1 / np.square(_BEND[order] * (at if order == 0 else colour))
        for a in range(3):
            for b in range(a + 1):
                column = order + k * (b + np.arange(n - 2))
                np.add.at(out[k * (a - b)], column, _DIFFERENCE[a] * _DIFFERENCE[b] * d)
        out[0, order::k] += 1 / _WIDE[order] ** 2
    return out


def _log_determinant(factor: Array) -> float:
    return 2 * float(np.log(factor[:, 0]).sum())


def _centre_level(h: Array, w: Array, basis: Array, centre: NDArray[np.bool_]) -> Array:
    """Weighted mean of the series at shutter centres."""
    total = w[centre].sum(axis=1)
    return (h[centre] * total[:, None]).sum(axis=0) / total.sum()
