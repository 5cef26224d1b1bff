"""Speed of the whole chain in memory, where its time goes, and what it is measured against.

    python benchmarks/chain.py [--exposures 9] [--slits 60] [--repeat 5] [--threads 2]

Prints one JSON line. Mpixel/s (of padded pixels) of select, one pass, the fit, subtract with
residuals, the whole chain, and the plain one that does what the official step does and no more
(`benchmarks/plain.py`): medians of several runs in turns, with their processor time. Beside them a
weighted scipy B-spline on the same selected pixels, and the official step's 0.022 Mpixel/s.
`stages` says where the processor time of a chain goes: seconds and calls; `floor` what the kernels
alone would take for as many visits of each pixel, on one processor, without any Python between;
`bound` what the machine's memory allows, at the bandwidth of threads that only copy, if all that a
chain has to read and write were all that it did.
"""

import argparse
import json
import time
from collections import defaultdict

import dask
import numpy as np
from plain import bytes_moved, copy_bandwidth, plain_master, plain_select
from scipy.interpolate import make_lsq_spline

import mbkg_xr as mx
from mbkg_xr import differences, pass_loop, passes
from mbkg_xr.blas import serial_blas
from mbkg_xr.blocks import reduce_blocks
from mbkg_xr.differences import shutter_sight
from mbkg_xr.held import held
from mbkg_xr.models import BSpline
from mbkg_xr.moments import PassState, accumulate
from mbkg_xr.spans import span_grid

OFFICIAL = 0.022  # Mpixel/s of the official step on the machine of the measurements
TRUTH = ["true_background", "true_sky", "outlier"]
RESULT = ["flux", "error", "background", "background_error", "residual"]
STAGES = {
    "pack": (passes, "held"),
    "start": (passes, "start"),
    "pass": (pass_loop, "accumulate"),
    "look": (differences, "look"),
    "slits": (differences, "solve_scales"),
    "profile": (differences, "solve_profile"),
    "model": (BSpline, "fit"),
}


def sweep(made, names):
    def block(start, arrays, shared):
        return sum(float(np.nansum(a[0, 0])) for a in arrays)

    return reduce_blocks(made, names, block, lambda a, b: a + b)


def timed(function):
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turns(repeat, **steps):
    """Median wall and processor time of each; the first round compiles."""
    rounds = [{name: timed(step) for name, step in steps.items()} for _ in range(repeat + 1)]
    return {name: np.median([r[name] for r in rounds[1:]], axis=0) for name in steps}


def stages(chain):
    """Processor time and calls of each stage of one chain."""
    seconds, calls = defaultdict(float), defaultdict(int)

    def watched(name, function):
        def call(*args, **kwargs):
            before = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - before
                calls[name] += 1

        return call

    before = {name: getattr(*place) for name, place in STAGES.items()}
    for name, (where, what) in STAGES.items():
        setattr(where, what, watched(name, before[name]))
    try:
        _, whole = timed(chain)
    finally:
        for name, (where, what) in STAGES.items():
            setattr(where, what, before[name])
    out = {name: [round(seconds[name], 4), calls[name]] for name in STAGES}
    out["rest"] = [round(whole - sum(seconds.values()), 4), 1]
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--exposures", type=int, default=9)
    parser.add_argument("--slits", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    dask.config.set(num_workers=options.threads)
    made = mx.simulate_program(
        exposures=options.exposures, slits=options.slits, background_slits=options.slits // 4
    )
    ds = made.drop_vars(TRUTH).persist()
    selected = mx.select_background(ds).persist()
    master = mx.fit_master(selected)
    flagged = plain_select(ds).persist()
    grid = span_grid(ds)
    n = grid.size
    state = PassState(
        np.nan_to_num(master.expected.values),
        gain=master.photon_gain.values,
        floor=np.zeros(n),
        centre=np.zeros(n),
        cut=np.full(n, 4.0),
        usual=np.full(n, np.inf),
    )
    sky = held(selected, grid, memory=2**33)
    groups = np.zeros(ds.sizes["slit"], dtype=np.int64)
    use = selected.selected.values
    wave, flux, error = (selected[k].values[use] for k in ("wavelength", "flux", "error"))
    order = np.argsort(wave)
    wave, flux, error = (a[order].astype(float) for a in (wave, flux, error))
    inner = np.unique(master.knots.values)[1:-1]
    inner = inner[(inner > wave[0]) & (inner < wave[-1])]
    knots = np.concatenate([[wave[0]] * 4, inner, [wave[-1]] * 4])

    def chain():
        chosen = mx.select_background(ds).persist()  # as `mx.run` does
        sweep(mx.subtract(chosen, mx.fit_master(chosen), residual=True), RESULT)

    def subtract():
        sweep(mx.subtract(selected, master, residual=True), RESULT)

    def plain():
        chosen = plain_select(ds)
        sweep(mx.subtract(chosen, plain_master(chosen), residual=True), RESULT)

    times = in_turns(
        options.repeat,
        select=lambda: sweep(mx.select_background(ds), ["selected"]),
        fit_pass=lambda: accumulate(sky, state, groups, 1),
        fit=lambda: mx.fit_master(selected),
        subtract=subtract,
        chain=chain,
        plain=plain,
        plain_fit=lambda: plain_master(flagged),
        scipy=serial_blas(lambda: make_lsq_spline(wave, flux, knots, 3, w=1 / error)),
    )
    where = stages(chain)
    visits = {"select": 1, "fit_pass": where["pass"][1], "subtract": 1}
    floor = sum(times[name][1] * count for name, count in visits.items()) + where["look"][0]
    pixels = ds.flux.size / 1e6
    sight = shutter_sight(selected, profile=True)
    seen = sight.mask(slice(None), selected.quality.values, selected.yrel.values).mean()
    calls = where["pass"][1], where["look"][1]
    bandwidth = copy_bandwidth(options.threads)
    moved = {
        "chain": bytes_moved(use.mean(), seen, *calls),
        "plain": bytes_moved(flagged.selected.values.mean(), 0.0, 1, 0),
    }
    row = {f"{name}_mpixel_s": round(pixels / t[0], 2) for name, t in times.items()}
    row |= {f"{name}_mpixel_s_of_cpu": round(pixels / t[1], 2) for name, t in times.items()}
    row |= {
        "mpixel": round(pixels, 2),
        "slits": ds.sizes["slit"],
        "selected": int(use.sum()),
        "passes": int(master.sizes["pass"]),
        "pass_over_scipy": round(times["scipy"][0] / times["fit_pass"][0], 2),
        "chain_over_scipy": round(times["scipy"][0] / times["chain"][0], 2),
        "chain_over_official": round(pixels / times["chain"][0] / OFFICIAL),
        "plain_over_scipy": round(times["scipy"][0] / times["plain"][0], 2),
        "plain_over_official": round(pixels / times["plain"][0] / OFFICIAL),
        "stages": where,
        "floor_mpixel_s_of_cpu": round(pixels / floor, 2),
        "copy_gb_s": round(bandwidth, 2),
    }
    row |= {f"{name}_bytes_a_pixel": round(size, 1) for name, size in moved.items()}
    row |= {f"{name}_bound_mpixel_s": round(1e3 * bandwidth / b) for name, b in moved.items()}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
