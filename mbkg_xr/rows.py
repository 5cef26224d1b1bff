"""Tables by slit that the tasks of a pass fill, each its own rows, so that memory does not grow.

Joined from the tables of blocks they would be there twice at the end, and leave holes behind in the
memory of every thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from numpy.typing import DTypeLike, NDArray

from .tables import let_go, zeros

__all__ = ["Piece", "Rows"]

#: Rows that could not be put where they belong, and which they are.
Piece = tuple[slice, tuple[NDArray, ...]]


class Rows:
    """Arrays over all slits. Another process that is sent them puts nothing, but brings it back.

    Examples
    --------
    >>> import pickle
    >>> import numpy as np
    >>> rows = Rows.zeros(3, ((2,), np.float64))
    >>> there = pickle.loads(pickle.dumps(rows))
    >>> left = rows.put(slice(0, 2), np.ones((2, 2))) + there.put(slice(2, 3), np.full((1, 2), 7.0))
    >>> rows.filled(left)[0].tolist()
    [[1.0, 1.0], [1.0, 1.0], [7.0, 7.0]]
    """

    def __init__(self, *arrays: NDArray):
        self._arrays = arrays

    @classmethod
    def zeros(cls, n: int, *each: tuple[tuple[int, ...], DTypeLike]) -> Rows:
        """For `n` slits, from the shape of a row and the type of each array."""
        return cls(*(zeros((n, *shape), dtype) for shape, dtype in each))

    def __reduce__(self) -> tuple:
        return Rows, ()

    def put(self, slits: slice, *values: NDArray) -> list[Piece]:
        """Put rows where they belong; what is for others to put is returned."""
        if not self._arrays:
            return [(slits, values)]
        for array, rows in zip(self._arrays, values, strict=True):
            array[slits] = rows
        let_go()
        return []

    def filled(self, pieces: Iterable[Piece]) -> tuple[NDArray, ...]:
        """All arrays, once what `put` returned is in them."""
        for slits, values in pieces:
            self.put(slits, *values)
        return self._arrays
