"""What pixels are grouped by: values of slit coordinates, bins of any coordinate, and crossings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .errors import ParameterError
from .schema import PIXEL_DIMS
from .search import Found
from .spans import SpanGrid, span_grid

__all__ = ["Grouping", "groupings", "name_of"]

By = str | Sequence[str] | None
_MOST = 2**31  # groups; more are a mistake

_WAVELENGTH_BINS = 20
_YREL_STEP = 0.2


@dataclass(frozen=True)
class _Axis:
    """One dimension: values of a slit coordinate, or bins."""

    name: str
    values: NDArray | None  # of the slit coordinate
    edges: NDArray[np.float64] | None  # of bins
    codes: NDArray[np.int64] | None  # of slits, -1 for none of the groups

    @property
    def size(self) -> int:
        return self.values.size if self.values is not None else self._edges.size - 1

    @property
    def _edges(self) -> NDArray[np.float64]:
        assert self.edges is not None
        return self.edges

    def index(self, found: Found) -> NDArray[np.int64]:
        """Which group each pixel belongs to, -1 for none."""
        if self.codes is not None:
            return self.codes[found["slit"]]
        return bin_index(found[self.name], self._edges)

    def coords(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        if self.values is not None:
            return {self.name: (self.name, self.values, dict(attrs))}
        low, high = self._edges[:-1], self._edges[1:]
        units = {k: v for k, v in attrs.items() if k == "units"}
        return {
            self.name: (self.name, 0.5 * (low + high), dict(attrs)),
            f"{self.name}_low": (self.name, low, {"long_name": "lower edge of the bin", **units}),
            f"{self.name}_high": (self.name, high, {"long_name": "upper edge of the bin", **units}),
        }


def bin_index(values: NDArray, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bins as numpy's histogram has them: the last holds its upper edge; -1 outside.

    Compared in the precision of the values, as conditions are.
    """
    if values.dtype.kind == "f":
        edges = edges.astype(values.dtype)
    index = np.searchsorted(edges, values, side="right") - 1
    index[values == edges[-1]] = edges.size - 2
    return np.where((index < edges.size - 1) & np.isfinite(values), index, -1)


@dataclass(frozen=True)
class Grouping:
    """Groups of pixels by one coordinate, by several crossed, or all together."""

    axes: tuple[_Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object))

    @property
    def columns(self) -> list[str]:
        """Pixel variables that tell the group."""
        return [axis.name for axis in self.axes if axis.codes is None]

    def index(self, found: Found) -> NDArray[np.int64]:
        """Group of each pixel, -1 for none."""
        total = np.zeros(found["slit"].size, dtype=np.int64)
        inside = np.ones(total.size, dtype=np.bool_)
        for axis in self.axes:
            one = axis.index(found)
            inside &= one >= 0
            total = total * axis.size + one
        return np.where(inside, total, -1)

    def dataset(self, ds: xr.Dataset, columns: Mapping[str, tuple[NDArray, dict]]) -> xr.Dataset:
        """Columns, one value a group, as a dataset with labelled dimensions."""
        dims = tuple(axis.name for axis in self.axes)
        coords: dict[str, Any] = {}
        for axis in self.axes:
            coords |= axis.coords(ds[axis.name].attrs)
        data = {k: (dims, v.reshape(self.shape), attrs) for k, (v, attrs) in columns.items()}
        return xr.Dataset(data, coords)


def name_of(by: By) -> str:
    """Name of a grouping in a tree."""
    return "all" if by is None else by if isinstance(by, str) else "_".join(by)


def groupings(
    ds: xr.Dataset,
    by: Iterable[By],
    bins: Mapping[str, ArrayLike | int] | None,
    slits: NDArray[np.bool_],
    grid: SpanGrid | None = None,
) -> list[Grouping]:
    """Read what to group by.

    Parameters
    ----------
    ds
        A slit dataset.
    by
        Names of coordinates; several together are crossed, None is of all pixels together.
    bins
        Edges of bins, or their number, by coordinate.
    slits
        Slits whose values make groups.
    grid
        Spans; they set the range of a number of wavelength bins.

    Raises
    ------
    ParameterError
        On unknown names, a pixel coordinate without bins, or edges that do not increase.
    """
    bins = dict(bins or {})
    out = []
    used: set[str] = set()
    for one in by:
        names = [] if one is None else [one] if isinstance(one, str) else list(one)
        if len(set(names)) < len(names):
            raise _wrong("coordinates to cross that differ", one)
        used |= set(names)
        grouping = Grouping(tuple(_axis(ds, str(n), bins.get(n), slits, grid) for n in names))
        if grouping.size > _MOST:
            raise _wrong("fewer groups: bins of some coordinates", f"{grouping.size} of {one}")
        out.append(grouping)
    for name in bins.keys() - used:
        raise ParameterError("bins of what is not grouped by", where="bins", found=name)
    return out


def _axis(
    ds: xr.Dataset, name: str, bins: Any, slits: NDArray[np.bool_], grid: SpanGrid | None
) -> _Axis:
    usable = [str(n) for n, v in ds.variables.items() if v.dims in (PIXEL_DIMS, PIXEL_DIMS[:1])]
    if name not in usable:
        raise ParameterError(
            f"unknown coordinate {name!r}", where="by", expected="one of " + " ".join(usable),
            found=name,
        )  # fmt: skip
    if ds[name].ndim == len(PIXEL_DIMS):
        return _Axis(name, None, _pixel_edges(ds, name, bins, grid), None)
    values = ds[name].values
    if bins is not None:
        edges = _edges(name, bins, lambda: (np.nanmin(values), np.nanmax(values)))
        codes = bin_index(values.astype(np.float64), edges)
        return _Axis(name, None, edges, codes)
    unique = np.unique(values[slits])
    codes = np.searchsorted(unique, values)
    codes = np.where(slits, np.minimum(codes, unique.size - 1), -1)
    return _Axis(name, unique, None, codes)


def _pixel_edges(
    ds: xr.Dataset, name: str, bins: Any, grid: SpanGrid | None
) -> NDArray[np.float64]:
    if name == "wavelength":
        bins = _WAVELENGTH_BINS if bins is None else bins
        return _edges(name, bins, lambda: (span_grid(ds) if grid is None else grid).edges[[0, -1]])
    if name == "yrel":
        count = max(int(ds["n_shutters"].values.max(initial=1)), 1)
        low, high = -((count - 1) // 2) - 0.5, count // 2 + 0.5
        bins = round((high - low) / _YREL_STEP) if bins is None else bins
        return _edges(name, bins, lambda: (low, high))
    if bins is None or np.ndim(bins) == 0:
        raise ParameterError(
            f"no bins of {name}",
            where="bins",
            expected=f"edges, as in bins={{'{name}': [0, 1, 2]}}",
            found=bins,
        )
    return _edges(name, bins, lambda: (0, 1))


def _edges(name: str, bins: Any, ends: Any) -> NDArray[np.float64]:
    if isinstance(bins, int | np.integer) and not isinstance(bins, bool) and bins > 0:
        low, high = ends()
        return np.linspace(float(low), float(high), int(bins) + 1)
    try:
        edges = np.asarray(bins, dtype=np.float64)
    except (TypeError, ValueError):
        edges = np.empty(0)
    if edges.ndim != 1 or edges.size < 2 or not np.all(np.diff(edges) > 0):
        raise ParameterError(
            "unusable bins",
            where=name,
            expected="a number of bins, or edges that increase",
            found=bins,
        )
    return edges


def _wrong(expected: str, found: Any) -> ParameterError:
    return ParameterError("unusable grouping", where="by", expected=expected, found=found)
