"""`mx.info` and ``mbkg-xr info``: what a programme holds, held to what it does hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner
from conftest import REAL

import mbkg_xr as mx
from mbkg_xr.cli import main
from mbkg_xr.errors import DatasetError
from mbkg_xr.quality import JWST_FLAGS
from mbkg_xr.simulate import simulate_program, write_jwst, write_nips


@pytest.fixture(scope="module")
def programme():
    return simulate_program(
        exposures=3,
        slits=4,
        background_slits=1,
        detectors=("NRS1", "NRS2"),
        calibration="POINT",
        n_shutters={1: 1, 3: 2},
        seed=4,
    ).compute()


@pytest.fixture(scope="module")
def folder(programme, tmp_path_factory):
    folder = tmp_path_factory.mktemp("programme")
    write_jwst(programme, folder)
    return folder


def run(*arguments):
    done = CliRunner().invoke(main, ["info", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def test_of_simulated_products(programme, folder):
    found = mx.info(folder, flags=True)
    one = found.summary["prism-clear"]
    n = programme.sizes["slit"]
    assert (one["exposures"], one["slits"], one["slitlets"]) == (3, n, n // 3)
    assert one["programs"] == ["09999"] and one["visits"] == ["09999001001"]
    assert one["detectors"] == ["NRS1", "NRS2"] and one["nods"] == [1, 2, 3]
    sky = programme.is_background.values
    assert one["sky_slits"] == sky.sum()
    assert one["sky_slitlets"] == sky.sum() // 3
    shutters = programme.n_shutters.values
    assert one["sky_shutters"] == shutters.sum() - (~sky).sum()
    assert one["unknown_slits"] == ((shutters == 1) & ~sky).sum()
    assert one["units"] == "MJy/sr"
    assert one["calibrated_as"] == {"POINT": int((~sky).sum()), "EXTENDED": int(sky.sum())}
    assert one["subtracted"] == {} and one["notes"] == [] and one["result"] == ""
    assert "S_BARSHA COMPLETE" in one["calibration_steps"]
    assert one["sky_reason"] == {
        "metafile: source": int((~sky).sum()),
        "metafile: every shutter background": int(sky.sum()),
    }
    low, high = (float(f(programme.wavelength)) for f in (np.nanmin, np.nanmax))
    assert one["wavelength"] == pytest.approx([low, high], abs=0.03)
    # Flags by numpy.
    inside = np.isfinite(programme.wavelength.values)
    quality = programme.quality.values[inside]
    assert one["flags"].pop("pixels in slits") == inside.sum()
    assert one["flags"].pop("of them flagged") == np.count_nonzero(quality)
    assert one["flags"] == {
        name: int(np.count_nonzero(quality & bit))
        for name, bit in JWST_FLAGS.items()
        if np.any(quality & bit)
    }
    table = found.slits["prism-clear"]
    assert len(table) == n and table.sky_reason.str.startswith("metafile: ").all()


def test_without_flags_only_wavelengths_are_read(folder, monkeypatch):
    from mbkg_xr.io import jwst

    read = []
    planes = jwst._planes
    monkeypatch.setattr(jwst, "_planes", lambda s, v: read.append((len(s), v)) or planes(s, v))
    found = mx.info(folder)
    assert found.summary["prism-clear"]["flags"] is None
    assert {variable for _, variable in read} <= {"wavelength"}


def test_of_real_slitlets(real_files):
    found = mx.info(real_files)
    one = found.summary["prism-clear"]
    assert (one["exposures"], one["slits"], one["slitlets"], one["sky_slits"]) == (3, 3, 1, 0)
    assert (one["sky_shutters"], one["unknown_slits"]) == (6, 0)
    assert one["shape"] == [25, 341] and one["sky_reason"] == {"shutter state": 3}
    assert one["wavelength"] == pytest.approx([1.345, 5.382], abs=0.01)
    assert found.slits["prism-clear"].source_shutter.tolist() == [0, -1, 1]
    assert mx.info(real_files, sky=[138]).summary["prism-clear"]["sky_slits"] == 3


def test_of_nips_a_tree_and_a_store(tmp_path):
    ds = simulate_program(exposures=1, slits=3, background_slits=1, seed=6).compute()
    write_nips(ds, tmp_path / "nips")
    mx.save({"prism-clear": ds}, tmp_path / "p.zarr")
    tree = mx.open_program(tmp_path / "p.zarr")
    expected = {"exposures": 1, "slits": 3, "sky_slits": 1, "sky_shutters": 7}
    for data in (tmp_path / "nips", tmp_path / "p.zarr", tree, {"prism-clear": ds}):
        one = mx.info(data).summary["prism-clear"]
        assert {k: one[k] for k in expected} == expected
    with pytest.raises(DatasetError, match="no slits"):
        mx.info({})


def test_of_a_result(program, master, tmp_path):
    sub = mx.subtract(mx.select_background(program), master)
    mx.save({"prism-clear": sub, "prism-clear/master": master}, tmp_path / "r.zarr")
    found = mx.info(tmp_path / "r.zarr")
    assert list(found.summary) == ["prism-clear"]
    assert found.summary["prism-clear"]["result"] == "master"


def test_notes(real_files, tmp_path):
    for i, path in enumerate(real_files[:2]):
        with fits.open(path) as hdus:
            hdus[0].header["S_PXREPL"] = "COMPLETE"
            hdus[0].header["S_BKDSUB"] = "COMPLETE" if i else "SKIPPED"
            hdus.writeto(tmp_path / path.name)
    found = mx.info(tmp_path, flags=True).summary
    before, after = found["prism-clear"], found["prism-clear-subtracted"]
    assert (before["subtracted"], after["subtracted"]) == ({}, {"S_BKDSUB": 1})
    assert after["notes"][0].startswith("the background of 1 slits is already subtracted")
    assert len(before["notes"]) == 1 and "no pixel is flagged FLUX_ESTIMATED" in before["notes"][0]
    assert "S_BKDSUB COMPLETE" in after["calibration_steps"]


def test_the_command(folder):
    text = run(folder, "--slits", "--flags")
    for word in (
        "09999001001",
        "MJy/sr",
        "sky shutters",
        "DO_NOT_USE",
        "metafile: source",
        "POINT",
    ):
        assert word in text, text
    data = json.loads(run(folder, "--json", "--slits").splitlines()[-1])
    assert data["prism-clear"]["slits"] == len(data["prism-clear"]["table"])
    assert data["prism-clear"]["flags"] is None
    assert "NaN" not in run(folder, "--json", "--slits")


def test_options_of_opening(folder, programme, tmp_path):
    sky = int(programme.slitlet[programme.is_background][0])
    text = run(folder, "--json", "--sky", str(sky))
    assert json.loads(text)["prism-clear"]["sky_slits"] == 3
    (tmp_path / "sky.csv").write_text(f"slitlet,is_background\n{sky},no\n")
    text = run(folder, "--json", "--sky", tmp_path / "sky.csv")
    assert json.loads(text)["prism-clear"]["sky_slits"] == programme.is_background.sum() - 3
    given = next(folder.glob("*_msa.fits"))
    run(folder, "--metafile", given, "--virtual-sky", "--accept", "S_FLAT")
    for wrong in (["--sky", "4711"], ["--sky", "no.csv"], ["--accept", "S_X"], ["--metafile", "x"]):
        done = CliRunner().invoke(main, ["info", str(folder), *wrong])
        assert done.exit_code == 2 and done.stderr.strip().startswith("error: "), done.output
    done = CliRunner().invoke(
        main, ["run", str(folder), "--sky", "4711", "--out", str(tmp_path / "r.zarr")]
    )
    assert done.exit_code == 2 and "not in the products" in done.stderr


def test_bad_files_are_passed_over_on_request(folder, tmp_path):
    (tmp_path / "bad.fits").write_bytes(b"nothing")
    cal = next(folder.glob("*_cal.fits"))
    done = CliRunner().invoke(main, ["info", str(tmp_path / "bad.fits"), str(cal)])
    assert done.exit_code == 2 and "bad.fits" in done.stderr
    text = run(tmp_path / "bad.fits", cal, "--skip-bad-files")
    assert "left out" in text and "MJy/sr" in text


@pytest.mark.skipif(not (REAL.parent / "nips").is_dir(), reason="no real NIPS file at ../shared")
def test_of_the_real_nips_file():
    found = mx.info(REAL.parent / "nips", flags=True).summary["g140m-opaque"]
    assert (found["slits"], found["units"], found["unknown_slits"]) == (1, "ct s-1", 1)
    assert found["flags"]["pixels in slits"] > found["flags"]["of them flagged"] > 0
