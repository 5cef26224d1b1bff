"""What every shutter of every slit holds against the master: one pass over all usable pixels.

Unlike the fit's own passes it also looks into the shutters that hold sources: their light tells how
much of it the shutters beside them must expect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .kernels import kernel
from .look_kernel import look_pixels
from .moments import PassState, time_factors
from .profile_sums import N_NODES, ProfileSums
from .rows import Piece, Rows
from .schema import CENTRE, OPEN, occupied_shutters
from .sources import Parts, Source
from .tables import lots
from .terms import BIN_SPANS, FIRST_SHUTTER, N_SHUTTERS, Terms, shutter_of

__all__ = [
    "CENTRE",
    "ShutterSight",
    "ShutterSums",
    "look",
    "open_shutters",
    "sky_shutters",
]

Array = NDArray[np.float64]


def open_shutters(n_shutters: NDArray) -> NDArray[np.bool_]:
    """``(slit, shutter)``: the shutters of slitlets of so many; all where that is not known.

    yrel is 0 at the middle shutter; of an even number, at the one before the middle.

    Examples
    --------
    >>> open_shutters(np.array([3, 2])).astype(int).tolist()
    [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0]]
    """
    position = FIRST_SHUTTER + np.arange(N_SHUTTERS)
    n = np.asarray(n_shutters)[:, None]
    return (n <= 0) | ((position >= -((n - 1) // 2)) & (position <= n // 2))


def sky_shutters(slits: xr.Dataset) -> NDArray[np.bool_]:
    """``(slit, shutter)``: open shutters that are known to hold no source."""
    background, source = slits["is_background"].values, slits["source_shutter"].values
    position = FIRST_SHUTTER + np.arange(N_SHUTTERS)
    # A slit that does not say where its source sits has no shutter known to be empty.
    known = background | np.isfinite(source)
    taken = np.abs(position[None, :, None] - occupied_shutters(slits)) <= 0.5
    return known[:, None] & ~taken.any(axis=2) & open_shutters(slits["n_shutters"].values)


@dataclass
class ShutterSums:
    """Sums over pixels, with y the flux, m the master, g the profile and v the variance.

    Attributes
    ----------
    weight, excess
        ``(slit, shutter, bin)``: sum m^2 g^2 / v and sum m g (y - g m) / v at shutter centres, in
        sky slits whose profile is known up to the bars, and in all of a source's shutter: their
        ratio is how much more than the master a shutter holds, as a fraction of it, and one
        over the first the variance of that.
    far
        ``(slit, 2, shutter, bin)``: what would come to weight and excess from the pixels that are
        kept from them as outliers, their departures bounded. A shutter that is wrong as a whole is
        nothing but outliers.
    profile
        What the pixels of shutters that are sky say of the profile.
    """

    weight: Array
    excess: Array
    far: NDArray[np.float32]
    profile: ProfileSums

    def information(self) -> Array:
        """``(bin,)``: sum of the weights, of all slits."""
        parts = [self.weight[lot].sum(axis=(0, 1)) for lot in lots(len(self.weight))]
        return np.sum(parts, axis=0)


#: Of some slits: rows of sums that are not in their place yet, and what is said of the profile.
_Looked = tuple[list[Piece], ProfileSums]


@kernel
def _in_sight(
    quality, yrel, bits, source, first_open, last_open, sky, kind, mask
):  # pragma: no cover - compiled
    for s in range(quality.shape[0]):
        sourced = not np.isnan(source[s])
        for i in range(quality.shape[1]):
            for j in range(quality.shape[2]):
                r = np.float64(yrel[s, i, j])
                if quality[s, i, j] & bits or not np.isfinite(r):
                    continue
                z = np.floor(r + 0.5)
                past = z < first_open[s] or z > last_open[s]
                end = shutter_of(min(max(z, first_open[s]), last_open[s]))
                at_source = sourced and abs(r - source[s]) <= 0.5
                centre = abs(r - z) <= OPEN and not past
                mask[s, i, j] = at_source or centre or (kind[s] >= 0 and sky[s, end])


@dataclass(frozen=True)
class ShutterSight:
    """Which pixels a look sees, and whose: a `mbkg_xr.sources.Sight`.

    Attributes
    ----------
    bits
        Quality bits that keep a pixel out.
    source
        ``(slit,)``, yrel of the slit's source, NaN for none.
    first_open, last_open
        ``(slit,)``, yrel of the outermost open shutters.
    sky
        ``(slit, shutter)``, shutters whose pixels may tell the profile.
    kind
        ``(slit,)``, which of the profiles that are wanted is the slit's, -1 for none.
    kinds
        Numbers of open shutters for which a profile is wanted.
    """

    bits: Any
    source: Array
    first_open: Array
    last_open: Array
    sky: NDArray[np.bool_]
    kind: NDArray[np.int64]
    kinds: tuple[int, ...]
    columns = ("quality", "yrel")

    @classmethod
    def of(
        cls, ds: xr.Dataset, *, bits: int, sky: NDArray[np.bool_], kinds: tuple[int, ...]
    ) -> ShutterSight:
        """Of the slits of a dataset (`bits`, `sky` and `kinds` as they become)."""
        source = np.where(ds["is_background"].values, np.nan, ds["source_shutter"].values)
        n = ds["n_shutters"].values.astype(np.float64)
        first = np.where(n > 0, -((n - 1) // 2), FIRST_SHUTTER)
        last = np.where(n > 0, n // 2, FIRST_SHUTTER + N_SHUTTERS - 1)
        rank = {k: i for i, k in enumerate(kinds)}
        kind = np.array([rank.get(int(k), -1) for k in ds["n_shutters"].values], dtype=np.int64)
        kind[~sky.any(axis=1)] = -1
        mask = ds["quality"].dtype.type(bits)
        return cls(mask, source.astype(np.float64), first, last, sky, kind, kinds)

    def part(self, rows: NDArray[np.int64]) -> ShutterSight:
        """Of some of the slits."""
        names = ("source", "first_open", "last_open", "sky", "kind")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def mask(self, slits: slice | NDArray[np.int64], *columns: NDArray) -> NDArray[np.bool_]:
        """``(slit, y, x)``: pixels that a look might count."""
        quality, yrel = columns
        out = np.zeros(yrel.shape, dtype=np.bool_)
        _in_sight(
            quality, yrel, self.bits, self.source[slits], self.first_open[slits],
            self.last_open[slits], self.sky[slits], self.kind[slits], out,
        )  # fmt: skip
        return out


def look(
    pixels: Source,
    state: PassState,
    terms: Terms,
    *,
    sight: ShutterSight,
    sky: NDArray[np.bool_],
    phase: Array,
) -> ShutterSums:
    """Look into all shutters of all slits.

    Parameters
    ----------
    pixels
        From `mbkg_xr.held.held`, with this `sight`.
    state, terms
        The present master and noise, and what differs from slit to slit.
    sight
        What looks see.
    sky
        ``(slit, shutter)``, shutters whose pixels tell the profile: of those of `sight`.
    phase
        ``(bin,)``, -1 to 1 over the fitted range.

    Returns
    -------
    ShutterSums
    """
    grid, kinds = pixels.grid, sight.kinds
    factor = time_factors(pixels.slits)
    n_bins = -(-grid.size // BIN_SPANS)
    table = terms.profile
    profiles = table.stacked()
    known = np.ones((len(kinds), N_NODES, n_bins))
    for index in (i for i, k in enumerate(kinds) if k in table.kinds):
        known[index] = table.values[table.kinds.index(kinds[index])]

    shape = (N_SHUTTERS, n_bins)
    rows = Rows.zeros(
        sight.source.size, (shape, np.float64), (shape, np.float64), ((2, *shape), np.float32)
    )

    def block(slits: slice, parts: Parts, shared: tuple[PassState, Terms]) -> _Looked:
        state, own = shared[0], shared[1].part(slits)
        kind, n = sight.kind[slits], slits.stop - slits.start
        tells = np.flatnonzero((kind >= 0) & sky[slits].any(axis=1))
        row = np.full(n, -1, dtype=np.int64)
        row[tells] = np.arange(tells.size)
        weight, excess = np.zeros((2, n, *shape))
        far = np.zeros((n, 2, *shape))
        along = np.zeros((2, tells.size, N_NODES, n_bins))
        factors, change, offset = own.factor(), own.change(), own.offset()
        for where, some in parts:
            at = slice(where.start - slits.start, where.stop - slits.start)
            columns = some.arguments()
            look_pixels(
                columns[:6], *columns[6:],
                (
                    sight.source[where], sight.first_open[where], sight.last_open[where],
                    sky[where], sight.kind[where], row[at],
                ),
                factor[where], (grid.edges, grid.lookup, grid.step),
                (state.model, state.gain, state.by_class, state.floor, state.unit),
                (
                    factors[at], change[at], own.level[at], offset[at], own.leak[at], own.light[at],
                ),
                profiles, own.profile.place, own.profile.rows(own.kind[at]), own.kind[at] >= 0,
                weight[at], excess[at], far[at], along,
            )  # fmt: skip
        profile = ProfileSums.of(
            along[0], along[1], kind[tells], kinds, known, phase,
            sight.source[slits][tells], own.light[tells],
        )  # fmt: skip
        return rows.put(slits, weight, excess, far.astype(np.float32)), profile

    def add(a: _Looked, b: _Looked) -> _Looked:
        return a[0] + b[0], a[1] + b[1]

    pieces, profile = pixels.reduce(block, add, (state, terms), seen=True)
    weight, excess, far = rows.filled(pieces)
    return ShutterSums(weight, excess, far, profile)
