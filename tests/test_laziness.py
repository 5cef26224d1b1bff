"""Open, select, subtract and residuals compute nothing, and their graphs stay small."""

import mbkg_xr as mx


def test_the_chain_stays_lazy(program, master, compute_nothing):
    ds = mx.select_background(program)
    sub = mx.subtract(ds, master)
    res = mx.residuals(sub)
    nods = mx.residuals(mx.subtract_nods(ds))
    held = mx.residuals(mx.subtract(ds, master, heldout=True))
    rebinned = mx.subtract(ds, master, method="rebin2d")
    flagged = mx.flag_outliers(program, apply=True)
    centres = mx.sky_centres(res)
    for lazy in (res.residual, nods.residual, held.flux, rebinned.flux, flagged.flux, centres):
        assert lazy.chunks is not None


def test_the_store_opens_lazily(program, tmp_path):
    mx.save(program, tmp_path / "p.zarr")
    import dask

    def refuse(*args, **kwargs):
        raise AssertionError("this should have stayed lazy")

    with dask.config.set(scheduler=refuse):
        ds = mx.open_program(tmp_path / "p.zarr")["prism-clear"].to_dataset()
        assert ds.flux.chunks is not None
        mx.select_background(ds)


def test_graphs_stay_small():
    """A few tasks a chunk after fusing, whatever the number of chunks."""
    import dask

    sizes = {}
    for slits in (40, 80):
        ds = mx.simulate_program(exposures=4, slits=slits, background_slits=8, chunks=8, seed=0)
        chosen = mx.select_background(ds)
        (fused,) = dask.optimize(chosen.selected.data)
        sizes[slits] = len(dict(fused.__dask_graph__())) / fused.numblocks[0]
    assert sizes[80] <= 12
    assert sizes[80] <= sizes[40] + 0.5
