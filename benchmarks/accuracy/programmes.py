"""Programmes with known truth, and masters held to it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xarray as xr

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN
from mbkg_xr.simulate.sky import sky_mean

BAND = (0.7, 5.2)
# Errors from the pixel's own counts, 1.5 % outliers, S/N 3 a pixel, sky slits only.
FAINT = {
    **CLEAN,
    "exposures": 3,
    "slits": 40,
    "background_slits": 40,
    "signal_to_noise": 3,
    "outlier_fraction": 0.015,
}


def programme(**options) -> xr.Dataset:
    """A simulated programme with its sky pixels selected, in memory."""
    return mx.select_background(mx.simulate_program(**options).compute())


@dataclass(frozen=True)
class Against:
    """A master and the truth at the middle of every span (one detector pixel each) of the band."""

    wavelength: np.ndarray
    departure: np.ndarray  # master over truth, less one
    pull: np.ndarray


def against_truth(master: xr.Dataset, sky: object = None) -> Against:
    edges = master["edge"].values
    centre = 0.5 * (edges[1:] + edges[:-1])
    use = (centre > BAND[0]) & (centre < BAND[1])
    truth = sky_mean(edges[:-1][use], edges[1:][use], sky)
    found = (master["expected"].values @ 0.5 ** np.arange(4))[use]
    error = master["sky_error"].sel(node=0.5).values[use]
    return Against(centre[use], found / truth - 1, (found - truth) / error)


@lru_cache(maxsize=64)
def faint(seed: int) -> Against:
    return against_truth(mx.fit_master(programme(**FAINT, seed=seed)))


def stacked_faint(options: argparse.Namespace, what: str) -> np.ndarray:
    return np.array([getattr(faint(s), what) for s in range(options.seeds)])
