"""A real cluster of processes: the same numbers, written by the workers, whoever dies."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from threading import Timer

import dask
import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster, SchedulerPlugin, WorkerPlugin, default_client

import mbkg_xr as mx
from mbkg_xr.chain import run_tree
from mbkg_xr.cli import main
from mbkg_xr.cli.cluster import on_cluster
from mbkg_xr.io.store import create_store, finish, write_group

MODEL = mx.BSpline(spacing=16, penalty=1e-2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    ds = mx.simulate_program(exposures=3, slits=8, background_slits=4, seed=21).compute()
    path = tmp_path_factory.mktemp("cluster") / "p.zarr"
    mx.save(ds.chunk({"slit": 2}), path)
    return path


@pytest.fixture(scope="module")
def expected(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "r.zarr"
    return run_tree(mx.open_program(store, chunks={}), out, model=MODEL)["prism-clear"]


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _same_sky(master, expected):
    sky = expected.master.polynomial.values
    level = np.nanmax(np.abs(sky[:, 0]))
    np.testing.assert_allclose(master.polynomial.values, sky, rtol=0, atol=1e-9 * level)


def _same(found, expected):
    _same_sky(found.master, expected)
    for name in ("flux", "error", "background", "background_error", "residual"):
        np.testing.assert_allclose(found.result[name].values, expected.result[name].values, 1e-6)
    np.testing.assert_array_equal(found.result.quality.values, expected.result.quality.values)
    np.testing.assert_allclose(found.table.to_numpy(float), expected.table.to_numpy(float), 1e-6)


class Killer(WorkerPlugin):
    """Kills the first worker process that begins its third chunk, and no other."""

    name = "killer"

    def __init__(self, flag):
        self.flag, self.begun = flag, 0

    def transition(self, key, start, finish, **kwargs):
        if finish == "executing" and "write-" in str(key):
            self.begun += 1
            if self.begun == 3 and not os.path.exists(self.flag):
                Path(self.flag).touch()
                os.kill(os.getpid(), signal.SIGKILL)


class Counter(SchedulerPlugin):
    """How often each chunk was finished."""

    name = "counter"

    def __init__(self):
        self.counts = {}

    def transition(self, key, start, finish, *args, **kwargs):
        if finish == "memory" and "write-" in str(key):
            self.counts[str(key)] = self.counts.get(str(key), 0) + 1


def _counts(dask_scheduler):
    return dask_scheduler.plugins["counter"].counts


def test_a_killed_worker_costs_its_unfinished_chunks(store, expected, client, tmp_path):
    """One is killed while it writes: the result is the same, and what was done stays done."""
    flag, out = tmp_path / "killed", tmp_path / "r.zarr"
    client.register_plugin(Counter())
    client.register_plugin(Killer(str(flag)))
    found = run_tree(mx.open_program(store, chunks={}), out, model=MODEL)["prism-clear"]
    client.unregister_worker_plugin("killer")
    assert flag.exists(), "no worker was killed"
    _same(found, expected)
    counts = client.run_on_scheduler(_counts)
    assert len(counts) == found.result.flux.data.numblocks[0]
    # Finished chunks are fetched at once; only one on its way to the client may be made again.
    assert sum(counts.values()) <= len(counts) + 1


def test_persisted_pixels_stay_with_the_workers(store, expected, client):
    ds = mx.open_program(store, chunks={})["prism-clear"].to_dataset().persist()
    _same_sky(mx.fit_master(mx.select_background(ds), model=MODEL), expected)


def test_same_master_with_a_model_that_is_chosen(store, client):
    ds = mx.select_background(mx.open_program(store)["prism-clear"].to_dataset())
    found = mx.fit_master(ds).polynomial.values
    with dask.config.set(scheduler="threads"):
        expected = mx.fit_master(ds).polynomial.values
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.nanmax(expected))


class Lots(SchedulerPlugin):
    """How often lots of packed pixels were made, and which are held."""

    name = "lots"

    def __init__(self):
        self.made, self.held = 0, set()

    def transition(self, key, start, finish, *args, **kwargs):
        if not str(key).startswith("('lot-"):
            return
        if finish == "memory":
            self.made += 1
            self.held.add(key)
        elif start == "memory":
            self.held.discard(key)


@pytest.fixture
def lots(client):
    client.register_plugin(Lots())
    yield
    client.unregister_scheduler_plugin("lots")


def _lots(dask_scheduler):
    plugin = dask_scheduler.plugins["lots"]
    return plugin.made, len(plugin.held)


def _await_none_held(client):
    """The scheduler hears a moment later that a future was let go of."""
    deadline = time.monotonic() + 10
    while client.run_on_scheduler(_lots)[1] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.run_on_scheduler(_lots)[1] == 0


def test_packed_pixels_stay_with_the_workers_and_are_let_go(store, expected, client, lots):
    ds = mx.select_background(mx.open_program(store, chunks={})["prism-clear"].to_dataset())
    held = []
    master = mx.fit_master(
        ds, model=MODEL, memory=0, on_pass=lambda text: held.append(client.run_on_scheduler(_lots))
    )
    _same_sky(master, expected)
    made, most = client.run_on_scheduler(_lots)[0], max(n for _, n in held)
    assert made == most == 2, "each lot is made once, one a worker"
    _await_none_held(client)

    def fail(text):
        if text == "pass 2":
            raise RuntimeError(f"{client.run_on_scheduler(_lots)[1]} held")

    with pytest.raises(RuntimeError, match="2 held") as error:
        mx.fit_master(ds, model=MODEL, memory=0, on_pass=fail)
    _await_none_held(client)  # while the error, and the frames that it came through, are there
    assert error.tb


def test_lots_lost_with_a_worker_are_made_again(store, expected, client, lots):
    """One is killed as a pass reaches the workers."""
    ds = mx.select_background(mx.open_program(store, chunks={})["prism-clear"].to_dataset())
    killed = []

    def kill(text):
        if text == "pass 2":
            killed.append(min(client.run(os.getpid).values()))
            Timer(0.02, os.kill, (killed[0], signal.SIGKILL)).start()

    _same_sky(mx.fit_master(ds, model=MODEL, memory=0, on_pass=kill), expected)
    assert not psutil.pid_exists(killed[0])
    assert 2 < client.run_on_scheduler(_lots)[0] <= 4, "those that were lost, once more"
    _await_none_held(client)


def test_workers_without_a_limit_hold_what_fits(store, expected):
    ds = mx.select_background(mx.open_program(store, chunks={})["prism-clear"].to_dataset())
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, memory_limit=0, protocol="tcp",
            host="127.0.0.1", dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        client.register_plugin(Lots())
        _same_sky(mx.fit_master(ds, model=MODEL, memory=0), expected)
        assert client.run_on_scheduler(_lots)[0] == 0
        _same_sky(mx.fit_master(ds, model=MODEL, memory=2**30), expected)
        assert client.run_on_scheduler(_lots)[0] == 1


def test_workers_of_too_little_memory_are_refused(store, tmp_path):
    """Before anything is done: dask would halt them and wait."""
    ds = mx.open_program(store, chunks={})["prism-clear"].to_dataset()
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, memory_limit="200MB",
            protocol="tcp", host="127.0.0.1", dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster),
        pytest.raises(mx.MbkgError, match=r"too little memory.*tcp://.*0\.20 GB.*--chunks"),
    ):  # fmt: skip
        run_tree({"prism-clear": ds}, tmp_path / "r.zarr")
    assert not list(tmp_path.iterdir())


def test_the_command_line_on_a_cluster(client, store, tmp_path):
    """By address; and an address where nobody answers is one line."""
    out = tmp_path / "r.zarr"
    address = client.scheduler.address
    args = ["run", str(store), "--out", str(out), "--cluster", address]
    done = CliRunner().invoke(main, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert Path(out).exists()


@pytest.mark.parametrize("dashboard", [False, True])
def test_a_local_cluster_is_of_this_machine_alone(dashboard, store, tmp_path, recwarn):
    """Processes that write what they read, on loopback; dask's page only where asked for."""
    with on_cluster("local", workers=2, dashboard=dashboard):
        client = default_client()
        pids = set(client.run(os.getpid).values())
        assert len(pids) == 2 and os.getpid() not in pids
        of_workers = [psutil.Process(pid) for pid in pids]
        listening = {
            connection.laddr
            for process in [psutil.Process(), *of_workers]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert {address.ip for address in listening} == {"127.0.0.1"}
        page = f"http://127.0.0.1:{client.scheduler_info()['services']['dashboard']}/status"
        if dashboard:
            assert b"Status" in urllib.request.urlopen(page, timeout=10).read()
        else:
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(page, timeout=10)
    assert not [w for w in recwarn if "Port" in str(w.message)]
    assert not any(process.is_running() for process in of_workers)


def test_no_such_scheduler(store, tmp_path, monkeypatch):
    monkeypatch.setattr("mbkg_xr.cli.cluster._WAIT", 1)
    out = tmp_path / "r.zarr"
    args = ["run", str(store), "--out", str(out), "--cluster", "tcp://127.0.0.1:9"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 2
    assert "no scheduler answers" in done.output and "Traceback" not in done.output
    assert not out.exists()


@pytest.fixture
def elsewhere(tmp_path):
    """A scheduler, and workers that stand in another directory, as they are started by hand."""
    there = tmp_path / "there"
    there.mkdir()
    begun = []
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster:

        def begin():
            command = [sys.executable, "-m", "distributed.cli.dask_worker"]
            command += [cluster.scheduler_address, "--nthreads", "1", "--host", "127.0.0.1"]
            begun.append(subprocess.Popen([*command, "--no-dashboard"], cwd=there))

        with Client(cluster):
            yield begin, there
        for worker in begun:
            worker.terminate()
            worker.wait(timeout=30)


def test_workers_that_stand_elsewhere_and_come_late(store, elsewhere, tmp_path, monkeypatch):
    """Names are the caller's; the first worker is waited for, as what is done goes by them."""
    begin, there = elsewhere
    monkeypatch.chdir(tmp_path)
    os.symlink(store, "p.zarr")
    timer, told = Timer(1.0, begin), []
    timer.start()
    tree = mx.open_program("p.zarr", chunks={})
    found = run_tree(tree, "r.zarr", model=MODEL, on_step=told.append)["prism-clear"]
    timer.join()
    assert told[0] == "waiting for workers of the cluster"
    assert mx.verify("r.zarr").ok
    assert not [path for path in there.rglob("*") if "zarr" in path.name]
    with dask.config.set(scheduler="threads"):
        expected = run_tree(tree, "s.zarr", model=MODEL)["prism-clear"]
    _same(found, expected)


def test_what_a_worker_left_that_was_killed_as_it_wrote(store, tmp_path):
    """Goes when the store is complete, which `verify` finds whole."""
    ds = mx.open_program(store, chunks={})["prism-clear"].to_dataset()
    with create_store(tmp_path / "r.zarr") as staging:
        write_group(ds, staging, "prism-clear")
        partial = staging / "prism-clear" / "flux" / "c" / "0" / "0" / "0.1234.partial"
        partial.write_bytes(b"begun")
        finish(staging)
    assert mx.verify(tmp_path / "r.zarr").ok


def test_a_cluster_that_is_lost_leaves_no_store(store, tmp_path):
    """Neither a store that looks complete, nor what was begun."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        ds = mx.open_program(store, chunks={})["prism-clear"].to_dataset()
        slow = ds.assign(flux=ds.flux.copy(data=ds.flux.data.map_blocks(_slowly)))
        timer = Timer(1.0, client.restart, kwargs={"wait_for_workers": False})
        timer.start()
        with pytest.raises(mx.MbkgError, match="the cluster was lost"):
            mx.save(slow, tmp_path / "r.zarr")
        timer.join()
    assert not list(tmp_path.iterdir())


def _slowly(block):
    time.sleep(0.5)
    return block


def test_an_error_in_one_chunk_leaves_nothing_behind(store, client, tmp_path):
    """Not by workers that were at other chunks, either."""
    ds = mx.open_program(store, chunks={})["prism-clear"].to_dataset()
    slow = ds.assign(flux=ds.flux.copy(data=ds.flux.data.map_blocks(_fails_once, dtype="f4")))
    with pytest.raises(ValueError, match="in this chunk") as error:
        mx.save(slow, tmp_path / "r.zarr")
    time.sleep(1)
    assert not list(tmp_path.iterdir())
    assert error.tb


def _fails_once(block, block_info=None):
    if block_info and block_info[0]["chunk-location"][0] == 2:
        raise ValueError("in this chunk")
    time.sleep(0.3)
    return block
