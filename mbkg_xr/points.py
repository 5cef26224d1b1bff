"""Pixels that a query found, as points: read when they are asked for, chunk by chunk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .errors import ParameterError
from .io.tables import write_csv, write_parquet
from .schema import PIXEL_DIMS
from .search import POSITION, Found, Search

__all__ = ["Points"]

_POSITIONS = {
    "slit": {"long_name": "slit in the dataset, from 0"},
    "y": {"long_name": "row in the slit's cut-out, from 0"},
    "x": {"long_name": "column in the slit's cut-out, from 0"},
}


class Points:
    """Flat points, from `query`: a dataset of the dimension ``point`` that is not read yet.

    How many points there are is known when they are read, which xarray has no form for. What is
    asked of them is read then: ``points["flux"]`` or ``points.flux`` is that column as a DataArray
    with its coordinates left behind, ``compute()`` all of them as a Dataset.
    ``points[["flux", "nod"]]`` are points of fewer columns, not read: what is not wanted never is.

    Parameters
    ----------
    search
        What to find.
    columns
        Names of columns; all, by default.

    Attributes
    ----------
    columns
        Names: `slit`, `y`, `x`, pixel coordinates and variables, and those of slits.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    >>> points = mx.query(ds, wavelength=(2.0, 2.01), yrel=(-0.2, 0.2))
    >>> points[["wavelength", "flux"]].compute().flux.dims
    ('point',)
    >>> points.sizes["point"] == points.flux.size
    True
    """

    def __init__(self, search: Search, columns: Sequence[str] | None = None):
        self._search = search
        ds = search.ds
        dims = (PIXEL_DIMS, PIXEL_DIMS[:1])
        usable = [str(n) for n, v in ds.variables.items() if v.dims in dims and n not in POSITION]
        # Pixels first, and of both first those that are data.
        usable.sort(key=lambda n: (ds[n].ndim == 1, n in ds.coords))
        known = (*POSITION, *usable)
        wanted = known if columns is None else tuple(dict.fromkeys(columns))
        for name in wanted:
            if name not in known:
                raise ParameterError(
                    f"no column {name!r}", expected="one of " + " ".join(known), found=name
                )
        self.columns: tuple[str, ...] = wanted

    @overload
    def __getitem__(self, columns: str) -> xr.DataArray: ...
    @overload
    def __getitem__(self, columns: list[str] | tuple[str, ...]) -> Points: ...
    def __getitem__(self, columns: str | list[str] | tuple[str, ...]) -> Points | xr.DataArray:
        if isinstance(columns, str):
            return Points(self._search, [columns]).compute()[columns].reset_coords(drop=True)
        return Points(self._search, columns)

    def __getattr__(self, name: str) -> xr.DataArray:
        if name not in self.__dict__.get("columns", ()):
            raise AttributeError(f"no column or attribute {name!r} of these points")
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.columns]

    @property
    def dims(self) -> tuple[str]:
        """The one dimension."""
        return ("point",)

    @property
    def sizes(self) -> dict[str, int]:
        """How many points there are, counted now."""
        return {"point": self.count()}

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the slit dataset."""
        return dict(self._search.ds.attrs)

    def __repr__(self) -> str:
        ds = self._search.ds
        asked = ", ".join(c.name for c in self._search.conditions)
        asked += ", where" * (self._search.where is not None)
        return (
            f"<mbkg_xr.Points of {ds.attrs.get('configuration', 'slits')}: {len(self.columns)} "
            f"columns of the pixels of {ds.sizes['slit']} slits"
            f"{' by ' + asked.strip(', ') if asked else ''}; not read yet>\n"
            f"{' '.join(self.columns)}"
        )

    def count(self) -> int:
        """How many points there are. Reads no more than the conditions need."""
        return sum(self._search.reduce(_count, []))

    def blocks(self) -> Iterator[xr.Dataset]:
        """Datasets of points, chunk by chunk in the slits' order; none of them is empty.

        Memory holds a few chunks at a time.
        """
        names, ds = list(self.columns), self._search.ds
        pixels = [n for n in names if n not in POSITION and ds[n].ndim == len(PIXEL_DIMS)]
        for found in self._search.reduce(_as_found, pixels, heavy=True):
            if found["slit"].size:
                yield self._dataset(found)

    def _dataset(self, found: Found) -> xr.Dataset:
        """Columns with what is known of them; those of slits repeated for each point."""
        ds = self._search.ds
        out: dict[str, Any] = {}
        for name in self.columns:
            if name in POSITION:
                out[name] = ("point", found[name], _POSITIONS[name])
            elif name in found:
                out[name] = ("point", found[name], ds[name].attrs)
            else:
                values = ds[name].values
                # Of text, each point refers to its slit's.
                values = values.astype(object) if values.dtype.kind in "OUT" else values
                out[name] = ("point", values[found["slit"]], ds[name].attrs)
        data = xr.Dataset(out, attrs=ds.attrs)
        return data.set_coords([n for n in self.columns if n in POSITION or n in ds.coords])

    def compute(self) -> xr.Dataset:
        """All points in memory.

        Returns
        -------
        xarray.Dataset
            Of the dimension ``point``; coordinates of the slit dataset are coordinates.
        """
        blocks = [b.variables for b in self.blocks()]
        if not blocks:
            return self._dataset(self._nothing())
        last = self._dataset(self._nothing())
        joined = {
            n: ("point", np.concatenate([b[n].values for b in blocks]), last[n].attrs)
            for n in self.columns
        }
        return xr.Dataset(joined, attrs=last.attrs).set_coords(list(last.coords))

    def _nothing(self) -> Found:
        ds = self._search.ds
        empty: Found = {n: np.empty(0, np.int64) for n in POSITION}
        for name in self.columns:
            if name not in POSITION and ds[name].ndim == len(PIXEL_DIMS):
                empty[name] = np.empty(0, ds[name].dtype)
        return empty

    def to_dataframe(self) -> pd.DataFrame:
        """All points as a table in memory; text as categories."""
        data = self.compute()
        columns: dict[str, Any] = {n: data[n].values for n in self.columns}
        for name, (codes, texts) in self._texts().items():
            slit = columns.get("slit")
            columns[name] = (
                pd.Categorical(columns[name], categories=texts)
                if slit is None
                else pd.Categorical.from_codes(codes[slit], categories=pd.Index(texts))
            )
        return pd.DataFrame(columns)

    def _texts(self) -> dict[str, tuple[NDArray[np.int64], NDArray]]:
        """Of columns of text: which of its values each slit has, and those."""
        ds = self._search.ds
        out = {}
        for name in self.columns:
            if name not in POSITION and ds[name].dtype.kind in "OUT":
                values, codes = np.unique(ds[name].values, return_inverse=True)
                out[name] = (codes, values.astype(object))
        return out

    def to_parquet(self, path: str | os.PathLike, *, overwrite: bool = False) -> int:
        """Write a Parquet file, chunk by chunk: it may be larger than memory.

        Units and descriptions are in the metadata of its columns. Needs pyarrow
        (``pip install 'mbkg_xr[parquet]'``).

        Returns
        -------
        int
            Number of points.

        Raises
        ------
        StoreError
            Where pyarrow is missing, or the file exists or cannot be written; nothing is left
            under its name then.
        """
        return write_parquet(self.blocks(), self._dataset(self._nothing()), path, overwrite)

    def to_csv(self, path: str | os.PathLike, *, overwrite: bool = False) -> int:
        """Write a CSV file, chunk by chunk; as `to_parquet`."""
        return write_csv(self.blocks(), self._dataset(self._nothing()), path, overwrite)


def _count(found: Found, state: None) -> int:
    return found["slit"].size


def _as_found(found: Found, state: None) -> Found:
    return found
