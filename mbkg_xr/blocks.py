"""How block functions meet pixels: maps and reductions over chunks of whole slits.

Both work on the bare arrays (`xarray.map_blocks` costs twenty times the tasks) and take datasets
that are lazy or in memory. Dask does the scheduling, whichever scheduler is in use.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial, reduce
from operator import itemgetter
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .alike import gathered
from .fuse import Call, fused
from .tasks import cluster, completed, workers

__all__ = ["Call", "Constant", "added", "aligned", "map_slits", "reduce_blocks", "unpacked"]

_BLOCK = 64  # slits at a time where nothing is chunked
_PIXELS = 2**20  # or about so many of their pixels


def map_slits(
    function: Callable[..., Any],
    template: xr.DataArray,
    *arrays: Any,
    dtype: Any,
    outputs: int | None = None,
    plane: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Any:
    """Apply a block function to aligned pixel arrays, lazily where any of them is lazy.

    Parameters
    ----------
    function
        Takes numpy blocks of `arrays` and `kwargs`, and returns a ``(slit, y, x)`` block.
    template
        The variable whose chunks are kept.
    arrays
        ``(slit, y, x)`` arrays, or ``(slit,)`` vectors, which reach the function as
        ``(slit, 1, 1)``.
    dtype
        Of the result. A tuple of them where the function returns as many blocks, results of one
        visit; so many arrays come back then.
    outputs
        If given, the function returns ``(slit, y, x, outputs)``.
    plane
        If given, the function returns ``(slit, *plane)`` instead.
    **kwargs
        Passed to the function.
    """
    data = template.data
    shaped = [np.asarray(a)[:, None, None] if a.ndim == 1 else a for a in arrays]
    lazy = next((a for a in (data, *shaped) if isinstance(a, da.Array)), None)
    if lazy is None:
        made = function(*shaped, **kwargs)
        if not isinstance(dtype, tuple):
            return made.astype(dtype, copy=False)
        return tuple(m.astype(d, copy=False) for m, d in zip(made, dtype, strict=True))
    chunks: tuple = (lazy.chunks[0], (data.shape[1],), (data.shape[2],))
    several = isinstance(dtype, tuple)
    last: dict[str, Any] = {}
    if plane is not None:
        chunks = (chunks[0], *((n,) for n in plane))
    if outputs is not None:
        chunks, last = (*chunks, (outputs,)), {"new_axis": 3}
    made = da.map_blocks(
        function,
        *[_in_chunks(a, lazy.chunks[0]) for a in shaped],
        # What is large travels once, not with every task.
        **{k: v if _is_small(v) else dask.delayed(v, traverse=False) for k, v in kwargs.items()},
        dtype=object if several else dtype,
        chunks=chunks,
        meta=np.empty((0,) * len(chunks), object if several else dtype),
        **last,
    )
    return unpacked(made, dtype) if several else made


def unpacked(blocks: da.Array, dtypes: Sequence[Any]) -> tuple[da.Array, ...]:
    """Arrays from one whose blocks are tuples of blocks."""
    return tuple(
        da.map_blocks(itemgetter(i), blocks, dtype=d, meta=np.empty((0, 0, 0), d))
        for i, d in enumerate(dtypes)
    )


def _in_chunks(array: Any, lengths: tuple[int, ...]) -> da.Array:
    """An array in chunks of so many slits, whole along the other dimensions."""
    whole = (lengths, *[(n,) for n in array.shape[1:]])
    if isinstance(array, da.Array):
        return array if array.chunks == whole else array.rechunk(whole)
    # Vectors have names that follow what they say; dask would take long to name pixels so.
    small = math.prod(array.shape[1:]) < 64
    return da.from_array(array, chunks=whole, name=None if small else False)


def _is_small(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or getattr(value, "nbytes", 1 << 20) < 1024


def reduce_blocks(
    ds: xr.Dataset,
    names: Sequence[str],
    block: Callable[[int, Sequence[Any], Any], Any],
    add: Callable[[Any, Any], Any],
    shared: Any = None,
    *,
    rows: NDArray[np.int64] | None = None,
) -> Any:
    """Apply ``block(first slit, arrays, shared)`` to each chunk of slits and add up the results.

    One task a chunk, reading included. Results are added eight at a time, in the order of the
    slits, so that memory does not grow with their number. Computes.

    Chunks that hold none of `rows` (increasing) are left out: of a selection of these rows dask
    would make chunks as long as the others, and read many of those in one task.
    """
    data = [ds[name].data for name in names]
    lazy = any(isinstance(d, da.Array) for d in data)
    if not lazy and ds.sizes["slit"] <= _BLOCK:
        return block(0, [np.ascontiguousarray(d) for d in data], shared)
    chunks, graph, keys = aligned(data) if lazy else _sliced(data)
    cuts = np.concatenate([[0], np.cumsum(chunks)])
    within = (
        np.ones(len(chunks), np.bool_) if rows is None else np.diff(rows.searchsorted(cuts)) > 0
    )
    some = np.flatnonzero(within).tolist()
    starts, keys = cuts[some].tolist(), [keys[i] for i in some]
    return added(graph, keys, starts, block, add, shared, local=not lazy)


def added(
    graph: Mapping,
    lots: Sequence[Any],
    starts: Sequence[int],
    block: Callable[[int, Sequence[Any], Any], Any],
    add: Callable[[Any, Any], Any],
    shared: Any = None,
    *,
    local: bool,
) -> Any:
    """Apply ``block(start, values, shared)`` to each lot of values and add up the results.

    Parameters
    ----------
    graph
        A dask graph that gives the keys.
    lots
        Of each lot the key of a list of values, or a list of keys.
    starts
        The first slit of each lot.
    block, add, shared
        As in `reduce_blocks`.
    local
        Whether what the graph needs lies in this process.
    """
    graph = dict(graph)
    state = f"state-{uuid.uuid4().hex}"
    # With what it carries, a block function is sent to each worker once, and not with each task.
    graph[state] = (Constant((block, shared)),)
    parts: list[Hashable] = [(f"block-{state}", i) for i in range(len(lots))]
    tasks = list(parts)
    for part, start, lot in zip(parts, starts, lots, strict=True):
        graph[part] = (_of_block, start, lot, state)
    merge, level = Call(partial(reduce, add)), 0
    # A cluster's sums are fetched now and then: what was fetched cannot be lost with a worker.
    most = _FETCHED if not local and cluster() is not None else len(parts)
    while len(parts) > 1 and 8**level < most:
        level += 1
        eights = [parts[i : i + 8] for i in range(0, len(parts), 8)]
        parts = [(f"sum-{state}", level, i) for i in range(len(eights))]
        graph |= {part: (merge, some) for part, some in zip(parts, eights, strict=True)}
        tasks += parts
    # Blocks and sums stay tasks of their own: all in one would be done one after the other.
    return reduce(add, completed(fused(graph, tasks), parts, local=local))


_FETCHED = 64


def _of_block(start: int, arrays: Sequence[Any], work: tuple[Callable[..., Any], Any]) -> Any:
    block, shared = work
    return block(start, arrays, shared)


class Constant:
    """A value that dask hands on without looking into it."""

    def __init__(self, value: Any):
        self.value = value

    def __call__(self) -> Any:
        return self.value


def aligned(
    arrays: Sequence[Any], *, length: int = _BLOCK
) -> tuple[tuple[int, ...], dict, list[Hashable]]:
    """Slits a chunk, a graph, and for each chunk the key of the list of its blocks.

    Chunks are those of the lazy arrays where these agree, with whole slits; of `length` slits where
    none is lazy.
    """
    lazy = [a for a in arrays if isinstance(a, da.Array)]
    cuts = {cut for chunks in {a.chunks[0] for a in lazy} for cut in np.cumsum(chunks).tolist()}
    if not lazy:
        cuts = {*range(length, arrays[0].shape[0], length), arrays[0].shape[0]}
    chunks = tuple(np.diff([0, *sorted(cuts)]).tolist())
    return chunks, *gathered([_in_chunks(array, chunks) for array in arrays])


def _sliced(arrays: Sequence[NDArray]) -> tuple[tuple[int, ...], dict, list[Hashable]]:
    """The same for arrays in memory: views of some slits at a time."""
    n = arrays[0].shape[0]
    # Slits of few pixels are taken many at a time, as long as every worker has two blocks.
    few = _PIXELS // max(math.prod(arrays[0].shape[1:]), 1)
    length = max(_BLOCK, min(few, -(-n // (2 * workers()))))
    starts = range(0, n, length)
    keys: list[Hashable] = [("views", i) for i in starts]
    graph = {
        key: (Constant([np.ascontiguousarray(a[i : i + length]) for a in arrays]),)
        for key, i in zip(keys, starts, strict=True)
    }
    return tuple(min(length, n - i) for i in starts), graph, keys
