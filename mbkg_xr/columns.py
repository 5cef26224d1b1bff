"""The columns of pixels that the passes of a fit read, and which of them are kept between passes.

A sixth of the pixels see sky at shutter centres. Where these fit in memory they are kept, packed
span by span; where they do not, they are packed into scratch files, which read many times faster
than a store. The workers of a cluster hold them (`mbkg_xr.lots`). Where there is no room for them
the pixels are read again, and only the mask is kept, a bit a pixel.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import Call, map_slits, reduce_blocks, unpacked
from .kernels import kernel
from .lots import can_hold, held_lots
from .schema import PIXEL_DIMS
from .spans import SpanGrid, find_span
from .tasks import cluster

__all__ = ["kept", "packed", "per_unit_sky"]

_PASS = ("flux", "error", "wavelength", "yrel", "var_rnoise", "var_poisson")
_LOOK = (*_PASS, "quality")


def per_unit_sky(ds: xr.Dataset) -> xr.Dataset:
    """Flux and errors a unit of uniform sky, where the calibration was made for something else."""
    if "response" not in ds.coords:
        return ds
    columns = {"flux": 1, "error": 1, "var_rnoise": 2, "var_poisson": 2}
    scaled = {
        name: (ds[name].dims, (ds[name] / ds["response"] ** power).data, ds[name].attrs)
        for name, power in columns.items()
        if name in ds
    }
    return ds.assign(scaled)


def kept(ds: xr.Dataset, memory: int) -> xr.Dataset:
    """The dataset with the columns that every pass reads in memory, where they are small enough."""
    used = ["selected", *_LOOK]
    columns = ds[[name for name in used if name in ds.variables]].reset_coords()
    columns = columns[[name for name in used if name in columns]]
    # Packed pixels come beside them: a quarter as much.
    if 1.25 * columns.nbytes > memory:
        return ds
    held = columns.persist()
    coords = {n: held[n].variable for n in columns.data_vars if n in ds.coords}
    rest = {n: held[n].variable for n in columns.data_vars if n not in ds.coords}
    return ds.assign_coords(coords).assign(rest)


def packed(
    ds: xr.Dataset, memory: int, grid: SpanGrid, stack: ExitStack | None = None
) -> xr.Dataset:
    """The selected pixels only, ``(slit, 1, n)``, in memory; or, where too many, in scratch files
    or behind a known mask.

    Packed pixels of a slit are in the order of the spans, so that a pass finds all that it has in
    one span together, and touches its sums once.

    Parameters
    ----------
    ds
        A selected slit dataset.
    memory
        Bytes that packed pixels may take.
    grid
        The spans.
    stack
        At its end goes what was packed for it: in scratch files, where too much for memory, or
        held by the workers of a cluster.

    Returns
    -------
    xarray.Dataset
        For passes over selected pixels: the columns they read, and the slits' coordinates. The
        selection has been made, once.
    """
    names = [name for name in _PASS if name in ds.variables]
    slits = ds.drop_vars([str(n) for n, v in ds.variables.items() if v.ndim > 1])
    if stack is not None and can_hold(_usual_size(ds, names), memory):
        return slits.assign(_with_workers(ds, names, grid, stack))
    counts, mask = reduce_blocks(ds, ["selected"], _count_block, _joined)
    width = max(int(counts.max(initial=0)), 1)
    fits = counts.size * width * (4 * len(names) + 1) <= memory
    spilt = None
    if not fits and stack is not None and cluster() is None:
        spilt = _spilt(ds, names, counts, grid, stack)
    columns: dict[str, Any]
    if spilt is not None:
        selected, columns = spilt
    elif not fits:
        shape = ds["flux"].shape[1:]
        selected = map_slits(_mask_block, ds["flux"], mask[:, None], dtype=np.bool_, shape=shape)
        columns = {name: (PIXEL_DIMS, ds[name].data) for name in names}
    else:
        held = map_slits(
            _pack_block,
            ds["flux"],
            ds["selected"].data,
            *[ds[name].data for name in names],
            dtype=(np.bool_, *[np.float32] * len(names)),
            plane=(1, width),
            width=width,
            grid=grid,
        )
        selected = held[0]
        columns = {n: (PIXEL_DIMS, h) for n, h in zip(names, held[1:], strict=True)}
    columns["selected"] = (PIXEL_DIMS, selected, ds["selected"].attrs)
    out = slits.assign(columns)
    if not fits:
        return out
    # In one piece a pass takes it in few large blocks; what workers of a cluster hold stays there.
    return out.load() if cluster() is None else out.persist()


def _usual_size(ds: xr.Dataset, names: list[str]) -> int:
    """Bytes of packed pixels, nearly: a third of all."""
    return (4 * len(names) + 1) * ds["flux"].size // 3


def _with_workers(
    ds: xr.Dataset, names: list[str], grid: SpanGrid, stack: ExitStack
) -> dict[str, Any]:
    """The mask and columns of packed pixels that the workers of a cluster hold."""
    every = ["selected", *names]
    held = held_lots(
        partial(_pack_block, grid=grid),
        [ds[name].data for name in every],
        dtypes=(np.bool_, *[np.float32] * len(names)),
        stack=stack,
    )
    return {n: (PIXEL_DIMS, h, ds[n].attrs) for n, h in zip(every, held, strict=True)}


def _spilt(
    ds: xr.Dataset, names: list[str], counts: NDArray, grid: SpanGrid, stack: ExitStack
) -> tuple[da.Array, dict[str, Any]] | None:
    """The mask and columns of packed pixels that lie in files, one a block of slits; None where
    there is no room for them.
    """

    def block(start: int, arrays: Sequence[NDArray], shared: Any) -> list[tuple[int, int]]:
        n = len(arrays[0])
        width = max(int(counts[start : start + n].max(initial=0)), 1)
        made = _pack_block(*arrays, width=width, grid=grid)
        np.save(folder / f"{start}.npy", np.stack(made[1:]))
        return [(start, n)]

    try:
        place = dask.config.get("temporary-directory", None)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mbkg-xr-", dir=place)))
        room = shutil.disk_usage(folder).free
    except OSError:
        return None
    # Slits of a block are as wide as its fullest, and others need room, too.
    if room < 4 * 4 * len(names) * int(counts.sum()):
        return None
    lots = reduce_blocks(ds, ["selected", *names], block, lambda a, b: a + b)
    name, width = f"spilt-{uuid.uuid4().hex}", max(int(counts.max(initial=0)), 1)
    read = Call(partial(_read_back, width=width))
    graph = {
        (name, i, 0, 0): (read, str(folder / f"{start}.npy"), counts[start : start + n])
        for i, (start, n) in enumerate(lots)
    }
    chunks = (tuple(n for _, n in lots), (1,), (width,))
    blocks = da.Array(graph, name, chunks, dtype=object)
    selected, *columns = unpacked(blocks, (np.bool_, *[np.float32] * len(names)))
    return selected, {n: (PIXEL_DIMS, c) for n, c in zip(names, columns, strict=True)}


def _read_back(path: str, counts: NDArray, *, width: int) -> tuple[NDArray, ...]:
    """Mask and columns of a block, which is as wide in its file as its own fullest slit."""
    held = np.load(path)
    made = np.full((*held.shape[:-1], width), np.nan, dtype=np.float32)
    made[..., : held.shape[-1]] = held
    return (np.arange(width) < counts[:, None, None], *made)


def _count_block(start: int, arrays: Sequence[NDArray], shared: Any) -> tuple[NDArray, NDArray]:
    flat = arrays[0].reshape(len(arrays[0]), -1)
    return flat.sum(axis=1), np.packbits(flat, axis=1)


def _joined(a: tuple, b: tuple) -> tuple[NDArray, NDArray]:
    return np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])


def _mask_block(mask: NDArray, *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    bits = np.unpackbits(mask[:, 0], axis=1, count=shape[0] * shape[1])
    return bits.view(np.bool_).reshape(-1, *shape)


def _pack_block(
    selected: NDArray, *columns: NDArray, grid: SpanGrid, width: int | None = None
) -> tuple[NDArray, ...]:
    """Mask and columns, ``(slit, 1, width)``; of the fullest slit where no width is given."""
    if width is None:
        width = max(int(np.count_nonzero(selected, axis=(1, 2)).max(initial=0)), 1)
    shape = (len(selected), 1, width)
    made = [np.full(shape, np.nan, dtype=np.float32) for _ in columns]
    counts, order = np.zeros(len(selected), dtype=np.int64), np.empty(shape, dtype=np.int32)
    wavelength = np.ascontiguousarray(columns[_PASS.index("wavelength")])
    _in_order(
        np.ascontiguousarray(selected), wavelength, grid.edges, grid.lookup, grid.step,
        counts, order,
    )  # fmt: skip
    for column, out in zip(columns, made, strict=True):
        _pack(np.ascontiguousarray(column), counts, order, out)
    return (np.arange(width) < counts[:, None, None], *made)


@kernel
def _in_order(selected, wavelength, edges, lookup, step, counts, order):  # pragma: no cover
    """Where in its plane each slit's selected pixels lie, in the order of the spans."""
    ny, nx = selected.shape[1:]
    place = np.empty(edges.size + 1, dtype=np.int64)
    spans = np.empty(order.shape[2], dtype=np.int64)
    where = np.empty(order.shape[2], dtype=np.int32)
    for s in range(selected.shape[0]):
        place[:] = 0
        found = 0
        for i in range(ny):
            for j in range(nx):
                if selected[s, i, j]:
                    n, _ = find_span(np.float64(wavelength[s, i, j]), edges, lookup, step)
                    spans[found], where[found] = n + 1, i * nx + j  # first those outside
                    place[n + 2] += 1
                    found += 1
        for n in range(1, place.size):
            place[n] += place[n - 1]
        for k in range(found):
            order[s, 0, place[spans[k]]] = where[k]
            place[spans[k]] += 1
        counts[s] = found


@kernel
def _pack(column, counts, order, out):  # pragma: no cover - compiled
    nx = column.shape[2]
    for s in range(column.shape[0]):
        for k in range(counts[s]):
            at = order[s, 0, k]
            out[s, 0, k] = column[s, at // nx, at % nx]
