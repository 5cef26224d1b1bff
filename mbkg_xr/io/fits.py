"""What the readers of FITS products share: structure from headers, pixels by offset, padding."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import dask.array as da
import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import NDArray

from ..errors import InputFileError, InputFilesError
from ..schema import SUBTRACTED, slit_dataset

__all__ = [
    "Hdu",
    "Source",
    "by_configuration",
    "first_given",
    "hdu_table",
    "lazy_dataset",
    "node_name",
    "read_bytes",
    "scan_files",
]


class Hdu(NamedTuple):
    """Name, version, header, data offset and data size (bytes) of one HDU."""

    name: str
    version: int
    header: fits.Header
    offset: int
    size: int


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


S = TypeVar("S", bound=Source)


def hdu_table(path: str | Path) -> list[Hdu]:
    """Read the headers of a NIRSpec FITS file, no pixels.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    list of Hdu
        In the order of the file; the first is the primary one.

    Raises
    ------
    InputFileError
        Where the file is missing, is not FITS, is truncated, or is not from NIRSpec.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise InputFileError(
            "cannot read the file", where=str(path), found=error.strerror, remedy="check the path"
        ) from error
    if start != b"SIMPLE  =":
        raise InputFileError(
            "not a FITS file",
            where=path.name,
            expected="a file that begins with SIMPLE  =",
            found=repr(start.decode("latin1")),
            remedy="give slit products of STScI or NIPS (uncompressed FITS)",
        )
    hdus = _headers(path, size)
    instrument = hdus[0].header.get("INSTRUME", "no INSTRUME keyword")
    if str(instrument).strip() != "NIRSPEC":
        raise InputFileError(
            "not a NIRSpec product",
            where=path.name,
            expected="INSTRUME = NIRSPEC",
            found=instrument,
        )
    return hdus


def _headers(path: Path, size: int) -> list[Hdu]:
    rows = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AstropyWarning)
            with fits.open(path, memmap=False, lazy_load_hdus=False) as hdus:
                for hdu in hdus:
                    info = hdu.fileinfo()
                    rows.append(Hdu(hdu.name, hdu.ver, hdu.header, info["datLoc"], info["datSpan"]))
    except (OSError, ValueError, TypeError, KeyError, fits.VerifyError) as error:
        raise InputFileError(
            "unreadable FITS headers", where=path.name, found=error, remedy="fetch the file again"
        ) from error
    broken = [str(w.message) for w in caught if re.search("truncated|Error valid", str(w.message))]
    short = [row for row in rows if row.offset + row.size > size]
    if broken or short:
        last = (short or rows[-1:])[0]
        raise InputFileError(
            "truncated FITS file",
            where=f"{path.name}, extension {last.name} {last.version}",
            expected=f"{last.offset + last.size} bytes or more",
            found=f"{size} bytes",
            remedy="fetch the file again",
        )
    return rows


def read_bytes(path: str | Path, offset: int, size: int) -> bytes:
    """Read `size` bytes at `offset`.

    Raises
    ------
    InputFileError
        Where the file ends before.
    """
    with open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise InputFileError(
            "truncated FITS file",
            where=str(path),
            expected=f"{size} bytes at {offset}",
            found=len(data),
            remedy="fetch the file again",
        )
    return data


def first_given(*values: Any) -> Any:
    """The first value that is neither None nor an empty string; the last, where none is.

    Examples
    --------
    >>> first_given(None, "", 3, 4), first_given(None, "")
    (3, '')
    """
    return next((v for v in values if v is not None and v != ""), values[-1])


def scan_files(
    paths: Iterable[str | Path], scan: Callable[[str | Path], Sequence[S]], *, on_error: str
) -> list[S]:
    """Read the structure of many products, and report all that cannot be used together.

    Parameters
    ----------
    paths
        Files; their slits keep this order.
    scan
        Gives the slits of one file.
    on_error
        ``"raise"`` one error that reports all unusable files, or ``"warn"`` and keep the others.

    Returns
    -------
    list of Source

    Raises
    ------
    InputFileError, InputFilesError
        Where one or several files cannot be used.
    """
    sources: list[S] = []
    problems: list[InputFileError] = []
    for path in paths:
        try:
            sources += scan(path)
        except InputFileError as error:
            problems.append(error)
    if problems and (on_error == "raise" or not sources):
        raise problems[0] if len(problems) == 1 else InputFilesError(list(problems))
    for problem in problems:
        warnings.warn(f"left out: {problem}", stacklevel=3)
    return sources


def by_configuration(sources: Iterable[S]) -> dict[str, list[S]]:
    """Slits by disperser and filter, in the order given; those without their sky apart."""
    groups: dict[str, list[S]] = {}
    for source in sources:
        groups.setdefault(node_name(source), []).append(source)
    return groups


def node_name(source: Source) -> str:
    """Products before and after their background was subtracted are of the same slits."""
    return source.configuration + (SUBTRACTED if source.coords.get("subtracted") else "")


def lazy_dataset(
    sources: Sequence[S],
    planes: Callable[[Sequence[S], str], Iterator[NDArray]],
    variables: Sequence[str],
    *,
    chunks: int,
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
        Slits in a chunk.
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
    """
    first = sources[0]
    odd = next((s for s in sources if s.units != first.units), None)
    if odd is not None:
        raise InputFileError(
            "slits in different units",
            where=f"{odd.coords['filename']}, slitlet {odd.coords['slitlet']}",
            expected=first.units,
            found=odd.units,
            remedy="open products of different units apart",
        )
    shape = (max(s.shape[0] for s in sources), max(s.shape[1] for s in sources))
    index = da.arange(len(sources), chunks=chunks)
    arrays = {}
    for variable in variables:
        dtype: type = quality_dtype if variable == "quality" else np.float32
        arrays[variable] = da.map_blocks(
            _padded,
            index,
            sources=sources,
            planes=planes,
            variable=variable,
            shape=shape,
            fill=dtype(flags["DO_NOT_USE"] if variable == "quality" else np.nan),
            dtype=dtype,
            new_axis=[1, 2],
            chunks=(index.chunks[0], (shape[0],), (shape[1],)),
            meta=np.empty((0, 0, 0), dtype),
        )
    quality = arrays.pop("quality")
    return slit_dataset(
        arrays,
        quality,
        {k: [s.coords[k] for s in sources] for k in first.coords},
        units=first.units,
        configuration=node_name(first),
        flags=flags,
        attrs=attrs,
    )


def _padded(
    index: NDArray[np.int64],
    *,
    sources: Sequence[S],
    planes: Callable[[Sequence[S], str], Iterator[NDArray]],
    variable: str,
    shape: tuple[int, int],
    fill: np.generic,
) -> NDArray:
    """Pixels of a block of slits, padded to a common shape."""
    out = np.full((index.size, *shape), fill)
    chosen = [sources[i] for i in index]
    for slot, source, plane in zip(out, chosen, planes(chosen, variable), strict=True):
        slot[: source.shape[0], : source.shape[1]] = plane
    return out
