"""ESA NIPS products in: irregular 2-D spectra (I2D), one FITS file a slitlet, as lazy datasets.

Opening reads headers. Pixels are read by offset when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..errors import InputFileError
from .fits import Hdu, by_configuration, hdu_table, lazy_dataset, read_bytes, scan_files
from .layout import POSITION_UNITS, NipsLayout
from .lazy import Chunks
from .nips_headers import (
    configuration,
    detector_of,
    first_pixel,
    flux_unit,
    position_unit,
    slit_coords,
    subtracted_by,
    to_um,
)

__all__ = ["NipsLayout", "NipsSource", "dataset", "is_nips", "open_slits", "scan_file"]

_ROLES = ("flux", "quality", "variance", "error", "wavelength", "position", "read_variance")
_SCA = {"NRS1": 491, "NRS2": 492}  # numbers of the detectors in keywords

Header = Mapping[str, Any]


@dataclass(frozen=True)
class Plane:
    """Where an extension's pixels lie, of which type, and whether their highest bit is turned."""

    offset: int
    dtype: str
    unsigned: bool = False


@dataclass(frozen=True)
class NipsSource:
    """Where one slit's pixels lie.

    Attributes
    ----------
    path
        The file.
    shape
        ``(ny, nx)`` of the cut-out.
    planes
        The extensions, by the name that the layout's attribute has.
    turned
        Whether they are turned by 180 degrees.
    outside
        Wavelength, as filed, at and below which a pixel lies outside the slit.
    to_um
        Micrometres in the file's unit of wavelength.
    pitch
        A shutter pitch in the file's unit of position.
    position_unit
        That unit, and what says so.
    sentinels
        Values as filed that stand for none, by plane.
    coords
        The slit's coordinates.
    units, configuration
        As the file says.
    """

    path: str
    shape: tuple[int, int]
    planes: dict[str, Plane]
    turned: bool
    outside: float
    to_um: float
    pitch: float
    position_unit: str
    sentinels: dict[str, list[float]]
    coords: dict[str, Any]
    units: str
    configuration: str


# ------------------------------------------------------------------------------------------------
# Structure: headers only


def is_nips(hdus: Sequence[Hdu], layout: NipsLayout | None = None) -> bool:
    """Whether headers name NIPS, or have extensions of its layout and no metadata of STScI's."""
    layout = layout or NipsLayout()
    found = {h.name for h in hdus}
    names = {name + suffix for name in layout.needed for suffix in layout.detectors}
    if hdus[0].header.get("NPLS_V") is not None:
        return True
    return "ASDF" not in found and not names.isdisjoint(found)


def scan_file(
    path: str | Path, hdus: Sequence[Hdu] | None = None, *, layout: NipsLayout | None = None
) -> list[NipsSource]:
    """Read the structure of one product, no pixels.

    Parameters
    ----------
    path
        A NIPS irregular 2-D spectrum.
    hdus
        Its headers, where they have been read already.
    layout
        What its extensions are called and mean; as in NIPS 1.x by default.

    Returns
    -------
    list of NipsSource
        One for each detector the slit falls on.

    Raises
    ------
    InputFileError
        Where the file is missing, is not FITS, is truncated, is not from NIRSpec or not of this
        layout, lacks an extension, or has units that are unknown or not of a sky signal.
    """
    path, layout = Path(path), layout or NipsLayout()
    hdus = hdu_table(path) if hdus is None else hdus
    extensions = {h.name: h for h in hdus[1:]}
    # The header says on how many columns of NRS1 (491) and NRS2 (492) the slit lies: a file that
    # was cut short between the two must not pass for one of NRS1 only.
    suffixes = [
        suffix
        for suffix, detector in layout.detectors.items()
        if any(n + suffix in extensions for n in layout.needed)
        or int(hdus[0].header.get(f"NX{_SCA.get(detector)}", 0)) > 0
    ]
    if not suffixes:
        first = next(iter(layout.detectors))
        raise InputFileError(
            "not a NIPS spectrum",
            where=path.name,
            expected="extensions " + " ".join(n + first for n in layout.needed),
            found=" ".join(h.name for h in hdus),
            remedy="give irregular 2-D spectra (I2D), or describe their layout by a NipsLayout",
        )
    return [_slit_source(path, hdus[0].header, extensions, s, layout) for s in suffixes]


def _slit_source(
    path: Path, primary: Header, extensions: dict[str, Hdu], suffix: str, layout: NipsLayout
) -> NipsSource:
    where = f"{path.name}, {layout.flux + suffix}"
    missing = [n + suffix for n in layout.needed if n + suffix not in extensions]
    if missing:
        raise InputFileError(
            "missing extension",
            where=f"{path.name}, {layout.detectors[suffix]}",
            expected=" ".join(n + suffix for n in layout.needed),
            found="no " + " ".join(missing),
            remedy="fetch the file again, or describe its layout by a NipsLayout",
        )
    found = {
        role: extensions[getattr(layout, role) + suffix]
        for role in _ROLES
        if getattr(layout, role) and getattr(layout, role) + suffix in extensions
    }
    if layout.error:
        found.pop("variance", None)
    header = found["flux"].header
    headers = (primary, header)
    detector = detector_of(layout.detectors[suffix], headers, where)
    where = f"{path.name}, {detector}"
    shape = (int(header.get("NAXIS2", 0)), int(header.get("NAXIS1", 0)))
    turned = detector in layout.turned
    unit, said_by = position_unit(headers, layout, where)
    return NipsSource(
        path=str(path.resolve()),
        shape=shape,
        planes={role: _plane(hdu, role, shape, where) for role, hdu in found.items()},
        turned=turned,
        outside=layout.outside,
        to_um=to_um(found["wavelength"].header, layout, where),
        pitch=POSITION_UNITS.get(unit, 1.0),
        position_unit=f"{unit} ({said_by})",
        sentinels={role: list(layout.sentinels.get(role, ())) for role in found},
        coords={
            **slit_coords(path, headers, layout, where),
            **first_pixel(header, shape, turned),
            "detector": detector,
            "subtracted": subtracted_by(headers, layout),
            "filename": path.name,
            "path": str(path.resolve()),
        },
        units=flux_unit(found, layout, where),
        configuration=configuration(headers, layout, where),
    )


def _plane(hdu: Hdu, role: str, shape: tuple[int, int], where: str) -> Plane:
    header = hdu.header
    bits = int(header["BITPIX"])
    scale = (header.get("BSCALE", 1), header.get("BZERO", 0))
    # FITS keeps unsigned integers shifted by half their range, which is a flip of the highest bit.
    unsigned = bits > 8 and scale == (1, 2 ** (bits - 1))
    fits_role = bits > 0 if role == "quality" else bits < 0
    size = (int(header.get("NAXIS2", 0)), int(header.get("NAXIS1", 0)))
    if size != shape or not fits_role or not (scale == (1, 0) or unsigned):
        raise InputFileError(
            f"unexpected layout of {hdu.name}",
            where=where,
            expected=f"{shape} unscaled {'integers' if role == 'quality' else 'real numbers'}",
            found=f"{size} pixels, BITPIX {bits}, BSCALE and BZERO {scale}",
        )
    kind = "u" if role == "quality" else "f"
    return Plane(hdu.offset, f">{kind}{abs(bits) // 8}", unsigned)


# ------------------------------------------------------------------------------------------------
# Pixels, when asked for


def _filed(source: NipsSource, role: str) -> NDArray:
    plane = source.planes[role]
    dtype = np.dtype(plane.dtype)
    raw = read_bytes(source.path, plane.offset, dtype.itemsize * source.shape[0] * source.shape[1])
    values = np.frombuffer(raw, dtype).reshape(source.shape)
    if dtype.kind == "u":
        flip = np.uint64(1 << (8 * dtype.itemsize - 1)) if plane.unsigned else np.uint64(0)
        values = values.astype(np.uint64) ^ flip
    elif source.sentinels.get(role):
        none = np.isin(values, np.array(source.sentinels[role], values.dtype))
        values = np.where(none, values.dtype.type(np.nan), values)
    return values[::-1, ::-1] if source.turned else values


def _variance(source: NipsSource) -> NDArray[np.float64]:
    if "error" in source.planes:
        error = _filed(source, "error").astype(np.float64)
        return np.where(error > 0, error**2, np.nan)
    variance = _filed(source, "variance").astype(np.float64)
    return np.where(variance > 0, variance, np.nan)


def _pixels(source: NipsSource, variable: str) -> NDArray:
    """One variable of the contract. What is filed outside the slit is detector, and not of it."""
    if variable == "quality":
        return _filed(source, "quality")
    wavelength = _filed(source, "wavelength").astype(np.float64)
    if variable == "wavelength":
        values = wavelength * source.to_um
    elif variable == "yrel":
        values = _filed(source, "position") / source.pitch
    elif variable == "flux":
        values = _filed(source, "flux")
    elif variable == "error":
        values = np.sqrt(_variance(source))
    else:
        read = _filed(source, "read_variance").astype(np.float64)
        values = read if variable == "var_rnoise" else np.maximum(_variance(source) - read, 0)
    return np.where(wavelength > source.outside, values, np.nan).astype(np.float32)


def planes(sources: Sequence[NipsSource], variable: str) -> Iterator[NDArray]:
    return (_pixels(source, variable) for source in sources)


def open_slits(
    paths: Sequence[str | Path],
    *,
    layout: NipsLayout | None = None,
    chunks: Chunks = 32,
    on_error: str = "raise",
) -> dict[str, xr.Dataset]:
    """Open NIPS irregular 2-D spectra as one lazy slit dataset a configuration.

    Parameters
    ----------
    paths
        Files; the slits keep their order, NRS1 before NRS2.
    layout
        What their extensions are called and mean; as in NIPS 1.x by default.
    chunks
        Slits in a chunk.
    on_error
        ``"raise"`` one error that reports all unusable files, or ``"warn"`` and keep the others.

    Returns
    -------
    dict of xarray.Dataset
        By configuration, such as ``"prism-clear"``. ``flux`` (in the file's units) and ``error``
        (the root of the variance; NaN where that is not positive) are NaN outside the slit,
        ``wavelength`` is in um, ``yrel`` in shutter pitches, ``quality`` uint64. Attribute
        ``position_unit`` says what positions were taken to count. Simulated files have
        ``var_rnoise`` and ``var_poisson`` too.

    Raises
    ------
    InputFileError, InputFilesError
        Where files cannot be used.
    """
    scan = partial(scan_file, layout=layout)
    groups = by_configuration(scan_files(paths, scan, on_error=on_error))
    return {name: dataset(group, chunks=chunks, layout=layout) for name, group in groups.items()}


def dataset(
    sources: Sequence[NipsSource], *, chunks: Chunks = 32, layout: NipsLayout | None = None
) -> xr.Dataset:
    """A lazy slit dataset of slits of one configuration.

    Raises
    ------
    InputFileError
        Where slits have different units.
    """
    variables = ["flux", "error", "quality", "wavelength", "yrel"]
    if all("read_variance" in s.planes for s in sources):
        variables += ["var_rnoise", "var_poisson"]
    return lazy_dataset(
        sources,
        planes,
        variables,
        chunks=chunks,
        flags=(layout or NipsLayout()).flags,
        quality_dtype=np.uint64,
        attrs={"position_unit": ", ".join(sorted({s.position_unit for s in sources}))},
    )
