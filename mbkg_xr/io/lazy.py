"""Pixels of slits as lazy arrays: padded to a common shape, read when they are asked for."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from ..errors import InputFileError, ParameterError
from ..schema import SUBTRACTED, slit_dataset

__all__ = [
    "SLITS_A_CHUNK",
    "Chunks",
    "Source",
    "chunked_as",
    "lazy_dataset",
    "node_name",
    "slit_chunks",
]

SLITS_A_CHUNK = 32

#: As xarray takes them: slits, "auto", -1, a mapping by dimension, or None for no dask at all.
Chunks: TypeAlias = int | str | tuple[int, ...] | Mapping[str, Any] | None


class Source(Protocol):
    """Where one slit's pixels lie; each format adds what it needs to read them."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def coords(self) -> dict[str, Any]: ...
    @property
    def units(self) -> str: ...
    @property
    def configuration(self) -> str: ...


def node_name(source: Source) -> str:
    """Products before and after their background was subtracted are of the same slits."""
    return source.configuration + (SUBTRACTED if source.coords.get("subtracted") else "")


S = TypeVar("S", bound=Source)
Planes: TypeAlias = Callable[[Sequence[S], str], Iterator[NDArray]]


def slit_chunks(
    chunks: Chunks, shape: tuple[int, int, int], *, usual: int = SLITS_A_CHUNK
) -> tuple[int, ...] | None:
    """Slits in each chunk.

    Parameters
    ----------
    chunks
        Slits in a chunk, all of them (-1), as many as make a chunk of dask's usual size
        (``"auto"``), a mapping by dimension as xarray takes it (``{}`` for `usual`), or None.
    shape
        ``(slit, y, x)`` of the array.
    usual
        Slits in a chunk where `chunks` leaves it open.

    Returns
    -------
    tuple of int, or None where there is to be no chunk.

    Raises
    ------
    ParameterError
        Where `chunks` makes no sense, or would cut slits.

    Examples
    --------
    >>> slit_chunks({"slit": 40}, (100, 30, 400)), slit_chunks({}, (40, 30, 400))
    ((40, 40, 20), (32, 8))
    """
    if chunks is None:
        return None
    along: Any = chunks
    if isinstance(chunks, Mapping):
        for dim, size in zip("yx", shape[1:], strict=True):
            if chunks.get(dim, -1) not in (-1, None, "auto", size, (size,)):
                raise _no_chunks(chunks, "whole slits: -1 along y and x")
        unknown = set(chunks) - {"slit", "y", "x"}
        if unknown:
            raise _no_chunks(chunks, "the dimensions slit, y and x")
        along = chunks.get("slit", usual)
    if along is None or (isinstance(along, int) and along < -1) or along == 0:
        raise _no_chunks(chunks, "at least one slit in a chunk, or -1 for all")
    try:
        return da.core.normalize_chunks((along, -1, -1), shape=shape, dtype=np.float32)[0]
    except (TypeError, ValueError) as error:
        raise _no_chunks(chunks, f"slits in a chunk ({error})") from error


def _no_chunks(chunks: object, expected: str) -> ParameterError:
    return ParameterError("unusable chunks", where="chunks", expected=expected, found=chunks)


def lazy_dataset(
    sources: Sequence[S],
    planes: Planes[S],
    variables: Sequence[str],
    *,
    chunks: Chunks = SLITS_A_CHUNK,
    flags: Mapping[str, int],
    quality_dtype: type,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """A slit dataset whose pixels are read when they are asked for.

    Parameters
    ----------
    sources
        Slits of one configuration and one format.
    planes
        Called with the slits of a chunk and a variable's name; gives their ``(ny, nx)`` pixels.
    variables
        Names of `mbkg_xr.schema.PIXEL_VARIABLES`, and ``"quality"``.
    chunks
        Slits in a chunk, and the other ways of `slit_chunks`; None for arrays without dask, which
        read the slits that are indexed.
    flags, quality_dtype
        The quality table, and uint32 or uint64; padding is DO_NOT_USE.
    attrs
        Further attributes of the dataset.

    Returns
    -------
    xarray.Dataset
        ``(slit, y, x)``, padded to the largest slit.

    Raises
    ------
    InputFileError
        Where slits have different units.
    ParameterError
        Where `chunks` makes no sense.
    """
    first = sources[0]
    units = Counter(s.units for s in sources).most_common(1)[0][0]
    odd = next((s for s in sources if s.units != units), None)
    if odd is not None:
        raise InputFileError(
            "slits in different units",
            where=f"{odd.coords['filename']}, slitlet {odd.coords['slitlet']}",
            expected=units,
            found=odd.units,
            remedy="open products of different units apart",
        )
    shape = (len(sources), max(s.shape[0] for s in sources), max(s.shape[1] for s in sources))
    sizes = slit_chunks(chunks, shape)
    arrays: dict[str, Any] = {}
    readers = {
        variable: _Reader(
            planes,
            variable,
            shape[1:],
            np.uint64(flags["DO_NOT_USE"]).astype(quality_dtype)
            if variable == "quality"
            else np.float32(np.nan),
        )
        for variable in variables
    }
    if sizes is None:
        for variable, reader in readers.items():
            lazy = indexing.LazilyIndexedArray(_SlitArray(reader, sources))
            arrays[variable] = indexing.CopyOnWriteArray(lazy)  # type: ignore[arg-type]
    else:
        arrays = _dask_arrays(readers, sources, sizes, shape)
    quality = arrays.pop("quality")
    ds = slit_dataset(
        arrays,
        quality,
        {k: [s.coords[k] for s in sources] for k in first.coords},
        units=units,
        configuration=node_name(first),
        flags=flags,
        attrs=attrs,
    )
    if sizes is None:
        for variable in variables:
            ds[variable].encoding["preferred_chunks"] = _preferred(SLITS_A_CHUNK, shape)
    return ds


def _preferred(slits: int, shape: tuple[int, ...]) -> dict[str, int]:
    """What xarray's ``chunks={}`` makes of an array without dask."""
    return {"slit": min(slits, shape[0]), "y": shape[1], "x": shape[2]}


def chunked_as(tree: xr.DataTree, chunks: Chunks) -> xr.DataTree:
    """A tree of a store, whose pixels are dask arrays, in the chunks that are asked for.

    Parameters
    ----------
    tree
        Datasets; what has the dimensions ``(slit, y, x)`` and is lazy changes its chunks.
    chunks
        As in `slit_chunks`. Numbers of slits are rounded to whole chunks of the store, so that
        none is read twice.

    Raises
    ------
    ParameterError
        Where `chunks` makes no sense.
    """
    return xr.DataTree.from_dict(
        {node.path: _rechunked(node.to_dataset(inherit=False), chunks) for node in tree.subtree}
    )


def _rechunked(ds: xr.Dataset, chunks: Chunks) -> xr.Dataset:
    changed = {}
    for name, variable in ds.variables.items():
        data = variable.data if variable.chunks is not None else None
        if not isinstance(data, da.Array) or variable.dims[:3] != ("slit", "y", "x"):
            continue
        usual = data.chunks[0][0]
        shape = (data.shape[0], data.shape[1], data.shape[2])
        sizes = slit_chunks(_whole(chunks, usual), shape, usual=usual)
        if sizes is None:
            lazy = indexing.LazilyIndexedArray(_Computed(data))
            changed[name] = variable.copy(data=indexing.CopyOnWriteArray(lazy))  # type: ignore[arg-type]
            changed[name].encoding["preferred_chunks"] = _preferred(usual, shape)
            continue
        sizes = _joined(data.chunks[0], sizes)
        if sizes != data.chunks[0]:
            changed[name] = variable.copy(data=data.rechunk({0: sizes}))
    coords = {k: v for k, v in changed.items() if k in ds.coords}
    return ds.assign_coords(coords).assign({k: changed[k] for k in changed.keys() - coords.keys()})


def _joined(stored: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes as wanted, or, where a store's chunks are of many lengths, whole ones of them joined.

    In ingested stores no chunk goes across exposures; chunks that did would read most of the
    store's twice.
    """
    if len(set(stored[:-1])) < 2 and stored[-1] <= stored[0]:
        return sizes
    out = [0]
    for length in stored:
        if out[-1] and out[-1] + length > max(sizes):
            out.append(0)
        out[-1] += length
    return tuple(out)


def _whole(chunks: Chunks, stored: int) -> Chunks:
    """Slits in a chunk as a multiple of those that are stored together."""
    if isinstance(chunks, Mapping) and isinstance(chunks.get("slit"), int):
        return {**chunks, "slit": _whole(chunks["slit"], stored)}
    if isinstance(chunks, int) and chunks > 0:
        return max(1, round(chunks / stored)) * stored
    return chunks


class _Computed(BackendArray):
    """A dask array as an array without dask: each indexing computes what it asks for."""

    def __init__(self, data: da.Array):
        self.data, self.shape, self.dtype = data, data.shape, data.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray:
        data = self.data
        for axis, one in reversed(list(enumerate(key))):
            data = data[(slice(None),) * axis + (one,)]
        # In this thread: it may be one of dask's own already.
        return np.asarray(data.compute(scheduler="synchronous"))


class _Reader:
    """Reads one variable of some slits, padded to a common shape."""

    def __init__(self, planes: Planes, variable: str, shape: tuple[int, int], fill: np.generic):
        self.planes, self.variable, self.shape, self.fill = planes, variable, shape, fill

    def __call__(self, sources: Sequence[Source]) -> NDArray:
        out = np.full((len(sources), *self.shape), self.fill)
        planes = self.planes(list(sources), self.variable)
        for slot, source, plane in zip(out, sources, planes, strict=True):
            # What is filed in another byte order is turned here, and only here.
            slot[: source.shape[0], : source.shape[1]] = plane
        return out


def _dask_arrays(
    readers: Mapping[str, _Reader],
    sources: Sequence[Source],
    sizes: tuple[int, ...],
    shape: tuple[int, int, int],
) -> dict[str, da.Array]:
    """One task a chunk and variable, which carries its own slits' sources and no others."""
    token = uuid.uuid4().hex  # files may change between two openings
    column = np.empty(len(sources), dtype=object)
    column[:] = sources
    blocks = da.from_array(column, chunks=(sizes,), name=f"slits-{token}")
    # Not map_blocks: it looks at each function's signature, which takes longer than all the rest.
    return {
        variable: da.blockwise(
            reader,
            "syx",
            blocks,
            "s",
            new_axes={"y": shape[1], "x": shape[2]},
            name=f"read-{variable}-{token}",
            dtype=reader.fill.dtype,
            align_arrays=False,
            meta=np.empty((0, 0, 0), reader.fill.dtype),
        )
        for variable, reader in readers.items()
    }


class _SlitArray(BackendArray):
    """A variable without dask: each indexing reads the slits it asks for."""

    def __init__(self, reader: _Reader, sources: Sequence[Source]):
        self.reader, self.sources = reader, list(sources)
        self.shape = (len(self.sources), *reader.shape)
        self.dtype = reader.fill.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray:
        slits, rows, columns = key
        chosen = np.arange(self.shape[0])[slits]
        planes = self.reader([self.sources[i] for i in np.atleast_1d(chosen)])
        # One axis after the other: arrays of indices are to be combined as a grid.
        planes = planes[:, :, columns][:, rows]
        return planes if np.ndim(chosen) else planes[0]
