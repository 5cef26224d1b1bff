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
from typing import Any

import xarray as xr

from ..errors import DatasetError, InputFileError, ParameterError, StoreError
from .layout import NipsLayout
from .location import local_path
from .write_copies import PIXELS, Task, copied, write_pixels
from .write_planes import Slot
from .write_products import Product, by_name, find_slits, name_of, raise_all, rows_by_product

__all__ = ["check_targets", "write_fits"]

_BATCH = 256  # slits whose places in their products are known at a time

#: A dataset, and its rows by product.
Plan = tuple[xr.Dataset, Mapping[Path, list[int]]]


def write_fits(
    result: xr.Dataset | xr.DataTree | Mapping[str, xr.Dataset],
    directory: str | os.PathLike,
    *,
    products: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    overwrite: bool = False,
    nips_layout: NipsLayout | Mapping[str, Any] | str | os.PathLike | None = None,
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
    directory, layout = local_path(directory, "products"), NipsLayout.of(nips_layout)
    say("looking for the products")
    given = None if products is None else by_name(products)
    plans = [(ds, rows_by_product(ds, given)) for ds in datasets]
    names = _check_targets(plans, directory, overwrite)
    date = date or datetime.now(UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    problems: list[InputFileError] = []
    left: list[Slot] = []
    with _staged(directory, names, overwrite) as staging:
        for ds, rows in plans:
            configuration = ds.attrs.get("configuration", "")
            for batch in _batches(rows):
                say(f"{configuration}: copying {len(batch)} of {len(rows)} products")
                found = _found(ds, batch, layout, problems)
                left += [slot for product in found for slot in product.left]
                if problems:
                    continue  # look at the rest, so that all is reported
                tasks: dict[int, Task] = {}
                for product in found:
                    tasks |= copied(product, staging, ds, date)
                say(f"{configuration}: writing {len(tasks)} slits")
                problems += write_pixels(ds, tasks)
        raise_all(problems)
    if left:
        some = ", ".join(slot.where for slot in left[:5]) + (" ..." if len(left) > 5 else "")
        warnings.warn(
            f"{len(left)} slits are not in the result and stay as they are: {some}", stacklevel=2
        )
    return [directory / name for name in names]


def _batches(rows: Mapping[Path, list[int]]) -> Iterator[dict[Path, list[int]]]:
    """Some products at a time, so that what is known of them does not fill the memory."""
    batch: dict[Path, list[int]] = {}
    for path, indices in rows.items():
        if batch and sum(map(len, batch.values())) + len(indices) > _BATCH:
            yield batch
            batch = {}
        batch[path] = indices
    yield batch


def _found(
    ds: xr.Dataset,
    batch: Mapping[Path, list[int]],
    layout: NipsLayout,
    problems: list[InputFileError],
) -> list[Product]:
    found = []
    for path, indices in batch.items():
        try:
            found.append(find_slits(ds, path, indices, layout))
        except InputFileError as error:
            problems.append(error)
    return found


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
    plans = [(ds, rows_by_product(ds, None)) for ds in _slit_datasets(result)]
    _check_targets(plans, local_path(directory, "products"), overwrite)


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


def _check_targets(plans: Sequence[Plan], directory: Path, overwrite: bool) -> list[str]:
    """The copies' names; raises where one would replace a product, another, or what it may not."""
    if directory.exists() and not directory.is_dir():
        raise StoreError("not a directory", where=str(directory), remedy="choose another name")
    inputs = _inputs(plans)
    seen: dict[str, Path] = {}
    for name, path in ((name_of(ds, p, r), p) for ds, rows in plans for p, r in rows.items()):
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
    return list(seen)


def _inputs(plans: Sequence[Plan]) -> set[tuple[int, int]]:
    """What on disk must not be written over, whatever its name: products, wherever they are."""
    paths = {path for _, rows in plans for path in rows}
    for ds, _ in plans:
        paths |= {Path(p) for p in set(ds["path"].values.tolist() if "path" in ds else []) if p}
    return {(s.st_dev, s.st_ino) for s in (path.stat() for path in paths if path.exists())}


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
