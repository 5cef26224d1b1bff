"""STScI products back out: what of a slit goes into which extension of a copy of its product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputFileError
from .fits import Hdu
from .jwst_file import scan_file
from .write_planes import Slot, image_header, merged, place_of, refuse_other

__all__ = ["WRITTEN", "patched", "slots"]

#: Extensions whose pixels may change, by role.
WRITTEN = {
    "flux": "SCI",
    "error": "ERR",
    "quality": "DQ",
    "var_rnoise": "VAR_RNOISE",
    "var_poisson": "VAR_POISSON",
}


def slots(path: str | Path, hdus: Sequence[Hdu]) -> list[Slot]:
    """Where the slits of a ``_cal`` or single-slit product lie, with slitlets as keys.

    Raises
    ------
    InputFileError
        Where the file lacks an extension.
    """
    by_name = {(h.name, h.version): h for h in hdus}
    science = sorted((h for h in hdus if h.name == "SCI"), key=lambda h: h.version)
    slitlets = [h.header.get("SLITID") for h in science]
    if not science or None in slitlets:
        # The keyword is missing in older products: the metadata may know.
        slitlets = [source.coords["slitlet"] for source in scan_file(path, hdus)]
    out = []
    for hdu, slitlet in zip(science, slitlets, strict=True):
        where = f"{Path(path).name}, slitlet {slitlet}"
        found = {
            role: by_name[name, hdu.version]
            for role, name in {**WRITTEN, "wavelength": "WAVELENGTH"}.items()
            if (name, hdu.version) in by_name
        }
        missing = {"flux", "error", "quality", "wavelength"} - set(found)
        if missing:
            raise InputFileError(
                "missing extension",
                where=where,
                expected="SCI ERR DQ WAVELENGTH",
                found="no " + " ".join(sorted(missing)),
            )
        shape = (int(hdu.header.get("NAXIS2") or 0), int(hdu.header.get("NAXIS1") or 0))
        out.append(
            Slot(
                key=int(slitlet or 0),
                where=where,
                shape=shape,
                places={role: place_of(h) for role, h in found.items()},
                headers=_headers(hdu, int(slitlet or 0), shape),
            )
        )
    return out


def _headers(science: Hdu, slitlet: int, shape: tuple[int, int]) -> tuple[bytes, bytes]:
    unit = ("BUNIT", str(science.header.get("BUNIT", "")), "physical units of the array values")
    slit = ("SLITID", slitlet, "MSA slitlet number")
    return (
        image_header("BKG", science.version, shape, [unit, slit]),
        image_header("BKG_ERR", science.version, shape, [unit, slit]),
    )


def patched(
    slot: Slot,
    filed: Mapping[str, NDArray],
    pixels: Mapping[str, NDArray],
    factor: float,
    path: str,
    *,
    shifted: bool = False,
) -> dict[str, NDArray]:
    """Pixels of the extensions, from the filed ones and the dataset's.

    Parameters
    ----------
    slot
        The slit.
    filed
        As in the file, by role.
    pixels
        The dataset's.
    factor
        What the file's flux was multiplied by to be in the dataset's unit.
    path
        The product, for messages.
    shifted
        Whether wavelengths may have been shifted on opening, as those of point sources are.

    Returns
    -------
    dict of numpy.ndarray
        By role. The background's variance is added to that of photon noise: the official pipeline
        makes errors anew from the sum of the variances, and weights by that of read noise.

    Raises
    ------
    InputFileError
        Where the product is not the one that the dataset was made from.
    """
    rtol = 0.0 if factor == 1 else 3e-7
    viewed = {
        "flux": filed["flux"] * np.float64(factor),
        "quality": filed["quality"],
        "wavelength": filed["wavelength"],
    }
    if shifted:
        inside = np.isfinite(filed["wavelength"])
        viewed["wavelength"] = np.where(inside, pixels["wavelength"], np.nan)
    refuse_other(slot, pixels, viewed, path)
    out: dict[str, NDArray] = {"quality": pixels["quality"]}
    for role, power in (("flux", 1), ("error", 1), ("var_rnoise", 2), ("var_poisson", 2)):
        if role not in filed:
            continue
        scale = np.float64(factor) ** power
        out[role] = filed[role]
        if role in pixels:
            new = pixels[role]
            out[role] = merged(filed[role], filed[role] * scale, new, new / scale, rtol)
    if "background_error" in pixels and "var_poisson" in out:
        more = (pixels["background_error"].astype(np.float64) / factor) ** 2
        own = out["var_poisson"]
        out["var_poisson"] = np.where(more > 0, (own + more).astype(own.dtype), own)
    return out
