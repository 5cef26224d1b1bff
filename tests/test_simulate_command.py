"""``mbkg-xr simulate``: the same programme in three formats, and the same master from each."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.cli import main
from mbkg_xr.schema import SLIT_COORDS

FORMATS = ("jwst", "nips", "zarr")
SMALL = ("--slits", "2", "--background-slits", "1", "--exposures", "1")


def simulate(*options):
    return CliRunner().invoke(main, ["simulate", *map(str, options)])


def in_order(ds):
    return ds.isel(slit=np.lexsort((ds.slitlet, ds.detector, ds.exposure)))


@pytest.fixture(scope="module")
def truth():
    ds = mx.simulate_program(
        exposures=3,
        slits=6,
        background_slits=2,
        detectors=("NRS1", "NRS2"),
        n_shutters={1: 1, 2: 1, 3: 3, 5: 1},
        seed=3,
    )
    return in_order(ds.compute())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The programme as each format, by the command line."""
    out = {}
    for form in FORMATS:
        out[form] = tmp_path_factory.mktemp("simulated") / form
        done = simulate(
            *("--out", out[form], "--format", form, "--seed", 3, "--exposures", 3),
            *("--slits", 6, "--background-slits", 2, "--detectors", "NRS1", "NRS2"),
            *("--shutters", "1:1,2:1,3:3,5:1"),
        )
        assert done.exit_code == 0, done.output
        assert "36" in done.stdout and form in done.stdout and "prism-clear" in done.stdout
    return out


@pytest.fixture(scope="module")
def opened(folders):
    return {
        form: in_order(mx.open_program(folder)["prism-clear"].to_dataset().load())
        for form, folder in folders.items()
    }


@pytest.fixture(scope="module")
def ran(folders):
    """Result and scores of the whole chain on each directory."""
    out = {}
    for form, folder in folders.items():
        store = folder.with_name(f"result_{form}.zarr")
        done = CliRunner().invoke(main, ["run", str(folder), "--out", str(store), "--json"])
        assert done.exit_code == 0, done.output
        out[form] = (mx.open_program(store), json.loads(done.stdout.splitlines()[-1]))
    return out


# What is said of products, and not of slits.
OF_PRODUCTS = ("filename", "path", "sky_reason", "calibrated_as", "calibration")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", [n for n in SLIT_COORDS if n not in OF_PRODUCTS])
def test_coordinates_agree(opened, truth, form, name):
    np.testing.assert_array_equal(opened[form][name].values, truth[name].values)


def test_results_hold_the_ranges_of_slits(ran):
    for tree, _ in ran.values():
        ds = tree["prism-clear"].to_dataset()
        for name in ("wavelength", "yrel"):
            values = ds[name].values
            np.testing.assert_array_equal(ds[f"{name}_min"], np.nanmin(values, axis=(1, 2)))
            np.testing.assert_array_equal(ds[f"{name}_max"], np.nanmax(values, axis=(1, 2)))


def test_sky_slits_are_known(opened):
    for ds in opened.values():
        named = np.char.find(ds.source_name.values.astype(str), "BKG") >= 0
        assert np.array_equal(ds.is_background, named) and ds.is_background.values.sum() == 12
        assert np.array_equal(np.isnan(ds.source_shutter), named)


@pytest.mark.parametrize("form", FORMATS)
def test_pixels_agree(opened, truth, form):
    ds = opened[form]
    usable = (truth.quality.values & 1) == 0
    for name in ("flux", "error", "wavelength"):
        np.testing.assert_allclose(ds[name].values[usable], truth[name].values[usable], rtol=2e-7)
    np.testing.assert_allclose(ds.yrel, truth.yrel, atol=1e-6)
    tolerance = 3e-7 * truth.error.values[usable] ** 2
    for name in ("var_rnoise", "var_poisson"):
        difference = ds[name].values[usable] - truth[name].values[usable]
        assert (abs(difference) <= tolerance).all()
    assert ds.flux.attrs["units"] == "MJy/sr"
    assert (form == "zarr") == ("true_background" in ds)


def test_masters_agree(ran):
    masters = {form: tree["prism-clear/master"].to_dataset() for form, (tree, _) in ran.items()}
    low, high = masters["zarr"].attrs["wavelength_range"]
    wavelength = np.linspace(low + 0.005, high - 0.005, 5000)
    sky = {form: np.asarray(mx.evaluate(m, wavelength)) for form, m in masters.items()}
    assert np.isfinite(sky["zarr"]).all()
    for form in FORMATS:
        np.testing.assert_allclose(sky[form] / sky["zarr"], 1, rtol=0, atol=1e-6)
        assert masters[form].attrs["n_pixels"] == masters["zarr"].attrs["n_pixels"]


def test_scores_agree(ran):
    expected = ran["zarr"][1]["prism-clear"]
    for _, scores in ran.values():
        for row, values in expected.items():
            for name, value in values.items():
                assert scores["prism-clear"][row][name] == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_what_is_written(folders):
    assert len(list(folders["jwst"].glob("*_cal.fits"))) == 6
    assert len(list(folders["jwst"].glob("*_msa.fits"))) == 1
    assert [p.name for p in folders["zarr"].iterdir()] == ["program.zarr"]
    for path in folders["nips"].iterdir():
        with fits.open(path) as hdus:
            there = {h.name[-1] for h in hdus[1:]}
            for suffix in "12":
                size = hdus[0].header[f"NX49{suffix}"], hdus[0].header[f"NY49{suffix}"]
                expected = hdus["DATA" + suffix].shape[::-1] if suffix in there else (0, 0)
                assert size == expected


# ------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    ("options", "detectors"),
    [
        (["--detectors", "NRS1", "NRS2", "--seed", "1"], {"NRS1", "NRS2"}),
        (["--seed", "1", "--detectors", "NRS2", "NRS1"], {"NRS1", "NRS2"}),
        (["--detectors", "NRS1", "--detectors", "NRS2"], {"NRS1", "NRS2"}),
        (["--detectors=NRS1", "nrs2"], {"NRS1", "NRS2"}),
        (["--detectors", "nrs1,nrs2"], {"NRS1", "NRS2"}),
        (["--detectors", "NRS2"], {"NRS2"}),
        ([], {"NRS1"}),
    ],
)
def test_detectors(tmp_path, options, detectors):
    done = simulate("--out", tmp_path, "--format", "zarr", *SMALL, *options)
    assert done.exit_code == 0, done.output
    ds = mx.open_program(tmp_path)["prism-clear"].to_dataset()
    assert set(ds.detector.values) == detectors


def test_options_reach_the_simulator(tmp_path):
    table = tmp_path / "sky.csv"
    table.write_text("wave,flux\n0.5,0.2\n1,0.2\n3,0.2\n6,0.2\n")
    done = simulate(
        *("--out", tmp_path, "--format", "zarr", *SMALL, "--visits", 2, "--nods", 5),
        *("--grating", "G235M", "--sky", table, "--shutters", 5, "--outlier-fraction", 0),
        *("--sky-drift", 0, "--exposure-time", 100, "--seed", 9, "--calibration", "point"),
    )
    assert done.exit_code == 0, done.output
    ds = mx.open_program(tmp_path)["g235m-f170lp"].to_dataset()
    assert ds.attrs["seed"] == 9 and set(ds.n_shutters.values) == {5}
    assert len(np.unique(ds.visit)) == 2 and set(ds.exposure_time.values) == {100}
    assert not ds.outlier.values.any() and "response" in ds.coords
    np.testing.assert_allclose(ds.true_sky.values[np.isfinite(ds.flux.values)], 0.2, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--slits", 3, "--background-slits", 5), ("more background slits than slits", "found 5")),
        (("--read-noise", -1), ("read_noise", "found -1")),
        (("--grating", "G999Z"), ("unknown disperser", "PRISM", "found G999Z")),
        (("--filter", "F999W"), ("F999W", "CLEAR")),
        (("--exposures", 0), ("exposures", "at least 1")),
        (("--nods", 4), ("nods", "found 4")),
        (("--detectors", "NRS1", "NRS3"), ("detectors", "NRS3")),
        (("--shutters", "4"), ("n_shutters", "found 4")),
        (("--shutters", "1:half"), ("--shutters", "found 1:half")),
        (("--sky", "moonlight"), ("unknown sky", "moonlight", "ceers")),
        (("--signal-to-noise", "nan"), ("signal_to_noise", "found nan")),
        (("--format", "nips", "--calibration", "POINT"), ("point sources", "EXTENDED")),
    ],
)
def test_bad_parameters(tmp_path, options, words):
    out = tmp_path / "out"
    done = simulate("--out", out, *options)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not out.exists()


def test_a_table_that_is_no_sky(tmp_path):
    table = tmp_path / "sky.csv"
    table.write_text("one\nword\na line\n")
    done = simulate("--out", tmp_path / "out", "--sky", table)
    assert done.exit_code == 2
    assert "error: unreadable table of the sky" in done.stderr and "sky.csv" in done.stderr


def test_nothing_is_overwritten_unasked(tmp_path):
    assert simulate("--out", tmp_path, "--format", "nips", *SMALL).exit_code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for form in FORMATS:
        done = simulate("--out", tmp_path, "--format", form, *SMALL, "--seed", 1)
        assert done.exit_code == 2
        assert "holds products already" in done.stderr and "--overwrite" in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    options = ("--out", tmp_path, "--format", "nips", "--overwrite")
    done = simulate(*options, *SMALL, "--seed", 1)
    assert done.exit_code == 0 and "belong to another" not in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} != before
    # What an earlier programme leaves behind would be opened with this one: it says so.
    done = simulate(*options, "--slits", 1, "--background-slits", 1, "--exposures", 1)
    assert done.exit_code == 0 and "belong to another programme" in done.stderr


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("here")
    for form in FORMATS:
        done = simulate("--out", tmp_path / "file" / "x", "--format", form, *SMALL)
        assert done.exit_code == 2, done.output
        assert "error: cannot write here" in done.stderr and "Traceback" not in done.output


# ------------------------------------------------------------------------------------------------
# Directories that hold stores


def test_a_directory_of_one_store(tmp_path):
    ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    mx.save(ds, tmp_path / "a.zarr")
    (tmp_path / "notes.txt").write_text("beside it")
    assert list(mx.open_program(tmp_path).children) == ["prism-clear"]
    mx.save(ds, tmp_path / "b.zarr")
    with pytest.raises(mx.MbkgError, match=r"several Zarr stores .*a\.zarr, b\.zarr"):
        mx.open_program(tmp_path)
    with pytest.raises(mx.MbkgError, match="no input files"):
        (tmp_path / "empty").mkdir()
        mx.open_program(tmp_path / "empty")


def test_products_count_before_a_store_beside_them(folders, tmp_path):
    path = next(folders["nips"].glob("*.fits"))
    (tmp_path / path.name).write_bytes(path.read_bytes())
    mx.save(mx.simulate_program(exposures=1, slits=2, background_slits=1), tmp_path / "a.zarr")
    opened = mx.open_program(tmp_path)["prism-clear"].to_dataset()
    assert set(opened.filename.values) == {path.name}
