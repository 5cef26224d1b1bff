"""Figures of one slit: what was selected, and before, background and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..errors import DatasetError, ParameterError
from ..quality import DEFAULT_EXCLUDE, flag_mask
from ..schema import SHUTTER_CENTRES
from .canvas import (
    BAD,
    CMAP,
    METHODS,
    SOURCE,
    STROKE,
    axes_of,
    colourbar,
    legend_above,
    need,
    stacked_axes,
    stretch,
    units_of,
)

__all__ = ["OneSlit", "plot_selection", "plot_subtraction"]


def plot_selection(ds: xr.Dataset, *, slit: int = 0, ax: Axes | None = None) -> AxesImage:
    """One slitlet as the detector saw it, with the pixels that count as sky.

    Flux in a robust stretch, flagged pixels in a colour of their own. Lines bound the yrel windows
    of the selection, dotted where none of a window's pixels is selected, and the source's shutter.

    Parameters
    ----------
    ds
        A slit dataset from `select_background`, before or after a background is subtracted (the
        flux shown is that before).
    slit
        Index of the slit.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.image.AxesImage
        Flux in the dataset's units, over detector columns and rows in pixels, from 0.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=1, slits=2, background_slits=1))
    >>> plot_selection(ds, slit=1).axes.get_xlabel()
    'detector column (pixel)'
    """
    need(ds, "selected", "select_background")
    one = OneSlit(ds, slit, ["selected"])
    ax = axes_of(ax, (7.1, 3.2))
    flux = np.where(one.bad, np.nan, one.before)
    selected = one.data["selected"]
    span = _of_the_sky(stretch(flux[one.open]), flux[selected.values])
    image = one.draw(ax, flux, cmap=CMAP, **span)
    one.draw(ax, np.where(one.bad, 1.0, np.nan), cmap=ListedColormap([BAD]))
    handles: list[Artist] = [Patch(color=BAD, label="flagged or no value")]
    yrel = one.data["yrel"].values
    styles = {True: ("-", "windows in use"), False: (":", "not in use")}
    found = set()
    for low, high in np.reshape(
        selected.attrs.get("yrel_windows", np.ravel(SHUTTER_CENTRES)), (-1, 2)
    ):
        used = bool((selected.values & (yrel >= low) & (yrel <= high)).any())
        found.add(used)
        lines = one.contour(ax, (low, high), linestyles=styles[used][0], colors="white")
        lines.set(path_effects=STROKE, linewidths=1.0)
    for used in sorted(found, reverse=True):
        style, label = styles[used]
        handles.append(Line2D([], [], color="w", ls=style, path_effects=STROKE, label=label))
    if np.isfinite(one.source):
        lines = one.contour(ax, (one.source - 0.5, one.source + 0.5), colors=SOURCE)
        lines.set(linestyles="--", linewidths=1.5)
        handles.append(Line2D([], [], color=SOURCE, ls="--", lw=1.5, label="source's shutter"))
        text = ax.text(*one.place(one.source), "source", fontsize="small", va="center")
        text.set(color="white", path_effects=STROKE)
    legend_above(ax, handles, one.title, columns=4)
    colourbar(image, ax, f"flux ({units_of(ds)})", extend="both")
    return image


def plot_subtraction(
    result: xr.Dataset, *, slit: int = 0, axes: Sequence[Axes] | None = None
) -> AxesImage:
    """A slitlet before subtraction, its background, and what is left, in one stretch.

    Parameters
    ----------
    result
        From `subtract` or `subtract_nods`.
    slit
        Index of the slit.
    axes
        Three axes.

    Returns
    -------
    matplotlib.image.AxesImage
        The last of the three images; all are in the dataset's units.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=2, background_slits=1)
    >>> plot_subtraction(mx.subtract_nods(ds)).axes.get_ylabel()
    'detector row (pixel)'
    """
    need(result, "background", "subtract or subtract_nods")
    one = OneSlit(result, slit, [])
    panels = stacked_axes((7.1, 5.2), 3) if axes is None else list(np.ravel(np.asarray(axes)))
    if len(panels) != 3:
        raise ParameterError("wrong number of axes", expected="3", found=len(panels))
    before, after = (np.where(one.bad, np.nan, v) for v in (one.before, one.data["flux"].values))
    # From the noise about zero, which the last panel shows, to sky and source in the first.
    span = {"vmin": stretch(after[one.open])["vmin"], "vmax": stretch(before[one.open])["vmax"]}
    span = _of_the_sky(span, one.data["background"].values[one.open])
    what = METHODS.get(result.attrs.get("background_method", ""), "background")
    images = []
    for panel, values, title in (
        (panels[0], before, "before"),
        (panels[1], one.data["background"].values, what),
        (panels[2], after, "after (grey: flagged or without background)"),
    ):
        panel.set_facecolor("0.85")
        images.append(one.draw(panel, values, cmap=CMAP, **span))
        panel.set_title(title, loc="left", fontsize="medium")
        panel.label_outer()
    panels[0].set_title(one.title, loc="right", fontsize="small")
    colourbar(images[-1], panels, f"flux ({units_of(result)})", extend="both")
    return images[-1]


def _of_the_sky(span: dict[str, float], sky: NDArray) -> dict[str, float]:
    """Colour limits in which a bright source does not hide the sky."""
    sky = sky[np.isfinite(sky)]
    top = 2 * float(np.percentile(sky, 99)) if sky.size else np.inf
    return span | {"vmax": top} if span["vmin"] < top < span["vmax"] else span


class OneSlit:
    """One slit in memory, cut free of its padding, in detector pixels from 0."""

    def __init__(self, ds: xr.Dataset, slit: int, extra: list[str]):
        n = ds.sizes["slit"]
        if not -n <= slit < n:
            raise ParameterError("no such slit", expected=f"an index below {n}", found=slit)
        names = ["flux", *extra] + (["background"] if "background" in ds else [])
        # Other coordinates of pixels are not needed, and may be costly.
        spare = {k for k, v in ds.coords.items() if v.ndim == 3} - {"wavelength", "yrel", "quality"}
        one = ds[names].drop_vars(spare).isel(slit=slit).load()
        inside = np.isfinite(one["wavelength"].values) & np.isfinite(one["yrel"].values)
        rows, columns = (np.flatnonzero(inside.any(axis=k)) for k in (1, 0))
        self.title = f"{one['exposure'].item()} {one['detector'].item()}"
        self.title += f", slitlet {one['slitlet'].item()}"
        if rows.size == 0:
            raise DatasetError("no pixel of this slit has a wavelength", where=self.title)
        box = {"y": slice(rows[0], rows[-1] + 1), "x": slice(columns[0], columns[-1] + 1)}
        self.data, self.inside = one.isel(box), inside[box["y"], box["x"]]
        self.x = one["x_start"].item() + np.arange(columns[0], columns[-1] + 1)
        self.y = one["y_start"].item() + np.arange(rows[0], rows[-1] + 1)
        self.before = self.data["flux"].values
        if "background" in one:
            self.before = self.before + self.data["background"].values
        bits = flag_mask(one["quality"], DEFAULT_EXCLUDE, missing="ignore")
        if "selected" in one:
            bits = one["selected"].attrs.get("excluded_flags", bits)
        quality = self.data["quality"].values
        flagged = (quality & quality.dtype.type(bits)) != 0
        self.bad = self.inside & (flagged | ~np.isfinite(self.before))
        # Past the slitlet's ends and at its bars there is no sky to set a stretch by.
        yrel, count = self.data["yrel"].values, max(one["n_shutters"].item(), 1)
        shutter = np.round(yrel)
        self.open = (shutter >= -((count - 1) // 2)) & (shutter <= count // 2)
        self.open &= (np.abs(yrel - shutter) <= 0.4) & ~self.bad
        self.source = np.nan if one["is_background"].item() else one["source_shutter"].item()
        if not one["is_background"].item() and one["source_name"].item():
            self.title += f", source {one['source_name'].item()}"

    def draw(self, ax: Axes, values: NDArray, **style: Any) -> AxesImage:
        """An image; whole numbers are pixel centres."""
        edges = (self.x[0] - 0.5, self.x[-1] + 0.5, self.y[0] - 0.5, self.y[-1] + 0.5)
        style = {"origin": "lower", "aspect": "auto", "interpolation": "none", **style}
        ax.set(xlabel="detector column (pixel)", ylabel="detector row (pixel)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return ax.imshow(np.where(self.inside, values, np.nan), extent=edges, **style)

    def contour(self, ax: Axes, levels: tuple[float, float], **style: Any) -> Any:
        """Lines of constant yrel; levels past the slit's ends draw nothing."""
        yrel = self.data["yrel"].values
        low, high = np.nanmin(yrel), np.nanmax(yrel)
        # matplotlib warns of contours it cannot find.
        known = [v for v in levels if low < v < high] or [0.5 * (low + high)]
        if not any(low < v < high for v in levels):
            style["alpha"] = 0
        return ax.contour(self.x, self.y, np.ma.masked_invalid(yrel), known, **style)

    def place(self, yrel: float) -> tuple[float, float]:
        """The pixel at some yrel, a little in from the slit's left end."""
        column = self.x.size // 30
        distance = np.abs(self.data["yrel"].values[:, column] - yrel)
        return self.x[column], self.y[np.argmin(np.nan_to_num(distance, nan=np.inf))]
