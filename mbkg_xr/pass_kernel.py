"""The kernel of a pass: moments, a histogram of residuals and noise sums in one visit of pixels."""

from __future__ import annotations

import numpy as np

from .kernels import kernel
from .spans import span_within
from .terms import BIN_SPANS, light_at, profile_layer, profile_place, shutter_of

__all__ = [
    "BIWEIGHT",
    "BLOCK",
    "FLUX",
    "HUBER",
    "KIND",
    "NONE",
    "READ",
    "READ_CLASSES",
    "READ_STEPS",
    "SPAN",
    "SQUARE",
    "TAPER",
    "TAPERED",
    "YREL",
    "T",
    "accumulate_pixels",
    "read_block",
    "read_class",
]

#: Part of the clipping limit over which weights fall: with 3 sigma, from 2.6 to 3.4.
TAPER = 0.125
#: What a pixel's weight follows as it lies further off.
TAPERED, HUBER, BIWEIGHT = 0, 1, 2
#: Pixels are told apart by their read variance over the mean one of their span, in steps of 2 from
#: 1 on: a ramp that a cosmic ray cut short has more of it, and of photon noise.
READ_STEPS = (1.0, 2.0, 4.0, 8.0)
READ_CLASSES = len(READ_STEPS) + 1
#: Pixels that are worked on together: what is known of them stays near the processor.
BLOCK = 512


#: Of the pixels of a block: where in one array is what is read of them, and what is found. Places
#: that differ by constants let the compiler take several pixels at a time.
FLUX, SQUARE, YREL, READ, T, _PHOTON, _EXPECTED, _SHARE, _OTHER, _PHOTONS, _RATIO = (
    BLOCK * i for i in range(11)
)
_AWAY, _BEYOND, _TRUST, _WEIGHT, _OWN, _N_REAL = (BLOCK * i for i in range(11, 17))
SPAN, KIND, _CLASS = 0, BLOCK, 2 * BLOCK
#: Their kind: no measurement, one of a shutter that is not used, and one that is.
NONE, _SEEN, _USED = range(3)
# Of each span: what a slit makes of it, after the four powers of the model.
_SCALE, _PEDESTAL, _LIGHT, _GAIN, _FLOOR, _PER_FLOOR, _N_BY_SPAN = 4, 5, 6, 7, 8, 9, 10


@kernel(inline="always")
def read_class(ratio):  # pragma: no cover - compiled
    """Class of a pixel whose read variance is so many times the mean one of its span."""
    found = 0
    for k in range(len(READ_STEPS)):
        found += int(ratio > READ_STEPS[k])
    return found


@kernel
def accumulate_pixels(
    columns, start, stop, order, group, time_factor, spans, slits, profiles, place_of, kind,
    state, z_max, z_step, sums,
):  # pragma: no cover - compiled  # fmt: skip
    """Sums over the pixels of some slits, added to what the arrays hold.

    A block of pixels goes through loops without branches, which find what is expected of each;
    then all that follows from that is added up. In tuples: `columns`, of `packing.COLUMNS`;
    `spans`, edges, lookup and step; `slits`, of `terms.Terms` what is by slit; `state`, of
    `moments.PassState`; `sums`, of `moments.PassSums`.
    """
    scale, basis, times, drift, level, pedestal, pedestal_shape, used, leak, light = slits
    model, gain, by_class, floor, centre, cut, usual, unit, log, rule = state
    edges, lookup, step = spans
    n_spans, has_var = edges.size - 1, columns[4].shape[0] > 0
    spans_of = (edges, 1 / (edges[1:] - edges[:-1]), lookup, 1 / step)
    limits = (centre, 1 / cut, usual * usual, gain)
    by_span = np.empty((n_spans, _N_BY_SPAN))
    for n in range(n_spans):
        by_span[n, :4] = model[n]
        by_span[n, _FLOOR], by_span[n, _PER_FLOOR] = floor[n], 1 / floor[n]
    real, whole = np.empty(_N_REAL), np.empty(3 * BLOCK, np.int64)
    for s in range(start.shape[0]):
        for n in range(n_spans):
            f = 1.0
            for m in range(scale.shape[1]):
                f += scale[s, m] * basis[n, m]
            by_span[n, _SCALE], by_span[n, _PEDESTAL] = f, pedestal[s] * pedestal_shape[n]
            by_span[n, _LIGHT] = light_at(light[s], n, BIN_SPANS)
            by_span[n, _GAIN] = gain[n] * time_factor[s]
        if times.shape[1] > 0:
            for n in range(n_spans):
                change = 1.0
                for m in range(times.shape[1]):
                    change += times[s, m] * drift[m, n]
                by_span[n, :4] = model[n] * change
        of_slit = (by_span, level[s], used[s], leak[s], profiles[kind[s]], place_of)
        for first in range(start[s], stop[s], BLOCK):
            m = min(BLOCK, stop[s] - first)
            read_block(columns, order, first, m, spans_of, real, whole)
            _expect_block(m, of_slit, has_var, real, whole)
            _compare_block(m, by_class, real, whole)
            _weigh_block(m, limits, unit, log, rule, real, whole)
            _add_block(
                m, s, group[s], time_factor[s], limits, log, has_var, z_max, z_step, real, whole,
                sums,
            )  # fmt: skip


@kernel
def read_block(columns, order, first, m, spans, real, whole):  # pragma: no cover - compiled
    flux, error, wavelength, yrel, var_rnoise, var_poisson = columns
    edges, per_width, lookup, per_step = spans
    in_place, has_var = order.shape[0] == 0, var_rnoise.shape[0] > 0
    low, high = edges[0], edges[per_width.size]
    for k in range(m):
        x = np.float64(wavelength[first + k if in_place else order[first + k]])
        within = low <= x < high
        x = x if within else low
        n = span_within(x, edges, lookup, per_step)
        real[T + k] = (x - edges[n]) * per_width[n]
        whole[SPAN + k], whole[KIND + k] = n, _SEEN if within else NONE
    if in_place:
        for k in range(m):
            real[FLUX + k], real[SQUARE + k] = flux[first + k], error[first + k]
            real[YREL + k] = yrel[first + k]
        for k in range(m if has_var else 0):
            real[READ + k], real[_PHOTON + k] = var_rnoise[first + k], var_poisson[first + k]
    else:
        for k in range(m):
            at = order[first + k]
            real[FLUX + k], real[SQUARE + k], real[YREL + k] = flux[at], error[at], yrel[at]
            if has_var:
                real[READ + k], real[_PHOTON + k] = var_rnoise[at], var_poisson[at]
    for k in range(m):
        # What cannot be a measurement is never one, whoever selected it.
        e2 = real[SQUARE + k] * real[SQUARE + k]
        good = np.isfinite(real[FLUX + k]) and e2 > 0 and e2 < np.inf
        real[SQUARE + k] = e2
        whole[KIND + k] = whole[KIND + k] if good else NONE


@kernel
def _expect_block(m, of_slit, has_var, real, whole):  # pragma: no cover - compiled
    """What is expected of each pixel."""
    by_span, level, used, leak, profile, place_of = of_slit
    for k in range(m):
        t, r, here = real[T + k], real[YREL + k], by_span[whole[SPAN + k]]
        mean = ((here[3] * t + here[2]) * t + here[1]) * t + here[0]
        z = shutter_of(r)
        place = profile_place(profile, place_of, r, whole[SPAN + k] + t)
        g, v = profile_layer(profile, place, 0), profile_layer(profile, place, 1)
        share = (here[_SCALE] + level[z]) * g
        other = here[_PEDESTAL] * v + leak[z] * here[_LIGHT] * mean
        real[_EXPECTED + k], real[_SHARE + k], real[_OTHER + k] = share * mean + other, share, other
        floor, gain = here[_FLOOR], here[_GAIN]
        read = real[READ + k] if has_var else floor
        real[READ + k] = read if gain >= 0 and read < np.inf else 0.0
        real[_PHOTONS + k] = gain
        ratio = read * here[_PER_FLOOR] if has_var and floor > 0 else 0.0
        real[_RATIO + k] = ratio if real[READ + k] > 0 else 0.0
        if whole[KIND + k] == _SEEN and used[z] and share > 0.01:
            whole[KIND + k] = _USED


@kernel
def _compare_block(m, by_class, real, whole):  # pragma: no cover - compiled
    """How far each pixel is from that, in its errors, and what it would be of a slit that sees the
    master itself.
    """
    # The datum's own photon noise is replaced by the model's: weights that follow the datum pull
    # the fit low.
    first, second, third, fourth = READ_STEPS
    b0, b1, b2, b3, b4 = by_class[0], by_class[1], by_class[2], by_class[3], by_class[4]
    for k in range(m):
        ratio = real[_RATIO + k]
        factor = b1 if ratio > first else b0
        factor = b2 if ratio > second else factor
        factor = b3 if ratio > third else factor
        real[_PHOTONS + k] *= b4 if ratio > fourth else factor
        whole[_CLASS + k] = read_class(ratio)
    for k in range(m):
        read, expected, share = real[READ + k], real[_EXPECTED + k], real[_SHARE + k]
        light = expected if expected > 0 else 0.0
        variance = read + real[_PHOTONS + k] * light
        per_sigma = 1 / np.sqrt(variance if read > 0 else real[SQUARE + k])
        real[_AWAY + k] = (real[FLUX + k] - expected) * per_sigma
        real[_WEIGHT + k] = (share * per_sigma) * (share * per_sigma)
        real[_OWN + k] = (real[FLUX + k] - real[_OTHER + k]) / share


@kernel
def _weigh_block(m, limits, unit, log, rule, real, whole):  # pragma: no cover - compiled
    """What is left of each pixel's weight so far from the centre; -1 for nothing, ever."""
    centre, per_cut = limits[0], limits[1]
    per_unit = 1 / unit
    for k in range(m):
        n = whole[SPAN + k]
        real[_AWAY + k] *= per_unit
        real[_BEYOND + k] = abs(real[_AWAY + k] - centre[n]) * per_cut[n]
    if rule == HUBER:
        for k in range(m):
            real[_TRUST + k] = 1.0 / max(real[_BEYOND + k], 1.0)
    elif rule == BIWEIGHT or log:
        for k in range(m):
            b = real[_BEYOND + k]
            left = 1.0 if log else (1 - b * b) * (1 - b * b)
            real[_TRUST + k] = left if b <= 1.0 else -1.0
    else:
        for k in range(m):
            b = real[_BEYOND + k]
            left = min(1.0, (1 + TAPER - b) * (0.5 / TAPER))
            real[_TRUST + k] = left if b <= 1.0 + TAPER else -1.0


@kernel
def _add_block(
    m, s, g, time_factor, limits, log, has_var, z_max, z_step, real, whole, sums
):  # pragma: no cover - compiled
    """Add up; pixels of one span that follow each other together."""
    moments, count, chosen, histogram, noise, pixels = sums
    most, gain = limits[2], limits[3]
    n_z, per_step = histogram.shape[1] - 2, 1 / z_step
    n, n_seen, n_kept, last = whole[SPAN], 0, 0, m - 1
    m0 = m1 = m2 = m3 = m4 = m5 = m6 = r0 = r1 = r2 = r3 = q = 0.0
    s0 = s1 = s2 = s3 = s4 = s5 = 0.0
    for k in range(m):
        if whole[KIND + k] != NONE:
            n_seen += 1
        if whole[KIND + k] == _USED:
            b, away, trust = n // BIN_SPANS, real[_AWAY + k], real[_TRUST + k]
            place = min(max((away + z_max) * per_step, -1.0), np.float64(n_z))
            histogram[b, 1 + int(np.floor(place))] += 1
            if trust >= 0:
                e2, photon = real[SQUARE + k], real[_PHOTON + k] if has_var else 0.0
                if e2 <= most[n] and np.isfinite(photon):
                    x = max(real[FLUX + k], 0.0) * time_factor
                    s0 += trust
                    s1 += trust * x
                    s2 += trust * photon
                    s3 += trust * e2
                    s4 += trust * x * x
                    s5 += trust * x * e2
                    if has_var and gain[n] >= 0:
                        c = whole[_CLASS + k]
                        noise[b, 6 + 2 * c] += trust * photon
                        noise[b, 7 + 2 * c] += trust * x * gain[n]
                y, t, w = real[_OWN + k], real[T + k], trust * real[_WEIGHT + k]
                if log:
                    w = 1.0 if y > 0 else 0.0
                    y = np.log(y) if y > 0 else 0.0
                if not log or w > 0:
                    n_kept += 1
                m0 += w
                r0 += w * y
                q += w * y * y
                w *= t
                m1 += w
                r1 += w * y
                w *= t
                m2 += w
                r2 += w * y
                w *= t
                m3 += w
                r3 += w * y
                w *= t
                m4 += w
                w *= t
                m5 += w
                m6 += w * t
        if k == last or whole[SPAN + k + 1] != n:
            if n_seen > 0:
                _add_run(
                    moments, count, chosen, noise, pixels, s, g, n, n // BIN_SPANS,
                    n_seen, n_kept, m0, m1, m2, m3, m4, m5, m6, r0, r1, r2, r3, q,
                    s0, s1, s2, s3, s4, s5,
                )  # fmt: skip
                n_seen = n_kept = 0
                m0 = m1 = m2 = m3 = m4 = m5 = m6 = r0 = r1 = r2 = r3 = q = 0.0
                s0 = s1 = s2 = s3 = s4 = s5 = 0.0
            if k < last:
                n = whole[SPAN + k + 1]


@kernel(inline="always")
def _add_run(
    all_moments, count, chosen, all_noise, pixels, s, g, n, b, n_seen, n_kept,
    m0, m1, m2, m3, m4, m5, m6, r0, r1, r2, r3, q, s0, s1, s2, s3, s4, s5,
):  # pragma: no cover - compiled  # fmt: skip
    """Put away what consecutive pixels of one span came to."""
    count[g, n] += n_kept
    chosen[g, n] += n_seen
    pixels[s, 0] += n_seen
    pixels[s, 1] += n_kept
    moments, noise = all_moments[g, n], all_noise[b]
    moments[0] += m0
    moments[1] += m1
    moments[2] += m2
    moments[3] += m3
    moments[4] += m4
    moments[5] += m5
    moments[6] += m6
    moments[7] += r0
    moments[8] += r1
    moments[9] += r2
    moments[10] += r3
    moments[11] += q
    noise[0] += s0
    noise[1] += s1
    noise[2] += s2
    noise[3] += s3
    noise[4] += s4
    noise[5] += s5
