"""What pixels say of the bar-shadow profile, with all that slits may differ by integrated out.

At wavelength bin b and row r a slit holds ``1 + h(r) . B_b + (a . P_b + l_z) g`` times what is
known of it: h the profile's departure from 1, a series in wavelength at each of some cubic
B-splines along the slit; a what its scale is wrong by and l what the level of the shutter is, which
go with the profile g as it is known so far. One slit says nothing
of h that its own scale might not say as well: with a and l integrated out (their priors are wide)
profile and scales are found as if they were solved for together.
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
    "N_NODES",
    "ORDER",
    "PLACES",
    "PROFILE_FIRST",
    "PROFILE_STEP",
    "SPACING",
    "ProfileSums",
    "opened",
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


@lru_cache(maxsize=1)
def splines() -> csr_array:
    """``(node, spline)``: cubic B-splines along the slit at the nodes."""
    knots = PROFILE_FIRST + SPACING * np.arange(-3, (N_NODES - 1) // 2 + 4)
    nodes = np.minimum(PROFILE_FIRST + PROFILE_STEP * np.arange(N_NODES), knots[-4])
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
        """
        size = PLACES.size * (ORDER + 1)
        out = cls(
            np.zeros((len(kinds), N_NODES)),
            np.zeros((len(kinds), size, size)),
            np.zeros((len(kinds), size)),
        )
        for index, n_shutters in enumerate(kinds):
            own = np.flatnonzero((kind == index) & weight.any(axis=(1, 2)))
            if own.size:
                w, d = weight[own], data[own] - weight[own]
                out.weight[index] = w.sum(axis=(0, 2))
                _add(out.gram[index], out.right[index], w, d, n_shutters, known[index], phase)
        return out

    def __add__(self, other: ProfileSums) -> ProfileSums:
        return ProfileSums(
            self.weight + other.weight, self.gram + other.gram, self.right + other.right
        )


def _add(
    gram: Array, right: Array, w: Array, d: Array, n_shutters: int, known: Array, phase: Array
) -> None:
    """Add slits of one kind to normal equations, what is each slit's own integrated out."""
    filled = np.flatnonzero(w.any(axis=(0, 2)))
    nodes = slice(filled[0], filled[-1] + 1)
    w, d, g = w[:, nodes], d[:, nodes], known[nodes]
    along = splines()[nodes].toarray()
    told = np.flatnonzero(along.any(axis=0))
    along = along[:, told]
    places = (PROFILE_FIRST + PROFILE_STEP * np.arange(N_NODES))[nodes]
    z = np.unique(opened(places, n_shutters), return_inverse=True)[1]
    shutter = np.eye(z.max() + 1)[z]
    k, n, m = ORDER + 1, len(_SCALE), shutter.shape[1]
    series: Array = legendre.legvander(phase, n - 1).astype(np.float64)

    # Series of the profile times that of the scale, and times the levels (P_0 is 1), node by node.
    pairs = (series[:, :k, None] * series[:, None, :n]).reshape(phase.size, -1)
    both = np.empty((len(w), len(along), k, n + m))
    both[..., :n] = ((w * g) @ pairs).reshape(*w.shape[:2], k, n)
    both[..., n:] = both[..., :1] * shutter[:, None, :]
    own = np.empty((len(w), n + m, n + m))
    square = w * (g * g)
    own[:, :n, :n] = np.einsum("sb,bk,bl->skl", square.sum(axis=1), series, series, optimize=True)
    own[:, n:, :n] = np.einsum("snk,nz->szk", square @ series, shutter)
    own[:, :n, n:] = np.swapaxes(own[:, n:, :n], 1, 2)
    own[:, n:, n:] = (square.sum(axis=2) @ shutter)[:, None, :] * np.eye(m)
    own += np.diag(1 / np.square([*_SCALE, *[_LEVEL] * m]))
    said = np.concatenate([(d * g).sum(axis=1) @ series, (d * g).sum(axis=2) @ shutter], axis=1)

    size = told.size * k
    squares = (w.sum(axis=0) @ pairs).reshape(len(along), k, n)[..., :k]
    left = (along[:, :, None, None] * squares[:, None]).reshape(len(along), -1)
    whole = (along.T @ left).reshape(told.size, told.size, k, k).transpose(1, 2, 0, 3)
    whole = whole.reshape(size, size)
    cross = csr_array(along.T) @ np.swapaxes(both, 0, 1).reshape(len(along), -1)
    cross = np.swapaxes(cross.reshape(told.size, len(w), k, n + m), 1, 2)
    root = np.linalg.inv(np.linalg.cholesky(own))
    shared = np.einsum("iksc,sdc->iksd", cross, root, optimize=True).reshape(size, -1)
    heard = (root @ said[..., None]).ravel()
    rows = (told[:, None] * k + np.arange(k)).ravel()
    gram[np.ix_(rows, rows)] += whole - shared @ shared.T
    right[rows] += (along.T @ (d.sum(axis=0) @ series[:, :k])).ravel() - shared @ heard
