"""Where a fit starts: medians of flux and error in bins of a few spans, from one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .kernels import kernel
from .moments import PassState
from .select import why_empty
from .sources import Parts, Source
from .spans import find_span

__all__ = ["median_start", "start"]

Array = NDArray[np.float64]

START_SPANS = 8
_SAMPLE = 400_000  # pixels that tell the medians to a per cent and better
_USUAL = 3.0  # pixels with errors beyond this many medians say nothing of the usual noise


@kernel
def _sample(
    flux, error, wavelength, start, stop, order, edges, lookup, step, bin_spans, most, bins, values
):  # pragma: no cover - compiled
    """Bins, fluxes and errors of pixels whose mixed bits are below `most`; how many."""
    found = 0
    bits, colour = flux.view(np.uint32), wavelength.view(np.uint32)
    in_place = order.shape[0] == 0
    for s in range(start.shape[0]):
        for k in range(start[s], stop[s]):
            at = k if in_place else order[k]
            # As random as the last digits, and the same wherever the pixel lies
            # (the last step of MurmurHash3, Appleby 2011).
            h = np.uint32(bits[at] ^ np.uint32(colour[at] * np.uint32(2654435769)))
            h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
            h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
            if (h ^ (h >> np.uint32(16))) > most:
                continue
            n, _ = find_span(np.float64(wavelength[at]), edges, lookup, step)
            if n < 0 or not (np.isfinite(flux[at]) and np.isfinite(error[at])):
                continue
            bins[found] = n // bin_spans
            values[0, found], values[1, found] = flux[at], error[at]
            found += 1
    return found


def median_start(pixels: Source) -> tuple[NDArray, NDArray, NDArray]:
    """Running medians of the selected flux and error, for any units, chunks and order of slits.

    Of many pixels a share is taken, by their own bits.

    Returns
    -------
    wavelength, flux, error
        Middle of each bin of `START_SPANS` spans that holds pixels, um, and the medians there.
    """
    grid = pixels.grid
    most = np.uint32(min(_SAMPLE / max(pixels.size, 1), 1.0) * 0xFFFFFFFF)

    def block(slits: slice, parts: Parts, shared: Any) -> list[tuple[NDArray, NDArray]]:
        out = []
        for _, some in parts:
            flux, error, wavelength, *_, start, stop, order = some.arguments()
            bins = np.empty(some.size, dtype=np.int16)
            values = np.empty((2, some.size), dtype=np.float32)
            found = _sample(
                flux, error, wavelength, start, stop, order,
                grid.edges, grid.lookup, grid.step, START_SPANS, most, bins, values,
            )  # fmt: skip
            out.append((bins[:found].copy(), values[:, :found].copy()))
        return out

    parts = pixels.reduce(block, lambda a, b: a + b)
    bins = np.concatenate([one for one, _ in parts])
    values = np.concatenate([one for _, one in parts], axis=1)[:, np.argsort(bins, kind="stable")]
    if not bins.size:
        return np.empty(0), np.empty(0), np.empty(0)
    filled, first = np.unique(np.sort(bins), return_index=True)
    each = np.split(values, first[1:], axis=1)
    flux, error = np.array([np.median(one, axis=1) for one in each]).reshape(-1, 2).T
    middle = np.minimum((filled + 0.5) * START_SPANS, grid.size)
    return np.interp(middle, np.arange(grid.edges.size), grid.edges), flux, error


def start(pixels: Source, *, log_data: bool, slits: xr.Dataset) -> tuple[Array, PassState]:
    """First guess of the sky (positive, as a scale) and the state of the first pass.

    `slits` has all pixels, to say why none is selected.
    """
    grid = pixels.grid
    wavelength, median, error = median_start(pixels)
    if median.size == 0:
        raise why_empty(slits, [0])[0]
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
