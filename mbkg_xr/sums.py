"""Which sum a pixel belongs to, and with which weight: what `mbkg_xr.propagate` adds up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .errors import ParameterError
from .schema import PIXEL_DIMS

__all__ = ["By", "Groups", "weights_of"]

Array = NDArray[np.float64]
By = str | Sequence[str] | Mapping[str, ArrayLike | None]


@dataclass
class Groups:
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
    def of(cls, ds: xr.Dataset, by: By | None) -> Groups:
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

    def of_slits(self, rows: NDArray[np.int64]) -> Groups:
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


def weights_of(
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
