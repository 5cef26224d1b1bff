"""A programme on a cluster: products into a store, then the whole chain, on dask's workers.

Here two processes of this machine; on a batch system `dask_jobqueue.SLURMCluster(...)` instead.
"""

import tempfile
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

import mbkg_xr as mx
from mbkg_xr.chain import run
from mbkg_xr.simulate import write_jwst


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = mx.simulate_program(
            exposures=3, slits=6, background_slits=3, detectors=("NRS1", "NRS2"), seed=2
        )
        write_jwst(program, folder / "cal")
        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        )
        with cluster, Client(cluster) as client:
            print(len(client.scheduler_info()["workers"]), "workers")
            print(mx.ingest(folder / "cal", folder / "program.zarr"))
            done = run(folder / "program.zarr", folder / "result.zarr")["prism-clear"]
        print(done.table[["n", "median", "mad_sigma", "noise_gain", "stack_nod"]].round(3))
        # Who computed it does not matter: threads of this process find the same.
        ds = mx.open_program(folder / "program.zarr")["prism-clear"].to_dataset()
        again = mx.fit_master(mx.select_background(ds))
        wave = np.linspace(0.7, 5.2, 500)
        off = mx.evaluate(again, wave) / mx.evaluate(done.master, wave) - 1
        print(f"beside threads: {np.nanmax(np.abs(off)):.1e} of the sky")
        assert np.nanmax(np.abs(off)) < 1e-6


if __name__ == "__main__":
    main()
