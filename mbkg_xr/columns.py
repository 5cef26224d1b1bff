"""The columns of pixels that the passes of a fit read."""

from __future__ import annotations

import xarray as xr

__all__ = ["kept", "per_unit_sky"]


def per_unit_sky(ds: xr.Dataset) -> xr.Dataset:
    """Flux and errors a unit of uniform sky, where the calibration was made for something else."""
    if "response" not in ds.coords:
        return ds
    columns = {"flux": 1, "error": 1, "var_rnoise": 2, "var_poisson": 2}
    scaled = {
        name: (ds[name].dims, (ds[name] / ds["response"] ** power).data, ds[name].attrs)
        for name, power in columns.items()
        if name in ds
    }
    return ds.assign(scaled)


def kept(ds: xr.Dataset, memory: int) -> xr.Dataset:
    """The columns that every pass reads, kept in memory where they are small enough."""
    used = ["flux", "error", "selected", "wavelength", "var_rnoise", "var_poisson"]
    columns = ds[[name for name in used if name in ds.variables]]
    if columns.nbytes > memory:
        return ds
    kept = columns.persist()
    return ds.assign({name: kept[name] for name in columns.data_vars}).assign_coords(
        wavelength=kept["wavelength"]
    )
