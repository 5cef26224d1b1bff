"""What all figures share: colours, axes, legends, and how many pixels to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ..errors import DatasetError, ParameterError
from ..schema import validate

__all__ = [
    "BAD",
    "CMAP",
    "COLOURS",
    "DIVERGING",
    "FEW",
    "LABELS",
    "MANY",
    "MAX_PIXELS",
    "MAX_POINTS",
    "METHODS",
    "SCORES",
    "SHORT",
    "SKY",
    "SOURCE",
    "SPARE",
    "STROKE",
    "WAVELENGTH",
    "axes_of",
    "check_bin_pixels",
    "colourbar",
    "data_range",
    "legend_above",
    "need",
    "stacked_axes",
    "stretch",
    "subset",
    "units_of",
]


#: Pixels that a figure of all slits reads at most.
MAX_PIXELS = 2_000_000
#: Marks past which they are drawn small, beneath what is used.
MANY = 2000
#: Points past which a cloud is drawn as a two-dimensional histogram.
MAX_POINTS = 100_000

# Okabe & Ito's colours, which the colour-blind can tell apart.
SKY, BAD, SOURCE = "#0072B2", "#D55E00", "#CC79A7"
COLOURS = {"master": SKY, "nods": "#E69F00", "heldout": "#009E73"}
SPARE = ("#56B4E9", SOURCE, "0.5")
LABELS = {"heldout": "master, held out", "nods": "nodding"}
METHODS = {"nods": "mean of the other nods", "master": "master background"}
SCORES = {
    "heldout": "χ² a pixel, slits left out",
    "gcv": "generalised cross-validation",
    "reml": "-2 ln of the restricted likelihood",
}
SHORT = {"heldout": "held-out score", "gcv": "GCV", "chi2": "χ²", "reml": "restricted likelihood"}
CMAP = "viridis"
DIVERGING = "PuOr_r"  # below and above, which the colour-blind can tell apart
STROKE = [withStroke(linewidth=2.0, foreground="black")]  # white on black shows on any flux
WAVELENGTH = "wavelength (um)"
FEW = 5  # pixels in a wavelength bin below which its median says nothing


def subset(ds: xr.Dataset) -> tuple[xr.Dataset, str]:
    """Slits from all over the dataset, few enough to be drawn, and a note where not all are."""
    n = ds.sizes["slit"]
    most = max(1, MAX_PIXELS // max(1, ds.sizes["y"] * ds.sizes["x"]))
    if n <= most:
        return ds, ""
    # One of each of equal runs of slits, but not always the same one: steps that fall in with the
    # number of slitlets in an exposure would draw one slitlet over and over.
    at = np.arange(most) + np.random.default_rng(0).random(most)
    index = np.unique((at * n / most).astype(int))  # neighbouring runs may share their edge
    return ds.isel(slit=index), f"{index.size:,} of {n:,} slits"


def need(ds: xr.Dataset, name: str, source: str) -> None:
    validate(ds)
    if name not in ds:
        found = " ".join(map(str, ds.data_vars))
        raise DatasetError(
            f"the dataset has no {name}", expected=f"a dataset from {source}", found=found
        )


def check_bin_pixels(bin_pixels: int) -> None:
    if int(bin_pixels) != bin_pixels or bin_pixels < 1:
        raise ParameterError(
            "unusable bin width", expected="whole detector pixels >= 1", found=bin_pixels
        )


def units_of(ds: xr.Dataset) -> str:
    return ds["flux"].attrs["units"] if "flux" in ds else ds.attrs["units"]


def stretch(values: NDArray, outside: float = 1.0) -> dict[str, Any]:
    """Colour limits that leave out a percentage at either end."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [outside, 100 - outside]) if finite.size else (0.0, 1.0)
    return {"vmin": float(low), "vmax": float(high if high > low else low + 1)}


def data_range(*values: NDArray, margin: float = 0.06) -> tuple[float, float]:
    together = np.concatenate(values)
    low, high = (together.min(), together.max()) if together.size else (0.0, 1.0)
    pad = margin * (high - low) or 0.1 * abs(high) or 1.0
    return float(low - pad), float(high + pad)


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return stacked_axes(size, 1)[0] if ax is None else ax


def stacked_axes(size: tuple[float, float], rows: int) -> list[Axes]:
    # Only where a figure is asked for: pyplot chooses a backend and keeps its figures.
    from matplotlib import pyplot

    _, axes = pyplot.subplots(rows, figsize=size, layout="constrained", squeeze=False)
    return list(axes[:, 0])


def legend_above(ax: Axes, handles: list, title: str, *, columns: int) -> None:
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


def colourbar(artist: Any, ax: Axes | list[Axes], label: str, **style: Any) -> None:
    artist.figure.colorbar(artist, ax=ax, label=label, pad=0.01, **style)
