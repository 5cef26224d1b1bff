"""Copies of products: first as they are with new headers, then slit by slit with new pixels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..blocks import reduce_blocks
from ..errors import InputFileError
from .write_planes import (
    Slot,
    edited_header,
    file_end,
    plane_bytes,
    raw_header,
    read_plane,
    without_checksum,
)
from .write_products import Product

__all__ = ["PIXELS", "Task", "copied", "write_pixels"]

_CHUNK = 32  # slits at a time where nothing is chunked
#: What a slit dataset must hold to be written, and what else of it is.
PIXELS = ("flux", "error", "quality", "wavelength")
_OPTIONAL = ("background", "background_error", "var_rnoise", "var_poisson")


@dataclass(frozen=True)
class Task:
    """What it takes to write one slit into the copy of its product."""

    slot: Slot
    path: str
    target: str
    shift: int
    added: tuple[int, ...]
    factor: float
    shifted: bool
    patched: Callable[..., dict[str, NDArray]]


def copied(product: Product, staging: Path, ds: xr.Dataset, date: str) -> dict[int, Task]:
    """Copy a product with its new headers; what is left to do for each slit, by row."""
    subtracted = "background" in ds
    _, primary = raw_header(product.path, product.hdus, 0)
    header = edited_header(primary, *_provenance(product, ds, date)) if subtracted else primary
    shift = len(header) - len(primary)
    end = file_end(product.hdus)
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
            factor, kind = (_told(ds, name, row) for name in ("flux_factor", "calibrated_as"))
            tasks[row] = Task(
                slot,
                str(product.path),
                str(target),
                shift,
                added,
                1.0 if factor is None else float(factor),
                kind not in (None, "EXTENDED"),
                product.writer.patched,
            )
        out.truncate(at)
        _drop_checksums(product, out, shift)
    return tasks


def _told(ds: xr.Dataset, name: str, row: int) -> Any:
    """A slit's coordinate; None in datasets that do not have it."""
    return ds[name].values[row].item() if name in ds.coords else None


def _copy_bytes(source: Any, out: Any, size: int) -> None:
    while size > 0:
        block = source.read(min(size, 1 << 22))
        if not block:
            raise InputFileError("truncated FITS file", where=source.name)
        out.write(block)
        size -= len(block)


def _drop_checksums(product: Product, out: Any, shift: int) -> None:
    """Take the checksums out of headers whose pixels are going to change."""
    offsets = {p.offset for slot in product.rows.values() for p in slot.places.values()}
    for index, hdu in enumerate(product.hdus):
        if hdu.offset in offsets and ("CHECKSUM" in hdu.header or "DATASUM" in hdu.header):
            start, raw = raw_header(product.path, product.hdus, index)
            cards = without_checksum(raw[i : i + 80] for i in range(0, len(raw), 80))
            out.seek(start + shift)
            out.write(b"".join(cards).ljust(len(raw)))


def _provenance(
    product: Product, ds: xr.Dataset, date: str
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


def write_pixels(ds: xr.Dataset, tasks: Mapping[int, Task]) -> list[InputFileError]:
    """Write slits of a dataset, by row, into copies that are there; what is wrong with them."""
    rows = sorted(tasks)
    names = [*PIXELS, *(name for name in _OPTIONAL if name in ds.variables)]
    pixels = ds[names].reset_coords()[names]
    contiguous = rows[-1] - rows[0] + 1 == len(rows)
    pixels = pixels.isel(slit=slice(rows[0], rows[-1] + 1) if contiguous else rows)
    if not any(v.chunks for v in pixels.variables.values()):
        pixels = pixels.chunk({"slit": _CHUNK})
    block = partial(_write_block, names=names)
    some = [tasks[row] for row in rows]
    return _by_product(reduce_blocks(pixels, names, block, operator.add, some))


def _by_product(problems: list[tuple[str, InputFileError]]) -> list[InputFileError]:
    """One error a product: that of its first slit, which says how many others there are."""
    slits: dict[str, list[InputFileError]] = {}
    for path, error in problems:
        slits.setdefault(path, []).append(error)
    return [
        InputFileError(
            first.cause,
            where=f"{first.where}" + (f", and {len(more)} other slits" if more else ""),
            expected=first.expected,
            found=first.found,
            remedy=first.remedy,
        )
        for first, *more in slits.values()
    ]


def _write_block(
    first: int, arrays: Sequence[NDArray], tasks: Sequence[Task], *, names: Sequence[str]
) -> list[tuple[str, InputFileError]]:
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
            problems.append((task.path, error))
    return problems


def _write_slit(task: Task, pixels: dict[str, NDArray]) -> None:
    slot = task.slot
    filed = {role: read_plane(task.path, slot, role) for role in slot.places}
    # Pixels outside the slit, and bad ones, may be any bits.
    with np.errstate(all="ignore"):
        new = task.patched(slot, filed, pixels, task.factor, task.path, shifted=task.shifted)
    with open(task.target, "r+b") as out:
        for role, plane in new.items():
            place = slot.places[role]
            out.seek(place.offset + task.shift)
            out.write(plane_bytes(plane, slot, place))
        for name, offset in zip(("background", "background_error"), task.added, strict=False):
            plane = pixels[name] / np.float64(task.factor)
            out.seek(offset)
            out.write((plane[::-1, ::-1] if slot.turned else plane).astype(">f4").tobytes())
