"""``mbkg-xr ingest``: products into a Zarr store."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

from ..io.ingest import ingest
from ..progress import show_progress
from .options import json_option, nips_layout_option, sky_options
from .tables import console

__all__ = ["ingest_command"]


@click.command("ingest")
@click.argument("inputs", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The Zarr store to make or add to.")
@click.option(
    "--chunks",
    type=click.IntRange(min=1),
    help="Slits in a chunk of a new store.  [default: 32, or 64]",
)
@click.option("--strict", is_flag=True, help="Take nothing where any file cannot be used.")
@nips_layout_option
@sky_options
@json_option
@click.pass_context
def ingest_command(
    ctx: click.Context,
    inputs: tuple[str, ...],
    out: str,
    chunks: int | None,
    strict: bool,
    as_json: bool,
    **opening: Any,
) -> None:
    """Bring INPUTS, STScI or NIPS slit products, into a Zarr store.

    What is in already is passed over, and a run that was cut short goes on where it stopped. Exit
    status 1 if a file could not be used.
    """
    with show_progress(Console(stderr=True)) as say:
        report = ingest(
            inputs,
            out,
            chunks=chunks,
            on_error="raise" if strict else "collect",
            on_step=say,
            **opening,
        )
    console().print(report)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    if report.failed:
        ctx.exit(1)
