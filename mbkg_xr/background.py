"""The kernels that put the master on pixels: mean over the pixel, terms of its slit, subtraction.

One visit of each pixel: its span, the antiderivative at its edges, of which the lower one is that
of its neighbour, what its slit and shutter make of the sky, and the data less that.
"""

from __future__ import annotations

import numpy as np

from .kernels import kernel
from .spans import find_span, span_within
from .terms import profile_layer, profile_place

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
    spans, table, work = _begun(wavelength.shape[2], spans, terms)
    for s in range(wavelength.shape[0]):
        _project_slit(
            s, wavelength, yrel, response, which, spans, masters, terms, table, work,
            background, error,
        )  # fmt: skip


@kernel
def subtract_pixels(
    wavelength, yrel, response, which, spans, masters, terms,
    flux, error, quality, bit, background, background_error, new_flux, new_error, new_quality,
    residual,
):  # pragma: no cover - compiled  # fmt: skip
    """The same, taken off: flux less background, the error of both, what has no background flagged,
    and the normalised residual where an array is given for it.

    One slit is put away before the next is begun.
    """
    spans, table, work = _begun(wavelength.shape[2], spans, terms)
    for s in range(wavelength.shape[0]):
        _project_slit(
            s, wavelength, yrel, response, which, spans, masters, terms, table, work,
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
            if residual.size:
                ratio_pixels(new_flux[s, i], new_error[s, i], residual[s, i])


@kernel
def apply_pixels(wavelength, yrel, spans, terms, background, error):  # pragma: no cover - compiled
    """Turn the master on pixels, and its error, into the background of the slits, in place."""
    edges, lookup, step = spans
    (
        scale, covariance, slope, own, basis, pedestal, shape, profiles, place_of, kind,
        first_shutter, floor,
    ) = terms  # fmt: skip
    table = np.empty((2, scale.shape[1], edges.size - 1))
    for s in range(wavelength.shape[0]):
        table[0, :, 0] = np.nan
        for i in range(wavelength.shape[1]):
            for j in range(wavelength.shape[2]):
                sky = np.float64(background[s, i, j])
                if np.isnan(sky):
                    continue
                n, t = find_span(np.float64(wavelength[s, i, j]), edges, lookup, step)
                if n >= 0:
                    r = np.float64(yrel[s, i, j])
                    z = _shutter(r, first_shutter, scale.shape[1] - 1)
                    if np.isnan(table[0, z, 0]):
                        _fill(s, z, scale, covariance, slope, own, basis, table)
                    background[s, i, j], error[s, i, j] = _of_slit(
                        sky, np.float64(error[s, i, j]), table[0, z, n], table[1, z, n],
                        profiles[kind[s]], place_of, r, n + t, pedestal[s] * shape[n], floor,
                    )  # fmt: skip


@kernel
def ratio_pixels(flux, error, out):  # pragma: no cover - compiled
    """Flux over error, NaN where that is not positive."""
    for i in range(flux.size):
        out[i] = flux[i] / error[i] if error[i] > 0 else np.nan


# ------------------------------------------------------------------------------------------------


@kernel
def _begun(nx, spans, terms):  # pragma: no cover - compiled
    """Spans with one over their widths; room for a slit's scales, and for the pixels of a row."""
    edges, lookup, step = spans
    table = np.empty((2, terms[0].shape[1], edges.size - 1))
    work = (
        np.empty(nx + 1), np.empty(nx + 1), np.empty(nx, np.int64), np.empty(nx), np.empty(nx),
        np.empty(nx),
    )  # fmt: skip
    return (edges, 1 / (edges[1:] - edges[:-1]), lookup, step), table, work


@kernel
def _project_slit(
    s, wavelength, yrel, response, which, spans, masters, terms, table, work, background, error
):  # pragma: no cover - compiled
    """One slit, run by run of pixels that have a wavelength, in loops without branches."""
    integrals, insides, errors = masters
    own = integrals[which[s]], insides[which[s]], errors[which[s]]
    has_response = response.shape[0] > 0
    nx = wavelength.shape[2]
    table[0, :, 0] = np.nan  # no shutter's row is made yet
    for i in range(wavelength.shape[1]):
        row, r = wavelength[s, i], yrel[s, i]
        end = 0
        while end < nx:
            first = end
            while end < nx and np.isnan(row[end]):
                background[s, i, end] = error[s, i, end] = np.nan
                end += 1
            if end > first:
                continue
            while end < nx and not np.isnan(row[end]):
                end += 1
            sky, sigma = background[s, i, first:end], error[s, i, first:end]
            _mean_of_run(row[first:end], spans, own, work)
            _run_of_slit(s, r[first:end], terms, table, work, sky, sigma)
            if has_response:
                for k in range(end - first):
                    sky[k] *= response[s, i, first + k]
                    sigma[k] *= response[s, i, first + k]


@kernel
def _mean_of_run(row, spans, own, work):  # pragma: no cover - compiled
    """Span, place in it, mean of the master and its error for consecutive pixels of a row."""
    edges, per_width, lookup, step = spans
    integral, inside, errors = own
    at, below, span, place, sky, sigma = work
    m, n_spans, nodes = row.size, per_width.size, errors.shape[1]
    first, last, per_step = edges[0], edges[n_spans], 1 / step
    # Wavelengths half a pixel past each centre: cubic between four centres, linear between two.
    at[0], at[m] = np.nan, np.nan
    if m > 1:
        for k in range(2, m - 1):
            near = np.float64(row[k - 1]) + np.float64(row[k])
            at[k] = (9 * near - np.float64(row[k - 2]) - np.float64(row[k + 1])) * 0.0625
        x, y = np.float64(row[0]), np.float64(row[1])
        at[0], at[1] = x - 0.5 * (y - x), 0.5 * (x + y)
        x, y = np.float64(row[m - 2]), np.float64(row[m - 1])
        at[m - 1], at[m] = 0.5 * (x + y), y + 0.5 * (y - x)
    for k in range(m + 1):
        within = first <= at[k] < last
        x = at[k] if within else first
        n = span_within(x, edges, lookup, per_step)
        t = (x - edges[n]) * per_width[n]
        part = integral[n, 2] + t * (integral[n, 3] + t * integral[n, 4])
        part = integral[n, 0] + t * (integral[n, 1] + t * part)
        below[k] = part if within else np.nan
    for k in range(m):
        x = np.float64(row[k])
        within = first <= x < last
        x = x if within else first
        n = span_within(x, edges, lookup, per_step)
        span[k] = n
        place[k] = (x - edges[n]) * per_width[n]
        mean = (below[k + 1] - below[k]) / (at[k + 1] - at[k])
        sky[k] = mean if within and inside[n] else np.nan
    flat = errors.reshape(-1)
    for k in range(m):
        q = place[k] * nodes
        part = min(int(q), nodes - 1)
        n = span[k] * nodes + part
        here, following = flat[n], flat[min(n + 1, flat.size - 1)]
        following = here if np.isnan(following) else following
        sigma[k] = here + (q - part) * (following - here)


@kernel
def _run_of_slit(s, yrel, terms, table, work, background, error):  # pragma: no cover - compiled
    """What a slit makes of the master on consecutive pixels of a row."""
    (
        scale, covariance, slope, own, basis, pedestal, shape, profiles, place_of, kind,
        first_shutter, floor,
    ) = terms  # fmt: skip
    _, _, span, place, sky, sigma = work
    profile, raised, last_shutter = profiles[kind[s]], pedestal[s], scale.shape[1] - 1
    low, high = last_shutter, 0
    for k in range(yrel.size):
        z = _shutter(np.float64(yrel[k]), first_shutter, last_shutter)
        low, high = min(low, z), max(high, z)
    for z in range(low, high + 1):
        if np.isnan(table[0, z, 0]):
            _fill(s, z, scale, covariance, slope, own, basis, table)
    for k in range(yrel.size):
        r, n = np.float64(yrel[k]), span[k]
        z = _shutter(r, first_shutter, last_shutter)
        background[k], error[k] = _of_slit(
            sky[k], sigma[k], table[0, z, n], table[1, z, n], profile, place_of, r, n + place[k],
            raised * shape[n], floor,
        )  # fmt: skip


@kernel(inline="always")
def _shutter(yrel, first, last):  # pragma: no cover - compiled
    """Index of the shutter a pixel looks through, of those that have terms of their own."""
    return min(max(int(yrel + 0.5 - first), 0), last)


@kernel(inline="always")
def _of_slit(
    sky, error, f, variance, profile, place_of, yrel, u, pedestal, floor
):  # pragma: no cover - compiled
    """Background of a pixel and its error, from the master there; u counts spans."""
    place = profile_place(profile, place_of, yrel, u)
    # What the bars leave of the sky, what a pedestal is there, and the error of the first.
    g, v = profile_layer(profile, place, 0), profile_layer(profile, place, 1)
    e = profile_layer(profile, place, 2)
    total = sky * sky * (variance * g * g + f * f * e * e)
    total += f * f * g * g * (error * error + floor * floor * sky * sky)
    return sky * f * g + pedestal * v, np.sqrt(total)


@kernel
def _fill(s, z, scale, covariance, slope, own, basis, table):  # pragma: no cover - compiled
    """Scale of one shutter in every span, and its variance; basis ``(order, span)``."""
    order, n_spans = basis.shape
    f, variance = table[0, z], table[1, z]
    f[:], variance[:] = 1.0, own[s, z]
    for k in range(order):
        for n in range(n_spans):
            f[n] += scale[s, z, k] * basis[k, n]
        for m in range(k + 1):
            c = covariance[s, z, k, m] + (covariance[s, z, m, k] if m < k else 0.0)
            a, b = slope[s, z, k], slope[s, z, m]
            for n in range(n_spans):
                variance[n] += c * (basis[k, n] + a) * (basis[m, n] + b)
    for n in range(n_spans):
        variance[n] = max(variance[n], 0.0)
