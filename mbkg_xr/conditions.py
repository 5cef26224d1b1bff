"""What a query asks of coordinates: ranges, values and quality flags, one condition each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import ParameterError
from .quality import do_not_use, flag_mask, flag_table
from .schema import PIXEL_DIMS

__all__ = ["Condition", "FlagCondition", "read_conditions"]

_KINDS = {"b": "true or false", "U": "text", "n": "numbers, or ranges (low, high) of them"}


@dataclass(frozen=True)
class Condition:
    """Whether values are among those asked for, or lie in one of the ranges, ends included."""

    name: str
    ranges: tuple[tuple[Any, Any], ...]
    values: NDArray

    def __call__(self, given: NDArray) -> NDArray[np.bool_]:
        hit = np.zeros(given.shape, dtype=np.bool_)
        if self.values.size:
            hit |= np.isin(given, self.values)
            if self.values.dtype.kind == "f" and np.isnan(self.values).any():
                hit |= np.isnan(given)
        for low, high in self.ranges:
            inside = ~np.isnan(given) if given.dtype.kind == "f" else np.ones_like(hit)
            inside &= True if low is None else given >= low
            inside &= True if high is None else given <= high
            hit |= inside
        return hit

    def possible(self, lowest: NDArray, highest: NDArray) -> NDArray[np.bool_]:
        """Whether anything between two values can pass; not between NaN and NaN."""
        ends = [*self.ranges, *((v, v) for v in self.values)]
        hit = np.zeros(lowest.shape, dtype=np.bool_)
        for low, high in ends:
            if low is not None and np.isnan(low):
                return np.ones_like(hit)
            known = np.isfinite(lowest) & np.isfinite(highest)
            known &= True if low is None else highest >= low
            known &= True if high is None else lowest <= high
            hit |= known
        return hit


@dataclass(frozen=True)
class FlagCondition:
    """Whether quality has none of some bits and, where asked for, any of others."""

    none_of: int
    any_of: int
    name: str = "quality"

    def __call__(self, given: NDArray) -> NDArray[np.bool_]:
        hit = (given & given.dtype.type(self.none_of)) == 0
        return hit & ((given & given.dtype.type(self.any_of)) != 0) if self.any_of else hit


def read_conditions(ds: xr.Dataset, asked: Mapping[str, Any]) -> list[Condition | FlagCondition]:
    """Conditions on coordinates and variables, from what a caller gave; None asks for nothing.

    Parameters
    ----------
    ds
        A slit dataset; nothing of it is computed.
    asked
        By names of slit and pixel variables; ranges, values and lists of them as in `query`.

    Raises
    ------
    ParameterError
        On an unknown name, a reversed range, or values of another kind than the variable's.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    >>> [c.name for c in read_conditions(ds, {"wavelength": (1.0, 1.1), "nod": [1, 2]})]
    ['wavelength', 'nod']
    """
    known = [str(n) for n, v in ds.variables.items() if v.dims in (PIXEL_DIMS, PIXEL_DIMS[:1])]
    out: list[Condition | FlagCondition] = []
    for name, wanted in asked.items():
        if wanted is None:
            continue
        if name not in known:
            raise ParameterError(
                f"unknown coordinate {name!r}", expected="one of " + " ".join(known), found=name
            )
        if name == "quality":
            out.append(_flag_condition(ds["quality"], wanted))
        else:
            out.append(_condition(name, ds[name].dtype, wanted))
    return out


def _flag_condition(quality: xr.DataArray, asked: Any) -> FlagCondition:
    none_of = any_of = 0
    for one in [asked] if isinstance(asked, str | int | np.integer) else list(asked):
        if isinstance(one, int | np.integer) and not isinstance(one, bool):
            limit = 8 * quality.dtype.itemsize
            if not 0 <= int(one) < 1 << limit:
                raise _wrong("quality", f"bits of {limit}", asked)
            # No bit at all: pixels without any flag.
            every = int(np.iinfo(quality.dtype).max)
            none_of, any_of = (none_of, any_of | int(one)) if one else (none_of | every, any_of)
        elif not isinstance(one, str):
            raise _wrong("quality", "'good', names of flags, or their bits", asked)
        elif one.lower() == "good":
            none_of |= do_not_use(quality)
        elif one[:1] in "!-~" and one.upper() not in flag_table(quality):
            none_of |= flag_mask(quality, [one[1:]])
        else:
            any_of |= flag_mask(quality, [one])
    if not (none_of | any_of):
        raise _wrong("quality", "'good', names of flags, or their bits", asked)
    return FlagCondition(none_of, any_of)


def _condition(name: str, dtype: np.dtype, asked: Any) -> Condition:
    kind = "U" if dtype.kind in "UOT" else "b" if dtype.kind == "b" else "n"
    if (
        (kind == "n" and isinstance(asked, tuple | slice))
        or isinstance(asked, str | bytes | Mapping)
        or not isinstance(asked, Iterable)
        or (isinstance(asked, np.ndarray) and asked.ndim == 0)
    ):
        asked = [asked]
    values, ranges = [], []
    for one in asked:
        if kind == "n" and isinstance(one, tuple | slice):
            ranges.append(_range(name, dtype, one))
        elif _kind(one) != kind:
            raise _wrong(name, _KINDS[kind], one)
        else:
            values.append(one)
    if not values and not ranges:
        raise _wrong(name, "at least one value or range", "none")
    array = np.asarray(values, dtype=str if kind == "U" else None)
    if dtype.kind == "f":
        array = array.astype(dtype)
    return Condition(name, tuple(ranges), array)


def _kind(value: Any) -> str:
    """Of a value, as `_KINDS` names them."""
    kind = np.asarray(value).dtype.kind if np.ndim(value) == 0 else ""
    return "n" if kind and kind in "iuf" else "U" if kind and kind in "UT" else kind


def _range(name: str, dtype: np.dtype, asked: tuple | slice) -> tuple[Any, Any]:
    ends = (asked.start, asked.stop) if isinstance(asked, slice) else asked
    if len(ends) != 2 or not all(e is None or _kind(e) == "n" for e in ends):
        raise _wrong(name, "a range (low, high) of numbers, None for an open end", asked)
    low, high = ends
    if any(e is not None and np.isnan(e) for e in ends) or (None not in ends and low > high):
        raise _wrong(name, "a range (low, high) with low <= high", asked)
    # As numpy does with plain numbers: compared in the precision that the values have.
    if dtype.kind == "f":
        low, high = (None if e is None else dtype.type(e) for e in ends)
    return low, high


def _wrong(name: str, expected: str, found: Any) -> ParameterError:
    return ParameterError("unusable condition", where=name, expected=expected, found=found)
