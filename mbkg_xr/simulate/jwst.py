"""Simulated programmes as STScI products: ``_cal.fits`` of an exposure and ``_msa.fits``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.time import Time

from ..barshadow import shutter_positions
from .dispersers import Disperser
from .geometry import EDGE, MSA_SHAPE, OPEN_PITCH, sky_position
from .instrument import bar_shadow, path_loss, point_path_loss
from .products import exposures_of, new_file, slit_geometry, the_disperser

__all__ = ["write_jwst"]

#: Area of a pixel on the sky, sr. Source: PIXAR_SR of the CEERS PRISM slitlets.
PIXEL_AREA = 4.85e-13
_STEPS = (
    *("assign_wcs", "extract_2d", "srctype", "flat_field"),
    *("pathloss", "barshadow", "photom"),
)
_SKIPPED = ("bkg_subtract", "master_background", "wavecorr")


def write_jwst(
    ds: xr.Dataset,
    directory: str | Path,
    *,
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a simulated programme as STScI products.

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
        A ``<exposure>_<detector>_cal.fits`` for each exposure and detector, a ``MultiSlitModel``
        in MJy/sr (slits calibrated as point sources in MJy, with the bars left in), and an
        ``_msa.fits`` for each visit. The truth is not in them.

    Raises
    ------
    ParameterError
        Where `ds` is not a simulated programme.
    StoreError
        Where a file exists and `overwrite` is False.

    Examples
    --------
    >>> import tempfile
    >>> from mbkg_xr.simulate import simulate_program
    >>> ds = simulate_program(exposures=1, slits=2, background_slits=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in write_jwst(ds, folder)]
    ['jw09999001001_03101_00001_nrs1_cal.fits', 'jw09999001001_01_msa.fits']
    """
    # Slow to import, and needed here only.
    from stdatamodels.jwst import datamodels

    from .wcs import slit_wcs, wavelength_models

    disperser = the_disperser(ds)
    tables = wavelength_models(disperser)
    paths = []
    say = on_step or (lambda text: None)
    say("making the first exposure")
    for exposure, detector, group in exposures_of(ds):
        say(f"writing {exposure} {detector}")
        path = new_file(directory, f"{exposure}_{detector.lower()}_cal.fits", overwrite)
        # The whole model is validated when it is saved.
        with datamodels.MultiSlitModel(validate_on_assignment=False) as model:
            _describe_exposure(model, group, disperser)
            for index in range(group.sizes["slit"]):
                one = group.isel(slit=index)
                t, rows, columns = slit_geometry(one, disperser)
                planes = _planes(one, rows, columns)
                slit = model.slits.item(**planes)
                origin = 0.0 if np.isnan(one.source_shutter) else float(one.source_shutter)
                shape = planes["data"].shape
                _describe_slit(slit, one, origin, shape)
                slit.meta.wcs = slit_wcs(
                    t,
                    int(one.x_start),
                    int(one.y_start),
                    shape,
                    origin,
                    (slit.source_ra, slit.source_dec),
                    tables,
                )
                model.slits.append(slit)
            model.save(path, overwrite=overwrite)
        paths.append(path)
    for visit in np.unique(ds.visit.values):
        path = new_file(directory, f"jw{visit}_01_msa.fits", overwrite)
        _msa_file(ds.isel(slit=ds.visit.values == visit), str(visit)).writeto(
            path, overwrite=overwrite
        )
        paths.append(path)
    return paths


def _planes(one: xr.Dataset, rows: slice, columns: slice) -> dict[str, np.ndarray]:
    """The slit's extensions, in the product's own units."""
    pixels = {
        n: one[n].values[rows, columns]
        for n in ("flux", "error", "var_rnoise", "var_poisson", "wavelength", "yrel")
    }
    wavelength = pixels["wavelength"].astype(float)
    reference, _ = bar_shadow(int(one.n_shutters), 0.0)(
        np.nan_to_num(pixels["yrel"].astype(float)), np.nan_to_num(wavelength, nan=1.0)
    )
    outside = np.isnan(wavelength)
    reference[outside] = np.nan
    point = _is_point(one)
    factor = PIXEL_AREA if point else 1.0
    var_flat = one["var_flat"].values[rows, columns] if "var_flat" in one else 0.0
    return {
        "data": (pixels["flux"] * factor).astype(np.float32),
        "err": (pixels["error"] * factor).astype(np.float32),
        "dq": one.quality.values[rows, columns],
        "wavelength": pixels["wavelength"],
        "var_rnoise": (pixels["var_rnoise"] * np.float64(factor) ** 2).astype(np.float32),
        "var_poisson": (pixels["var_poisson"] * np.float64(factor) ** 2).astype(np.float32),
        "var_flat": np.where(outside, np.nan, var_flat * np.float64(factor) ** 2).astype(
            np.float32
        ),
        "barshadow": (np.where(outside, np.nan, 1.0) if point else reference).astype(np.float32),
        "pathloss_uniform": path_loss(wavelength).astype(np.float32),
        "pathloss_point": point_path_loss(wavelength).astype(np.float32),
    }


def _is_point(one: xr.Dataset) -> bool:
    """Whether the slit is calibrated as a point source: its response is not 1."""
    return "response" in one.coords and bool((abs(one.response - 1) > 1e-6).any())


def _describe_exposure(model: Any, group: xr.Dataset, disperser: Disperser) -> None:
    first = group.isel(slit=0)
    visit = str(first.visit.values)
    exposure_time, middle = float(first.exposure_time), float(first.mjd)
    start = Time(middle - exposure_time / 2 / 86400, format="mjd")
    meta = model.meta
    meta.telescope = "JWST"
    meta.instrument.name, meta.instrument.detector = "NIRSPEC", str(first.detector.values)
    meta.instrument.grating, meta.instrument.filter = disperser.grating, disperser.filter
    meta.instrument.lamp_state = "NONE"
    meta.instrument.msa_metadata_file = f"jw{visit}_01_msa.fits"
    meta.instrument.msa_metadata_id = meta.instrument.msa_configuration_id = 1
    meta.exposure.type, meta.exposure.readpatt = "NRS_MSASPEC", "NRSIRS2"
    meta.exposure.start_time, meta.exposure.mid_time = start.mjd, middle
    meta.exposure.end_time = 2 * middle - start.mjd
    meta.exposure.effective_exposure_time = meta.exposure.exposure_time = exposure_time
    meta.exposure.nints, meta.exposure.ngroups = 1, 14
    meta.observation.program_number, meta.observation.observation_number = visit[:5], visit[5:8]
    meta.observation.visit_number, meta.observation.visit_id = visit[8:], visit
    meta.observation.date, meta.observation.time = start.iso.split()
    meta.observation.exposure_number = str(first.exposure.values)[-5:]
    meta.dither.position_number, meta.dither.total_points = int(first.nod), int(group.nod.max())
    meta.subarray.name = "FULL"
    meta.target.source_type = "UNKNOWN"
    for step in _STEPS:
        setattr(meta.cal_step, step, "COMPLETE")
    for step in _SKIPPED:
        setattr(meta.cal_step, step, "SKIPPED")


def _describe_slit(slit: Any, one: xr.Dataset, origin: float, shape: tuple[int, int]) -> None:
    shutters = shutter_positions(int(one.n_shutters))
    point = _is_point(one)
    slit.name, slit.slitlet_id = str(int(one.slitlet)), int(one.slitlet)
    slit.quadrant = int(one.quadrant)
    # The pipeline's xcen and ycen are the row and column of the shutter with the source (of a
    # background slitlet, the middle one), and "x" marks it in the state.
    slit.xcen, slit.ycen = int(one.shutter_row), int(one.shutter_column) + int(origin)
    slit.shutter_id = slit.xcen + (slit.ycen - 1) * MSA_SHAPE[0]
    slit.shutter_state = "".join("x" if s == origin else "1" for s in shutters)
    slit.slit_ymin = float((shutters[0] - origin - EDGE) * OPEN_PITCH)
    slit.slit_ymax = float((shutters[-1] - origin + EDGE) * OPEN_PITCH)
    slit.source_id, slit.source_name = int(one.source_id), str(one.source_name.values)
    slit.source_alias = slit.source_name.split("_")[-1]
    slit.source_type = "POINT" if point else "EXTENDED"
    slit.stellarity = 1.0 if point else 0.0
    slit.source_xpos = slit.source_ypos = 0.0
    slit.source_ra, slit.source_dec = sky_position(slit.quadrant, slit.xcen, slit.ycen)
    slit.xstart, slit.xsize = int(one.x_start) + 1, shape[1]
    slit.ystart, slit.ysize = int(one.y_start) + 1, shape[0]
    slit.barshadow_corrected = not point
    slit.pathloss_correction_type = "POINT" if point else "UNIFORM"
    slit.meta.model_type = "SlitModel"  # as the pipeline's own slits say
    slit.meta.bunit_data = slit.meta.bunit_err = "MJy" if point else "MJy/sr"
    slit.meta.photometry.pixelarea_steradians = PIXEL_AREA
    slit.meta.wcsinfo.dispersion_direction = 1


def _msa_file(ds: xr.Dataset, visit: str) -> fits.HDUList:
    """The MSA metafile of a visit: layout of the archive's own."""
    rows, sources, seen = [], {}, set()
    image = np.zeros((2 * MSA_SHAPE[0], 2 * MSA_SHAPE[1]), np.int16)
    for i in range(ds.sizes["slit"]):
        one = ds[list(_SLIT_COLUMNS)].isel(slit=i)
        key = int(one.slitlet), int(one.nod)
        if key in seen:
            continue
        seen.add(key)
        quadrant, row = int(one.quadrant), int(one.shutter_row)
        for shutter in shutter_positions(int(one.n_shutters)):
            column = int(one.shutter_column) + int(shutter)
            source = not bool(one.is_background) and shutter == float(one.source_shutter)
            rows.append(
                (
                    *(key[0], 1, quadrant, row, column, int(one.source_id) if source else 0),
                    *("N" if source else "Y", "OPEN"),
                    *((0.5, 0.5) if source else (np.nan, np.nan)),
                    *(key[1], "Y" if source else "N", "NONE"),
                )
            )
            image[
                row - 1 + (MSA_SHAPE[0] if quadrant in (2, 3) else 0),
                column - 1 + (MSA_SHAPE[1] if quadrant in (1, 2) else 0),
            ] = key[0]
        if not bool(one.is_background):
            name = str(one.source_name.values)
            position = sky_position(quadrant, row, int(one.shutter_column))
            sources[int(one.source_id)] = (name, name.split("_")[-1], *position)
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "TELESCOP": "JWST",
            "INSTRUME": "NIRSPEC",
            "VISIT_ID": visit,
            "PROGRAM": visit[:5],
            "OBSERVTN": visit[5:8],
            "VISIT": visit[8:],
            "MSACFG10": 1,
            "MSACFG36": "01",
            "FILENAME": f"jw{visit}_01_msa.fits",
        }
    )
    program = int(visit[:5])
    source_rows = [
        (program, number, name, alias, ra, dec, "None", 0.0)
        for number, (name, alias, ra, dec) in sorted(sources.items())
    ]
    return fits.HDUList(
        [
            primary,
            fits.ImageHDU(image, name="SHUTTER_IMAGE"),
            fits.BinTableHDU(np.array(rows, _SHUTTER_INFO), name="SHUTTER_INFO"),
            fits.BinTableHDU(np.array(source_rows, _SOURCE_INFO), name="SOURCE_INFO"),
        ]
    )


_SLIT_COLUMNS = (
    *("slitlet", "nod", "quadrant", "shutter_row", "shutter_column", "n_shutters"),
    *("is_background", "source_shutter", "source_id", "source_name"),
)
_SHUTTER_INFO = [
    ("slitlet_id", "i2"),
    ("msa_metadata_id", "i2"),
    ("shutter_quadrant", "i2"),
    ("shutter_row", "i2"),
    ("shutter_column", "i2"),
    ("source_id", "i4"),
    ("background", "S1"),
    ("shutter_state", "S6"),
    ("estimated_source_in_shutter_x", "f4"),
    ("estimated_source_in_shutter_y", "f4"),
    ("dither_point_index", "i2"),
    ("primary_source", "S1"),
    ("fixed_slit", "S7"),
]
_SOURCE_INFO = [
    ("program", "i4"),
    ("source_id", "i4"),
    ("source_name", "S20"),
    ("alias", "S31"),
    ("ra", "f8"),
    ("dec", "f8"),
    ("preimage_id", "S30"),
    ("stellarity", "f8"),
]
