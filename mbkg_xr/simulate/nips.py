"""Simulated programmes as ESA NIPS irregular 2-D spectra (I2D): one FITS file a slitlet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from astropy.io import fits

from ..errors import ParameterError
from ..quality import JWST_FLAGS, NIPS_FLAGS
from .dispersers import Disperser
from .geometry import DETECTOR_SIZE, msa_position
from .products import new_file, slit_geometry, the_disperser

__all__ = ["write_nips"]

_SCA = {"NRS1": (1, 491), "NRS2": (2, 492)}  # suffix of extensions, number of the detector
# The NIPS flags nearest to those of STScI that the simulator sets.
_FLAGS = {
    "DO_NOT_USE": "DO_NOT_USE",
    "HOT": "HOT",
    "WARM": "WARM",
    "LOW_QE": "LOW_QE",
    "DEAD": "LOW_QE",
    "TELEGRAPH": "TELEGRAPH",
    "UNRELIABLE_FLAT": "UNRELIABLE_FLAT",
    "UNRELIABLE_BIAS": "UNRELIABLE_BIAS",
    "JUMP_DET": "COSMIC_RAY",
    "SATURATED": "SATURATED_EARLY",
    "NO_FLAT_FIELD": "SFLT_NONE",
    "NO_SAT_CHECK": "NO_LINEARITY_OR_SATURATION_CHECK",
}


def write_nips(
    ds: xr.Dataset,
    directory: str | Path,
    *,
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a simulated programme as NIPS products.

    Parameters
    ----------
    ds
        From `mbkg_xr.simulate.simulate_program`; one exposure is computed at a time.
    directory
        Where to; made if need be.
    overwrite
        Whether files that exist may be replaced.
    on_step
        Called with a line of text before each exposure.

    Returns
    -------
    list of pathlib.Path
        A ``Trace_SLITLET_<slitlet>_<exposure>.fits`` for each slitlet of each exposure. For
        detector 1 (and 2, which is turned by 180 degrees, where the slitlet falls on it):
        ``DATA1`` (MJy/sr), ``QUALITY1`` (64-bit flags), ``VAR1``, ``LAMBDA1`` (m), ``SLITY1``
        (shutter pitches from the middle shutter), ``MSAX1`` and ``MSAY1`` (m). As in the real
        ones, data outside the slit are finite; ``LAMBDA`` is 0 and the positions are -1 there.
        ``VARRN1`` is an addition to NIPS's own layout, which readers of that ignore: the part of
        the variance that is read noise.

    Raises
    ------
    ParameterError
        Where `ds` is not a simulated programme, or has slits calibrated as point sources.
    StoreError
        Where a file exists and `overwrite` is False.

    Examples
    --------
    >>> import tempfile
    >>> from mbkg_xr.simulate import simulate_program
    >>> ds = simulate_program(exposures=1, slits=2, background_slits=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in write_nips(ds, folder)]  # doctest: +NORMALIZE_WHITESPACE
    ['Trace_SLITLET_1_jw09999001001_03101_00001.fits',
     'Trace_SLITLET_2_jw09999001001_03101_00001.fits']
    """
    disperser = the_disperser(ds)
    if "response" in ds.coords:
        raise ParameterError(
            "NIPS products cannot say how point sources were calibrated",
            where="ds",
            expected='calibration="EXTENDED"',
            found="a response",
        )
    paths = []
    say = on_step or (lambda text: None)
    for exposure in dict.fromkeys(ds.exposure.values.tolist()):
        say(f"writing {exposure}")
        group = ds.isel(slit=np.flatnonzero(ds.exposure.values == exposure)).compute()
        for slitlet in dict.fromkeys(group.slitlet.values.tolist()):
            path = new_file(directory, f"Trace_SLITLET_{slitlet}_{exposure}.fits", overwrite)
            parts = group.isel(slit=np.flatnonzero(group.slitlet.values == slitlet))
            primary = _primary(parts.isel(slit=0), disperser)
            hdus = fits.HDUList([primary])
            for index in range(parts.sizes["slit"]):
                one = parts.isel(slit=index)
                _, rows, columns = slit_geometry(one, disperser)
                made = _extensions(one, rows, columns)
                hdus.extend(made)
                for axis, key in enumerate(("NX", "NY")):
                    primary.header[f"{key}{made[0].header['SCAID']}"] = made[0].shape[::-1][axis]
            hdus.writeto(path, overwrite=overwrite)
            paths.append(path)
    return paths


def _primary(one: xr.Dataset, disperser: Disperser) -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU()
    visit = str(one.visit.values)
    for key, value, comment in (
        ("TELESCOP", "JWST", ""),
        ("INSTRUME", "NIRSPEC", ""),
        ("ORIGIN", "SIMULATED", "not a product of ESA: known truth"),
        ("OBS_ID", str(one.exposure.values), "exposure"),
        ("PROGRAM", visit[:5], "programme"),
        ("OBSERVTN", visit[5:8], "observation"),
        ("VISIT", visit[8:], "visit"),
        ("PATT_NUM", int(one.nod), "position in the dither pattern"),
        ("GWA_POS", disperser.grating, "grating wheel"),
        ("FWA_POS", disperser.filter, "filter wheel"),
        ("EXPTIME", float(one.exposure_time), "[s] exposure time"),
        ("EXPMID", float(one.mjd), "[d] middle of the exposure, MJD"),
        ("MODE", "MOS", ""),
        ("SLITID", f"SLITLET_{int(one.slitlet)}", ""),
        ("SLITLET", int(one.slitlet), "MSA slitlet number"),
        ("SOURCEID", int(one.source_id), "source number"),
        ("SRCNAME", str(one.source_name.values), "source name"),
        ("MSAQUAD", int(one.quadrant), "MSA quadrant"),
        ("MSAROW", int(one.shutter_row), "middle shutter, along dispersion"),
        ("MSACOL", int(one.shutter_column), "middle shutter, across dispersion"),
        ("NSHUT", int(one.n_shutters), "open shutters"),
        ("ISBKG", bool(one.is_background), "no source in any shutter"),
        ("SLITYUNI", "PITCH", "unit of SLITY: one shutter pitch"),
        ("NPLS_V", "NIPS 2.0.48", "layout follows this version's"),
        *((f"N{a}{sca}", 0, "pixels on this detector") for _, sca in _SCA.values() for a in "XY"),
    ):
        hdu.header[key] = (value, comment)
    if np.isfinite(one.source_shutter):
        hdu.header["SRCSHUT"] = (float(one.source_shutter), "SLITY of the shutter with the source")
    return hdu


def _extensions(one: xr.Dataset, rows: slice, columns: slice) -> list[fits.ImageHDU]:
    suffix, sca = _SCA[str(one.detector.values)]
    names = ("flux", "error", "var_rnoise", "wavelength", "yrel")
    pixels = {n: one[n].values[rows, columns] for n in names}
    outside = np.isnan(pixels["wavelength"])
    shutter = int(one.quadrant), int(one.shutter_row), int(one.shutter_column)
    along, across = msa_position(*shutter)
    pitch = msa_position(*shutter[:2], shutter[2] + 1)[1] - across
    x, y = int(one.x_start), int(one.y_start)
    turned = suffix == 2
    if turned:
        x, y = DETECTOR_SIZE - x - outside.shape[1], DETECTOR_SIZE - y - outside.shape[0]
    out = []
    for name, unit, values in (
        ("DATA", "MJy/sr", np.nan_to_num(pixels["flux"], nan=0.0)),
        ("QUALITY", "UNITLESS", _nips_quality(one.quality.values[rows, columns])),
        ("VAR", "(MJy/sr)**2", np.nan_to_num(pixels["error"], nan=0.0).astype(float) ** 2),
        ("VARRN", "(MJy/sr)**2", np.nan_to_num(pixels["var_rnoise"], nan=0.0)),
        ("LAMBDA", "METER", np.where(outside, 0.0, pixels["wavelength"].astype(float) * 1e-6)),
        ("SLITY", "UNITLESS", np.where(outside, -1.0, pixels["yrel"])),
        ("MSAX", "METER", np.where(outside, -1.0, along)),
        ("MSAY", "METER", np.where(outside, -1.0, across + pitch * pixels["yrel"])),
    ):
        if name != "QUALITY":
            # Errors of unusable pixels reach 7e27, and their squares what float32 cannot hold.
            values = np.clip(values, -3e38, 3e38).astype(np.float32)
        hdu = fits.ImageHDU(values[::-1, ::-1] if turned else values, name=f"{name}{suffix}")
        # As NIPS writes it: pixel coordinates from 1, with the four reference pixels counted.
        for axis, start in ((1, x), (2, y)):
            hdu.header[f"CTYPE{axis}"] = "PIXEL"
            hdu.header[f"CUNIT{axis}"] = "pix"
            hdu.header[f"CRVAL{axis}"] = 5.0
            hdu.header[f"CRPIX{axis}"] = 5.0 - start
            hdu.header[f"CDELT{axis}"] = 1.0
        hdu.header["BUNIT"] = unit
        hdu.header["SCAID"] = sca
        out.append(hdu)
    return out


def _nips_quality(quality: np.ndarray) -> np.ndarray:
    """64-bit NIPS flags of 32-bit STScI ones."""
    out = np.zeros(quality.shape, np.uint64)
    for jwst, nips in _FLAGS.items():
        out[quality & np.uint32(JWST_FLAGS[jwst]) != 0] |= np.uint64(NIPS_FLAGS[nips])
    return out
