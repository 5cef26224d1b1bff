"""What commands print: tables for people, one line of JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from ..chain import ChainResult
from ..left_out import left_out_slits

__all__ = ["console", "json_line", "print_results", "print_scores"]


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    return Console(width=None if Console().is_terminal else 120)


_MOST_SLITS = 20

_COLUMNS = {
    "n": ("pixels", "{:.0f}"),
    "median": ("median", "{:+.3f}"),
    "std": ("std", "{:.3f}"),
    "mad_sigma": ("MAD sigma", "{:.3f}"),
    "skew": ("skew", "{:+.2f}"),
    "frac_3sigma": (">3 sigma", "{:.2%}"),
    "frac_5sigma": (">5 sigma", "{:.2%}"),
    "frac_under": ("under", "{:.1%}"),
    "frac_over": ("over", "{:.1%}"),
    "noise_gain": ("noise gain", "{:.3f}"),
    "stack": ("stack", "{:.2f}"),
    "stack_nod": ("a nod", "{:.2f}"),
}


def print_results(
    results: dict[str, ChainResult],
    out: str,
    report: str | None,
    as_json: bool,
    *,
    fits: str | None = None,
) -> None:
    for name, item in results.items():
        low, high = item.master.attrs["wavelength_range"]
        title = (
            f"{name}: {item.master.attrs['model']}, {item.master.attrs['n_pixels']} sky pixels of "
            f"{item.result.sizes['slit']} slits, {low:.2f}-{high:.2f} um"
        )
        print_scores(item.table, title)
        _print_left_out(name, left_out_slits(item.master))
    places = [f"result: {out}"]
    places += [f"figures: {report}"] if report else []
    places += [f"FITS: {fits}"] if fits else []
    console().print("   ".join(places), soft_wrap=True)
    if as_json:
        click.echo(json_line({name: item.table for name, item in results.items()}))


def _print_left_out(name: str, slits: pd.DataFrame) -> None:
    """Whole slits that the fit left out, where there are any."""
    if slits.empty:
        return
    table = Table(title=f"{name}: slits left out as a whole")
    for heading in ("exposure", "detector", "slitlet", "reason"):
        table.add_column(heading, overflow="fold")
    for row in slits.head(_MOST_SLITS).itertuples(index=False):
        table.add_row(str(row.exposure), str(row.detector), str(row.slitlet), str(row.reason))
    if len(slits) > _MOST_SLITS:
        table.caption = f"and {len(slits) - _MOST_SLITS} more"
    console().print(table)


def print_scores(scores: pd.DataFrame, title: str, caption: str = "") -> None:
    """The rows of `mbkg_xr.compare`."""
    below = "normalised residuals at centres of sky shutters" + (caption and f"; {caption}")
    table = Table(title=title, caption=below)
    table.add_column("")
    for heading, _ in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for method, row in scores.iterrows():
        cells = [
            form.format(row[key]) if np.isfinite(row[key]) else "-"
            for key, (_, form) in _COLUMNS.items()
        ]
        table.add_row(str(method), *cells)
    console().print(table)


def json_line(tables: Mapping[str, pd.DataFrame]) -> str:
    """One JSON object; what has no value is null, since JSON knows no NaN."""
    return json.dumps(
        {
            name: {
                str(method): {k: _number(v) for k, v in row.items()}
                for method, row in table.to_dict(orient="index").items()
            }
            for name, table in tables.items()
        }
    )


def _number(value: float) -> float | int | None:
    if isinstance(value, int | np.integer):
        return int(value)
    return round(float(value), 6) if math.isfinite(value) else None
