"""Master background subtraction for JWST NIRSpec multi-object spectra, on xarray, dask and zarr.

Examples
--------
>>> import mbkg_xr as mx
>>> ds = mx.simulate_program(exposures=3, slits=6, background_slits=3)
>>> ds = mx.select_background(ds)
>>> master = mx.fit_master(ds)
>>> res = mx.residuals(mx.subtract(ds, master))
>>> table = mx.compare(res, mx.residuals(mx.subtract_nods(ds)))
"""

from .errors import MbkgError
from .fit import fit_master
from .io import NipsLayout, open_program, save
from .io.write import write_fits
from .master import evaluate, sample_master
from .models import BSpline, LogPolynomial
from .project import master_image, project_master
from .rebin import pixel_areas, pixel_corners, rebin2d
from .residuals import compare, residuals, sky_centres
from .schema import SHUTTER_CENTRES
from .select import flag_outliers, select_background
from .simulate import simulate_program
from .spans import SpanGrid
from .subtract import subtract, subtract_nods
from .user_background import write_user_background

__version__ = "0.1.0"

__all__ = [
    "SHUTTER_CENTRES",
    "BSpline",
    "LogPolynomial",
    "MbkgError",
    "NipsLayout",
    "SpanGrid",
    "compare",
    "evaluate",
    "fit_master",
    "flag_outliers",
    "master_image",
    "open_program",
    "pixel_areas",
    "pixel_corners",
    "project_master",
    "rebin2d",
    "residuals",
    "sample_master",
    "save",
    "select_background",
    "simulate_program",
    "sky_centres",
    "subtract",
    "subtract_nods",
    "write_fits",
    "write_user_background",
]
