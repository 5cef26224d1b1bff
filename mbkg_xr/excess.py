"""What every shutter holds beyond its background: the kernel of `mbkg_xr.contaminants`."""

from __future__ import annotations

import numpy as np

from .kernels import kernel
from .spans import find_span
from .terms import BIN_SPANS, FIRST_SHUTTER, N_SHUTTERS

__all__ = ["N_PARTS", "N_SUMS", "sum_excess"]

#: Fifths of a shutter along the slit.
N_PARTS = 5
#: Sum m^2 / v, sum m (y - m) / v and sum m e_m / v of the part; the pixels in it; and in the first
#: part's row, of the whole shutter: its slope and its strongest line, in their errors.
N_SUMS = 6
_CLIP = 4.5
_REACH = 2
_LINE_SPANS = 3  # detector pixels of an unresolved line


@kernel
def _about(z, j, work):  # pragma: no cover - compiled
    """Median of a pixel and those up to `_REACH` beside it."""
    n = 0
    for k in range(max(0, j - _REACH), min(z.size, j + _REACH + 1)):
        if not np.isnan(z[k]):
            work[n] = z[k]
            n += 1
    return np.median(work[:n])


@kernel
def sum_excess(
    flux, error, background, background_error, quality, wavelength, yrel, var_rnoise,
    bits, opened, factor, gain, scatter, phase, edges, lookup, step, out,
):  # pragma: no cover - compiled  # fmt: skip
    """Sums ``out (slit, shutter, part, N_SUMS)`` over the unflagged pixels of open shutters.

    ``flux`` is data less background. The variance is that of the background's own photons, never of
    the pixel's: weights that follow the datum would pull every level low.
    """
    has_read = var_rnoise.shape[0] > 0
    nx = flux.shape[2]
    z = np.empty(nx)
    variance = np.empty(nx)
    span = np.empty(nx, dtype=np.int64)
    work = np.empty(2 * _REACH + 1)
    fine = np.zeros((N_SHUTTERS, gain.size, 2))
    for s in range(flux.shape[0]):
        fine[:] = 0
        for i in range(flux.shape[1]):
            for j in range(nx):
                z[j] = np.nan
                m = np.float64(background[s, i, j])
                y = np.float64(flux[s, i, j])
                whole = np.float64(error[s, i, j]) ** 2
                other = np.float64(background_error[s, i, j]) ** 2
                v = whole - other
                if quality[s, i, j] & bits or not (m > 0 and np.isfinite(y) and v > 0):
                    continue
                if not (np.isfinite(v) and np.isfinite(other)):
                    continue
                n, _ = find_span(np.float64(wavelength[s, i, j]), edges, lookup, step)
                if n < 0:
                    continue
                a = gain[n] * factor[s]
                if a >= 0:
                    rest = v - a * max(y + m, 0.0)
                    if has_read:
                        rest = np.float64(var_rnoise[s, i, j])
                    if rest > 0 and np.isfinite(rest):
                        v = rest + a * m
                variance[j] = v * scatter * scatter
                span[j] = n
                z[j] = y / np.sqrt(variance[j])
            for j in range(nx):
                if np.isnan(z[j]):
                    continue
                r = np.float64(yrel[s, i, j])
                if np.isnan(r):
                    continue
                k = int(np.floor(r + 0.5)) - FIRST_SHUTTER
                if k < 0 or k >= N_SHUTTERS or not opened[s, k]:
                    continue
                m = np.float64(background[s, i, j])
                e = np.float64(background_error[s, i, j])
                sigma = np.sqrt(variance[j])
                w = m / variance[j]
                # A line is narrower than what tells sources from cosmic rays: it takes all pixels,
                # but none of them alone can make one.
                fine[k, span[j], 0] += w * m
                fine[k, span[j], 1] += w * sigma * min(max(z[j], -_CLIP), _CLIP)
                # A source fills all pixels beside it; cosmic rays one, or two by chance.
                if abs(z[j]) > _CLIP and abs(z[j] - _about(z, j, work)) > _CLIP:
                    continue
                y = np.float64(flux[s, i, j])
                part = int((r - np.floor(r + 0.5) + 0.5) * N_PARTS)
                part = min(max(part, 0), N_PARTS - 1)
                out[s, k, part, 0] += w * m
                out[s, k, part, 1] += w * y
                out[s, k, part, 2] += w * e
                out[s, k, part, 3] += 1
        for k in range(N_SHUTTERS):
            out[s, k, 0, 4] = _slope(fine[k], phase)
            out[s, k, 0, 5] = _line(fine[k])


@kernel
def _slope(fine, phase):  # pragma: no cover - compiled
    """Slope of the excess over the phase, in its error."""
    w = wp = wpp = a = ap = 0.0
    for n in range(fine.shape[0]):
        p = phase[n]
        w += fine[n, 0]
        wp += fine[n, 0] * p
        wpp += fine[n, 0] * p * p
        a += fine[n, 1]
        ap += fine[n, 1] * p
    if not w > 0:
        return 0.0
    spread = wpp - wp * wp / w
    return (ap - a * wp / w) / np.sqrt(spread) if spread > 0 else 0.0


@kernel
def _line(fine):  # pragma: no cover - compiled
    """Strongest excess of a few detector pixels over those around them, in its error."""
    size = fine.shape[0]
    most = 0.0
    for n in range(size - _LINE_SPANS + 1):
        w = a = around = level = 0.0
        for m in range(max(0, n - BIN_SPANS), min(size, n + _LINE_SPANS + BIN_SPANS)):
            if n <= m < n + _LINE_SPANS:
                w += fine[m, 0]
                a += fine[m, 1]
            else:
                around += fine[m, 0]
                level += fine[m, 1]
        if w > 0 and around > 0:
            found = (a / w - level / around) / np.sqrt(1 / w + 1 / around)
            most = max(most, found)
    return most
