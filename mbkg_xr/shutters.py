"""What every shutter of every slit holds against the master: one pass over all usable pixels.

Unlike the fit's own passes it also looks into the shutters that hold sources: their light tells how
much of it the shutters beside them must expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import reduce_blocks
from .kernels import kernel
from .moments import PassState, time_factors
from .profile_sums import FADES, N_NODES, PROFILE_FIRST, PROFILE_STEP, SPILT, ProfileSums
from .schema import CENTRE, OPEN, occupied_shutters
from .spans import SpanGrid, find_span
from .terms import BIN_SPANS, FIRST_SHUTTER, N_SHUTTERS, Terms, profile_at, shutter_of

__all__ = [
    "CENTRE",
    "ShutterSums",
    "look",
    "open_shutters",
    "sky_shutters",
]

Array = NDArray[np.float64]

_ALLOWED = 0.1  # departures by this share of the sky are no outliers: slits differ so much
_CLIP = 4.5


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
    profile
        What the pixels of shutters that are sky say of the profile.
    """

    weight: Array
    excess: Array
    profile: ProfileSums

    def __add__(self, other: ShutterSums) -> ShutterSums:
        return ShutterSums(
            np.concatenate([self.weight, other.weight]),
            np.concatenate([self.excess, other.excess]),
            self.profile + other.profile,
        )


@kernel
def _look_block(
    flux, error, var_rnoise, var_poisson, quality, wavelength, yrel,
    bits, source, first_open, last_open, sky, kind, time_factor, edges, lookup, step,
    model, gain, floor, unit, factor, change, level, offset, stray, light,
    known, first, pitch, known_kind,
    weight, excess, profile,
):  # pragma: no cover - compiled  # fmt: skip
    has_var = var_rnoise.shape[0] > 0
    per_node, n = 1 / PROFILE_STEP, -1
    for s in range(flux.shape[0]):
        sourced = not np.isnan(source[s])
        # A source's wings reach the rows off the centres of its neighbours, and what bars leave of
        # the light there must be known.
        reach = CENTRE if sourced or known_kind[s] < 0 else OPEN
        for i in range(flux.shape[1]):
            for j in range(flux.shape[2]):
                if quality[s, i, j] & bits:
                    continue
                r = np.float64(yrel[s, i, j])
                y = np.float64(flux[s, i, j])
                e2 = np.float64(error[s, i, j]) ** 2
                if not (np.isfinite(r) and np.isfinite(y) and e2 > 0 and np.isfinite(e2)):
                    continue
                x = np.float64(wavelength[s, i, j])
                # The next pixel of a row lies in the next span, as a rule.
                if 0 <= n < edges.size - 2 and edges[n + 1] <= x < edges[n + 2]:
                    n += 1
                elif not (n >= 0 and edges[n] <= x < edges[n + 1]):
                    n, _ = find_span(x, edges, lookup, step)
                    if n < 0:
                        continue
                t = (x - edges[n]) / (edges[n + 1] - edges[n])
                mean = ((model[n, 3] * t + model[n, 2]) * t + model[n, 1]) * t + model[n, 0]
                mean *= change[s, n]
                if not mean > 0:
                    continue
                z = np.floor(r + 0.5)
                at_source = sourced and abs(r - source[s]) <= 0.5
                b = n // BIN_SPANS
                g = profile_at(known, first, pitch, known_kind[s], r, n + t)
                inside = shutter_of(r)
                share = factor[s, n] + level[s, inside]
                variance = e2
                a = gain[n] * time_factor[s]
                if a >= 0:
                    rest = np.float64(var_rnoise[s, i, j]) if has_var else floor[n]
                    if rest > 0 and np.isfinite(rest):
                        variance = rest + a * max(share * g * mean + offset[s, n], 0.0)
                variance *= unit * unit
                rest = y - offset[s, n] - share * g * mean
                past = z < first_open[s] or z > last_open[s]
                if not (at_source or past) and rest * rest > _CLIP * _CLIP * (
                    variance + (_ALLOWED * mean) ** 2
                ):
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
                    excess[s, inside, b] += w * (y - m)
                # Rows past the last open shutter show how its light ends.
                end = shutter_of(min(max(z, first_open[s]), last_open[s]))
                if sky[s, end] and not at_source and kind[s] >= 0:
                    if past and abs(rest) > _CLIP * np.sqrt(variance) + 1.5 * mean:
                        continue
                    m = share * mean
                    if sourced:
                        spilt = light[s, b] * mean
                        y -= stray[s, end] * spilt
                        # Rows so near a source hardly tell the profile.
                        away = abs(r - source[s])
                        doubt = SPILT * np.exp((0.5 - away) / FADES) * spilt
                        variance += doubt * doubt
                    node = int(np.floor((r - PROFILE_FIRST) * per_node + 0.5))
                    if 0 <= node < profile.shape[2]:
                        w = m / variance
                        profile[0, s, node, b] += w * m
                        profile[1, s, node, b] += w * (y - offset[s, n])


def look(
    ds: xr.Dataset,
    grid: SpanGrid,
    state: PassState,
    terms: Terms,
    *,
    bits: int,
    sky: NDArray[np.bool_],
    kinds: tuple[int, ...],
    phase: Array,
) -> ShutterSums:
    """Look into all shutters of all slits.

    Parameters
    ----------
    ds
        A slit dataset, lazy or in memory.
    grid, state, terms
        The spans, the present master and noise, and what differs from slit to slit.
    bits
        Quality bits that keep a pixel out.
    sky
        ``(slit, shutter)``, shutters whose pixels tell the profile.
    kinds
        Numbers of open shutters for which a profile is wanted.
    phase
        ``(bin,)``, -1 to 1 over the fitted range.

    Returns
    -------
    ShutterSums
    """
    factor = time_factors(ds)
    has_var = "var_rnoise" in ds and "var_poisson" in ds
    names = ["flux", "error", "quality", "wavelength", "yrel"]
    names += ["var_rnoise", "var_poisson"] if has_var else []
    source = np.where(ds["is_background"].values, np.nan, ds["source_shutter"].values)
    rank = {k: i for i, k in enumerate(kinds)}
    n = ds["n_shutters"].values.astype(np.float64)
    first_open = np.where(n > 0, -((n - 1) // 2), FIRST_SHUTTER)
    last_open = np.where(n > 0, n // 2, FIRST_SHUTTER + N_SHUTTERS - 1)
    kind = np.array([rank.get(int(n), -1) for n in ds["n_shutters"].values], dtype=np.int64)
    n_bins = -(-grid.size // BIN_SPANS)
    mask = ds["quality"].dtype.type(bits)
    table = terms.profile
    known = np.ones((len(kinds), N_NODES, n_bins))
    for index in (i for i, k in enumerate(kinds) if k in table.kinds):
        known[index] = table.values[table.kinds.index(kinds[index])]

    def block(start: int, arrays: Sequence[Any], shared: tuple[PassState, Terms]) -> ShutterSums:
        flux, error, quality, wavelength, yrel, *variances = arrays
        none = np.empty((0, 0, 0), dtype=np.float32)
        rnoise, poisson = variances or (none, none)
        part = slice(start, start + flux.shape[0])
        state, own = shared[0], shared[1].part(part)
        weight, excess = np.zeros((2, flux.shape[0], N_SHUTTERS, n_bins))
        along = np.zeros((2, flux.shape[0] if kinds else 0, N_NODES, n_bins))
        _look_block(
            flux, error, rnoise, poisson, quality, wavelength, yrel,
            mask, source[part], first_open[part], last_open[part],
            sky[part], kind[part], factor[part],
            grid.edges, grid.lookup, grid.step,
            state.model, state.gain, state.floor, state.unit,
            own.factor(), own.change(), own.level, own.offset(), own.leak, own.light,
            own.profile.values, own.profile.first, own.profile.step, own.kind,
            weight, excess, along,
        )  # fmt: skip
        profile = ProfileSums.of(
            along[0], along[1], kind[part], kinds, known, phase, source[part], own.light
        )
        return ShutterSums(weight, excess, profile)

    return reduce_blocks(ds, names, block, lambda a, b: a + b, (state, terms))
