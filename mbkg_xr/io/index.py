"""What the structure of products was found to be, kept in the user's cache directory.

Reading some 2,000 headers and the metadata of a ``_cal`` is the whole cost of opening it. What
came of it is kept in one file a product, found by the product's path, and used only while the
product's size, its time of change and the bytes that were read (all headers and the ASDF extension)
are what they were. A change of pixels alone is neither noticed nor of consequence: no pixel of a
product is kept.

A file appears under its name when it is complete, so that threads and processes may share the
directory. What cannot be read counts as missing, and a directory that cannot be written is used as
far as it goes. Nothing is ever written beside a product.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import ParameterError
from .headers import Hdu
from .kept import places
from .plain import plain, thawed

__all__ = ["CACHE_BYTES", "Index", "Seen", "open_index"]

#: How much the cache may hold by default.
CACHE_BYTES = 2 << 30
_FOLDER = "index-1"
_ENTRY, _PLANES = ".slits", ".planes"
S = TypeVar("S")


def open_index(where: bool | str | os.PathLike = True) -> Index | None:
    """The index in a directory, which is made if need be.

    Parameters
    ----------
    where
        The directory; True for that of the environment variable ``MBKG_XR_CACHE`` (``off`` for
        none), by default ``mbkg_xr`` in the user's cache directory; False for none.

    Returns
    -------
    Index or None

    Raises
    ------
    ParameterError
        Where the environment variable ``MBKG_XR_CACHE_BYTES`` is no number.
    """
    if where is False:
        return None
    if where is True:
        named = os.environ.get("MBKG_XR_CACHE", "")
        if named.lower() in ("off", "0"):
            return None
        try:
            where = Path(named) if named else _user_cache() / "mbkg_xr"
        except RuntimeError:  # a user without a home
            return None
    limit = os.environ.get("MBKG_XR_CACHE_BYTES") or str(CACHE_BYTES)
    if not limit.isdigit():
        raise ParameterError(
            "unusable size of the cache",
            where="MBKG_XR_CACHE_BYTES",
            expected="a number of bytes",
            found=limit,
        )
    return Index(Path(where).expanduser() / _FOLDER, limit=int(limit))


def _user_cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".cache"


class Seen(NamedTuple):
    """A product as it was when it was opened."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def now(cls, path: str | os.PathLike) -> Seen | None:
        """As it is now; None where there is nothing."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(os.path.realpath(path), found.st_size, found.st_mtime_ns)


class Index:
    """Entries in one directory.

    Parameters
    ----------
    folder
        The directory.
    limit
        How many bytes it may hold; what was used longest ago goes first.
    """

    def __init__(self, folder: Path, *, limit: int = CACHE_BYTES):
        self.folder, self.limit = folder, limit
        self._digests: dict[str, str] = {}  # of products found or added

    def find(self, seen: Seen, about: str, kinds: Mapping[str, type[S]]) -> list[S] | None:
        """Slits of a product, None unless it is known and unchanged.

        Parameters
        ----------
        seen
            The product.
        about
            What else the slits depend on, such as a layout.
        kinds
            Dataclasses of slits by name.
        """
        path = self._entry(seen, about)
        try:
            entry = json.loads(zlib.decompress(path.read_bytes()))
            if [seen.size, seen.mtime_ns] != entry["state"]:
                return None
            if _digest(seen.path, entry["spans"]) != entry["digest"]:
                return None
            kind: Any = kinds[entry["kind"]] if entry["slits"] else None
            slits = [] if kind is None else [thawed(kind)(s) for s in entry["slits"]]
        except (OSError, ValueError, KeyError, TypeError, zlib.error):
            return None
        self._digests[seen.path] = entry["digest"]
        _touch(path)
        return slits

    def add(self, seen: Seen, about: str, hdus: Sequence[Hdu], slits: Sequence[Any]) -> None:
        """Keep what was found, if the directory can be written and the product did not change.

        Parameters
        ----------
        seen
            The product, before it was read.
        about
            As in `find`.
        hdus
            Its headers.
        slits
            Dataclasses of plain values.
        """
        # Up to the card END: two thirds of most headers are fill.
        spans = [(h.header.start, h.header.raw.rfind(b"END") + 3) for h in hdus]
        spans += [(h.offset, h.size) for h in hdus if h.name == "ASDF"]
        try:
            digest = _digest(seen.path, spans)
        except OSError:
            return
        if Seen.now(seen.path) != seen:
            return
        entry = {
            "state": [seen.size, seen.mtime_ns],
            "spans": spans,
            "digest": digest,
            "kind": type(slits[0]).__name__ if slits else "",
            "slits": list(slits),
        }
        text = json.dumps(entry, default=plain, separators=(",", ":")).encode()
        self._digests[seen.path] = digest
        self._write(self._entry(seen, about), zlib.compress(text, 1))

    def with_places(self, slits: Sequence[S]) -> list[S]:
        """The same slits of one opening, told where to keep what their WCS gives.

        Parameters
        ----------
        slits
            Dataclasses; those with a field ``kept`` get a file and an offset in it, as far as
            there is room in the directory.
        """
        out = list(slits)
        groups: dict[str, list[int]] = {}
        for i, slit in enumerate(slits):
            if hasattr(slit, "kept") and slit.path in self._digests:  # type: ignore[attr-defined]
                groups.setdefault(slit.path, []).append(i)  # type: ignore[attr-defined]
        wanted: dict[Path, tuple[list[int], list[int]]] = {}
        sizes: dict[Path, int] = {}
        for members in groups.values():
            chosen: list[Any] = [slits[i] for i in members]
            *offsets, end = places(chosen)
            path = self._planes(chosen)
            wanted[path], sizes[path] = (members, offsets), end
        room = self._make_room(sizes)
        for path, (members, offsets) in wanted.items():
            room -= sizes[path]
            if room < 0:
                break
            if not _touch(path, make=True):
                continue
            for i, offset in zip(members, offsets, strict=True):
                out[i] = replace(out[i], kept=(str(path), offset))  # type: ignore[type-var]
        return out

    def _make_room(self, wanted: Mapping[Path, int]) -> int:
        """Remove what was used longest ago; bytes that are left for the files that are wanted."""
        others = []
        try:
            with os.scandir(self.folder) as found:
                for one in found:
                    if Path(one.path) not in wanted:
                        stat = one.stat()
                        others.append((stat.st_mtime, _bytes_on_disk(stat), one.path))
        except OSError:
            return self.limit if self.folder.is_dir() else 0
        held = sum(size for _, size, _ in others)
        need = min(sum(wanted.values()), self.limit // 2)
        for _, size, path in sorted(others):
            if held + need <= self.limit:
                break
            try:
                os.unlink(path)
            except OSError:
                continue
            held -= size
        return self.limit - held

    def _entry(self, seen: Seen, about: str) -> Path:
        return self.folder / (_hash(seen.path, about, _reader()) + _ENTRY)

    def _planes(self, slits: Sequence[Any]) -> Path:
        """Named by all that the planes come from: the product's text, and what evaluates it."""
        path = slits[0].path
        facts = repr([(s.index, s.shape, s.coords["n_shutters"]) for s in slits])
        return self.folder / (_hash(path, self._digests[path], facts, _evaluator()) + _PLANES)

    def _write(self, path: Path, data: bytes) -> None:
        staging = path.with_name(f".{uuid.uuid4().hex}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            staging.write_bytes(data)
            os.replace(staging, path)
        except OSError:
            with suppress(OSError):
                staging.unlink()


def _touch(path: Path, *, make: bool = False) -> bool:
    """Mark a file as used just now; whether it is there."""
    try:
        if make:
            path.touch()
        else:
            os.utime(path)
    except OSError:
        return path.exists()
    return True


def _bytes_on_disk(stat: os.stat_result) -> int:
    return getattr(stat, "st_blocks", -(-stat.st_size // 512)) * 512


def _hash(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


def _digest(path: str, spans: Iterable[Sequence[int]]) -> str:
    """Checksum of some spans of a file's bytes."""
    # Beside size and time of change a checksum is enough, and takes a fifth of the time.
    found = 0
    with open(path, "rb", buffering=0) as stream:
        if hasattr(os, "pread"):
            number = stream.fileno()
            for start, size in spans:
                found = zlib.crc32(os.pread(number, size, start), found)
        else:
            for start, size in spans:
                stream.seek(start)
                found = zlib.crc32(stream.read(size), found)
    return f"{found:08x}"


@cache
def _reader() -> str:
    """Digest of the code that makes entries: another version's are not used."""
    folder = Path(__file__).parent
    found = hashlib.blake2b(digest_size=16)
    for path in [*sorted(folder.glob("*.py")), *sorted(folder.parent.glob("*.py"))]:
        found.update(path.read_bytes())
    return found.hexdigest()


@cache
def _evaluator() -> str:
    """Versions of what evaluates a WCS, whose results may differ in the last bit."""
    versions = [_reader()]
    for name in ("asdf", "asdf-astropy", "astropy", "gwcs", "numpy", "stdatamodels"):
        try:
            versions.append(version(name))
        except PackageNotFoundError:
            versions.append("")
    return " ".join(versions)
