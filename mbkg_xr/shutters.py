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

from .columns import Parts, Source
from .kernels import kernel
from .moments import PassState, time_factors
from .pass_kernel import read_class
from .profile_sums import FADES, N_NODES, PROFILE_FIRST, PROFILE_STEP, SPILT, ProfileSums
from .schema import CENTRE, OPEN, occupied_shutters
from .spans import find_span
from .terms import BIN_SPANS, FIRST_SHUTTER, N_SHUTTERS, Terms, profile_at, shutter_of

__all__ = [
    "CENTRE",
    "ShutterSight",
    "ShutterSums",
    "look",
    "open_shutters",
    "sky_shutters",
]

Array = NDArray[np.float64]

_ALLOWED = 0.1  # departures by this share of the sky are no outliers: slits differ so much
_CLIP = 4.5
_BOUND = 2.0  # shares of the sky past the clip to which outliers count for what slits are judged by


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

    def __add__(self, other: ShutterSums) -> ShutterSums:
        return ShutterSums(
            np.concatenate([self.weight, other.weight]),
            np.concatenate([self.excess, other.excess]),
            np.concatenate([self.far, other.far]),
            self.profile + other.profile,
        )


@kernel
def _look_block(
    flux, error, wavelength, yrel, var_rnoise, var_poisson, start, stop, order,
    source, first_open, last_open, sky, kind, row, time_factor, edges, lookup, step,
    model, gain, by_class, floor, unit, factor, change, level, offset, stray, light,
    known, along, first, pitch, known_kind,
    weight, excess, far, profile,
):  # pragma: no cover - compiled  # fmt: skip
    has_var, has_along = var_rnoise.shape[0] > 0, along.shape[0] > 0
    in_place = order.shape[0] == 0
    per_node = 1 / PROFILE_STEP
    for s in range(start.shape[0]):
        sourced = not np.isnan(source[s])
        # A source's wings reach the rows off the centres of its neighbours, and what bars leave of
        # the light there must be known.
        reach = CENTRE if sourced or known_kind[s] < 0 else OPEN
        # Pixels of one span that follow each other have all of this in common.
        n, b, low, high, per_width = -1, 0, 0.0, -1.0, 0.0
        p0 = p1 = p2 = p3 = f = a = read = other = bright = 0.0
        for k in range(start[s], stop[s]):
            at = k if in_place else order[k]
            r = np.float64(yrel[at])
            y = np.float64(flux[at])
            e2 = np.float64(error[at]) ** 2
            if not (np.isfinite(r) and np.isfinite(y) and e2 > 0 and np.isfinite(e2)):
                continue
            x = np.float64(wavelength[at])
            if not (low <= x < high):
                n, _ = find_span(x, edges, lookup, step)
                if n < 0:
                    low, high = 0.0, -1.0
                    continue
                low, high = edges[n], edges[n + 1]
                per_width, b = 1 / (high - low), n // BIN_SPANS
                p0, p1 = model[n, 0] * change[s, n], model[n, 1] * change[s, n]
                p2, p3 = model[n, 2] * change[s, n], model[n, 3] * change[s, n]
                f, other, bright = factor[s, n], offset[s, n], light[s, b]
                a, read = gain[n] * time_factor[s], floor[n]
            t = (x - low) * per_width
            mean = ((p3 * t + p2) * t + p1) * t + p0
            if not mean > 0:
                continue
            z = np.floor(r + 0.5)
            at_source = sourced and abs(r - source[s]) <= 0.5
            g = profile_at(known, first, pitch, known_kind[s], r, n + t)
            inside = shutter_of(r)
            share, added = f + level[s, inside], other
            if has_along and other != 0:
                added *= profile_at(along, first, pitch, known_kind[s], r, n + t)
            variance = e2
            if a >= 0:
                rest = np.float64(var_rnoise[at]) if has_var else read
                if rest > 0 and np.isfinite(rest):
                    c = read_class(rest / read) if has_var and read > 0 else 0
                    variance = rest + by_class[c] * a * max(share * g * mean + added, 0.0)
            variance *= unit * unit
            rest = y - added - share * g * mean
            past = z < first_open[s] or z > last_open[s]
            most = _CLIP * _CLIP * (variance + (_ALLOWED * mean) ** 2)
            if not (at_source or past) and rest * rest > most:
                if abs(r - z) <= reach:
                    w = g * mean / variance
                    bound = np.sqrt(most) + _BOUND * mean
                    near = y - rest + min(max(rest, -bound), bound)
                    far[s, 0, inside, b] += w * g * mean
                    far[s, 1, inside, b] += w * (near - (added - other) - g * mean)
                # Where the profile is not known yet, a bar is no outlier. Once it is, what is
                # let off here and not at the centres would be taken for light.
                if abs(r - z) <= reach or known_kind[s] >= 0:
                    continue
                if abs(rest) > _CLIP * np.sqrt(variance) + 0.5 * mean:
                    continue
            # All rows of a source's shutter count: what reaches the next one goes with all of
            # its light, wherever in the shutter it sits.
            if at_source or (abs(r - z) <= reach and not past):
                m = g * mean
                w = m / variance
                weight[s, inside, b] += w * m
                excess[s, inside, b] += w * (y - (added - other) - m)
            # Rows past the last open shutter show how its light ends.
            end = shutter_of(min(max(z, first_open[s]), last_open[s]))
            if sky[s, end] and not at_source and kind[s] >= 0:
                if past and abs(rest) > _CLIP * np.sqrt(variance) + 1.5 * mean:
                    continue
                m = share * mean
                if sourced:
                    spilt = bright * mean
                    y -= stray[s, end] * spilt
                    # Rows so near a source hardly tell the profile.
                    away = abs(r - source[s])
                    doubt = SPILT * np.exp((0.5 - away) / FADES) * spilt
                    variance += doubt * doubt
                node = int(np.floor((r - PROFILE_FIRST) * per_node + 0.5))
                if 0 <= node < profile.shape[2]:
                    w = m / variance
                    profile[0, row[s], node, b] += w * m
                    profile[1, row[s], node, b] += w * (y - added)


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
    """Which pixels a look sees, and whose: a `mbkg_xr.columns.Sight`.

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
        From `mbkg_xr.columns.held`, with this `sight`.
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
    known = np.ones((len(kinds), N_NODES, n_bins))
    for index in (i for i, k in enumerate(kinds) if k in table.kinds):
        known[index] = table.values[table.kinds.index(kinds[index])]

    def block(slits: slice, parts: Parts, shared: tuple[PassState, Terms]) -> ShutterSums:
        state, own = shared[0], shared[1].part(slits)
        kind, n = sight.kind[slits], slits.stop - slits.start
        tells = np.flatnonzero((kind >= 0) & sky[slits].any(axis=1))
        row = np.full(n, -1, dtype=np.int64)
        row[tells] = np.arange(tells.size)
        weight, excess = np.zeros((2, n, N_SHUTTERS, n_bins))
        far = np.zeros((n, 2, N_SHUTTERS, n_bins))
        along = np.zeros((2, tells.size, N_NODES, n_bins))
        factors, change, offset = own.factor(), own.change(), own.offset()
        for where, some in parts:
            at = slice(where.start - slits.start, where.stop - slits.start)
            _look_block(
                *some.arguments(),
                sight.source[where], sight.first_open[where], sight.last_open[where],
                sky[where], sight.kind[where], row[at], factor[where],
                grid.edges, grid.lookup, grid.step,
                state.model, state.gain, state.by_class, state.floor, state.unit,
                factors[at], change[at], own.level[at], offset[at], own.leak[at], own.light[at],
                own.profile.values, own.profile.pedestal, own.profile.first, own.profile.step,
                own.kind[at],
                weight[at], excess[at], far[at], along,
            )  # fmt: skip
        profile = ProfileSums.of(
            along[0], along[1], kind[tells], kinds, known, phase,
            sight.source[slits][tells], own.light[tells],
        )  # fmt: skip
        return ShutterSums(weight, excess, far.astype(np.float32), profile)

    return pixels.reduce(block, lambda a, b: a + b, (state, terms), seen=True)
