"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from ..chain import MODELS

__all__ = [
    "json_option",
    "many_valued",
    "model_option",
    "nips_layout_option",
    "overwrite_option",
    "sky_options",
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


class _Sky(click.ParamType):
    name = "numbers or file"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | list[int]:
        text = str(value).strip()
        if re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
            return [int(number) for number in text.split(",")]
        return text


def sky_options(command: Callable) -> Callable:
    """Options of `mbkg_xr.open_program` on which slits are sky; they have its names."""
    for option in (
        click.option(
            "--accept", multiple=True, metavar="KEYWORD",
            help="Calibration step (S_FLAT, S_PHOTOM) not held against a product.",
        ),
        click.option(
            "--virtual-sky", is_flag=True,
            help="Slits with virtual sources (negative numbers) are sky.",
        ),
        click.option(
            "--metafile", multiple=True, type=click.Path(),
            help="MSA metafile.  [default: those among the inputs or beside the products]",
        ),
        click.option(
            "--sky", type=_Sky(),
            help="Slitlets that are sky, and no others: numbers separated by commas; or a table "
            "(CSV, ECSV) with slitlet, and is_background or source_shutter.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command
