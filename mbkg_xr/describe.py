"""What a dataset is, in a few lines: for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.table import Table

from .left_out import left_out_slits
from .parts import has_parts, master_part
from .schema import already_subtracted, validate

__all__ = ["Description", "describe"]

_CANDIDATES = 4  # shown beside the chosen one
_SCORES = {"heldout": "held out", "dof": "dof", "chi2": "chi2", "aicc": "AICc", "bic": "BIC"}


@dataclass(frozen=True)
class Description:
    """A title, lines of what and how much, and a table; text, HTML and rich alike.

    Attributes
    ----------
    title
        What it is.
    lines
        By what they are about.
    columns, rows
        The table's; empty where there is none.
    """

    title: str
    lines: Mapping[str, str]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    def __str__(self) -> str:
        wide = max(map(len, self.lines), default=0)
        out = [self.title, *(f"  {k:<{wide}}  {v}" for k, v in self.lines.items())]
        table = [self.columns, *self.rows] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            first, *others = (c.rjust(w) for c, w in zip(row, widths, strict=True))
            out.append("  ".join(["  " + row[0].ljust(len(first)), *others]))
        return "\n".join(out)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        out = [f"<div><b>{escape(self.title)}</b><table>"]
        out += [
            f"<tr><th {left}>{escape(k)}</th><td {left}>{escape(v)}</td></tr>"
            for k, v in self.lines.items()
        ]
        out.append("</table>")
        if self.rows:
            head = "".join(f"<th>{escape(c)}</th>" for c in self.columns)
            body = "".join(
                "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>"
                for row in self.rows
            )
            out.append(f"<table><tr>{head}</tr>{body}</table>")
        return "".join(out) + "</div>"

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        lines = Table(title=self.title, show_header=False)
        for key, value in self.lines.items():
            lines.add_row(key, value)
        table.add_row(lines)
        if self.rows:
            scores = Table()
            for i, column in enumerate(self.columns):
                scores.add_column(column, justify="right" if i else "left")
            for row in self.rows:
                scores.add_row(*row)
            table.add_row(scores)
        return table


def describe(ds: xr.Dataset) -> Description:
    """Say what a master or a slit dataset is. Reads no pixel.

    Parameters
    ----------
    ds
        From `fit_master`: model, range, degrees of freedom, scatter, and the scores of the model
        that was chosen beside the next ones. Or a slit dataset: what it holds, and what was done.

    Returns
    -------
    Description
        Prints as text, shows as a table in notebooks, and with ``rich``.

    Raises
    ------
    DatasetError
        Where it is neither.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> print(str(mx.describe(mx.fit_master(ds))).splitlines()[0])
    master background: bspline, prism-clear
    >>> mx.describe(ds).lines["slits"]
    '8: 2 exposures, 4 slitlets, NRS1'
    """
    return _master(ds) if "polynomial" in ds else _slits(ds)


def _master(master: xr.Dataset) -> Description:
    attrs = master.attrs
    low, high = attrs["wavelength_range"]
    lines = {
        "range": f"{low:.3f} to {high:.3f} um",
        "fitted to": f"{attrs['n_pixels']} sky pixels of {int((master['n_used'] > 0).sum())} slits",
        "units": attrs["units"],
        "passes": f"{master.sizes['pass']}, " * (not has_parts(master))
        + ("converged" if attrs.get("converged", 1) else "not converged"),
    }
    title = f"master background: {attrs['model']}, {attrs['configuration']}"
    if has_parts(master):
        values = master["part"].values
        each = [master_part(master, v) for v in values]
        rows = tuple((str(v), *_fit_cells(m)) for v, m in zip(values, each, strict=True))
        columns = (str(attrs["by"]), "chosen", "dof", "scatter", "pixels")
        return Description(f"{title}, one each by {attrs['by']}", lines, columns, rows)
    chosen, dof, scatter, _ = _fit_cells(master)
    lines |= {
        "chosen": f"{chosen}, of {master.sizes['candidate']} candidates by {attrs['chosen_by']}",
        "degrees of freedom": dof,
        "scatter over the model's error": scatter,
    }
    if "scale_spread" in master:
        spread = zip(master["component"].values, master["scale_spread"].values[:, 0], strict=True)
        lines["throughput varies by"] = ", ".join(f"{100 * s:.1f} % ({c})" for c, s in spread)
    if len(out := left_out_slits(master)):
        lines["slits left out as a whole"] = _named(out)
    if "floor" in attrs:
        lines["shutters differ further by"] = f"{100 * attrs['floor']:.1f} %"
    return Description(title, lines, *_scores(master))


def _named(out: pd.DataFrame) -> str:
    """Slits and the reasons, each reason's slits together."""
    some = out[:_CANDIDATES]
    rows = (f"{r.exposure} {r.detector} {r.slitlet}: {r.reason}" for r in some.itertuples())
    more = len(out) - len(some)
    return "; ".join([*rows, *([f"and {more} more (left_out_slits)"] if more else [])])


def _fit_cells(master: xr.Dataset) -> tuple[str, str, str, str]:
    chosen = master["candidate"].values[np.flatnonzero(master["score_chosen"].values)[0]]
    attrs = master.attrs
    pixels = str(attrs["n_pixels"])
    return str(chosen), f"{attrs['dof']:.1f}", f"{attrs['scatter']:.3f}", pixels


def _scores(master: xr.Dataset) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The chosen candidate, and the best of the others."""
    shown = {k: text for k, text in _SCORES.items() if f"score_{k}" in master}
    shown = {k: t for k, t in shown.items() if np.isfinite(master[f"score_{k}"].values).any()}
    key = next((k for k in (master.attrs["chosen_by"], *shown) if f"score_{k}" in master), None)
    if key is None:
        return (), ()
    chosen = int(np.flatnonzero(master["score_chosen"].values)[0])
    order = np.argsort(master[f"score_{key}"].values, kind="stable")
    some = [chosen, *(i for i in order.tolist() if i != chosen)][: _CANDIDATES + 1]
    rows = tuple(
        (
            ("* " if i == chosen else "  ") + str(master["candidate"].values[i]),
            *(f"{master[f'score_{k}'].values[i]:.5g}" for k in shown),
        )
        for i in some
    )
    return ("  candidate", *shown.values()), rows


def _slits(ds: xr.Dataset) -> Description:
    validate(ds)

    def some(name: str) -> str:
        values = np.unique(ds[name].values)
        shown = " ".join(map(str, values[:6]))
        return shown + (f" and {values.size - 6} more" if values.size > 6 else "")

    slitlets = np.unique(ds["slitlet"].values).size
    exposures = np.unique(ds["exposure"].values).size
    lines: dict[str, Any] = {
        "slits": f"{ds.sizes['slit']}: {exposures} exposures, {slitlets} slitlets, "
        f"{some('detector')}",
        "programmes, visits": f"{some('program') or '-'}, {some('visit') or '-'}",
        "nods": some("nod"),
        "sky slits": str(int(ds["is_background"].values.sum())),
        "pixels": f"{ds.sizes['y']} x {ds.sizes['x']} a slit, padded, "
        + ("lazy" if ds["flux"].chunks is not None else "in memory"),
        "units": ds["flux"].attrs["units"],
    }
    done = []
    if "selected" in ds:
        done.append("sky pixels selected")
    if "background" in ds:
        model = ds.attrs.get("background_model")
        method = ds.attrs.get("background_method", "unknown")
        done.append(f"background subtracted: {method}" + (f", {model}" if model else ""))
    elif (n := int(already_subtracted(ds).sum())) > 0:
        done.append(f"{n} slits came without their sky")
    if "residual" in ds:
        done.append("residuals")
    lines["done"] = "; ".join(done) or "as calibrated"
    return Description(f"slits: {ds.attrs['configuration']}", lines)
