"""Products in, products out."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import xarray as xr

from ..errors import InputFileError, MbkgError
from ..progress import counting
from . import jwst, nips
from .choices import check_sky, choices, choose_in_tree, choose_sky
from .fits import Hdu, by_configuration, hdu_table, scan_files
from .index import Index, Seen, open_index
from .lazy import SLITS_A_CHUNK, Chunks, chunked_as
from .location import is_remote, is_url, located
from .nips import NipsLayout
from .spectrum import read_template
from .store import is_store, open_store, save

__all__ = ["NipsLayout", "open_program", "read_template", "save"]

_KINDS: dict[str, type] = {kind.__name__: kind for kind in (jwst.SlitSource, nips.NipsSource)}


def open_program(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    chunks: Chunks = SLITS_A_CHUNK,
    on_error: str = "raise",
    nips_layout: NipsLayout | Mapping[str, Any] | str | os.PathLike | None = None,
    sky: Any = None,
    metafile: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    virtual_sky: bool = False,
    accept: Sequence[str] = (),
    cache: bool | str | os.PathLike = True,
    progress: bool | Callable[[int, int], None] = False,
) -> xr.DataTree:
    """Open a programme as a lazy tree, one node a disperser/filter pair.

    Parameters
    ----------
    paths
        Slit products of STScI and NIPS (files, glob patterns, where ``**`` stands for any folders,
        or directories of FITS files), a Zarr store, or a directory that holds a Zarr store and no
        FITS file. MSA metafiles among the products are passed over: they hold no slits.
    chunks
        Slits in a chunk; a mapping such as ``{"slit": 64}``; ``"auto"`` for dask's usual size; -1
        for one chunk; ``{}`` for 32 slits, or as a store has them. Chunks of a store are joined or
        split whole. None for lazy arrays without dask, which read what is indexed.
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
    cache
        Where the structure of products, and yrel once evaluated, are kept for the next time: a
        directory, True for ``mbkg_xr`` in the user's cache directory (or the environment variable
        ``MBKG_XR_CACHE``), or False. A product that changed, in its headers or metadata, is read
        anew; nothing is ever written beside it.
    progress
        Whether to show a bar while files are opened, or what to call with the number of files done
        and of all.

    Returns
    -------
    xarray.DataTree
        Nodes such as ``prism-clear``, each a slit dataset, slits by exposure, detector and slitlet
        whatever the order of files. Headers are read, pixels are not. The
        flags of STScI and NIPS products mean different things: where both are of one
        configuration, those of NIPS are a node of their own, ``prism-clear-nips``. Slits whose
        background was subtracted already, as coordinate ``subtracted`` tells, are in
        ``prism-clear-subtracted``: they hold no sky to fit, and are there to be compared.

    Raises
    ------
    InputFileError, InputFilesError
        Where files are missing or cannot be used, or hold the same slits; or slits in them cannot:
        where uniform sky cannot be followed into their pixels.
    StoreError
        Where a store cannot be opened.
    ParameterError
        Where `chunks`, `on_error` or `nips_layout` make no sense, or `sky`, `metafile` or `accept`
        for these products.

    Examples
    --------
    >>> import mbkg_xr as mx, tempfile
    >>> from mbkg_xr.simulate import write_jwst
    >>> few = mx.simulate_program(exposures=2, slits=3, background_slits=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = write_jwst(few, folder)
    ...     tree = mx.open_program(folder, cache=False)
    ...     print(list(tree.children), tree["prism-clear"].sizes["slit"])
    ['prism-clear'] 6
    >>> mx.open_program("nothing/*.fits")
    Traceback (most recent call last):
    ...
    mbkg_xr.errors.InputFileError: no input files [nothing/*.fits]; expected FITS files...
    """
    layout = NipsLayout.of(nips_layout)
    choice = choices(sky=sky, metafile=metafile, virtual_sky=virtual_sky, accept=accept)
    one = isinstance(paths, str | os.PathLike) or is_remote(paths)
    given: list[Any] = [paths] if one else list(cast(Sequence, paths))
    store = _the_store(given[0]) if len(given) == 1 else None
    if store is not None:
        return chunked_as(choose_in_tree(open_store(store), choice), chunks)
    files = {os.path.realpath(file): file for path in given for file in _expand(path)}
    index = open_index(cache)
    scan = partial(_scan_product, layout=layout, index=index)
    with counting(progress, "opening") as count:
        sources = scan_files(files.values(), scan, on_error=on_error, progress=count)
    if index is not None:
        sources = index.with_places(sources)
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
        metafiles=list(files.values()),
        on_error=on_error,
    )
    datasets = {
        name: jwst.dataset(group, chunks=chunks)
        for name, group in by_configuration(slits, on_error=on_error).items()
    }
    for name, group in by_configuration(
        (s for s in sources if isinstance(s, nips.NipsSource)), on_error=on_error
    ).items():
        ds = choose_sky(nips.dataset(group, chunks=chunks, layout=layout), choice)
        if name in datasets:
            name = f"{name}-nips"
            ds = ds.assign_attrs(configuration=name)
        datasets[name] = ds
    return xr.DataTree.from_dict(datasets)


def _scan_product(
    path: str | Path, *, layout: NipsLayout, index: Index | None = None
) -> Sequence[jwst.SlitSource | nips.NipsSource]:
    """Slits of one file of either format; the headers are read once, if at all."""
    seen = None if index is None else Seen.now(path)
    about = repr(layout)
    if index is not None and seen is not None:
        known: Sequence[jwst.SlitSource | nips.NipsSource] | None = index.find(seen, about, _KINDS)
        if known is not None:
            return known
    hdus = hdu_table(path)
    slits: Sequence[jwst.SlitSource | nips.NipsSource] = []
    try:
        if nips.is_nips(hdus, layout):
            slits = nips.scan_file(path, hdus, layout=layout)
        elif not _is_metafile(hdus):
            slits = jwst.scan_file(path, hdus)
    except MbkgError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputFileError(
            "a keyword of the wrong kind",
            where=Path(path).name,
            expected="the keywords of a slit product",
            found=f"{type(error).__name__}: {error}",
            remedy="fetch the file again",
        ) from error
    if index is not None and seen is not None:
        index.add(seen, about, hdus, slits)
    return slits


def _is_metafile(hdus: Sequence[Hdu]) -> bool:
    names = {h.name for h in hdus}
    return "SHUTTER_INFO" in names and "SCI" not in names


def _the_store(path: str | os.PathLike) -> Path | None:
    """The store that a path is, or the only one in a directory without FITS files."""
    folder = located(path)
    if is_store(folder) or is_remote(folder):
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


def _is_product_name(name: str) -> bool:
    """FITS files, and compressed ones, to say so; but metafiles are compressed in the archive."""
    return bool(re.search(r"\.fits(\.(gz|bz2|xz|zip))?$", name)) and "_msa.fits." not in name


def _expand(path: str | os.PathLike) -> list[str]:
    text = os.fspath(path)
    if is_url(text):
        raise InputFileError(
            "products are read from local files",
            where=text,
            expected="local paths, or the URL of one Zarr store",
            found="a URL among several paths",
            remedy="copy the products here, and ingest them into a store there (mbkg-xr ingest)",
        )
    if Path(text).is_dir():
        found = sorted(str(p) for p in Path(text).glob("*.fits*") if _is_product_name(p.name))
    elif Path(text).exists() or not glob.has_magic(text):
        return [text]
    else:
        found = sorted(glob.glob(text, recursive=True))
    if not found:
        raise InputFileError(
            "no input files",
            where=text,
            expected="FITS files, a directory of them, or a Zarr store",
            found="none",
        )
    return found
