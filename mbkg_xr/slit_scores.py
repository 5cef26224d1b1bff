"""How good the subtraction was, slit by slit: what maps and rankings of slits show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .blas import serial_blas
from .blocks import reduce_blocks
from .errors import DatasetError, ParameterError
from .parts import has_parts
from .residuals import sky_centres
from .skies import over_skies
from .slit_terms import slit_terms
from .spans import SpanGrid, span_grid

__all__ = ["score_slits"]

_STACK_PIXELS = 2  # detector pixels in one wavelength bin of `stack`
_CLIP = 5.0  # residuals beyond say nothing of the sky: one cosmic ray must not answer
_VALUES = {
    "n": ("pixels at the centres of sky shutters", "1"),
    "median": ("median residual in units of its error", "1"),
    "mad_sigma": ("scaled median absolute deviation of the residual", "1"),
    "stack": ("rms over wavelength bins of sum(z) / sqrt(n); 1 is noise alone", "1"),
    "excess": ("median residual in per cent of the median background", "percent"),
    "excess_error": ("its standard error", "percent"),
    "noise_gain": ("median growth of the error by the subtraction", "1"),
}


@serial_blas
def score_slits(
    result: xr.Dataset,
    master: xr.Dataset | None = None,
    *,
    bins: int = 48,
    grid: SpanGrid | None = None,
) -> xr.Dataset:
    """Score each slit by the residuals at the centres of its sky shutters. Computes.

    One pass over the pixels, a chunk at a time; what comes back has no pixels.

    Parameters
    ----------
    result
        From `residuals`.
    master
        From `fit_master`: adds ``scale``, each slit's throughput beside the mean, and its error.
    bins
        Number of wavelength bins of ``z``.
    grid
        Spans, for dispersers mbkg_xr does not know.

    Returns
    -------
    xarray.Dataset
        By ``slit``, with all its coordinates: ``n``, ``median``, ``mad_sigma``, ``stack`` (rms
        over bins of two detector pixels of sum(z) / sqrt(n) of residuals within 5 sigma),
        ``excess`` and ``excess_error`` (median residual, % of the median background),
        ``noise_gain``; and ``z(slit, bin)``, sum(z) / sqrt(n) in wide bins of equal numbers of
        detector pixels, with ``wavelength(bin)`` in um. NaN where a slit has no such pixel.

    Raises
    ------
    DatasetError
        Where there are no residuals.
    ParameterError
        If `bins` is below 1.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> scores = mx.score_slits(mx.residuals(mx.subtract_nods(ds)))
    >>> scores.sizes["slit"], bool((scores.noise_gain > 1).all())
    (12, True)
    """
    if "residual" not in result or "background" not in result:
        raise DatasetError(
            "no residuals to score",
            expected="a dataset from residuals() of subtract or subtract_nods",
            found=" ".join(map(str, result.data_vars)),
        )
    if bins < 1:
        raise ParameterError("unusable number of bins", expected="at least 1", found=bins)
    grid = span_grid(result) if grid is None else grid
    names = ["residual", "flux", "background", "error", "background_error", "wavelength"]
    columns = {name: result[name].variable for name in names}
    columns["centre"] = sky_centres(result).variable
    rows = reduce_blocks(xr.Dataset(columns), list(columns), _block, _together, (grid, bins))
    values, z = (np.concatenate(part) for part in zip(*rows, strict=True))
    edges = np.interp(np.linspace(0, grid.size, bins + 1), np.arange(grid.size + 1), grid.edges)
    data: dict[str, Any] = {
        name: ("slit", values[:, k], {"long_name": text, "units": units})
        for k, (name, (text, units)) in enumerate(_VALUES.items())
    }
    data["z"] = (
        ("slit", "bin"),
        z,
        {"long_name": "sum of residuals over the root of their number", "units": "1"},
    )
    coords = {k: v.variable for k, v in result.coords.items() if v.dims == ("slit",)}
    middle = 0.5 * (edges[1:] + edges[:-1])
    coords["wavelength"] = xr.Variable("bin", middle, {"units": "um"})
    attrs = {
        k: result.attrs[k] for k in ("configuration", "background_method") if k in result.attrs
    }
    out = xr.Dataset(data, coords, attrs)
    if master is None:
        return out
    if has_parts(master):
        scales = over_skies(result, master, lambda one, own: xr.Dataset(_scales(one, own)))
        return out.assign(scales.data_vars)
    return out.assign(_scales(result, master))


def _together(a: list, b: list) -> list:
    return a + b


def _block(start: int, arrays: Sequence[NDArray], shared: tuple[SpanGrid, int]) -> list:
    """Values and wide bins of the slits of one chunk."""
    grid, bins = shared
    residual, flux, background, error, other, wavelength, centre = arrays
    n_slits = residual.shape[0]
    values = np.full((n_slits, len(_VALUES)), np.nan)
    wide = np.full((n_slits, bins), np.nan)
    values[:, 0] = 0
    for s in range(n_slits):
        use = centre[s]
        n = int(use.sum())
        if n == 0:
            continue
        z = residual[s][use].astype(float)
        median = np.median(z)
        sky, left = np.median(background[s][use]), flux[s][use].astype(float)
        middle = np.median(left)
        # The median of n normal values scatters sqrt(pi / 2) times as much as their mean.
        spread = np.sqrt(np.pi / 2 / n) * 1.4826 * np.median(np.abs(left - middle))
        after = error[s][use].astype(float)
        own = np.sqrt(np.maximum(after**2 - other[s][use].astype(float) ** 2, 0))
        ratio = np.divide(after, own, out=np.full(n, np.nan), where=own > 0)
        kept = np.abs(z) <= _CLIP
        u = np.clip(np.nan_to_num(grid.pixel_coordinate(wavelength[s][use])), 0, grid.size - 1e-6)
        stack = _stacked(z[kept], (u[kept] / _STACK_PIXELS).astype(int), -(-grid.size // 2))
        wide[s] = _stacked(z[kept], (u[kept] * bins / grid.size).astype(int), bins)
        values[s] = (
            n,
            median,
            1.4826 * np.median(np.abs(z - median)),
            np.sqrt(np.nanmean(stack**2)) if np.isfinite(stack).any() else np.nan,
            100 * middle / sky if sky > 0 else np.nan,
            100 * spread / sky if sky > 0 else np.nan,
            np.nanmedian(ratio) if np.isfinite(ratio).any() else np.nan,
        )
    return [(values, wide)]


def _stacked(z: NDArray, bins: NDArray, size: int) -> NDArray[np.float64]:
    n, total = np.bincount(bins, minlength=size), np.bincount(bins, z, size)
    return np.divide(total, np.sqrt(n), out=np.full(size, np.nan), where=n > 0)


def _scales(result: xr.Dataset, master: xr.Dataset) -> dict[str, Any]:
    """Throughput of each slit in the middle of the band, mean of the open shutters."""
    terms = slit_terms(result, master)
    if terms is None or "scale" not in master:
        return {}
    middle = legendre.legvander(np.zeros(1), terms.scale.shape[-1] - 1)[0]
    count = np.maximum(result["n_shutters"].values, 1)
    at = terms.first_shutter + np.arange(terms.scale.shape[1])
    inside = (at >= -((count - 1) // 2)[:, None]) & (at <= (count // 2)[:, None])
    weight = inside / np.maximum(inside.sum(axis=1, keepdims=True), 1)
    scale = 1 + (weight * (terms.scale @ middle)).sum(axis=1)
    variance = np.einsum("k,szkl,l->sz", middle, terms.covariance, middle)
    error = np.sqrt((weight * np.maximum(variance, 0)).sum(axis=1))
    return {
        "scale": ("slit", scale, {"long_name": "throughput beside the mean slit", "units": "1"}),
        "scale_error": ("slit", error, {"long_name": "its standard error", "units": "1"}),
    }
