"""Data minus background."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .background import ratio_pixels, subtract_pixels
from .blocks import map_slits
from .errors import DatasetError
from .kernels import kernel
from .master import identity
from .project import (
    NO_RESPONSE,
    ExactMaster,
    check_master,
    exact_master,
    named,
    project_master,
)
from .quality import do_not_use
from .schema import PIXEL_DIMS, refuse_subtracted
from .skies import has_skies

__all__ = ["before_subtraction", "normalised", "subtract", "taken_off"]


def subtract(
    ds: xr.Dataset,
    master: xr.Dataset,
    *,
    method: str = "exact",
    heldout: bool = False,
    residual: bool = False,
) -> xr.Dataset:
    """Subtract the master background from every slit. Lazy.

    Parameters
    ----------
    ds
        A slit dataset.
    master
        From `fit_master`.
    method, heldout
        As in `project_master`.
    residual
        Add the normalised residual as well, as `residuals` does: in the same visit of the pixels.

    Returns
    -------
    xarray.Dataset
        The dataset with ``flux`` subtracted, ``error`` the root of the sum of the squares of the
        pixel's own error and the background's, ``background`` and ``background_error`` added, and
        ``residual`` where asked for.
        Where there is no background, flux is NaN and ``quality`` has DO_NOT_USE set: in-slit
        pixels that are flagged for this reason are those whose ``background`` is NaN.

    Raises
    ------
    DatasetError
        Where dataset and master do not belong together, or the background is subtracted already.
    ParameterError
        On an unknown method, or ``rebin2d`` of held-out masters.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> sub = mx.subtract(ds, mx.fit_master(ds))
    >>> sorted(set(sub.data_vars) - set(ds.data_vars))
    ['background', 'background_error']
    """
    refuse_subtracted(ds)
    if method == "exact" and not has_skies(master):
        out = _exactly(ds, master, heldout, residual)
    else:
        out = taken_off(ds, project_master(ds, master, method=method, heldout=heldout))
        out = normalised(out, out["error"]) if residual else out
    out.attrs["background_method"] = "master (held out)" if heldout else "master"
    out.attrs |= identity(master)
    return out


def _exactly(ds: xr.Dataset, master: xr.Dataset, heldout: bool, residual: bool) -> xr.Dataset:
    """Projected and taken off in one visit of the pixels."""
    check_master(ds, master)
    arrays, exact = exact_master(ds, master, heldout=heldout)
    old = ds["quality"]
    flux, error, quality, *others = map_slits(
        _subtract_block,
        ds["flux"],
        *(ds[name].data for name in ("flux", "error", "quality")),
        *arrays,
        dtype=(np.float32, np.float32, old.dtype, *[np.float32] * (3 if residual else 2)),
        bit=do_not_use(old),
        exact=exact,
        residual=residual,
    )
    out = ds.assign(named(others[:2], ds["flux"].attrs["units"]).data_vars)
    out = _with(out, ds, flux, error, quality)
    return _with_residual(out, others[2]) if residual else out


def _subtract_block(
    flux: NDArray,
    error: NDArray,
    quality: NDArray,
    which: NDArray,
    slits: NDArray,
    wavelength: NDArray,
    yrel: NDArray,
    response: NDArray = NO_RESPONSE,
    *,
    bit: int,
    exact: ExactMaster,
    residual: bool,
) -> tuple[NDArray, ...]:
    made = [np.empty(flux.shape, dtype=np.float32) for _ in range(4)]
    ratio = np.empty(flux.shape if residual else (0, 0, 0), dtype=np.float32)
    flags = np.empty(quality.shape, dtype=quality.dtype)
    place, data = (
        [np.ascontiguousarray(a) for a in some]
        for some in ((wavelength, yrel, response), (flux, error, quality))
    )
    subtract_pixels(
        *place, *exact.arguments(which, slits), *data, quality.dtype.type(bit),
        made[2], made[3], made[0], made[1], flags, ratio,
    )  # fmt: skip
    return made[0], made[1], flags, made[2], made[3], *([ratio] if residual else [])


def normalised(ds: xr.Dataset, error: xr.DataArray) -> xr.Dataset:
    """With the residual over an error as a variable. Lazy."""
    ratio = map_slits(_ratio, ds["flux"], ds["flux"].data, error.data, dtype=np.float32)
    return _with_residual(ds, ratio)


def _with_residual(ds: xr.Dataset, values: Any) -> xr.Dataset:
    attrs = {"long_name": "normalised residual", "units": "1"}
    return ds.assign(residual=(PIXEL_DIMS, values, attrs))


def _ratio(flux: NDArray, error: NDArray) -> NDArray:
    out = np.empty(flux.shape, dtype=np.float32)
    flat = (np.ascontiguousarray(a).reshape(-1) for a in (flux, error))
    ratio_pixels(*flat, out.reshape(-1))
    return out


def taken_off(ds: xr.Dataset, projected: xr.Dataset) -> xr.Dataset:
    """Take a background off, grow the errors, flag what has no background."""
    old = ds["quality"]
    flux, error, quality = map_slits(
        _take_off,
        ds["flux"],
        *[ds[name].data for name in ("flux", "error", "wavelength", "quality")],
        *[projected[name].data for name in ("background", "background_error")],
        dtype=(np.float32, np.float32, old.dtype),
        bit=do_not_use(old),
    )
    return _with(ds.assign(projected.data_vars), ds, flux, error, quality)


def _with(out: xr.Dataset, ds: xr.Dataset, flux: Any, error: Any, quality: Any) -> xr.Dataset:
    out["flux"] = (PIXEL_DIMS, flux, ds["flux"].attrs)
    out["error"] = (PIXEL_DIMS, error, ds["error"].attrs)
    return out.assign_coords(quality=(PIXEL_DIMS, quality, ds["quality"].attrs))


def _take_off(
    flux: NDArray,
    error: NDArray,
    wavelength: NDArray,
    quality: NDArray,
    background: NDArray,
    background_error: NDArray,
    *,
    bit: int,
) -> tuple[NDArray, ...]:
    """Flux without the background, its error, and the flags."""
    out = tuple(np.empty(a.shape, a.dtype) for a in (flux, error, quality))
    both = (np.ascontiguousarray(b).ravel() for b in (background, background_error))
    flat = (np.ascontiguousarray(a).ravel() for a in (flux, error, wavelength, quality))
    _take_off_pixels(*flat, *both, quality.dtype.type(bit), *[o.reshape(-1) for o in out])
    return out


@kernel
def _take_off_pixels(
    flux, error, wavelength, quality, background, background_error, bit,
    new_flux, new_error, new_quality,
):  # pragma: no cover - compiled  # fmt: skip
    for i in range(flux.size):
        new_flux[i] = flux[i] - background[i]
        # In double precision: bad pixels carry errors of 1e27.
        a, b = np.float64(error[i]), np.float64(background_error[i])
        new_error[i] = np.sqrt(a * a + b * b)
        missing = np.isfinite(wavelength[i]) and not np.isfinite(background[i])
        new_quality[i] = quality[i] | bit if missing else quality[i]


def before_subtraction(ds: xr.Dataset) -> xr.Dataset:
    """The slits of a result as they were: background added, errors without its own. Lazy.

    Parameters
    ----------
    ds
        From `subtract` or `subtract_nods`.

    Returns
    -------
    xarray.Dataset
        Without what the subtraction and `residuals` added. Pixels without a background are lost:
        NaN, and flagged as in the result.

    Raises
    ------
    DatasetError
        Where nothing was subtracted.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> from mbkg_xr.subtract import before_subtraction
    >>> ds = mx.simulate_program(exposures=2, slits=2, background_slits=2)
    >>> again = before_subtraction(mx.subtract_nods(ds))
    >>> float(abs(again.flux - ds.flux).max()) < 1e-5
    True
    """
    if "background" not in ds:
        raise DatasetError(
            "nothing was subtracted from these slits",
            expected="a result of subtract or subtract_nods",
            found=" ".join(map(str, ds.data_vars)),
        )
    flux, error = ds["flux"], ds["error"]
    own = map_slits(_shrink, flux, error.data, ds["background_error"].data, dtype=np.float32)
    out = ds.drop_vars(["background", "background_error", "residual"], errors="ignore")
    out["flux"] = (PIXEL_DIMS, flux.data + ds["background"].data, flux.attrs)
    out["error"] = (PIXEL_DIMS, own, error.attrs)
    out.attrs.pop("background_method", None)
    return out


def _shrink(grown: NDArray, other: NDArray) -> NDArray:
    # The product does not overflow on the 1e27 that bad pixels carry as errors.
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.maximum(grown - other, 0)) * np.sqrt(grown + other)
