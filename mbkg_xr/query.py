"""Which pixels: asking a slit dataset by coordinate, for flat points or for a masked cube."""

from __future__ import annotations

from typing import Any, Literal, overload

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from .blocks import map_slits
from .errors import ParameterError
from .points import Points
from .schema import PIXEL_DIMS
from .search import Search, Where, search

__all__ = ["query"]


@overload
def query(
    ds: xr.Dataset, *, like: Literal["points"] = ..., where: Where = ..., **coordinates: Any
) -> Points: ...
@overload
def query(
    ds: xr.Dataset, *, like: Literal["slits"], where: Where = ..., **coordinates: Any
) -> xr.Dataset: ...


def query(
    ds: xr.Dataset,
    *,
    wavelength: Any = None,
    yrel: Any = None,
    quality: Any = None,
    exposure: Any = None,
    slitlet: Any = None,
    detector: Any = None,
    quadrant: Any = None,
    is_background: Any = None,
    where: Where = None,
    like: str = "points",
    **coordinates: Any,
) -> Points | xr.Dataset:
    """Pixels by their coordinates. Lazy.

    All conditions must hold. Each is on one coordinate or variable, of pixels or of slits: those
    named here, or any other by its name (``nod=2``, ``shutter_row=(100, 200)``,
    ``residual=(5, None)``). It is a value; a range ``(low, high)``, ends included, None for an open
    end; or a list of values and ranges, of which one must hold. Numbers are compared in the
    precision of the coordinate. Points outside the slits (padding) are never found.

    What cannot match is not read: chunks without a slit that meets the conditions on slits, nor
    those whose slits' ranges (`slit_ranges`) are elsewhere. Of the others pixel coordinates are
    read first, and everything else only where those match.

    Parameters
    ----------
    ds
        A slit dataset, such as from `residuals` or `open_program`.
    wavelength
        In um.
    yrel
        In shutter pitches.
    quality
        ``"good"``: not DO_NOT_USE; names of flags or their bits: any of them set; names with ``!``
        before them: not set; 0: no flag at all. Or a list of these.
    exposure, slitlet, detector, quadrant
        Of slits.
    is_background
        True for sky slits, False for the others.
    where
        Any other condition: a boolean (slit, y, x) or (slit,) array, or a function of the dataset
        that makes one, such as `sky_centres`.
    like
        ``"points"``: one point after the other. ``"slits"``: the cube of the slits that meet the
        conditions on slits.
    **coordinates
        Conditions on other coordinates and variables.

    Returns
    -------
    Points
        Flat points, not read yet: all coordinates and variables of each pixel and of its slit, and
        ``slit``, ``y`` and ``x``, where it is in `ds`. How many there are is known when they are
        read: ``compute()`` gives a Dataset, ``to_dataframe()`` a table, ``to_parquet(path)`` and
        ``blocks()`` go chunk by chunk.
    xarray.Dataset
        With ``like="slits"``, lazy: data variables NaN (0, False) where conditions do not hold,
        coordinates as they were, and boolean ``matched``.

    Raises
    ------
    ParameterError
        On an unknown coordinate or flag, a reversed range, or values of the wrong kind.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> res = mx.residuals(mx.subtract_nods(ds))
    >>> points = mx.query(res, wavelength=(1.0, 1.1), yrel=(-0.2, 0.2), quality="good", nod=1)
    >>> table = points.to_dataframe()
    >>> bool(table.wavelength.between(1.0, 1.1).all()), table.nod.unique().tolist()
    (True, [1])
    >>> cube = mx.query(res, residual=[(None, -5), (5, None)], like="slits")
    >>> cube.matched.dims
    ('slit', 'y', 'x')
    """
    named = {
        "wavelength": wavelength, "yrel": yrel, "quality": quality, "exposure": exposure,
        "slitlet": slitlet, "detector": detector, "quadrant": quadrant,
        "is_background": is_background,
    }  # fmt: skip
    found = search(ds, where, named | coordinates)
    if like == "points":
        return Points(found)
    if like == "slits":
        return _cube(found)
    raise ParameterError("unknown form", where="like", expected="'points' or 'slits'", found=like)


def _cube(found: Search) -> xr.Dataset:
    """Slits with NaN where conditions do not hold; chunks that cannot match are not read."""
    slits = np.flatnonzero(found.slits)
    ds = found.ds.isel(slit=slits) if slits.size < found.slits.size else found.ds
    candidates = found.candidates[slits]
    conditions = found.of(PIXEL_DIMS)
    arrays = [ds["wavelength"].data, *(ds[c.name].data for c in conditions)]
    if found.where is not None and found.where.ndim == len(PIXEL_DIMS):
        where = found.where.isel(slit=slits) if slits.size < found.slits.size else found.where
        arrays.append(where.data)
    template = ds["flux"]
    matched = map_slits(
        _mask_block, template, candidates, *(_without(a, candidates) for a in arrays),
        dtype=np.bool_, conditions=conditions,
    )  # fmt: skip
    attrs = {"long_name": "pixel meets the conditions"}
    out = {"matched": (PIXEL_DIMS, matched, attrs)}
    for name, variable in ds.data_vars.items():
        if variable.dims == PIXEL_DIMS:
            data = _without(variable.data, candidates)
            masked = map_slits(_masked_block, template, data, matched, dtype=variable.dtype)
            out[str(name)] = (PIXEL_DIMS, masked, variable.attrs)
    return ds.assign(out)


def _mask_block(candidate, wavelength, *arrays, conditions):
    mask = candidate & np.isfinite(wavelength)
    for condition, values in zip(conditions, arrays, strict=False):
        mask &= condition(values)
    return mask & arrays[-1] if len(arrays) > len(conditions) else mask


def _masked_block(values, matched):
    return np.where(matched, values, values.dtype.type(_fill(values.dtype)))


def _fill(dtype: np.dtype) -> float:
    return np.nan if dtype.kind == "f" else 0


def _without(data: Any, candidates: NDArray[np.bool_]) -> Any:
    """A dask array of which chunks without a candidate are made up in place of read."""
    if not isinstance(data, da.Array) or candidates.all():
        return data
    starts = np.cumsum([0, *data.chunks[0][:-1]])
    live = [bool(candidates[a : a + n].any()) for a, n in zip(starts, data.chunks[0], strict=True)]
    name = f"pruned-{tokenize(data.name, live)}"
    graph: dict = {}
    for key in np.ndindex(data.numblocks):
        shape = tuple(c[i] for c, i in zip(data.chunks, key, strict=True))
        made = (np.full, shape, _fill(data.dtype), data.dtype)
        graph[(name, *key)] = (data.name, *key) if live[key[0]] else made
    depends: list[Any] = [data]
    layers = HighLevelGraph.from_collections(name, graph, dependencies=depends)
    return da.Array(layers, name, data.chunks, meta=data._meta)
