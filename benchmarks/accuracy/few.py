"""Rows: programmes of two sky slits, with templates and without."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import lru_cache

import numpy as np
from figures import figure
from programmes import against_truth, programme

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN
from mbkg_xr.simulate.sky import Sky, as_sky

_LEAST_SEEDS = 8


def other_epoch() -> Sky:
    """The default sky of another epoch: more zodiacal light and redder, less and cooler thermal
    light, weaker helium; the Sun's absorption is the same.
    """
    sky = as_sky("ceers")
    assert isinstance(sky, Sky)
    return replace(
        sky,
        scattered=1.3 * sky.scattered,
        scattered_slope=sky.scattered_slope - 0.04,
        thermal=0.75 * sky.thermal,
        thermal_temperature=sky.thermal_temperature - 12,
        helium=0.6 * sky.helium,
    )


@lru_cache(maxsize=32)
def _templates(seed: int) -> tuple[mx.Template, mx.Template]:
    """The master of another epoch, and that of another field."""
    there = {"exposures": 3, "slits": 60, "background_slits": 60, "seed": 1000 + seed, **CLEAN}
    former, field = (
        mx.Template(mx.fit_master(programme(sky=sky, **there)))
        for sky in (other_epoch(), "uncover")
    )
    return former, field


@lru_cache(maxsize=4)
def few_slits(seeds: int, signal_to_noise: float | None) -> dict[str, float]:
    """rms with two sky slits in three nods, by splines and with templates.

    ``template``: the master of a former visit of 60 sky slits in three nods, at another epoch.
    ``field``: the master of such a visit to another field, whose small structure, measured in other
    real data, is its own. ``uniform``: the spline with one penalty for all wavelengths.
    """
    squares: dict[str, list[float]] = {}
    for seed in range(seeds):
        former, field = _templates(seed)
        ds = programme(
            exposures=3,
            slits=2,
            background_slits=2,
            signal_to_noise=signal_to_noise,
            seed=seed,
            **CLEAN,
        )
        models = {
            "spline": mx.BSpline(),
            "uniform": mx.BSpline(adapted=False),
            "template": former,
            "field": field,
            "both": replace(former, against=mx.BSpline()),
        }
        for name, model in models.items():
            found = against_truth(mx.fit_master(ds, model=model))
            squares.setdefault(name, []).append(float(np.nanmean(found.departure**2)))
            # A template leaves so few degrees of freedom that a programme's mean pull is one of
            # them: the standard deviation is over all programmes, about the truth.
            squares.setdefault(f"pull {name}", []).append(float(np.nanmean(found.pull**2)))
    return {name: float(np.sqrt(np.mean(v))) for name, v in squares.items()}


def _few_rows(label: str, signal_to_noise: float | None) -> None:
    def of(options: argparse.Namespace) -> dict[str, float]:
        # A template leaves so few degrees of freedom that a single programme's pull says little.
        return few_slits(max(options.seeds, _LEAST_SEEDS), signal_to_noise)

    @figure(f"two sky slits{label}: rms of the spline", unit="%")
    def spline(options):
        return 100 * of(options)["spline"]

    @figure(f"two sky slits{label}: rms with a template", unit="%")
    def template(options):
        return 100 * of(options)["template"]

    @figure(f"two sky slits{label}: spline over template", low=2)
    def gain(options):
        return of(options)["spline"] / of(options)["template"]

    @figure(f"   spline of one penalty over template{label}")
    def gain_uniform(options):
        return of(options)["uniform"] / of(options)["template"]

    @figure(f"   spline over template of another field{label}")
    def gain_field(options):
        return of(options)["spline"] / of(options)["field"]

    @figure(f"   spline over template, spline competing{label}")
    def gain_both(options):
        return of(options)["spline"] / of(options)["both"]

    @figure(f"two sky slits{label}: pull with a template", low=0.9, high=1.1)
    def pull_few(options):
        return of(options)["pull template"]

    @figure(f"two sky slits{label}: pull of the spline", low=0.9, high=1.1)
    def pull_spline(options):
        return of(options)["pull spline"]

    @figure(f"two sky slits{label}: pull with a template of another field", low=0.9, high=1.1)
    def pull_field(options):
        return of(options)["pull field"]


_few_rows("", None)
_few_rows(", S/N 3", 3)
