"""What one STScI product says of itself: its slits, as plain facts.

Nothing is decided here, and nothing read but headers, metadata, and where no keyword tells whether
the bars were divided out, the extension that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputFileError
from ..schema import configuration_name
from .calibration import Facts
from .fits import Hdu, first_given, hdu_table, read_bytes
from .steps import STEPS
from .wcs import slit_metadata

__all__ = ["SlitSource", "read_plane", "scan_file"]

_NEEDED = ("SCI", "ERR", "DQ", "WAVELENGTH")
_CORRECTIONS = {
    "barshadow": "BARSHADOW",
    "pathloss_point": "PATHLOSS_PS",
    "pathloss_uniform": "PATHLOSS_UN",
}
_EXTENSIONS = {
    "flux": "SCI",
    "error": "ERR",
    "quality": "DQ",
    "wavelength": "WAVELENGTH",
    "var_rnoise": "VAR_RNOISE",
    "var_poisson": "VAR_POISSON",
    "var_flat": "VAR_FLAT",
    **_CORRECTIONS,
}
_NAME = re.compile(r"(jw\d{11}_\d{5}_\d{5})")


@dataclass(frozen=True)
class SlitSource:
    """Plain facts of one slit of one file, which may be written as JSON.

    Attributes
    ----------
    path
        The file.
    shape
        ``(ny, nx)`` of the cut-out.
    offsets
        Byte offset of each plane's pixels.
    asdf_offset, asdf_size
        Of the ASDF extension's bytes.
    index
        Position in a multi-slit product's list of slits, None in a single-slit product.
    coords
        The slit's coordinates, as far as the product tells.
    units, configuration
        As the file says.
    metafile, metadata_id
        Name of its MSA metafile and number of the MSA configuration in it.
    facts
        How it was calibrated, for `mbkg_xr.io.calibration`.
    kept
        Path and offset where planes from the WCS are kept, None without a cache.
    """

    path: str
    shape: tuple[int, int]
    offsets: dict[str, int]
    asdf_offset: int
    asdf_size: int
    index: int | None
    coords: dict[str, Any]
    units: str
    configuration: str
    metafile: str
    metadata_id: int | None
    facts: Facts
    kept: tuple[str, int] | None = None


def scan_file(path: str | Path, hdus: Sequence[Hdu] | None = None) -> list[SlitSource]:
    """Read the structure of one product, no pixels.

    Parameters
    ----------
    path
        A FITS file of a ``SlitModel`` or ``MultiSlitModel``.
    hdus
        Its headers, where they have been read already.

    Returns
    -------
    list of SlitSource
        One a slit, in the order of the file.

    Raises
    ------
    InputFileError
        Where the file is missing, is not FITS, is truncated, is not from NIRSpec, or lacks an
        extension or the WCS.
    """
    path = Path(path)
    hdus = hdu_table(path) if hdus is None else hdus
    extensions = {(h.name, h.version): (h.offset, h.header) for h in hdus}
    versions = sorted(v for e, v in extensions if e == "SCI")
    if not versions:
        raise InputFileError(
            "no SCI extension",
            where=path.name,
            expected=" ".join(_NEEDED),
            found=" ".join(h.name for h in hdus),
            remedy="give calibrated slit products: _cal or single slits of STScI, or NIPS spectra",
        )
    asdf_hdu = next((h for h in hdus if h.name == "ASDF"), None)
    tree = slit_metadata(path, asdf_hdu)
    multi = "slits" in tree
    slits = tree["slits"] if multi else [tree]
    if len(slits) != len(versions):
        raise InputFileError(
            "slits of the metadata and of the extensions differ",
            where=path.name,
            expected=f"{len(versions)} slits",
            found=len(slits),
        )
    assert asdf_hdu is not None
    return [
        _slit_source(
            path, extensions, version, meta, hdus[0].header, asdf_hdu, i if multi else None
        )
        for i, (version, meta) in enumerate(zip(versions, slits, strict=True))
    ]


def _slit_source(
    path: Path,
    extensions: Mapping,
    version: int,
    meta: Mapping,
    primary: Mapping,
    asdf_hdu: Hdu,
    index: int | None,
) -> SlitSource:
    header = extensions["SCI", version][1]
    slitlet = int(first_given(header.get("SLITID"), meta.get("slitlet_id"), version))
    where = f"{path.name}, slitlet {slitlet}"
    missing = [name for name in _NEEDED if (name, version) not in extensions]
    if missing:
        raise InputFileError(
            "missing extension", where=where, expected=" ".join(_NEEDED), found="no " + missing[0]
        )
    shape = (int(header.get("NAXIS2", 0)), int(header.get("NAXIS1", 0)))
    offsets = {}
    for variable, name in _EXTENSIONS.items():
        if (name, version) not in extensions:
            continue
        offset, other = extensions[name, version]
        found = (int(other.get("NAXIS2", 0)), int(other.get("NAXIS1", 0)), other["BITPIX"])
        bits = 32 if name == "DQ" else -32
        scaled = (other.get("BSCALE", 1), other.get("BZERO", 0))
        if found != (*shape, bits) or scaled != (1, 2**31 if name == "DQ" else 0):
            raise InputFileError(
                f"unexpected layout of {name}",
                where=where,
                expected=f"{shape} pixels, BITPIX {bits}",
                found=f"{found[:2]} pixels, BITPIX {found[2]}, BSCALE and BZERO {scaled}",
            )
        offsets[variable] = offset
    metadata_id = primary.get("MSAMETID")
    errors = extensions["ERR", version][1]
    return SlitSource(
        path=str(path.resolve()),
        shape=shape,
        offsets=offsets,
        asdf_offset=asdf_hdu.offset,
        asdf_size=asdf_hdu.size,
        index=index,
        coords=_coords(path, header, meta, primary, slitlet),
        units=str(header.get("BUNIT") or "").strip(),
        configuration=configuration_name(
            str(primary.get("GRATING", "")), str(primary.get("FILTER", ""))
        ),
        metafile=str(primary.get("MSAMETFL") or "").strip(),
        metadata_id=None if metadata_id in (None, "") else int(metadata_id),
        facts=_facts(path, header, errors, meta, primary, offsets, shape),
    )


def _facts(
    path: Path,
    header: Mapping,
    errors: Mapping,
    meta: Mapping,
    primary: Mapping,
    offsets: Mapping[str, int],
    shape: tuple[int, int],
) -> Facts:
    """How the slit was calibrated: keywords, and the ASDF metadata where those are silent."""

    def text(keyword: str, name: str) -> str | None:
        value = first_given(header.get(keyword), meta.get(name), None)
        return None if value is None else str(value).strip()

    def truth(keyword: str, name: str) -> bool | None:
        value = first_given(header.get(keyword), meta.get(name), None)
        return None if value is None else bool(value)

    area = header.get("PIXAR_SR")
    corrected = truth("BARSHDW", "barshadow_corrected")
    return Facts(
        steps={key: str(primary[key]).strip() for key in STEPS if primary.get(key)},
        units=str(header.get("BUNIT") or "").strip(),
        error_units=str(errors.get("BUNIT") or "").strip() or None,
        source_type=text("SRCTYPE", "source_type"),
        path_loss=text("PTHLOSS", "pathloss_correction_type"),
        bars_corrected=corrected,
        wavelength_corrected=truth("WAVECOR", "wavelength_corrected"),
        pixel_area=None if area in (None, "") else float(area),
        shutter_state=text("SHUTSTA", "shutter_state") or "",
        extensions=tuple(n for variable, n in _CORRECTIONS.items() if variable in offsets),
        bars_filed=None if corrected else _holds_bars(path, offsets, shape),
        frames=tuple(meta["wcs_frames"]),
    )


def _holds_bars(path: Path, offsets: Mapping[str, int], shape: tuple[int, int]) -> bool | None:
    """Whether BARSHADOW holds anything but 1; None where there is none."""
    if "barshadow" not in offsets:
        return None
    raw = read_bytes(path, offsets["barshadow"], 4 * shape[0] * shape[1])
    values = np.frombuffer(raw, ">f4")
    return bool(np.any(np.isfinite(values) & (np.abs(values - 1) > 1e-6)))


def _coords(
    path: Path, header: Mapping, meta: Mapping, primary: Mapping, slitlet: int
) -> dict[str, Any]:
    """Slit coordinates from header keywords, and the ASDF metadata where those are silent."""
    state = str(first_given(header.get("SHUTSTA"), meta.get("shutter_state"), ""))
    source_name = str(first_given(header.get("SRCNAME"), meta.get("source_name"), ""))
    marked = state.index("x") - (len(state) - 1) // 2 if state.count("x") == 1 else None
    # shutter_id = row + (column - 1) * 365 is of the marked shutter, which moves with the nods;
    # what stays is the slitlet's middle.
    shutter = int(first_given(header.get("SHUTTRID"), meta.get("shutter_id"), 0)) - 1
    row = int(first_given(meta.get("xcen"), shutter % 365 + 1 if shutter >= 0 else -1))
    column = int(first_given(meta.get("ycen"), shutter // 365 + 1 if shutter >= 0 else -1))
    name = _NAME.search(str(primary.get("FILENAME", ""))) or _NAME.search(path.name)
    program, observation, visit = (
        str(primary.get(k, "")).strip() for k in ("PROGRAM", "OBSERVTN", "VISIT")
    )
    return {
        "exposure": name.group(1) if name else path.stem,
        "detector": str(primary.get("DETECTOR", "")).strip(),
        "slitlet": slitlet,
        "source_id": int(first_given(header.get("SOURCEID"), meta.get("source_id"), 0)),
        "source_name": source_name,
        "nod": int(first_given(primary.get("PATT_NUM"), meta.get("dither_position"), -1)),
        "program": program,
        "visit": f"{program}{observation}{visit}",
        "quadrant": int(first_given(header.get("MSAQUAD"), meta.get("quadrant"), -1)),
        "shutter_row": row,
        "shutter_column": column - (marked or 0) if column > 0 else column,
        "n_shutters": len(state) or -1,
        "exposure_time": float(first_given(primary.get("EFFEXPTM"), header.get("XPOSURE"), np.nan)),
        "mjd": float(first_given(primary.get("EXPMID"), header.get("MJD-AVG"), np.nan)),
        "x_start": int(first_given(header.get("SLTSTRT1"), 1)) - 1,
        "y_start": int(first_given(header.get("SLTSTRT2"), 1)) - 1,
        "filename": path.name,
    }


def read_plane(source: SlitSource, variable: str) -> NDArray:
    """Pixels of one extension, as they are filed."""
    offset = source.offsets[variable]
    raw = read_bytes(source.path, offset, 4 * source.shape[0] * source.shape[1])
    if variable == "quality":
        # FITS keeps unsigned integers shifted by 2^31, which is a flip of the highest bit.
        return (np.frombuffer(raw, ">u4") ^ np.uint32(1 << 31)).reshape(source.shape)
    return np.frombuffer(raw, ">f4").reshape(source.shape)
