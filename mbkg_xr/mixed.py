"""The mixed model of slits: scales, colours, pedestals, drift, and which shutters are not sky.

Works on the sums of `mbkg_xr.shutters`, without pixels. In a shutter of slit j that holds only sky,
the excess over the master at wavelength bin b is

    e_b = a_j . P_b + p_(exposure, detector) q_b / S_b + noise,

P Legendre polynomials; each shutter adds a level of its own, and beside a source comes a share of
that source's light. The coefficients
have a hierarchy of normal priors: what a slitlet has in all its exposures, what an exposure has in
all its slits, and what is left of the slit alone. Means and variances are found by alternating
conditional expectations (linear mixed models: Laird & Ware 1982), and shutters that exceed what the
others of their slit allow are left out, the worst first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .populations import population_variance, quadratic, ranks, source_light, sum_by
from .scales import Scales, SlitScales
from .shutters import ShutterSums, sky_shutters
from .terms import FIRST_SHUTTER, N_SHUTTERS

__all__ = ["solve_scales"]

Array = NDArray[np.float64]

_ROUNDS = 40
_VETO_ROUNDS = (2, 5, 9, 14, 20)
_OWN = 0.006  # shutters of one slit are expected to differ by this much; the data correct it
_LEAK = (0.006, 0.010)  # share of a source's light in the shutter beside it: mean, scatter
_FAR = 0.1  # that two shutters away, as a share of the one beside


def solve_scales(
    sums: ShutterSums, slits: xr.Dataset, phase: Array, shape: Array, options: Scales
) -> SlitScales:
    """Find scales, pedestals and the shutters that tell of sky.

    Parameters
    ----------
    sums
        From `mbkg_xr.shutters.look`.
    slits
        The slit coordinates.
    phase
        ``(bin,)``, -1 to 1 over the fitted range.
    shape
        ``(bin,)``, what a unit of pedestal is of the master; zero where it is not known.
    options
        How slits may differ.
    """
    return _Solver.of(sums, slits, phase, shape, options).run()


@dataclass(frozen=True)
class _Given:
    """What is held fixed within one round: prior means and variances, pedestals, leaks."""

    mean: Array
    alone: Array
    pedestal: Array
    leak: tuple[float, float]
    own: float


@dataclass
class _Solver:
    """The alternation. Arrays over slits (s), shutters (z), bins (b), coefficients (k)."""

    weight: Array
    excess: Array
    sky: NDArray[np.bool_]  # (s, z): no source in the shutter
    beside: NDArray[np.int64]  # (s, z): distance from the source's shutter, 0 in sky slits
    light: Array
    basis: Array
    shape: Array
    place: Array
    slitlet: NDArray[np.int64]
    exposure: NDArray[np.int64]
    options: Scales
    keep: NDArray[np.bool_] = field(init=False)

    @classmethod
    def of(
        cls, sums: ShutterSums, slits: xr.Dataset, phase: Array, shape: Array, options: Scales
    ) -> _Solver:
        background = slits["is_background"].values
        source = np.where(background, np.nan, slits["source_shutter"].values)
        away = np.abs(FIRST_SHUTTER + np.arange(N_SHUTTERS) - source[:, None])
        held = ~np.isnan(away) & (away <= 0.5)
        light = source_light(
            (sums.weight * held[:, :, None]).sum(axis=1),
            (sums.excess * held[:, :, None]).sum(axis=1),
            phase,
        )
        place = quadratic(slits) if options.smooth else np.zeros((background.size, 0))
        return cls(
            sums.weight,
            sums.excess,
            sky_shutters(slits),
            np.nan_to_num(away).round().astype(np.int64),
            light,
            legendre.legvander(phase, options.order).astype(np.float64),
            shape if options.pedestal else np.zeros_like(shape),
            place,
            # Slitlet numbers begin anew in each MSA configuration; the shutters tell them apart.
            ranks(
                slits,
                ("program", "visit", "slitlet", "quadrant", "shutter_row", "shutter_column"),
            ),
            ranks(slits, ("exposure", "detector")),
            options,
        )

    def __post_init__(self) -> None:
        self.keep = self._told()

    def run(self) -> SlitScales:
        n, k = self.weight.shape[0], self.basis.shape[1]
        n_slitlets, n_exposures = int(self.slitlet.max()) + 1, int(self.exposure.max()) + 1
        first = np.array([self.options.prior, *[self.options.colour] * (k - 1)]) ** 2
        start = np.array([1.0, 0.4, 0.1])[:, None] * first
        tau = start.copy()  # variances of slitlets, slits, exposures
        member = sum_by(self.slitlet, np.ones(n), n_slitlets)
        place = sum_by(self.slitlet, self.place, n_slitlets) / member[:, None]
        common = np.zeros((n_slitlets, k))
        level = np.zeros((n_slitlets, k))
        drift = np.zeros((n_exposures, k))
        given = _Given(np.zeros((n, k)), tau[1], np.zeros(n_exposures), _LEAK, _OWN**2)
        eye = np.eye(k)
        for number in range(_ROUNDS):
            mean = common[self.slitlet] + drift[self.exposure]
            given = replace(given, mean=mean, alone=tau[1])
            if number in _VETO_ROUNDS:
                self._veto(given, afresh=number == _VETO_ROUNDS[0])
            data, right = self._joined(*self._parts(given))
            own = np.linalg.inv(data + eye / tau[1])
            scale = (own @ (right + mean / tau[1])[..., None])[..., 0]
            # Information on the means, with the slit's own part integrated out.
            seen = data - data @ own @ data
            said = right - (data @ (own @ right[..., None]))[..., 0]

            information = sum_by(self.slitlet, seen, n_slitlets) + eye / tau[0]
            rest = said - (seen @ drift[self.exposure][..., None])[..., 0]
            spread = np.linalg.inv(information)
            told = sum_by(self.slitlet, rest, n_slitlets) + level / tau[0]
            common = (spread @ told[..., None])[..., 0]
            weights = np.einsum("skk->sk", information) - 1 / tau[0]
            common -= (weights * common).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-30)
            if self.place.shape[1]:
                level = self._level(common, place, tau[0])
            information = sum_by(self.exposure, seen, n_exposures) + eye / tau[2]
            rest = said - (seen @ common[self.slitlet][..., None])[..., 0]
            wide = np.linalg.inv(information)
            drift = (wide @ sum_by(self.exposure, rest, n_exposures)[..., None])[..., 0]
            drift -= drift.mean(axis=0)
            alone = scale - common[self.slitlet] - drift[self.exposure]
            some = data.any(axis=(1, 2))
            tau = np.stack(
                [
                    population_variance(common - level, np.einsum("skk->sk", spread), start[0]),
                    population_variance(alone[some], np.einsum("skk->sk", own)[some], start[1]),
                    population_variance(drift, np.einsum("skk->sk", wide), start[2]),
                ]
            )
            given = replace(
                given,
                pedestal=self._pedestal(scale, given),
                leak=self._leak(scale, given),
                own=self._own_variance(scale, given),
            )
        mean = common[self.slitlet] + drift[self.exposure]
        of_mean = spread[self.slitlet] + wide[self.exposure]
        return self._finish(replace(given, mean=mean, alone=tau[1]), of_mean, tau)

    # ----------------------------------------------------------------------------------------

    def _parts(self, given: _Given) -> tuple[Array, Array]:
        """Each shutter's information matrix and right-hand side; what is its own integrated out."""
        k = self.basis.shape[1]
        squares = (self.basis[:, :, None] * self.basis[:, None, :]).reshape(-1, k * k)
        w, c = self._sums(given)
        data = (w @ squares).reshape(*w.shape[:2], k, k)
        right = c @ self.basis
        cross, inverse, linear = self._own(w, c, given)
        pull = cross @ inverse
        data -= pull @ np.swapaxes(cross, -1, -2)
        right -= (pull @ linear[..., None])[..., 0]
        return data, right

    def _sums(self, given: _Given) -> tuple[Array, Array]:
        """Weights and excesses of the shutters in use, pedestals taken off."""
        w = self.weight * self.keep[:, :, None]
        c = self.excess * self.keep[:, :, None]
        return w, c - w * (given.pedestal[self.exposure, None] * self.shape)[:, None, :]

    def _own(self, w: Array, c: Array, given: _Given) -> tuple[Array, Array, Array]:
        """Of what is the shutter's own, a leak and a level: its product with the basis, the
        inverse of its information matrix, and its right-hand side.
        """
        light = self.light[:, None, :]
        mean, precision = self._leak_prior(given.leak)
        cross = np.stack([(w * light) @ self.basis, w @ self.basis], axis=-1)
        a = (w * light**2).sum(axis=2) + precision
        b = (w * light).sum(axis=2)
        d = w.sum(axis=2) + 1 / given.own
        determinant = a * d - b * b
        inverse = np.stack([np.stack([d, -b], -1), np.stack([-b, a], -1)], -1)
        linear = np.stack([(c * light).sum(axis=2) + precision * mean, c.sum(axis=2)], axis=-1)
        return cross, inverse / determinant[..., None, None], linear

    def _leak_prior(self, leak: tuple[float, float]) -> tuple[Array, Array]:
        """Mean and precision of the share of a source's light in each shutter."""
        share = np.where(self.beside == 0, 0.0, np.where(self.beside == 1, 1.0, _FAR))
        with np.errstate(divide="ignore"):
            return share * leak[0], np.where(share > 0, 1 / np.square(share * leak[1]), 1e12)

    @staticmethod
    def _joined(data: Array, right: Array) -> tuple[Array, Array]:
        return data.sum(axis=1), right.sum(axis=1)

    def _veto(self, given: _Given, *, afresh: bool) -> None:
        """Leave out shutters that exceed what the others of their slit allow, the worst first."""
        if afresh:
            self.keep = self._told()
        for _ in range(N_SHUTTERS):
            excess = np.where(self.keep, self._excess(given), -np.inf)
            worst = np.argmax(excess, axis=1)
            rows = np.flatnonzero(excess[np.arange(worst.size), worst] > self.options.veto)
            if not rows.size:
                break
            self.keep[rows, worst[rows]] = False

    def _excess(self, given: _Given) -> Array:
        """``(slit, shutter)``: level of each shutter over what the others say, in its errors."""
        data, right = self._parts(given)
        mean, tau = given.mean, given.alone
        eye = np.eye(self.basis.shape[1])
        others = np.linalg.inv(data.sum(axis=1)[:, None] - data + eye / tau)
        said = right.sum(axis=1)[:, None] - right + (mean / tau)[:, None]
        expected = (others @ said[..., None])[..., 0]
        w = self.weight
        c = self.excess - w * (given.pedestal[self.exposure, None] * self.shape)[:, None, :]
        total = np.maximum(w.sum(axis=2), 1e-30)
        h = (w @ self.basis) / total[..., None]
        share, precision = self._leak_prior(given.leak)
        light = (w * self.light[:, None, :]).sum(axis=2) / total
        over = c.sum(axis=2) / total - (h * expected).sum(axis=2) - share * light
        variance = (
            1 / total
            + np.einsum("szk,szkl,szl->sz", h, others, h, optimize=True)
            + light**2 / precision
            + given.own
        )
        return np.where(self._told(), over / np.sqrt(variance), 0.0)

    def _told(self) -> NDArray[np.bool_]:
        """``(slit, shutter)``: shutters without a source that have pixels."""
        return self.sky & (self.weight.sum(axis=2) > 0)

    def _level(self, common: Array, place: Array, tau: Array) -> Array:
        """What the slitlets' place on the MSA says of their scale; a ridge keeps it tame."""
        gram = place.T @ place
        out = np.empty_like(common)
        for k in range(common.shape[1]):
            ridge = np.eye(gram.shape[0]) * tau[k] / (0.5 * self.options.colour) ** 2
            out[:, k] = place @ np.linalg.solve(gram + ridge, place.T @ common[:, k])
        return out

    def _pedestal(self, scale: Array, given: _Given) -> Array:
        if not self.shape.any():
            return given.pedestal
        n = given.pedestal.size
        own = self._shutters_own(scale, given)
        w = self.weight * self.keep[:, :, None]
        light = self.light[:, None, :]
        rest = self.excess * self.keep[:, :, None] - w * (
            (scale @ self.basis.T)[:, None, :] + own[..., :1] * light + own[..., 1:]
        )
        top = sum_by(self.exposure, (rest * self.shape).sum(axis=(1, 2)), n)
        bottom = sum_by(self.exposure, (w * self.shape**2).sum(axis=(1, 2)), n)
        found = top / (bottom + 1e4)  # a prior of one per cent of the sky
        return found - found.mean()

    def _shutters_own(self, scale: Array, given: _Given) -> Array:
        """``(slit, shutter, 2)``: leak and level of each shutter, given the scales."""
        cross, inverse, linear = self._own(*self._sums(given), given)
        left = linear - (np.swapaxes(cross, -1, -2) @ scale[:, None, :, None])[..., 0]
        return (inverse @ left[..., None])[..., 0]

    def _own_variance(self, scale: Array, given: _Given) -> float:
        """Variance of the shutters' levels, from slits with two of them or more."""
        _, inverse, _ = self._own(*self._sums(given), given)
        several = self.keep & (self.keep.sum(axis=1) > 1)[:, None]
        levels = self._shutters_own(scale, given)[..., 1][several]
        found = population_variance(
            levels[:, None], inverse[..., 1, 1][several][:, None], np.array([_OWN**2])
        )
        return float(found[0])

    def _leak(self, scale: Array, given: _Given) -> tuple[float, float]:
        """Mean and scatter of the share of a source's light in the shutter beside it."""
        w, c = self._sums(given)
        light = self.light[:, None, :]
        square = (w * light**2).sum(axis=2)
        # Sources so faint that their leak cannot be measured say nothing of it, and do no harm.
        told = (self.beside == 1) & (square > 1 / np.square(_LEAK[1]))
        if told.sum() < 4:
            return given.leak
        rest = ((c - w * (scale @ self.basis.T)[:, None, :]) * light).sum(axis=2)
        # Medians: large sources reach far, and must not widen what is allowed to all others.
        found = rest[told] / square[told]
        centre = max(float(np.median(found)), 0.0)
        scatter = 1.4826 * float(np.median(np.abs(found - centre)))
        return centre, float(np.clip(scatter, 1e-3, 0.02))

    def _finish(self, given: _Given, of_mean: Array, tau: Array) -> SlitScales:
        data, right = self._parts(given)
        eye = np.eye(self.basis.shape[1])
        covariance, scale = self._posterior(
            *self._joined(data, right), given.mean, of_mean, given.alone, eye
        )
        without_covariance, without = self._posterior(
            data.sum(axis=1)[:, None] - data,
            right.sum(axis=1)[:, None] - right,
            given.mean[:, None],
            of_mean[:, None],
            given.alone,
            eye,
        )
        own = self._shutters_own(scale, given)
        _, inverse, _ = self._own(*self._sums(given), given)
        floor = self._floor(without, without_covariance, given)
        # What all slits have in common is the master's.
        weights = np.einsum("skk->sk", data.sum(axis=1))
        middle = (weights * scale).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-30)
        scale, without = scale - middle, without - middle
        return SlitScales(
            scale=scale,
            covariance=covariance,
            without=without,
            without_covariance=without_covariance,
            level=np.where(self.keep, own[..., 1], 0.0),
            level_variance=np.where(self.keep, inverse[..., 1, 1], given.own),
            used=self.keep,
            excess=self._excess(given),
            pedestal=given.pedestal[self.exposure],
            spread=np.sqrt(tau),
            floor=floor,
            own_spread=float(np.sqrt(given.own)),
            leak=given.leak,
            light=self.light,
            stray=np.where(self.keep, own[..., 0], 0.0),
        )

    def _floor(self, without: Array, covariance: Array, given: _Given) -> float:
        """Scatter of shutters about what their slit's others say, as a fraction of the sky."""
        w, c = self._sums(given)
        seen = (w > 0) & (self.keep.sum(axis=1) > 1)[:, None, None]
        if not seen.any():
            return 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = c / w - without @ self.basis.T
            rest -= (
                np.where(self.beside > 0, self._leak_prior(given.leak)[0], 0.0)[:, :, None]
                * self.light[:, None, :]
            )
            variance = (
                1 / w
                + given.own
                + np.einsum("bk,szkl,bl->szb", self.basis, covariance, self.basis, optimize=True)
            )
        rest, variance = rest[seen], variance[seen]
        # Where the noise is large it hides the floor: weigh accordingly, and bound what is wild.
        weight = 1 / np.square(variance + 1e-4)
        square = np.minimum(np.square(rest), 9 * (variance + 1e-4))
        return float(np.sqrt(max((weight * (square - variance)).sum() / weight.sum(), 0.0)))

    @staticmethod
    def _posterior(data, right, mean, of_mean, tau, eye) -> tuple[Array, Array]:
        own = np.linalg.inv(data + eye / tau)
        scale = (own @ (right + mean / tau)[..., None])[..., 0]
        pull = own / tau
        return own + pull @ of_mean @ np.swapaxes(pull, -1, -2), scale
