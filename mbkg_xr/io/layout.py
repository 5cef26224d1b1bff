"""What the extensions and keywords of NIPS files are called and mean, and units as they write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.time import Time

from ..errors import InputFileError, ParameterError
from ..quality import NIPS_FLAGS
from ..schema import SLIT_COORDS, configuration_name
from .fits import first_given
from .wcs import PITCH

__all__ = [
    "POSITION_UNITS",
    "NipsLayout",
    "configuration",
    "first_pixel",
    "position_unit",
    "respelled",
    "slit_coords",
    "unit_of",
]

#: A shutter pitch in the units positions along a slit may have.
POSITION_UNITS = {"pitch": 1.0, "open": PITCH}

# Coordinates by the keywords that may hold them, the first found counts. MSA shutters are
# QUADRANT, SHUTTERI and SHUTTERJ in MOS traces of NIPS 1.x (source: the comparison scripts of
# STScI's nirspec_pipe_testing_tool); the one real file tried, of a fixed slit, has none of them.
_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "slitlet": ("SLITLET",),
    "source_id": ("SOURCEID",),
    "source_name": ("SRCNAME",),
    "nod": ("PATT_NUM",),
    "program": ("PROGRAM",),
    "quadrant": ("MSAQUAD", "QUADRANT"),
    "shutter_row": ("MSAROW", "SHUTTERI"),
    "shutter_column": ("MSACOL", "SHUTTERJ"),
    "n_shutters": ("NSHUT",),
    "exposure_time": ("EFFEXPTM", "EXPTIME"),
    "mjd": ("EXPMID",),
    "is_background": ("ISBKG",),
    "source_shutter": ("SRCSHUT",),
}

_DETECTOR_SIZE = 2048  # columns and rows
_MSA_SHAPE = (365, 171)  # shutters of a quadrant along and across dispersion
_JW_NAME = re.compile(r"(jw\d{11}_\d{5}_\d{5})")
_OBS_ID = re.compile(r"V(\d{5})(\d{3})(\d{3})P")  # programme, observation, visit


@dataclass(frozen=True)
class NipsLayout:
    """What the extensions of NIPS irregular 2-D spectra are called and mean.

    The defaults are those of NIPS 1.x.

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
        Wavelength, in the file's unit, at and below which a pixel lies outside the slit; NaN
        always does. Positions do not tell: their sentinel, -1, is a legal position too.
    position_unit
        What positions count, where a file does not say so in ``SLITYUNI``: ``"open"``, heights of
        the open shutter, which lie 1.15 of them apart, or ``"pitch"``. Readers of such files
        disagree. The default is ``"open"``: the fixed slit of a real 1.6 file ends at +-0.5, and
        STScI's scripts compare positions of 1.x MOS traces, as they are, with those of its own
        WCS, which count open heights. Positions in fixed slits and the IFU, which have no
        pitch, stay as they are.
    wavelength_unit
        Of the wavelengths; None: as BUNIT of their extension says.
    flux_units
        Units of flux that are accepted, as astropy spells them, and what converts to them.
    flags
        The quality table: bits by name, one of them DO_NOT_USE.
    keywords
        Keywords of the primary header by coordinate; the first that is there counts.

    Raises
    ------
    ParameterError
        On an unknown `position_unit`, on units astropy does not know, and on `flags` without
        DO_NOT_USE.

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
    flux_units: tuple[str, ...] = ("ct/s", "electron/s", "DN/s", "MJy/sr", "W/(m2 um sr)")
    flags: Mapping[str, int] = field(default_factory=lambda: dict(NIPS_FLAGS))
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(_KEYWORDS))

    def __post_init__(self) -> None:
        if self.position_unit not in POSITION_UNITS:
            raise ParameterError(
                "unknown unit of positions along the slit",
                where="position_unit",
                expected=" or ".join(POSITION_UNITS),
                found=self.position_unit,
            )
        units = [*self.flux_units, *filter(None, [self.wavelength_unit])]
        unknown = [text for text in units if unit_of(text) is None]
        if unknown:
            raise ParameterError(
                "unknown unit",
                where="NipsLayout",
                expected="units as astropy spells them",
                found=" ".join(unknown),
            )
        if "DO_NOT_USE" not in self.flags:
            raise ParameterError(
                "quality flags without DO_NOT_USE", where="flags", found=" ".join(self.flags)
            )

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the extensions each detector must have."""
        return (self.flux, self.quality, self.variance, self.wavelength, self.position)


_WORDS = {
    **dict.fromkeys(("count", "counts"), "ct"),
    **dict.fromkeys(("electron", "electrons"), "electron"),
    **dict.fromkeys(("meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("micron", "microns", "micrometer", "micrometers"), "um"),
}
_CAPITALS = {"S": "s", "SR": "sr", "M": "m", "UM": "um", "NM": "nm", "MJY": "MJy", "JY": "Jy"}


def respelled(text: str) -> str:
    """A unit as astropy spells it: NIPS writes words, and all of them in capitals.

    Examples
    --------
    >>> respelled("COUNTS S-1"), respelled("METER"), respelled("MJy/sr")
    ('ct s-1', 'm', 'MJy/sr')
    """
    capitals = text == text.upper()

    def word(found: re.Match[str]) -> str:
        name = found[0]
        return _WORDS.get(name.lower()) or (_CAPITALS.get(name, name) if capitals else name)

    return re.sub(r"[A-Za-z]+", word, text.strip())


def unit_of(text: object) -> u.UnitBase | None:
    """The astropy unit of a header's text, None where there is no such unit.

    Examples
    --------
    >>> unit_of("(COUNTS S-1)**2") == unit_of("ct2 s-2")
    True
    """
    spelled = respelled(str(text or ""))
    squared = re.fullmatch(r"\((.*)\)\s*(?:\*\*|\^)\s*2", spelled)
    try:
        unit = u.Unit(squared[1] if squared else spelled)
    except (ValueError, TypeError):
        return None
    return unit**2 if squared else unit


# ------------------------------------------------------------------------------------------------
# What the primary header says


def position_unit(primary: fits.Header, layout: NipsLayout, where: str) -> tuple[str, str]:
    """What positions count, and what says so."""
    text = str(primary.get("SLITYUNI") or "").strip().lower()
    if text and text not in POSITION_UNITS:
        raise InputFileError(
            "unknown unit of positions along the slit",
            where=where,
            expected="SLITYUNI of " + " or ".join(POSITION_UNITS).upper(),
            found=text.upper(),
        )
    if text:
        return text, "SLITYUNI"
    mode = str(primary.get("MODE") or "MOS").strip().upper()
    return (layout.position_unit, "layout") if mode == "MOS" else ("slit", f"MODE {mode}")


def configuration(primary: fits.Header, where: str) -> str:
    grating, filter_ = (
        str(first_given(primary.get(a), primary.get(b), "")).strip()
        for a, b in (("GWA_POS", "GRATING"), ("FWA_POS", "FILTER"))
    )
    if not grating:
        raise InputFileError(
            "unknown disperser", where=where, expected="GWA_POS", found="no such keyword"
        )
    return configuration_name(grating, filter_)


def slit_coords(path: Path, primary: fits.Header, layout: NipsLayout, where: str) -> dict[str, Any]:
    """Slit coordinates from header keywords; what no keyword tells is left out."""
    casts: dict[str, Callable[[Any], Any]] = {"i": int, "f": float, "f4": float, "b": bool}
    out: dict[str, Any] = {}
    for name, (kind, unknown, _) in SLIT_COORDS.items():
        value = first_given(*(primary.get(k) for k in layout.keywords.get(name, ())), None)
        try:
            out[name] = unknown if value is None else casts.get(kind, _text)(value)
        except (TypeError, ValueError) as error:
            raise InputFileError(
                f"unreadable {name}",
                where=where,
                expected="a number in " + " or ".join(layout.keywords[name]),
                found=value,
            ) from error
    identifier = str(primary.get("OBS_ID") or "").strip()
    observed = _OBS_ID.match(identifier)
    visit = [str(primary.get(k) or "").strip() for k in ("PROGRAM", "OBSERVTN", "VISIT")]
    if observed and not all(visit):
        visit = list(observed.groups())
    out["program"] = out["program"] or visit[0]
    out["visit"] = out["visit"] or "".join(visit)
    out["exposure"] = out["exposure"] or _exposure(path, primary, identifier)
    if (
        out["slitlet"] < 0
        and min(out[k] for k in ("quadrant", "shutter_row", "shutter_column")) > 0
    ):
        # No number of the slitlet, but its shutter: that is one of a kind too.
        rows, columns = _MSA_SHAPE
        shutter = (out["shutter_column"] - 1) * rows + out["shutter_row"]
        out["slitlet"] = (out["quadrant"] - 1) * rows * columns + shutter
    if "BKG" in out["source_name"].upper() or "BACKGROUND" in out["source_name"].upper():
        out["is_background"] = True
    if np.isnan(out["mjd"]):
        out["mjd"] = _middle(primary)
    return out


def _text(value: object) -> str:
    return str(value).strip()


def _exposure(path: Path, primary: fits.Header, identifier: str) -> str:
    """Name of the exposure, the same as in STScI's products where the file has that."""
    for text in (identifier, str(primary.get("FILENAME", "")), path.name):
        name = _JW_NAME.search(text)
        if name:
            return name[1]
    number = first_given(primary.get("EXP_ID"), primary.get("EXPOSURE"), None)
    return (f"{identifier}_{number}" if number is not None else identifier) or path.stem


def _middle(primary: fits.Header) -> float:
    """Middle of the exposure (MJD) from the times it began and ended."""
    keys = (("DATE-OBS", "TIME-OBS"), ("DATE-END", "TIME-END"))
    texts = [f"{primary.get(day, '')}T{primary.get(time, '')}" for day, time in keys]
    try:
        return float(np.mean(Time(texts, format="isot").mjd))
    except ValueError:
        return float("nan")


def first_pixel(header: fits.Header, shape: tuple[int, int], turned: bool) -> dict[str, int]:
    """Detector column and row of the cut-out's first pixel, from 0, as STScI's products count."""
    out = {}
    for axis, name, size in ((1, "x_start", shape[1]), (2, "y_start", shape[0])):
        if f"CRPIX{axis}" not in header:
            return {}
        # The world coordinate is the detector pixel, from 1.
        step = header.get(f"CDELT{axis}", 1.0)
        start = header.get(f"CRVAL{axis}", 0.0) + (1 - header[f"CRPIX{axis}"]) * step - 1
        out[name] = round(_DETECTOR_SIZE - start - size if turned else start)
    return out
