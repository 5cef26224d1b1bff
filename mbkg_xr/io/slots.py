"""The arrays of an ingested store: slots for slits, whole chunks of them for each exposure.

Each exposure on each detector has slots of its own, rounded up to whole chunks, so that writing one
never touches another, may be done again, and needs no order. Pixels are written by many tasks; all
else in here is for the one process that holds the store's lock.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from ..schema import SLIT_COORDS
from .chunks import COMPRESSORS, chunk_name
from .journal import Block, Group, Journal
from .location import is_remote, located, remove_tree, sizes_below, zarr_store

__all__ = [
    "COORDS_A_CHUNK",
    "coord_values",
    "digest",
    "expected_files",
    "fill_of",
    "flag_table_of",
    "grow",
    "litter",
    "mirror",
    "sweep",
    "unknown_of",
    "write_pixels",
]

COORDS_A_CHUNK = 8192
_UNKNOWN = {"U": "", "i": -1, "u": 0, "f": np.nan, "b": False}
_CODECS: dict[str, Any] = {
    "compressors": COMPRESSORS,
    # Chunks in one directory a variable: a listing tells whether all are there.
    "chunk_key_encoding": {"name": "default", "separator": "."},
}


def fill_of(variable: Mapping[str, Any]) -> Any:
    """What padding holds: NaN, or DO_NOT_USE in quality."""
    if "flag_meanings" in variable["attrs"]:
        return flag_table_of(variable)["DO_NOT_USE"]
    return np.nan if np.dtype(variable["dtype"]).kind == "f" else 0


def flag_table_of(variable: Mapping[str, Any]) -> dict[str, int]:
    """The quality flags that a variable's attributes name."""
    attrs = variable["attrs"]
    return dict(zip(attrs["flag_meanings"].split(), attrs["flag_masks"], strict=True))


def grow(store: str | Path, name: str, group: Group, slots: int, shape: tuple[int, int]) -> None:
    """Make what arrays of a group are missing, and enlarge them; they are never cut.

    Parameters
    ----------
    store, name
        The store, and the group's name.
    group
        As in the journal.
    slots, shape
        Slots, rows and columns that are needed at least.
    """
    folder = located(store) / name
    zarr.open_group(zarr_store(folder), mode="a")
    n, ny, nx = group.chunk
    size = (-(-slots // n) * n, -(-shape[0] // ny) * ny, -(-shape[1] // nx) * nx)
    for variable, made in group.variables.items():
        fill, dims = fill_of(made), "slit y x"
        _grow_one(folder, variable, size, group.chunk, made["dtype"], fill, made["attrs"], dims)
    for coord, made in group.coords.items():
        dtype = str if made["dtype"] == "U" else made["dtype"]
        chunk, fill = (COORDS_A_CHUNK,), unknown_of(coord, made)
        _grow_one(folder, coord, size[:1], chunk, dtype, fill, made["attrs"], "slit")


def _grow_one(
    folder: Path,
    name: str,
    size: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: Any,
    fill: Any,
    attrs: dict,
    dims: str,
) -> None:
    if not (folder / name / "zarr.json").exists():
        zarr.create_array(
            zarr_store(folder / name),
            shape=size,
            chunks=chunk,
            dtype=dtype,
            fill_value=fill,
            attributes=attrs,
            dimension_names=dims.split(),
            zarr_format=3,
            **_CODECS,
        )
        return
    array = zarr.open_array(zarr_store(folder / name), mode="r+")
    larger = tuple(map(max, array.shape, size))
    if larger != array.shape:
        array.resize(larger)


def _writable(folder: Path) -> zarr.Array:
    """An array to write to, chunks that hold nothing but fill too: every one must be there."""
    every: Any = {"write_empty_chunks": True}
    return cast(zarr.Array, zarr.open(zarr_store(folder), mode="r+", config=every))


def unknown_of(name: str, made: Mapping[str, Any]) -> Any:
    if name in SLIT_COORDS:
        return SLIT_COORDS[name][1]
    return _UNKNOWN[np.dtype(made["dtype"]).kind]


def write_pixels(store: str | Path, name: str, start: int, values: NDArray) -> None:
    """Write whole chunks of one array, from slot `start` on; when this returns they are on disk.

    Parameters
    ----------
    store, name
        The store, and the array, such as ``prism-clear/flux``.
    start
        A multiple of the chunk's length.
    values
        ``(slit, y, x)``, a whole number of chunks in each dimension.
    """
    folder = located(store) / name
    array = _writable(folder)
    counts = [s // c for s, c in zip(values.shape, array.chunks, strict=True)]
    if start % array.chunks[0] or any(
        s % c for s, c in zip(values.shape, array.chunks, strict=True)
    ):
        raise AssertionError("only whole chunks are written")
    if any(
        n < m for n, m in zip(array.shape, (start + len(values), *values.shape[1:]), strict=True)
    ):
        raise AssertionError(f"{name} is smaller than what is written")
    array[start : start + values.shape[0], : values.shape[1], : values.shape[2]] = values
    first = start // array.chunks[0]
    for k, j, i in product(*map(range, counts)) if not is_remote(folder) else ():
        _sync(folder / chunk_name(array, (first + k, j, i)))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(pixels: NDArray, so_far: Any = None) -> Any:
    """Digest of pixels as they are written, chunk after chunk."""
    so_far = so_far or hashlib.blake2b(digest_size=16)
    so_far.update(np.ascontiguousarray(pixels).data)
    return so_far


def coord_values(name: str, made: Mapping[str, Any], block: Block) -> NDArray:
    """A coordinate of a block's slits, with the dtype it has in datasets."""
    unknown = unknown_of(name, made)
    dtype = str if made["dtype"] == "U" else made["dtype"]
    given = block.coords.get(name)
    if isinstance(given, list):
        return np.array([unknown if v is None else v for v in given], dtype=dtype)
    return np.repeat(np.array([unknown if given is None else given], dtype=dtype), block.count)


def mirror(
    store: str | Path, name: str, group: Group, start: int, attrs: Mapping[str, Any]
) -> None:
    """Write the slit coordinates of slots from `start` on to their arrays, for other tools.

    Slots that hold no slit get what stands for unknown.
    """
    folder, stop = located(store) / name, group.slots
    blocks = [b for b in group.blocks if start <= b.start < stop]
    for coord, made in group.coords.items():
        kind = object if made["dtype"] == "U" else made["dtype"]
        values = np.full(stop - start, unknown_of(coord, made), dtype=kind)
        for block in blocks:
            values[block.start - start : block.stop - start] = coord_values(coord, made, block)
        array = _writable(folder / coord)
        if array.shape[0] < stop:  # zarr would pass over what lies beyond
            raise AssertionError(f"{coord} has {array.shape[0]} slots, not {stop}")
        array[start:stop] = values
    coords = sorted([*group.coords, *(v for v, m in group.variables.items() if m["coord"])])
    opened = zarr.open_group(zarr_store(folder), mode="r+")
    wanted = {**attrs, "coordinates": " ".join(coords)}
    if dict(opened.attrs) != wanted:
        opened.attrs.put(wanted)


# ------------------------------------------------------------------------------------------------
# What belongs to a store, and what was left by a process that died


def expected_files(journal: Journal) -> Iterator[str]:
    """All files of a store, relative to it."""
    yield from ("zarr.json", "journal/zarr.json")
    for name, group in journal.groups.items():
        yield f"{name}/zarr.json"
        for variable in group.variables:
            yield f"{name}/{variable}/zarr.json"
            yield from (f"{name}/{variable}/{chunk}" for chunk in group.chunk_names(variable))
        for coord in group.coords:
            yield f"{name}/{coord}/zarr.json"
            for k in range(-(-group.slots // COORDS_A_CHUNK)):
                yield f"{name}/{coord}/c.{k}"


def litter(store: str | Path, journal: Journal) -> list[str]:
    """Files in a store that do not belong to it, relative to it."""
    return sorted(sizes_below(located(store)).keys() - set(expected_files(journal)))


def sweep(store: str | Path, journal: Journal) -> None:
    """Remove what a process that died has left in arrays, so that it is never taken for pixels.

    What lies elsewhere in the store may be somebody's, and stays.
    """
    store = located(store)
    ours = {"journal"}
    for name, group in journal.groups.items():
        ours |= {f"{name}/{array}" for array in (*group.variables, *group.coords)}
    for file in litter(store, journal):
        folder, _, name = file.rpartition("/")
        if folder in ours and (name.startswith("c.") or name.endswith(".partial")):
            (store / file).unlink(missing_ok=True)
    for name, group in list(journal.groups.items()):
        if group.blocks:
            _shrink(store / name, group)
            continue
        # Nothing of it was ever complete, and what comes may be of another kind.
        for array in (*group.variables, *group.coords):
            remove_tree(store / name / array)
        del journal.groups[name]


def _shrink(folder: Path, group: Group) -> None:
    """Give arrays that were enlarged for exposures that never came the size they need."""
    _, ny, nx = group.chunk
    y, x = group.shape
    size = (group.slots, -(-y // ny) * ny, -(-x // nx) * nx)
    for name in (*group.variables, *group.coords):
        if not (folder / name / "zarr.json").exists():
            continue
        array = _writable(folder / name)
        wanted = size[: array.ndim]
        if array.shape == wanted:
            continue
        if array.ndim == 1 and array.shape[0] > wanted[0]:
            array[wanted[0] :] = array.fill_value  # these share a chunk with slots in use
        array.resize(wanted)
