"""Where the pixels of a fit are held between its passes.

Those that passes and looks read are packed (`mbkg_xr.packing`) as they are read for the first time.
A limited amount is kept in memory; the rest goes to scratch files (`mbkg_xr.room`), which read many
times faster than a store. The workers of a cluster hold them (`mbkg_xr.lots`). Where there is no
room for them the pixels are read again each time, and only the mask of the selected ones is kept, a
bit a pixel.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import Call, Constant, added, map_slits, reduce_blocks
from .lots import can_hold, held_lots, with_workers
from .packing import COLUMNS, Packed, Pixels, Stored, pack, planes
from .room import NoRoom, Room
from .rows import Piece, Rows
from .schema import PIXEL_DIMS
from .spans import SpanGrid
from .tasks import cluster, workers

__all__ = [
    "Block",
    "Held",
    "Parts",
    "Planes",
    "Sight",
    "Source",
    "held",
    "pass_columns",
    "per_unit_sky",
]

#: Pixels of some slits with the slits they belong to, as a block function takes them: once, one
#: after the other, since what lies in a file is read when it is its turn.
Parts = Iterable[tuple[slice, Pixels]]
#: ``block(slits, parts, shared)``: what is found of consecutive slits.
Block = Callable[[slice, Parts, Any], Any]

_PIXELS = 2**19  # that a block function gets at a time, about
_OF_WORKER = 2**21  # selected ones of a lot of few slits that a worker holds, at most
_OF_PART = 2**17  # that are together in a part, about


class Sight(Protocol):
    """Which pixels a look may see, whatever the fit has found by then."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Pixel variables that tell."""

    def mask(self, slits: slice | NDArray[np.int64], *columns: NDArray) -> NDArray[np.bool_]:
        """``(slit, y, x)``, from blocks of `columns`."""


class Source(Protocol):
    """Pixels of a slit dataset, wherever they are."""

    #: The slits' coordinates.
    slits: xr.Dataset
    grid: SpanGrid
    #: Number of selected pixels within the spans.
    size: int

    def reduce(
        self,
        block: Block,
        add: Callable[[Any, Any], Any],
        shared: Any = None,
        *,
        seen: bool = False,
    ) -> Any:
        """Apply a block function to all selected pixels, or to all that a look sees, and add up."""

    def part(self, rows: NDArray[np.int64], stack: ExitStack) -> Source:
        """Those of some of the slits (increasing), held until `stack` ends."""


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


def held(
    ds: xr.Dataset,
    grid: SpanGrid,
    *,
    memory: int,
    sight: Sight | None = None,
    stack: ExitStack | None = None,
) -> Source:
    """The pixels that passes and looks read, held where there is room. Reads all pixels.

    Parameters
    ----------
    ds
        A selected slit dataset. The selection is made once, here.
    grid
        The spans.
    memory
        Bytes that packed pixels may take in memory, those of parts included.
    sight
        Which pixels looks see; None: there are no looks.
    stack
        At its end goes what was packed for it: in scratch files, where too much for memory, or
        held by the workers of a cluster. None: neither is to be.
    """
    slits = ds.drop_vars([str(n) for n, v in ds.variables.items() if v.ndim > 1])
    names = pass_columns(ds)
    looks = sight.columns if sight is not None else ()
    lazy = any(isinstance(ds[name].data, da.Array) for name in ("selected", *looks, *names))
    if lazy and cluster() is not None:
        if stack is not None and can_hold(_usual_size(ds), memory):
            return _on_workers(ds, slits, grid, sight, stack)
        return Planes.of(ds, grid, sight)
    room = Room(memory, stack)

    def block(start: int, arrays: Sequence[NDArray], shared: Any) -> list[Packed | Stored]:
        where = slice(start, start + len(arrays[0]))
        return [room.keep(_pack_block(grid, sight, where, *arrays))]

    try:
        parts = reduce_blocks(ds, ["selected", *looks, *names], block, lambda a, b: a + b)
    except NoRoom:
        return Planes.of(ds, grid, sight)
    return _here(slits, grid, parts, room)


def pass_columns(ds: xr.Dataset) -> list[str]:
    """Names of the arrays that a pass reads beside the mask: both variances or neither."""
    names = [name for name in COLUMNS if name in ds.variables]
    return names if len(names) == len(COLUMNS) else names[:4]


def _pack_block(
    grid: SpanGrid,
    sight: Sight | None,
    where: slice | NDArray[np.int64],
    selected: NDArray,
    *arrays: NDArray,
) -> Packed:
    n = len(sight.columns) if sight is not None else 0
    seen = np.zeros_like(selected) if sight is None else sight.mask(where, *arrays[:n])
    return pack(selected, seen, arrays[n:], grid)


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
        columns = [tuple(self.keys[i] for i in lot) for lot in lots]
        run = partial(_run, block, seen)
        first = [starts[lot[0]] for lot in lots]
        return added(self.graph, columns, first, run, add, shared, local=self.room is not None)

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
        pieces = [[some[k] for k in piece] for piece in _together(sizes, _OF_PART)]

        def run(
            piece: int, lots: Sequence[list[Packed | Stored]], shared: Any
        ) -> list[Packed | Stored]:
            (taken,) = _taken([mine[i] for i in pieces[piece]], lots)
            try:
                return [room.keep(taken)]
            except NoRoom:  # too little to be read again each time, with all that lies beside it
                return [taken]

        columns = [tuple(self.keys[i] for i in piece) for piece in pieces]
        each = range(len(pieces))
        found = added(self.graph, columns, each, run, lambda a, b: a + b, local=True)
        return _here(slits, self.grid, found, room)

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
        return _together(self.sizes, min(_PIXELS, -(-self.size // (2 * workers()))))


def _joined(lots: Sequence[Sequence[Packed]]) -> list[Packed]:
    return [Packed.joined([*chain.from_iterable(lots)])]


def _together(sizes: Sequence[int], most: int) -> list[range]:
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


def _here(slits: xr.Dataset, grid: SpanGrid, parts: Sequence[Packed | Stored], room: Room) -> Held:
    """Packed pixels of this process."""
    name = f"held-{uuid.uuid4().hex}"
    keys: list[Hashable] = [(name, i) for i in range(len(parts))]
    graph = {k: (Constant([part]),) for k, part in zip(keys, parts, strict=True)}
    lengths, sizes = [part.slits for part in parts], [part.size for part in parts]
    return Held(slits, grid, sum(sizes), graph, keys, lengths, sizes, room)


@dataclass
class Planes:
    """Pixels that are read again each time; of a mask that is known.

    Attributes
    ----------
    slits, grid, size
        As of any `Source`.
    ds
        With all pixels.
    sight
        Which of them looks see.
    """

    slits: xr.Dataset
    grid: SpanGrid
    size: int
    ds: xr.Dataset
    sight: Sight | None

    @classmethod
    def of(cls, ds: xr.Dataset, grid: SpanGrid, sight: Sight | None = None) -> Planes:
        """Finds out which pixels are selected, once."""
        n, *shape = ds["flux"].shape
        rows = Rows.zeros(n, ((-(-math.prod(shape) // 8),), np.uint8))

        def block(start: int, arrays: Sequence[NDArray], shared: Any) -> tuple[int, list[Piece]]:
            selected, wavelength = arrays
            inside = (wavelength >= grid.edges[0]) & (wavelength < grid.edges[-1])
            bits = np.packbits(selected.reshape(len(selected), -1), axis=1)
            where = slice(start, start + len(selected))
            return int(np.count_nonzero(selected & inside)), rows.put(where, bits)

        def joined(a: tuple, b: tuple) -> tuple[int, list[Piece]]:
            return a[0] + b[0], a[1] + b[1]

        size, pieces = reduce_blocks(ds, ["selected", "wavelength"], block, joined)
        (bits,) = rows.filled(pieces)
        mask = map_slits(_mask_block, ds["flux"], bits[:, None], dtype=np.bool_, shape=tuple(shape))
        known = ds.assign(selected=(PIXEL_DIMS, mask, ds["selected"].attrs))
        slits = ds.drop_vars([str(n) for n, v in ds.variables.items() if v.ndim > 1])
        return cls(slits, grid, size, known, sight)

    def reduce(
        self,
        block: Block,
        add: Callable[[Any, Any], Any],
        shared: Any = None,
        *,
        seen: bool = False,
    ) -> Any:
        """Apply a block function to all selected pixels, or to all that a look sees, and add up."""
        names, grid, sight = pass_columns(self.ds), self.grid, self.sight

        def run(start: int, arrays: Sequence[NDArray], shared: Any) -> Any:
            where = slice(start, start + len(arrays[0]))
            if seen and sight is not None:
                n = len(sight.columns)
                mask, columns = sight.mask(where, *arrays[:n]), arrays[n:]
            else:
                mask, columns = arrays[0], arrays[1:]
            return block(where, [(where, planes(mask, columns, grid))], shared)

        asked = sight.columns if seen and sight is not None else ("selected",)
        return reduce_blocks(self.ds, [*asked, *names], run, add, shared)

    def part(self, rows: NDArray[np.int64], stack: ExitStack) -> Held:
        """Those of some of the slits, packed and in memory."""
        names, grid, sight = pass_columns(self.ds), self.grid, self.sight

        def run(start: int, arrays: Sequence[NDArray], shared: Any) -> list[Packed]:
            own = rows[slice(*rows.searchsorted([start, start + len(arrays[0])]))]
            return [_pack_block(grid, sight, own, *(a[own - start] for a in arrays))]

        looks = sight.columns if sight is not None else ()
        columns = ["selected", *looks, *names]
        found = reduce_blocks(self.ds, columns, run, lambda a, b: a + b, rows=rows)
        pieces = _together([one.size for one in found], _OF_PART)
        joined = [Packed.joined(found[piece.start : piece.stop]) for piece in pieces]
        return _here(self.slits.isel(slit=rows), grid, joined, Room(0, None))


def _mask_block(mask: NDArray, *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    bits = np.unpackbits(mask[:, 0], axis=1, count=shape[0] * shape[1])
    return bits.view(np.bool_).reshape(-1, *shape)


def _on_workers(
    ds: xr.Dataset, slits: xr.Dataset, grid: SpanGrid, sight: Sight | None, stack: ExitStack
) -> Held:
    """Packed where they are read, and left there."""
    looks = sight.columns if sight is not None else ()
    arrays = [ds[name].data for name in ("selected", *looks, *pass_columns(ds))]
    make = partial(_pack_block, grid, sight)
    lots, lengths, sizes = held_lots(make, arrays, stack=stack)
    return Held(slits, grid, sum(sizes), lots, [*lots], lengths, sizes)


def _usual_size(ds: xr.Dataset) -> int:
    """Bytes of packed pixels, nearly: half of all."""
    return 4 * len(pass_columns(ds)) * ds["flux"].size // 2
