"""Variances of weighted sums of pixels: errors that go together, added up as they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blas import serial_blas
from .drift import Clock, has_drift, master_at
from .errors import DatasetError
from .master import identity, master_grid
from .parts import has_parts, master_part, part_index
from .quality import do_not_use
from .select import centres_only
from .slit_terms import SlitTerms, ranks_in, slit_terms
from .sums import By, Groups, weights_of
from .weighted import Master
from .weighted_columns import RESULTS, of_all, weighted_columns

__all__ = ["propagate"]

Array = NDArray[np.float64]


@serial_blas
def propagate(
    ds: xr.Dataset,
    master: xr.Dataset,
    *,
    weights: xr.DataArray | None = None,
    by: By | None = None,
) -> xr.Dataset:
    """Weighted sums of subtracted pixels, and their variances with all that pixels share. Lazy.

    The error of a sum is not the root of the sum of its pixels' squared errors: the noise of pixels
    is independent, but a master that is wrong is wrong in many pixels at once. For weights h,
    pixels y, backgrounds b and the errors of what the backgrounds are made of,

        var(sum h y) = sum h^2 v + |F^T J^T h|^2 + ...,

    J the derivatives of the backgrounds by the master at the nodes along wavelength, and F the
    factor of its covariance (``covariance_factor`` of the master). The same for the coefficients of
    each slit's scale with their covariance, for each shutter's own level, for the systematic floor
    (independent from shutter to shutter and between wavelength bins of 16 detector pixels, the same
    within: so it is found), and for the bar-shadow profile, by the factor of its covariance. Pixels
    that the master was fitted to share their own noise with it, so that residuals of the fitted sky
    scatter less than others: ``shared``.

    Parameters
    ----------
    ds
        From `subtract`, with that very master; held out or not.
    master
        From `fit_master`.
    weights
        Weights (slit, y, x) of the pixels, perhaps with one dim more: a set of weights for each of
        several sums. None, 0 and NaN leave a pixel out. None at all: 1 everywhere.
    by
        None: one sum of all pixels. Names of what sums are taken apart by: ``"slit"``, a slit
        coordinate (one sum a value), or, as a mapping, the name of a slit or pixel variable with
        bin edges (``{"slit": None, "wavelength": edges}``); pixels outside the bins are left out.

    Returns
    -------
    xarray.Dataset
        ``value`` and ``variance`` in the units of the weights times the flux (and squared), over
        the weights' further dim and the dims of `by`; the parts of the variance:
        ``variance_noise``, ``_master``, ``_scale``, ``_floor``, ``_profile``, and ``_shared``,
        which is negative; ``n_pixels``; and ``n_missing``: pixels with a weight that are left out,
        for they have no flux, error or background, or are flagged DO_NOT_USE. NaN for sums without
        pixels.

    Raises
    ------
    DatasetError
        Where the dataset is not a result of that master, or the master keeps no factor.
    ParameterError
        On names that are not there, bins that do not rise, and weights of other dims.

    Notes
    -----
    Held-out backgrounds come from masters without a slit's group; their errors are larger, pixel by
    pixel, but go together as the whole master's do, and are taken to be the same in all slits.
    Scales of slits are taken to be independent of each other and of the master.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> sums = mx.propagate(mx.subtract(ds, master), master, by={"wavelength": [1.0, 2.0, 3.0]})
    >>> sums.value.dims, bool((sums.variance > sums.variance_noise).all())
    (('wavelength',), True)
    """
    _check(ds, master)
    if "selected" in ds and master.attrs.get("rows") == "centres":
        ds = centres_only(ds)
    groups = Groups.of(ds, by)
    weights, extra = weights_of(ds, weights)
    data = _results(ds, master, groups, weights)
    counts = tuple(ds.sizes[d] if d == "slit" else n for d, n in groups.sizes.items())
    dims = tuple(groups.sizes)
    if extra is not None and weights is not None:
        dims = (*dims[: groups.local], extra, *dims[groups.local :])
        counts = (*counts[: groups.local], weights.sizes[extra], *counts[groups.local :])
    units = ds["flux"].attrs["units"]
    out = xr.Dataset(coords=groups.coords)
    if groups.local:
        out = out.assign_coords({k: v for k, v in ds.coords.items() if v.dims == ("slit",)})
    if extra is not None and weights is not None and extra in weights.coords:
        out = out.assign_coords({extra: weights[extra]})
    for i, name in enumerate(RESULTS):
        attrs = {"long_name": _long_name(name)}
        if not name.startswith("n_"):
            attrs["units"] = units if name == "value" else f"({units})2"
        out[name] = (dims, data[..., i].reshape(counts), attrs)
    out.attrs = {"configuration": ds.attrs["configuration"], **identity(master)}
    return out


def _long_name(name: str) -> str:
    if name.startswith("variance_"):
        return f"part of the variance: {name.removeprefix('variance_')}"
    return {
        "value": "weighted sum of pixels",
        "variance": "variance of the sum",
        "n_pixels": "pixels in the sum",
        "n_missing": "pixels with a weight but without a value",
    }[name]


def _check(ds: xr.Dataset, master: xr.Dataset) -> None:
    master_grid(master)
    method = str(ds.attrs.get("background_method", "none"))
    if "background" not in ds or not method.startswith("master"):
        raise DatasetError(
            "errors can be propagated for what a master was subtracted from only",
            expected="a result of subtract",
            found=f"background: {method}",
        )
    if "covariance_factor" not in master:
        raise DatasetError(
            "the master does not say how its errors go together",
            expected="variable covariance_factor",
            found=" ".join(map(str, master.data_vars)),
            remedy="fit it anew",
        )
    theirs, ours = ds.attrs.get("background_sha256"), identity(master)["background_sha256"]
    if theirs is not None and theirs != ours:
        raise DatasetError(
            "another master was subtracted from these slits",
            expected=f"master {theirs[:12]}",
            found=f"master {ours[:12]}",
            remedy="give the master that subtract was given",
        )


def _results(
    ds: xr.Dataset, master: xr.Dataset, groups: Groups, weights: xr.DataArray | None
) -> Any:
    """``(..., len(RESULTS))``: results by slit, or of all slits together."""
    heldout = ds.attrs["background_method"] == "master (held out)"
    if has_drift(master):
        return _at_times(ds, master, groups, weights, heldout)
    if not has_parts(master):
        return _of_one(ds, groups, weights, _made_ready(ds, master, heldout))
    # Slits of parts without a master have no background, whichever master is asked.
    which = np.maximum(part_index(ds, master), 0)
    pieces, order = [], []
    for index in np.unique(which):
        rows = np.flatnonzero(which == index)
        one, some = ds.isel(slit=rows), None if weights is None else weights.isel(slit=rows)
        ready = _made_ready(one, master_part(master, master["part"].values[index]), heldout)
        pieces.append(_of_one(one, groups.of_slits(rows), some, ready))
        order.append(rows)
    if groups.local:
        place = np.argsort(np.concatenate(order), kind="stable")
        both: Any = np.concatenate(pieces)
        return both[place]
    # Masters of different parts err independently.
    whole: Any = np.nansum(np.stack(pieces), axis=0)
    filled = whole[:, RESULTS.index("n_pixels")] > 0
    counted = np.array([name.startswith("n_") for name in RESULTS])
    return np.where(filled[:, None] | counted, whole, np.nan)


def _at_times(
    ds: xr.Dataset,
    master: xr.Dataset,
    groups: Groups,
    weights: xr.DataArray | None,
    heldout: bool,
) -> Any:
    """Results under a sky that changes: each slit with the sky of its own time.

    The factors of the sky's covariance at all times are of the same few errors.
    """
    mjd, which = np.unique(ds["mjd"].values, return_inverse=True)
    clock = Clock.of_master(master)
    pieces, order = [], []
    for index, time in enumerate(mjd):
        rows = np.flatnonzero(which == index)
        one, some = ds.isel(slit=rows), None if weights is None else weights.isel(slit=rows)
        # Slits of a time outside the fit have no background, whichever master is asked.
        near = float(np.clip(time, clock.middle - clock.half, clock.middle + clock.half))
        ready = _made_ready(one, master_at(master, near), heldout)
        pieces.append(weighted_columns(one, groups.of_slits(rows), some, ready))
        order.append(rows)
    if not groups.local:
        return of_all(pieces, ready)
    both: Any = np.concatenate(pieces)
    return both[np.argsort(np.concatenate(order), kind="stable")]


def _of_one(ds: xr.Dataset, groups: Groups, weights: xr.DataArray | None, ready: Master) -> Any:
    found = weighted_columns(ds, groups, weights, ready)
    return found if groups.local else of_all([found], ready)


def _made_ready(ds: xr.Dataset, master: xr.Dataset, heldout: bool) -> Master:
    grid = master_grid(master)
    factor = master["covariance_factor"].values.astype(np.float64)
    rank = ranks_in(ds, master)
    n = ds.sizes["slit"]
    ratio, group = np.ones((1, *factor.shape[:2])), np.zeros(n, dtype=np.int64)
    if heldout:
        usual = master["sky_error"].values
        ratio = master["heldout_error"].values / np.where(usual > 0, usual, np.nan)
        group = master["group"].values[rank].astype(np.int64)
    fitted = np.ones((n, 1), dtype=np.bool_)
    if "shutter_used" in master:
        fitted = master["shutter_used"].values[rank]
    fitted = fitted & (rank >= 0)[:, None] & (master["n_used"].values[rank] > 0)[:, None]
    return Master(
        grid=grid,
        factor=factor.reshape(-1, factor.shape[2]),
        ratio=np.where(np.isfinite(ratio), ratio, 1.0),
        group=group,
        terms=slit_terms(ds, master, heldout=heldout) or SlitTerms.none(n, grid.size),
        fitted=fitted,
        heldout=heldout,
        bad=do_not_use(ds["quality"]),
    )
