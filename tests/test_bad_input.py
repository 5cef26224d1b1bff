"""What bad input gets: one clear line, exit status 2, no traceback, nothing written."""

from __future__ import annotations

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
