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

from .kernels import kernel

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
        filled = np.asarray(weight.any(axis=2))
        for index, n_shutters in enumerate(kinds):
            slits = np.flatnonzero((kind == index) & filled.any(axis=1))
            if not slits.size:
                continue
            slit, node = np.nonzero(filled[slits])
            at = slits[slit]
            w = weight[at, node]
            d = data[at, node] - w
            factors = [(known[index][node], len(_SCALE))]
            times, which = _of_slit(node, n_shutters)
            lit = (~np.isnan(source) & light.any(axis=1))[at]
            if lit.any():
                factors.append((light[at], 2))
                of_light, of_which = _spilt(profile_nodes()[node] - source[at], lit)
                times, which = np.concatenate([times, of_light], axis=1), which + of_which
            out._add(index, slit, node, w, d, factors, times, np.array(which), series)
        return out

    def _add(
        self,
        index: int,
        slit: NDArray[np.int64],
        node: NDArray[np.int64],
        w: Array,
        d: Array,
        factors: list[tuple[Array, int]],
        times: Array,
        which: NDArray[np.int64],
        series: Array,
    ) -> None:
        """Add slits of one kind, row by row, what may be their own integrated out.

        `factors` ``(row, bin)``, each times the first orders of the series, make functions, of
        which the columns of a slit are ``times (row, column)`` the functions ``which (column,)``.
        """
        k, n, many = ORDER + 1, which.size, int(slit[-1]) + 1
        at_nodes, heard_at = np.zeros((N_NODES, k * k)), np.zeros((N_NODES, k))
        np.add.at(at_nodes, node, _summed(w, series, k, k).reshape(-1, k * k))
        np.add.at(heard_at, node, d @ series[:, :k])
        between, beside, linear = _products(w, d, factors, series)
        filled = np.flatnonzero(at_nodes[:, 0])
        nodes = slice(filled[0], filled[-1] + 1)
        along = splines()[nodes].T
        told = np.unique(along.nonzero()[0])
        along = along[told]
        # The prior of each column is a normal of 1.
        gram, heard = np.zeros((many, n, n)) + np.eye(n), np.zeros((many, n))
        cross = np.zeros((many, PLACES.size, k, n))
        first, each = splines().indices[::4], splines().data.reshape(-1, 4)
        _add_up_columns(
            slit, node, first, each, times, which, between, beside, linear, gram, heard, cross
        )
        rows = (told[:, None] * k + np.arange(k)).ravel()
        root = np.linalg.inv(np.linalg.cholesky(gram))
        taken = cross.reshape(many, -1, n)[:, rows] @ np.swapaxes(root, 1, 2)
        taken = np.ascontiguousarray(np.swapaxes(taken, 0, 1)).reshape(rows.size, -1)
        left = along.toarray().T[:, :, None] * at_nodes[nodes, None]
        whole = (along @ left.reshape(len(left), -1)).reshape(told.size, told.size, k, k)
        whole = whole.transpose(1, 2, 0, 3).reshape(rows.size, -1)
        self.weight[index] += at_nodes[:, 0]
        self.gram[index][np.ix_(rows, rows)] += whole - taken @ taken.T
        self.right[index][rows] += (along @ heard_at[nodes]).ravel()
        self.right[index][rows] -= taken @ (root @ heard[..., None]).ravel()

    def __add__(self, other: ProfileSums) -> ProfileSums:
        return ProfileSums(
            self.weight + other.weight, self.gram + other.gram, self.right + other.right
        )


def _of_slit(node: NDArray[np.int64], n_shutters: int) -> tuple[Array, list[int]]:
    """``(row, column)``, a slit's scale and the levels of its shutters, in units of what is
    expected of them; and the order in the series of each.
    """
    z = np.unique(opened(profile_nodes(), n_shutters), return_inverse=True)[1]
    levels = _LEVEL * np.eye(z.max() + 1)[z]
    scales = np.broadcast_to(_SCALE, (N_NODES, len(_SCALE)))
    columns = np.concatenate([scales, levels], axis=1)
    return columns[node], [*range(len(_SCALE)), *[0] * levels.shape[1]]


def _spilt(away: Array, lit: NDArray[np.bool_]) -> tuple[Array, list[int]]:
    """The same of a source's near light, with a slope in wavelength, and far light, either side;
    `away` is how far off the source each row is.
    """
    sides = np.stack([away < -0.5, away > 0.5], axis=1) & lit[:, None]
    fading = np.where(lit, np.exp((0.5 - np.abs(np.where(lit, away, 0.0))) / FADES), 0.0)
    near = SPILT * fading[:, None] * sides
    level, slope = len(_SCALE), len(_SCALE) + 1
    columns = np.concatenate([near, near, _FAR * sides], axis=1)
    return columns, [level, level, slope, slope, level, level]


def _summed(values: Array, series: Array, n: int, m: int) -> Array:
    """``(row, n, m)``: sums over the bins with the products of the first orders of the series."""
    both = series[:, :n, None] * series[:, None, :m]
    return (values @ both.reshape(-1, n * m)).reshape(-1, n, m)


def _products(
    w: Array, d: Array, factors: list[tuple[Array, int]], series: Array
) -> tuple[Array, Array, Array]:
    """Sums over the bins of the functions' products with each other, with the series of the
    profile, and with the departures.
    """
    between = [
        np.concatenate([_summed(w * f * g, series, n, m) for g, m in factors], axis=2)
        for f, n in factors
    ]
    beside = [_summed(w * f, series, n, ORDER + 1) for f, n in factors]
    linear = [(d * f) @ series[:, :n] for f, n in factors]
    return np.concatenate(between, 1), np.concatenate(beside, 1), np.concatenate(linear, 1)


@kernel
def _add_up_columns(
    slit, node, first, each, times, which, between, beside, linear, gram, heard, cross
):  # pragma: no cover - compiled
    """From sums at each row to those of each slit's columns, and with the splines."""
    for row in range(slit.size):
        s, r = slit[row], node[row]
        for c in range(which.size):
            x, i = times[row, c], which[c]
            if x == 0:
                continue
            heard[s, c] += x * linear[row, i]
            for m in range(which.size):
                gram[s, c, m] += x * times[row, m] * between[row, i, which[m]]
            for a in range(each.shape[1]):
                for p in range(beside.shape[2]):
                    cross[s, first[r] + a, p, c] += each[r, a] * x * beside[row, i, p]


def profile_nodes() -> Array:
    """``(node,)``: yrel of the nodes of a profile."""
    return PROFILE_FIRST + PROFILE_STEP * np.arange(N_NODES, dtype=np.float64)
