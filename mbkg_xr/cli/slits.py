"""``mbkg-xr slits``: shutters and pixels of a stored result that are not what they seem."""

from __future__ import annotations

import click
import pandas as pd
from rich.console import Console
from rich.table import Table

from ..bad_pixels import find_bad_pixels
from ..contaminants import find_contaminants
from ..methods import stored_results
from ..progress import show_progress
from ..residuals import residuals
from ..subtract import before_subtraction, subtract
from .options import json_option
from .tables import console

__all__ = ["slits_command"]


@click.command("slits")
@click.argument("result", type=click.Path())
@click.option(
    "--limit", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True,
    help="Score from which on a shutter counts as contaminated.",
)  # fmt: skip
@click.option("--rows", type=click.IntRange(min=1), default=12, show_default=True, help="To show.")
@click.option("--table", type=click.Path(dir_okay=False), help="All shutters, as CSV.")
@click.option(
    "--pixels", type=click.Path(dir_okay=False),
    help="Detector pixels that are bad in several exposures, as CSV.",
)  # fmt: skip
@json_option
def slits_command(
    result: str, limit: float, rows: int, table: str | None, pixels: str | None, as_json: bool
) -> None:
    """Rank the sky shutters of RESULT, a store written by run, by what they hold beyond sky.

    Each is predicted by a master fitted without its slit. Nothing is changed.
    """
    shutters: list[pd.DataFrame] = []
    bad: list[pd.DataFrame] = []
    with show_progress(Console(stderr=True)) as say:
        for name, (ds, master) in stored_results(result).items():
            say(f"{name}: shutters")
            held = subtract(before_subtraction(ds), master, heldout=True)
            shutters.append(_named(find_contaminants(held, master, limit=limit), name))
            if pixels is not None:
                say(f"{name}: detector pixels")
                bad.append(_named(find_bad_pixels(residuals(held)), name))
    found = pd.concat(shutters, ignore_index=True)
    for configuration, part in found.groupby("configuration", sort=False):
        name = str(configuration)
        console().print(_shown(part.head(rows), f"{name}: {_counts(part)}"))
    if table is not None:
        found.to_csv(table, index=False)
    if pixels is not None:
        listed = pd.concat(bad, ignore_index=True)
        listed.to_csv(pixels, index=False)
        console().print(f"{len(listed)} detector pixels are bad in several exposures: {pixels}")
    if as_json:
        click.echo(found.to_json(orient="records"))


def _named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table.assign(configuration=name)


def _counts(table: pd.DataFrame) -> str:
    numbers = table["verdict"].value_counts()
    return f"{len(table)} sky shutters, " + ", ".join(f"{n} {v}" for v, n in numbers.items())


def _shown(table: pd.DataFrame, title: str) -> Table:
    out = Table(title=title, caption="excess over the sky; score in standard deviations")
    for heading in ("exposure", "detector", "slitlet", "shutter"):
        out.add_column(heading, overflow="fold")
    for heading in ("score", "excess %", "shape", "verdict", "left out of the fit"):
        out.add_column(heading, justify="right")
    for row in table.itertuples(index=False):
        out.add_row(
            str(row.exposure), str(row.detector), str(row.slitlet), f"{row.shutter:+d}",
            f"{row.score:.1f}", f"{row.excess:+.1f} ± {row.excess_error:.1f}", str(row.shape),
            str(row.verdict), "yes" if row.left_out else "",
        )  # fmt: skip
    return out
