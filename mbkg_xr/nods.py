"""Data minus the other nods.

A chunk of slits needs the chunks that hold the same slitlets at other nods, and no others: each is
read and masked once, and handed to those that ask for it.
"""

from __future__ import annotations

import uuid
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from .blocks import Call, Constant, map_slits, unpacked
from .kernels import kernel
from .quality import DEFAULT_EXCLUDE, flag_mask
from .schema import PIXEL_DIMS, occupied_shutters, refuse_subtracted, validate
from .select import near_one_of
from .subtract import taken_off

__all__ = ["nod_errors", "subtract_nods"]


def subtract_nods(ds: xr.Dataset) -> xr.Dataset:
    """Subtract nods: from each pixel the mean of the same detector pixel at the other nods. Lazy.

    While the telescope nods the shutters stay and the source moves from shutter to shutter. A nod
    that has the source in the very shutter a pixel looks through is left out, and so are unusable
    pixels. With n of N nods left, the error grows by ``sqrt(1 + 1/n)``: 1.22 for sky slitlets of
    three nods, 1.41 for the sky shutters of science slitlets.

    Parameters
    ----------
    ds
        A slit dataset.

    Returns
    -------
    xarray.Dataset
        As from `subtract`. Slits without another nod have no background.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> mx.subtract_nods(ds).attrs["background_method"]
    'nods'
    """
    validate(ds)
    refuse_subtracted(ds)
    found = _other_nods(ds, occupied_shutters(ds))
    units = {"units": ds["flux"].attrs["units"]}
    names_attrs = {
        "background": {"long_name": "mean of the other nods", **units},
        "background_error": {"long_name": "standard error of the mean of the other nods", **units},
    }
    projected = xr.Dataset(
        {n: (PIXEL_DIMS, f, a) for f, (n, a) in zip(found, names_attrs.items(), strict=True)}
    )
    out = taken_off(ds, projected)
    out.attrs["background_method"] = "nods"
    return out


def nod_errors(ds: xr.Dataset) -> xr.DataArray:
    """Standard error of the mean of the other nods, the shutter of the source included. Lazy.

    That is what a nod subtraction adds to the errors that takes whole exposures from each other, as
    the official pipeline does, which leaves ERR as it was.

    Parameters
    ----------
    ds
        A slit dataset, before subtraction.

    Returns
    -------
    xarray.DataArray
        (slit, y, x), NaN where no other nod has a usable pixel.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> from mbkg_xr.nods import nod_errors
    >>> ds = mx.simulate_program(exposures=3, slits=2, background_slits=2)
    >>> share = (nod_errors(ds) / ds.error.where(ds.error > 0)).compute()
    >>> round(float(share.median()), 1)  # 1 / sqrt(2) for two others
    0.7
    """
    nowhere = np.full((ds.sizes["slit"], 1, 1), np.nan, dtype=np.float32)
    _, error = _other_nods(ds, nowhere)
    return xr.DataArray(error, dims=PIXEL_DIMS, attrs=dict(ds["error"].attrs))


def _other_nods(ds: xr.Dataset, occupied: NDArray) -> tuple[Any, Any]:
    """Mean of the other nods and its standard error, without some shutters."""
    bits = flag_mask(ds["quality"], DEFAULT_EXCLUDE, missing="ignore")
    masked = map_slits(
        _usable_block,
        ds["flux"],
        *[ds[n].data for n in ("flux", "error", "yrel", "quality")],
        occupied,
        dtype=np.float32,
        outputs=2,
        bits=int(bits),
    )
    partners = _Partners(ds)
    yrel = ds["yrel"].data
    if not isinstance(masked, da.Array):
        everything = slice(0, ds.sizes["slit"])
        return _nod_block(partners.of(everything), [(0, everything.stop)], yrel, masked)
    chunks = masked.chunks[0]
    yrel = yrel if isinstance(yrel, da.Array) else da.from_array(yrel, name=False)
    yrel = yrel.rechunk(masked.chunks[:3])
    starts = np.concatenate([[0], np.cumsum(chunks)])
    name = f"nods-{uuid.uuid4().hex}"
    layer: dict = {}
    for i in range(len(chunks)):
        asked = partners.of(slice(int(starts[i]), int(starts[i + 1])))
        needed = np.unique(np.searchsorted(starts, asked.slits, side="right") - 1).tolist()
        bounds = [(int(starts[k]), int(starts[k + 1])) for k in needed]
        layer[name, i, 0, 0] = (
            Call(_nod_block),
            (Constant(asked),),
            (Constant(bounds),),
            (yrel.name, i, 0, 0),
            *[(masked.name, k, 0, 0, 0) for k in needed],
        )
    needs: list[Any] = [masked, yrel]
    graph = HighLevelGraph.from_collections(name, layer, dependencies=needs)
    made = da.Array(graph, name, masked.chunks[:3], meta=np.empty((0, 0, 0), object))
    mean, error = unpacked(made, (np.float32, np.float32))
    return mean, error


class _Asked:
    """Slits that some slits take as their other nods, and where these lie on the detector."""

    def __init__(self, slits: NDArray, ends: NDArray, place: NDArray, rows: NDArray, cols: NDArray):
        self.slits, self.ends, self.place = slits, ends, place
        self.rows, self.columns = rows, cols


class _Partners:
    """Which slits are other nods of which."""

    def __init__(self, ds: xr.Dataset):
        # Slitlet numbers begin anew in each MSA configuration of a visit; the shutters tell them
        # apart.
        same = ["program", "visit", "detector", "slitlet"]
        same += ["quadrant", "shutter_row", "shutter_column"]
        keys = list(zip(*(ds[c].values.tolist() for c in same), strict=True))
        rank = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        self.group = np.array([rank[key] for key in keys], dtype=np.int64)
        order = np.argsort(self.group, kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(self.group[order])) + 1)
        self.nod, self.y, self.x = (ds[c].values for c in ("nod", "y_start", "x_start"))

    def of(self, slits: slice) -> _Asked:
        """The other nods of some slits."""
        own = range(slits.start, slits.stop)
        others = [m[self.nod[m] != self.nod[s]] for s in own for m in [self.members[self.group[s]]]]
        flat = np.concatenate([np.empty(0, dtype=np.int64), *others])
        of = np.repeat(np.array(own, dtype=np.int64), [o.size for o in others])
        slits_asked, place = np.unique(flat, return_inverse=True)
        ends = np.cumsum([0, *[o.size for o in others]])
        rows, columns = (start[of] - start[flat] for start in (self.y, self.x))
        return _Asked(slits_asked, ends, place, rows, columns)


def _usable_block(
    flux: NDArray, error: NDArray, yrel: NDArray, quality: NDArray, occupied: NDArray, *, bits: int
) -> NDArray[np.float32]:
    """Flux and error where other slits may use them, NaN elsewhere."""
    out = np.full((*flux.shape, 2), np.nan, dtype=np.float32)
    shutters = np.ascontiguousarray(occupied[:, 0])
    _usable_pixels(flux, error, yrel, quality, quality.dtype.type(bits), shutters, out)
    return out


@kernel
def _usable_pixels(flux, error, yrel, quality, bits, occupied, out):  # pragma: no cover - compiled
    for s in range(flux.shape[0]):
        for i in range(flux.shape[1]):
            for j in range(flux.shape[2]):
                if (quality[s, i, j] & bits) != 0 or not error[s, i, j] > 0:
                    continue
                if np.isfinite(flux[s, i, j]) and not near_one_of(yrel[s, i, j], occupied[s]):
                    out[s, i, j, 0], out[s, i, j, 1] = flux[s, i, j], error[s, i, j]


def _nod_block(
    asked: _Asked, bounds: list[tuple[int, int]], yrel: NDArray, *blocks: NDArray
) -> tuple[NDArray, NDArray]:
    shape = (asked.slits.size, *yrel.shape[1:], 2)
    if len(blocks) == 1 and asked.slits.size == len(blocks[0]):
        others = blocks[0]
    else:
        others = np.empty(shape, dtype=np.float32)
        for (start, stop), block in zip(bounds, blocks, strict=True):
            here = (asked.slits >= start) & (asked.slits < stop)
            others[here] = block[asked.slits[here] - start]
    mean, error = (np.full(yrel.shape, np.nan, dtype=np.float32) for _ in range(2))
    _nod_means(yrel, others, asked.ends, asked.place, asked.rows, asked.columns, mean, error)
    return mean, error


@kernel
def _nod_means(yrel, others, ends, place, rows, columns, mean, error):  # pragma: no cover
    n_slits, ny, nx = yrel.shape
    for s in range(n_slits):
        for i in range(ny):
            for j in range(nx):
                if np.isnan(yrel[s, i, j]):
                    continue
                total, variance, n = 0.0, 0.0, 0
                for p in range(ends[s], ends[s + 1]):
                    # The same detector pixel, wherever the other cut-out begins.
                    k, m = i + rows[p], j + columns[p]
                    if k < 0 or k >= ny or m < 0 or m >= nx:
                        continue
                    flux = others[place[p], k, m, 0]
                    if np.isnan(flux):
                        continue
                    total += flux
                    variance += np.float64(others[place[p], k, m, 1]) ** 2
                    n += 1
                if n > 0:
                    mean[s, i, j] = total / n
                    error[s, i, j] = np.sqrt(variance) / n
