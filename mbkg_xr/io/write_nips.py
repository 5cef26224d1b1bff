"""ESA NIPS products back out: what of a slit goes into which extension of a copy of its product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from . import nips
from .fits import Hdu
from .layout import NipsLayout
from .write_planes import Place, Slot, merged, raw_header, refuse_other

__all__ = ["patched", "slots"]

_WRITTEN = ("flux", "variance", "error", "quality")


def slots(path: str | Path, hdus: Sequence[Hdu], *, layout: NipsLayout) -> list[Slot]:
    """Where the slits of a NIPS product lie, with detectors as keys.

    Raises
    ------
    InputFileError
        Where the file is not of this layout.
    """
    out = []
    for source in nips.scan_file(path, hdus, layout=layout):
        planes = {role: p for role, p in source.planes.items() if role in _WRITTEN}
        index = next(i for i, h in enumerate(hdus) if h.offset == planes["flux"].offset)
        suffix = hdus[index].name.removeprefix(layout.flux)
        detector = source.coords["detector"]
        out.append(
            Slot(
                key=detector,
                where=f"{Path(path).name}, {detector}",
                shape=source.shape,
                places={r: Place(p.offset, p.dtype, p.unsigned) for r, p in planes.items()},
                headers=_headers(raw_header(path, hdus, index)[1], suffix),
                turned=source.turned,
                source=source,
            )
        )
    return out


def _headers(flux: bytes, suffix: str) -> tuple[bytes, bytes]:
    """As that of the flux: it says where on the detector the cut-out lies."""
    made = []
    for name in ("BKG", "BKG_ERR"):
        header = fits.Header.fromstring(flux.decode("ascii"))
        header.remove("CHECKSUM", ignore_missing=True)
        header.remove("DATASUM", ignore_missing=True)
        header["BITPIX"], header["EXTNAME"] = -32, f"{name}{suffix}"
        made.append(header.tostring(endcard=True, padding=True).encode("ascii"))
    return made[0], made[1]


def patched(
    slot: Slot,
    filed: Mapping[str, NDArray],
    pixels: Mapping[str, NDArray],
    factor: float,
    path: str,
    *,
    shifted: bool = False,
) -> dict[str, NDArray]:
    """Pixels of the extensions, from the filed ones and the dataset's (see `write_jwst.patched`).

    What is filed outside the slit stays. Flags past the width of the file's own are left out.
    """
    viewed = {
        name: next(iter(nips.planes([slot.source], name))).astype(pixels[name].dtype)
        for name in ("flux", "error", "quality", "wavelength")
    }
    refuse_other(slot, pixels, viewed, path)
    flux, error = pixels["flux"] / factor, pixels["error"].astype(np.float64) / factor
    bits = filed["quality"].dtype
    spread, back = ("error", error) if "error" in filed else ("variance", error**2)
    return {
        "flux": merged(filed["flux"], viewed["flux"], pixels["flux"], flux, 0.0),
        spread: merged(filed[spread], viewed["error"], pixels["error"], back, 0.0),
        "quality": (pixels["quality"] & np.iinfo(bits).max).astype(bits),
    }
