"""The same programmes by four methods: the toolkit's, its seed's, a plain scipy spline, nodding."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import xarray as xr
from programmes import BAND, FAINT, programme
from real import real_slitlets
from scipy.interpolate import make_lsq_spline

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN

HELIUM = (1.0833, 0.018)  # um: the line, and half its width as the PRISM sees it
_KNOTS = (8, 16, 32, 64, 128)
_FOLDS = 5
_CLIPS = 3


def ours(train: xr.Dataset, ds: xr.Dataset) -> np.ndarray:
    return mx.project_master(ds, mx.fit_master(train))["background"].values


def seed(train: xr.Dataset, ds: xr.Dataset) -> np.ndarray:
    model = mx.LogPolynomial(method="seed")
    master = mx.fit_master(train, model=model, scales=None, profile=False)
    return mx.project_master(ds, master)["background"].values


def scipy_spline(train: xr.Dataset, ds: xr.Dataset) -> np.ndarray:
    """What an astronomer writes in an hour: a weighted cubic spline of all selected pixels, knots
    at equal numbers of pixels and as many as predict slits left out best, clipped at 3 sigma.
    """
    use = train["selected"].values & (train["error"].values > 0)
    x, y = train["wavelength"].values[use].astype(float), train["flux"].values[use].astype(float)
    w = 1 / train["error"].values[use].astype(float)
    slit = np.nonzero(use)[0]
    order = np.argsort(x, kind="stable")
    x, y, w, slit = x[order], y[order], w[order], slit[order]
    x = x + 1e-9 * np.arange(x.size)  # wavelengths that are alike
    keep = np.ones(x.size, dtype=bool)
    for _ in range(_CLIPS):
        z = (y - _spline(x[keep], y[keep], w[keep], 32)(x)) * w
        keep = np.abs(z - np.median(z)) < 3 * 1.4826 * np.median(np.abs(z - np.median(z)))
    x, y, w, slit = x[keep], y[keep], w[keep], slit[keep]

    def score(knots: int) -> float:
        total = 0.0
        for k in range(min(_FOLDS, np.unique(slit).size)):
            out = slit % _FOLDS == k
            found = _spline(x[~out], y[~out], w[~out], knots)(np.clip(x[out], *x[~out][[0, -1]]))
            total += np.sum(((y[out] - found) * w[out]) ** 2)
        return total

    best = min((k for k in _KNOTS if 8 * k < x.size), key=score)
    wave = ds["wavelength"].values
    sky = _spline(x, y, w, best)(np.clip(np.nan_to_num(wave, nan=x[0]), x[0], x[-1]))
    return np.where((wave >= x[0]) & (wave <= x[-1]), sky, np.nan)


def _spline(x: np.ndarray, y: np.ndarray, w: np.ndarray, pieces: int) -> Callable:
    inner = np.quantile(x, np.linspace(0, 1, pieces + 1)[1:-1])
    return make_lsq_spline(x, y, np.r_[[x[0]] * 4, inner, [x[-1]] * 4], w=w)


def nodding(train: xr.Dataset, ds: xr.Dataset) -> np.ndarray:
    return mx.subtract_nods(ds)["background"].values


METHODS = {"mbkg_xr": ours, "seed's method": seed, "scipy spline": scipy_spline, "nodding": nodding}


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures by method and name, all in per cent but the last two."""
    out: dict[str, dict[str, float]] = {name: {} for name in METHODS}
    seeds = range(options.seeds)
    faint = [programme(**FAINT, seed=s) for s in seeds]
    lines = [programme(exposures=3, slits=20, background_slits=8, seed=s, **CLEAN) for s in seeds]
    real = [programme(exposures=3, slits=20, background_slits=5, seed=s) for s in seeds]
    for name, method in METHODS.items():
        row = out[name]
        off = _near_all(
            np.concatenate([_off(ds, method(ds, ds), _sky_centres(ds)) for ds in faint])
        )
        row["S/N 3: bias"] = 100 * off.mean()
        row["S/N 3: rms of a pixel's background"] = 100 * np.sqrt(np.mean(off**2))
        near = [
            _near_all(_off(ds, method(ds, ds), _sky_centres(ds) & _near(ds, *HELIUM))).mean()
            for ds in lines
        ]
        row["He I 1.083 left"] = 100 * float(np.mean(near))
        centres, rows = [], []
        for ds in real:
            background = method(ds, ds)
            middle, every = _science(ds)
            centres.append(_off(ds, background, middle))
            rows.append(_off(ds, background, every))
        middle, every = (_near_all(np.concatenate(part)) for part in (centres, rows))
        row["science slits: bias"] = 100 * middle.mean()
        row["science slits: rms"] = 100 * np.sqrt(np.mean(middle**2))
        row["science slits: rms of all rows"] = 100 * np.sqrt(np.mean(every**2))
        row |= _real(options.real, name, method)
    return out


def _off(ds: xr.Dataset, background: np.ndarray, use: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        off = background / ds["true_background"].values - 1
    return off[use & np.isfinite(off)].astype(float)


def _near_all(off: np.ndarray) -> np.ndarray:
    """Without what is beyond 8 scaled MADs: cosmic rays in a nod make numbers without meaning."""
    return off[np.abs(off - np.median(off)) < 8 * max(_mad(off), 1e-6)]


def _near(ds: xr.Dataset, centre: float, width: float) -> np.ndarray:
    return np.abs(ds["wavelength"].values - centre) < width


def _inside(ds: xr.Dataset, edge: float) -> np.ndarray:
    wave, yrel = ds["wavelength"].values, ds["yrel"].values
    last = (ds["n_shutters"].values // 2)[:, None, None]
    first = -((ds["n_shutters"].values - 1) // 2)[:, None, None]
    band = (wave > BAND[0]) & (wave < BAND[1])
    return band & (yrel > first - edge) & (yrel < last + edge)


def _centres(ds: xr.Dataset) -> np.ndarray:
    yrel = ds["yrel"].values
    return _inside(ds, 0.2) & (np.abs(yrel - np.round(yrel)) <= 0.2)


def _sky_centres(ds: xr.Dataset) -> np.ndarray:
    return _centres(ds) & ds["is_background"].values[:, None, None]


def _science(ds: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    science = ~ds["is_background"].values[:, None, None]
    return _centres(ds) & science, _inside(ds, 0.437) & science


def _real(folder: str, name: str, method: Callable) -> dict[str, float]:
    """Each nod from the two others, at the centres of sky shutters, where all methods have one."""
    ds = real_slitlets(folder)
    nods = mx.residuals(mx.subtract_nods(ds)).compute()
    good = mx.sky_centres(nods).values
    flux = np.full(ds["flux"].shape, np.nan)
    for k in range(ds.sizes["slit"]):
        others = ds.isel(slit=[i for i in range(ds.sizes["slit"]) if i != k])
        one = ds.isel(slit=[k])
        if name == "nodding":
            flux[k] = nods["flux"].values[k]
        else:
            flux[k] = one["flux"].values[0] - method(others, one)[0]
    error = nods["error"].values if name == "nodding" else ds["error"].values
    good &= np.isfinite(flux)
    z, flux = (flux / error)[good], flux[good]
    return {
        "real slitlets: MAD-sigma in own errors": _mad(z),
        "real slitlets: scatter in flux, 1e-3 MJy/sr": 1e3 * _mad(flux),
    }


def _mad(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
