"""More slits in a group of a store, behind those that are there: nothing else is written again.

What is new is written first, where no reader looks yet: behind the end of the arrays. Then they are
made longer, one after the other; a note in the root of the store says so while that lasts. Killed
before, an append has left the store as it was; killed after, the next one ends it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import xarray as xr
import zarr

from ..errors import StoreError
from .location import located, zarr_store
from .lock import write_lock
from .writing import write_chunks

__all__ = ["APPENDING", "append_slits", "end_append"]

APPENDING = "mbkg_xr_appending"


def append_slits(path: str | os.PathLike, group: str, joined: xr.Dataset, n: int) -> None:
    """Write the slits of a dataset from the n-th on to a group that holds the others. Computes.

    Parameters
    ----------
    path, group
        The store, and a group that `save` wrote.
    joined
        All slits, those of the group first; of its variables, those along slit are written.
    n
        Slits that are there.

    Raises
    ------
    StoreError
        Where somebody else writes to the store, or has in the meantime.
    """
    place = located(path)
    with write_lock(place) as lock:
        names = [str(name) for name, v in joined.variables.items() if v.dims[:1] == ("slit",)]
        arrays = {name: _array(place, f"{group}/{name}") for name in names}
        if {array.shape[0] for array in arrays.values()} != {n}:
            raise StoreError(
                "another process has written to the store",
                where=str(path),
                expected=f"{n} slits",
                found=" ".join(sorted({str(a.shape[0]) for a in arrays.values()})),
                remedy="append again",
            )
        total = joined.sizes["slit"]
        grown = {name: _longer(array, total) for name, array in arrays.items()}
        for length in {array.chunks[0] for array in arrays.values()}:
            alike = [name for name in names if arrays[name].chunks[0] == length]
            # The last chunk may have had room; it is written whole, in one go.
            first = n - n % length
            write_chunks(
                {name: joined.variables[name].data[first:] for name in alike},
                {name: grown[name] for name in alike},
                first=first,
            )
        lock.check()
        root = zarr.open_group(zarr_store(place), mode="r+")
        root.attrs[APPENDING] = {"group": group, "slits": total, "names": names}
        _end(place, root)


def end_append(path: str | os.PathLike) -> bool:
    """End what was killed after all was written; whether there was such a thing."""
    place = located(path)
    root = zarr.open_group(zarr_store(place), mode="r+")
    if APPENDING not in root.attrs:
        return False
    with write_lock(place):
        _end(place, root)
    return True


def _end(place: Path, root: zarr.Group) -> None:
    what: Any = root.attrs[APPENDING]
    for name in what["names"]:
        array = _array(place, f"{what['group']}/{name}")
        array.resize((what["slits"], *array.shape[1:]))
    del root.attrs[APPENDING]


def _array(place: Path, name: str) -> zarr.Array:
    every: Any = {"write_empty_chunks": True}
    opened: Any = zarr.open_array(zarr_store(place / name), mode="r+")
    return opened.with_config(every)


def _longer(array: zarr.Array, total: int) -> zarr.Array:
    """The array as it will be, which its metadata do not say yet."""
    inner: Any = array.async_array if hasattr(array, "async_array") else array._async_array
    metadata = inner.metadata.update_shape((total, *array.shape[1:]))
    return zarr.Array(type(inner)(metadata, inner.store_path, config=inner.config))
