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

from .accessor import MbkgAccessor
from .append_moments import append_moments
from .bad_pixels import find_bad_pixels, flag_pixels
from .contaminants import find_contaminants
from .describe import describe
from .drift import Drift, master_at
from .errors import MbkgError
from .explore import explore
from .extract import extract
from .fit import fit_master
from .info import info
from .io import NipsLayout, open_program, read_template, save
from .io.ingest import ingest
from .io.write import write_fits
from .leave_out import without_contaminants
from .left_out import left_out_slits
from .master import evaluate, sample_master
from .memory import predict_memory
from .models import BSpline, LogPolynomial, Template
from .moment_scores import score_moments
from .nods import subtract_nods
from .outliers import flag_outliers
from .parts import master_part
from .points import Points
from .project import master_image, project_master
from .propagate import propagate
from .query import query
from .ranges import slit_ranges
from .rebin import pixel_areas, pixel_corners, rebin2d
from .report import write_report
from .residuals import compare, residuals, sky_centres
from .scales import Scales
from .schema import SHUTTER_CENTRES
from .select import select_background
from .simulate import simulate_program
from .slit_moments import merge_moments, moments, subtract_moments
from .slit_scores import score_slits
from .spans import SpanGrid
from .subtract import subtract
from .summarize import summarize
from .user_background import write_user_background
from .verify import verify
from .white_noise import white_noise

__version__ = "0.1.0"

__all__ = [
    "SHUTTER_CENTRES",
    "BSpline",
    "Drift",
    "LogPolynomial",
    "MbkgAccessor",
    "MbkgError",
    "NipsLayout",
    "Points",
    "Scales",
    "SpanGrid",
    "Template",
    "append_moments",
    "compare",
    "describe",
    "evaluate",
    "explore",
    "extract",
    "find_bad_pixels",
    "find_contaminants",
    "fit_master",
    "flag_outliers",
    "flag_pixels",
    "info",
    "ingest",
    "left_out_slits",
    "master_at",
    "master_image",
    "master_part",
    "merge_moments",
    "moments",
    "open_program",
    "pixel_areas",
    "pixel_corners",
    "predict_memory",
    "project_master",
    "propagate",
    "query",
    "read_template",
    "rebin2d",
    "residuals",
    "sample_master",
    "save",
    "score_moments",
    "score_slits",
    "select_background",
    "simulate_program",
    "sky_centres",
    "slit_ranges",
    "subtract",
    "subtract_moments",
    "subtract_nods",
    "summarize",
    "verify",
    "white_noise",
    "without_contaminants",
    "write_fits",
    "write_report",
    "write_user_background",
]
