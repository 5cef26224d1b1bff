"""``mbkg-xr demo``: a simulated programme through the whole chain, held to its truth."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from ..chain import ChainResult, run_tree
from ..io import save
from ..master import evaluate
from ..progress import show_progress
from ..residuals import sky_centres
from ..simulate import simulate_program
from .options import json_option, model_option
from .tables import console, json_line, print_results

__all__ = ["demo"]


@click.command()
@click.option("--out", default="mbkg_demo", show_default=True, type=click.Path())
@click.option("--seed", default=1, show_default=True, help="Seed of the simulation.")
@model_option
@json_option
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
    print_results(results, str(result), str(report), as_json=False)
    _print_truth(results["prism-clear"], truth)
    if as_json:
        click.echo(json_line({name: item.table for name, item in results.items()}))


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
    console().print(table)
