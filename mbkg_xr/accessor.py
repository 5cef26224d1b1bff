"""``ds.mbkg``: the functions of the package as methods of a dataset. It holds nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import xarray as xr

from .describe import Description, describe
from .extract import extract
from .fit import fit_master
from .io import save
from .io.write import write_fits
from .master import evaluate, sample_master
from .nods import subtract_nods
from .outliers import flag_outliers
from .project import master_image, project_master
from .query import query
from .ranges import slit_ranges
from .residuals import compare, residuals, sky_centres
from .select import select_background
from .slit_scores import score_slits
from .subtract import subtract
from .summarize import summarize
from .white_noise import white_noise

__all__ = ["MbkgAccessor"]

P = ParamSpec("P")
R = TypeVar("R")


def _method(
    function: Callable[Concatenate[xr.Dataset, P], R],
) -> Callable[Concatenate[MbkgAccessor, P], R]:
    """A function whose first argument is the accessor's dataset; documented as it is."""

    @wraps(function)
    def method(self: MbkgAccessor, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(self._ds, *args, **kwargs)

    return method


@xr.register_dataset_accessor("mbkg")
class MbkgAccessor:
    """The functions of mbkg_xr as methods: ``ds.mbkg.query(...)`` is ``mx.query(ds, ...)``.

    Importing mbkg_xr registers it. It shows itself as `describe` does.

    Parameters
    ----------
    ds
        A slit dataset, or a master.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2).mbkg.select_background()
    >>> res = ds.mbkg.subtract(ds.mbkg.fit_master()).mbkg.residuals()
    >>> res.mbkg.query(wavelength=(1.0, 1.1), quality="good").to_dataframe().empty
    False
    """

    def __init__(self, ds: xr.Dataset):
        self._ds = ds

    # Slits
    flag_outliers = _method(flag_outliers)
    select_background = _method(select_background)
    fit_master = _method(fit_master)
    project_master = _method(project_master)
    subtract = _method(subtract)
    subtract_nods = _method(subtract_nods)
    residuals = _method(residuals)
    sky_centres = _method(sky_centres)
    compare = _method(compare)
    score_slits = _method(score_slits)
    slit_ranges = _method(slit_ranges)
    extract = _method(extract)
    query = _method(query)
    summarize = _method(summarize)
    white_noise = _method(white_noise)
    write_fits = _method(write_fits)

    # Masters
    evaluate = _method(evaluate)
    sample_master = _method(sample_master)
    master_image = _method(master_image)

    # Either
    save = _method(save)

    def describe(self) -> Description:
        """What the dataset is: `mbkg_xr.describe`."""
        return describe(self._ds)

    def __repr__(self) -> str:
        return str(describe(self._ds))

    def _repr_html_(self) -> str:
        return describe(self._ds)._repr_html_()

    def __rich__(self) -> Any:
        return describe(self._ds).__rich__()
