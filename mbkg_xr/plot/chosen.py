"""Figures of what the fit chose and found: the model, and the bars' shadow."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..errors import DatasetError, ParameterError
from ..master import master_grid
from ..terms import BIN_SPANS
from .canvas import BAD, SCORES, SHORT, axes_of, data_range, legend_above

__all__ = ["plot_model_choice", "plot_profile"]

_BAR = (0.437, 0.563)  # yrel of the bar between two open shutters, from either's centre


def plot_model_choice(master: xr.Dataset, *, ax: Axes | None = None) -> Line2D:
    """Score of every model tried against its degrees of freedom, the chosen one marked.

    The score is chi2 a pixel of the slits left out of the fit, or, where nothing could be left
    out, the criterion that chose. Models within one standard error of the best are ringed: slits
    differ far more than models do, so that the error is that of the difference on the same slits.
    The band shows about how large it is at each number of degrees of freedom.

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
    ax = axes_of(ax, (5.6, 4.2))
    # Polynomials have no knots: they make one series.
    spacing = np.nan_to_num(master["score_spacing"].values)
    series = np.unique(spacing)
    adapted = np.zeros(dof.size, dtype=bool)
    if "score_adapted" in master:
        adapted = np.nan_to_num(master["score_adapted"].values) > 0
    shades = colormaps["cividis"](np.linspace(0, 0.92, series.size))
    for shade, step in zip(shades, series, strict=True):
        label = f"{step:g} px" if step else "by degree"
        for following, line in ((False, ".-"), (True, "^:")):
            of = np.flatnonzero((spacing == step) & (adapted == following))
            of = of[np.argsort(dof[of])]
            ax.plot(
                dof[of], values[of], line, color=shade, lw=1, ms=3 if following else 5, label=label
            )
            label = "_"  # named once
    near = _near_best(master, values) if score == "heldout" else np.empty(0, dtype=int)
    if near.size:
        _draw_band(ax, dof, values, master["score_heldout_se"].values)
        ring: dict[str, Any] = {"ls": "", "marker": "o", "ms": 8, "mfc": "none", "mec": "0.3"}
        ax.plot(dof[near], values[near], mew=0.7, label="within 1 s.e.", **ring)
    style: dict[str, Any] = {"ms": 13, "mfc": "none", "mec": BAD, "mew": 1.5, "zorder": 5}
    mark = ax.plot(dof[chosen], values[chosen], "*", label="chosen", **style)[0]
    # The worst candidates would squeeze those that compete into one line.
    finite = values[np.isfinite(values)]
    best = finite.min()
    top = min(finite.max(), max(best + 3 * (np.median(finite) - best), values[chosen]))
    ax.set(xlabel="degrees of freedom", xscale="log", ylabel=SCORES.get(score, score))
    if master.attrs["model"] == "seed":
        ax.set_ylabel("squared residual of ln flux a pixel, slits left out")
    ax.set_ylim(data_range(np.array([best, top]), margin=0.08))
    seen = values <= ax.get_ylim()[1]
    ax.set_xlim(0.8 * dof[seen].min(), 1.25 * dof[seen].max())
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    what = str(master["candidate"].values[chosen])
    if spacing[chosen]:
        penalty = float(master["score_penalty"].values[chosen])
        kind = "adapted penalty x" if master["score_adapted"].values[chosen] else "penalty"
        what = f"knots {spacing[chosen]:g} px apart, {kind} {penalty:g}"
    title = f"{finite.size} models, {int((~seen).sum())} of them off scale\n"
    title += f"chosen by {SHORT.get(criterion, criterion)}: {what}"
    if adapted.any():
        title += "\nlines: one penalty for all; dotted: penalties that follow the sky"
    legend_above(ax, ax.get_legend_handles_labels()[0], title, columns=4)
    return mark


def _near_best(master: xr.Dataset, values: np.ndarray) -> np.ndarray:
    """Candidates whose score is within one standard error of the lowest, but for that itself."""
    error = master["score_heldout_se"].values
    best = int(np.nanargmin(values))
    with np.errstate(invalid="ignore"):
        near = values - values[best] <= error
    near[best] = True
    return np.flatnonzero(near) if np.isfinite(error).any() else np.empty(0, dtype=int)


def _draw_band(ax: Axes, dof: np.ndarray, values: np.ndarray, error: np.ndarray) -> None:
    """From the best score to a standard error above it, the median of its neighbours at each."""
    known = np.flatnonzero(np.isfinite(error) & np.isfinite(dof))
    known = known[np.argsort(dof[known])]
    window = [known[max(i - 3, 0) : i + 4] for i in range(known.size)]
    top = np.nanmin(values) + np.array([np.median(error[w]) for w in window])
    low = np.full(known.size, np.nanmin(values))
    style: dict[str, Any] = {"color": "0.87", "lw": 0, "zorder": 0}
    ax.fill_between(dof[known], low, top, label="1 s.e. above the best", **style)


def plot_profile(
    master: xr.Dataset, *, n_shutters: int | None = None, ax: Axes | None = None
) -> Line2D:
    """The residual bar-shadow profile: uniform light along the slit, 1 at shutter centres.

    What the calibration leaves of the bars' shadow, at some wavelengths, each with its standard
    error. Grey: the bars.

    Parameters
    ----------
    master
        From `fit_master` with ``profile=True``.
    n_shutters
        Of which slitlets, where the master has profiles of several kinds; by default the first.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.lines.Line2D
        The line of the shortest wavelength.

    Raises
    ------
    DatasetError
        Where the master holds no profile.
    ParameterError
        Where it holds none of this kind of slitlet.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> plot_profile(mx.fit_master(ds)).axes.get_xlabel()
    'yrel (shutter pitches)'
    """
    if "profile" not in master:
        raise DatasetError(
            "the master holds no bar-shadow profile",
            expected="a master fitted with profile=True to a programme that has sky slits",
            found="no variable profile",
        )
    kinds = master["n_shutters"].values.tolist()
    count = kinds[0] if n_shutters is None else n_shutters
    if count not in kinds:
        raise ParameterError(
            "no profile of such slitlets", expected=" or ".join(map(str, kinds)), found=count
        )
    one = master.isel(kind=kinds.index(count))
    grid = master_grid(master)
    middle = np.minimum((np.arange(one.sizes["bin"]) + 0.5) * BIN_SPANS, grid.size)
    wavelength = np.interp(middle, np.arange(grid.size + 1), grid.edges)
    spans = np.minimum(middle.astype(int), grid.size - 1)
    inside = np.flatnonzero(master["constrained"].values[spans])
    shown = inside[np.unique(np.linspace(0, inside.size - 1, 5).round().astype(int))]
    ax = axes_of(ax, (7.1, 3.4))
    yrel = one["yrel_node"].values
    for k in range(int(np.floor(yrel[0])), int(np.ceil(yrel[-1])) + 1):
        ax.axvspan(k + _BAR[0], k + _BAR[1], color="0.93", lw=0, zorder=0)
    lines: list[Line2D] = []
    shades = colormaps["cividis"](np.linspace(0, 0.88, shown.size))
    for shade, at in zip(shades, shown, strict=True):
        value, error = one["profile"].values[:, at], one["profile_error"].values[:, at]
        ax.fill_between(yrel, value - error, value + error, color=shade, alpha=0.2, lw=0)
        lines += ax.plot(yrel, value, color=shade, lw=1.3, label=f"{wavelength[at]:.2f} um")
    ax.axhline(1, color="black", lw=0.8, ls=":")
    # Past the open shutters there is no light, and the profile is next to nothing or unknown.
    low, high = -((count - 1) // 2) - 0.5, count // 2 + 0.5
    seen = one["profile"].values[(yrel >= low) & (yrel <= high)][:, shown]
    ax.set(xlim=(low - 0.1, high + 0.1), ylim=data_range(seen.ravel(), np.ones(1), margin=0.1))
    ax.set(xlabel="yrel (shutter pitches)", ylabel="profile (1 at shutter centres)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"slitlets with {count} open shutters, and standard errors; grey: bars"
    legend_above(ax, list(lines), title, columns=5)
    return lines[0]
