"""What a shutter holds of its own beside its slit's scale: a level, and some of a source's light.

Works on the sums of `mbkg_xr.shutters`, without pixels. What is a shutter's own is integrated out
of what it says of its slit. All that rounds ask of a shutter is linear or quadratic in the same few
functions of wavelength, so that its bins are added up once, to a Gram matrix and a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .hierarchy import likely_variance
from .slit_algebra import add_up_bins, shutter_parts, shutter_rests, slit_parts
from .tables import lots, zeros

__all__ = ["EXPECTED_LEAK", "EXPECTED_LEVEL", "Own", "Shutters"]

Array = NDArray[np.float64]

EXPECTED_LEVEL = 0.006  # shutters of one slit are expected to differ by this much
_OF_SLITS = (
    "weight",
    "excess",
    "far",
    "most",
    "sky",
    "beside",
    "light",
    "keep",
    "told",
    "gram",
    "linear",
)
EXPECTED_LEAK = (0.006, 0.010)  # share of a source's light in the shutter beside it: mean, scatter
_FAR = 0.1  # that two shutters away, as a share of the one beside


@dataclass(frozen=True)
class Own:
    """What is held fixed within one round: the leak's mean and scatter, the variance of levels."""

    leak: tuple[float, float]
    level: float


@dataclass
class Shutters:
    """All shutters. Arrays over slits (s), shutters (z), bins (b), coefficients (k).

    Attributes
    ----------
    weight, excess, far
        ``(s, z, b)`` and ``(s, 2, z, b)``, from `mbkg_xr.shutters.look`.
    most
        ``(s,)``, slits for which what is far off is added to weight and excess, in their `part`.
    sky
        ``(s, z)``, no source in the shutter.
    beside
        ``(s, z)``, distance from the source's shutter; 0 in sky slits.
    light
        ``(s, b)``, the source's light as a share of the master.
    basis
        ``(b, k)``, of what all shutters of a slit share: its scale, and its exposure's pedestal.
    keep
        ``(s, z)``, shutters in use.
    told
        ``(s, z)``, shutters without a source that have pixels.
    gram, linear
        ``(s, z, k + 1, k + 1)`` and ``(s, z, k + 1)``: weighted sums over bins of the products of
        the basis and, last, the light with each other, and sums of the excess with each.
    """

    weight: Array
    excess: Array
    far: NDArray[np.float32]
    most: NDArray[np.bool_]
    sky: NDArray[np.bool_]
    beside: NDArray[np.int64]
    light: Array
    basis: Array
    keep: NDArray[np.bool_] = field(init=False)
    told: NDArray[np.bool_] = field(init=False)
    gram: Array = field(init=False)
    linear: Array = field(init=False)

    def __post_init__(self) -> None:
        n = self.basis.shape[1] + 1
        self.told = np.zeros_like(self.sky)
        self.gram = zeros((*self.sky.shape, n, n))
        self.linear = zeros((*self.sky.shape, n))
        self.keep = self.told
        for _, lot in self.lots():
            lot.told[:] = lot.sky & (lot.weight.sum(axis=2) > 0)
            add_up_bins(lot.weight, lot.excess, lot.basis, lot.light, lot.gram, lot.linear)
        self.keep = self.told.copy()

    def lots(self) -> Iterator[tuple[slice, Shutters]]:
        """Some slits at a time: what is between takes more room than what is found."""
        for lot in lots(len(self.sky)):
            yield lot, self.part(lot)

    def part(self, slits: slice | NDArray[np.int64]) -> Shutters:
        """Of some slits."""
        out = copy(self)
        for name in _OF_SLITS:
            setattr(out, name, getattr(self, name)[slits])
        if out.most.any():
            out.weight = np.where(out.most[:, None, None], out.weight + out.far[:, 0], out.weight)
            out.excess = np.where(out.most[:, None, None], out.excess + out.far[:, 1], out.excess)
            out.most = np.zeros_like(out.most)
        return out

    def parts(self, own: Own) -> tuple[Array, Array]:
        """Each shutter's information matrix and right-hand side; what is its own integrated out."""
        k = self.basis.shape[1]
        data, right = np.zeros((*self.keep.shape, k, k)), np.zeros((*self.keep.shape, k))
        prior = self.leak_prior(own.leak)
        shutter_parts(self.gram, self.linear, self.keep, *prior, own.level, data, right)
        return data, right

    def together(self, own: Own) -> tuple[Array, Array]:
        """The same of all shutters of each slit: ``(s, k, k)`` and ``(s, k)``."""
        n, k = len(self.keep), self.basis.shape[1]
        data, right = zeros((n, k, k)), np.zeros((n, k))
        for lot in lots(n):
            prior = _leak_prior(self.beside[lot], own.leak)
            slit_parts(
                self.gram[lot], self.linear[lot], self.keep[lot], *prior, own.level,
                data[lot], right[lot],
            )  # fmt: skip
        return data, right

    def stray_and_level(self, scale: Array, own: Own) -> tuple[Array, Array, Array]:
        """``(s, z, 2)``, leak and level of each shutter given the scales, their covariance, and
        ``(s, z, k)``, what the level changes by with the scales.
        """
        cross, inverse, linear = self._own(own)
        left = linear - (np.swapaxes(cross, -1, -2) @ scale[:, None, :, None])[..., 0]
        slope = -(inverse @ np.swapaxes(cross, -1, -2))[..., 1, :]
        return (inverse @ left[..., None])[..., 0], inverse, slope

    def excess_over(self, others: Array, covariance: Array, own: Own) -> Array:
        """``(s, z)``: level of each shutter over what its slit's others say, in its errors.

        Parameters
        ----------
        others, covariance
            ``(s, z, k)`` and ``(s, z, k, k)``, the scale found without the shutter.
        own
            What is held fixed.
        """
        total = np.maximum(self.gram[..., 0, 0], 1e-30)
        h = self.gram[..., 0, :-1] / total[..., None]
        share, precision = self.leak_prior(own.leak)
        light = self.gram[..., 0, -1] / total
        over = self.linear[..., 0] / total - (h * others).sum(axis=2) - share * light
        variance = (
            1 / total
            + np.einsum("szk,szkl,szl->sz", h, covariance, h, optimize=True)
            + light**2 / precision
            + own.level
        )
        return np.where(self.told, over / np.sqrt(variance), 0.0)

    def surplus(self, scale: Array, own: Own) -> Array:
        """``(s, z)``: what each shutter holds over its slit's scale, as a share of the sky."""
        total = np.maximum(self.gram[..., 0, 0], 1e-30)
        share, _ = self.leak_prior(own.leak)
        expected = np.einsum("szk,sk->sz", self.gram[..., 0, :-1], scale)
        expected += share * self.gram[..., 0, -1]
        return (self.linear[..., 0] - expected) / total

    def rest(self, others: Array, covariance: Array, own: Own) -> Array:
        """Scatter of shutters about what their slit's others say, as a fraction of the sky: the sum
        of squares over what their errors explain, and of its weights.
        """
        w = self.weight * self.keep[:, :, None]
        c = self.excess * self.keep[:, :, None]
        seen = (w > 0) & (self.keep.sum(axis=1) > 1)[:, None, None]
        beside, light = self.beside, self.light
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = c / w - others @ self.basis.T
            share = _leak_prior(beside, own.leak)[0]
            rest -= np.where(beside > 0, share, 0.0)[:, :, None] * light[:, None, :]
            variance = (
                1 / w
                + own.level
                + np.einsum("bk,szkl,bl->szb", self.basis, covariance, self.basis, optimize=True)
            )
        rest, variance = rest[seen], variance[seen]
        # Where the noise is large it hides the floor: weigh accordingly, and bound what is wild.
        weight = 1 / np.square(variance + 1e-4)
        square = np.minimum(np.square(rest), 9 * (variance + 1e-4))
        return np.array([(weight * (square - variance)).sum(), weight.sum()])

    # ----------------------------------------------------------------------------------------

    def found(self, scale: Array, own: Own) -> Own:
        """The same, found anew from scales."""
        sums = np.zeros((*self.keep.shape, 4))
        for lot in lots(len(self.keep)):
            prior = _leak_prior(self.beside[lot], own.leak)
            shutter_rests(
                self.gram[lot], self.linear[lot], self.keep[lot], scale[lot], *prior, sums[lot]
            )
        information, level, square, rest = np.moveaxis(sums, 2, 0)
        return Own(self._leak(square, rest, own), self._level(information, level, own))

    def leak_prior(self, leak: tuple[float, float]) -> tuple[Array, Array]:
        """Mean and precision of the share of a source's light in each shutter."""
        return _leak_prior(self.beside, leak)

    def _own(self, own: Own) -> tuple[Array, Array, Array]:
        """Of what is the shutter's own, a leak and a level: its product with the basis, the
        inverse of its information matrix, and its right-hand side.
        """
        gram = self.gram * self.keep[:, :, None, None]
        c = self.linear * self.keep[:, :, None]
        mean, precision = self.leak_prior(own.leak)
        cross = gram[..., :-1, [-1, 0]]
        a = gram[..., -1, -1] + precision
        b = gram[..., -1, 0]
        d = gram[..., 0, 0] + 1 / own.level
        determinant = a * d - b * b
        inverse = np.stack([np.stack([d, -b], -1), np.stack([-b, a], -1)], -1)
        linear = np.stack([c[..., -1] + precision * mean, c[..., 0]], axis=-1)
        return cross, inverse / determinant[..., None, None], linear

    def _level(self, information: Array, level: Array, own: Own) -> float:
        """Variance of the shutters' levels, from how the shutters of one slit differ.

        Contrasts alone (restricted likelihood): what they have in common is the slit's scale.
        """
        told = self.keep & (information > 0) & (self.keep.sum(axis=1) > 1)[:, None]
        if not told.any():
            return own.level
        known = np.where(told, information, 1.0)
        level = np.where(told, level / known, 0.0)
        v = np.where(told, 1 / (1 / known + own.level), 0.0)
        total = np.maximum(v.sum(axis=1, keepdims=True), 1e-30)
        contrast = v * (level - (v * level).sum(axis=1, keepdims=True) / total)
        found = likely_variance(
            np.square(own.level * contrast)[told][:, None],
            (own.level * (v - v * v / total))[told][:, None],
            np.array([own.level]),
            np.array([EXPECTED_LEVEL**2]),
        )
        return float(found[0])

    def _leak(self, square: Array, rest: Array, own: Own) -> tuple[float, float]:
        """Mean and scatter of the share of a source's light in the shutter beside it."""
        # Sources so faint that their leak cannot be measured say nothing of it, and do no harm.
        told = (self.beside == 1) & (square > 1 / np.square(EXPECTED_LEAK[1]))
        if told.sum() < 4:
            return own.leak
        # Medians: large sources reach far, and must not widen what is allowed to all others.
        found = rest[told] / square[told]
        centre = max(float(np.median(found)), 0.0)
        scatter = 1.4826 * float(np.median(np.abs(found - centre)))
        return centre, float(np.clip(scatter, 1e-3, 0.02))


def _leak_prior(beside: NDArray[np.int64], leak: tuple[float, float]) -> tuple[Array, Array]:
    share = np.where(beside == 0, 0.0, np.where(beside == 1, 1.0, _FAR))
    with np.errstate(divide="ignore"):
        return share * leak[0], np.where(share > 0, 1 / np.square(share * leak[1]), 1e12)
