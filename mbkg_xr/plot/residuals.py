"""Figures of what is left: residuals, master beside nods."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from numpy.typing import NDArray

from ..errors import DatasetError, ParameterError
from ..residuals import sky_centres
from ..spans import span_grid
from .canvas import (
    COLOURS,
    FEW,
    LABELS,
    SPARE,
    WAVELENGTH,
    axes_of,
    check_bin_pixels,
    data_range,
    legend_above,
    need,
    subset,
)

__all__ = ["plot_residual_spectrum", "plot_residuals"]


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
    ax = axes_of(ax, (4.6, 3.8))
    edges, fine = np.linspace(-6, 6, 61), np.linspace(-6, 6, 601)
    n = sample.wavelength.size
    steps = []
    for name, z, colour in sample.each("residual"):
        median = float(np.median(z))
        sigma = max(1.4826 * float(np.median(np.abs(z - median))), 1e-9)
        density = np.histogram(z, edges)[0] / (n * np.diff(edges))
        label = f"{LABELS.get(name, name)}: σ = {sigma:.2f}"
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
    legend_above(ax, ax.get_legend_handles_labels()[0], title, columns=2)
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
    check_bin_pixels(bin_pixels)
    sample = _Sample(results)
    ax = axes_of(ax, (7.1, 3.4))
    edges = span_grid(next(iter(results.values()))).edges[::bin_pixels]
    middle = 0.5 * (edges[1:] + edges[:-1])
    order = np.argsort(sample.wavelength, kind="stable")
    bins = np.split(order, np.searchsorted(sample.wavelength[order], edges))[1:-1]
    sky = np.abs(_by_bin(sample.sky, bins)[0])
    lines: list[Line2D] = []
    sizes = [np.empty(0)]
    for name, flux, colour in sample.each("flux"):
        value, error = (100 * v / sky for v in _by_bin(flux, bins))
        label = LABELS.get(name, name)
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
    ax.set(xlabel=WAVELENGTH, ylabel="median residual (% of the sky)")
    size = np.concatenate(sizes)
    if np.isfinite(size).any():
        # The ends, where there is next to no light, do not set the scale.
        top = 1.1 * float(np.nanpercentile(size, 98)) or 1.0
        ax.set_ylim(-top, top)
        ax.set_xlim(data_range(middle[np.isfinite(sky)], margin=0.01))
    title = f"{sample.wavelength.size:,} pixels at sky centres{sample.note}, in bins of "
    title += f"{bin_pixels} detector pixels"
    legend_above(ax, ax.get_legend_handles_labels()[0], title, columns=2)
    return lines[0]


class _Sample:
    """Residuals at sky centres that all results have, of slits all over the programme."""

    def __init__(self, results: Mapping[str, xr.Dataset]):
        if not results:
            raise ParameterError("nothing to draw", expected="residual datasets by name")
        columns: dict[str, Any] = {}
        shapes = set()
        for name, ds in results.items():
            need(ds, "residual", "residuals")
            shapes.add(ds["flux"].shape)
            if len(shapes) > 1:
                raise DatasetError("residuals of different slits", where=name, found=shapes)
            part, note = subset(ds)
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
        spare = cycle(SPARE)
        return [(n, self.values[f"{key} {n}"], COLOURS.get(n) or next(spare)) for n in self.names]


def _by_bin(values: NDArray, bins: list[NDArray]) -> tuple[NDArray, NDArray]:
    """Median of each bin and its standard error, NaN where there are too few pixels."""
    median, error = np.full((2, len(bins)), np.nan)
    for k, index in enumerate(bins):
        if index.size >= FEW:
            median[k] = np.median(values[index])
            width = 1.4826 * np.median(np.abs(values[index] - median[k]))
            # The median of n normal values scatters sqrt(pi / 2) times as much as their mean.
            error[k] = np.sqrt(np.pi / 2 / index.size) * width
    return median, error


def _gaussian(x: NDArray) -> NDArray:
    return np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
