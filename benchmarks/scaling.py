"""How time and memory grow with the number of slits, from Zarr, out of core.

    python benchmarks/scaling.py [--slits 1000 10000] [--large] [--exposures 9] [--repeat 3]

Prints one JSON line. In memory, two threads, nine exposures of 60 PRISM slits: Mpixel/s of each
step and of the whole chain, one pass beside a weighted scipy B-spline on the same selected pixels,
and the chain beside the official step's 0.022 Mpixel/s. From Zarr: a pass beside only reading the
same arrays, in turns, and one over the scratch files that a fit packs them in. For each number of
slits, in processes of their own: fit, subtract and write, with wall and processor time and peak
memory beside the prediction; all but the largest several times before and after it, and once on a
cluster of two processes that have yet to load libraries and kernels (`benchmarks/cluster.py` has
processes that did). `--graphs` only builds graphs of 10^5 slits, without pixels:
processor time to open, to select and lay out a pass, and to subtract and lay out what is written.
`--large` adds 10^5 slits (some minutes, 25 GB of disk).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import dask
import numpy as np
from chain import OFFICIAL, TRUTH, in_turns, timed
from scipy.interpolate import make_lsq_spline

import mbkg_xr as mx
from mbkg_xr.blocks import reduce_blocks
from mbkg_xr.cli.cluster import on_cluster
from mbkg_xr.held import held
from mbkg_xr.io.writing import write_chunks
from mbkg_xr.moments import PassState, accumulate
from mbkg_xr.planes import Planes
from mbkg_xr.schema import PIXEL_DIMS
from mbkg_xr.spans import span_grid

COLUMNS = ["flux", "error", "wavelength", "yrel", "var_rnoise", "var_poisson"]


def pass_state(ds, grid, master):
    n = grid.size
    return PassState(
        np.nan_to_num(master.expected.values),
        gain=master.photon_gain.values,
        floor=np.zeros(n),
        centre=np.zeros(n),
        cut=np.full(n, 4.0),
        usual=np.full(n, np.inf),
    )


def in_memory(exposures, repeat):
    ds = mx.simulate_program(exposures=exposures, slits=60, background_slits=15)
    ds = ds.drop_vars(TRUTH).persist()
    selected = mx.select_background(ds).persist()
    master = mx.fit_master(selected)
    grid = span_grid(ds)
    sky = held(selected, grid, memory=2**33)
    state, groups = pass_state(ds, grid, master), np.zeros(ds.sizes["slit"], dtype=np.int64)
    use = selected.selected.values
    wave, flux, error = (selected[k].values[use] for k in ("wavelength", "flux", "error"))
    order = np.argsort(wave)
    wave, flux, error = (a[order].astype(float) for a in (wave, flux, error))
    inner = np.unique(master.knots.values)[1:-1]
    inner = inner[(inner > wave[0]) & (inner < wave[-1])]
    knots = np.concatenate([[wave[0]] * 4, inner, [wave[-1]] * 4])

    def sweep(made, names):
        def block(start, arrays, shared):
            return sum(float(np.nansum(a[0, 0])) for a in arrays)

        return reduce_blocks(made, names, block, lambda a, b: a + b)

    def subtracted():
        result = mx.subtract(selected, master, residual=True)
        return sweep(result, ["flux", "error", "background", "background_error", "residual"])

    def chain():
        chosen = mx.select_background(ds)
        result = mx.subtract(chosen, mx.fit_master(chosen), residual=True)
        return sweep(result, ["flux", "error", "background", "background_error", "residual"])

    times = in_turns(
        repeat,
        select=lambda: sweep(mx.select_background(ds), ["selected"]),
        fit_pass=lambda: accumulate(sky, state, groups, 1),
        subtract=subtracted,
        chain=chain,
        scipy=lambda: make_lsq_spline(wave, flux, knots, 3, w=1 / error),
    )
    pixels = ds.flux.size / 1e6
    row = {f"memory_{k}_mpixel_s": round(pixels / t[0], 2) for k, t in times.items()}
    row |= {f"memory_{k}_mpixel_s_of_cpu": round(pixels / t[1], 2) for k, t in times.items()}
    return row | {
        "memory_mpixel": round(pixels, 2),
        "passes": int(master.sizes["pass"]),
        "pass_over_scipy": round(times["scipy"][0] / times["fit_pass"][0], 1),
        "chain_over_scipy": round(times["scipy"][0] / times["chain"][0], 2),
        "chain_over_official": round(pixels / times["chain"][0] / OFFICIAL),
    }


def reading(store, repeat):
    """A pass that reads its pixels again, and one over scratch files, beside reading alone."""
    ds = mx.select_background(opened(store))
    few = ds.isel(slit=slice(0, 256))
    master = mx.fit_master(few, model=mx.BSpline(spacing=8, penalty=1e-2))
    grid = span_grid(ds)
    sky = Planes.of(ds, grid)
    state, groups = pass_state(ds, grid, master), np.zeros(ds.sizes["slit"], dtype=np.int64)

    def read():
        return reduce_blocks(ds, COLUMNS, lambda i, a, s: len(a), lambda a, b: a + b)

    with ExitStack() as stack:
        packed = held(ds, grid, memory=0, stack=stack)
        times = in_turns(
            repeat,
            read=read,
            fit_pass=lambda: accumulate(sky, state, groups, 1),
            scratch_pass=lambda: accumulate(packed, state, groups, 1),
        )
    pixels = ds.flux.size / 1e6
    return {
        "zarr_read_mpixel_s": round(pixels / times["read"][0], 2),
        "zarr_pass_mpixel_s": round(pixels / times["fit_pass"][0], 2),
        "pass_over_reading": round(times["fit_pass"][0] / times["read"][0], 3),
        "pass_over_reading_cpu": round(times["fit_pass"][1] / times["read"][1], 3),
        "scratch_pass_over_reading": round(times["scratch_pass"][0] / times["read"][0], 3),
    }


class _Built(Exception):
    """A graph is built; nothing is computed."""


def graphs(slits, repeat):
    """Processor time to build the graphs of as many slits: of a pass, and of what is written."""
    few = mx.simulate_program(exposures=3, slits=20, background_slits=8)
    master = mx.fit_master(mx.select_background(few), model=mx.BSpline(spacing=8, penalty=1e-2))
    program = mx.simulate_program(exposures=slits // 60, slits=60, background_slits=15)

    def built(graph, keys, **options):
        tasks.append(len(graph))
        raise _Built

    tasks, laps = [], {"graph_open": [], "graph_pass": [], "graph_write": []}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "program.zarr"
        with mock.patch("mbkg_xr.io.store.write_chunks"):  # all but the pixels
            mx.save(program.drop_vars(TRUTH), store)
        for _ in range(repeat):
            start = time.process_time()
            ds = opened(store)
            laps["graph_open"].append(time.process_time() - start)
            start = time.process_time()
            chosen = mx.select_background(ds)
            with suppress(_Built), mock.patch("mbkg_xr.blocks.completed", built):
                reduce_blocks(chosen, [*COLUMNS, "selected"], lambda *a: 0, lambda a, b: a + b)
            laps["graph_pass"].append(time.process_time() - start)
            start = time.process_time()
            result = mx.subtract(chosen, master, residual=True)
            pixels = [name for name, v in result.variables.items() if v.dims == PIXEL_DIMS]
            arrays = {name: result[name].data for name in pixels}
            target = SimpleNamespace(chunks=(32,))
            with suppress(_Built), mock.patch("mbkg_xr.io.writing.completed", built):
                write_chunks(arrays, dict.fromkeys(pixels, target))
            laps["graph_write"].append(time.process_time() - start)
    row = {f"{name}_cpu_s": round(float(np.median(values)), 2) for name, values in laps.items()}
    chunks = -(-program.sizes["slit"] // 32)
    return row | {"graph_slits": program.sizes["slit"], "tasks_a_chunk": max(tasks) / chunks}


def opened(store):
    (node,) = mx.open_program(store).children.values()
    return node.to_dataset()


def one(store, out, cluster):
    """Fit, subtract and write; what `run` does without comparing."""
    ds = opened(store)
    predicted = mx.predict_memory(ds)
    laps = {}

    def lap(name, function):
        laps[name], _ = timed(function)

    with on_cluster(cluster, workers=2):
        start, cpu = time.perf_counter(), time.process_time()
        selected = mx.select_background(ds)
        made = {}
        lap("fit", lambda: made.update(m=mx.fit_master(selected, memory=predicted.kept)))
        result = mx.subtract(selected, made["m"], residual=True)
        lap("write", lambda: mx.save(result, out, overwrite=True))
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    # Not of getrusage: a child's begins at what its parent had.
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    peak = int(status.split()[0]) * 1024
    laps = {name: round(value, 1) for name, value in laps.items()}
    row = {"slits": ds.sizes["slit"], "s": round(wall, 1), "cpu_s": round(cpu, 1), **laps}
    row |= {"peak_gb": round(peak / 1e9, 3), "predicted_gb": round(predicted.total / 1e9, 3)}
    print(json.dumps(row))


def child(*args):
    done = subprocess.run(
        [sys.executable, __file__, *map(str, args)], check=True, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout.splitlines()[-1], file=sys.stderr)  # the large ones take their time
    return json.loads(done.stdout.splitlines()[-1])


def stored(slits, store):
    made = mx.simulate_program(exposures=max(slits // 60, 1), slits=60, background_slits=15)
    mx.save(made.drop_vars(TRUTH), store)
    return store


def grown(stores, out, repeat):
    """Runs of all sizes: the smaller ones in turns before and after the largest, which runs once.

    A machine that others share drifts while the largest runs; ratios are of medians around it.
    """
    *smaller, largest = stores
    runs, clusters = {n: [] for n in stores}, {}

    def turns():
        for _ in range(repeat):
            for n in smaller:
                runs[n].append(child("--one", stores[n], out))

    child("--one", stores[largest if not smaller else smaller[0]], out)  # compiles
    turns()
    runs[largest].append(child("--one", stores[largest], out))
    turns()
    for n in smaller:
        clusters[n] = child("--one", stores[n], out, "--cluster", "local")
    middle = {
        n: {k: float(np.median([r[k] for r in rows])) for k in ("s", "cpu_s", "peak_gb")}
        for n, rows in runs.items()
    }
    row = {"runs": [r for rows in runs.values() for r in rows], "clusters": list(clusters.values())}
    for n, made in clusters.items():
        row[f"cold_cluster_over_threads_{n}"] = round(made["s"] / middle[n]["s"], 2)
    for a, b in pairwise(stores):
        row[f"time_{b}_over_{a}"] = round(middle[b]["s"] / middle[a]["s"], 2)
        row[f"peak_{b}_over_{a}"] = round(middle[b]["peak_gb"] / middle[a]["peak_gb"], 3)
    return row | {"largest_s": middle[largest]["s"], "largest_peak_gb": middle[largest]["peak_gb"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--slits", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--exposures", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", help="where stores are made  [default: a temporary one]")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--cluster", help=argparse.SUPPRESS)
    options = parser.parse_args()
    dask.config.set(num_workers=2)
    if options.one:
        one(*options.one, options.cluster)
        return
    if options.graphs:
        print(json.dumps(graphs(100_000, options.repeat)))
        return
    row = in_memory(options.exposures, options.repeat)
    print(json.dumps(row), file=sys.stderr)
    sizes = [*options.slits, *([100_000] if options.large else [])]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        stores = {n: stored(n, Path(folder) / f"{n}.zarr") for n in sizes}
        row |= reading(stores[sizes[0]], options.repeat)
        print(json.dumps(row), file=sys.stderr)
        row |= grown(stores, Path(folder) / "out.zarr", options.repeat)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
