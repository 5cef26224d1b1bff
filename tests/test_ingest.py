"""Products into a store: lossless, whatever the order, and whole whatever happens on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import tempfile
import threading
import time
from pathlib import Path

import dask
import numpy as np
import pytest
import random_products as rp
import xarray as xr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import mbkg_xr as mx
from mbkg_xr.cli import main
from mbkg_xr.io.ingest import _usual_length
from mbkg_xr.io.journal import read_journal
from mbkg_xr.io.lock import LOCK_NAME, write_lock
from mbkg_xr.io.store import open_store
from mbkg_xr.tasks import results

GROUP = "prism-clear"


def opened(store, group=GROUP) -> xr.Dataset:
    return mx.open_program(store)[group].to_dataset()


def by_slit(ds: xr.Dataset) -> xr.Dataset:
    """Slits in the order that stores have."""
    return ds.isel(slit=np.lexsort((ds.slitlet, ds.detector, ds.exposure)))


def assert_same(one: xr.Dataset, other: xr.Dataset) -> None:
    """Identical, to the bit and in the dtypes."""
    one, other = one.compute(), other.compute()
    xr.testing.assert_identical(one, other)
    for name in one.variables:
        assert one[name].dtype == other[name].dtype, name
        if one[name].dtype.kind in "fiu":
            assert one[name].values.tobytes() == other[name].values.tobytes(), name


def files_of(store: Path) -> dict[str, bytes]:
    return {
        p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()
    }


def changed_pixels(exposure: rp.Exposure) -> rp.Exposure:
    """The same slits, with other values."""
    slits = [rp.slit(s.slitlet, s.shape, seed=99) for s in exposure.slits]
    return rp.Exposure(exposure.number, exposure.detector, tuple(slits))


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> list[Path]:
    """Six exposures of three slits, one of them on both detectors."""
    folder = tmp_path_factory.mktemp("products")
    made = [rp.exposure(n) for n in range(1, 6)] + [rp.exposure(1, "NRS2", seed=7)]
    return [rp.write_cal(e, folder) for e in made]


# ------------------------------------------------------------------------------------------------
# Lossless


def test_real_slitlets(real_files, real, tmp_path):
    report = mx.ingest(real_files, tmp_path / "p.zarr")
    assert sorted(report.accepted) == [str(f) for f in real_files]
    assert_same(opened(tmp_path / "p.zarr"), real)


@settings(max_examples=8, deadline=None)
@given(
    programme=rp.programmes(),
    chunks=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
    calls=st.integers(1, 3),
)
def test_every_bit_comes_back(programme, chunks, order, calls):
    """FITS to store: against the bits the files were made of, and in whatever order they came."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [rp.write_cal(e, folder) for e in programme]
        order.shuffle(files)
        for i in range(calls):
            report = mx.ingest(files[i::calls] or files, folder / "p.zarr", chunks=chunks)
            assert not report.failed
        ds = opened(folder / "p.zarr")
        assert_same(ds, by_slit(mx.open_program(folder / "*.fits")[GROUP].to_dataset()))
        ds = ds.load()
        keys = zip(ds.exposure.values, ds.detector.values, ds.slitlet.values, strict=True)
        place = {key: i for i, key in enumerate(keys)}
        assert list(place) == sorted(place)
        assert len(place) == sum(len(e.slits) for e in programme)
        for exposure in programme:
            for slit in exposure.slits:
                one = place[exposure.exposure, exposure.detector, slit.slitlet]
                ny, nx = slit.shape
                for variable, bits in slit.bits.items():
                    found = ds[variable].values[one].view(np.uint32)
                    np.testing.assert_array_equal(found[:ny, :nx], bits, err_msg=variable)
                    pad = np.array(1 if variable == "quality" else np.nan, ds[variable].dtype)
                    assert (found[ny:] == pad.view(np.uint32)).all()
                    assert (found[:, nx:] == pad.view(np.uint32)).all()


def test_nips_with_all_bits(tmp_path):
    files = [rp.write_nips(e, s, tmp_path, seed=3) for e in (1, 2) for s in (9, 4, 30)]
    truth = by_slit(mx.open_program(files)[GROUP].to_dataset())
    assert truth.quality.dtype == np.uint64
    assert mx.ingest(tmp_path, tmp_path / "p.zarr", chunks=2).failed == {}
    assert_same(opened(tmp_path / "p.zarr"), truth)


def test_nips_beside_stsci(tmp_path):
    """As when files are opened: groups of their own, whichever came first."""
    nips = rp.write_nips(1, 9, tmp_path)
    cal = rp.write_cal(rp.exposure(1), tmp_path)
    mx.ingest(nips, tmp_path / "a.zarr")
    assert list(mx.open_program(tmp_path / "a.zarr").children) == [GROUP]
    mx.ingest(cal, tmp_path / "a.zarr")
    mx.ingest([cal, nips], tmp_path / "b.zarr")
    truth = mx.open_program([cal, nips])
    for store in ("a.zarr", "b.zarr"):
        tree = mx.open_program(tmp_path / store)
        assert set(tree.children) == set(truth.children) == {GROUP, f"{GROUP}-nips"}
        for name in tree.children:
            assert_same(tree[name].to_dataset(), by_slit(truth[name].to_dataset()))


def test_larger_slits_later(tmp_path):
    """Arrays grow beyond the rows and columns they were made for; nothing is cut."""
    rng = np.random.default_rng(0)
    shapes = [(3, 9), (20, 30), (9, 70), (5, 5)]
    files = []
    for number, shape in enumerate(shapes, start=1):
        what = rp.Exposure(number, "NRS1", (rp.slit(5, shape, int(rng.integers(99))),))
        files.append(rp.write_cal(what, tmp_path))
        mx.ingest(files[-1], tmp_path / "p.zarr", chunks=2)
    group = read_journal(tmp_path / "p.zarr").groups[GROUP]
    assert group.chunk == (2, 8, 32)
    assert_same(opened(tmp_path / "p.zarr"), mx.open_program(files)[GROUP].to_dataset())
    assert mx.verify(tmp_path / "p.zarr").problems == []


def test_standard_layout(products, tmp_path):
    """Plain xarray sees the same slits; slots without one are flagged and empty."""
    mx.ingest(products, tmp_path / "p.zarr", chunks=2)
    plain = xr.open_zarr(tmp_path / "p.zarr", group=GROUP, consolidated=False).load()
    truth = opened(tmp_path / "p.zarr").load()
    used = plain.slitlet.values >= 0
    assert used.sum() == truth.sizes["slit"] < plain.sizes["slit"]
    assert (plain.quality.values[~used] == 1).all()
    assert np.isnan(plain.flux.values[~used]).all()
    ny, nx = truth.sizes["y"], truth.sizes["x"]
    kept = by_slit(plain.isel(slit=used, y=slice(ny), x=slice(nx)))
    for name in truth.variables:
        assert (name in plain.coords) == (name in truth.coords)
        assert dict(kept[name].attrs).keys() == dict(truth[name].attrs).keys(), name
        np.testing.assert_array_equal(kept[name].values, truth[name].values, err_msg=name)


# ------------------------------------------------------------------------------------------------
# Order, schedulers


def test_the_order_of_files_leaves_no_trace(products, tmp_path):
    mx.ingest(products, tmp_path / "a.zarr")
    mx.ingest(list(reversed(products)), tmp_path / "b.zarr")
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")
    for path in reversed(products):
        mx.ingest(path, tmp_path / "c.zarr")
    assert_same(opened(tmp_path / "c.zarr"), opened(tmp_path / "a.zarr"))
    assert opened(tmp_path / "c.zarr").chunks == opened(tmp_path / "a.zarr").chunks


def test_more_slits_of_an_exposure_later(tmp_path):
    files = [rp.write_nips(1, s, tmp_path) for s in (9, 4, 30, 7)]
    mx.ingest(files[:2], tmp_path / "a.zarr")
    mx.ingest(files[2:], tmp_path / "a.zarr")
    mx.ingest(files, tmp_path / "b.zarr")
    one, other = opened(tmp_path / "a.zarr"), opened(tmp_path / "b.zarr")
    assert one.slitlet.values.tolist() == [4, 7, 9, 30] * 2
    assert_same(one, other)
    assert one.chunks == other.chunks


def test_no_chunk_is_read_twice(tmp_path, compute_nothing):
    """Chunks of what is opened are whole chunks of the store, which end with each exposure."""
    files = [rp.write_nips(e, s, tmp_path, shape=(2, 5)) for e in (1, 2) for s in range(1, 13)]
    with dask.config.set(scheduler="threads"):
        mx.ingest(files, tmp_path / "p.zarr", chunks=10)
    ds = opened(tmp_path / "p.zarr")
    stored = np.cumsum([10, 2] * 4)
    assert set(np.cumsum(ds.chunks["slit"])) <= set(stored)
    own = open_store(tmp_path / "p.zarr")[GROUP].flux.data
    assert own.chunks[0] == (10, 2) * 4
    assert len(own.__dask_graph__()) == 2 * len(stored)


def test_usual_length_of_chunks():
    """Long where planes are small and exposures fill them."""
    small, large = (24, 448), (64, 2048)
    assert _usual_length([60, 64, 128], small) == 64
    assert _usual_length([60, 64, 128], large) == 32
    assert _usual_length([12, 40], small) == 32  # half of what the first takes were empty
    assert _usual_length([200] * 9 + [20], small) == 32  # 256 slots in place of 224


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_schedulers(products, tmp_path, scheduler):
    with dask.config.set(scheduler=scheduler, num_workers=2):
        assert len(mx.ingest(products[:4], tmp_path / "p.zarr").accepted) == 4
    truth = mx.open_program(products[:4])[GROUP].to_dataset()
    assert_same(opened(tmp_path / "p.zarr"), by_slit(truth))


def _die():
    os._exit(1)


def test_a_cluster_of_processes(products, tmp_path):
    """Workers write; one that dies takes its own task with it only."""
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster),
    ):
        assert len(mx.ingest(products, tmp_path / "p.zarr").accepted) == 6
        one, other = results([_die, lambda: 3])
        assert isinstance(one, Exception)
        assert other == 3
        lazy = opened(tmp_path / "p.zarr").flux.sum().compute()
    truth = mx.open_program(products)[GROUP].to_dataset()
    assert_same(opened(tmp_path / "p.zarr"), by_slit(truth))
    np.testing.assert_equal(lazy.values, truth.flux.sum().values)


# ------------------------------------------------------------------------------------------------
# What is taken and what is not


def test_what_is_in_is_passed_over(products, tmp_path):
    store = tmp_path / "p.zarr"
    mx.ingest(products[:3], store)
    before = files_of(store)
    report = mx.ingest(products[:3], store)
    assert len(report.skipped) == 3
    assert set(report.skipped.values()) == {"in already"}
    assert files_of(store) == before
    report = mx.ingest(products, store)
    assert len(report.skipped) == len(report.accepted) == 3
    copy = tmp_path / "copy_cal.fits"
    copy.write_bytes(products[0].read_bytes())
    assert mx.ingest(copy, store).skipped == {str(copy): f"in already, as {products[0].name}"}


def test_what_changed_is_refused(products, tmp_path):
    store = tmp_path / "p.zarr"
    mx.ingest(products, store)
    before = files_of(store)
    changed = rp.write_cal(changed_pixels(rp.exposure(1)), tmp_path)
    assert changed.name == products[0].name
    (reason,) = mx.ingest(changed, store).failed.values()
    assert "a file of this name is in the store with other content" in reason
    other = rp.write_cal(changed_pixels(rp.exposure(1)), tmp_path, "other_cal.fits")
    (reason,) = mx.ingest(other, store).failed.values()
    assert "the same slit in several products" in reason
    assert f"{products[0].name} (in the store)" in reason
    assert files_of(store) == before


def test_conflicts_among_new_files_take_neither(products, tmp_path):
    """Which of two is right no order of files can tell."""
    folder = tmp_path / "other"
    folder.mkdir()
    changed = rp.write_cal(changed_pixels(rp.exposure(1)), folder)
    twin = rp.write_cal(changed_pixels(rp.exposure(2)), folder, "twin_cal.fits")
    copy = folder / "zz_copy_cal.fits"
    copy.write_bytes(products[3].read_bytes())
    given_files = [changed, *products, twin, copy]
    for paths in (given_files, given_files[::-1]):
        report = mx.ingest(paths, tmp_path / f"{paths is given_files}.zarr")
        assert set(report.failed) == {str(p) for p in (changed, products[0], products[1], twin)}
        assert set(report.skipped) == {str(copy)}
        assert len(report.accepted) == 4


def test_bad_files_do_not_stop_good_ones(products, tmp_path, real_files):
    notes = tmp_path / "notes.fits"
    notes.write_text("not FITS at all")
    short = tmp_path / "short_cal.fits"
    short.write_bytes(products[0].read_bytes()[:-2880])
    counts = tmp_path / real_files[0].name
    raw = real_files[0].read_bytes()
    counts.write_bytes(raw.replace(b"'MJy/sr  '", b"'DN/s    '"))
    paths = [notes, short, tmp_path / "absent.fits", tmp_path / "none" / "*.fits", counts]
    report = mx.ingest([*paths, *products[1:]], tmp_path / "p.zarr")
    assert len(report.accepted) == 5
    assert set(report.failed) == {str(p) for p in paths}
    for path, words in zip(
        paths, ("not a FITS", "truncated", "cannot read", "no input", "another unit"), strict=True
    ):
        assert words in report.failed[str(path)], report.failed[str(path)]
    frame = report.to_dataframe()
    assert frame.status.value_counts().to_dict() == {"accepted": 5, "failed": 5}
    assert_same(
        opened(tmp_path / "p.zarr"), by_slit(mx.open_program(products[1:])[GROUP].to_dataset())
    )


def test_strict(products, tmp_path):
    notes = tmp_path / "notes.fits"
    notes.write_text("not FITS at all")
    with pytest.raises(mx.MbkgError, match=r"notes\.fits"):
        mx.ingest([notes, *products], tmp_path / "p.zarr", on_error="raise")
    assert not (tmp_path / "p.zarr").exists()


def test_nothing_of_use_makes_no_store(tmp_path):
    (tmp_path / "notes.fits").write_text("not FITS at all")
    assert len(mx.ingest(tmp_path, tmp_path / "p.zarr").failed) == 1
    assert not (tmp_path / "p.zarr").exists()


def test_a_file_that_changes_meanwhile(products, tmp_path):
    """It is left out; the others are in, and no trace of it."""
    copies = [tmp_path / p.name for p in products[:3]]
    for copy, path in zip(copies, products, strict=False):
        copy.write_bytes(path.read_bytes())

    def touch(text):
        if text.startswith("wrote 0"):
            copies[1].write_bytes(products[1].read_bytes())

    store = tmp_path / "p.zarr"
    report = mx.ingest(copies, store, on_step=touch)
    assert list(report.failed) == [str(copies[1])]
    assert "changed while it was ingested" in report.failed[str(copies[1])]
    assert mx.verify(store).problems == []
    assert opened(store).sizes["slit"] == 6
    assert len(mx.ingest(copies, store).accepted) == 1
    truth = by_slit(mx.open_program(copies)[GROUP].to_dataset())
    assert_same(opened(store), truth)


def test_half_of_a_product_is_not_kept(tmp_path, monkeypatch):
    """A NIPS file whose second detector cannot be read is out on the first too."""
    from mbkg_xr.io import nips

    files = [rp.write_nips(1, s, tmp_path) for s in (4, 9)]
    read = nips._pixels

    def broken(source, variable):
        if source.coords["detector"] == "NRS2" and source.coords["slitlet"] == 9:
            raise mx.MbkgError("unreadable", where=source.path)
        return read(source, variable)

    monkeypatch.setattr(nips, "_pixels", broken)
    with dask.config.set(scheduler="threads"):
        report = mx.ingest(files, tmp_path / "p.zarr")
    assert list(report.failed) == [str(files[1])]
    assert opened(tmp_path / "p.zarr").slitlet.values.tolist() == [4, 4]
    assert mx.verify(tmp_path / "p.zarr").problems == []


def test_options_are_remembered(products, tmp_path):
    store = tmp_path / "p.zarr"
    mx.ingest(products[:1], store)
    with pytest.raises(mx.MbkgError, match="chunks of another length"):
        mx.ingest(products, store, chunks=5)
    layout = tmp_path / "layout.toml"
    layout.write_text('position_unit = "pitch"\n')
    report = mx.ingest(products[:1], store, nips_layout=layout)
    assert "opened with other options" in report.failed[str(products[0])]
    with pytest.raises(mx.MbkgError, match="on_error"):
        mx.ingest(products, store, on_error="ignore")
    with pytest.raises(mx.MbkgError, match="chunks"):
        mx.ingest(products, tmp_path / "q.zarr", chunks=0)


def test_other_stores_are_left_alone(program, products, tmp_path):
    mx.save(program.isel(slit=slice(2)), tmp_path / "saved.zarr")
    with pytest.raises(mx.MbkgError, match="not a store that ingest made"):
        mx.ingest(products, tmp_path / "saved.zarr")
    with pytest.raises(mx.MbkgError, match="not a store that ingest made"):
        mx.ingest(products, tmp_path)


# ------------------------------------------------------------------------------------------------
# Kills, full disks, two at once


def _ingest_slowly(files, store):
    with dask.config.set(scheduler="synchronous", num_workers=1):
        mx.ingest(files, store, chunks=2)


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mbkg_xr", "random_products", "test_ingest"])
    return context


def _assert_whole_exposures(store, truth):
    """What is visible is complete, and right."""
    if not Path(store).exists():
        return 0
    tree = mx.open_program(store)
    if GROUP not in tree.children:
        return 0
    ds = tree[GROUP].to_dataset()
    seen = set(ds.exposure.values)
    expected = truth.isel(slit=np.isin(truth.exposure.values, list(seen)))
    assert ds.slitlet.values.tolist() == expected.slitlet.values.tolist()
    ny, nx = ds.sizes["y"], ds.sizes["x"]
    for name in ("flux", "quality", "yrel"):
        a, b = ds[name].values, expected[name].values[:, :ny, :nx]
        assert a.tobytes() == np.ascontiguousarray(b).tobytes()
    return len(seen)


def test_killed_at_any_instant(products, tmp_path):
    """SIGKILL again and again; what is visible is whole, and the end is as if never killed."""
    extra = [rp.write_cal(rp.exposure(n, slits=1), tmp_path) for n in range(10, 18)]
    files = [*products, *extra]
    truth = by_slit(mx.open_program(files)[GROUP].to_dataset()).load()
    whole, store = tmp_path / "whole.zarr", tmp_path / "p.zarr"
    context = _context()
    start = time.perf_counter()
    process = context.Process(target=_ingest_slowly, args=(files, whole))
    process.start()
    process.join()
    duration = time.perf_counter() - start
    rng = random.Random(4)
    visible, deaths = [], 0
    while deaths < 4:
        process = context.Process(target=_ingest_slowly, args=(files, store))
        process.start()
        end = time.perf_counter() + rng.uniform(0.1, 0.7) * duration
        while time.perf_counter() < end and process.is_alive():
            visible.append(_assert_whole_exposures(store, truth))
            time.sleep(0.05)  # the writer needs the processor too
        if not process.is_alive():
            break
        process.kill()
        process.join()
        deaths += 1
        visible.append(_assert_whole_exposures(store, truth))
    assert deaths >= 2
    assert visible == sorted(visible)
    _ingest_slowly(files, store)
    assert mx.verify(store).problems == []
    assert_same(opened(store), opened(whole))
    assert files_of(store) == files_of(whole)


def test_readers_meanwhile(products, tmp_path):
    """One that opens the store all the time never fails, and sees whole exposures only."""
    truth = by_slit(mx.open_program(products)[GROUP].to_dataset()).load()
    store = tmp_path / "p.zarr"
    writer = threading.Thread(target=_ingest_slowly, args=(products, store))
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(_assert_whole_exposures(store, truth))
    writer.join()
    assert _assert_whole_exposures(store, truth) == 5
    assert len(seen) > 3
    assert seen == sorted(seen)


def test_one_writer_at_a_time(products, tmp_path):
    store = tmp_path / "p.zarr"
    mx.ingest(products[:1], store)
    with (
        write_lock(store),
        pytest.raises(mx.MbkgError, match=rf"another ingest is writing.*process {os.getpid()} on"),
    ):
        mx.ingest(products, store)
    assert not (store / LOCK_NAME).exists()
    with write_lock(store) as lock:
        (store / LOCK_NAME).write_text(json.dumps({"token": "somebody else's"}))
        with pytest.raises(mx.MbkgError, match="taken over"):
            lock.check()
    (store / LOCK_NAME).write_text(json.dumps({"token": "x", "host": "elsewhere", "pid": 1}))
    with pytest.raises(mx.MbkgError, match="on elsewhere"):
        mx.ingest(products, store)
    (store / LOCK_NAME).unlink()
    assert len(mx.ingest(products, store).accepted) == 5


def _die_holding(store):
    with write_lock(store):
        os._exit(1)


def test_the_lock_of_the_dead_counts_for_nothing(products, tmp_path):
    store = tmp_path / "p.zarr"
    mx.ingest(products[:1], store)
    process = _context().Process(target=_die_holding, args=(store,))
    process.start()
    process.join()
    assert (store / LOCK_NAME).exists()
    assert len(mx.ingest(products, store).accepted) == 5
    assert not (store / LOCK_NAME).exists()


def _ingest_with_little_room(files, store, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    try:
        mx.ingest(files, store)
        queue.put("nothing went wrong")
    except mx.MbkgError as error:
        queue.put(str(error))


def test_a_full_disk(tmp_path):
    """Writing fails in the middle of chunks: an error that says so, and nothing of it visible."""
    what = rp.Exposure(7, "NRS1", (rp.slit(5, (40, 400), 1), rp.slit(6, (40, 400), 2)))
    small, large = (
        rp.write_cal(rp.exposure(1), tmp_path),
        rp.write_cal(what, tmp_path),
    )
    store = tmp_path / "p.zarr"
    mx.ingest(small, store)
    context = _context()
    queue = context.Queue()
    process = context.Process(target=_ingest_with_little_room, args=([large], store, queue))
    process.start()
    message = queue.get(timeout=60)
    process.join()
    assert "cannot write to the store" in message
    assert "File too large" in message
    assert "make room" in message
    assert opened(store).exposure.values.tolist() == [rp.exposure(1).exposure] * 3
    assert len(mx.ingest([small, large], store).accepted) == 1
    assert mx.verify(store).problems == []
    assert_same(opened(store), mx.open_program([small, large])[GROUP].to_dataset())


def test_a_store_that_cannot_be_written(products, tmp_path, monkeypatch):
    """The journal itself: what was visible before still is."""
    from mbkg_xr.io import ingest as module

    store = tmp_path / "p.zarr"
    mx.ingest(products[:1], store)
    real, calls = module.write_journal, []

    def fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(module, "write_journal", fails)
    with pytest.raises(OSError, match="No space left"):
        mx.ingest(products, store)
    monkeypatch.undo()
    assert opened(store).sizes["slit"] == 3
    assert len(mx.ingest(products, store).accepted) == 5
    assert mx.verify(store).problems == []


# ------------------------------------------------------------------------------------------------
# The command


def test_command(products, tmp_path):
    store = tmp_path / "p.zarr"
    run = CliRunner().invoke
    done = run(main, ["ingest", *map(str, products), "--out", str(store), "--chunks", "4"])
    assert done.exit_code == 0, done.output
    assert "6 accepted, 0 skipped, 0 failed" in " ".join(done.stdout.split())
    notes = tmp_path / "notes.fits"
    notes.write_text("not FITS at all")
    done = run(main, ["ingest", str(notes), str(products[0]), "--out", str(store), "--json"])
    assert done.exit_code == 1, done.output
    assert "not a FITS file [notes.fits]" in " ".join(done.stdout.split())
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["accepted"], said["skipped"], said["failed"]) == (0, 1, 1)
    done = run(main, ["ingest", str(products[0]), "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "\nerror: not a store that ingest made" in "\n" + done.stderr
    done = run(main, ["run", str(store), "--out", str(tmp_path / "result.zarr")])
    assert done.exit_code == 2  # random bits are no sky: the store opens, and the fit says so
    assert "Traceback" not in done.output


def test_metafiles_serve_the_reader(tmp_path):
    from mbkg_xr.simulate.jwst import write_jwst

    ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    paths = write_jwst(ds, tmp_path)
    report = mx.ingest(tmp_path, tmp_path / "p.zarr")
    assert report.used == [str(p) for p in paths if p.name.endswith("_msa.fits")]
    assert len(report.accepted) == 1
    assert not report.failed
    assert_same(opened(tmp_path / "p.zarr"), mx.open_program(paths)[GROUP].to_dataset())
