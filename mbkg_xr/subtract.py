"""Data minus background: by the master, and by nods."""

from __future__ import annotations

from itertools import pairwise

import dask.array as da
import numba
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits
from .errors import DatasetError
from .master import identity
from .project import project_master
from .quality import DEFAULT_EXCLUDE, do_not_use, flag_mask
from .schema import PIXEL_DIMS, occupied_shutters, refuse_subtracted, validate
from .select import near_one_of

__all__ = ["before_subtraction", "nod_errors", "subtract", "subtract_nods"]


def subtract(
    ds: xr.Dataset, master: xr.Dataset, *, method: str = "exact", heldout: bool = False
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

    Returns
    -------
    xarray.Dataset
        The dataset with ``flux`` subtracted, ``error`` the root of the sum of the squares of the
        pixel's own error and the background's, ``background`` and ``background_error`` added.
        Where there is no background, flux is NaN and ``quality`` has DO_NOT_USE set: in-slit
        pixels that are flagged for this reason are those whose ``background`` is NaN.

    Raises
    ------
    DatasetError
        Where dataset and master do not belong together.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> sub = mx.subtract(ds, mx.fit_master(ds))
    >>> sorted(set(sub.data_vars) - set(ds.data_vars))
    ['background', 'background_error']
    """
    refuse_subtracted(ds)
    projected = project_master(ds, master, method=method, heldout=heldout)
    out = _subtracted(ds, projected)
    out.attrs["background_method"] = "master (held out)" if heldout else "master"
    out.attrs |= identity(master)
    return out


def _subtracted(ds: xr.Dataset, projected: xr.Dataset) -> xr.Dataset:
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
    out = ds.assign(projected.data_vars)
    out["flux"] = (PIXEL_DIMS, flux, ds["flux"].attrs)
    out["error"] = (PIXEL_DIMS, error, ds["error"].attrs)
    return out.assign_coords(quality=(PIXEL_DIMS, quality, old.attrs))


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


@numba.njit(nogil=True)
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


# ------------------------------------------------------------------------------------------------


def subtract_nods(ds: xr.Dataset) -> xr.Dataset:
    """Subtract nods: from each pixel the mean of the same detector pixel at the other nods. Lazy.

    While the telescope nods the shutters stay and the source moves from shutter to shutter. A nod
    that has the source in the very shutter a pixel looks through is left out, and so are unusable
    pixels. With n of N nods left, the error grows by ``sqrt(1 + 1/n)``: 1.22 for sky slitlets of
    three nods, 1.41 for the sky shutters of science slitlets.

    Parameters
    ----------
    ds
        A slit dataset.

    Returns
    -------
    xarray.Dataset
        As from `subtract`. Slits without another nod have no background.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> mx.subtract_nods(ds).attrs["background_method"]
    'nods'
    """
    validate(ds)
    refuse_subtracted(ds)
    stacked = _other_nods(ds, occupied_shutters(ds))
    units = {"units": ds["flux"].attrs["units"]}
    names_attrs = {
        "background": {"long_name": "mean of the other nods", **units},
        "background_error": {"long_name": "standard error of the mean of the other nods", **units},
    }
    projected = xr.Dataset(
        {n: (PIXEL_DIMS, stacked[..., i], a) for i, (n, a) in enumerate(names_attrs.items())}
    )
    out = _subtracted(ds, projected)
    out.attrs["background_method"] = "nods"
    return out


def nod_errors(ds: xr.Dataset) -> xr.DataArray:
    """Standard error of the mean of the other nods, the shutter of the source included. Lazy.

    That is what a nod subtraction adds to the errors that takes whole exposures from each other, as
    the official pipeline does, which leaves ERR as it was.

    Parameters
    ----------
    ds
        A slit dataset, before subtraction.

    Returns
    -------
    xarray.DataArray
        (slit, y, x), NaN where no other nod has a usable pixel.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> from mbkg_xr.subtract import nod_errors
    >>> ds = mx.simulate_program(exposures=3, slits=2, background_slits=2)
    >>> share = (nod_errors(ds) / ds.error.where(ds.error > 0)).compute()
    >>> round(float(share.median()), 1)  # 1 / sqrt(2) for two others
    0.7
    """
    stacked = _other_nods(ds, np.full((ds.sizes["slit"], 1, 1), np.nan, dtype=np.float32))
    return xr.DataArray(stacked[..., 1], dims=PIXEL_DIMS, attrs=dict(ds["error"].attrs))


def _other_nods(ds: xr.Dataset, occupied: NDArray):
    """Mean of the other nods and its standard error, (slit, y, x, 2), without some shutters."""
    bits = flag_mask(ds["quality"], DEFAULT_EXCLUDE, missing="ignore")
    # Slitlet numbers begin anew in each MSA configuration of a visit; the shutters tell them apart.
    same = ("program", "visit", "detector", "slitlet", "quadrant", "shutter_row", "shutter_column")
    keys = zip(*(ds[c].values.tolist() for c in same), strict=True)
    names = list(keys)
    rank = {name: i for i, name in enumerate(sorted(set(names)))}
    group = np.array([rank[name] for name in names])
    # Slits of one slitlet are brought together, so that each block holds whole groups.
    order = np.lexsort((ds["nod"].values, group))
    back = np.argsort(order)
    vectors = [
        values[order]
        for values in (
            group,
            ds["nod"].values,
            occupied,
            ds["y_start"].values,
            ds["x_start"].values,
        )
    ]
    arrays = [ds[n].data for n in ("flux", "error", "yrel", "quality")]
    arrays = [_gathered(a, order, vectors[0]) for a in arrays]
    template = xr.DataArray(arrays[0], dims=PIXEL_DIMS)
    stacked = map_slits(
        _nod_block, template, *arrays, *vectors, dtype=np.float32, outputs=2, bits=bits
    )[back]
    if isinstance(stacked, da.Array):
        stacked = stacked.rechunk({0: ds["flux"].data.chunks[0]})
    return stacked


def _gathered(array, order: NDArray, group: NDArray):
    """Rows in order, in chunks that end where groups end."""
    array = array[order]
    if not isinstance(array, da.Array):
        return array
    ends = np.flatnonzero(np.diff(group)) + 1
    bounds = np.concatenate([[0], ends, [group.size]])
    usual = max(array.chunks[0])
    cuts = [0]
    for a, b in pairwise(bounds[1:]):
        if b - cuts[-1] > usual:
            cuts.append(int(a))
    return array.rechunk({0: tuple(np.diff([*cuts, group.size]).tolist()), 1: -1, 2: -1})


def _nod_block(
    flux, error, yrel, quality, group, nod, occupied, y_start, x_start, *, bits
) -> NDArray[np.float32]:
    usable = ((quality & quality.dtype.type(bits)) == 0) & np.isfinite(flux) & (error > 0)
    out = np.full((*flux.shape, 2), np.nan, dtype=np.float32)
    group, nod, y_start, x_start = (v.ravel() for v in (group, nod, y_start, x_start))
    occupied = np.ascontiguousarray(occupied[:, 0])
    _nod_means(flux, error, yrel, usable, group, nod, occupied, y_start, x_start, out)
    return out


@numba.njit(nogil=True)
def _nod_means(
    flux, error, yrel, usable, group, nod, occupied, y_start, x_start, out
):  # pragma: no cover - compiled
    n_slits, ny, nx = flux.shape
    first, last = 0, 0
    for s in range(n_slits):
        if s == last:  # groups are contiguous
            first = s
            while last < n_slits and group[last] == group[s]:
                last += 1
        for i in range(ny):
            for j in range(nx):
                if np.isnan(yrel[s, i, j]):
                    continue
                total, variance, n = 0.0, 0.0, 0
                for p in range(first, last):
                    if nod[p] == nod[s]:
                        continue
                    # The same detector pixel, wherever the other cut-out begins.
                    k = i + y_start[s] - y_start[p]
                    m = j + x_start[s] - x_start[p]
                    if k < 0 or k >= ny or m < 0 or m >= nx or not usable[p, k, m]:
                        continue
                    if near_one_of(yrel[p, k, m], occupied[p]):
                        continue
                    total += flux[p, k, m]
                    variance += np.float64(error[p, k, m]) ** 2
                    n += 1
                if n > 0:
                    out[s, i, j, 0] = total / n
                    out[s, i, j, 1] = np.sqrt(variance) / n
