"""The WCS of STScI products: what it says of where along the slit a pixel lies.

It is the expensive part of a product, and kept in its ASDF extension.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import asdf
import numpy as np
from numpy.typing import NDArray

from ..errors import InputFileError
from .fits import Hdu, read_bytes

__all__ = ["PITCH", "slit_metadata", "wcs_yrel"]

#: slit_y of the slit frame counts open shutter heights; shutters are this many of them apart.
#: Source: slit_ymin/slit_ymax of MOS slits in assign_wcs (0.55 + 1.15 a shutter).
PITCH = 1.15
_OPENING = threading.Lock()


class WcsSource(Protocol):
    """Where the WCS of one slit lies."""

    @property
    def path(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def asdf_offset(self) -> int: ...
    @property
    def asdf_size(self) -> int: ...
    @property
    def index(self) -> int | None: ...
    @property
    def coords(self) -> dict[str, Any]: ...


def slit_metadata(path: Path, hdu: Hdu | None) -> dict:
    """The ASDF extension's tree as plain data: nothing of the WCS is built."""
    problem: object = "no ASDF extension"
    if hdu is not None:
        try:
            raw = read_bytes(path, hdu.offset, hdu.size)
            tree = asdf.util.load_yaml(io.BytesIO(raw), tagged=True)
            slits = tree.get("slits", [tree])
            missing = [i for i, s in enumerate(slits) if "wcs" not in s.get("meta", {})]
            if not missing:
                return tree
            problem = f"no meta.wcs in slit {missing[0] + 1} of {len(slits)}"
        except Exception as error:  # a YAML parser's own errors are of many kinds
            problem = error
    raise InputFileError(
        "slit without WCS",
        where=path.name,
        expected="an ASDF extension with meta.wcs",
        found=problem,
        remedy="make the product with assign_wcs and extract_2d of the official pipeline",
    )


def wcs_yrel(sources: Sequence[WcsSource]) -> Iterator[NDArray[np.float32]]:
    """Yrel of slits, opening each file's ASDF once for consecutive slits of one file."""
    opened: tuple[str, Any] | None = None
    for source in sources:
        if opened is None or opened[0] != source.path:
            raw = read_bytes(source.path, source.asdf_offset, source.asdf_size)
            # Warnings are of the process, not of the thread: without the lock another reader's
            # "ignore" would end this one's.
            with _OPENING, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened = (source.path, asdf.open(io.BytesIO(raw), lazy_load=True).tree)
        slit = opened[1] if source.index is None else opened[1]["slits"][source.index]
        yield _slit_yrel(source, slit)


def _slit_yrel(source: WcsSource, slit: Any) -> NDArray[np.float32]:
    """Shutter pitches from the middle shutter, from the WCS's slit frame.

    slit_y counts open heights from the source's shutter; the middle of slit_ymin and slit_ymax is
    the middle of the slitlet. In slitlets of an even number of shutters that middle is a bar: half
    a pitch is added, so that shutter centres lie on whole numbers in all slitlets.
    """
    where = f"{source.coords['filename']}, slitlet {source.coords['slitlet']}"
    try:
        transform = slit["meta"]["wcs"].get_transform("detector", "slit_frame")
        low, high = float(slit["slit_ymin"]), float(slit["slit_ymax"])
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputFileError(
            "slit without a usable WCS",
            where=where,
            expected="frames detector and slit_frame, slit_ymin and slit_ymax",
            found=error,
        ) from error
    y, x = np.mgrid[: source.shape[0], : source.shape[1]].astype(float)
    _, slit_y, _ = transform(x, y)
    yrel = (slit_y - 0.5 * (low + high)) / PITCH
    if source.coords["n_shutters"] % 2 == 0:
        yrel = yrel + 0.5
    return yrel.astype(np.float32)
