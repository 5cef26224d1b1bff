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

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.linalg import block_diag, cho_factor, cho_solve
from scipy.linalg.lapack import dposv

from .models.banded import banded_factor, second_differences
from .models.basis import dense
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
    spread = (factor @ np.swapaxes(factor, 2, 3)).reshape(*factor.shape[:2], -1)
    both = (basis[:, :, None] * basis[:, None]).reshape(len(basis), -1)
    error = np.sqrt(np.maximum(spread @ both.T, 0.0))
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
    root = low_rank(root).reshape(told.size, -1)
    factor = along @ root
    return values, (factor - share @ factor).reshape(weight.size, k, -1)


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
    n, k = bar.size, ORDER + 1
    levels = [
        _prior(np.where(bar[1:-1], edge, centre), 0)
        for centre, edge in product(strengths, strengths)
    ]
    # Orders of the series one after the other: the profile itself, which has one prior, and its
    # change with wavelength, which has another and is eliminated first.
    turn = np.arange(n * k).reshape(n, k).T.ravel()
    gram, right = gram[np.ix_(turn, turn)], right[turn]
    found = [
        _Eliminated.of(gram, right, n, [_prior(np.full(n - 2, colour), o) for o in range(1, k)])
        for colour in strengths
    ]
    tried = [[one.solve(*level) for level in levels] for one in found]
    evidence = np.array([[score for score, _, _ in each] for each in tried])
    chance = np.exp(evidence - evidence.max())
    chance /= chance.sum()
    mean = np.zeros(n * k)
    for one, each, shares in zip(found, tried, chance, strict=True):
        mean += one.whole(np.array([level for _, level, _ in each]).T) @ shares
    covariance = np.zeros((n * k, n * k) if errors else (0, 0))
    if errors:
        for one, each, shares in zip(found, tried, chance, strict=True):
            counted = [i for i in range(len(levels)) if shares[i] > _LEAST_CHANCE]
            for share, (_, level, factor) in ((shares[i], each[i]) for i in counted):
                away = one.whole(level) - mean
                covariance += share * (one.covariance(factor) + np.outer(away, away))
        covariance /= chance[chance > _LEAST_CHANCE].sum()
        covariance = covariance[np.ix_(np.argsort(turn), np.argsort(turn))]
    return mean[np.argsort(turn)], covariance


@dataclass
class _Eliminated:
    """Normal equations of the profile at one prior of its change with wavelength, the change
    expressed by the profile: ``change = alone - pull @ profile``.
    """

    gram: Array
    right: Array
    alone: Array
    pull: Array
    factor: tuple[Array, bool]
    score: float

    @classmethod
    def of(
        cls, gram: Array, right: Array, n: int, priors: list[tuple[Array, float]]
    ) -> _Eliminated:
        change = gram[n:, n:] + block_diag(*(prior for prior, _ in priors))
        factor = cho_factor(change, lower=True, overwrite_a=True, check_finite=False)
        solved = cho_solve(factor, np.column_stack([right[n:], gram[n:, :n]]), check_finite=False)
        alone, pull = solved[:, 0], solved[:, 1:]
        score = alone @ right[n:] - _log_determinant(factor[0]) + sum(log for _, log in priors)
        left = gram[:n, :n] - gram[:n, n:] @ pull
        return cls(left, right[:n] - gram[:n, n:] @ alone, alone, pull, factor, score)

    def solve(self, prior: Array, log: float) -> tuple[float, Array, tuple[Array, bool]]:
        """Logarithm of the marginal likelihood with one prior of the profile; the profile; and the
        factor of the inverse of its covariance.
        """
        factor, level, failed = dposv(self.gram + prior, self.right, lower=1)
        if failed:
            raise np.linalg.LinAlgError("not positive definite")
        score = level @ self.right - _log_determinant(factor) + log
        return 0.5 * (self.score + score), level, (factor, True)

    def whole(self, level: Array) -> Array:
        """Profile and change, from one profile or from several ``(place, profile)``."""
        alone = self.alone.reshape(-1, *[1] * (level.ndim - 1))
        return np.concatenate([level, alone - self.pull @ level])

    def covariance(self, factor: tuple[Array, bool]) -> Array:
        """Of both, from the factor for the profile."""
        n, m = self.gram.shape[0], self.pull.shape[0]
        level = cho_solve(factor, np.eye(n), check_finite=False)
        across = -self.pull @ level
        change = cho_solve(self.factor, np.eye(m), check_finite=False) - across @ self.pull.T
        return np.block([[level, across.T], [across, change]])


def _log_determinant(factor: Array) -> float:
    return 2 * float(np.log(factor.diagonal()).sum())


def _prior(strength: Array, order: int) -> tuple[Array, float]:
    """One order's precision and its log determinant: second differences, and a wide normal."""
    bands = second_differences(1 / np.square(_BEND[order] * strength))
    bands[0] += 1 / _WIDE[order] ** 2
    return dense(bands), 2 * float(np.log(banded_factor(bands)[:, 0]).sum())
