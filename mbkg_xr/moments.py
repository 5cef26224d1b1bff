"""Pixels to moments: everything the fit needs from them, in one pass.

For every group of slits and every span n, with t the position in the span and w the weight,

    M_m = sum w t^m  (m = 0..6),    R_m = sum w y t^m  (m = 0..3),    Q = sum w y^2,

12 numbers. A cubic spline with knots on span edges is a cubic in t on each span, so these give
normal equations for any such knots, chi2, and fits without any one group, without the pixels
(normal equations of least squares, written in the truncated power basis of each span).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .groups import add_up, weighted
from .pass_kernel import READ_CLASSES, TAPERED, accumulate_pixels
from .sources import Parts, Source
from .spans import SpanGrid
from .terms import BIN_SPANS, Terms

__all__ = [
    "HISTOGRAM_EDGES",
    "N_MOMENTS",
    "REFERENCE_TIME",
    "PassState",
    "PassSums",
    "accumulate",
    "block_sums",
    "time_factors",
]

N_MOMENTS = 12
_Z_MAX, _Z_STEP = 20.0, 0.02
HISTOGRAM_EDGES = np.linspace(-_Z_MAX, _Z_MAX, round(2 * _Z_MAX / _Z_STEP) + 1)
#: Exposure time in s to which the photon noise gain refers.
REFERENCE_TIME = 1000.0


@dataclass(frozen=True)
class PassState:
    """What a pass over the pixels has to know: the present model, noise and clipping.

    Attributes
    ----------
    model
        ``(span, 4)``, powers of t of the expected pixel value.
    gain
        ``(span,)``, photon variance a unit of flux at `REFERENCE_TIME`; NaN while unknown (the
        variance is then error^2).
    floor
        ``(span,)``, mean read variance: that of all pixels, where data do not give it one by one.
    centre, cut
        ``(span,)``, pixels are used to about ``|z - centre| = cut``: from an eighth of it below to
        as much above (`mbkg_xr.pass_kernel.TAPER`), their weight falls from 1 to 0 (as Hampel's
        (1974) psi does), so that no pixel at the edge goes in and out for ever. Logarithms are
        cut sharply.
    rule
        `TAPERED` for that; with `HUBER` the weight is ``min(1, 1 / b)``, and with `BIWEIGHT`
        ``(1 - b^2)^2`` (Beaton & Tukey 1974) within ``b = |z - centre| / cut = 1``, 0 beyond.
    unit
        What z is measured in: the scatter over the error, where that is far from 1.
    usual
        ``(span,)``, pixels with a larger error do not count for the noise sums: a few hot ones
        would outweigh all others.
    log
        Accumulate ln y with weight 1 and without the pixels that are not positive.
    by_class
        ``(READ_CLASSES,)``, photon variance over `gain` by class of read variance
        (`mbkg_xr.pass_kernel.read_class`), where the data give that pixel by pixel.
    """

    model: NDArray[np.float64]
    gain: NDArray[np.float64]
    floor: NDArray[np.float64]
    centre: NDArray[np.float64]
    cut: NDArray[np.float64]
    usual: NDArray[np.float64]
    unit: float = 1.0
    log: bool = False
    rule: int = TAPERED
    by_class: NDArray[np.float64] = field(default_factory=lambda: np.ones(READ_CLASSES))


@dataclass
class PassSums:
    """What a pass brings back. All of it adds.

    Attributes
    ----------
    moments
        ``(group, span, 12)``.
    count
        ``(group, span)``, pixels used.
    selected
        ``(group, span)``, pixels selected, used or not.
    histogram
        ``(bin, len(HISTOGRAM_EDGES) + 1)``, of z, with underflow and overflow.
    noise
        ``(bin, 6 + 2 READ_CLASSES)``: n, sum x, sum var_poisson, sum error^2, sum x^2,
        sum x error^2 with x = max(flux, 0) * REFERENCE_TIME / exposure time: photons are not
        negative; then by class of read variance sum var_poisson and sum gain x.
    pixels
        ``(slit, 2)``: selected pixels within the spans, and those used.
    changing
        ``(product, group, span, 12)``: moments weighted with products of functions of time.
    """

    moments: NDArray[np.float64]
    count: NDArray[np.int64]
    selected: NDArray[np.int64]
    histogram: NDArray[np.int64]
    noise: NDArray[np.float64]
    pixels: NDArray[np.int64]
    changing: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0, 0, N_MOMENTS)))

    def __add__(self, other: PassSums) -> PassSums:
        return PassSums(
            self.moments + other.moments,
            self.count + other.count,
            self.selected + other.selected,
            self.histogram + other.histogram,
            self.noise + other.noise,
            np.concatenate([self.pixels, other.pixels]),
            self.changing + other.changing,
        )


def block_sums(
    slits: slice,
    parts: Parts,
    group: NDArray[np.int64],
    time_factor: NDArray[np.float64],
    state: PassState,
    grid: SpanGrid,
    n_groups: int,
    terms: Terms,
) -> PassSums:
    """Sums of some slits; what is by slit, of these alone: groups, times and terms."""
    n_bins = -(-grid.size // BIN_SPANS)
    n = slits.stop - slits.start
    sums = PassSums(
        np.zeros((n_groups, grid.size, N_MOMENTS)),
        np.zeros((n_groups, grid.size), dtype=np.int64),
        np.zeros((n_groups, grid.size), dtype=np.int64),
        np.zeros((n_bins, HISTOGRAM_EDGES.size + 1), dtype=np.int64),
        np.zeros((n_bins, 6 + 2 * READ_CLASSES)),
        np.zeros((n, 2), dtype=np.int64),
    )
    basis, profiles = terms.basis(), terms.profile.stacked()
    for where, pixels in parts:
        at = slice(where.start - slits.start, where.stop - slits.start)
        own = terms.part(at)
        columns = pixels.arguments()
        accumulate_pixels(
            columns[:6], *columns[6:], group[at], time_factor[at],
            (grid.edges, grid.lookup, grid.step),
            (
                np.ascontiguousarray(own.scale), basis, own.times, own.drift, own.level,
                own.pedestal, own.pedestal_shape, own.used, own.leak, own.light,
            ),
            profiles, own.profile.place, own.profile.rows(own.kind),
            (
                state.model, state.gain, state.by_class, state.floor, state.centre, state.cut,
                state.usual, state.unit, state.log, state.rule,
            ),
            _Z_MAX, _Z_STEP,
            (
                sums.moments, sums.count, sums.selected, sums.histogram, sums.noise,
                sums.pixels[at],
            ),
        )  # fmt: skip
    return sums


def accumulate(
    pixels: Source,
    state: PassState,
    groups: NDArray[np.int64],
    n_groups: int,
    terms: Terms | None = None,
    products: NDArray[np.float64] | None = None,
) -> PassSums:
    """One pass over the selected pixels.

    Parameters
    ----------
    pixels
        From `mbkg_xr.held.held`.
    state
        The present model, noise and clipping.
    groups
        ``(slit,)``, the group whose moments each slit joins.
    n_groups
        Number of groups.
    terms
        What differs from slit to slit; the moments are of the master's own scale. None: nothing.
        A change of the master with time stays in the moments.
    products
        ``(slit, product)``, if moments weighted with these are wanted, too.

    Returns
    -------
    PassSums
        The same to rounding for any chunking: each block adds up in float64.
    """
    grid = pixels.grid
    terms = Terms.none(pixels.slits.sizes["slit"], grid.size) if terms is None else terms
    factor = time_factors(pixels.slits)

    def block(slits: slice, parts: Parts, shared: tuple[PassState, Terms]) -> PassSums:
        state, own, time = shared[0], shared[1].part(slits), factor[slits]
        if products is None:
            return block_sums(slits, parts, groups[slits], time, state, grid, n_groups, own)
        n = slits.stop - slits.start
        sums = block_sums(slits, parts, np.arange(n), time, state, grid, n, own)
        return _grouped(sums, groups[slits], n_groups, products[slits])

    return pixels.reduce(block, lambda a, b: a + b, (state, terms))


def _grouped(
    sums: PassSums, groups: NDArray[np.int64], n_groups: int, products: NDArray[np.float64]
) -> PassSums:
    """Sums of groups from those of slits, also weighted with products of functions of time."""
    return replace(
        sums,
        moments=add_up(sums.moments, groups, n_groups),
        count=add_up(sums.count, groups, n_groups),
        selected=add_up(sums.selected, groups, n_groups),
        changing=weighted(sums.moments, groups, n_groups, products),
    )


def time_factors(slits: xr.Dataset) -> NDArray[np.float64]:
    """``(slit,)``: photon noise of each slit over that at `REFERENCE_TIME`."""
    time = slits["exposure_time"].values
    return np.where(time > 0, REFERENCE_TIME / np.where(time > 0, time, 1.0), 1.0)
