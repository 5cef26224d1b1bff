"""Where the pixels of a fit are held between its passes.

Those that passes and looks read are packed (`mbkg_xr.packing`) as they are read for the first time.
They are kept in memory; what does not fit there goes to scratch files, which read many times faster
than a store. The workers of a cluster hold them (`mbkg_xr.lots`). Where there is no room for them
the pixels are read again each time, and only the mask of the selected ones is kept, a bit a pixel.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import Call, Constant, added, map_slits, reduce_blocks
from .lots import can_hold, held_lots, with_workers
from .packing import COLUMNS, Packed, Pixels, Stored, pack, planes
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

#: Pixels of some slits with the slits they belong to, as a block function takes them.
Parts = list[tuple[slice, Pixels]]
#: ``block(slits, parts, shared)``: what is found of consecutive slits.
Block = Callable[[slice, Parts, Any], Any]

_PIXELS = 2**19  # that a block function gets at a time, about


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
        Bytes that packed pixels may take in memory.
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
    room = _Room(memory, stack)

    def block(start: int, arrays: Sequence[NDArray], shared: Any) -> list[Packed | Stored]:
        where = slice(start, start + len(arrays[0]))
        return [room.keep(start, _pack_block(grid, sight, where, *arrays))]

    try:
        parts = reduce_blocks(ds, ["selected", *looks, *names], block, lambda a, b: a + b)
    except _NoRoom:
        return Planes.of(ds, grid, sight)
    return _in_memory(slits, grid, parts)


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
    local
        Whether all of them are in this process.
    """

    slits: xr.Dataset
    grid: SpanGrid
    size: int
    graph: dict
    keys: list[Hashable]
    lengths: list[int]
    sizes: list[int]
    local: bool

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
        return added(self.graph, columns, first, run, add, shared, local=self.local)

    def part(self, rows: NDArray[np.int64], stack: ExitStack) -> Held:
        """Those of some of the slits, in memory; those of workers stay with them."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        cuts = np.searchsorted(rows, starts)
        mine = [rows[a:b] - start for a, b, start in zip(cuts, cuts[1:], starts, strict=False)]
        slits = self.slits.isel(slit=rows)
        if not self.local:
            name = f"few-{uuid.uuid4().hex}"
            some = [i for i, own in enumerate(mine) if own.size]
            keys: list[Hashable] = [(name, i) for i in some]
            make = {
                key: (Call(partial(_taken, mine[i])), self.keys[i])
                for key, i in zip(keys, some, strict=True)
            }
            lots, sizes = with_workers(self.graph | make, keys, stack)
            lengths = [mine[i].size for i in some]
            return Held(slits, self.grid, sum(sizes), lots, keys, lengths, sizes, local=False)

        def run(lot: int, lots: Sequence[list[Packed | Stored]], shared: Any) -> list[Packed]:
            return _taken(mine[lot], lots[0]) if mine[lot].size else []

        columns = [(key,) for key in self.keys]
        found = added(self.graph, columns, range(len(columns)), run, lambda a, b: a + b, local=True)
        return _in_memory(slits, self.grid, _larger(found))

    def _lots(self) -> list[range]:
        """Those that one task takes: few large tasks, but two for every worker."""
        if not self.local:
            return [range(i, i + 1) for i in range(len(self.keys))]
        most = min(_PIXELS, -(-self.size // (2 * workers())))
        lots, first, held = [], 0, 0
        for i, size in enumerate(self.sizes):
            if i > first and held + size > most:
                lots.append(range(first, i))
                first, held = i, 0
            held += size
        return [*lots, range(first, len(self.sizes))]


def _run(
    block: Block, seen: bool, start: int, lots: Sequence[list[Packed | Stored]], shared: Any
) -> Any:
    parts: Parts = []
    first = start
    for one in chain.from_iterable(lots):
        where = slice(start, start + one.slits)
        parts += [(where, pixels) for pixels in one.pixels(seen=seen)]
        start = where.stop
    return block(slice(first, start), parts, shared)


def _taken(rows: NDArray[np.int64], lot: Sequence[Packed | Stored]) -> list[Packed]:
    """Of consecutive slits those of some rows."""
    out, start = [], 0
    for one in lot:
        own = rows[(rows >= start) & (rows < start + one.slits)] - start
        if own.size:
            out.append(one.load().take(own))
        start += one.slits
    return [Packed.joined(out)]


def _larger(parts: list[Packed]) -> list[Packed]:
    """The same in fewer pieces."""
    out: list[Packed] = []
    while parts:
        n, size = 0, 0
        while n < len(parts) and (n == 0 or size + parts[n].size <= _PIXELS // 4):
            size += parts[n].size
            n += 1
        out.append(Packed.joined(parts[:n]))
        del parts[:n]
    return out


def _in_memory(slits: xr.Dataset, grid: SpanGrid, parts: Sequence[Packed | Stored]) -> Held:
    """Packed pixels of this process."""
    name = f"held-{uuid.uuid4().hex}"
    keys: list[Hashable] = [(name, i) for i in range(len(parts))]
    graph = {k: (Constant([part]),) for k, part in zip(keys, parts, strict=True)}
    lengths, sizes = [part.slits for part in parts], [part.size for part in parts]
    return Held(slits, grid, sum(sizes), graph, keys, lengths, sizes, local=True)


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

        def block(start: int, arrays: Sequence[NDArray], shared: Any) -> tuple[int, NDArray]:
            selected, wavelength = arrays
            inside = (wavelength >= grid.edges[0]) & (wavelength < grid.edges[-1])
            flat = selected.reshape(len(selected), -1)
            return int(np.count_nonzero(selected & inside)), np.packbits(flat, axis=1)

        def joined(a: tuple, b: tuple) -> tuple[int, NDArray]:
            return a[0] + b[0], np.concatenate([a[1], b[1]])

        size, bits = reduce_blocks(ds, ["selected", "wavelength"], block, joined)
        shape = ds["flux"].shape[1:]
        mask = map_slits(_mask_block, ds["flux"], bits[:, None], dtype=np.bool_, shape=shape)
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
            own = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(arrays[0]))]
            if not own.size:
                return []
            return [_pack_block(grid, sight, own, *(a[own - start] for a in arrays))]

        looks = sight.columns if sight is not None else ()
        found = reduce_blocks(self.ds, ["selected", *looks, *names], run, lambda a, b: a + b)
        return _in_memory(self.slits.isel(slit=rows), grid, _larger(found))


def _mask_block(mask: NDArray, *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    bits = np.unpackbits(mask[:, 0], axis=1, count=shape[0] * shape[1])
    return bits.view(np.bool_).reshape(-1, *shape)


class _NoRoom(Exception):
    """Neither in memory nor for scratch files."""


class _Room:
    """Memory first, then scratch files: what there is room for, asked from several threads."""

    def __init__(self, memory: int, stack: ExitStack | None):
        self.left, self.stack = memory, stack
        self.folder: Path | None = None
        self.lock = threading.Lock()

    def keep(self, start: int, packed: Packed) -> Packed | Stored:
        with self.lock:
            if packed.nbytes <= self.left:
                self.left -= packed.nbytes
                return packed
            if self.stack is None:
                raise _NoRoom
            try:
                if self.folder is None:
                    place = dask.config.get("temporary-directory", None)
                    folder = TemporaryDirectory(prefix="mbkg-xr-", dir=place)
                    self.folder = Path(self.stack.enter_context(folder))
                # Other threads write at the same time, and others need room, too.
                if shutil.disk_usage(self.folder).free < 8 * packed.nbytes:
                    raise _NoRoom
            except OSError as error:
                raise _NoRoom from error
        try:
            return packed.write(self.folder / f"{start}.pixels")
        except OSError as error:
            raise _NoRoom from error


def _on_workers(
    ds: xr.Dataset, slits: xr.Dataset, grid: SpanGrid, sight: Sight | None, stack: ExitStack
) -> Held:
    """Packed where they are read, and left there."""
    looks = sight.columns if sight is not None else ()
    arrays = [ds[name].data for name in ("selected", *looks, *pass_columns(ds))]
    make = partial(_pack_block, grid, sight)
    lots, lengths, sizes = held_lots(make, arrays, stack=stack)
    return Held(slits, grid, sum(sizes), lots, [*lots], lengths, sizes, local=False)


def _usual_size(ds: xr.Dataset) -> int:
    """Bytes of packed pixels, nearly: half of all."""
    return 4 * len(pass_columns(ds)) * ds["flux"].size // 2
