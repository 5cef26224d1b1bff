"""The page of a report: tables, figures and scripts in one file of HTML."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..info import info
from .decisions import decisions
from .figures import Drawn
from .interactive import cloud_figure, embedded, msa_panel, scripts, slit_table

__all__ = ["page_of", "section_of"]

_STATISTICS = {
    "n": "pixels",
    "median": "median of residual / error",
    "std": "standard deviation (within 40 errors)",
    "mad_sigma": "scaled median absolute deviation",
    "skew": "skewness",
    "frac_3sigma": "fraction beyond 3 errors",
    "frac_5sigma": "fraction beyond 5 errors",
    "frac_under": "fraction under-subtracted (residual above 0)",
    "frac_over": "fraction over-subtracted (residual below 0)",
    "noise_gain": "median growth of the error by the subtraction",
    "stack": "rms over wavelength bins of sum(z) / sqrt(n); 1 is noise alone",
    "stack_nod": "the same, each nod apart",
}
_PACKAGES = "numpy scipy numba xarray dask zarr astropy matplotlib bokeh".split()
_MOST_EXPOSURES = 200  # rows of the table of exposures
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums;
        display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, td.text { text-align: left; }
figure { margin: 2rem 0; }
figure img { max-width: 100%; }
figcaption, .note { color: #555; font-size: .9rem; }
nav a { margin-right: 1.2rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
"""


def page_of(names: Sequence[str], parts: Sequence[str]) -> str:
    """The whole page, of the parts of its configurations."""
    heading = f"Master background: {escape(', '.join(names))}"
    links = "".join(f'<a href="#{escape(n)}">{escape(n)}</a>' for n in names)
    body = "\n".join([f"<h1>{heading}</h1>", f"<nav>{links}</nav>" * (len(names) > 1), *parts])
    versions = _table({k: [v] for k, v in _versions().items()})
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon: browsers would ask a server for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n{scripts()}\n</head>\n<body>\n{body}\n"
        f"<h2>Versions</h2>\n{versions}\n</body>\n</html>\n"
    )


def section_of(
    name: str,
    result: xr.Dataset,
    master: xr.Dataset,
    table: pd.DataFrame,
    scores: xr.Dataset,
    figures: Sequence[Drawn],
) -> str:
    """What the page says of one configuration."""
    slits = decisions(scores, master)
    panel, marks = msa_panel(scores)
    models = {"msa": panel, "cloud": cloud_figure(result, master)}
    models["slits"] = slit_table(slits, marks)
    divs, script = embedded(models)
    parts = [f'<h2 id="{escape(name)}">{escape(name)}</h2>', "<h3>What went in</h3>"]
    parts += [_summary(result, master), _exposures(result)]
    parts.append("<h3>Residuals at the centres of sky shutters</h3>")
    statistics = {
        ": ".join(filter(None, [str(k), _STATISTICS.get(str(k))])): [_number(v) for v in column]
        for k, column in table.items()
    }
    parts.append(_table(statistics, ["", *map(str, table.index)]))
    if not result["is_background"].values.all():
        parts.append(
            '<p class="note">Empty shutters beside a source hold the wings of its light: their '
            "residuals are high where the background is right.</p>"
        )
    parts.append("<h3>Slits on the MSA</h3>")
    parts.append(
        '<p class="note">Point at a slitlet to see what is left at the centres of its sky shutters,'
        " an exposure a line: the sum of residuals over the root of their number, so that noise "
        "alone scatters by 1.</p>"
    )
    parts += [divs["msa"], "<h3>What was decided for each slit, and why</h3>", _what_decided(slits)]
    parts += [divs["slits"], _TABLE_NOTE, "<h3>Sky pixels</h3>"]
    parts.append(
        '<p class="note">Scroll to zoom, drag to move; point at a pixel to see its slit.</p>'
    )
    parts += [divs["cloud"], script]
    for figure in figures:
        parts.append(f"<h3>{escape(figure.heading)}</h3>")
        parts.append(_figure(figure))
    parts.append("<details><summary>Parameters of the master</summary>")
    parts.append(_table({k: [_text(v)] for k, v in sorted(master.attrs.items())}))
    parts.append("</details>\n<details><summary>Passes of the fit</summary>")
    passes = sorted(str(k) for k in master.data_vars if str(k).startswith("pass_"))
    rows = zip(*(master[k].values for k in passes), strict=True)
    history = {str(i + 1): [_number(v) for v in row] for i, row in enumerate(rows)}
    parts.append(_table(history, ["pass", *(k.removeprefix("pass_") for k in passes)]))
    parts.append("</details>\n<details><summary>Attributes of the result</summary>")
    parts.append(_table({str(k): [_text(v)] for k, v in sorted(result.attrs.items())}))
    parts.append("</details>")
    return "\n".join(parts)


_TABLE_NOTE = (
    '<p class="note">sky: shutters that see only sky, and what said so; selected, used: pixels '
    "marked as sky, and those left after clipping; left: median residual at the centres of sky "
    "shutters in % of the sky, with its standard error. Select a row to see its residuals "
    "above.</p>"
)


def _what_decided(slits: pd.DataFrame) -> str:
    """How many slits had which part in the fit."""
    kinds = slits["fit"].str.replace(r"shutter .*", "some shutter", regex=True)
    counts = kinds.value_counts().items()
    return _table({str(k): [f"{n:,} slit{'s' * (n != 1)}"] for k, n in counts})


def _figure(figure: Drawn) -> str:
    if figure.missing:
        return f'<p class="note">Not drawn: {escape(figure.missing)}.</p>'
    data = base64.b64encode(figure.image).decode("ascii")
    caption = escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _summary(result: xr.Dataset, master: xr.Dataset) -> str:
    found = next(iter(info({"": result}).summary.values()))
    low, high = master.attrs["wavelength_range"]
    selected, used = (int(master[k].sum()) for k in ("n_selected", "n_used"))
    files = np.unique(result["filename"].values)
    rows = {
        "programmes": _names(found["programs"]),
        "visits": _names(found["visits"]),
        "detectors": _names(found["detectors"]),
        "exposures": f"{found['exposures']:,}",
        "products": f"{np.count_nonzero(files != ''):,} files",
        "slits": f"{found['slits']:,} of {found['slitlets']:,} slitlets, {found['sky_slits']:,} "
        f"of them without a source; {found['sky_shutters']:,} sky shutters",
        "what is sky was said by": _names([f"{k} ({n:,} slits)" for k, n in
                                           found["sky_reason"].items()]),
        "calibration": _names([f"{k} ({n:,} slits)" for k, n in found["calibration"].items()]),
        "units": found["units"],
        "sky pixels": f"{selected:,}, {used:,} of them used by the fit",
        "fitted range": f"{low:.4g} to {high:.4g} um",
        "background": f"{result.attrs.get('background_model', '')}, "
        f"SHA-256 {str(result.attrs.get('background_sha256', ''))[:16]}",
    }  # fmt: skip
    rows |= {f"note {i + 1}": note for i, note in enumerate(found["notes"])}
    return _table({k: [v] for k, v in rows.items() if v})


def _exposures(result: xr.Dataset) -> str:
    names = ["exposure", "detector", "nod", "exposure_time", "mjd"]
    frame = pd.DataFrame({k: result[k].values for k in names})
    frame["sky"] = result["is_background"].values
    by = frame.groupby(["exposure", "detector"], sort=True)
    rows = {}
    for i, ((exposure, detector), part) in enumerate(by):
        if i == _MOST_EXPOSURES:
            break
        first = part.iloc[0]
        cells = [str(detector), str(first["nod"]), f"{first['exposure_time']:.1f}"]
        cells += [f"{first['mjd']:.5f}", f"{len(part):,}", f"{int(part['sky'].sum()):,}"]
        rows[f"{i + 1}  {exposure}"] = cells
    head = ["exposure", "detector", "nod", "time (s)", "MJD", "slits", "without a source"]
    text = _table(rows, head)
    if by.ngroups > _MOST_EXPOSURES:
        text += f'<p class="note">the first {_MOST_EXPOSURES} of {by.ngroups:,}</p>'
    return f"<details><summary>Exposures</summary>\n{text}\n</details>"


def _names(values: Sequence[Any]) -> str:
    found = [str(v) for v in values if v != ""]
    return ", ".join(found[:8]) + (f", ... ({len(found):,})" if len(found) > 8 else "")


def _table(rows: Mapping[str, list[str]], header: list[str] | None = None) -> str:
    style = "" if header else ' class="text"'
    lines = []
    if header:
        lines.append("<tr>" + "".join(f"<th>{escape(h)}</th>" for h in header) + "</tr>")
    for name, cells in rows.items():
        inner = "".join(f"<td{style}>{escape(c)}</td>" for c in cells)
        lines.append(f"<tr><td>{escape(name)}</td>{inner}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _number(value: object) -> str:
    number = float(value)  # type: ignore[arg-type]
    if not np.isfinite(number):
        return "-"
    return f"{number:,.0f}" if number == int(number) and abs(number) >= 10 else f"{number:.4g}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(map(_text, np.ravel(np.asarray(value))))
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _versions() -> dict[str, str]:
    from .. import __version__

    versions = {"mbkg_xr": __version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in _PACKAGES}
