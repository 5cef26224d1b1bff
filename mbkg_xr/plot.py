"""Figures: what was selected, fitted and subtracted, and what is left.

Each function takes a dataset, draws on `ax` (on a new figure where none is given) and returns the
artist; ``artist.figure`` is the figure. Only the pixels a figure needs are read. Figures of all
slits take slits from all over the programme where there are too many pixels, and say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, StepPatch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from .errors import DatasetError, ParameterError
from .master import evaluate, master_grid
from .moments import REFERENCE_TIME
from .project import master_image
from .quality import DEFAULT_EXCLUDE, flag_mask
from .residuals import sky_centres
from .schema import SHUTTER_CENTRES, validate
from .spans import span_grid

__all__ = [
    "plot_cloud",
    "plot_master_image",
    "plot_model_choice",
    "plot_residual_spectrum",
    "plot_residuals",
    "plot_selection",
    "plot_subtraction",
]

#: Pixels that a figure of all slits reads at most.
MAX_PIXELS = 2_000_000
#: Points past which a cloud is drawn as a two-dimensional histogram.
MAX_POINTS = 100_000

# Okabe & Ito's colours, which the colour-blind can tell apart.
_SKY, _BAD, _SOURCE = "#0072B2", "#D55E00", "#CC79A7"
_COLOURS = {"master": _SKY, "nods": "#E69F00", "heldout": "#009E73"}
_SPARE = ("#56B4E9", _SOURCE, "0.5")
_LABELS = {"heldout": "master, held out", "nods": "nodding"}
_METHODS = {"nods": "mean of the other nods", "master": "master background"}
_SCORES = {"heldout": "χ² a pixel, slits left out", "gcv": "generalised cross-validation"}
_SHORT = {"heldout": "held-out score", "gcv": "GCV", "chi2": "χ²"}
_CMAP = "viridis"
_STROKE = [withStroke(linewidth=2.0, foreground="black")]  # white on black shows on any flux
_WAVELENGTH = "wavelength (um)"
_FEW = 5  # pixels in a wavelength bin below which its median says nothing


# ------------------------------------------------------------------------------------------------
# One slitlet


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
    _need(ds, "selected", "select_background")
    one = _Slit(ds, slit, ["selected"])
    ax = _axes(ax, (7.1, 3.2))
    flux = np.where(one.bad, np.nan, one.before)
    image = one.draw(ax, flux, cmap=_CMAP, **_stretch(flux[one.open]))
    one.draw(ax, np.where(one.bad, 1.0, np.nan), cmap=ListedColormap([_BAD]))
    handles: list[Artist] = [Patch(color=_BAD, label="flagged or no value")]
    selected, yrel = one.data["selected"], one.data["yrel"].values
    styles = {True: ("-", "windows in use"), False: (":", "not in use")}
    found = set()
    for low, high in np.reshape(
        selected.attrs.get("yrel_windows", np.ravel(SHUTTER_CENTRES)), (-1, 2)
    ):
        used = bool((selected.values & (yrel >= low) & (yrel <= high)).any())
        found.add(used)
        lines = one.contour(ax, (low, high), linestyles=styles[used][0], colors="white")
        lines.set(path_effects=_STROKE, linewidths=1.0)
    for used in sorted(found, reverse=True):
        style, label = styles[used]
        handles.append(Line2D([], [], color="w", ls=style, path_effects=_STROKE, label=label))
    if np.isfinite(one.source):
        lines = one.contour(ax, (one.source - 0.5, one.source + 0.5), colors=_SOURCE)
        lines.set(linestyles="--", linewidths=1.5)
        handles.append(Line2D([], [], color=_SOURCE, ls="--", lw=1.5, label="source's shutter"))
        text = ax.text(*one.place(one.source), "source", fontsize="small", va="center")
        text.set(color="white", path_effects=_STROKE)
    _legend_above(ax, handles, one.title, columns=4)
    _colourbar(image, ax, f"flux ({_units(ds)})")
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
    _need(result, "background", "subtract or subtract_nods")
    one = _Slit(result, slit, [])
    panels = _figure((7.1, 5.2), 3) if axes is None else list(np.ravel(np.asarray(axes)))
    if len(panels) != 3:
        raise ParameterError("wrong number of axes", expected="3", found=len(panels))
    before, after = (np.where(one.bad, np.nan, v) for v in (one.before, one.data["flux"].values))
    # From the noise about zero, which the last panel shows, to sky and source in the first.
    span = {"vmin": _stretch(after[one.open])["vmin"], "vmax": _stretch(before[one.open])["vmax"]}
    what = _METHODS.get(result.attrs.get("background_method", ""), "background")
    images = []
    for panel, values, title in (
        (panels[0], before, "before"),
        (panels[1], one.data["background"].values, what),
        (panels[2], after, "after (grey: flagged or without background)"),
    ):
        panel.set_facecolor("0.85")
        images.append(one.draw(panel, values, cmap=_CMAP, **span))
        panel.set_title(title, loc="left", fontsize="medium")
        panel.label_outer()
    panels[0].set_title(one.title, loc="right", fontsize="small")
    _colourbar(images[-1], panels, f"flux ({_units(result)})", extend="both")
    return images[-1]


class _Slit:
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


# ------------------------------------------------------------------------------------------------
# The master


def plot_cloud(ds: xr.Dataset, master: xr.Dataset, *, ax: Axes | None = None) -> Artist:
    """Flux of the selected pixels against wavelength, with the master and what it leaves out.

    A point each, or a two-dimensional histogram past 100,000. A pixel is marked as clipped where
    it lies further from the master than ``clip`` times the fit's final scatter, in units of the
    noise the fit weighs with (read noise, and the photon noise of the master). The fit itself
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
    _need(ds, "selected", "select_background")
    ax = _axes(ax, (7.1, 4.0))
    part, note = _subset(ds)
    wavelength, flux, z = _cloud(part, master)
    limit = master.attrs["clip"] * float(master["pass_scatter"].values[-1])
    clipped = np.abs(z) > limit
    if master.attrs["model"] == "seed":
        clipped |= flux <= 0  # has no logarithm
    grid = master_grid(master)
    at = (grid.edges[:-1, None] + grid.widths[:, None] * master["node"].values).ravel()
    sky, error = evaluate(master, at, mean=True), master["sky_error"].values.ravel()
    x_limits = _range(at[np.isfinite(sky)], wavelength, margin=0.01)
    y_limits = _range(np.percentile(flux[~clipped], [0.02, 99.98]) if (~clipped).any() else flux)
    ax.set(xlim=x_limits, ylim=y_limits, xlabel=_WAVELENGTH)
    ax.set_ylabel(f"{'flux / response' if 'response' in ds.coords else 'flux'} ({_units(ds)})")
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
        _colourbar(artist, ax, "pixels a cell")
        handle: Artist = Patch(color="0.6", label=label)
    else:
        size = 2 if x.size > 1e4 else 5
        handle = artist = ax.scatter(x, y, s=size, color="0.55", linewidths=0, label=label)
    artist.set_rasterized(True)
    n, used = (int(master[k].sum()) for k in ("n_selected", "n_used"))
    label = f"beyond {limit:.1f} σ: {clipped.sum():,} (the fit left out {n - used:,} of {n:,})"
    style = {"color": _BAD, "ms": 4, "mew": 1, "clip_on": False, "label": label}
    handles = [handle, *ax.plot(wavelength[clipped], shown[clipped], "x", **style)]
    handles += ax.plot(at, sky, color=_SKY, lw=1.2, label=f"master: {_model(master)}")
    handles[-1].set_path_effects([withStroke(linewidth=2.2, foreground="white")])
    band = ax.fill_between(at, sky - 3 * error, sky + 3 * error, color=_SKY, alpha=0.35, lw=0)
    band.set(label="its standard error x 3", zorder=2.1)
    handles.append(band)
    knots = master["knots"].values if "knots" in master else np.empty(0)
    knots = knots[(knots >= x_limits[0]) & (knots <= x_limits[1])]
    if knots.size:
        style = {"color": _SKY, "ms": 6, "mew": 0.7, "transform": ax.get_xaxis_transform()}
        handles += ax.plot(knots, np.full(knots.size, 0.015), "|", label="knots", **style)
    notes = [f"pixels of {note}"] if note else []
    if off := int((flux != shown).sum()):
        notes.append(f"{off:,} off scale, drawn at the edge")
    _legend_above(ax, handles, "; ".join(notes), columns=2)
    return artist


def _cloud(part: xr.Dataset, master: xr.Dataset) -> tuple[NDArray, NDArray, NDArray]:
    """Wavelength, flux of the sky and normalised residual of the selected pixels."""
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
    mean = evaluate(master, value["wavelength"], mean=True) * response
    # As in the fit: the datum's own photon noise gives way to the model's.
    grid = master_grid(master)
    n = np.nan_to_num(grid.pixel_coordinate(value["wavelength"])).astype(int)
    gain = master["photon_gain"].values[np.minimum(n, grid.size - 1)]
    gain = gain * np.where(time > 0, REFERENCE_TIME / np.where(time > 0, time, 1), 1)
    rest = value.get("var_rnoise", np.maximum(variance - gain * flux, 0.02 * variance))
    variance = np.where(rest > 0, rest + gain * np.maximum(mean, 0), variance)
    z = (flux - mean) / np.sqrt(variance)
    # Pixels past the fitted range have no master to be far from.
    known = np.isfinite(z)
    return value["wavelength"][known], (flux / response)[known], z[known]


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
    ax = _axes(ax, (7.1, 2.4))
    sky = image["sky"].values
    edges = image["wavelength_edge"].values, image["yrel_edge"].values
    mesh = ax.pcolormesh(*edges, sky, cmap=_CMAP, rasterized=True, **_stretch(sky, 0.1))
    ax.set(xlabel=_WAVELENGTH, ylabel="yrel (shutter pitches)")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _colourbar(mesh, ax, f"sky ({_units(master)})")
    return mesh


def plot_model_choice(master: xr.Dataset, *, ax: Axes | None = None) -> Line2D:
    """Score of every model tried against its degrees of freedom, the chosen one marked.

    The score is chi2 a pixel of the slits left out of the fit, or, where nothing could be left
    out, the criterion that chose.

    Parameters
    ----------
    master
        From `fit_master`.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.lines.Line2D
        The mark of the chosen model.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> plot_model_choice(mx.fit_master(ds)).axes.get_xlabel()
    'degrees of freedom'
    """
    criterion = master.attrs["chosen_by"]
    score = "heldout" if np.isfinite(master["score_heldout"].values).any() else criterion
    dof, values = master["score_dof"].values, master[f"score_{score}"].values
    chosen = int(np.flatnonzero(master["score_chosen"].values)[0])
    ax = _axes(ax, (4.6, 3.6))
    # Polynomials have no knots: they make one series.
    spacing = np.nan_to_num(master["score_spacing"].values)
    series = np.unique(spacing)
    shades = colormaps["cividis"](np.linspace(0, 0.92, series.size))
    for shade, step in zip(shades, series, strict=True):
        of = np.flatnonzero(spacing == step)
        of = of[np.argsort(dof[of])]
        label = f"{step:g} px" if step else "by degree"
        ax.plot(dof[of], values[of], ".-", color=shade, lw=1, ms=5, label=label)
    style: dict[str, Any] = {"ms": 13, "mfc": "none", "mec": _BAD, "mew": 1.5, "zorder": 5}
    mark = ax.plot(dof[chosen], values[chosen], "*", label="chosen", **style)[0]
    # The worst candidates would squeeze those that compete into one line.
    finite = values[np.isfinite(values)]
    best = finite.min()
    top = min(finite.max(), max(best + 3 * (np.median(finite) - best), values[chosen]))
    ax.set(xlabel="degrees of freedom", xscale="log", ylabel=_SCORES.get(score, score))
    if master.attrs["model"] == "seed":
        ax.set_ylabel("squared residual of ln flux a pixel, slits left out")
    ax.set_ylim(_range(np.array([best, top]), margin=0.08))
    seen = values <= ax.get_ylim()[1]
    ax.set_xlim(0.8 * dof[seen].min(), 1.25 * dof[seen].max())
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    what = str(master["candidate"].values[chosen])
    if spacing[chosen]:
        penalty = float(master["score_penalty"].values[chosen])
        what = f"knots {spacing[chosen]:g} px apart, penalty {penalty:g}"
    title = f"{finite.size} models, {int((~seen).sum())} of them off scale\n"
    title += f"chosen by lowest {_SHORT.get(criterion, criterion)}: {what}"
    _legend_above(ax, ax.get_legend_handles_labels()[0], title, columns=5)
    return mark


# ------------------------------------------------------------------------------------------------
# What is left


def plot_residuals(results: Mapping[str, xr.Dataset], *, ax: Axes | None = None) -> StepPatch:
    """Histograms of the normalised residuals at the centres of sky shutters.

    All of the same pixels, those that every result has. With the unit Gaussian that true errors
    and a true background would give, and a Gaussian of each histogram's median and scaled MAD.

    Parameters
    ----------
    results
        Datasets from `residuals` by name: ``"master"``, and perhaps ``"nods"``, ``"heldout"``.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.patches.StepPatch
        The first histogram: density of pixels over the residual in units of its error.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> nods = mx.residuals(mx.subtract_nods(ds))
    >>> plot_residuals({"nods": nods}).axes.get_xlabel()
    'residual (units of its error)'
    """
    sample = _Sample(results)
    ax = _axes(ax, (4.6, 3.8))
    edges, fine = np.linspace(-6, 6, 61), np.linspace(-6, 6, 601)
    n = sample.wavelength.size
    steps = []
    for name, z, colour in sample.each("residual"):
        median = float(np.median(z))
        sigma = max(1.4826 * float(np.median(np.abs(z - median))), 1e-9)
        density = np.histogram(z, edges)[0] / (n * np.diff(edges))
        label = f"{_LABELS.get(name, name)}: σ = {sigma:.2f}"
        # Without a baseline: on a logarithmic axis there is no zero to go down to.
        steps.append(ax.stairs(density, edges, baseline=None, color=colour, lw=1.4, label=label))
        steps[-1].set_zorder(3 - 0.1 * len(steps))  # the first is the one to be seen
        ax.plot(fine, _gaussian((fine - median) / sigma) / sigma, color=colour, lw=0.9, ls="--")
    ax.plot([], [], color="0.3", lw=0.9, ls="--", label="Gaussians of these σ")
    ax.plot(fine, _gaussian(fine), color="black", lw=1, ls=":", label="unit Gaussian")
    # Half a pixel a bin is less than any histogram can tell.
    ax.set(xlim=(-6, 6), yscale="log", ylim=(0.5 / (n * (edges[1] - edges[0])), 0.8))
    ax.set(xlabel="residual (units of its error)", ylabel="density of pixels (per unit)")
    title = f"{n:,} pixels at sky centres{sample.note}"
    _legend_above(ax, ax.get_legend_handles_labels()[0], title, columns=2)
    return steps[0]


def plot_residual_spectrum(
    results: Mapping[str, xr.Dataset], *, bin_pixels: int = 4, ax: Axes | None = None
) -> Line2D:
    """What is left when all sky pixels of a wavelength are taken together.

    The median residual in wavelength bins, in per cent of the sky, and its standard error from
    the scatter in the bin. A median, because a mean weighted by the pixels' own errors, which come
    from the pixels' own counts, lies low. Nodded residuals of a detector pixel cancel over the
    nods whatever the sky does, so that their flat line says nothing: compare them in single
    exposures, as of ``result.isel(slit=result.nod == 1)``.

    Parameters
    ----------
    results
        Datasets from `residuals` by name: ``"master"``, and perhaps ``"nods"``, ``"heldout"``.
    bin_pixels
        Width of a bin in detector pixels.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.lines.Line2D
        The first line, per cent against um.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> nods = mx.residuals(mx.subtract_nods(ds))
    >>> plot_residual_spectrum({"nods": nods}).axes.get_ylabel()
    'median residual (% of the sky)'
    """
    if int(bin_pixels) != bin_pixels or bin_pixels < 1:
        raise ParameterError(
            "unusable bin width", expected="whole detector pixels >= 1", found=bin_pixels
        )
    sample = _Sample(results)
    ax = _axes(ax, (7.1, 3.4))
    edges = span_grid(next(iter(results.values()))).edges[::bin_pixels]
    middle = 0.5 * (edges[1:] + edges[:-1])
    order = np.argsort(sample.wavelength, kind="stable")
    bins = np.split(order, np.searchsorted(sample.wavelength[order], edges))[1:-1]
    sky = np.abs(_by_bin(sample.sky, bins)[0])
    lines: list[Line2D] = []
    sizes = [np.empty(0)]
    for name, flux, colour in sample.each("flux"):
        value, error = (100 * v / sky for v in _by_bin(flux, bins))
        label = _LABELS.get(name, name)
        if not lines:
            band = ax.fill_between(middle, -error, error, step="mid", color="0.85", lw=0)
            band.set_label(f"standard error ({label})")
        with np.errstate(invalid="ignore"):
            rms = np.sqrt(np.nanmean((value[error > 0] / error[error > 0]) ** 2))
        label += " (cancels over nods)" if name == "nods" else f": rms {rms:.2f} standard errors"
        lines += ax.step(middle, value, where="mid", color=colour, lw=1.1, label=label)
        lines[-1].set_zorder(3 - 0.1 * len(lines))  # the first is the one to be seen
        sizes += [np.abs(value), 2 * error]
    ax.axhline(0, color="black", lw=0.8, ls=":")
    ax.set(xlabel=_WAVELENGTH, ylabel="median residual (% of the sky)")
    size = np.concatenate(sizes)
    if np.isfinite(size).any():
        # The ends, where there is next to no light, do not set the scale.
        top = 1.1 * float(np.nanpercentile(size, 98)) or 1.0
        ax.set_ylim(-top, top)
        ax.set_xlim(_range(middle[np.isfinite(sky)], margin=0.01))
    title = f"{sample.wavelength.size:,} pixels at sky centres{sample.note}, in bins of "
    title += f"{bin_pixels} detector pixels"
    _legend_above(ax, ax.get_legend_handles_labels()[0], title, columns=2)
    return lines[0]


class _Sample:
    """Residuals at sky centres that all results have, of slits all over the programme."""

    def __init__(self, results: Mapping[str, xr.Dataset]):
        if not results:
            raise ParameterError("nothing to draw", expected="residual datasets by name")
        columns: dict[str, Any] = {}
        shapes = set()
        for name, ds in results.items():
            _need(ds, "residual", "residuals")
            shapes.add(ds["flux"].shape)
            if len(shapes) > 1:
                raise DatasetError("residuals of different slits", where=name, found=shapes)
            part, note = _subset(ds)
            columns[f"use {name}"] = sky_centres(part).variable
            for key in ("residual", "flux", "background", "wavelength"):
                columns[f"{key} {name}"] = part[key].variable
        # One computation, so that pixels the results share are read once.
        table = xr.Dataset(columns).compute()
        # A result without any residual, such as nods of a single exposure, restricts nothing.
        self.names = [name for name in results if table[f"use {name}"].values.any()]
        if not self.names:
            raise DatasetError(
                "no pixel at the centre of a sky shutter has a residual",
                expected="sky slits, or slits with a known source shutter, and a background there",
            )
        use = np.logical_and.reduce([table[f"use {name}"].values for name in self.names])
        self.values = {str(k): v.values[use].astype(float) for k, v in table.items()}
        self.wavelength = self.values[f"wavelength {self.names[0]}"]
        self.sky = self.values[f"background {self.names[0]}"]
        self.note = f" of {note}" if note else ""

    def each(self, key: str) -> list[tuple[str, NDArray, str]]:
        """Name, values and colour of each result."""
        spare = cycle(_SPARE)
        return [(n, self.values[f"{key} {n}"], _COLOURS.get(n) or next(spare)) for n in self.names]


def _by_bin(values: NDArray, bins: list[NDArray]) -> tuple[NDArray, NDArray]:
    """Median of each bin and its standard error, NaN where there are too few pixels."""
    median, error = np.full((2, len(bins)), np.nan)
    for k, index in enumerate(bins):
        if index.size >= _FEW:
            median[k] = np.median(values[index])
            width = 1.4826 * np.median(np.abs(values[index] - median[k]))
            # The median of n normal values scatters sqrt(pi / 2) times as much as their mean.
            error[k] = np.sqrt(np.pi / 2 / index.size) * width
    return median, error


def _gaussian(x: NDArray) -> NDArray:
    return np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)


# ------------------------------------------------------------------------------------------------


def _subset(ds: xr.Dataset) -> tuple[xr.Dataset, str]:
    """Slits from all over the dataset, few enough to be drawn, and a note where not all are."""
    n = ds.sizes["slit"]
    most = max(1, MAX_PIXELS // max(1, ds.sizes["y"] * ds.sizes["x"]))
    if n <= most:
        return ds, ""
    # One of each of equal runs of slits, but not always the same one: steps that fall in with the
    # number of slitlets in an exposure would draw one slitlet over and over.
    at = np.arange(most) + np.random.default_rng(0).random(most)
    index = (at * n / most).astype(int)
    return ds.isel(slit=index), f"{index.size:,} of {n:,} slits"


def _need(ds: xr.Dataset, name: str, source: str) -> None:
    validate(ds)
    if name not in ds:
        found = " ".join(map(str, ds.data_vars))
        raise DatasetError(
            f"the dataset has no {name}", expected=f"a dataset from {source}", found=found
        )


def _units(ds: xr.Dataset) -> str:
    return ds["flux"].attrs["units"] if "flux" in ds else ds.attrs["units"]


def _stretch(values: NDArray, outside: float = 1.0) -> dict[str, Any]:
    """Colour limits that leave out a percentage at either end."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [outside, 100 - outside]) if finite.size else (0.0, 1.0)
    return {"vmin": float(low), "vmax": float(high if high > low else low + 1)}


def _range(*values: NDArray, margin: float = 0.06) -> tuple[float, float]:
    together = np.concatenate(values)
    low, high = (together.min(), together.max()) if together.size else (0.0, 1.0)
    pad = margin * (high - low) or 0.1 * abs(high) or 1.0
    return float(low - pad), float(high + pad)


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return _figure(size, 1)[0] if ax is None else ax


def _figure(size: tuple[float, float], rows: int) -> list[Axes]:
    # Only where a figure is asked for: pyplot chooses a backend and keeps its figures.
    from matplotlib import pyplot

    _, axes = pyplot.subplots(rows, figsize=size, layout="constrained", squeeze=False)
    return list(axes[:, 0])


def _legend_above(ax: Axes, handles: list, title: str, *, columns: int) -> None:
    """A legend that hides no data."""
    ax.legend(
        handles=handles,
        title=title or None,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        alignment="left",
        handlelength=1.5,
        columnspacing=1.2,
        labelspacing=0.3,
    )


def _colourbar(artist: Any, ax: Axes | list[Axes], label: str, **style: Any) -> None:
    artist.figure.colorbar(artist, ax=ax, label=label, pad=0.01, **style)
