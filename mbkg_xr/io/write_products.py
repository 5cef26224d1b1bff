"""Which slit of a result is in which product, and where in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import xarray as xr

from ..errors import InputFileError, InputFilesError, ParameterError
from ..schema import slit_label
from . import _expand, nips, write_jwst, write_nips
from .fits import Hdu, hdu_table
from .layout import NipsLayout
from .write_planes import Slot

__all__ = ["Product", "by_name", "find_slits", "name_of", "raise_all", "rows_by_product"]


@dataclass(frozen=True)
class Product:
    """One product: where it is, where its copy goes, and its slits by row of the dataset."""

    path: Path
    name: str
    hdus: Sequence[Hdu]
    rows: Mapping[int, Slot]
    left: tuple[Slot, ...]
    writer: ModuleType


def by_name(products: str | os.PathLike | Sequence[str | os.PathLike]) -> dict[str, Path]:
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


def rows_by_product(ds: xr.Dataset, given: Mapping[str, Path] | None) -> dict[Path, list[int]]:
    """Rows of a dataset by their products, in the order of the slits.

    Raises
    ------
    InputFileError, InputFilesError
        Where products are missing: all of them.
    """
    filenames = ds["filename"].values.tolist()
    paths = ds["path"].values.tolist() if "path" in ds.coords else [""] * len(filenames)
    rows: dict[Path, list[int]] = {}
    problems: list[InputFileError] = []
    known: dict[tuple[str, str], Path] = {}
    for row, key in enumerate(zip(filenames, paths, strict=True)):
        if key not in known:
            filename, path = key
            known[key] = given.get(filename, Path()) if given is not None else Path(path)
            if not known[key].is_file():
                problems.append(
                    InputFileError(
                        "the product of a result is not there",
                        where=filename or "slits without a file name",
                        expected="a FITS file" if given is None else "it among products",
                        found=path or "a dataset that was not opened from FITS",
                        remedy="say where the products are by products=...",
                    )
                )
        rows.setdefault(known[key], []).append(row)
    raise_all(problems)
    return rows


def name_of(ds: xr.Dataset, path: Path, rows: Sequence[int]) -> str:
    """Name of a product: where it was opened by a link, that of the link."""
    return ds["filename"].values[rows[0]].item() or path.name


def raise_all(problems: list[InputFileError]) -> None:
    if problems:
        raise problems[0] if len(problems) == 1 else InputFilesError(list(problems))


def find_slits(ds: xr.Dataset, path: Path, rows: Sequence[int], layout: NipsLayout) -> Product:
    """Where rows of a dataset lie in their product.

    Raises
    ------
    InputFileError
        Where it is not the product that they came from.
    """
    hdus = hdu_table(path)
    if nips.is_nips(hdus, layout):
        writer: ModuleType = write_nips
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
    name = name_of(ds, path, rows)
    return Product(path, name, hdus, found, tuple(by_key.values()), writer)
