"""How block functions meet pixels: maps and reductions over chunks of whole slits.

Both work on the bare arrays (`xarray.map_blocks` costs twenty times the tasks) and take datasets
that are lazy or in memory. Dask does the scheduling, whichever scheduler is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["map_slits", "reduce_blocks"]

_BLOCK = 64  # slits at a time where nothing is chunked


def map_slits(
    function: Callable[..., NDArray],
    template: xr.DataArray,
    *arrays: Any,
    dtype: Any,
    outputs: int | None = None,
    plane: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Any:
    """Apply a block function to aligned pixel arrays, lazily where the template is lazy.

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
        Of the result.
    outputs
        If given, the function returns ``(slit, y, x, outputs)``: several results of one visit.
    plane
        If given, the function returns ``(slit, *plane)`` instead.
    **kwargs
        Passed to the function.
    """
    data = template.data
    shaped = [np.asarray(a)[:, None, None] if a.ndim == 1 else a for a in arrays]
    if not isinstance(data, da.Array):
        return function(*shaped, **kwargs).astype(dtype, copy=False)
    chunks: tuple = (data.chunks[0], (data.shape[1],), (data.shape[2],))
    aligned = [
        a.rechunk({0: chunks[0], 1: -1, 2: -1})
        if isinstance(a, da.Array)
        else da.from_array(a, chunks=(chunks[0], -1, -1))
        for a in shaped
    ]
    # What is large travels once, not with every task.
    shared = {k: v if _is_small(v) else dask.delayed(v, traverse=False) for k, v in kwargs.items()}
    extra: dict[str, Any] = {}
    if plane is not None:
        chunks = (chunks[0], *((n,) for n in plane))
    if outputs is not None:
        chunks = (*chunks, (outputs,))
        extra["new_axis"] = 3
    return da.map_blocks(
        function,
        *aligned,
        dtype=dtype,
        chunks=chunks,
        meta=np.empty((0,) * len(chunks), dtype),
        **extra,
        **shared,
    )


def _is_small(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or getattr(value, "nbytes", 1 << 20) < 1024


def reduce_blocks(
    ds: xr.Dataset,
    names: Sequence[str],
    block: Callable[[int, Sequence[Any], Any], Any],
    add: Callable[[Any, Any], Any],
    shared: Any = None,
) -> Any:
    """Apply ``block(first slit, arrays, shared)`` to each chunk of slits and add up the results.

    One task a chunk beside reading. Results are added eight at a time, in the order of the slits,
    so that memory does not grow with their number. Computes.
    """
    data = [ds[name].data for name in names]
    if not any(isinstance(d, da.Array) for d in data):
        n = ds.sizes["slit"]
        parts = [
            block(i, [np.ascontiguousarray(d[i : i + _BLOCK]) for d in data], shared)
            for i in range(0, n, _BLOCK)
        ]
        return reduce(add, parts)
    lazy = ds[list(names)]
    lazy = lazy.chunk({d: -1 for d in lazy.dims if d != "slit"}).unify_chunks()
    chunks = lazy.chunks["slit"]
    starts = np.concatenate([[0], np.cumsum(chunks)[:-1]])
    # Not optimised one by one: columns that come from the same pixels share the tasks that read
    # them, and go on doing so.
    columns = [lazy[name].data.to_delayed(optimize_graph=False).ravel() for name in names]
    task = dask.delayed(lambda start, arrays, state: block(start, arrays, state), pure=False)
    state = dask.delayed(shared, traverse=False)
    parts = [
        task(int(start), list(arrays), state)
        for start, arrays in zip(starts, zip(*columns, strict=True), strict=True)
    ]
    merge = dask.delayed(lambda some: reduce(add, some), pure=False)
    while len(parts) > 1:
        parts = [merge(parts[i : i + 8]) for i in range(0, len(parts), 8)]
    return parts[0].compute()
