"""Stores elsewhere: an S3 server and a web server, both on loopback, and fsspec's memory.

Whatever is done from URL to URL is, byte for byte, what is done from directory to directory.
"""

import functools
import http.server
import json
import logging
import shutil
import socket
import sys
import threading

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.chain import run
from mbkg_xr.cli import main
from mbkg_xr.errors import MbkgError, StoreError
from mbkg_xr.io.location import located, sizes_below
from mbkg_xr.io.lock import write_lock
from mbkg_xr.io.store import create_store
from mbkg_xr.schema import PIXEL_VARIABLES, SLIT_IDENTITY

pytest.importorskip("upath")
MODEL = mx.BSpline(spacing=16, penalty=1e-2)
GROUP = "prism-clear"


@pytest.fixture(scope="module")
def bucket():
    """The URL of a bucket on an S3 server of this machine."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="sky")
        yield "s3://sky"
    server.stop()


@pytest.fixture(scope="module")
def memory():
    fsspec = pytest.importorskip("fsspec")
    yield "memory://sky"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["bucket", "memory"])
def remote(request, tmp_path):
    """A URL below which nothing lies."""
    return f"{request.getfixturevalue(request.param)}/{tmp_path.name}"


@pytest.fixture(scope="module")
def small():
    ds = mx.simulate_program(exposures=3, slits=5, background_slits=3, seed=8).compute()
    return ds.drop_vars([name for name in ds.variables if name.startswith("true_")])


@pytest.fixture(scope="module")
def few(small):
    """Of few variables: each is a request or two."""
    kept = (*PIXEL_VARIABLES, "quality", *SLIT_IDENTITY, "nod", "is_background", "source_shutter")
    return small.isel(slit=slice(10)).drop_vars([n for n in small.variables if n not in kept])


def _contents(place):
    place = located(place)
    return {name: (place / name).read_bytes() for name in sizes_below(place)}


def test_the_chain_from_url_to_url(small, bucket, tmp_path):
    results = {}
    remote = f"{bucket}/chain"
    for folder in (tmp_path, remote):
        source, out = f"{folder}/program.zarr", f"{folder}/result.zarr"
        mx.save(small.chunk({"slit": 5}), source)
        results[folder] = run(source, out, model=MODEL)[GROUP]
    here, there = _contents(tmp_path / "result.zarr"), _contents(f"{remote}/result.zarr")
    assert here.keys() == there.keys()
    different = [name for name in here if here[name] != there[name]]
    assert not different
    assert results[tmp_path].table.equals(results[remote].table)
    # Nothing else was left there.
    above = {name.partition("/")[0] for name in sizes_below(located(remote))}
    assert above == {"program.zarr", "result.zarr"}


def test_masters_and_moments(selected, master, memory):
    remote = f"{memory}/moments"
    """Kept elsewhere, put together and used from there."""
    mx.save({GROUP: mx.moments(selected, master), f"{GROUP}/master": master}, f"{remote}/m.zarr")
    tree = mx.open_program(f"{remote}/m.zarr", chunks={})
    assert tree[GROUP].moments.chunks is not None
    again = mx.fit_master(tree[GROUP].to_dataset())
    here = mx.fit_master(mx.moments(selected, master))
    np.testing.assert_array_equal(again.polynomial, here.polynomial)
    xr.testing.assert_equal(mx.read_template(f"{remote}/m.zarr/{GROUP}/master"), master)


def test_ingest(i2d_files, remote, tmp_path):
    """In two calls: what appears is what appears in a directory; and it is verified there."""
    half = len(i2d_files) // 2
    for folder in (tmp_path, remote):
        mx.ingest(i2d_files[:half], f"{folder}/p.zarr")
        report = mx.ingest(i2d_files, f"{folder}/p.zarr")
        assert (len(report.accepted), len(report.skipped)) == (len(i2d_files) - half, half)
    here, there = _contents(tmp_path / "p.zarr"), _contents(f"{remote}/p.zarr")
    assert here == there
    assert mx.verify(f"{remote}/p.zarr").ok
    ds = mx.open_program(f"{remote}/p.zarr")[GROUP].to_dataset()
    chunk = next(name for name in there if "/flux/c." in name)
    (located(f"{remote}/p.zarr") / chunk).unlink()
    found = mx.verify(f"{remote}/p.zarr", deep=False)
    assert [(p.kind, p.where) for p in found.problems] == [("missing chunk", chunk)]
    with pytest.raises(StoreError, match=f"missing chunk .{remote}/p.zarr.*slitlets"):
        ds.flux.load()


def test_one_writer_at_a_time(i2d_files, remote):
    store = f"{remote}/p.zarr"
    mx.ingest(i2d_files[:2], store)
    with write_lock(store) as lock, pytest.raises(StoreError, match="another ingest is writing"):
        lock.check()
        mx.ingest(i2d_files, store)
    assert len(mx.ingest(i2d_files[:3], store).accepted) == 1


def test_nothing_is_overwritten_unasked(few, remote):
    store = f"{remote}/r.zarr"
    mx.save(few, store)
    with pytest.raises(StoreError, match=f"the store exists .{store}"):
        mx.save(few, store)
    with pytest.raises(RuntimeError, match="power cut"), create_store(store, overwrite=True) as s:
        mx.save(few, s)
        raise RuntimeError("power cut")
    assert {name.partition("/")[0] for name in sizes_below(located(remote))} == {"r.zarr"}
    xr.testing.assert_equal(mx.open_program(store)[GROUP].to_dataset().compute(), few)
    less = few.isel(slit=slice(5)).drop_vars("var_rnoise")
    mx.save(less, store, overwrite=True)
    mx.save(less, f"{remote}/fresh.zarr")
    assert _contents(store) == _contents(f"{remote}/fresh.zarr")  # nothing of the former is left
    xr.testing.assert_equal(mx.open_program(store)[GROUP].to_dataset().compute(), less)
    (located(remote) / "notes" / "text").write_bytes(b"mine")
    with pytest.raises(StoreError, match="refusing to overwrite"):
        mx.save(few, f"{remote}/notes", overwrite=True)


def test_what_a_killed_run_left_is_cleared(few, remote):
    left = located(f"{remote}/.r.zarr.staging-00000000")
    mark = left.with_name(f"{left.name}.writer")
    (left / "zarr.json").write_text("{}")
    mark.write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "boot": "a former one"}))
    with pytest.warns(UserWarning, match="removed .*a run that was killed"):
        mx.save(few, f"{remote}/r.zarr")
    names = {name.partition("/")[0] for name in sizes_below(located(remote))}
    assert names == {"r.zarr"}


def test_a_connection_that_breaks(few, memory, monkeypatch):
    """Is one line that says where, and leaves nothing."""
    from fsspec.implementations.memory import MemoryFileSystem

    write = MemoryFileSystem.pipe_file

    def fail(self, path, value, *args, **kwargs):
        if "/flux/c/1/" in path:
            raise ConnectionError("link down")
        return write(self, path, value, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    with pytest.raises(StoreError, match=r"cannot be written .*flux, slits 5 to 9.*link down"):
        mx.save(few.chunk({"slit": 5}), f"{memory}/broken/r.zarr")
    assert not sizes_below(located(f"{memory}/broken"))


@pytest.mark.parametrize("broken", ["root", "chunk"])
def test_a_complete_store_that_cannot_be_copied_is_not_lost(few, remote, broken, monkeypatch):
    """It stays where it was written, and no later run takes it for what a killed one left."""
    store, place = f"{remote}/kept.zarr", located(f"{remote}/kept.zarr")
    mx.save(few.isel(slit=slice(3)), store)
    part = "zarr.json" if broken == "root" else "/flux/c/0/"

    def fail(sources, targets, **options):
        if any(part in str(one) for one in sources):
            raise ConnectionError("token expired")
        return copy(sources, targets, **options)

    copy = place.fs.copy
    monkeypatch.setattr(place.fs, "copy", fail)
    monkeypatch.setattr("mbkg_xr.io.location._WAITS", (0, None))
    with pytest.raises(StoreError, match=r"complete, and cannot be given.*expired.*copy it from"):
        mx.save(few, store, overwrite=True)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="stays: another run may be writing it"):
        mx.save(few.isel(slit=slice(2)), f"{remote}/kept.zarr", overwrite=True)
    (kept,) = [p for p in place.parent.iterdir() if p.name.startswith(".kept.zarr.staging-")]
    xr.testing.assert_equal(mx.open_program(kept)[GROUP].to_dataset().compute(), few)


def test_the_command_line(small, memory):
    remote = f"{memory}/commands"
    source, out = f"{remote}/p.zarr", f"{remote}/r.zarr"
    mx.save(small, source)
    calls = (
        ["run", source, "--out", out, "--model", "logpoly"],
        ["info", source],
        ["verify", out],
        ["query", out, "--by", "nod"],
    )
    for args in calls:
        done = CliRunner().invoke(main, args)
        assert done.exit_code == 0, (args, done.output)
    # What goes to local files only is refused before the work.
    args = ["run", source, "--out", f"{remote}/s.zarr", "--report", f"{remote}/report"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 2 and "local files only" in done.output
    with pytest.raises(StoreError, match="local files only"):
        mx.query(small, wavelength=(2, 2.01)).to_csv(f"{remote}/points.csv")
    with pytest.raises(MbkgError, match="read from local files"):
        mx.open_program([source, f"{remote}/a.fits"])
    with pytest.raises(MbkgError, match=f"not a Zarr store .{remote}/nothing.zarr"):
        mx.open_program(f"{remote}/nothing.zarr")


def test_workers_write_to_the_object_store(few, bucket):
    """From store to store, with nothing passing through this process."""
    from distributed import Client, LocalCluster

    source, out = f"{bucket}/cluster/p.zarr", f"{bucket}/cluster/r.zarr"
    mx.save(few.chunk({"slit": 5}), source)
    ds = mx.open_program(source, chunks={})[GROUP].to_dataset()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        mx.save(ds, out)
    assert _contents(source) == _contents(out)


def test_read_from_a_web_server(small, tmp_path):
    """Which lists its directories; nothing can be written there."""
    pytest.importorskip("aiohttp")
    mx.save(small, tmp_path / "p.zarr")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            ds = mx.open_program(f"{url}/p.zarr")[GROUP].to_dataset()
            xr.testing.assert_equal(ds.compute(), small)
            shutil.rmtree(tmp_path / "p.zarr" / GROUP / "flux" / "c")
            with pytest.raises(StoreError, match=f"missing chunk .{url}/p.zarr"):
                ds.flux.load()
            with pytest.raises(StoreError, match=f"cannot reach the store .{url}/new.zarr"):
                mx.save(small, f"{url}/new.zarr")
        finally:
            server.shutdown()
            thread.join()


def test_what_cannot_be_reached_is_one_line(small, bucket, monkeypatch):
    for url, words in (
        ("s3://no-such-bucket/r.zarr", "cannot reach the store"),
        ("gs://sky/r.zarr", "a package is missing"),
        ("sky://sky/r.zarr", "cannot reach the store"),
    ):
        with pytest.raises(StoreError, match=f"{words}.*{url}") as caught:
            mx.save(small, url)
        assert "\n" not in str(caught.value) and "to do:" in str(caught.value)
        with pytest.raises(MbkgError, match=url):
            mx.open_program(url)
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(StoreError, match=r"s3://sky/r.zarr.*mbkg_xr\[remote\]"):
        mx.open_program("s3://sky/r.zarr")


def test_without_credentials(small, bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"cannot reach the store .s3://sky.*credentials"):
        mx.save(small, f"{bucket}/denied.zarr")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
