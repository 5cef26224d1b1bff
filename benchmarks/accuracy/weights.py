"""Rules for the weights of pixels far off, side by side: outliers that are all too bright."""

from __future__ import annotations

import argparse

import numpy as np
import xarray as xr
from bound import true_variance
from programmes import against_truth

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN

RULES = {
    "clip at 3 (usual)": {},
    "clip at 4": {"clip": 4.0},
    "Huber": {"weights": "huber"},
    "biweight": {"weights": "biweight"},
}
FRACTIONS = (0.0, 0.015, 0.05, 0.1)
#: Departures in sigma: those of cosmic rays, which the median filter finds four fifths of, and
#: those that no filter finds.
KINDS = {
    "bright": lambda rng, n: 5.5 + rng.exponential(4.5, n),
    "faint": lambda rng, n: 1 + rng.exponential(3.0, n),
}


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By rule: bias and rms error of the master, in % of the sky and in units of its own error, and
    the passes that it took; 3 exposures of 20 sky slits.
    """
    out: dict[str, dict[str, float]] = {name: {} for name in RULES}
    for signal_to_noise in (3, 10):
        for fraction in FRACTIONS:
            for kind in KINDS if fraction else ["no"]:
                skies = [_dirty(signal_to_noise, fraction, kind, s) for s in range(options.seeds)]
                for name, rule in RULES.items():
                    masters = [mx.fit_master(ds, **rule) for ds in skies]
                    found = [against_truth(master) for master in masters]
                    wrong = np.array([one.departure for one in found])
                    pull = np.array([one.pull for one in found])
                    what = f"S/N {signal_to_noise}, {100 * fraction:g} % {kind} outliers"
                    out[name] |= {
                        f"{what}: bias, %": 100 * float(wrong.mean()),
                        f"{what}: rms, %": 100 * float(np.sqrt(np.mean(wrong**2))),
                        f"{what}: bias, errors": float(pull.mean()),
                        f"{what}: rms, errors": float(np.sqrt(np.mean(pull**2))),
                        f"{what}: passes": float(np.mean([m.sizes["pass"] for m in masters])),
                    }
    return out


def _dirty(signal_to_noise: float, fraction: float, kind: str, seed: int) -> xr.Dataset:
    options = {"exposures": 3, "slits": 20, "background_slits": 20, "outlier_fraction": 0.0}
    ds = mx.simulate_program(
        signal_to_noise=signal_to_noise, seed=seed, **options, **CLEAN
    ).compute()
    rng = np.random.default_rng(seed)
    hit = rng.random(ds["flux"].shape) < fraction
    flux = ds["flux"].values.copy()
    if fraction:
        size = KINDS[kind](rng, int(hit.sum()))
        flux[hit] += (size * np.sqrt(true_variance(ds)[hit])).astype(np.float32)
    return mx.select_background(ds.assign(flux=(ds["flux"].dims, flux, ds["flux"].attrs)))
