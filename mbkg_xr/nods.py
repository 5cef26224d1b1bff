"""Data minus the other nods.

A slit needs the sums of its slitlet's exposures at other nods (`mbkg_xr.nod_sums`). Where there are
few exposures each chunk is read once; where there are many it is read twice, for what is summed and
for what is subtracted from, so that no more is held than the sums.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.graph_manipulation import clone
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from .blocks import Call, Constant, map_slits, unpacked
from .fuse import Apart
from .kernels import kernel
from .nod_sums import A_PIXEL, Cells, add_slits, added_sums, means_of_others
from .quality import DEFAULT_EXCLUDE, flag_mask
from .schema import PIXEL_DIMS, occupied_shutters, refuse_subtracted, validate
from .select import near_one_of
from .subtract import taken_off

__all__ = ["nod_errors", "nod_memory", "subtract_nods"]

_MOST = 2**26  # bytes of the sums of a block of slitlets
_FEW = 4  # exposures of a slitlet whose pixels may be held until all of them are summed
_LOT = 2  # chunks that are summed in one task


def subtract_nods(ds: xr.Dataset) -> xr.Dataset:
    """Subtract nods: from each pixel the mean of the same detector pixel at the other nods. Lazy.

    While the telescope nods the shutters stay and the source moves from shutter to shutter. A nod
    that has the source in the very shutter a pixel looks through is left out, and so are unusable
    pixels. With n of N nods left, the error grows by ``sqrt(1 + 1/n)``: 1.22 for sky slitlets of
    three nods, 1.41 for the sky shutters of science slitlets.

    Parameters
    ----------
    ds
        A slit dataset.

    Returns
    -------
    xarray.Dataset
        As from `subtract`. Slits without another nod have no background.

    Raises
    ------
    DatasetError
        Where `ds` does not keep the contract of slit datasets, or its background is subtracted
        already.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> mx.subtract_nods(ds).attrs["background_method"]
    'nods'
    """
    validate(ds)
    refuse_subtracted(ds)
    found = _other_nods(ds, occupied_shutters(ds))
    units = {"units": ds["flux"].attrs["units"]}
    names_attrs = {
        "background": {"long_name": "mean of the other nods", **units},
        "background_error": {"long_name": "standard error of the mean of the other nods", **units},
    }
    projected = xr.Dataset(
        {n: (PIXEL_DIMS, f, a) for f, (n, a) in zip(found, names_attrs.items(), strict=True)}
    )
    out = taken_off(ds, projected)
    out.attrs["background_method"] = "nods"
    return out


def nod_errors(ds: xr.Dataset) -> xr.DataArray:
    """Standard error of the mean of the other nods, the shutter of the source included. Lazy.

    That is what a nod subtraction adds to the errors that takes whole exposures from each other, as
    the official pipeline does, which leaves ERR as it was.

    Parameters
    ----------
    ds
        A slit dataset, before subtraction.

    Returns
    -------
    xarray.DataArray
        (slit, y, x), NaN where no other nod has a usable pixel.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> from mbkg_xr.nods import nod_errors
    >>> ds = mx.simulate_program(exposures=3, slits=2, background_slits=2)
    >>> share = (nod_errors(ds) / ds.error.where(ds.error > 0)).compute()
    >>> round(float(share.median()), 1)  # 1 / sqrt(2) for two others
    0.7
    """
    nowhere = np.full((ds.sizes["slit"], 1, 1), np.nan, dtype=np.float32)
    _, error = _other_nods(ds, nowhere)
    return xr.DataArray(error, dims=PIXEL_DIMS, attrs=dict(ds["error"].attrs))


def nod_memory(ds: xr.Dataset, chunk: int, threads: int) -> int:
    """Bytes of what is held at most until the exposures of slitlets are summed.

    Parameters
    ----------
    ds
        A slit dataset.
    chunk
        Bytes of a pixel variable of a chunk.
    threads
        How many sums are made at a time.
    """
    cells = Cells(ds)
    length = max(ds["flux"].chunks[0]) if ds["flux"].chunks else ds.sizes["slit"]
    pixels = math.prod(ds["flux"].shape[1:])
    cuts = cells.blocks(pixels, _MOST, few=_FEW, slitlets=length)
    block = int(np.diff(cuts).max()) * pixels * A_PIXEL
    exposures = np.bincount(cells.group[cells.of])
    shared = 2 * _FEW * 8 * chunk if (exposures <= _FEW).any() else 0
    # Sums so far and with the next, and next ones that are being made, of pixels that are read.
    return shared + 2 * block + threads * (min(block, _LOT * length * pixels * A_PIXEL) + 8 * chunk)


def _other_nods(ds: xr.Dataset, occupied: NDArray) -> tuple[Any, Any]:
    """Mean of the other nods and its standard error, without some shutters."""
    bits = flag_mask(ds["quality"], DEFAULT_EXCLUDE, missing="ignore")
    masked = map_slits(
        _usable_block,
        ds["flux"],
        *[ds[n].data for n in ("flux", "error", "yrel", "quality")],
        occupied,
        dtype=np.float32,
        outputs=2,
        bits=int(bits),
    )
    cells, yrel = Cells(ds), ds["yrel"].data
    if not isinstance(masked, da.Array):
        return _in_memory(cells, masked, yrel)
    yrel = yrel if isinstance(yrel, da.Array) else da.from_array(yrel, name=False)
    yrel = yrel.rechunk(masked.chunks[:3])
    sums = _LazySums.of(cells, masked)
    starts = np.concatenate([[0], np.cumsum(masked.chunks[0])]).tolist()
    name = f"nods-{uuid.uuid4().hex}"
    layer: dict = {}
    for i, (start, stop) in enumerate(pairwise(starts)):
        asked = cells.asked(slice(start, stop))
        needed = np.unique(np.searchsorted(sums.cuts, asked.cells, side="right") - 1).tolist()
        layer[name, i, 0, 0] = (
            Call(means_of_others),
            (Constant(asked),),
            (yrel.name, i, 0, 0),
            *[sums.keys[block] for block in needed],
        )
    needs: list[Any] = [yrel, *sums.needs]
    graph = HighLevelGraph.from_collections(name, {**sums.graph, **layer}, dependencies=needs)
    made = da.Array(graph, name, masked.chunks[:3], meta=np.empty((0, 0, 0), object))
    mean, error = unpacked(made, (np.float32, np.float32))
    return mean, error


def _in_memory(cells: Cells, masked: NDArray, yrel: NDArray) -> tuple[NDArray, NDArray]:
    """The same at once, a few slitlets at a time."""
    mean, error = (np.full(yrel.shape, np.nan, dtype=np.float32) for _ in range(2))
    cuts = cells.blocks(math.prod(yrel.shape[1:]), _MOST)
    order = np.argsort(cells.of, kind="stable")
    for start, stop in pairwise(np.searchsorted(cells.of[order], cuts).tolist()):
        slits = order[start:stop]
        sums = add_slits([(slits, cells.of[slits])], masked)
        mean[slits], error[slits] = means_of_others(cells.asked(slits), yrel[slits], sums)
    return mean, error


@dataclass
class _LazySums:
    """Sums of all cells, as tasks.

    Attributes
    ----------
    cuts
        First cells of the blocks, their number last.
    keys
        Of the sums of each block.
    graph, needs
        The tasks, and the arrays that they need.
    """

    cuts: NDArray[np.int64]
    keys: list[tuple]
    graph: dict
    needs: list[da.Array]

    @classmethod
    def of(cls, cells: Cells, masked: da.Array) -> _LazySums:
        """Of slits of which only usable pixels are left."""
        chunks = masked.chunks[0]
        cuts = cells.blocks(math.prod(masked.shape[1:3]), _MOST, few=_FEW, slitlets=max(chunks))
        block = np.searchsorted(cuts, cells.of, side="right") - 1
        chunk = np.repeat(np.arange(len(chunks)), chunks)
        first = np.concatenate([[0], np.cumsum(chunks)])
        order = np.argsort(block, kind="stable")
        name = f"nod-sums-{uuid.uuid4().hex}"
        keys: list[tuple] = []
        graph: dict = {}
        needs = [masked]
        used: list[set[int]] = [set() for _ in chunks]
        for slits in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            mine, begin = np.unique(chunk[slits], return_index=True)
            parts = [
                (own - first[k], cells.of[own])
                for k, own in zip(mine, np.split(slits, begin[1:]), strict=True)
            ]
            array = masked
            if mine.size > 2 * _FEW:
                # Read apart from what the result is made of, or all would be held until then; and
                # apart from what other blocks read of the same chunks.
                taken = set().union(*(used[k] for k in mine))
                turn = next(t for t in count(1) if t not in taken)
                for k in mine:
                    used[k].add(turn)
                if turn == len(needs):
                    needs.append(clone(masked))
                array = needs[turn]
            keys.append(_add_up(graph, name, len(keys), parts, array, mine.tolist()))
        return cls(cuts, keys, graph, needs)


def _add_up(
    graph: dict, name: str, block: int, parts: list[tuple], array: da.Array, chunks: list[int]
) -> tuple:
    """Tasks that add up a block's slits, a few chunks at a time; the key of the last."""
    last: tuple = ()
    for lot in range(0, len(chunks), _LOT):
        few = slice(lot, lot + _LOT)
        key: tuple = (name, block, lot, "some")
        needed = [(array.name, k, 0, 0, 0) for k in chunks[few]]
        graph[key] = (Apart(add_slits), (Constant(parts[few]),), *needed)
        if last:
            graph[name, block, lot] = (Apart(added_sums), last, key)
            key = (name, block, lot)
        last = key
    return last


def _usable_block(
    flux: NDArray, error: NDArray, yrel: NDArray, quality: NDArray, occupied: NDArray, *, bits: int
) -> NDArray[np.float32]:
    """Flux and error where other slits may use them, NaN elsewhere."""
    out = np.full((*flux.shape, 2), np.nan, dtype=np.float32)
    shutters = np.ascontiguousarray(occupied[:, 0])
    _usable_pixels(flux, error, yrel, quality, quality.dtype.type(bits), shutters, out)
    return out


@kernel
def _usable_pixels(flux, error, yrel, quality, bits, occupied, out):  # pragma: no cover - compiled
    for s in range(flux.shape[0]):
        for i in range(flux.shape[1]):
            for j in range(flux.shape[2]):
                if (quality[s, i, j] & bits) != 0 or not error[s, i, j] > 0:
                    continue
                if np.isfinite(flux[s, i, j]) and not near_one_of(yrel[s, i, j], occupied[s]):
                    out[s, i, j, 0], out[s, i, j, 1] = flux[s, i, j], error[s, i, j]
