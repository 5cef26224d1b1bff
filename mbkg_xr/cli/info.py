"""``mbkg-xr info``: what a programme holds, and what was decided about its slits."""

from __future__ import annotations

import json
import math
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.table import Table

from ..info import ProgramInfo, info
from ..progress import show_progress
from .options import json_option, nips_layout_option, sky_options
from .tables import console

__all__ = ["info_command"]


@click.command("info")
@click.argument("inputs", nargs=-1, required=True, type=click.Path())
@click.option("--slits", is_flag=True, help="A row a slit: what was decided, and why.")
@click.option("--flags", is_flag=True, help="Count quality flags; reads the quality of all slits.")
@click.option(
    "--skip-bad-files", is_flag=True, help="Go on without files and slits that cannot be used."
)
@nips_layout_option
@sky_options
@json_option
def info_command(
    inputs: tuple[str, ...],
    slits: bool,
    flags: bool,
    skip_bad_files: bool,
    as_json: bool,
    **opening: Any,
) -> None:
    """Say what INPUTS hold: STScI or NIPS slit products, or a Zarr store."""
    on_error = "warn" if skip_bad_files else "raise"
    with show_progress(Console(stderr=True)) as say:
        say("opening")
        found = info(inputs, flags=flags, on_error=on_error, **opening)
    if as_json:
        click.echo(json.dumps(_plain(found, slits)))
        return
    for name, summary in found.summary.items():
        console().print(_overview(name, summary))
        if slits:
            console().print(_slits(name, found.slits[name]))


def _plain(found: ProgramInfo, slits: bool) -> dict[str, Any]:
    out: dict[str, Any] = {name: dict(summary) for name, summary in found.summary.items()}
    if slits:
        for name, table in found.slits.items():
            out[name]["table"] = [
                {k: None if _is_nan(v) else v for k, v in row.items()}
                for row in table.to_dict("records")
            ]
    return out


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _overview(name: str, summary: dict[str, Any]) -> Table:
    table = Table(title=name, show_header=False)
    for key, value in _lines(summary).items():
        table.add_row(key, value)
    return table


def _lines(summary: dict[str, Any]) -> dict[str, str]:
    """What people read, line by line; lines without content are left out."""
    size = summary["bytes"]
    slits, slitlets = summary["slits"], summary["slitlets"]
    lines = {
        "programme, visits": f"{_some(summary['programs'])}, {_some(summary['visits'])}",
        "exposures": f"{summary['exposures']}, nods {_some(summary['nods'])}, "
        f"detectors {_some(summary['detectors'])}",
        "slits": f"{slits} of {slitlets} slitlets, {' x '.join(map(str, summary['shape']))} pixels",
        "sky slits": f"{summary['sky_slits']} of {summary['sky_slitlets']} slitlets; "
        f"{summary['sky_shutters']} sky shutters over all slits",
        "slits without a sky shutter": str(summary["unknown_slits"] or ""),
        "decided by": _numbers(summary["sky_reason"]),
        "units": summary["units"],
        "wavelength": " to ".join(f"{w:.2f}" for w in summary["wavelength"])
        + " um" * bool(summary["wavelength"]),
        "size": f"{size / 1e9:.2f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB",
        "calibrated": _numbers(summary["calibration"]),
        "steps": "\n".join(summary["calibration_steps"]),
        "already subtracted": _numbers(summary["subtracted"]),
        "result of": summary["result"],
        "flags": _numbers(summary["flags"] or {}),
        "note": "\n".join(summary["notes"]),
    }
    return {key: value for key, value in lines.items() if value}


def _some(names: list, most: int = 6) -> str:
    shown = [str(name) for name in names[:most]]
    return " ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def _numbers(counts: dict[str, int]) -> str:
    return "\n".join(f"{number:>7} {text}" for text, number in counts.items())


def _slits(name: str, slits: pd.DataFrame) -> Table:
    """A row a slitlet and nod; exposures and detectors of the same say the same."""
    table = Table(title=f"{name}: slits")
    headings = {
        "exposure": "exposure", "detector": "detector", "slitlet": "slitlet",
        "n_shutters": "shutters", "is_background": "sky", "source_shutter": "source in",
        "occupied": "no sky in", "sky_shutters": "sky shutters", "sky_reason": "because",
        "calibrated_as": "calibrated", "subtracted": "subtracted",
    }  # fmt: skip
    shown = [c for c in headings if c in slits and not _is_blank(slits[c])]
    for column in shown:
        table.add_column(headings[column], overflow="fold")
    for row in slits[shown].itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    return table


def _is_blank(column: pd.Series) -> bool:
    return bool((column.astype(str) == "").all())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:+.0f}"
    if isinstance(value, bool):
        return "yes" if value else ""
    return str(value)
