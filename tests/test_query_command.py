"""``mbkg-xr query``: the numbers of the library, on terminals and in files."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.cli import main


@pytest.fixture(scope="module")
def result(program):
    return mx.residuals(mx.subtract_nods(program)).compute()


@pytest.fixture(scope="module")
def store(result, tmp_path_factory):
    """Nodded results of two configurations."""
    path = tmp_path_factory.mktemp("query") / "r.zarr"
    other = mx.simulate_program(exposures=3, slits=2, background_slits=1, grating="G395M", seed=2)
    other = mx.residuals(mx.subtract_nods(other))
    mx.save({"prism-clear": result, other.attrs["configuration"]: other}, path)
    return path


def ask(*arguments, code: int = 0):
    done = CliRunner().invoke(main, ["query", *map(str, arguments)])
    assert done.exit_code == code, done.output + done.stderr
    return done


def last(done):
    return json.loads(done.stdout.splitlines()[-1])


def test_a_table(store, result):
    done = ask(
        store, "--wavelength", 1.0, 1.1, "--yrel", -0.2, 0.2, "--yrel", 0.8, 1.2, "--by", "slitlet",
        "--stat", "mad_sigma", "--json", "--configuration", "prism-clear",
    )  # fmt: skip
    expected = mx.summarize(
        result, by="slitlet", wavelength=(1.0, 1.1), yrel=[(-0.2, 0.2), (0.8, 1.2)]
    )
    rows = last(done)["prism-clear"]["slitlet"]
    assert [r["slitlet"] for r in rows] == expected.slitlet.values[expected.n > 0].tolist()
    np.testing.assert_allclose(
        [r["mad_sigma"] for r in rows], expected.mad_sigma.values[expected.n > 0]
    )
    assert "mad_sigma" in done.stdout and "centres of sky shutters" in done.stdout


def test_several_tables_of_several_configurations(store, result):
    done = ask(
        store, "--by", "nod,wavelength", "--by", "quadrant", "--bins", "wavelength=1,2,3,5",
        "--select", "nod=1..2", "--sort", "std", "--json",
    )  # fmt: skip
    said = last(done)
    assert sorted(said) == ["g395m-f290lp", "prism-clear"]
    rows = pd.DataFrame(said["prism-clear"]["nod_wavelength"])
    assert (np.diff(rows["std"]) <= 0).all() and len(rows) == 6
    expected = mx.summarize(
        result, by=("nod", "wavelength"), bins={"wavelength": [1, 2, 3, 5]}, nod=(1, 2)
    )
    assert rows.n.sum() == int(expected.n.sum())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_in_files(store, tmp_path, kind):
    out = tmp_path / f"t.{kind}"
    ask(store, "--by", "nod", "--stat", "n", "--stat", "std", "--out", out)
    table = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    assert list(table) == ["configuration", "nod", "n", "std"] and len(table) == 6
    ask(store, "--by", "nod", "--out", out, code=2)
    ask(store, "--by", "nod", "--out", out, "--overwrite")


def test_points_in_files(store, result, tmp_path):
    done = ask(
        store, "--wavelength", 3.0, 3.1, "--quality", "good", "--select", "residual=3..,..-3",
        "--columns", "slitlet,wavelength,residual", "--out", tmp_path / "p.csv", "--json",
    )  # fmt: skip
    said = last(done)
    assert said["prism-clear"]["file"].endswith("p_prism-clear.csv")
    table = pd.read_csv(said["prism-clear"]["file"])
    points = mx.query(
        result, wavelength=(3.0, 3.1), quality="good", residual=[(3, None), (None, -3)]
    )
    np.testing.assert_allclose(table.residual, points.compute().residual, rtol=1e-6)
    assert list(table) == ["slitlet", "wavelength", "residual"]
    assert said["prism-clear"]["points"] == len(table) > 0


def test_products_and_programmes(program, tmp_path):
    """Slits that hold their sky have fluxes."""
    mx.save(program, tmp_path / "p.zarr")
    done = ask(tmp_path / "p.zarr", "--by", "is_background", "--json", "--sky-slits")
    (row,) = last(done)["prism-clear"]["is_background"]
    expected = mx.summarize(program, of="flux", is_background=True)
    assert row["median"] == pytest.approx(float(expected["median"])) and row["is_background"]


def test_real_files(real_files, real):
    done = ask(*real_files, "--wavelength", 2.0, 2.5, "--pixels", "good", "--by", "nod", "--json")
    rows = last(done)["prism-clear"]["nod"]
    mask = (real.wavelength >= 2.0) & (real.wavelength <= 2.5) & ((real.quality & 1) == 0)
    mask &= np.isfinite(real.flux)
    assert [r["n"] for r in rows] == mask.sum(("y", "x")).values.tolist()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "quadrnt"], "unknown coordinate 'quadrnt'"),
        (["--wavelength", "1.1", "1.0"], "low <= high"),
        (["--select", "nod"], "NAME=VALUES"),
        (["--select", "nod=one"], "LOW..HIGH"),
        (["--select", "nods=1"], "unknown coordinate 'nods'"),
        (["--bins", "wavelength=few"], "no number of bins"),
        (["--exposure", "nowhere"], "nothing found"),
        (["--configuration", "g140m-f100lp"], "no such configuration"),
        (["--out", "t.txt"], "a name in .csv or .parquet"),
        (["--out", "t.csv", "--by", "nod", "--by", "quadrant"], "one table"),
        (["--out", "t.csv", "--columns", "fluxx"], "no column 'fluxx'"),
    ],
)
def test_errors_are_one_line(store, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ask(store, *arguments, code=2)
    assert said in done.stderr and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []
