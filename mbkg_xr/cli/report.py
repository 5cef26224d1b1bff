"""``mbkg-xr report``: the page of a stored result."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..progress import show_progress
from ..report import write_report
from .tables import console

__all__ = ["report_command"]


@click.command("report")
@click.argument("result", type=click.Path())
@click.option("--out", type=click.Path(), help="Directory to write to.  [default: RESULT_report]")
def report_command(result: str, out: str | None) -> None:
    """Write a page that shows RESULT, a store written by run: decisions, figures, tables."""
    folder = Path(out or f"{Path(result).stem}_report")
    with show_progress(Console(stderr=True)) as say:
        page = write_report(result, folder, on_step=say)[0]
    console().print(f"report: {folder / page.name}", soft_wrap=True)
