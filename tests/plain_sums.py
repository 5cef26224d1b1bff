"""What passes and looks sum over pixels, once more in plain numpy, pixel by pixel from planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from mbkg_xr.moments import HISTOGRAM_EDGES, time_factors
from mbkg_xr.terms import BIN_SPANS, FIRST_SHUTTER, N_SHUTTERS

_STEPS = (1, 2, 4, 8)


@dataclass
class Expected:
    """Pixels of a mask that are measurements, and what is expected of them."""

    slit: np.ndarray
    span: np.ndarray
    bin: np.ndarray
    shutter: np.ndarray
    yrel: np.ndarray
    flux: np.ndarray
    square: np.ndarray
    photon: np.ndarray
    mean: np.ndarray
    profile: np.ndarray
    factor: np.ndarray
    pedestal: np.ndarray
    bars: np.ndarray
    spilt: np.ndarray
    variance: np.ndarray
    kind: np.ndarray
    known: np.ndarray

    def of(self, which: np.ndarray) -> Expected:
        return Expected(**{name: value[which] for name, value in vars(self).items()})


def expected(ds, mask, state, terms, grid, *, spill: bool) -> Expected:
    """`spill`: whether the light that leaks from a source is expected, as passes do."""
    slit = np.broadcast_to(np.arange(mask.shape[0])[:, None, None], mask.shape)[mask]
    names = ("wavelength", "yrel", "flux", "error", "var_rnoise", "var_poisson")
    x, r, y, e, read, photon = (ds[name].values[mask].astype(float) for name in names)
    n = np.searchsorted(grid.edges, x, side="right") - 1
    with np.errstate(invalid="ignore", over="ignore"):
        good = (n >= 0) & (n < grid.size) & np.isfinite(y) & (e * e > 0) & np.isfinite(e)
    slit, n, x, r, y, e, read, photon = (a[good] for a in (slit, n, x, r, y, e, read, photon))
    t = (x - grid.edges[n]) / grid.widths[n]
    mean = (state.model[n] * t[:, None] ** np.arange(4)).sum(axis=1)
    if terms.drift.size:
        mean = mean * (1 + (terms.times[slit] * terms.drift[:, n].T).sum(axis=1))
    z = np.clip(np.floor(r + 0.5).astype(int) - FIRST_SHUTTER, 0, N_SHUTTERS - 1)
    table, g, v = terms.profile, np.ones(n.size), np.ones(n.size)
    for kind in range(len(table.kinds)):
        here = terms.kind[slit] == kind
        nodes = table.first + table.step * np.arange(table.values.shape[1])
        bins = np.arange(table.values.shape[2]) + 0.5
        at = np.column_stack(
            [np.clip(r[here], *nodes[[0, -1]]), np.clip((n + t)[here] / BIN_SPANS, *bins[[0, -1]])]
        )
        g[here] = RegularGridInterpolator((nodes, bins), table.values[kind])(at)
        if table.pedestal.size:
            v[here] = RegularGridInterpolator((nodes, bins), table.pedestal[kind])(at)
    factor = terms.factor()[slit, n] + terms.level[slit, z]
    pedestal = terms.offset()[slit, n]
    spilt = terms.stray()[slit, z, n] * mean
    light = factor * g * mean + pedestal * v + (spilt if spill else 0)
    gain = state.gain[n] * time_factors(ds)[slit]
    known = (gain >= 0) & (read > 0) & np.isfinite(read)
    ratio = read / np.where(state.floor[n] > 0, state.floor[n], np.inf)
    kind = np.where(known, np.searchsorted(_STEPS, ratio), 0)
    variance = np.where(known, read + state.by_class[kind] * gain * np.maximum(light, 0), e * e)
    return Expected(
        slit, n, n // BIN_SPANS, z, r, y, e * e, photon, mean, g, factor, pedestal,
        pedestal * (v - 1), spilt, variance, kind, gain >= 0,
    )  # fmt: skip


def plain_pass(ds, mask, state, terms, grid, trust_of) -> dict[str, Any]:
    """Histogram, noise sums and counts of a pass."""
    p = expected(ds, mask, state, terms, grid, spill=True)
    n_bins, n_slits = -(-grid.size // BIN_SPANS), mask.shape[0]
    pixels = np.zeros((n_slits, 2), dtype=int)
    np.add.at(pixels[:, 0], p.slit, 1)
    p = p.of(terms.used[p.slit, p.shutter] & (p.factor * p.profile > 0.01))
    light = p.factor * p.profile * p.mean + p.pedestal + p.bars + p.spilt
    away = (p.flux - light) / np.sqrt(p.variance) / state.unit
    histogram = np.zeros((n_bins, HISTOGRAM_EDGES.size + 1), dtype=int)
    width = (HISTOGRAM_EDGES[-1] - HISTOGRAM_EDGES[0]) / (HISTOGRAM_EDGES.size - 1)
    place = np.clip(np.floor((away - HISTOGRAM_EDGES[0]) / width), -1, HISTOGRAM_EDGES.size - 1)
    np.add.at(histogram, (p.bin, 1 + place.astype(int)), 1)
    trust = trust_of(np.abs(away - state.centre[p.span]) / state.cut[p.span])
    kept = trust > 0
    np.add.at(pixels[:, 1], p.slit[kept], 1)
    tells = (trust >= 0) & (p.square <= state.usual[p.span] ** 2) & np.isfinite(p.photon)
    p, trust = p.of(tells), trust[tells]
    x = np.maximum(p.flux, 0) * time_factors(ds)[p.slit]
    columns = (1, x, p.photon, p.square, x * x, x * p.square)
    noise = np.zeros((n_bins, 16))
    for k, value in enumerate(columns):
        np.add.at(noise[:, k], p.bin, trust * value)
    for k, value in ((6, p.photon), (7, x * state.gain[p.span])):
        at = (p.bin[p.known], k + 2 * p.kind[p.known])
        np.add.at(noise, at, (trust * value)[p.known])
    return {"histogram": histogram, "noise": noise, "pixels": pixels}


def plain_look(ds, mask, state, terms, grid, sight, has_profile) -> dict[str, np.ndarray]:
    """Weight and excess of shutters, what is kept from them, and the sums along the slit."""
    p = expected(ds, mask, state, terms, grid, spill=False)
    p = p.of((p.mean > 0) & np.isfinite(p.yrel))
    n_bins, n_slits = -(-grid.size // BIN_SPANS), mask.shape[0]
    variance = p.variance * state.unit**2
    rest = p.flux - p.pedestal - p.bars - p.factor * p.profile * p.mean
    z = np.floor(p.yrel + 0.5)
    source = sight.source[p.slit]
    with np.errstate(invalid="ignore"):
        at_source = np.abs(p.yrel - source) <= 0.5
    first, last = sight.first_open[p.slit], sight.last_open[p.slit]
    past = (z < first) | (z > last)
    reach = np.where(np.isfinite(source) | ~has_profile[p.slit], 0.2, 0.4)
    near = np.abs(p.yrel - z) <= reach
    most = 4.5**2 * (variance + (0.1 * p.mean) ** 2)
    wild = ~(at_source | past) & (rest**2 > most)
    here = p.profile * p.mean
    bound = np.sqrt(most) + 2 * p.mean
    bounded = p.flux - rest + np.clip(rest, -bound, bound)
    far, weight, excess = (np.zeros((n_slits, N_SHUTTERS, n_bins)) for _ in range(3))
    far = np.stack([far, far.copy()], axis=1)

    def add(table, which, value):
        np.add.at(table, (p.slit[which], p.shutter[which], p.bin[which]), value[which])

    w = here / variance
    add(far[:, 0], wild & near, w * here)
    add(far[:, 1], wild & near, w * (bounded - p.bars - here))
    kept = ~wild | ~(near | has_profile[p.slit])
    kept &= ~wild | (np.abs(rest) <= 4.5 * np.sqrt(variance) + 0.5 * p.mean)
    tells = kept & (at_source | (near & ~past))
    add(weight, tells, w * here)
    add(excess, tells, w * (p.flux - p.bars - here))
    end = np.clip(np.clip(z, first, last) - FIRST_SHUTTER, 0, N_SHUTTERS - 1).astype(int)
    along = kept & sight.sky[p.slit, end] & ~at_source & (sight.kind[p.slit] >= 0)
    along &= ~past | (np.abs(rest) <= 4.5 * np.sqrt(variance) + 1.5 * p.mean)
    spilt = np.where(np.isfinite(source), terms.light[p.slit, p.bin] * p.mean, 0.0)
    away = np.where(np.isfinite(source), np.abs(p.yrel - source), np.inf)
    doubt = 0.02 * np.exp((0.5 - away) / 0.35) * spilt
    value = p.flux - p.pedestal - p.bars - terms.leak[p.slit, end] * spilt
    m = p.factor * p.mean
    w = m / (variance + doubt**2)
    node = np.floor((p.yrel + 3) / 0.025 + 0.5).astype(int)
    along &= (node >= 0) & (node < 241)
    sums = np.zeros((2, n_slits, 241, n_bins))
    at = (p.slit[along], node[along], p.bin[along])
    np.add.at(sums[0], at, (w * m)[along])
    np.add.at(sums[1], at, (w * value)[along])
    return {"weight": weight, "excess": excess, "far": far, "along": sums}
