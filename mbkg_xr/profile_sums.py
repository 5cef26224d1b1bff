"""What pixels say of the bar-shadow profile, with all that slits may differ by integrated out.

At wavelength bin b and row r a slit holds ``1 + h(r) . B_b + (a . P_b + l_z) g`` times what is
known of it: h the profile's departure from 1, a series in wavelength at each of some cubic
B-splines along the slit; a what its scale is wrong by and l what the level of the shutter is, which
go with the profile g as it is known so far. Beside a source comes what it spills past the edges of
its shutter: near light, fading over a third of a pitch, and far light. One slit says nothing
of h that its own scale might not say as well: with all of these integrated out (their priors are
wide) profile and scales are found as if they were solved for together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.sparse import csr_array

__all__ = [
    "FADES",
    "N_NODES",
    "ORDER",
    "PLACES",
    "PROFILE_FIRST",
    "PROFILE_STEP",
    "SPACING",
    "SPILT",
    "ProfileSums",
    "opened",
    "profile_nodes",
    "splines",
]

Array = NDArray[np.float64]

#: Nodes of the profile in yrel: every fortieth of a pitch over five shutters and their edges.
PROFILE_FIRST, PROFILE_STEP, N_NODES = -3.0, 0.025, 241
#: Degree of the series in wavelength, at most the scale's; distance of the B-splines, and where
#: each is highest.
ORDER, SPACING = 2, 0.05
PLACES = PROFILE_FIRST + SPACING * np.arange(-1, (N_NODES - 1) // 2 + 2)
# Standard deviations of what may be wrong with a slit's scale, by order, and with a shutter's level
# at the time the profile is found.
_SCALE, _LEVEL = (0.05, 0.02, 0.02, 0.02), 0.01
#: Of a source's light, what may reach past the edges of its shutter, over how many pitches that
#: fades, and what may be far light, in its shutter's neighbours and beyond.
SPILT, FADES, _FAR = 0.02, 0.35, 0.01


@lru_cache(maxsize=1)
def splines() -> csr_array:
    """``(node, spline)``: cubic B-splines along the slit at the nodes."""
    knots = PROFILE_FIRST + SPACING * np.arange(-3, (N_NODES - 1) // 2 + 4)
    nodes = np.minimum(profile_nodes(), knots[-4])
    return csr_array(BSpline.design_matrix(nodes, knots, 3))


def opened(r: NDArray, n_shutters: int) -> NDArray[np.int64]:
    """The open shutter of a slitlet of so many that is nearest to each of `r`."""
    low, high = -((n_shutters - 1) // 2), n_shutters // 2
    return np.clip(np.rint(r), low, high).astype(np.int64)


@dataclass(frozen=True)
class ProfileSums:
    """Normal equations of the profiles of all kinds of slitlets: they add.

    Attributes
    ----------
    weight
        ``(kind, node)``, sum m^2 / v over the pixels, m the expected flux but for the profile.
    gram, right
        ``(kind, spline x order, spline x order)`` and ``(kind, spline x order)``, of departures
        from 1.
    """

    weight: Array
    gram: Array
    right: Array

    @classmethod
    def of(
        cls,
        weight: Array,
        data: Array,
        kind: NDArray[np.int64],
        kinds: tuple[int, ...],
        known: Array,
        phase: Array,
        source: Array,
        light: Array,
    ) -> ProfileSums:
        """From sums by slit.

        Parameters
        ----------
        weight, data
            ``(slit, node, bin)``: sum m^2 / v and sum m y / v.
        kind, kinds
            Index among `kinds` of each slit, -1 for none, and their numbers of open shutters.
        known
            ``(kind, node, bin)``, the profiles as they are known so far.
        phase
            ``(bin,)``, -1 to 1 over the fitted range.
        source, light
            ``(slit,)``, yrel, NaN for none, and ``(slit, bin)``, its light as a share of the sky.
        """
        size = PLACES.size * (ORDER + 1)
        out = cls(
            np.zeros((len(kinds), N_NODES)),
            np.zeros((len(kinds), size, size)),
            np.zeros((len(kinds), size)),
        )
        series: Array = legendre.legvander(phase, len(_SCALE) - 1).astype(np.float64)
        for index, n_shutters in enumerate(kinds):
            slits = np.flatnonzero((kind == index) & weight.any(axis=(1, 2)))
            if slits.size:
                w, d = weight[slits], data[slits] - weight[slits]
                out._add(
                    index,
                    w,
                    d,
                    _own_columns(known[index], series, n_shutters),
                    [_spilt(source[s], light[s], series) for s in slits],
                    series[:, : ORDER + 1],
                )
        return out

    def _add(
        self,
        index: int,
        w: Array,
        d: Array,
        own: Array,
        spilt: list[Array],
        series: Array,
    ) -> None:
        """Add slits of one kind, whose own columns ``(node, bin, column)`` are integrated out."""
        filled = np.flatnonzero(w.any(axis=(0, 2)))
        nodes = slice(filled[0], filled[-1] + 1)
        along = splines()[nodes].T
        told = np.unique(along.nonzero()[0])
        along = along[told]
        k = series.shape[1]
        size = told.size * k
        shared, heard = [], []
        for weight, data, of_source in zip(w[:, nodes], d[:, nodes], spilt, strict=True):
            columns = np.concatenate([own[nodes], of_source[nodes]], axis=2)
            weighted = weight[..., None] * columns
            flat = columns.reshape(-1, columns.shape[2])
            gram = weighted.reshape(flat.shape).T @ flat + np.eye(flat.shape[1])
            cross = along @ (np.swapaxes(weighted, 1, 2) @ series).reshape(len(weight), -1)
            cross = np.swapaxes(cross.reshape(told.size, -1, k), 1, 2).reshape(size, -1)
            root = np.linalg.inv(np.linalg.cholesky(gram))
            shared.append(cross @ root.T)
            heard.append(root @ (flat.T @ data.ravel()))
        squares = w[:, nodes].sum(axis=0) @ (series[:, :, None] * series[:, None]).reshape(
            -1, k * k
        )
        dense = along.toarray()
        left = (dense.T[:, :, None] * squares[:, None]).reshape(dense.shape[1], -1)
        whole = (dense @ left).reshape(told.size, told.size, k, k).transpose(1, 2, 0, 3)
        taken = np.concatenate(shared, axis=1)
        rows = (told[:, None] * k + np.arange(k)).ravel()
        self.weight[index] += w.sum(axis=(0, 2))
        self.gram[index][np.ix_(rows, rows)] += whole.reshape(size, size) - taken @ taken.T
        self.right[index][rows] += (along @ (d[:, nodes].sum(axis=0) @ series)).ravel()
        self.right[index][rows] -= taken @ np.concatenate(heard)

    def __add__(self, other: ProfileSums) -> ProfileSums:
        return ProfileSums(
            self.weight + other.weight, self.gram + other.gram, self.right + other.right
        )


def _own_columns(known: Array, series: Array, n_shutters: int) -> Array:
    """``(node, bin, column)``, a slit's scale and the levels of its shutters, in units of what is
    expected of them: the prior of each is a normal of 1.
    """
    z = np.unique(opened(profile_nodes(), n_shutters), return_inverse=True)[1]
    levels = _LEVEL * np.eye(z.max() + 1)[z]
    columns = [
        np.broadcast_to(series * _SCALE, (N_NODES, *series.shape)),
        np.broadcast_to(levels[:, None], (N_NODES, series.shape[0], levels.shape[1])),
    ]
    return known[..., None] * np.concatenate(columns, axis=2)


def _spilt(source: float, light: Array, series: Array) -> Array:
    """The same of a source's near light, with a slope in wavelength, and far light, either side."""
    if np.isnan(source) or not light.any():
        return np.empty((N_NODES, light.size, 0))
    away = profile_nodes() - source
    sides = np.stack([away < -0.5, away > 0.5], axis=1)
    near = SPILT * np.exp((0.5 - np.abs(away)) / FADES)[:, None] * sides
    shapes = np.concatenate([near, near, _FAR * sides], axis=1)
    return shapes[:, None, :] * light[:, None] * np.repeat(series[:, [0, 1, 0]], 2, axis=1)


def profile_nodes() -> Array:
    """``(node,)``: yrel of the nodes of a profile."""
    return PROFILE_FIRST + PROFILE_STEP * np.arange(N_NODES, dtype=np.float64)
