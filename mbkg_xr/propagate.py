"""Variances of weighted sums of pixels: errors that go together, added up as they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .blas import serial_blas
from .drift import Clock, has_drift, master_at
from .errors import DatasetError, ParameterError
from .master import identity, master_grid
from .parts import has_parts, master_part, part_index
from .quality import do_not_use
from .schema import PIXEL_DIMS
from .select import centres_only
from .slit_terms import SlitTerms, ranks_in, slit_terms
from .weighted import COLUMNS, PARTS, PIXELS, Master, slit_sums

__all__ = ["propagate"]

Array = NDArray[np.float64]
By = str | Sequence[str] | Mapping[str, ArrayLike | None]

_RESULTS = ("value", "variance", *(f"variance_{part}" for part in PARTS), "n_pixels", "n_missing")


@serial_blas
def propagate(
    ds: xr.Dataset,
    master: xr.Dataset,
    *,
    weights: xr.DataArray | None = None,
    by: By | None = None,
) -> xr.Dataset:
    """Weighted sums of subtracted pixels, and their variances with all that pixels share. Lazy.

    The error of a sum is not the root of the sum of its pixels' squared errors: the noise of pixels
    is independent, but a master that is wrong is wrong in many pixels at once. For weights h,
    pixels y, backgrounds b and the errors of what the backgrounds are made of,

        var(sum h y) = sum h^2 v + |F^T J^T h|^2 + ...,

    J the derivatives of the backgrounds by the master at the nodes along wavelength, and F the
    factor of its covariance (``covariance_factor`` of the master). The same for the coefficients of
    each slit's scale with their covariance, for each shutter's own level, for the systematic floor
    (independent from shutter to shutter and between wavelength bins of 16 detector pixels, the same
    within: so it is found), and for the bar-shadow profile, by the factor of its covariance. Pixels
    that the master was fitted to share their own noise with it, so that residuals of the fitted sky
    scatter less than others: ``shared``.

    Parameters
    ----------
    ds
        From `subtract`, with that very master; held out or not.
    master
        From `fit_master`.
    weights
        Weights (slit, y, x) of the pixels, perhaps with one dim more: a set of weights for each of
        several sums. None, 0 and NaN leave a pixel out. None at all: 1 everywhere.
    by
        None: one sum of all pixels. Names of what sums are taken apart by: ``"slit"``, a slit
        coordinate (one sum a value), or, as a mapping, the name of a slit or pixel variable with
        bin edges (``{"slit": None, "wavelength": edges}``); pixels outside the bins are left out.

    Returns
    -------
    xarray.Dataset
        ``value`` and ``variance`` in the units of the weights times the flux (and squared), over
        the weights' further dim and the dims of `by`; the parts of the variance:
        ``variance_noise``, ``_master``, ``_scale``, ``_floor``, ``_profile``, and ``_shared``,
        which is negative; ``n_pixels``; and ``n_missing``: pixels with a weight that are left out,
        for they have no flux, error or background, or are flagged DO_NOT_USE. NaN for sums without
        pixels.

    Raises
    ------
    DatasetError
        Where the dataset is not a result of that master, or the master keeps no factor.
    ParameterError
        On names that are not there, bins that do not rise, and weights of other dims.

    Notes
    -----
    Held-out backgrounds come from masters without a slit's group; their errors are larger, pixel by
    pixel, but go together as the whole master's do, and are taken to be the same in all slits.
    Scales of slits are taken to be independent of each other and of the master.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> sums = mx.propagate(mx.subtract(ds, master), master, by={"wavelength": [1.0, 2.0, 3.0]})
    >>> sums.value.dims, bool((sums.variance > sums.variance_noise).all())
    (('wavelength',), True)
    """
    _check(ds, master)
    if "selected" in ds and master.attrs.get("rows") == "centres":
        ds = centres_only(ds)
    groups = _Groups.of(ds, by)
    weights, extra = _weights(ds, weights)
    data = _results(ds, master, groups, weights)
    counts = tuple(ds.sizes[d] if d == "slit" else n for d, n in groups.sizes.items())
    dims = tuple(groups.sizes)
    if extra is not None and weights is not None:
        dims = (*dims[: groups.local], extra, *dims[groups.local :])
        counts = (*counts[: groups.local], weights.sizes[extra], *counts[groups.local :])
    units = ds["flux"].attrs["units"]
    out = xr.Dataset(coords=groups.coords)
    if groups.local:
        out = out.assign_coords({k: v for k, v in ds.coords.items() if v.dims == ("slit",)})
    if extra is not None and weights is not None and extra in weights.coords:
        out = out.assign_coords({extra: weights[extra]})
    for i, name in enumerate(_RESULTS):
        attrs = {"long_name": _long_name(name)}
        if not name.startswith("n_"):
            attrs["units"] = units if name == "value" else f"({units})2"
        out[name] = (dims, data[..., i].reshape(counts), attrs)
    out.attrs = {"configuration": ds.attrs["configuration"], **identity(master)}
    return out


def _long_name(name: str) -> str:
    if name.startswith("variance_"):
        return f"part of the variance: {name.removeprefix('variance_')}"
    return {
        "value": "weighted sum of pixels",
        "variance": "variance of the sum",
        "n_pixels": "pixels in the sum",
        "n_missing": "pixels with a weight but without a value",
    }[name]


def _check(ds: xr.Dataset, master: xr.Dataset) -> None:
    master_grid(master)
    method = str(ds.attrs.get("background_method", "none"))
    if "background" not in ds or not method.startswith("master"):
        raise DatasetError(
            "errors can be propagated for what a master was subtracted from only",
            expected="a result of subtract",
            found=f"background: {method}",
        )
    if "covariance_factor" not in master:
        raise DatasetError(
            "the master does not say how its errors go together",
            expected="variable covariance_factor",
            found=" ".join(map(str, master.data_vars)),
            remedy="fit it anew",
        )
    theirs, ours = ds.attrs.get("background_sha256"), identity(master)["background_sha256"]
    if theirs is not None and theirs != ours:
        raise DatasetError(
            "another master was subtracted from these slits",
            expected=f"master {theirs[:12]}",
            found=f"master {ours[:12]}",
            remedy="give the master that subtract was given",
        )


def _results(
    ds: xr.Dataset, master: xr.Dataset, groups: _Groups, weights: xr.DataArray | None
) -> Any:
    """``(..., len(_RESULTS))``: results by slit, or of all slits together."""
    heldout = ds.attrs["background_method"] == "master (held out)"
    if has_drift(master):
        return _at_times(ds, master, groups, weights, heldout)
    if not has_parts(master):
        return _columns(ds, groups, weights, _made_ready(ds, master, heldout))
    # Slits of parts without a master have no background, whichever master is asked.
    which = np.maximum(part_index(ds, master), 0)
    pieces, order = [], []
    for index in np.unique(which):
        rows = np.flatnonzero(which == index)
        one, some = ds.isel(slit=rows), None if weights is None else weights.isel(slit=rows)
        ready = _made_ready(one, master_part(master, master["part"].values[index]), heldout)
        pieces.append(_columns(one, groups.of_slits(rows), some, ready))
        order.append(rows)
    if groups.local:
        place = np.argsort(np.concatenate(order), kind="stable")
        both: Any = np.concatenate(pieces)
        return both[place]
    # Masters of different parts err independently.
    whole: Any = np.nansum(np.stack(pieces), axis=0)
    filled = whole[:, _RESULTS.index("n_pixels")] > 0
    counted = np.array([name.startswith("n_") for name in _RESULTS])
    return np.where(filled[:, None] | counted, whole, np.nan)


def _at_times(
    ds: xr.Dataset,
    master: xr.Dataset,
    groups: _Groups,
    weights: xr.DataArray | None,
    heldout: bool,
) -> Any:
    """Results by slit under a sky that changes: each slit with the sky of its own time."""
    if not groups.local:
        raise ParameterError(
            "sums over slits of different times share the errors of a sky that changes",
            where="by",
            expected="'slit' among what sums are taken apart by",
            found="sums of several slits",
            remedy="sum slit by slit, or fit without drift",
        )
    mjd, which = np.unique(ds["mjd"].values, return_inverse=True)
    clock = Clock.of_master(master)
    pieces, order = [], []
    for index, time in enumerate(mjd):
        rows = np.flatnonzero(which == index)
        one, some = ds.isel(slit=rows), None if weights is None else weights.isel(slit=rows)
        # Slits of a time outside the fit have no background, whichever master is asked.
        near = float(np.clip(time, clock.middle - clock.half, clock.middle + clock.half))
        ready = _made_ready(one, master_at(master, near), heldout)
        pieces.append(_columns(one, groups.of_slits(rows), some, ready))
        order.append(rows)
    both: Any = np.concatenate(pieces)
    return both[np.argsort(np.concatenate(order), kind="stable")]


def _made_ready(ds: xr.Dataset, master: xr.Dataset, heldout: bool) -> Master:
    grid = master_grid(master)
    factor = master["covariance_factor"].values.astype(np.float64)
    rank = ranks_in(ds, master)
    n = ds.sizes["slit"]
    ratio, group = np.ones((1, *factor.shape[:2])), np.zeros(n, dtype=np.int64)
    if heldout:
        usual = master["sky_error"].values
        ratio = master["heldout_error"].values / np.where(usual > 0, usual, np.nan)
        group = master["group"].values[rank].astype(np.int64)
    fitted = np.ones((n, 1), dtype=np.bool_)
    if "shutter_used" in master:
        fitted = master["shutter_used"].values[rank]
    fitted = fitted & (rank >= 0)[:, None] & (master["n_used"].values[rank] > 0)[:, None]
    return Master(
        grid=grid,
        factor=factor.reshape(-1, factor.shape[2]),
        ratio=np.where(np.isfinite(ratio), ratio, 1.0),
        group=group,
        terms=slit_terms(ds, master, heldout=heldout) or SlitTerms.none(n, grid.size),
        fitted=fitted,
        heldout=heldout,
        bad=do_not_use(ds["quality"]),
    )


# ------------------------------------------------------------------------------------------------
# Which sum a pixel belongs to


@dataclass
class _Groups:
    """Sums that pixels belong to.

    Attributes
    ----------
    sizes
        Number of groups by dim, in order; those of slits first where `local`.
    coords
        What the groups are called.
    code
        ``(slit,)``, what the slit adds to the label of its pixels; -1 where it has none.
    bins
        By pixel variable, its bin edges and what each bin adds to the label.
    local
        No sum reaches beyond one slit.
    """

    sizes: dict[str, int]
    coords: dict[str, Any]
    code: NDArray[np.int64]
    bins: dict[str, tuple[Array, int]] = field(default_factory=dict)
    local: bool = False

    @classmethod
    def of(cls, ds: xr.Dataset, by: By | None) -> _Groups:
        wanted: dict[str, Any] = {}
        if isinstance(by, str):
            wanted = {by: None}
        elif isinstance(by, Mapping):
            wanted = dict(by)
        elif by is not None:
            wanted = dict.fromkeys(by)
        local = "slit" in wanted
        wanted.pop("slit", None)
        out = cls({}, {}, np.zeros(ds.sizes["slit"], dtype=np.int64), local=local)
        found = {name: _divided(ds, name, edges) for name, edges in wanted.items()}
        out.sizes = ({"slit": ds.sizes["slit"]} if local else {}) | {
            name: size for name, (size, _, _, _) in found.items()
        }
        stride = 1
        for name, (size, coords, code, edges) in reversed(found.items()):
            out.coords |= coords
            if code is None:
                out.bins[name] = (edges, stride)
            else:
                out.code = np.where((code < 0) | (out.code < 0), -1, out.code + stride * code)
            stride *= size
        return out

    def of_slits(self, rows: NDArray[np.int64]) -> _Groups:
        """The same for some of the slits."""
        return replace(self, code=self.code[rows])

    @property
    def n(self) -> int:
        """Number of sums, of each slit where they are local."""
        return int(np.prod([n for d, n in self.sizes.items() if d != "slit"], dtype=np.int64))

    def labels(self, code: int, columns: Sequence[NDArray], shape: tuple[int, ...]) -> NDArray:
        """``(y, x)``: the sum each pixel of a slit belongs to, -1 for none."""
        label = np.full(shape, code, dtype=np.int64)
        for values, (edges, stride) in zip(columns, self.bins.values(), strict=True):
            inside = (values >= edges[0]) & (values < edges[-1]) & (label >= 0)
            index = np.searchsorted(edges, values, side="right") - 1
            label = np.where(inside, label + stride * index, -1)
        return label


def _divided(ds: xr.Dataset, name: str, edges: ArrayLike | None) -> tuple[int, dict, Any, Any]:
    """Number of groups, their coordinates, and the slits' codes or the edges of pixels' bins."""
    if name not in ds.variables or ds[name].dims not in (("slit",), PIXEL_DIMS):
        raise ParameterError(
            "sums cannot be taken apart by this",
            where="by",
            expected="slit, a slit coordinate, or a pixel variable with bin edges",
            found=name,
        )
    if edges is None:
        if ds[name].dims != ("slit",):
            raise ParameterError(
                f"sums by {name} need bins",
                where="by",
                expected=f"{{{name!r}: bin edges}}",
                found=f"{name!r} alone",
            )
        values, code = np.unique(ds[name].values, return_inverse=True)
        return values.size, {name: (name, values)}, code.astype(np.int64), None
    bins = np.asarray(edges, dtype=np.float64)
    if bins.ndim != 1 or bins.size < 2 or not np.all(np.diff(bins) > 0):
        raise ParameterError(
            "unusable bins", where=name, expected="rising edges, two or more", found=bins.tolist()
        )
    middle = (name, 0.5 * (bins[1:] + bins[:-1]), dict(ds[name].attrs))
    coords = {name: middle, f"{name}_low": (name, bins[:-1]), f"{name}_high": (name, bins[1:])}
    if ds[name].dims == PIXEL_DIMS:
        return bins.size - 1, coords, None, bins
    values = ds[name].values
    code = np.searchsorted(bins, values, side="right") - 1
    inside = (values >= bins[0]) & (values < bins[-1])
    return bins.size - 1, coords, np.where(inside, code, -1), None


def _weights(
    ds: xr.Dataset, weights: xr.DataArray | None
) -> tuple[xr.DataArray | None, str | None]:
    """The weights with their further dim last, and its name."""
    if weights is None:
        return None, None
    others = [str(d) for d in weights.dims if d not in PIXEL_DIMS]
    same = all(weights.sizes.get(d) == ds.sizes[d] for d in PIXEL_DIMS)
    if len(others) > 1 or not same:
        raise ParameterError(
            "unusable weights",
            where="weights",
            expected=f"dims slit, y, x of {[ds.sizes[d] for d in PIXEL_DIMS]}, perhaps one more",
            found=dict(weights.sizes),
        )
    return weights.transpose(*PIXEL_DIMS, *others), others[0] if others else None


# ------------------------------------------------------------------------------------------------
# Chunks


def _columns(ds: xr.Dataset, groups: _Groups, weights: xr.DataArray | None, master: Master) -> Any:
    """`_results` of the slits of one master."""
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
    width = len(_RESULTS)
    shape = master.terms.profile.factor.shape
    profiles = shape[0] * shape[-1]
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
        return out if groups.local else _finished(out[0], profiles, local=False)
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
    if groups.local:
        return out
    return da.map_blocks(
        _finished,
        out.sum(axis=0),
        profiles=profiles,
        local=False,
        dtype=np.float64,
        chunks=((rows,), (len(_RESULTS),)),
        meta=np.empty((0, 0)),
    )


def _block(
    index: NDArray,
    code: NDArray,
    *arrays: NDArray,
    names: Sequence[str],
    groups: _Groups,
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
    """`_RESULTS` from the columns of `slit_sums`; NaN for sums without pixels."""
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
