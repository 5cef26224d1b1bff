"""Pixels of some slits in flat columns: as they lie in their planes, or packed span by span.

A sixth of the pixels are sky at shutter centres, and half of all are of any use to a fit. Packed,
those of a slit are in the order of the spans, so that a kernel finds all that a slit has in one
span together, and touches its sums once. What is here are plain arrays: it can be sent, kept on
another machine, or written to a scratch file and read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .kernels import kernel
from .scratch import Scratch
from .spans import SpanGrid, find_span

__all__ = ["COLUMNS", "NO_PIXELS", "Packed", "Pixels", "Stored", "pack", "planes"]

#: What a pass reads of each pixel; the variances only where a product has them.
COLUMNS = ("flux", "error", "wavelength", "yrel", "var_rnoise", "var_poisson")
NO_PIXELS = np.empty(0, dtype=np.float32)
_IN_PLACE = np.empty(0, dtype=np.intp)


@dataclass(frozen=True)
class Pixels:
    """Pixels of consecutive slits.

    Attributes
    ----------
    columns
        Of `COLUMNS`, ``(n,)`` float32 each.
    start, stop
        ``(slit,)``: the pixels of slit s are ``start[s]`` to ``stop[s]``.
    order
        ``(m,)``, where in the columns they lie; empty: one after the other.
    """

    columns: tuple[NDArray[np.float32], ...]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    order: NDArray[np.intp] = field(default_factory=lambda: _IN_PLACE)

    @property
    def slits(self) -> int:
        """Number of slits."""
        return self.start.size

    @property
    def size(self) -> int:
        """Number of pixels."""
        return int((self.stop - self.start).sum())

    def take(self, rows: NDArray[np.int64]) -> Pixels:
        """Packed ones of some of the slits."""
        at = np.concatenate([np.arange(self.start[s], self.stop[s]) for s in rows])
        stop = np.cumsum(self.stop[rows] - self.start[rows])
        start = np.concatenate([[0], stop[:-1]])
        return Pixels(tuple(column[at] for column in self.columns), start, stop)

    @staticmethod
    def joined(parts: Sequence[Pixels]) -> Pixels:
        """Packed ones of consecutive slits in one."""
        columns = zip(*(part.columns for part in parts), strict=True)
        counts = np.concatenate([part.stop - part.start for part in parts])
        stop = np.cumsum(counts)
        return Pixels(tuple(map(np.concatenate, columns)), stop - counts, stop)

    def arguments(self) -> tuple[NDArray, ...]:
        """What kernels take: six columns, start, stop and order."""
        missing = len(COLUMNS) - len(self.columns)
        return (*self.columns, *[NO_PIXELS] * missing, self.start, self.stop, self.order)


@dataclass(frozen=True)
class _Lot:
    """All pixels of consecutive slits that a fit has any use for.

    Attributes
    ----------
    selected
        Those that passes read.
    others
        Those that only looks into all shutters see.
    barred
        ``(slit,)``: the first so many of the selected ones a look does not see.
    """

    selected: Pixels
    others: Pixels
    barred: NDArray[np.int64]

    @property
    def slits(self) -> int:
        """Number of slits."""
        return self.selected.slits

    @property
    def size(self) -> int:
        """Number of pixels that passes read."""
        return self.selected.size


@dataclass(frozen=True)
class Packed(_Lot):
    """Such pixels in memory."""

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(c.nbytes for part in (self.selected, self.others) for c in part.columns)

    def __sizeof__(self) -> int:
        """By this dask knows what a worker holds, and spills what is too much."""
        return self.nbytes

    def pixels(self, *, seen: bool) -> list[Pixels]:
        """Those of a pass, or those that a look sees."""
        if not seen:
            return [self.selected]
        return [replace(self.selected, start=self.selected.start + self.barred), self.others]

    def take(self, rows: NDArray[np.int64]) -> Packed:
        """Those of some of the slits."""
        return Packed(self.selected.take(rows), self.others.take(rows), self.barred[rows])

    @staticmethod
    def joined(parts: Sequence[Packed]) -> Packed:
        """Those of consecutive slits in one."""
        return Packed(
            Pixels.joined([part.selected for part in parts]),
            Pixels.joined([part.others for part in parts]),
            np.concatenate([part.barred for part in parts]),
        )

    def write(self, file: Scratch) -> Stored:
        """The same in a file."""
        place = file.write(c for part in (self.selected, self.others) for c in part.columns)
        first, last = (replace(part, columns=()) for part in (self.selected, self.others))
        return Stored(first, last, self.barred, file, place, len(self.selected.columns))


@dataclass(frozen=True)
class Stored(_Lot):
    """Such pixels whose columns lie in a file: those of passes first.

    Attributes
    ----------
    file, place
        Where they begin in which file.
    n_columns
        In it, of each part; `selected` and `others` are without.
    """

    file: Scratch
    place: int
    n_columns: int

    def pixels(self, *, seen: bool) -> list[Pixels]:
        """Those of a pass, or those that a look sees; reads them."""
        selected = self._read(0, self.selected)
        if not seen:
            return [selected]
        others = self._read(self.selected.size, self.others)
        return Packed(selected, others, self.barred).pixels(seen=True)

    def take(self, rows: NDArray[np.int64]) -> Packed:
        """Those of some of the slits; reads no others."""
        selected = self._read_some(0, self.selected, rows)
        others = self._read_some(self.selected.size, self.others, rows)
        return Packed(selected, others, self.barred[rows])

    def _read_some(self, before: int, part: Pixels, rows: NDArray[np.int64]) -> Pixels:
        """Of a part, of which so many pixels lie before it."""
        counts = part.stop[rows] - part.start[rows]
        stop = np.cumsum(counts)
        columns = np.empty((self.n_columns, int(stop[-1])), dtype=np.float32)
        for k, column in enumerate(columns):
            for s, end, count in zip(rows, stop, counts, strict=True):
                first = self.n_columns * before + k * part.size + int(part.start[s])
                column[end - count : end] = self.file.read(self.place + 4 * first, int(count))
        return Pixels(tuple(columns), stop - counts, stop)

    def _read(self, before: int, part: Pixels) -> Pixels:
        first = self.place + 4 * self.n_columns * before
        held = self.file.read(first, self.n_columns * part.size)
        return replace(part, columns=tuple(held.reshape(self.n_columns, -1)))


def planes(mask: NDArray[np.bool_], columns: Sequence[NDArray], grid: SpanGrid) -> Pixels:
    """The pixels of a mask where they lie, column by column: the rows of a column share a span.

    Parameters
    ----------
    mask
        ``(slit, y, x)``.
    columns
        Of `COLUMNS`, of the same shape.
    grid
        The spans; what is outside them is left out.
    """
    flat = tuple(np.ascontiguousarray(c, dtype=np.float32).reshape(-1) for c in columns)
    n = mask.shape[0]
    start, stop = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    order = np.empty(int(np.count_nonzero(mask)), dtype=np.intp)
    mask = np.ascontiguousarray(mask)
    wavelength = flat[COLUMNS.index("wavelength")].reshape(mask.shape)
    found = _where(mask, wavelength, grid.edges[0], grid.edges[-1], start, stop, order)
    return Pixels(flat, start, stop, order[:found])


def pack(
    selected: NDArray[np.bool_],
    seen: NDArray[np.bool_],
    columns: Sequence[NDArray],
    grid: SpanGrid,
) -> Packed:
    """Pack the pixels that passes read, and those that looks see.

    Parameters
    ----------
    selected, seen
        ``(slit, y, x)``.
    columns
        Of `COLUMNS`, of the same shape.
    grid
        The spans; what is outside them is left out.
    """
    n = selected.shape[0]
    selected, seen = np.ascontiguousarray(selected), np.ascontiguousarray(seen)
    flat = [np.ascontiguousarray(c, dtype=np.float32).reshape(-1) for c in columns]
    wavelength = flat[COLUMNS.index("wavelength")].reshape(selected.shape)
    counts = np.zeros((n, 3), dtype=np.int64)
    own = np.empty(int(np.count_nonzero(selected)), dtype=np.intp)
    rest = np.empty(int(np.count_nonzero(seen & ~selected)), dtype=np.intp)
    _in_order(selected, seen, wavelength, grid.edges, grid.lookup, grid.step, counts, own, rest)
    of_passes = counts[:, 0] + counts[:, 1]
    return Packed(
        _gathered(flat, own, of_passes), _gathered(flat, rest, counts[:, 2]), counts[:, 0].copy()
    )


def _gathered(flat: list[NDArray], order: NDArray[np.intp], counts: NDArray[np.int64]) -> Pixels:
    stop = np.cumsum(counts)
    order = order[: int(stop[-1]) if stop.size else 0]
    return Pixels(tuple(column[order] for column in flat), stop - counts, stop)


@kernel
def _where(mask, wavelength, low, high, start, stop, order):  # pragma: no cover - compiled
    ny, nx = mask.shape[1:]
    found = 0
    for s in range(mask.shape[0]):
        start[s] = found
        for j in range(nx):
            for i in range(ny):
                if mask[s, i, j] and low <= wavelength[s, i, j] < high:
                    order[found] = (s * ny + i) * nx + j
                    found += 1
        stop[s] = found
    return found


@kernel
def _in_order(
    selected, seen, wavelength, edges, lookup, step, counts, own, rest
):  # pragma: no cover - compiled
    """Where pixels lie, slit by slit in the order of the spans: selected ones that no look sees
    before the others.
    """
    ny, nx = selected.shape[1:]
    n_spans = edges.size - 1
    place = np.empty((3, n_spans + 1), dtype=np.int64)
    spans = np.empty(ny * nx, dtype=np.int32)
    kinds = np.empty(ny * nx, dtype=np.int8)
    where = np.empty(ny * nx, dtype=np.intp)
    first = np.zeros(2, dtype=np.int64)
    for s in range(selected.shape[0]):
        place[:] = 0
        found = 0
        for i in range(ny):
            for j in range(nx):
                if not (selected[s, i, j] or seen[s, i, j]):
                    continue
                n, _ = find_span(np.float64(wavelength[s, i, j]), edges, lookup, step)
                if n < 0:
                    continue
                kind = 2
                if selected[s, i, j]:
                    kind = 1 if seen[s, i, j] else 0
                spans[found], kinds[found] = n, kind
                where[found] = (s * ny + i) * nx + j
                place[kind, n + 1] += 1
                found += 1
        for kind in range(3):
            for n in range(n_spans):
                place[kind, n + 1] += place[kind, n]
            counts[s, kind] = place[kind, n_spans]
        for k in range(found):
            kind, n = kinds[k], spans[k]
            at = place[kind, n]
            place[kind, n] += 1
            if kind == 2:
                rest[first[1] + at] = where[k]
            elif kind == 1:
                own[first[0] + counts[s, 0] + at] = where[k]
            else:
                own[first[0] + at] = where[k]
        first[0] += counts[s, 0] + counts[s, 1]
        first[1] += counts[s, 2]
