"""``mbkg-xr verify``: whether a store is whole."""

from __future__ import annotations

import json

import click
from rich.console import Console

from ..progress import show_progress
from ..verify import verify
from .options import json_option
from .tables import console

__all__ = ["verify_command"]


@click.command("verify")
@click.argument("store", type=click.Path())
@click.option("--quick", is_flag=True, help="List chunks, and do not read them.")
@json_option
@click.pass_context
def verify_command(ctx: click.Context, store: str, quick: bool, as_json: bool) -> None:
    """Check that STORE is whole, and that all of it can be read. Exit status 1 if it is not."""
    with show_progress(Console(stderr=True)) as say:
        report = verify(store, deep=not quick, on_step=say)
    console().print(report if report.problems else f"{report.store}: {report}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    if not report.ok:
        ctx.exit(1)
