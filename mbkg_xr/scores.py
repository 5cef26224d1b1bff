"""Statistics of normalised residuals, from sums that add."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from .histograms import histogram_quantiles

__all__ = ["STACK_CLIP", "STATISTICS", "Z_EDGES", "Sums", "mad_sigma"]

#: The columns of `compare`, in order.
STATISTICS = (
    "n",
    "median",
    "std",
    "mad_sigma",
    "skew",
    "frac_3sigma",
    "frac_5sigma",
    "frac_under",
    "frac_over",
    "noise_gain",
    "stack",
    "stack_nod",
)

Z_EDGES = np.linspace(-40, 40, 16001)
_GAIN_EDGES = np.linspace(0.995, 4.0, 6011)
STACK_CLIP = 5.0


@dataclass
class Sums:
    """Sums of one set of residuals; all of them add."""

    powers: NDArray[np.float64]  # n, sum z, z^2, z^3
    histogram: NDArray[np.int64]  # of z
    gain: NDArray[np.int64]  # of the error's growth
    signs: NDArray[np.int64]  # z > 0, z < 0, |z| > 3, |z| > 5
    bins: NDArray[np.float64]  # n and sum z by nod and wavelength bin, (2, nod, bin)
    pixels: int  # usable residuals of this set, in common with the others or not

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @classmethod
    def of(
        cls, z: NDArray, gain: NDArray, bins: NDArray[np.int64], shape: tuple[int, int], pixels: int
    ) -> Sums:
        z = z.astype(np.float64)
        # Far outliers would turn sums of cubes into noise; std and skew are of |z| < 40.
        near = z[np.abs(z) < Z_EDGES[-1]]
        # A stack asks whether the sky was right: one cosmic ray must not answer.
        kept = np.abs(z) <= STACK_CLIP
        b, size = bins[kept], shape[0] * shape[1]
        stacks = [np.bincount(b, minlength=size), np.bincount(b, z[kept], size)]
        return cls(
            np.array([near.size, near.sum(), (near**2).sum(), (near**3).sum()]),
            _counts(z, Z_EDGES),
            _counts(gain, _GAIN_EDGES),
            np.array([(z > 0).sum(), (z < 0).sum(), (np.abs(z) > 3).sum(), (np.abs(z) > 5).sum()]),
            np.array(stacks, dtype=np.float64).reshape(2, *shape),
            pixels,
        )

    def statistics(self) -> dict[str, float]:
        n = int(self.histogram.sum())
        if n == 0:
            return dict.fromkeys(STATISTICS, float("nan")) | {"n": 0}
        middle = histogram_quantiles(self.histogram[None], Z_EDGES, (0.5,))[0, 0]
        m, s1, s2, s3 = self.powers
        mean, var = s1 / m, s2 / m - (s1 / m) ** 2
        third = s3 / m - 3 * mean * s2 / m + 2 * mean**3
        gain = histogram_quantiles(self.gain[None], _GAIN_EDGES, (0.5,))[0, 0]
        positive, negative, three, five = (self.signs / n).tolist()
        return {
            "n": n,
            "median": float(middle),
            "std": float(np.sqrt(var)),
            "mad_sigma": mad_sigma(self.histogram, float(middle), Z_EDGES),
            "skew": float(third / var**1.5) if var > 0 else float("nan"),
            "frac_3sigma": three,
            "frac_5sigma": five,
            "frac_under": positive,
            "frac_over": negative,
            "noise_gain": float(gain),
            "stack": _stack(*self.bins.sum(axis=1)),
            "stack_nod": _stack(*self.bins),
        }


def _stack(n: NDArray, total: NDArray) -> float:
    """Root mean square of sum(z) / sqrt(n) over bins that hold pixels."""
    filled = n > 0
    return float(np.sqrt(np.mean(total[filled] ** 2 / n[filled])))


def _counts(values: NDArray, edges: NDArray) -> NDArray[np.int64]:
    # Of even bins, found by arithmetic and not by searching.
    inner, _ = np.histogram(values, edges.size - 1, (edges[0], edges[-1]))
    return np.concatenate([[np.sum(values < edges[0])], inner, [np.sum(values > edges[-1])]])


def mad_sigma(histogram: NDArray, median: float, edges: NDArray) -> float:
    """1.4826 times the median distance from the median, from a histogram's bins.

    Parameters
    ----------
    histogram
        ``(len(edges) + 1,)`` counts, with underflow first and overflow last.
    median
        As from `histogram_quantiles`.
    edges
        Bin edges.
    """
    outer = np.concatenate([edges[:1], 0.5 * (edges[1:] + edges[:-1]), edges[-1:]])
    distance = np.abs(outer - median)
    order = np.argsort(distance, kind="stable")
    cumulative = np.cumsum(histogram[order])
    return float(1.4826 * np.interp(0.5 * cumulative[-1], cumulative, distance[order]))
