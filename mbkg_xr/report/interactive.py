"""What can be pointed at and zoomed in a report: the MSA, the table of slits, the cloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ..errors import DatasetError
from ..master import evaluate, master_grid
from ..plot.canvas import (
    BAD,
    CMAP,
    COLOURS,
    DIVERGING,
    SKY,
    SOURCE,
    WAVELENGTH,
    subset,
    units_of,
)
from ..plot.programme import LABELS, NEUTRAL, QUADRANT, colour_limits, msa_table, quadrant_corner
from ..plot.spectra import cloud_pixels
from ..schema import slit_label

# bokeh takes a second to import: nothing but a report (and the explorer) needs it.

__all__ = ["cloud_figure", "embedded", "msa_panel", "scripts", "slit_table"]

_MAX_POINTS = 20_000  # of the cloud: more make a browser slow
_VALUES = ("excess", "stack", "mad_sigma", "scale")

# Lines of all exposures of the slitlet under the pointer.
_SHOW = """
const bins = wavelength.length, first = marks.data.first[i], count = marks.data.count[i];
const xs = [], ys = [], colour = [], name = [];
for (let k = 0; k < count; k++) {
  xs.push(wavelength);
  ys.push(Array.from(z.data.z.slice((first + k) * bins, (first + k + 1) * bins)));
  colour.push(colours[k % colours.length]);
  name.push(names.data.name[first + k]);
}
let top = 4;
for (const line of ys) { for (const v of line) { if (Math.abs(v) > top) { top = Math.abs(v); } } }
span.start = -1.1 * top; span.end = 1.1 * top;
lines.data = {xs: xs, ys: ys, colour: colour, name: name};
title.text = marks.data.title[i];
"""
_HOVER = "const i = cb_data.index.indices[0];\nif (i === undefined) { return; }\n" + _SHOW
_ROW = (
    "const row = rows.selected.indices[0];\nif (row === undefined) { return; }\n"
    "const i = rows.data.mark[row];\nif (i < 0) { return; }\nmarks.selected.indices = [i];\n"
    + _SHOW
)
_COLOUR = """
marks.data.shown = marks.data[cb_obj.value];
const limits = all[cb_obj.value];
mapper.low = limits.low; mapper.high = limits.high; mapper.palette = limits.palette;
bar.title = limits.label;
marks.change.emit();
"""


def scripts() -> str:
    """The scripts that all of this needs, to be written into the page."""
    from bokeh.resources import Resources

    inline = Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"])
    return inline.render()


def embedded(models: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Places of models on the page, by name, and the script that fills them."""
    from bokeh.embed import components

    # Together, for they share data.
    script, divs = components(dict(models))
    return dict(divs), script


def _figure(**options: Any) -> Any:
    from bokeh.plotting import figure

    plot = figure(toolbar_location="above", sizing_mode="stretch_width", **options)
    plot.toolbar.logo = None
    plot.axis.axis_label_text_font_style = "normal"
    return plot


def msa_panel(scores: xr.Dataset) -> tuple[Any, dict[str, Any]]:
    """The MSA beside the residuals of the slitlet that is pointed at.

    Returns
    -------
    bokeh layout, dict
        And what a table of slits needs to show a slit there, too.
    """
    from bokeh.layouts import column
    from bokeh.models import CustomJS, HoverTool, LinearColorMapper
    from bokeh.models.annotations import ColorBar
    from bokeh.models.widgets import Div, Select

    values = [v for v in _VALUES if v in scores]
    try:
        table = msa_table(scores, *values)
    except DatasetError as error:
        return Div(text=f"{error.cause}: no map"), {}
    marks, z, names, mark_of = _sources(scores, table, values)
    wavelength = [round(float(v), 4) for v in scores["wavelength"].values]
    lines, spectrum = _spectrum(wavelength)
    limits = {v: _limits(table[v].to_numpy(), v) for v in values}
    start = limits[values[0]]
    colour = {k: start[k] for k in ("low", "high", "palette")}
    mapper = LinearColorMapper(nan_color="white", **colour)
    plot = _figure(height=540, title=f"{len(table)} slitlets", tools="pan,wheel_zoom,reset,save")
    plot.name, plot.match_aspect, plot.aspect_scale = "msa", True, 1 / 1.94
    plot.grid.visible, plot.axis.visible, plot.outline_line_color = False, False, None
    for q in (1, 2, 3, 4):
        x, y = quadrant_corner(q)
        box = {"left": x, "right": x + QUADRANT[0], "bottom": y, "top": y + QUADRANT[1]}
        plot.quad(**box, fill_color="#f6f6f6", line_color="#777777", level="underlay")
        inner = y - 26 if q in (1, 3) else y + QUADRANT[1] + 10
        plot.text([x + QUADRANT[0] / 2], [inner], text=[f"Q{q}"], text_align="center")
    drawn = plot.scatter(
        "x", "y", source=marks, marker="marker", size=9 if len(table) > 150 else 12,
        fill_color={"field": "shown", "transform": mapper}, line_color="#333333",
        hover_line_color="black", hover_line_width=3, nonselection_alpha=1.0,
        selection_line_width=3,
    )  # fmt: skip
    bar = ColorBar(color_mapper=mapper, title=start["label"])
    plot.add_layout(bar, "right")
    args = {
        "marks": marks, "z": z, "names": names, "wavelength": wavelength, "lines": lines,
        "title": spectrum.title, "span": spectrum.y_range,
        "colours": [*COLOURS.values(), BAD, SOURCE],
    }  # fmt: skip
    tips = [("", "@title"), ("sky", "@sky")]
    tips += [(LABELS[v], f"@{v}{{0.00}}") for v in values]
    hover = HoverTool(
        tooltips=tips, renderers=[drawn], callback=CustomJS(args=args, code=_HOVER),
        point_policy="snap_to_data", attachment="vertical",
    )  # fmt: skip
    plot.add_tools(hover)
    options: Any = [(v, LABELS[v]) for v in values]
    pick = Select(title="colour", name="value", value=values[0], options=options, width=330)
    pick.js_on_change(
        "value",
        CustomJS(args={"marks": marks, "mapper": mapper, "bar": bar, "all": limits}, code=_COLOUR),
    )
    shown = column(pick, plot, spectrum, sizing_mode="stretch_width")
    return shown, args | {"mark_of": mark_of}


def _sources(scores: xr.Dataset, table: pd.DataFrame, values: list[str]) -> tuple[Any, ...]:
    """Marks, their residuals in one run of numbers, names of these, and the mark of each slit."""
    from bokeh.models import ColumnDataSource

    order = np.concatenate(table["slits"].to_list())
    count = table["slits"].map(len).to_numpy()
    mark_of = np.full(scores.sizes["slit"], -1)
    mark_of[order] = np.repeat(np.arange(len(table)), count)
    name, place = scores["source_name"].values, zip(
        table["slitlet"], table["quadrant"], table["shutter_row"], table["shutter_column"],
        table["visit"], table["slits"], strict=True,
    )  # fmt: skip
    titles = []
    for slitlet, quadrant, row, col, visit, slits in place:
        source = f", source {name[slits[0]]}" if name[slits[0]] else ""
        titles.append(f"slitlet {slitlet}, Q{quadrant} {row} {col}, visit {visit}{source}")
    columns = {
        "x": table["x"], "y": table["y"], "first": np.cumsum(count) - count, "count": count,
        "marker": np.where(table["sky"], "circle", "square"), "title": titles,
        "sky": np.where(table["sky"], "no source", "with a source"),
        "shown": table[values[0]],
        **{v: table[v] for v in values},
    }  # fmt: skip
    marks = ColumnDataSource({k: np.asarray(v) for k, v in columns.items()}, name="marks")
    z = ColumnDataSource({"z": scores["z"].values[order].astype(np.float32).ravel()})
    each = [f"{scores['exposure'].values[i]} {scores['detector'].values[i]}" for i in order]
    return marks, z, ColumnDataSource({"name": each}), mark_of


def _spectrum(wavelength: list[float]) -> tuple[Any, Any]:
    """An empty figure of the residuals of one slitlet."""
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.models.annotations import Span

    lines = ColumnDataSource({"xs": [], "ys": [], "colour": [], "name": []}, name="lines")
    plot = _figure(
        height=230, title="point at a slitlet", x_axis_label=WAVELENGTH, name="slit_spectrum",
        y_axis_label="sum of residuals / √n", tools="pan,wheel_zoom,reset,save",
        x_range=(wavelength[0], wavelength[-1]), y_range=(-4, 4),
    )  # fmt: skip
    drawn = plot.multi_line("xs", "ys", source=lines, line_color="colour", line_width=1.5)
    plot.add_layout(Span(location=0, dimension="width", line_dash="dotted", line_color="black"))
    plot.add_tools(HoverTool(tooltips="@name", renderers=[drawn]))
    return lines, plot


def _limits(values: np.ndarray, name: str) -> dict[str, Any]:
    low, high = colour_limits(values[np.isfinite(values)], name)
    cmap = colormaps[DIVERGING if name in NEUTRAL else CMAP]
    palette = [to_hex(cmap(f)) for f in np.linspace(0, 1, 64)]
    return {"low": low, "high": high, "palette": palette, "label": LABELS[name]}


def slit_table(slits: pd.DataFrame, marks: Mapping[str, Any]) -> Any:
    """A table of all slits, to be sorted; the row selected is shown on the MSA, too."""
    from bokeh.models import ColumnDataSource, CustomJS
    from bokeh.models.widgets.tables import (
        DataTable,
        NumberFormatter,
        StringFormatter,
        TableColumn,
    )

    args = dict(marks)
    data: dict[str, Any] = {str(k): v.to_numpy() for k, v in slits.items()}
    data["mark"] = args.pop("mark_of", np.full(len(slits), -1))
    rows = ColumnDataSource(data, name="rows")
    number = NumberFormatter(format="0,0", nan_format="-")
    decimal = NumberFormatter(format="0.00", nan_format="-")
    fine = NumberFormatter(format="0.000", nan_format="-")
    text = StringFormatter()
    columns = (
        ("exposure", "exposure", 190, text), ("detector", "detector", 60, text),
        ("slitlet", "slitlet", 55, number), ("source_name", "source", 90, text),
        ("sky", "sky", 90, text), ("sky_reason", "said by", 150, text),
        ("fit", "in the fit", 210, text),
        ("selected", "selected", 65, number), ("used", "used", 65, number),
        ("excess", "left (%)", 65, decimal), ("excess_error", "± (%)", 60, decimal),
        ("stack", "stack", 55, decimal), ("mad_sigma", "MAD σ", 60, decimal),
        ("scale", "throughput", 80, fine), ("scale_error", "±", 55, fine),
        ("calibration", "calibration", 400, text),
    )  # fmt: skip
    shown = [
        TableColumn(field=field, title=title, width=width, formatter=form)
        for field, title, width, form in columns
        if field in data
    ]
    if args:
        rows.selected.js_on_change("indices", CustomJS(args={**args, "rows": rows}, code=_ROW))
    return DataTable(
        source=rows, columns=shown, name="slits", height=min(420, 60 + 25 * len(slits)),
        sizing_mode="stretch_width", autosize_mode="none", index_position=None,
        reorderable=False,
    )  # fmt: skip


def cloud_figure(result: xr.Dataset, master: xr.Dataset) -> Any:
    """Flux of sky pixels against wavelength with the master, to be zoomed."""
    from bokeh.models import ColumnDataSource, CustomJSHover, HoverTool

    part, note = subset(result)
    pixels = cloud_pixels(part, master)
    n = pixels.wavelength.size
    rng = np.random.default_rng(0)
    keep = np.sort(rng.permutation(n)[:_MAX_POINTS])
    left_out = pixels.clipped[keep]
    title = f"{keep.size:,} of {n:,} selected pixels" if keep.size < n else f"{n:,} selected pixels"
    plot = _figure(
        height=420, title=title + (f" of {note}" if note else ""), name="cloud",
        x_axis_label=WAVELENGTH, y_axis_label=f"flux ({units_of(result)})",
        tools="pan,wheel_zoom,box_zoom,reset,save", active_scroll="wheel_zoom",
    )  # fmt: skip
    drawn = []
    for which, colour, label in ((~left_out, "#777777", "used"), (left_out, BAD, "clipped")):
        at = keep[which]
        source = ColumnDataSource(
            {
                "x": pixels.wavelength[at].astype(np.float32),
                "y": pixels.flux[at].astype(np.float32),
                "slit": pixels.slit[at].astype(np.int32),
            }
        )
        style = {"size": 3, "line_color": None, "fill_color": colour, "legend_label": label}
        drawn.append(plot.scatter("x", "y", source=source, **style))
    grid = master_grid(master)
    at = (grid.edges[:-1, None] + grid.widths[:, None] * master["node"].values).ravel()
    sky, error = evaluate(master, at, mean=True), master["sky_error"].values.ravel()
    known = np.isfinite(sky) & np.isfinite(error)
    at, sky, error = at[known], sky[known], error[known]
    band = {"fill_color": SKY, "fill_alpha": 0.35, "legend_label": "its standard error x 3"}
    plot.varea(at, sky - 3 * error, sky + 3 * error, **band)
    plot.line(at, sky, line_color=SKY, line_width=1.5, legend_label="master")
    if (~pixels.clipped).any():
        low, high = np.percentile(pixels.flux[~pixels.clipped], [0.02, 99.98])
        pad = 0.06 * (high - low)
        plot.y_range.start, plot.y_range.end = low - pad, high + pad
    plot.legend.click_policy, plot.legend.location = "hide", "top_left"
    labels = [slit_label(part, i) for i in range(part.sizes["slit"])]
    named = CustomJSHover(args={"labels": labels}, code="return labels[value];")
    tips = [("slit", "@slit{custom}"), ("um", "@x{0.000}"), ("flux", "@y{0.0000}")]
    plot.add_tools(HoverTool(tooltips=tips, renderers=drawn, formatters={"@slit": named}))
    return plot
