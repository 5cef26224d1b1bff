"""``mbkg-xr compare``: a stored result again, beside products that were nodded before."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from nodding import write_cal

import mbkg_xr as mx
from mbkg_xr import chain
from mbkg_xr.cli import main
from mbkg_xr.errors import DatasetError
from mbkg_xr.simulate import simulate_program, write_jwst


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def files(folder):
    ds = simulate_program(exposures=3, slits=4, background_slits=2, seed=6).load()
    return write_jwst(ds, folder / "cal")


@pytest.fixture(scope="module")
def nodded(files, folder):
    ds = mx.select_background(mx.open_program(files)["prism-clear"].to_dataset().load())
    return write_cal(files, mx.subtract_nods(ds), folder / "nodded")


@pytest.fixture(scope="module")
def ran(files, nodded, folder):
    """A result, of products with their sky and without."""
    with pytest.warns(UserWarning, match="left out: prism-clear-subtracted, 12 slits"):
        results = chain.run([*files, *nodded], folder / "result.zarr")
    assert list(results) == ["prism-clear"]
    return results["prism-clear"].table


@pytest.fixture(scope="module")
def store(ran, folder):
    return str(folder / "result.zarr")


def command(*args):
    return CliRunner().invoke(main, ["compare", *map(str, args)])


def last(answer):
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout.splitlines()[-1])["prism-clear"]


def same(row, other, tolerance):
    assert row.keys() == other.keys()
    for name, value in row.items():
        assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


def test_the_table_of_a_stored_result_again(store, ran):
    rows = last(command(store, "--json"))
    assert list(rows) == list(ran.index) == ["master", "nods", "heldout"]
    for name, row in rows.items():
        same(row, ran.loc[name].to_dict(), 2e-3)
        assert row["n"] == ran.loc[name].n


def test_beside_nodded_products(store, nodded):
    answer = command(store, "--nods", *nodded, "--json")
    rows = last(answer)
    assert list(rows) == ["master", "nods", "heldout", "given"]
    assert len({row["n"] for row in rows.values()}) == 1
    same(rows["given"], rows["nods"], 2e-3)
    assert "errors of given: as given" in answer.output
    assert last(command(store, "--json", "--nods", nodded[0].parent)) == rows


def test_errors_as_told(store, nodded):
    rows = last(command(store, "--nods", nodded[0].parent, "--nod-errors", "grow", "--json"))
    assert rows["given"]["noise_gain"] > rows["nods"]["noise_gain"] + 0.1


def test_slits_without_partner_are_said(store, ran, nodded):
    answer = command(store, "--nods", nodded[0], "--json")
    assert "warning: 8 of 12 slits of the result have no partner" in answer.stderr
    rows = last(answer)
    assert 0 < rows["given"]["n"] == rows["master"]["n"] < 0.4 * ran.loc["master"].n


def test_products_that_do_not_say_so_are_taken_with_a_warning(store, files, folder):
    ds = mx.open_program(files)["prism-clear"].to_dataset().load()
    quiet = write_cal(files, mx.subtract_nods(ds), folder / "quiet", key=None)
    answer = command(store, "--nods", *quiet, "--json")
    assert "warning: prism-clear: no keyword says that the background" in answer.stderr
    assert last(answer)["given"]["n"] > 1000


def test_products_with_their_sky_are_left_out_beside_others(store, files, nodded):
    answer = command(store, "--nods", *files, *nodded, "--json")
    assert "left out: prism-clear, 12 slits that hold their sky" in answer.stderr
    assert list(last(answer)) == ["master", "nods", "heldout", "given"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["{folder}/nothing.zarr"], "not a Zarr store"),
        (["{folder}/cal"], "not a Zarr store"),
        (["{folder}/plain.zarr"], "no result in this store"),
        (["{store}", "--nods", "{folder}/nothing/*.fits"], "no input files"),
        (["{store}", "--nods", "{folder}/other"], "products of other configurations"),
        (["{store}", "--nips-layout", "{folder}/no.toml", "--nods", "{folder}/nodded"], "no.toml"),
    ],
)
def test_errors_are_one_line(args, words, store, nodded, folder):
    if not (folder / "plain.zarr").exists():
        ds = mx.open_program(nodded)["prism-clear-subtracted"].to_dataset()
        mx.save(ds, folder / "plain.zarr")
        other = simulate_program(exposures=1, slits=1, background_slits=1, grating="G395M")
        write_jwst(other, folder / "other")
    answer = command(*(a.format(store=store, folder=folder) for a in args))
    assert answer.exit_code == 2
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error")]
    assert words in line


def test_run_refuses_products_without_their_sky(nodded, tmp_path):
    answer = CliRunner().invoke(
        main, ["run", *map(str, nodded), "--out", str(tmp_path / "no.zarr")]
    )
    assert answer.exit_code == 2 and "--steps.bkg_subtract.skip=true" in answer.stderr
    with pytest.raises(DatasetError, match="already subtracted"):
        chain.run(nodded, tmp_path / "no.zarr")
    assert not list(tmp_path.iterdir())


def test_numbers_of_the_library_are_those_of_the_command(store, nodded):
    result = mx.open_program(store)["prism-clear"].to_dataset()
    given = mx.residuals(mx.open_program(nodded)["prism-clear-subtracted"].to_dataset())
    table = mx.compare(result, given=given)
    rows = last(command(store, "--nods", *nodded, "--json"))
    assert np.isclose(table.loc["given"]["mad_sigma"], rows["given"]["mad_sigma"], atol=0.01)
