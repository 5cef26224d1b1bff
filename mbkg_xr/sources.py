"""Pixels as passes and looks ask for them, wherever they are, and which of them these read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .packing import COLUMNS, Packed, Pixels, pack
from .spans import SpanGrid

__all__ = ["Block", "Parts", "Sight", "Source", "pack_block", "pass_columns", "per_unit_sky"]

#: Pixels of some slits with the slits they belong to, as a block function takes them: once, one
#: after the other, since what lies in a file is read when it is its turn.
Parts = Iterable[tuple[slice, Pixels]]
#: ``block(slits, parts, shared)``: what is found of consecutive slits.
Block = Callable[[slice, Parts, Any], Any]


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


def pass_columns(ds: xr.Dataset) -> list[str]:
    """Names of the arrays that a pass reads beside the mask: both variances or neither."""
    names = [name for name in COLUMNS if name in ds.variables]
    return names if len(names) == len(COLUMNS) else names[:4]


def pack_block(
    grid: SpanGrid,
    sight: Sight | None,
    where: slice | NDArray[np.int64],
    selected: NDArray,
    *arrays: NDArray,
) -> Packed:
    """Pack what passes and looks read of some slits: the mask, what tells looks, `pass_columns`."""
    n = len(sight.columns) if sight is not None else 0
    seen = np.zeros_like(selected) if sight is None else sight.mask(where, *arrays[:n])
    return pack(selected, seen, arrays[n:], grid)
