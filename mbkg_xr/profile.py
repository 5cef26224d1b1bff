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
from scipy.linalg import cho_solve_banded

from .models.banded import banded_factor, banded_solve
from .models.factor import low_rank
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
_LEAST_CHANCE = 0.01  # of a strength to count for the errors
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
    values, factors = zip(*solved, strict=True)
    rank = max(f.shape[2] for f in factors)
    factor = np.array([np.pad(f, ((0, 0), (0, 0), (0, rank - f.shape[2]))) for f in factors])
    basis = legendre.legvander(phase, _ORDER).astype(np.float64)
    parts = np.einsum("bo,kyor->kybr", basis, factor)
    errors = np.sqrt(np.square(parts).sum(axis=3))
    known = tuple(kinds[i] for i in found)
    return ProfileTable(PROFILE_FIRST, PROFILE_STEP, np.array(values), errors, known, factor, basis)


def _solve(sums: Array, phase: Array, n_shutters: int) -> tuple[Array, Array]:
    """Values ``(node, bin)``, and the factor ``(node, order, rank)`` of their covariance."""
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
    h, covariance = _averaged(gram, right, ~opened | (np.abs(r - np.rint(r)) > _BAR))
    h[:, 0] += 1
    values = h @ basis.T
    # One at the centres of the shutters, where scales are found: the two cannot both be free.
    centre = opened & (np.abs(r - np.rint(r)) <= CENTRE + 1e-9)
    share = np.where(centre, w.sum(axis=1), 0.0)
    share /= share.sum()
    values /= share @ h @ basis.T
    # What all nodes have too much of falls out in that division, and is no error of the profile:
    # to first order each order's mean over the centres is taken off.
    variances, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(variances, 0.0))).reshape(*h.shape, -1)
    root -= np.einsum("n,nkr->kr", share, root)
    factor = low_rank(root.reshape(h.size, -1)).reshape(*h.shape, -1)
    # Beyond the last data the profile stays as it is there.
    whole = np.clip(np.arange(weight.shape[0]), first, last - 1) - first
    return values[whole], factor[whole]


def _averaged(gram: Array, right: Array, bar: NDArray[np.bool_]) -> tuple[Array, Array]:
    """``(node, order)`` means over all strengths of the prior, and the covariance of them all.

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
        found.append((0.5 * (mean @ right.ravel() - determinants), mean, factor))
    evidence, means, factors = (np.array(part) for part in zip(*found, strict=True))
    chance = np.exp(evidence - evidence.max())
    chance /= chance.sum()
    mean = chance @ means
    covariance = np.zeros((n * k, n * k))
    for share, one, factor in zip(chance, means, factors, strict=True):
        if share > _LEAST_CHANCE:
            inverse = cho_solve_banded((np.ascontiguousarray(factor.T), True), np.eye(n * k))
            covariance += share * (inverse + np.outer(one - mean, one - mean))
    covariance /= chance[chance > _LEAST_CHANCE].sum()
    return mean.reshape(n, k), covariance


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
