"""ESA NIPS products in: irregular 2-D spectra (I2D), one FITS file a slitlet, as lazy datasets.

What the extensions and keywords of a file mean is a `NipsLayout`; the default one is that of
NIPS 1.x. Opening reads headers; pixels are read by offset when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy import units as u
from astropy.io import fits
from astropy.time import Time
from numpy.typing import NDArray

from ..errors import InputFileError, ParameterError
from ..quality import NIPS_FLAGS
from ..schema import SLIT_COORDS, configuration_name
from .fits import (
    Hdu,
    by_configuration,
    first_given,
    hdu_table,
    lazy_dataset,
    read_bytes,
    scan_files,
)
from .jwst import PITCH

__all__ = ["NipsLayout", "NipsSource", "dataset", "is_nips", "open_slits", "scan_file"]

#: Columns and rows of a detector, in whose corner NIPS's turned NRS2 starts to count.
_DETECTOR_SIZE = 2048
_SLITY_UNITS = {"pitch": 1.0, "open": PITCH}  # a shutter pitch in units of SLITY

# Coordinates by the keywords that may hold them, the first found counts. MSA shutters are
# QUADRANT, SHUTTERI and SHUTTERJ in MOS traces of NIPS 1.x (source: the comparison scripts of
# STScI's nirspec_pipe_testing_tool); the only real file tried, of a fixed slit, has none of them.
_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "slitlet": ("SLITLET",),
    "source_id": ("SOURCEID",),
    "source_name": ("SRCNAME",),
    "nod": ("PATT_NUM",),
    "quadrant": ("MSAQUAD", "QUADRANT"),
    "shutter_row": ("MSAROW", "SHUTTERI"),
    "shutter_column": ("MSACOL", "SHUTTERJ"),
    "n_shutters": ("NSHUT",),
    "exposure_time": ("EFFEXPTM", "EXPTIME"),
    "mjd": ("EXPMID",),
    "is_background": ("ISBKG",),
    "source_shutter": ("SRCSHUT",),
    "program": ("PROGRAM",),
}
_JW_NAME = re.compile(r"(jw\d{11}_\d{5}_\d{5})")
_OBS_ID = re.compile(r"V(\d{5})(\d{3})(\d{3})P")  # programme, observation, visit

_WORDS = {
    **dict.fromkeys(("count", "counts"), "ct"),
    **dict.fromkeys(("electron", "electrons"), "electron"),
    **dict.fromkeys(("meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("micron", "microns", "micrometer", "micrometers"), "um"),
}
_CAPITALS = {"S": "s", "SR": "sr", "M": "m", "UM": "um", "NM": "nm", "MJY": "MJy", "JY": "Jy"}


@dataclass(frozen=True)
class NipsLayout:
    """What the extensions of NIPS irregular 2-D spectra are called and mean.

    Attributes
    ----------
    flux, quality, variance, wavelength, position
        Names of the extensions, before the suffix of the detector.
    read_variance
        Of an optional one: the part of the variance that is read noise. NIPS writes none; the
        simulator does.
    detectors
        Detectors by the suffix of their extensions.
    turned
        Detectors whose frame is turned by 180 degrees against that of STScI's products, which
        datasets keep.
    outside
        Wavelength (in the file's unit) at and below which a pixel lies outside the slit; NaN
        always does. Positions do not tell: their sentinel, -1, is a legal position too.
    position_unit
        What positions count, where a file does not say so in ``SLITYUNI``: ``"open"``, heights of
        the open shutter, which lie 1.15 of them apart, or ``"pitch"``. Readers of such files
        disagree. The default is ``"open"``: the fixed slit of the real 1.6 file ends at
        +-0.5 and positions of 1.x MOS traces are compared, as they are, with those of STScI's WCS
        (nirspec_pipe_testing_tool), which count open heights. In fixed slits and the IFU, which
        have no pitch, positions stay as they are.
    wavelength_unit
        Of the wavelengths; None: as the extension's BUNIT says.
    flux_units
        The units of flux that are accepted, as astropy spells them, and all they convert to.
    flags
        The quality table: bits by name, one of them DO_NOT_USE.
    keywords
        Names of primary header keywords by coordinate; the first that is there counts.

    Examples
    --------
    >>> layout = NipsLayout(wavelength="AWCS", wavelength_unit="um", position_unit="pitch")
    >>> layout.flux, layout.wavelength
    ('DATA', 'AWCS')
    """

    flux: str = "DATA"
    quality: str = "QUALITY"
    variance: str = "VAR"
    wavelength: str = "LAMBDA"
    position: str = "SLITY"
    read_variance: str = "VARRN"
    detectors: Mapping[str, str] = field(default_factory=lambda: {"1": "NRS1", "2": "NRS2"})
    turned: tuple[str, ...] = ("NRS2",)
    outside: float = 0.0
    position_unit: str = "open"
    wavelength_unit: str | None = None
    flux_units: tuple[str, ...] = (
        *("ct / s", "electron / s", "DN / s"),
        *("MJy / sr", "W / (m2 um sr)"),
    )
    flags: Mapping[str, int] = field(default_factory=lambda: dict(NIPS_FLAGS))
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(_KEYWORDS))

    def __post_init__(self) -> None:
        if self.position_unit not in _SLITY_UNITS:
            raise ParameterError(
                "unknown unit of positions along the slit",
                where="position_unit",
                expected=" or ".join(_SLITY_UNITS),
                found=self.position_unit,
            )
        if "DO_NOT_USE" not in self.flags:
            raise ParameterError(
                "quality flags without DO_NOT_USE", where="flags", found=" ".join(self.flags)
            )

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the extensions every detector must have."""
        return (self.flux, self.quality, self.variance, self.wavelength, self.position)


@dataclass(frozen=True)
class Plane:
    """Where an extension's pixels lie, as which numbers, and the bit to flip in unsigned ones."""

    offset: int
    dtype: str
    flip: int = 0


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
        The extensions by the name the layout's attribute has.
    turned
        Whether they are turned by 180 degrees.
    outside
        Wavelength, as filed, at and below which a pixel lies outside the slit.
    to_um
        Micrometres in the file's unit of wavelength.
    pitch
        A shutter pitch in the file's unit of position.
    position_unit
        That unit and what said so.
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
    coords: dict[str, Any]
    units: str
    configuration: str


# ------------------------------------------------------------------------------------------------
# Structure: headers only


def is_nips(hdus: Sequence[Hdu], layout: NipsLayout | None = None) -> bool:
    """Whether a file of these headers says it is from NIPS, or has extensions of the layout."""
    layout = layout or NipsLayout()
    names = {name + suffix for name in layout.needed for suffix in layout.detectors}
    return "NPLS_V" in hdus[0].header or not names.isdisjoint(h.name for h in hdus)


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
        What its extensions mean; that of NIPS 1.x by default.

    Returns
    -------
    list of NipsSource
        One a detector the slit falls on.

    Raises
    ------
    InputFileError
        Where the file is missing, is not FITS, is truncated, is not from NIRSpec or not of this
        layout, lacks an extension, or has units that are unknown or not of a sky signal.
    """
    path, layout = Path(path), layout or NipsLayout()
    hdus = hdu_table(path) if hdus is None else hdus
    primary = hdus[0].header
    extensions = {h.name: h for h in hdus[1:]}
    there = [s for s in layout.detectors if any(n + s in extensions for n in layout.needed)]
    # NIPS says which detectors a spectrum has pixels on: a file may end after the first.
    there += [
        s
        for s in layout.detectors
        if s not in there and s in ("1", "2") and int(primary.get(f"NX49{s}", 0)) > 0
    ]
    if not there:
        raise InputFileError(
            "not a NIPS spectrum",
            where=path.name,
            expected="extensions " + " ".join(n + s for s in layout.detectors for n in layout.needed),
            found=" ".join(h.name for h in hdus),
            remedy="give irregular 2-D spectra (I2D), or describe their layout in a NipsLayout",
        )
    return [_slit_source(path, primary, extensions, suffix, layout) for suffix in there]


def _slit_source(
    path: Path, primary: fits.Header, extensions: dict[str, Hdu], suffix: str, layout: NipsLayout
) -> NipsSource:
    detector = layout.detectors[suffix]
    where = f"{path.name}, {detector}"
    missing = [n + suffix for n in layout.needed if n + suffix not in extensions]
    if missing:
        raise InputFileError(
            "missing extension",
            where=where,
            expected=" ".join(n + suffix for n in layout.needed),
            found="no " + " ".join(missing),
            remedy="fetch the file again, or describe its layout in a NipsLayout",
        )
    header = extensions[layout.flux + suffix].header
    shape = (int(header.get("NAXIS2", 0)), int(header.get("NAXIS1", 0)))
    planes = {
        role: _plane(extensions[getattr(layout, role) + suffix], role, shape, where)
        for role in _ROLES
        if getattr(layout, role) + suffix in extensions
    }
    unit = _flux_unit(header, layout, where)
    _check_variance_unit(extensions[layout.variance + suffix].header, unit, where)
    wavelength = layout.wavelength_unit or extensions[layout.wavelength + suffix].header.get("BUNIT")
    position_unit, origin = _position_unit(primary, layout, where)
    turned = detector in layout.turned
    return NipsSource(
        path=str(path.resolve()),
        shape=shape,
        planes=planes,
        turned=turned,
        outside=layout.outside,
        to_um=_to_um(wavelength, where),
        pitch=_SLITY_UNITS.get(position_unit, 1.0),
        position_unit=f"{position_unit} ({origin})",
        coords={
            **_coords(path, primary, layout, where),
            **_first_pixel(header, shape, turned),
            "detector": detector,
            "filename": path.name,
        },
        units=str(header["BUNIT"]).strip() if unit.text_is_astropy else unit.value.to_string(),
        configuration=_configuration(primary, path),
    )
