"""What a WCS gave, kept in a file of the cache: planes of pixels, each with a checksum.

A file has one place for each plane of a product. Places are filled when planes are first asked
for, by any thread or process: what two of them write at once is the same. A place that is empty,
half-written or damaged does not match its checksum, and counts as empty.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["keep", "kept", "places"]

PLANES = 2  # yrel and wavelength
_DTYPE = np.dtype("<f4")
_MARK = b"mbkg"
_TAIL = len(_MARK) + 4


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, int]: ...


def _room(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] * _DTYPE.itemsize + _TAIL


def places(slits: Iterable[_Shaped]) -> list[int]:
    """Byte offset of each slit's planes in their file, and last the file's size.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> places([SimpleNamespace(shape=(2, 5)), SimpleNamespace(shape=(3, 5))])
    [0, 96, 232]
    """
    return np.cumsum([0, *(PLANES * _room(s.shape) for s in slits)]).tolist()


def kept(
    place: tuple[str, int] | None, shape: tuple[int, int], count: int
) -> list[NDArray[np.float32]] | None:
    """The first `count` planes of a slit, None unless all of them are there and sound."""
    if place is None:
        return None
    path, offset = place
    room = _room(shape)
    try:
        with open(path, "rb", buffering=0) as stream:
            stream.seek(offset)
            raw = stream.read(count * room)
    except OSError:
        return None
    if len(raw) < count * room:
        return None
    planes = []
    for i in range(count):
        part = memoryview(raw)[i * room : (i + 1) * room]
        if bytes(part[-_TAIL:]) != _tail(part[:-_TAIL]):
            return None
        planes.append(np.frombuffer(part[:-_TAIL], _DTYPE).reshape(shape))
    return planes


def keep(place: tuple[str, int] | None, planes: Sequence[NDArray[np.float32]]) -> None:
    """Keep the first planes of a slit, if the file can be written; it has to exist."""
    if place is None:
        return
    path, offset = place
    raw = b""
    for plane in planes:
        data = np.ascontiguousarray(plane, _DTYPE).tobytes()
        raw += data + _tail(data)
    try:
        with open(path, "r+b", buffering=0) as stream:
            stream.seek(offset)
            stream.write(raw)
    except OSError:
        return  # the cache is a convenience


def _tail(data: bytes | memoryview) -> bytes:
    return _MARK + zlib.crc32(data).to_bytes(4, "little")
