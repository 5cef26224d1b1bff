"""Writing a report: from a stored result, or from datasets, to a directory."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import xarray as xr

from ..errors import ParameterError, StoreError
from ..io.location import local_path
from ..methods import other_methods, stored_results
from ..parts import has_parts, master_part, part_index
from ..residuals import compare
from ..slit_scores import score_slits
from ..subtract import before_subtraction
from ..white_noise import white_noise
from .figures import Drawn, Given, draw, typical_slit
from .page import page_of, section_of

__all__ = ["Section", "write_pages", "write_report"]

_KEEP = 2**29  # bytes of datasets that are read once for all figures


@dataclass
class Section:
    """What a report says of one configuration.

    Attributes
    ----------
    result, master
        From `residuals` of `subtract`, with ``selected``; from `fit_master`.
    nods, heldout
        Residuals of `subtract_nods`, and of ``subtract(..., heldout=True)``, of the same slits.
    table
        From `compare`, made where it is not given.
    """

    result: xr.Dataset
    master: xr.Dataset
    nods: xr.Dataset | None = None
    heldout: xr.Dataset | None = None
    table: pd.DataFrame | None = None


def write_report(
    result: str | os.PathLike | xr.DataTree | xr.Dataset,
    path: str | os.PathLike,
    *,
    master: xr.Dataset | None = None,
    nods: xr.Dataset | None = None,
    heldout: xr.Dataset | None = None,
    table: pd.DataFrame | None = None,
    on_step: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a page that says what went in, what was decided and why, and what came out. Computes.

    The page holds its figures, tables and scripts and refers to nothing outside, so that it can be
    sent alone; the figures lie beside it. Files are completed beside the directory and then moved
    there: an existing report is replaced, other files in it stay, and a failure leaves everything
    as it was. Pixels are read a chunk at a time; figures of all slits draw on slits from all over
    a large programme, and say so.

    Parameters
    ----------
    result
        A store that `mbkg-xr run` wrote, a tree of it, or a dataset from `residuals` of
        `subtract`, with ``selected``.
    path
        The directory to write to.
    master
        From `fit_master`, where `result` is a dataset.
    nods, heldout
        Residuals of `subtract_nods` and of ``subtract(..., heldout=True)`` of the same slits, where
        `result` is a dataset; those of a store are found.
    table
        From `compare`, made here where it is not given.
    on_step
        Called with a line of text as each step begins.

    Returns
    -------
    list of pathlib.Path
        ``index.html`` and the figures, as PNG.

    Raises
    ------
    StoreError
        Where the directory cannot be written, or the store not be read.
    DatasetError
        Where the datasets are not those of a run.
    ParameterError
        Where `master` is missing, or does not go with a store.

    Examples
    --------
    >>> import tempfile
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=3, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> result = mx.residuals(mx.subtract(ds, master))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = mx.write_report(result, folder, master=master)
    >>> files[0].name, len(files)
    ('index.html', 13)
    """
    if isinstance(result, xr.Dataset):
        if master is None:
            raise ParameterError("the report needs the master, too", expected="master=...")
        name = str(result.attrs["configuration"])
        return write_pages(
            {name: Section(result, master, nods, heldout, table)}, path, on_step=on_step
        )
    if any(v is not None for v in (master, nods, heldout, table)):
        raise ParameterError(
            "a store brings its own master, nods and table",
            expected="master, nods, heldout and table only with a dataset",
        )
    sections = {}
    for name, (stored, own) in stored_results(result).items():
        others = other_methods(before_subtraction(stored), own, stored)
        sections[name] = Section(stored, own, nods=others["nods"], heldout=others["heldout"])
    return write_pages(sections, path, on_step=on_step)


def write_pages(
    sections: Mapping[str, Section],
    path: str | os.PathLike,
    *,
    on_step: Callable[[str], None] | None = None,
) -> list[Path]:
    """One report of several configurations, by name; as `write_report`. Computes."""
    say = on_step or (lambda text: None)
    sections = {k: part for n, s in sections.items() for k, part in _by_part(n, s).items()}
    folder = local_path(path, "reports").resolve()
    _write({}, folder)  # to learn of an unusable directory before the work, not after it
    parts: list[str] = []
    files: dict[str, bytes] = {}
    for name, section in sections.items():
        say(f"{name}: report")
        part, figures = _section(name, section)
        prefix = f"{name}-" if len(sections) > 1 else ""
        files |= {f"{prefix}{f.key}.png": f.image for f in figures if f.image}
        parts.append(part)
    page = page_of(list(sections), parts)
    return _write({"index.html": page.encode()} | files, folder)


def _by_part(name: str, section: Section) -> dict[str, Section]:
    """A section for each part of a master that has parts."""
    master = section.master
    if not has_parts(master):
        return {name: section}
    which = part_index(section.result, master)
    out = {}
    for index, value in enumerate(master["part"].values.tolist()):
        rows = np.flatnonzero(which == index)
        if rows.size:
            given = (section.result, section.nods, section.heldout)
            result, nods, heldout = (None if d is None else d.isel(slit=rows) for d in given)
            title = f"{name}-{master.attrs['by']}-{value}".replace("/", "-").replace(",", "-")
            assert result is not None
            out[title] = Section(result, master_part(master, value), nods, heldout)
    return out


def _section(name: str, section: Section) -> tuple[str, Sequence[Drawn]]:
    given = {"master": section.result, "nods": section.nods, "heldout": section.heldout}
    sets = {key: ds for key, ds in given.items() if ds is not None}
    if sum(ds.nbytes for ds in sets.values()) <= _KEEP:
        sets = dict(zip(sets, dask.persist(*sets.values()), strict=True))
    table = section.table
    if table is None:
        table = compare(sets["master"], sets.get("nods"), heldout=sets.get("heldout"))
    result, master = sets["master"], section.master
    scores = score_slits(result, master)
    # Nods of a single exposure have no residuals, and would leave no pixel that all have.
    with_any = {key: ds for key, ds in sets.items() if table["n"].get(key, 0) > 0}
    noise = white_noise(with_any) if with_any else None
    figures = list(draw(Given(sets, master, scores, typical_slit(result), noise)))
    return section_of(name, result, master, table, scores, figures), figures


def _write(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files beside a folder, and move them there when all are complete."""
    staging = folder.with_name(f".{folder.name}.staging-{uuid.uuid4().hex[:8]}")
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError("a file of that name")
        staging.mkdir(parents=True)
        for name, data in files.items():
            (staging / name).write_bytes(data)
        if files:
            folder.mkdir(exist_ok=True)
        # The page comes first in the list and is moved last: it shows what is there.
        for name in reversed(list(files)):
            os.replace(staging / name, folder / name)
    except OSError as error:
        raise StoreError(
            "the report cannot be written",
            where=str(folder),
            expected="a directory that can be written",
            found=str(error),
            remedy="choose another directory",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / name for name in files]
