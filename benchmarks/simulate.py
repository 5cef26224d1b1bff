"""How fast programmes are simulated into Zarr, and in how much memory.

Run ``python benchmarks/simulate.py --slits 10000``; prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import dask
import numpy as np

from mbkg_xr.simulate import simulate_program


def peak_memory() -> float:
    """Peak resident memory of this process in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slits", type=int, default=1000, help="slits in all")
    parser.add_argument("--per-exposure", type=int, default=100, help="slits an exposure")
    parser.add_argument("--grating", default="PRISM")
    parser.add_argument("--chunks", type=int, default=32, help="slits a chunk")
    parser.add_argument("--workers", type=int, default=None, help="threads")
    options = parser.parse_args()

    start = time.perf_counter()
    ds = simulate_program(
        exposures=max(1, options.slits // options.per_exposure),
        slits=options.per_exposure,
        background_slits=options.per_exposure // 4,
        detectors=("NRS2",),
        grating=options.grating,
        n_shutters=3,
        chunks=options.chunks,
    )
    planned = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr has no final word yet on text in version 3
        path = Path(folder) / "programme.zarr"
        start = time.perf_counter()
        with dask.config.set(scheduler="threads", num_workers=options.workers):
            ds.to_zarr(path, zarr_format=3, consolidated=False)
        written = time.perf_counter() - start
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    pixels = int(np.prod([ds.sizes[d] for d in ("slit", "y", "x")]))
    print(
        json.dumps(
            {
                "benchmark": "simulate",
                "grating": options.grating,
                "slits": ds.sizes["slit"],
                "shape": [ds.sizes["y"], ds.sizes["x"]],
                "seconds_to_plan": round(planned, 2),
                "seconds_to_write": round(written, 2),
                "pixels_per_second": round(pixels / written),
                "peak_memory_gb": round(peak_memory(), 3),
                "store_gb": round(size / 1e9, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
