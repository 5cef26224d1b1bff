"""Detector pixels that are bad in several exposures: found from residuals, flagged on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import binom

from .blas import serial_blas
from .blocks import map_slits, reduce_blocks
from .errors import DatasetError, ParameterError
from .quality import flag_mask, flag_table
from .schema import PIXEL_DIMS
from .shutters import open_shutters, sky_shutters
from .terms import FIRST_SHUTTER, N_SHUTTERS

__all__ = ["find_bad_pixels", "flag_pixels"]

_SIDE = 4096  # detector rows and columns are less than this
_REACH = 5  # pixels on either side that tell what a residual should be
_FLAGS = ("DO_NOT_USE", "OTHER_BAD_PIXEL")


@serial_blas
def find_bad_pixels(
    residuals: xr.Dataset, *, threshold: float = 4.0, false: float = 1.0
) -> pd.DataFrame:
    """Find detector pixels whose residuals are bad in several exposures. Computes.

    A residual is bad where it differs by `threshold` from the median of its neighbours along the
    dispersion: what is wrong with the sky or the slit is not the pixel's fault. A detector pixel
    seen n times and bad k times is listed where so many are unlikely at the usual rate of bad
    residuals (binomial): so unlikely that `false` pixels would be expected by chance. Nothing is
    applied: see `flag_pixels`.

    Parameters
    ----------
    residuals
        From `residuals`, best of slits held out of the fit; the rows of open shutters without a
        source are looked at.
    threshold
        In units of the scaled median absolute deviation of each slit's residuals.
    false
        Number of good pixels that may be listed by chance.

    Returns
    -------
    pandas.DataFrame
        A row a detector pixel, the least likely first: ``detector``, ``x``, ``y`` (column and row,
        from 0), ``n_seen`` and ``n_bad`` (exposures), ``median_z`` (of the bad residuals) and
        ``probability``, that a good pixel is bad so often. ``attrs["rate"]`` is the usual rate of
        bad residuals, ``attrs["n_pixels"]`` the number of detector pixels seen.

    Raises
    ------
    DatasetError
        Where there are no residuals.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=4, hot_fraction=0.001)
    >>> ds = mx.select_background(ds)
    >>> table = mx.find_bad_pixels(mx.residuals(mx.subtract(ds, mx.fit_master(ds))))
    >>> bool((table.n_bad >= 2).all())
    True
    """
    if "residual" not in residuals:
        raise DatasetError(
            "no residuals",
            expected="a dataset from residuals()",
            found=" ".join(map(str, residuals.data_vars)),
        )
    for name, value in (("threshold", threshold), ("false", false)):
        if not value > 0:
            raise ParameterError("unusable limit", where=name, expected="above 0", found=value)
    detectors = np.unique(residuals["detector"].values)
    bits = flag_mask(residuals["quality"], ("DO_NOT_USE", "FLUX_ESTIMATED"), missing="ignore")
    sky = sky_shutters(residuals) & open_shutters(residuals["n_shutters"].values)
    corner = _keys(residuals, detectors, 0, 0)

    def block(start: int, arrays: Sequence[Any], shared: Any) -> _Events:
        z, quality, yrel = arrays
        part = slice(start, start + z.shape[0])
        shutter = np.nan_to_num(np.floor(yrel + 0.5), nan=-99).astype(int) - FIRST_SHUTTER
        inside = (shutter >= 0) & (shutter < N_SHUTTERS)
        at = np.arange(z.shape[0])[:, None, None]
        good = inside & sky[part][at, np.clip(shutter, 0, N_SHUTTERS - 1)] & np.isfinite(z)
        good &= (quality & quality.dtype.type(bits)) == 0
        return _Events.of(np.where(good, z, np.nan), corner[part], threshold)

    names = ["residual", "quality", "yrel"]
    events = reduce_blocks(residuals, names, block, lambda a, b: a + b)
    return _table(events, detectors, threshold, false)


def flag_pixels(ds: xr.Dataset, table: pd.DataFrame) -> xr.Dataset:
    """Flag detector pixels in every slit that sees them. Lazy.

    Parameters
    ----------
    ds
        A slit dataset.
    table
        From `find_bad_pixels`, or any with the columns ``detector``, ``x`` and ``y``.

    Returns
    -------
    xarray.Dataset
        With DO_NOT_USE, and OTHER_BAD_PIXEL where the product has that flag, set in ``quality``,
        and those pixels taken from ``selected`` where there is one. ``attrs["flagged_pixels"]`` is
        the number of detector pixels that were given.

    Raises
    ------
    DatasetError
        Where a column is missing.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=2, slits=2, background_slits=2).load()
    >>> x, y = int(ds.x_start[0]) + 10, int(ds.y_start[0]) + 2
    >>> flagged = mx.flag_pixels(ds, pd.DataFrame({"detector": ["NRS1"], "x": [x], "y": [y]}))
    >>> int(flagged.quality[0, 2, 10]) & 1
    1
    """
    missing = [c for c in ("detector", "x", "y") if c not in table]
    if missing:
        raise DatasetError(
            "not a table of pixels",
            expected="columns detector, x and y",
            found=" ".join(map(str, table.columns)),
        )
    detectors = np.unique(ds["detector"].values)
    theirs = table[np.isin(table["detector"].to_numpy(dtype=str), detectors.astype(str))]
    rank = np.searchsorted(detectors.astype(str), theirs["detector"].to_numpy(dtype=str))
    keys = (rank * _SIDE + theirs["y"].to_numpy()) * _SIDE + theirs["x"].to_numpy()
    known = flag_table(ds["quality"])
    bits = sum(known[name] for name in _FLAGS if name in known)
    corner = _keys(ds, detectors, 0, 0)
    quality = map_slits(
        _flagged, ds["flux"], ds["quality"].data, corner, dtype=ds["quality"].dtype,
        keys=np.sort(keys), bits=bits,
    )  # fmt: skip
    out = ds.assign_coords(quality=(PIXEL_DIMS, quality, ds["quality"].attrs))
    if "selected" in ds:
        unusable = map_slits(
            _selected, ds["flux"], ds["selected"].data, corner, dtype=np.bool_, keys=np.sort(keys)
        )
        out["selected"] = (PIXEL_DIMS, unusable, ds["selected"].attrs)
    return out.assign_attrs(flagged_pixels=len(table))


def _keys(ds: xr.Dataset, detectors: NDArray, row: int, column: int) -> NDArray[np.int64]:
    """One number for the detector pixel of each slit's corner."""
    rank = np.searchsorted(detectors, ds["detector"].values)
    return (rank * _SIDE + ds["y_start"].values + row) * _SIDE + ds["x_start"].values + column


def _listed(corner: NDArray, shape: tuple[int, ...], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """``(slit, y, x)``: the pixel is among the keys."""
    at = np.arange(shape[1])[:, None] * _SIDE + np.arange(shape[2])
    return np.isin(corner + at, keys, kind="sort")


def _flagged(quality: NDArray, corner: NDArray, *, keys: NDArray, bits: int) -> NDArray:
    zero = quality.dtype.type(0)
    return quality | np.where(_listed(corner, quality.shape, keys), quality.dtype.type(bits), zero)


def _selected(selected: NDArray, corner: NDArray, *, keys: NDArray) -> NDArray:
    return selected & ~_listed(corner, selected.shape, keys)


class _Events:
    """Detector pixels seen, how often, and their bad residuals; adds."""

    def __init__(self, keys: NDArray, seen: NDArray, bad_keys: NDArray, bad_z: NDArray):
        self.keys, self.seen, self.bad_keys, self.bad_z = keys, seen, bad_keys, bad_z

    @classmethod
    def of(cls, z: NDArray, corner: NDArray[np.int64], threshold: float) -> _Events:
        slit, y, x = np.nonzero(np.isfinite(z))
        keys, seen = np.unique(corner[slit] + y * _SIDE + x, return_counts=True)
        values = z[slit, y, x]
        limit = threshold * _spread(z)[slit]
        # Only what is far off needs its neighbours looked at.
        far = np.abs(values) > limit / 2
        away = values[far] - _about(z, slit[far], y[far], x[far])
        bad = np.abs(away) > limit[far]
        return cls(
            keys, seen, (corner[slit] + y * _SIDE + x)[far][bad], away[bad].astype(np.float32)
        )

    def __add__(self, other: _Events) -> _Events:
        keys, inverse = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        seen = np.bincount(inverse, np.concatenate([self.seen, other.seen])).astype(np.int64)
        return _Events(
            keys,
            seen,
            np.concatenate([self.bad_keys, other.bad_keys]),
            np.concatenate([self.bad_z, other.bad_z]),
        )


def _spread(z: NDArray) -> NDArray:
    """``(slit,)``: scaled MAD of each slit; of none where there are too few pixels to tell."""
    out = np.ones(z.shape[0])
    for index, slit in enumerate(z):
        values = slit[np.isfinite(slit)]
        if values.size > 20:
            out[index] = 1.4826 * np.median(np.abs(values - np.median(values)))
    return out


def _about(z: NDArray, slit: NDArray, y: NDArray, x: NDArray) -> NDArray:
    """Median of the pixels beside each along its row, the pixel itself left out; 0 without any."""
    offsets = np.r_[-_REACH:0, 1 : _REACH + 1]
    columns = x[:, None] + offsets
    inside = (columns >= 0) & (columns < z.shape[2])
    beside = z[slit[:, None], y[:, None], np.clip(columns, 0, z.shape[2] - 1)]
    beside = np.where(inside, beside, np.nan)
    out = np.zeros(x.size)
    some = np.isfinite(beside).any(axis=1)
    out[some] = np.nanmedian(beside[some], axis=1)
    return out


def _table(events: _Events, detectors: NDArray, threshold: float, false: float) -> pd.DataFrame:
    order = np.lexsort((events.bad_z, events.bad_keys))
    keys, start, bad = np.unique(events.bad_keys[order], return_index=True, return_counts=True)
    seen = events.seen[np.searchsorted(events.keys, keys)]
    total = int(events.seen.sum())
    rate = bad.sum() / max(total, 1)
    probability = np.ones(keys.size)
    for _ in range(5):
        # What is bad time and again does not belong to the usual rate.
        probability = binom.sf(bad - 1, seen, max(rate, 1 / max(total, 1)))
        usual = probability * events.keys.size > false
        rate = bad[usual].sum() / max(total - seen[~usual].sum(), 1)
    listed = np.flatnonzero((probability * events.keys.size <= false) & (bad > 1))
    z = events.bad_z[order]
    middle = [float(np.median(z[start[i] : start[i] + bad[i]])) for i in listed]
    rank, rest = np.divmod(keys[listed], _SIDE * _SIDE)
    table = pd.DataFrame(
        {
            "detector": detectors[rank].astype(str),
            "x": rest % _SIDE,
            "y": rest // _SIDE,
            "n_seen": seen[listed],
            "n_bad": bad[listed],
            "median_z": middle,
            "probability": probability[listed],
        }
    )
    table.attrs |= {"rate": float(rate), "n_pixels": int(events.keys.size)}
    table.attrs["threshold"] = float(threshold)
    return table.sort_values(["probability", "detector", "y", "x"], ignore_index=True)
