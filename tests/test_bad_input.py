"""What bad input gets: one clear line, exit status 2, no traceback, nothing written."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.cli import main


def _edited(source, target, edit):
    """A copy of a product with its HDUs changed."""
    with fits.open(source) as hdus:
        hdus = fits.HDUList([h.copy() for h in hdus])
        hdus = edit(hdus) or hdus
        hdus.writeto(target)
    return target


def _fill(name, value, where=None):
    def edit(hdus):
        data = hdus[name].data
        data[...] = value if where is None else np.where(where(hdus), value, data)

    return edit


def _without(name):
    return lambda hdus: fits.HDUList([h for h in hdus if h.name != name])


def _run(paths, tmp_path, *options):
    out = tmp_path / "result.zarr"
    done = CliRunner().invoke(main, ["run", *map(str, paths), "--out", str(out), *options])
    return done, out


def _assert_refused(done, out, *words):
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.output
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in done.output
    assert not out.exists()
    assert not list(out.parent.glob(".*staging*"))


def test_not_fits(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a FITS file at all")
    done, out = _run([path], tmp_path)
    _assert_refused(done, out, "not a FITS file", "notes.txt", "expected", "found")


def test_missing_file(tmp_path):
    done, out = _run([tmp_path / "absent.fits"], tmp_path)
    _assert_refused(done, out, "cannot read", "absent.fits")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.5, 0.9, 0.97])
def test_truncated(real_files, tmp_path, keep):
    data = real_files[0].read_bytes()
    path = tmp_path / real_files[0].name
    path.write_bytes(data[: int(len(data) * keep)])
    done, out = _run([path], tmp_path)
    _assert_refused(done, out, path.name, "to do")


def test_truncated_at_every_block(real_files, tmp_path):
    """A file that ends early is never opened as if it were whole."""
    data = real_files[0].read_bytes()
    path = tmp_path / real_files[0].name
    for end in range(2880, len(data), 2880):
        path.write_bytes(data[:end])
        with pytest.raises(mx.MbkgError, match=path.name):
            mx.open_program(path)


@pytest.fixture(scope="module")
def small_cal(tmp_path_factory):
    """A multi-slit product of two slitlets."""
    from mbkg_xr.simulate import write_jwst

    ds = mx.simulate_program(exposures=1, slits=2, background_slits=1, detectors=("NRS2",), seed=6)
    return write_jwst(ds, tmp_path_factory.mktemp("small"))[0]


def test_a_multi_slit_product_truncated_anywhere(small_cal, tmp_path):
    """At every block, and a byte before and after."""
    path = tmp_path / small_cal.name
    path.write_bytes(small_cal.read_bytes())
    blocks = path.stat().st_size // 2880
    assert blocks * 2880 == path.stat().st_size
    for block in range(blocks, 0, -1):
        for end in (block * 2880 + 1, block * 2880, block * 2880 - 1):
            if end >= blocks * 2880:
                continue
            os.truncate(path, end)
            with pytest.raises(mx.MbkgError, match=path.name):
                mx.open_program(path)


BAD = {
    "truncated": (lambda data: data[:28800], "truncated"),
    "cut": (lambda data: data[: len(data) // 2880 // 2 * 2880 + 1], "truncated"),
    "mangled": (lambda data: data.replace(b"NAXIS1  = ", b"NAXIS1  =x"), "NAXIS1"),
    "huge": (
        lambda data: data.replace(
            b"=                    1 / number of g", b"=         999999999999 / number of g"
        ),
        "truncated",
    ),
    "missing": (
        lambda data: data.replace(b"EXTNAME = 'ERR     '", b"EXTNAME = 'EXX     '"),
        "no ERR",
    ),
    "nircam": (lambda data: data.replace(b"'NIRSPEC '", b"'NIRCAM  '"), "not a NIRSpec product"),
    "grating": (lambda data: data.replace(b"'PRISM   '", b"'PRISM    "), "unreadable header card"),
    "number": (lambda data: data.replace(b"SLITID  = ", b"SLITID  =T"), "slitlet|wrong kind|card"),
    "empty": (lambda data: b"", "not a FITS file"),
}


@pytest.mark.parametrize("name", [*BAD, "gzip", "twice"])
def test_the_others_are_kept(small_cal, cal_file, tmp_path, name):
    """A clear error that names the file; with ``on_error="warn"`` a warning, and the good ones."""
    data = small_cal.read_bytes()
    folder = tmp_path / "data"
    folder.mkdir()
    good = folder / "jw09999001001_03101_00009_nrs1_cal.fits"
    good.write_bytes(cal_file.read_bytes().replace(b"_03101_00001", b"_03101_00009"))
    bad = folder / f"{name}_cal.fits"
    if name == "gzip":
        bad, words = folder / "gzip_cal.fits.gz", "gunzip gzip_cal.fits.gz"
        bad.write_bytes(gzip.compress(data, 1))
    elif name == "twice":
        bad, words = folder / "twice_cal.fits", f"more than once .*{good}"
        bad.write_bytes(good.read_bytes())
    else:
        change, words = BAD[name]
        bad.write_bytes(change(data))
        assert bad.read_bytes() != data
    with pytest.raises(mx.MbkgError, match=words) as error:
        mx.open_program(folder)
    assert str(bad) in str(error.value) or bad.name in str(error.value)
    with pytest.warns(UserWarning, match=rf"left out: .*{bad.name}"):
        tree = mx.open_program(folder, on_error="warn")
    ds = tree["prism-clear"].to_dataset().load()
    assert set(ds.filename.values) == {good.name}
    alone = mx.open_program(good)["prism-clear"].to_dataset().load()
    assert ds.identical(alone)


def test_compressed_metafiles_are_no_products(small_cal, tmp_path):
    """They hold no slits, but tell of those of the products that name them."""
    (tmp_path / small_cal.name).write_bytes(small_cal.read_bytes())
    metafile = next(small_cal.parent.glob("*_msa.fits"))
    (tmp_path / f"{metafile.name}.gz").write_bytes(gzip.compress(metafile.read_bytes()))
    (tmp_path / "jw01345062001_01_msa.fits.gz").write_bytes(gzip.compress(b"another"))
    ds = mx.open_program(tmp_path)["prism-clear"]
    assert ds.sizes["slit"] == 2
    assert all(text.startswith("metafile: ") for text in ds.sky_reason.values)


def test_unknown_on_error(small_cal):
    with pytest.raises(mx.MbkgError, match="'raise' or 'warn'"):
        mx.open_program(small_cal, on_error="ignore")


def test_progress(small_cal, cal_files, capsys, monkeypatch):
    told = []
    files = [small_cal, *cal_files[1:]]
    mx.open_program(files, progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, len(files)) for i in range(len(files))]
    monkeypatch.setenv("FORCE_COLOR", "1")
    mx.open_program(files, progress=True)
    assert "opening" in capsys.readouterr().err


def test_no_sci(real_files, tmp_path):
    path = _edited(real_files[0], tmp_path / "no_sci.fits", _without("SCI"))
    done, out = _run([path], tmp_path)
    _assert_refused(done, out, "no SCI extension", "no_sci.fits", "WAVELENGTH")


def test_no_wcs(real_files, tmp_path):
    path = _edited(real_files[0], tmp_path / "no_wcs.fits", _without("ASDF"))
    done, out = _run([path], tmp_path)
    _assert_refused(done, out, "slit without WCS", "no_wcs.fits", "assign_wcs")


def test_missing_extension(real_files, tmp_path):
    path = _edited(real_files[0], tmp_path / "no_err.fits", _without("ERR"))
    done, out = _run([path], tmp_path)
    _assert_refused(done, out, "missing extension", "slitlet 138", "no ERR")


def test_other_units(real_files, tmp_path):
    def edit(hdus):
        hdus["SCI"].header["BUNIT"] = "MJy"

    path = _edited(real_files[0], tmp_path / "point.fits", edit)
    done, out = _run([path], tmp_path)
    _assert_refused(done, out, "surface brightness", "slitlet 138", "found MJy")


def test_other_instrument(real_files, tmp_path):
    def edit(hdus):
        hdus[0].header["INSTRUME"] = "MIRI"

    path = _edited(real_files[0], tmp_path / "miri.fits", edit)
    done, out = _run([path], tmp_path)
    _assert_refused(done, out, "not a NIRSpec product", "found MIRI")


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("DQ", 1, "all pixels flagged"),
        ("ERR", np.nan, "NaN errors"),
        ("ERR", 0.0, "zero errors"),
        ("SCI", np.nan, "no pixel with a flux"),
    ],
)
@pytest.mark.parametrize("others", [False, True], ids=["alone", "among good ones"])
def test_useless_slit(real_files, tmp_path, name, value, cause, others):
    path = _edited(real_files[0], tmp_path / "useless.fits", _fill(name, value))
    paths = [path, *real_files[1:]] if others else [path]
    done, out = _run(paths, tmp_path)
    _assert_refused(done, out, cause, "useless.fits", "slitlet 138", "expected", "found", "to do")
    if others:
        done, out = _run(paths, tmp_path, "--skip-bad-slits")
        assert done.exit_code == 0, done.output
        assert out.exists()


def test_no_sky_pixel_left(real_files, tmp_path):
    done, out = _run(real_files[:1], tmp_path, "--yrel", "5,6")
    _assert_refused(done, out, "no sky pixel left", "slitlet 138", "widen the yrel windows")


def test_no_slit_known_to_be_sky(real_files, tmp_path):
    done, out = _run(real_files, tmp_path, "--slits", "background")
    _assert_refused(done, out, "no slit with a shutter known to be sky", "is_background")


def test_fewer_pixels_than_coefficients(real_files, tmp_path):
    keep = np.s_[10:12, 200:201]

    def edit(hdus):
        flags = hdus["DQ"].data
        saved = flags[keep].copy()
        flags[...] |= 1
        flags[keep] = saved & ~np.uint32(1)

    path = _edited(real_files[0], tmp_path / "few.fits", edit)
    for model in ("bspline", "logpoly", "seed"):
        done, out = _run([path], tmp_path, "--yrel", "-2,2", "--model", model)
        _assert_refused(done, out, "fewer pixels than coefficients", "expected at least")


def test_unknown_flag(real_files, tmp_path):
    done, out = _run(real_files, tmp_path, "--exclude", "DO_NOT_USE,GREEN")
    _assert_refused(done, out, "unknown quality flag", "GREEN", "SATURATED")


def test_reversed_window(real_files, tmp_path):
    done, out = _run(real_files, tmp_path, "--yrel", "0.2,-0.2")
    _assert_refused(done, out, "unusable yrel window", "low < high")


def test_existing_store(real_files, tmp_path):
    done, out = _run(real_files, tmp_path)
    assert done.exit_code == 0, done.output
    before = sorted(p.name for p in out.rglob("*"))
    done, _ = _run(real_files, tmp_path)
    assert done.exit_code == 2
    assert "the store exists" in done.stderr
    assert sorted(p.name for p in out.rglob("*")) == before
    done, _ = _run(real_files, tmp_path, "--overwrite", "--model", "logpoly")
    assert done.exit_code == 0, done.output


def test_what_is_not_a_store_is_not_overwritten(real_files, tmp_path):
    out = tmp_path / "result.zarr"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    done, _ = _run(real_files, tmp_path, "--overwrite")
    assert done.exit_code == 2
    assert (out / "thesis.tex").read_text() == "years of work"


def test_many_bad_files_are_all_reported(real_files, tmp_path):
    bad = []
    for name in ("a.fits", "b.fits"):
        path = tmp_path / name
        path.write_bytes(b"nothing of use")
        bad.append(path)
    done, out = _run([*bad, *real_files], tmp_path)
    _assert_refused(done, out, "2 input files", "a.fits", "b.fits")
    with pytest.warns(UserWarning, match="left out"):
        tree = mx.open_program([*bad, *real_files], on_error="warn")
    assert tree["prism-clear"].sizes["slit"] == 3


def test_the_result_may_not_replace_its_input(tmp_path):
    path = tmp_path / "program.zarr"
    mx.save(mx.simulate_program(exposures=1, slits=2, background_slits=1), path)
    done = CliRunner().invoke(main, ["run", str(path), "--out", str(path), "--overwrite"])
    assert done.exit_code == 2
    assert "replace the input" in done.stderr
    assert mx.open_program(path)["prism-clear"].sizes["slit"] == 2
    out = tmp_path / "r.zarr"
    done = CliRunner().invoke(
        main, ["run", str(path), "--out", str(out), "--report", str(out / "report")]
    )
    assert done.exit_code == 2
    assert "inside the store" in done.stderr
    assert not out.exists()


def test_a_result_is_not_an_input(real_files, tmp_path):
    done, out = _run(real_files, tmp_path)
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(main, ["run", str(out), "--out", str(tmp_path / "again.zarr")])
    assert again.exit_code == 2
    assert "already subtracted" in again.stderr
