"""Rows: the three real slitlets, held out nod by nod."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr
from figures import NotAvailableError, figure

import mbkg_xr as mx


@lru_cache(maxsize=1)
def real_slitlets(folder: str) -> xr.Dataset:
    files = sorted(Path(folder).glob("*.fits"))
    if not files:
        raise NotAvailableError(f"no slitlets in {folder}")
    ds = next(iter(mx.open_program(files).children.values())).to_dataset().compute()
    return mx.select_background(ds)


@lru_cache(maxsize=1)
def real_nods(folder: str) -> dict[str, float]:
    """Each nod predicted from the two others, beside nodding, on the pixels both have."""
    ds = real_slitlets(folder)
    master = mx.fit_master(ds, leave_out="nod")
    held = mx.residuals(mx.subtract(ds, master, heldout=True)).compute()
    nods = mx.residuals(mx.subtract_nods(ds)).compute()
    table = mx.compare(mx.residuals(mx.subtract(ds, master)), nods, heldout=held)
    common = (mx.sky_centres(held) & mx.sky_centres(nods)).values

    def scatter(one: xr.Dataset) -> float:
        flux = one["flux"].values[common]
        return float(np.median(np.abs(flux - np.median(flux))))

    return {
        "master": table.loc["heldout", "mad_sigma"],
        "nods": table.loc["nods", "mad_sigma"],
        "flux": scatter(nods) / scatter(held),
    }


@figure("real slitlets, held out: MAD-sigma over nodding's", high=1.05)
def real_sigma(options):
    return real_nods(options.real)["master"] / real_nods(options.real)["nods"]


@figure("real slitlets, held out: MAD-sigma")
def real_master_sigma(options):
    return real_nods(options.real)["master"]


@figure("real slitlets: MAD-sigma of nodding")
def real_nods_sigma(options):
    return real_nods(options.real)["nods"]


@figure("real slitlets: scatter in flux, nodding over held out", low=1.3)
def real_flux(options):
    return real_nods(options.real)["flux"]
