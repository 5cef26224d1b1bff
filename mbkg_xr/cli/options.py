"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from ..chain import MODELS

__all__ = [
    "json_option",
    "many_valued",
    "model_option",
    "nips_layout_option",
    "overwrite_option",
]

model_option = click.option(
    "--model", type=click.Choice(list(MODELS)), default="bspline", show_default=True,
    help="Penalised spline, log-link polynomial, or the first recipe (biased, for comparison).",
)  # fmt: skip
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON line at the end."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")
nips_layout_option = click.option(
    "--nips-layout", type=click.Path(), metavar="FILE.toml",
    help="What extensions and keywords of NIPS files are called.",
)  # fmt: skip


def many_valued(option: str) -> type[click.Command]:
    """A command one of whose options takes several values; click's take a fixed number."""

    class Command(click.Command):
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            return super().parse_args(ctx, list(_repeated(args, option)))

    return Command


def _repeated(args: Sequence[str], option: str) -> Iterator[str]:
    """``--option A B`` as ``--option A --option B``: free words come before the option."""
    inside = False
    for i, arg in enumerate(args):
        if arg.startswith("-"):
            inside = arg == option or arg.startswith(option + "=")
        elif inside and args[i - 1] != option:
            yield option
        yield arg
