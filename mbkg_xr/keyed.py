"""Sums by key, of keys that occur: what many groups need, where each chunk meets few of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Keyed", "add_up"]

_DENSE = 1 << 22  # keys up to here are counted in an array of all


@dataclass(frozen=True)
class Keyed:
    """Sums of columns, by key. They add; sums of whole numbers are exact.

    Attributes
    ----------
    keys
        ``(key,)``, increasing.
    sums
        ``(key, column)``; the first column counts.

    Examples
    --------
    >>> some = Keyed.of(np.array([7, 2, 7]), np.array([1.0, 2.0, 3.0]))
    >>> (some + some).keys.tolist(), (some + some).sums.tolist()
    ([2, 7], [[2.0, 4.0], [4.0, 8.0]])
    """

    keys: NDArray[np.int64]
    sums: NDArray[np.float64]

    @classmethod
    def of(cls, keys: NDArray[np.int64], *values: NDArray) -> Keyed:
        """Count keys, and sum values that belong to them."""
        return cls.summed(keys, np.stack([np.ones(keys.size), *values], axis=1))

    @classmethod
    def summed(cls, keys: NDArray[np.int64], values: NDArray[np.float64]) -> Keyed:
        """Add up rows of the same key."""
        if not keys.size:
            return cls(keys.astype(np.int64), values)
        if int(keys.max()) < _DENSE:
            found = np.flatnonzero(np.bincount(keys))
            place = np.zeros(int(keys.max()) + 1, np.int64)
            place[found] = np.arange(found.size)
            inverse = place[keys]
        else:
            found, inverse = np.unique(keys, return_inverse=True)
        sums = [np.bincount(inverse, column, found.size) for column in values.T]
        return cls(found.astype(np.int64), np.stack(sums, axis=1))

    def __add__(self, other: Keyed) -> Keyed:
        keys = np.concatenate([self.keys, other.keys])
        return self.summed(keys, np.concatenate([self.sums, other.sums]))

    def dense(self, size: int) -> NDArray[np.float64]:
        """``(size, column)``, zero for keys that did not occur."""
        out = np.zeros((size, self.sums.shape[1]))
        out[self.keys] = self.sums
        return out


class _Adds(Protocol):
    def __add__(self, other: Any) -> Any: ...


A = TypeVar("A", bound=_Adds)


def add_up(parts: Iterable[A]) -> A | None:
    """The sum of many, two of about one size at a time; None of none.

    Examples
    --------
    >>> add_up(range(5))
    10
    """
    held: list[tuple[int, A]] = []
    for part in parts:
        count, total = 1, part
        while held and held[-1][0] == count:
            total = held.pop()[1] + total
            count *= 2
        held.append((count, total))
    if not held:
        return None
    _, total = held.pop()
    while held:
        total = held.pop()[1] + total
    return total
