"""Finding pixels chunk by chunk: slits first, then coordinates, and data only where those match."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, TypeVar

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .conditions import Condition, FlagCondition, read_conditions
from .errors import ParameterError
from .ranges import check_ranges, has_ranges, range_names
from .schema import PIXEL_DIMS, SLIT_IDENTITY, validate
from .tasks import batches

__all__ = ["POSITION", "Found", "Search", "search"]

T = TypeVar("T")
Where = Callable[[xr.Dataset], Any] | xr.DataArray | None
#: Columns of pixels that were found, by name.
Found = dict[str, NDArray]

POSITION = ("slit", "y", "x")
_BLOCK = 64  # slits at a time where nothing is chunked
_INSIDE = "wavelength"  # finite inside a slit, and nowhere else


def search(ds: xr.Dataset, where: Where, asked: Mapping[str, Any]) -> Search:
    """Read what is asked for; computes nothing of a dataset that is lazy.

    Parameters
    ----------
    ds
        A slit dataset.
    where
        A boolean (slit, y, x) or (slit,) array, or a function of the dataset that makes one.
    asked
        As for `read_conditions`.

    Raises
    ------
    ParameterError
        On conditions that make no sense.
    """
    validate(ds)
    conditions = read_conditions(ds, asked)
    mask = where(ds) if callable(where) and not isinstance(where, xr.DataArray) else where
    if mask is not None:
        mask = _checked(ds, mask)
    return Search(ds, tuple(conditions), mask)


def _checked(ds: xr.Dataset, mask: Any) -> xr.Variable:
    good = isinstance(mask, xr.DataArray | xr.Variable) and mask.dtype == np.bool_
    if good and set(mask.dims) == set(PIXEL_DIMS[: mask.ndim]) and mask.ndim in (1, 3):
        variable = mask.variable if isinstance(mask, xr.DataArray) else mask
        variable = variable.transpose(*PIXEL_DIMS[: mask.ndim])
        if all(variable.sizes[d] == ds.sizes[d] for d in variable.dims):
            return variable
    found = f"{mask.dtype} {dict(mask.sizes)}" if hasattr(mask, "sizes") else type(mask).__name__
    raise ParameterError(
        "unusable condition",
        where="where",
        expected="a boolean (slit, y, x) or (slit,) array of the dataset's size, or a function of "
        "the dataset that returns one",
        found=found,
    )


@dataclass(frozen=True)
class Search:
    """Pixels of slits that meet all conditions.

    Attributes
    ----------
    ds
        The slit dataset.
    conditions
        Of slit and pixel variables.
    where
        A further mask, or None.
    """

    ds: xr.Dataset
    conditions: tuple[Condition | FlagCondition, ...]
    where: xr.Variable | None = None

    def of(self, dims: Sequence[str], *, coords: bool | None = None) -> list[Any]:
        """Conditions on variables of these dimensions; on coordinates, or on data, only."""
        chosen = [c for c in self.conditions if self.ds[c.name].dims == tuple(dims)]
        return [c for c in chosen if coords is None or (c.name in self.ds.coords) == coords]

    @cached_property
    def slits(self) -> NDArray[np.bool_]:
        """Slits that meet the conditions on slits."""
        keep = np.ones(self.ds.sizes["slit"], dtype=np.bool_)
        for condition in self.of(PIXEL_DIMS[:1]):
            keep &= condition(self.ds[condition.name].values)
        if self.where is not None and self.where.ndim == 1:
            keep &= self.where.values
        return keep

    @cached_property
    def ranged(self) -> list[Any]:
        """Conditions on pixel coordinates whose ranges in each slit are known."""
        chosen = (c for c in self.of(PIXEL_DIMS, coords=True) if isinstance(c, Condition))
        return [c for c in chosen if has_ranges(self.ds, c.name)]

    @cached_property
    def candidates(self) -> NDArray[np.bool_]:
        """Slits that may hold what is asked for, by all that is known without reading pixels."""
        keep = self.slits.copy()
        for condition in self.ranged:
            keep &= condition.possible(*(self.ds[n].values for n in range_names(condition.name)))
        return keep

    # --------------------------------------------------------------------------------------------

    def reduce(
        self,
        function: Callable[[Found, Any], T],
        columns: Sequence[str],
        state: Any = None,
        *,
        heavy: bool = False,
    ) -> Iterator[T]:
        """Apply ``function(found, state)`` to what is found in each chunk, in the slits' order.

        Computes. Chunks without a candidate are not read, and beside pixel coordinates nothing is
        where those rule out all pixels; of such chunks there is no result.

        Parameters
        ----------
        function
            Called with columns by name: `POSITION` (of the slit, and of the pixel in the array) and
            `columns`.
        columns
            Pixel variables.
        state
            Passed on; sent to workers once.
        heavy
            Whether results are large: then few are held at a time.
        """
        conditions = self.of(PIXEL_DIMS, coords=True)
        tests = self.of(PIXEL_DIMS, coords=False)
        early = list(dict.fromkeys([_INSIDE, *(c.name for c in conditions)]))
        late = [n for n in dict.fromkeys([*columns, *(c.name for c in tests)]) if n not in early]
        carried = [n for n in early if n in columns]
        lengths, blocks, lazy = self._blocks([*early, *late])
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        spans = [slice(a, b) for a, b in pairwise(starts.tolist())]
        todo = [i for i, span in enumerate(spans) if self.candidates[span].any()]
        call, compute = (_delayed, dask.compute) if lazy else (_plainly, _as_they_are)
        shared = dask.delayed(state, traverse=False) if lazy else state
        for lot in batches((4 if heavy else 1, i) for i in todo):
            matching = []
            for i in lot:
                rows = np.flatnonzero(self.candidates[spans[i]])
                match = partial(
                    _match, rows=rows, conditions=conditions, carried=carried,
                    limits=self._limits(spans[i]),
                )  # fmt: skip
                matching.append(call(match)({n: blocks[n][i] for n in early}))
            taken = []
            for i, (index, shape, kept) in zip(lot, compute(*matching), strict=True):
                if not index.size:
                    continue
                take = partial(
                    _take, start=spans[i].start, index=index, shape=shape, carried=kept,
                    conditions=tests, columns=columns, function=function,
                )  # fmt: skip
                mask = blocks["where"][i] if "where" in blocks else None
                taken.append(call(take)({n: blocks[n][i] for n in late}, mask, shared))
            yield from compute(*taken)

    def _blocks(self, names: Sequence[str]) -> tuple[Sequence[int], dict[str, list[Any]], bool]:
        """Slits in each chunk, chunks of each variable, and whether they are yet to be computed."""
        columns = {n: self.ds.variables[n] for n in names}
        if self.where is not None and self.where.ndim == len(PIXEL_DIMS):
            columns["where"] = self.where
        table = xr.Dataset({n: v.to_base_variable() for n, v in columns.items()})
        if any(isinstance(v.data, da.Array) for v in table.variables.values()):
            table = table.chunk({"y": -1, "x": -1}).unify_chunks()
            delayed = {
                str(n): v.data.to_delayed(optimize_graph=False).ravel().tolist()
                for n, v in table.variables.items()
            }
            return table.chunks["slit"], delayed, True
        n = table.sizes["slit"]
        lengths = [min(_BLOCK, n - a) for a in range(0, n, _BLOCK)]
        ends = np.cumsum(lengths)[:-1]
        return lengths, {str(k): np.split(v.data, ends) for k, v in table.variables.items()}, False

    def _limits(self, span: slice) -> dict[str, xr.Dataset]:
        """The ranges of some slits, to be held against what is read of them."""
        out = {}
        for condition in self.ranged:
            names = [*range_names(condition.name), *SLIT_IDENTITY, "filename"]
            data = {n: ("slit", self.ds[n].values[span]) for n in names if n in self.ds}
            out[condition.name] = xr.Dataset(data).set_coords(list(data))
        return out


def _delayed(function: Callable[..., Any]) -> Any:
    return dask.delayed(function, pure=False)


def _plainly(function: Callable[..., Any]) -> Any:
    return function


def _as_they_are(*results: T) -> tuple[T, ...]:
    return results


def _match(
    arrays: Mapping[str, NDArray],
    *,
    rows: NDArray[np.int64],
    conditions: Sequence[Any],
    carried: Sequence[str],
    limits: Mapping[str, xr.Dataset],
) -> tuple[NDArray[np.int64], tuple[int, ...], Found]:
    """Pixels of a chunk whose coordinates match: where they are, and coordinates to go on with."""
    shape = arrays[_INSIDE].shape
    # A copy is made only where it saves work.
    some: Any = rows if rows.size < shape[0] else slice(None)
    for name, ranges in limits.items():
        check_ranges(ranges, name, rows, arrays[name][some])
    mask = np.isfinite(arrays[_INSIDE][some])
    for condition in conditions:
        mask &= condition(arrays[condition.name][some])
    inside = np.flatnonzero(mask)
    a_slit = max(shape[1] * shape[2], 1)
    index = rows[inside // a_slit] * a_slit + inside % a_slit
    return index, shape, {n: arrays[n].reshape(-1)[index] for n in carried}


def _take(
    arrays: Mapping[str, NDArray],
    where: NDArray[np.bool_] | None,
    state: Any,
    *,
    start: int,
    index: NDArray[np.int64],
    shape: tuple[int, ...],
    carried: Found,
    conditions: Sequence[Any],
    columns: Sequence[str],
    function: Callable[[Found, Any], Any],
) -> Any:
    """The other columns of pixels that match, and what `function` makes of them."""
    if where is not None or conditions:
        keep = np.ones(index.size, np.bool_) if where is None else where.reshape(-1)[index]
        for condition in conditions:
            keep &= condition(arrays[condition.name].reshape(-1)[index])
        index, carried = index[keep], {n: v[keep] for n, v in carried.items()}
    found = {n: carried[n] if n in carried else arrays[n].reshape(-1)[index] for n in columns}
    slit, y, x = np.unravel_index(index, shape)
    return function({"slit": slit + start, "y": y, "x": x, **found}, state)
