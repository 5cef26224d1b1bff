"""Rows: slits with sources in a realistic programme."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from figures import figure
from programmes import BAND, programme

import mbkg_xr as mx

#: Slitlets that tell less of their sky: half of a single shutter; half of two, of which one is sky,
#: and in three slitlets of ten a second source sits in one of the sky shutters.
FEWER = {
    "half of one shutter": {"n_shutters": {1: 10, 3: 10}},
    "half of two shutters, 30 % contaminated": {
        "n_shutters": {2: 10, 3: 10},
        "contaminated_fraction": 0.3,
    },
}


@lru_cache(maxsize=8)
def science(seeds: int, kind: str = "") -> dict[str, float]:
    """Background against truth in all shutters of science slits, sources' included."""
    centres, rows, pulls = [], [], []
    for seed in range(seeds):
        ds = programme(exposures=3, slits=20, background_slits=5, seed=seed, **FEWER.get(kind, {}))
        sub = mx.subtract(ds, mx.fit_master(ds))
        background = sub["background"].values
        wave, yrel = ds["wavelength"].values, ds["yrel"].values
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = background / ds["true_background"].values - 1
        use = np.isfinite(ratio) & (wave > BAND[0]) & (wave < BAND[1])
        use &= ~ds["is_background"].values[:, None, None]
        last = (ds["n_shutters"].values // 2)[:, None, None]
        first = -((ds["n_shutters"].values - 1) // 2)[:, None, None]
        opened = use & (yrel > first - 0.437) & (yrel < last + 0.437)
        rows.append(ratio[opened])
        middle = opened & (np.abs(yrel - np.round(yrel)) <= 0.2)
        centres.append(ratio[middle])
        wrong = background - ds["true_background"].values
        pulls.append(wrong[middle] / sub["background_error"].values[middle])
    middle, every = np.concatenate(centres), np.concatenate(rows)
    return {
        "bias": float(middle.mean()),
        "rms": float(np.sqrt(np.mean(middle**2))),
        "rows": float(np.sqrt(np.mean(every**2))),
        "pull": float(np.sqrt(np.mean(np.concatenate(pulls) ** 2))),
    }


@figure("science slits, shutter centres: bias", unit="%", high=0.5)
def science_bias(options):
    return 100 * abs(science(options.seeds)["bias"])


@figure("science slits, shutter centres: rms", unit="%", high=2.5)
def science_rms(options):
    return 100 * science(options.seeds)["rms"]


@figure("science slits, all open rows and bars: rms", unit="%", high=8)
def science_rows(options):
    return 100 * science(options.seeds)["rows"]


@figure("science slits, shutter centres: pull, rms")
def science_pull(options):
    return science(options.seeds)["pull"]


def _rows_of(kind: str) -> None:
    @figure(f"   {kind}: rms", unit="%")
    def rms(options):
        return 100 * science(options.seeds, kind)["rms"]

    @figure(f"   {kind}: pull, rms")
    def pull(options):
        return science(options.seeds, kind)["pull"]


for _kind in FEWER:
    _rows_of(_kind)
