"""Rows: lines of the sky left in the residual."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from figures import figure
from programmes import against_truth, programme

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN


@lru_cache(maxsize=16)
def line_residuals(sky: str, centre: float, width: float, seeds: int) -> np.ndarray:
    """Mean departure of the master at a line, relative to the sky there, of each seed."""
    out = []
    for seed in range(seeds):
        ds = programme(exposures=3, slits=20, background_slits=8, sky=sky, seed=seed, **CLEAN)
        found = against_truth(mx.fit_master(ds), sky)
        out.append(found.departure[np.abs(found.wavelength - centre) < width].mean())
    return np.array(out)


# Half the FWHM of the line as the PRISM sees it: one or two detector pixels.
HELIUM = ("ceers", 1.0833, 0.018)
PAH = ("faint", 3.29, 0.025)


@figure("He I 1.083 left, mean of seeds", unit="% of sky", high=1)
def helium(options):
    return 100 * abs(line_residuals(*HELIUM, options.seeds).mean())


@figure("He I 1.083 left, rms of seeds", unit="% of sky")
def helium_rms(options):
    return 100 * np.sqrt(np.mean(line_residuals(*HELIUM, options.seeds) ** 2))


@figure("PAH 3.3 left, mean of seeds", unit="% of sky", high=1)
def pah(options):
    return 100 * abs(line_residuals(*PAH, options.seeds).mean())


@figure("PAH 3.3 left, rms of seeds", unit="% of sky")
def pah_rms(options):
    return 100 * np.sqrt(np.mean(line_residuals(*PAH, options.seeds) ** 2))
