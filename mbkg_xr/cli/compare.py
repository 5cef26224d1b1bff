"""``mbkg-xr compare``: a stored result again, beside products that others nod-subtracted."""

from __future__ import annotations

import click
from rich.console import Console

from ..partners import NOD_ERRORS
from ..progress import show_progress
from ..stored import compare_stored
from .options import json_option, many_valued, nips_layout_option
from .tables import json_line, print_scores

__all__ = ["compare_command"]


@click.command("compare", cls=many_valued("--nods"))
@click.argument("result", type=click.Path())
@click.option(
    "--nods", multiple=True, metavar="FILE ...",
    help="Products whose background was subtracted by others: files, patterns, directories.",
)  # fmt: skip
@click.option(
    "--nod-errors", type=click.Choice(NOD_ERRORS), default="auto", show_default=True,
    help="Their errors: as given, grown by those of the other nods, or as they seem to need it.",
)  # fmt: skip
@nips_layout_option
@json_option
def compare_command(
    result: str,
    nods: tuple[str, ...],
    nod_errors: str,
    nips_layout: str | None,
    as_json: bool,
) -> None:
    """Score RESULT, a store written by run, again: master and nods on the same pixels."""
    with show_progress(Console(stderr=True)) as say:
        tables = compare_stored(
            result,
            nods=nods or None,
            nips_layout=nips_layout,
            nod_errors=nod_errors,
            on_step=say,
        )
    for name, table in tables.items():
        how = [f"errors of {row}: {text}" for row, text in table.attrs["nod_errors"].items()]
        print_scores(table, name, "; ".join(how))
    if as_json:
        click.echo(json_line(tables))
