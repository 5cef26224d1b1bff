"""The index in the user's cache: as a fresh reading, never of another file, never needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import mbkg_xr as mx
from mbkg_xr.errors import MbkgError
from mbkg_xr.io import NipsLayout, wcs
from mbkg_xr.io import index as indexing
from mbkg_xr.io.headers import hdu_table
from mbkg_xr.io.index import Index, Seen, open_index


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def own(cal_file, tmp_path):
    """A product of one's own, to be changed."""
    folder = tmp_path / "data"
    folder.mkdir()
    return Path(shutil.copy(cal_file, folder / cal_file.name))


def opened(paths, cache, **options):
    (node,) = mx.open_program(paths, cache=cache, **options).children.values()
    return node.to_dataset()


@pytest.fixture
def nothing_read(monkeypatch):
    """Call it, and neither headers nor WCS may be read any more."""

    def refuse(*args, **kwargs):
        raise AssertionError("this should have come from the index")

    def forbid():
        monkeypatch.setattr(mx.io, "hdu_table", refuse)
        monkeypatch.setattr(wcs, "_evaluated", refuse)

    return forbid


def entries(cache, suffix=""):
    return sorted(p for p in cache.rglob("*") if p.is_file() and p.name.endswith(suffix))


@pytest.mark.parametrize("kind", ["cal", "i2d"])
def test_the_same_from_the_index(kind, request, cache, nothing_read):
    files = request.getfixturevalue(f"{kind}_files")
    fresh = opened(files, False).load()
    opened(files, cache).yrel.load()
    nothing_read()
    again = opened(files, cache).load()
    xr.testing.assert_identical(again, fresh)
    assert again.yrel.values.tobytes() == fresh.yrel.values.tobytes()
    assert len(entries(cache, ".slits")) == len(files)


def test_wavelengths_are_kept_too(cal_file, cache, nothing_read):
    index = open_index(cache)
    sources = mx.io._scan_product(cal_file, layout=NipsLayout(), index=index)
    fresh = list(wcs.wcs_wavelength(sources))
    placed = index.with_places(sources)
    yrel = list(wcs.wcs_yrel(placed))  # kept without the wavelengths
    assert [p.tobytes() for p in wcs.wcs_wavelength(placed)] == [p.tobytes() for p in fresh]
    nothing_read()
    assert [p.tobytes() for p in wcs.wcs_wavelength(placed)] == [p.tobytes() for p in fresh]
    assert [p.tobytes() for p in wcs.wcs_yrel(placed)] == [p.tobytes() for p in yrel]


def changed_in_place(path, old, new, *, after=0):
    """Same size, same time: what a sloppy copy or a tool that restores times leaves."""
    before = path.stat()
    data = path.read_bytes()
    assert len(old) == len(new) and old in data[after:]
    path.write_bytes(data[:after] + data[after:].replace(old, new, 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_changed_header_is_noticed(own, cache):
    assert opened(own, cache).source_name.values[0] == "9999_BKG1"
    changed_in_place(own, b"'9999_BKG1'", b"'9999_XYZ7'")
    assert opened(own, cache).source_name.values[0] == "9999_XYZ7"


def test_a_changed_wcs_is_noticed(own, cache):
    before = opened(own, cache).yrel.load()
    start = next(h.offset for h in hdu_table(own) if h.name == "ASDF")
    text = own.read_bytes()[start:]
    place = text.index(b"offset: -")
    old = text[place : text.index(b"\n", place)]
    changed_in_place(own, old, old[:-1] + (b"1" if old[-1:] != b"1" else b"2"), after=start)
    digit = old[:9] + (b"9" if old[9:10] != b"9" else b"8") + old[10:]
    changed_in_place(own, old[:-1], digit[:-1], after=start)
    after = opened(own, cache).yrel.load()
    assert not after.equals(before)
    assert after.equals(opened(own, False).yrel.load())


def test_changed_pixels_are_read(own, cache):
    ds = opened(own, cache)
    hdu = hdu_table(own)[1]
    data = bytearray(own.read_bytes())
    data[hdu.offset : hdu.offset + 4] = np.array([42], ">f4").tobytes()
    before = own.stat()
    own.write_bytes(data)
    os.utime(own, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ds.flux.values[0, 0, 0] == 42
    assert opened(own, cache).flux.values[0, 0, 0] == 42


def test_another_file_under_the_name(cal_files, own, cache):
    first = opened(own, cache)
    shutil.copy(cal_files[1], own)
    second = opened(own, cache)
    assert set(first.detector.values) == {"NRS1"}
    assert set(second.detector.values) == {"NRS2"}
    assert len(entries(cache, ".slits")) == 1


def test_a_file_cut_short_after_it_was_indexed(own, cache):
    ds = opened(own, cache)
    os.truncate(own, own.stat().st_size // 2)
    with pytest.raises(MbkgError, match="truncated FITS file"):
        opened(own, cache)
    with pytest.raises(MbkgError, match=f"truncated FITS file .*{own.name}"):
        ds.flux.load()
    own.unlink()
    with pytest.raises(MbkgError, match=f"cannot read the file .*{own.name}"):
        ds.error.load()


def test_another_layout_is_another_entry(i2d_files, cache):
    wide = opened(i2d_files, cache)
    turned = opened(i2d_files, cache, nips_layout=NipsLayout(turned=()))
    assert len(entries(cache, ".slits")) == 2 * len(i2d_files)
    assert not turned.x_start.equals(wide.x_start)


@pytest.mark.parametrize("damage", ["noise", "empty", "half", "other json"])
def test_damaged_entries_count_as_missing(own, cache, damage):
    import zlib

    fresh = opened(own, cache).load()
    for path in entries(cache):
        data = path.read_bytes()
        path.write_bytes(
            {
                "noise": np.random.default_rng(0).bytes(len(data)),
                "empty": b"",
                "half": data[: len(data) // 2],
                "other json": zlib.compress(b'{"state": 3}'),
            }[damage]
        )
    xr.testing.assert_identical(opened(own, cache).load(), fresh)
    xr.testing.assert_identical(opened(own, cache).load(), fresh)


def test_a_flipped_bit_of_a_plane_is_seen(own, cache):
    fresh = opened(own, cache).yrel.load()
    (planes,) = entries(cache, ".planes")
    data = bytearray(planes.read_bytes())
    data[1000] ^= 4
    planes.write_bytes(data)
    assert opened(own, cache).yrel.load().equals(fresh)
    assert planes.read_bytes()[1000] == data[1000] ^ 4  # and mended


def test_nothing_is_written_beside_the_input(own, cache):
    folder = own.parent
    before = [(p.name, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))]
    folder.chmod(0o555)
    try:
        opened(folder, cache).load()
        opened(folder, False).load()
        opened(folder, True).load()
    finally:
        folder.chmod(0o755)
    assert [(p.name, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))] == before


def test_every_file_that_is_opened_for_writing_is_in_the_cache(own, cache):
    """Also as root, who may write anywhere: what the process asks the system for is looked at."""
    code = f"""
import os, sys
written = []
def watch(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(os.fsdecode(args[0]) if not isinstance(args[0], int) else "")
    elif event in ("os.rename", "os.mkdir", "os.remove", "os.truncate", "os.link", "os.symlink"):
        written.append(os.fsdecode(args[0]))
import mbkg_xr as mx
sys.addaudithook(watch)
(node,) = mx.open_program({str(own)!r}, cache={str(cache)!r}).children.values()
node.to_dataset().load(scheduler="synchronous")
print([p for p in written if p and not p.startswith({str(cache)!r})])
print(len(written) > 3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True"]


def test_a_cache_that_cannot_be_written(own, tmp_path, monkeypatch):
    fresh = opened(own, False).load()
    blocked = tmp_path / "a file"
    blocked.write_text("not a directory")
    xr.testing.assert_identical(opened(own, blocked / "cache").load(), fresh)
    assert blocked.read_text() == "not a directory"
    # A directory that was filled once and is read-only now.
    cache = tmp_path / "cache"
    opened(own, cache).load()
    names = entries(cache)

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    for name in ("replace", "utime", "unlink"):
        monkeypatch.setattr(indexing.os, name, refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    xr.testing.assert_identical(opened(own, cache).load(), fresh)
    xr.testing.assert_identical(opened(own, tmp_path / "new").load(), fresh)
    assert entries(cache) == names


def test_where_the_cache_is(own, tmp_path, monkeypatch):
    monkeypatch.setenv("MBKG_XR_CACHE", str(tmp_path / "named"))
    opened(own, True)
    assert len(entries(tmp_path / "named", ".slits")) == 1
    monkeypatch.delenv("MBKG_XR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    opened(own, True)
    assert len(entries(tmp_path / "xdg" / "mbkg_xr", ".slits")) == 1
    for off in ("off", "0"):
        monkeypatch.setenv("MBKG_XR_CACHE", off)
        assert open_index(True) is None
    assert open_index(False) is None
    monkeypatch.setenv("MBKG_XR_CACHE_BYTES", "a lot")
    with pytest.raises(MbkgError, match="MBKG_XR_CACHE_BYTES"):
        open_index(tmp_path)


def test_what_was_used_longest_ago_goes_first(cal_files, cache, monkeypatch):
    for path in cal_files:
        opened(path, cache).yrel.load()
    held = sum(indexing._bytes_on_disk(p.stat()) for p in entries(cache))
    old = time.time() - 3600
    for path in entries(cache):
        os.utime(path, (old, old))
    opened(cal_files[0], cache)  # used now
    limit = held * 4 // 5  # room for one product beside the one that is opened now
    monkeypatch.setenv("MBKG_XR_CACHE_BYTES", str(limit))
    opened(cal_files[1], cache).yrel.load()
    left = entries(cache)
    assert sum(indexing._bytes_on_disk(p.stat()) for p in left) <= limit
    seen = [Seen.now(p) for p in cal_files]
    index = Index(left[0].parent)
    known = [index._entry(s, repr(NipsLayout())) in left for s in seen]
    assert known == [True, True, False, False]
    # Where there is no room for planes, there are none, and the same comes out.
    monkeypatch.setenv("MBKG_XR_CACHE_BYTES", "1000")
    assert opened(cal_files[2], cache).yrel.load().equals(opened(cal_files[2], False).yrel.load())
    assert not entries(cache, ".planes")


def test_threads_share_it(cal_files, cache):
    fresh = opened(cal_files, False).load()
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda _: opened(cal_files, cache).load(), range(6)))
    for one in found:
        xr.testing.assert_identical(one, fresh)
    assert len(entries(cache)) == 2 * len(cal_files)  # and nothing half-written


def test_processes_share_it(cal_files, cache):
    two = cal_files[:2]
    fresh = opened(two, False).load()
    code = f"""
import mbkg_xr as mx
(node,) = mx.open_program({[str(p) for p in two]!r}, cache={str(cache)!r}).children.values()
print(hash(node.to_dataset().yrel.values.tobytes()))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    answers = {p.communicate()[0] for p in running}
    assert len(answers) == 1 and all(p.returncode == 0 for p in running)
    assert len(entries(cache)) == 2 * len(two)
    xr.testing.assert_identical(opened(two, cache).load(), fresh)


def test_only_plain_values_are_kept(cal_files, i2d_files, cache):
    """What a scan finds comes back from JSON as it was, types and all."""
    index = open_index(cache)
    for path in (cal_files[0], i2d_files[0]):
        sources = mx.io._scan_product(path, layout=NipsLayout(), index=index)
        again = index.find(Seen.now(path), repr(NipsLayout()), mx.io._KINDS)
        assert [repr(s) for s in again] == [repr(s) for s in sources]
