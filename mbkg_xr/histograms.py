"""Medians and quantiles from binned counts, which add up over chunks in any order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels import kernel

__all__ = ["add_keys", "histogram_quantiles", "key_median", "n_keys"]

Array = NDArray[np.float64]

# The leading bits of a float32 as bins: 1/32 of a power of two wide, whatever the units.
_KEY_SHIFT = 18
n_keys = 1 << (32 - _KEY_SHIFT)


def histogram_quantiles(histogram: NDArray, edges: Array, quantiles: tuple[float, ...]) -> Array:
    """Quantiles of binned values, linear within a bin.

    Parameters
    ----------
    histogram
        ``(row, len(edges) + 1)`` counts, with underflow first and overflow last.
    edges
        Bin edges.
    quantiles
        Fractions between 0 and 1.

    Returns
    -------
    numpy.ndarray
        ``(row, quantile)``; NaN for rows without counts, the outer edges for what lies past them.

    Examples
    --------
    >>> histogram_quantiles(np.array([[0, 2, 2, 0]]), np.array([0.0, 1.0, 2.0]), (0.5,)).tolist()
    [[1.0]]
    """
    outer = np.concatenate([edges[:1], edges, edges[-1:]])
    out = np.full((histogram.shape[0], len(quantiles)), np.nan)
    for row, counts in enumerate(histogram):
        cumulative = np.concatenate([[0], np.cumsum(counts)])
        if cumulative[-1]:
            out[row] = np.interp(np.array(quantiles) * cumulative[-1], cumulative, outer)
    return out


@kernel(inline="always")
def add_keys(bits, counts):  # pragma: no cover - compiled
    """Count one float32, given its bits, in its bin; the order of bins is that of the floats."""
    b = np.uint32(bits)
    if b >> np.uint32(31):
        key = ~b
    else:
        key = b | np.uint32(0x80000000)
    counts[key >> np.uint32(_KEY_SHIFT)] += 1


def key_median(counts: NDArray[np.int64]) -> Array:
    """Median of each row of counts made by `add_keys`, linear within a bin: exact to 3 %."""
    edges = _key_values(np.arange(counts.shape[1] + 1, dtype=np.int64))
    cumulative = np.cumsum(counts, axis=1)
    half = 0.5 * cumulative[:, -1]
    index = np.argmax(cumulative >= half[:, None], axis=1)
    row = np.arange(counts.shape[0])
    inside = counts[row, index]
    below = cumulative[row, index] - inside
    return edges[index] + (edges[index + 1] - edges[index]) * (half - below) / inside


def _key_values(keys: NDArray[np.int64]) -> Array:
    """The float at the lower edge of each bin; zero where the bits are of no number."""
    full = np.minimum(keys << _KEY_SHIFT, 0xFFFFFFFF).astype(np.uint32)
    bits = np.where(full & np.uint32(0x80000000), full & np.uint32(0x7FFFFFFF), ~full)
    with np.errstate(invalid="ignore"):
        values = bits.astype(np.uint32).view(np.float32).astype(np.float64)
    return np.nan_to_num(values)
