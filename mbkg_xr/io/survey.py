"""What products hold, before they are ingested, and which of them are taken."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputFileError, MbkgError
from . import _is_metafile, hdu_table, open_program
from .ingested import NIPS
from .journal import Journal

__all__ = [
    "Found",
    "Part",
    "Survey",
    "choose",
    "describe",
    "flags_digest",
    "nodes",
    "plain",
    "reason_of",
    "survey",
]

#: Slits by (group, exposure, detector, slitlet).
Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Part:
    """Slits that a product holds of one exposure on one detector.

    Attributes
    ----------
    group
        Of the store: the configuration, with ``-nips`` for products of NIPS, whose flags differ.
    exposure, detector, slitlets
        Theirs.
    shape
        ``(ny, nx)`` that they are padded to.
    units, flags
        Unit of the flux, and a digest of the quality table.
    """

    group: str
    exposure: str
    detector: str
    slitlets: tuple[int, ...]
    shape: tuple[int, int]
    units: str
    flags: str

    @property
    def keys(self) -> list[Key]:
        return [(self.group, self.exposure, self.detector, s) for s in self.slitlets]


@dataclass(frozen=True)
class Found:
    """One file: its content, what it holds, and what became of it.

    ``status`` is ``"new"``, ``"accepted"``, ``"skipped"``, ``"failed"`` or ``"used"`` (metafiles),
    ``reason`` says why.
    """

    path: str
    size: int = 0
    stamp: int = 0
    digest: str = ""
    parts: tuple[Part, ...] = ()
    status: str = "new"
    reason: str = ""

    @property
    def name(self) -> str:
        return Path(self.path).name

    def but(self, status: str, reason: str = "") -> Found:
        return replace(self, status=status, reason=reason)

    def failed(self, cause: str, **how: Any) -> Found:
        return self.but("failed", str(InputFileError(cause, where=self.name, **how)))


@dataclass
class Survey:
    """What some files hold: one `Found` each, and variables by group and quality table."""

    found: list[Found] = field(default_factory=list)
    variables: dict[tuple[str, str], dict[str, dict]] = field(default_factory=dict)

    def add(self, other: Survey) -> None:
        self.found += other.found
        for key, variables in other.variables.items():
            self.variables.setdefault(key, {}).update(variables)


# ------------------------------------------------------------------------------------------------
# Looking into files; these run in dask's workers


def survey(paths: Sequence[str], known: Mapping[str, str], options: Mapping[str, Any]) -> Survey:
    """Read the content's digest and the structure of files, no pixels.

    Parameters
    ----------
    paths
        Files.
    known
        Digests by name of products that are in the store: these are not looked into again.
    options
        For `open_program`.
    """
    marked = [fingerprint(path) for path in paths]
    new = [f for f in marked if f.status == "new" and known.get(f.name) != f.digest]
    out = Survey([f for f in marked if f not in new])
    if len({f.name for f in new}) == len(new) > 1:
        try:
            out.add(_look_into(new, options))
            return out
        except Exception:  # told file by file
            pass
    for one in new:
        try:
            out.add(_look_into([one], options))
        except Exception as error:
            out.found.append(one.but("failed", reason_of(error)))
    return out


def reason_of(error: Exception) -> str:
    """One line for the report; what the package did not raise itself is told by its kind too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MbkgError) else f"{type(error).__name__}: {text}"


def fingerprint(path: str) -> Found:
    """Size, time and digest of a file's content."""
    try:
        hashed = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as stream:
            before = os.fstat(stream.fileno())
            while block := stream.read(1 << 20):
                hashed.update(block)
    except OSError as error:
        reason = InputFileError("cannot read the file", where=path, found=error.strerror)
        return Found(path, status="failed", reason=str(reason))
    return Found(path, before.st_size, before.st_mtime_ns, hashed.hexdigest())


def _look_into(files: Sequence[Found], options: Mapping[str, Any]) -> Survey:
    out = Survey()
    parts: dict[str, list[Part]] = defaultdict(list)
    try:
        opened = nodes([f.path for f in files], options)
    except InputFileError:
        if len(files) == 1 and _is_metafile(hdu_table(files[0].path)):
            return Survey([files[0].but("used", "metafile")])
        raise
    for group, ds in opened.items():
        variables = {
            str(name): {"dtype": v.dtype.name, "coord": name in ds.coords, "attrs": plain(v.attrs)}
            for name, v in ds.variables.items()
            if v.dims == ("slit", "y", "x")
        }
        flags = flags_digest(variables["quality"])
        out.variables[group, flags] = variables
        names = [ds[k].values.tolist() for k in ("filename", "exposure", "detector", "slitlet")]
        slits: dict[tuple, list[int]] = defaultdict(list)
        for *key, slitlet in zip(*names, strict=True):
            slits[tuple(key)].append(slitlet)
        shape, units = (ds.sizes["y"], ds.sizes["x"]), str(ds["flux"].attrs["units"])
        for (name, exposure, detector), slitlets in slits.items():
            part = Part(group, exposure, detector, tuple(slitlets), shape, units, flags)
            parts[name].append(part)
    for one in files:
        if parts[one.name]:
            out.found.append(replace(one, parts=tuple(parts[one.name])))
        else:
            out.add(_look_into([one], options))
    return out


def nodes(
    paths: Sequence[str], options: Mapping[str, Any], chunks: int = 32
) -> dict[str, xr.Dataset]:
    """Products as lazy datasets, by the group of the store that they belong to."""
    tree = open_program(list(paths), chunks=chunks, **options)
    out = {}
    for name, node in tree.children.items():
        ds = node.to_dataset()
        ending = NIPS if ds["quality"].dtype == np.uint64 else ""
        out[name.removesuffix(NIPS) + ending] = ds
    return out


def flags_digest(quality: Mapping[str, Any]) -> str:
    """Digest of a quality table, from a variable's dtype and attributes as the journal has them."""
    said = json.dumps([quality["dtype"], quality["attrs"]], sort_keys=True)
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def plain(value: Any) -> Any:
    """Attributes as JSON can hold them."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def describe(options: Mapping[str, Any]) -> dict[str, str]:
    """What the reader was told, for the journal: text, and a token of what is too long for it."""
    from dask.base import tokenize

    said = {}
    for name, value in options.items():
        short = isinstance(value, str | int | float | bool | os.PathLike)
        short = short or (isinstance(value, list | tuple | set | dict) and len(repr(value)) < 500)
        if value is not None:
            said[name] = str(value) if short else f"{type(value).__name__} {tokenize(value)}"
    return said


# ------------------------------------------------------------------------------------------------
# Which are taken: a choice that does not depend on their order


def choose(found: Iterable[Found], journal: Journal, options: Mapping[str, str]) -> list[Found]:
    """Decide what becomes of each file.

    Parameters
    ----------
    found
        From `survey`.
    journal
        Of the store.
    options
        From `describe`.

    Returns
    -------
    list of Found
        By name and path. Those of status ``"new"`` are to be ingested; all others have a reason.
    """
    out = sorted(found, key=lambda f: (f.name, f.path))
    names = {p.digest: name for name, p in sorted(journal.products.items(), reverse=True)}
    out = [_against_journal(f, journal, names, options) for f in out]
    out = _without_copies(out)
    out = _without_twins(out, journal)
    return _of_one_kind(out, journal)


def _against_journal(
    one: Found, journal: Journal, names: Mapping[str, str], options: Mapping[str, str]
) -> Found:
    if one.status != "new":
        return one
    name = one.name if one.name in journal.products else names.get(one.digest)
    if name is None:
        return one
    known = journal.products[name]
    if known.digest != one.digest:
        return one.failed(
            "a file of this name is in the store with other content",
            expected=f"{known.size} bytes with digest {known.digest}",
            found=f"{one.size} bytes with digest {one.digest}",
            remedy="ingest changed products into a new store",
        )
    if known.options != options:
        return one.failed(
            "in the store already, opened with other options",
            expected=json.dumps(known.options),
            found=json.dumps(dict(options)),
            remedy="use the same options, or ingest into a new store",
        )
    return one.but("skipped", "in already" if name == one.name else f"in already, as {name}")


def _without_copies(files: list[Found]) -> list[Found]:
    """Of files with the same content the first by name; of others with the same name none."""
    first: dict[str, Found] = {}
    contents: dict[str, set[str]] = defaultdict(set)
    for one in files:
        if one.status == "new":
            first.setdefault(one.digest, one)
            contents[one.name].add(one.digest)
    out = []
    for one in files:
        if one.status == "new" and len(contents[one.name]) > 1:
            one = one.failed(
                "several files of one name and different contents",
                expected="one",
                found=len(contents[one.name]),
                remedy="give the one that is right",
            )
        elif one.status == "new" and first[one.digest] is not one:
            one = one.but("skipped", f"a copy of {first[one.digest].path}")
        out.append(one)
    return out


def _without_twins(files: list[Found], journal: Journal) -> list[Found]:
    """No slit twice: neither of two new ones, since nothing says which is right."""
    holders: dict[Key, list[str]] = defaultdict(list)
    for one in files:
        for key in _keys(one):
            holders[key].append(one.name)
    if not holders:
        return files
    for name, group in journal.groups.items():
        for block in group.blocks:
            slitlets, names = block.coord("slitlet"), block.coord("filename", "")
            for slitlet, file in zip(slitlets, names, strict=True):
                key = (name, block.exposure, block.detector, slitlet)
                if key in holders:
                    holders[key].append(f"{file} (in the store)")
    out = []
    for one in files:
        twice = [k for k in _keys(one) if len(holders[k]) > 1]
        if twice:
            _, exposure, detector, slitlet = twice[0]
            more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
            one = one.failed(
                "the same slit in several products",
                expected="each slit once",
                found=f"{exposure} {detector} slitlet {slitlet}{more}, in "
                + ", ".join(sorted(holders[twice[0]])),
                remedy="give one of them; what is in a store stays",
            )
        out.append(one)
    return out


def _keys(one: Found) -> list[Key]:
    return [k for part in one.parts for k in part.keys] if one.status == "new" else []


def _of_one_kind(files: list[Found], journal: Journal) -> list[Found]:
    """One unit and one quality table a group: the store's, or the first exposure's."""
    kinds = {
        name: (group.blocks[0].units, flags_digest(group.variables["quality"]))
        for name, group in journal.groups.items()
        if group.blocks
    }
    new = sorted(
        ((p.group, p.exposure, p.detector, f.name, p) for f in files if _keys(f) for p in f.parts),
        key=lambda item: item[:4],
    )
    for group, *_, part in new:
        kinds.setdefault(group, (part.units, part.flags))
    out = []
    for one in files:
        odd = [p for p in one.parts if one.status == "new" and kinds[p.group][0] != p.units]
        other = [p for p in one.parts if one.status == "new" and kinds[p.group][1] != p.flags]
        if odd:
            one = one.failed(
                "slits in another unit than the store's",
                expected=kinds[odd[0].group][0],
                found=odd[0].units,
                remedy="ingest products of different units into stores of their own",
            )
        elif other:
            one = one.failed(
                "another table of quality flags than the store's",
                expected="the same names and bits",
                remedy="ingest products of different flags into stores of their own",
            )
        out.append(one)
    return out
