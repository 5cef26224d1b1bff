"""NIPS irregular 2-D spectra: a real one, simulated ones, other layouts, and bad ones."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import mbkg_xr as mx
from mbkg_xr.errors import InputFileError, InputFilesError, ParameterError
from mbkg_xr.io import NipsLayout, jwst_file, nips
from mbkg_xr.io import fits as reading
from mbkg_xr.quality import NIPS_FLAGS, do_not_use, flag_mask
from mbkg_xr.schema import SLIT_COORDS, validate
from mbkg_xr.simulate import simulate_program, write_jwst, write_nips

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "nips"
DO_NOT_USE = np.uint64(1 << 63)


@pytest.fixture(scope="session")
def real_nips():
    files = sorted(REAL.glob("*.fits"))
    if not files:
        pytest.skip("the real NIPS file is not at ../shared/data/nips")
    return files[0]


@pytest.fixture(scope="module")
def programme():
    ds = simulate_program(
        exposures=2,
        slits=5,
        background_slits=2,
        detectors=("NRS1", "NRS2"),
        n_shutters={1: 1, 2: 1, 3: 3},
        seed=2,
    )
    return in_order(ds.compute())


@pytest.fixture(scope="module")
def files(programme, tmp_path_factory):
    return write_nips(programme, tmp_path_factory.mktemp("nips"))


@pytest.fixture(scope="module")
def opened(files):
    return in_order(mx.open_program(files)["prism-clear"].to_dataset().load())


@pytest.fixture(scope="module")
def one_file(files):
    """A file whose slitlet falls on NRS2 only."""
    for path in files:
        with fits.open(path) as hdus:
            if "DATA1" not in hdus and "DATA2" in hdus:
                return path
    raise AssertionError("no such file")


def in_order(ds):
    return ds.isel(slit=np.lexsort((ds.slitlet, ds.detector, ds.exposure)))


def edited(source, target, edit):
    """A copy of a file with its HDUs changed."""
    with fits.open(source) as hdus:
        hdus = fits.HDUList([h.copy() for h in hdus])
        hdus = edit(hdus) or hdus
        hdus.writeto(target)
    return target


def only(path, **options):
    (ds,) = nips.open_slits([path], **options).values()
    return ds


# ------------------------------------------------------------------------------------------------
# The real file


def test_the_real_file_keeps_the_contract(real_nips):
    ds = mx.open_program(real_nips)["g140m-opaque"].to_dataset()
    validate(ds)
    assert dict(ds.sizes) == {"slit": 1, "y": 47, "x": 1377}
    assert ds.flux.attrs["units"] == "ct s-1"
    assert ds.quality.dtype == np.uint64 and do_not_use(ds.quality) == 1 << 63
    assert "var_rnoise" not in ds and "var_poisson" not in ds
    found = {name: ds[name].values[0] for name in SLIT_COORDS}
    assert found["exposure"] == "V84600010001P0000000002101_39547_JLAB88_JW1_4"
    assert found["detector"] == "NRS1"
    assert (found["program"], found["visit"]) == ("84600", "84600010001")
    assert found["exposure_time"] == pytest.approx(64.42056)
    assert found["mjd"] == pytest.approx(57404.72936, abs=1e-5)
    assert (found["x_start"], found["y_start"]) == (667, 1055)
    assert found["filename"] == real_nips.name
    known = {"exposure", "detector", "program", "visit", "exposure_time", "mjd", "filename"}
    known |= {"path"}
    for name in SLIT_COORDS.keys() - known - {"x_start", "y_start"}:
        np.testing.assert_equal(found[name], SLIT_COORDS[name][1])
    assert ds.attrs["position_unit"] == "slit (MODE SLIT)"


def test_pixels_of_the_real_file(real_nips):
    ds = only(real_nips).load().isel(slit=0)
    with fits.open(real_nips) as hdus:
        planes = {h.name[:-1]: h.data for h in hdus[1:]}
    inside = planes["LAMBDA"] > 0
    assert inside.sum() == 55979
    for name in ("flux", "wavelength", "yrel"):
        assert np.array_equal(np.isfinite(ds[name]), inside)
    np.testing.assert_array_equal(ds.flux.values[inside], planes["DATA"][inside])
    np.testing.assert_allclose(ds.wavelength.values[inside], 1e6 * planes["LAMBDA"][inside], 2e-7)
    np.testing.assert_array_equal(ds.yrel.values[inside], planes["SLITY"][inside])
    np.testing.assert_array_equal(ds.quality, planes["QUALITY"])
    positive = inside & (planes["VAR"] > 0)
    assert np.array_equal(np.isfinite(ds.error), positive) and 0 < (inside & ~positive).sum() < 74
    np.testing.assert_allclose(ds.error.values[positive] ** 2, planes["VAR"][positive], 1e-6)
    assert 0.96 < np.nanmin(ds.wavelength) < np.nanmax(ds.wavelength) < 1.85


# ------------------------------------------------------------------------------------------------
# Simulated files


@pytest.mark.parametrize("name", [n for n in SLIT_COORDS if n not in ("filename", "path")])
def test_coordinates_are_the_programmes(programme, opened, name):
    np.testing.assert_array_equal(opened[name].values, programme[name].values)
    assert opened[name].dtype.kind == programme[name].dtype.kind


def test_pixels_are_the_programmes(programme, opened):
    assert set(opened.detector.values) == {"NRS1", "NRS2"}  # one of them is filed upside down
    inside = np.isfinite(programme.wavelength.values)
    bad = (programme.quality.values & 1) != 0
    for name in ("flux", "error", "wavelength", "yrel"):
        assert not np.isfinite(opened[name].values[~inside]).any()
        values, expected = opened[name].values[~bad], programme[name].values[~bad]
        np.testing.assert_allclose(values, expected, rtol=2e-7)
    np.testing.assert_array_equal(opened.yrel, programme.yrel)
    assert np.array_equal(opened.quality.values >= DO_NOT_USE, bad)
    # The photon part is a difference of float32 numbers.
    tolerance = 3e-7 * programme.error.values[~bad] ** 2
    for name in ("var_rnoise", "var_poisson"):
        values, expected = opened[name].values[~bad], programme[name].values[~bad]
        assert (abs(values - expected) <= tolerance).all() and (values >= 0).all()


def test_padding_is_flagged(files, opened):
    small = np.flatnonzero(~np.isfinite(opened.wavelength.values[:, :, -1]).any(axis=1))[0]
    with fits.open(files[0].parent / str(opened.filename.values[small])) as hdus:
        ny, nx = hdus["DATA" + str(opened.detector.values[small])[-1]].shape
    quality = opened.quality.values[small]
    outside = np.ones(quality.shape, bool)
    outside[:ny, :nx] = False
    assert outside.any() and (quality[outside] == DO_NOT_USE).all()


def test_opening_computes_and_reads_nothing(files, compute_nothing, monkeypatch):
    def refuse(*args):
        raise AssertionError("no pixels yet")

    monkeypatch.setattr(nips, "read_bytes", refuse)
    ds = mx.open_program(files, chunks=2)["prism-clear"].to_dataset()
    selected = mx.select_background(ds)
    assert selected.selected.dtype == bool and ds.flux.chunksizes["slit"][0] == 2


def test_chunks_do_not_change_pixels(files, opened):
    ds = in_order(mx.open_program(files, chunks=3)["prism-clear"].to_dataset())
    assert ds.load().identical(opened)


def test_flagged_outliers_do_not_pass_for_unusable_pixels(opened):
    bits = flag_mask(opened.quality, ["OUTLIER"])
    flagged = mx.flag_outliers(opened)
    changed = flagged.quality.values ^ opened.quality.values
    assert set(np.unique(changed)) == {0, bits} and bits == 1 << 62


def test_without_the_variance_of_read_noise(one_file, tmp_path):
    path = edited(
        one_file, tmp_path / "a.fits", lambda h: fits.HDUList([x for x in h if "RN" not in x.name])
    )
    ds, whole = only(path).load(), only(one_file).load()
    assert "var_rnoise" not in ds and "var_poisson" not in ds
    np.testing.assert_array_equal(ds.error, whole.error)


def test_sentinels(one_file, tmp_path):
    """-1 is a legal position, 0 is no wavelength, and a variance of 0 is no error."""
    seen = {}

    def edit(hdus):
        y, x = np.argwhere(hdus["LAMBDA2"].data > 0)[500]
        seen["at"] = (hdus["DATA2"].shape[0] - 1 - y, hdus["DATA2"].shape[1] - 1 - x)
        hdus["SLITY2"].data[y, x] = -1
        hdus["VAR2"].data[y, x] = 0
        hdus["LAMBDA2"].data[y, x + 1] = 0

    ds = only(edited(one_file, tmp_path / "a.fits", edit)).load().isel(slit=0)
    y, x = seen["at"]
    assert ds.yrel.values[y, x] == -1
    assert np.isnan(ds.error.values[y, x]) and np.isfinite(ds.flux.values[y, x])
    for name in ("flux", "error", "wavelength", "yrel", "var_rnoise", "var_poisson"):
        assert np.isnan(ds[name].values[y, x - 1])


# ------------------------------------------------------------------------------------------------
# Layouts


@pytest.mark.parametrize(
    ("said", "layout", "pitch", "origin"),
    [
        ("PITCH", NipsLayout(), 1.0, "pitch (SLITYUNI)"),
        ("open", NipsLayout(position_unit="pitch"), 1.15, "open (SLITYUNI)"),
        (None, NipsLayout(), 1.15, "open (layout)"),
        (None, NipsLayout(position_unit="pitch"), 1.0, "pitch (layout)"),
    ],
)
def test_what_positions_count(one_file, tmp_path, said, layout, pitch, origin):
    def edit(hdus):
        hdus[0].header["SLITYUNI"] = said
        if said is None:
            del hdus[0].header["SLITYUNI"]

    ds = only(edited(one_file, tmp_path / "a.fits", edit), layout=layout)
    assert ds.attrs["position_unit"] == origin
    np.testing.assert_allclose(ds.yrel * pitch, only(one_file).yrel, rtol=2e-7)


def test_another_layout(one_file, tmp_path):
    """Other names, units, sentinels, number types and orientation."""

    def edit(hdus):
        made = [fits.PrimaryHDU(header=hdus[0].header)]
        del made[0].header["NPLS_V"], made[0].header["NX492"]
        wavelength = hdus["LAMBDA2"].data.astype(float) * 1e6
        wavelength[wavelength == 0] = np.nan
        for name, data in (
            ("FLUX", hdus["DATA2"].data.astype(float)),
            ("DQ", hdus["QUALITY2"].data.astype(np.uint16)),
            ("VAR", hdus["VAR2"].data),
            ("AWCS", wavelength),
            ("SLITY", hdus["SLITY2"].data),
        ):
            made.append(fits.ImageHDU(data[::-1, ::-1], name=name + "_B"))
        made[1].header["BUNIT"] = "W M-2 UM-1"
        return fits.HDUList(made)

    path = edited(one_file, tmp_path / "a.fits", edit)
    with pytest.raises(InputFileError, match="no SCI extension"):
        mx.open_program(path)
    layout = NipsLayout(
        flux="FLUX",
        quality="DQ",
        wavelength="AWCS",
        detectors={"_A": "NRS1", "_B": "NRS2"},
        turned=(),
        wavelength_unit="um",
        flux_units=("W/m3",),
        flags={"DO_NOT_USE": 1 << 15, "HOT": 4},
    )
    ds = mx.open_program(path, nips_layout=layout)["prism-clear"].to_dataset()
    expected = only(one_file)
    assert ds.flux.attrs["units"] == "W m-2 um-1" and do_not_use(ds.quality) == 1 << 15
    for name in ("flux", "error", "wavelength", "yrel"):
        np.testing.assert_allclose(ds[name], expected[name], rtol=2e-7)
    np.testing.assert_array_equal(ds.quality, expected.quality.values & np.uint64(0xFFFF))


def test_mos_headers_of_nips_1(one_file, tmp_path):
    """Shutters and exposure as such headers give them; what they do not give is unknown."""

    def edit(hdus):
        header = hdus[0].header
        for key in ("SLITLET", "MSAQUAD", "MSAROW", "MSACOL", "PATT_NUM", "PROGRAM", "EXPMID"):
            del header[key]
        header["QUADRANT"], header["SHUTTERI"], header["SHUTTERJ"] = 3, 319, 13
        header["OBS_ID"], header["EXP_ID"] = "V96215001001P0000000002103_45245_JLAB88", 2

    ds = only(edited(one_file, tmp_path / "a.fits", edit))
    found = {name: ds[name].values[0] for name in SLIT_COORDS}
    assert (found["quadrant"], found["shutter_row"], found["shutter_column"]) == (3, 319, 13)
    assert found["slitlet"] == (2 * 171 + 12) * 365 + 319
    assert found["exposure"] == "V96215001001P0000000002103_45245_JLAB88_2"
    assert (found["program"], found["visit"]) == ("96215", "96215001001")
    assert found["nod"] == -1 and np.isnan(found["mjd"])


def test_layouts_that_make_no_sense():
    with pytest.raises(ParameterError, match="positions along the slit"):
        NipsLayout(position_unit="shutters")
    with pytest.raises(ParameterError, match=r"unknown unit .*furlong"):
        NipsLayout(wavelength_unit="furlong")
    with pytest.raises(ParameterError, match="without DO_NOT_USE"):
        replace(NipsLayout(), flags={"HOT": 1})


# ------------------------------------------------------------------------------------------------
# Bad files


def header(extension, key, value):
    def edit(hdus):
        hdus[extension].header[key] = value

    return edit


def without(name):
    return lambda hdus: fits.HDUList([h for h in hdus if h.name != name])


def smaller(name):
    def edit(hdus):
        hdus[name].data = hdus[name].data[1:]

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (header(0, "INSTRUME", "MIRI"), ("not a NIRSpec product", "found MIRI")),
        (without("LAMBDA2"), ("missing extension", "NRS2", "no LAMBDA2", "expected DATA2")),
        (without("DATA2"), ("missing extension", "no DATA2")),
        (header("DATA2", "BUNIT", "furlong"), ("neither a count rate", "found furlong")),
        (header("DATA2", "BUNIT", "MJy"), ("neither a count rate", "found MJy", "flux_units")),
        (header("DATA2", "BUNIT", None), ("neither a count rate", "found no BUNIT")),
        (header("VAR2", "BUNIT", "MJy/sr"), ("flux squared", "VAR2", "found MJy/sr")),
        (header("LAMBDA2", "BUNIT", "s"), ("unit of wavelength", "found s", "wavelength_unit")),
        (header("LAMBDA2", "BUNIT", None), ("unit of wavelength", "no BUNIT")),
        (header(0, "SLITYUNI", "ROWS"), ("positions along the slit", "found ROWS")),
        (header(0, "GWA_POS", ""), ("unknown disperser", "GWA_POS")),
        (header(0, "MSAROW", "many"), ("unreadable shutter_row", "MSAROW", "found many")),
        (smaller("SLITY2"), ("unexpected layout of SLITY2", "expected (")),
        (header("VAR2", "BSCALE", 2.0), ("unexpected layout of VAR2", "BSCALE")),
    ],
)
def test_bad_files_are_named(one_file, tmp_path, edit, words):
    path = edited(one_file, tmp_path / "bad.fits", edit)
    for open_it in (mx.open_program, only):
        with pytest.raises(InputFileError) as caught:
            open_it(path)
        for word in ("bad.fits", *words):
            assert word in str(caught.value)


def test_not_nips(one_file, tmp_path):
    text = tmp_path / "notes.fits"
    text.write_text("not FITS")
    with pytest.raises(InputFileError, match="not a FITS file"):
        only(text)
    with pytest.raises(InputFileError, match="cannot read"):
        only(tmp_path / "absent.fits")

    def bare(hdus):
        del hdus[0].header["NX492"]
        return fits.HDUList([hdus[0]])

    path = edited(one_file, tmp_path / "bare.fits", bare)
    with pytest.raises(InputFileError, match=r"not a NIPS spectrum .*DATA1 QUALITY1.*NipsLayout"):
        only(path)


def test_truncated_at_every_block(files, tmp_path):
    """A file that ends early is an error, or ends after all that is read."""
    with fits.open(files[0]) as hdus:
        last = [h for h in hdus if h.name.startswith("SLITY")][-1].fileinfo()
        needed = last["datLoc"] + last["datSpan"]
    data = files[0].read_bytes()
    path = tmp_path / "short.fits"
    for end in range(2880, needed, 2880):
        path.write_bytes(data[:end])
        with pytest.raises(InputFileError, match="short"):
            mx.open_program(path)
    path.write_bytes(data[:needed])
    names = ["filename", "path"]
    cut, whole = only(path).load(), only(files[0]).load()
    assert cut.drop_vars(names).identical(whole.drop_vars(names))


def test_a_file_that_shrinks_after_opening(one_file, tmp_path):
    path = tmp_path / "a.fits"
    path.write_bytes(one_file.read_bytes())
    ds = only(path)
    path.write_bytes(one_file.read_bytes()[:100_000])
    with pytest.raises(InputFileError, match="truncated FITS file"):
        ds.yrel.load()


def test_other_units_among_files(files, tmp_path):
    def edit(hdus):
        for h in hdus:
            if h.name.startswith("DATA"):
                h.header["BUNIT"] = "COUNTS S-1"
            if h.name.startswith("VAR"):
                h.header["BUNIT"] = "(COUNTS S-1)**2"

    path = edited(files[0], tmp_path / "counts.fits", edit)
    with pytest.raises(InputFileError, match=r"different units .*counts.*expected MJy/sr"):
        mx.open_program([*files[1:], path])


# ------------------------------------------------------------------------------------------------
# Both formats together


@pytest.fixture(scope="module")
def mixed(programme, files, tmp_path_factory):
    """A directory of a product and its metafile of STScI, and two of NIPS."""
    folder = tmp_path_factory.mktemp("mixed")
    write_jwst(programme.isel(slit=[0]), folder)
    for path in files[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_formats_of_different_flags_stay_apart(mixed, programme):
    tree = mx.open_program(mixed)
    assert list(tree.children) == ["prism-clear", "prism-clear-nips"]
    jwst, nips = (tree[name].to_dataset() for name in tree.children)
    assert (jwst.quality.dtype, nips.quality.dtype) == (np.uint32, np.uint64)
    assert jwst.sizes["slit"] == 1 and nips.sizes["slit"] >= 2
    assert nips.attrs["configuration"] == "prism-clear-nips"
    np.testing.assert_array_equal(jwst.exposure, programme.exposure[:1])
    assert list(mx.open_program(mixed / "Trace*.fits").children) == ["prism-clear"]


def test_headers_are_read_once(mixed, monkeypatch):
    counted = []
    monkeypatch.setattr(
        mx.io, "hdu_table", lambda path: counted.append(path) or reading.hdu_table(path)
    )
    monkeypatch.setattr(nips, "hdu_table", None)
    monkeypatch.setattr(jwst_file, "hdu_table", None)
    mx.open_program(mixed, cache=False)
    assert len(counted) == len(set(counted)) == 4


def test_bad_files_of_all_formats_are_reported_together(mixed, tmp_path):
    cal = next(mixed.glob("*_cal.fits"))
    trace = next(mixed.glob("Trace*.fits"))
    bad = [
        edited(cal, tmp_path / "bad_cal.fits", without("ASDF")),
        edited(trace, tmp_path / "bad_trace.fits", header(0, "SLITYUNI", "ROWS")),
    ]
    with pytest.raises(InputFilesError, match=r"2 input files.*bad_cal.*bad_trace") as caught:
        mx.open_program([mixed, *bad])
    assert len(caught.value.errors) == 2
    with pytest.warns(UserWarning, match="left out") as warned:
        tree = mx.open_program([mixed, *bad], on_error="warn")
    assert len([w for w in warned if "left out" in str(w.message)]) == 2
    assert list(tree.children) == ["prism-clear", "prism-clear-nips"]


def test_metafiles_alone_are_no_programme(mixed):
    with pytest.raises(InputFileError, match=r"no slit products .*MSA metafiles only"):
        mx.open_program(next(mixed.glob("*_msa.fits")))


def test_what_a_scan_gives_is_plain(one_file):
    """It is kept between runs as JSON."""
    (source,) = nips.scan_file(one_file)
    kept = json.loads(json.dumps(asdict(source)))
    assert kept["coords"].keys() == source.coords.keys()
    assert kept["planes"]["flux"]["offset"] == source.planes["flux"].offset


def test_flag_table_is_that_of_nips():
    assert len(NIPS_FLAGS) == 51 and NIPS_FLAGS["DO_NOT_USE"] == 1 << 63
    assert len(set(NIPS_FLAGS.values())) == 51
