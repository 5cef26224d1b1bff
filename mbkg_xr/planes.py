"""Pixels that are read again by each pass: where there is no room for packed ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits, reduce_blocks
from .packed import OF_PART, Held, in_process, together
from .packing import Packed, planes
from .room import Room
from .rows import Piece, Rows
from .schema import PIXEL_DIMS
from .sources import Block, Sight, pack_block, pass_columns
from .spans import SpanGrid

__all__ = ["Planes"]


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
            return [pack_block(grid, sight, own, *(a[own - start] for a in arrays))]

        looks = sight.columns if sight is not None else ()
        columns = ["selected", *looks, *names]
        found = reduce_blocks(self.ds, columns, run, lambda a, b: a + b, rows=rows)
        pieces = together([one.size for one in found], OF_PART)
        joined = [Packed.joined(found[piece.start : piece.stop]) for piece in pieces]
        return in_process(self.slits.isel(slit=rows), grid, joined, Room(0, None))


def _mask_block(mask: NDArray, *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    bits = np.unpackbits(mask[:, 0], axis=1, count=shape[0] * shape[1])
    return bits.view(np.bool_).reshape(-1, *shape)
