"""Speed of ingest and of opening stores.

    python benchmarks/ingest.py [--slits 200] [--files 4] [--exposures 1000]

Prints one JSON line: milliseconds a slit and Mpixel/s of ingesting `_cal` files on dask's threads,
with and without an index of them in the cache; peak memory of ingesting so many files and of three
times as many, each in a process of its own; and what a store of so many exposures of 60 slits takes
to open (its journal and coordinates are real, its pixels are never written).
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import mbkg_xr as mx
from mbkg_xr.io.journal import read_journal, write_journal
from mbkg_xr.simulate.jwst import write_jwst


def make_files(folder, slits, count):
    """`_cal` files of so many slits; exposures after the first are its copies with other names."""
    ds = mx.simulate_program(exposures=1, slits=slits, background_slits=slits // 4)
    first, meta = write_jwst(ds, folder)
    meta.unlink()
    data = first.read_bytes()
    files = [first]
    for number in range(2, count + 1):
        name = first.name.replace("_00001_", f"_{number:05d}_")
        path = folder / name
        path.write_bytes(data.replace(first.name.encode(), name.encode()))
        files.append(path)
    return files, ds


def large_store(small, path, exposures, slits):
    """A store like one that was ingested, of many exposures; only the journal is written anew."""
    shutil.copytree(small, path)
    journal = read_journal(path)
    (group,) = journal.groups.values()
    (block,) = group.blocks[:1]
    slits = min(slits, block.count)
    coords = {k: v[:slits] if isinstance(v, list) else v for k, v in block.coords.items()}
    step = -(-slits // group.chunk[0]) * group.chunk[0]
    group.blocks = []
    for i in range(exposures):
        name = f"jw09999001001_03101_{i:05d}"
        own = {**coords, "exposure": name, "filename": f"{name}_nrs1_cal.fits"}
        made = replace(block, exposure=name, start=i * step, count=slits, coords=own)
        group.blocks.append(made)
    product = next(iter(journal.products.values()))
    journal.products = {b.coords["filename"]: product for b in group.blocks}
    write_journal(path, journal)


def timed(function, repeat=5):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak(files, store):
    """Peak memory in MB of ingesting, in a process of its own."""
    code = (
        "import sys, mbkg_xr as mx;"
        # Not getrusage: a process begins with its parent's peak there.
        "most = lambda: open('/proc/self/status').read().split('VmHWM:')[1].split()[0];"
        "before = most();"
        "mx.ingest(sys.argv[2:], sys.argv[1]);"
        "print(before, most())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, store, *files], check=True, capture_output=True, text=True
    )
    return [round(int(v) / 1024) for v in out.stdout.split()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--slits", type=int, default=200)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--exposures", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, ds = make_files(folder, options.slits, 3 * options.files)
        pixels = int(np.isfinite(ds.wavelength.values).sum())
        row = {"slits": options.slits, "files": options.files, "mpixel_a_file": pixels / 1e6}
        for label in ("cold", "indexed"):
            start = time.perf_counter()
            report = mx.ingest(files[: options.files], folder / f"{label}.zarr")
            took = time.perf_counter() - start
            assert len(report.accepted) == options.files, report.failed
            row[f"{label}_ms_a_slit"] = 1e3 * took / options.files / options.slits
            row[f"{label}_mpixel_s"] = pixels / 1e6 * options.files / took
        again = timed(lambda: mx.ingest(files[: options.files], folder / "cold.zarr"), 3)
        row["skip_ms_a_file"] = 1e3 * again / options.files
        row["verify_s"] = timed(lambda: mx.verify(folder / "cold.zarr"), 1)
        store = folder / "large.zarr"
        large_store(folder / "cold.zarr", store, options.exposures, 60)
        tree = mx.open_program(store)["prism-clear"]
        assert tree.sizes["slit"] == options.exposures * min(60, options.slits)
        row["large_store_slits"] = tree.sizes["slit"]
        row["open_large_s"] = timed(lambda: mx.open_program(store))
        start = time.process_time()  # what other work on the machine does not lengthen
        mx.open_program(store)
        row["open_large_cpu_s"] = time.process_time() - start
        row["open_small_ms"] = 1e3 * timed(lambda: mx.open_program(folder / "cold.zarr"))
        for count in (options.files, 3 * options.files):
            before, most = peak(map(str, files[:count]), str(folder / f"peak{count}.zarr"))
            row[f"peak_mb_{count}_files"] = most
        row["imports_mb"] = before
    print(json.dumps({k: round(v, 3) for k, v in row.items()}))


if __name__ == "__main__":
    main()
