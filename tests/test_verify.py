"""What is damaged in a store is found, and said; what is whole is not complained of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import random_products as rp
import zarr
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.cli import main
from mbkg_xr.io.lock import write_lock
from mbkg_xr.io.store import open_store

GROUP = "prism-clear"
PIXELS = ("flux", "error", "quality", "wavelength", "yrel", "var_rnoise", "var_poisson")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Three exposures of three slits, two slits a chunk."""
    folder = tmp_path_factory.mktemp("whole")
    files = [rp.write_cal(rp.exposure(n), folder) for n in (1, 2, 3)]
    assert not mx.ingest(files, folder / "p.zarr", chunks=2).failed
    return folder / "p.zarr"


@pytest.fixture
def store(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "p.zarr"))


@pytest.fixture
def saved(program, tmp_path) -> Path:
    mx.save(program.isel(slit=slice(8)), tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def kinds(store, **how) -> list[str]:
    return sorted({p.kind for p in mx.verify(store, **how).problems})


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(bytes(data))


def test_whole_stores(whole, saved):
    for path, slits in ((whole, 9), (saved, 8)):
        report = mx.verify(path)
        assert report.ok, report.problems
        assert (report.groups, report.slits) == (1, slits)
        assert report.size == sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        assert mx.verify(path, deep=False).ok
    assert mx.verify(whole).chunks == 3 * 2 * len(PIXELS)


@pytest.mark.parametrize("variable", ["flux", "quality", "yrel"])
def test_any_flipped_byte(store, variable):
    """Anywhere in a chunk: found by verify and by reading, which name the slits; never pixels."""
    rng = np.random.default_rng(0)
    truth = open_store(store)[GROUP].to_dataset()  # in the store's own chunks
    chunk = store / GROUP / variable / "c.2.0.0"
    good = chunk.read_bytes()
    for place in [0, 1, 2, 3, 7, 12, len(good) - 1, *rng.integers(0, len(good), 4)]:
        flip(chunk, int(place))
        with pytest.raises(mx.MbkgError) as error:
            truth[variable].load()
        slits = truth.slitlet.values[truth.exposure.values == rp.exposure(2).exposure][:2]
        where = f"{rp.exposure(2).exposure} NRS1 slitlets {slits[0]} {slits[1]}"
        for words in ("damaged chunk", str(store), f"{GROUP}/{variable}", where):
            assert words in str(error.value), error.value
        other = truth[variable].isel(slit=truth.exposure.values != rp.exposure(2).exposure)
        assert other.load().shape[0] == 6
        if place == 7:
            (problem,) = mx.verify(store).problems
            assert problem.kind == "damaged chunk"
            assert f"{GROUP}/{variable}, chunk c.2.0.0" in problem.where
            assert mx.verify(store, deep=False).ok
        chunk.write_bytes(good)


@pytest.mark.parametrize("deep", [True, False])
def test_missing_chunks(store, deep):
    (store / GROUP / "quality" / "c.1.0.0").unlink()
    (store / GROUP / "slitlet" / "c.0").unlink()
    report = mx.verify(store, deep=deep)
    found = {(p.kind, p.where) for p in report.problems}
    assert ("missing chunk", f"{GROUP}/quality/c.1.0.0") in found
    assert ("missing chunk", f"{GROUP}/slitlet/c.0") in found
    ds = mx.open_program(store)[GROUP].to_dataset()  # its slitlets are in the journal too
    with pytest.raises(
        mx.MbkgError, match=r"missing chunk .*quality, chunk c\.1\.0\.0, jw0999900100"
    ):
        ds.quality.load()


def test_litter(store):
    (store / GROUP / "flux" / "c.99.0.0").write_bytes(b"x")
    (store / GROUP / "flux" / "c.0.0.abc.partial").write_bytes(b"x")
    (store / "notes.txt").write_text("mine")
    report = mx.verify(store, deep=False)
    assert {p.kind for p in report.problems} == {"litter"}
    assert len(report.problems) == 3
    # The next ingest clears its own, and leaves what is somebody's.
    file = rp.write_cal(rp.exposure(4), store.parent)
    assert mx.ingest(file, store).accepted
    assert [p.where for p in mx.verify(store).problems] == ["notes.txt"]


def test_a_chunk_in_another_place(store):
    """Each chunk is whole by its checksum, and in the wrong slots."""
    flux = store / GROUP / "flux"
    one, other = (flux / "c.0.0.0").read_bytes(), (flux / "c.2.0.0").read_bytes()
    (flux / "c.0.0.0").write_bytes(other)
    (flux / "c.2.0.0").write_bytes(one)
    assert "digest" in kinds(store)
    assert kinds(store, deep=False) == []


def test_padding_that_is_not_fill(store):
    array = zarr.open(store / GROUP / "flux", mode="r+")
    array[3] = 0.0  # the second exposure's third slit has a chunk to itself and an empty slot
    assert kinds(store) == ["padding"]
    assert mx.verify(store).problems[0].where.endswith(f"{rp.exposure(1).exposure} NRS1")


def test_coordinates_that_differ(store):
    zarr.open(store / GROUP / "slitlet", mode="r+")[1] = 4711
    (problem,) = mx.verify(store, deep=False).problems
    assert (problem.kind, problem.found) == ("coordinates", "4711")
    zarr.open(store / GROUP / "exposure", mode="r+")[0] = "another"
    assert len(mx.verify(store, deep=False).problems) == 2


def test_metadata_that_differ(store):
    path = store / GROUP / "flux" / "zarr.json"
    data = json.loads(path.read_text())
    data["fill_value"] = 0.0
    path.write_text(json.dumps(data))
    (problem,) = mx.verify(store).problems
    assert (problem.kind, problem.where) == ("metadata", f"{GROUP}/flux, fill")
    path.write_text(path.read_text().replace('"float32"', '"float64"'))
    with pytest.raises(mx.MbkgError, match=r"not what it should be.*expected float32"):
        mx.open_program(store)[GROUP].flux.load()
    path.unlink()
    with pytest.raises(mx.MbkgError, match="cannot open an array"):
        mx.open_program(store)[GROUP].flux.load()
    assert {"cannot open an array of the store", "missing metadata"} <= set(kinds(store))


def test_a_damaged_journal(store):
    journal = store / "journal" / "zarr.json"
    size = journal.stat().st_size
    for place in np.random.default_rng(0).integers(0, size, 20):
        good = journal.read_bytes()
        flip(journal, int(place))
        with pytest.raises(mx.MbkgError, match="journal"):
            mx.open_program(store)
        assert not mx.verify(store).ok
        journal.write_bytes(good)
    journal.write_bytes(good[:1000])
    with pytest.raises(mx.MbkgError, match="the store's journal is damaged"):
        mx.open_program(store)


def test_a_held_lock(store):
    with write_lock(store):
        (problem,) = mx.verify(store, deep=False).problems
        assert problem.kind == "locked"
    assert mx.verify(store, deep=False).ok


def test_saved_stores(saved):
    chunk = saved / GROUP / "flux" / "c" / "0" / "0" / "0"
    good = chunk.read_bytes()
    flip(chunk, len(good) // 2)
    assert kinds(saved) == ["damaged chunk"]
    assert kinds(saved, deep=False) == []
    chunk.unlink()
    assert kinds(saved, deep=False) == ["missing chunk"]
    chunk.write_bytes(good)
    (saved / "notes.txt").write_text("mine")
    assert kinds(saved) == ["litter"]
    (saved / "notes.txt").unlink()
    metadata = saved / GROUP / "flux" / "zarr.json"
    metadata.write_text(metadata.read_text()[:-30])
    assert not mx.verify(saved).ok


def test_no_store(tmp_path):
    with pytest.raises(mx.MbkgError, match="not a Zarr store"):
        mx.verify(tmp_path / "none.zarr")
    with pytest.raises(mx.MbkgError, match="cannot open the store"):
        mx.verify(tmp_path)


def test_command(store):
    run = CliRunner().invoke
    done = run(main, ["verify", str(store), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ok"]
    assert said["slits"] == 9
    flip(store / GROUP / "flux" / "c.0.0.0", 50)
    assert run(main, ["verify", str(store), "--quick"]).exit_code == 0
    done = run(main, ["verify", str(store), "--json"])
    assert done.exit_code == 1
    assert "damaged chunk" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["problems"][0]["kind"] == "damaged chunk"
    done = run(main, ["verify", str(store / "none")])
    assert done.exit_code == 2
    assert "error: not a Zarr store" in done.stderr
