"""``mbkg-xr query``: pixels by their coordinates, as tables of statistics or as points."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table

from ..errors import SelectionError
from ..grouping import By, name_of
from ..io import open_program
from ..io.tables import kind_of_table, write_frame
from ..progress import show_progress
from ..quality import do_not_use
from ..query import query
from ..residuals import sky_centres
from ..schema import PIXEL_DIMS
from ..summarize import SUMMARY, summarize
from .asked import Pair, numbers, selected
from .options import json_option, nips_layout_option, overwrite_option, sky_options
from .tables import console

__all__ = ["query_command"]

_SHOWN = ("n", "median", "std", "mad_sigma", "skew", "frac_3sigma", "frac_5sigma", "stack")
_FORMS = {"n": "{:.0f}", "frac": "{:.2%}"}


@click.command("query")
@click.argument("inputs", nargs=-1, required=True, type=click.Path())
@click.option("--wavelength", nargs=2, type=float, multiple=True, metavar="LOW HIGH", help="In um.")
@click.option(
    "--yrel",
    nargs=2,
    type=float,
    multiple=True,
    metavar="LOW HIGH",
    help="In shutter pitches; repeat for one range or another.",
)
@click.option(
    "--quality", multiple=True, metavar="FLAG", help="good, a flag's name, its bit, or !name."
)
@click.option("--exposure", multiple=True, help="Repeat this and the next for one or another.")
@click.option("--slitlet", multiple=True, type=int)
@click.option("--detector", multiple=True)
@click.option("--quadrant", multiple=True, type=int)
@click.option("--sky-slits/--source-slits", default=None, help="Slits without a source, or with.")
@click.option(
    "--select",
    multiple=True,
    type=Pair(),
    help="Any other coordinate or variable: nod=1,2 or residual=5.. or mjd=60000..60001.",
)
@click.option(
    "--pixels",
    type=click.Choice(["sky", "good", "all"]),
    help="Centres of sky shutters, pixels not flagged DO_NOT_USE, or all.  "
    "[default: sky for tables, all for points]",
)
@click.option(
    "--by",
    multiple=True,
    metavar="NAME[,NAME]",
    help="Group by a coordinate, or by several crossed; repeat for more tables in the same pass.",
)
@click.option("--bins", multiple=True, type=Pair(), help="wavelength=20 or yrel=-1.5,-0.5,0.5,1.5")
@click.option("--stat", multiple=True, type=click.Choice(list(SUMMARY)), help="Columns of tables.")
@click.option("--of", help="The variable.  [default: residual, or flux where there is none]")
@click.option("--sort", type=click.Choice(list(SUMMARY)), help="Largest first.")
@click.option(
    "--rows",
    default=40,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows to print of a table; files get all.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A .csv or .parquet file: the table, or without --by and --stat the points themselves.",
)
@click.option("--columns", metavar="NAMES", help="Of points, separated by commas.  [default: all]")
@click.option("--configuration", help="Such as prism-clear.  [default: all there are]")
@nips_layout_option
@sky_options
@overwrite_option
@json_option
def query_command(
    inputs: tuple[str, ...],
    by: tuple[str, ...],
    bins: tuple[tuple[str, str], ...],
    stat: tuple[str, ...],
    of: str | None,
    sort: str | None,
    rows: int,
    pixels: str | None,
    out: str | None,
    columns: str | None,
    configuration: str | None,
    overwrite: bool,
    as_json: bool,
    select: tuple[tuple[str, str], ...],
    **given: Any,
) -> None:
    """Ask INPUTS (a result, a programme's store, or products) for pixels by their coordinates.

    Prints statistics of what is found, by --by; writes them, or the points, to --out. Without --by
    or --stat, --out gets the points.
    """  # fmt: skip
    if out is not None:
        kind_of_table(out)
        if len(by) > 1:
            raise click.UsageError("--out takes one table: give one --by, or cross them as A,B")
    as_points = out is not None and not by and not stat
    named = {k: given.pop(k) for k in ("wavelength", "yrel", "quality", "exposure", "slitlet",
                                       "detector", "quadrant")}  # fmt: skip
    asked: dict[str, Any] = {k: list(v) for k, v in named.items() if v}
    if "quality" in asked:
        asked["quality"] = [int(q) if q.isdecimal() else q for q in asked["quality"]]
    if (sky := given.pop("sky_slits")) is not None:
        asked["is_background"] = sky
    with show_progress(Console(stderr=True)) as say:
        say("opening")
        datasets = _datasets(inputs, configuration, given)
        if as_points:
            assert out is not None
            wanted = None if columns is None else [c.strip() for c in columns.split(",")]
            found: dict[str, Any] = {}
            for name, ds in datasets.items():
                say(f"{name}: reading")
                conditions = asked | selected(ds, select)
                points = query(ds, where=_where(pixels or "all"), **conditions)
                points = points if wanted is None else points[wanted]
                path = Path(out)
                if len(datasets) > 1:
                    path = path.with_stem(f"{path.stem}_{name}")
                write = points.to_csv if path.suffix.lower() == ".csv" else points.to_parquet
                found[name] = {"points": write(path, overwrite=overwrite), "file": str(path)}
        else:
            groups: list[By] = [tuple(b.split(",")) if "," in b else b for b in by] or [None]
            edges = {name: numbers(text, "--bins") for name, text in bins}
            found = {}
            for name, ds in datasets.items():
                say(f"{name}: reading")
                tables = summarize(
                    ds, by=groups, bins=edges, where=_where(pixels or "sky"),
                    of=of or ("residual" if "residual" in ds else "flux"),
                    **(asked | selected(ds, select)),
                )  # fmt: skip
                if isinstance(tables, xr.Dataset):
                    found[name] = {name_of(groups[0]): tables}
                else:
                    found[name] = {name_of(b): tables[name_of(b)].to_dataset() for b in groups}
    if as_points:
        for name, item in found.items():
            console().print(f"{name}: {item['points']} points in {item['file']}", soft_wrap=True)
        if as_json:
            click.echo(json.dumps(found))
        return
    frames = {c: {g: _frame(t, sort) for g, t in tables.items()} for c, tables in found.items()}
    if not any((f["n"] > 0).any() for tables in frames.values() for f in tables.values()):
        raise SelectionError(
            "nothing found", where=", ".join(frames), expected="pixels that meet all conditions",
            found="none", remedy="mbkg-xr info --slits lists what slits there are; --pixels all "
            "takes more than the centres of sky shutters",
        )  # fmt: skip
    for name, tables in found.items():
        for group, table in tables.items():
            _print(name, table, frames[name][group], stat, rows)
    if out is not None:
        parts = [f.assign(configuration=c) for c, tables in frames.items() for f in tables.values()]
        joined = pd.concat(parts, ignore_index=True)
        first = ["configuration", *_labels(joined)]
        write_frame(joined[[*first, *_chosen(joined, stat)]], out, overwrite=overwrite)
        console().print(f"written: {out}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps({c: _plain(tables, stat) for c, tables in frames.items()}))


def _datasets(
    inputs: Sequence[str], configuration: str | None, opening: Mapping[str, Any]
) -> dict[str, xr.Dataset]:
    tree = open_program(list(inputs), **opening)
    nodes = {n: node.to_dataset() for n, node in tree.children.items()}
    nodes = {n: ds for n, ds in nodes.items() if "flux" in ds and ds["flux"].dims == PIXEL_DIMS}
    if (configuration is not None and configuration not in nodes) or not nodes:
        raise SelectionError(
            "no such configuration", where=", ".join(inputs),
            expected=configuration or "a group of slits", found=" ".join(tree.children) or "none",
        )  # fmt: skip
    return nodes if configuration is None else {configuration: nodes[configuration]}


def _where(pixels: str) -> Any:
    return {"sky": sky_centres, "good": unflagged, "all": None}[pixels]


def unflagged(ds: xr.Dataset) -> xr.DataArray:
    """Pixels not flagged DO_NOT_USE."""
    bit = ds["quality"].dtype.type(do_not_use(ds["quality"]))
    return (ds["quality"] & bit) == 0


# ------------------------------------------------------------------------------------------------


def _frame(table: xr.Dataset, sort: str | None) -> pd.DataFrame:
    """A row a group that holds pixels."""
    if table.dims:
        frame = table.to_dataframe().reset_index()
    else:
        frame = pd.DataFrame([{k: v.item() for k, v in table.data_vars.items()}])
    frame = frame[frame["n"] > 0]
    if sort is not None and sort in frame:
        frame = frame.sort_values(sort, ascending=False, kind="stable")
    return frame.reset_index(drop=True)


def _labels(frame: pd.DataFrame) -> list[str]:
    return [str(c) for c in frame if c not in SUMMARY and c != "configuration"]


def _chosen(frame: pd.DataFrame, stat: Sequence[str]) -> list[str]:
    return [c for c in (stat or SUMMARY) if c in frame]


def _print(
    name: str, table: xr.Dataset, frame: pd.DataFrame, stat: Sequence[str], rows: int
) -> None:
    left = len(frame) - rows
    caption = f"{table.attrs['of']} of pixels: {table.attrs['pixels']}"
    caption += f"; {left} more rows (--rows)" if left > 0 else ""
    out = Table(title=name)
    labels, chosen = _labels(frame), _chosen(frame, stat or _SHOWN)
    # Of bins, the edges say more than the centre.
    labels = [c for c in labels if f"{c}_low" not in labels]
    for column in (*labels, *chosen):
        out.add_column(column, justify="left" if column in labels else "right")
    for row in frame.head(rows).to_dict("records"):
        cells = [_cell(c, row[c]) for c in labels] + [_cell(c, row[c]) for c in chosen]
        out.add_row(*cells)
    console().print(out)
    console().print(caption, soft_wrap=True)


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str | bool | int | np.integer | np.bool_):
        return str(value)
    if not math.isfinite(value):
        return "-"
    if column not in SUMMARY:
        return f"{value:.5g}"
    return _FORMS.get(column.partition("_")[0], "{:.3g}" if abs(value) < 1e-2 else "{:.3f}").format(
        value
    )


def _plain(tables: Mapping[str, pd.DataFrame], stat: Sequence[str]) -> dict[str, list[dict]]:
    out = {}
    for group, frame in tables.items():
        columns = [*_labels(frame), *_chosen(frame, stat)]
        out[group] = [
            {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in row.items()
            }
            for row in frame[columns].to_dict("records")
        ]
    return out
