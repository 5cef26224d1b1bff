"""What a run takes is said before it begins, and refused where it is too much."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.chain import run_tree
from mbkg_xr.cli import main
from mbkg_xr.errors import ParameterError
from mbkg_xr.memory import check_memory, parse_bytes


def _program(exposures, chunks=8):
    return mx.simulate_program(exposures=exposures, slits=16, background_slits=4, chunks=chunks)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4e9), ("4 gb", 4e9), ("1GiB", 2**30), ("800m", 8e8), ("1e9", 1e9), (17, 17)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 apples", "0"])
def test_no_sizes(text):
    with pytest.raises(ParameterError, match="not an amount of memory"):
        parse_bytes(text)


def test_grows_with_chunks_and_not_with_exposures(compute_nothing):
    few, many = (mx.predict_memory(_program(n)) for n in (2, 40))
    assert few.working == many.working
    wide = mx.predict_memory(_program(40, chunks=32))
    assert wide.working == pytest.approx(4 * many.working, rel=0.01)
    # Tables by slit are all that grows without limit: a part of what is kept of the pixels.
    assert many.slits / many.kept < 0.25


def test_too_much_is_refused_before_anything_is_done(tmp_path, compute_nothing):
    ds = _program(40)
    need = mx.predict_memory(ds, memory=1)
    with pytest.raises(ParameterError, match=r"more memory than allowed.*--memory") as caught:
        run_tree({"prism-clear": ds}, tmp_path / "r.zarr", memory=need.total - 10**6)
    assert "--chunks" in str(caught.value) or "threads" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path):
    store, out = tmp_path / "p.zarr", tmp_path / "r.zarr"
    mx.save(_program(2), store)
    args = ["run", str(store), "--out", str(out), "--model", "logpoly"]
    done = CliRunner().invoke(main, [*args, "--memory", "10MB"])
    assert done.exit_code == 2 and "more memory than allowed" in done.output
    assert not out.exists()
    done = CliRunner().invoke(main, [*args, "--memory", "4GB", "--chunks", "8"])
    assert done.exit_code == 0, done.output
    assert "memory: at most" in done.output


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("options", [{"slits": 60}, {"slits": 12, "grating": "G395M"}])
def test_a_run_keeps_to_what_was_predicted(options, tmp_path):
    """The whole of it, kernels, nods and held-out masters included, in a process of its own."""
    code = f"""
from pathlib import Path
import dask, mbkg_xr as mx
from mbkg_xr.chain import run_tree
dask.config.set(num_workers=2)
ds = mx.simulate_program(exposures=8, background_slits=4, **{options!r})
predicted = mx.predict_memory(ds)
run_tree({{"a": ds}}, {str(tmp_path / "r.zarr")!r})
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(int(peak) * 1024, predicted.total)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    peak, predicted = map(int, done.stdout.split()[-2:])
    assert predicted / 3 < peak < predicted


def test_longer_spectra_and_a_drift_take_more():
    """What a pass adds up goes by spans, and by the products of times; tables lie in files."""
    prism, grating = (
        mx.predict_memory(mx.simulate_program(exposures=4, slits=4, background_slits=2, grating=g))
        for g in ("PRISM", "G140H")
    )
    assert grating.sums > 5 * prism.sums and grating.slits == prism.slits
    ds = _program(4)
    assert mx.predict_memory(ds, drift=mx.Drift(2)).sums > 3 * mx.predict_memory(ds).sums
    lies_here = mx.predict_memory(ds.compute())
    assert lies_here.data == ds.nbytes and "the data" in str(lies_here)


def test_what_is_advised_is_accepted():
    ds = _program(40, chunks=64)
    limit = mx.predict_memory(ds, memory=1).total - 20 * 10**6
    with pytest.raises(ParameterError, match="--chunks") as caught:
        check_memory({"a": ds}, limit)
    fewer = int(re.search(r"--chunks (\d+)", str(caught.value))[1])
    check_memory({"a": ds.chunk({"slit": fewer})}, limit)
