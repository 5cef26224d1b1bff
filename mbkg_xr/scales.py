"""How slits differ: scale and colour of each, pedestals, drift, and which shutters are not sky.

Works on the sums of `mbkg_xr.shutters`, without pixels. In a shutter of slit j that holds only sky,
the excess over the master at wavelength bin b is

    e_b = a_j . P_b + p_(exposure, detector) q_b / S_b + noise,

P Legendre polynomials; beside a source comes a share of that source's own light. The coefficients
have a hierarchy of normal priors: what a slitlet has in all its exposures, what an exposure has in
all its slits, and what is left of the slit alone. Means and variances are found by alternating
conditional expectations (linear mixed models: Laird & Ware 1982), and shutters that exceed what the
others of their slit allow are left out, the worst first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .errors import ParameterError
from .shutters import ShutterSums
from .terms import FIRST_SHUTTER, N_SHUTTERS

__all__ = ["Scales", "SlitScales", "solve_scales"]

Array = NDArray[np.float64]

_ROUNDS = 40
_VETO_ROUNDS = (2, 5, 9, 14, 20)
_PSEUDO = 8.0  # the prior variances count as much as this many slits
_FLOOR = 0.006  # shutters of one slit differ by this much for reasons of their own
_LEAK = (0.006, 0.010)  # share of a source's light in the shutter beside it: mean, scatter
_FAR = 0.1  # that two shutters away, as a share of the one beside
_BRIGHT_ORDER = 5


@dataclass(frozen=True)
class Scales:
    """How slits may differ from the master.

    Parameters
    ----------
    order
        Degree of the Legendre series of a slit's scale over the fitted range; 0 is one number.
    prior
        Standard deviation expected of the scale of a slit: 0.05, since STScI quotes 5 % from
        shutter to shutter. The data correct it.
    colour
        The same of each higher coefficient.
    smooth
        Let the scale follow a quadratic over each MSA quadrant, so that slits without sky shutters
        get more than the mean.
    pedestal
        Find an offset for each exposure and detector.
    veto
        A shutter that exceeds what the others of its slit allow by this many standard deviations
        is left out.

    Examples
    --------
    >>> Scales(order=1).order
    1
    """

    order: int = 3
    prior: float = 0.05
    colour: float = 0.02
    smooth: bool = True
    pedestal: bool = True
    veto: float = 2.5

    def __post_init__(self) -> None:
        if not (isinstance(self.order, int) and 0 <= self.order <= 8):
            raise ParameterError(
                "unusable order of scales", where="order", expected="0 to 8", found=self.order
            )
        for name in ("prior", "colour", "veto"):
            value = getattr(self, name)
            if not (value > 0 and np.isfinite(value)):
                raise ParameterError(
                    "unusable scales", where=name, expected="a positive number", found=value
                )


@dataclass
class SlitScales:
    """What was found.

    Attributes
    ----------
    scale, covariance
        ``(slit, order)`` and ``(slit, order, order)``: Legendre coefficients of f - 1.
    without
        ``(slit, shutter, order)``: the same from all but one shutter, for held-out scores.
    without_covariance
        ``(slit, shutter, order, order)``.
    used
        ``(slit, shutter)``: shutters that tell of sky.
    excess
        ``(slit, shutter)``: by how many standard deviations each exceeds the others.
    pedestal
        ``(slit,)``, in units of the shape given.
    spread
        Standard deviations ``(3, order)`` of slitlets, slits and exposures about their means.
    leak
        Share of a source's light in the shutter beside it: mean and scatter.
    light
        ``(slit, bin)``: the source's light as a share of the master.
    stray
        ``(slit, shutter)``: share of that light in each shutter.
    """

    scale: Array
    covariance: Array
    without: Array
    without_covariance: Array
    used: NDArray[np.bool_]
    excess: Array
    pedestal: Array
    spread: Array
    leak: tuple[float, float]
    light: Array
    stray: Array


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


def _ranks(slits: xr.Dataset, names: Sequence[str]) -> NDArray[np.int64]:
    keys = list(zip(*(slits[n].values.tolist() for n in names), strict=True))
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([rank[key] for key in keys], dtype=np.int64)


def _sum_by(index: NDArray[np.int64], values: Array, n: int) -> Array:
    out = np.zeros((n, *values.shape[1:]))
    np.add.at(out, index, values)
    return out


def _brightness(weight: Array, excess: Array, phase: Array) -> Array:
    """``(slit, bin)``: a source's light, as a share of the master, smooth and robust."""
    basis = legendre.legvander(phase, _BRIGHT_ORDER)
    raw = excess / np.maximum(weight, 1e-30)
    light = np.zeros_like(weight)
    w = weight.copy()
    for _ in range(5):
        gram = np.einsum("sb,bk,bl->skl", w, basis, basis, optimize=True)
        ridge = 1e-6 * np.trace(gram, axis1=1, axis2=2) + 1e-12
        gram += ridge[:, None, None] * np.eye(basis.shape[1])
        right = (w * raw) @ basis
        light = np.linalg.solve(gram, right[..., None])[..., 0] @ basis.T
        # Cosmic rays in a source's shutter are not told from its light; weigh them down.
        away = np.abs(raw - light)
        usual = np.median(away, axis=1, keepdims=True) + 1e-12
        w = weight * np.minimum(1.0, 3.0 * usual / np.maximum(away, 1e-12))
    return np.where(weight.any(axis=1)[:, None], np.maximum(light, 0.0), 0.0)


def _quadratic(slits: xr.Dataset) -> Array:
    """``(slit, 24)``: a quadratic over each MSA quadrant; zero for slits without a place."""
    quadrant, row = slits["quadrant"].values, slits["shutter_row"].values
    column = slits["shutter_column"].values
    r, c = (row - 183) / 182, (column - 86) / 85
    terms = np.stack([np.ones_like(r), r, c, r * r, r * c, c * c], axis=1)
    placed = (quadrant >= 1) & (quadrant <= 4) & (row > 0) & (column > 0)
    out = np.zeros((r.size, 4, 6))
    out[placed, quadrant[placed] - 1] = terms[placed]
    return out.reshape(r.size, 24)


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
        shutter = FIRST_SHUTTER + np.arange(N_SHUTTERS)
        away = np.abs(shutter[None, :] - source[:, None])
        # A slit that does not say where its source sits has no shutter known to be empty.
        known = background | np.isfinite(source)
        sky = (background[:, None] | (away > 0.5)) & known[:, None]
        held = ~np.isnan(away) & (away <= 0.5)
        light = _brightness(
            (sums.weight * held[:, :, None]).sum(axis=1),
            (sums.excess * held[:, :, None]).sum(axis=1),
            phase,
        )
        place = _quadratic(slits) if options.smooth else np.zeros((background.size, 0))
        return cls(
            sums.weight,
            sums.excess,
            sky,
            np.nan_to_num(away).round().astype(np.int64),
            light,
            legendre.legvander(phase, options.order),
            shape if options.pedestal else np.zeros_like(shape),
            place,
            # Slitlet numbers begin anew in each MSA configuration; the shutters tell them apart.
            _ranks(
                slits,
                ("program", "visit", "slitlet", "quadrant", "shutter_row", "shutter_column"),
            ),
            _ranks(slits, ("exposure", "detector")),
            options,
        )

    def __post_init__(self) -> None:
        self.keep = self.sky & (self.weight.sum(axis=2) > 0)

    def run(self) -> SlitScales:
        n, k = self.weight.shape[0], self.basis.shape[1]
        n_slitlets, n_exposures = int(self.slitlet.max()) + 1, int(self.exposure.max()) + 1
        first = np.array([self.options.prior, *[self.options.colour] * (k - 1)]) ** 2
        start = np.array([1.0, 0.4, 0.1])[:, None] * first
        tau = start.copy()  # variances of slitlets, slits, exposures
        member = _sum_by(self.slitlet, np.ones(n), n_slitlets)
        place = _sum_by(self.slitlet, self.place, n_slitlets) / member[:, None]
        common = np.zeros((n_slitlets, k))
        level = np.zeros((n_slitlets, k))
        drift = np.zeros((n_exposures, k))
        pedestal = np.zeros(n_exposures)
        leak = _LEAK
        eye = np.eye(k)
        for number in range(_ROUNDS):
            mean = common[self.slitlet] + drift[self.exposure]
            parts = self._parts(pedestal, leak)
            data, right = self._joined(*parts)
            if number in _VETO_ROUNDS:
                self._veto(parts, mean, tau[1], pedestal, leak, afresh=number == _VETO_ROUNDS[0])
                parts = self._parts(pedestal, leak)
                data, right = self._joined(*parts)
            own = np.linalg.inv(data + eye / tau[1])
            scale = (own @ (right + mean / tau[1])[..., None])[..., 0]
            # Information on the means, with the slit's own part integrated out.
            seen = data - data @ own @ data
            said = right - (data @ (own @ right[..., None]))[..., 0]

            information = _sum_by(self.slitlet, seen, n_slitlets) + eye / tau[0]
            rest = said - (seen @ drift[self.exposure][..., None])[..., 0]
            spread = np.linalg.inv(information)
            common = (
                spread @ (_sum_by(self.slitlet, rest, n_slitlets) + level / tau[0])[..., None]
            )[..., 0]
            weights = np.einsum("skk->sk", information) - 1 / tau[0]
            middle = (weights * common).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-30)
            common -= middle
            if self.place.shape[1]:
                level = self._level(common, place, tau[0])
            information = _sum_by(self.exposure, seen, n_exposures) + eye / tau[2]
            rest = said - (seen @ common[self.slitlet][..., None])[..., 0]
            wide = np.linalg.inv(information)
            drift = (wide @ _sum_by(self.exposure, rest, n_exposures)[..., None])[..., 0]
            drift -= drift.mean(axis=0)
            pedestal = self._pedestal(scale, leak, n_exposures)
            alone = scale - common[self.slitlet] - drift[self.exposure]
            some = data.any(axis=(1, 2))
            tau = np.stack(
                [
                    _variance(common - level, np.einsum("skk->sk", spread), start[0]),
                    _variance(alone[some], np.einsum("skk->sk", own)[some], start[1]),
                    _variance(drift, np.einsum("skk->sk", wide), start[2]),
                ]
            )
            leak = self._leak(scale, pedestal, leak)
        mean = common[self.slitlet] + drift[self.exposure]
        of_mean = spread[self.slitlet] + wide[self.exposure]
        return self._finish(pedestal, leak, mean, of_mean, tau)

    # ----------------------------------------------------------------------------------------

    def _parts(self, pedestal: Array, leak: tuple[float, float]) -> tuple[Array, Array]:
        """Each shutter's information matrix and right-hand side, leaks integrated out."""
        k = self.basis.shape[1]
        squares = (self.basis[:, :, None] * self.basis[:, None, :]).reshape(-1, k * k)
        w = self.weight * self.keep[:, :, None]
        c = self.excess * self.keep[:, :, None]
        c = c - w * (pedestal[self.exposure, None] * self.shape)[:, None, :]
        data = (w @ squares).reshape(*w.shape[:2], k, k)
        right = c @ self.basis
        mean, precision = self._leak_prior(leak)
        weighted = w * self.light[:, None, :]
        cross = weighted @ self.basis
        square = (weighted * self.light[:, None, :]).sum(axis=2) + precision
        linear = (c * self.light[:, None, :]).sum(axis=2) + precision * mean
        data -= cross[..., :, None] * cross[..., None, :] / square[..., None, None]
        right -= cross * (linear / square)[..., None]
        return data, right

    def _leak_prior(self, leak: tuple[float, float]) -> tuple[Array, Array]:
        """Mean and precision of the share of a source's light in each shutter."""
        share = np.where(self.beside == 0, 0.0, np.where(self.beside == 1, 1.0, _FAR))
        with np.errstate(divide="ignore"):
            return share * leak[0], np.where(share > 0, 1 / np.square(share * leak[1]), 1e12)

    @staticmethod
    def _joined(data: Array, right: Array) -> tuple[Array, Array]:
        return data.sum(axis=1), right.sum(axis=1)

    def _veto(self, parts, mean, tau, pedestal, leak, *, afresh: bool) -> None:
        """Leave out shutters that exceed what the others of their slit allow, the worst first."""
        if afresh:
            self.keep = self.sky & (self.weight.sum(axis=2) > 0)
        for _ in range(N_SHUTTERS):
            excess = self._excess(self._parts(pedestal, leak), mean, tau, pedestal, leak)
            worst = np.argmax(excess, axis=1)
            rows = np.flatnonzero(excess[np.arange(worst.size), worst] > self.options.veto)
            if not rows.size:
                break
            self.keep[rows, worst[rows]] = False

    def _excess(self, parts, mean, tau, pedestal, leak) -> Array:
        """``(slit, shutter)``: level of each shutter over what the others say, in its errors."""
        data, right = parts
        eye = np.eye(self.basis.shape[1])
        others = np.linalg.inv(data.sum(axis=1)[:, None] - data + eye / tau)
        said = right.sum(axis=1)[:, None] - right + (mean / tau)[:, None]
        expected = (others @ said[..., None])[..., 0]
        w = self.weight
        total = np.maximum(w.sum(axis=2), 1e-30)
        h = (w @ self.basis) / total[..., None]
        share, precision = self._leak_prior(leak)
        light = (w * self.light[:, None, :]).sum(axis=2) / total
        offset = (w * (pedestal[self.exposure, None] * self.shape)[:, None, :]).sum(axis=2) / total
        over = self.excess.sum(axis=2) / total - (h * expected).sum(axis=2) - offset - share * light
        variance = (
            1 / total
            + np.einsum("szk,szkl,szl->sz", h, others, h, optimize=True)
            + light**2 / precision
            + _FLOOR**2
        )
        return np.where(self.keep, over / np.sqrt(variance), 0.0)

    def _level(self, common: Array, place: Array, tau: Array) -> Array:
        """What the slitlets' place on the MSA says of their scale; a ridge keeps it tame."""
        gram = place.T @ place
        out = np.empty_like(common)
        for k in range(common.shape[1]):
            ridge = np.eye(gram.shape[0]) * tau[k] / (0.5 * self.options.colour) ** 2
            out[:, k] = place @ np.linalg.solve(gram + ridge, place.T @ common[:, k])
        return out

    def _pedestal(self, scale: Array, leak: tuple[float, float], n: int) -> Array:
        if not self.shape.any():
            return np.zeros(n)
        w = self.weight * self.keep[:, :, None]
        mean, _ = self._leak_prior(leak)
        rest = self.excess * self.keep[:, :, None] - w * (
            (scale @ self.basis.T)[:, None, :] + mean[:, :, None] * self.light[:, None, :]
        )
        top = _sum_by(self.exposure, (rest * self.shape).sum(axis=(1, 2)), n)
        bottom = _sum_by(self.exposure, (w * self.shape**2).sum(axis=(1, 2)), n)
        found = top / (bottom + 1e4)  # a prior of one per cent of the sky
        return found - found.mean()

    def _leak(self, scale: Array, pedestal: Array, leak: tuple[float, float]):
        """Mean and scatter of the share of a source's light in the shutters beside it."""
        beside = self.keep & (self.beside == 1)
        w = self.weight * beside[:, :, None]
        rest = self.excess * beside[:, :, None] - w * (
            (scale @ self.basis.T)[:, None, :]
            + (pedestal[self.exposure, None] * self.shape)[:, None, :]
        )
        square = (w * self.light[:, None, :] ** 2).sum(axis=2)
        # Sources so faint that their leak cannot be measured say nothing of it, and do no harm.
        told = square > 1 / np.square(_LEAK[1])
        if told.sum() < 4:
            return leak
        # Medians: large sources reach far, and must not widen what is allowed to all others.
        found = (rest * self.light[:, None, :]).sum(axis=2)[told] / square[told]
        centre = max(float(np.median(found)), 0.0)
        scatter = 1.4826 * float(np.median(np.abs(found - centre)))
        return centre, float(np.clip(scatter, 1e-3, 0.02))

    def _finish(self, pedestal, leak, mean, of_mean, tau) -> SlitScales:
        parts = self._parts(pedestal, leak)
        data, right = parts
        eye = np.eye(self.basis.shape[1])
        covariance, scale = self._posterior(*self._joined(*parts), mean, of_mean, tau[1], eye)
        without_covariance, without = self._posterior(
            data.sum(axis=1)[:, None] - data,
            right.sum(axis=1)[:, None] - right,
            mean[:, None],
            of_mean[:, None],
            tau[1],
            eye,
        )
        return SlitScales(
            scale,
            covariance,
            without,
            without_covariance,
            self.keep,
            self._excess(parts, mean, tau[1], pedestal, leak),
            pedestal[self.exposure],
            np.sqrt(tau),
            leak,
            self.light,
            self._stray(scale, pedestal, leak),
        )

    def _stray(self, scale: Array, pedestal: Array, leak: tuple[float, float]) -> Array:
        """Share of the source's light in each shutter, given the scales."""
        mean, precision = self._leak_prior(leak)
        w = self.weight * self.keep[:, :, None]
        rest = self.excess * self.keep[:, :, None] - w * (
            (scale @ self.basis.T)[:, None, :]
            + (pedestal[self.exposure, None] * self.shape)[:, None, :]
        )
        square = (w * self.light[:, None, :] ** 2).sum(axis=2)
        linear = (rest * self.light[:, None, :]).sum(axis=2)
        return (linear + precision * mean) / (square + precision)

    @staticmethod
    def _posterior(data, right, mean, of_mean, tau, eye) -> tuple[Array, Array]:
        own = np.linalg.inv(data + eye / tau)
        scale = (own @ (right + mean / tau)[..., None])[..., 0]
        pull = own / tau
        return own + pull @ of_mean @ np.swapaxes(pull, -1, -2), scale


def _variance(values: Array, errors: Array, prior: Array) -> Array:
    """Variance of a population from estimates and the variances of those, wild ones bounded."""
    squares = np.square(values) + errors
    usual = np.median(squares, axis=0) / 0.455 if values.shape[0] > 4 else squares.mean(axis=0)
    squares = np.minimum(squares, 9 * np.maximum(usual, prior / 25))
    return (_PSEUDO * prior + squares.sum(axis=0)) / (_PSEUDO + values.shape[0])
