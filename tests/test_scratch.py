"""Scratch files: what does not fit in memory, where there is room; and nothing left of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path

import dask
import numpy as np
import pytest

import mbkg_xr as mx
from mbkg_xr import room, scratch
from mbkg_xr.held import held
from mbkg_xr.packing import pack
from mbkg_xr.scratch import Scratch, scratch_folder
from mbkg_xr.spans import span_grid

MODEL = mx.BSpline(spacing=16, penalty=1e-2)


@pytest.fixture(scope="module")
def sky():
    ds = mx.simulate_program(exposures=2, slits=6, background_slits=3, seed=1, chunks=4)
    return mx.select_background(ds).persist()


@pytest.fixture(scope="module")
def expected(sky):
    return mx.fit_master(sky, model=MODEL).polynomial.values


@pytest.fixture
def made(monkeypatch):
    """Scratch files that were made."""
    out = []

    class Seen(Scratch):
        def __init__(self, folder):
            super().__init__(folder)
            out.append(self)

    monkeypatch.setattr(room, "Scratch", Seen)
    return out


def test_columns_come_back(tmp_path):
    file = Scratch(str(tmp_path))
    columns = [np.arange(n, dtype=np.float32) for n in (3, 0, 1000)]
    places = [file.write(columns), file.write(columns[::-1])]
    np.testing.assert_array_equal(file.read(places[0], 1003), np.concatenate(columns))
    np.testing.assert_array_equal(file.read(places[1] + 4000, 3), columns[0])
    assert file.size == 2 * 4012 and file.read(0, 0).size == 0
    with pytest.raises(OSError, match="cut off"):
        file.read(places[1], 1004)
    assert not list(tmp_path.iterdir()), "it has no name"
    file.close()
    assert file.closed


def test_many_threads_write_and_read(tmp_path):
    file, wrong = Scratch(str(tmp_path)), []

    def work(seed):
        for i in range(40):
            column = np.full(1000 + 7 * i, seed * 100 + i, dtype=np.float32)
            place = file.write([column, column + 1])
            if not np.array_equal(file.read(place, 2 * column.size), [*column, *(column + 1)]):
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    file.close()


def test_stored_pixels_are_those_that_were_packed(sky, tmp_path):
    names = ("flux", "error", "wavelength", "yrel")
    columns = [sky[name].values for name in names]
    seen = sky.selected.values & (np.indices(sky.flux.shape)[2] % 2 == 0)
    whole = pack(sky.selected.values, seen, columns, span_grid(sky))
    file = Scratch(str(tmp_path))
    stored = [whole.write(file) for _ in range(2)][1]
    rows = np.array([1, 4, 7])
    for looking in (False, True):
        pairs = [(whole.pixels(seen=looking), stored.pixels(seen=looking))]
        pairs += [(whole.take(rows).pixels(seen=looking), stored.take(rows).pixels(seen=looking))]
        for a, b in pairs:
            for one, other in zip(a, b, strict=True):
                np.testing.assert_array_equal(one.columns, other.columns)
                np.testing.assert_array_equal((one.start, one.stop), (other.start, other.stop))
    file.close()


def test_gone_after_a_fit_and_after_one_that_failed(sky, expected, made, tmp_path):
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        found = mx.fit_master(sky, model=MODEL, memory=0)
        np.testing.assert_array_equal(found.polynomial.values, expected)
        with pytest.raises(mx.MbkgError):
            mx.fit_master(sky.assign(flux=sky.flux * np.nan), model=MODEL, memory=0)
    assert len(made) == 2 and all(one.closed and one.size > 0 for one in made)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk(sky, expected, made, after, monkeypatch, tmp_path):
    """Found out before anything is written, or in between: said, and pixels are read again."""
    usage_of = namedtuple("usage_of", "total used free")
    asked = []

    def usage(folder):
        asked.append(folder)
        free = 0 if len(asked) > after else 10**12
        return usage_of(10**12, 10**12 - free, free)

    monkeypatch.setattr(room.shutil, "disk_usage", usage)
    config = dask.config.set({"temporary-directory": str(tmp_path)})
    with config, pytest.warns(UserWarning, match=r"no room for scratch files .*0\.0 GB free.*TEMP"):
        found = mx.fit_master(sky, model=MODEL, memory=0)
    scale = np.nanmax(np.abs(expected))
    np.testing.assert_allclose(found.polynomial.values, expected, rtol=0, atol=1e-9 * scale)
    assert [one.closed for one in made] == [True]


def test_a_disk_that_fills_as_it_is_written(sky, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch.os, "pwrite", full)
    config = dask.config.set({"temporary-directory": str(tmp_path)})
    with config, pytest.warns(UserWarning, match="No space left"):
        mx.fit_master(sky, model=MODEL, memory=0)


def test_a_folder_that_is_not_there(sky, tmp_path):
    config = dask.config.set({"temporary-directory": str(tmp_path / "missing")})
    with config, pytest.warns(UserWarning, match="no room for scratch files .*missing"):
        mx.fit_master(sky, model=MODEL, memory=0)


def test_where_they_are(tmp_path, monkeypatch):
    """What dask is told, then TMPDIR, then a disk rather than memory."""
    monkeypatch.delenv("TMPDIR", raising=False)
    with dask.config.set({"temporary-directory": None}):
        assert scratch_folder() == "/var/tmp" or not os.access("/var/tmp", os.W_OK)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        assert scratch_folder() == str(tmp_path)
        with dask.config.set({"temporary-directory": "/elsewhere"}):
            assert scratch_folder() == "/elsewhere"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what is open is seen in /proc")
def test_a_run_that_is_killed_leaves_none(tmp_path):
    """Nor anything else in the temporary directory."""
    code = f"""
import dask, mbkg_xr as mx, time
dask.config.set({{"temporary-directory": {str(tmp_path)!r}}})
sky = mx.select_background(mx.simulate_program(exposures=2, slits=6, background_slits=3, chunks=4))
def wait(text):
    if text == "pass 1":
        print("now", flush=True)
        time.sleep(60)
mx.fit_master(sky, memory=0, on_pass=wait)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "now\n"
        links = [f.readlink() for f in Path(f"/proc/{run.pid}/fd").iterdir() if f.is_symlink()]
        assert any(str(link).startswith(str(tmp_path)) for link in links), (
            "it holds no scratch file"
        )
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())


def test_parts_of_few_slits_go_there_too(sky, tmp_path):
    with dask.config.set({"temporary-directory": str(tmp_path)}), ExitStack() as stack:
        whole = held(sky, span_grid(sky), memory=0, stack=stack)
        before = whole.room.scratch.size
        part = whole.part(np.array([0, 5]), stack)
        assert part.room is whole.room and whole.room.scratch.size > before
