"""Products in, products out."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from ..errors import InputFileError
from .jwst import open_slits
from .store import is_store, open_store, save

__all__ = ["open_program", "save"]


def open_program(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    chunks: int = 32,
    on_error: str = "raise",
) -> xr.DataTree:
    """Open a programme as a lazy tree, one node a disperser/filter pair.

    Parameters
    ----------
    paths
        STScI slit products (files, a glob pattern, or a directory of FITS files), or a Zarr store.
    chunks
        Slits in a chunk, for FITS input.
    on_error
        ``"raise"`` one error that reports every unusable file, or ``"warn"`` and keep the others.

    Returns
    -------
    xarray.DataTree
        Nodes such as ``prism-clear``, each a slit dataset. Headers are read, pixels are not.

    Raises
    ------
    InputFileError, InputFilesError
        Where files are missing or cannot be used.
    StoreError
        Where a store cannot be opened.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> mx.open_program("nothing/*.fits")
    Traceback (most recent call last):
    ...
    mbkg_xr.errors.InputFileError: no input files [nothing/*.fits]; expected FITS files...
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if len(given) == 1 and is_store(given[0]):
        return open_store(given[0])
    files = [file for path in given for file in _expand(path)]
    datasets = open_slits(list(dict.fromkeys(files)), chunks=chunks, on_error=on_error)
    return xr.DataTree.from_dict(datasets)


def _expand(path: str | os.PathLike) -> list[str]:
    text = os.fspath(path)
    if Path(text).is_dir():
        found = sorted(str(p) for p in Path(text).glob("*.fits"))
    elif Path(text).exists() or not glob.has_magic(text):
        return [text]
    else:
        found = sorted(glob.glob(text))
    if not found:
        raise InputFileError(
            "no input files",
            where=text,
            expected="FITS files, a directory of them, or a Zarr store",
            found="none",
        )
    return found
