"""Shutters found to be no sky, taken out of the sky on request."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits
from .errors import DatasetError
from .schema import PIXEL_DIMS, SLIT_IDENTITY, occupied_shutters
from .shutters import open_shutters
from .terms import FIRST_SHUTTER

__all__ = ["without_contaminants"]


def without_contaminants(
    ds: xr.Dataset, table: pd.DataFrame, *, whole_slits: bool = False
) -> xr.Dataset:
    """Take the shutters that `find_contaminants` found for no sky. Lazy.

    Parameters
    ----------
    ds
        A slit dataset.
    table
        From `find_contaminants`, or rows of it: those whose ``verdict`` is ``contaminated`` count,
        or all where there is no such column.
    whole_slits
        Take no shutter of such a slit for sky.

    Returns
    -------
    xarray.Dataset
        With the shutters added to coordinate ``occupied``, and their pixels taken from
        ``selected`` where there is one. ``attrs["contaminants_left_out"]`` names them.

    Raises
    ------
    DatasetError
        Where the table has no row of such a name, or names slits the dataset does not hold.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=6, background_slits=3))
    >>> table = mx.find_contaminants(ds, mx.fit_master(ds))
    >>> clean = mx.without_contaminants(ds, table[:1].assign(verdict="contaminated"))
    >>> len(clean.attrs["contaminants_left_out"])
    1
    """
    missing = [c for c in (*SLIT_IDENTITY, "shutter") if c not in table]
    if missing:
        raise DatasetError(
            "not a table of shutters",
            expected=" ".join((*SLIT_IDENTITY, "shutter")),
            found=" ".join(map(str, table.columns)),
            remedy="give the table of find_contaminants",
        )
    if "verdict" in table:
        table = table[table["verdict"] == "contaminated"]
    keys = zip(*(ds[c].values.tolist() for c in SLIT_IDENTITY), strict=True)
    rank = {key: i for i, key in enumerate(keys)}
    text = [str(t) for t in ds["occupied"].values] if "occupied" in ds else [""] * ds.sizes["slit"]
    opened = open_shutters(ds["n_shutters"].values)
    names = []
    for row in table[[*SLIT_IDENTITY, "shutter"]].itertuples(index=False):
        index = rank.get(tuple(row[:3]))
        if index is None:
            raise DatasetError(
                "the table names a slit the dataset does not hold",
                where=" ".join(map(str, row[:3])),
                expected="slits of this dataset",
                found=f"{len(table)} rows",
            )
        shutters = [int(row[3])]
        if whole_slits:
            shutters = (FIRST_SHUTTER + np.flatnonzero(opened[index])).tolist()
        known = text[index].split()
        text[index] = " ".join(known + [str(s) for s in shutters if str(s) not in known])
        names.append(" ".join(map(str, row)))
    out = ds.assign_coords(occupied=("slit", np.array(text, dtype=str)))
    if "selected" in ds:
        selected = map_slits(
            _clear_of, ds["flux"], ds["selected"].data, ds["yrel"].data, occupied_shutters(out),
            dtype=np.bool_,
        )  # fmt: skip
        out["selected"] = (PIXEL_DIMS, selected, ds["selected"].attrs)
    return out.assign_attrs(contaminants_left_out=names)


def _clear_of(selected: NDArray, yrel: NDArray, occupied: NDArray) -> NDArray:
    near = np.zeros(selected.shape, dtype=np.bool_)
    for k in range(occupied.shape[-1]):
        near |= np.abs(yrel - occupied[..., k : k + 1]) <= 0.5
    return selected & ~near
