"""What is left, as a map over wavelength and place along the slit."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..blocks import map_slits
from ..errors import DatasetError, ParameterError
from ..quality import do_not_use
from ..schema import occupied_shutters
from ..spans import span_grid
from .canvas import (
    DIVERGING,
    FEW,
    WAVELENGTH,
    axes_of,
    check_bin_pixels,
    colourbar,
    need,
    subset,
)

__all__ = ["cell_medians", "plot_residual_map"]


def plot_residual_map(
    result: xr.Dataset,
    *,
    bin_pixels: int = 8,
    bin_yrel: float = 0.2,
    ax: Axes | None = None,
) -> QuadMesh:
    """Median residual by wavelength and by place along the slit.

    All good rows of all slits, bars included, but for shutters that hold a source or are closed.
    What the wings of sources and what is left of the bars' shadow do shows as rows, what the
    master does as columns.

    Parameters
    ----------
    result
        From `residuals`.
    bin_pixels, bin_yrel
        Width of a cell in detector pixels and in shutter pitches.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.collections.QuadMesh
        Median residual in units of its error over um and shutter pitches; cells of fewer than
        five pixels are left grey.

    Raises
    ------
    DatasetError
        Where no pixel of a sky shutter has a residual.
    ParameterError
        Where a width makes no sense.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> result = mx.residuals(mx.subtract(ds, mx.fit_master(ds)))
    >>> plot_residual_map(result).axes.get_ylabel()
    'yrel (shutter pitches)'
    """
    check_bin_pixels(bin_pixels)
    if not 0 < bin_yrel <= 1:
        raise ParameterError(
            "unusable bin width", expected="shutter pitches above 0, to 1", found=bin_yrel
        )
    need(result, "residual", "residuals")
    part, note = subset(result)
    columns = {k: part[k].variable for k in ("residual", "wavelength", "yrel")}
    columns["sky"] = _sky_rows(part).variable
    table = xr.Dataset(columns).compute()
    keep = table["sky"].values & np.isfinite(table["residual"].values)
    if not keep.any():
        raise DatasetError("no pixel of a sky shutter has a residual", expected="sky slits")
    z, wavelength, yrel = (
        table[k].values[keep].astype(float) for k in ("residual", "wavelength", "yrel")
    )
    x_edges = span_grid(result).edges[::bin_pixels]
    first = max(np.searchsorted(x_edges, wavelength.min(), "right") - 1, 0)
    x_edges = x_edges[first : np.searchsorted(x_edges, wavelength.max()) + 1]
    # A cell's middle lies at 0, and so do those of the shutters.
    reach = np.ceil(np.abs(yrel).max() / bin_yrel - 0.5) + 0.5
    y_edges = bin_yrel * np.arange(-reach, reach + 1)
    median = cell_medians(z, wavelength, yrel, x_edges, y_edges)
    finite = np.abs(median[np.isfinite(median)])
    top = max(float(np.percentile(finite, 98)), 0.1) if finite.size else 1.0
    ax = axes_of(ax, (7.1, 3.4))
    ax.set_facecolor("0.85")
    cells = np.ma.masked_invalid(median).T
    limits: dict[str, Any] = {"vmin": -top, "vmax": top}
    mesh = ax.pcolormesh(x_edges, y_edges, cells, cmap=DIVERGING, rasterized=True, **limits)
    ax.set(xlabel=WAVELENGTH, ylabel="yrel (shutter pitches)")
    ax.yaxis.set_major_locator(MaxNLocator(7, integer=True))
    title = f"{z.size:,} pixels of shutters without a source" + (f" of {note}" if note else "")
    ax.set_title(f"{title}; grey: too few", loc="left", fontsize="small")
    colourbar(mesh, ax, "median residual (its error)", extend="both")
    return mesh


def _sky_rows(ds: xr.Dataset) -> xr.DataArray:
    """Good pixels of all open shutters, and their bars, but those that are no sky. Lazy."""
    known = ds["is_background"].values | np.isfinite(ds["source_shutter"].values)
    mask = map_slits(
        _sky_block,
        ds["flux"],
        ds["yrel"].data,
        ds["quality"].data,
        occupied_shutters(ds),
        known,
        np.maximum(ds["n_shutters"].values, 1),
        dtype=np.bool_,
        bad=do_not_use(ds["quality"]),
    )
    return xr.DataArray(mask, dims=ds["flux"].dims)


def _sky_block(yrel, quality, occupied, known, count, *, bad):
    with np.errstate(invalid="ignore"):
        # As far as the middle of the bars at the slit's ends.
        good = (yrel >= -((count - 1) // 2) - 0.5) & (yrel <= count // 2 + 0.5) & known
        for k in range(occupied.shape[-1]):
            good &= ~(np.abs(yrel - occupied[..., k : k + 1]) <= 0.5)
    return good & ((quality & quality.dtype.type(bad)) == 0)


def cell_medians(
    z: NDArray, x: NDArray, y: NDArray, x_edges: NDArray, y_edges: NDArray
) -> NDArray[np.float64]:
    """Median of z in each cell of a grid, NaN where there are too few values.

    Examples
    --------
    >>> one = np.ones(5)
    >>> cell_medians(3 * one, one, one, np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0]))
    array([[ 3.],
           [nan]])
    """
    shape = x_edges.size - 1, y_edges.size - 1
    i, j = np.searchsorted(x_edges, x, "right") - 1, np.searchsorted(y_edges, y, "right") - 1
    inside = (i >= 0) & (i < shape[0]) & (j >= 0) & (j < shape[1])
    cell = i[inside] * shape[1] + j[inside]
    order = np.argsort(cell, kind="stable")
    ends = np.cumsum(np.bincount(cell, minlength=shape[0] * shape[1]))[:-1]
    parts = np.split(z[inside][order], ends)
    return np.array([np.median(p) if p.size >= FEW else np.nan for p in parts]).reshape(shape)
