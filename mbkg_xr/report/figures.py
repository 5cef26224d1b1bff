"""The still figures of a report: drawn one after another, as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..errors import DatasetError
from ..plot import (
    plot_cloud,
    plot_master_image,
    plot_model_choice,
    plot_msa,
    plot_profile,
    plot_residual_map,
    plot_residual_spectrum,
    plot_residuals,
    plot_selection,
    plot_slit_ranking,
    plot_subtraction,
    plot_white_noise,
)
from ..plot.canvas import subset
from ..plot.programme import is_placed

__all__ = ["Drawn", "Given", "draw", "typical_slit"]

_DPI = 150


@dataclass(frozen=True)
class Given:
    """What figures draw on."""

    sets: Mapping[str, xr.Dataset]
    master: xr.Dataset
    scores: xr.Dataset
    slit: int
    noise: Any  # from white_noise, or None


@dataclass(frozen=True)
class Drawn:
    """A figure and what is to be seen on it; no image where `missing` says why."""

    key: str
    heading: str
    caption: str
    image: bytes = b""
    missing: str = ""


@dataclass(frozen=True)
class _Plan:
    size: tuple[float, float]
    heading: str
    caption: str
    plot: Callable[[Given, Any], Any]
    rows: int = 1
    missing: Callable[[Given], str] = lambda given: ""


def _no_place(given: Given) -> str:
    placed = is_placed(given.scores) & np.isfinite(given.scores["excess"].values)
    return "" if placed.any() else "no slit has a place on the MSA and sky pixels"


def _no_profile(given: Given) -> str:
    return "" if "profile" in given.master else "without sky slits no profile is fitted"


def _no_rank(given: Given) -> str:
    known = np.isfinite(given.scores["stack"].values).any()
    return "" if known else "no slit has sky pixels at its shutters' centres"


def _no_noise(given: Given) -> str:
    return "" if given.noise is not None else "no method has residuals at centres of sky shutters"


_PLANS: Mapping[str, _Plan] = {
    "selection": _Plan(
        (7.1, 3.2), "Selection",
        "A typical slitlet before subtraction. Pixels between the lines of a window in use are "
        "the sky that the master is fitted to.",
        lambda g, ax: plot_selection(g.sets["master"], slit=g.slit, ax=ax),
    ),
    "cloud": _Plan(
        (7.1, 4.4), "Sky pixels and master",
        "Flux of the selected pixels against wavelength, and the master fitted to them.",
        lambda g, ax: plot_cloud(g.sets["master"], g.master, ax=ax),
    ),
    "master_2d": _Plan(
        (7.1, 2.4), "Two-dimensional master",
        "The master on a regular grid, constant along the slit, as it is projected on the pixels.",
        lambda g, ax: plot_master_image(g.master, ax=ax),
    ),
    "model_choice": _Plan(
        (5.6, 4.2), "Choice of the model",
        "Score of all models tried. Lines join the models of one knot distance.",
        lambda g, ax: plot_model_choice(g.master, ax=ax),
    ),
    "profile": _Plan(
        (7.1, 3.4), "Bars",
        "What the calibration leaves of the bars' shadow: uniform light along the slit.",
        lambda g, ax: plot_profile(g.master, ax=ax),
        missing=_no_profile,
    ),
    "subtraction": _Plan(
        (7.1, 5.2), "Subtraction",
        "A typical slitlet before subtraction, the background on its own pixels, and what is left.",
        lambda g, axes: plot_subtraction(g.sets["master"], slit=g.slit, axes=axes),
        rows=3,
    ),
    "residuals": _Plan(
        (4.6, 3.9), "Residuals",
        "Residuals over their propagated errors, at the centres of shutters that see only sky. "
        "σ is the scaled median absolute deviation.",
        lambda g, ax: plot_residuals(g.sets, ax=ax),
    ),
    "residual_spectrum": _Plan(
        (7.1, 3.4), "Residual spectrum",
        "What is left where all sky pixels of a wavelength are taken together. Residuals of nods "
        "cancel over the nods by construction.",
        lambda g, ax: plot_residual_spectrum(g.sets, ax=ax),
    ),
    "white_noise": _Plan(
        (5.6, 4.2), "White noise",
        "Scatter of residuals of each slit in bins, against the pixels in a bin. Noise falls along "
        "the dotted lines; what the sky is wrong by stays, as the floor.",
        lambda g, ax: plot_white_noise(g.noise, ax=ax),
        missing=_no_noise,
    ),
    "residual_map": _Plan(
        (7.1, 3.4), "Residuals along the slit",
        "Median residual of all rows without a source. Rows are left by bars and wings of "
        "sources, columns by the master.",
        lambda g, ax: plot_residual_map(g.sets["master"], ax=ax),
    ),
    "ranking": _Plan(
        (7.1, 5.2), "Worst slits",
        "Slits whose stacked residual is largest: their sky differs from the master, or there is "
        "light of a source in a shutter taken for empty.",
        lambda g, ax: plot_slit_ranking(g.scores, ax=ax),
        missing=_no_rank,
    ),
    "msa": _Plan(
        (7.1, 5.4), "MSA",
        "Median residual of each slitlet's sky shutters, where the slitlet lies.",
        lambda g, ax: plot_msa(g.scores, ax=ax),
        missing=_no_place,
    ),
}  # fmt: skip


def draw(given: Given) -> Iterator[Drawn]:
    """The figures, one after another: each is forgotten before the next is made."""
    for key, plan in _PLANS.items():
        if reason := plan.missing(given):
            yield Drawn(key, plan.heading, plan.caption, missing=reason)
            continue
        figure = Figure(figsize=plan.size, layout="constrained")
        axes = list(figure.subplots(plan.rows, squeeze=False)[:, 0])
        plan.plot(given, axes if plan.rows > 1 else axes[0])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        yield Drawn(key, plan.heading, plan.caption, buffer.getvalue())


def typical_slit(ds: xr.Dataset) -> int:
    """The slit to show: one with a source, and with as many selected pixels as most have.

    Parameters
    ----------
    ds
        A slit dataset with ``selected``. Of large programmes, some slits from all over are
        counted.

    Returns
    -------
    int
        Index of the slit whose number of selected pixels is nearest the median, among slits with
        a source where any of those has sky pixels.

    Raises
    ------
    DatasetError
        Where no pixels are marked, or none of them as sky.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=1, slits=4, background_slits=3)
    >>> typical_slit(mx.select_background(ds))
    3
    """
    if "selected" not in ds:
        raise DatasetError(
            "no pixels are marked as sky",
            expected="variable selected",
            remedy="call select_background first",
        )
    numbered = ds[["selected"]].assign(index=("slit", np.arange(ds.sizes["slit"])))
    part, _ = subset(numbered)
    count = part["selected"].sum(("y", "x")).values
    some = count > 0
    if not some.any():
        raise DatasetError("no pixel is selected", expected="some sky pixels", found="0")
    source = some & ~part["is_background"].values & np.isfinite(part["source_shutter"].values)
    among = np.flatnonzero(source if source.any() else some)
    distance = np.abs(count[among] - np.median(count[among]))
    return int(part["index"].values[among[np.argmin(distance)]])
