"""Zarr stores: one group a configuration, written whole or not at all, and checked by checksum."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from ..errors import StoreError
from ..schema import (
    MOMENT_DIMS,
    PIXEL_DIMS,
    PIXEL_VARIABLES,
    SCHEMA_VERSION,
    SLIT_COORDS,
)
from .append import APPENDING
from .chunks import COMPRESSORS, damage, lazy_pixels, places, require_chunks
from .ingested import open_ingested
from .journal import has_journal
from .location import (
    is_remote,
    located,
    move_store,
    reaching,
    remove_tree,
    sizes_below,
    zarr_store,
)
from .staging import begin_staging, clear_leftovers, end_staging, leave_staging, staging_of
from .writing import chunk_length, write_chunks

__all__ = ["create_store", "is_complete", "is_store", "open_store", "save", "write_group"]


def _encoding(ds: xr.Dataset, pixels: Sequence[str], length: int) -> dict[str, dict]:
    """Codecs and fill values of each variable, from the schema and never from where it came."""
    out: dict[str, dict] = {}
    for name, variable in ds.variables.items():
        encoding: dict = {}
        if variable.dtype.kind in "fiubO":
            encoding["compressors"] = list(COMPRESSORS)
        if variable.dtype.kind == "f":
            encoding["_FillValue"] = np.nan
        if name in pixels:
            encoding["chunks"] = (length, *variable.shape[1:])
        out[str(name)] = encoding
    return out


@contextmanager
def create_store(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """A directory to write a store into, which gets its name only when all went well.

    Parameters
    ----------
    path
        Final name of the store; a path or a URL. Objects of an object store cannot be renamed:
        they are copied there, the root of the store last.
    overwrite
        Replace what is there. It stays in place until the new store is complete.

    Raises
    ------
    StoreError
        Where `path` exists and may not be overwritten, or cannot be written.
    """
    path = located(path)
    if not path.name:
        raise StoreError("no name for the store", expected="a path", found=str(path))
    _check_free(path, overwrite)
    clear_leftovers(path)
    staging, old = staging_of(path)
    kept = False
    try:
        begin_staging(staging, path)
        yield staging
        # Somebody else may have written under this name in the meantime.
        _check_free(path, overwrite)
        if is_remote(path):
            kept = True  # complete by now: it is not lost where it cannot be copied
            move_store(staging, path)
            kept = False
            return
        if path.exists():
            os.replace(path, old)
        os.replace(staging, path)
        remove_tree(old)
    finally:
        if kept:
            leave_staging(staging)
        else:
            end_staging(staging)


def _check_free(path: Path, overwrite: bool) -> None:
    """Raise where nothing may be written under this name."""
    with reaching(path) if is_remote(path) else nullcontext():
        if not path.exists():
            return
    if not is_store(path):
        raise StoreError(
            "refusing to overwrite what is not a store",
            where=str(path),
            expected="a Zarr directory, or nothing",
            found="a directory of other files" if path.is_dir() else "a file",
            remedy="choose another name",
        )
    if not overwrite:
        raise StoreError(
            "the store exists",
            where=str(path),
            remedy="choose another name, or overwrite it (--overwrite)",
        )


def is_store(path: str | os.PathLike) -> bool:
    """Whether a path holds a Zarr group."""
    path = located(path)
    if is_remote(path):  # where there are no directories
        with reaching(path):
            return any((path / name).exists() for name in ("zarr.json", ".zgroup"))
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup"))


def write_group(ds: xr.Dataset, store: str | Path, group: str) -> None:
    """Write one dataset as a group of a store. Computes what is lazy, chunk by chunk."""
    ds = _with_plain_strings(ds.drop_encoding())
    pixels = [str(n) for n, v in ds.variables.items() if _is_pixels(v)]
    lazy = any(ds.variables[name].chunks is not None for name in pixels)
    beside = [str(n) for n, v in ds.variables.items() if lazy and _is_beside(v)]
    later = [*pixels, *beside]
    ds = _replaced(ds, {n: v.load() for n, v in ds.variables.items() if n not in later})
    arrays, vectors = ({n: ds.variables[n].data for n in some} for some in (pixels, beside))
    length = chunk_length(list(arrays.values())) if pixels else 0
    # All but the pixels and what is found from them; of these the metadata only.
    ds = _replaced(ds, {name: _unwritten(ds.variables[name]) for name in later})
    inside = zarr_store(located(store))
    ds.to_zarr(
        inside,
        group=group,
        mode="a",
        zarr_format=3,
        consolidated=False,
        encoding=_encoding(ds, pixels, length),
        # Every chunk is there, so that a missing one is known for what it is.
        write_empty_chunks=True,
        compute=False,
    )
    if pixels:
        made: Any = zarr.open_group(inside, path=group, mode="r+")
        every: Any = {"write_empty_chunks": True}
        targets = {name: made[name].with_config(every) for name in pixels}
        for name, values in write_chunks(arrays, targets, beside=vectors).items():
            made[name].with_config(every)[:] = values.astype(made[name].dtype, copy=False)


def _is_pixels(variable: xr.Variable) -> bool:
    """Whether a variable is large: lazy, or of pixels."""
    if variable.dims[:1] != ("slit",) or variable.ndim == 1 or variable.dtype.kind not in "fiub":
        return False
    return variable.chunks is not None or variable.dims[:3] in (PIXEL_DIMS, MOMENT_DIMS)


def _is_beside(variable: xr.Variable) -> bool:
    """Whether a variable is found from pixels, a number a slit."""
    numbers = variable.chunks is not None and variable.dtype.kind in "fiub"
    return numbers and variable.dims == ("slit",)


def _unwritten(variable: xr.Variable) -> xr.Variable:
    nothing = da.zeros(variable.shape, chunks=variable.shape, dtype=variable.dtype)
    return xr.Variable(variable.dims, nothing, variable.attrs)


def _with_plain_strings(ds: xr.Dataset) -> xr.Dataset:
    """Strings of variable length: those of fixed length have no place in the Zarr format."""
    text = {n: v.compute().astype(object) for n, v in ds.variables.items() if v.dtype.kind in "UT"}
    return _replaced(ds, text)


def _replaced(ds: xr.Dataset, variables: Mapping) -> xr.Dataset:
    """The dataset with variables exchanged, coordinates staying coordinates."""
    coords = {n: v for n, v in variables.items() if n in ds.coords}
    return ds.assign_coords(coords).assign({k: v for k, v in variables.items() if k not in coords})


def save(
    data: xr.Dataset | xr.DataTree | Mapping[str, xr.Dataset],
    path: str | Path,
    *,
    overwrite: bool = False,
) -> None:
    """Save slit datasets, masters or a tree of them to a Zarr store. Computes.

    Parameters
    ----------
    data
        A dataset (its group is its configuration), a tree, or datasets by group.
    path
        Where to write, a path or a URL; nothing appears under this name before the store is
        complete.
    overwrite
        Replace an existing store.

    Raises
    ------
    StoreError
        Where the store exists, or cannot be written.

    Examples
    --------
    >>> import mbkg_xr as mx, tempfile, pathlib
    >>> ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mx.save(ds, pathlib.Path(folder) / "a.zarr")
    ...     list(mx.open_program(pathlib.Path(folder) / "a.zarr").children)
    ['prism-clear']
    """
    if isinstance(data, xr.Dataset):
        groups = {data.attrs.get("configuration", "data"): data}
    elif isinstance(data, xr.DataTree):
        groups = {n.path.strip("/"): n.to_dataset() for n in data.subtree if n.has_data}
    else:
        groups = dict(data)
    with create_store(path, overwrite=overwrite) as staging:
        for group, ds in groups.items():
            write_group(ds, staging, group)
        finish(staging)


def finish(store: str | Path) -> None:
    """Mark a store with the version of the schema, and as one whose chunks are all there.

    What a worker left that was killed as it wrote a chunk, which another one wrote then, goes.
    """
    place = located(store)
    if not is_remote(place):
        for left in place.rglob("*.partial"):
            left.unlink()
    attrs = zarr.open_group(zarr_store(located(store)), mode="a").attrs
    attrs.update({"mbkg_xr_schema": SCHEMA_VERSION, _COMPLETE: True})


_COMPLETE = "mbkg_xr_all_chunks"


def is_complete(path: str | os.PathLike) -> bool:
    """Whether all chunks of a store must be there; other tools leave out those of fill only."""
    return bool(_attributes(path).get(_COMPLETE, False))


def open_store(path: str | os.PathLike) -> xr.DataTree:
    """Open a store lazily, one node a configuration and what belongs to it below.

    Parameters
    ----------
    path
        What `save` or `ingest` wrote, or another tool's Zarr store of slit datasets; a path or a
        URL.

    Returns
    -------
    xarray.DataTree
        Pixels are dask arrays; to read a chunk that is missing or damaged is a `StoreError` that
        names the store, the variable and the slits. Of an ingested store, the exposures that are
        complete, by exposure, detector and slitlet.

    Raises
    ------
    StoreError
        Where the path is no store, is damaged, or was written by a newer version.
    """
    if not is_store(path):
        raise StoreError(
            "not a Zarr store",
            where=str(path),
            expected="a directory with zarr.json",
            found="no such path" if not located(path).exists() else "something else",
        )
    place = located(path)
    attrs = _attributes(path)
    version = str(attrs.get("mbkg_xr_schema", SCHEMA_VERSION))
    if int(version.split(".")[0]) > int(SCHEMA_VERSION.split(".")[0]):
        raise StoreError(
            "the store was written by a newer version",
            where=str(path),
            expected=f"schema {SCHEMA_VERSION}",
            found=version,
            remedy="update mbkg_xr",
        )
    if APPENDING in attrs:
        raise StoreError(
            "slits are being appended to the store, or that was interrupted",
            where=str(path),
            found=attrs[APPENDING].get("group"),
            remedy="open it in a moment, or append again (append_moments ends what was begun)",
        )
    if has_journal(path):
        return open_ingested(path)
    try:
        kind = 3 if (place / "zarr.json").exists() else 2
        tree = xr.open_datatree(
            zarr_store(place), engine="zarr", zarr_format=kind, consolidated=False, chunks=None
        )
    except Exception as error:  # of Zarr, xarray, JSON and others
        raise StoreError("cannot open the store", where=str(path), found=error) from error
    complete = is_complete(path)
    # What is elsewhere is listed once, and not looked for chunk by chunk.
    there = sizes_below(place).keys() if complete and is_remote(place) else None
    return xr.DataTree.from_dict(
        {
            node.path: _lazy(node.to_dataset(inherit=False), place, node.path, complete, there)
            # A listing comes in any order.
            for node in sorted(tree.subtree, key=lambda node: node.path)
        }
    )


def _attributes(path: str | os.PathLike) -> dict:
    try:
        return dict(zarr.open_group(zarr_store(located(path)), mode="r").attrs)
    except Exception as error:
        raise StoreError("cannot open the store", where=str(path), found=error) from error


def _lazy(
    ds: xr.Dataset, store: Path, group: str, complete: bool, there: Collection[str] | None
) -> xr.Dataset:
    """Pixels as dask arrays; the rest in memory: it is small, and every step asks for it."""
    variables = {}
    ds = ds[sorted(ds.variables, key=_rank)]
    for name, variable in ds.variables.items():
        inside = f"{group.strip('/')}/{name}"
        if variable.dims[:3] in (PIXEL_DIMS, MOMENT_DIMS):
            variables[name] = _lazy_variable(variable, store, inside, complete)
            continue
        if complete:
            require_chunks(
                store, inside, variable.encoding.get("chunks", ()), variable.shape, there
            )
        try:
            variables[name] = variable.load()
        except Exception as error:  # codecs raise whatever they like
            raise damage(store, inside, "c", error) from error
        if variable.dtype.kind in "OT":
            variables[name] = variable.copy(data=np.array(variable.values.tolist(), dtype=str))
    return _replaced(ds, variables)


_ORDER = {name: rank for rank, name in enumerate([*PIXEL_VARIABLES, *SLIT_COORDS])}


def _rank(name: Hashable) -> tuple[int, str]:
    """The place of a variable: a store is listed in any order, a dataset has one."""
    return _ORDER.get(str(name), len(_ORDER)), str(name)


def _lazy_variable(variable: xr.Variable, store: Path, name: str, complete: bool) -> xr.Variable:
    length = (variable.encoding.get("chunks") or variable.shape)[0]
    if variable.ndim > 3 or variable.encoding.keys() & {"scale_factor", "add_offset"}:
        return variable.chunk(
            {d: length if d == "slit" else -1 for d in variable.dims}
        )  # not of this package's making
    n, ny, nx = variable.shape
    lengths = [length] * (n // length) + [n % length] * (n % length > 0)
    where = places(np.arange(n), ny, nx)
    lazy = lazy_pixels(where, lengths, store, {name: variable.dtype}, (ny, nx), complete=complete)
    data: Any = lazy[name]
    return variable.copy(data=data)
