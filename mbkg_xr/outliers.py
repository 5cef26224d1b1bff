"""Pixels that stand out from the running median along the dispersion.

The kernel keeps the window's fluxes sorted while it slides along the row, and looks at the errors
only where the flux is off by enough to matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits
from .errors import ParameterError
from .kernels import kernel
from .quality import do_not_use, flag_mask
from .schema import PIXEL_DIMS, validate

__all__ = ["MedianFilter", "find_in_slit", "flag_outliers"]

_ROWS = 4  # rows on either side that tell a line of the sky from an outlier
_FEWEST_ROWS = 3


def flag_outliers(
    ds: xr.Dataset, *, window: int = 15, threshold: float = 6.0, apply: bool = False
) -> xr.Dataset:
    """Find pixels that stand out from the running median along the dispersion. Lazy.

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
    rule = MedianFilter.of(ds, window, threshold)
    outlier, median = map_slits(
        _find_block,
        ds["flux"],
        *[ds[n].data for n in ("flux", "error", "quality")],
        dtype=(np.bool_, np.float32),
        rule=rule,
    )
    return rule.applied(ds, outlier, median) if apply else rule.flagged(ds, outlier)


class MedianFilter:
    """A running median and what is done with what stands out from it.

    Attributes
    ----------
    half
        Half the window, in pixels.
    threshold
        In units of the running error.
    bad
        Flags of pixels that do not count.
    bit
        The flag that outliers get.
    """

    def __init__(self, half: int, threshold: float, bad: int, bit: int):
        self.half, self.threshold, self.bad, self.bit = half, threshold, bad, bit

    @classmethod
    def of(cls, ds: xr.Dataset, window: int, threshold: float) -> MedianFilter:
        """For a dataset's flags.

        Raises
        ------
        ParameterError
            If the window is not an odd number of at least 3, or the threshold not positive.
        """
        if not isinstance(window, int | np.integer) or window < 3 or window % 2 == 0:
            raise ParameterError(
                "unusable median window", expected="an odd number of pixels >= 3", found=window
            )
        if not threshold > 0:
            raise ParameterError(
                "unusable threshold", expected="a positive number", found=threshold
            )
        names = set(ds["quality"].attrs["flag_meanings"].split())
        bit = flag_mask(ds["quality"], ["OUTLIER" if "OUTLIER" in names else "DO_NOT_USE"])
        return cls(int(window) // 2, float(threshold), do_not_use(ds["quality"]), int(bit))

    def flagged(self, ds: xr.Dataset, outlier: Any) -> xr.Dataset:
        """The dataset with the flag set where `outlier`."""
        old = ds["quality"]
        arrays = [old.data, outlier]
        quality = map_slits(_set_flag, ds["flux"], *arrays, dtype=old.dtype, bit=self.bit)
        return ds.assign_coords(quality=(PIXEL_DIMS, quality, old.attrs))

    def applied(self, ds: xr.Dataset, outlier: Any, median: Any) -> xr.Dataset:
        """The dataset with the median in place of the flux where `outlier`."""
        arrays = [outlier, median, ds["flux"].data]
        flux = map_slits(np.where, ds["flux"], *arrays, dtype=np.float32)
        done = f"outliers replaced by the median of {2 * self.half + 1} pixels"
        return ds.assign(flux=(PIXEL_DIMS, flux, {**ds["flux"].attrs, "median_filter": done}))


def _set_flag(quality: NDArray, where: NDArray, *, bit: int) -> NDArray:
    return quality | np.where(where, quality.dtype.type(bit), quality.dtype.type(0))


def _find_block(
    flux: NDArray, error: NDArray, quality: NDArray, *, rule: MedianFilter
) -> tuple[NDArray, NDArray]:
    outlier = np.zeros(flux.shape, dtype=np.bool_)
    median = np.full(flux.shape, np.nan, dtype=np.float32)
    bad = quality.dtype.type(rule.bad)
    _find(flux, error, quality, bad, rule.half, rule.threshold, outlier, median)
    return outlier, median


_TOGETHER = 8  # pixels of a row whose least error is kept


@kernel
def _find(flux, error, quality, bad, half, threshold, outlier, median):  # pragma: no cover
    usable = np.empty(flux.shape[1:], dtype=np.bool_)
    for s in range(flux.shape[0]):
        find_usable(flux[s], error[s], quality[s], bad, usable)
        find_in_slit(
            flux[s], error[s], usable, usable, half, threshold, outlier[s], median[s], True
        )


@kernel
def find_usable(flux, error, quality, bad, usable):  # pragma: no cover - compiled
    """Pixels of one slit that the median counts."""
    for i in range(flux.shape[0]):
        for j in range(flux.shape[1]):
            good = (quality[i, j] & bad) == 0
            usable[i, j] = good and np.isfinite(flux[i, j]) and error[i, j] > 0


@kernel
def _insert(buffer, n, value):  # pragma: no cover - compiled
    p = n
    while p > 0 and buffer[p - 1] > value:
        buffer[p] = buffer[p - 1]
        p -= 1
    buffer[p] = value


@kernel
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


@kernel
def _remove(buffer, n, value):  # pragma: no cover - compiled
    p = 0
    while buffer[p] != value:
        p += 1
    for k in range(p, n - 1):
        buffer[k] = buffer[k + 1]


@kernel
def _median(buffer, n):  # pragma: no cover - compiled
    return 0.5 * (buffer[(n - 1) // 2] + buffer[n // 2])


@kernel
def find_in_slit(
    flux, error, usable, judged, half, threshold, outlier, median, wanted
):  # pragma: no cover - compiled
    """Outliers among the judged pixels of one slit, and the running median there, where wanted."""
    ny, nx = flux.shape
    values = np.empty(2 * half + 1)
    errors = np.empty(2 * half + 1)
    clean = np.empty(nx)
    smallest = np.empty(nx // _TOGETHER + 1)
    for i in range(ny):
        smallest[:] = np.inf
        for j in range(nx):
            clean[j] = np.float64(flux[i, j]) if usable[i, j] else np.nan
            if usable[i, j]:
                k = j // _TOGETHER
                smallest[k] = min(smallest[k], np.float64(error[i, j]))
        n, first, last = 0, 0, 0  # the window holds the n usable pixels from first up to last
        for j in range(nx):
            if not (judged[i, j] and usable[i, j]):
                continue
            low, high = max(0, j - half), min(nx, j + half + 1)
            if not wanted:
                # No outlier is so near the median. That it is near takes counting, not sorting.
                near = np.inf
                for k in range(low // _TOGETHER, (high - 1) // _TOGETHER + 1):
                    near = min(near, smallest[k])
                near *= threshold * (1 - 1e-9)
                bottom, top = clean[j] - near, clean[j] + near
                below, above, held = 0, 0, 0
                for k in range(low, high):
                    below += clean[k] < bottom
                    above += clean[k] > top
                    held += clean[k] == clean[k]
                if max(below, above) <= (held - 1) // 2:
                    continue
            if low >= last:
                n, first, last = 0, low, low
            while first < low:
                if usable[i, first]:
                    _remove(values, n, np.float64(flux[i, first]))
                    n -= 1
                first += 1
            while last < high:
                if usable[i, last]:
                    _insert(values, n, np.float64(flux[i, last]))
                    n += 1
                last += 1
            middle = _median(values, n)
            median[i, j] = middle
            off = abs(flux[i, j] - middle)
            least = np.float64(error[i, j])
            for k in range(low, high):
                if usable[i, k] and error[i, k] < least:
                    least = np.float64(error[i, k])
            if not off > threshold * least:
                continue
            m = 0
            for k in range(low, high):
                if usable[i, k]:
                    _insert(errors, m, np.float64(error[i, k]))
                    m += 1
            # The pixel's own error follows its own counts: measured by that, low pixels would
            # be thrown out sooner than high ones, and the sky come out high.
            allowed = threshold * _median(errors, m)
            outlier[i, j] = off > allowed and not _in_line(flux, usable, i, j, allowed)
