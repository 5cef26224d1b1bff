"""What writers of products need besides a dataset: cut-outs, traces and where they go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import xarray as xr

from ..errors import ParameterError, StoreError
from .dispersers import Disperser, get_disperser
from .geometry import Trace, cutout, trace

__all__ = ["exposures_of", "new_file", "slit_geometry", "the_disperser"]

_NEEDED = ("flux", "error", "var_rnoise", "var_poisson", "true_x_offset")


def the_disperser(ds: xr.Dataset) -> Disperser:
    """The disperser of a simulated programme.

    Raises
    ------
    ParameterError
        Where the dataset is not one from `simulate_program`.
    """
    missing = [n for n in _NEEDED if n not in ds]
    if missing or "grating" not in ds.attrs:
        raise ParameterError(
            "not a simulated programme",
            where="ds",
            expected="a dataset from simulate_program",
            found="no " + ", ".join(missing or ["attribute grating"]),
        )
    return get_disperser(ds.attrs["grating"], ds.attrs["filter"])


def exposures_of(ds: xr.Dataset) -> Iterator[tuple[str, str, xr.Dataset]]:
    """``(exposure, detector, its slits, computed)``, one after the other."""
    keys = list(zip(ds.exposure.values.tolist(), ds.detector.values.tolist(), strict=True))
    for key in dict.fromkeys(keys):
        yield *key, ds.isel(slit=[i for i, k in enumerate(keys) if k == key]).compute()


def slit_geometry(slit: xr.Dataset, disperser: Disperser) -> tuple[Trace, slice, slice]:
    """Trace of a slit, and rows and columns of its padded arrays that are its cut-out."""
    t = trace(
        int(slit.quadrant),
        int(slit.shutter_row),
        int(slit.shutter_column),
        str(slit.detector.values),
        disperser,
        x_offset=float(slit.true_x_offset),
    )
    rows, columns = cutout(t, disperser, int(slit.n_shutters))
    return t, slice(rows.stop - rows.start), slice(columns.stop - columns.start)


def new_file(directory: str | Path, name: str, overwrite: bool) -> Path:
    """Path of a file to write in a directory, which is made.

    Raises
    ------
    StoreError
        Where the file exists and may not be overwritten.
    """
    path = Path(directory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not overwrite:
        raise StoreError(
            "the file exists already",
            where=str(path),
            remedy="choose another directory or allow overwriting",
        )
    return path
