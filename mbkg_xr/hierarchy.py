"""Slits as members of populations: means and variances of slitlets, slits, exposures, places.

The coefficients of slit j, of slitlet c in exposure e, are

    beta_j = place_c . theta + u_c + d_e + a_j,

with u of variance tau_0, a of tau_1, d of tau_2, and theta the coefficients of a quadratic over
each MSA quadrant, themselves of a population. Given the information of each slit, means follow by
alternating conditional expectations with the slits' own parts integrated out (linear mixed models:
Laird & Ware 1982, Biometrics 38, 963), and variances by the update that raises their restricted
likelihood (Schall 1991, Biometrika 78, 719; Wood & Fasiolo 2017): the sum of the squares of what is
found over the effective number of what the data told. Where slits are alike the variances go to
nothing, and so does what is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .kernels import kernel
from .populations import sum_by
from .slit_algebra import (
    add_on_places,
    integrate_own,
    inverses,
    own_parts,
    spread_of_places,
)

__all__ = ["Hierarchy", "likely_variance"]

Array = NDArray[np.float64]

#: The prior variances are uncertain by a factor of a hundred: few slits keep close to them, many
#: say their own.
_DOUBT = np.log(100.0)
_PLACE = 0.2  # of the prior, what the place on the MSA accounts for
#: Variance of what does not vary.
_NONE = 1e-12


def likely_variance(squares: Array, effective: Array, present: Array, prior: Array) -> Array:
    """A population's variance from the squares of its members' estimates.

    Parameters
    ----------
    squares
        ``(member, k)``, squares of the posterior means; wild ones are bounded.
    effective
        ``(member, k)``, 1 less posterior over prior variance: how far each was told by data.
    present, prior
        ``(k,)``, the present variance, and the one expected beforehand.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> tau, prior = np.array([0.01]), np.array([0.01])
    >>> data = 0.1 * rng.standard_normal((500, 1))            # noise of 0.1 and nothing else
    >>> for _ in range(40):
    ...     pull = tau / (tau + 0.01)
    ...     tau = likely_variance((pull * data) ** 2, np.broadcast_to(pull, (500, 1)), tau, prior)
    >>> bool(np.sqrt(tau[0]) < 0.04)
    True
    """
    up, down = np.zeros((2, present.size))
    _sum_bounded(squares, effective, np.minimum(present, prior), up, down)
    away = 2 * np.log(prior / present) / _DOUBT**2
    up = up / present + np.maximum(away, 0)
    down = np.maximum(down, 0) + np.maximum(-away, 0)
    # A step of at most a factor of 30: early means are not settled yet.
    return present * np.clip((up + 1e-3) / (down + 1e-3), 1 / 30, 30)


@kernel
def _sum_bounded(squares, effective, least, up, down):  # pragma: no cover - compiled
    n, k = squares.shape
    bound = np.full(k, np.inf)
    if n > 4:
        # Slits told by no data are no members; those whose data differ wildly must not widen what
        # is allowed to all others.
        told = np.empty(n)
        for i in range(n):
            told[i] = effective[i].sum()
        members = np.flatnonzero(told > 0.01 * told.sum() / n)
        for j in range(k):
            usual = squares[:, j].max()
            if members.size:
                usual = np.median(squares[members, j]) / 0.455
            bound[j] = 9 * max(usual, 0.04 * least[j])
    for i in range(n):
        for j in range(k):
            up[j] += min(squares[i, j], bound[j])
            down[j] += effective[i, j]


@dataclass(frozen=True)
class Hierarchy:
    """Means and variances of all populations, at one round of the alternation.

    Attributes
    ----------
    slitlet, exposure
        ``(slit,)``, which of each a slit belongs to.
    place
        ``(slitlet, column)``, functions of the place on the MSA.
    prior, tau
        ``(3, k)``, variances of slitlets, slits and exposures: expected, and found; `_NONE` where a
        coefficient does not differ between them.
    place_tau
        ``(k,)``, that of the coefficients of the place.
    common, drift
        ``(slitlet, k)`` and ``(exposure, k)``, their means; `spread`, `wide` the covariances.
    """

    slitlet: NDArray[np.int64]
    exposure: NDArray[np.int64]
    place: Array
    prior: Array
    tau: Array
    place_tau: Array
    common: Array
    spread: Array
    drift: Array
    wide: Array

    @classmethod
    def of(
        cls,
        slitlet: NDArray[np.int64],
        exposure: NDArray[np.int64],
        place: Array,
        expected: Array,
        of_exposure: Array,
    ) -> Hierarchy:
        """Nothing known yet but the variances `expected`, and those of further coefficients
        `of_exposure`, in which the slits of an exposure do not differ; `place` by slit.
        """
        n, k = slitlet.size, expected.size + of_exposure.size
        n_slitlets, n_exposures = int(slitlet.max()) + 1, int(exposure.max()) + 1
        member = sum_by(slitlet, np.ones(n), n_slitlets)
        prior = np.full((3, k), _NONE)
        prior[:, : expected.size] = np.array([1.0, 0.4, 0.1])[:, None] * expected
        prior[2, expected.size :] = of_exposure
        return cls(
            slitlet,
            exposure,
            sum_by(slitlet, place, n_slitlets) / member[:, None],
            prior,
            prior.copy(),
            _PLACE**2 * prior[0],
            np.zeros((n_slitlets, k)),
            np.zeros((n_slitlets, k, k)) + np.diag(prior[0]),
            np.zeros((n_exposures, k)),
            np.zeros((n_exposures, k, k)) + np.diag(prior[2]),
        )

    def mean(self) -> Array:
        """``(slit, k)``, what slitlet and exposure say of a slit."""
        return self.common[self.slitlet] + self.drift[self.exposure]

    def covariance(self, slits: slice) -> Array:
        """``(slit, k, k)``, of that, for some slits."""
        return self.spread[self.slitlet[slits]] + self.wide[self.exposure[slits]]

    def step(self, data: Array, right: Array) -> Hierarchy:
        """One round, from each slit's information matrix and right-hand side."""
        # Information on the means, with the slits' own parts integrated out.
        own, seen, said = np.empty_like(right), np.empty_like(data), np.empty_like(right)
        integrate_own(data, right, self.tau[1], own, seen, said)
        place_tau, common, level, spread, of_level = self._slitlets(seen, said)
        drift, wide = self._exposures(seen, said, common)
        alone, variance = np.empty_like(right), np.empty_like(right)
        own_parts(
            seen, said, self.tau[1], own, self.slitlet, self.exposure, common, drift, spread,
            wide, alone, variance,
        )  # fmt: skip
        tau = np.stack(
            [
                self._variance(0, common - level, np.einsum("ckk->ck", of_level), removed=1),
                self._variance(1, alone, variance),
                self._variance(2, drift, np.einsum("ekk->ek", wide), removed=1),
            ]
        )
        return replace(
            self,
            tau=tau,
            place_tau=place_tau,
            common=common,
            spread=spread,
            drift=drift,
            wide=wide,
        )

    def _slitlets(self, seen: NDArray, said: NDArray) -> tuple[NDArray, ...]:
        n, k = self.common.shape
        precision = np.diag(1 / self.tau[0])
        information = sum_by(self.slitlet, seen, n)
        told = sum_by(self.slitlet, said - _times(seen, self.drift[self.exposure]), n)
        spread = inverses(information + precision)
        level, of_level, place_tau = np.zeros((n, k)), np.zeros((n, k, k)), self.place_tau
        if self.place.shape[1]:
            # What remains of the data's word once the slitlets' own parts are integrated out.
            left = information - information @ spread @ information
            heard = told - _times(information, _times(spread, told))
            level, of_level, place_tau = self._places(left, heard)
        common = _times(spread, told + level @ precision)
        weights = np.einsum("skk->sk", information)
        # What all have in common is the master's.
        middle = (weights * common).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-30)
        # Slitlets that few data tell lie about the population's mean, and the mean of those that
        # are told, which is zero now, is that mean with an error of its own.
        heeded = np.clip(1 - np.einsum("skk->sk", spread) / self.tau[0], 0, 1).sum(axis=0)
        of_mean = np.diag(self.tau[0] / np.maximum(heeded, 1.0))
        carried = spread @ precision
        total = spread + carried @ (of_level + of_mean) @ np.swapaxes(carried, -1, -2)
        moved = np.eye(k) - carried
        rest = spread + moved @ of_level @ np.swapaxes(moved, -1, -2)
        return place_tau, common - middle, level - middle, total, rest

    def _places(self, left: NDArray, heard: NDArray) -> tuple[NDArray, ...]:
        """Level of each slitlet by its place, its covariance, and the variance of coefficients."""
        columns, k = self.place.shape[1], left.shape[1]
        gram = np.zeros((columns * k, columns * k))
        add_on_places(self.place, left, gram)
        gram += np.diag(np.tile(1 / self.place_tau, columns))
        covariance = np.linalg.inv(gram)
        theta = (covariance @ np.einsum("cp,ck->pk", self.place, heard).ravel()).reshape(columns, k)
        each = covariance.diagonal().reshape(columns, k)
        used = self.place.any(axis=0)
        place_tau = likely_variance(
            np.square(theta[used]),
            1 - each[used] / self.place_tau,
            self.place_tau,
            _PLACE**2 * self.prior[0],
        )
        spread = np.zeros_like(left)
        spread_of_places(self.place, covariance, spread)
        return self.place @ theta, spread, place_tau

    def _exposures(self, seen: NDArray, said: NDArray, common: NDArray) -> tuple[NDArray, NDArray]:
        n = self.drift.shape[0]
        information = sum_by(self.exposure, seen, n) + np.diag(1 / self.tau[2])
        told = sum_by(self.exposure, said - _times(seen, common[self.slitlet]), n)
        wide = inverses(information)
        drift = _times(wide, told)
        return drift - drift.mean(axis=0), wide

    def _variance(self, which: int, values: Array, variance: Array, removed: int = 0) -> Array:
        """One population's; `removed` members' worth of its freedom is the master's."""
        effective = 1 - variance / self.tau[which]
        n = effective.shape[0]
        effective = np.clip(effective, 0, 1) * (n - removed) / n
        prior, present = self.prior[which], self.tau[which]
        found = likely_variance(np.square(values), effective, present, prior)
        return np.where(prior > _NONE, found, _NONE)


def _times(matrices: NDArray, vectors: NDArray) -> NDArray:
    """A matrix times a vector, for each."""
    return (matrices @ vectors[..., None])[..., 0]
