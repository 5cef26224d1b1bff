"""Rows: bias, noise and honesty of the master."""

from __future__ import annotations

import argparse
from functools import lru_cache

import numpy as np
import xarray as xr
from bound import exact_problem, oracle_risk, usable
from figures import figure
from programmes import BAND, Against, against_truth, faint, programme, stacked_faint

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN
from mbkg_xr.simulate.sky import sky_mean
from mbkg_xr.spans import span_grid

RANGES = [(0.7, 1.45), (1.45, 2.2), (2.2, 2.95), (2.95, 3.7), (3.7, 4.45), (4.45, 5.2)]
SIZES = {"3 x 20": (3, 20), "9 x 60": (9, 60), "15 x 150": (15, 150)}
# A master has some 90 degrees of freedom, and a programme's pull scatters by a tenth: so many for
# an error of 0.02.
_PULLS = 20


def all_sky(size: str, seed: int) -> xr.Dataset:
    """A programme whose slits all see sky."""
    exposures, slits = SIZES[size]
    return programme(exposures=exposures, slits=slits, background_slits=slits, seed=seed, **CLEAN)


@lru_cache(maxsize=128)
def one(size: str, seed: int) -> Against:
    return against_truth(mx.fit_master(all_sky(size, seed)))


@lru_cache(maxsize=16)
def efficiency(size: str, seeds: int) -> dict[str, float]:
    """rms error of the master over the least that is possible, all slits being sky: what sources
    spill into "empty" shutters is another matter, and measured with science slits.

    The bound: the smallest rms departure from the truth, averaged over noise, that a penalised
    cubic spline of the toolkit's family reaches which is given the true variance of each pixel, no
    outlier, the penalty's profile over wavelength that the noise-free truth asks for, and the
    spacing and strength that are best *for this very truth*; once from all usable pixels (every
    unflagged row of sky slits, bars included), once from those selected. Its square is the trace of
    the covariance (A^-1 G A^-1, G the Fisher information of the pixels, A = G + penalty) and of
    the squared smoothing bias: the Cramer-Rao bound plus what smoothing costs, at their best
    balance. ``uniform`` is the same with one penalty for all wavelengths (all pixels), and
    ``unbiased`` the plain Cramer-Rao bound of splines with knots every two pixels (the width of the
    line spread) without penalty: smoothing beats it where the sky is smoother than that.
    """
    sums: dict[str, list[float]] = {}
    for seed in range(seeds):
        ds, found = all_sky(size, seed), one(size, seed)
        grid = span_grid(ds)
        mask = usable(ds)
        sky = sky_mean(grid.edges[:-1], grid.edges[1:])
        weight = np.where((grid.centres > BAND[0]) & (grid.centres < BAND[1]), 1 / sky**2, 0.0)
        every = exact_problem(ds, mask, grid)
        picked = exact_problem(ds, mask & ds["selected"].values, grid)
        values = {
            "rms": np.mean(found.departure**2),
            "all": oracle_risk(every, sky, weight, adapted=True, spacings=(1, 2)),
            "selected": oracle_risk(picked, sky, weight, adapted=True, spacings=(1, 2)),
            "uniform": oracle_risk(every, sky, weight, adapted=False),
            "unbiased": oracle_risk(
                every, sky, weight, adapted=False, spacings=(2,), penalties=(1e-9,)
            ),
        }
        for name, value in values.items():
            sums.setdefault(name, []).append(float(value))
    return {name: float(np.sqrt(np.mean(v))) for name, v in sums.items()}


@figure("bias at S/N 3, whole band", unit="%", high=0.2)
def bias(options):
    return 100 * abs(stacked_faint(options, "departure").mean())


@figure("bias at S/N 3, worst of six ranges", unit="%", high=0.5)
def bias_by_range(options):
    departure, wave = stacked_faint(options, "departure"), faint(0).wavelength
    means = [departure[:, (wave > low) & (wave < high)].mean() for low, high in RANGES]
    return 100 * max(np.abs(means))


@figure("rms at S/N 3", unit="%")
def rms(options):
    return 100 * np.sqrt(np.mean(stacked_faint(options, "departure") ** 2))


@figure("pull at S/N 3, std", low=0.9, high=1.1)
def pull(options):
    return stacked_faint(options, "pull").std()


def _efficiency_rows(size: str, large: bool) -> None:
    most = 2 if large else 100

    def of(options: argparse.Namespace) -> dict[str, float]:
        return efficiency(size, min(options.seeds, most))

    @figure(f"rms over bound of all usable pixels, {size}", high=1.15, large=large)
    def over_all(options):
        return of(options)["rms"] / of(options)["all"]

    @figure(f"rms over bound of the selected pixels, {size}", large=large)
    def over_selected(options):
        return of(options)["rms"] / of(options)["selected"]

    @figure(f"rms over bound with one penalty for all wavelengths, {size}", large=large)
    def over_uniform(options):
        return of(options)["rms"] / of(options)["uniform"]

    @figure(f"rms over unbiased Cramer-Rao bound, {size}", large=large)
    def over_unbiased(options):
        return of(options)["rms"] / of(options)["unbiased"]

    @figure(f"rms, {size}", unit="%", large=large)
    def plain(options):
        return 100 * of(options)["rms"]

    @figure(f"pull, {size}, std", low=0.9, high=1.1, large=large)
    def pull_of(options):
        seeds = min(options.seeds, most) if large else max(options.seeds, _PULLS)
        return float(np.sqrt(np.mean([np.var(one(size, s).pull) for s in range(seeds)])))


_efficiency_rows("3 x 20", False)
_efficiency_rows("9 x 60", False)
_efficiency_rows("15 x 150", True)
