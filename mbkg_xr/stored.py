"""A stored result again, beside products whose background others subtracted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .chain import KEEP
from .errors import DatasetError
from .io import NipsLayout, open_program
from .methods import other_methods, stored_results
from .residuals import compare, residuals
from .schema import already_subtracted
from .subtract import before_subtraction

__all__ = ["compare_stored"]


def compare_stored(
    path: str | os.PathLike,
    *,
    nods: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    nips_layout: NipsLayout | Mapping[str, Any] | str | os.PathLike | None = None,
    nod_errors: str = "auto",
    on_step: Callable[[str], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """The table of a stored result again, beside products whose background others subtracted.

    Computes.

    Parameters
    ----------
    path
        A store written by `run`.
    nods
        Products as for `open_program`, nod-subtracted. Where their headers do not say so, they
        are taken as such, with a warning.
    nips_layout
        As for `open_program`.
    nod_errors
        As for `compare`.
    on_step
        Called with a line of text as each step begins.

    Returns
    -------
    dict of pandas.DataFrame
        By configuration, as from `compare`: rows ``master``, ``nods`` (from the slits of the
        result), ``heldout``, and ``given``.

    Raises
    ------
    StoreError
        Where `path` is no store.
    DatasetError
        Where it holds no result, or nothing of the products' configurations.

    Examples
    --------
    >>> import mbkg_xr as mx, tempfile, pathlib
    >>> from mbkg_xr.chain import run_tree
    >>> ds = mx.simulate_program(exposures=2, slits=2, background_slits=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = pathlib.Path(folder) / "result.zarr"
    ...     _ = run_tree({"prism-clear": ds}, store)
    ...     list(compare_stored(store)["prism-clear"].index)
    ['master', 'nods', 'heldout']
    """
    say = on_step or (lambda text: None)
    results = stored_results(path)
    given = _given(nods, nips_layout, list(results)) if nods is not None else {}
    tables = {}
    for name, (result, master) in results.items():
        say(f"{name}: residuals")
        result = result.persist() if result.nbytes <= KEEP else result
        others = other_methods(before_subtraction(result), master, result)
        tables[name] = compare(
            result,
            others["nods"],
            heldout=others["heldout"],
            given=given.get(name),
            nod_errors=nod_errors,
        )
    return tables


def _given(
    nods: str | os.PathLike | Sequence[str | os.PathLike], nips_layout: Any, names: Sequence[str]
) -> dict[str, dict[str, xr.Dataset]]:
    """Residuals of products that others subtracted: rows by configuration of the result."""
    tree = open_program(nods, nips_layout=nips_layout)
    nodes = {name: node.to_dataset() for name, node in tree.children.items() if node.has_data}
    out: dict[str, dict[str, xr.Dataset]] = {}
    for name in names:
        alike = {n: ds for n, ds in nodes.items() if _disperser(n) == _disperser(name)}
        marked = {n: ds for n, ds in alike.items() if already_subtracted(ds).all()}
        for other, ds in alike.items():
            if marked and other not in marked:
                warnings.warn(
                    f"left out: {other}, {ds.sizes['slit']} slits that hold their sky", stacklevel=3
                )
            elif other not in marked:
                warnings.warn(
                    f"{other}: no keyword says that the background of these products is "
                    "subtracted; they are taken as nod-subtracted",
                    stacklevel=3,
                )
        rows = marked or {n: _marked(ds) for n, ds in alike.items()}
        if len(rows) == 1:
            rows = dict(zip(["given"], rows.values(), strict=True))
        out[name] = {n: residuals(ds) for n, ds in rows.items()}
    left = [n for n in nodes if _disperser(n) not in map(_disperser, names)]
    if left and not any(out.values()):
        raise DatasetError(
            "products of other configurations than the result",
            expected=" ".join(names),
            found=" ".join(left),
            remedy="give products of the same disperser and filter",
        )
    for other in left:
        warnings.warn(f"left out: {other}, which the result does not hold", stacklevel=3)
    return out


def _disperser(name: str) -> list[str]:
    """Disperser and filter, without what tells nodes of one configuration apart."""
    return name.split("-")[:2]


def _marked(ds: xr.Dataset) -> xr.Dataset:
    said = np.full(ds.sizes["slit"], "as given")
    return ds.assign_coords(subtracted=("slit", said, ds["subtracted"].attrs))
