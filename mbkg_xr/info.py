"""What a programme holds: configurations, exposures, slits, sky, sizes, calibration, flags."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .blocks import reduce_blocks
from .errors import DatasetError
from .io import open_program
from .quality import flag_table
from .schema import occupied_shutters

__all__ = ["ProgramInfo", "info"]

#: Coordinates that the table of slits has.
SLIT_COLUMNS = (
    *("exposure", "detector", "slitlet", "nod", "n_shutters", "source_id", "source_name"),
    *("is_background", "source_shutter", "occupied", "sky_reason"),
    *("calibrated_as", "calibration", "subtracted", "filename"),
)


@dataclass(frozen=True)
class ProgramInfo:
    """What `info` found.

    Attributes
    ----------
    summary
        By configuration: numbers and names, which may be written as JSON.
    slits
        By configuration: a row a slit, with what was decided about it and why.
    """

    summary: dict[str, dict[str, Any]]
    slits: dict[str, pd.DataFrame]


def info(
    data: str | os.PathLike | Sequence[str | os.PathLike] | xr.DataTree | Mapping[str, xr.Dataset],
    *,
    flags: bool = False,
    **options: Any,
) -> ProgramInfo:
    """Say what a programme holds.

    Parameters
    ----------
    data
        Paths as for `open_program`, a tree from it, or slit datasets by name.
    flags
        Count quality flags too. That reads the quality of every slit; nothing else is computed
        but the wavelengths of one slit in each exposure, detector and number of shutters.
    **options
        Of `open_program`, where paths are given.

    Returns
    -------
    ProgramInfo
        ``summary`` by configuration: numbers of ``exposures``, ``slits``, ``slitlets``,
        ``sky_slits``, ``sky_slitlets``, ``sky_shutters`` (open shutters known to hold no source,
        over all slits), ``unknown_slits`` (without one); names of ``programs``, ``visits``,
        ``detectors``, ``nods``; ``shape`` and ``bytes`` of the pixels, padded; ``units``;
        ``wavelength`` (um, of the slits looked at); ``calibrated_as``, ``calibration``,
        ``subtracted`` and ``sky_reason`` (numbers of slits by what was found);
        ``calibration_steps``; ``flags`` (numbers of in-slit pixels by flag) or None; and ``notes``,
        what to know before going on.

    Raises
    ------
    DatasetError
        Where a tree holds no slits.
    MbkgError
        As from `open_program`.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=1)
    >>> found = mx.info({"prism-clear": ds}).summary["prism-clear"]
    >>> found["exposures"], found["slits"], found["sky_slits"], found["sky_shutters"]
    (3, 12, 3, 27)
    """
    if isinstance(data, xr.DataTree | Mapping):
        tree: xr.DataTree | Mapping[str, xr.Dataset] = data
    else:
        tree = open_program(data, **options)
    datasets = dict(_slit_datasets(tree))
    if not datasets:
        raise DatasetError("no slits to tell of", expected="at least one slit dataset")
    return ProgramInfo(
        {name: _summary(ds, flags) for name, ds in datasets.items()},
        {name: _table(ds) for name, ds in datasets.items()},
    )


def _slit_datasets(
    tree: xr.DataTree | Mapping[str, xr.Dataset],
) -> Iterator[tuple[str, xr.Dataset]]:
    if isinstance(tree, xr.DataTree):
        nodes = {node.path.strip("/"): node.to_dataset() for node in tree.subtree if node.has_data}
    else:
        nodes = dict(tree)
    for name, ds in nodes.items():
        if "flux" in ds and "slitlet" in ds.coords:  # masters have neither
            yield name or str(ds.attrs.get("configuration", "")), ds


def _summary(ds: xr.Dataset, flags: bool) -> dict[str, Any]:
    sky = ds["is_background"].values
    sky_shutters = _sky_shutters(ds)
    slitlets = _slitlets(ds)
    steps = [s for s in str(ds.attrs.get("calibration_steps", "")).split("; ") if s]
    counted = _flags(ds) if flags else None
    return {
        "programs": _names(ds, "program"),
        "visits": _names(ds, "visit"),
        "exposures": len(_names(ds, "exposure")),
        "detectors": _names(ds, "detector"),
        "nods": _names(ds, "nod"),
        "slits": ds.sizes["slit"],
        "slitlets": len(set(slitlets)),
        "sky_slits": int(sky.sum()),
        "sky_slitlets": len({s for s, is_sky in zip(slitlets, sky, strict=True) if is_sky}),
        "sky_shutters": int(sky_shutters.sum()),
        "unknown_slits": int((sky_shutters == 0).sum()),
        "shape": [ds.sizes["y"], ds.sizes["x"]],
        "bytes": int(sum(v.nbytes for v in ds.variables.values() if v.ndim == 3)),
        "units": str(ds["flux"].attrs["units"]),
        "wavelength": _wavelength_range(ds),
        "calibrated_as": _counts(ds, "calibrated_as"),
        "calibration": _counts(ds, "calibration"),
        "calibration_steps": steps,
        "subtracted": _counts(ds, "subtracted"),
        "sky_reason": _reasons(ds),
        "result": str(ds.attrs.get("background_method", "")) if "background" in ds else "",
        "flags": counted,
        "notes": list(_notes(ds, steps, counted)),
    }


def _notes(ds: xr.Dataset, steps: Sequence[str], flags: Mapping[str, int] | None) -> Iterator[str]:
    """What a user should know before going on."""
    subtracted = sum(_counts(ds, "subtracted").values())
    if subtracted:
        yield f"the background of {subtracted} slits is already subtracted: they hold no sky to fit"
    replaced = any(s.startswith("S_PXREPL COMPLETE") for s in steps)
    if replaced and flags is not None and not flags.get("FLUX_ESTIMATED"):
        yield (
            "S_PXREPL is COMPLETE but no pixel is flagged FLUX_ESTIMATED: replaced pixels cannot "
            "be told from measured ones, and count as sky"
        )
    uncorrected = any("path loss corrected in no slit" in c for c in _counts(ds, "calibration"))
    if uncorrected and len(_names(ds, "n_shutters")) > 1:
        yield (
            "path loss is corrected in no slit: slitlets of different numbers of shutters differ "
            "by it, and one master does not serve them all"
        )


def _names(ds: xr.Dataset, coordinate: str) -> list:
    return np.unique(ds[coordinate].values).tolist()


def _slitlets(ds: xr.Dataset) -> list[tuple]:
    """Slitlet numbers begin anew with each visit's shutters."""
    return list(zip(ds["visit"].values.tolist(), ds["slitlet"].values.tolist(), strict=True))


def _counts(ds: xr.Dataset, coordinate: str) -> dict[str, int]:
    """Numbers of slits by value, the most frequent first; what is empty is not counted."""
    if coordinate not in ds.coords:
        return {}
    values, numbers = np.unique(ds[coordinate].values.astype(str), return_counts=True)
    order = np.argsort(-numbers, kind="stable")
    return {str(values[i]): int(numbers[i]) for i in order if values[i]}


def _reasons(ds: xr.Dataset) -> dict[str, int]:
    """Numbers of slits by what decided about their sky, whatever the source's name."""
    kinds: dict[str, int] = {}
    for reason, number in _counts(ds, "sky_reason").items():
        kind = _kind_of_reason(reason)
        kinds[kind] = kinds.get(kind, 0) + number
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _kind_of_reason(reason: str) -> str:
    for start in ("metafile: source", "name", "shutter state", "virtual source"):
        if reason.startswith(start):
            return start
    return reason


def _sky_shutters(ds: xr.Dataset) -> NDArray[np.int64]:
    """Open shutters of each slit that are known to hold no source."""
    count = np.maximum(ds["n_shutters"].values, 1)
    first, last = -((count - 1) // 2), count // 2
    occupied = occupied_shutters(ds)[:, 0]
    taken = np.zeros(count.shape, np.int64)
    for i, row in enumerate(occupied):
        inside = {v for v in row.tolist() if first[i] <= v <= last[i]}
        taken[i] = len(inside)
    known = ds["is_background"].values | np.isfinite(ds["source_shutter"].values)
    return np.where(known, count - taken, 0)


def _wavelength_range(ds: xr.Dataset) -> list[float]:
    """Of one slit of each detector and disperser setting: enough to know the band."""
    keys = list(zip(ds["visit"].values.tolist(), ds["detector"].values.tolist(), strict=True))
    first = sorted({key: i for i, key in reversed(list(enumerate(keys)))}.values())
    values = ds["wavelength"].isel(slit=first).values
    if not np.isfinite(values).any():
        return []
    return [round(float(np.nanmin(values)), 4), round(float(np.nanmax(values)), 4)]


def _table(ds: xr.Dataset) -> pd.DataFrame:
    columns = {name: ds[name].values for name in SLIT_COLUMNS if name in ds.coords}
    return pd.DataFrame({**columns, "sky_shutters": _sky_shutters(ds)})


def _flags(ds: xr.Dataset) -> dict[str, int]:
    """In-slit pixels by flag, those with any, and all."""
    table = flag_table(ds["quality"])
    masks = np.array(list(table.values()), dtype=ds["quality"].dtype)
    sizes = xr.Dataset({"quality": ds["quality"].variable, "wavelength": ds["wavelength"].variable})

    def block(start: int, arrays: Sequence[NDArray], masks: NDArray) -> NDArray[np.int64]:
        quality, wavelength = arrays
        inside = quality[np.isfinite(wavelength)]
        return np.array(
            [inside.size, np.count_nonzero(inside), *(np.count_nonzero(inside & m) for m in masks)]
        )

    total = reduce_blocks(sizes, ["quality", "wavelength"], block, np.add, masks)
    names = ["pixels in slits", "of them flagged", *table]
    return {n: int(v) for n, v in zip(names, total.tolist(), strict=True) if v or n not in table}
