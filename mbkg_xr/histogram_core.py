"""Median, spread and the Gaussian of the core, from a histogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from .histograms import histogram_quantiles
from .scores import mad_sigma

__all__ = ["OF_HISTOGRAM", "of_histogram"]

#: What `of_histogram` finds.
OF_HISTOGRAM = ("median", "mad_sigma", "gauss_mean", "gauss_sigma")

_CORE = 2.5  # of mad_sigma: what the Gaussian is fitted to
_FEWEST = 10  # values to fit a Gaussian to


def of_histogram(
    bins: NDArray[np.int64], counts: NDArray, edges: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """`OF_HISTOGRAM` of values, from the bins that hold some.

    Parameters
    ----------
    bins, counts
        Numbers of bins, increasing, and what they hold; 0 and ``len(edges)`` for what lies outside.
    edges
        Bin edges.
    """
    # No bin past the first and last that do, but one on either side.
    low, high = max(int(bins[0]) - 1, 1), min(int(bins[-1]) + 1, edges.size - 1)
    part = edges[low - 1 : high + 1]
    row = np.zeros(part.size + 1)
    row[np.clip(bins - low + 1, 0, part.size)] = counts
    median = float(histogram_quantiles(row[None], part, (0.5,))[0, 0])
    spread = mad_sigma(row, median, part)
    return median, spread, *_gaussian(row[1:-1], part, median, spread)


def _gaussian(
    counts: NDArray, edges: NDArray[np.float64], middle: float, spread: float
) -> tuple[float, float]:
    """Mean and sigma of a Gaussian that is cut off, by maximum likelihood.

    For a truncated Gaussian these make its mean and variance those of the sample (Cohen 1950, Ann.
    Math. Statist. 21, 557).
    """
    first = int(np.searchsorted(edges, middle - _CORE * spread, side="right")) - 1
    last = int(np.searchsorted(edges, middle + _CORE * spread, side="left"))
    first, last = max(first, 0), min(last, edges.size - 1)
    inside, centres = counts[first:last], 0.5 * (edges[first + 1 : last + 1] + edges[first:last])
    n = inside.sum()
    if n < _FEWEST or spread <= 0:
        return np.nan, np.nan
    mean = float(inside @ centres / n)
    variance = float(inside @ (centres - mean) ** 2 / n)
    mu, sigma = mean, np.sqrt(variance)
    for _ in range(200):
        a, b = (edges[first] - mu) / sigma, (edges[last] - mu) / sigma
        fa, fb = (np.exp(-0.5 * t * t) / np.sqrt(2 * np.pi) for t in (a, b))
        whole = ndtr(b) - ndtr(a)
        shift = (fa - fb) / whole
        shrunk = 1 + (a * fa - b * fb) / whole - shift**2
        step, before = mean - (mu + sigma * shift), sigma
        mu, sigma = mu + step, np.sqrt(variance / shrunk)
        if not np.isfinite(sigma) or sigma > 10 * spread:
            return np.nan, np.nan  # flatter than any Gaussian
        if abs(sigma - before) + abs(step) < 1e-7 * spread:
            return float(mu), float(sigma)
    return np.nan, np.nan
