"""What a run takes is said before it begins, and refused where it is too much."""

import pytest
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.chain import run_tree
from mbkg_xr.cli import main
from mbkg_xr.errors import ParameterError
from mbkg_xr.memory import parse_bytes


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
