"""The whole chain on a programme: what ``mbkg-xr run`` does, as functions."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from .blas import serial_blas
from .drift import Drift
from .errors import DatasetError, ParameterError
from .fit import fit_master
from .io import open_program
from .io.lazy import SLITS_A_CHUNK
from .io.location import local_path
from .io.store import create_store, finish, open_store, write_group
from .io.write import check_targets, write_fits
from .memory import check_memory
from .methods import other_methods
from .models import BSpline, LogPolynomial, Template
from .ranges import slit_ranges
from .report import Section, write_pages
from .residuals import compare
from .schema import already_subtracted, refuse_subtracted
from .select import Windows, select_background
from .subtract import subtract
from .tasks import await_workers, cluster

__all__ = ["MODELS", "ChainResult", "run", "run_tree"]

#: The models by their names on the command line.
MODELS: Mapping[str, Callable[[], BSpline | LogPolynomial]] = {
    "bspline": BSpline,
    "logpoly": LogPolynomial,
    "seed": lambda: LogPolynomial(method="seed"),
}

KEEP = 2**26  # bytes of a configuration that are read once and kept, where memory allows


@dataclass
class ChainResult:
    """What came out for one configuration.

    Attributes
    ----------
    result
        The subtracted slit dataset with residuals.
    master
        The master.
    table
        As from `compare`: rows ``master``, ``nods`` and, where slits could be held out,
        ``heldout``.
    """

    result: xr.Dataset
    master: xr.Dataset
    table: pd.DataFrame


@serial_blas
def run(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    opening: Mapping[str, Any] | None = None,
    **options,
) -> dict[str, ChainResult]:
    """Open products and run the whole chain on them. Computes.

    Parameters
    ----------
    paths
        As for `open_program`.
    out
        The store to write.
    opening
        Options of `open_program`, such as ``sky`` or ``nips_layout``.
    **options
        As for `run_tree`.

    Returns
    -------
    dict of ChainResult
        By configuration.

    Raises
    ------
    ParameterError
        Where `out` is the input.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if Path(out).resolve() in [Path(p).resolve() for p in given]:
        raise ParameterError(
            "the result would replace the input", where=str(out), remedy="choose another --out"
        )
    opening = dict(opening or {})
    options.setdefault("nips_layout", opening.get("nips_layout"))
    return run_tree(open_program(given, **opening), out, **options)


def run_tree(
    tree: xr.DataTree | Mapping[str, xr.Dataset],
    out: str | os.PathLike,
    *,
    model: str | BSpline | LogPolynomial | Template = "bspline",
    yrel: Windows | None = None,
    exclude: Sequence[str] | None = None,
    median_window: int | None = 15,
    median_apply: bool = False,
    slits: str | Sequence[int] = "all",
    by: str | Sequence[str] | None = None,
    drift: Drift | None = None,
    leave_out: str = "slit",
    bad_slits: str = "raise",
    report: str | os.PathLike | None = None,
    fits: str | os.PathLike | None = None,
    nips_layout: Any = None,
    overwrite: bool = False,
    memory: int | None = None,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, ChainResult]:
    """Select, fit, subtract and score every configuration of a programme, and save. Computes.

    Parameters
    ----------
    tree
        From `open_program`, or slit datasets by name.
    out
        The Zarr store to write: a group a configuration, and ``<configuration>/master``. It gets
        its name when it is complete.
    model
        ``"bspline"``, ``"logpoly"``, ``"seed"``, or a model.
    yrel, exclude, median_window, median_apply, slits
        As for `select_background`.
    by, drift, leave_out, bad_slits
        As for `fit_master`. With `by` each part gets a section of the report.
    report
        A directory for figures and a page.
    fits
        A directory for copies of the products with the background subtracted, as by `write_fits`.
    nips_layout
        Of NIPS products, for `fits`; as for `open_program`.
    overwrite
        Replace an existing store, report and files.
    memory
        Bytes that the run may take, on a cluster each worker; where it would take more it is
        refused, with advice (`predict_memory`). Pixels are kept between passes where that leaves
        room for them.
    on_step
        Called with a line of text as each step begins.

    Returns
    -------
    dict of ChainResult
        By configuration, lazy from the store.

    Raises
    ------
    MbkgError
        Of the kind that says what to mend; nothing is then left under `out`.
    """
    if isinstance(model, str):
        if model not in MODELS:
            raise ParameterError("unknown model", expected=" ".join(MODELS), found=model)
        model = MODELS[model]()
    say = on_step or (lambda text: None)
    datasets = _slit_datasets(tree)
    for what, folder in (("report", report), ("FITS files", fits)):
        if folder is not None and Path(out).resolve() in (
            p := local_path(folder, what).resolve(),
            *p.parents,
        ):
            raise ParameterError(
                f"the {what} would lie inside the store",
                where=str(folder),
                expected=f"a directory outside {out}",
                found=str(folder),
            )
    if fits is not None:
        check_targets(datasets, fits, overwrite=overwrite)
    await_workers(say)
    predicted = check_memory(datasets, memory, drift=drift)
    say(str(predicted))
    selections: dict[str, xr.Dataset] = {}
    tables: dict[str, pd.DataFrame] = {}
    keep = KEEP
    with create_store(out, overwrite=overwrite) as staging:
        for name, ds in datasets.items():
            say(f"{name}: reading")
            few = ds.nbytes <= keep and (memory is None or predicted.total + keep <= memory)
            keep -= ds.nbytes if few else 0
            ds = ds.persist() if few else _in_chunks(ds)
            selected = select_background(
                ds,
                yrel=yrel,
                exclude=exclude,
                median_window=median_window,
                median_apply=median_apply,
                slits=slits,
            )
            selected = selected.persist() if few else selected
            master = fit_master(
                selected,
                model=model,
                by=by,
                drift=drift,
                leave_out=leave_out,
                bad_slits=bad_slits,
                memory=predicted.kept,
                on_pass=_prefixed(say, name),
            )
            say(f"{name}: subtracting")
            write_group(slit_ranges(subtract(selected, master, residual=True)), staging, name)
            write_group(master, staging, f"{name}/master")
            say(f"{name}: residuals")
            result = open_store(staging)[name].to_dataset()
            others = other_methods(selected, master, result)
            tables[name] = compare(result, others["nods"], heldout=others["heldout"])
            selections[name] = selected
        if fits is not None:
            written = {name: open_store(staging)[name].to_dataset() for name in datasets}
            write_fits(written, fits, overwrite=overwrite, nips_layout=nips_layout, on_step=say)
        finish(staging)
    saved = open_store(out)
    results, sections = {}, {}
    for name, selected in selections.items():
        result, master = saved[name].to_dataset(), saved[f"{name}/master"].to_dataset()
        results[name] = ChainResult(result, master, tables[name])
        if report is not None:
            others = other_methods(selected, master, result)
            sections[name] = Section(result, master, **others, table=tables[name])
    if report is not None:
        write_pages(sections, report, on_step=say)
    return results


def _in_chunks(ds: xr.Dataset) -> xr.Dataset:
    """A large dataset that lies in memory, worked on a few slits at a time as others are."""
    if ds["flux"].chunks or ds.nbytes <= KEEP or cluster() is not None:
        return ds
    return ds.chunk({"slit": SLITS_A_CHUNK}, token=uuid.uuid4().hex)


def _prefixed(say: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda text: say(f"{name}: {text}")


def _slit_datasets(tree: xr.DataTree | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The slit datasets of a programme, without what may lie below them."""
    if isinstance(tree, xr.DataTree):
        nodes = {name: node.to_dataset() for name, node in tree.children.items() if node.has_data}
    else:
        nodes = dict(tree)
    if not nodes:
        raise DatasetError("no configuration to work on", expected="at least one slit dataset")
    gone = [name for name, ds in nodes.items() if already_subtracted(ds).all()]
    if len(gone) == len(nodes):
        gone = []  # and refused below, with the reason
    for name in gone:
        warnings.warn(
            f"left out: {name}, {nodes.pop(name).sizes['slit']} slits whose background is already "
            "subtracted; give them to compare",
            stacklevel=3,
        )
    for ds in nodes.values():
        refuse_subtracted(ds)
    return nodes
