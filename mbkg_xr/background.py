"""The kernels that put the master on pixels: mean over the pixel, terms of its slit, subtraction.

One visit of each pixel: its span, the antiderivative at its edges, of which the lower one is that
of its neighbour, what its slit and shutter make of the sky, and the data less that.
"""

from __future__ import annotations

import numpy as np

from .kernels import kernel
from .spans import find_span
from .terms import BIN_SPANS

__all__ = ["apply_pixels", "project_pixels", "ratio_pixels", "subtract_pixels"]

# What kernels take beside pixels travels in tuples, made by `mbkg_xr.project` and
# `mbkg_xr.slit_terms`:
# spans: edges, lookup, step; masters: antiderivatives (master, span, 5) in powers of t, constrained
# (master, span), sky_error (master, span, node); terms: see `SlitTerms.arrays`.


@kernel
def project_pixels(
    wavelength, yrel, response, which, spans, masters, terms, background, error
):  # pragma: no cover - compiled
    """The master and its error on pixels; NaN where there is none."""
    table = np.empty((2, terms[0].shape[1], spans[0].size - 1))
    for s in range(wavelength.shape[0]):
        _project_slit(
            s, wavelength, yrel, response, which, spans, masters, terms, table, background, error
        )


@kernel
def subtract_pixels(
    wavelength, yrel, response, which, spans, masters, terms,
    flux, error, quality, bit, background, background_error, new_flux, new_error, new_quality,
):  # pragma: no cover - compiled  # fmt: skip
    """The same, taken off: flux less background, the error of both, what has no background flagged.

    One slit is put away before the next is begun.
    """
    table = np.empty((2, terms[0].shape[1], spans[0].size - 1))
    for s in range(wavelength.shape[0]):
        _project_slit(
            s, wavelength, yrel, response, which, spans, masters, terms, table,
            background, background_error,
        )  # fmt: skip
        for i in range(wavelength.shape[1]):
            for j in range(wavelength.shape[2]):
                b = background[s, i, j]
                new_flux[s, i, j] = flux[s, i, j] - b
                # In double precision: bad pixels carry errors of 1e27.
                a, e = np.float64(error[s, i, j]), np.float64(background_error[s, i, j])
                new_error[s, i, j] = np.sqrt(a * a + e * e)
                missing = np.isfinite(wavelength[s, i, j]) and not np.isfinite(b)
                old = quality[s, i, j]
                new_quality[s, i, j] = old | bit if missing else old


@kernel
def apply_pixels(wavelength, yrel, spans, terms, background, error):  # pragma: no cover - compiled
    """Turn the master on pixels, and its error, into the background of the slits, in place."""
    edges, lookup, step = spans
    (
        scale, covariance, slope, own, basis, pedestal, shape, profiles, profile_errors, alongs,
        first, pitch, kind, first_shutter, floor,
    ) = terms  # fmt: skip
    table = np.empty((2, scale.shape[1], edges.size - 1))
    for s in range(wavelength.shape[0]):
        table[0, :, 0] = np.nan
        with_profile, per_pitch = kind[s] >= 0, 1 / pitch
        profile, profile_error = profiles[max(kind[s], 0)], profile_errors[max(kind[s], 0)]
        along = alongs[max(kind[s], 0)]
        for i in range(wavelength.shape[1]):
            for j in range(wavelength.shape[2]):
                sky = np.float64(background[s, i, j])
                if np.isnan(sky):
                    continue
                n, t = find_span(np.float64(wavelength[s, i, j]), edges, lookup, step)
                if n >= 0:
                    r = np.float64(yrel[s, i, j])
                    z = min(max(int(np.floor(r + 0.5)) - first_shutter, 0), scale.shape[1] - 1)
                    if np.isnan(table[0, z, 0]):
                        _fill(s, z, scale, covariance, slope, own, basis, table)
                    background[s, i, j], error[s, i, j] = _of_slit(
                        sky, np.float64(error[s, i, j]), table[0, z, n], table[1, z, n],
                        with_profile, profile, profile_error, along, (r - first) * per_pitch, n + t,
                        pedestal[s] * shape[n], floor,
                    )  # fmt: skip


@kernel
def ratio_pixels(flux, error, out):  # pragma: no cover - compiled
    """Flux over error, NaN where that is not positive."""
    for i in range(flux.size):
        out[i] = flux[i] / error[i] if error[i] > 0 else np.nan


# ------------------------------------------------------------------------------------------------


@kernel
def _project_slit(
    s, wavelength, yrel, response, which, spans, masters, terms, table, background, error
):  # pragma: no cover - compiled
    edges, lookup, step = spans
    integrals, insides, all_errors = masters
    (
        scale, covariance, slope, own, basis, pedestal, shape, profiles, profile_errors, alongs,
        first, pitch, kind, first_shutter, floor,
    ) = terms  # fmt: skip
    with_profile, per_pitch = kind[s] >= 0, 1 / pitch
    profile, profile_error = profiles[max(kind[s], 0)], profile_errors[max(kind[s], 0)]
    along = alongs[max(kind[s], 0)]
    has_response = response.shape[0] > 0
    integral = integrals[which[s]]
    inside, errors = insides[which[s]], all_errors[which[s]]
    nodes, n_spans = errors.shape[1], edges.size - 1
    nx = wavelength.shape[2]
    table[0, :, 0] = np.nan  # no shutter's row is made yet
    for i in range(wavelength.shape[1]):
        row = wavelength[s, i]
        n, last, reached, total = 0, -2, 0.0, 0.0
        for j in range(nx):
            background[s, i, j] = error[s, i, j] = np.nan
            x = np.float64(row[j])
            if not (x >= edges[0] and x < edges[n_spans]):
                continue
            if j != last + 1:
                n, _ = find_span(x, edges, lookup, step)
            while x >= edges[n + 1]:
                n += 1
            while x < edges[n]:
                n -= 1
            if not inside[n]:
                continue
            high = _half_way(row, j, nx)
            if j == last + 1:
                low, below = reached, total
            elif j > 0:
                low = _half_way(row, j - 1, nx)
                below = _integral(low, n, edges, integral)
            else:
                low = 2 * x - high
                below = _integral(low, n, edges, integral)
            above = _integral(high, n, edges, integral)
            last, reached, total = j, high, above
            if high == low:
                continue
            t = (x - edges[n]) / (edges[n + 1] - edges[n])
            k = int(t * nodes)
            part = t * nodes - k
            here = errors[n, k]
            if k + 1 < nodes:
                following = errors[n, k + 1]
            elif n + 1 < n_spans:
                following = errors[n + 1, 0]
            else:
                following = here
            if np.isnan(following):
                following = here
            r = np.float64(yrel[s, i, j])
            z = min(max(int(np.floor(r + 0.5)) - first_shutter, 0), scale.shape[1] - 1)
            if np.isnan(table[0, z, 0]):
                _fill(s, z, scale, covariance, slope, own, basis, table)
            sky, e = _of_slit(
                (above - below) / (high - low), here + part * (following - here),
                table[0, z, n], table[1, z, n], with_profile, profile, profile_error, along,
                (r - first) * per_pitch, n + t, pedestal[s] * shape[n], floor,
            )  # fmt: skip
            if has_response:
                sky *= response[s, i, j]
                e *= response[s, i, j]
            background[s, i, j], error[s, i, j] = sky, e


@kernel(inline="always")
def _of_slit(
    sky, error, f, variance, with_profile, profile, profile_error, along, p, u, pedestal, floor
):  # pragma: no cover - compiled
    """Background of a pixel and its error, from the master there; p in nodes of the profile."""
    total = sky * sky * variance
    g = 1.0
    if with_profile:
        i = min(max(int(np.floor(p)), 0), profile.shape[0] - 2)
        p = min(max(p - i, 0.0), 1.0)
        q = u / BIN_SPANS - 0.5
        k = min(max(int(np.floor(q)), 0), max(profile.shape[1] - 2, 0))
        q = min(max(q - k, 0.0), 1.0)
        m = min(k + 1, profile.shape[1] - 1)
        a, b, c, d = (1 - p) * (1 - q), (1 - p) * q, p * (1 - q), p * q
        g = a * profile[i, k] + b * profile[i, m]
        g += c * profile[i + 1, k] + d * profile[i + 1, m]
        v = a * along[i, k] + b * along[i, m]
        pedestal *= v + c * along[i + 1, k] + d * along[i + 1, m]
        e = a * profile_error[i, k] + b * profile_error[i, m]
        e += c * profile_error[i + 1, k] + d * profile_error[i + 1, m]
        total = total * g * g + (sky * f * e) ** 2
    total += (f * g) ** 2 * (error * error + (floor * sky) ** 2)
    return sky * f * g + pedestal, np.sqrt(total)


@kernel
def _fill(s, z, scale, covariance, slope, own, basis, table):  # pragma: no cover - compiled
    """Scale of one shutter in every span, and its variance."""
    order = basis.shape[1]
    by = np.empty(order)
    for n in range(basis.shape[0]):
        f, variance = 1.0, own[s, z]
        for k in range(order):
            f += scale[s, z, k] * basis[n, k]
            by[k] = basis[n, k] + slope[s, z, k]
        for k in range(order):
            for m in range(order):
                variance += by[k] * covariance[s, z, k, m] * by[m]
        table[0, z, n], table[1, z, n] = f, max(variance, 0.0)


@kernel(inline="always")
def _integral(x, n, edges, integral):  # pragma: no cover - compiled
    """Antiderivative at a wavelength in span n or near it."""
    if not (x >= edges[0] and x < edges[-1]):
        return np.nan
    while x >= edges[n + 1]:
        n += 1
    while x < edges[n]:
        n -= 1
    t = (x - edges[n]) / (edges[n + 1] - edges[n])
    part = integral[n, 2] + t * (integral[n, 3] + t * integral[n, 4])
    return integral[n, 0] + t * (integral[n, 1] + t * part)


@kernel(inline="always")
def _half_way(row, j, n):  # pragma: no cover - compiled
    """Wavelength half a pixel past column j, NaN where neither neighbour is known."""
    a = np.float64(row[j])
    b = np.float64(row[j + 1]) if j + 1 < n else np.nan
    before = np.float64(row[j - 1]) if j > 0 else np.nan
    after = np.float64(row[j + 2]) if j + 2 < n else np.nan
    if not np.isnan(a) and not np.isnan(b):
        if not np.isnan(before) and not np.isnan(after):
            return (9 * (a + b) - before - after) * 0.0625
        return 0.5 * (a + b)
    if not np.isnan(a):
        return a + 0.5 * (a - before)
    return b - 0.5 * (after - b)
