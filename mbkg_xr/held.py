"""Where the pixels of a fit are held between its passes.

Those that passes and looks read are packed (`mbkg_xr.packing`) as they are read for the first time.
A limited amount is kept in memory; the rest goes to scratch files (`mbkg_xr.room`), which read many
times faster than a store. The workers of a cluster hold them (`mbkg_xr.lots`). Where there is no
room for them the pixels are read again each time, and only the mask of the selected ones is kept, a
bit a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import dask.array as da
import xarray as xr
from numpy.typing import NDArray

from .blocks import reduce_blocks
from .lots import can_hold, held_lots
from .packed import Held, in_process
from .packing import Packed, Stored
from .planes import Planes
from .room import NoRoom, Room
from .sources import Sight, Source, pack_block, pass_columns
from .spans import SpanGrid
from .tasks import cluster

__all__ = ["held"]


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
        return [room.keep(pack_block(grid, sight, where, *arrays))]

    try:
        parts = reduce_blocks(ds, ["selected", *looks, *names], block, lambda a, b: a + b)
    except NoRoom as reason:
        room.give_up(reason)
        return Planes.of(ds, grid, sight)
    return in_process(slits, grid, parts, room)


def _on_workers(
    ds: xr.Dataset, slits: xr.Dataset, grid: SpanGrid, sight: Sight | None, stack: ExitStack
) -> Held:
    """Packed where they are read, and left there."""
    looks = sight.columns if sight is not None else ()
    arrays = [ds[name].data for name in ("selected", *looks, *pass_columns(ds))]
    make = partial(pack_block, grid, sight)
    lots, lengths, sizes = held_lots(make, arrays, stack=stack)
    return Held(slits, grid, sum(sizes), lots, [*lots], lengths, sizes)


def _usual_size(ds: xr.Dataset) -> int:
    """Bytes of packed pixels, nearly: half of all."""
    return 4 * len(pass_columns(ds)) * ds["flux"].size // 2
