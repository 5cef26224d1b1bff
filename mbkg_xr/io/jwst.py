"""STScI products in: ``_cal`` files and single-slit products, as lazy slit datasets.

Opening reads headers and the metadata of the ASDF extension. Pixels are read by offset, and yrel
from the file's own WCS, when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy import units as u
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputFileError
from ..quality import JWST_FLAGS
from ..schema import configuration_name
from .fits import (
    Hdu,
    by_configuration,
    first_given,
    hdu_table,
    lazy_dataset,
    read_bytes,
    scan_files,
)
from .wcs import slit_metadata, wcs_yrel

__all__ = ["SlitSource", "dataset", "open_slits", "scan_file"]

_NEEDED = ("SCI", "ERR", "DQ", "WAVELENGTH")
_EXTENSIONS = {
    "flux": "SCI",
    "error": "ERR",
    "quality": "DQ",
    "wavelength": "WAVELENGTH",
    "var_rnoise": "VAR_RNOISE",
    "var_poisson": "VAR_POISSON",
}
_SUBTRACTED = ("S_BKDSUB", "S_MSBSUB")  # steps that take the sky off, once they are COMPLETE
_NAME = re.compile(r"(jw\d{11}_\d{5}_\d{5})")


@dataclass(frozen=True)
class SlitSource:
    """Where one slit's pixels lie.

    Attributes
    ----------
    path
        The file.
    shape
        ``(ny, nx)`` of the cut-out.
    offsets
        Byte offset of each variable's pixels.
    asdf_offset, asdf_size
        Of the ASDF extension's bytes.
    index
        Position in a multi-slit product's list of slits, None in a single-slit product.
    coords
        The slit's coordinates.
    units, configuration
        As the file says.
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


# ------------------------------------------------------------------------------------------------
# Structure: headers only


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
    extensions: dict,
    version: int,
    meta: dict,
    primary: fits.Header,
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
    if "var_rnoise" not in offsets or "var_poisson" not in offsets:
        offsets = {k: v for k, v in offsets.items() if not k.startswith("var_")}
    return SlitSource(
        path=str(path.resolve()),
        shape=shape,
        offsets=offsets,
        asdf_offset=asdf_hdu.offset,
        asdf_size=asdf_hdu.size,
        index=index,
        coords=_coords(path, header, meta, primary, slitlet),
        units=_units(header, where),
        configuration=configuration_name(
            str(primary.get("GRATING", "")), str(primary.get("FILTER", ""))
        ),
    )


def _units(header: fits.Header, where: str) -> str:
    text = str(header.get("BUNIT", "")).strip()
    try:
        unit = u.Unit(text)
    except ValueError:
        unit = u.dimensionless_unscaled
    if not (unit.is_equivalent("MJy/sr") or unit.is_equivalent("ct/s") or text == "DN/s"):
        raise InputFileError(
            "flux that is not a surface brightness",
            where=where,
            expected="BUNIT of MJy/sr (a slit calibrated as an extended source) or DN/s",
            found=text or "no BUNIT",
            remedy="calibrate as EXTENDED: run calwebb_spec2 with extract_2d and srctype so that "
            "the slit keeps MJy/sr",
        )
    return text


def _coords(
    path: Path, header: fits.Header, meta: dict, primary: fits.Header, slitlet: int
) -> dict[str, Any]:
    """Slit coordinates from header keywords, and the ASDF metadata where those are silent."""
    state = str(first_given(header.get("SHUTSTA"), meta.get("shutter_state"), ""))
    source_name = str(first_given(header.get("SRCNAME"), meta.get("source_name"), ""))
    # The official pipeline names them so (1345_BKG12), and marks a shutter of theirs with x too.
    named_sky = bool(re.search("BKG|BACKGROUND", source_name.upper()))
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
        "is_background": named_sky or (bool(state) and "x" not in state),
        "source_shutter": np.nan if named_sky or marked is None else float(marked),
        "x_start": int(first_given(header.get("SLTSTRT1"), 1)) - 1,
        "y_start": int(first_given(header.get("SLTSTRT2"), 1)) - 1,
        "filename": path.name,
        "subtracted": " ".join(k for k in _SUBTRACTED if primary.get(k) == "COMPLETE"),
        "path": str(path.absolute()),
    }


# ------------------------------------------------------------------------------------------------
# Pixels, when asked for


def _read_plane(source: SlitSource, variable: str) -> NDArray:
    offset = source.offsets[variable]
    raw = read_bytes(source.path, offset, 4 * source.shape[0] * source.shape[1])
    if variable == "quality":
        # FITS keeps unsigned integers shifted by 2^31, which is a flip of the highest bit.
        return (
            (np.frombuffer(raw, ">u4") ^ np.uint32(1 << 31)).astype(np.uint32).reshape(source.shape)
        )
    return np.frombuffer(raw, ">f4").astype(np.float32).reshape(source.shape)


def _planes(sources: Sequence[SlitSource], variable: str) -> Iterator[NDArray]:
    """Pixels of slits, one after the other."""
    if variable == "yrel":
        return (
            np.where(np.isfinite(_read_plane(source, "wavelength")), yrel, np.float32(np.nan))
            for source, yrel in zip(sources, wcs_yrel(sources), strict=True)
        )
    return (_read_plane(s, variable) for s in sources)


def open_slits(
    paths: Sequence[str | Path], *, chunks: int = 32, on_error: str = "raise"
) -> dict[str, xr.Dataset]:
    """Open STScI products as one lazy slit dataset a configuration.

    Parameters
    ----------
    paths
        Files; the slits keep their order.
    chunks
        Slits in a chunk.
    on_error
        ``"raise"`` one error that reports all unusable files, or ``"warn"`` and keep the others.

    Returns
    -------
    dict of xarray.Dataset
        By configuration, such as ``"prism-clear"``.

    Raises
    ------
    InputFileError, InputFilesError
        Where files cannot be used.
    """
    groups = by_configuration(scan_files(paths, scan_file, on_error=on_error))
    return {name: dataset(group, chunks=chunks) for name, group in groups.items()}


def dataset(sources: Sequence[SlitSource], *, chunks: int = 32) -> xr.Dataset:
    """A lazy slit dataset of slits of one configuration.

    Raises
    ------
    InputFileError
        Where slits have different units.
    """
    common = set.intersection(*(set(s.offsets) for s in sources))
    return lazy_dataset(
        sources,
        _planes,
        [v for v in _EXTENSIONS if v in common] + ["yrel"],
        chunks=chunks,
        flags=JWST_FLAGS,
        quality_dtype=np.uint32,
    )
