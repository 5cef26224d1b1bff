"""A cluster of two processes beside two threads: fit, subtract and write from a Zarr store.

    python benchmarks/cluster.py [--slits 960] [--repeat 5] [--limit auto] [--memory 2GB]

Prints one JSON line: medians of rounds that take threads and processes in turns, in wall and
processor time of all processes; what the cluster takes to start; its first round, in which the
workers load what they need and their compiled kernels; and all of them over threads. `pass_ms` is
one pass of the fit over pixels that are held, `tasks_a_pass` what it asks of the scheduler. With
`--limit 700MB` workers have so little memory that dask keeps pixels in its files.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import dask
import numpy as np
import psutil
from chain import TRUTH
from distributed import Client, LocalCluster
from scaling import opened

import mbkg_xr as mx
from mbkg_xr import blocks
from mbkg_xr.memory import parse_bytes


def processor_time():
    """Of this process and those it started."""
    mine = psutil.Process()
    times = [p.cpu_times() for p in (mine, *mine.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def fit_and_write(store, out, memory):
    """Seconds of the fit and of what is written, and the last pass."""
    told, passes = blocks.completed, []

    def seen(graph, keys, **options):
        start = time.perf_counter()
        yield from told(graph, keys, **options)
        passes.append((time.perf_counter() - start, len(graph)))

    ds = mx.select_background(opened(store))
    cpu, start = processor_time(), time.perf_counter()
    with mock.patch("mbkg_xr.blocks.completed", seen):
        master = mx.fit_master(ds, memory=memory)
    fitted = time.perf_counter()
    mx.save(mx.subtract(ds, master, residual=True), out, overwrite=True)
    wall = time.perf_counter() - start
    row = {"s": wall, "cpu_s": processor_time() - cpu, "fit_s": fitted - start}
    row |= {"pass_ms": 1e3 * passes[-1][0], "tasks_a_pass": passes[-1][1]}
    print({k: round(v, 2) for k, v in row.items()}, file=sys.stderr)
    return row


def medians(rows):
    return {k: round(float(np.median([r[k] for r in rows])), 2) for k in rows[0]}


def trials(store, out, options):
    """Seconds to start a cluster, its first round, and the others in turns with threads."""
    memory = mx.predict_memory(opened(store), memory=parse_bytes(options.memory)).kept
    fit_and_write(store, out, memory)  # compiles, where nothing has yet
    start = time.perf_counter()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=options.limit, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        client.submit(os.getpid).result()
        started = time.perf_counter() - start
        first = fit_and_write(store, out, memory)
        processes, threads = [], []
        for _ in range(options.repeat):
            with dask.config.set(scheduler="threads"):
                threads.append(fit_and_write(store, out, memory))
            processes.append(fit_and_write(store, out, memory))
    return started, first, medians(processes), medians(threads)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slits", type=int, default=960)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--limit", default="auto", help="memory of a worker")
    parser.add_argument("--memory", default="2GB", help="of a run, as in mbkg-xr run")
    options = parser.parse_args()
    dask.config.set(num_workers=2)
    with tempfile.TemporaryDirectory() as folder:
        store, out = Path(folder) / "program.zarr", Path(folder) / "out.zarr"
        made = mx.simulate_program(
            exposures=max(options.slits // 60, 1), slits=60, background_slits=15
        )
        mx.save(made.drop_vars(TRUTH), store)
        started, first, processes, threads = trials(store, out, options)
    one = threads["s"]
    row = {
        "benchmark": "cluster",
        "slits": made.sizes["slit"],
        "load": round(os.getloadavg()[0], 1),
        "threads": threads,
        "processes": processes,
        "start_s": round(started, 2),
        "first_s": round(first["s"], 2),
        "cluster_over_threads": round(processes["s"] / one, 2),
        "cluster_over_threads_cpu": round(processes["cpu_s"] / threads["cpu_s"], 2),
        "first_over_threads": round(first["s"] / one, 2),
        "with_start_over_threads": round((started + first["s"]) / one, 2),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
