"""Chunks of stores, read so that what is missing or damaged is an error that says where it lies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ..errors import StoreError
from .journal import has_journal, read_journal
from .location import located, reaching, zarr_store

__all__ = [
    "COMPRESSORS",
    "PLACE",
    "chunk_name",
    "damage",
    "lazy_pixels",
    "open_array",
    "places",
    "read_pixels",
    "require_chunks",
]

# Without a checksum a flipped byte would be read as a pixel. LZ4 takes a tenth more room than zstd,
# half the time to write, and less to read (benchmarks/storage.py).
COMPRESSORS = (BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), Crc32cCodec())


def chunk_name(array: zarr.Array, index: Sequence[int]) -> str:
    """File of a chunk, relative to its array."""
    return array.metadata.encode_chunk_key(tuple(index))


def require_chunks(
    store: str | Path,
    name: str,
    chunks: Sequence[int],
    shape: Sequence[int],
    there: Collection[str] | None = None,
) -> None:
    """Make sure that all chunks of an array are there: what is not would be read as fill.

    Parameters
    ----------
    store, name
        A store that `save` wrote, and the array, such as ``prism-clear/nod``.
    chunks, shape
        Of the array.
    there
        All files of the store, where they have been listed.

    Raises
    ------
    StoreError
        Where one is missing.
    """
    counts = (-(-n // c) for n, c in zip(shape, chunks, strict=True))
    for index in product(*map(range, counts)):
        chunk = "/".join(("c", *map(str, index)))
        gone = f"{name}/{chunk}" not in there if there is not None else None
        if gone or (gone is None and not (located(store) / name / chunk).exists()):
            raise damage(store, name, chunk, "no such file")


#: Where slits lie: the slot, and how many rows and columns were written there.
PLACE = np.dtype([("slot", np.int64), ("rows", np.int32), ("columns", np.int32)])


def places(slots: ArrayLike, rows: ArrayLike, columns: ArrayLike) -> NDArray:
    """Where slits lie, one record of type `PLACE` a slit."""
    slots = np.asarray(slots)
    out = np.empty(slots.size, PLACE)
    out["slot"], out["rows"], out["columns"] = slots, rows, columns
    return out


def lazy_pixels(
    where: NDArray,
    chunks: Sequence[int],
    store: str | Path,
    dtypes: Mapping[str, Any],
    shape: tuple[int, int],
    *,
    complete: bool = True,
) -> dict[str, da.Array]:
    """Pixels of a store's arrays as dask arrays, one task a chunk.

    Parameters
    ----------
    where
        From `places`, for each slit.
    chunks
        Slits in each chunk of the result.
    store
        The store's directory, or URL.
    dtypes
        By names of arrays, such as ``prism-clear/flux``.
    shape
        Rows and columns of the result.
    complete
        Whether all chunks must be there. Other tools leave out those that hold nothing but fill.
    """
    index = da.from_array(where, chunks=(tuple(chunks),))
    return {
        name: da.map_blocks(
            read_pixels,
            index,
            store=str(store),
            variable=name,
            shape=shape,
            expected=np.dtype(dtype),
            complete=complete,
            dtype=np.dtype(dtype),
            new_axis=[1, 2],
            chunks=(tuple(chunks), (shape[0],), (shape[1],)),
            meta=np.empty((0, 0, 0), dtype),
        )
        for name, dtype in dtypes.items()
    }


def read_pixels(
    where: NDArray,
    *,
    store: str,
    variable: str,
    shape: tuple[int, int],
    expected: Any,
    complete: bool = True,
) -> NDArray:
    """Read ``(slit, y, x)`` pixels of slots, whichever chunks they lie in.

    Raises
    ------
    StoreError
        Where a chunk is missing or damaged: names the store, the variable and the slits.
    """
    array = open_array(store, variable)
    # xarray writes bool as int8.
    same = array.dtype == expected or (np.dtype(expected).kind == "b" and array.dtype == np.int8)
    if not same or array.shape[0] <= where["slot"].max(initial=0):
        raise StoreError(
            "an array is not what it should be",
            where=f"{store}, {variable}",
            expected=f"{expected}, more than {where['slot'].max(initial=0)} slots",
            found=f"{array.dtype}, {array.shape[0]} slots",
            remedy=_REMEDY,
        )
    out = np.empty((where.size, *shape), expected)
    _, ny, nx = array.chunks
    for j, i in product(range(-(-shape[0] // ny)), range(-(-shape[1] // nx))):
        _read_column(array, (j, i), where, out, (store, variable), complete)
    return out


def _read_column(
    array: zarr.Array,
    column: tuple[int, int],
    where: NDArray,
    out: NDArray,
    names: tuple[str, str],
    complete: bool,
) -> None:
    """Read what lies in one position of the chunks' grid in y and x, of all slots."""
    length, ny, nx = array.chunks
    (j, i), (store, name) = column, names
    rows = slice(j * ny, min((j + 1) * ny, out.shape[1]))
    columns = slice(i * nx, min((i + 1) * nx, out.shape[2]))
    ordinal = where["slot"] // length
    for k in np.unique(ordinal):
        here = np.flatnonzero(ordinal == k)
        slots = where["slot"][here]
        first, last = int(slots.min()), int(slots.max())
        target = slice(here[0], here[-1] + 1) if here[-1] - here[0] + 1 == here.size else here
        written = where[here[0]]  # slits of one chunk were written together
        if j * ny >= written["rows"] or i * nx >= written["columns"]:
            out[target, rows, columns] = array.fill_value
            continue
        chunk = chunk_name(array, (k, j, i))
        try:
            values = np.asarray(array[first : last + 1, rows, columns])
        except Exception as error:  # codecs raise whatever they like
            raise damage(store, name, chunk, error, slots) from error
        # A chunk that is missing is read as fill; others need not be looked for.
        if complete and _is_fill(values, array.fill_value):
            with reaching(store):
                there = (located(store) / name / chunk).exists()
            if not there:
                raise damage(store, name, chunk, "no such file", slots)
        ordered = here.size == last - first + 1 and bool((np.diff(slots) == 1).all())
        out[target, rows, columns] = values if ordered else values[slots - first]


def _is_fill(values: NDArray, fill: Any) -> bool:
    """Whether all is fill; most often the middle of slits tells."""
    _, ny, nx = values.shape
    return all(
        bool((np.isnan(part) if fill != fill else part == fill).all())
        for part in (values[:, ny // 2, nx // 2], values)
    )


def open_array(store: str | Path, name: str) -> zarr.Array:
    """Open one array of a store to read.

    Raises
    ------
    StoreError
        Where it is missing, or its metadata are damaged.
    """
    place = zarr_store(located(store) / name)
    try:
        with suppress(FileNotFoundError):  # of other tools, in the former format
            return zarr.open_array(place, mode="r", zarr_format=3)
        return zarr.open_array(place, mode="r")
    except Exception as error:
        raise StoreError(
            "cannot open an array of the store",
            where=f"{store}, {name}",
            found=error,
            remedy=_REMEDY,
        ) from error


_REMEDY = "mbkg-xr verify lists all that is damaged; ingest or write these into a new store"


def damage(
    store: str | Path, name: str, chunk: str, found: object, slots: Iterable[int] = ()
) -> StoreError:
    """What to raise for a chunk that cannot be read."""
    slits = _labels(located(store), name, list(slots))
    return StoreError(
        "missing chunk" if found == "no such file" else "damaged chunk",
        where=f"{store}, {name}, chunk {chunk}" + (f", {slits}" if slits else ""),
        expected="a file that holds what was written, by its checksum",
        found=found,
        remedy=_REMEDY,
    )


def _labels(store: Path, name: str, slots: list[int]) -> str:
    """Which slits lie in slots, as far as the store still tells."""
    group = name.rpartition("/")[0]
    try:
        exposures, detectors, slitlets = (
            [values[s] for s in slots] for values in _identities(store, group, slots)
        )
    except Exception:
        return f"slots {slots[0]} to {slots[-1]}" if slots else ""
    out: dict[tuple[str, str], list[str]] = {}
    for exposure, detector, slitlet in zip(exposures, detectors, slitlets, strict=True):
        out.setdefault((exposure, detector), []).append(str(slitlet))
    return "; ".join(f"{e} {d} slitlets {' '.join(s)}" for (e, d), s in out.items())


def _identities(store: Path, group: str, slots: list[int]) -> list[Any]:
    if not has_journal(store):
        keys = ("exposure", "detector", "slitlet")
        return [open_array(store, f"{group}/{key}")[:] for key in keys]
    exposures, detectors, slitlets = {}, {}, {}
    for block in read_journal(store).groups[group].blocks:
        if block.stop <= min(slots) or block.start > max(slots):
            continue
        for slot, slitlet in enumerate(block.coord("slitlet"), start=block.start):
            exposures[slot], detectors[slot] = block.exposure, block.detector
            slitlets[slot] = slitlet
    return [exposures, detectors, slitlets]
