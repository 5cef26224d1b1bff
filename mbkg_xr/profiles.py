"""How a source's light lies along the slit, found from the slit's own pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["profile_of_slit", "running_median"]

_STEP = 0.05  # of yrel, a quarter of a detector row: coarser tables widen the profile
_WINDOW = 31  # columns of the running median
_FAINTEST = 10.0  # signal to noise of all columns together, for a profile to be found


def running_median(image: NDArray, window: int = _WINDOW) -> NDArray[np.float64]:
    """Median along each row over a window, of what is finite; NaN where nothing is.

    Examples
    --------
    >>> running_median(np.array([[1.0, 9.0, 2.0, np.nan, 3.0]]), 3).tolist()
    [[5.0, 2.0, 5.5, 2.5, 3.0]]
    """
    half = window // 2
    padded = np.pad(image, ((0, 0), (half, half)), constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=1)
    ordered = np.sort(views, axis=2)  # NaN last
    n = np.isfinite(ordered).sum(axis=2)
    ends = np.stack([np.maximum(n - 1, 0) // 2, n // 2], axis=2)
    middle = np.take_along_axis(ordered, np.minimum(ends, 2 * half), axis=2).mean(axis=2)
    return np.where(n > 0, middle, np.nan)


def profile_of_slit(
    flux: NDArray, inverse: NDArray, yrel: NDArray, window: tuple[float, float]
) -> NDArray[np.float64]:
    """Share of a source's light in each pixel, up to a factor: a table in yrel for all columns.

    Parameters
    ----------
    flux, inverse, yrel
        ``(y, x)``; 1 / variance is 0 in pixels that are not to be used.
    window
        In yrel.

    Returns
    -------
    numpy.ndarray
        ``(y, x)``; 1 everywhere where the source is too faint to tell.
    """
    flat = np.ones(flux.shape)
    use = inverse > 0
    f = np.where(use, np.nan_to_num(flux.astype(np.float64)), 0)
    # The spectrum, roughly: what each row has of it is the profile.
    count = use.sum(axis=0)
    column = np.divide(f.sum(axis=0), count, out=np.full(count.size, np.nan), where=count > 0)
    spectrum = np.nan_to_num(np.maximum(running_median(column[None])[0], 0))
    total, weight = (inverse * f * spectrum).sum(), (inverse * spectrum**2).sum()
    if not weight > 0 or total / np.sqrt(weight) < _FAINTEST:
        return flat
    edges = np.linspace(*window, max(round((window[1] - window[0]) / _STEP), 2) + 1)
    index = np.clip(np.searchsorted(edges, yrel, side="right") - 1, 0, edges.size - 2)[use]
    size = edges.size - 1
    model = np.broadcast_to(spectrum, flux.shape)
    over = np.bincount(index, (inverse * f * model)[use], size)
    under = np.bincount(index, (inverse * model**2)[use], size)
    filled = under > 0
    table = np.maximum(over[filled] / under[filled], 0)
    if not table.any():
        return flat
    middle = (0.5 * (edges[1:] + edges[:-1]))[filled]
    return np.nan_to_num(np.interp(yrel, middle, table))
