"""Results back into the products they came from: FITS files in their own format, written whole."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import xarray as xr

from ..errors import DatasetError, InputFileError, ParameterError, StoreError
from .layout import NipsLayout
from .write_copies import PIXELS, Task, copied, write_pixels
from .write_products import by_name, paths_of, products_of, raise_all

__all__ = ["check_targets", "write_fits"]


def write_fits(
    result: xr.Dataset | xr.DataTree | Mapping[str, xr.Dataset],
    directory: str | os.PathLike,
    *,
    products: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    overwrite: bool = False,
    nips_layout: NipsLayout | None = None,
    date: str | None = None,
    on_step: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write each input product anew, in its own format, with the result's pixels. Computes.

    The copy of a product has the flux of `result` in ``SCI`` (NIPS: ``DATA``), its error in
    ``ERR`` (``VAR``), its flags in ``DQ`` (``QUALITY``), in the file's own unit. Where a
    background was subtracted, ``BKG`` and ``BKG_ERR`` hold it for each slit, with the ``EXTVER``
    of that slit (NIPS: the suffix of the detector); its variance is added to ``VAR_POISSON``,
    from which the official pipeline makes errors anew (``VAR_RNOISE``, its weights, stays); and
    the primary header says so (``S_MSBSUB``, or ``S_BKDSUB`` for nods, ``MBK...`` and
    ``HISTORY``). All other extensions, pixels that did not change, and slits that are not in
    `result`, keep their bytes. A dataset without background is written back without a word
    in the header: straight from `open_program`, it gives the very file.

    Parameters
    ----------
    result
        From `subtract`: a slit dataset, or those of a tree or mapping (masters among them are
        passed over). Pixels are computed and written chunk by chunk.
    directory
        Where to write; copies have the names of their products.
    products
        The products, as for `open_program`. By default those the slit coordinate ``path`` names.
    overwrite
        Whether files of the same names may be replaced.
    nips_layout
        Of NIPS products, as for `open_program`.
    date
        What the headers give as the date of writing; now (UTC) by default.
    on_step
        Called with a line of text as each step begins.

    Returns
    -------
    list of pathlib.Path
        The files, in the order of the slits. They get their names when all are complete; nothing
        is written beside the products.

    Raises
    ------
    DatasetError
        Where there is no slit dataset.
    InputFileError, InputFilesError
        Where products are missing, or are not those the result was made from.
    ParameterError
        Where a product would be replaced, or two copies would have one name.
    StoreError
        Where a file exists and `overwrite` is False, or the directory cannot be written.

    Examples
    --------
    >>> import mbkg_xr as mx, pathlib, tempfile
    >>> from mbkg_xr.simulate import write_nips
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ds = mx.simulate_program(exposures=2, slits=3, background_slits=2)
    ...     files = write_nips(ds, f"{folder}/in")
    ...     ds = mx.select_background(mx.open_program(files)["prism-clear"].to_dataset())
    ...     sub = mx.subtract(ds, mx.fit_master(ds))
    ...     len(mx.write_fits(sub, pathlib.Path(folder) / "out"))
    6
    """
    say = on_step or (lambda text: None)
    datasets = _slit_datasets(result)
    directory = Path(directory)
    say("looking for the products")
    given = None if products is None else by_name(products)
    grouped = [(ds, products_of(ds, given, nips_layout)) for ds in datasets]
    names = [(p.name, p.path) for _, group in grouped for p in group]
    _check_targets(names, directory, overwrite, _inputs(datasets, names))
    left = [slot for _, group in grouped for p in group for slot in p.left]
    if left:
        some = ", ".join(slot.where for slot in left[:5]) + (" ..." if len(left) > 5 else "")
        warnings.warn(
            f"{len(left)} slits are not in the result and stay as they are: {some}", stacklevel=2
        )
    date = date or datetime.now(UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    with _staged(directory, [name for name, _ in names], overwrite) as staging:
        for ds, group in grouped:
            configuration = ds.attrs.get("configuration", "")
            say(f"{configuration}: copying {len(group)} products")
            tasks: dict[int, Task] = {}
            for product in group:
                tasks |= copied(product, staging, ds, date)
            say(f"{configuration}: writing {len(tasks)} slits")
            write_pixels(ds, tasks)
    return [directory / name for name, _ in names]


def check_targets(
    result: xr.DataTree | Mapping[str, xr.Dataset],
    directory: str | os.PathLike,
    *,
    overwrite: bool = False,
) -> None:
    """What `write_fits` would find wrong before it looks into a product. Reads no pixel.

    Raises
    ------
    InputFileError, InputFilesError, ParameterError, StoreError
        As `write_fits`.
    """
    problems: list[InputFileError] = []
    datasets = _slit_datasets(result)
    names = {
        path: name
        for ds in datasets
        for name, path in zip(ds["filename"].values, paths_of(ds, None, problems), strict=True)
    }
    raise_all(problems)
    named = [(str(name) or path.name, path) for path, name in names.items()]
    _check_targets(named, Path(directory), overwrite, _inputs(datasets, named))


def _slit_datasets(result: xr.Dataset | xr.DataTree | Mapping[str, xr.Dataset]) -> list[xr.Dataset]:
    if isinstance(result, xr.Dataset):
        found = [result]
    elif isinstance(result, xr.DataTree):
        found = [node.to_dataset() for node in result.subtree]
    else:
        found = list(result.values())
    slits = [ds for ds in found if all(name in ds.variables for name in (*PIXELS, "filename"))]
    if not slits:
        raise DatasetError(
            "no slits to write",
            expected="a slit dataset, such as from subtract, or a tree of them",
            found=" ".join(str(n) for ds in found[:1] for n in ds.variables) or "nothing",
        )
    return slits


# ------------------------------------------------------------------------------------------------
# Where the copies go


def _inputs(datasets: list[xr.Dataset], names: list[tuple[str, Path]]) -> set[tuple[int, int]]:
    """What on disk must not be written over, whatever its name: products, wherever they are."""
    paths = {path for _, path in names}
    paths |= {Path(p) for ds in datasets if "path" in ds.coords for p in ds["path"].values if p}
    return {(s.st_dev, s.st_ino) for s in (path.stat() for path in paths if path.exists())}


def _check_targets(
    names: list[tuple[str, Path]], directory: Path, overwrite: bool, inputs: set[tuple[int, int]]
) -> None:
    """Raise where a copy would replace a product, another copy, or a file it may not."""
    if directory.exists() and not directory.is_dir():
        raise StoreError("not a directory", where=str(directory), remedy="choose another name")
    seen: dict[str, Path] = {}
    for name, path in names:
        if name in seen:
            raise ParameterError(
                "two products of one name",
                where=str(directory),
                found=f"{seen[name]} and {path}",
                remedy="write their results one after the other, into different directories",
            )
        seen[name] = path
        target = directory / name
        if target.exists() and (target.stat().st_dev, target.stat().st_ino) in inputs:
            raise ParameterError(
                "the copy would replace a product",
                where=str(target),
                remedy="choose another directory",
            )
        if os.path.lexists(target) and not overwrite:
            raise StoreError(
                "the file exists already",
                where=str(target),
                remedy="choose another directory, or overwrite (--overwrite)",
            )


@contextmanager
def _staged(directory: Path, names: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """A directory to write files into, which get their names only when all went well."""
    new = not directory.exists()
    folder = directory.parent if new else directory
    staging = folder / f".{directory.name}.staging-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise StoreError("cannot write here", where=str(directory), found=error.strerror) from error
    try:
        yield staging
        if new and not directory.exists():
            os.replace(staging, directory)
            return
        # Somebody else may have written under these names in the meantime.
        taken = [name for name in names if os.path.lexists(directory / name)]
        if taken and not overwrite:
            raise StoreError("the file exists already", where=str(directory / taken[0]))
        for name in names:
            os.replace(staging / name, directory / name)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError("cannot write here", where=str(directory), found=error.strerror) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
