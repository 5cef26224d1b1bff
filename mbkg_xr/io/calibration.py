"""What the pixels of STScI products mean, by what the calibration did and did not do to them.

A product's data D follow from uniform sky B (MJy/sr) as

    D = B * area * (PATHLOSS_UN / path loss divided out) * (bars / bars divided out)

where area is PIXAR_SR in slits calibrated as point sources (MJy) and 1 in others (MJy/sr), and
what is "divided out" is 1 where that correction was not made. ``flux_factor`` takes care of the
area, ``response`` of the rest. Source: the steps ``photom`` (which multiplies), ``pathloss`` and
``barshadow`` (which divide by their extensions) of the official pipeline, which leave the bars in
slits of point sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputFileError
from .steps import (
    STEPS,
    bars_divided_out,
    calibrated_as,
    is_done,
    is_rate,
    path_loss_divided_out,
    subtracted_by,
    surface_brightness,
    wavelength_shifted,
)

__all__ = ["Calibration", "Facts", "calibration", "path_loss_known", "steps_in_words"]


@dataclass(frozen=True)
class Facts:
    """What a product says of how one slit was calibrated; None where it is silent.

    Attributes
    ----------
    steps
        Those of `STEPS` that the primary header has.
    units, error_units
        BUNIT of SCI and ERR.
    source_type, path_loss, bars_corrected, wavelength_corrected, pixel_area
        SRCTYPE, PTHLOSS, BARSHDW, WAVECOR and PIXAR_SR.
    shutter_state
        SHUTSTA; empty in fixed slits, which have no bars.
    extensions
        Which of PATHLOSS_UN, PATHLOSS_PS and BARSHADOW there are.
    bars_filed
        Whether BARSHADOW holds anything but 1; None where that was not looked up.
    frames
        Of its WCS.
    """

    steps: dict[str, str]
    units: str
    error_units: str | None = None
    source_type: str | None = None
    path_loss: str | None = None
    bars_corrected: bool | None = None
    wavelength_corrected: bool | None = None
    pixel_area: float | None = None
    shutter_state: str = ""
    extensions: tuple[str, ...] = ()
    bars_filed: bool | None = None
    frames: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """What was decided for one slit.

    Attributes
    ----------
    calibrated_as
        ``"EXTENDED"``, ``"POINT"``, or empty where nothing tells.
    units
        Of flux times `flux_factor`.
    flux_factor
        What the file's flux is multiplied by.
    path_loss
        What of path loss is left to `response`: ``"UN/PS"``, ``"UN"``, or empty.
    bars
        What of the bars is left to it: ``"BARSHADOW"`` (the extension), ``"profile"`` (the
        package's), or empty.
    shifted
        Whether WAVELENGTH was shifted for a point source, so that the sky's is that of the WCS.
    subtracted
        Keywords that say a background was subtracted.
    reason
        All of that in words.
    """

    calibrated_as: str
    units: str
    flux_factor: float
    path_loss: str
    bars: str
    shifted: bool
    subtracted: str
    reason: str

    @property
    def has_response(self) -> bool:
        return bool(self.path_loss or self.bars)


def calibration(
    facts: Facts, *, accept: Sequence[str] = (), common_loss: bool = False
) -> Calibration:
    """Decide what the pixels of one slit mean.

    Parameters
    ----------
    facts
        What the product says.
    accept
        Those of ``S_FLAT`` and ``S_PHOTOM`` that may contradict the pixels or be missing.
    common_loss
        Whether no slit of the configuration was corrected for path loss, nor can be: then their
        sky is what path loss leaves of it.

    Raises
    ------
    InputFileError
        Where uniform sky cannot be followed into these pixels. It names no file.
    """
    _check_flat(facts, accept)
    units, factor = surface_brightness(facts.units, facts.pixel_area, facts.error_units)
    _check_photometry(facts, accept)
    kind = calibrated_as(facts.source_type, facts.units)
    point = kind == "POINT"
    extensions = set(facts.extensions)
    divided = path_loss_divided_out(
        facts.path_loss,
        facts.steps.get("S_PTHLOS"),
        point,
        not extensions.isdisjoint({"PATHLOSS_UN", "PATHLOSS_PS"}),
    )
    subtracted = subtracted_by(facts.steps)
    # Nothing is fitted to slits already subtracted, or projected on them.
    loss = "" if subtracted else _path_loss_left(divided, extensions, common_loss)
    # Fixed slits have no bars.
    out = not facts.shutter_state or bars_divided_out(
        facts.bars_corrected, facts.steps.get("S_BARSHA"), point, facts.bars_filed
    )
    bars = "" if out or subtracted else "BARSHADOW" if facts.bars_filed else "profile"
    shifted = wavelength_shifted(
        facts.wavelength_corrected, facts.steps.get("S_WAVCOR"), point, facts.frames
    )
    words = [kind or "kind of source unknown"]
    if factor != 1:
        words.append(f"{facts.units} over the pixels' area")
    if subtracted:
        words.append(f"background subtracted before ({subtracted})")
    else:
        words += [_loss_in_words(divided, loss, common_loss), _bars_in_words(facts, bars)]
    if shifted:
        words.append("source's shift of wavelength undone")
    return Calibration(kind, units, factor, loss, bars, shifted, subtracted, ", ".join(words))


def _path_loss_left(divided: str, extensions: set[str], common: bool) -> str:
    if divided == "UNIFORM" or (not divided and common):
        return ""
    needed = {"PATHLOSS_UN", "PATHLOSS_PS"} if divided else {"PATHLOSS_UN"}
    missing = sorted(needed - extensions)
    if not missing:
        return "UN/PS" if divided else "UN"
    what = "calibrated as a point source" if divided else "not corrected for path loss"
    raise InputFileError(
        f"slit {what} without the path loss of uniform light",
        expected=" and ".join(sorted(needed)),
        found="no " + " ".join(missing),
        remedy="calibrate again with the pathloss step, or as EXTENDED",
    )


def _check_flat(facts: Facts, accept: Sequence[str]) -> None:
    if is_done(facts.steps.get("S_FLAT")) is False and "S_FLAT" not in accept:
        raise InputFileError(
            "not corrected by the flat field, and each slit has its own",
            expected="S_FLAT COMPLETE",
            found=f"S_FLAT {facts.steps['S_FLAT']}",
            remedy="run the flat_field step, or accept it (accept=['S_FLAT'], --accept S_FLAT)",
        )


def _check_photometry(facts: Facts, accept: Sequence[str]) -> None:
    done = is_done(facts.steps.get("S_PHOTOM"))
    if done is None or done != is_rate(facts.units) or "S_PHOTOM" in accept:
        return
    raise InputFileError(
        "unit and photometric calibration contradict each other",
        expected="MJy/sr or MJy where S_PHOTOM is COMPLETE, and DN/s where it is not",
        found=f"{facts.units} and S_PHOTOM {facts.steps['S_PHOTOM']}",
        remedy="run the photom step again, or accept it (accept=['S_PHOTOM'], --accept S_PHOTOM)",
    )


def _loss_in_words(divided: str, left: str, common: bool) -> str:
    if left:
        text = "PATHLOSS_UN/PATHLOSS_PS" if left == "UN/PS" else "PATHLOSS_UN"
        return f"path loss in response ({text})"
    if divided == "UNIFORM":
        return "path loss of uniform light divided out"
    return "path loss corrected in no slit" if common else "path loss not corrected"


def _bars_in_words(facts: Facts, bars: str) -> str:
    if not facts.shutter_state:
        return "no bars"
    if bars:
        text = "BARSHADOW" if bars == "BARSHADOW" else "mbkg_xr's profile"
        return f"bars in response ({text})"
    told = facts.bars_corrected is not None or facts.steps.get("S_BARSHA")
    return "bars divided out" + ("" if told else " (BARSHADOW is not all 1)")


def path_loss_known(facts: Facts) -> bool:
    """Whether a slit was corrected for path loss, or what uniform light loses is filed."""
    if "PATHLOSS_UN" in facts.extensions:
        return True
    point = calibrated_as(facts.source_type, facts.units) == "POINT"
    has_extension = "PATHLOSS_PS" in facts.extensions
    status = facts.steps.get("S_PTHLOS")
    return bool(path_loss_divided_out(facts.path_loss, status, point, has_extension))


def steps_in_words(files: Sequence[Facts]) -> str:
    """Statuses of `STEPS` over files, such as ``"S_FLAT COMPLETE; S_PXREPL SKIPPED (2 of 3)"``.

    Examples
    --------
    >>> one, two = (Facts({"S_FLAT": s}, "MJy/sr") for s in ("COMPLETE", "SKIPPED"))
    >>> steps_in_words([one, two, two])
    'S_FLAT COMPLETE (1 of 3); S_FLAT SKIPPED (2 of 3)'
    """
    texts = []
    for key in STEPS:
        statuses = [facts.steps[key] for facts in files if key in facts.steps]
        for status in sorted(set(statuses)):
            n = statuses.count(status)
            texts.append(f"{key} {status}" + ("" if n == len(files) else f" ({n} of {len(files)})"))
    return "; ".join(texts)
