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

import numpy as np

from .blocks import Constant, aligned
from .fuse import fused
from .tasks import cluster, hold, workers

__all__ = ["can_hold", "held_lots", "with_workers"]

_PIXELS = 2**23  # of a lot, nearly: each brings back sums as large as those of few


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
    make: Callable[..., Any], arrays: Sequence[Any], *, stack: ExitStack
) -> tuple[dict[Hashable, Any], list[int], list[int]]:
    """Packed pixels of all slits, in lots that stay with the workers. Computes.

    Parameters
    ----------
    make
        ``make(slits, *blocks)``: what is held of a chunk, which has a `size`.
    arrays
        ``(slit, y, x)``, some of them lazy.
    stack
        At its end the workers let go of the lots.

    Returns
    -------
    futures, lengths, sizes
        Of each lot: a future of a list, one a chunk, by its key; the number of its slits; the sum
        of the sizes.
    """
    chunks, graph, blocks = aligned(arrays)
    starts = [0, *np.cumsum(chunks).tolist()]
    lots = _lots(chunks, max(int(np.prod(a.shape[1:])) for a in arrays))
    name = f"lot-{uuid.uuid4().hex}"
    keys: list[Hashable] = [(name, i) for i in range(len(lots))]
    # With what it carries, it is sent to each worker once, and not with each lot.
    graph[f"make-{name}"] = (Constant(make),)
    for chunk, block in enumerate(blocks):
        slits = Constant(slice(starts[chunk], starts[chunk + 1]))
        graph[f"part-{name}", chunk] = (_made, f"make-{name}", (slits,), block)
    for key, lot in zip(keys, lots, strict=True):
        graph[key] = (list, [(f"part-{name}", chunk) for chunk in lot])
    held, sizes = with_workers(graph, keys, stack)
    return held, [starts[lot.stop] - starts[lot.start] for lot in lots], sizes


def with_workers(
    graph: dict, keys: Sequence[Hashable], stack: ExitStack, *, apart: Sequence[Hashable] = ()
) -> tuple[dict[Hashable, Any], list[int]]:
    """Lots of a graph, held by the workers until `stack` ends: futures by key, and their sizes.

    What is `apart` stays a task of its own, which is done where its data lie.
    """
    sizes: list[Hashable] = [("size", key) for key in keys]
    graph = graph | {size: (_size, key) for size, key in zip(sizes, keys, strict=True)}
    futures, found = hold(fused(graph, [*keys, *sizes, *apart]), keys, sizes)
    stack.callback(_release, futures)
    return dict(zip(keys, futures, strict=True)), found


def _lots(chunks: Sequence[int], pixels: int) -> list[range]:
    """Chunks that go together: neighbours, of about as many slits."""
    total = sum(chunks)
    most = max(int(min(_PIXELS / pixels, np.ceil(total / workers()))), 1)
    which = (np.cumsum(chunks) - 1) // most
    cuts = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(chunks)]
    return [range(a, b) for a, b in pairwise(cuts)]


def _made(make: Callable[..., Any], slits: slice, blocks: Sequence[Any]) -> Any:
    return make(slits, *blocks)


def _size(lot: Sequence[Any]) -> int:
    return sum(part.size for part in lot)


def _release(futures: Sequence[Any]) -> None:
    for future in futures:
        future.release()
