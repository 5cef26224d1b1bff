"""The chain that does what the official step does and no more; bytes that chains have to move.

`benchmarks/chain.py` measures both beside the full chain: select by flags and rows, pool all pixels
in one pass with the weights that their errors give, fit one spline of fixed knots, project it on
every pixel, subtract. No median filter, no robust passes, nothing that differs between slits, no
choice of model.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import mbkg_xr as mx
from mbkg_xr.differences import Differences
from mbkg_xr.held import held
from mbkg_xr.master import build_master
from mbkg_xr.models import Problem
from mbkg_xr.moments import accumulate
from mbkg_xr.spans import span_grid
from mbkg_xr.start import start
from mbkg_xr.terms import Terms

MODEL = mx.BSpline(spacing=8, penalty=1e-2)
GROUPS = 8  # of slits, of which each is left out once
# Bytes read and written of each padded pixel by select; by project, subtract and residuals; and of
# each pixel that passes or looks see.
SELECT_BYTES, SUBTRACT_BYTES, PIXEL_BYTES = 25, 44, 24


def plain_master(ds):
    """One pass and one fit."""
    grid, slits = span_grid(ds), ds.sizes["slit"]
    pixels = held(ds, grid, memory=2**33)
    scale, state = start(pixels, log_data=False, slits=ds)
    groups = np.arange(slits) % GROUPS
    sums = accumulate(pixels, state, groups, GROUPS)
    problem = Problem(grid, sums.moments, sums.count, scale)
    fitted = MODEL.fit(problem, heldout=False)
    return build_master(
        fitted,
        grid,
        constrained=problem.constrained,
        heldout_constrained=problem.constrained_without,
        scatter=1.0,
        gain=state.gain,
        history=[{"slits": slits, "change": 0.0}],
        slits=ds,
        groups=groups,
        pixels=sums.pixels,
        differ=Differences(Terms.none(slits, grid.size)),
        attrs={
            "model": "bspline",
            "configuration": ds.attrs["configuration"],
            "units": ds.flux.attrs["units"],
        },
    )


def plain_select(ds):
    """By flags and rows."""
    return mx.select_background(ds, yrel=mx.SHUTTER_CENTRES, median_window=None)


def copy_bandwidth(threads, repeat=5):
    """Bytes read and written in a second by so many threads that only copy, GB/s; the median."""
    size = 2**26  # bytes of each: far past all caches
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def seconds():
            begun = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            return time.perf_counter() - begun

        laps = [seconds() for _ in range(repeat + 1)][1:]
    return 2 * size * threads / float(np.median(laps)) / 1e9


def bytes_moved(selected, seen, passes, looks):
    """Of a padded pixel, by one chain; `selected` and `seen` are shares of all pixels."""
    packing = SELECT_BYTES + (1 + PIXEL_BYTES) * (selected + seen)
    again = PIXEL_BYTES * (passes * selected + looks * seen)
    return SELECT_BYTES + packing + again + SUBTRACT_BYTES
