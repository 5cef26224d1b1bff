"""Figures of the fit: the cloud of pixels, and the master."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..master import evaluate, master_grid
from ..moments import REFERENCE_TIME
from ..pass_kernel import TAPER
from ..project import master_image, project_master
from ..slit_terms import used_pixels
from .canvas import (
    BAD,
    CMAP,
    MANY,
    MAX_POINTS,
    SKY,
    WAVELENGTH,
    axes_of,
    colourbar,
    data_range,
    legend_above,
    need,
    stretch,
    subset,
    units_of,
)

__all__ = ["CloudPixels", "cloud_pixels", "plot_cloud", "plot_master_image"]


def plot_cloud(ds: xr.Dataset, master: xr.Dataset, *, ax: Axes | None = None) -> Artist:
    """Flux of the selected pixels against wavelength, with the master and what it leaves out.

    A point each, or a two-dimensional histogram past 100,000. A pixel is marked as clipped where
    it lies further from the master than 1.125 ``clip`` of the fit's final scatter, in units of
    the noise the fit weighs with (read noise, and the photon noise of the master). The fit itself
    clips about a running centre at a running width, so that its own count, which the legend gives
    too, may differ a little.

    Parameters
    ----------
    ds
        A slit dataset from `select_background`, before or after a background is subtracted.
    master
        From `fit_master`.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.artist.Artist
        The points, or the histogram; um against the dataset's units.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> plot_cloud(ds, mx.fit_master(ds)).axes.get_xlabel()
    'wavelength (um)'
    """
    need(ds, "selected", "select_background")
    ax = axes_of(ax, (7.1, 4.0))
    part, note = subset(ds)
    pixels = cloud_pixels(part, master)
    wavelength, flux, clipped = pixels.wavelength, pixels.flux, pixels.clipped
    grid = master_grid(master)
    at = (grid.edges[:-1, None] + grid.widths[:, None] * master["node"].values).ravel()
    sky, error = evaluate(master, at, mean=True), master["sky_error"].values.ravel()
    x_limits = data_range(at[np.isfinite(sky)], wavelength, margin=0.01)
    y_limits = data_range(
        np.percentile(flux[~clipped], [0.02, 99.98]) if (~clipped).any() else flux
    )
    ax.set(xlim=x_limits, ylim=y_limits, xlabel=WAVELENGTH)
    ax.set_ylabel(f"{'flux / response' if 'response' in ds.coords else 'flux'} ({units_of(ds)})")
    # What lies past the limits is drawn at the edge.
    shown = np.clip(flux, *y_limits)
    x, y = wavelength[~clipped], shown[~clipped]
    label = f"selected pixels ({x.size:,})"
    artist: Artist
    style: dict[str, Any]
    if x.size > MAX_POINTS:
        # Cells of one pixel must not be white.
        greys = ListedColormap(colormaps["Greys"](np.linspace(0.2, 1, 256)))
        style = {"gridsize": (220, 90), "bins": "log", "mincnt": 1, "cmap": greys}
        artist = ax.hexbin(x, y, extent=(*x_limits, *y_limits), linewidths=0.1, **style)
        colourbar(artist, ax, "pixels a cell")
        handle: Artist = Patch(color="0.6", label=label)
    else:
        size = 2 if x.size > 1e4 else 5
        handle = artist = ax.scatter(x, y, s=size, color="0.55", linewidths=0, label=label)
    artist.set_rasterized(True)
    n, used = (int(master[k].sum()) for k in ("n_selected", "n_used"))
    label = (
        f"beyond {pixels.limit:.1f} σ: {clipped.sum():,} (the fit left out {n - used:,} of {n:,})"
    )
    style = {"color": BAD, "ms": 4, "mew": 1, "clip_on": False, "label": label}
    mark = "x"
    if clipped.sum() > MANY:
        # Whole shutters may be left out: beneath the others, so that they do not hide them.
        mark, style = ".", {**style, "ms": 2, "mew": 0, "zorder": 0.5}
    handles = [handle, *ax.plot(wavelength[clipped], shown[clipped], mark, **style)]
    handles[-1].set_rasterized(True)
    handles += ax.plot(at, sky, color=SKY, lw=1.2, label=f"master: {_model(master)}")
    handles[-1].set_path_effects([withStroke(linewidth=2.2, foreground="white")])
    band = ax.fill_between(at, sky - 3 * error, sky + 3 * error, color=SKY, alpha=0.35, lw=0)
    band.set(label="its standard error x 3", zorder=2.1)
    handles.append(band)
    knots = master["knots"].values if "knots" in master else np.empty(0)
    knots = knots[(knots >= x_limits[0]) & (knots <= x_limits[1])]
    if knots.size:
        style = {"color": SKY, "ms": 6, "mew": 0.7, "transform": ax.get_xaxis_transform()}
        handles += ax.plot(knots, np.full(knots.size, 0.015), "|", label="knots", **style)
    notes = [f"pixels of {note}"] if note else []
    if off := int((flux != shown).sum()):
        notes.append(f"{off:,} off scale, drawn at the edge")
    legend_above(ax, handles, "; ".join(notes), columns=2)
    return artist


@dataclass(frozen=True)
class CloudPixels:
    """Selected pixels: wavelength, sky at the master's scale, index of the slit, and whether they
    lie further from the master than the limit, in units of the noise the fit weighs with.
    """

    wavelength: NDArray[np.float64]
    flux: NDArray[np.float64]
    slit: NDArray[np.int64]
    clipped: NDArray[np.bool_]
    limit: float


def cloud_pixels(part: xr.Dataset, master: xr.Dataset) -> CloudPixels:
    """The selected pixels of some slits as the fit saw them. Computes."""
    names = ["flux", "error", "selected", "wavelength", "background", "background_error"]
    names += ["var_rnoise", "var_poisson", "response"]
    columns = {n: part[n].variable for n in names if n in part.variables}
    table = xr.Dataset(columns).compute()
    keep = table["selected"].values
    value = {str(n): v.values[keep].astype(float) for n, v in table.items()}
    time = np.broadcast_to(part["exposure_time"].values[:, None, None], keep.shape)[keep]
    flux, variance = value["flux"], value["error"] ** 2
    if "background" in value:
        flux = flux + value["background"]
        variance = np.maximum(variance - value["background_error"] ** 2, 0)
    response = value.get("response", np.ones(flux.size))
    mean = project_master(part, master)["background"].values[keep].astype(float)
    # As in the fit: the datum's own photon noise gives way to the model's.
    grid = master_grid(master)
    n = np.nan_to_num(grid.pixel_coordinate(value["wavelength"])).astype(int)
    gain = master["photon_gain"].values[np.minimum(n, grid.size - 1)]
    gain = gain * np.where(time > 0, REFERENCE_TIME / np.where(time > 0, time, 1), 1)
    rest = value.get("var_rnoise", np.maximum(variance - gain * flux, 0.02 * variance))
    variance = np.where(rest > 0, rest + gain * np.maximum(mean, 0), variance)
    z = (flux - mean) / np.sqrt(variance)
    # Each slit has a scale of its own: pixels are shown as if it were the master's.
    shown = (flux - mean) / response + evaluate(master, value["wavelength"], mean=True)
    z[~used_pixels(part, master)[keep]] = np.inf
    # Pixels past the fitted range have no master to be far from.
    known = np.isfinite(shown) & ~np.isnan(z)
    # Past this weights are zero.
    reach = {"huber": np.inf, "biweight": 1.0}.get(str(master.attrs.get("weights")), 1 + TAPER)
    limit = reach * master.attrs["clip"] * float(master["pass_scatter"].values[-1])
    clipped = np.abs(z) > limit
    if master.attrs["model"] == "seed":
        clipped |= shown <= 0  # has no logarithm
    slit = np.nonzero(keep)[0]
    return CloudPixels(value["wavelength"][known], shown[known], slit[known], clipped[known], limit)


def _model(master: xr.Dataset) -> str:
    attrs = master.attrs
    if attrs["model"] == "bspline":
        return f"B-spline, {attrs['dof']:.0f} degrees of freedom"
    name = "seed recipe" if attrs["model"] == "seed" else "log-polynomial"
    return f"{name}, degree {attrs['degree']:.0f}"


def plot_master_image(master: xr.Dataset, *, ax: Axes | None = None) -> QuadMesh:
    """The two-dimensional master background: wavelength along, the slit across.

    Parameters
    ----------
    master
        From `fit_master`.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.collections.QuadMesh
        The sky of `master_image` in the master's units.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> plot_master_image(mx.fit_master(ds)).axes.get_ylabel()
    'yrel (shutter pitches)'
    """
    image = master_image(master)
    ax = axes_of(ax, (7.1, 2.4))
    sky = image["sky"].values
    edges = image["wavelength_edge"].values, image["yrel_edge"].values
    mesh = ax.pcolormesh(*edges, sky, cmap=CMAP, rasterized=True, **stretch(sky, 0.1))
    ax.set(xlabel=WAVELENGTH, ylabel="yrel (shutter pitches)")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    colourbar(mesh, ax, f"sky ({units_of(master)})")
    return mesh
