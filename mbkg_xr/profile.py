"""The residual bar-shadow profile: how the light of uniform sky varies along the slit.

Calibrated products have the bars between shutters divided out, but the profile that was used is
not the true one. What is left, g(yrel, wavelength), is the same in all slitlets of as many
shutters, and is found from sky slits; where there is none of as many shutters, from the empty
shutters of slits with sources, the less the nearer to the source. It is told by cubic B-splines
along the slit, the coefficient of each a parabola in wavelength, with a prior that neighbours go on
smoothly (a Gaussian random walk of second order). How smoothly, at the bars, between them, and of
the change with wavelength, the data decide by their marginal likelihood, the slits' own scales
integrated out (`mbkg_xr.profile_sums`): where slits show no profile none is applied, nor its noise.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from .models.factor import low_rank
from .profile_sums import (
    ORDER,
    PLACES,
    PROFILE_FIRST,
    PROFILE_STEP,
    ProfileSums,
    opened,
    profile_nodes,
    splines,
)
from .shutters import CENTRE
from .terms import ProfileTable

__all__ = ["STRENGTHS", "solve_profile"]

Array = NDArray[np.float64]

#: Standard deviation of second differences between splines: of the profile and of its change with
#: wavelength. The steepest bars of real slitlets fall by 0.4 within 0.1 pitches.
_BEND = (0.14, 0.042, 0.042)
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01)  # that are tried, as shares of these
_WIDE = (0.5, 0.1, 0.1)  # standard deviation of the profile itself, and of its change
_BAR = 0.3  # from this far off a shutter's centre on the bar may show
_LEAST_CHANCE = 0.01  # of a strength to count for the errors
_ENOUGH = 1e4  # information (1 / variance of the mean) below which nothing is said of a kind


def solve_profile(
    sums: ProfileSums,
    phase: Array,
    kinds: tuple[int, ...],
    *,
    errors: bool = True,
    strengths: tuple[float, ...] = STRENGTHS,
) -> ProfileTable:
    """Profiles from the sums of `mbkg_xr.shutters.look`.

    Parameters
    ----------
    sums
        Normal equations.
    phase
        ``(bin,)``, -1 to 1 over the fitted range.
    kinds
        Numbers of open shutters.
    errors
        Whether to find errors, which take as long as all else and are wanted in the end only.
    strengths
        Of the prior, that are tried.

    Returns
    -------
    ProfileTable
        1 at shutter centres on average; kinds without enough data are left out.
    """
    found = [i for i in range(len(kinds)) if sums.weight[i].sum() > _ENOUGH]
    basis = legendre.legvander(phase, ORDER).astype(np.float64)
    solved = [
        _solve(
            sums.weight[i], sums.gram[i], sums.right[i], basis, kinds[i],
            errors=errors, strengths=strengths,
        )
        for i in found
    ]  # fmt: skip
    if not solved:
        return ProfileTable()
    values, factors = zip(*solved, strict=True)
    rank = max(f.shape[2] for f in factors)
    factor = np.array([np.pad(f, ((0, 0), (0, 0), (0, rank - f.shape[2]))) for f in factors])
    parts = np.einsum("bo,kyor->kybr", basis, factor)
    error = np.sqrt(np.square(parts).sum(axis=3))
    known = tuple(kinds[i] for i in found)
    return ProfileTable(PROFILE_FIRST, PROFILE_STEP, np.array(values), error, known, factor, basis)


def _solve(
    weight: Array,
    gram: Array,
    right: Array,
    basis: Array,
    n_shutters: int,
    *,
    errors: bool,
    strengths: tuple[float, ...],
) -> tuple[Array, Array]:
    """Values ``(node, bin)``, and the factor ``(node, order, rank)`` of their covariance."""
    filled = np.flatnonzero(weight > 0)
    first, last = filled[0], filled[-1]
    # Beyond the last data the profile stays as it is there.
    along = splines().toarray()[np.clip(np.arange(weight.size), first, last)]
    told = np.flatnonzero(along.any(axis=0))
    along, places = along[:, told], PLACES[told]
    k = ORDER + 1
    rows = (told[:, None] * k + np.arange(k)).ravel()
    h, covariance = _averaged(
        gram[np.ix_(rows, rows)], right[rows], _bars(places, n_shutters), strengths, errors=errors
    )
    h = along @ h.reshape(-1, k)
    h[:, 0] += 1
    values = h @ basis.T
    # One at the centres of the shutters, where scales are found: the two cannot both be free.
    r = profile_nodes()
    centre = np.abs(r - opened(r, n_shutters)) <= CENTRE + 1e-9
    share = np.where(centre, weight, 0.0)
    share /= share.sum()
    values /= share @ values
    if not errors:
        return values, np.zeros((weight.size, k, 0))
    # What all nodes have too much of falls out in that division, and is no error of the profile:
    # to first order each order's mean over the centres is taken off.
    variances, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(variances, 0.0))
    root = low_rank(root).reshape(told.size, k, -1)
    factor = np.einsum("ni,ikr->nkr", along, root)
    return values, factor - np.einsum("n,nkr->kr", share, factor)


def _bars(places: NDArray, n_shutters: int) -> NDArray[np.bool_]:
    return np.abs(places - opened(places, n_shutters)) > _BAR


def _averaged(
    gram: Array,
    right: Array,
    bar: NDArray[np.bool_],
    strengths: tuple[float, ...],
    *,
    errors: bool,
) -> tuple[Array, Array]:
    """Means over all strengths of the prior, and the covariance of them all (if asked for).

    Each strength of the prior counts by its marginal likelihood, so that the result is a smooth
    function of the data.
    """
    size, n, k = right.size, bar.size, ORDER + 1
    level = {
        (centre, edge): _prior(np.where(bar[1:-1], edge, centre), 0)
        for centre, edge in product(strengths, strengths)
    }
    colours = {
        colour: [_prior(np.full(n - 2, colour), order) for order in range(1, k)]
        for colour in strengths
    }
    found = []
    for (of_level, log_level), of_colours in product(level.values(), colours.values()):
        system = gram.reshape(n, k, n, k).copy()
        system[:, 0, :, 0] += of_level
        for order, (one, _) in enumerate(of_colours, 1):
            system[:, order, :, order] += one
        factor = cho_factor(
            system.reshape(size, size), lower=True, overwrite_a=True, check_finite=False
        )
        mean = cho_solve(factor, right, check_finite=False)
        determinants = 2 * float(np.log(factor[0].diagonal()).sum())
        determinants -= log_level + sum(log for _, log in of_colours)
        found.append((0.5 * (mean @ right - determinants), mean, factor))
    evidence, means = (np.array([one[i] for one in found]) for i in (0, 1))
    chance = np.exp(evidence - evidence.max())
    chance /= chance.sum()
    mean = chance @ means
    covariance = np.zeros((size, size) if errors else (0, 0))
    for share, (_, one, factor) in zip(chance, found, strict=True):
        if errors and share > _LEAST_CHANCE:
            inverse = cho_solve(factor, np.eye(size), check_finite=False)
            covariance += share * (inverse + np.outer(one - mean, one - mean))
    covariance /= chance[chance > _LEAST_CHANCE].sum()
    return mean, covariance


def _prior(strength: Array, order: int) -> tuple[Array, float]:
    """One order's precision and its log determinant: second differences, and a wide normal."""
    second = np.diff(np.eye(strength.size + 2), 2, axis=0)
    weight = 1 / np.square(_BEND[order] * strength)
    out = second.T @ (weight[:, None] * second)
    out[np.diag_indices_from(out)] += 1 / _WIDE[order] ** 2
    return out, 2 * float(np.log(np.linalg.cholesky(out).diagonal()).sum())
