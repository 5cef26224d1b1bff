"""Compiled algebra of the slits' mixed model: thousands of matrices of a few rows each.

Numpy would spend its time between them. What they mean is said in `mbkg_xr.hierarchy` and
`mbkg_xr.leaks`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels import kernel

__all__ = [
    "add_on_places",
    "add_up_bins",
    "integrate_own",
    "inverses",
    "least_scores",
    "middles_of",
    "own_parts",
    "shortest_half",
    "shutter_parts",
    "shutter_rests",
    "slit_parts",
    "solve_each",
    "spread_of_places",
]


def inverses(matrices: NDArray) -> NDArray:
    """Inverses of small, positive definite matrices ``(..., k, k)``.

    Examples
    --------
    >>> inverses(np.array([[[2.0, 1.0], [1.0, 1.0]]])).tolist()
    [[[1.0, -1.0], [-1.0, 2.0]]]
    """
    out = np.ascontiguousarray(matrices, dtype=np.float64).copy()
    _invert_all(out.reshape(-1, *out.shape[-2:]))
    return out


@kernel
def _invert_all(matrices):  # pragma: no cover - compiled
    for i in range(matrices.shape[0]):
        _invert(matrices[i])


@kernel
def _invert(a):  # pragma: no cover - compiled
    """In place, by sweeps: of a positive definite matrix no pivot is small."""
    k = a.shape[0]
    for i in range(k):
        pivot = 1 / a[i, i]
        for j in range(k):
            if j == i:
                continue
            part = a[j, i] * pivot
            for m in range(k):
                if m != i:
                    a[j, m] -= part * a[i, m]
            a[j, i] = -part
        for m in range(k):
            a[i, m] *= pivot
        a[i, i] = pivot


@kernel
def integrate_own(data, right, tau, own, seen, said):  # pragma: no cover - compiled
    """Information on the means, each slit's own part of variance `tau` integrated out; `own`
    becomes the variances of that part.

    ``D - D (D + T)^-1 D = T (D + T)^-1 D``, without a difference of large numbers.
    """
    k = tau.size
    inverse = np.empty((k, k))
    for s in range(data.shape[0]):
        inverse[:] = data[s]
        for i in range(k):
            inverse[i, i] += 1 / tau[i]
        _invert(inverse)
        for i in range(k):
            own[s, i] = inverse[i, i]
            heard = 0.0
            for m in range(k):
                heard += inverse[i, m] * right[s, m]
            said[s, i] = heard / tau[i]
            for j in range(k):
                total = 0.0
                for m in range(k):
                    total += inverse[i, m] * data[s, m, j]
                seen[s, i, j] = total / tau[i]


@kernel
def own_parts(
    seen, said, tau, own, slitlet, exposure, common, drift, spread, wide, alone, variance
):  # pragma: no cover - compiled
    """Each slit's own part, and the variances of its coefficients, from `integrate_own`."""
    k = tau.size
    of_mean, moved = np.empty((k, k)), np.empty(k)
    for s in range(seen.shape[0]):
        c, e = slitlet[s], exposure[s]
        for i in range(k):
            for j in range(k):
                of_mean[i, j] = spread[c, i, j] + wide[e, i, j]
        for i in range(k):
            left, more = said[s, i], 0.0
            for j in range(k):
                left -= seen[s, i, j] * (common[c, j] + drift[e, j])
            for j in range(k):
                # Of a change of the mean, what goes over to the slit's own part.
                moved[j] = 0.0
                for m in range(k):
                    moved[j] += seen[s, i, m] * of_mean[m, j]
                more += moved[j] * seen[s, i, j]
            alone[s, i] = tau[i] * left
            variance[s, i] = own[s, i] + tau[i] * tau[i] * more


@kernel
def solve_each(data, right, mean, tau, scale):  # pragma: no cover - compiled
    """The coefficients of each slit, those of variance `tau` about a mean."""
    k = tau.size
    inverse = np.empty((k, k))
    for s in range(data.shape[0]):
        inverse[:] = data[s]
        for i in range(k):
            inverse[i, i] += 1 / tau[i]
        _invert(inverse)
        for i in range(k):
            scale[s, i] = 0.0
            for j in range(k):
                scale[s, i] += inverse[i, j] * (right[s, j] + mean[s, j] / tau[j])


@kernel
def add_on_places(place, left, gram):  # pragma: no cover - compiled
    """Information on the coefficients of the places, from that on each slitlet."""
    k = left.shape[1]
    for c in range(place.shape[0]):
        for p in range(place.shape[1]):
            if place[c, p] == 0:
                continue
            for q in range(place.shape[1]):
                w = place[c, p] * place[c, q]
                if w != 0:
                    for i in range(k):
                        for j in range(k):
                            gram[p * k + i, q * k + j] += w * left[c, i, j]


@kernel
def spread_of_places(place, covariance, spread):  # pragma: no cover - compiled
    """Covariance of each slitlet's level, from that of the coefficients of the places."""
    k = spread.shape[1]
    for c in range(place.shape[0]):
        for p in range(place.shape[1]):
            if place[c, p] == 0:
                continue
            for q in range(place.shape[1]):
                w = place[c, p] * place[c, q]
                if w != 0:
                    for i in range(k):
                        for j in range(k):
                            spread[c, i, j] += w * covariance[p * k + i, q * k + j]


# ------------------------------------------------------------------------------------------------
# Shutters


@kernel
def add_up_bins(weight, excess, basis, light, gram, linear):  # pragma: no cover - compiled
    """Gram matrix of the basis and the light in each shutter, and the excess with each."""
    k = basis.shape[1]
    x = np.empty(k + 1)
    for s in range(weight.shape[0]):
        for z in range(weight.shape[1]):
            for b in range(weight.shape[2]):
                w = weight[s, z, b]
                if not w > 0:
                    continue
                x[:k], x[k] = basis[b], light[s, b]
                for i in range(k + 1):
                    linear[s, z, i] += excess[s, z, b] * x[i]
                    for j in range(i + 1):
                        gram[s, z, i, j] += w * x[i] * x[j]
            for i in range(k + 1):
                for j in range(i):
                    gram[s, z, j, i] = gram[s, z, i, j]


@kernel
def shutter_parts(
    gram, linear, keep, mean, precision, level, data, right
):  # pragma: no cover - compiled
    """Information of each shutter in use on the basis, its leak and level integrated out."""
    for s in range(keep.shape[0]):
        for z in range(keep.shape[1]):
            if keep[s, z]:
                _add_part(
                    gram[s, z], linear[s, z], mean[s, z], precision[s, z], level,
                    data[s, z], right[s, z],
                )  # fmt: skip


@kernel
def slit_parts(
    gram, linear, keep, mean, precision, level, data, right
):  # pragma: no cover - compiled
    """The same of all shutters of each slit together."""
    for s in range(keep.shape[0]):
        for z in range(keep.shape[1]):
            if keep[s, z]:
                _add_part(
                    gram[s, z], linear[s, z], mean[s, z], precision[s, z], level,
                    data[s], right[s],
                )  # fmt: skip


@kernel
def _add_part(g, c, mean, precision, level, data, right):  # pragma: no cover - compiled
    k = right.size
    a, b, d = g[k, k] + precision, g[k, 0], g[0, 0] + 1 / level
    determinant = a * d - b * b
    stray, own = c[k] + precision * mean, c[0]
    for i in range(k):
        # The product of the i-th function with leak and level, times the inverse.
        of_leak = (d * g[i, k] - b * g[i, 0]) / determinant
        of_level = (a * g[i, 0] - b * g[i, k]) / determinant
        for j in range(k):
            data[i, j] += g[i, j] - of_leak * g[j, k] - of_level * g[j, 0]
        right[i] += c[i] - of_leak * stray - of_level * own


@kernel
def shutter_rests(gram, linear, keep, scale, mean, precision, out):  # pragma: no cover - compiled
    """What scales leave of each shutter in use, for levels and leaks."""
    k = scale.shape[1]
    for s in range(keep.shape[0]):
        for z in range(keep.shape[1]):
            if not keep[s, z]:
                continue
            g = gram[s, z]
            own, stray = linear[s, z, 0], linear[s, z, k]
            for i in range(k):
                own -= g[0, i] * scale[s, i]
                stray -= g[k, i] * scale[s, i]
            told = g[k, 0] / (g[k, k] + precision[s, z])
            out[s, z, 0] = g[0, 0] - told * g[k, 0]
            out[s, z, 1] = own - told * (stray + precision[s, z] * mean[s, z])
            out[s, z, 2], out[s, z, 3] = g[k, k], stray


# ------------------------------------------------------------------------------------------------
# Slits against all others


@kernel
def shortest_half(ordered):  # pragma: no cover - compiled
    """Middle and half width of the shortest interval that holds half of some rising values."""
    half = (ordered.size + 1) // 2
    first, width = 0, np.inf
    for i in range(ordered.size - half + 1):
        if ordered[i + half - 1] - ordered[i] < width:
            first, width = i, ordered[i + half - 1] - ordered[i]
    middle = 0.5 * (ordered[first + (half - 1) // 2] + ordered[first + half // 2])
    return middle, width / 2


@kernel
def middles_of(ordered, group, least, out):  # pragma: no cover - compiled
    """The middles of the groups of at least so many of some rising values; not of group 0."""
    end = np.zeros(out.size + 1, dtype=np.int64)
    for g in group:
        end[g + 1] += 1
    end = np.cumsum(end)
    start = end[:-1].copy()
    sorted_by = np.empty(ordered.size)
    for i in range(ordered.size):
        sorted_by[start[group[i]]] = ordered[i]
        start[group[i]] += 1
    for g in range(1, out.size):
        if end[g + 1] - end[g] >= least:
            out[g] = shortest_half(sorted_by[end[g] : end[g + 1]])[0]


@kernel
def least_scores(value, variance, middle, width, away, score):  # pragma: no cover - compiled
    """Of the choices of each slit the least departure in units of its error, and that error."""
    for s in range(value.shape[0]):
        score[s] = np.inf
        for c in range(value.shape[1]):
            off = value[s, c] - middle[s]
            z = abs(off) / np.sqrt(width + variance[s, c])
            if z < score[s]:
                away[s], score[s] = off, z
