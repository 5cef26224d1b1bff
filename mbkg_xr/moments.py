"""Pixels to moments: everything the fit needs from them, in one pass.

For every group of slits and every span n, with t the position in the span and w the weight,

    M_m = sum w t^m  (m = 0..6),    R_m = sum w y t^m  (m = 0..3),    Q = sum w y^2,

12 numbers. A cubic spline with knots on span edges is a cubic in t on each span, so these give
normal equations for any such knots, chi2, and fits without any one group, without the pixels
(normal equations of least squares, written in the truncated power basis of each span).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import reduce_blocks
from .groups import add_up, weighted
from .kernels import kernel
from .spans import SpanGrid, find_span
from .terms import BIN_SPANS, Terms, light_at, profile_at, shutter_of

__all__ = [
    "BIWEIGHT",
    "HISTOGRAM_EDGES",
    "HUBER",
    "N_MOMENTS",
    "REFERENCE_TIME",
    "TAPER",
    "TAPERED",
    "PassState",
    "PassSums",
    "accumulate",
    "block_sums",
    "pixel_columns",
    "time_factors",
]

N_MOMENTS = 12
#: Part of the clipping limit over which weights fall: with 3 sigma, from 2.6 to 3.4.
TAPER = 0.125
#: What a pixel's weight follows as it lies further off.
TAPERED, HUBER, BIWEIGHT = 0, 1, 2
_Z_MAX, _Z_STEP = 20.0, 0.02
HISTOGRAM_EDGES = np.linspace(-_Z_MAX, _Z_MAX, round(2 * _Z_MAX / _Z_STEP) + 1)
#: Exposure time in s to which the photon noise gain refers.
REFERENCE_TIME = 1000.0


@dataclass(frozen=True)
class PassState:
    """What a pass over the pixels has to know: the present model, noise and clipping.

    Attributes
    ----------
    model
        ``(span, 4)``, powers of t of the expected pixel value.
    gain
        ``(span,)``, photon variance a unit of flux at `REFERENCE_TIME`; NaN while unknown (the
        variance is then error^2).
    floor
        ``(span,)``, read variance where the data do not give it pixel by pixel.
    centre, cut
        ``(span,)``, pixels are used to about ``|z - centre| = cut``: from `TAPER` of it below to
        as much above, their weight falls from 1 to 0 (as Hampel's (1974) psi does), so that no
        pixel at the edge goes in and out for ever. Logarithms are cut sharply.
    rule
        `TAPERED` for that; with `HUBER` the weight is ``min(1, 1 / b)``, and with `BIWEIGHT`
        ``(1 - b^2)^2`` (Beaton & Tukey 1974) within ``b = |z - centre| / cut = 1``, 0 beyond.
    unit
        What z is measured in: the scatter over the error, where that is far from 1.
    usual
        ``(span,)``, pixels with a larger error do not count for the noise sums: a few hot ones
        would outweigh all others.
    log
        Accumulate ln y with weight 1 and without the pixels that are not positive.
    """

    model: NDArray[np.float64]
    gain: NDArray[np.float64]
    floor: NDArray[np.float64]
    centre: NDArray[np.float64]
    cut: NDArray[np.float64]
    usual: NDArray[np.float64]
    unit: float = 1.0
    log: bool = False
    rule: int = TAPERED


@dataclass
class PassSums:
    """What a pass brings back. All of it adds.

    Attributes
    ----------
    moments
        ``(group, span, 12)``.
    count
        ``(group, span)``, pixels used.
    selected
        ``(group, span)``, pixels selected, used or not.
    histogram
        ``(bin, len(HISTOGRAM_EDGES) + 1)``, of z, with underflow and overflow.
    noise
        ``(bin, 6)``: n, sum x, sum var_poisson, sum error^2, sum x^2, sum x error^2 with
        x = max(flux, 0) * REFERENCE_TIME / exposure time: photons are not negative.
    pixels
        ``(slit, 2)``: selected pixels within the spans, and those used.
    changing
        ``(product, group, span, 12)``: moments weighted with products of functions of time.
    """

    moments: NDArray[np.float64]
    count: NDArray[np.int64]
    selected: NDArray[np.int64]
    histogram: NDArray[np.int64]
    noise: NDArray[np.float64]
    pixels: NDArray[np.int64]
    changing: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0, 0, N_MOMENTS)))

    def __add__(self, other: PassSums) -> PassSums:
        return PassSums(
            self.moments + other.moments,
            self.count + other.count,
            self.selected + other.selected,
            self.histogram + other.histogram,
            self.noise + other.noise,
            np.concatenate([self.pixels, other.pixels]),
            self.changing + other.changing,
        )


@kernel
def _accumulate_block(
    flux, error, var_rnoise, var_poisson, selected, wavelength, yrel,
    group, time_factor, edges, lookup, step, bin_spans,
    scale, basis, times, drift, level, pedestal, pedestal_shape, used, leak, light,
    profile, first, pitch, kind,
    model, gain, floor, centre, cut, usual, unit, log, rule, z_max, z_step,
    moments, count, chosen, histogram, noise, pixels,
):  # pragma: no cover - compiled  # fmt: skip
    has_var = var_rnoise.shape[0] > 0
    has_profile = profile.shape[0] > 0
    n_z = histogram.shape[1] - 2
    widest = 1.0 if log or rule == BIWEIGHT else 1.0 + TAPER
    if rule == HUBER:
        widest = np.inf
    per_unit, per_step = 1 / unit, 1 / z_step
    for s in range(flux.shape[0]):
        g = group[s]
        # Pixels of one span that follow each other have all of this in common; where a slit's
        # pixels are packed in the order of the spans these are all that it has in a span.
        n, low, high, per_width = -1, 0.0, -1.0, 0.0
        p0 = p1 = p2 = p3 = f = a = other0 = bright = read = middle = per_cut = most = 0.0
        n_seen = n_kept = 0
        m0 = m1 = m2 = m3 = m4 = m5 = m6 = r0 = r1 = r2 = r3 = q = 0.0
        s0 = s1 = s2 = s3 = s4 = s5 = 0.0
        # Column by column: the rows of a column lie in one span, or in two.
        for j in range(flux.shape[2]):
            for i in range(flux.shape[1]):
                if not selected[s, i, j]:
                    continue
                x = np.float64(wavelength[s, i, j])
                if not (low <= x < high):
                    if n >= 0 and n_seen > 0:
                        _add_run(
                            moments[g, n], noise[n // bin_spans], m0, m1, m2, m3, m4, m5, m6,
                            r0, r1, r2, r3, q, s0, s1, s2, s3, s4, s5,
                        )  # fmt: skip
                        count[g, n] += n_kept
                        chosen[g, n] += n_seen
                        pixels[s, 0] += n_seen
                        pixels[s, 1] += n_kept
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
                    for k in range(times.shape[1]):
                        change += times[s, k] * drift[k, n]
                    p0, p1 = model[n, 0] * change, model[n, 1] * change
                    p2, p3 = model[n, 2] * change, model[n, 3] * change
                    f = 1.0
                    for k in range(scale.shape[1]):
                        f += scale[s, k] * basis[n, k]
                    other0 = pedestal[s] * pedestal_shape[n]
                    bright = light_at(light[s], n, bin_spans)
                    a, read = gain[n] * time_factor[s], floor[n]
                    middle, per_cut, most = centre[n], 1 / cut[n], usual[n] * usual[n]
                y = np.float64(flux[s, i, j])
                e2 = np.float64(error[s, i, j]) ** 2
                # What cannot be a measurement is never one, whoever selected it.
                if not np.isfinite(y) or not (e2 > 0 and np.isfinite(e2)):
                    continue
                t = (x - low) * per_width
                mean = ((p3 * t + p2) * t + p1) * t + p0
                n_seen += 1
                z = shutter_of(np.float64(yrel[s, i, j]))
                if not used[s, z]:
                    continue
                share = f + level[s, z]
                if has_profile:
                    share *= profile_at(profile, first, pitch, kind[s], yrel[s, i, j], n + t)
                if not share > 0.01:
                    continue
                other = other0 + leak[s, z] * bright * mean
                expected = share * mean + other
                variance = e2
                photon = 0.0
                if has_var:
                    photon = np.float64(var_poisson[s, i, j])
                if a >= 0:
                    # The datum's own photon noise is replaced by the model's: weights that follow
                    # the datum pull the fit low.
                    rest = np.float64(var_rnoise[s, i, j]) if has_var else read
                    if rest > 0 and np.isfinite(rest):
                        variance = rest + a * max(expected, 0.0)
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
                moments[g, n], noise[n // bin_spans], m0, m1, m2, m3, m4, m5, m6,
                r0, r1, r2, r3, q, s0, s1, s2, s3, s4, s5,
            )  # fmt: skip
            count[g, n] += n_kept
            chosen[g, n] += n_seen
            pixels[s, 0] += n_seen
            pixels[s, 1] += n_kept


@kernel(inline="always")
def _add_run(
    moments, noise, m0, m1, m2, m3, m4, m5, m6, r0, r1, r2, r3, q, s0, s1, s2, s3, s4, s5
):  # pragma: no cover - compiled
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


def block_sums(
    arrays: Sequence[NDArray],
    group: NDArray[np.int64],
    time_factor: NDArray[np.float64],
    state: PassState,
    grid: SpanGrid,
    n_groups: int,
    terms: Terms,
) -> PassSums:
    """Sums of one block: flux, error, selected, wavelength, yrel and perhaps variances."""
    flux, error, selected, wavelength, yrel, *variances = arrays
    n_bins = -(-grid.size // BIN_SPANS)
    sums = PassSums(
        np.zeros((n_groups, grid.size, N_MOMENTS)),
        np.zeros((n_groups, grid.size), dtype=np.int64),
        np.zeros((n_groups, grid.size), dtype=np.int64),
        np.zeros((n_bins, HISTOGRAM_EDGES.size + 1), dtype=np.int64),
        np.zeros((n_bins, 6)),
        np.zeros((flux.shape[0], 2), dtype=np.int64),
    )
    none = np.empty((0, 0, 0), dtype=np.float32)
    rnoise, poisson = variances or (none, none)
    _accumulate_block(
        flux, error, rnoise, poisson, selected, wavelength, yrel,
        group, time_factor, grid.edges, grid.lookup, grid.step, BIN_SPANS,
        np.ascontiguousarray(terms.scale), terms.basis(), terms.times, terms.drift, terms.level,
        terms.pedestal, terms.pedestal_shape, terms.used, terms.leak, terms.light,
        terms.profile.values, terms.profile.first, terms.profile.step, terms.kind,
        state.model, state.gain, state.floor, state.centre, state.cut, state.usual,
        state.unit, state.log, state.rule, _Z_MAX, _Z_STEP,
        sums.moments, sums.count, sums.selected, sums.histogram, sums.noise, sums.pixels,
    )  # fmt: skip
    return sums


def accumulate(
    ds: xr.Dataset,
    grid: SpanGrid,
    state: PassState,
    groups: NDArray[np.int64],
    n_groups: int,
    terms: Terms | None = None,
    products: NDArray[np.float64] | None = None,
) -> PassSums:
    """One pass over the selected pixels.

    Parameters
    ----------
    ds
        A slit dataset with ``selected``, lazy or in memory.
    grid
        The spans.
    state
        The present model, noise and clipping.
    groups
        ``(slit,)``, the group whose moments each slit joins.
    n_groups
        Number of groups.
    terms
        What differs from slit to slit; the moments are of the master's own scale. None: nothing.
        A change of the master with time stays in the moments.
    products
        ``(slit, product)``, if moments weighted with these are wanted, too.

    Returns
    -------
    PassSums
        The same to rounding for any chunking: each block adds up in float64.
    """
    terms = Terms.none(ds.sizes["slit"], grid.size) if terms is None else terms
    factor = time_factors(ds)

    def block(start: int, arrays: Sequence[Any], shared: tuple[PassState, Terms]) -> PassSums:
        part = slice(start, start + arrays[0].shape[0])
        state, own = shared[0], shared[1].part(part)
        if products is None:
            return block_sums(arrays, groups[part], factor[part], state, grid, n_groups, own)
        n = arrays[0].shape[0]
        sums = block_sums(arrays, np.arange(n), factor[part], state, grid, n, own)
        return _grouped(sums, groups[part], n_groups, products[part])

    return reduce_blocks(ds, pixel_columns(ds), block, lambda a, b: a + b, (state, terms))


def _grouped(
    sums: PassSums, groups: NDArray[np.int64], n_groups: int, products: NDArray[np.float64]
) -> PassSums:
    """Sums of groups from those of slits, also weighted with products of functions of time."""
    return replace(
        sums,
        moments=add_up(sums.moments, groups, n_groups),
        count=add_up(sums.count, groups, n_groups),
        selected=add_up(sums.selected, groups, n_groups),
        changing=weighted(sums.moments, groups, n_groups, products),
    )


def time_factors(ds: xr.Dataset) -> NDArray[np.float64]:
    """``(slit,)``: photon noise of each slit over that at `REFERENCE_TIME`."""
    time = ds["exposure_time"].values
    return np.where(time > 0, REFERENCE_TIME / np.where(time > 0, time, 1.0), 1.0)


def pixel_columns(ds: xr.Dataset) -> list[str]:
    """Names of the arrays that a pass reads."""
    names = ["flux", "error", "selected", "wavelength", "yrel"]
    return names + (["var_rnoise", "var_poisson"] if {"var_rnoise", "var_poisson"} <= {*ds} else [])
