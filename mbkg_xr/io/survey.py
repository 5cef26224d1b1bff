"""What products hold, before they are ingested."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize

from ..errors import InputFileError, MbkgError
from . import _is_metafile, hdu_table, open_program
from .ingested import NIPS

__all__ = [
    "Found",
    "Part",
    "Survey",
    "absolute",
    "describe",
    "flags_digest",
    "nodes",
    "plain",
    "reason_of",
    "survey",
]


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
    def keys(self) -> list[tuple[str, str, str, int]]:
        """What identifies each slit."""
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


def absolute(value: Any) -> Any:
    """An option of the reader as workers elsewhere can use it: paths of files in full."""
    if isinstance(value, list | tuple):
        return type(value)(absolute(v) for v in value)
    is_file = isinstance(value, str | os.PathLike) and os.path.isfile(value)
    return os.path.abspath(value) if is_file else value


def describe(options: Mapping[str, Any]) -> dict[str, str]:
    """What the reader was told, for the journal; of files and of what is long, a digest."""
    # What is as if not said, and what changes nothing in what is read, is left out.
    return {
        name: _in_words(value)
        for name, value in options.items()
        if name not in ("cache", "progress")
        and value is not None
        and value is not False
        and not (isinstance(value, str | list | tuple) and len(value) == 0)
    }


def _in_words(value: Any) -> str:
    if isinstance(value, list | tuple) and value and len(value) < 20:
        return ", ".join(_in_words(v) for v in value)
    if isinstance(value, str | os.PathLike) and os.path.isfile(value):
        return f"{Path(value).name} {fingerprint(os.fspath(value)).digest}"
    if isinstance(value, str | int | float | bool):
        return str(value)
    return f"{type(value).__name__} {tokenize(value)}"
