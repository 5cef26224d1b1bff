"""Slits as members of populations: slitlets, exposures, places on the MSA."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .kernels import kernel
from .tables import zeros

__all__ = ["quadratic", "ranks", "source_light", "sum_by"]

Array = NDArray[np.float64]

_BRIGHT_ORDER = 5


def ranks(slits: xr.Dataset, names: Sequence[str]) -> NDArray[np.int64]:
    keys = list(zip(*(slits[n].values.tolist() for n in names), strict=True))
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([rank[key] for key in keys], dtype=np.int64)


def sum_by(index: NDArray[np.int64], values: Array, n: int) -> Array:
    """``(n, ...)``: sums of the members of each population."""
    out = np.zeros((n, *values.shape[1:]))
    _add_up(index, values.reshape(index.size, -1), out.reshape(n, -1))
    return out


@kernel
def _add_up(index, values, out):  # pragma: no cover - compiled
    for i in range(index.size):
        for k in range(values.shape[1]):
            out[index[i], k] += values[i, k]


def source_light(weight: Array, excess: Array, phase: Array) -> Array:
    """``(slit, bin)``: a source's light, as a share of the master, smooth and robust."""
    basis: Array = legendre.legvander(phase, _BRIGHT_ORDER).astype(np.float64)
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
    lit = np.asarray(weight.any(axis=1))[:, None]
    return np.where(lit, np.maximum(light, 0.0), 0.0)


def quadratic(slits: xr.Dataset) -> Array:
    """``(slit, 24)``: a quadratic over each MSA quadrant; zero for slits without a place."""
    quadrant, row = slits["quadrant"].values, slits["shutter_row"].values
    column = slits["shutter_column"].values
    r, c = (row - 183) / 182, (column - 86) / 85
    terms = np.stack([np.ones_like(r), r, c, r * r, r * c, c * c], axis=1)
    placed = (quadrant >= 1) & (quadrant <= 4) & (row > 0) & (column > 0)
    out = zeros((r.size, 4, 6))
    out[placed, quadrant[placed] - 1] = terms[placed]
    return out.reshape(r.size, 24)
