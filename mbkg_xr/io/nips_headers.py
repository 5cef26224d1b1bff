"""What the headers of a NIPS file say of its slit, by the keywords of a layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.time import Time
from astropy.units import um

from ..errors import InputFileError
from ..schema import SLIT_COORDS, configuration_name
from .fits import Hdu, first_given
from .layout import DETECTORS, POSITION_UNITS, NipsLayout
from .units import respelled, unit_of

__all__ = [
    "configuration",
    "detector_of",
    "first_pixel",
    "flux_unit",
    "position_unit",
    "slit_coords",
    "subtracted_by",
    "to_um",
]

Headers = Iterable[Mapping[str, Any]]

_DETECTOR_SIZE = 2048  # columns and rows
_MSA_SHAPE = (365, 171)  # shutters of a quadrant along and across dispersion
_JW_NAME = re.compile(r"(jw\d{11}_\d{5}_\d{5})")
_OBS_ID = re.compile(r"V(\d{5})(\d{3})(\d{3})P")  # programme, observation, visit
_NUMBERS = {"491": "NRS1", "492": "NRS2"}  # of the detectors, in SCAID
_DENIALS = {"", "0", "F", "N", "FALSE", "NO", "NONE", "N/A", "OMIT", "SKIP", "SKIPPED", "FAILED"}


def _look_up(headers: Headers, keys: Iterable[str]) -> Any:
    """The first value of any of these keywords, None where no header has one."""
    return first_given(*(h.get(k) for k in keys for h in headers), None)


def detector_of(named: str, headers: Headers, where: str) -> str:
    """A detector that the layout names, or a keyword of the headers."""
    if named in DETECTORS:
        return named
    value = _look_up(headers, [named])
    text = str(value if value is not None else "").strip().upper()
    detector = _NUMBERS.get(text, text)
    if detector not in DETECTORS:
        raise InputFileError(
            "unknown detector",
            where=where,
            expected=f"{named} of NRS1 (491) or NRS2 (492)",
            found="no such keyword" if value is None else value,
            remedy="name the detector in the layout's table `detectors`",
        )
    return detector


def position_unit(headers: Headers, layout: NipsLayout, where: str) -> tuple[str, str]:
    """What positions count, and what says so."""
    text = str(_look_up(headers, ["SLITYUNI"]) or "").strip().lower()
    if text and text not in POSITION_UNITS:
        raise InputFileError(
            "unknown unit of positions along the slit",
            where=where,
            expected="SLITYUNI of " + " or ".join(POSITION_UNITS).upper(),
            found=text.upper(),
        )
    if text:
        return text, "SLITYUNI"
    mode = str(_look_up(headers, ["MODE"]) or "MOS").strip().upper()
    return (layout.position_unit, "layout") if mode == "MOS" else ("slit", f"MODE {mode}")


def configuration(headers: Headers, layout: NipsLayout, where: str) -> str:
    grating, filter_ = (
        str(_look_up(headers, layout.keywords.get(name, ())) or "").strip()
        for name in ("grating", "filter")
    )
    if not grating:
        raise InputFileError(
            "unknown disperser",
            where=where,
            expected=" or ".join(layout.keywords.get("grating", ())),
            found="no such keyword",
        )
    return configuration_name(grating, filter_)


def subtracted_by(headers: Headers, layout: NipsLayout) -> str:
    """The keywords that say a background was subtracted; empty where none does."""
    if layout.subtracted is not None:
        return "layout" if layout.subtracted else ""
    said = []
    for key, values in layout.subtracted_keywords.items():
        value = _look_up(headers, [key])
        if value is None:
            continue
        text = str(value).strip().upper()
        if text in {v.upper() for v in values} or (not values and text not in _DENIALS):
            said.append(key)
    return " ".join(said)


def slit_coords(path: Path, headers: Headers, layout: NipsLayout, where: str) -> dict[str, Any]:
    """Slit coordinates from header keywords; what no keyword tells has the unknown value."""
    casts: dict[str, Callable[[Any], Any]] = {"i": int, "f": float, "f4": float, "b": bool}
    out: dict[str, Any] = {}
    for name, keys in layout.keywords.items():
        if name not in SLIT_COORDS:
            continue
        kind = SLIT_COORDS[name][0]
        value = _look_up(headers, keys)
        if value is None:
            continue
        try:
            out[name] = casts.get(kind, _text)(value)
        except (TypeError, ValueError) as error:
            raise InputFileError(
                f"unreadable {name}",
                where=where,
                expected="a number in " + " or ".join(keys),
                found=value,
            ) from error
    out = {name: out.get(name, unknown) for name, (_, unknown, _) in SLIT_COORDS.items()}
    identifier = str(_look_up(headers, ["OBS_ID"]) or "").strip()
    observed = _OBS_ID.match(identifier)
    visit = [str(_look_up(headers, [k]) or "").strip() for k in ("PROGRAM", "OBSERVTN", "VISIT")]
    if observed and not all(visit):
        visit = list(observed.groups())
    out["program"] = out["program"] or visit[0]
    out["visit"] = out["visit"] or "".join(visit)
    out["exposure"] = out["exposure"] or _exposure(path, headers, identifier)
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
        out["mjd"] = _middle(headers)
    return out


def _text(value: object) -> str:
    return str(value).strip()


def _exposure(path: Path, headers: Headers, identifier: str) -> str:
    """Name of the exposure, the same as in STScI's products where the file has that."""
    for text in (identifier, str(_look_up(headers, ["FILENAME"]) or ""), path.name):
        name = _JW_NAME.search(text)
        if name:
            return name[1]
    number = _look_up(headers, ["EXP_ID", "EXPOSURE"])
    return (f"{identifier}_{number}" if number is not None else identifier) or path.stem


def _middle(headers: Headers) -> float:
    """Middle of the exposure (MJD) from the times it began and ended."""
    keys = (("DATE-OBS", "TIME-OBS"), ("DATE-END", "TIME-END"))
    texts = ["T".join(str(_look_up(headers, [k]) or "") for k in pair) for pair in keys]
    try:
        return float(np.mean(Time(texts, format="isot").mjd))
    except ValueError:
        return float("nan")


def first_pixel(header: Mapping[str, Any], shape: tuple[int, int], turned: bool) -> dict[str, int]:
    """Detector column and row of the cut-out's first pixel, from 0, as STScI's products count."""
    out = {}
    for axis, name, size in ((1, "x_start", shape[1]), (2, "y_start", shape[0])):
        if header.get(f"CRPIX{axis}") is None:
            return {}
        # The world coordinate is the detector pixel, from 1.
        step = header.get(f"CDELT{axis}", 1.0)
        start = header.get(f"CRVAL{axis}", 0.0) + (1 - header[f"CRPIX{axis}"]) * step - 1
        out[name] = round(_DETECTOR_SIZE - start - size if turned else start)
    return out


# ------------------------------------------------------------------------------------------------
# What the headers of extensions say of their units


def flux_unit(found: Mapping[str, Hdu], layout: NipsLayout, where: str) -> str:
    """Unit of the flux, in which the errors must be too."""
    text = str(layout.flux_unit or found["flux"].header.get("BUNIT") or "").strip()
    unit = unit_of(text) if text else None
    if unit is None or not any(unit.is_equivalent(unit_of(t)) for t in layout.flux_units):
        raise InputFileError(
            "flux that is neither a count rate nor a surface brightness",
            where=where,
            expected="BUNIT of " + ", ".join(layout.flux_units),
            found=text or "no BUNIT",
            remedy="correct slit losses as for uniform light, and then accept the unit by "
            "NipsLayout(flux_units=...), or name it by flux_unit where the file does not",
        )
    for role, power in (("variance", 2), ("read_variance", 2), ("error", 1)):
        spread = found[role].header.get("BUNIT") if role in found else None
        if spread and unit_of(spread) != unit**power:
            raise InputFileError(
                "error not in the unit of flux"
                if power == 1
                else "variance not in the unit of flux squared",
                where=f"{where}, {found[role].name}",
                expected=f"BUNIT of {text}" if power == 1 else f"BUNIT of ({text})**2",
                found=spread,
            )
    return respelled(text)


def to_um(header: Mapping[str, Any], layout: NipsLayout, where: str) -> float:
    """Micrometres in the unit of the wavelengths."""
    text = layout.wavelength_unit or header.get("BUNIT")
    unit = unit_of(text) if text else None
    if unit is None or not unit.is_equivalent(um):
        raise InputFileError(
            "unknown unit of wavelength",
            where=where,
            expected=f"BUNIT of a length in {layout.wavelength}",
            found=text or "no BUNIT",
            remedy="give it by NipsLayout(wavelength_unit=...)",
        )
    return float(unit.to(um))
