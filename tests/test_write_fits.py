"""Results handed back as FITS: what changes, what keeps its bytes, and what is refused."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import any_bits, jwst_product, nips_product, templates

import mbkg_xr as mx
from mbkg_xr.cli import main
from mbkg_xr.errors import (
    DatasetError,
    InputFileError,
    InputFilesError,
    ParameterError,
    StoreError,
)
from mbkg_xr.io import write, write_copies
from mbkg_xr.quality import NIPS_FLAGS
from mbkg_xr.simulate import CLEAN, simulate_program, write_jwst, write_nips

DATE = "2026-01-02T03:04:05"
CHANGED = {
    "jwst": {"PRIMARY", "SCI", "ERR", "DQ", "VAR_POISSON"},
    "nips": {"PRIMARY", *(f"{n}{s}" for n in ("DATA", "VAR", "QUALITY") for s in "12")},
}


def hdu_bytes(path):
    """Name, version, header and data of each HDU, as bytes."""
    raw = Path(path).read_bytes()
    with fits.open(path) as hdus:
        infos = [(h.name, h.ver, h.fileinfo()) for h in hdus]
    return {
        (name, version): (
            raw[i["hdrLoc"] : i["datLoc"]],
            raw[i["datLoc"] : i["datLoc"] + i["datSpan"]],
        )
        for name, version, i in infos
    }


def pairs(products, copies):
    """Products and their copies, which come in the order of the slits."""
    by_name = {c.name: c for c in copies}
    assert by_name.keys() == {p.name for p in products} and len(copies) == len(products)
    return [(path, by_name[path.name]) for path in products]


def opened(paths):
    (node,) = mx.open_program(paths).children.values()
    return node.to_dataset()


@pytest.fixture(scope="module")
def simulated():
    return simulate_program(
        exposures=2,
        slits=5,
        background_slits=3,
        detectors=("NRS1", "NRS2"),
        n_shutters={1: 1, 3: 3},
        seed=2,
    ).compute()


@pytest.fixture(scope="module", params=["jwst", "nips"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def products(kind, simulated, tmp_path_factory):
    write_products = {"jwst": write_jwst, "nips": write_nips}[kind]
    paths = write_products(simulated, tmp_path_factory.mktemp(kind) / "in")
    return [p for p in paths if "msa" not in p.name]


@pytest.fixture(scope="module")
def programme(products):
    return mx.select_background(opened(products)).load()


@pytest.fixture(scope="module")
def sky(programme):
    return mx.fit_master(programme)


@pytest.fixture(scope="module")
def result(programme, sky):
    return mx.subtract(programme, sky)


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    return mx.write_fits(result, tmp_path_factory.mktemp("written") / "out", date=DATE)


# ------------------------------------------------------------------------------------------------
# Lossless


@pytest.fixture(scope="module")
def jwst_templates(tmp_path_factory):
    return templates(tmp_path_factory.mktemp("templates"), 3)


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
ON_DETECTORS = st.dictionaries(st.sampled_from("12"), SIZES, min_size=1)
SEEDS = st.integers(0, 2**32)
RAGGED = settings(max_examples=8, deadline=None, derandomize=True)


def there_and_back(paths, folder):
    """FITS -> store -> FITS; the store's dataset."""
    report = mx.ingest(paths, folder / "p.zarr")
    assert len(report.accepted) == len(paths)
    again = mx.open_program(folder / "p.zarr")
    for path, copy in pairs(paths, mx.write_fits(again, folder / "out")):
        assert copy.read_bytes() == path.read_bytes()
    return next(iter(again.children.values())).to_dataset()


@RAGGED
@given(seed=SEEDS, files=st.lists(st.lists(SIZES, min_size=1, max_size=3), min_size=1, max_size=3))
def test_random_cal_files_come_back_byte_by_byte(jwst_templates, seed, files):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [
            jwst_product(folder / f"in/{i}_cal.fits", rng, shapes, jwst_templates[len(shapes)], i)
            for i, shapes in enumerate(files, 1)
        ]
        ds = there_and_back(paths, folder)
        # Flags and whatever is not NaN are the file's in the store too.
        with fits.open(paths[0]) as hdus:
            ny, nx = hdus["SCI", 1].shape
            np.testing.assert_array_equal(ds.quality[0, :ny, :nx], hdus["DQ", 1].data)
            np.testing.assert_array_equal(ds.flux[0, :ny, :nx], hdus["SCI", 1].data)


@RAGGED
@given(seed=SEEDS, shape=SIZES)
def test_random_single_slits_come_back_byte_by_byte(jwst_templates, seed, shape):
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(seed)
        path = jwst_product(folder / "in/a.fits", rng, [shape], jwst_templates[None], 1)
        there_and_back([path], folder)


@RAGGED
@given(seed=SEEDS, files=st.lists(ON_DETECTORS, min_size=1, max_size=3))
def test_random_nips_files_come_back_byte_by_byte(seed, files):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [
            nips_product(folder / f"in/{i}.fits", rng, shapes, i)
            for i, shapes in enumerate(files, 1)
        ]
        there_and_back(paths, folder)


@RAGGED
@given(seed=SEEDS, shape=SIZES)
def test_what_changed_in_the_dataset_and_only_that_changes_in_the_file(jwst_templates, seed, shape):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = jwst_product(folder / "in/a.fits", rng, [shape], jwst_templates[1], 1)
        ds = opened([path]).load()
        flags, chosen = any_bits(rng, (1, *shape)), rng.random((1, *shape)) < 0.3
        ds = ds.assign_coords(quality=ds.quality.copy(data=np.where(chosen, flags, ds.quality)))
        ds = ds.assign(flux=ds.flux.where(~chosen, np.float32(1.5)))
        (copy,) = mx.write_fits(ds, folder / "out")
        before, after = hdu_bytes(path), hdu_bytes(copy)
        assert {k for k in before if before[k] != after[k]} <= {("SCI", 1), ("DQ", 1)}
        with fits.open(path) as old, fits.open(copy) as new:
            np.testing.assert_array_equal(new["DQ"].data, ds.quality[0])
            bits = (h["SCI"].data.astype("f4").view("u4") for h in (old, new))
            np.testing.assert_array_equal(*(np.where(chosen[0], 0, b) for b in bits))
            assert (new["SCI"].data[chosen[0]] == 1.5).all()


def test_an_opened_programme_is_written_as_it_was(products, tmp_path):
    for path, copy in pairs(products, mx.write_fits(opened(products), tmp_path / "out")):
        assert copy.read_bytes() == path.read_bytes()


def test_the_real_slitlets_come_back(real_files, tmp_path):
    for path, copy in pairs(
        real_files, mx.write_fits(mx.open_program(real_files), tmp_path / "out")
    ):
        assert copy.read_bytes() == path.read_bytes()


# ------------------------------------------------------------------------------------------------
# What a result changes


def test_names_and_place(products, written):
    assert len(pairs(products, written)) == len(products)
    assert len(list(written[0].parent.iterdir())) == len(written)


def test_all_other_extensions_are_bit_identical(kind, products, written):
    for path, copy in pairs(products, written):
        before, after = hdu_bytes(path), hdu_bytes(copy)
        changed = {
            name for name, version in before if before[name, version] != after[name, version]
        }
        assert changed <= CHANGED[kind]
        # Headers of what changed are the same too, but the primary one.
        for key, (header, _) in before.items():
            assert key[0] == "PRIMARY" or after[key][0] == header
        added = {name.rstrip("12") for name, _ in after.keys() - before.keys()}
        assert added == {"BKG", "BKG_ERR"}


def test_they_are_fits_files(written):
    for path in written:
        assert path.stat().st_size % 2880 == 0
        with fits.open(path) as hdus:
            hdus.verify("exception")


def test_pixels_are_the_results(kind, products, result, written):
    """By astropy, from the products and the background."""
    result = result.load()
    for path, copy in pairs(products, written):
        with fits.open(path) as old, fits.open(copy) as new:
            for index in np.flatnonzero(result.filename.values == path.name):
                one = result.isel(slit=index)
                if kind == "jwst":
                    slits = [h for h in new if h.name == "SCI"]
                    (v,) = [h.ver for h in slits if h.header["SLITID"] == int(one.slitlet)]
                    names, turn = [(n, v) for n in ("SCI", "ERR", "DQ", "BKG", "BKG_ERR")], 1
                    inside = np.isfinite(old["WAVELENGTH", v].data)
                else:
                    s = str(one.detector.values)[-1]
                    names = [n + s for n in ("DATA", "VAR", "QUALITY", "BKG", "BKG_ERR")]
                    turn = -1 if s == "2" else 1
                    inside = (old["LAMBDA" + s].data > 0)[::turn, ::turn]
                flux, error, flags, sky, sky_error = (new[n].data[::turn, ::turn] for n in names)
                before = [old[n].data[::turn, ::turn] for n in names[:3]]
                ny, nx = flux.shape
                one = one.isel(y=slice(ny), x=slice(nx))
                np.testing.assert_array_equal(sky, one.background)
                np.testing.assert_array_equal(sky_error, one.background_error)
                known = inside & np.isfinite(sky)
                assert known.sum() > 0.9 * inside.sum()
                np.testing.assert_array_equal(flux[known], (before[0] - sky)[known])
                assert np.isnan(flux[inside & ~known]).all()
                np.testing.assert_array_equal(flux[~inside], before[0][~inside])
                power = 2 if kind == "jwst" else 1
                good = known & np.isfinite(before[1]) & ((before[1] > 0) | (kind == "jwst"))
                np.testing.assert_allclose(
                    error[good].astype(float) ** power,
                    before[1][good].astype(float) ** power + sky_error[good].astype(float) ** 2,
                    rtol=3e-7,
                )
                np.testing.assert_array_equal(flags, one.quality.values)
                unusable = 1 if kind == "jwst" else NIPS_FLAGS["DO_NOT_USE"]
                assert ((flags[inside & ~known] & np.array(unusable, flags.dtype)) != 0).all()


def test_opened_again_they_are_the_result_and_subtracted(kind, result, written):
    (name,) = mx.open_program(written).children
    assert name == "prism-clear-subtracted"
    again = opened(written).load()
    assert set(again.subtracted.values) == {"S_MSBSUB"}
    with pytest.raises(DatasetError, match="already subtracted"):
        mx.fit_master(mx.select_background(again))
    for name in ("flux", "quality", "wavelength", "yrel"):
        np.testing.assert_array_equal(again[name], result[name])
    np.testing.assert_allclose(again.error, result.error, rtol=2e-7)


@pytest.mark.parametrize("kind", ["jwst"], indirect=True)
def test_variances_still_add_up_to_the_error(products, written):
    for path, copy in pairs(products, written):
        with fits.open(path) as old, fits.open(copy) as new:
            for hdu in (h for h in new if h.name == "SCI"):
                sums = [
                    sum(h[n, hdu.ver].data.astype(float) for n in
                        ("VAR_RNOISE", "VAR_POISSON", "VAR_FLAT"))
                    for h in (old, new)
                ]  # fmt: skip
                good = np.isfinite(new["BKG", hdu.ver].data) & (new["DQ", hdu.ver].data & 1 == 0)
                before, after = (h["ERR", hdu.ver].data[good].astype(float) for h in (old, new))
                np.testing.assert_allclose(before**2, sums[0][good], rtol=1e-5)
                np.testing.assert_allclose(after**2, sums[1][good], rtol=1e-5)
                assert np.all(after >= before) and np.mean(after > before) > 0.99


def test_the_header_says_what_was_done(products, written, sky, result):
    for path, copy in pairs(products, written):
        old, new = fits.getheader(path), fits.getheader(copy)
        assert new["S_MSBSUB"] == "COMPLETE"
        assert new["MBKVER"] == mx.__version__
        assert new["MBKDATE"] == DATE
        assert new["MBKMETH"] == "master"
        assert new["MBKCONF"] == "prism-clear"
        assert new["MBKMODEL"].startswith(sky.attrs["model"])
        assert new["MBKSLITS"] == int((sky.n_used > 0).sum())
        assert new["MBKPIX"] == sky.attrs["n_pixels"]
        assert new["MBKHASH"] == result.attrs["background_sha256"]
        assert new["MBKNDONE"] == (result.filename == path.name).sum()
        assert new["MBKNLEFT"] == 0
        assert "mbkg_xr" in str(new["HISTORY"])
        ours = {"S_MSBSUB", "HISTORY", *(k for k in new if k.startswith("MBK"))}
        assert {k: v for k, v in new.items() if k not in ours} == {
            k: v for k, v in old.items() if k not in ours
        }


def test_the_masters_digest_is_the_masters(sky, programme, tmp_path):
    from mbkg_xr.master import identity

    mx.save({"m": sky}, tmp_path / "m.zarr")
    again = mx.open_program(tmp_path / "m.zarr")["m"].to_dataset()
    assert identity(again) == identity(sky)
    other = sky.assign(polynomial=sky.polynomial * (1 + 1e-15))
    assert identity(other)["background_sha256"] != identity(sky)["background_sha256"]


def test_nods_are_said_to_be_nods(programme, tmp_path):
    nods = mx.subtract_nods(programme)
    header = fits.getheader(mx.write_fits(nods, tmp_path / "out")[0])
    assert header["S_BKDSUB"] == "COMPLETE" and header.get("S_MSBSUB") != "COMPLETE"
    assert header["MBKMETH"] == "nods" and "MBKHASH" not in header


def test_chunks_order_and_scheduler_do_not_change_a_byte(result, written, tmp_path, monkeypatch):
    for number, (chunks, scheduler) in enumerate(
        [(1, "threads"), (4, "threads"), (7, "synchronous")]
    ):
        with dask.config.set(scheduler=scheduler):
            again = mx.write_fits(result.chunk(slit=chunks), tmp_path / str(number), date=DATE)
        for one, other in zip(written, again, strict=True):
            assert one.read_bytes() == other.read_bytes()
    monkeypatch.setattr(write, "_BATCH", 1)  # a product at a time
    for one, other in zip(written, mx.write_fits(result, tmp_path / "b", date=DATE), strict=True):
        assert one.read_bytes() == other.read_bytes()
    shuffled = result.isel(slit=np.random.default_rng(0).permutation(result.sizes["slit"]))
    for path in mx.write_fits(shuffled, tmp_path / "shuffled", date=DATE):
        reference = hdu_bytes(written[0].parent / path.name)
        assert hdu_bytes(path) == reference  # their order is that of the slits


@pytest.mark.parametrize("kind", ["jwst"], indirect=True)
def test_slits_that_are_not_in_the_result_are_left_and_named(products, result, tmp_path):
    part = result.isel(slit=np.flatnonzero(result.slitlet.values != 2))
    with pytest.warns(UserWarning, match="not in the result and stay as they are: .* slitlet 2"):
        copies = mx.write_fits(part, tmp_path / "out")
    for path, copy in pairs(products, copies):
        before, after = hdu_bytes(path), hdu_bytes(copy)
        with fits.open(copy) as hdus:
            left = [h.ver for h in hdus if h.name == "SCI" and h.header["SLITID"] == 2]
            header = hdus[0].header
            assert header["MBKNLEFT"] == len(left)
            assert not left or "slits 2" in " ".join(header["HISTORY"])
            for version in left:
                assert ("BKG", version) not in hdus
                for name in ("SCI", "ERR", "DQ", "VAR_POISSON"):
                    assert before[name, version] == after[name, version]


def test_point_sources_are_written_in_the_files_unit(tmp_path):
    """The dataset's flux is the file's times flux_factor: 1/PIXAR_SR for slits in MJy."""
    ds = simulate_program(exposures=1, slits=3, background_slits=3, seed=4).compute()
    factor = 1 / 4.85e-13
    (path, _) = write_jwst(ds, tmp_path / "in")
    seen = opened([path]).load()
    scaled = seen.assign(
        {
            name: seen[name].copy(data=(seen[name] * factor**power).astype(np.float32))
            for name, power in (("flux", 1), ("error", 1), ("var_rnoise", 2), ("var_poisson", 2))
        }
    ).assign_coords(flux_factor=("slit", np.full(3, factor)))
    (copy,) = mx.write_fits(scaled, tmp_path / "same")
    assert copy.read_bytes() == path.read_bytes()
    sky = scaled.flux * 0 + np.float32(1e11)
    less = scaled.assign(
        flux=scaled.flux - sky,
        error=np.hypot(scaled.error, sky / 10),
        background=sky,
        background_error=sky / 10,
    )
    (copy,) = mx.write_fits(less, tmp_path / "less")
    with fits.open(path) as old, fits.open(copy) as new:
        for v in (1, 2, 3):
            good = np.isfinite(old["SCI", v].data)
            np.testing.assert_allclose(new["BKG", v].data[good], 1e11 / factor, rtol=1e-6)
            np.testing.assert_allclose(
                new["SCI", v].data[good], old["SCI", v].data[good] - 1e11 / factor, atol=1e-7
            )
            more = new["VAR_POISSON", v].data - old["VAR_POISSON", v].data
            poisson = old["VAR_POISSON", v].data
            weak = good & (poisson < 1e-4)
            np.testing.assert_allclose(more[weak], (1e10 / factor) ** 2, rtol=0.01)


def test_slits_calibrated_as_points_through_the_whole_chain(tmp_path):
    """One master of uniform sky, fitted on slits in MJy/sr, taken off slits in MJy as well."""
    ds = simulate_program(
        exposures=3, slits=6, background_slits=3, calibration="POINT", seed=4, **CLEAN
    ).compute()
    paths = [p for p in write_jwst(ds, tmp_path / "in") if "_cal" in p.name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = mx.open_program(paths)["prism-clear"].to_dataset().load()
    assert set(seen.calibrated_as.values) == {"POINT", "EXTENDED"}
    alike = {"scales": None, "profile": False}
    master = mx.fit_master(mx.select_background(seen, slits="background"), **alike)
    copies = mx.write_fits(mx.subtract(seen, master), tmp_path / "out")
    seen_units = set()
    for path, copy in zip(sorted(paths), sorted(copies), strict=True):
        with fits.open(path) as old, fits.open(copy) as new:
            for hdu in (h for h in old if h.name == "SCI"):
                version, unit = hdu.ver, hdu.header["BUNIT"]
                seen_units.add(unit)
                background = new["BKG", version].data
                assert new["BKG", version].header["BUNIT"] == unit
                known = np.isfinite(hdu.data) & np.isfinite(background)
                left = new["SCI", version].data[known]
                np.testing.assert_allclose(
                    left, (hdu.data - background)[known], rtol=1e-5, atol=1e-5 * abs(left).max()
                )
                # A pixel holds mostly sky: in its own unit the two are of one size.
                ratio = np.median(background[known]) / np.median(hdu.data[known])
                assert 0.3 < ratio < 1.5
    assert seen_units == {"MJy", "MJy/sr"}
    again = mx.open_program(copies)
    assert list(again.children) == ["prism-clear-subtracted"]


def test_the_real_nips_file(tmp_path):
    """Its flags have 16 bits: DO_NOT_USE, the 64th, does not fit, and NaN has to say it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "nips"
    files = sorted(folder.glob("*.fits"))
    if not files:
        pytest.skip("the real NIPS file is not at ../shared/data/nips")
    ds = opened(files).load()
    (copy,) = mx.write_fits(ds, tmp_path / "same")
    assert copy.read_bytes() == files[0].read_bytes()
    sky = (ds.flux * 0 + np.float32(0.25)).where(ds.wavelength < 1.7)
    flags = ds.quality.where(np.isfinite(sky), ds.quality | np.uint64(1 << 63)).astype(np.uint64)
    less = ds.assign(flux=ds.flux - sky, background=sky, background_error=sky / 10)
    less = less.assign(error=np.hypot(ds.error, less.background_error))
    less = less.assign_coords(quality=(ds.quality.dims, flags.data, ds.quality.attrs))
    (copy,) = mx.write_fits(less, tmp_path / "less")
    before, after = hdu_bytes(files[0]), hdu_bytes(copy)
    assert {k[0] for k in before if before[k] != after[k]} == {"PRIMARY", "DATA1", "VAR1"}
    with fits.open(files[0]) as old, fits.open(copy) as new:
        assert "CHECKSUM" in old[0].header and "CHECKSUM" not in new[0].header
        inside = old["LAMBDA1"].data > 0
        covered = inside & (1e6 * old["LAMBDA1"].data < 1.7)
        np.testing.assert_array_equal(
            new["DATA1"].data[covered], old["DATA1"].data[covered] - np.float32(0.25)
        )
        assert np.isnan(new["DATA1"].data[inside & ~covered]).mean() > 0.999
        np.testing.assert_array_equal(new["DATA1"].data[~inside], old["DATA1"].data[~inside])


def test_nips_files_of_another_layout(tmp_path):
    """Other names, standard deviations in place of variances, and a value that stands for none."""
    rng = np.random.default_rng(5)
    plain = nips_product(tmp_path / "plain.fits", rng, {"1": (4, 6), "2": (5, 3)}, 7)
    names = {"DATA": "SIG", "VAR": "DEV", "LAMBDA": "AWCS"}
    with fits.open(plain) as hdus:
        hdus = fits.HDUList([h.copy() for h in hdus])
        for hdu in hdus[1:]:
            hdu.name = names.get(hdu.name[:-1], hdu.name[:-1]) + hdu.name[-1]
            if hdu.name.startswith("SIG"):
                hdu.data = rng.normal(1, 0.1, hdu.data.shape).astype(np.float32)
                hdu.data[1, 1] = -99
            if hdu.name.startswith("DEV"):
                hdu.header["BUNIT"] = "MJy/sr"
                hdu.data = rng.uniform(0.1, 0.2, hdu.data.shape).astype(np.float32)
        hdus.writeto(tmp_path / "in.fits")
    layout = mx.NipsLayout(
        flux="SIG", variance="", error="DEV", wavelength="AWCS", sentinels={"flux": (-99.0,)}
    )
    path = tmp_path / "in.fits"
    (node,) = mx.open_program(path, nips_layout=layout).children.values()
    ds = node.to_dataset().load()
    (copy,) = mx.write_fits(ds, tmp_path / "same", nips_layout=layout)
    assert copy.read_bytes() == path.read_bytes()
    sky = ds.flux * 0 + np.float32(0.5)
    less = ds.assign(flux=ds.flux - sky, background=sky, background_error=sky * 0.2)
    less = less.assign(error=np.hypot(ds.error, less.background_error))
    (copy,) = mx.write_fits(less, tmp_path / "less", nips_layout=layout)
    with fits.open(path) as old, fits.open(copy) as new:
        for s in "12":
            inside = (old["AWCS" + s].data > 0) & (old["SIG" + s].data != -99)
            before, after = (h["SIG" + s].data for h in (old, new))
            np.testing.assert_array_equal(after[inside], before[inside] - np.float32(0.5))
            np.testing.assert_array_equal(after[~inside], before[~inside])
            grown = np.hypot(old["DEV" + s].data, np.float32(0.1))
            np.testing.assert_allclose(new["DEV" + s].data[inside], grown[inside], rtol=1e-6)
            assert (new["BKG" + s].data[inside] == 0.5).all()


def test_checksums_of_changed_extensions_are_dropped(tmp_path):
    ds = simulate_program(exposures=1, slits=2, background_slits=2, seed=4).compute()
    (path, _) = write_jwst(ds, tmp_path / "in")
    with fits.open(path) as hdus:
        hdus.writeto(tmp_path / "in2.fits", checksum=True)
    seen = mx.select_background(opened([tmp_path / "in2.fits"]).load())
    (copy,) = mx.write_fits(mx.subtract_nods(seen), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(copy, checksum=True) as hdus:
            for hdu in hdus:
                assert hdu.data is None or hdu.data.size  # checksums are verified as data are read
            assert "CHECKSUM" not in hdus["SCI", 1].header
            assert "CHECKSUM" in hdus["BARSHADOW", 1].header


# ------------------------------------------------------------------------------------------------
# What is refused, and leaves nothing behind


def state(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path(folder).rglob("*")}


def test_products_are_never_replaced(products, result, tmp_path):
    folder = products[0].parent
    before = state(folder)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "hard").mkdir()
    os.link(products[0], tmp_path / "hard" / products[0].name)
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft" / products[0].name).symlink_to(products[0])
    for target in (folder, tmp_path / "link", tmp_path / "hard", tmp_path / "soft"):
        with pytest.raises(ParameterError, match="would replace a product"):
            mx.write_fits(result, target, overwrite=True)
    assert state(folder) == before


def test_nothing_is_written_beside_the_products(products, result, tmp_path):
    before = state(products[0].parent)
    mx.write_fits(result, tmp_path / "out")
    assert state(products[0].parent) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_no_overwriting_unasked(result, written, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    mine = folder / written[1].name
    mine.write_text("mine")
    with pytest.raises(StoreError, match="the file exists already"):
        mx.write_fits(result, folder)
    assert mine.read_text() == "mine" and len(list(folder.iterdir())) == 1
    other = folder / "other.txt"
    other.write_text("stays")
    mx.write_fits(result, folder, overwrite=True, date=DATE)
    assert mine.read_bytes() == written[1].read_bytes()
    assert other.read_text() == "stays" and len(list(folder.iterdir())) == len(written) + 1


@pytest.mark.parametrize("exists", [False, True])
def test_all_or_nothing(result, tmp_path, monkeypatch, exists):
    folder = tmp_path / "out"
    if exists:
        folder.mkdir()
    calls = []

    def fail_later(task, pixels):
        calls.append(task)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_copies, "_write_slit", fail_later)
    with pytest.raises(StoreError, match="No space left"):
        mx.write_fits(result, folder)
    assert list(tmp_path.rglob("*")) == ([folder] if exists else [])


def test_missing_products_are_all_named(products, result, tmp_path):
    elsewhere = result.assign_coords(
        path=("slit", [f"/nowhere/{n}" for n in result.filename.values])
    )
    with pytest.raises(InputFilesError) as caught:
        mx.write_fits(elsewhere, tmp_path / "out")
    for path in products:
        assert path.name in str(caught.value)
    assert "products=" in str(caught.value) and not (tmp_path / "out").exists()
    copies = mx.write_fits(elsewhere, tmp_path / "out", products=products[0].parent, date=DATE)
    assert len(copies) == len(products)
    with pytest.raises(InputFileError, match="the product of a result is not there"):
        mx.write_fits(elsewhere, tmp_path / "other", products=products[1:])


def test_simulated_slits_have_no_product(simulated, tmp_path):
    with pytest.raises(InputFileError, match="not opened from FITS"):
        mx.write_fits(simulated, tmp_path / "out")


def test_changed_products_are_all_named(kind, products, result, tmp_path):
    """Other pixels, other wavelengths, fewer slits: none is mistaken for the product."""
    folder = tmp_path / "in"
    folder.mkdir()
    flux, wavelength = ("SCI", "WAVELENGTH") if kind == "jwst" else ("DATA", "LAMBDA")
    for number, path in enumerate(products):
        with fits.open(path) as hdus:
            hdus = fits.HDUList([h.copy() for h in hdus])
            if number == 0:
                plane = next(h for h in hdus if h.name.startswith(flux)).data
                y, x = np.argwhere(np.isfinite(plane) & (plane != 0))[40]
                plane[y, x] *= 1.01
            if number == 1:
                plane = next(h for h in hdus if h.name.startswith(wavelength)).data
                plane[np.isfinite(plane)] *= 1.001
            hdus.writeto(folder / path.name)
    with pytest.raises(InputFilesError) as caught:
        mx.write_fits(result, tmp_path / "out", products=folder)
    text = str(caught.value)
    assert f"{products[0].name}" in text and "flux + background is not its flux on 1 pixels" in text
    assert f"{products[1].name}" in text and "other wavelengths" in text
    assert products[2].name not in text
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1


def test_many_slits_of_a_changed_product_are_one_error(products, result, tmp_path):
    with pytest.raises(InputFilesError) as caught:
        mx.write_fits(result.assign(flux=result.flux * 2), tmp_path / "out")
    assert len(caught.value.errors) == len(products)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["jwst"], indirect=True)
def test_a_product_of_other_slits_is_refused(result, products, simulated, tmp_path):
    write_jwst(simulated.isel(slit=np.flatnonzero(simulated.slitlet != 1)), tmp_path / "in")
    with pytest.raises((InputFileError, InputFilesError), match="no such slit"):
        mx.write_fits(result, tmp_path / "out", products=tmp_path / "in")


def test_cut_datasets_are_refused(result, tmp_path):
    with pytest.raises((InputFileError, InputFilesError), match="a cut-out of"):
        mx.write_fits(result.isel(y=slice(5)), tmp_path / "out")


def test_two_products_of_one_name(products, result, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / products[0].name).write_bytes(products[0].read_bytes())
    both = [*products, tmp_path / "a" / products[0].name]
    with pytest.raises(ParameterError, match="two products of one name"):
        mx.write_fits(result, tmp_path / "out", products=both)


def test_only_slits_are_written(sky, tmp_path):
    with pytest.raises(DatasetError, match="no slits to write"):
        mx.write_fits(sky, tmp_path / "out")


def test_a_tree_of_results_is_written_without_its_masters(result, sky, written, tmp_path):
    mx.save({"prism-clear": result, "prism-clear/master": sky}, tmp_path / "r.zarr")
    again = mx.write_fits(mx.open_program(tmp_path / "r.zarr"), tmp_path / "out", date=DATE)
    for one, other in zip(written, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


# ------------------------------------------------------------------------------------------------
# The command line


def run_command(*arguments):
    return CliRunner().invoke(main, ["run", *map(str, arguments)])


def test_run_with_fits(products, tmp_path):
    done = run_command(*products, "--out", tmp_path / "r.zarr", "--fits", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert f"FITS: {tmp_path / 'out'}" in done.output
    saved = mx.open_program(tmp_path / "r.zarr")["prism-clear"].to_dataset()
    again = opened(sorted((tmp_path / "out").iterdir()))
    order = [again.filename.values.tolist().index(n) for n in saved.filename.values[:1]]
    np.testing.assert_array_equal(again.flux[order[0]], saved.flux[0])


def test_run_over_its_input_does_nothing(products, tmp_path):
    before = state(products[0].parent)
    for target in (products[0].parent, tmp_path / "r.zarr" / "fits"):
        done = run_command(*products, "--out", tmp_path / "r.zarr", "--fits", target)
        assert done.exit_code == 2
        assert state(products[0].parent) == before and list(tmp_path.iterdir()) == []
