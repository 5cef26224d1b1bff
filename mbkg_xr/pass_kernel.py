"""The kernel of a pass: moments, a histogram of residuals and noise sums in one visit of pixels."""

from __future__ import annotations

import numpy as np

from .kernels import kernel
from .spans import find_span
from .terms import light_at, profile_at, shutter_of

__all__ = [
    "BIWEIGHT",
    "HUBER",
    "READ_CLASSES",
    "READ_STEPS",
    "TAPER",
    "TAPERED",
    "accumulate_pixels",
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


@kernel(inline="always")
def read_class(ratio):  # pragma: no cover - compiled
    """Class of a pixel whose read variance is so many times the mean one of its span."""
    found = 0
    for k in range(len(READ_STEPS)):
        if ratio > READ_STEPS[k]:
            found = k + 1
    return found


@kernel
def accumulate_pixels(
    flux, error, wavelength, yrel, var_rnoise, var_poisson, start, stop, order,
    group, time_factor, edges, lookup, step, bin_spans,
    scale, basis, times, drift, level, pedestal, pedestal_shape, used, leak, light,
    profile, along, first, pitch, kind,
    model, gain, by_class, floor, centre, cut, usual, unit, log, rule, z_max, z_step,
    moments, count, chosen, histogram, noise, pixels,
):  # pragma: no cover - compiled  # fmt: skip
    """Sums over the pixels of some slits, added to what the arrays hold."""
    in_place = order.shape[0] == 0
    has_var = var_rnoise.shape[0] > 0
    has_profile, has_along = profile.shape[0] > 0, along.shape[0] > 0
    n_z = histogram.shape[1] - 2
    widest = 1.0 if log or rule == BIWEIGHT else 1.0 + TAPER
    if rule == HUBER:
        widest = np.inf
    per_unit, per_step = 1 / unit, 1 / z_step
    for s in range(start.shape[0]):
        g = group[s]
        # Pixels of one span that follow each other have all of this in common; where a slit's
        # pixels are packed in the order of the spans these are all that it has in a span.
        n, low, high, per_width = -1, 0.0, -1.0, 0.0
        p0 = p1 = p2 = p3 = f = a = other0 = bright = read = middle = per_cut = most = 0.0
        n_seen = n_kept = 0
        m0 = m1 = m2 = m3 = m4 = m5 = m6 = r0 = r1 = r2 = r3 = q = 0.0
        s0 = s1 = s2 = s3 = s4 = s5 = 0.0
        for k in range(start[s], stop[s]):
            at = k if in_place else order[k]
            x = np.float64(wavelength[at])
            if not (low <= x < high):
                if n >= 0 and n_seen > 0:
                    _add_run(
                        moments, count, chosen, noise, pixels, s, g, n, n // bin_spans,
                        n_seen, n_kept, m0, m1, m2, m3, m4, m5, m6, r0, r1, r2, r3, q,
                        s0, s1, s2, s3, s4, s5,
                    )  # fmt: skip
                    n_seen = n_kept = 0
                    m0 = m1 = m2 = m3 = m4 = m5 = m6 = r0 = r1 = r2 = r3 = q = 0.0
                    s0 = s1 = s2 = s3 = s4 = s5 = 0.0
                n, _ = find_span(x, edges, lookup, step)
                if n < 0:
                    low, high = 0.0, -1.0
                    continue
                low, high = edges[n], edges[n + 1]
                per_width = 1 / (high - low)
                change = 1.0
                for m in range(times.shape[1]):
                    change += times[s, m] * drift[m, n]
                p0, p1 = model[n, 0] * change, model[n, 1] * change
                p2, p3 = model[n, 2] * change, model[n, 3] * change
                f = 1.0
                for m in range(scale.shape[1]):
                    f += scale[s, m] * basis[n, m]
                other0 = pedestal[s] * pedestal_shape[n]
                bright = light_at(light[s], n, bin_spans)
                a, read = gain[n] * time_factor[s], floor[n]
                middle, per_cut, most = centre[n], 1 / cut[n], usual[n] * usual[n]
            y = np.float64(flux[at])
            e2 = np.float64(error[at]) ** 2
            # What cannot be a measurement is never one, whoever selected it.
            if not np.isfinite(y) or not (e2 > 0 and np.isfinite(e2)):
                continue
            t = (x - low) * per_width
            mean = ((p3 * t + p2) * t + p1) * t + p0
            n_seen += 1
            z = shutter_of(np.float64(yrel[at]))
            if not used[s, z]:
                continue
            share, other = f + level[s, z], other0
            if has_profile:
                share *= profile_at(profile, first, pitch, kind[s], yrel[at], n + t)
            if not share > 0.01:
                continue
            if has_along and other0 != 0:
                other *= profile_at(along, first, pitch, kind[s], yrel[at], n + t)
            other += leak[s, z] * bright * mean
            expected = share * mean + other
            variance = e2
            photon, c = 0.0, 0
            if has_var:
                photon = np.float64(var_poisson[at])
            if a >= 0:
                # The datum's own photon noise is replaced by the model's: weights that follow
                # the datum pull the fit low.
                rest = np.float64(var_rnoise[at]) if has_var else read
                if rest > 0 and np.isfinite(rest):
                    if has_var and read > 0:
                        c = read_class(rest / read)
                    variance = rest + by_class[c] * a * max(expected, 0.0)
            per_sigma = 1 / np.sqrt(variance)
            away = (y - expected) * per_sigma * per_unit
            b = n // bin_spans
            if away < -z_max:
                histogram[b, 0] += 1
            elif away >= z_max:
                histogram[b, n_z + 1] += 1
            else:
                histogram[b, 1 + min(n_z - 1, int((away + z_max) * per_step))] += 1
            beyond = abs(away - middle) * per_cut
            if not beyond <= widest:
                continue
            trust = 1.0
            if rule == HUBER:
                trust = 1.0 / max(beyond, 1.0)
            elif rule == BIWEIGHT:
                trust = (1 - beyond * beyond) ** 2
            elif not log:
                trust = min(1.0, (1 + TAPER - beyond) * (0.5 / TAPER))
            if e2 <= most and np.isfinite(photon):
                x = max(y, 0.0) * time_factor[s]
                s0 += trust
                s1 += trust * x
                s2 += trust * photon
                s3 += trust * e2
                s4 += trust * x * x
                s5 += trust * x * e2
                if a >= 0 and has_var:
                    noise[b, 6 + 2 * c] += trust * photon
                    noise[b, 7 + 2 * c] += trust * x * gain[n]
            # From here on as if the slit saw the master itself.
            y = (y - other) / share
            w = trust * (share * per_sigma) ** 2
            if log:
                if y <= 0:
                    continue
                y = np.log(y)
                w = np.float64(1.0)
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
        if n >= 0 and n_seen > 0:
            _add_run(
                moments, count, chosen, noise, pixels, s, g, n, n // bin_spans,
                n_seen, n_kept, m0, m1, m2, m3, m4, m5, m6, r0, r1, r2, r3, q,
                s0, s1, s2, s3, s4, s5,
            )  # fmt: skip


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
