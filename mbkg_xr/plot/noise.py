"""Whether residuals are white: their scatter against the size of bins."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..errors import DatasetError
from .canvas import COLOURS, LABELS, SKY, SPARE, axes_of, legend_above

__all__ = ["plot_white_noise"]


def plot_white_noise(found: xr.Dataset, *, ax: Axes | None = None) -> Line2D:
    """Scatter of binned residuals against the number of pixels in a bin, down to its floor.

    White noise falls along the dotted lines, as one over the root of the number of pixels; what a
    wrong sky leaves does not, and stays as the floor (dashed).

    Parameters
    ----------
    found
        From `white_noise`.
    ax
        Where to draw.

    Returns
    -------
    matplotlib.lines.Line2D
        The first line: rms in % of the sky over pixels in a bin.

    Raises
    ------
    DatasetError
        Where the dataset is not from `white_noise`.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=4)
    >>> found = mx.white_noise({"nods": mx.residuals(mx.subtract_nods(ds))}, sizes=[1, 8, 64])
    >>> plot_white_noise(found).axes.get_ylabel()
    'rms of binned residuals (% of the sky)'
    """
    missing = {"rms", "expected", "floor", "scatter", "pixels"} - set(found.data_vars)
    if missing or "subtraction" not in found.dims:
        raise DatasetError(
            "no white-noise test",
            expected="a dataset from white_noise",
            found=" ".join(map(str, found.data_vars)) or "no variables",
        )
    ax = axes_of(ax, (5.2, 4.2))
    spare, lines = cycle((SKY, *SPARE)), []
    known = {"held out": "heldout"}  # as people may call it
    for name in found["subtraction"].values.tolist():
        one = found.sel(subtraction=name)
        if not np.isfinite(one["rms"]).any():
            continue  # nods of a single exposure
        key = known.get(name, name)
        colour = COLOURS.get(key) or next(spare)
        pixels, rms = one["pixels"].values, one["rms"].values
        floor, error = float(one["floor"]), float(one["floor_error"])
        label = f"{LABELS.get(key, key)}: floor {floor:.2f}"
        label += f" ± {error:.2f} %" if np.isfinite(error) else " %"
        lines += ax.plot(pixels, rms, "o-", color=colour, ms=4, lw=1.3, label=label)
        white = float(one["scatter"]) * one["expected"].values
        ax.plot(pixels, white, ":", color=colour, lw=1)
        if floor > 0:
            ax.axhline(floor, color=colour, lw=0.8, ls="--")
    if not lines:
        raise DatasetError("no scatter to draw", expected="some finite rms", found="NaN")
    ax.set(xscale="log", yscale="log", xlabel="pixels in a bin")
    ax.set_ylabel("rms of binned residuals (% of the sky)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    if np.ptp(np.log10(ax.get_ylim())) < 1.3:
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.tick_params(axis="y", which="minor", labelsize="x-small")
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    handles = [*lines, Line2D([], [], color="0.3", ls=":", label="noise alone")]
    handles.append(Line2D([], [], color="0.3", ls="--", lw=0.8, label="floor"))
    legend_above(ax, handles, "", columns=2)
    return lines[0]
