"""The structure of a FITS file: its headers, and where the bytes of each extension lie.

A ``_cal`` of 200 slits has some 2,000 extensions. Their headers are read block by block, and a
card is parsed when its keyword is asked for: a fraction of what parsing all of them costs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import InputFileError
from .cards import CARD, END, Header

__all__ = ["Hdu", "Header", "hdu_table", "read_headers"]

BLOCK = 2880
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7z": "unxz",
    b"PK\x03\x04": "unzip",
}


class Hdu(NamedTuple):
    """Name, version, header, data offset and data size (bytes, padded) of one HDU."""

    name: str
    version: int
    header: Header
    offset: int
    size: int


def read_headers(path: str | Path) -> list[Hdu]:
    """Read the headers of any FITS file, no data.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    list of Hdu
        In the order of the file; the first is the primary one.

    Raises
    ------
    InputFileError
        Where the file is missing, is not FITS, is compressed, is truncated, or has a mangled
        header.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_magic(path, stream.read(9))
            return list(_hdus(path, stream, size))
    except OSError as error:
        raise InputFileError(
            "cannot read the file", where=str(path), found=error.strerror, remedy="check the path"
        ) from error


def hdu_table(path: str | Path) -> list[Hdu]:
    """Read the headers of a NIRSpec FITS file, no pixels.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    list of Hdu
        As from `read_headers`.

    Raises
    ------
    InputFileError
        As from `read_headers`, and where the file is not from NIRSpec.
    """
    hdus = read_headers(path)
    instrument = hdus[0].header.get("INSTRUME", "no INSTRUME keyword")
    if str(instrument).strip() != "NIRSPEC":
        raise InputFileError(
            "not a NIRSpec product",
            where=Path(path).name,
            expected="INSTRUME = NIRSPEC",
            found=instrument,
        )
    return hdus


def _check_magic(path: Path, start: bytes) -> None:
    if start == b"SIMPLE  =":
        return
    tool = next((t for magic, t in _COMPRESSED.items() if start.startswith(magic)), None)
    if tool:
        raise InputFileError(
            "compressed file",
            where=path.name,
            expected="uncompressed FITS, whose pixels can be read in place",
            found=f"what {tool} undoes",
            remedy=f"{tool} {path.name}",
        )
    raise InputFileError(
        "not a FITS file",
        where=path.name,
        expected="a file that begins with SIMPLE  =",
        found=repr(start.decode("latin1")),
        remedy="give slit products of STScI or NIPS (uncompressed FITS)",
    )


def _hdus(path: Path, stream: BinaryIO, size: int) -> Iterator[Hdu]:
    start, number = 0, 0
    while start < size:
        where = f"{path.name}, HDU {number}"
        raw = _read_header(stream, start, size, where)
        if raw is None:  # nothing but fill
            return
        header = Header(raw, where, start)
        name = str(header.get("EXTNAME") or ("" if number else "PRIMARY")).strip().upper()
        version = header.get("EXTVER", 1)
        if name:
            header.where = f"{path.name}, extension {name} {version}"
        offset = start + len(raw)
        data = -(-_data_size(header) // BLOCK) * BLOCK
        if offset + data > size:
            raise _truncated(header.where, offset + data, size)
        yield Hdu(name, version, header, offset, data)
        start, number = offset + data, number + 1


def _read_header(stream: BinaryIO, start: int, size: int, where: str) -> bytes | None:
    """The blocks of a header; None where only fill follows."""
    blocks: list[bytes] = []
    while True:
        at = start + BLOCK * len(blocks)
        stream.seek(at)
        block = stream.read(BLOCK)
        if not blocks and not block.startswith(b"XTENSION=" if start else b"SIMPLE  ="):
            if not block.strip(b"\0 "):
                return None
            raise InputFileError(
                "mangled FITS file",
                where=where,
                expected=f"XTENSION at byte {start}",
                found=repr(block[:30].decode("latin1")),
                remedy="fetch the file again",
            )
        if len(block) < BLOCK:
            raise _truncated(where, at + BLOCK, size)
        blocks.append(block)
        keys = [block[i : i + 8] for i in range(0, BLOCK, CARD)]
        if END in keys:
            return b"".join(blocks)
        if not block.isascii() or b"\0" in block:
            raise InputFileError(
                "header without END", where=where, found="data", remedy="fetch the file again"
            )


def _truncated(where: str, needed: int, size: int) -> InputFileError:
    return InputFileError(
        "truncated FITS file",
        where=where,
        expected=f"{needed} bytes or more",
        found=f"{size} bytes",
        remedy="fetch the file again",
    )


def _data_size(header: Header) -> int:
    """Bytes of data without padding, from the mandatory keywords."""
    bits, axes = _count(header, "BITPIX"), _count(header, "NAXIS", least=0)
    if bits not in (8, 16, 32, 64, -32, -64) or axes > 999:
        raise _senseless(header, "BITPIX" if axes <= 999 else "NAXIS")
    if not axes:
        return 0
    lengths = [_count(header, f"NAXIS{i + 1}", least=0) for i in range(axes)]
    if lengths[0] == 0 and header.get("GROUPS") is True:
        lengths = lengths[1:]
    parameters = _count(header, "PCOUNT", least=0) if "PCOUNT" in header else 0
    groups = _count(header, "GCOUNT", least=0) if "GCOUNT" in header else 1
    return abs(bits) // 8 * groups * (parameters + math.prod(lengths))


def _count(header: Header, key: str, *, least: int | None = None) -> int:
    value = header.get(key)
    if type(value) is not int or (least is not None and value < least):
        raise _senseless(header, key)
    return value


def _senseless(header: Header, key: str) -> InputFileError:
    return InputFileError(
        f"mangled FITS header: {key}",
        where=header.where,
        expected="a value that the FITS standard allows",
        found=header.get(key, "no such keyword"),
        remedy="fetch the file again",
    )
