"""What the exposures of each nod hold: sums over slits that lie on the same detector pixels.

The exposures of a visit may be thousands; what a slit needs of those at other nods is their sum. A
`Cell` is a slitlet at one nod, at one place on the detector; its sums are added up over exposures,
a few chunks of slits at a time, for blocks of slitlets that are small enough to be held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .kernels import kernel

__all__ = ["A_PIXEL", "Asked", "CellSums", "Cells", "add_slits", "added_sums", "means_of_others"]

#: Bytes of a pixel of a cell: sums of flux and variance, and their number.
A_PIXEL = 8 + 8 + 4


@dataclass(frozen=True)
class Asked:
    """Cells that some slits take as their other nods, and where these lie on the detector.

    Attributes
    ----------
    cells
        All of them, once, increasing.
    ends, place, rows, columns
        Those of slit s are ``place[ends[s]:ends[s + 1]]``, positions in `cells`; pixel (i, j) of
        the slit is (i + row, j + column) of the cell.
    """

    cells: NDArray[np.int64]
    ends: NDArray[np.int64]
    place: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


class Cells:
    """Which slits lie on the same pixels at the same nod, and which are other nods of which.

    Parameters
    ----------
    ds
        A slit dataset.

    Attributes
    ----------
    of
        (slit,), the cell of each slit. Cells of a slitlet are neighbours.
    group
        (cell,), the slitlet of each cell: shutters of a visit seen by a detector.
    """

    def __init__(self, ds: xr.Dataset):
        # Slitlet numbers begin anew in each MSA configuration of a visit; the shutters tell them
        # apart.
        same = ["program", "visit", "detector", "slitlet"]
        same += ["quadrant", "shutter_row", "shutter_column"]
        keys = list(zip(*(ds[c].values.tolist() for c in same), strict=True))
        rank = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        group = np.array([rank[key] for key in keys], dtype=np.int64)
        nods = {key: i for i, key in enumerate(dict.fromkeys(ds["nod"].values.tolist()))}
        nod = np.array([nods[key] for key in ds["nod"].values.tolist()], dtype=np.int64)
        places = [np.asarray(ds[c].values, dtype=np.int64) for c in ("y_start", "x_start")]
        table = np.stack([group, nod, *places], axis=1)
        cells, of = np.unique(table, axis=0, return_inverse=True)
        self.of = of.reshape(-1).astype(np.int64)
        self.group, self.nod, self.y, self.x = cells.T
        self.ends = np.searchsorted(self.group, np.arange(len(rank) + 1))

    def blocks(
        self, pixels: int, most: int, *, few: int = 0, slitlets: int = 0
    ) -> NDArray[np.int64]:
        """First cells of blocks of whole slitlets whose sums take no more bytes than `most`.

        Parameters
        ----------
        pixels
            Of a slit.
        most
            Bytes.
        few, slitlets
            Slitlets of up to so many exposures are in blocks of their own, of so many.

        Returns
        -------
        numpy.ndarray
            The number of cells last.
        """
        fit = max(most // (A_PIXEL * max(pixels, 1)), 1)
        exposures = np.bincount(self.group[self.of], minlength=self.ends.size - 1)
        cuts, members = [0], 0
        for group, (start, stop) in enumerate(pairwise(self.ends.tolist())):
            small = exposures[group] <= few
            other = group > 0 and small != (exposures[group - 1] <= few)
            full = small and members == slitlets
            if start > cuts[-1] and (other or full or stop - cuts[-1] > fit):
                cuts.append(start)
                members = 0
            members += 1
        return np.array([*cuts, self.group.size], dtype=np.int64)

    def asked(self, slits: slice | NDArray[np.int64]) -> Asked:
        """The other nods of some slits."""
        own = self.of[slits]
        others = []
        for cell in own.tolist():
            group = self.group[cell]
            mine = np.arange(self.ends[group], self.ends[group + 1])
            others.append(mine[self.nod[mine] != self.nod[cell]])
        flat = np.concatenate([np.empty(0, dtype=np.int64), *others])
        counts = [o.size for o in others]
        to = np.repeat(own, counts)
        cells, place = np.unique(flat, return_inverse=True)
        rows, columns = (start[to] - start[flat] for start in (self.y, self.x))
        return Asked(cells, np.cumsum([0, *counts]), place.reshape(-1), rows, columns)


@dataclass
class CellSums:
    """Sums of some cells.

    Attributes
    ----------
    cells
        Increasing.
    sums
        (cell, y, x, 2): flux and variance.
    counts
        (cell, y, x)
    """

    cells: NDArray[np.int64]
    sums: NDArray[np.float64]
    counts: NDArray[np.int32]

    @classmethod
    def zeros(cls, cells: NDArray[np.int64], ny: int, nx: int) -> CellSums:
        """Of no exposure."""
        n = cells.size
        return cls(cells, np.zeros((n, ny, nx, 2)), np.zeros((n, ny, nx), dtype=np.int32))


def add_slits(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], *blocks: NDArray[np.float32]
) -> CellSums:
    """Sums of the cells that some chunks of slits hold.

    Parameters
    ----------
    parts
        Of each chunk, which of its slits count, and their cells.
    *blocks
        (slit, y, x, 2): flux and error of the chunks, NaN where unusable.
    """
    cells = np.unique(np.concatenate([cells for _, cells in parts]))
    out = CellSums.zeros(cells, *blocks[0].shape[1:3])
    for (slits, own), block in zip(parts, blocks, strict=True):
        _add(block, slits, np.searchsorted(cells, own), out.sums, out.counts)
    return out


def added_sums(*parts: CellSums) -> CellSums:
    """Sums over all exposures, of all cells of any of the parts; the parts stay as they are."""
    cells = np.unique(np.concatenate([part.cells for part in parts]))
    first = parts[0]
    if np.array_equal(first.cells, cells):
        out = CellSums(cells, first.sums.copy(), first.counts.copy())
        parts = parts[1:]
    else:
        out = CellSums.zeros(cells, *first.counts.shape[1:])
    for part in parts:
        for own, at in enumerate(np.searchsorted(cells, part.cells).tolist()):
            out.sums[at] += part.sums[own]
            out.counts[at] += part.counts[own]
    return out


def means_of_others(
    asked: Asked, yrel: NDArray[np.float32], *sums: CellSums
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean of the other nods of some slits, and its standard error; NaN where there is none.

    Parameters
    ----------
    asked
        The cells of the other nods.
    yrel
        (slit, y, x), NaN outside the slits.
    *sums
        Between them, all cells that are asked for.
    """
    mean, error = (np.full(yrel.shape, np.nan, dtype=np.float32) for _ in range(2))
    for part in sums:
        place = np.searchsorted(part.cells, asked.cells)
        here = place < part.cells.size
        here[here] = part.cells[place[here]] == asked.cells[here]
        # The cells of a slit are all in one part.
        where = np.where(here, place, -1)[asked.place]
        _means(
            yrel, part.sums, part.counts, asked.ends, where, asked.rows, asked.columns, mean, error
        )
    return mean, error


@kernel
def _add(block, slits, places, sums, counts):  # pragma: no cover - compiled
    for k in range(slits.size):
        s, c = slits[k], places[k]
        for i in range(block.shape[1]):
            for j in range(block.shape[2]):
                flux = np.float64(block[s, i, j, 0])
                if not np.isnan(flux):
                    sums[c, i, j, 0] += flux
                    sums[c, i, j, 1] += np.float64(block[s, i, j, 1]) ** 2
                    counts[c, i, j] += 1


@kernel
def _means(yrel, sums, counts, ends, where, rows, columns, mean, error):  # pragma: no cover
    n_slits, ny, nx = yrel.shape
    for s in range(n_slits):
        if ends[s] == ends[s + 1] or where[ends[s]] < 0:
            continue
        for i in range(ny):
            for j in range(nx):
                if np.isnan(yrel[s, i, j]):
                    continue
                total, variance, n = 0.0, 0.0, 0
                for p in range(ends[s], ends[s + 1]):
                    # The same detector pixel, wherever the other cut-out begins.
                    k, m = i + rows[p], j + columns[p]
                    if k < 0 or k >= ny or m < 0 or m >= nx:
                        continue
                    total += sums[where[p], k, m, 0]
                    variance += sums[where[p], k, m, 1]
                    n += counts[where[p], k, m]
                if n > 0:
                    mean[s, i, j] = total / n
                    error[s, i, j] = np.sqrt(variance) / n
