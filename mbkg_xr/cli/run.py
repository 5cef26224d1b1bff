"""``mbkg-xr run``: the whole chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

from ..chain import MODELS, run
from ..drift import Drift
from ..io import read_template
from ..memory import parse_bytes
from ..models import Template
from ..progress import show_progress
from .cluster import cluster_options, on_cluster
from .options import (
    json_option,
    nips_layout_option,
    overwrite_option,
    sky_options,
)
from .tables import print_results

__all__ = ["run_command"]


class _Window(click.ParamType):
    name = "low,high"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float]:
        try:
            low, high = (float(v) for v in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH in shutter pitches, such as -0.2,0.2")
        return low, high


class _Bytes(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        return parse_bytes(value)


@click.command("run")
@click.argument("inputs", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The Zarr store to write.")
@click.option("--report", type=click.Path(), help="Directory for figures and a page.")
@click.option(
    "--fits", type=click.Path(), help="Directory for copies of the products, background subtracted."
)
@click.option(
    "--model",
    type=click.Choice([*MODELS, "template"]),
    default="bspline",
    show_default=True,
    help="Penalised spline, log-link polynomial, the first recipe (biased, for comparison), or "
    "--template times a smooth ratio.",
)
@click.option(
    "--template",
    type=click.Path(),
    help="A former result or master, or a table of wavelength (um) and flux, for --model template.",
)
@click.option(
    "--yrel",
    multiple=True,
    type=_Window(),
    help="Window of sky pixels; repeat for more than one. By default shutter centres; of sky "
    "slits all rows clear of the bars.",
)
@click.option("--exclude", help="Quality flags that exclude a pixel, separated by commas.")
@click.option(
    "--median-window", default=15, show_default=True,
    help="Window in pixels of the median filter that finds outliers; 0 does without.",
)  # fmt: skip
@click.option("--median-apply", is_flag=True, help="Replace outliers instead of leaving them out.")
@click.option(
    "--slits", default="all", show_default=True,
    help="all, background, or slitlet numbers separated by commas.",
)  # fmt: skip
@click.option(
    "--leave-out", default="slit", show_default=True,
    help="What is left out for the held-out score: slit, nod, exposure, slitlet ...",
)  # fmt: skip
@click.option(
    "--by",
    help="One master for each value of a slit coordinate, such as visit; several with commas.",
)
@click.option(
    "--drift", type=click.IntRange(1, 4), metavar="ORDER",
    help="Let the sky change smoothly with time; 1 is a steady change.",
)  # fmt: skip
@click.option("--skip-bad-slits", is_flag=True, help="Go on without slits that are all bad.")
@click.option(
    "--memory", type=_Bytes(), metavar="SIZE",
    help="Refuse to begin where the run (on a cluster: a worker) would take more, such as 4GB.",
)  # fmt: skip
@click.option(
    "--chunks", type=click.IntRange(min=1),
    help="Slits worked on at a time, in whole chunks of a store.  [32, or one chunk of the store]",
)  # fmt: skip
@cluster_options
@nips_layout_option
@sky_options
@json_option
@overwrite_option
def run_command(
    inputs: tuple[str, ...],
    out: str,
    report: str | None,
    fits: str | None,
    model: str,
    template: str | None,
    yrel: tuple[tuple[float, float], ...],
    exclude: str | None,
    median_window: int,
    median_apply: bool,
    slits: str,
    leave_out: str,
    by: str | None,
    drift: int | None,
    skip_bad_slits: bool,
    memory: int | None,
    chunks: int | None,
    cluster: str | None,
    workers: int | None,
    dashboard: bool,
    as_json: bool,
    overwrite: bool,
    **opening: Any,
) -> None:
    """Run the whole chain on INPUTS: STScI or NIPS slit products, or a Zarr store."""
    if (model == "template") != (template is not None):
        raise click.UsageError("--model template and --template FILE go together")
    with (
        on_cluster(cluster, workers=workers, dashboard=dashboard),
        show_progress(Console(stderr=True)) as say,
    ):
        results = run(
            inputs,
            out,
            model=model if template is None else Template(read_template(template)),
            yrel=yrel or None,
            exclude=None if exclude is None else [f for f in exclude.split(",") if f.strip()],
            median_window=median_window or None,
            median_apply=median_apply,
            slits=_slits(slits),
            leave_out=leave_out,
            by=None if by is None else by.split(","),
            drift=None if drift is None else Drift(order=drift),
            bad_slits="skip" if skip_bad_slits else "raise",
            report=report,
            fits=fits,
            overwrite=overwrite,
            memory=memory,
            on_step=_told(say),
            opening=opening if chunks is None else {**opening, "chunks": chunks},
        )
    print_results(results, out, report, as_json, fits=fits)


def _told(say: Callable[[str], None]) -> Callable[[str], None]:
    """Leaves what a run will take on the terminal; the rest is shown while it is done."""

    def tell(text: str) -> None:
        if text.startswith("memory: "):
            click.echo(text, err=True)
        say(text)

    return tell


def _slits(text: str) -> str | list[int]:
    if text in ("all", "background"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not all, background or numbers", param_hint="--slits"
        ) from None
