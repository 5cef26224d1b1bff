"""The bar shadow that the products were corrected for, which a pedestal was divided by as well.

A constant that is added on the detector passes no bars. Where the correction raises the sky there,
it raises the constant with it, and read noise alike: along the slit, a pedestal in calibrated units
goes as the root of the read variance.
"""

from __future__ import annotations

import warnings
from typing import Any

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .profile_sums import N_NODES, PROFILE_FIRST, PROFILE_STEP, opened, profile_nodes
from .quality import excluded_bits
from .schema import SLIT_IDENTITY
from .shutters import CENTRE
from .spans import SpanGrid
from .terms import BIN_SPANS

__all__ = ["pedestal_along"]

Array = NDArray[np.float64]

_ENOUGH = 32  # slits of a kind that are looked at: all are corrected alike
_UNUSUAL = 0.5  # in the logarithm
_NODES = profile_nodes()


def pedestal_along(ds: xr.Dataset, grid: SpanGrid, kinds: tuple[int, ...]) -> Array:
    """What a pedestal is along the slit, 1 at shutter centres.

    Parameters
    ----------
    ds
        The selected slit dataset. A few of its slits are read.
    grid
        The spans.
    kinds
        Numbers of open shutters.

    Returns
    -------
    NDArray
        ``(kind, node, bin)``, at the nodes of the profile; empty where the products do not tell
        read noise apart.
    """
    if "var_rnoise" not in ds or not kinds:
        return np.empty((0, 0, 0))
    count = ds["n_shutters"].values
    order = np.lexsort([ds[name].values for name in reversed(SLIT_IDENTITY)])
    alike = [order[count[order] == kind] for kind in kinds]
    some = [np.sort(few[:: max(-(-few.size // _ENOUGH), 1)]) for few in alike]
    bits = excluded_bits(ds)
    names = ["var_rnoise", "quality", "wavelength", "yrel"]
    pixels: Any = dask.compute(*[[ds[name].isel(slit=few).data for name in names] for few in some])
    out = [_along(bits, grid, kind, *of) for of, kind in zip(pixels, kinds, strict=True)]
    return np.stack(out)


def _along(
    bits: int,
    grid: SpanGrid,
    n_shutters: int,
    variance: NDArray,
    quality: NDArray,
    wavelength: NDArray,
    yrel: NDArray,
) -> Array:
    """``(node, bin)`` of one kind. Medians: what few pixels hold may be anything."""
    good = np.isfinite(variance) & (variance > 0) & ((quality & quality.dtype.type(bits)) == 0)
    span = np.searchsorted(grid.edges, wavelength[good], side="right") - 1
    node = np.rint((np.nan_to_num(yrel[good], nan=np.inf) - PROFILE_FIRST) / PROFILE_STEP)
    inside = (span >= 0) & (span < grid.size) & (node >= 0) & (node < N_NODES)
    noise = np.sqrt(variance[good][inside], dtype=np.float64)
    shape = (N_NODES, -(-grid.size // BIN_SPANS))
    cell = node[inside].astype(np.int64) * shape[1] + span[inside] // BIN_SPANS
    known, level = _medians(cell, noise)
    found = np.full(shape, np.nan)
    found.flat[known] = level
    at_centre = np.abs(_NODES - opened(_NODES, n_shutters)) <= CENTRE + 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of medians of nothing
        found /= np.nanmedian(found[at_centre], axis=0)
        usual = np.nanmedian(found, axis=1, keepdims=True)
    # Few pixels a node: where they are wild they are known by the same node's other bins.
    found[~(np.abs(np.log(found / usual)) < _UNUSUAL)] = np.nan
    out = np.ones(shape)
    for b in np.flatnonzero(np.isfinite(found).any(axis=0)):
        seen = np.isfinite(found[:, b])
        out[:, b] = np.interp(_NODES, _NODES[seen], found[seen, b])
    return out


def _medians(cell: NDArray[np.int64], values: Array) -> tuple[NDArray[np.int64], Array]:
    """Cells that have values, and the median of each."""
    order = np.lexsort((values, cell))
    known, first, count = np.unique(cell[order], return_index=True, return_counts=True)
    return known, values[order][first + count // 2]
