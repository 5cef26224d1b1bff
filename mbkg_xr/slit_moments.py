"""Moments by slit, as a dataset: made of pixels once, saved, put together, taken apart.

`mbkg_xr.moments` says what they are. They are all that a fit needs of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .applied import (
    applied_state,
    applied_terms,
    digest,
    of_slits,
    require_applied,
    shared,
)
from .blas import serial_blas
from .blocks import map_slits
from .errors import DatasetError
from .moments import N_MOMENTS, PassState, block_sums, time_factors
from .packing import planes
from .schema import MOMENT_DIMS, SLIT_IDENTITY, refuse_subtracted, slit_label, validate
from .select import centres_only
from .sources import pass_columns, per_unit_sky
from .spans import SpanGrid
from .terms import Terms

__all__ = [
    "MOMENT_NAMES",
    "identities",
    "is_moments",
    "merge_moments",
    "moments",
    "require_moments",
    "subtract_moments",
]

#: What is summed over the pixels of a slit and span; w the weight, y the flux, t the position.
MOMENT_NAMES = (
    *(f"w t^{m}" for m in range(7)),
    *(f"w y t^{m}" for m in range(4)),
    "w y^2",
    "used",
    "selected",
)


@serial_blas
def moments(ds: xr.Dataset, master: xr.Dataset) -> xr.Dataset:
    """What a fit needs of the pixels: moments of each slit and span of one detector pixel. Lazy.

    The selected pixels are weighted and clipped as in the last pass of the fit that made `master`,
    and the slits' scales, profiles and pedestals taken out, so that ``fit_master(moments)`` with
    the master's own model gives that master again, and with any other what the pixels would have
    given with these weights.

    Parameters
    ----------
    ds
        A slit dataset with ``selected``: that which the master was fitted to, or further slits.
        Of slits that the master does not know nothing is taken out but the profile.
    master
        From `fit_master`.

    Returns
    -------
    xarray.Dataset
        ``moments(slit, span, moment)``, float64, in chunks of as many slits as `ds`: sums over
        pixels, with w = 1 / variance in units of flux^-2, ``w t^0`` to ``w t^6``, ``w y t^0`` to
        ``w y t^3``, ``w y^2``, and the numbers of pixels ``used`` and ``selected``, t being the
        position in the span between ``edge`` n and n + 1, 0 to 1 (normal equations of least
        squares in the powers of t on each span). With all coordinates of the slits, and what was
        applied: variables of the same names as in the master. `save` saves it, `open_program`
        opens it lazily.

    Raises
    ------
    DatasetError
        Where nothing is selected, units or configuration differ, or the master does not say how
        it weighted.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> m = mx.moments(ds, master)
    >>> m.moments.dims, m.sizes["moment"]
    (('slit', 'span', 'moment'), 14)
    >>> again = mx.fit_master(m)        # reads no pixel
    >>> int(again.attrs["n_pixels"]) == int(master.attrs["n_pixels"])
    True
    """
    validate(ds)
    refuse_subtracted(ds)
    if "selected" not in ds:
        raise DatasetError(
            "no pixels are marked as sky",
            expected="variable selected",
            remedy="call select_background first",
        )
    grid = require_applied(master)
    _same(
        ("units", ds["flux"].attrs["units"], master.attrs["units"]),
        ("configuration", ds.attrs["configuration"], master.attrs["configuration"]),
    )
    sky = per_unit_sky(centres_only(ds) if master.attrs.get("rows") == "centres" else ds)
    values = map_slits(
        _moment_block,
        sky["flux"],
        np.arange(ds.sizes["slit"]),
        sky["selected"].data,
        *(sky[name].data for name in pass_columns(sky)),
        dtype=np.float64,
        plane=(grid.size, len(MOMENT_NAMES)),
        time_factor=time_factors(ds),
        state=applied_state(master),
        grid=grid,
        terms=applied_terms(ds, master),
    )
    out = shared(master)
    about = {"long_name": "sums over the pixels of a slit and span", "units": "see moment"}
    slits = {c: ds[c] for c in ds.coords if ds[c].dims == ("slit",)}
    out = out.assign({"moments": (MOMENT_DIMS, values, about)}).assign(of_slits(ds, master))
    out = out.assign_coords({**slits, "moment": ("moment", np.array(MOMENT_NAMES))})
    out.attrs["weights_sha256"] = digest(shared(master), shared(master).attrs)
    return out


def _moment_block(
    of_slit: NDArray,
    selected: NDArray,
    *columns: NDArray,
    time_factor: NDArray[np.float64],
    state: PassState,
    grid: SpanGrid,
    terms: Terms,
) -> NDArray[np.float64]:
    slits = of_slit.ravel()
    whole = slice(0, slits.size)
    group, time, own = np.arange(slits.size), time_factor[slits], terms.part(slits)
    parts = [(whole, planes(selected, columns, grid))]
    sums = block_sums(whole, parts, group, time, state, grid, slits.size, own)
    out = np.empty((slits.size, grid.size, len(MOMENT_NAMES)))
    out[..., :N_MOMENTS] = sums.moments
    out[..., N_MOMENTS], out[..., N_MOMENTS + 1] = sums.count, sums.selected
    return out


def is_moments(ds: xr.Dataset) -> bool:
    """Whether a dataset is one of `moments`."""
    return "moments" in ds and ds["moments"].dims == MOMENT_DIMS


def merge_moments(first: xr.Dataset, *others: xr.Dataset) -> xr.Dataset:
    """Put moments of different slits together: new exposures beside former ones. Lazy.

    Parameters
    ----------
    first, *others
        From `moments`, all made with the same master: weights and scales are then alike.

    Returns
    -------
    xarray.Dataset
        Moments of all slits, in the order given.

    Raises
    ------
    DatasetError
        Where a slit is in more than one of them, or configurations, units, spans or weights
        differ.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=3, slits=4, background_slits=2))
    >>> old, new = ds.isel(slit=slice(8)), ds.isel(slit=slice(8, None))
    >>> master = mx.fit_master(old)
    >>> both = mx.merge_moments(mx.moments(old, master), mx.moments(new, master))
    >>> mx.fit_master(both).sizes["slit"]
    12
    """
    every = [first, *others]
    for one in every:
        require_moments(one)
        _check_alike(first, one)
    seen: dict[tuple, int] = {}
    for number, one in enumerate(every):
        for index, key in enumerate(identities(one)):
            if key in seen:
                raise DatasetError(
                    "a slit is in more than one set of moments",
                    where=slit_label(one, index),
                    expected="every slit once",
                    found=f"sets {seen[key] + 1} and {number + 1}",
                    remedy="take it out of one of them (subtract_moments)",
                )
            seen[key] = number
    if not others:
        return first
    # What is common is the same in all; only what has a row a slit is put together.
    rows = [_part(one, per_slit=True) for one in every]
    joined = xr.concat(rows, "slit", coords="minimal", compat="override", join="override")
    common = _part(first, per_slit=False)
    return common.assign(joined.data_vars).assign_coords(joined.coords).assign_attrs(first.attrs)


def _part(ds: xr.Dataset, *, per_slit: bool) -> xr.Dataset:
    return ds.drop_vars([n for n, v in ds.variables.items() if ("slit" in v.dims) != per_slit])


def subtract_moments(whole: xr.Dataset, out: xr.Dataset | Sequence[tuple]) -> xr.Dataset:
    """Take slits out of moments again. Lazy.

    Parameters
    ----------
    whole
        From `moments` or `merge_moments`.
    out
        The slits to take out: any dataset that holds them (moments, or slits with their pixels),
        or ``(exposure, detector, slitlet)`` of each.

    Returns
    -------
    xarray.Dataset
        Moments of all other slits.

    Raises
    ------
    DatasetError
        Where `whole` has no such slit, or would have none left.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> m = mx.moments(ds, mx.fit_master(ds))
    >>> mx.subtract_moments(m, ds.isel(slit=[0])).sizes["slit"]
    7
    """
    require_moments(whole)
    keys = identities(out) if isinstance(out, xr.Dataset) else [tuple(key) for key in out]
    ours = identities(whole)
    strangers = sorted(set(keys) - set(ours))
    if strangers:
        raise DatasetError(
            "cannot take out a slit that is not there",
            where=str(strangers[0]),
            expected=f"{' '.join(SLIT_IDENTITY)} of one of {len(ours)} slits",
            found=f"{len(strangers)} others",
        )
    gone = set(keys)
    left = [i for i, key in enumerate(ours) if key not in gone]
    if not left:
        raise DatasetError("no slit would be left", found=f"all {len(ours)} taken out")
    return whole.isel(slit=left)


def require_moments(ds: xr.Dataset) -> None:
    """Refuse what is not from `moments`."""
    if not is_moments(ds):
        raise DatasetError(
            "not a dataset of moments",
            expected=f"variable moments with dims {MOMENT_DIMS}, from mx.moments",
            found=" ".join(map(str, ds.data_vars)) or "no variables",
        )


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    _same(
        ("configuration", first.attrs["configuration"], other.attrs["configuration"]),
        ("units", first.attrs["units"], other.attrs["units"]),
    )
    if not np.array_equal(first["edge"].values, other["edge"].values):
        raise DatasetError(
            "moments of other spans",
            expected=f"{first.sizes['span']} spans from {float(first['edge'][0])} um",
            found=f"{other.sizes['span']} spans from {float(other['edge'][0])} um",
            remedy="make both with the same master, or give both fits the same grid",
        )
    if first.attrs["weights_sha256"] != other.attrs["weights_sha256"]:
        raise DatasetError(
            "moments made with another master",
            expected=f"weights {first.attrs['weights_sha256'][:12]}",
            found=f"weights {other.attrs['weights_sha256'][:12]}",
            remedy="make both with the same master: mx.moments(slits, master)",
        )


def _same(*pairs: tuple[str, Any, Any]) -> None:
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise DatasetError(
                f"{name} differ" if name.endswith("s") else f"{name} differs",
                expected=ours,
                found=theirs,
                remedy=f"use data of the same {name}",
            )


def identities(ds: xr.Dataset) -> list[tuple]:
    return list(zip(*(ds[c].values.tolist() for c in SLIT_IDENTITY), strict=True))
