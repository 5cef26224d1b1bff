"""The master as a spectrum for the official pipeline, which subtracts it at its own place."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy import units as u
from numpy.typing import NDArray

from .errors import ParameterError, StoreError
from .io.location import local_path
from .master import evaluate, identity, sample_master
from .parts import require_one_sky

__all__ = ["write_user_background"]

_JANSKY = (1 * u.Unit("MJy/sr") * u.arcsec**2).to_value(u.Jy)  # of a square arcsecond
_UNITS = {
    "wavelength": "um",
    **dict.fromkeys(("flux", "flux_error"), "Jy"),
    **dict.fromkeys(("surf_bright", "sb_error"), "MJy/sr"),
}


def write_user_background(
    master: xr.Dataset, path: str | os.PathLike, *, overwrite: bool = False, tolerance: float = 1e-4
) -> Path:
    """Write the master as an ``x1d`` that ``master_background_mos`` takes as ``user_background``.

    That step looks the spectrum up at the wavelength of each pixel's centre, and undoes the
    calibration of each slit before it subtracts: so the column ``SURF_BRIGHT`` holds the mean of
    the sky over one detector pixel around each wavelength, in MJy/sr, ``SB_ERROR`` its standard
    error. ``FLUX`` is that of one square arcsecond, in Jy. Outside the fitted range there are no
    rows: the step subtracts nothing there and flags DO_NOT_USE. Gaps within are NaN, and what
    it subtracts there is NaN too. The error is not propagated by the step.

    Parameters
    ----------
    master
        From `fit_master`, of slits in surface brightness.
    path
        The file to write, usually ``..._x1d.fits``.
    overwrite
        Whether a file that exists may be replaced.
    tolerance
        Largest loss by linear interpolation between rows, a fraction of the local sky.

    Returns
    -------
    pathlib.Path
        The file. It gets its name when it is complete.

    Raises
    ------
    DatasetError
        Where `master` is no master.
    ParameterError
        Where its unit is not a surface brightness.
    StoreError
        Where the file exists and `overwrite` is False, or cannot be written.

    Examples
    --------
    >>> import mbkg_xr as mx, pathlib, tempfile
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mx.write_user_background(mx.fit_master(ds), f"{folder}/sky_x1d.fits").name
    'sky_x1d.fits'
    """
    # Slow to import, and needed here only.
    from stdatamodels.jwst import datamodels

    path = local_path(path, "user backgrounds")
    if path.exists() and not overwrite:
        raise StoreError(
            "the file exists already", where=str(path), remedy="choose another name, or overwrite"
        )
    with warnings.catch_warnings(), datamodels.MultiSpecModel() as model:
        warnings.simplefilter("ignore")
        spec = datamodels.SpecModel()
        spec.spec_table = _table(master, tolerance, spec.get_dtype("spec_table"))
        _describe(model, master)
        model.spec.append(spec)
        for name, unit in _UNITS.items():
            model.spec[0].spec_table.columns[name].unit = unit
        # Saved under its own name, which the header repeats, in a directory beside its place.
        staging = path.with_name(f".{path.name}.staging-{uuid.uuid4().hex[:8]}")
        try:
            staging.mkdir(parents=True)
            model.save(staging / path.name)
            os.replace(staging / path.name, path)
        except OSError as error:
            raise StoreError("cannot write here", where=str(path), found=error.strerror) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return path


def _table(master: xr.Dataset, tolerance: float, dtype: np.dtype) -> NDArray:
    require_one_sky(master, "a user background")
    # Where two spans meet near a line, the mean over a pixel bends more than the sky itself.
    fine = sample_master(master, tolerance=tolerance / 4)
    unit = u.Unit(master.attrs["units"], parse_strict="silent")
    if not unit.is_equivalent("MJy/sr"):
        raise ParameterError(
            "a master that is not a surface brightness",
            expected="units of MJy/sr",
            found=master.attrs["units"],
            remedy="fit slits that are calibrated by the photom step",
        )
    scale = unit.to("MJy/sr")
    wavelength = fine["wavelength"].values
    # The end of the range belongs to the span before it.
    brightness = evaluate(master, np.minimum(wavelength, wavelength[-1] * (1 - 1e-9)), mean=True)
    brightness = np.where(np.isfinite(fine["sky"].values), brightness, np.nan) * scale
    error = fine["sky_error"].values * scale
    table = np.zeros(wavelength.size, dtype)
    columns = {
        "WAVELENGTH": wavelength,
        "FLUX": brightness * _JANSKY,
        "FLUX_ERROR": error * _JANSKY,
        "SURF_BRIGHT": brightness,
        "SB_ERROR": error,
        "DQ": ~np.isfinite(brightness),
        "NPIXELS": 1,
    }
    for name, values in columns.items():
        table[name] = values
    return table


def _describe(model: Any, master: xr.Dataset) -> None:
    """What the spectrum is of, and where it comes from."""
    grating, _, filter_ = str(master.attrs["configuration"]).upper().partition("-")
    meta, made = model.meta, identity(master)
    meta.telescope = "JWST"
    meta.instrument.name, meta.instrument.grating, meta.instrument.filter = (
        *("NIRSPEC", grating),
        filter_,
    )
    meta.exposure.type = "NRS_MSASPEC"
    for text in (
        f"Master background by mbkg_xr {made['background_version']}: {made['background_model']}, "
        f"fitted to {made['background_pixels']} pixels of {made['background_slits']} slits of "
        f"{master.attrs['configuration']}, sha256 {made['background_sha256']}",
        "SURF_BRIGHT is the mean of the sky over one detector pixel; FLUX is of 1 square arcsecond",
    ):
        model.history.append(text)
