"""Slits of one exposure on one detector, from their products into the store's slots.

This is what dask's workers do; it may be done again, and anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from ..errors import InputFileError, StoreError
from .journal import Block, compact
from .lock import Lock
from .slots import digest, fill_of, write_pixels
from .survey import Found, Part, nodes, plain, reason_of

__all__ = ["Delivered", "Order", "deliver"]


@dataclass(frozen=True)
class Order:
    """What one task has to write.

    Attributes
    ----------
    lock
        The store's, which must still be held.
    group, exposure, detector
        Which slits.
    start
        Their first slot.
    files, metafiles
        The products that hold them, and MSA metafiles that may be theirs.
    chunk, variables
        Of the group, as in the journal.
    options, told
        For the reader, and as the journal has them.
    """

    lock: Lock
    group: str
    exposure: str
    detector: str
    start: int
    files: tuple[Found, ...]
    metafiles: tuple[str, ...]
    chunk: tuple[int, int, int]
    variables: Mapping[str, dict]
    options: Mapping[str, Any]
    told: Mapping[str, str]

    @property
    def parts(self) -> list[Part]:
        """What the files hold of these slits."""
        mine = (self.group, self.exposure, self.detector)
        parts = [p for f in self.files for p in f.parts]
        return [p for p in parts if (p.group, p.exposure, p.detector) == mine]

    @property
    def count(self) -> int:
        return sum(len(p.slitlets) for p in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that hold all of them."""
        rows, columns = zip(*(p.shape for p in self.parts), strict=True)
        return max(rows), max(columns)


@dataclass
class Delivered:
    """A block that is written, or None where no file was of use; files that were not, and why.

    ``coords`` describes the slit coordinates: dtype and attributes by name.
    """

    order: Order
    block: Block | None
    coords: dict[str, dict]
    failed: dict[str, str]

    @property
    def written(self) -> tuple[Found, ...]:
        return tuple(f for f in self.order.files if f.path not in self.failed)


def deliver(order: Order) -> Delivered:
    """Write an exposure's slits on one detector to their slots.

    Files that turn out to be of no use are left out, and the others written without them.

    Raises
    ------
    StoreError
        Where the store cannot be written.
    """
    failed: dict[str, str] = {}
    left = order
    while left.files:
        try:
            block, coords = _write(left)
            return Delivered(order, block, coords, failed)
        except StoreError:
            raise
        except Exception as error:
            bad = {f.path: reason for f in left.files if (reason := _complaint(left, f))}
            # What is wrong with several of them together is wrong with all.
            bad = bad or {f.path: reason_of(error) for f in left.files}
            failed |= bad
            left = replace(left, files=tuple(f for f in left.files if f.path not in bad))
    return Delivered(order, None, {}, failed)


def _complaint(order: Order, one: Found) -> str:
    """What is wrong with one file, all its pixels read."""
    try:
        for _ in _chunks(order, _slits(replace(order, files=(one,)))):
            pass
        _same_as_surveyed(one)
    except Exception as error:
        return reason_of(error)
    return ""


def _slits(order: Order) -> xr.Dataset:
    """The slits, lazy, by slitlet."""
    paths = [*(f.path for f in order.files), *order.metafiles]
    ds = nodes(paths, order.options, order.chunk[0])[order.group]
    mine = (ds["exposure"].values == order.exposure) & (ds["detector"].values == order.detector)
    index = np.flatnonzero(mine)
    index = index[np.argsort(ds["slitlet"].values[index], kind="stable")]
    whole = index.size == ds.sizes["slit"] and bool((np.diff(index) == 1).all())
    ds = ds if whole else ds.isel(slit=index)
    expected = sorted(s for p in order.parts for s in p.slitlets)
    if ds["slitlet"].values.tolist() != expected:
        raise InputFileError(
            "the product changed while it was ingested",
            where=", ".join(f.name for f in order.files),
            expected=f"slitlets {expected}",
            found=ds["slitlet"].values.tolist(),
        )
    return ds


def _chunks(order: Order, ds: xr.Dataset) -> Iterator[dict[str, np.ndarray]]:
    """Pixels of one chunk of slits after the other, by variable, filled up to whole chunks."""
    length, rows, columns = order.chunk
    names = [str(n) for n, v in ds.variables.items() if v.dims == ("slit", "y", "x")]
    unknown = set(names) - set(order.variables)
    if unknown:
        raise InputFileError(
            "pixels the survey has not seen", where=order.exposure, found=", ".join(unknown)
        )
    y, x = (-(-ds.sizes["y"] // rows) * rows, -(-ds.sizes["x"] // columns) * columns)
    for first in range(0, ds.sizes["slit"], length):
        part = ds.isel(slit=slice(first, first + length))
        values = dask.compute(*(part[n].data for n in names), scheduler="synchronous")
        out = {}
        for name, pixels in zip(names, values, strict=True):
            made = order.variables[name]
            whole = np.full((length, y, x), fill_of(made), dtype=made["dtype"])
            whole[: pixels.shape[0], : pixels.shape[1], : pixels.shape[2]] = pixels
            out[name] = whole
        yield out


def _write(order: Order) -> tuple[Block, dict[str, dict]]:
    ds = _slits(order)
    digests: dict[str, Any] = {}
    start = order.start
    for pixels in _chunks(order, ds):
        for name, values in pixels.items():
            order.lock.check()
            digests[name] = digest(values, digests.get(name))
            try:
                write_pixels(order.lock.store, f"{order.group}/{name}", start, values)
            except OSError as error:
                raise StoreError(
                    "cannot write to the store",
                    where=f"{order.lock.store}, {order.group}/{name}",
                    found=error.strerror or error,
                    remedy="make room, and run it again: what is complete is kept",
                ) from error
        start += order.chunk[0]
    for one in order.files:
        _same_as_surveyed(one)
    coords = {str(n): v for n, v in ds.coords.items() if v.dims == ("slit",)}
    block = Block(
        exposure=order.exposure,
        detector=order.detector,
        start=order.start,
        count=ds.sizes["slit"],
        shape=(ds.sizes["y"], ds.sizes["x"]),
        units=str(ds["flux"].attrs["units"]),
        digests={name: d.hexdigest() for name, d in digests.items()},
        coords={name: compact(v.values) for name, v in coords.items()},
        attrs=plain(ds.attrs),
        version=_version(),
        options=dict(order.told),
    )
    described = {
        name: {"dtype": "U" if v.dtype.kind in "UTO" else v.dtype.name, "attrs": plain(v.attrs)}
        for name, v in coords.items()
    }
    return block, described


def _version() -> str:
    from .. import __version__  # not there yet while the package is imported

    return __version__


def _same_as_surveyed(one: Found) -> None:
    now = os.stat(one.path)
    if (now.st_size, now.st_mtime_ns) != (one.size, one.stamp):
        raise InputFileError(
            "the file changed while it was ingested",
            where=Path(one.path).name,
            expected=f"{one.size} bytes",
            found=f"{now.st_size} bytes, or a later time",
            remedy="run it again when nothing writes to it",
        )
