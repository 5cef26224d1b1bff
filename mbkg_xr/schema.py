"""The data contract: what a slit dataset holds, in which units, dtypes and dimensions.

One *slit* is one slitlet in one exposure on one detector. A slit dataset has the dimensions
``(slit, y, x)``: y is the detector row (across dispersion) and x the detector column of the
cut-out. Slits of unequal size are padded with NaN, and their padding is flagged "do not use".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import DatasetError
from .quality import JWST_FLAGS, flag_attrs, flag_table

__all__ = [
    "PIXEL_VARIABLES",
    "SCHEMA_VERSION",
    "SHUTTER_CENTRES",
    "SLIT_COORDS",
    "SUBTRACTED",
    "UNSUBTRACTED",
    "already_subtracted",
    "configuration_name",
    "occupied_shutters",
    "refuse_subtracted",
    "slit_dataset",
    "slit_label",
    "validate",
]

SCHEMA_VERSION = "1.0"

#: yrel windows at the centres of a three-shutter slitlet, clear of the bars between shutters.
SHUTTER_CENTRES = ((-1.2, -0.8), (-0.2, 0.2), (0.8, 1.2))
#: Half widths in yrel of what is clear of the bars, and of all rows but those on a bar.
CENTRE, OPEN = 0.2, 0.4

#: Ending of the names of configurations whose slits came without their sky.
SUBTRACTED = "-subtracted"

#: How to make products that hold their sky. Names of the steps: `Spec2Pipeline.step_defs` of jwst.
UNSUBTRACTED = (
    "make them anew without it, for STScI: strun calwebb_spec2 X_rate.fits "
    "--steps.bkg_subtract.skip=true --steps.master_background_mos.skip=true, for NIPS: without its "
    "background steps; or compare these with a result (mbkg-xr compare RESULT --nods FILES)"
)

PIXEL_DIMS = ("slit", "y", "x")
#: Of moments, which are stored and read as pixels are: in chunks of whole slits.
MOMENT_DIMS = ("slit", "span", "moment")

# name: (is a coordinate, required, attributes). All are float32 (slit, y, x), NaN outside the slit.
PIXEL_VARIABLES: Mapping[str, tuple[bool, bool, dict]] = {
    "flux": (False, True, {"long_name": "calibrated signal"}),
    "error": (False, True, {"long_name": "standard deviation of flux"}),
    "var_rnoise": (False, False, {"long_name": "variance of flux by read noise"}),
    "var_poisson": (False, False, {"long_name": "variance of flux by photon noise"}),
    "wavelength": (True, True, {"long_name": "wavelength of the pixel centre", "units": "um"}),
    "yrel": (
        True,
        True,
        {"long_name": "position along the slit, 0 at the middle shutter", "units": "shutter pitch"},
    ),
    "response": (
        True,
        False,
        {"long_name": "calibrated signal per unit of uniform sky", "units": "1"},
    ),
}

# name: (dtype kind, value where unknown, attributes)
SLIT_COORDS: Mapping[str, tuple[str, Any, dict]] = {
    "exposure": ("U", "", {"long_name": "exposure identifier, without detector"}),
    "detector": ("U", "", {"long_name": "detector"}),
    "slitlet": ("i", -1, {"long_name": "MSA slitlet number"}),
    "source_id": ("i", 0, {"long_name": "source number"}),
    "source_name": ("U", "", {"long_name": "source name"}),
    "nod": ("i", -1, {"long_name": "position in the dither pattern"}),
    "program": ("U", "", {"long_name": "programme"}),
    "visit": ("U", "", {"long_name": "visit within the programme"}),
    "quadrant": ("i", -1, {"long_name": "MSA quadrant"}),
    "shutter_row": ("i", -1, {"long_name": "MSA row (dispersion direction) of the slitlet"}),
    "shutter_column": ("i", -1, {"long_name": "MSA column of the slitlet's middle shutter"}),
    "n_shutters": ("i", -1, {"long_name": "open shutters of the slitlet"}),
    "exposure_time": ("f", np.nan, {"long_name": "effective exposure time", "units": "s"}),
    "mjd": ("f", np.nan, {"long_name": "mid-exposure time", "units": "d"}),
    "is_background": ("b", False, {"long_name": "no source in any shutter"}),
    "source_shutter": (
        "f4",
        np.nan,
        {"long_name": "yrel of the shutter that holds the source", "units": "shutter pitch"},
    ),
    "x_start": ("i", 0, {"long_name": "detector column of the first pixel, from 0"}),
    "y_start": ("i", 0, {"long_name": "detector row of the first pixel, from 0"}),
    "filename": ("U", "", {"long_name": "product the slit was read from"}),
    "subtracted": ("U", "", {"long_name": "keywords that say that a background was subtracted"}),
    "path": ("U", "", {"long_name": "where that product was"}),
    "occupied": ("U", "", {"long_name": "yrel of further shutters that are no sky"}),
    "sky_reason": ("U", "", {"long_name": "what decided is_background and source_shutter"}),
    "calibrated_as": ("U", "", {"long_name": "kind of source the slit was calibrated for"}),
    "calibration": ("U", "", {"long_name": "how the slit was taken to be calibrated"}),
    "flux_factor": ("f", 1.0, {"long_name": "what the product's flux was multiplied by"}),
}
_DTYPES = {"U": str, "i": np.int64, "f": np.float64, "f4": np.float32, "b": np.bool_}
SLIT_IDENTITY = ("exposure", "detector", "slitlet")


def configuration_name(grating: str, filter_: str) -> str:
    """Name of a disperser/filter pair, as used for tree nodes and store groups.

    Examples
    --------
    >>> configuration_name("PRISM", "CLEAR")
    'prism-clear'
    """
    return f"{grating}-{filter_}".strip().lower()


def slit_dataset(
    pixels: Mapping[str, Any],
    quality: Any,
    coords: Mapping[str, Any],
    *,
    units: str,
    configuration: str,
    flags: Mapping[str, int] = JWST_FLAGS,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Assemble a slit dataset that keeps the contract.

    Parameters
    ----------
    pixels
        ``(slit, y, x)`` arrays (numpy or dask) by name; those of `PIXEL_VARIABLES` get their
        standard attributes, any others (such as a simulation's truth) are kept as data.
    quality
        ``(slit, y, x)`` unsigned integers.
    coords
        ``(slit,)`` sequences by the names of `SLIT_COORDS`. A missing one is filled with its
        "unknown" value.
    units
        Units of ``flux`` and ``error``, as astropy writes them.
    configuration
        As from `configuration_name`.
    flags
        The quality table.
    attrs
        Further attributes of the dataset.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    DatasetError
        Where the contract is not kept; all problems are listed.
    """
    data: dict[str, Any] = {}
    coord: dict[str, Any] = {}
    for name, values in pixels.items():
        is_coord, _, standard = PIXEL_VARIABLES.get(name, (False, False, {}))
        extra = dict(standard)
        if name in ("flux", "error"):
            extra["units"] = units
        elif name.startswith("var_"):
            extra["units"] = f"({units})^2"
        (coord if is_coord else data)[name] = (PIXEL_DIMS, values, extra)
    n = next(iter(pixels.values())).shape[0]
    coord["quality"] = (PIXEL_DIMS, quality, flag_attrs(flags, quality.dtype))
    for name, (kind, unknown, extra) in SLIT_COORDS.items():
        values = coords.get(name, [unknown] * n)
        coord[name] = ("slit", np.asarray(values, dtype=_DTYPES[kind]), dict(extra))
    for name in coords.keys() - SLIT_COORDS.keys():
        coord[name] = ("slit", np.asarray(coords[name]))
    ds = xr.Dataset(
        data,
        coord,
        attrs={
            "configuration": configuration,
            "mbkg_xr_schema": SCHEMA_VERSION,
            **(attrs or {}),
        },
    )
    validate(ds)
    return ds


def slit_label(ds: xr.Dataset, index: int) -> str:
    """How messages name one slit: file or exposure, detector and slitlet."""
    one = {k: ds[k].values[index] for k in (*SLIT_IDENTITY, "filename") if k in ds.coords}
    name = one.get("filename") or f"{one.get('exposure', '?')} {one.get('detector', '?')}"
    return f"{name}, slitlet {one.get('slitlet', index)}"


def occupied_shutters(ds: xr.Dataset) -> NDArray[np.float32]:
    """Shutters that are no sky: they hold a source, or are closed.

    Returns
    -------
    numpy.ndarray
        ``(slit, 1, n)``: yrel of such shutters, filled up with NaN.

    Examples
    --------
    >>> slits = {"is_background": [False, True], "source_shutter": [1, 0], "occupied": ["", "-1"]}
    >>> occupied_shutters(xr.Dataset({k: ("slit", v) for k, v in slits.items()})).tolist()
    [[[1.0]], [[-1.0]]]
    """
    sky, shutter = (ds[name].values for name in ("is_background", "source_shutter"))
    own = np.where(sky, np.nan, shutter)[:, None]
    if "occupied" not in ds.variables:
        return own[:, None, :].astype(np.float32)
    # Few say different things, of however many there are.
    texts, which = np.unique(ds["occupied"].values.astype(str), return_inverse=True)
    rows = [[float(v) for v in text.split()] for text in texts.tolist()]
    others = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for i, row in enumerate(rows):
        others[i, : len(row)] = row
    out = np.concatenate([own, others[which]], axis=1)
    out = np.take_along_axis(out, np.argsort(np.isnan(out), axis=1, kind="stable"), axis=1)
    used = int((~np.isnan(out)).sum(axis=1).max(initial=0))
    return out[:, None, : max(used, 1)].astype(np.float32)


def refuse_subtracted(ds: xr.Dataset) -> None:
    """Raise where a background was already subtracted: such slits hold no sky.

    Raises
    ------
    DatasetError
    """
    where = str(ds.attrs.get("configuration", "")) or None
    if "background" in ds:
        raise DatasetError(
            "the background is already subtracted",
            where=where,
            expected="slits as calibrated",
            found=f"a result ({ds.attrs.get('background_method', 'background present')})",
            remedy="use the dataset from before the subtraction",
        )
    said = already_subtracted(ds)
    if not said.any():
        return
    index = np.flatnonzero(said)
    others = f" and {index.size - 1} others" if index.size > 1 else ""
    raise DatasetError(
        "the background of these slits is already subtracted",
        where=slit_label(ds, int(index[0])) + others,
        expected="slits with their sky",
        found="marked so by " + " ".join(np.unique(ds["subtracted"].values[index])),
        remedy=UNSUBTRACTED,
    )


def already_subtracted(ds: xr.Dataset) -> np.ndarray:
    """Which slits came without their sky, (slit,) bool."""
    if "subtracted" not in ds.coords:
        return np.zeros(ds.sizes["slit"], dtype=bool)
    return ds["subtracted"].values.astype(str) != ""


def validate(ds: xr.Dataset) -> None:
    """Check the contract without touching a pixel, and report every breach at once.

    Raises
    ------
    DatasetError
    """
    problems = []
    for name, (is_coord, required, _) in PIXEL_VARIABLES.items():
        if name not in ds.variables:
            if required:
                problems.append(f"{name} is missing")
            continue
        if ds[name].dims != PIXEL_DIMS:
            problems.append(f"{name} has dims {ds[name].dims}, not {PIXEL_DIMS}")
        if ds[name].dtype != np.float32:
            problems.append(f"{name} is {ds[name].dtype}, not float32")
        if is_coord != (name in ds.coords):
            problems.append(f"{name} should be a {'coordinate' if is_coord else 'data variable'}")
    if "quality" not in ds.coords:
        problems.append("coordinate quality is missing")
    else:
        if ds["quality"].dtype not in (np.uint32, np.uint64):
            problems.append(f"quality is {ds['quality'].dtype}, not uint32 or uint64")
        flag_table(ds["quality"])
    problems += [f"coordinate {n} is missing" for n in SLIT_COORDS if n not in ds.coords]
    if "flux" in ds and not ds["flux"].attrs.get("units"):
        problems.append("flux has no units")
    if not ds.attrs.get("configuration"):
        problems.append("attribute configuration is missing")
    if not problems:
        keys = list(zip(*(ds[k].values.tolist() for k in SLIT_IDENTITY), strict=True))
        twice = sorted({k for k in keys if keys.count(k) > 1}) if len(set(keys)) < len(keys) else []
        for key in twice:
            files = [slit_label(ds, i) for i, k in enumerate(keys) if k == key]
            problems.append(f"slit {key} occurs more than once ({' and '.join(files)})")
    if problems:
        raise DatasetError(
            "not a slit dataset",
            expected="the contract of mbkg_xr.schema",
            found="; ".join(problems),
            remedy="open products with mbkg_xr.open_program or build with mbkg_xr.schema",
        )
