"""Products in, products out."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from ..errors import InputFileError
from . import jwst, nips
from .choices import check_sky, choices, choose_in_tree, choose_sky
from .fits import Hdu, by_configuration, hdu_table, scan_files
from .nips import NipsLayout
from .store import is_store, open_store, save

__all__ = ["NipsLayout", "open_program", "save"]


def open_program(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    chunks: int = 32,
    on_error: str = "raise",
    nips_layout: NipsLayout | Mapping[str, Any] | str | os.PathLike | None = None,
    sky: Any = None,
    metafile: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    virtual_sky: bool = False,
    accept: Sequence[str] = (),
) -> xr.DataTree:
    """Open a programme as a lazy tree, one node a disperser/filter pair.

    Parameters
    ----------
    paths
        Slit products of STScI and NIPS (files, glob patterns, or directories of FITS files), a Zarr
        store, or a directory that holds a Zarr store and no FITS file. MSA metafiles among the
        products are passed over: they hold no slits.
    chunks
        Slits in a chunk, for FITS input.
    on_error
        ``"raise"`` one error that reports every unusable file, or ``"warn"`` and keep the others.
    nips_layout
        What extensions and keywords of NIPS files are called and mean; as in NIPS 1.x by default.
        A `NipsLayout`, a mapping of its attributes, or the path of a TOML file.
    sky
        Your own word on which slits are sky: numbers of slitlets (these are sky, and no others),
        or a table (DataFrame, CSV or ECSV file) with the column ``slitlet``, and any of
        ``exposure``, ``detector``, ``visit`` and ``nod`` to say what slits a row is for, and of
        ``is_background`` and ``source_shutter`` (yrel); slits that no row is for are decided as
        without it. Without your word it is the MSA metafile's, the source name's (BKG,
        BACKGROUND), and last the shutter state's; ``sky_reason`` says what decided.
    metafile
        MSA metafiles (``_msa.fits``). By default those among `paths` or beside a product that its
        header names.
    virtual_sky
        Whether slits with virtual sources (a negative ``source_id``) are sky.
    accept
        Status keywords not held against a product: ``"S_FLAT"`` of slits without flat field, and
        ``"S_PHOTOM"`` where it and the unit contradict each other.

    Returns
    -------
    xarray.DataTree
        Nodes such as ``prism-clear``, each a slit dataset. Headers are read, pixels are not. The
        flags of STScI and NIPS products mean different things: where both are of one
        configuration, those of NIPS are a node of their own, ``prism-clear-nips``. Slits whose
        background was subtracted already, as coordinate ``subtracted`` tells, are in
        ``prism-clear-subtracted``: they hold no sky to fit, and are there to be compared.

    Raises
    ------
    InputFileError, InputFilesError
        Where files are missing or cannot be used, or slits in them: where uniform sky cannot be
        followed into their pixels.
    StoreError
        Where a store cannot be opened.
    ParameterError
        Where `nips_layout` makes no sense, or `sky`, `metafile` or `accept` for these products.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> mx.open_program("nothing/*.fits")
    Traceback (most recent call last):
    ...
    mbkg_xr.errors.InputFileError: no input files [nothing/*.fits]; expected FITS files...
    """
    layout = NipsLayout.of(nips_layout)
    choice = choices(sky=sky, metafile=metafile, virtual_sky=virtual_sky, accept=accept)
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    store = _the_store(given[0]) if len(given) == 1 else None
    if store is not None:
        return choose_in_tree(open_store(store), choice)
    files = dict.fromkeys(file for path in given for file in _expand(path))
    scan = partial(_scan_product, layout=layout)
    sources = scan_files(files, scan, on_error=on_error)
    if not sources:
        raise InputFileError(
            "no slit products",
            where=", ".join(os.fspath(path) for path in given),
            expected="slit products of STScI or NIPS",
            found="MSA metafiles only" if files else "nothing",
        )
    check_sky([s.coords for s in sources], choice)
    slits = jwst.decide(
        [s for s in sources if isinstance(s, jwst.SlitSource)],
        choice=choice,
        metafiles=list(files),
        on_error=on_error,
    )
    datasets = {
        name: jwst.dataset(group, chunks=chunks) for name, group in by_configuration(slits).items()
    }
    for name, group in by_configuration(
        s for s in sources if isinstance(s, nips.NipsSource)
    ).items():
        ds = choose_sky(nips.dataset(group, chunks=chunks, layout=layout), choice)
        if name in datasets:
            name = f"{name}-nips"
            ds = ds.assign_attrs(configuration=name)
        datasets[name] = ds
    return xr.DataTree.from_dict(datasets)


def _scan_product(
    path: str | Path, *, layout: NipsLayout
) -> Sequence[jwst.SlitSource | nips.NipsSource]:
    """Slits of one file of either format; the headers are read once."""
    hdus = hdu_table(path)
    if nips.is_nips(hdus, layout):
        return nips.scan_file(path, hdus, layout=layout)
    return [] if _is_metafile(hdus) else jwst.scan_file(path, hdus)


def _is_metafile(hdus: Sequence[Hdu]) -> bool:
    names = {h.name for h in hdus}
    return "SHUTTER_INFO" in names and "SCI" not in names


def _the_store(path: str | os.PathLike) -> Path | None:
    """The store that a path is, or the only one in a directory without FITS files."""
    folder = Path(path)
    if is_store(folder):
        return folder
    if not folder.is_dir() or any(folder.glob("*.fits")):
        return None
    stores = sorted(p for p in folder.iterdir() if is_store(p) and not p.name.startswith("."))
    if len(stores) > 1:
        raise InputFileError(
            "several Zarr stores",
            where=str(folder),
            expected="one store, or FITS files",
            found=", ".join(p.name for p in stores),
            remedy="name the one to open",
        )
    return stores[0] if stores else None


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
