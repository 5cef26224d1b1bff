"""The range of wavelength and yrel in each slit: by it a query passes over chunks."""

from __future__ import annotations

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import DatasetError
from .schema import PIXEL_DIMS, slit_label

__all__ = ["check_ranges", "has_ranges", "range_names", "slit_ranges"]

_RANGED = ("wavelength", "yrel")


def range_names(name: str) -> tuple[str, str]:
    """The coordinates that hold a pixel coordinate's smallest and largest value in each slit."""
    return f"{name}_min", f"{name}_max"


def slit_ranges(ds: xr.Dataset) -> xr.Dataset:
    """Add the range of wavelength and yrel in each slit. Lazy.

    `query` leaves slits unread that cannot hold what is asked for. Stores that `mbkg-xr run` writes
    have these coordinates.

    Parameters
    ----------
    ds
        A slit dataset.

    Returns
    -------
    xarray.Dataset
        With coordinates ``wavelength_min``, ``wavelength_max``, ``yrel_min`` and ``yrel_max``
        (slit,) float32, of pixels inside the slit; NaN for a slit without any.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.slit_ranges(mx.simulate_program(exposures=1, slits=2, background_slits=1))
    >>> bool((ds.wavelength_min < ds.wavelength_max).all())
    True
    """
    added = {}
    for name in _RANGED:
        attrs = {k: v for k, v in ds[name].attrs.items() if k == "units"}
        for new, which in zip(range_names(name), ("smallest", "largest"), strict=True):
            values = _of_slits(ds[name].data, largest=which == "largest")
            added[new] = ("slit", values, {"long_name": f"{which} {name} in the slit", **attrs})
    return ds.assign_coords(added)


def _of_slits(data: NDArray | da.Array, *, largest: bool) -> NDArray | da.Array:
    if not isinstance(data, da.Array):
        return _extreme(data, largest)
    whole = data.rechunk({1: -1, 2: -1})
    return da.map_blocks(
        _extreme, whole, largest, dtype=data.dtype, drop_axis=[1, 2], meta=np.empty(0, data.dtype)
    )


def _extreme(block: NDArray, largest: bool) -> NDArray:
    # These pass over NaN, and give it without a warning for a slit without any pixel.
    return (np.fmax if largest else np.fmin).reduce(block, axis=(1, 2))


def check_ranges(ds: xr.Dataset, name: str, slits: NDArray, values: NDArray) -> None:
    """Make sure that pixels lie where their slits' ranges say.

    Parameters
    ----------
    ds
        The ranges and what names the slits.
    name
        The pixel coordinate.
    slits, values
        Slits, and what was read of them, (slit, y, x).

    Raises
    ------
    DatasetError
        Where they do not: the ranges are of other pixels, and slits would be passed over wrongly.
    """
    low, high = (ds[n].values[slits] for n in range_names(name))
    found = _extreme(values, False), _extreme(values, True)
    with np.errstate(invalid="ignore"):
        wrong = (found[0] < low) | (found[1] > high)
        wrong |= np.isfinite(found[0]) & ~(np.isfinite(low) & np.isfinite(high))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise DatasetError(
            f"{name} does not lie within the slit's range",
            where=slit_label(ds, int(slits[i])),
            expected=f"{range_names(name)[0]} {low[i]:g} to {range_names(name)[1]} {high[i]:g}",
            found=f"{found[0][i]:g} to {found[1][i]:g}",
            remedy=f"{name} was changed after the ranges were found: call slit_ranges again",
        )


def has_ranges(ds: xr.Dataset, name: str) -> bool:
    """Whether the ranges of a pixel coordinate are at hand, in memory."""
    return all(
        n in ds.coords and ds[n].dims == PIXEL_DIMS[:1] and not isinstance(ds[n].data, da.Array)
        for n in range_names(name)
    )
