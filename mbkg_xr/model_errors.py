"""Errors of sky pixels by the master: photon noise of the background, not of a pixel's own counts.

Errors of products follow each pixel's counts, noise and all: a pixel that came out low has a small
error, so that residuals over such errors are low on the whole, and their sums over many pixels
tell of that rather than of the sky. Of the truth itself `stack` is then 1.12 at a signal to noise
of 7 a pixel, and 1.00 over errors such as these (`benchmarks/accuracy --only stack`).
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits
from .errors import DatasetError
from .master import master_grid
from .moments import time_factors
from .parts import has_parts, part_index
from .pass_kernel import READ_STEPS
from .schema import PIXEL_DIMS
from .spans import SpanGrid

__all__ = ["sky_errors"]


def sky_errors(ds: xr.Dataset, master: xr.Dataset) -> xr.DataArray:
    """Error of every pixel if it holds nothing but its background. Lazy.

    The root of (read noise + photon gain x background) x scatter^2 + background_error^2, the
    photon gain (of the pixel's class of read noise) and the scatter as the master found them.

    Parameters
    ----------
    ds
        From `subtract`.
    master
        From `fit_master`.

    Returns
    -------
    xarray.DataArray
        ``(slit, y, x)`` float32, in the units of the flux; NaN where there is no background, and
        the error as it was where the photon noise is not known.

    Raises
    ------
    DatasetError
        Where there is no background, or the master does not know the noise.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> from mbkg_xr.model_errors import sky_errors
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> sub = mx.subtract(ds, master)
    >>> centres = mx.sky_centres(mx.residuals(sub))
    >>> ratio = (sky_errors(sub, master) / sub.error).where(centres).compute().median()
    >>> bool(1.0 < ratio < 1.3)  # pixels scatter 1.2 times their errors here
    True
    """
    grid = master_grid(master)
    missing = [
        name
        for name, where in (
            ("background", ds),
            ("photon_gain", master),
            ("read_floor", master),
            ("read_class_gain", master),
        )
        if name not in where
    ]
    if missing:
        raise DatasetError(
            "the noise of the sky is not known",
            expected="slits from subtract, and a master that was fitted to pixels",
            found=f"no {' '.join(missing)}",
        )
    if has_parts(master):
        part, scatter = np.maximum(part_index(ds, master), 0), master["scatter"].values
    else:
        part = np.zeros(ds.sizes["slit"], dtype=np.int64)
        scatter = np.array([master.attrs["scatter"]])
    names = ["error", "background", "background_error", "wavelength"]
    more = [name for name in ("var_rnoise", "response") if name in ds.variables]
    values = map_slits(
        _errors,
        ds["flux"],
        part,
        time_factors(ds),
        *[ds[name].data for name in names + more],
        dtype=np.float32,
        more=" ".join(more),
        grid=grid,
        gain=np.atleast_2d(master["photon_gain"].values),
        floor=np.atleast_2d(master["read_floor"].values),
        by_class=np.atleast_2d(master["read_class_gain"].values),
        scatter=scatter.astype(np.float64),
    )
    attrs = {"long_name": "error of sky by the master", "units": ds["flux"].attrs["units"]}
    return xr.DataArray(values, dims=PIXEL_DIMS, attrs=attrs)


def _errors(
    part: NDArray,
    time: NDArray,
    error: NDArray,
    background: NDArray,
    background_error: NDArray,
    wavelength: NDArray,
    *others: NDArray,
    more: str,
    grid: SpanGrid,
    gain: NDArray,
    floor: NDArray,
    by_class: NDArray,
    scatter: NDArray,
) -> NDArray:
    given = dict(zip(more.split(), others, strict=True))
    response = np.asarray(given.get("response", 1.0), dtype=np.float64)
    u = grid.pixel_coordinate(wavelength)
    span = np.clip(np.nan_to_num(u).astype(np.int64), 0, grid.size - 1)
    own = part.astype(np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        light = np.maximum(background.astype(np.float64), 0)
        usual = floor[own, span] * response**2
        read = given.get("var_rnoise", usual)
        share: NDArray | float = 1.0
        if "var_rnoise" in given:
            times = np.where(usual > 0, read / np.where(usual > 0, usual, 1.0), 0.0)
            share = by_class[own, np.searchsorted(READ_STEPS, np.nan_to_num(times))]
        # Gain and floor are of flux a unit of uniform sky.
        noise = read + share * gain[own, span] * time * light * response
        other = background_error.astype(np.float64)
        known = np.isfinite(gain[own, span]) & (np.asarray(read) > 0)
        model = np.sqrt(noise * scatter[own] ** 2 + other**2)
        out = np.where(known, model, error)
    # What the product gives no usable error is no measurement.
    return np.where(error > 0, out, np.nan)
