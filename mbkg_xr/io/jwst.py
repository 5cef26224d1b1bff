"""STScI products in: ``_cal`` files and single-slit products, as lazy slit datasets.

Opening reads headers and the metadata of the ASDF extension. Pixels are read by offset, and yrel
from the file's own WCS, when they are asked for.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asdf
import dask.array as da
import numpy as np
import xarray as xr
from astropy import units as u
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import NDArray

from ..errors import InputFileError, InputFilesError, MbkgError
from ..schema import configuration_name, slit_dataset

__all__ = ["SlitSource", "open_slits", "scan_file"]

#: slit_y of the slit frame counts open shutter heights; shutters are this many of them apart.
#: Source: slit_ymin/slit_ymax of MOS slits in assign_wcs (0.55 + 1.15 a shutter).
PITCH = 1.15
_NEEDED = ("SCI", "ERR", "DQ", "WAVELENGTH")
_EXTENSIONS = {
    "flux": "SCI",
    "error": "ERR",
    "quality": "DQ",
    "wavelength": "WAVELENGTH",
    "var_rnoise": "VAR_RNOISE",
    "var_poisson": "VAR_POISSON",
}
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


def scan_file(path: str | Path) -> list[SlitSource]:
    """Read the structure of one product, no pixels.

    Parameters
    ----------
    path
        A FITS file of a ``SlitModel`` or ``MultiSlitModel``.

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
    name = path.name
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise InputFileError(
            "cannot read the file", where=str(path), found=error.strerror, remedy="check the path"
        ) from error
    if start != b"SIMPLE  =":
        raise InputFileError(
            "not a FITS file",
            where=name,
            expected="a file that begins with SIMPLE  =",
            found=repr(start.decode("latin1")),
            remedy="give STScI slit products (uncompressed FITS)",
        )
    table = _hdu_table(path, size)
    primary = table[0][2]
    if str(primary.get("INSTRUME", "")).strip() != "NIRSPEC":
        raise InputFileError(
            "not a NIRSpec product",
            where=name,
            expected="INSTRUME = NIRSPEC",
            found=primary.get("INSTRUME", "no INSTRUME keyword"),
        )
    extensions = {(e, v): (offset, header) for e, v, header, offset, _ in table}
    versions = sorted(v for e, v in extensions if e == "SCI")
    if not versions:
        raise InputFileError(
            "no SCI extension",
            where=name,
            expected=" ".join(_NEEDED),
            found=" ".join(e for e, *_ in table),
            remedy="give calibrated slit products (_cal or single slits)",
        )
    asdf_hdu = next((row for row in table if row[0] == "ASDF"), None)
    tree = _metadata(path, asdf_hdu)
    multi = "slits" in tree
    slits = tree["slits"] if multi else [tree]
    if len(slits) != len(versions):
        raise InputFileError(
            "slits of the metadata and of the extensions differ",
            where=name,
            expected=f"{len(versions)} slits",
            found=len(slits),
        )
    assert asdf_hdu is not None
    return [
        _slit_source(path, extensions, version, meta, primary, asdf_hdu, i if multi else None)
        for i, (version, meta) in enumerate(zip(versions, slits, strict=True))
    ]


def _hdu_table(path: Path, size: int) -> list[tuple[str, int, fits.Header, int, int]]:
    """Name, version, header, data offset and data size of every HDU."""
    rows = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AstropyWarning)
            with fits.open(path, memmap=False, lazy_load_hdus=False) as hdus:
                for hdu in hdus:
                    info = hdu.fileinfo()
                    rows.append((hdu.name, hdu.ver, hdu.header, info["datLoc"], info["datSpan"]))
    except (OSError, ValueError, TypeError, KeyError, fits.VerifyError) as error:
        raise InputFileError(
            "unreadable FITS headers", where=path.name, found=error, remedy="fetch the file again"
        ) from error
    broken = [str(w.message) for w in caught if re.search("truncated|Error valid", str(w.message))]
    short = [row for row in rows if row[3] + row[4] > size]
    if broken or short:
        last = (short or rows[-1:])[0]
        raise InputFileError(
            "truncated FITS file",
            where=f"{path.name}, extension {last[0]} {last[1]}",
            expected=f"{last[3] + last[4]} bytes or more",
            found=f"{size} bytes",
            remedy="fetch the file again",
        )
    return rows


def _read_bytes(path: str | Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise InputFileError(
            "truncated FITS file",
            where=str(path),
            expected=f"{size} bytes at {offset}",
            found=len(data),
            remedy="fetch the file again",
        )
    return data


def _metadata(path: Path, row: tuple | None) -> dict:
    """The ASDF extension's tree as plain data: nothing of the WCS is built."""
    problem: object = "no ASDF extension"
    if row is not None:
        try:
            tree = asdf.util.load_yaml(io.BytesIO(_read_bytes(path, row[3], row[4])), tagged=True)
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


def _slit_source(
    path: Path,
    extensions: dict,
    version: int,
    meta: dict,
    primary: fits.Header,
    asdf_hdu: tuple,
    index: int | None,
) -> SlitSource:
    header = extensions["SCI", version][1]
    slitlet = int(_first(header.get("SLITID"), meta.get("slitlet_id"), version))
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
        asdf_offset=asdf_hdu[3],
        asdf_size=asdf_hdu[4],
        index=index,
        coords=_coords(path, header, meta, primary, slitlet),
        units=_units(header, where),
        configuration=configuration_name(
            str(primary.get("GRATING", "")), str(primary.get("FILTER", ""))
        ),
    )


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next((v for v in values if v is not None and v != ""), None)


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
    state = str(_first(header.get("SHUTSTA"), meta.get("shutter_state"), ""))
    source_name = str(_first(header.get("SRCNAME"), meta.get("source_name"), ""))
    # The official pipeline names them so (1345_BKG12), and marks a shutter of theirs with x too.
    named_sky = bool(re.search("BKG|BACKGROUND", source_name.upper()))
    marked = state.index("x") - (len(state) - 1) // 2 if state.count("x") == 1 else None
    # shutter_id = row + (column - 1) * 365 is of the marked shutter, which moves with the nods;
    # what stays is the slitlet's middle.
    shutter = int(_first(header.get("SHUTTRID"), meta.get("shutter_id"), 0)) - 1
    row = int(_first(meta.get("xcen"), shutter % 365 + 1 if shutter >= 0 else -1))
    column = int(_first(meta.get("ycen"), shutter // 365 + 1 if shutter >= 0 else -1))
    name = _NAME.search(str(primary.get("FILENAME", ""))) or _NAME.search(path.name)
    program, observation, visit = (
        str(primary.get(k, "")).strip() for k in ("PROGRAM", "OBSERVTN", "VISIT")
    )
    return {
        "exposure": name.group(1) if name else path.stem,
        "detector": str(primary.get("DETECTOR", "")).strip(),
        "slitlet": slitlet,
        "source_id": int(_first(header.get("SOURCEID"), meta.get("source_id"), 0)),
        "source_name": source_name,
        "nod": int(_first(primary.get("PATT_NUM"), meta.get("dither_position"), -1)),
        "program": program,
        "visit": f"{program}{observation}{visit}",
        "quadrant": int(_first(header.get("MSAQUAD"), meta.get("quadrant"), -1)),
        "shutter_row": row,
        "shutter_column": column - (marked or 0) if column > 0 else column,
        "n_shutters": len(state) or -1,
        "exposure_time": float(_first(primary.get("EFFEXPTM"), header.get("XPOSURE"), np.nan)),
        "mjd": float(_first(primary.get("EXPMID"), header.get("MJD-AVG"), np.nan)),
        "is_background": named_sky or (bool(state) and "x" not in state),
        "source_shutter": np.nan if named_sky or marked is None else float(marked),
        "x_start": int(_first(header.get("SLTSTRT1"), 1)) - 1,
        "y_start": int(_first(header.get("SLTSTRT2"), 1)) - 1,
        "filename": path.name,
    }


# ------------------------------------------------------------------------------------------------
# Pixels, when asked for


def _read_plane(source: SlitSource, variable: str) -> NDArray:
    offset = source.offsets[variable]
    raw = _read_bytes(source.path, offset, 4 * source.shape[0] * source.shape[1])
    if variable == "quality":
        # FITS keeps unsigned integers shifted by 2^31, which is a flip of the highest bit.
        return (
            (np.frombuffer(raw, ">u4") ^ np.uint32(1 << 31)).astype(np.uint32).reshape(source.shape)
        )
    return np.frombuffer(raw, ">f4").astype(np.float32).reshape(source.shape)


def _wcs_yrel(sources: Sequence[SlitSource]) -> Iterator[NDArray[np.float32]]:
    """Yrel of slits, opening each file's ASDF once for consecutive slits of one file."""
    opened: tuple[str, Any] | None = None
    for source in sources:
        if opened is None or opened[0] != source.path:
            raw = _read_bytes(source.path, source.asdf_offset, source.asdf_size)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened = (source.path, asdf.open(io.BytesIO(raw), lazy_load=False).tree)
        slit = opened[1] if source.index is None else opened[1]["slits"][source.index]
        yield _slit_yrel(source, slit)


def _slit_yrel(source: SlitSource, slit: Any) -> NDArray[np.float32]:
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
    return np.where(np.isfinite(_read_plane(source, "wavelength")), yrel, np.nan).astype(np.float32)


_PADDING: dict[str, tuple[type, float | int]] = {"quality": (np.uint32, 1)}


def _read_block(
    index: NDArray[np.int64],
    *,
    sources: Sequence[SlitSource],
    variable: str,
    shape: tuple[int, int],
) -> NDArray:
    """Pixels of a block of slits, padded to a common shape."""
    dtype, fill = _PADDING.get(variable, (np.float32, np.nan))
    out = np.full((index.size, *shape), fill, dtype=dtype)
    chosen = [sources[i] for i in index]
    planes = _wcs_yrel(chosen) if variable == "yrel" else (_read_plane(s, variable) for s in chosen)
    for slot, source, plane in zip(out, chosen, planes, strict=True):
        slot[: source.shape[0], : source.shape[1]] = plane
    return out


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
    sources: list[SlitSource] = []
    problems: list[MbkgError] = []
    for path in paths:
        try:
            sources += scan_file(path)
        except InputFileError as error:
            problems.append(error)
    if problems and (on_error == "raise" or not sources):
        raise problems[0] if len(problems) == 1 else InputFilesError(problems)
    for problem in problems:
        warnings.warn(f"left out: {problem}", stacklevel=2)
    by_configuration: dict[str, list[SlitSource]] = {}
    for source in sources:
        by_configuration.setdefault(source.configuration, []).append(source)
    return {name: _dataset(name, group, chunks) for name, group in by_configuration.items()}


def _dataset(configuration: str, sources: list[SlitSource], chunks: int) -> xr.Dataset:
    units = {s.units for s in sources}
    if len(units) > 1:
        odd = next(s for s in sources if s.units != sources[0].units)
        raise InputFileError(
            "slits in different units",
            where=f"{odd.coords['filename']}, slitlet {odd.coords['slitlet']}",
            expected=sources[0].units,
            found=odd.units,
            remedy="open products of different units apart",
        )
    shape = (max(s.shape[0] for s in sources), max(s.shape[1] for s in sources))
    index = da.arange(len(sources), chunks=chunks)
    common = set.intersection(*(set(s.offsets) for s in sources)) | {"yrel"}
    arrays = {}
    for variable in [*_EXTENSIONS, "yrel"]:
        if variable not in common:
            continue
        dtype = _PADDING.get(variable, (np.float32, 0))[0]
        arrays[variable] = da.map_blocks(
            _read_block,
            index,
            sources=sources,
            variable=variable,
            shape=shape,
            dtype=dtype,
            new_axis=[1, 2],
            chunks=(index.chunks[0], (shape[0],), (shape[1],)),
            meta=np.empty((0, 0, 0), dtype),
        )
    quality = arrays.pop("quality")
    coords = {k: [s.coords[k] for s in sources] for k in sources[0].coords}
    return slit_dataset(
        arrays, quality, coords, units=sources[0].units, configuration=configuration
    )
