"""Blocks of slits that the workers of a cluster hold between passes: few, and each one result.

A pass over them moves no pixel and costs the scheduler a few tasks. Dask spills them to its
temporary directory where a worker's memory ends; what a worker held that died is made again by the
others, from where it came.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from .blocks import Call, aligned, unpacked
from .fuse import fused
from .tasks import cluster, hold, workers

__all__ = ["can_hold", "held_lots"]

_PIXELS = 2**21  # of a lot, nearly
_A_THREAD = 2  # lots, so that none waits long for another


def can_hold(size: int, memory: int) -> bool:
    """Whether a cluster has room for so many bytes: where each worker may take `memory`, or in the
    files that dask keeps for workers whose memory has a limit.
    """
    client = cluster()
    if client is None:
        return False
    limits = [one["memory_limit"] for one in client.scheduler_info(-1)["workers"].values()]
    return bool(limits) and (all(limits) or size <= memory * len(limits))


def held_lots(
    make: Callable[..., tuple[NDArray, ...]],
    arrays: Sequence[da.Array],
    *,
    dtypes: Sequence[Any],
    stack: ExitStack,
) -> tuple[da.Array, ...]:
    """Rows of slits made of other arrays, in lots that stay with the workers. Computes.

    Parameters
    ----------
    make
        Takes numpy blocks of `arrays`, and returns as many ``(slit, 1, n)`` blocks as `dtypes`,
        n as it likes.
    arrays
        ``(slit, y, x)``, some of them lazy.
    dtypes
        Of what comes back.
    stack
        At its end the workers let go of the lots.

    Returns
    -------
    tuple of dask.array.Array
        ``(slit, 1, n)`` with the largest n; a block may have fewer columns.
    """
    chunks, graph, columns = aligned(arrays)
    lots = _lots(chunks, max(int(np.prod(a.shape[1:])) for a in arrays))
    name = f"lot-{uuid.uuid4().hex}"
    keys: list[Hashable] = [(name, i, 0, 0) for i in range(len(lots))]
    widths: list[Hashable] = [(f"width-{name}", i) for i in range(len(lots))]
    for chunk, names in enumerate(columns):
        graph[f"part-{name}", chunk] = (Call(make), *names)
    for key, width, lot in zip(keys, widths, lots, strict=True):
        graph[key] = (Call(_joined), [(f"part-{name}", chunk) for chunk in lot])
        graph[width] = (_width, key)
    futures, found = hold(fused(graph, [*keys, *widths]), keys, widths)
    stack.callback(_release, futures)
    lengths = tuple(sum(chunks[chunk] for chunk in lot) for lot in lots)
    held = dict(zip(keys, futures, strict=True))
    return unpacked(da.Array(held, name, (lengths, (1,), (max(found),)), dtype=object), dtypes)


def _lots(chunks: Sequence[int], pixels: int) -> list[range]:
    """Chunks that go together: neighbours, of about as many slits."""
    total = sum(chunks)
    most = max(int(min(_PIXELS / pixels, np.ceil(total / (_A_THREAD * workers())))), 1)
    which = (np.cumsum(chunks) - 1) // most
    cuts = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(chunks)]
    return [range(a, b) for a, b in pairwise(cuts)]


def _joined(parts: Sequence[tuple[NDArray, ...]]) -> tuple[NDArray, ...]:
    """One row a slit, as wide as the widest; what is added is 0 or NaN."""
    if len(parts) == 1:
        return tuple(parts[0])
    width = max(part[0].shape[2] for part in parts)
    return tuple(
        np.concatenate([_widened(block, width) for block in column])
        for column in zip(*parts, strict=True)
    )


def _widened(block: NDArray, width: int) -> NDArray:
    fill = np.nan if block.dtype.kind == "f" else 0
    return np.pad(block, ((0, 0), (0, 0), (0, width - block.shape[2])), constant_values=fill)


def _width(lot: tuple[NDArray, ...]) -> int:
    return int(lot[0].shape[2])


def _release(futures: Sequence[Any]) -> None:
    for future in futures:
        future.release()
