"""Which pixels are sky: quality flags, a median filter, yrel windows, empty shutters.

Everything here is lazy: the functions add variables to the dataset and compute nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numba
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits
from .errors import ParameterError, SelectionError
from .quality import DEFAULT_EXCLUDE, do_not_use, flag_mask
from .schema import (
    PIXEL_DIMS,
    SHUTTER_CENTRES,
    occupied_shutters,
    refuse_subtracted,
    slit_label,
    validate,
)

__all__ = ["flag_outliers", "near_one_of", "select_background", "why_empty"]

Windows = Sequence[tuple[float, float]]

_ROWS = 4  # rows on either side that tell a line of the sky from an outlier
_FEWEST_ROWS = 3


# ------------------------------------------------------------------------------------------------
# The median filter


def flag_outliers(
    ds: xr.Dataset, *, window: int = 15, threshold: float = 6.0, apply: bool = False
) -> xr.Dataset:
    """Find pixels that stand out from the running median along the dispersion.

    Parameters
    ----------
    ds
        A slit dataset.
    window
        Width of the running median in pixels along the row, odd. Unusable pixels do not count.
    threshold
        A pixel is an outlier where ``|flux - median| > threshold * median error``, both medians
        running over the window, unless the rows beside it show the same: then it is a line.
    apply
        Replace the outliers' flux by the median, as a median filter would, and flag nothing.
        Replacing correlates pixels and rounds lines: leave it off for a fit.

    Returns
    -------
    xarray.Dataset
        With OUTLIER set in ``quality`` (DO_NOT_USE, where the flag table has no OUTLIER).

    Raises
    ------
    ParameterError
        If the window is not an odd number of at least 3, or the threshold not positive.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    >>> flagged = mx.flag_outliers(ds)
    >>> bool(((flagged.quality & 16) > 0).any())
    True
    """
    validate(ds)
    return _median_filter(ds, None, window=window, threshold=threshold, apply=apply)


def _median_filter(
    ds: xr.Dataset, judged: Any, *, window: int, threshold: float, apply: bool
) -> xr.Dataset:
    """`flag_outliers` for all pixels, or for those in the mask `judged` only."""
    if not isinstance(window, int | np.integer) or window < 3 or window % 2 == 0:
        raise ParameterError(
            "unusable median window", expected="an odd number of pixels >= 3", found=window
        )
    if not threshold > 0:
        raise ParameterError("unusable threshold", expected="a positive number", found=threshold)
    names = set(ds["quality"].attrs["flag_meanings"].split())
    bit = flag_mask(ds["quality"], ["OUTLIER" if "OUTLIER" in names else "DO_NOT_USE"])
    arrays = [ds[n].data for n in ("flux", "error", "quality")] + (
        [] if judged is None else [judged]
    )
    options: dict[str, Any] = {
        "window": int(window),
        "threshold": float(threshold),
        "bad": do_not_use(ds["quality"]),
    }
    if apply:
        flux = map_slits(_replace_block, ds["flux"], *arrays, dtype=np.float32, **options)
        done = f"outliers replaced by the median of {window} pixels"
        return ds.assign(flux=(PIXEL_DIMS, flux, {**ds["flux"].attrs, "median_filter": done}))
    quality = map_slits(
        _flag_block, ds["flux"], *arrays, dtype=ds["quality"].dtype, bit=bit, **options
    )
    return ds.assign_coords(quality=(PIXEL_DIMS, quality, ds["quality"].attrs))


def _flag_block(flux, error, quality, judged=None, *, bit, **options):
    outlier, _ = _median_block(flux, error, quality, judged, **options)
    return quality | np.where(outlier, quality.dtype.type(bit), quality.dtype.type(0))


def _replace_block(flux, error, quality, judged=None, **options):
    outlier, median = _median_block(flux, error, quality, judged, **options)
    return np.where(outlier, median, flux)


def _median_block(flux, error, quality, judged, *, window, threshold, bad):
    outlier = np.zeros(flux.shape, dtype=np.bool_)
    median = np.full(flux.shape, np.nan, dtype=np.float32)
    usable = np.isfinite(flux) & (error > 0) & ((quality & quality.dtype.type(bad)) == 0)
    judged = usable if judged is None else judged & usable
    _running_median(flux, error, usable, judged, window // 2, threshold, outlier, median)
    return outlier, median


@numba.njit(nogil=True)
def _insert(buffer, n, value):  # pragma: no cover - compiled
    p = n
    while p > 0 and buffer[p - 1] > value:
        buffer[p] = buffer[p - 1]
        p -= 1
    buffer[p] = value


@numba.njit(nogil=True)
def _in_line(flux, usable, i, j, allowed):  # pragma: no cover - compiled
    """Whether the rows beside a pixel show the same there: then it is the sky that has a line.

    Lines are tilted by a fraction of a column from row to row, so that a neighbour's pixel and the
    two beside it bound what a line may be.
    """
    lows, highs = np.empty(2 * _ROWS), np.empty(2 * _ROWS)
    n = 0
    for k in range(max(0, i - _ROWS), min(flux.shape[0], i + _ROWS + 1)):
        if k == i or not usable[k, j]:
            continue
        low = high = np.float64(flux[k, j])
        for m in range(max(0, j - 1), min(flux.shape[1], j + 2)):
            if usable[k, m]:
                low, high = min(low, np.float64(flux[k, m])), max(high, np.float64(flux[k, m]))
        _insert(lows, n, low)
        _insert(highs, n, high)
        n += 1
    if n < _FEWEST_ROWS:
        return False
    bottom = 0.5 * (lows[(n - 1) // 2] + lows[n // 2])
    top = 0.5 * (highs[(n - 1) // 2] + highs[n // 2])
    return bottom - allowed <= flux[i, j] <= top + allowed


@numba.njit(nogil=True)
def _running_median(
    flux, error, usable, judged, half, threshold, outlier, median
):  # pragma: no cover - compiled
    values = np.empty(2 * half + 1)
    errors = np.empty(2 * half + 1)
    for s in range(flux.shape[0]):
        for i in range(flux.shape[1]):
            for j in range(flux.shape[2]):
                if not judged[s, i, j]:
                    continue
                n = 0
                for k in range(max(0, j - half), min(flux.shape[2], j + half + 1)):
                    if usable[s, i, k]:
                        _insert(values, n, np.float64(flux[s, i, k]))
                        _insert(errors, n, np.float64(error[s, i, k]))
                        n += 1
                middle = 0.5 * (values[(n - 1) // 2] + values[n // 2])
                # The pixel's own error follows its own counts: measured by that, low pixels would
                # be thrown out sooner than high ones, and the sky come out high.
                usual = 0.5 * (errors[(n - 1) // 2] + errors[n // 2])
                median[s, i, j] = middle
                outlier[s, i, j] = abs(flux[s, i, j] - middle) > threshold * usual and not _in_line(
                    flux[s], usable[s], i, j, threshold * usual
                )


# ------------------------------------------------------------------------------------------------
# Sky pixels


def select_background(
    ds: xr.Dataset,
    *,
    yrel: Windows = SHUTTER_CENTRES,
    exclude: Iterable[str] | None = None,
    median_window: int | None = 15,
    median_threshold: float = 6.0,
    median_apply: bool = False,
    slits: str | Sequence[int] = "all",
) -> xr.Dataset:
    """Mark the pixels that see only sky.

    Parameters
    ----------
    ds
        A slit dataset.
    yrel
        Windows ``(low, high)`` in shutter pitches; a pixel must lie in one of them. The default
        keeps to the shutter centres, clear of the bars.
    exclude
        Quality flags that keep a pixel out; by default those of
        `mbkg_xr.quality.DEFAULT_EXCLUDE` that the product defines.
    median_window
        Window of `flag_outliers`, in pixels; None does without it.
    median_threshold
        Its threshold, in units of the running error.
    median_apply
        Replace outliers among the sky pixels by the median instead of leaving them out, as the
        seed's recipe does.
    slits
        ``"all"`` uses sky slits and the source-free shutters of science slits, ``"background"``
        sky slits only; a list names the slitlets to use.

    Returns
    -------
    xarray.Dataset
        With the boolean ``selected`` added, and outliers among the sky pixels flagged in
        ``quality``; the shutter of a source is left as it was. Nothing computed.

    Raises
    ------
    ParameterError
        On a reversed yrel window or an unknown flag name.
    SelectionError
        Where no slit is left.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    >>> ds = mx.select_background(ds)
    >>> ds.selected.dims
    ('slit', 'y', 'x')
    """
    validate(ds)
    refuse_subtracted(ds)
    windows = _check_windows(yrel)
    if exclude is None:
        bits = flag_mask(ds["quality"], DEFAULT_EXCLUDE, missing="ignore")
    else:
        names = exclude.split(",") if isinstance(exclude, str) else exclude
        bits = flag_mask(ds["quality"], [name.strip() for name in names])
    use = _slits_to_use(ds, slits)
    selected = map_slits(
        _select_block,
        ds["flux"],
        *[ds[n].data for n in ("flux", "error", "wavelength", "yrel", "quality")],
        use,
        occupied_shutters(ds),
        dtype=np.bool_,
        windows=windows,
        bits=bits,
    )
    attrs = {
        "long_name": "pixel sees only sky",
        "yrel_windows": np.asarray(windows).ravel().tolist(),
        "excluded_flags": int(bits),
        "slits": slits if isinstance(slits, str) else ",".join(map(str, slits)),
    }
    if "response" in ds.coords:
        arrays = [selected, ds["response"].data]
        selected = map_slits(_with_response, ds["flux"], *arrays, dtype=np.bool_)
    if median_window is not None:
        # Only sky is judged here: in a source's shutter what stands out may be its emission line.
        filtered = _median_filter(
            ds, selected, window=median_window, threshold=median_threshold, apply=median_apply
        )
        if not median_apply:
            arrays = [selected, ds["quality"].data, filtered["quality"].data]
            selected = map_slits(_without_new_flags, ds["flux"], *arrays, dtype=np.bool_)
        ds = filtered
    return ds.assign(selected=(PIXEL_DIMS, selected, attrs))


def _with_response(sky, response):
    return sky & (response > 0) & np.isfinite(response)


def _without_new_flags(sky, quality, flagged):
    return sky & (flagged == quality)


def _check_windows(yrel: Windows) -> NDArray[np.float64]:
    try:
        windows = np.asarray(yrel, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        windows = np.empty((0, 2))
    if windows.size == 0 or not np.all(windows[:, 0] < windows[:, 1]):
        raise ParameterError(
            "unusable yrel window",
            where="yrel",
            expected="pairs (low, high) with low < high, in shutter pitches",
            found=yrel,
            remedy="order each pair, as in [(-1.2, -0.8), (-0.2, 0.2), (0.8, 1.2)]",
        )
    return windows


def _slits_to_use(ds: xr.Dataset, slits: str | Sequence[int]) -> NDArray[np.bool_]:
    """Whether to use each slit."""
    background = ds["is_background"].values
    # A science slit that does not say where its source sits has no shutter known to be empty.
    known = background | np.isfinite(ds["source_shutter"].values)
    if isinstance(slits, str):
        choices = {"all": known, "background": background}
        if slits not in choices:
            raise ParameterError(
                "unknown choice of slits",
                expected="'all', 'background' or a list of slitlets",
                found=slits,
            )
        use = choices[slits]
    else:
        if not len(slits):
            raise ParameterError("no slitlet named", where="slits", expected="one or more")
        unknown = sorted(set(slits) - set(ds["slitlet"].values.tolist()))
        if unknown:
            raise ParameterError("slitlets not in the dataset", where="slits", found=unknown)
        # A slitlet its user calls sky is sky in all shutters, unless a source is known there.
        use = np.isin(ds["slitlet"].values, list(slits))
    if not use.any():
        raise SelectionError(
            "no slit with a shutter known to be sky",
            where=slit_label(ds, 0) + (" and others" if ds.sizes["slit"] > 1 else ""),
            expected="slits with is_background set, or with a known source shutter",
            found=f"{int(background.sum())} sky slits and {int(known.sum())} usable of {use.size}",
            remedy="set is_background or source_shutter, or name the slitlets with slits=[...]",
        )
    return use


@numba.njit(nogil=True)
def near_one_of(yrel, shutters):  # pragma: no cover - compiled
    """Whether a pixel looks through one of the shutters; NaN stands for none."""
    near = False
    for k in range(shutters.size):
        near |= abs(yrel - shutters[k]) <= 0.5
    return near


def _select_block(flux, error, wavelength, yrel, quality, use, occupied, *, windows, bits):
    out = np.zeros(flux.shape, dtype=np.bool_)
    masked = (quality & quality.dtype.type(bits)) != 0
    occupied = np.ascontiguousarray(occupied[:, 0])
    _select_pixels(flux, error, wavelength, yrel, masked, use.ravel(), occupied, windows, out)
    return out


@numba.njit(nogil=True)
def _select_pixels(
    flux, error, wavelength, yrel, masked, use, occupied, windows, out
):  # pragma: no cover - compiled
    for s in range(flux.shape[0]):
        if not use[s]:
            continue
        for i in range(flux.shape[1]):
            for j in range(flux.shape[2]):
                if masked[s, i, j] or not (error[s, i, j] > 0) or not np.isfinite(error[s, i, j]):
                    continue
                if not (np.isfinite(flux[s, i, j]) and np.isfinite(wavelength[s, i, j])):
                    continue
                r = yrel[s, i, j]
                if near_one_of(r, occupied[s]):
                    continue
                for k in range(windows.shape[0]):
                    if windows[k, 0] <= r <= windows[k, 1]:
                        out[s, i, j] = True
                        break


def why_empty(ds: xr.Dataset, index: int) -> SelectionError:
    """Say why nothing of one slit is selected. Reads that slit's pixels."""
    one = ds.isel(slit=[index]).load()
    inside = np.isfinite(one["wavelength"].values) & np.isfinite(one["yrel"].values)
    unflagged = inside & (
        (one["quality"].values & one["quality"].dtype.type(do_not_use(one["quality"]))) == 0
    )
    error = one["error"].values
    where = slit_label(ds, index)
    steps = (
        ("no pixel with a wavelength", inside, "wavelength and yrel inside the slit"),
        ("all pixels flagged", unflagged, "some pixels without DO_NOT_USE"),
        ("no pixel with a flux", unflagged & np.isfinite(one["flux"].values), "finite flux"),
        ("NaN errors", unflagged & np.isfinite(error), "finite errors"),
        ("zero errors", unflagged & (error > 0), "errors above zero"),
    )
    for cause, left, expected in steps:
        if not left.any():
            return SelectionError(
                cause,
                where=where,
                expected=expected,
                found=f"0 of {int(inside.sum())} in-slit pixels",
                remedy="leave this slit out or mend the product",
            )
    return SelectionError(
        "no sky pixel left after selection",
        where=where,
        expected="pixels in the yrel windows, away from the source's shutter",
        found=f"{int(unflagged.sum())} unflagged pixels, none selected",
        remedy="widen the yrel windows, or exclude fewer flags",
    )
