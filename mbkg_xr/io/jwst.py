"""STScI products in: ``_cal`` files and single-slit products, as lazy slit datasets.

Opening reads headers and the metadata of the ASDF extension (`mbkg_xr.io.jwst_file`), and decides
what the pixels mean and which of them are sky. Pixels are read by offset, and yrel from the file's
own WCS, when they are asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..barshadow import reference_profile
from ..errors import InputFileError, InputFilesError
from ..quality import JWST_FLAGS
from .calibration import Calibration, Facts, calibration, path_loss_known, steps_in_words
from .choices import Choices
from .fits import by_configuration, lazy_dataset, scan_files
from .jwst_file import SlitSource, read_plane, scan_file
from .lazy import Chunks
from .msa import Metafiles
from .sky import Verdict, judge
from .wcs import wcs_wavelength, wcs_yrel

__all__ = ["Slit", "SlitSource", "dataset", "decide", "open_slits", "scan_file"]

# What flux is scaled by, scales these to which power.
_SCALED = {"flux": 1, "error": 1, "var_rnoise": 2, "var_poisson": 2}


@dataclass(frozen=True)
class Slit:
    """One slit: the facts of its product, and what was decided about it."""

    source: SlitSource
    calibration: Calibration
    coords: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.shape

    @property
    def units(self) -> str:
        return self.calibration.units

    @property
    def configuration(self) -> str:
        return self.source.configuration


# ------------------------------------------------------------------------------------------------
# Decisions


def decide(
    sources: Sequence[SlitSource],
    *,
    choice: Choices | None = None,
    metafiles: Sequence[str | Path] = (),
    on_error: str = "raise",
) -> list[Slit]:
    """Decide what pixels mean and which slits are sky.

    Parameters
    ----------
    sources
        From `scan_file`, of any number of files; the slits keep their order.
    choice
        What the user decided.
    metafiles
        MSA metafiles that lie among the inputs.
    on_error
        ``"raise"`` one error that reports all slits that cannot be used, or ``"warn"`` and keep
        the others.

    Returns
    -------
    list of Slit

    Raises
    ------
    InputFileError, InputFilesError
        Where uniform sky cannot be followed into the pixels of slits, or a metafile cannot be
        used.
    ParameterError
        Where rows of the user's table of sky slits contradict each other.
    """
    choice = choice or Choices()
    calibrations = _calibrations(sources, choice, on_error)
    at_hand = Metafiles(choice.metafiles, metafiles, on_error=on_error)
    verdicts = _verdicts(sources, choice, at_hand)
    out = []
    for source, found, verdict in zip(sources, calibrations, verdicts, strict=True):
        if found is None:
            continue
        coords = {
            **source.coords,
            **verdict.coords,
            "path": source.path,
            "calibrated_as": found.calibrated_as,
            "flux_factor": found.flux_factor,
            "calibration": found.reason,
            "subtracted": found.subtracted,
        }
        out.append(Slit(source, found, coords))
    return out


def _calibrations(
    sources: Sequence[SlitSource], choice: Choices, on_error: str
) -> list[Calibration | None]:
    known = {s.configuration for s in sources if path_loss_known(s.facts)}
    refused: dict[tuple, list[int]] = {}
    errors: dict[tuple, InputFileError] = {}
    found: list[Calibration | None] = []
    same: dict[tuple, Calibration] = {}  # most slits of a programme are calibrated alike
    for source in sources:
        common = source.configuration not in known
        told = (common, *map(_hashable, vars(source.facts).values()))
        try:
            if told not in same:
                same[told] = calibration(source.facts, accept=choice.accept, common_loss=common)
            found.append(same[told])
        except InputFileError as error:
            found.append(None)
            key = (source.coords["filename"], str(error))
            refused.setdefault(key, []).append(source.coords["slitlet"])
            errors.setdefault(key, error)
    problems = [
        InputFileError(
            error.cause,
            where=f"{key[0]}, {_slitlets(refused[key])}",
            expected=error.expected,
            found=error.found,
            remedy=error.remedy,
        )
        for key, error in errors.items()
    ]
    if problems and (on_error == "raise" or not any(found)):
        raise problems[0] if len(problems) == 1 else InputFilesError(list(problems))
    for problem in problems:
        warnings.warn(f"left out: {problem}", stacklevel=4)
    return found


def _hashable(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, dict) else value


def _slitlets(numbers: Sequence[int]) -> str:
    return f"slitlet{'s' * (len(numbers) > 1)} " + ", ".join(map(str, numbers))


def _verdicts(
    sources: Sequence[SlitSource], choice: Choices, metafiles: Metafiles
) -> list[Verdict]:
    metafiles.check(s.coords["visit"] for s in sources)
    verdicts: list[Verdict] = []
    conflicts: dict[str, list[str]] = {}
    for source in sources:
        slitlets = metafiles.slitlets(
            source.path,
            source.metafile,
            source.coords["visit"],
            source.metadata_id,
            source.coords["nod"],
        )
        verdict = judge(
            source.coords,
            source.facts.shutter_state,
            slitlets,
            user=choice.user,
            virtual_sky=choice.virtual_sky,
        )
        verdicts.append(verdict)
        file = source.coords["filename"]
        if isinstance(slitlets, str) and slitlets:
            conflicts.setdefault(file, []).append(slitlets)
        elif verdict.conflict:
            conflicts.setdefault(file, []).append(
                f"slitlet {source.coords['slitlet']}: {verdict.conflict}"
            )
    for file, texts in conflicts.items():
        several = list(dict.fromkeys(texts))
        more = f" and {len(several) - 5} others" if len(several) > 5 else ""
        warnings.warn(
            f"MSA metafile and product do not agree [{file}]: " + "; ".join(several[:5]) + more,
            stacklevel=4,
        )
    return verdicts


# ------------------------------------------------------------------------------------------------
# Pixels, when asked for


def _planes(slits: Sequence[Slit], variable: str) -> Iterator[NDArray]:
    """Pixels of slits, one after the other."""
    if variable == "yrel":
        yrels = wcs_yrel([s.source for s in slits])
        return (_inside(s, yrel) for s, yrel in zip(slits, yrels, strict=True))
    if variable == "wavelength":
        return _wavelengths(slits)
    if variable == "response":
        return _responses(slits)
    if variable in _SCALED:
        return (_scaled(s, variable) for s in slits)
    return (read_plane(s.source, variable) for s in slits)


def _inside(slit: Slit, values: NDArray) -> NDArray[np.float32]:
    """Values where the product has a wavelength, NaN elsewhere."""
    inside = np.isfinite(read_plane(slit.source, "wavelength"))
    return np.where(inside, values, np.nan).astype(np.float32)


def _scaled(slit: Slit, variable: str) -> NDArray[np.float32]:
    values = read_plane(slit.source, variable)
    factor = slit.calibration.flux_factor
    if factor == 1:
        return values
    # What bad pixels hold may leave the range of float32, and is no use anyway.
    with np.errstate(over="ignore", invalid="ignore"):
        return (values.astype(np.float64) * factor ** _SCALED[variable]).astype(np.float32)


def _wavelengths(slits: Sequence[Slit]) -> Iterator[NDArray]:
    """Wavelengths of sky: those filed, but for sources off the centre of their shutter."""
    unshifted = wcs_wavelength([s.source for s in slits if s.calibration.shifted])
    for slit in slits:
        if slit.calibration.shifted:
            yield _inside(slit, next(unshifted))
        else:
            yield read_plane(slit.source, "wavelength")


def _responses(slits: Sequence[Slit]) -> Iterator[NDArray]:
    """Signal of uniform sky in the pixels as they are calibrated, per unit of itself."""
    yrels = wcs_yrel([s.source for s in slits if s.calibration.bars == "profile"])
    for slit in slits:
        source, found = slit.source, slit.calibration
        response = np.ones(slit.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            if found.path_loss:
                response *= read_plane(source, "pathloss_uniform")
            if found.path_loss == "UN/PS":
                response /= read_plane(source, "pathloss_point")
        if found.bars == "BARSHADOW":
            response *= read_plane(source, "barshadow")
        elif found.bars:
            response *= reference_profile(next(yrels), source.facts.shutter_state)
        response[~(np.isfinite(response) & (response > 0))] = np.nan
        yield _inside(slit, response)


# ------------------------------------------------------------------------------------------------
# Datasets


def open_slits(
    paths: Sequence[str | Path], *, chunks: Chunks = 32, on_error: str = "raise"
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
    slits = decide(scan_files(paths, scan_file, on_error=on_error), on_error=on_error)
    groups = by_configuration(slits)
    return {name: dataset(group, chunks=chunks) for name, group in groups.items()}


def dataset(slits: Sequence[Slit], *, chunks: Chunks = 32) -> xr.Dataset:
    """A lazy slit dataset of slits of one configuration, from `decide`.

    Raises
    ------
    InputFileError
        Where slits have different units.
    """
    common = set.intersection(*(set(s.source.offsets) for s in slits))
    variables = ["flux", "error", "quality", "wavelength", "yrel"]
    if {"var_rnoise", "var_poisson"} <= common:
        variables += ["var_rnoise", "var_poisson"]
    if any(s.calibration.has_response for s in slits):
        variables.append("response")
    return lazy_dataset(
        slits,
        _planes,
        variables,
        chunks=chunks,
        flags=JWST_FLAGS,
        quality_dtype=np.uint32,
        attrs={"calibration_steps": steps_in_words(_facts_by_file(slits))},
    )


def _facts_by_file(slits: Iterable[Slit]) -> list[Facts]:
    return list({s.source.path: s.source.facts for s in slits}.values())
