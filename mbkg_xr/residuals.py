"""How good the subtraction was: normalised residuals, their statistics, master beside nods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits, reduce_blocks
from .errors import DatasetError
from .model_errors import sky_errors
from .partners import laid_on
from .quality import do_not_use
from .schema import (
    CENTRE,
    PIXEL_DIMS,
    SLIT_IDENTITY,
    already_subtracted,
    occupied_shutters,
    slit_label,
    validate,
)
from .scores import STATISTICS, Sums
from .spans import SpanGrid, span_grid
from .subtract import before_subtraction, normalised

__all__ = ["STATISTICS", "compare", "residuals", "sky_centres", "summarize_sky"]

_STACK_PIXELS = 2  # detector pixels in one wavelength bin of `stack`


def residuals(ds: xr.Dataset, *, master: xr.Dataset | None = None) -> xr.Dataset:
    """Add the normalised residual ``flux / error`` of every pixel. Lazy.

    Parameters
    ----------
    ds
        From `subtract` or `subtract_nods`, or of products whose background others subtracted, as
        coordinate ``subtracted`` tells.
    master
        None: errors are those of the dataset, which follow each pixel's own counts, so that sums of
        residuals come out low. A master: those of sky by it (`sky_errors`), for the statistics of
        sky; pixels of a source come out too far off.

    Returns
    -------
    xarray.Dataset
        With ``residual`` (slit, y, x) float32, without unit; NaN where flux or error is.

    Raises
    ------
    DatasetError
        Where no background was subtracted.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> mx.residuals(mx.subtract_nods(ds)).residual.attrs["long_name"]
    'normalised residual'
    """
    validate(ds)
    whole = ~already_subtracted(ds)
    if "background" not in ds and whole.any():
        raise DatasetError(
            "nothing was subtracted from these slits",
            where=slit_label(ds, int(np.flatnonzero(whole)[0])),
            expected="a dataset from subtract or subtract_nods, or products marked as subtracted",
            found=" ".join(map(str, ds.data_vars)),
            remedy="where headers are silent, name what subtracted them in coordinate `subtracted`",
        )
    error = ds["error"] if master is None else sky_errors(ds, master)
    out = normalised(ds, error)
    if master is not None:
        out["residual"].attrs["errors"] = "of sky by the master"
    return out


def sky_centres(ds: xr.Dataset) -> xr.DataArray:
    """Good pixels at the centres of shutters that see only sky. Lazy.

    These are the pixels that all statistics are of: within 0.2 of a shutter's centre, in a shutter
    of the slitlet that does not hold the source, not flagged DO_NOT_USE, and with a background.

    Parameters
    ----------
    ds
        From `residuals`; or slits that hold their sky, of which no background is asked.

    Returns
    -------
    xarray.DataArray
        Boolean (slit, y, x).

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> res = mx.residuals(mx.subtract_nods(ds))
    >>> bool(mx.sky_centres(res).any())
    True
    """
    known = ds["is_background"].values | np.isfinite(ds["source_shutter"].values)
    count = np.maximum(ds["n_shutters"].values, 1)
    mask = map_slits(
        _centre_block,
        ds["flux"],
        ds["yrel"].data,
        ds["quality"].data,
        ds["residual" if "residual" in ds else "flux"].data,
        occupied_shutters(ds),
        known,
        count,
        dtype=np.bool_,
        bad=do_not_use(ds["quality"]),
    )
    return xr.DataArray(mask, dims=PIXEL_DIMS, attrs={"long_name": "centre of a sky shutter"})


def _centre_block(yrel, quality, residual, occupied, known, count, *, bad):
    with np.errstate(invalid="ignore"):
        shutter = np.round(yrel)
        inside = (shutter >= -((count - 1) // 2)) & (shutter <= count // 2)
        good = inside & (np.abs(yrel - shutter) <= CENTRE) & known
        for k in range(occupied.shape[-1]):
            good &= ~(np.abs(yrel - occupied[..., k : k + 1]) <= 0.5)
    return good & ((quality & quality.dtype.type(bad)) == 0) & np.isfinite(residual)


# ------------------------------------------------------------------------------------------------


def summarize_sky(
    sets: dict[str, xr.Dataset], before: xr.DataArray | None = None, *, grid: SpanGrid | None = None
) -> dict[str, dict[str, float]]:
    """Statistics of several residual datasets over the pixels they have in common. Computes.

    Parameters
    ----------
    sets
        Residual datasets of the same slits by name, each from `residuals`. One without any usable
        residual gets ``n = 0`` and does not restrict the others.
    before
        The errors before subtraction, for ``noise_gain``; by default they are found from each
        dataset's ``error`` and ``background_error``, which it must have then.
    grid
        Spans that define the wavelength bins, for dispersers mbkg_xr does not know.

    Returns
    -------
    dict
        `STATISTICS` by name.
    """
    names = list(sets)
    first = sets[names[0]]
    grid = span_grid(first) if grid is None else grid
    columns: dict[str, Any] = {"wavelength": first["wavelength"].variable}
    for i, name in enumerate(names):
        ds = sets[name]
        same = ds["flux"].shape == first["flux"].shape and all(
            np.array_equal(ds[c].values, first[c].values) for c in SLIT_IDENTITY
        )
        if not same or "residual" not in ds:
            raise DatasetError(
                "residuals of different slits" if not same else "no residuals",
                expected=f"the slits of {names[0]}, in their order, from residuals()",
                found=f"{name}: {ds['flux'].shape}, variables {' '.join(map(str, ds.data_vars))}",
                remedy="compare datasets made from the same slits",
            )
        columns[f"mask{i}"] = sky_centres(ds).variable
        columns[f"z{i}"] = ds["residual"].variable
        columns[f"error{i}"] = ds["error"].variable
        if before is None:
            columns[f"other{i}"] = ds["background_error"].variable
    if before is not None:
        columns["before"] = before.variable
    table = xr.Dataset(columns)
    n_bins = -(-grid.size // _STACK_PIXELS)
    nods, nod = np.unique(first["nod"].values, return_inverse=True)
    shape = (nods.size, n_bins)

    def block(start: int, arrays: Sequence[NDArray], restrict: list[int]) -> list[Sums]:
        part = dict(zip(table.data_vars, arrays, strict=True))
        common = np.logical_and.reduce([part[f"mask{i}"] for i in restrict])
        u = grid.pixel_coordinate(part["wavelength"][common])
        bins = np.clip(np.nan_to_num(u).astype(np.int64) // _STACK_PIXELS, 0, n_bins - 1)
        bins += n_bins * nod[start + np.nonzero(common)[0]]
        out = []
        for i in range(len(names)):
            pixels = int(part[f"mask{i}"].sum())
            if i not in restrict:
                empty = np.empty(0)
                out.append(Sums.of(empty, empty, np.empty(0, dtype=np.int64), shape, pixels))
                continue
            after = part[f"error{i}"][common].astype(np.float64)
            if "before" in part:
                own = part["before"][common].astype(np.float64)
            else:
                other = part[f"other{i}"][common].astype(np.float64)
                own = np.sqrt(np.maximum(after**2 - other**2, 0))
            ratio = np.divide(after, own, out=np.full_like(after, np.nan), where=own > 0)
            out.append(Sums.of(part[f"z{i}"][common], ratio, bins, shape, pixels))
        return out

    def sweep(restrict: list[int]) -> list[Sums]:
        columns = [str(name) for name in table.data_vars]
        return reduce_blocks(table, columns, block, _add_lists, restrict)

    sums = sweep(list(range(len(names))))
    present = [i for i, s in enumerate(sums) if s.pixels > 0]
    if 0 < len(present) < len(names):
        # One set without a single pixel has nothing in common with the others.
        sums = sweep(present)
    return {name: s.statistics() for name, s in zip(names, sums, strict=True)}


def _add_lists(a: list[Sums], b: list[Sums]) -> list[Sums]:
    return [x + y for x, y in zip(a, b, strict=True)]


def compare(
    master: xr.Dataset,
    nods: xr.Dataset | None = None,
    *,
    heldout: xr.Dataset | None = None,
    given: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    nod_errors: str = "auto",
) -> pd.DataFrame:
    """The same pixels with master and nodded subtraction, under one error convention. Computes.

    All residuals are divided by the propagated error: the pixel's own and its background's.

    Parameters
    ----------
    master
        Residuals of `subtract`.
    nods
        Residuals of `subtract_nods` of the same slits.
    heldout
        Residuals of ``subtract(..., heldout=True)``.
    given
        Residuals of products whose background others subtracted, or several of them by the names
        of their rows. Their slits are matched by exposure, detector and slitlet, their pixels by
        detector row and column; a warning says which slits have no partner. Any of the others may
        be such products, too, but `master`.
    nod_errors
        What is done with the errors of such products: ``"given"``: nothing; ``"grow"``: those of
        the other nods are added, which the official pipeline leaves out of ERR; ``"auto"``: grow
        them where they are those of single pixels.

    Returns
    -------
    pandas.DataFrame
        A row a method, the columns of `STATISTICS`: number of pixels, median, standard deviation
        (of ``|z| < 40``), scaled MAD, skewness, fractions beyond 3 and 5 sigma, fractions under-
        (residual > 0) and over-subtracted, median growth of the error, and ``stack``: the rms over
        wavelength bins of two detector pixels of ``sum(z) / sqrt(n)`` of residuals within 5 sigma,
        1 for perfect residuals and true errors. In nodded subtraction each pixel is subtracted
        from its partner and the partner from it: their sums cancel, and ``stack`` is small
        whatever the sky. ``stack_nod`` takes the bins of each nod apart, and is the one to
        compare with nodding. ``attrs["nod_errors"]`` says what was done with errors, by row.

    Raises
    ------
    DatasetError
        Where the datasets do not have the same slits, or `master` holds no background.
    ParameterError
        On an unknown word of `nod_errors`.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=3, slits=4, background_slits=2))
    >>> res = mx.residuals(mx.subtract(ds, mx.fit_master(ds)))
    >>> table = mx.compare(res, mx.residuals(mx.subtract_nods(ds)))
    >>> list(table.index)
    ['master', 'nods']
    """
    if "background" not in master:
        raise DatasetError(
            "no result to compare with",
            expected="residuals of subtract as `master`",
            found=f"slits marked {' '.join(np.unique(master['subtracted'].values.astype(str)))}",
            remedy="give already subtracted products as `nods` or `given`",
        )
    sets: dict[str, xr.Dataset | None] = {"master": master, "nods": nods, "heldout": heldout}
    # A dataset is a mapping, too.
    sets |= {"given": given} if given is None or isinstance(given, xr.Dataset) else given
    present = {name: ds for name, ds in sets.items() if ds is not None}
    how = {}
    for name, ds in present.items():
        if "background" not in ds:
            present[name] = residuals(laid_on(master, residuals(ds), errors=nod_errors))
            how[name] = present[name].attrs["nod_errors"]
    before = before_subtraction(master)["error"] if how else None
    rows = summarize_sky(present, before)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(STATISTICS))
    table.attrs["nod_errors"] = how
    return table.astype({"n": int})
