"""Figures: what was selected, fitted and subtracted, and what is left.

Each function takes a dataset, draws on `ax` (a new figure where none is given) and returns the
artist; ``artist.figure`` is the figure. Only the pixels a figure needs are read. Figures of all
slits take slits spread over the whole programme where there are too many pixels, and say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, StepPatch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
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
_LABELS = {"heldout": "master, held out", "nods": "nodding"}
_IMAGE, _DENSITY = "viridis", "Greys"
_WAVELENGTH = "wavelength (um)"
_YREL = "yrel (shutter pitches)"
_FEW = 5  # pixels in a wavelength bin below which its median says nothing


# ------------------------------------------------------------------------------------------------
# One slitlet


def plot_selection(ds: xr.Dataset, *, slit: int = 0, ax: Axes | None = None) -> AxesImage:
    """One slitlet as the detector saw it, with the pixels that count as sky.

    Flux with a robust stretch; flagged pixels in a colour of their own; the yrel windows of the
    selection outlined, dashed where none of their pixels is selected; the source's shutter
    marked.

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
    one = _one(ds, slit, ["selected"])
    ax = _axes(ax, (7.1, 3.2))
    flux, inside, bad = _pixels(one)
    extent, box = _frame(one, inside)
    image = ax.imshow(
        np.where(bad, np.nan, flux)[box],
        extent=extent,
        origin="lower",
        aspect="auto",
        cmap=_IMAGE,
        interpolation="none",
        **_stretch(flux[inside & ~bad]),
    )
    flagged = np.ma.masked_where(~bad, bad)[box]
    ax.imshow(
        flagged,
        extent=extent,
        origin="lower",
        aspect="auto",
        cmap=ListedColormap([_BAD]),
        interpolation="none",
    )
    handles: list[Artist] = [Patch(color=_BAD, label="flagged or without value")]
    handles += _outline(ax, one, inside, box, extent)
    ax.set(xlim=extent[:2], ylim=extent[2:])
    _detector_labels(ax)
    _legend_above(ax, handles, _slit_title(one))
    _colourbar(image, ax, f"flux ({_units(ds)})")
    return image


def _outline(ax: Axes, one: xr.Dataset, inside: NDArray, box: tuple, extent: tuple) -> list[Artist]:
    """Windows of the selection and the source's shutter, as contours of yrel."""
    yrel, selected = one["yrel"].values, one["selected"].values
    shown = np.ma.masked_where(~inside, yrel)[box]
    x = np.arange(shown.shape[1]) + extent[0] + 0.5
    y = np.arange(shown.shape[0]) + extent[2] + 0.5
    on = {"linewidths": 1.0, "colors": "white"}
    stroke = [withStroke(linewidth=2.0, foreground="black")]
    flat = one["selected"].attrs.get("yrel_windows", np.ravel(SHUTTER_CENTRES))
    styles = set()
    for low, high in np.reshape(flat, (-1, 2)):
        used = bool((selected & (yrel >= low) & (yrel <= high)).any())
        styles.add(used)
        levels = [v for v in (low, high) if shown.min() < v < shown.max()]
        if levels:
            # White on black shows on any flux.
            lines = ax.contour(x, y, shown, levels, linestyles="-" if used else ":", **on)
            lines.set_path_effects(stroke)
    names = {True: "windows in use", False: "windows not in use"}
    handles: list[Artist] = [
        Line2D([], [], color="white", ls="-" if used else ":", path_effects=stroke, label=name)
        for used, name in names.items()
        if used in styles
    ]
    source = float(one["source_shutter"])
    if np.isfinite(source) and not bool(one["is_background"]):
        levels = [v for v in (source - 0.5, source + 0.5) if shown.min() < v < shown.max()]
        if levels:
            ax.contour(x, y, shown, levels, colors=_SOURCE, linewidths=1.5, linestyles="--")
        handles.append(Line2D([], [], color=_SOURCE, ls="--", lw=1.5, label="source's shutter"))
        # The marker stands past the slit's end, level with the shutter there.
        column = np.flatnonzero(inside[box].any(axis=0))[-1]
        row = np.nanargmin(np.abs(np.ma.filled(shown[:, column], np.nan) - source))
        ax.plot(
            [x[column] + 2.5], [y[row]], marker="<", color=_SOURCE, clip_on=False, linestyle="none"
        )
    return handles


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
    one = _one(result, slit, [])
    if axes is None:
        axes = _figure((7.1, 5.2), 3)
    axes = list(np.ravel(axes))  # type: ignore[arg-type]
    if len(axes) != 3:
        raise ParameterError("wrong number of axes", expected="3", found=len(axes))
    before, inside, bad = _pixels(one)
    after, background = one["flux"].values, one["background"].values
    extent, box = _frame(one, inside)
    good = inside & ~bad
    # From the noise below zero, which the panel below shows, to the sky and source in that above.
    span = {"vmin": _stretch(after[good])["vmin"], "vmax": _stretch(before[good])["vmax"]}
    method = {"nods": "mean of the other nods", "master": "master background"}
    what = method.get(result.attrs.get("background_method", ""), "background")
    for panel, values, title in zip(
        axes, (before, background, after), ("before", what, "after"), strict=True
    ):
        values = np.where(good, values, np.nan)
        panel.set_facecolor("0.85")
        image = panel.imshow(
            np.where(inside, values, np.nan)[box],
            extent=extent,
            origin="lower",
            aspect="auto",
            cmap=_IMAGE,
            interpolation="none",
            **span,
        )
        panel.set_title(title, loc="left", fontsize="medium")
        _detector_labels(panel)
        panel.label_outer()
    axes[0].set_title(_slit_title(one), loc="right", fontsize="small")
    image.figure.colorbar(image, ax=axes, label=f"flux ({_units(result)})", extend="both", pad=0.01)
    return image


def _one(ds: xr.Dataset, slit: int, extra: list[str]) -> xr.Dataset:
    """One slit in memory."""
    n = ds.sizes["slit"]
    if not -n <= slit < n:
        raise ParameterError("no such slit", expected=f"an index below {n}", found=slit)
    names = ["flux", *extra] + (["background"] if "background" in ds else [])
    one = ds[names].isel(slit=slit)
    return one[names + ["wavelength", "yrel", "quality"]].load()


def _pixels(one: xr.Dataset) -> tuple[NDArray, NDArray, NDArray]:
    """Flux before subtraction, which pixels lie in the slit, and which of those are bad."""
    flux = one["flux"].values
    if "background" in one:
        flux = flux + one["background"].values
    inside = np.isfinite(one["wavelength"].values) & np.isfinite(one["yrel"].values)
    bits = flag_mask(one["quality"], DEFAULT_EXCLUDE, missing="ignore")
    if "selected" in one:
        bits = one["selected"].attrs.get("excluded_flags", bits)
    quality = one["quality"].values
    flagged = (quality & quality.dtype.type(bits)) != 0
    return flux, inside, inside & (flagged | ~np.isfinite(flux))


def _frame(one: xr.Dataset, inside: NDArray) -> tuple[tuple, tuple]:
    """Extent in detector pixels of the slit without its padding, and the slices that cut it out."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if rows.size == 0:
        raise DatasetError(
            "no pixel of this slit has a wavelength", where=_slit_title(one), expected="some"
        )
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    x, y = int(one["x_start"]), int(one["y_start"])
    # Whole numbers are pixel centres.
    left, right = x + columns[[0, -1]] + [-0.5, 0.5]
    bottom, top = y + rows[[0, -1]] + [-0.5, 0.5]
    return (left, right, bottom, top), box


def _slit_title(one: xr.Dataset) -> str:
    name = str(one["source_name"].values)
    parts = [f"{one['exposure'].values} {one['detector'].values}", f"slitlet {int(one['slitlet'])}"]
    return ", ".join(parts + ([f"source {name}"] if name and not one["is_background"] else []))


# ------------------------------------------------------------------------------------------------
# The master


def plot_cloud(ds: xr.Dataset, master: xr.Dataset, *, ax: Axes | None = None) -> Artist:
    """Flux of the selected pixels against wavelength, with the master and what it leaves out.

    A point each, or a two-dimensional histogram past 100,000. A pixel is marked as clipped where
    it lies further from the master than ``clip * scatter`` times its noise, with the noise of the
    fit (read noise and the photon noise of the master). The fit itself clips about a running
    centre at a running width, so that its own count, given in the legend, differs a little.

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
    scatter = float(master["pass_scatter"].values[-1])
    clipped = ~(np.abs(z) <= master.attrs["clip"] * scatter)
    if master.attrs["model"] == "seed":
        clipped |= flux <= 0  # it has no logarithm
    grid = master_grid(master)
    at = (grid.edges[:-1, None] + grid.widths[:, None] * master["node"].values).ravel()
    sky = evaluate(master, at, mean=True)
    error = master["sky_error"].values.ravel()
    low, high = _limits(flux, clipped, sky)
    off = int(((flux < low) | (flux > high)).sum())
    shown = ~clipped & (flux >= low) & (flux <= high)
    ticks = master["knots"].values if "knots" in master else np.empty(0)
    limits = _padded(at[np.isfinite(sky)], wavelength)
    ax.set(xlim=limits, ylim=(low, high))
    label = f"selected pixels ({(~clipped).sum():,})"
    artist: Artist
    if shown.sum() > MAX_POINTS:
        artist = ax.hexbin(
            wavelength[shown], flux[shown], gridsize=(220, 90), extent=(*limits, low, high),
            bins="log", mincnt=1, cmap=_DENSITY, linewidths=0.1, rasterized=True,
        )  # fmt: skip
        _colourbar(artist, ax, "pixels a cell")
        handle: Artist = Patch(color="0.6", label=label)
    else:
        handle = artist = ax.scatter(
            wavelength[shown], flux[shown], s=3 if shown.sum() > 1e4 else 6, color="0.55",
            linewidths=0, label=label, rasterized=True,
        )  # fmt: skip
    beyond = ax.plot(
        wavelength[clipped], np.clip(flux[clipped], low, high), "x", color=_BAD, ms=4, mew=1,
        clip_on=False, rasterized=True, label=_clip_label(master, clipped, scatter, off),
    )[0]  # fmt: skip
    line = ax.plot(at, sky, color=_SKY, lw=1.2, label=f"master ({_model(master)})")[0]
    band = ax.fill_between(
        at, sky - 3 * error, sky + 3 * error, color=_SKY, alpha=0.35, lw=0, label="its error, 3 σ"
    )
    handles = [handle, beyond, line, band]
    ticks = ticks[(ticks >= limits[0]) & (ticks <= limits[1])]
    if ticks.size:
        handles += ax.plot(
            ticks, np.full(ticks.size, 0.015), "|", color=_SKY, ms=6, mew=0.7,
            transform=ax.get_xaxis_transform(), label="knots",
        )  # fmt: skip
    ax.set(
        xlabel=_WAVELENGTH,
        ylabel=f"{'flux / response' if 'response' in part.coords else 'flux'} ({_units(ds)})",
    )
    ax.legend(handles=handles, fontsize="small", title=note or None, title_fontsize="small")
    return artist


def _cloud(part: xr.Dataset, master: xr.Dataset) -> tuple[NDArray, NDArray, NDArray]:
    """Wavelength, flux of the sky, and normalised residual of the selected pixels."""
    names = ["flux", "error", "selected", "wavelength", "background", "background_error"]
    names += ["var_rnoise", "var_poisson", "response"]
    columns = part[[n for n in names if n in part.variables]].compute()
    keep = columns["selected"].values
    value = {n: v.values[keep].astype(float) for n, v in columns.variables.items() if v.ndim == 3}
    time = np.broadcast_to(columns["exposure_time"].values[:, None, None], keep.shape)[keep]
    flux, variance = value["flux"], value["error"] ** 2
    if "background" in value:
        flux = flux + value["background"]
        variance = np.maximum(variance - value["background_error"] ** 2, 0)
    response = value.get("response", np.ones(flux.size))
    mean = evaluate(master, value["wavelength"], mean=True) * response
    # The noise the fit weighs with: the datum's own photon noise gives way to the model's.
    grid = master_grid(master)
    n = np.nan_to_num(grid.pixel_coordinate(value["wavelength"])).astype(int)
    gain = master["photon_gain"].values[np.clip(n, 0, grid.size - 1)]
    gain = gain * np.where(time > 0, REFERENCE_TIME / np.where(time > 0, time, 1), 1)
    rest = value.get("var_rnoise", np.maximum(variance - gain * flux, 0.02 * variance))
    model = np.where(rest > 0, rest + gain * np.maximum(mean, 0), variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (flux - mean) / np.sqrt(np.where(np.isfinite(model), model, variance))
    # Pixels past the fitted range have no master to be far from.
    known = np.isfinite(z)
    return value["wavelength"][known], (flux / response)[known], z[known]


def _limits(flux: NDArray, clipped: NDArray, sky: NDArray) -> tuple[float, float]:
    """Flux limits that show the sky and its scatter, whatever single pixels do."""
    values = flux[~clipped] if (~clipped).any() else sky[np.isfinite(sky)]
    low, high = np.percentile(values, [0.02, 99.98]) if values.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _clip_label(master: xr.Dataset, clipped: NDArray, scatter: float, off: int) -> str:
    n, used = (int(master[k].sum()) for k in ("n_selected", "n_used"))
    limit = f"{master.attrs['clip']:g} x {scatter:.2f}"
    text = f"beyond {limit} σ ({clipped.sum():,}; left out by the fit: {n - used:,} of {n:,})"
    return text + (f"\n{off:,} off scale, drawn at the edge" if off else "")


def _model(master: xr.Dataset) -> str:
    a = master.attrs
    if a["model"] == "bspline":
        return f"B-spline, {a['dof']:.0f} degrees of freedom"
    return (
        f"{'seed recipe' if a['model'] == 'seed' else 'log-polynomial'}, degree {a['degree']:.0f}"
    )


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
    mesh = ax.pcolormesh(
        image["wavelength_edge"].values, image["yrel_edge"].values, sky, cmap=_IMAGE,
        rasterized=True, **_stretch(sky, 0.1),
    )  # fmt: skip
    ax.set(xlabel=_WAVELENGTH, ylabel=_YREL)
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
    ax = _axes(ax, (4.6, 3.4))
    spacing = master["score_spacing"].values
    series = np.unique(spacing[np.isfinite(spacing)])
    if series.size:
        shades = _colormap(series.size)
        for shade, step in zip(shades, series, strict=True):
            of = np.flatnonzero(spacing == step)
            of = of[np.argsort(dof[of])]
            ax.plot(dof[of], values[of], ".-", color=shade, lw=1, ms=5, label=f"{step:g}")
        title = "knot distance (pixels)"
    else:
        order = np.argsort(dof)
        ax.plot(dof[order], values[order], ".-", color="0.4", lw=1, ms=6, label="by degree")
        title = ""
    why = "" if criterion == score else f", by lowest {criterion}"
    mark = ax.plot(
        dof[chosen], values[chosen], "*", ms=14, mfc="none", mec=_BAD, mew=1.5, zorder=5,
        label=f"chosen: {master['candidate'].values[chosen]}{why}",
    )[0]  # fmt: skip
    finite = values[np.isfinite(values)]
    best = finite.min()
    # The worst candidates would squeeze those that compete into one line.
    top = min(finite.max(), best + max(4 * (np.median(finite) - best), values[chosen] - best))
    margin = 0.08 * (top - best) or 0.1 * abs(best) or 1.0
    ax.set(xlabel="degrees of freedom", xscale="log", ylim=(best - margin, top + margin))
    names = {"heldout": "χ² a pixel, slits left out", "gcv": "generalised cross-validation"}
    ax.set_ylabel(names.get(score, score))
    above = int((finite > top).sum())
    note = f"{above} of {finite.size} off scale" if above else ""
    ax.legend(fontsize="x-small", title=", ".join(t for t in (title, note) if t) or None,
              title_fontsize="x-small", ncols=2 if series.size else 1)  # fmt: skip
    return mark


def _colormap(n: int) -> list:
    from matplotlib import colormaps

    return list(colormaps["cividis"](np.linspace(0, 0.92, n)))


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
        The first histogram, a density (fraction of pixels a unit of residual).

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> nods = mx.residuals(mx.subtract_nods(ds))
    >>> plot_residuals({"nods": nods}).axes.get_xlabel()
    'residual / error (1)'
    """
    sample, note = _sky_sample(results)
    ax = _axes(ax, (4.6, 3.6))
    edges = np.linspace(-6, 6, 61)
    middle = np.linspace(-6, 6, 601)
    first: StepPatch | None = None
    n = sample["wavelength"].size
    for name, z, colour in _sets(sample, "z"):
        median = np.median(z)
        sigma = 1.4826 * np.median(np.abs(z - median))
        counts, _ = np.histogram(z, edges)
        label = f"{_LABELS.get(name, name)}: σ = {sigma:.2f}, median {median:+.2f}"
        patch = ax.stairs(
            counts / (n * np.diff(edges)), edges, color=colour, lw=1.5, label=label,
            baseline=None,
        )  # fmt: skip
        ax.plot(middle, _gaussian(middle, median, sigma), color=colour, lw=0.9, ls="--")
        first = first or patch
    ax.plot(middle, _gaussian(middle, 0, 1), color="black", lw=1, ls=":", label="unit Gaussian")
    # Half a pixel a bin is the least a histogram can tell.
    ax.set(xlim=(-6, 6), yscale="log", ylim=(0.5 / (n * (edges[1] - edges[0])), 2.5))
    ax.set(xlabel="residual / error (1)", ylabel="fraction of pixels a unit")
    title = f"{n:,} pixels" + (f" of {note}" if note else "") + "; dashed: Gaussians of σ"
    ax.legend(fontsize="x-small", title=title, title_fontsize="x-small", loc="upper center")
    assert first is not None
    return first


def plot_residual_spectrum(
    results: Mapping[str, xr.Dataset], *, bin_pixels: int = 4, ax: Axes | None = None
) -> Line2D:
    """The residual that is left when all sky pixels of a wavelength are taken together.

    The median residual in wavelength bins, in per cent of the sky, and its standard error from
    the scatter in the bin. A median because weights by the pixels' own errors would pull a mean
    low: those errors come from the pixel's own counts. Nodded residuals of one detector pixel add
    up to nothing whatever the sky does, so that a flat line proves little there.

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
    sample, note = _sky_sample(results)
    ax = _axes(ax, (7.1, 3.4))
    edges = span_grid(next(iter(results.values()))).edges[::bin_pixels]
    order = np.argsort(sample["wavelength"], kind="stable")
    cuts = np.searchsorted(sample["wavelength"][order], edges)
    bins = [order[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    sky = _by_bin(sample["sky"], bins)[0]
    middle = 0.5 * (edges[1:] + edges[:-1])
    spread: list[NDArray] = []
    lines = []
    for name, flux, colour in _sets(sample, "flux"):
        with np.errstate(invalid="ignore", divide="ignore"):
            value, error = (100 * v / np.abs(sky) for v in _by_bin(flux, bins))
            noise = np.sqrt(np.nanmean((value / error) ** 2))
        if not lines:
            ax.fill_between(middle, -error, error, color="0.85", lw=0, step="mid",
                            label=f"standard error ({_LABELS.get(name, name)})")  # fmt: skip
        label = f"{_LABELS.get(name, name)}: rms {noise:.2f} x standard error"
        lines += ax.step(middle, value, where="mid", color=colour, lw=1.1, label=label)
        spread += [value, 2 * error]
    ax.axhline(0, color="black", lw=0.8, ls=":")
    ax.set(xlabel=_WAVELENGTH, ylabel="median residual (% of the sky)")
    finite = np.abs(np.concatenate(spread))
    finite = finite[np.isfinite(finite)]
    if finite.size:
        # The ends, where there is next to no light, do not set the scale.
        top = 1.15 * np.percentile(finite, 98)
        ax.set_ylim(-top, top)
    filled = middle[np.isfinite(sky)]
    if filled.size:
        ax.set_xlim(_padded(filled))
    title = f"bins of {bin_pixels} detector pixels" + (f", {note}" if note else "")
    ax.legend(fontsize="x-small", title=title, title_fontsize="x-small", ncols=2)
    return lines[0]


def _sky_sample(results: Mapping[str, xr.Dataset]) -> tuple[dict[str, Any], str]:
    """Residuals at sky centres that all results have, of slits all over the programme."""
    if not results:
        raise ParameterError("no results to draw", expected="residual datasets by name", found="{}")
    columns: dict[str, Any] = {}
    note = ""
    shape = None
    for i, (name, ds) in enumerate(results.items()):
        _need(ds, "residual", "residuals")
        if shape is not None and ds["flux"].shape != shape:
            raise DatasetError(
                "residuals of different slits", where=name, expected=shape, found=ds["flux"].shape
            )
        shape = ds["flux"].shape
        part, note = _subset(ds)
        if i == 0:
            columns["wavelength"] = part["wavelength"].variable
        columns[f"use{i}"] = sky_centres(part).variable
        for key in ("residual", "flux", "background"):
            columns[f"{key}{i}"] = part[key].variable
    # One computation, so that pixels the results share are read once.
    table = xr.Dataset(columns).compute()
    masks = [table[f"use{i}"].values for i in range(len(results))]
    present = [i for i, mask in enumerate(masks) if mask.any()]
    if not present:
        raise DatasetError(
            "no pixel at the centre of a sky shutter", expected="some with a background"
        )
    use = np.logical_and.reduce([masks[i] for i in present])
    names = list(results)
    return {
        "wavelength": table["wavelength"].values[use].astype(float),
        "sky": table[f"background{present[0]}"].values[use].astype(float),
        "z": {names[i]: table[f"residual{i}"].values[use].astype(float) for i in present},
        "flux": {names[i]: table[f"flux{i}"].values[use].astype(float) for i in present},
    }, note


def _sets(sample: dict[str, Any], key: str) -> list[tuple[str, NDArray, str]]:
    spare = iter([*(c for c in ("#56B4E9", _SOURCE, "#F0E442", "0.5")), *["0.3"] * 99])
    return [(n, v, _COLOURS.get(n) or next(spare)) for n, v in sample[key].items()]


def _by_bin(values: NDArray, bins: list[NDArray]) -> tuple[NDArray, NDArray]:
    """Median of each bin and its standard error, NaN where there are too few pixels."""
    median, error = np.full((2, len(bins)), np.nan)
    for k, index in enumerate(bins):
        if index.size >= _FEW:
            inside = values[index]
            median[k] = np.median(inside)
            width = 1.4826 * np.median(np.abs(inside - median[k]))
            # The median of n normal values scatters sqrt(pi / 2) times as much as their mean.
            error[k] = np.sqrt(np.pi / 2 / index.size) * width
    return median, error


def _gaussian(x: NDArray, mean: float, sigma: float) -> NDArray:
    sigma = max(sigma, 1e-9)
    return np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


# ------------------------------------------------------------------------------------------------


def _subset(ds: xr.Dataset) -> tuple[xr.Dataset, str]:
    """Slits from all over the dataset, so few that their pixels can be drawn, and what was done."""
    n = ds.sizes["slit"]
    most = max(1, MAX_PIXELS // max(1, ds.sizes["y"] * ds.sizes["x"]))
    if n <= most:
        return ds, ""
    # Multiples of the golden ratio lie evenly, and unlike equal steps never fall in step with the
    # number of slitlets in an exposure, which would draw one slitlet over and over.
    index = np.unique((n * np.mod(np.arange(most) * 0.5 * (np.sqrt(5) - 1), 1)).astype(int))
    return ds.isel(slit=index), f"{index.size:,} of {n:,} slits"


def _need(ds: xr.Dataset, name: str, source: str) -> None:
    validate(ds)
    if name not in ds:
        raise DatasetError(
            f"the dataset has no {name}", expected=f"a dataset from {source}",
            found=" ".join(map(str, ds.data_vars)),
        )  # fmt: skip


def _stretch(values: NDArray, outside: float = 1.0) -> dict[str, float]:
    """Colour limits between percentiles."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return {"vmin": 0.0, "vmax": 1.0}
    low, high = np.percentile(finite, [outside, 100 - outside])
    return {"vmin": float(low), "vmax": float(high if high > low else low + 1)}


def _padded(*values: NDArray) -> tuple[float, float]:
    together = np.concatenate(values)
    low, high = (together.min(), together.max()) if together.size else (0.0, 1.0)
    margin = 0.01 * (high - low) or 0.1
    return float(low - margin), float(high + margin)


def _units(ds: xr.Dataset) -> str:
    return ds["flux"].attrs["units"] if "flux" in ds else ds.attrs["units"]


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return _figure(size, 1)[0] if ax is None else ax


def _figure(size: tuple[float, float], rows: int) -> list[Axes]:
    # Only where a figure is asked for: importing pyplot looks for a display.
    from matplotlib import pyplot

    _, axes = pyplot.subplots(rows, figsize=size, layout="constrained", squeeze=False)
    return list(axes[:, 0])


def _detector_labels(ax: Axes) -> None:
    ax.set(xlabel="detector column (pixel)", ylabel="detector row (pixel)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _legend_above(ax: Axes, handles: list[Artist], title: str) -> None:
    ax.legend(
        handles=handles, title=title, alignment="left", loc="lower left", borderaxespad=0,
        bbox_to_anchor=(0, 1.02), ncols=4, fontsize="x-small", title_fontsize="small",
        frameon=False, handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip


def _colourbar(artist: Any, ax: Axes, label: str) -> None:
    ax.figure.colorbar(artist, ax=ax, label=label, pad=0.01)
