"""The residual bar-shadow profile: how the light of uniform sky varies along the slit.

Calibrated products have the bars between shutters divided out, but the profile that was used is
not the true one. What is left, g(yrel, wavelength), is the same in all slitlets of as many
shutters, and is found from sky slits: at nodes along the slit, a parabola in wavelength at each,
with a prior that neighbouring nodes go on smoothly (a Gaussian random walk of second order).
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .shutters import CENTRE, PROFILE_FIRST, PROFILE_STEP
from .terms import ProfileTable

__all__ = ["solve_profile"]

Array = NDArray[np.float64]

_ORDER = 2
#: Standard deviation of second differences between nodes: of the profile and of its change with
#: wavelength. The steepest bars of real slitlets fall by 0.4 within 0.1 pitches.
_BEND = (0.05, 0.015, 0.015)
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
    solved = [_solve(profile[:, i], phase) for i in found]
    if not solved:
        return ProfileTable()
    values, errors = (np.array(part) for part in zip(*solved, strict=True))
    known = tuple(kinds[i] for i in found)
    return ProfileTable(PROFILE_FIRST, PROFILE_STEP, values, errors, known)


def _solve(sums: Array, phase: Array) -> tuple[Array, Array]:
    weight, data = sums
    basis = legendre.legvander(phase, _ORDER).astype(np.float64)
    filled = np.flatnonzero(weight.sum(axis=1) > 0)
    first, last = filled[0], filled[-1] + 1
    n, k = last - first, _ORDER + 1
    w, d = weight[first:last], data[first:last]
    gram = np.zeros((n, k, n, k))
    at = np.arange(n)
    gram[at, :, at, :] = np.einsum("nb,bk,bl->nkl", w, basis, basis)
    right = d @ basis
    bend = np.diff(np.eye(n), 2, axis=0)
    for order in range(k):
        gram[:, order, :, order] += bend.T @ bend / _BEND[order] ** 2
    gram[at, :, at, :] += 1e-9 * np.trace(gram.reshape(n * k, n * k)) / (n * k) * np.eye(k)
    covariance = np.linalg.inv(gram.reshape(n * k, n * k))
    h = (covariance @ right.ravel()).reshape(n, k)
    values = h @ basis.T
    blocks = covariance.reshape(n, k, n, k)[at, :, at, :]
    errors = np.sqrt(np.maximum(np.einsum("bk,nkl,bl->nb", basis, blocks, basis), 0))
    # One at the centres of the shutters, where scales are found: the two cannot both be free.
    r = PROFILE_FIRST + PROFILE_STEP * (first + at)
    centre = np.abs(r - np.rint(r)) <= CENTRE + 1e-9
    level = _centre_level(h, w, basis, centre) @ basis.T
    values, errors = values / level, errors / level
    # Beyond the last data the profile stays as it is there.
    whole = np.clip(np.arange(weight.shape[0]), first, last - 1) - first
    return values[whole], errors[whole]


def _centre_level(h: Array, w: Array, basis: Array, centre: NDArray[np.bool_]) -> Array:
    """Weighted mean of the series at shutter centres."""
    total = w[centre].sum(axis=1)
    return (h[centre] * total[:, None]).sum(axis=0) / total.sum()
