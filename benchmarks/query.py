"""What queries read of a stored result, beside all there is: bytes that zarr fetches, and seconds.

    python benchmarks/query.py [--exposures 50] [--slits 200] [--grating PRISM]

Simulates a programme (10,000 slits by default), stores it with its nodded residuals, and prints one
JSON line: slits, bytes of pixels in the store as it is read whole, and for each query the points it
finds, bytes read as a fraction of all, and seconds beside those of reading all, in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

import mbkg_xr as mx


class Counter:
    """Counts the bytes of pixels that zarr's stores give."""

    def __init__(self):
        self.bytes = 0
        get = zarr.storage.LocalStore.get

        async def counted(store, key, *args, **kwargs):
            value = await get(store, key, *args, **kwargs)
            self.bytes += 0 if value is None else len(value)
            return value

        zarr.storage.LocalStore.get = counted

    def of(self, step: Callable[[], int]) -> tuple[int, int, float]:
        """What a step returns, the bytes it read, and seconds."""
        self.bytes, start = 0, time.perf_counter()
        result = step()
        return result, self.bytes, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exposures", type=int, default=50)
    parser.add_argument("--slits", type=int, default=200)
    parser.add_argument("--grating", default="PRISM")
    parser.add_argument("--chunks", type=int, default=32, help="slits a chunk")
    parser.add_argument(
        "--by-quadrant", action="store_true", help="slits of an exposure in the order of quadrants"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.zarr"
        program = mx.simulate_program(
            exposures=options.exposures, slits=options.slits,
            background_slits=options.slits // 5, grating=options.grating, seed=1,
            chunks=options.chunks,
        )  # fmt: skip
        result = mx.residuals(mx.subtract_nods(program))
        # As in on-orbit metafiles: slitlets of quadrants 1 and 2 first, then those of 3 and 4.
        first = (result.slitlet.values > options.slits // 2) * 2
        halves = np.random.default_rng(1).integers(1, 3, first.size)
        result = result.assign_coords(quadrant=("slit", first + halves, result.quadrant.attrs))
        if options.by_quadrant:
            keys = [result[c].values for c in ("slitlet", "quadrant", "detector", "exposure")]
            result = result.isel(slit=np.lexsort(keys)).chunk({"slit": options.chunks})
        truth = [n for n in result.variables if str(n).startswith("true_") or n == "outlier"]
        mx.save(mx.slit_ranges(result.drop_vars(truth)), path)
        (node,) = mx.open_program(path).children.values()
        ds = node.to_dataset()
        low, high = float(ds.wavelength_min.min()), float(ds.wavelength_max.max())
        middle = 0.5 * (low + high)
        queries = {
            "one_exposure": {"exposure": str(ds.exposure.values[0])},
            "one_quadrant": {"quadrant": 1},
            "one_slitlet": {"slitlet": int(ds.slitlet.values[0])},
            "narrow_wavelength": {"wavelength": (middle, middle + 0.01 * (high - low))},
            "ends_of_wavelength": {"wavelength": (high - 0.002 * (high - low), high)},
            "exposure_and_wavelength": {
                "exposure": str(ds.exposure.values[0]),
                "wavelength": (middle, middle + 0.01 * (high - low)),
            },
        }
        counter = Counter()
        pixels = [v for v in ds.variables.values() if v.ndim == 3]

        def everything() -> int:
            return sum(int((v.data == v.data).sum().compute()) for v in pixels)

        _, whole, seconds = counter.of(everything)
        row: dict[str, object] = {
            "benchmark": "query", "grating": options.grating, "slits": ds.sizes["slit"],
            "slits_a_chunk": ds.chunks["slit"][0], "all_bytes": whole,
            "all_seconds": round(seconds, 2),
        }  # fmt: skip
        for name, asked in queries.items():
            points = mx.query(ds, **asked)

            def read(points=points) -> int:
                return sum(b.sizes["point"] for b in points.blocks())

            n, size, took = counter.of(read)
            row[name] = {
                "points": n, "bytes": size, "of_all": round(size / whole, 4),
                "seconds": round(took, 2),
            }  # fmt: skip
        print(json.dumps(row))


if __name__ == "__main__":
    main()
