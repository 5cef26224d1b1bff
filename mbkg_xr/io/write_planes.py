"""What the writers of FITS products share: headers and pixels of one slit, as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputFileError
from .fits import Hdu, read_bytes

__all__ = [
    "BLOCK",
    "Place",
    "Slot",
    "edited_header",
    "file_end",
    "image_header",
    "merged",
    "place_of",
    "plane_bytes",
    "raw_header",
    "read_plane",
    "refuse_other",
    "without_checksum",
]

#: FITS files consist of blocks of this many bytes.
BLOCK = 2880
_CARD = 80


@dataclass(frozen=True)
class Place:
    """Where an extension's pixels lie, of which type, and whether their highest bit is turned."""

    offset: int
    dtype: str
    unsigned: bool


@dataclass(frozen=True)
class Slot:
    """Where one slit lies in a product.

    Attributes
    ----------
    key
        What tells the slits of the product apart: slitlet or detector.
    where
        How messages name it.
    shape
        ``(ny, nx)`` of the cut-out.
    places
        The extensions that are read or written, by role.
    headers
        Headers of the background and of its error, which are added.
    turned
        Whether the pixels are turned by 180 degrees against the dataset's.
    source
        What the reader knows of the slit, where that is needed to see its pixels as it does.
    """

    key: int | str
    where: str
    shape: tuple[int, int]
    places: Mapping[str, Place]
    headers: tuple[bytes, bytes]
    turned: bool = False
    source: Any = None

    @property
    def plane_size(self) -> int:
        """Bytes of an added extension's pixels, with their padding."""
        return _padded_size(4 * self.shape[0] * self.shape[1])


# ------------------------------------------------------------------------------------------------
# Headers


def _padded_size(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def file_end(hdus: Sequence[Hdu]) -> int:
    """Where the last extension ends."""
    return hdus[-1].offset + _padded_size(hdus[-1].size)


def raw_header(path: str | Path, hdus: Sequence[Hdu], index: int) -> tuple[int, bytes]:
    """Offset and bytes of a header as they are in the file."""
    start = 0 if index == 0 else file_end(hdus[:index])
    return start, read_bytes(path, start, hdus[index].offset - start)


def edited_header(
    raw: bytes, cards: Iterable[tuple[str, Any, str]], history: Iterable[str]
) -> bytes:
    """A header with values set and history added; the other cards stay, byte by byte."""
    lines = [raw[i : i + _CARD] for i in range(0, len(raw), _CARD)]
    end = next(i for i, line in enumerate(lines) if line.rstrip() == b"END")
    kept = without_checksum(lines[:end])
    while kept and not kept[-1].strip():
        kept.pop()
    for key, value, comment in cards:
        image = fits.Card(key, value, comment).image.encode("ascii")
        at = next((i for i, line in enumerate(kept) if line[:8].strip() == key.encode()), None)
        if at is None:
            kept.append(image)
        else:
            kept[at] = image
    kept += [fits.Card("HISTORY", text).image.encode("ascii") for text in history]
    return _blocks(b"".join(kept))


def without_checksum(lines: Iterable[bytes]) -> list[bytes]:
    """Cards without the checksums of what the HDU held before."""
    return [line for line in lines if line[:8].strip() not in (b"CHECKSUM", b"DATASUM")]


def image_header(name: str, version: int, shape: tuple[int, int], cards: Iterable[Any]) -> bytes:
    """Header of an image extension of float32."""
    header = fits.Header(
        [
            ("XTENSION", "IMAGE", "Image extension"),
            ("BITPIX", -32, "array data type"),
            ("NAXIS", 2, "number of array dimensions"),
            ("NAXIS1", shape[1]),
            ("NAXIS2", shape[0]),
            ("PCOUNT", 0, "number of parameters"),
            ("GCOUNT", 1, "number of groups"),
            ("EXTNAME", name, "extension name"),
            ("EXTVER", version, "extension value"),
            *cards,
        ]
    )
    return header.tostring(endcard=True, padding=True).encode("ascii")


def _blocks(cards: bytes) -> bytes:
    whole = cards + b"END".ljust(_CARD)
    return whole.ljust(_padded_size(len(whole)))


# ------------------------------------------------------------------------------------------------
# Pixels


def place_of(hdu: Hdu) -> Place:
    """Where the pixels of an extension lie; its layout was checked when it was scanned."""
    bits = int(hdu.header["BITPIX"])
    # FITS keeps unsigned integers shifted by half their range, which is a flip of the highest bit.
    unsigned = bits > 8 and hdu.header.get("BZERO", 0) == 2 ** (bits - 1)
    kind = "f" if bits < 0 else "u"
    return Place(hdu.offset, f">{kind}{abs(bits) // 8}", unsigned)


def read_plane(path: str | Path, slot: Slot, role: str) -> NDArray:
    """Pixels as filed, turned as the dataset has them."""
    place = slot.places[role]
    dtype = np.dtype(place.dtype)
    raw = read_bytes(path, place.offset, dtype.itemsize * slot.shape[0] * slot.shape[1])
    plane = np.frombuffer(raw, dtype).reshape(slot.shape).astype(dtype.newbyteorder("="))
    if place.unsigned:
        plane = plane ^ plane.dtype.type(1 << (8 * dtype.itemsize - 1))
    return plane[::-1, ::-1] if slot.turned else plane


def plane_bytes(plane: NDArray, slot: Slot, place: Place) -> bytes:
    """The inverse of `read_plane`."""
    dtype = np.dtype(place.dtype)
    if place.unsigned:
        plane = plane ^ plane.dtype.type(1 << (8 * dtype.itemsize - 1))
    if slot.turned:
        plane = plane[::-1, ::-1]
    return plane.astype(dtype, copy=False).tobytes()


def merged(filed: NDArray, viewed: NDArray, new: NDArray, back: NDArray, rtol: float) -> NDArray:
    """New pixels where they differ from what the reader makes of the filed ones, else those.

    So what nothing changed keeps its bytes: NaN payloads, pixels outside the slit, and what would
    be rounded on its way to another unit and back.

    Parameters
    ----------
    filed
        As in the file.
    viewed
        The same as the reader gives it.
    new
        The dataset's.
    back
        The dataset's, as the file would have it.
    rtol
        What the way to another unit may have cost.
    """
    viewed = viewed.astype(new.dtype, copy=False)
    difference = np.abs(new.astype(np.float64) - viewed.astype(np.float64))
    same = (new == viewed) | (difference <= rtol * np.abs(viewed))
    same |= np.isnan(new) & np.isnan(viewed)
    return np.where(same, filed, back.astype(filed.dtype))


def refuse_other(
    slot: Slot, pixels: Mapping[str, NDArray], viewed: Mapping[str, NDArray], path: str
) -> None:
    """Raise where a product is not the one that the dataset was made from.

    Parameters
    ----------
    slot
        The slit.
    pixels
        The dataset's pixels.
    viewed
        ``flux``, ``quality`` and ``wavelength`` of the file, as opened.
    path
        The product, for the message.

    Raises
    ------
    InputFileError
    """
    problems = []
    ours, theirs = (p["wavelength"].astype(np.float64) for p in (pixels, viewed))
    close = (np.abs(ours - theirs) <= 3e-7 * np.abs(theirs)) | (np.isnan(ours) & np.isnan(theirs))
    if not close.all():
        problems.append(f"other wavelengths on {int((~close).sum())} pixels")
    if "background" in pixels:
        flux, sky = (pixels[k].astype(np.float64) for k in ("flux", "background"))
        given = viewed["flux"].astype(np.float64)
        # Where pixels got flags since, their flux may have been replaced.
        compared = (pixels["quality"] == viewed["quality"]) & np.isfinite(sky)
        lost = 4e-7 * (np.abs(flux) + np.abs(sky) + np.abs(given))
        same = (np.abs(flux + sky - given) <= lost) | (flux + sky == given)
        same |= np.isnan(flux) & np.isnan(given)
        n = int((compared & ~same).sum())
        if n:
            problems.append(f"flux + background is not its flux on {n} pixels")
    if problems:
        raise InputFileError(
            "not the product that the result was made from",
            where=f"{slot.where} ({path})",
            expected="the wavelengths of the result, and its flux + background",
            found=" and ".join(problems),
            remedy="give the products that were opened by products=..., and flux as subtracted",
        )
