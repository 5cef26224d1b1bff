"""Which sky each slit sees: that of its part, or of its time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .drift import Clock, has_drift, master_at
from .errors import DatasetError
from .parts import has_parts, lacking, part_at, part_index, split_slits

__all__ = ["has_skies", "over_skies"]

Function = Callable[[xr.Dataset, xr.Dataset], xr.Dataset]


def has_skies(master: xr.Dataset) -> bool:
    """Whether slits see different skies: that of their part, or of their time."""
    return has_parts(master) or has_drift(master)


def over_skies(
    ds: xr.Dataset, master: xr.Dataset, function: Function, *, need: str | None = None
) -> xr.Dataset:
    """Apply a function to the slits of each sky, with the master of that sky. Lazy.

    Slits whose sky is not known get NaN, with a warning: those of parts without a master, or whose
    master has no variable `need`, and those of times outside a drift.

    Parameters
    ----------
    ds
        A slit dataset.
    master
        From ``fit_master(by=...)`` or ``fit_master(drift=...)``.
    function
        Takes slits and their master, and returns a dataset of floats with the dimension ``slit``.
    need
        A variable that the master of a part has to have.

    Raises
    ------
    DatasetError
        Where no slit's sky is known.
    """
    if has_parts(master):
        which = part_index(ds, master)
        if need is not None:
            which[np.array([*lacking(master, need), False])[which]] = -1
        values, rank, name = split_slits(ds, str(master.attrs["by"]).split(","))
        known = " ".join(map(str, master["part"].values[:20]))
        return _over(ds, which, lambda i: part_at(master, i), function, (name, values[rank], known))
    mjd, which = np.unique(ds["mjd"].values, return_inverse=True)
    clock = Clock.of_master(master)
    which = np.where(clock.inside(mjd), np.arange(mjd.size), -1)[which]
    known = f"{clock.middle - clock.half:.5f} to {clock.middle + clock.half:.5f}"
    times = ("mjd", ds["mjd"].values, known)
    return _over(ds, which, lambda i: master_at(master, mjd[i]), function, times)


def _over(
    ds: xr.Dataset,
    which: NDArray[np.int64],
    master_of: Callable[[int], xr.Dataset],
    function: Function,
    told: tuple[str, NDArray, str],
) -> xr.Dataset:
    """Results of all skies, in the order of the slits; `which` is -1 where there is none."""
    name, values, known = told
    missing = np.flatnonzero(which < 0)
    strange = " ".join(map(str, np.unique(values[missing])[:10]))
    if missing.size == which.size:
        raise DatasetError(
            "the master has no sky for any of these slits",
            expected=f"{name} {known}",
            found=strange or "no slit",
        )
    rows = [np.flatnonzero(which == i) for i in np.unique(which) if i >= 0]
    pieces = [
        function(ds.isel(slit=_contiguous(where)), master_of(int(which[where[0]])))
        for where in rows
    ]
    if missing.size:
        warnings.warn(
            f"no master for {name} {strange}: the {missing.size} slits there have no background "
            "and are flagged",
            stacklevel=5,
        )
        pieces.append(_nothing(pieces[0], missing.size))
        rows.append(missing)
    out = xr.concat(pieces, "slit", join="override", combine_attrs="override")
    place = np.argsort(np.concatenate(rows), kind="stable")
    if (place != np.arange(place.size)).any():
        out = out.isel(slit=place)
    chunks = ds["flux"].chunks
    return out.chunk({"slit": chunks[0]}) if out.chunks and chunks else out


def _contiguous(rows: NDArray) -> slice | NDArray:
    """Rows as a slice where they follow each other: dask then takes whole chunks."""
    if rows[-1] - rows[0] + 1 == rows.size:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _nothing(like: xr.Dataset, n: int) -> xr.Dataset:
    """NaN for slits that have no master."""

    def none(variable: xr.DataArray) -> Any:
        shape = (n, *variable.shape[1:])
        if variable.chunks is None:
            return np.full(shape, np.nan, variable.dtype)
        return da.full(shape, np.nan, dtype=variable.dtype, chunks=(64, *shape[1:]))

    return xr.Dataset({name: (v.dims, none(v), v.attrs) for name, v in like.data_vars.items()})
