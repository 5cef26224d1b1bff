"""What a drift of the sky is worth: masters of programmes whose sky changes, against truth.

    python benchmarks/drift.py

Prints a table and, as its last line, one JSON object. rms and pull are of all exposures, over
0.7 to 5.2 um at shutter centres of sky slits: of the sky itself, and of the slits' background.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

import mbkg_xr as mx

STEADY = {"throughput_scatter": 0.0, "colour_scatter": 0.0, "sky_drift": 0.0, "pedestal": 0.0}
QUIET = {"contaminated_fraction": 0.0, "leak": 0.0, "barshadow_mismatch": 0.0}
MASTERS: dict[str, dict] = {
    "one master": {},
    "one master, scales=None": {"scales": None},
    "drift": {"drift": mx.Drift()},
    "drift, scales=None": {"drift": mx.Drift(), "scales": None},
}
PER_SLIT = ("scale", "shutter_", "pedestal", "profile", "source_")


def figures(ds: xr.Dataset, master: xr.Dataset) -> dict[str, float]:
    """rms in % and pull of the sky and of the background."""
    wave = ds["wavelength"].values
    use = ds["selected"].values & (wave > 0.7) & (wave < 5.2)
    bare = master.drop_vars([n for n in master.data_vars if str(n).startswith(PER_SLIT)])
    out = {}
    for name, one, truth in (("sky", bare, "true_sky"), ("background", master, "true_background")):
        found = mx.project_master(ds, one)
        true = ds[truth].values[use].astype(float)
        wrong = found["background"].values[use] - true
        out[f"{name} rms"] = 100 * float(np.sqrt(np.mean((wrong / true) ** 2)))
        out[f"{name} pull"] = float((wrong / found["background_error"].values[use]).std())
    return out


def rows(trend: tuple[float, float], seeds: int, options: dict) -> Iterator[tuple[str, list[dict]]]:
    programmes = [
        mx.select_background(
            mx.simulate_program(
                exposures=6, slits=8, background_slits=8, sky_trend=trend, seed=seed, **options
            ).compute()
        )
        for seed in range(seeds)
    ]
    for name, choice in MASTERS.items():
        yield name, [figures(ds, mx.fit_master(ds, **choice)) for ds in programmes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    seeds = parser.parse_args().seeds
    warnings.simplefilter("ignore", UserWarning)
    kinds = {
        "10 % and 30 %": ((0.1, 0.3), STEADY | QUIET),
        "no change": ((0.0, 0.0), STEADY | QUIET),
        "10 % and 30 %, slits that differ": ((0.1, 0.3), {}),
    }
    columns = ("sky rms", "sky pull", "background rms", "background pull")
    table = Table("trend", "fit", *(f"{c} (%)" if "rms" in c else c for c in columns))
    line: dict[str, dict[str, float]] = {}
    for kind, (trend, options) in kinds.items():
        for name, found in rows(trend, seeds, options):
            means = {c: float(np.mean([one[c] for one in found])) for c in columns}
            table.add_row(kind, name, *(f"{means[c]:.3g}" for c in columns))
            line[f"{kind}: {name}"] = {c: round(v, 4) for c, v in means.items()}
    Console(width=120).print(table)
    print(json.dumps({"seeds": seeds, **line}))


if __name__ == "__main__":
    main()
