"""Results back into the products they came from: FITS files in their own format, written whole."""

from __future__ import annotations

import operator
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..blocks import reduce_blocks
from ..errors import DatasetError, InputFileError, InputFilesError, ParameterError, StoreError
from ..schema import slit_label
from . import _expand, nips, write_jwst, write_nips
from .fits import Hdu, hdu_table
from .layout import NipsLayout
from .write_planes import (
    Slot,
    edited_header,
    file_end,
    plane_bytes,
    raw_header,
    read_plane,
    without_checksum,
)

__all__ = ["check_targets", "write_fits"]

_CHUNK = 32  # slits at a time where nothing is chunked
_PIXELS = ("flux", "error", "quality", "wavelength")
_OPTIONAL = ("background", "background_error", "var_rnoise", "var_poisson")


@dataclass(frozen=True)
class _Product:
    """One product: where it is, where its copy goes, and its slits by row of the dataset."""

    path: Path
    name: str
    hdus: Sequence[Hdu]
    rows: Mapping[int, Slot]
    left: tuple[Slot, ...]
    writer: Any


@dataclass(frozen=True)
class _Task:
    """What it takes to write one slit into the copy of its product."""

    slot: Slot
    path: str
    target: str
    shift: int
    added: tuple[int, ...]
    factor: float
    patched: Callable[..., dict[str, NDArray]]


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
    ...     files = write_nips(mx.simulate_program(exposures=2, slits=3), f"{folder}/in")
    ...     ds = mx.select_background(mx.open_program(files)["prism-clear"].to_dataset())
    ...     sub = mx.subtract(ds, mx.fit_master(ds))
    ...     len(mx.write_fits(sub, pathlib.Path(folder) / "out"))
    6
    """
    say = on_step or (lambda text: None)
    datasets = _slit_datasets(result)
    directory = Path(directory)
    say("looking for the products")
    given = None if products is None else _by_name(products)
    grouped = [(ds, _products(ds, given, nips_layout)) for ds in datasets]
    names = [(p.name, p.path) for _, group in grouped for p in group]
    _check_targets(names, directory, overwrite)
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
            tasks: dict[int, _Task] = {}
            for product in group:
                tasks |= _copied(product, staging, ds, date)
            say(f"{configuration}: writing {len(tasks)} slits")
            _write_pixels(ds, tasks)
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
    paths = dict.fromkeys(p for ds in _slit_datasets(result) for p in _paths(ds, None, problems))
    _raise(problems)
    _check_targets([(path.name, path) for path in paths], Path(directory), overwrite)


def _slit_datasets(result: xr.Dataset | xr.DataTree | Mapping[str, xr.Dataset]) -> list[xr.Dataset]:
    if isinstance(result, xr.Dataset):
        found = [result]
    elif isinstance(result, xr.DataTree):
        found = [node.to_dataset() for node in result.subtree]
    else:
        found = list(result.values())
    slits = [ds for ds in found if all(name in ds.variables for name in (*_PIXELS, "filename"))]
    if not slits:
        raise DatasetError(
            "no slits to write",
            expected="a slit dataset, such as from subtract, or a tree of them",
            found=" ".join(str(n) for ds in found[:1] for n in ds.variables) or "nothing",
        )
    return slits


# ------------------------------------------------------------------------------------------------
# Which slit is in which product


def _by_name(products: str | os.PathLike | Sequence[str | os.PathLike]) -> dict[str, Path]:
    paths = [products] if isinstance(products, str | os.PathLike) else list(products)
    found: dict[str, Path] = {}
    for path in (Path(file) for given in paths for file in _expand(given)):
        other = found.setdefault(path.name, path)
        if other.resolve() != path.resolve():
            raise ParameterError(
                "two products of one name",
                where="products",
                found=f"{other} and {path}",
                remedy="write their results one after the other, into different directories",
            )
    return found


def _products(
    ds: xr.Dataset, given: Mapping[str, Path] | None, layout: NipsLayout | None
) -> list[_Product]:
    """The products of a dataset's slits, in the order of the slits."""
    rows: dict[Path, list[int]] = {}
    problems: list[InputFileError] = []
    for path, index in zip(_paths(ds, given, problems), range(ds.sizes["slit"]), strict=True):
        rows.setdefault(path, []).append(index)
    out = []
    if not problems:
        for path, indices in rows.items():
            try:
                out.append(_product(ds, path, indices, layout))
            except InputFileError as error:
                problems.append(error)
    _raise(problems)
    return out


def _paths(
    ds: xr.Dataset, given: Mapping[str, Path] | None, problems: list[InputFileError]
) -> Iterator[Path]:
    """The product of each slit; what is missing is added to the problems once."""
    filenames = ds["filename"].values.tolist()
    paths = ds["path"].values.tolist() if "path" in ds.coords else [""] * len(filenames)
    missing: set[str] = set()
    for filename, path in zip(filenames, paths, strict=True):
        found = given.get(filename, Path()) if given is not None else Path(path)
        if found.is_file() or filename in missing:
            yield found
            continue
        missing.add(filename)
        problems.append(
            InputFileError(
                "the product of a result is not there",
                where=filename or "slits without a file name",
                expected="a FITS file" if given is None else "it among products",
                found=path or "a dataset that was not opened from FITS",
                remedy="say where the products are by products=...",
            )
        )
        yield found


def _raise(problems: list[InputFileError]) -> None:
    if problems:
        raise problems[0] if len(problems) == 1 else InputFilesError(list(problems))


def _product(
    ds: xr.Dataset, path: Path, rows: Sequence[int], layout: NipsLayout | None
) -> _Product:
    hdus = hdu_table(path)
    if nips.is_nips(hdus, layout):
        writer: Any = write_nips
        slots, key = write_nips.slots(path, hdus, layout=layout), "detector"
    else:
        writer = write_jwst
        slots, key = write_jwst.slots(path, hdus), "slitlet"
    by_key = {slot.key: slot for slot in slots}
    found: dict[int, Slot] = {}
    for row in rows:
        slot = by_key.pop(ds[key].values[row].item(), None)
        held = (ds.sizes["y"], ds.sizes["x"])
        if slot is None or slot.shape[0] > held[0] or slot.shape[1] > held[1]:
            raise InputFileError(
                "not the product that the result was made from",
                where=f"{slit_label(ds, row)} ({path})",
                expected="the slits of the result",
                found="no such slit" if slot is None else f"a cut-out of {slot.shape} pixels",
                remedy="give the products that were opened by products=...",
            )
        found[row] = slot
    return _Product(path, path.name, hdus, found, tuple(by_key.values()), writer)


# ------------------------------------------------------------------------------------------------
# Where the copies go


def _check_targets(names: list[tuple[str, Path]], directory: Path, overwrite: bool) -> None:
    """Raise where a copy would replace a product, another copy, or a file it may not."""
    if directory.exists() and not directory.is_dir():
        raise StoreError("not a directory", where=str(directory), remedy="choose another name")
    seen: dict[str, Path] = {}
    inputs = {(s.st_dev, s.st_ino) for s in (path.stat() for _, path in names)}
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


# ------------------------------------------------------------------------------------------------
# Copies, first as they are


def _copied(product: _Product, staging: Path, ds: xr.Dataset, date: str) -> dict[int, _Task]:
    """Copy a product with its new headers; what is left to do for each slit, by row."""
    subtracted = "background" in ds
    _, primary = raw_header(product.path, product.hdus, 0)
    header = edited_header(primary, *_provenance(product, ds, date)) if subtracted else primary
    shift = len(header) - len(primary)
    end = file_end(product.hdus)
    factors = ds["flux_factor"].values if "flux_factor" in ds.coords else None
    tasks = {}
    target = staging / product.name
    with open(product.path, "rb") as source, open(target, "wb") as out:
        source.seek(len(primary))
        out.write(header)
        _copy_bytes(source, out, end - len(primary))
        at = end + shift
        for row, slot in product.rows.items():
            added: tuple[int, ...] = ()
            for extension in slot.headers if subtracted else ():
                out.seek(at)
                out.write(extension)
                added = (*added, at + len(extension))
                at = added[-1] + slot.plane_size
            tasks[row] = _Task(
                slot,
                str(product.path),
                str(target),
                shift,
                added,
                1.0 if factors is None else float(factors[row]),
                product.writer.patched,
            )
        out.truncate(at)
        _drop_checksums(product, out, shift)
    return tasks


def _copy_bytes(source: Any, out: Any, size: int) -> None:
    while size > 0:
        block = source.read(min(size, 1 << 22))
        if not block:
            raise InputFileError("truncated FITS file", where=source.name)
        out.write(block)
        size -= len(block)


def _drop_checksums(product: _Product, out: Any, shift: int) -> None:
    """Take the checksums out of headers whose pixels are going to change."""
    offsets = {p.offset for slot in product.rows.values() for p in slot.places.values()}
    for index, hdu in enumerate(product.hdus):
        if hdu.offset in offsets and ("CHECKSUM" in hdu.header or "DATASUM" in hdu.header):
            start, raw = raw_header(product.path, product.hdus, index)
            cards = without_checksum(raw[i : i + 80] for i in range(0, len(raw), 80))
            out.seek(start + shift)
            out.write(b"".join(cards).ljust(len(raw)))


def _provenance(
    product: _Product, ds: xr.Dataset, date: str
) -> tuple[list[tuple[str, Any, str]], list[str]]:
    """Keywords and history of what was done, by what, from what."""
    attrs = ds.attrs
    method = str(attrs.get("background_method", "unknown"))
    step = ("S_BKDSUB", "Background") if method == "nods" else ("S_MSBSUB", "Master background")
    version = str(attrs.get("background_version", ""))
    done, left = len(product.rows), [str(slot.key) for slot in product.left]
    cards: list[tuple[str, Any, str]] = [
        (step[0], "COMPLETE", f"{step[1]} subtraction"),
        ("MBKVER", version, "mbkg_xr version"),
        ("MBKDATE", date, "UTC date of writing"),
        ("MBKMETH", method, "what was subtracted"),
        ("MBKCONF", str(attrs.get("configuration", "")), "configuration of the master"),
        ("MBKNDONE", done, "slits of this file with background subtracted"),
        ("MBKNLEFT", len(left), "slits of this file left as they were"),
    ]
    for key, name, comment in (
        ("MBKMODEL", "background_model", "model of the master"),
        ("MBKSLITS", "background_slits", "slits the master was fitted to"),
        ("MBKPIX", "background_pixels", "pixels the master was fitted to"),
        ("MBKHASH", "background_sha256", ""),
    ):
        if name in attrs:
            value = attrs[name]
            cards.append((key, value if isinstance(value, str) else int(value), comment))
    history = [
        f"mbkg_xr {version}: background ({method}) subtracted from {done} of {done + len(left)} "
        "slits; BKG and BKG_ERR hold it, ERR (VAR) and VAR_POISSON its variance."
    ]
    if left:
        history.append("Not subtracted, left as they were: slits " + ", ".join(left))
    return cards, history


# ------------------------------------------------------------------------------------------------
# Pixels, chunk by chunk


def _write_pixels(ds: xr.Dataset, tasks: Mapping[int, _Task]) -> None:
    names = [*_PIXELS, *(name for name in _OPTIONAL if name in ds.variables)]
    pixels = ds[names].reset_coords()[names]
    if not any(v.chunks for v in pixels.variables.values()):
        pixels = pixels.chunk({"slit": _CHUNK})
    block = partial(_write_block, names=names)
    _raise(reduce_blocks(pixels, names, block, operator.add, dict(tasks)))


def _write_block(
    first: int, arrays: Sequence[NDArray], tasks: Mapping[int, _Task], *, names: Sequence[str]
) -> list[InputFileError]:
    """Write the slits of a chunk; what cannot be written is returned, so that all is reported."""
    problems = []
    for index in range(arrays[0].shape[0]):
        task = tasks[first + index]
        ny, nx = task.slot.shape
        try:
            _write_slit(
                task,
                {name: a[index, :ny, :nx] for name, a in zip(names, arrays, strict=True)},
            )
        except InputFileError as error:
            problems.append(error)
    return problems


def _write_slit(task: _Task, pixels: dict[str, NDArray]) -> None:
    slot = task.slot
    filed = {role: read_plane(task.path, slot, role) for role in slot.places}
    # Pixels outside the slit, and bad ones, may be any bits.
    with np.errstate(all="ignore"):
        new = task.patched(slot, filed, pixels, task.factor, task.path)
    with open(task.target, "r+b") as out:
        for role, plane in new.items():
            place = slot.places[role]
            out.seek(place.offset + task.shift)
            out.write(plane_bytes(plane, slot, place))
        for name, offset in zip(("background", "background_error"), task.added, strict=False):
            plane = pixels[name] / np.float64(task.factor)
            out.seek(offset)
            out.write((plane[::-1, ::-1] if slot.turned else plane).astype(">f4").tobytes())
