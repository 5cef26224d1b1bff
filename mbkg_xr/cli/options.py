"""Options that several commands share."""

from __future__ import annotations

import click

from ..chain import MODELS

__all__ = ["json_option", "model_option", "overwrite_option"]

model_option = click.option(
    "--model", type=click.Choice(list(MODELS)), default="bspline", show_default=True,
    help="Penalised spline, log-link polynomial, or the first recipe (biased, for comparison).",
)  # fmt: skip
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON line at the end."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")
