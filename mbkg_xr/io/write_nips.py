"""ESA NIPS products back out: what of a slit goes into which extension of a copy of its product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from .fits import Hdu
from .layout import NipsLayout
from .nips import scan_file
from .write_planes import Slot, merged, place_of, raw_header, refuse_other

__all__ = ["WRITTEN", "patched", "slots"]

#: Roles whose pixels may change; extensions are named by the layout.
WRITTEN = ("flux", "variance", "quality")


def slots(path: str | Path, hdus: Sequence[Hdu], *, layout: NipsLayout | None = None) -> list[Slot]:
    """Where the slits of a NIPS product lie, with detectors as keys.

    Raises
    ------
    InputFileError
        Where the file is not of this layout.
    """
    layout = layout or NipsLayout()
    suffixes = {detector: suffix for suffix, detector in layout.detectors.items()}
    by_name = {h.name: h for h in hdus}
    out = []
    for source in scan_file(path, hdus, layout=layout):
        detector = source.coords["detector"]
        suffix = suffixes[detector]
        found = {role: by_name[getattr(layout, role) + suffix] for role in (*WRITTEN, "wavelength")}
        index = next(i for i, hdu in enumerate(hdus) if hdu is found["flux"])
        out.append(
            Slot(
                key=detector,
                where=f"{Path(path).name}, {detector}",
                shape=source.shape,
                places={role: place_of(hdu) for role, hdu in found.items()},
                headers=_headers(raw_header(path, hdus, index)[1], suffix),
                turned=source.turned,
                outside=source.outside,
                to_um=source.to_um,
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
) -> dict[str, NDArray]:
    """Pixels of the extensions, from the filed ones and the dataset's (see `write_jwst.patched`).

    What is filed outside the slit stays. Flags past the width of the file's own are left out.
    """
    wavelength, given = (filed[k].astype(np.float64) for k in ("wavelength", "variance"))
    inside = wavelength > slot.outside
    error = np.sqrt(np.where(inside & (given > 0), given, np.nan))
    viewed = {
        "flux": np.where(inside, filed["flux"] * factor, np.nan).astype(np.float32),
        "wavelength": np.where(inside, wavelength * slot.to_um, np.nan),
        "quality": filed["quality"].astype(pixels["quality"].dtype),
    }
    refuse_other(slot, pixels, viewed, path)
    bits = filed["quality"].dtype
    rtol = 0.0 if factor == 1 else 3e-7
    flux, spread = pixels["flux"], pixels["error"].astype(np.float64) / factor
    seen = (error * factor).astype(np.float32)
    return {
        "flux": merged(filed["flux"], viewed["flux"], flux, flux / factor, rtol),
        "variance": merged(filed["variance"], seen, pixels["error"], spread**2, rtol),
        "quality": (pixels["quality"] & np.iinfo(bits).max).astype(bits),
    }
