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
    "own_parts",
    "shutter_parts",
    "shutter_rests",
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
    """Information on the means, each slit's own part of variance `tau` integrated out."""
    k = tau.size
    pull = np.empty((k, k))
    for s in range(data.shape[0]):
        own[s] = data[s]
        for i in range(k):
            own[s, i, i] += 1 / tau[i]
        _invert(own[s])
        for i in range(k):
            said[s, i] = right[s, i]
            for j in range(k):
                pull[i, j] = 0.0
                for m in range(k):
                    pull[i, j] += data[s, i, m] * own[s, m, j]
                said[s, i] -= pull[i, j] * right[s, j]
        for i in range(k):
            for j in range(k):
                seen[s, i, j] = data[s, i, j]
                for m in range(k):
                    seen[s, i, j] -= pull[i, m] * data[s, m, j]


@kernel
def own_parts(
    data, right, own, slitlet, exposure, common, drift, spread, wide, alone, variance
):  # pragma: no cover - compiled
    """Each slit's own part, and the variances of its coefficients."""
    k = right.shape[1]
    kept, left = np.empty((k, k)), np.empty(k)
    for s in range(data.shape[0]):
        c, e = slitlet[s], exposure[s]
        for i in range(k):
            left[i] = right[s, i]
            for j in range(k):
                left[i] -= data[s, i, j] * (common[c, j] + drift[e, j])
                # Of a change of the mean, what goes over to the slit's own part.
                kept[i, j] = 0.0
                for m in range(k):
                    kept[i, j] += data[s, i, m] * own[s, m, j]
        for i in range(k):
            alone[s, i], variance[s, i] = 0.0, own[s, i, i]
            for j in range(k):
                alone[s, i] += own[s, i, j] * left[j]
                for m in range(k):
                    variance[s, i] += kept[j, i] * (spread[c, j, m] + wide[e, j, m]) * kept[m, i]


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
    k = right.shape[2]
    for s in range(keep.shape[0]):
        for z in range(keep.shape[1]):
            if not keep[s, z]:
                continue
            g, c = gram[s, z], linear[s, z]
            a, b, d = g[k, k] + precision[s, z], g[k, 0], g[0, 0] + 1 / level
            determinant = a * d - b * b
            stray, own = c[k] + precision[s, z] * mean[s, z], c[0]
            for i in range(k):
                # The product of the i-th function with leak and level, times the inverse.
                of_leak = (d * g[i, k] - b * g[i, 0]) / determinant
                of_level = (a * g[i, 0] - b * g[i, k]) / determinant
                for j in range(k):
                    data[s, z, i, j] = g[i, j] - of_leak * g[j, k] - of_level * g[j, 0]
                right[s, z, i] = c[i] - of_leak * stray - of_level * own


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
