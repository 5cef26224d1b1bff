"""Spectra from slits: sums along the slit, on each slit's own pixels, with errors that go together.

Spectra are tilted on the detector: nothing is straightened. The pixels of one detector column that
look through a window in yrel are summed, and the column's wavelength is the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .blas import serial_blas
from .blocks import map_slits
from .errors import DatasetError, ParameterError
from .profiles import profile_of_slit, running_median
from .propagate import propagate
from .quality import DEFAULT_EXCLUDE, do_not_use, flag_mask
from .schema import PIXEL_DIMS, validate

__all__ = ["extract"]

_HALF = 0.5  # of the shutter's pitch: the default window on either side of its centre
_VALUES = ("flux", "variance", "background", "wavelength", "columns", "coverage", "n_pixels")
_METHODS = ("box", "optimal")


@serial_blas
def extract(
    ds: xr.Dataset,
    *,
    master: xr.Dataset | None = None,
    method: str = "box",
    yrel: tuple[float, float] | ArrayLike | None = None,
    profile: Callable[[NDArray], NDArray] | None = None,
    bins: ArrayLike | None = None,
    exclude: Iterable[str] = DEFAULT_EXCLUDE,
    coverage: float = 0.5,
) -> xr.Dataset:
    """Sum subtracted slits along the slit, column by column. Lazy.

    With the share P of the light in each of the window's pixels (their sum 1 in each column), flux
    f and variance V, the sum over usable pixels is

        box:      sum(f) / sum(P),                  P the same in all pixels
        optimal:  sum(P f / V) / sum(P^2 / V)       (Horne 1986, PASP 98, 609, eq. 8)

    so that unusable pixels are made up for as P says. V is the running median of the squared errors
    along the row: that of the pixel itself follows its own counts, and would pull the sum low.

    Parameters
    ----------
    ds
        From `subtract`, `subtract_nods`, or slits that came without their sky.
    master
        What `subtract` was given: errors then are exact, with all that pixels share (`propagate`).
    method
        ``"box"`` or ``"optimal"``.
    yrel
        Window along the slit, in shutter pitches: ``(low, high)``, or ``(slit, 2)`` of them. By
        default the shutter that holds the source, and in sky slits the middle one.
    profile
        With ``"optimal"``, the share of the light by yrel, up to a factor. By default it is found
        from each slit's own pixels, all wavelengths together, and in sky slits it is flat, as in
        slits too faint to tell.
    bins
        Edges of wavelength bins in um: means over them instead of single columns. Their errors are
        not those of the columns added up: a master that is wrong is so in many columns at once.
    exclude
        Quality flags of pixels that are not to be used; DO_NOT_USE always is one.
    coverage
        Columns (or bins) with less than this share of the light in usable pixels are NaN.

    Returns
    -------
    xarray.Dataset
        ``(slit, x)``, or ``(slit, wavelength)`` with `bins`: ``flux`` and ``error``, the same
        units times a pixel along the slit where they are of surface brightness; ``background``
        under the same weights; ``coverage``, ``n_pixels``, and ``wavelength``, the mean of the
        pixels used. With `master` the parts of the variance, as from `propagate`. All coordinates
        of slits. ``attrs["errors"]`` says how errors were found: of nods, and of products that
        others subtracted, pixels are independent within a slit; of a master that is not given, the
        background's errors are taken to be all one within a sum, which errs on the large side.

    Raises
    ------
    DatasetError
        Where nothing was subtracted, or not this master.
    ParameterError
        On an unknown method, or windows, bins or a coverage that make no sense.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=3, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> spectra = mx.extract(mx.subtract(ds, master), master=master)
    >>> spectra.flux.dims, spectra.flux.attrs["units"]
    (('slit', 'x'), 'MJy pix / sr')
    """
    validate(ds)
    if method not in _METHODS:
        raise ParameterError("unknown method", expected=" or ".join(_METHODS), found=method)
    if profile is not None and method != "optimal":
        raise ParameterError("a box has no profile", expected="method='optimal'", found=method)
    if not 0 < coverage <= 1:
        raise ParameterError("unusable coverage", expected="above 0, up to 1", found=coverage)
    if "background" not in ds and not (ds["subtracted"].values.astype(str) != "").all():
        raise DatasetError(
            "nothing was subtracted from these slits",
            expected="a dataset from subtract or subtract_nods",
            found=" ".join(map(str, ds.data_vars)),
        )
    # The flags of one product's table need not be in the other's.
    missing = "ignore" if exclude is DEFAULT_EXCLUDE else "raise"
    bad = do_not_use(ds["quality"]) | flag_mask(ds["quality"], exclude, missing=missing)
    low, high = _windows(ds, yrel)
    edges = _edges(bins)
    names = ["flux", "error", "wavelength", "yrel", "quality"]
    weights, share = map_slits(
        _weigh, ds["flux"], *(ds[n].data for n in names), low, high,
        ds["is_background"].values,
        dtype=(np.float32, np.float32), bad=bad, optimal=method == "optimal",
        profile=profile,
    )  # fmt: skip
    by_master = str(ds.attrs.get("background_method", "")).startswith("master")
    names = ["flux", "error", "wavelength"]
    names += ["background", "background_error"] if "background" in ds else []
    size = ds.sizes["x"] if edges is None else edges.size - 1
    values = map_slits(
        _add_up, ds["flux"], weights, share, *(ds[n].data for n in names),
        dtype=np.float64, plane=(size, len(_VALUES)), edges=edges, least=float(coverage),
        together=by_master,
    )  # fmt: skip
    out = _labelled(ds, values, edges)
    if master is None:
        how = "the background's taken to be one within a sum" if by_master else "pixels independent"
    else:
        out = _with_covariance(ds, master, weights, out, edges)
        how = "with the master's covariance"
    return out.assign_attrs(
        {k: v for k, v in ds.attrs.items() if str(k).startswith(("background_", "configuration"))}
        | {"method": method, "errors": how}
    )


def _windows(ds: xr.Dataset, yrel: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The window of each slit."""
    n = ds.sizes["slit"]
    if yrel is None:
        at = np.where(ds["is_background"].values, 0.0, ds["source_shutter"].values)
        at = np.nan_to_num(at.astype(np.float64))
        return at - _HALF, at + _HALF
    try:
        given = np.broadcast_to(np.asarray(yrel, dtype=np.float64), (n, 2))
    except (TypeError, ValueError):
        given = np.full((n, 2), np.nan)
    if not np.all(given[:, 0] < given[:, 1]):
        raise ParameterError(
            "unusable window", where="yrel", found=yrel,
            expected=f"(low, high) with low < high, or one a slit, ({n}, 2)",
        )  # fmt: skip
    return given[:, 0].copy(), given[:, 1].copy()


def _edges(bins: ArrayLike | None) -> NDArray[np.float64] | None:
    if bins is None:
        return None
    edges = np.asarray(bins, dtype=np.float64)
    if edges.ndim != 1 or edges.size < 2 or not np.all(np.diff(edges) > 0):
        raise ParameterError("unusable bins", expected="edges in um that increase", found=bins)
    return edges


def _weigh(
    flux: NDArray,
    error: NDArray,
    wavelength: NDArray,
    yrel: NDArray,
    quality: NDArray,
    low: NDArray,
    high: NDArray,
    sky: NDArray,
    *,
    bad: int,
    optimal: bool,
    profile: Callable[[NDArray], NDArray] | None,
) -> tuple[NDArray, NDArray]:
    """Weight of each pixel in its column's sum, and its share of the light."""
    with np.errstate(invalid="ignore"):
        inside = (yrel >= low) & (yrel < high) & np.isfinite(wavelength)
    usable = inside & ((quality & quality.dtype.type(bad)) == 0) & np.isfinite(flux)
    usable &= (error > 0) & np.isfinite(error)
    share = inside.astype(np.float64)
    inverse = usable.astype(np.float64)
    if optimal:
        for s in range(flux.shape[0]):
            median = running_median(np.where(usable[s], np.square(error[s], dtype=float), np.nan))
            inverse[s] = np.where(usable[s] & (median > 0), 1 / median, 0.0)
            if profile is not None:
                share[s] *= np.nan_to_num(np.maximum(profile(yrel[s]), 0))
            elif not sky[s, 0, 0]:
                share[s] *= profile_of_slit(
                    flux[s], inverse[s], yrel[s], (float(low[s, 0, 0]), float(high[s, 0, 0]))
                )
    with np.errstate(invalid="ignore", divide="ignore"):
        share /= share.sum(axis=1, keepdims=True)
        weight = share * inverse / (share**2 * inverse).sum(axis=1, keepdims=True)
    made = np.where(usable, weight, 0), np.where(inside, share, 0)
    return np.nan_to_num(made[0]).astype(np.float32), np.nan_to_num(made[1]).astype(np.float32)


def _add_up(
    weight: NDArray,
    share: NDArray,
    flux: NDArray,
    error: NDArray,
    wavelength: NDArray,
    background: NDArray | None = None,
    background_error: NDArray | None = None,
    *,
    edges: NDArray[np.float64] | None,
    least: float,
    together: bool,
) -> NDArray[np.float64]:
    """`_VALUES` of each column, or of each bin."""
    n_slits, ny, nx = flux.shape
    size = nx if edges is None else edges.size - 1
    out = np.full((n_slits, size, len(_VALUES)), np.nan)
    for s in range(n_slits):
        lit = share[s] > 0
        index = np.broadcast_to(np.arange(nx), (ny, nx))[lit]
        if edges is not None:
            index = np.searchsorted(edges, wavelength[s][lit], side="right") - 1
        h, p = weight[s][lit].astype(float), share[s][lit].astype(float)
        use = h != 0

        def total(
            values: NDArray | float, index: NDArray = index, use: NDArray = use
        ) -> NDArray[np.float64]:
            inside = (index >= 0) & (index < size)
            column = np.broadcast_to(np.asarray(values, dtype=np.float64), index.shape)
            column = np.where(use, column, 0)
            return np.bincount(index[inside], column[inside], size).astype(np.float64)

        f, e = (v[s][lit].astype(float) for v in (flux, error))
        whole = total(p, use=np.ones_like(use))
        covered = np.divide(total(p), whole, out=np.zeros(size), where=whole > 0)
        # The sum is of so many columns: h makes each of them whole.
        columns = total(h * p)
        variance, sky = total(h**2 * e**2), np.full(size, np.nan)
        if background is not None and background_error is not None:
            sky = total(h * background[s][lit])
            if together:
                other = background_error[s][lit].astype(float)
                variance = total(h**2 * np.maximum(e**2 - other**2, 0)) + total(h * other) ** 2
        with np.errstate(invalid="ignore", divide="ignore"):
            made = (
                total(h * f) / columns, variance / columns**2, sky / columns,
                total(h * wavelength[s][lit]) / total(h), columns, covered, total(1.0),
            )  # fmt: skip
        out[s] = np.stack(made, axis=1)
        out[s][covered < least, :3] = np.nan
        if edges is None:
            out[s][covered == 0, 3] = np.nan
    return out


def _labelled(ds: xr.Dataset, values: Any, edges: NDArray[np.float64] | None) -> xr.Dataset:
    units = str(ds["flux"].attrs["units"])
    summed = f"{units.replace('/sr', '')} pix / sr" if units.endswith("/sr") else units
    along = "x" if edges is None else "wavelength"
    part = {name: values[..., i] for i, name in enumerate(_VALUES)}
    attrs = {
        "flux": {"long_name": "sum along the slit", "units": summed},
        "error": {"long_name": "standard error of the sum", "units": summed},
        "background": {"long_name": "background in the sum", "units": summed},
        "coverage": {"long_name": "share of the light in usable pixels", "units": "1"},
        "n_pixels": {"long_name": "pixels in the sum"},
    }
    part["error"] = np.sqrt(part["variance"])
    data: dict[Any, Any] = {n: (("slit", along), part[n], attrs[n]) for n in attrs}
    coords: dict[Any, Any] = {k: v for k, v in ds.coords.items() if v.dims == ("slit",)}
    used = {"long_name": "mean wavelength of the pixels used", "units": "um"}
    if edges is None:
        coords["wavelength"] = (("slit", "x"), part["wavelength"], used)
    else:
        middle = {"long_name": "middle of the bin", "units": "um"}
        coords["wavelength"] = ("wavelength", 0.5 * (edges[1:] + edges[:-1]), middle)
        coords["wavelength_low"] = ("wavelength", edges[:-1], {"units": "um"})
        coords["wavelength_high"] = ("wavelength", edges[1:], {"units": "um"})
        data["wavelength_used"] = (("slit", "wavelength"), part["wavelength"], used)
    data["columns"] = (
        ("slit", along),
        part["columns"],
        {"long_name": "columns that the mean is of", "units": "1"},
    )
    return xr.Dataset(data, coords)


def _with_covariance(
    ds: xr.Dataset,
    master: xr.Dataset,
    weights: Any,
    out: xr.Dataset,
    edges: NDArray[np.float64] | None,
) -> xr.Dataset:
    """Errors with all that the sum's pixels share."""
    by: dict[str, Any] = {"slit": None, "wavelength": edges}
    if edges is None:
        nx = ds.sizes["x"]
        flux, index = ds["flux"].data, np.arange(nx, dtype=np.float32)
        if isinstance(flux, da.Array):
            column: Any = da.broadcast_to(index, flux.shape, chunks=flux.chunks)
        else:
            column = np.broadcast_to(index, flux.shape)
        column = xr.DataArray(column, dims=PIXEL_DIMS)
        ds = ds.assign_coords(column=column)
        by = {"slit": None, "column": np.arange(nx + 1) - 0.5}
    sums = propagate(ds, master, weights=xr.DataArray(weights, dims=PIXEL_DIMS), by=by)
    dims = out["flux"].dims
    square = out["columns"].variable.data ** 2
    known = np.isfinite(out["flux"].variable.data)
    added: dict[str, Any] = {}
    for name in sums.data_vars:
        if str(name).startswith("variance"):
            added[str(name)] = (dims, np.where(known, sums[name].data / square, np.nan))
    error = np.sqrt(added.pop("variance")[1])
    parts = {
        k: (d, v, {"long_name": f"part of the squared error: {k.removeprefix('variance_')}"})
        for k, (d, v) in added.items()
    }
    return out.assign(parts | {"error": (dims, error, out["error"].attrs)})
