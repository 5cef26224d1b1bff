"""Rows: sky held out of the fit."""

from __future__ import annotations

import argparse
from functools import lru_cache

import numpy as np
import xarray as xr
from bound import true_variance
from figures import figure
from programmes import programme

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN


def _stack(one: xr.Dataset, master: xr.Dataset, *, heldout: bool) -> float:
    """In units of the model's error."""
    left = mx.subtract(one, master, heldout=heldout)
    return float(mx.compare(mx.residuals(left, master=master).compute())["stack"].iloc[0])


@lru_cache(maxsize=16)
def held_out(seed: int, scattered: bool) -> dict[str, float]:
    """`stack` of one slitlet in five, predicted from the others: with the errors the data have, and
    with the model's.

    The data's errors follow each pixel's own counts, so that even the truth has a stack above 1:
    ``truth`` is that figure, and ``errors`` that of the master. (Leaving each slit out in turn and
    stacking them all would flatter: what one slit has too much of, its master without it lacks.)
    """
    scatter = {} if scattered else {"throughput_scatter": 0.0, "colour_scatter": 0.0}
    options = {k: v for k, v in CLEAN.items() if k not in ("throughput_scatter", "colour_scatter")}
    ds = programme(
        exposures=3, slits=20, background_slits=10, error_scale=1.0, seed=seed, **options, **scatter
    )
    out = np.isin(ds["slitlet"].values, np.unique(ds["slitlet"].values)[seed % 5 :: 5])
    master = mx.fit_master(ds.isel(slit=~out))
    one = ds.isel(slit=out)
    held = mx.residuals(mx.subtract(one, master)).compute()
    left = (one["flux"] - one["true_background"]).values
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = left / np.sqrt(true_variance(one, 1.0))
    z = {
        "errors": held["residual"].values,
        "truth": left / one["error"].values,
        "exact": np.where(np.isfinite(held["residual"].values), exact, np.nan),
    }
    found = {
        name: float(mx.compare(held.assign(residual=(held.residual.dims, v)))["stack"].iloc[0])
        for name, v in z.items()
    }
    return found | {"model": _stack(one, master, heldout=False)}


def _mean_held_out(options: argparse.Namespace, scattered: bool, which: str) -> float:
    return float(np.mean([held_out(s, scattered)[which] for s in range(options.seeds)]))


@figure("stack of held-out sky, no scatter, model's variance", high=1.1)
def stack_model(options):
    return _mean_held_out(options, False, "model")


@figure("stack of held-out sky, no scatter, errors as given", high=1.1)
def stack_errors(options):
    return _mean_held_out(options, False, "errors")


@figure("   stack of the truth itself, errors as given")
def stack_truth(options):
    return _mean_held_out(options, False, "truth")


@figure("   stack of the truth itself, its very variance")
def stack_exact(options):
    return _mean_held_out(options, False, "exact")


@figure("stack of held-out sky, 3 % scatter, 2 % colour, no scales")
def stack_scattered(options):
    return _mean_held_out(options, True, "model")


@lru_cache(maxsize=16)
def own_scales(seed: int) -> float:
    """The same of slitlets none of whose pixels made the master, where their own sky shutters give
    their scale: each shutter is predicted by the scale of the slit's two others.
    """
    rest = {k: v for k, v in CLEAN.items() if k not in ("throughput_scatter", "colour_scatter")}
    ds = programme(exposures=3, slits=20, background_slits=10, error_scale=1.0, seed=seed, **rest)
    sky = np.unique(ds["slitlet"].values[ds["is_background"].values])
    out = np.isin(ds["slitlet"].values, sky[seed % 3 :: 3])
    selected = ds["selected"].where(xr.DataArray(~out, dims="slit"), False)
    master = mx.fit_master(ds.assign(selected=selected), bad_slits="skip")
    return _stack(ds.isel(slit=out), master, heldout=True)


@figure("stack of held-out sky, 3 % scatter, 2 % colour, own scales", high=1.25)
def stack_scaled(options):
    return float(np.mean([own_scales(s) for s in range(options.seeds)]))
