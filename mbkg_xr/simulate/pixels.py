"""Pixels of planned slits: light, noise and flags, a slit at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from ..barshadow import shutter_positions
from ..quality import JWST_FLAGS
from .dispersers import OVERSAMPLING, Disperser
from .geometry import EDGE, Trace, pixel_coordinates
from .instrument import bar_shadow, colour_term, point_response
from .noise import DEAF, DEAF_ERROR, bad_pixels, noise_levels, pixel_hash, wild_values
from .sky import Sky, SkyTable, sky_components

__all__ = ["OUTPUT", "PLAN", "Settings", "make_slits", "slit_rng"]

DETECTORS = ("NRS1", "NRS2")
_N_LINES = 4
# Spatial width of a point source in pitches: a diffraction-limited core, lambda / (6.5 m), blurred
# by a 0.1 arcsec pixel, with shutters every 0.53 arcsec (JDox).
_CORE_BY_WAVELENGTH, _CORE_PIXEL = 0.026, 0.055
_WING = 0.9  # width of the wings that leak into neighbouring shutters, in pitches
# A quarter of the pixels lose part of their ramp to a cosmic ray: the read noise variance of the
# CEERS slitlets is this many times its median at the 75th, 90th, 95th and 99th percentile:
# 1.5, 3.1, 4.8, 28; 1, 2.5, 5, 25 here. With a share f of the ramp left it grows as f^-3, that of
# photons as f^-1.
_CUT_RAMPS, _CUT_MOST = 0.25, 30.0

#: What the planner decides for each slit; pixels follow from it and the settings alone.
PLAN = np.dtype(
    [
        *((n, "i4") for n in ("exposure", "visit", "detector", "slitlet", "n_shutters")),
        *((n, "i4") for n in ("x_start", "y_start", "x_size", "y_size")),
        ("trace", "f8", (7,)),  # as the fields of Trace
        ("x_offset", "f8"),  # of the trace in this visit
        ("scale", "f8"),  # throughput
        ("colour", "f8", (3,)),  # of throughput with wavelength
        ("sky", "f8", (2,)),  # factor of each component of the sky in this exposure
        ("pedestal", "f8"),  # in units of the read noise of a pixel
        ("source", "f8"),  # yrel of the source's centre, NaN if there is none
        ("brightness", "f8"),  # source light in one pitch at 2 um, in units of the sky there
        ("slope", "f8"),  # its power of wavelength
        ("size", "f8"),  # its intrinsic width in pitches
        ("line_wavelength", "f8", (_N_LINES,)),
        ("line_strength", "f8", (_N_LINES,)),  # equivalent width, um
        ("contaminant", "f8"),  # yrel of the contaminant's centre, NaN if there is none
        ("contaminant_brightness", "f8"),
        ("point", "?"),  # calibrated as a point source
    ]
)

#: Pixel variables that are made, and their types.
OUTPUT = {
    **dict.fromkeys(
        ("flux", "error", "var_rnoise", "var_poisson", "var_flat", "wavelength", "yrel"), np.float32
    ),
    **dict.fromkeys(("response", "true_background", "true_sky"), np.float32),
    "quality": np.uint32,
    "outlier": np.bool_,
    "hot": np.bool_,
}
_OUTSIDE = {"quality": JWST_FLAGS["DO_NOT_USE"], "outlier": False, "hot": False}


@dataclass(frozen=True)
class Settings:
    """What is the same for all slits of a programme. Small and hashable: it travels to workers."""

    seed: int
    disperser: Disperser
    sky: Sky | SkyTable
    exposure_time: float
    read_noise: float
    noise: float
    error_scale: float
    outlier_fraction: float
    flagged_fraction: float
    pixel_flat: float
    hot_fraction: float
    leak: float
    barshadow_mismatch: float


@dataclass(frozen=True)
class _Tables:
    """Functions of u on the disperser's fine grid."""

    first: float
    wavelength: np.ndarray
    sky: np.ndarray
    sky_at_2um: float
    step: float = 1.0 / OVERSAMPLING


@lru_cache(maxsize=8)
def _tables(settings: Settings) -> _Tables:
    u, wavelength = settings.disperser.table
    at = np.clip(2.0, *settings.disperser.band)
    level = float(settings.sky.components(np.array(at), settings.disperser).sum())
    return _Tables(u[0], wavelength, sky_components(settings.sky, settings.disperser), level)


def slit_rng(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for every slit and purpose: pixels do not depend on chunking."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *key])))


def make_slits(
    plan: np.ndarray, settings: Settings, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Pixels of planned slits.

    Parameters
    ----------
    plan
        ``(slit,)`` of dtype `PLAN`.
    settings
        The programme's.
    shape
        ``(y, x)`` to pad every cut-out to.

    Returns
    -------
    dict
        ``(slit, y, x)`` arrays by the names of `OUTPUT`.
    """
    out: dict[str, np.ndarray] = {
        name: np.full((len(plan), *shape), _OUTSIDE.get(name, np.nan), dtype)
        for name, dtype in OUTPUT.items()
    }
    for index, slit in enumerate(plan):
        cut = (index, slice(slit["y_size"]), slice(slit["x_size"]))
        for name, values in _make_slit(slit, settings).items():
            out[name][cut] = values
    return out


def _make_slit(slit: np.void, settings: Settings) -> dict[str, np.ndarray]:
    tables = _tables(settings)
    trace = Trace(*slit["trace"])
    rows = (slit["y_start"] + np.arange(slit["y_size"]))[:, None]
    columns = slit["x_start"] + np.arange(slit["x_size"])
    u, yrel = pixel_coordinates(trace, rows, columns)
    shutters = shutter_positions(slit["n_shutters"])
    inside = (yrel >= shutters[0] - EDGE) & (yrel <= shutters[-1] + EDGE)
    (wavelength,) = _look_up((u - tables.first) / tables.step, tables.wavelength)
    reference, residual = bar_shadow(int(slit["n_shutters"]), settings.barshadow_mismatch)(
        yrel, wavelength
    )
    response = point_response(wavelength, reference) if slit["point"] else np.ones_like(u)

    sky = _pixel_mean_sky(slit, trace, u, tables)
    light = colour_term(_phase(wavelength, settings.disperser), slit["colour"])
    light *= slit["scale"] * residual
    detector_key = int(settings.seed) * 1_000_003 + 8 * int(slit["detector"])
    if settings.pixel_flat:
        # Of the detector's pixels, whichever slit and exposure they serve.
        uniform = np.clip(pixel_hash(rows, columns, detector_key + 1), 1e-12, 1 - 1e-12)
        light *= 1 + settings.pixel_flat * ndtri(uniform)
    grid, *levels = _noise_tables(settings)
    read, photon = (
        level * response / reference
        for level in _look_up((wavelength - grid[0]) / (grid[1] - grid[0]), *levels)
    )
    background = light * sky * response + slit["pedestal"] * read
    signal = background + light * response * _sources(slit, settings, tables, wavelength, yrel)

    hot = np.zeros(u.shape, bool)
    if settings.hot_fraction:
        uniform = pixel_hash(rows, columns, detector_key + 2)
        hot = inside & (uniform < settings.hot_fraction)
        usual = settings.error_scale * np.sqrt(read * read + photon * np.maximum(background, 0))
        signal = signal + hot * usual * (6 + 10 * uniform / settings.hot_fraction)

    rng = slit_rng(settings.seed, 1, slit["exposure"], slit["detector"], slit["slitlet"])
    chance = rng.random((3, *u.shape), dtype=np.float32)
    fixed = pixel_hash(rows, columns, detector_key)
    quality = bad_pixels(fixed, chance[2], settings.flagged_fraction)
    cut = 1 / np.clip(chance[0] / _CUT_RAMPS, 1 / _CUT_MOST, 1)
    var_rnoise = read * read * cut
    var_rnoise[quality == DEAF] = DEAF_ERROR**2
    photon *= np.cbrt(cut)
    sigma = settings.error_scale * np.sqrt(var_rnoise + photon * np.maximum(signal, 0))
    flux = signal + sigma * rng.standard_normal(u.shape, dtype=np.float32)
    outlier = inside & (chance[1] < settings.outlier_fraction)
    flux[outlier] += sigma[outlier] * _outliers(int(outlier.sum()), rng)
    # As STScI does it: the photon noise is that of the pixel's own counts, noise and all.
    var_poisson = photon * np.maximum(flux, 0)
    var_flat = (settings.pixel_flat * flux) ** 2
    error = np.sqrt(var_rnoise + var_poisson + var_flat)

    bad = inside & ((quality & JWST_FLAGS["DO_NOT_USE"]) != 0)
    outlier &= ~bad
    hot &= ~bad
    flux[bad], error[bad] = wild_values(int(bad.sum()), rng)
    var_rnoise[bad] = var_poisson[bad] = var_flat[bad] = 0.0
    quality[~inside] = JWST_FLAGS["DO_NOT_USE"]

    made = {
        "flux": flux,
        "error": error,
        "var_rnoise": var_rnoise,
        "var_poisson": var_poisson,
        "var_flat": var_flat,
        "wavelength": wavelength,
        "yrel": yrel,
        "response": response,
        "true_background": background,
        "true_sky": sky,
    }
    for values in made.values():
        values[~inside] = np.nan
    return {**made, "quality": quality, "outlier": outlier, "hot": hot}


@lru_cache(maxsize=8)
def _noise_tables(settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavelengths in equal steps, and the programme's read and photon noise there."""
    wavelength = settings.disperser.table[1]
    grid = np.linspace(wavelength[0], wavelength[-1], 2000)
    read, photon = noise_levels(grid, settings.disperser, settings.exposure_time)
    return grid, read * settings.read_noise * settings.noise, photon * settings.noise**2


def _pixel_mean_sky(slit: np.void, trace: Trace, u: np.ndarray, tables: _Tables) -> np.ndarray:
    """Mean over each pixel's extent in wavelength: its left edge is its left neighbour's right."""
    half = 0.5 / trace.stretch
    edges = np.concatenate([u - half, u[:, -1:] + half], axis=1)
    position = (edges - tables.first) / tables.step
    integral = slit["sky"][0] * tables.sky[0] + slit["sky"][1] * tables.sky[1]
    light, extent = _look_up(position, integral, tables.wavelength)
    return np.diff(light) / np.diff(extent)


def _sources(
    slit: np.void, settings: Settings, tables: _Tables, wavelength: np.ndarray, yrel: np.ndarray
) -> np.ndarray | float:
    """Light of the source and of a contaminant, MJy/sr."""
    total = 0.0
    if np.isfinite(slit["source"]):
        spectrum = slit["brightness"] * tables.sky_at_2um * (wavelength / 2) ** slit["slope"]
        for centre, strength in zip(slit["line_wavelength"], slit["line_strength"], strict=True):
            sigma = centre / settings.disperser.resolution(centre) / 2.3548
            z = (wavelength - centre) / sigma
            near = np.abs(z) < 6
            line = strength / (sigma * np.sqrt(2 * np.pi)) * np.exp(-0.5 * z[near] ** 2)
            spectrum[near] *= 1 + line
        d = yrel - slit["source"]
        core = (_CORE_BY_WAVELENGTH * wavelength) ** 2 + _CORE_PIXEL**2 + slit["size"] ** 2
        profile = (1 - settings.leak) * np.exp(-0.5 * d * d / core) / np.sqrt(2 * np.pi * core)
        profile += settings.leak * np.exp(-0.5 * (d / _WING) ** 2) / (np.sqrt(2 * np.pi) * _WING)
        total = spectrum * profile
    if np.isfinite(slit["contaminant"]):
        core = (_CORE_BY_WAVELENGTH * wavelength) ** 2 + _CORE_PIXEL**2
        profile = np.exp(-0.5 * (yrel - slit["contaminant"]) ** 2 / core)
        total = total + slit["contaminant_brightness"] * tables.sky_at_2um * profile / np.sqrt(
            2 * np.pi * core
        )
    return total


def _outliers(n: int, rng: np.random.Generator) -> np.ndarray:
    """Departures in sigma, as the 26 of 3,922 sky pixels of the CEERS slitlets: up and down alike,
    mostly 5 to 12, and one in twelve hundreds.
    """
    size = (5.5 + rng.exponential(4.5, n)) * np.where(rng.random(n) < 0.08, 20.0, 1.0)
    return np.where(rng.random(n) < 0.5, size, -size)


def _phase(wavelength: np.ndarray, disperser: Disperser) -> np.ndarray:
    """The band as -1 to 1 of log wavelength."""
    low, high = np.log(disperser.band)
    return (2 * np.log(wavelength) - low - high) / (high - low)


def _look_up(position: np.ndarray, *tables: np.ndarray) -> list[np.ndarray]:
    """Linear interpolation in tables of unit steps."""
    position = np.clip(position, 0, tables[0].size - 1.000001)
    index = position.astype(np.intp)
    position -= index
    out = []
    for table in tables:
        low = table[index]
        out.append(low + (table[1:][index] - low) * position)
    return out
