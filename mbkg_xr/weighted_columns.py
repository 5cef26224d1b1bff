"""Weighted sums chunk by chunk: the columns of all slits added up, and results from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .sums import Groups
from .weighted import COLUMNS, PARTS, PIXELS, Master, slit_sums

__all__ = ["RESULTS", "of_all", "weighted_columns"]

Array = NDArray[np.float64]

RESULTS = ("value", "variance", *(f"variance_{part}" for part in PARTS), "n_pixels", "n_missing")


def weighted_columns(
    ds: xr.Dataset, groups: Groups, weights: xr.DataArray | None, master: Master
) -> Any:
    """Of the slits of one master: results by slit, ``(slit, sum, len(RESULTS))``, or the columns of
    all of them added up, ``(sum, column)``, for `of_all`.
    """
    n = ds.sizes["slit"]
    names = [name for name in PIXELS if name in ds.variables and name != "weight"]
    arrays = {name: ds[name].data for name in names}
    arrays |= {f"bin of {name}": ds[name].data for name in groups.bins}
    sets = 1
    if weights is not None:
        arrays["weight"] = weights.data
        sets = weights.shape[3] if weights.ndim == 4 else 1
    vectors = [np.arange(n), groups.code]
    flux = ds["flux"].data
    width = len(RESULTS)
    profiles = _profiles(master)
    if not groups.local:
        width = len(COLUMNS) + profiles + 2 * master.factor.shape[1]
    call: dict[str, Any] = {
        "names": tuple(arrays),
        "groups": groups,
        "sets": sets,
        "profiles": profiles,
    }
    if not isinstance(flux, da.Array):
        out = _block(*vectors, *map(np.asarray, arrays.values()), master=master, **call)
        return out if groups.local else out[0]
    chunks = flux.chunks[0]
    lazy = [da.from_array(v, chunks=(chunks,)) for v in vectors]
    for a in arrays.values():
        one = a if isinstance(a, da.Array) else da.from_array(a, chunks=(chunks, *a.shape[1:]))
        lazy.append(one.rechunk({0: chunks, **dict.fromkeys(range(1, a.ndim), -1)}))
    pairs = [item for a in lazy for item in (a, "syxk"[: a.ndim])]
    rows = sets * groups.n
    out = da.blockwise(
        _block,
        "sab",
        *pairs,
        new_axes={"a": rows, "b": width},
        adjust_chunks=None if groups.local else {"s": (1,) * len(chunks)},
        concatenate=True,
        dtype=np.float64,
        meta=np.empty((0, 0, 0)),
        master=dask.delayed(master, traverse=False),
        **call,
    )
    return out if groups.local else out.sum(axis=0)


def of_all(columns: Sequence[Any], master: Master) -> Any:
    """``(sum, len(RESULTS))``, from the columns of slits of whose masters this is one: of masters
    that err together, such as one sky at several times.
    """
    added = sum(columns[1:], columns[0])
    if not isinstance(added, da.Array):
        return _finished(added, _profiles(master), local=False)
    return da.map_blocks(
        _finished,
        added,
        profiles=_profiles(master),
        local=False,
        dtype=np.float64,
        chunks=(added.chunks[0], (len(RESULTS),)),
        meta=np.empty((0, 0)),
    )


def _profiles(master: Master) -> int:
    shape = master.terms.profile.factor.shape
    return shape[0] * shape[-1]


def _block(
    index: NDArray,
    code: NDArray,
    *arrays: NDArray,
    names: Sequence[str],
    groups: Groups,
    sets: int,
    profiles: int,
    master: Master,
) -> Array:
    """Results of each slit, or the columns of all of them added up, ``(1, sum, column)``."""
    part = dict(zip(names, arrays, strict=True))
    found = []
    for s, (slit, first) in enumerate(zip(index, code, strict=True)):
        pixels = {name: part[name][s] for name in names if not name.startswith("bin of ")}
        shape = pixels["flux"].shape
        label = groups.labels(
            int(first), [part[f"bin of {name}"][s] for name in groups.bins], shape
        )
        for missing in ("response", "selected"):
            pixels.setdefault(missing, np.empty((0, 0), dtype=np.float32))
        weight = pixels.get("weight", np.broadcast_to(np.float32(1), shape))
        for k in range(sets):
            pixels["weight"] = weight[..., k] if weight.ndim == 3 else weight
            pixels["label"] = label
            rows, columns = slit_sums(pixels, int(slit), master)
            found.append((s, rows + k * groups.n, columns))
    total = sets * groups.n
    width = found[0][2].shape[1]
    if groups.local:
        nothing = _finished(np.zeros((1, width)), profiles, local=True)[0]
        out = np.broadcast_to(nothing, (index.size, total, nothing.size)).copy()
        for s, rows, columns in found:
            out[s, rows] = _finished(columns, profiles, local=True)
        return out
    added = np.zeros((1, total, width))
    for _, rows, columns in found:
        added[0, rows] += columns
    return added


def _finished(columns: Array, profiles: int, *, local: bool) -> Array:
    """`RESULTS` from the columns of `slit_sums`; NaN for sums without pixels."""
    n = len(COLUMNS)
    value, pixels, missing, noise, scale, scale_shared, floor = columns[:, :n].T
    profile = np.square(columns[:, n : n + profiles]).sum(axis=1)
    part, shared = np.split(columns[:, n + profiles :], 2, axis=1)
    master = np.square(part).sum(axis=1)
    master_shared = -2 * (part * shared).sum(axis=1)
    # Over many slits what master and scales take of one noise is mostly the same: there the scales'
    # share is left out. Within a slit the larger of the two is taken, for they may be partly the
    # same there, too: the variance is not less than that.
    gained = (master + master_shared, scale + scale_shared) if local else (master, scale)
    twice = np.minimum(np.maximum(*gained), 0.0)
    both = master_shared + (scale_shared - twice if local else 0.0)
    parts = {
        "noise": noise,
        "master": master,
        "scale": scale,
        "floor": floor,
        "profile": profile,
        "shared": both,
    }
    each = np.array([parts[name] for name in PARTS])
    known = np.where(pixels > 0, np.array([value, each.sum(axis=0), *each]), np.nan)
    return np.stack([*known, pixels, missing], axis=1)
