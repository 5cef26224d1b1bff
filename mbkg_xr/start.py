"""Where a fit starts: medians of flux and error in bins of a few spans, from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import reduce_blocks
from .histograms import add_keys, key_median, n_keys
from .kernels import kernel
from .moments import PassState
from .select import why_empty
from .spans import SpanGrid, find_span

__all__ = ["median_start", "start"]

Array = NDArray[np.float64]

START_SPANS = 8
_USUAL = 3.0  # pixels with errors beyond this many medians say nothing of the usual noise


@kernel
def _start_histogram(
    bits, selected, wavelength, edges, lookup, step, bin_spans, out
):  # pragma: no cover - compiled
    for s in range(bits.shape[0]):
        for i in range(bits.shape[1]):
            for j in range(bits.shape[2]):
                if selected[s, i, j]:
                    n, _ = find_span(np.float64(wavelength[s, i, j]), edges, lookup, step)
                    if n >= 0:
                        add_keys(bits[s, i, j], out[n // bin_spans])


def median_start(ds: xr.Dataset, grid: SpanGrid) -> tuple[NDArray, NDArray, NDArray]:
    """Running medians of the selected flux and error, for any units, chunks and order of slits.

    Returns
    -------
    wavelength, flux, error
        Middle of each bin of `START_SPANS` spans that holds pixels, um, and the medians there.
    """
    n_bins = -(-grid.size // START_SPANS)

    def block(start: int, arrays: Sequence[Any], shared: Any) -> NDArray:
        *values, selected, wavelength = arrays
        out = np.zeros((len(values), n_bins, n_keys), dtype=np.int64)
        for array, histogram in zip(values, out, strict=True):
            _start_histogram(
                np.ascontiguousarray(array, dtype=np.float32).view(np.uint32), selected,
                wavelength, grid.edges, grid.lookup, grid.step, START_SPANS, histogram,
            )  # fmt: skip
        return out

    names = ["flux", "error", "selected", "wavelength"]
    counts = reduce_blocks(ds, names, block, lambda a, b: a + b)
    filled = np.flatnonzero(counts[0].sum(axis=1))
    middle = np.minimum((filled + 0.5) * START_SPANS, grid.size)
    wavelength = np.interp(middle, np.arange(grid.edges.size), grid.edges)
    return wavelength, key_median(counts[0, filled]), key_median(counts[1, filled])


def start(
    ds: xr.Dataset, grid: SpanGrid, *, log_data: bool, slits: xr.Dataset
) -> tuple[Array, PassState]:
    """First guess of the sky (positive, as a scale) and the state of the first pass.

    `ds` need only have the selected pixels; `slits` has all, to say why there are none.
    """
    wavelength, median, error = median_start(ds, grid)
    if median.size == 0:
        raise why_empty(slits, 0)
    edge_values = np.interp(grid.edges, wavelength, median)
    model = np.zeros((grid.size, 4))
    model[:, 0], model[:, 1] = edge_values[:-1], np.diff(edge_values)
    floor = 0.05 * np.median(np.abs(median))
    centre = np.interp(grid.centres, wavelength, median)
    scale = np.maximum(centre, floor if floor > 0 else 1.0)
    n = grid.size
    # Before the noise is known z is in units of the error as given; a wide cut keeps what is wild
    # out of the noise sums.
    state = PassState(
        model,
        gain=np.full(n, np.nan),
        floor=np.zeros(n),
        centre=np.zeros(n),
        cut=np.full(n, 10.0),
        usual=_USUAL * np.interp(grid.centres, wavelength, error),
        log=log_data,
    )
    return scale, state
