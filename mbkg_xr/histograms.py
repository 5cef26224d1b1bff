"""Quantiles from binned counts, which add up over chunks in any order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["histogram_quantiles"]

Array = NDArray[np.float64]


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
