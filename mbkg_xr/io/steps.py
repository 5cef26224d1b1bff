"""What STScI's status keywords, units and extensions say of one step each.

Source: the steps ``photom``, ``pathloss``, ``barshadow`` and ``wavecorr`` of the official pipeline,
and the keywords in the schemas of its data models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from astropy import units as u

from ..errors import InputFileError

__all__ = [
    "STEPS",
    "bars_divided_out",
    "calibrated_as",
    "is_done",
    "is_rate",
    "path_loss_divided_out",
    "subtracted_by",
    "surface_brightness",
    "wavelength_shifted",
]

#: Status keywords that decide what pixels mean.
STEPS = (
    *("S_FLAT", "S_PTHLOS", "S_BARSHA", "S_PHOTOM", "S_WAVCOR", "S_PXREPL"),
    *("S_BKDSUB", "S_MSBSUB", "S_MSAFLG"),
)
_SUBTRACTIONS = ("S_BKDSUB", "S_MSBSUB")
_LARGEST_PIXEL = 1e-10  # sr; those of NIRSpec have 5e-13


def is_done(status: str | None) -> bool | None:
    """Whether a step was done; None where the product is silent."""
    return None if not status else status.strip().upper() == "COMPLETE"


def subtracted_by(steps: Mapping[str, str]) -> str:
    """Keywords of subtractions that were made, separated by spaces.

    Examples
    --------
    >>> subtracted_by({"S_BKDSUB": "COMPLETE", "S_MSBSUB": "SKIPPED"})
    'S_BKDSUB'
    """
    return " ".join(key for key in _SUBTRACTIONS if is_done(steps.get(key)))


def calibrated_as(source_type: str | None, units: str) -> str:
    """Kind of source a slit was calibrated for: as SRCTYPE says, else by the unit.

    Examples
    --------
    >>> calibrated_as("UNKNOWN", "MJy/sr"), calibrated_as(None, "MJy"), calibrated_as(None, "DN/s")
    ('EXTENDED', 'POINT', '')
    """
    kind = (source_type or "").strip().upper()
    if kind:
        # The pipeline takes whatever is not POINT for extended.
        return "POINT" if kind == "POINT" else "EXTENDED"
    if _flux_density(units) is not None:
        return "POINT"
    return "EXTENDED" if _is_brightness(units) else ""


def bars_divided_out(
    corrected: bool | None, status: str | None, point: bool, filed: bool | None
) -> bool:
    """Whether the shadow of the bars was divided out.

    Parameters
    ----------
    corrected
        BARSHDW.
    status
        S_BARSHA.
    point
        Whether the slit was calibrated as a point source, whose bars the step leaves in.
    filed
        Whether BARSHADOW holds anything but 1. Where no keyword tells, it was divided out then.

    Examples
    --------
    >>> bars_divided_out(None, "COMPLETE", False, True), bars_divided_out(None, None, False, None)
    (True, False)
    """
    if corrected is not None:
        return corrected
    done = is_done(status)
    if done is not None:
        return done and not point and filed is not False
    return bool(filed)


def path_loss_divided_out(
    kind: str | None, status: str | None, point: bool, has_extension: bool
) -> str:
    """Which path loss was divided out: ``"POINT"``, ``"UNIFORM"`` or none.

    Parameters
    ----------
    kind
        PTHLOSS.
    status
        S_PTHLOS.
    point
        Whether the slit was calibrated as a point source.
    has_extension
        Whether there is a PATHLOSS_UN or PATHLOSS_PS. The step writes them where it corrects.

    Examples
    --------
    >>> path_loss_divided_out(None, "COMPLETE", True, True)
    'POINT'
    >>> path_loss_divided_out(None, "SKIPPED", False, False)
    ''
    """
    if kind:
        return "POINT" if kind.strip().upper() == "POINT" else "UNIFORM"
    if is_done(status) is False or not has_extension:
        return ""
    return "POINT" if point else "UNIFORM"


def wavelength_shifted(
    corrected: bool | None, status: str | None, point: bool, frames: Sequence[str]
) -> bool:
    """Whether WAVELENGTH is that of a source off the centre of its shutter.

    Parameters
    ----------
    corrected
        WAVECOR.
    status
        S_WAVCOR.
    point
        Whether the slit was calibrated as a point source.
    frames
        Of its WCS; the correction adds one.

    Examples
    --------
    >>> wavelength_shifted(None, "COMPLETE", True, []), wavelength_shifted(False, None, True, [])
    (True, False)
    """
    if "wavecorr_frame" in frames:
        return True
    if corrected is not None:
        return corrected
    return point and bool(is_done(status))


def surface_brightness(
    units: str, pixel_area: float | None, error_units: str | None = None
) -> tuple[str, float]:
    """Unit of the dataset, and what the file's flux is multiplied by to be in it.

    Parameters
    ----------
    units, error_units
        BUNIT of SCI and of ERR.
    pixel_area
        PIXAR_SR.

    Raises
    ------
    InputFileError
        Where the unit is no surface brightness, count rate or flux density, where that of the
        errors is another, and where the pixels' area is missing or impossible. It names no file.

    Examples
    --------
    >>> surface_brightness("MJy/sr", None), surface_brightness("MJy", 5e-13)
    (('MJy/sr', 1.0), ('MJy/sr', 2000000000000.0))
    """
    if error_units and error_units.strip() != units:
        raise InputFileError(
            "SCI and ERR in different units",
            expected="the same surface brightness, count rate or flux density in both",
            found=f"{units or 'none'} in SCI and {error_units} in ERR",
        )
    if is_rate(units):
        return units, 1.0
    density = _flux_density(units)
    brightness = _is_brightness(units)
    if density is None and not brightness:
        raise InputFileError(
            "flux that is not a surface brightness",
            expected="BUNIT of MJy/sr, MJy (a slit calibrated as a point source) or DN/s",
            found=units or "no BUNIT",
            remedy="calibrate with calwebb_spec2 of the official pipeline",
        )
    if brightness and pixel_area is None:
        return units, 1.0
    if pixel_area is None or not 0 < pixel_area < _LARGEST_PIXEL:
        raise InputFileError(
            f"{units} without the area of the pixels",
            expected=f"PIXAR_SR between 0 and {_LARGEST_PIXEL:g} (the photom step sets 1 where it "
            "finds none, and the flux is wrong by that)",
            found="no PIXAR_SR" if pixel_area is None else f"PIXAR_SR {pixel_area}",
            remedy="calibrate again with an area reference file that has this shutter",
        )
    return (units, 1.0) if density is None else ("MJy/sr", density / pixel_area)


def _unit(text: str) -> u.UnitBase | None:
    try:
        return u.Unit(text)
    except (ValueError, TypeError):
        return None


@cache
def _is_brightness(text: str) -> bool:
    unit = _unit(text)
    return unit is not None and unit.is_equivalent("MJy/sr")


@cache
def is_rate(text: str) -> bool:
    unit = _unit(text)
    return text == "DN/s" or (unit is not None and unit.is_equivalent("ct/s"))


@cache
def _flux_density(text: str) -> float | None:
    """MJy in a unit of flux density, None where it is none."""
    unit = _unit(text)
    is_density = unit is not None and bool(text) and unit.is_equivalent("MJy")
    return float(unit.to("MJy")) if unit is not None and is_density else None
