"""Speed of the chain in memory: select, fit, project and subtract, beside a plain scipy spline.

    python benchmarks/chain.py [--exposures 9] [--slits 60]

Prints one JSON line: Mpixel/s (of padded pixels) of each step, medians of several runs on dask's
threads, and how many times faster one pass of the fit is than a weighted scipy B-spline on the same
selected pixels.
"""

import argparse
import json
import time

import numpy as np
from scipy.interpolate import make_lsq_spline

import mbkg_xr as mx
from mbkg_xr.moments import PassState, accumulate
from mbkg_xr.spans import span_grid


def median_time(function, repeat):
    times = []
    for _ in range(repeat + 1):  # the first run compiles
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--exposures", type=int, default=9)
    parser.add_argument("--slits", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    ds = mx.simulate_program(
        exposures=options.exposures, slits=options.slits, background_slits=options.slits // 4
    ).persist()
    selected = mx.select_background(ds).persist()
    master = mx.fit_master(selected, model=mx.BSpline(spacing=8, penalty=1e-2))
    grid = span_grid(selected)
    n = grid.size
    state = PassState(
        np.nan_to_num(master.expected.values),
        gain=master.photon_gain.values,
        floor=np.zeros(n),
        centre=np.zeros(n),
        cut=np.full(n, 4.0),
        usual=np.full(n, 1.0),
    )
    groups = np.zeros(selected.sizes["slit"], dtype=np.int64)
    use = selected.selected.values
    wave, flux, error = (selected[k].values[use] for k in ("wavelength", "flux", "error"))
    order = np.argsort(wave)
    wave, flux, error = wave[order].astype(float), flux[order].astype(float), error[order]
    inner = master.knots.values[4:-4]
    knots = np.concatenate([[wave[0]] * 4, inner[(inner > wave[0]) & (inner < wave[-1])]])
    knots = np.concatenate([knots, [wave[-1]] * 4])
    steps = {
        "select": lambda: mx.select_background(ds).selected.data.compute(),
        "fit_pass": lambda: accumulate(selected, grid, state, groups, 1),
        "fit": lambda: mx.fit_master(selected),
        "subtract": lambda: mx.residuals(mx.subtract(selected, master)).residual.data.compute(),
        "scipy_spline": lambda: make_lsq_spline(wave, flux, knots, 3, w=1 / error),
    }
    pixels = ds.flux.size / 1e6
    times = {name: median_time(step, options.repeat) for name, step in steps.items()}
    row = {f"{name}_mpixel_s": round(pixels / t, 2) for name, t in times.items()}
    row |= {
        "mpixel": round(pixels, 2),
        "slits": ds.sizes["slit"],
        "selected": int(use.sum()),
        "pass_over_scipy": round(times["scipy_spline"] / times["fit_pass"], 2),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
