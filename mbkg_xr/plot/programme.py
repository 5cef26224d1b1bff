"""Figures of all slits of a programme: the MSA, and a ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ..errors import DatasetError, ParameterError
from .canvas import CMAP, COLOURS, DIVERGING, SKY, axes_of, colourbar, legend_above

__all__ = [
    "LABELS",
    "NEUTRAL",
    "QUADRANT",
    "colour_limits",
    "is_placed",
    "msa_table",
    "plot_msa",
    "plot_slit_ranking",
    "quadrant_corner",
]

#: Shutters of a quadrant along dispersion (rows) and across (columns).
QUADRANT = (365, 171)
# Gaps between the quadrants in shutter pitches. Source: the ESA instrument model's description of
# the MSA: 9.0 mm along dispersion, 14.5 mm across, pitches of 0.105 and 0.2035 mm.
_GAP = (86, 71)
_PITCH_RATIO = 0.20354 / 0.10499
# As the detectors see it: quadrants 1 and 2 to the right, 1 and 3 on top; row numbers grow to the
# left and column numbers downwards (traces of CEERS slits).
_LEFT, _TOP = {1: 1, 2: 1, 3: 0, 4: 0}, {1: 1, 3: 1, 2: 0, 4: 0}
# What a value is when nothing is wrong, where that is known.
NEUTRAL = {"median": 0.0, "excess": 0.0, "scale": 1.0}
_LEAST = {"median": 0.1, "excess": 0.5, "scale": 0.01}  # of the colours' reach: less is nothing


def plot_msa(
    scores: xr.Dataset, *, value: str = "excess", ax: Axes | None = None
) -> PathCollection:
    """The four quadrants of the MSA as the detectors see them, slits coloured by a value.

    A mark a slitlet, at its middle shutter: the median over its exposures and detectors. Visits
    lie on top of one another.

    Parameters
    ----------
    scores
        From `score_slits`, or any dataset with slit coordinates and `value` by slit.
    value
        A variable or numeric coordinate by slit, such as ``"excess"``, ``"stack"``, ``"scale"``.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.collections.PathCollection
        The marks of slits without a source, or, if there are none, of those with one.

    Raises
    ------
    DatasetError
        Where no slit has both a place on the MSA and a value.
    ParameterError
        Where there is no such value by slit.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=6, background_slits=2)
    >>> scores = mx.score_slits(mx.residuals(mx.subtract_nods(ds)))
    >>> plot_msa(scores).axes.get_xlabel()
    'shutter row (along dispersion)'
    """
    table = msa_table(scores, value).rename(columns={value: "value"})
    total = scores.sizes["slit"]
    table = table[np.isfinite(table["value"])]
    if table.empty:
        raise DatasetError(
            "no slit with a place on the MSA has this value", expected=f"some {value}"
        )
    ax = axes_of(ax, (7.1, 5.4))
    _draw_quadrants(ax)
    low, high = colour_limits(table["value"].to_numpy(), value)
    cmap, label = DIVERGING if value in NEUTRAL else CMAP, _label(scores, value)
    style: dict[str, Any] = {"cmap": cmap, "vmin": low, "vmax": high}
    marks, handles = [], []
    for sky, marker, text in ((True, "o", "no source"), (False, "s", "with a source")):
        part = table[table["sky"] == sky]
        if part.empty:
            continue
        style |= {"marker": marker, "s": 34 if len(table) < 150 else 18}
        style |= {"linewidths": 0.5, "edgecolors": "0.25", "zorder": 3}
        marks.append(ax.scatter(part["x"], part["y"], c=part["value"], **style))
        grey: dict[str, Any] = {"ls": "", "marker": marker, "mfc": "0.8", "mec": "0.25", "ms": 5}
        handles.append(Line2D([], [], label=f"{text}: {len(part)}", **grey))
    title = f"{len(table)} slitlet{'s' * (len(table) != 1)}, medians of their exposures"
    if lost := total - int(table["slits"].map(len).sum()):
        title += f"; slits without a place or value: {lost}"
    legend_above(ax, handles, title, columns=2)
    colourbar(marks[0], ax, label, extend="both")
    return marks[0]


def is_placed(scores: xr.Dataset) -> NDArray[np.bool_]:
    """Which slits are known to lie somewhere on the MSA."""
    quadrant, row, column = (
        scores[k].values for k in ("quadrant", "shutter_row", "shutter_column")
    )
    return (quadrant >= 1) & (quadrant <= 4) & (row > 0) & (column > 0)


def msa_table(scores: xr.Dataset, *values: str) -> pd.DataFrame:
    """A row a slitlet: its place in the figure, its slits, and medians over these."""
    names = ["visit", "quadrant", "shutter_row", "shutter_column", "slitlet", "n_shutters"]
    table = pd.DataFrame({name: scores[name].values for name in names})
    table["sky"], table["slits"] = scores["is_background"].values, np.arange(len(table))
    table = table.assign(**{value: _by_slit(scores, value) for value in values})
    placed = is_placed(scores)
    if not placed.any():
        raise DatasetError(
            "no slit has a place on the MSA",
            expected="coordinates quadrant, shutter_row, shutter_column, as of an MSA metafile",
            found=f"{len(table)} slits without",
        )
    how: dict[str, Any] = {"sky": "first", "slits": np.array, **dict.fromkeys(values, "median")}
    out = table[placed].groupby(names, as_index=False).agg(how)
    x, y = msa_place(*(out[n].to_numpy() for n in ("quadrant", "shutter_row", "shutter_column")))
    return out.assign(x=x, y=y)


def msa_place(quadrant: NDArray, row: NDArray, column: NDArray) -> tuple[NDArray, NDArray]:
    """Place in the figure, in shutters from the lower left corner."""
    corner = np.array([quadrant_corner(int(q)) for q in quadrant]).reshape(-1, 2)
    return corner[:, 0] + QUADRANT[0] - row, corner[:, 1] + QUADRANT[1] - column


def quadrant_corner(quadrant: int) -> tuple[int, int]:
    """Lower left corner of a quadrant in the figure."""
    return (
        _LEFT[quadrant] * (QUADRANT[0] + _GAP[0]),
        _TOP[quadrant] * (QUADRANT[1] + _GAP[1]),
    )


def _draw_quadrants(ax: Axes) -> None:
    width, height = QUADRANT
    rows, columns = (1, 100, 200, 300), (1, 50, 100, 150)
    ticks: tuple[dict[float, str], dict[float, str]] = ({}, {})
    for q in (1, 2, 3, 4):
        x0, y0 = quadrant_corner(q)
        frame = Rectangle((x0, y0), width, height, fc="0.97", ec="0.4", lw=0.8, zorder=0)
        ax.add_patch(frame)
        for row in rows:
            x = x0 + width - row
            ticks[0][x] = str(row)
            ax.plot([x, x], [y0, y0 + height], color="0.85", lw=0.5, zorder=1)
        for column in columns:
            y = y0 + height - column
            ticks[1][y] = str(column)
            ax.plot([x0, x0 + width], [y, y], color="0.85", lw=0.5, zorder=1)
        # In the gap between the quadrants, where there are no slits.
        y, side = (y0 - 5, "top") if _TOP[q] else (y0 + height + 5, "bottom")
        ax.text(x0 + width / 2, y, f"Q{q}", color="0.35", ha="center", va=side, fontsize="small")
    ax.set(xlim=(-12, 2 * width + _GAP[0] + 12), ylim=(-8, 2 * height + _GAP[1] + 8))
    ax.set_aspect(_PITCH_RATIO)
    ax.set_xticks(list(ticks[0]), list(ticks[0].values()))
    ax.set_yticks(list(ticks[1]), list(ticks[1].values()))
    ax.set(xlabel="shutter row (along dispersion)", ylabel="shutter column (across)")
    ax.spines[:].set_visible(False)


def colour_limits(values: NDArray, value: str) -> tuple[float, float]:
    """What the colours reach to: what is right lies in the middle, where that is known."""
    low, high = (float(v) for v in np.percentile(values, [2, 98])) if values.size else (0.0, 1.0)
    if value in NEUTRAL:
        middle = NEUTRAL[value]
        half = max(abs(low - middle), abs(high - middle), _LEAST[value])
        return middle - half, middle + half
    return low, high if high > low else low + 1


def _by_slit(scores: xr.Dataset, value: str) -> NDArray[np.float64]:
    numbers = {k: v for k, v in scores.variables.items() if v.dtype.kind in "fiub"}
    fitting = [str(k) for k, v in numbers.items() if v.dims == ("slit",)]
    if value not in fitting:
        raise ParameterError(
            "no such value by slit", expected=" ".join(fitting) or "numbers by slit", found=value
        )
    return scores[value].values.astype(float)


#: What figures call the values of `score_slits`.
LABELS = {
    "excess": "median residual (% of the sky)",
    "median": "median residual (units of its error)",
    "stack": "stacked residual (1: noise alone)",
    "mad_sigma": "MAD-sigma of the residual (1: as its error says)",
    "scale": "throughput beside the mean slit",
    "noise_gain": "growth of the error",
}


def _label(scores: xr.Dataset, value: str) -> str:
    if value in LABELS:
        return LABELS[value]
    attrs = scores[value].attrs
    name, units = attrs.get("long_name", value), attrs.get("units", "1")
    return str(name) if units in ("1", "") else f"{name} ({units})"


def plot_slit_ranking(
    scores: xr.Dataset, *, value: str = "stack", count: int = 20, ax: Axes | None = None
) -> PathCollection:
    """The slits that are worst by some value, the worst on top.

    Worst is furthest from what a value is when nothing is wrong (``median`` and ``excess`` 0,
    ``scale`` 1), and largest for others. The grey band holds the middle 90 % of all slits.

    Parameters
    ----------
    scores
        From `score_slits`, or any dataset with slit coordinates and `value` by slit.
    value
        As for `plot_msa`; with error bars where ``<value>_error`` is there, too.
    count
        How many slits to show.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.collections.PathCollection
        The marks, the worst first.

    Raises
    ------
    DatasetError
        Where no slit has a value.
    ParameterError
        Where there is no such value by slit, or `count` is below 1.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=6, background_slits=2)
    >>> scores = mx.score_slits(mx.residuals(mx.subtract_nods(ds)))
    >>> len(plot_slit_ranking(scores, count=5).get_offsets())
    5
    """
    if count < 1:
        raise ParameterError("nothing to show", expected="a count of at least 1", found=count)
    values = _by_slit(scores, value)
    known = np.flatnonzero(np.isfinite(values))
    if known.size == 0:
        raise DatasetError("no slit has this value", expected=f"some {value}", found="NaN")
    badness = np.abs(values[known] - NEUTRAL[value]) if value in NEUTRAL else values[known]
    worst = known[np.argsort(-badness, kind="stable")][:count]
    ax = axes_of(ax, (7.1, 0.9 + 0.21 * worst.size))
    low, middle, high = np.percentile(values[known], [5, 50, 95])
    ax.axvspan(low, high, color="0.9", lw=0)
    ax.axvline(middle, color="0.6", lw=0.8)
    at = np.arange(worst.size)
    error = scores.get(f"{value}_error")
    if error is not None:
        ax.errorbar(values[worst], at, xerr=error.values[worst], fmt="none", ecolor="0.4", lw=0.9)
    sky = scores["is_background"].values[worst]
    colours = np.where(sky, SKY, COLOURS["nods"])
    marks = ax.scatter(values[worst], at, c=colours, s=26, zorder=3)
    ax.set_yticks(at, [slit_name(scores, i) for i in worst], fontsize="small")
    ax.set(ylim=(worst.size - 0.5, -0.5), xlabel=_label(scores, value))
    ax.grid(axis="y", color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    handles: list[Any] = [
        Line2D([], [], ls="", marker="o", color=c, label=t)
        for c, t, some in (
            (SKY, "no source", sky.any()),
            (COLOURS["nods"], "with a source (its empty shutters)", (~sky).any()),
        )
        if some
    ]
    handles.append(Rectangle((0, 0), 1, 1, color="0.9", label="middle 90 % of all slits"))
    title = f"worst {worst.size} of {known.size:,} slits with sky shutters"
    legend_above(ax, handles, title, columns=3)
    return marks


def slit_name(ds: xr.Dataset, index: int) -> str:
    """A short name of a slit for figures: slitlet, detector and the end of the exposure's name."""
    one = {k: ds[k].values[index] for k in ("slitlet", "detector", "exposure")}
    exposure = str(one["exposure"])
    short = exposure if len(exposure) <= 14 else "…" + exposure[-12:]
    return f"slitlet {one['slitlet']}, {one['detector']}, {short}"
