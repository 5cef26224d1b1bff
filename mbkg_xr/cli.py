"""The command line: thin, every command is one function of the package."""

from __future__ import annotations

import json
import math
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from .chain import MODELS, ChainResult, run, run_tree
from .cli_simulate import simulate
from .errors import MbkgError
from .io import save
from .master import evaluate
from .progress import show_progress
from .residuals import sky_centres
from .schema import SHUTTER_CENTRES
from .simulate import simulate_program

__all__ = ["main"]


class _Group(click.Group):
    """Turns the package's own errors into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        # Told to stop, clean up as after any other error: nothing half-written stays.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: ctx.exit(143))
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except MbkgError as error:
                click.echo(f"error: {error}", err=True)
                ctx.exit(2)


def _show_warning(message: Any, category: Any, *where: Any, **more: Any) -> None:
    """Show the package's warnings as one line; those of libraries are for developers."""
    if category is UserWarning:
        click.echo(f"warning: {message}", err=True)


@click.group(cls=_Group)
@click.version_option(package_name="mbkg_xr")
def main() -> None:
    """Master background subtraction for JWST NIRSpec multi-object spectra."""


main.add_command(simulate)

_model = click.option(
    "--model", type=click.Choice(list(MODELS)), default="bspline", show_default=True,
    help="Penalised spline, log-link polynomial, or the first recipe (biased, for comparison).",
)  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON line at the end.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace what is there.")


class _Window(click.ParamType):
    name = "low,high"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float]:
        try:
            low, high = (float(v) for v in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH in shutter pitches, such as -0.2,0.2")
        return low, high


@main.command("run")
@click.argument("inputs", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The Zarr store to write.")
@click.option("--report", type=click.Path(), help="Directory for figures and a page.")
@_model
@click.option(
    "--yrel", multiple=True, type=_Window(), help="Window of sky pixels; repeat for more than one."
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
@click.option("--skip-bad-slits", is_flag=True, help="Go on without slits that are all bad.")
@_json
@_overwrite
def run_command(
    inputs: tuple[str, ...],
    out: str,
    report: str | None,
    model: str,
    yrel: tuple[tuple[float, float], ...],
    exclude: str | None,
    median_window: int,
    median_apply: bool,
    slits: str,
    leave_out: str,
    skip_bad_slits: bool,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Run the whole chain on INPUTS: STScI or NIPS slit products, or a Zarr store."""
    with show_progress(Console(stderr=True)) as say:
        results = run(
            inputs,
            out,
            model=model,
            yrel=yrel or SHUTTER_CENTRES,
            exclude=None if exclude is None else [f for f in exclude.split(",") if f.strip()],
            median_window=median_window or None,
            median_apply=median_apply,
            slits=_slits(slits),
            leave_out=leave_out,
            bad_slits="skip" if skip_bad_slits else "raise",
            report=report,
            overwrite=overwrite,
            on_step=say,
        )
    _print(results, out, report, as_json)


def _slits(text: str) -> str | list[int]:
    if text in ("all", "background"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not all, background or numbers", param_hint="--slits"
        ) from None


@main.command()
@click.option("--out", default="mbkg_demo", show_default=True, type=click.Path())
@click.option("--seed", default=1, show_default=True, help="Seed of the simulation.")
@_model
@_json
@click.option("--overwrite/--no-overwrite", default=True, help="Replace an earlier demo.")
def demo(out: str, seed: int, model: str, as_json: bool, overwrite: bool) -> None:
    """Simulate a small programme, run the whole chain on it, and hold the result to the truth."""
    folder = Path(out)
    result, report = folder / "result.zarr", folder / "report"
    with show_progress(Console(stderr=True)) as say:
        say("simulating")
        truth = simulate_program(exposures=3, slits=20, background_slits=8, seed=seed)
        save(truth, folder / "program.zarr", overwrite=overwrite)
        results = run_tree(
            {"prism-clear": truth},
            result,
            model=model,
            report=report,
            overwrite=overwrite,
            on_step=say,
        )
    _print(results, str(result), str(report), as_json=False)
    _print_truth(results["prism-clear"], truth)
    if as_json:
        click.echo(_json_line(results))


# ------------------------------------------------------------------------------------------------

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


def _print(results: dict[str, ChainResult], out: str, report: str | None, as_json: bool) -> None:
    console = Console(width=None if Console().is_terminal else 120)
    for name, item in results.items():
        low, high = item.master.attrs["wavelength_range"]
        title = (
            f"{name}: {item.master.attrs['model']}, {item.master.attrs['n_pixels']} sky pixels of "
            f"{item.result.sizes['slit']} slits, {low:.2f}-{high:.2f} um"
        )
        table = Table(title=title, caption="normalised residuals at centres of sky shutters")
        table.add_column("")
        for heading, _ in _COLUMNS.values():
            table.add_column(heading, justify="right")
        for method, row in item.table.iterrows():
            cells = [
                form.format(row[key]) if np.isfinite(row[key]) else "-"
                for key, (_, form) in _COLUMNS.items()
            ]
            table.add_row(str(method), *cells)
        console.print(table)
    console.print(f"result: {out}" + (f"   figures: {report}" if report else ""), soft_wrap=True)
    if as_json:
        click.echo(_json_line(results))


def _json_line(results: dict[str, ChainResult]) -> str:
    """One JSON object; what has no value is null, since JSON knows no NaN."""
    return json.dumps(
        {
            name: {
                str(method): {k: _number(v) for k, v in row.items()}
                for method, row in item.table.to_dict(orient="index").items()
            }
            for name, item in results.items()
        }
    )


def _number(value: float) -> float | int | None:
    if isinstance(value, int | np.integer):
        return int(value)
    return round(float(value), 6) if math.isfinite(value) else None


def _print_truth(item: ChainResult, truth: xr.Dataset) -> None:
    """The simulated sky is known: say how far the result is from it."""
    wave = truth["wavelength"].values
    mask = sky_centres(item.result).values & (wave > 0.7) & (wave < 5.2)
    level = evaluate(item.master, wave, mean=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        against_sky = (level / truth["true_sky"].values - 1)[mask]
        against_slit = (item.result["background"].values / truth["true_background"].values - 1)[
            mask
        ]
    table = Table(title="against the simulated truth, 0.7-5.2 um", caption="in % of the sky")
    for heading in ("", "bias", "rms"):
        table.add_column(heading, justify="right")
    for name, values in (("master", against_sky), ("background of each slit", against_slit)):
        table.add_row(name, f"{100 * np.nanmean(values):+.2f}", f"{100 * np.nanstd(values):.2f}")
    Console(width=None if Console().is_terminal else 120).print(table)
