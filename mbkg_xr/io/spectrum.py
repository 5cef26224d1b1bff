"""Spectra that serve as templates, from files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr
from astropy.io.registry import IORegistryError
from astropy.table import Table
from numpy.typing import NDArray

from ..errors import InputFileError
from .location import located
from .store import is_store, open_store

__all__ = ["read_template"]

Array = NDArray[np.float64]

_WAVELENGTH = ("wavelength", "wave", "lambda", "lam", "wl", "wavelength_um")
_FLUX = ("flux", "sky", "background", "surf_bright", "fnu", "flux_mjysr")
_MASTER = "master"


def read_template(path: str | os.PathLike) -> xr.Dataset | tuple[Array, Array]:
    r"""Read a spectrum for `Template`.

    Parameters
    ----------
    path
        A store that holds one master (a result of ``mbkg-xr run``, or a group of it such as
        ``result.zarr/prism-clear/master``), or a table: CSV, ECSV, plain text or FITS, with a
        column of wavelengths (``wavelength``, ``wave`` or ``lambda``; in um, or in a unit the table
        states) and one of fluxes (``flux``, ``sky``, ``background`` or ``surf_bright``; the first
        two columns, where none has such a name).

    Returns
    -------
    xarray.Dataset or (wavelength, flux)
        What `Template` takes. Rows that are not finite are left out, and rows are put in order of
        wavelength.

    Raises
    ------
    InputFileError
        Where there is no such file, or it holds no spectrum, or several masters.

    Examples
    --------
    >>> import mbkg_xr as mx, tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "sky.csv"
    >>> _ = file.write_text("wave,flux\n1.0,0.2\n2.0,0.1\n")
    >>> [values.tolist() for values in mx.read_template(file)]
    [[1.0, 2.0], [0.2, 0.1]]
    """
    path = located(path)
    if not path.exists():
        raise InputFileError("no such template", where=str(path), expected="a file or a store")
    return _from_store(path) if is_store(path) else _from_table(path)


def _from_store(path: Path) -> xr.Dataset:
    tree = open_store(path)
    masters = [node for node in tree.subtree if "polynomial" in node.data_vars]
    if len(masters) != 1:
        raise InputFileError(
            "not one master",
            where=str(path),
            expected="a store that holds one master",
            found=" ".join(node.path for node in masters) or "none",
            remedy=f"name the group, as in {path}/prism-clear/{_MASTER}",
        )
    return masters[0].to_dataset().load()


def _from_table(path: Path) -> tuple[Array, Array]:
    kind = {".csv": "ascii.csv", ".txt": "ascii", ".dat": "ascii"}.get(path.suffix.lower())
    try:
        table = Table.read(path, format=kind)
        names = list(table.colnames)
        wavelength = table[_named(names, _WAVELENGTH, 0)]
        flux: Array = np.ma.filled(
            np.ma.asarray(table[_named(names, _FLUX, 1)], dtype=float), np.nan
        )
        unit = str(wavelength.unit or "um")
        rising = wavelength.quantity.to_value("um") if wavelength.unit else wavelength
        wave: Array = np.ma.filled(np.ma.asarray(rising, dtype=float), np.nan)
    except (OSError, ValueError, TypeError, IndexError, IORegistryError) as error:
        raise InputFileError(
            "the template cannot be read",
            where=str(path),
            expected="a table with columns of wavelength (um) and flux",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
        ) from error
    good = np.isfinite(wave) & np.isfinite(flux)
    if good.sum() < 2:
        raise InputFileError(
            "the template holds no spectrum",
            where=str(path),
            expected="finite wavelengths and fluxes",
            found=f"{int(good.sum())} finite rows, wavelengths in {unit}",
        )
    order = np.argsort(wave[good], kind="stable")
    return wave[good][order], flux[good][order]


def _named(names: list[str], wanted: tuple[str, ...], otherwise: int) -> str:
    for name in wanted:
        for given in names:
            if given.lower() == name:
                return given
    return names[otherwise]
