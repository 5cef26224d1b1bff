"""What the explorer shows of one slit, and of an exposure: arrays, cut to a wavelength range."""

from __future__ import annotations

from dataclasses import dataclass

import datashader
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ..plot.slits import OneSlit
from ..plot.spectra import cloud_pixels

__all__ = ["Cloud", "Spectrum", "images_of", "rastered", "spectrum_of"]

_ROWS = 0.3  # half width in yrel of the rows that a spectrum is of


@dataclass(frozen=True)
class Spectrum:
    """Medians over rows, by detector column: of the source's shutter, and of sky shutters."""

    wavelength: NDArray
    before: NDArray
    background: NDArray
    after: NDArray


def images_of(one: OneSlit) -> dict[str, NDArray]:
    """The slit's images: NaN where there is nothing to see."""

    def shown(values: NDArray) -> NDArray:
        return np.where(one.inside & ~one.bad, values, np.nan).astype(np.float32)

    data = one.data
    return {
        "before": shown(one.before),
        "background": np.where(one.inside, data["background"].values, np.nan),
        "after": shown(data["flux"].values),
        "residual": shown(data["residual"].values),
        "wavelength": data["wavelength"].values,
        "yrel": data["yrel"].values,
    }


def spectrum_of(one: OneSlit, *, source: bool) -> Spectrum | None:
    """Median spectra of the source's rows, or of those of the centres of all other shutters."""
    yrel = one.data["yrel"].values
    shutter = np.round(yrel)
    use = one.open & (np.abs(yrel - shutter) <= _ROWS)
    if source:
        if not np.isfinite(one.source):
            return None
        use &= np.abs(yrel - one.source) <= _ROWS
    elif np.isfinite(one.source):
        use &= np.abs(yrel - one.source) > 0.5
    use &= np.isfinite(one.data["flux"].values)
    columns = np.flatnonzero(use.any(axis=0))
    if columns.size == 0:
        return None

    def medians(values: NDArray) -> NDArray:
        return np.nanmedian(np.where(use, values, np.nan)[:, columns], axis=0)

    names = ("wavelength", "background", "flux")
    wavelength, background, after = (medians(one.data[n].values) for n in names)
    order = np.argsort(wavelength)
    parts = (wavelength, medians(one.before), background, after)
    return Spectrum(*(p[order] for p in parts))


class Cloud:
    """Sky pixels of all slits of one exposure and detector: the last one asked for is kept."""

    def __init__(self) -> None:
        self._key: tuple = ()
        self._table = pd.DataFrame()

    def of(self, key: tuple, ds: xr.Dataset, master: xr.Dataset) -> pd.DataFrame:
        """Wavelength, flux and index of the slit of each selected pixel that was not clipped."""
        if key != self._key:
            pixels = cloud_pixels(ds, master)
            columns = {"x": pixels.wavelength, "y": pixels.flux, "slit": pixels.slit}
            self._table = pd.DataFrame(columns)[~pixels.clipped]
            self._key = key
        return self._table

    @property
    def last(self) -> pd.DataFrame:
        """The table last asked for."""
        return self._table


def rastered(
    table: pd.DataFrame, x_range: tuple[float, float], y_range: tuple[float, float]
) -> NDArray:
    """Numbers of points by cell, NaN where there are none; logarithms, for they differ widely."""
    canvas = datashader.Canvas(plot_width=600, plot_height=220, x_range=x_range, y_range=y_range)
    count = canvas.points(table, "x", "y", agg=datashader.count()).values.astype(np.float32)
    return np.log10(np.where(count > 0, count, np.nan))
