"""The explorer's page: what can be picked, and the figures that follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper, Range1d
from bokeh.models.annotations import ColorBar, Span
from bokeh.models.widgets import Button, Div, RangeSlider, Select
from bokeh.plotting import figure
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ..errors import MbkgError
from ..master import evaluate
from ..parts import has_parts, master_part, part_index
from ..plot.canvas import (
    CMAP,
    COLOURS,
    DIVERGING,
    SKY,
    SOURCE,
    WAVELENGTH,
    data_range,
    stretch,
    units_of,
)
from ..plot.slits import OneSlit
from .slit import Cloud, images_of, rastered, spectrum_of

__all__ = ["View"]

_PANELS = ("before", "background", "after", "residual")
_TITLES = {
    "before": "before subtraction",
    "background": "master background on the slit's pixels",
    "after": "after subtraction",
    "residual": "residual (units of its error)",
}
_LINES = ("x", "before", "background", "after")
_Z = 5.0  # residuals that the colours reach to


class View:
    """One visitor's page.

    Parameters
    ----------
    results
        Result and master by configuration, lazy.
    """

    def __init__(self, results: Mapping[str, tuple[xr.Dataset, xr.Dataset]]):
        self._results = results
        self._cloud = Cloud()
        self._slits: list[tuple[str, str]] = []  # index and label, of the exposure
        names: Any = list(results)
        some: Any = {"options": [], "value": ""}
        self._configuration: Any = Select(title="configuration", options=names, value=names[0])
        self._exposure: Any = Select(
            title="exposure", options=[], value="", name="exposure", width=330
        )
        self._slit: Any = Select(title="slit", name="slit", width=260, **some)
        self._range = RangeSlider(
            title=WAVELENGTH, start=0.5, end=5.5, value=(0.5, 5.5), step=0.01, name="range"
        )
        self._message = Div(text="", styles={"color": "#D55E00"}, name="message")
        back, forth = (Button(label=label, width=40) for label in "◀▶")
        back.on_click(lambda: self._step(-1))
        forth.on_click(lambda: self._step(1))
        self._images = ColumnDataSource(name="images")
        self._points = ColumnDataSource({"x": [], "y": []})
        self._raster = ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []})
        self._master = ColumnDataSource({"x": [], "y": []})
        self._spectra = {
            name: ColumnDataSource({k: [] for k in _LINES}, name=name) for name in ("source", "sky")
        }
        self._mappers: dict[str, LinearColorMapper] = {}
        self._panels = {name: self._panel(name) for name in _PANELS}
        first = self._panels["before"]
        for panel in self._panels.values():
            panel.x_range, panel.y_range = first.x_range, first.y_range
        self._figures = {name: self._spectrum(name) for name in self._spectra}
        self._figures["sky"].x_range = self._figures["source"].x_range
        self._all = self._cloud_figure()
        self._all.x_range = self._figures["source"].x_range
        self._configuration.on_change("value", lambda attr, old, new: self._choose_configuration())
        self._exposure.on_change("value", lambda attr, old, new: self._choose_exposure())
        self._slit.on_change("value", lambda attr, old, new: self._show())
        self._range.on_change("value_throttled", lambda attr, old, new: self._narrow())
        picks = row(self._configuration, self._exposure, back, self._slit, forth, self._range)
        figures = [*self._panels.values(), *self._figures.values(), self._all]
        self.layout = column(picks, self._message, *figures, sizing_mode="stretch_width")
        self._choose_configuration()

    # --- what is picked ---------------------------------------------------------------------------

    @property
    def _result(self) -> xr.Dataset:
        return self._results[self._configuration.value][0]

    def _choose_configuration(self) -> None:
        result = self._result
        pairs = zip(*(result[k].values.tolist() for k in ("exposure", "detector")), strict=True)
        names = sorted({f"{exposure} {detector}" for exposure, detector in pairs})
        low, high = self._results[self._configuration.value][1].attrs["wavelength_range"]
        self._range.update(start=low, end=high, value=(low, high))
        self._exposure.options = names
        if self._exposure.value in names:
            self._choose_exposure()
        else:
            self._exposure.value = names[0]  # and what follows from it

    def _of_exposure(self) -> np.ndarray:
        exposure, detector = self._exposure.value.rsplit(" ", 1)
        result = self._result
        same = (result["exposure"].values == exposure) & (result["detector"].values == detector)
        return np.flatnonzero(same)

    def _choose_exposure(self) -> None:
        index = self._of_exposure()
        parts = (self._result[k].values[index] for k in ("slitlet", "source_name", "is_background"))
        options = [
            (str(i), f"{slitlet}{': ' + str(name) if name else ''}{' (sky)' if sky else ''}")
            for i, slitlet, name, sky in zip(index, *parts, strict=True)
        ]
        before = dict(self._slits).get(self._slit.value)
        self._slits = options
        self._slit.options = options
        # The same slitlet of another exposure, where it is there.
        same = [i for i, label in options if label == before]
        sources = [i for i, label in options if not label.endswith("(sky)")]
        value = [*same, *sources, options[0][0]][0]
        if self._slit.value == value:
            self._show()
        else:
            self._slit.value = value

    def _step(self, by: int) -> None:
        order = [i for i, _ in self._slits]
        self._slit.value = order[(order.index(self._slit.value) + by) % len(order)]

    # --- what is shown ----------------------------------------------------------------------------

    def _show(self) -> None:
        """Read the slit and show it; what cannot be read or shown is said on the page."""
        self._message.text = ""
        try:
            self._one = OneSlit(self._result, int(self._slit.value), ["residual"])
            self._show_images()
            self._show_spectra()
            self._show_cloud()
            self._narrow()
        except MbkgError as error:
            self._message.text = f"error: {error}"

    def _show_images(self) -> None:
        one, images = self._one, images_of(self._one)
        x, y = one.x[0] - 0.5, one.y[0] - 0.5
        place = {"x": [x], "y": [y], "dw": [one.x.size], "dh": [one.y.size]}
        self._images.data = {**{k: [v] for k, v in images.items()}, **place}
        self._panels["before"].title.text = f"{_TITLES['before']}: {one.title}"
        after, before = stretch(images["after"][one.open]), stretch(images["before"][one.open])
        for name in ("before", "background", "after"):
            self._mappers[name].update(low=after["vmin"], high=before["vmax"])
        self._panels["before"].y_range.update(start=y, end=y + one.y.size)

    def _show_spectra(self) -> None:
        for name, source in self._spectra.items():
            found = spectrum_of(self._one, source=name == "source")
            empty = np.empty(0)
            parts = [empty] * 4 if found is None else list(vars(found).values())
            source.data = dict(zip(_LINES, parts, strict=True))
            title = "source's shutter" if name == "source" else "centres of sky shutters"
            missing = " (this slit has none)" if found is None else ""
            self._figures[name].title.text = f"{title}, median of the rows{missing}"

    def _show_cloud(self) -> None:
        index = self._of_exposure()
        exposure = self._result.isel(slit=index)
        master = self._master_of(exposure)
        key = self._configuration.value, self._exposure.value
        table = self._cloud.of(key, exposure, master)
        mine = table[table["slit"] == int(np.searchsorted(index, int(self._slit.value)))]
        self._points.data = {"x": mine["x"].to_numpy(), "y": mine["y"].to_numpy()}
        counts = f"{len(table):,} sky pixels of this exposure; {len(mine):,} of the slit"
        self._all.title.text = counts
        low, high = master.attrs["wavelength_range"]
        at = np.linspace(low, high, 2000)
        self._master.data = {"x": at, "y": evaluate(master, at)}

    def _master_of(self, exposure: xr.Dataset) -> xr.Dataset:
        """The master of these slits: of one with parts, the part of the first that has one."""
        master = self._results[self._configuration.value][1]
        if not has_parts(master):
            return master
        which = part_index(exposure, master)
        known = which[which >= 0]
        return master_part(master, master["part"].values[known[0] if known.size else 0])

    def _narrow(self) -> None:
        """Show the wavelength range that was picked, in all figures."""
        low, high = self._range.value
        one = self._one
        wavelength = one.data["wavelength"].values
        inside = ((wavelength >= low) & (wavelength <= high)).any(axis=0)
        at = one.x[inside] if inside.any() else one.x
        self._panels["before"].x_range.update(start=at[0] - 0.5, end=at[-1] + 0.5)
        self._figures["source"].x_range.update(start=low, end=high)
        for name, source in self._spectra.items():
            data = source.data
            some = (np.asarray(data["x"]) >= low) & (np.asarray(data["x"]) <= high)
            values = np.concatenate([np.asarray(data[k])[some] for k in _LINES[1:]])
            bottom, top = data_range(values[np.isfinite(values)])
            self._figures[name].y_range.update(start=bottom, end=top)
        table = self._cloud.last
        seen = table["y"][(table["x"] >= low) & (table["x"] <= high)]
        if seen.empty:
            self._raster.data = {str(k): [] for k in self._raster.data}
            return
        bottom, top = np.percentile(seen, [0.1, 99.9])
        pad = 0.1 * (top - bottom) or 1.0
        bottom, top = float(bottom - pad), float(top + pad)
        image = rastered(table, (low, high), (bottom, top))
        place = {"x": [low], "y": [bottom], "dw": [high - low], "dh": [top - bottom]}
        self._raster.data = {"image": [image], **place}
        self._all.y_range.update(start=bottom, end=top)

    # --- figures ----------------------------------------------------------------------------------

    def _panel(self, name: str) -> Any:
        cmap = colormaps[DIVERGING if name == "residual" else CMAP]
        palette = [to_hex(cmap(f)) for f in np.linspace(0, 1, 256)]
        mapper = LinearColorMapper(palette=palette, low=-_Z, high=_Z, nan_color="#d9d9d9")
        self._mappers[name] = mapper
        plot = _figure(height=150, title=_TITLES[name], name=name, y_axis_label="row (pixel)")
        plot.grid.visible = False
        plot.background_fill_color = "#ffffff"
        drawn = plot.image(
            image=name, x="x", y="y", dw="dw", dh="dh", source=self._images, color_mapper=mapper
        )
        if name == "residual":
            plot.xaxis.axis_label = "detector column (pixel)"
            plot.height = 175
        label = "z" if name == "residual" else units_of(self._result)
        plot.add_layout(ColorBar(color_mapper=mapper, title=label, width=12), "right")
        tips = [("um", "@wavelength{0.0000}"), ("yrel", "@yrel{0.00}")]
        tips += [(k, f"@{k}{{0.0000}}") for k in _PANELS]
        plot.add_tools(HoverTool(tooltips=tips, renderers=[drawn]))
        return plot

    def _spectrum(self, name: str) -> Any:
        source = self._spectra[name]
        label = f"flux ({units_of(self._result)})"
        plot = _figure(height=230, title=name, name=f"{name}_spectrum", y_axis_label=label)
        for key, colour in (("before", "#777777"), ("background", COLOURS["nods"]), ("after", SKY)):
            plot.line("x", key, source=source, line_color=colour, line_width=1.3, legend_label=key)
        plot.add_layout(Span(location=0, dimension="width", line_dash="dotted"))
        plot.legend.orientation, plot.legend.click_policy = "horizontal", "hide"
        plot.legend.location, plot.legend.background_fill_alpha = "top_center", 0.6
        return plot

    def _cloud_figure(self) -> Any:
        label = f"flux ({units_of(self._result)})"
        plot = _figure(height=320, title="", name="cloud", x_axis_label=WAVELENGTH)
        plot.yaxis.axis_label = label
        greys = [to_hex(colormaps["Greys"](f)) for f in np.linspace(0.2, 1, 64)]
        mapper = LinearColorMapper(palette=greys, nan_color="white")
        plot.image(
            image="image", x="x", y="y", dw="dw", dh="dh", source=self._raster, color_mapper=mapper
        )
        style = {"size": 2, "line_color": None, "fill_color": SOURCE, "legend_label": "this slit"}
        plot.scatter("x", "y", source=self._points, **style)
        line = {"line_color": SKY, "line_width": 1.5, "legend_label": "master"}
        plot.line("x", "y", source=self._master, **line)
        plot.legend.location = "top_left"
        return plot


def _figure(**options: Any) -> Any:
    usual: dict[str, Any] = {
        "sizing_mode": "stretch_width",
        "toolbar_location": "right",
        "x_range": Range1d(start=0, end=1),
        "y_range": Range1d(start=0, end=1),
        "tools": "pan,wheel_zoom,box_zoom,reset,save",
    }
    plot = figure(**usual, **options)
    plot.toolbar.logo = None
    plot.axis.axis_label_text_font_style = "normal"
    return plot
