"""What the fit does to pixels, once more in plain numpy: no kernel, no moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.polynomial import legendre
from scipy.interpolate import BSpline, RegularGridInterpolator

from mbkg_xr.select import centres_only
from mbkg_xr.terms import BIN_SPANS, FIRST_SHUTTER, N_SHUTTERS


@dataclass
class Pixels:
    """Pixels that the fit uses, on the master's scale: slit, span, position, value, weight."""

    slit: np.ndarray
    span: np.ndarray
    t: np.ndarray
    y: np.ndarray
    w: np.ndarray
    selected: np.ndarray  # (slit, span), pixels before clipping

    def moments(self) -> np.ndarray:
        out = np.zeros((*self.selected.shape, 14))
        at = (self.slit, self.span)
        for m in range(7):
            np.add.at(out[..., m], at, self.w * self.t**m)
        for m in range(4):
            np.add.at(out[..., 7 + m], at, self.w * self.y * self.t**m)
        np.add.at(out[..., 11], at, self.w * self.y**2)
        np.add.at(out[..., 12], at, 1.0)
        out[..., 13] = self.selected
        return out

    def part(self, which: np.ndarray) -> Pixels:
        return Pixels(*(v[which] for v in (self.slit, self.span, self.t, self.y, self.w)), None)


def plain_pixels(ds: xr.Dataset, master: xr.Dataset) -> Pixels:
    """Weights, clipping and terms of a master, applied pixel by pixel."""
    if master.attrs.get("rows") == "centres":
        ds = centres_only(ds)
    edges = master.edge.values
    n_spans = edges.size - 1
    n_slits = ds.sizes["slit"]
    response = ds.response.values if "response" in ds.coords else np.ones(ds.flux.shape)
    sel = ds.selected.values.copy()
    slit = np.broadcast_to(np.arange(n_slits)[:, None, None], sel.shape)[sel]
    wave, yrel = ds.wavelength.values[sel].astype(float), ds.yrel.values[sel].astype(float)
    flux = (ds.flux.values / response).astype("f4")[sel].astype(float)
    error = (ds.error.values / response).astype("f4")[sel].astype(float)
    rest = (ds.var_rnoise.values / response**2).astype("f4")[sel].astype(float)
    n = np.searchsorted(edges, wave, side="right") - 1
    ok = (n >= 0) & (n < n_spans) & np.isfinite(flux) & (error > 0)
    slit, yrel, flux, error, rest, wave, n = (
        v[ok] for v in (slit, yrel, flux, error, rest, wave, n)
    )
    t = (wave - edges[n]) / np.diff(edges)[n]
    selected = np.zeros((n_slits, n_spans), dtype=int)
    np.add.at(selected, (slit, n), 1)

    mean = (master.weight_model.values[n] * t[:, None] ** np.arange(4)).sum(axis=1)
    z = np.clip(np.floor(yrel + 0.5).astype(int) - FIRST_SHUTTER, 0, N_SHUTTERS - 1)
    share, other, used = np.ones(n.size), np.zeros(n.size), np.ones(n.size, dtype=bool)
    if "scale" in master:
        phase = master.phase.values[n]
        share += legendre.legval(phase, master.scale.values[slit].T, tensor=False)
        share += master.shutter_level.values[slit, z]
        other += master.pedestal.values[slit] * master.pedestal_shape.values[n]
        used &= master.shutter_used.values[slit, z]
    if "profile" in master:
        kinds = master.n_shutters.values.tolist()
        nodes, bins = master.yrel_node.values, np.arange(master.sizes["bin"]) + 0.5
        for kind, count in enumerate(kinds):
            here = ds.n_shutters.values[slit] == count
            table = master.profile.values[kind]
            at_bin = np.stack([np.interp(yrel[here], nodes, column) for column in table.T])
            u = (n + t)[here] / BIN_SPANS
            share[here] *= [
                np.interp(a, bins, column) for a, column in zip(u, at_bin.T, strict=True)
            ]
            if "pedestal_along" in master:
                raised = RegularGridInterpolator((nodes, bins), master.pedestal_along.values[kind])
                other[here] *= raised(
                    np.column_stack(
                        [np.clip(yrel[here], *nodes[[0, -1]]), np.clip(u, *bins[[0, -1]])]
                    )
                )
    if "source_share" in master:
        light = master.source_light.values
        bins = np.arange(light.shape[1]) + 0.5
        wide = np.array([np.interp((np.arange(n_spans) + 0.5) / BIN_SPANS, bins, r) for r in light])
        other += master.source_share.values[slit, z] * wide[slit, n] * mean
    expected = share * mean + other
    gain = master.photon_gain.values[n] * 1000 / ds.exposure_time.values[slit]
    if "var_rnoise" in ds:
        kind = np.searchsorted([1, 2, 4, 8], rest / master.read_floor.values[n])
        gain = gain * master.read_class_gain.values[kind]
    variance = np.where(rest > 0, rest + gain * np.maximum(expected, 0), error**2)
    away = (flux - expected) / np.sqrt(variance) / master.attrs["clip_unit"]
    used &= share > 0.01
    beyond = np.abs(away - master.clip_centre.values[n]) / master.clip_cut.values[n]
    trust = trust_of(master.attrs["weights"], beyond)
    used &= trust > 0
    y, w = (flux - other) / share, trust * share**2 / variance
    return Pixels(slit[used], n[used], t[used], y[used], w[used], selected)


def trust_of(rule: str, beyond: np.ndarray) -> np.ndarray:
    """What is left of a pixel's weight so far from the centre, in units of the limit."""
    if rule == "huber":
        return np.minimum(1, 1 / np.maximum(beyond, 1e-9))
    if rule == "biweight":
        return np.where(beyond <= 1, (1 - beyond**2) ** 2, 0.0)
    return np.clip((1.125 - beyond) / 0.25, 0, 1)


def plain_design(edges: np.ndarray, knots: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Means over one detector pixel of the cubic B-splines on `knots`, at the pixels, by scipy.

    Of a cubic the mean over a width h about a point is f + h^2 f'' / 24.
    """
    width = np.diff(edges)[pixels.span]
    wave = edges[pixels.span] + width * pixels.t
    out = np.empty((wave.size, knots.size - 4))
    for k in range(out.shape[1]):
        one = BSpline(knots, np.eye(out.shape[1])[k], 3)
        out[:, k] = one(wave) + width**2 * one(wave, 2) / 24
    return out
