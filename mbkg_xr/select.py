"""Which pixels are sky: quality flags, a median filter, yrel windows, empty shutters.

One kernel decides all of it, in one visit of each pixel.

Everything here is lazy: the functions add variables to the dataset and compute nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits, reduce_blocks
from .errors import ParameterError, SelectionError
from .kernels import kernel
from .outliers import MedianFilter, find_in_slit, find_usable
from .quality import DEFAULT_EXCLUDE, do_not_use, flag_mask
from .schema import (
    CENTRE,
    OPEN,
    PIXEL_DIMS,
    SHUTTER_CENTRES,
    SLIT_IDENTITY,
    occupied_shutters,
    refuse_subtracted,
    slit_label,
    validate,
)

__all__ = ["centres_only", "near_one_of", "select_background", "why_empty"]

Windows = Sequence[tuple[float, float]]


def select_background(
    ds: xr.Dataset,
    *,
    yrel: Windows | None = None,
    exclude: Iterable[str] | None = None,
    median_window: int | None = 15,
    median_threshold: float = 6.0,
    median_apply: bool = False,
    slits: str | Sequence[int] = "all",
) -> xr.Dataset:
    """Mark the pixels that see only sky. Lazy.

    Parameters
    ----------
    ds
        A slit dataset.
    yrel
        Windows ``(low, high)`` in shutter pitches; a pixel must lie in one of them. None: in slits
        with a source the shutter centres (`SHUTTER_CENTRES`), for next to a source its wings would
        be taken for sky; in sky slits all rows within 0.4 of an open shutter's centre, twice as
        many: how much light the bars leave them, the fit finds and takes out (`fit_master` with
        ``profile=True``; where it looks for no profile, it keeps to the centres).
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
    DatasetError
        Where `ds` does not keep the contract of slit datasets, or its background is subtracted
        already.
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
    windows = _usual_windows(ds) if yrel is None else _check_windows(yrel)
    if exclude is None:
        bits = flag_mask(ds["quality"], DEFAULT_EXCLUDE, missing="ignore")
    else:
        names = exclude.split(",") if isinstance(exclude, str) else exclude
        bits = flag_mask(ds["quality"], [name.strip() for name in names])
    use = _slits_to_use(ds, slits)
    rule = None
    if median_window is not None:
        rule = MedianFilter.of(ds, median_window, median_threshold)
    names = ["flux", "error", "wavelength", "yrel", "quality"]
    names += ["response"] if "response" in ds.coords else []
    sky, outlier, median = map_slits(
        _select_block,
        ds["flux"],
        use,
        occupied_shutters(ds),
        np.broadcast_to(windows, (ds.sizes["slit"], *windows.shape[-2:])),
        *[ds[n].data for n in names],
        dtype=(np.bool_, np.bool_, np.float32),
        bits=int(bits),
        rule=rule,
        apply=median_apply,
    )
    attrs = {
        "long_name": "pixel sees only sky",
        "yrel_windows": np.unique(windows.reshape(-1, 2), axis=0).ravel().tolist(),
        "rows": "usual" if yrel is None else "as asked",
        "excluded_flags": int(bits),
        "slits": slits if isinstance(slits, str) else ",".join(map(str, slits)),
    }
    if rule is not None:
        ds = rule.applied(ds, outlier, median) if median_apply else rule.flagged(ds, outlier)
    return ds.assign(selected=(PIXEL_DIMS, sky, attrs))


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


def _usual_windows(ds: xr.Dataset) -> NDArray[np.float64]:
    """``(slit, window, 2)``: shutter centres; in sky slits all rows that are not on a bar."""
    count = ds["n_shutters"].values.astype(np.int64)
    wide = ds["is_background"].values & (count > 0)
    # yrel is 0 at the middle shutter; of an even number, at the one before the middle. Shutters
    # past the last open one repeat it.
    shutter = np.arange(max(int(count[wide].max(initial=0)), len(SHUTTER_CENTRES)))
    last = np.where(wide, count, 1)[:, None]
    opened = np.minimum(shutter, last - 1) - (last - 1) // 2
    rows = np.stack([opened - OPEN, opened + OPEN], axis=2)
    centres = np.array(SHUTTER_CENTRES)[np.minimum(shutter, len(SHUTTER_CENTRES) - 1)]
    return np.where(wide[:, None, None], rows, centres)


def centres_only(ds: xr.Dataset) -> xr.Dataset:
    """The selection without the rows off the centres that `select_background` took unasked. Lazy.

    A fit that knows no profile along the slit cannot use them.
    """
    if ds["selected"].attrs.get("rows") != "usual":
        return ds
    old = ds["selected"]
    near = map_slits(_near_centre, old, old.data, ds["yrel"].data, dtype=np.bool_)
    attrs = {**old.attrs, "yrel_windows": np.ravel(SHUTTER_CENTRES).tolist(), "rows": "centres"}
    return ds.assign(selected=(PIXEL_DIMS, near, attrs))


def _near_centre(selected: NDArray, yrel: NDArray) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return selected & (np.abs(yrel - np.round(yrel)) <= CENTRE + 1e-6)


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


@kernel
def near_one_of(yrel, shutters):  # pragma: no cover - compiled
    """Whether a pixel looks through one of the shutters; NaN stands for none."""
    near = False
    for k in range(shutters.size):
        near |= abs(yrel - shutters[k]) <= 0.5
    return near


def _select_block(
    use: NDArray,
    occupied: NDArray,
    windows: NDArray,
    flux: NDArray,
    error: NDArray,
    wavelength: NDArray,
    yrel: NDArray,
    quality: NDArray,
    response: NDArray | None = None,
    *,
    bits: int,
    rule: MedianFilter | None,
    apply: bool,
) -> tuple[NDArray, NDArray, NDArray]:
    """Sky, outliers among what would be sky, and the running median (only where it is applied)."""
    sky, outlier = np.zeros(flux.shape, dtype=np.bool_), np.zeros(flux.shape, dtype=np.bool_)
    median = np.empty(flux.shape if apply else (flux.shape[0], 1, 1), dtype=np.float32)
    kind = quality.dtype.type
    _select_pixels(
        flux, error, wavelength, yrel, quality, kind(bits),
        np.empty((0, 0, 0), np.float32) if response is None else response,
        use.ravel(), np.ascontiguousarray(occupied[:, 0]), np.ascontiguousarray(windows),
        0 if rule is None else rule.half,
        0.0 if rule is None else rule.threshold,
        kind(0 if rule is None else rule.bad),
        apply, sky, outlier, median,
    )  # fmt: skip
    return sky, outlier, median


@kernel
def _select_pixels(
    flux, error, wavelength, yrel, quality, bits, response, use, occupied, windows,
    half, threshold, bad, apply, sky, outlier, median,
):  # pragma: no cover - compiled  # fmt: skip
    ny, nx = flux.shape[1:]
    usable = np.empty((ny, nx), dtype=np.bool_)
    unused = np.empty((ny, nx), dtype=np.float32)
    for s in range(flux.shape[0]):
        if not use[s]:
            continue
        for i in range(ny):
            for j in range(nx):
                e = error[s, i, j]
                if (quality[s, i, j] & bits) != 0 or not (e > 0) or not np.isfinite(e):
                    continue
                if not (np.isfinite(flux[s, i, j]) and np.isfinite(wavelength[s, i, j])):
                    continue
                if response.shape[0] > 0 and not (0 < response[s, i, j] < np.inf):
                    continue
                r = yrel[s, i, j]
                if near_one_of(r, occupied[s]):
                    continue
                for k in range(windows.shape[1]):
                    if windows[s, k, 0] <= r <= windows[s, k, 1]:
                        sky[s, i, j] = True
                        break
        if half == 0:
            continue
        # Only sky is judged here: in a source's shutter what stands out may be its emission line.
        find_usable(flux[s], error[s], quality[s], bad, usable)
        find_in_slit(
            flux[s], error[s], usable, sky[s], half, threshold, outlier[s],
            median[s] if apply else unused, apply,
        )  # fmt: skip
        if apply:
            continue
        for i in range(ny):
            for j in range(nx):
                if outlier[s, i, j]:
                    sky[s, i, j] = False


def why_empty(ds: xr.Dataset, slits: Sequence[int] | NDArray[np.integer]) -> list[SelectionError]:
    """Say why nothing of some slits (increasing) is selected. Reads their pixels."""
    names = ["wavelength", "yrel", "quality", "flux", "error"]
    rows = np.asarray(slits, dtype=np.int64)
    bits = ds["quality"].dtype.type(do_not_use(ds["quality"]))

    def block(start: int, arrays: Sequence[NDArray], shared: Any) -> NDArray[np.int64]:
        own = rows[slice(*rows.searchsorted([start, start + len(arrays[0])]))] - start
        return _left([array[own] for array in arrays], bits)

    left = reduce_blocks(ds, names, block, lambda a, b: np.concatenate([a, b]), rows=rows)
    some = ds[[*SLIT_IDENTITY]].isel(slit=rows)
    return [_reason(slit_label(some, i), *counts) for i, counts in enumerate(left.tolist())]


def _left(arrays: Sequence[NDArray], bits: Any) -> NDArray[np.int64]:
    """``(slit, 5)``: pixels in the slit, and those left after each step."""
    wavelength, yrel, quality, flux, error = arrays
    inside = np.isfinite(wavelength) & np.isfinite(yrel)
    unflagged = inside & ((quality & bits) == 0)
    steps = (
        inside,
        unflagged,
        unflagged & np.isfinite(flux),
        unflagged & np.isfinite(error),
        unflagged & (error > 0),
    )
    return np.stack([step.sum(axis=(1, 2)) for step in steps], axis=1)


_STEPS = (
    ("no pixel with a wavelength", "wavelength and yrel inside the slit"),
    ("all pixels flagged", "some pixels without DO_NOT_USE"),
    ("no pixel with a flux", "finite flux"),
    ("NaN errors", "finite errors"),
    ("zero errors", "errors above zero"),
)


def _reason(where: str, *left: int) -> SelectionError:
    for (cause, expected), count in zip(_STEPS, left, strict=True):
        if not count:
            return SelectionError(
                cause,
                where=where,
                expected=expected,
                found=f"0 of {left[0]} in-slit pixels",
                remedy="leave this slit out or mend the product",
            )
    return SelectionError(
        "no sky pixel left after selection",
        where=where,
        expected="pixels in the yrel windows, away from the source's shutter",
        found=f"{left[1]} unflagged pixels, none selected",
        remedy="widen the yrel windows, or exclude fewer flags",
    )
