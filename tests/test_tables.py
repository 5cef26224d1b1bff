"""Tables by slit in scratch files: the same numbers, and memory that does not grow with them."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pytest

import mbkg_xr as mx
from mbkg_xr import tables

STATUS = Path("/proc/self/status")
MODEL = mx.BSpline(spacing=16, penalty=1e-2)


@pytest.fixture
def in_files(monkeypatch, tmp_path):
    """All tables in files, gone over a few slits at a time."""
    monkeypatch.setattr(tables, "_LARGE", 0)
    monkeypatch.setattr(tables, "LOT", 7)
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        yield tmp_path


def test_what_was_let_go_of_comes_back(in_files):
    table = tables.zeros((1000, 3, 2), np.float32)
    assert table.shape == (1000, 3, 2) and table.dtype == np.float32 and not table.any()
    values = np.random.default_rng(0).random(table.shape).astype(np.float32)
    for lot in tables.lots(1000):
        table[lot] = values[lot]
    tables.let_go()
    np.testing.assert_array_equal(table, values)
    assert not list(in_files.iterdir())  # no name, so nothing is left of it


def test_lots_are_all_slits_once(in_files):
    assert [s for lot in tables.lots(16) for s in range(16)[lot]] == [*range(16)]
    assert not list(tables.lots(0))


def test_small_ones_stay_in_memory():
    tables.zeros((4,))
    before = len(tables._maps)
    assert tables.zeros((10, 2)).base is None and len(tables._maps) == before


def test_a_file_ends_with_its_table(in_files):
    gc.collect()
    before = len(tables._maps)
    table = tables.zeros((100,))
    part = table[3:5]
    del table
    assert len(tables._maps) == before + 1 and part.tolist() == [0, 0]
    del part
    gc.collect()
    assert len(tables._maps) == before


@pytest.mark.parametrize("system", ["with", "without"])
def test_a_full_disk_is_told_and_tables_stay_in_memory(in_files, monkeypatch, system):
    def full(*args):
        raise OSError(28, "No space left on device")

    if system == "with":
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(UserWarning, match="No space left on device.*temporary-directory"):
        table = tables.zeros((100, 2))
    assert table.base is None and not table.any()


def test_other_systems_fill_the_file_first(in_files, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    table = tables.zeros((300_000,))
    table[:] = 3
    assert table.base is not None and float(table.sum()) == 900_000


def test_the_same_fit(in_files, monkeypatch):
    ds = mx.simulate_program(exposures=3, slits=12, background_slits=5, seed=3)
    ds = mx.select_background(ds).persist()
    found = mx.fit_master(ds, model=MODEL)
    monkeypatch.undo()
    expected = mx.fit_master(ds, model=MODEL)
    for name in (
        "polynomial",
        "scale",
        "scale_without_covariance",
        "shutter_level",
        "shutter_used",
    ):
        np.testing.assert_allclose(
            found[name].values.astype(float), expected[name].values.astype(float), rtol=1e-9,
            atol=1e-12,
        )  # fmt: skip


#: Peak memory while the mixed model of some slits is solved whose tables a few slits' are
#: repeated to, in MB above what there was before.
MEASURE = """
import sys
from pathlib import Path
import numpy as np
import xarray as xr
import mbkg_xr as mx
from mbkg_xr import differences, tables
from mbkg_xr.mixed import solve_scales
from mbkg_xr.shutters import ShutterSums

given = []
def solve(*args):
    given[:] = args
    return solve_scales(*args)
differences.solve_scales = solve
ds = mx.select_background(mx.simulate_program(exposures=3, slits=40, background_slits=12))
mx.fit_master(ds, model=mx.BSpline(spacing=16, penalty=1e-2))
sums, slits, phase, shape, options, _ = given
n, few = int(sys.argv[1]), slits.sizes["slit"]

def many(table):
    out = tables.zeros((n, *table.shape[1:]), table.dtype)
    for lot in tables.lots(n):
        out[lot] = table[np.arange(n)[lot] % few]
    return out

sums = ShutterSums(many(sums.weight), many(sums.excess), many(sums.far), None)
slits = slits.drop_vars([name for name, v in slits.variables.items() if v.ndim > 1])
slits = slits.isel(slit=np.arange(n) % few)
visit = (np.arange(n) // few).astype(str)
for name in ("visit", "exposure"):
    slits[name] = ("slit", np.char.add(slits[name].values, visit))
given.clear()
status, before = Path("/proc/self/status"), []
for again in range(2):
    Path("/proc/self/clear_refs").write_text("5")
    before.append(float(status.read_text().split("VmRSS:")[1].split()[0]))
    found = solve_scales(sums, slits, phase, shape, options, found if again else None)
assert found.used.any()
print((float(status.read_text().split("VmHWM:")[1].split()[0]) - before[0]) / 1e3)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
def test_memory_grows_little_with_slits():
    """Of 9 kB a slit 1.5 stay in memory, as the mixed model is solved again."""
    few, many = (
        float(
            subprocess.run(
                [sys.executable, "-c", MEASURE, str(n)], capture_output=True, text=True, check=True
            ).stdout
        )
        for n in (4_800, 24_000)
    )
    a_slit = (many - few) * 1e3 / (24_000 - 4_800)
    assert a_slit < 2.5, f"{few} MB, {many} MB: {a_slit:.2f} kB a slit"
