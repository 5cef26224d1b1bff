"""Packed pixels between passes: in memory, in scratch files, or on the workers of a cluster."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import Call, Constant, added
from .lots import with_workers
from .packing import Packed, Pixels, Stored
from .room import NoRoom, Room
from .sources import Block
from .spans import SpanGrid
from .tasks import workers

__all__ = ["OF_PART", "Held", "in_process", "together"]

#: Pixels that are together in a part of few slits, about.
OF_PART = 2**17
_PIXELS = 2**19  # that a block function gets at a time, about
_A_SLIT = 2**9  # and of few pixels a slit, 2**10 slits: each counts for so many
_OF_WORKER = 2**21  # selected ones of a lot of few slits that a worker holds, at most


@dataclass
class Held:
    """Packed pixels, in memory, in scratch files, or on the workers of a cluster.

    Attributes
    ----------
    slits, grid, size
        As of any `Source`.
    graph, keys
        Of dask: where each lot of packed pixels is.
    lengths, sizes
        Slits and selected pixels of each lot.
    room
        Where those of this process are, and parts of them go; None: they are on workers.
    """

    slits: xr.Dataset
    grid: SpanGrid
    size: int
    graph: dict
    keys: list[Hashable]
    lengths: list[int]
    sizes: list[int]
    room: Room | None = None

    def reduce(
        self,
        block: Block,
        add: Callable[[Any, Any], Any],
        shared: Any = None,
        *,
        seen: bool = False,
    ) -> Any:
        """Apply a block function to all selected pixels, or to all that a look sees, and add up."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)]).tolist()
        lots = self._lots()
        keys = [[self.keys[i] for i in lot] for lot in lots]
        run = partial(_run, block, seen)
        first = [starts[lot[0]] for lot in lots]
        return added(self.graph, keys, first, run, add, shared, local=self.room is not None)

    def part(self, rows: NDArray[np.int64], stack: ExitStack) -> Held:
        """Those of some of the slits, in what room there is; those of workers stay with them."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        cuts = np.searchsorted(rows, starts)
        mine = [rows[a:b] - start for a, b, start in zip(cuts, cuts[1:], starts, strict=False)]
        slits = self.slits.isel(slit=rows)
        some = [i for i, own in enumerate(mine) if own.size]
        # Of each lot a few pixels, of many lots a piece.
        sizes = [self.sizes[i] * mine[i].size // self.lengths[i] for i in some]
        if self.room is None:
            return self._part_of_workers(slits, mine, some, sizes, stack)
        room = self.room
        pieces = [[some[k] for k in piece] for piece in together(sizes, OF_PART)]

        def run(
            piece: int, lots: Sequence[list[Packed | Stored]], shared: Any
        ) -> list[Packed | Stored]:
            (taken,) = _taken([mine[i] for i in pieces[piece]], lots)
            try:
                return [room.keep(taken)]
            except NoRoom:  # too little to be read again each time, with all that lies beside it
                return [taken]

        keys = [[self.keys[i] for i in piece] for piece in pieces]
        each = range(len(pieces))
        found = added(self.graph, keys, each, run, lambda a, b: a + b, local=True)
        return in_process(slits, self.grid, found, room)

    def _part_of_workers(
        self,
        slits: xr.Dataset,
        mine: list[NDArray[np.int64]],
        some: list[int],
        sizes: list[int],
        stack: ExitStack,
    ) -> Held:
        """The same of workers: each takes its few where they lie, and one a thread joins them."""
        name = uuid.uuid4().hex
        taken: list[Hashable] = [(f"taken-{name}", i) for i in some]
        graph = self.graph | {
            key: (Call(partial(_taken, [mine[i]])), [self.keys[i]])
            for key, i in zip(taken, some, strict=True)
        }
        share = -(-sum(sizes) // max(workers(), -(-sum(sizes) // _OF_WORKER)))
        which = (np.cumsum(sizes) - 1) // max(share, 1)
        keys: list[Hashable] = []
        lengths = []
        for piece in (np.flatnonzero(which == k).tolist() for k in np.unique(which)):
            keys.append((f"few-{name}", len(keys)))
            graph[keys[-1]] = (_joined, [taken[k] for k in piece])
            lengths.append(sum(mine[some[k]].size for k in piece))
        lots, found = with_workers(graph, keys, stack, apart=taken)
        return Held(slits, self.grid, sum(found), lots, keys, lengths, found)

    def _lots(self) -> list[range]:
        """Those that one task takes: few large tasks, but two for every worker."""
        if self.room is None:
            return [range(i, i + 1) for i in range(len(self.keys))]
        # Tables by slit are made as well, of slits with few pixels, too.
        lots = zip(self.sizes, self.lengths, strict=True)
        weights = [max(size, n * _A_SLIT) for size, n in lots]
        return together(weights, min(_PIXELS, -(-sum(weights) // (2 * workers()))))


def _joined(lots: Sequence[Sequence[Packed]]) -> list[Packed]:
    return [Packed.joined([*chain.from_iterable(lots)])]


def together(sizes: Sequence[int], most: int) -> list[range]:
    """Neighbours that come to no more than `most`."""
    lots, first, held = [], 0, 0
    for i, size in enumerate(sizes):
        if i > first and held + size > most:
            lots.append(range(first, i))
            first, held = i, 0
        held += size
    return [*lots, range(first, len(sizes))]


def _run(
    block: Block, seen: bool, start: int, lots: Sequence[list[Packed | Stored]], shared: Any
) -> Any:
    def parts() -> Iterator[tuple[slice, Pixels]]:
        first = start
        for one in chain.from_iterable(lots):
            where = slice(first, first + one.slits)
            for pixels in one.pixels(seen=seen):
                yield where, pixels
            first = where.stop

    stop = start + sum(one.slits for one in chain.from_iterable(lots))
    return block(slice(start, stop), parts(), shared)


def _taken(
    rows: Sequence[NDArray[np.int64]], lots: Sequence[Sequence[Packed | Stored]]
) -> list[Packed]:
    """Of the consecutive slits of each lot those of some rows."""
    out = []
    for mine, lot in zip(rows, lots, strict=True):
        start = 0
        for one in lot:
            own = mine[(mine >= start) & (mine < start + one.slits)] - start
            if own.size:
                out.append(one.take(own))
            start += one.slits
    return [Packed.joined(out)]


def in_process(
    slits: xr.Dataset, grid: SpanGrid, parts: Sequence[Packed | Stored], room: Room
) -> Held:
    """Packed pixels of this process."""
    name = f"held-{uuid.uuid4().hex}"
    keys: list[Hashable] = [(name, i) for i in range(len(parts))]
    graph = {k: (Constant([part]),) for k, part in zip(keys, parts, strict=True)}
    lengths, sizes = [part.slits for part in parts], [part.size for part in parts]
    return Held(slits, grid, sum(sizes), graph, keys, lengths, sizes, room)
