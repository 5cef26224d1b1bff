"""How fast a ``_cal`` is opened and read, beside stdatamodels with gwcs and a plain astropy loop.

    python benchmarks/open.py [--slits 200] [--repeat 5] [--file JW..._cal.fits]

Prints one JSON line of milliseconds a slit, medians of several runs in fresh directories of the
cache where that matters: ``cold`` is a file that no index knows, ``indexed`` one that is known. The
file itself is in the system's memory in all of them. Ways that take seconds (stdatamodels) run once
or twice.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
from astropy.io import fits

import mbkg_xr as mx
from mbkg_xr.simulate import simulate_program, write_jwst

PIXELS = ("flux", "error", "quality", "wavelength", "var_rnoise", "var_poisson")


def product(slits: int, folder: Path) -> Path:
    ds = simulate_program(
        exposures=1, slits=slits, background_slits=slits // 5, detectors=("NRS2",), seed=1
    )
    return next(p for p in write_jwst(ds, folder) if p.name.endswith("_cal.fits"))


def median(step: Callable[[Path], object], repeat: int) -> float:
    """Milliseconds; each run gets an empty directory."""
    times = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            step(Path(folder))
            times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def opened(path: Path, cache: Path | bool):
    (node,) = mx.open_program(path, cache=cache).children.values()
    return node.to_dataset()


def positions(path: Path, cache: Path) -> None:
    """Structure, wavelength and yrel of each slit."""
    ds = opened(path, cache)
    dask.compute(ds.wavelength.data, ds.yrel.data)


def by_stdatamodels(path: Path) -> None:
    """Structure and the WCS's positions and wavelengths of each slit."""
    from stdatamodels.jwst import datamodels

    with datamodels.open(path) as model:
        for slit in getattr(model, "slits", [model]):
            y, x = np.mgrid[: slit.data.shape[0], : slit.data.shape[1]].astype(float)
            slit.meta.wcs.get_transform("detector", "slit_frame")(x, y)


def by_astropy(path: Path, names: tuple[str, ...]) -> None:
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus:
            if hdu.name in names:
                np.asarray(hdu.data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slits", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--file", type=Path, help="a _cal of your own")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = options.file or product(options.slits, folder)
        slits = opened(path, False).sizes["slit"]
        known = folder / "cache"
        opened(path, known).yrel.data.compute()
        few = max(1, options.repeat // 2)
        steps: dict[str, tuple[Callable[[Path], object], int]] = {
            "structure_cold": (lambda cache: opened(path, cache), options.repeat),
            "structure_indexed": (lambda _: opened(path, known), options.repeat),
            "wavelength_cold": (
                lambda cache: opened(path, cache).wavelength.data.compute(),
                options.repeat,
            ),
            "yrel_cold": (lambda cache: positions(path, cache), few),
            "yrel_indexed": (lambda _: opened(path, known).yrel.data.compute(), options.repeat),
            "pixels_indexed": (
                lambda _: opened(path, known)[list(PIXELS)].compute(),
                options.repeat,
            ),
            "astropy_structure": (lambda _: by_astropy(path, ()), few),
            "astropy_pixels": (
                lambda _: by_astropy(
                    path, ("SCI", "ERR", "DQ", "WAVELENGTH", "VAR_RNOISE", "VAR_POISSON")
                ),
                few,
            ),
            "stdatamodels_gwcs": (lambda _: by_stdatamodels(path), min(few, 2)),
        }
        if hasattr(mx, "ingest"):
            steps["ingest"] = (lambda out: mx.ingest([path], out / "program.zarr"), few)
        times = {name: median(step, repeat) / slits for name, (step, repeat) in steps.items()}
        size = path.stat().st_size / 1e6
    row: dict[str, object] = {"benchmark": "open", "slits": slits, "file_mb": round(size, 1)}
    row |= {f"{name}_ms_a_slit": round(t, 4) for name, t in times.items()}
    row["yrel_cold_over_stdatamodels"] = round(times["stdatamodels_gwcs"] / times["yrel_cold"], 1)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
