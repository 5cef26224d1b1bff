"""Pixels into arrays of a store: one task a chunk, from reading to writing.

Whoever computes a chunk writes it, a worker of a cluster too: pixels are never gathered.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from ..blocks import Call, Constant, aligned
from ..errors import StoreError
from ..fuse import fused
from ..tasks import completed

__all__ = ["chunk_length", "write_chunks"]

SLITS_A_CHUNK = 32


def chunk_length(arrays: Sequence[Any]) -> int:
    """Slits a chunk in a store: that of the lazy arrays, where they have one."""
    lengths = {a.chunks[0] for a in arrays if isinstance(a, da.Array)}
    if lengths:
        first = next(iter(lengths))
        if len(lengths) == 1 and len(set(first[:-1])) <= 1 and first[-1] <= first[0]:
            return int(first[0])
    return min(SLITS_A_CHUNK, max(arrays[0].shape[0], 1))


def write_chunks(
    arrays: Mapping[str, Any],
    targets: Mapping[str, zarr.Array],
    *,
    first: int = 0,
    beside: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, NDArray]:
    """Compute arrays chunk by chunk, all of them together, and write them. Computes.

    Parameters
    ----------
    arrays
        By name, dask's or in memory; slits along the first dimension.
    targets
        Where each of them goes, in chunks of one length along slits and whole along the others.
    first
        The slit of the targets that the arrays begin at, where a chunk does.
    beside
        Small arrays by name, ``(slit,)``, that are found from the same pixels.

    Returns
    -------
    dict
        `beside`, computed with the others.
    """
    data = [*arrays.values(), *beside.values()]
    length = next(iter(targets.values())).chunks[0]
    chunks, graph, keys = aligned(data, length=length)
    token = uuid.uuid4().hex
    where = f"targets-{token}"
    graph[where] = (Constant([targets[name] for name in arrays]),)
    starts = np.concatenate([[0], np.cumsum(chunks)]).tolist()
    sinks = []
    if _whole(chunks, length):
        for start, key in zip(starts, keys, strict=False):
            sinks.append((f"write-{token}", start))
            graph[sinks[-1]] = (Call(_write), where, first + start, [key], [None])
    else:
        # Blocks that reach into more than one chunk of the store are made once.
        for start in range(0, starts[-1], length):
            stop = min(start + length, starts[-1])
            begin = int(np.searchsorted(starts, start, side="right")) - 1
            end = int(np.searchsorted(starts, stop, side="left"))
            cuts = Constant(
                [
                    slice(max(start - starts[i], 0), min(stop, starts[i + 1]) - starts[i])
                    for i in range(begin, end)
                ]
            )
            sinks.append((f"write-{token}", start))
            graph[sinks[-1]] = (Call(_write), where, first + start, keys[begin:end], (cuts,))
    lazy = any(isinstance(a, da.Array) for a in data)
    found = list(completed(fused(graph, sinks), sinks, local=not lazy))
    return {name: np.concatenate(parts) for name, *parts in zip(beside, *found, strict=True)}


def _whole(chunks: Sequence[int], length: int) -> bool:
    return all(n == length for n in chunks[:-1]) and chunks[-1] <= length


def _write(
    targets: Sequence[zarr.Array],
    start: int,
    blocks: Sequence[Sequence[NDArray]],
    cuts: Sequence[slice | None],
) -> list[NDArray]:
    """Write arrays, and give those beside them."""

    def taken(k: int) -> NDArray:
        parts = [b[k] if cut is None else b[k][cut] for b, cut in zip(blocks, cuts, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    for k, target in enumerate(targets):
        values = taken(k)
        try:
            # xarray's bool is a small integer in Zarr.
            target[start : start + len(values)] = values.astype(target.dtype, copy=False)
        except Exception as error:  # a full disk, or whatever ails a connection
            raise StoreError(
                "a chunk cannot be written",
                where=f"{target.store_path}, slits {start} to {start + len(values) - 1}",
                found=f"{type(error).__name__}: {error}",
            ) from error
    return [np.array(taken(k)) for k in range(len(targets), len(blocks[0]))]
