"""Products that were nodded before they are opened, made of simulated ones."""

from __future__ import annotations

import numpy as np
from astropy.io import fits


def by_slit(ds):
    keys = zip(ds.exposure.values, ds.detector.values, ds.slitlet.values, strict=True)
    return {(str(e), str(d), int(s)): i for i, (e, d, s) in enumerate(keys)}


def write_cal(files, ds, folder, *, key="S_BKDSUB", errors=True):
    """The `_cal` files again, with flux, errors and flags of a dataset."""
    folder.mkdir(exist_ok=True)
    position = by_slit(ds)
    written = []
    for path in files:
        if not path.name.endswith("_cal.fits"):
            continue
        with fits.open(path) as hdus:
            if key:
                hdus[0].header[key] = "COMPLETE"
            detector = hdus[0].header["DETECTOR"]
            for number in [h.ver for h in hdus if h.name == "SCI"]:
                slitlet = hdus["SCI", number].header["SLITID"]
                i = position[path.name[:25], detector, slitlet]
                ny, nx = hdus["SCI", number].shape
                for name, variable in (("SCI", "flux"), ("ERR", "error"), ("DQ", "quality")):
                    if name != "ERR" or errors:
                        hdus[name, number].data = ds[variable].values[i, :ny, :nx]
            hdus.writeto(folder / path.name)
            written.append(folder / path.name)
    return written


def official_nods(ds):
    """Whole exposures from each other, source and all, errors left as they were: as jwst does."""
    flux, error = ds.flux.values.copy(), ds.error.values.astype(float)
    good = (ds.quality.values & 0x30000011) == 0
    good &= np.isfinite(flux) & (error > 0)
    spread = np.full(flux.shape, np.nan)
    slitlets = list(zip(ds.detector.values, ds.slitlet.values, strict=True))
    for i, key in enumerate(slitlets):
        others = [j for j, k in enumerate(slitlets) if k == key and j != i]
        assert len({(ds.y_start.values[j], ds.x_start.values[j]) for j in (i, *others)}) == 1
        number = good[others].sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            flux[i] -= np.where(good[others], ds.flux.values[others], 0).sum(0) / number
            spread[i] = np.sqrt(np.where(good[others], error[others] ** 2, 0).sum(0)) / number
    return ds.assign(flux=(ds.flux.dims, flux, ds.flux.attrs)), np.where(spread > 0, spread, np.nan)
