"""The kernel of a look: what shutters hold, and what their rows say of the profile."""

from __future__ import annotations

import numpy as np

from .kernels import kernel
from .pass_kernel import (
    BLOCK,
    FLUX,
    KIND,
    NONE,
    READ,
    SPAN,
    SQUARE,
    YREL,
    T,
    read_block,
    read_class,
)
from .profile_sums import FADES, PROFILE_FIRST, PROFILE_STEP, SPILT
from .schema import CENTRE, OPEN
from .terms import BIN_SPANS, profile_layer, profile_place, shutter_of

__all__ = ["look_pixels"]

_ALLOWED = 0.1  # departures by this share of the sky are no outliers: slits differ so much
_CLIP = 4.5
_BOUND = 2.0  # shares of the sky past the clip to which outliers count for what slits are judged by

# Of each pixel of a block, beside what is read: the master there, what is expected of a shutter
# that holds as much, what bars add to a pedestal, the variance, and what is left.
_MEAN, _HERE, _BARS, _VARIANCE, _REST, _N_REAL = (BLOCK * i for i in range(6, 12))


@kernel
def look_pixels(
    columns, start, stop, order, sight, time_factor, spans, state, slits, profiles, place_of, kind,
    has_profile, weight, excess, far, profile,
):  # pragma: no cover - compiled  # fmt: skip
    """Sums over all pixels that a look sees (`mbkg_xr.shutters.ShutterSums`), added to the arrays.

    In tuples: `columns`, of `packing.COLUMNS`; `sight`, of `shutters.ShutterSight` what is by slit,
    and the slit's row in `profile`; `spans`, edges, lookup and step; `state`, of
    `moments.PassState`; `slits`, what slits differ by, of `terms.Terms`.
    """
    source, first_open, last_open, sky, profile_kind, row = sight
    model, gain, by_class, floor, unit = state
    factor, change, level, offset, stray, light = slits
    edges, lookup, step = spans
    spans_of = (edges, 1 / (edges[1:] - edges[:-1]), lookup, 1 / step)
    has_var = columns[4].shape[0] > 0
    noise = (1 / floor, by_class, unit * unit, has_var)
    by_span = np.empty((5, edges.size - 1))
    real, whole = np.empty(_N_REAL), np.empty(3 * BLOCK, np.int64)
    for s in range(start.shape[0]):
        for n in range(edges.size - 1):
            by_span[0, n] = factor[s, n]
            by_span[1, n] = offset[s, n]
            by_span[2, n] = change[s, n]
            by_span[3, n] = gain[n] * time_factor[s]
            by_span[4, n] = floor[n]
        of_slit = (by_span, level[s], profiles[kind[s]], place_of)
        opened = (source[s], first_open[s], last_open[s], has_profile[s])
        told = (sky[s], profile_kind[s] >= 0, row[s], stray[s], light[s])
        for first in range(start[s], stop[s], BLOCK):
            m = min(BLOCK, stop[s] - first)
            read_block(columns, order, first, m, spans_of, real, whole)
            _expect_block(m, model, of_slit, noise, real, whole)
            _add_block(
                m, by_span, level[s], opened, told, real, whole, weight[s], excess[s], far[s],
                profile,
            )  # fmt: skip


@kernel
def _expect_block(m, model, of_slit, noise, real, whole):  # pragma: no cover - compiled
    by_span, level, profile, place_of = of_slit
    per_floor, by_class, unit2, has_var = noise
    for k in range(m):
        n, t, r = whole[SPAN + k], real[T + k], real[YREL + k]
        mean = ((model[n, 3] * t + model[n, 2]) * t + model[n, 1]) * t + model[n, 0]
        mean *= by_span[2, n]
        place = profile_place(profile, place_of, r, n + t)
        g, v = profile_layer(profile, place, 0), profile_layer(profile, place, 1)
        here, added = g * mean, by_span[1, n] * v
        expected = (by_span[0, n] + level[shutter_of(r)]) * here
        gain, floor = by_span[3, n], by_span[4, n]
        read = real[READ + k] if has_var else floor
        kind = read_class(read * per_floor[n]) if has_var and floor > 0 else 0
        known = gain >= 0 and read > 0 and np.isfinite(read)
        modelled = read + by_class[kind] * gain * max(expected + added, 0.0)
        real[_VARIANCE + k] = (modelled if known else real[SQUARE + k]) * unit2
        real[_MEAN + k], real[_HERE + k], real[_BARS + k] = mean, here, added - by_span[1, n]
        real[_REST + k] = real[FLUX + k] - added - expected
        if not (mean > 0 and np.isfinite(r)):
            whole[KIND + k] = NONE


@kernel
def _add_block(
    m, by_span, level, opened, told, real, whole, weight, excess, far, profile
):  # pragma: no cover - compiled
    """Add up what one slit's pixels say of its shutters, and of the profile."""
    source, first_open, last_open, has_profile = opened
    sky, tells, row, stray, light = told
    sourced, per_node = not np.isnan(source), 1 / PROFILE_STEP
    # A source's wings reach the rows off the centres of its neighbours, and what bars leave of
    # the light there must be known.
    reach = CENTRE if sourced or not has_profile else OPEN
    for k in range(m):
        if whole[KIND + k] == NONE:
            continue
        n, r, y = whole[SPAN + k], real[YREL + k], real[FLUX + k]
        mean, here, variance, rest = (
            real[_MEAN + k], real[_HERE + k], real[_VARIANCE + k], real[_REST + k],
        )  # fmt: skip
        b, bars = n // BIN_SPANS, real[_BARS + k]
        z, inside = np.floor(r + 0.5), shutter_of(r)
        away = abs(r - source) if sourced else np.inf
        at_source, past, near = away <= 0.5, z < first_open or z > last_open, abs(r - z) <= reach
        most = _CLIP * _CLIP * (variance + (_ALLOWED * mean) ** 2)
        if not (at_source or past) and rest * rest > most:
            if near:
                w = here / variance
                bound = np.sqrt(most) + _BOUND * mean
                bounded = y - rest + min(max(rest, -bound), bound)
                far[0, inside, b] += w * here
                far[1, inside, b] += w * (bounded - bars - here)
            # Where the profile is not known yet, a bar is no outlier. Once it is, what is
            # let off here and not at the centres would be taken for light.
            if near or has_profile:
                continue
            if abs(rest) > _CLIP * np.sqrt(variance) + 0.5 * mean:
                continue
        # All rows of a source's shutter count: what reaches the next one goes with all of
        # its light, wherever in the shutter it sits.
        if at_source or (near and not past):
            w = here / variance
            weight[inside, b] += w * here
            excess[inside, b] += w * (y - bars - here)
        # Rows past the last open shutter show how its light ends.
        end = shutter_of(min(max(z, first_open), last_open))
        if sky[end] and not at_source and tells:
            if past and abs(rest) > _CLIP * np.sqrt(variance) + 1.5 * mean:
                continue
            expected = (by_span[0, n] + level[inside]) * mean
            if sourced:
                spilt = light[b] * mean
                y -= stray[end] * spilt
                # Rows so near a source hardly tell the profile.
                doubt = SPILT * np.exp((0.5 - away) / FADES) * spilt
                variance += doubt * doubt
            node = int(np.floor((r - PROFILE_FIRST) * per_node + 0.5))
            if 0 <= node < profile.shape[2]:
                w = expected / variance
                profile[0, row, node, b] += w * expected
                profile[1, row, node, b] += w * (y - bars - by_span[1, n])
