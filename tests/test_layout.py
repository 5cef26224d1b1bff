"""Layouts of NIPS files as small tables: files written anew in other layouts open the same."""

from __future__ import annotations

import csv
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mbkg_xr as mx
from mbkg_xr.cli import main
from mbkg_xr.errors import InputFileError, ParameterError
from mbkg_xr.io.units import unit_of
from mbkg_xr.quality import JWST_FLAGS, NIPS_FLAGS, flag_mask, flag_table
from mbkg_xr.simulate import simulate_program, write_jwst, write_nips

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
PIXELS = ("flux", "error", "wavelength", "yrel", "var_rnoise", "var_poisson")


@pytest.fixture(scope="module")
def programme():
    return simulate_program(
        exposures=1, slits=3, background_slits=1, detectors=("NRS1", "NRS2"), seed=2
    ).compute()


@pytest.fixture(scope="module")
def files(programme, tmp_path_factory):
    return write_nips(programme, tmp_path_factory.mktemp("nips"))


@pytest.fixture(scope="module")
def original(files):
    return in_order(mx.open_program(files)["prism-clear"].to_dataset().load())


def in_order(ds):
    return ds.isel(slit=np.lexsort((ds.slitlet, ds.detector, ds.exposure)))


def rewritten(files, folder, edit, primary=lambda header: None):
    """The files again, each extension as `edit(name, suffix, hdu)` gives it; None leaves it out."""
    folder.mkdir(exist_ok=True)
    for path in files:
        with fits.open(path) as hdus:
            primary(hdus[0].header)
            made = [fits.PrimaryHDU(header=hdus[0].header)]
            for hdu in hdus[1:]:
                new = edit(hdu.name[:-1], hdu.name[-1], hdu)
                if new is not None:
                    made.append(new)
            fits.HDUList(made).writeto(folder / path.name)
    return folder


def image(data, name, like, unit=None):
    """An extension with the place on the detector of another one."""
    hdu = fits.ImageHDU(data, name=name)
    for key in ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CDELT1", "CDELT2", "SCAID", "BUNIT"):
        if key in like.header:
            hdu.header[key] = like.header[key]
    if unit is not None:
        hdu.header["BUNIT"] = unit
    return hdu


def opened(folder, layout):
    (node,) = mx.open_program(folder, nips_layout=layout).children.values()
    return in_order(node.to_dataset().load())


def assert_same(found, expected, *, quality=True, rtol=3e-7):
    names = [n for n in expected.coords if expected[n].dims == ("slit",)]
    for name in set(names) - {"path", "filename"}:
        np.testing.assert_array_equal(found[name].values, expected[name].values, name)
    for name in PIXELS:
        # The photon part is a difference.
        atol = 1e-12 if name == "var_poisson" else 0
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=atol, err_msg=name)
    if quality:
        np.testing.assert_array_equal(found.quality, expected.quality)


# ------------------------------------------------------------------------------------------------
# The README's table


def readme_table():
    text = (ROOT / "README.md").read_text()
    (table,) = re.findall(r"cat > layout\.toml <<'END'\n(.*?)^END$", text, re.S | re.M)
    return table


def test_the_readmes_table(files, original, tmp_path):
    """Files as it describes them: AWCS in nm, errors, 32-bit flags, no detector in names."""
    path = tmp_path / "layout.toml"
    path.write_text(readme_table())
    layout = mx.NipsLayout.from_toml(path)
    assert (layout.wavelength, layout.wavelength_unit, layout.error) == ("AWCS", "nm", "ERROR")

    def edit(name, suffix, hdu):
        if name == "LAMBDA":
            return image(np.where(hdu.data > 0, hdu.data.astype(float) * 1e9, -1), "AWCS", hdu, "")
        if name == "VAR":
            error = np.sqrt(hdu.data.astype(float))
            return image(np.where(error > 0, error, -999.0), "ERROR", hdu, "MJy/sr")
        if name == "QUALITY":
            flags = np.where(hdu.data >> np.uint64(63), 1, 0) | np.where(hdu.data & 0x2000, 4, 0)
            return image(flags.astype(np.uint32), "DQ", hdu)
        return image(hdu.data, name, hdu)

    def primary(header):
        header["SLIT_NO"] = header.pop("SLITLET")
        header["BKGSTEP"] = "no"
        del header["NPLS_V"], header["SLITYUNI"]

    # One detector a file: where names have no suffix two do not fit into one.
    folder = tmp_path / "files"
    for suffix, detector in (("1", "NRS1"), ("2", "NRS2")):
        chosen = [f for f in files if "DATA" + suffix in fits.open(f)]
        rewritten(
            chosen,
            folder,
            lambda n, s, h, want=suffix: edit(n, s, h) if s == want else None,
            primary,
        )
        for file in folder.glob("Trace*"):
            file.rename(folder / f"{detector}_{file.name}")
    found = opened(folder, path)
    assert_same(found, original, quality=False)
    assert found.attrs["position_unit"] == "pitch (layout)"
    bad = (original.quality.values >> np.uint64(63)) != 0
    padding = ~np.isfinite(original.wavelength.values)
    np.testing.assert_array_equal((found.quality.values & 1 != 0)[~padding], bad[~padding])
    assert flag_table(found.quality) == {"DO_NOT_USE": 1, "HOT": 2, "COSMIC_RAY": 4}
    # The same table as a mapping.
    import tomllib

    assert opened(folder, tomllib.loads(readme_table())).identical(found)

    said = fits.open(folder / sorted(p.name for p in folder.iterdir())[0])
    said[0].header["BKGSTEP"] = "done"
    said.writeto(tmp_path / "said.fits")
    tree = mx.open_program(tmp_path / "said.fits", nips_layout=path)
    assert set(tree["prism-clear-subtracted"].subtracted.values) == {"BKGSTEP"}


# ------------------------------------------------------------------------------------------------
# Other structure


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("nm", 1e9), ("ANGSTROM", 1e10), ("um", 1e6), ("m", 1), ("microns", 1e6), ("METER", 1)],
)
@pytest.mark.parametrize("said", ["header", "layout"])
def test_units_of_wavelength(files, original, tmp_path, unit, factor, said):
    def edit(name, suffix, hdu):
        if name != "LAMBDA":
            return hdu.copy()
        there = unit if said == "header" else "furlong"
        return image(hdu.data.astype(float) * factor, hdu.name, hdu, there)

    layout = {} if said == "header" else {"wavelength_unit": unit}
    assert_same(opened(rewritten(files, tmp_path / "a", edit), layout), original)


@pytest.mark.parametrize("kind", ["uint64", "int64", "uint32", "int32", "uint16", "uint8"])
def test_flags_of_other_sizes(files, original, tmp_path, kind):
    """With and without BZERO: what fits is kept bit for bit."""
    dtype = np.dtype(kind)
    mask = np.uint64(2 ** (8 * dtype.itemsize) - 1)
    seen = {}

    def edit(name, suffix, hdu):
        if name != "QUALITY":
            return hdu.copy()
        bits = (hdu.data * np.uint64(0x9E3779B97F4A7C15)) & mask  # all bits in use
        values = bits.astype(f"u{dtype.itemsize}")
        made = image(values if dtype.kind == "u" else values.view(dtype), hdu.name, hdu)
        assert ("BZERO" in made.header) == (dtype.kind == "u" and dtype.itemsize > 1)
        seen[hdu.header["SCAID"]] = bits
        return made

    low = {"flag_bits": {"DO_NOT_USE": 8 * dtype.itemsize - 1}}
    found = opened(rewritten(files[:1], tmp_path / "a", edit), low)
    for i, detector in enumerate(found.detector.values):
        bits = seen[490 + int(detector[-1])]
        bits = bits[::-1, ::-1] if detector == "NRS2" else bits
        assert bits.max() > mask // 2
        np.testing.assert_array_equal(
            found.quality.values[i, : bits.shape[0], : bits.shape[1]], bits
        )


def test_names_without_suffix_and_a_keyword_for_the_detector(files, original, tmp_path):
    def edit(name, suffix, hdu):
        return image(hdu.data, name, hdu) if suffix == "2" else None

    chosen = [f for f in files if "DATA2" in fits.open(f)]
    folder = rewritten(chosen, tmp_path / "a", edit)
    expected = original.isel(slit=original.detector.values == "NRS2")
    for table in ({"": "SCAID"}, {"": "NRS2"}):
        found = opened(folder, {"detectors": table})
        assert_same(found, expected.isel(y=slice(found.sizes["y"]), x=slice(found.sizes["x"])))
    with pytest.raises(mx.MbkgError, match=r"unknown detector .*expected WHICH of NRS1.*no such"):
        mx.open_program(folder, nips_layout={"detectors": {"": "WHICH"}})


def test_sentinels_of_other_planes(files, original, tmp_path):
    """What stands for none is none; a legal value next to it stays."""
    places = {}

    def edit(name, suffix, hdu):
        if name in ("DATA", "SLITY", "VAR"):
            y, x = np.argwhere(hdu.data != hdu.data[0, 0])[500]
            hdu.data[y, x] = -999.5
            places[name] = True
        return hdu.copy()

    sentinels = {"flux": [-999.5, 1e30], "position": -999.5, "variance": [-999.5]}
    found = opened(rewritten(files, tmp_path / "a", edit), {"sentinels": sentinels})
    assert len(places) == 3
    for name in ("flux", "yrel", "error"):
        gone = np.isfinite(original[name].values) & ~np.isfinite(found[name].values)
        assert 0 < gone.sum() <= len(files) * 2
        np.testing.assert_array_equal(found[name].values[~gone], original[name].values[~gone])


def test_keywords_in_the_extension_header(files, original, tmp_path):
    def edit(name, suffix, hdu):
        hdu = hdu.copy()
        if name == "DATA":
            hdu.header["NUMBER"] = moved["SLITLET"]
        return hdu

    moved = {}

    def primary(header):
        moved["SLITLET"] = header.pop("SLITLET")
        header["DISPERSR"] = header.pop("GWA_POS")

    folder = rewritten(files, tmp_path / "a", edit, primary)
    with pytest.raises(mx.MbkgError, match=r"unknown disperser .*GWA_POS or GRATING"):
        mx.open_program(folder)
    assert_same(
        opened(folder, {"keywords": {"slitlet": "NUMBER", "grating": ["DISPERSR"]}}), original
    )


def test_flux_without_a_unit(files, original, tmp_path):
    def edit(name, suffix, hdu):
        hdu = hdu.copy()
        if name in ("DATA", "VAR", "VARRN"):
            del hdu.header["BUNIT"]
        return hdu

    folder = rewritten(files, tmp_path / "a", edit)
    with pytest.raises(mx.MbkgError, match=r"no BUNIT.*flux_unit"):
        mx.open_program(folder)
    assert_same(opened(folder, {"flux_unit": "MJy/sr"}), original)


def test_errors_in_another_unit_than_the_flux(files, tmp_path):
    def edit(name, suffix, hdu):
        return image(hdu.data, "ERR" + suffix, hdu, "DN/s") if name == "VAR" else hdu.copy()

    folder = rewritten(files[:1], tmp_path / "a", edit)
    with pytest.raises(InputFileError, match=r"error not in the unit of flux .*ERR.*DN/s"):
        mx.open_program(folder, nips_layout={"error": "ERR"})


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(
        st.from_regex(r"[A-Z][A-Z_]{2,8}", fullmatch=True), min_size=5, max_size=5, unique=True
    ),
    suffixes=st.sampled_from([("1", "2"), ("_A", "_B"), ("491", "492")]),
    unit=st.sampled_from(["nm", "um", "m", "Angstrom"]),
    outside=st.sampled_from([-5.0, 0.0, np.nan]),
    turned=st.booleans(),
    pitch=st.booleans(),
)
def test_any_layout_opens_the_same(
    files, original, tmp_path_factory, names, suffixes, unit, outside, turned, pitch
):
    tmp_path = tmp_path_factory.mktemp("any")
    roles = dict(zip(("DATA", "QUALITY", "VAR", "LAMBDA", "SLITY"), names, strict=True))
    scale = (1 * unit_of("m")).to_value(unit_of(unit))

    def edit(name, suffix, hdu):
        if name == "VARRN":
            return image(hdu.data[turn(suffix)], "READ" + suffixes[int(suffix) - 1], hdu)
        if name not in roles:
            return None
        data = hdu.data
        if name == "LAMBDA":
            data = np.where(data > 0, data.astype(float) * scale, outside)
        if name == "SLITY" and not pitch:
            data = data * np.float64(1.15)
        return image(
            data[turn(suffix)], roles[name] + suffixes[int(suffix) - 1], hdu, units.get(name)
        )

    def turn(suffix):
        return (slice(None, None, -1 if suffix == "2" and not turned else 1),) * 2

    units = {"LAMBDA": unit}

    def primary(header):
        del header["NPLS_V"], header["SLITYUNI"], header["NX491"], header["NX492"]

    folder = rewritten(files, tmp_path / "a", edit, primary)
    keys = ("flux", "quality", "variance", "wavelength", "position")
    layout = mx.NipsLayout.from_mapping(
        {
            **dict(zip(keys, names, strict=True)),
            "read_variance": "READ",
            "detectors": dict(zip(suffixes, ("NRS1", "NRS2"), strict=True)),
            "turned": ["NRS2"] if turned else [],
            "outside": outside if np.isfinite(outside) else -1,
            "position_unit": "pitch" if pitch else "open",
        }
    )
    found = opened(folder, layout)
    if not turned:  # the place on the detector was written for the turned frame
        starts = original[["x_start", "y_start"]].coords
        found = found.assign_coords({n: starts[n] for n in ("x_start", "y_start")})
    assert_same(found, original)


def test_an_stsci_product_is_none_of_nips(programme, tmp_path):
    """Whatever a layout calls its extensions."""
    (path, *_) = write_jwst(programme, tmp_path)
    layout = {"flux": "SCI", "error": "ERR", "quality": "DQ", "wavelength": "WAVELENGTH",
              "detectors": {"": "DETECTOR"}}  # fmt: skip
    ds = mx.open_program(path, nips_layout=layout)["prism-clear"].to_dataset()
    assert ds.quality.dtype == np.uint32


# ------------------------------------------------------------------------------------------------
# The real file


@pytest.fixture(scope="session")
def real_nips():
    found = sorted((SHARED / "nips").glob("*.fits"))
    if not found:
        pytest.skip("the real NIPS file is not at ../shared/data/nips")
    return found[0]


def test_the_real_file_in_another_layout(real_nips, tmp_path):
    expected = mx.open_program(real_nips)["g140m-opaque"].to_dataset().load()

    def edit(name, suffix, hdu):
        if name == "LAMBDA":
            return image(hdu.data.astype(float) * 1e10, "AWCS", hdu, "Angstrom")
        if name == "VAR":
            error = np.sqrt(np.maximum(hdu.data.astype(float), 0))
            return image(error, "ERR", hdu, "COUNTS S-1")
        if name == "QUALITY":
            return image(hdu.data.astype(np.int64), "FLAGS", hdu)
        return image(hdu.data, name, hdu) if name in ("DATA", "SLITY") else None

    def primary(header):
        del header["NX491"]

    folder = rewritten([real_nips], tmp_path / "a", edit, primary)
    table = tmp_path / "real.toml"
    table.write_text(
        'wavelength = "AWCS"\nerror = "ERR"\nquality = "FLAGS"\n[detectors]\n"" = "SCAID"\n'
    )
    found = mx.open_program(folder, nips_layout=table)["g140m-opaque"].to_dataset().load()
    for name in ("flux", "error", "wavelength", "yrel"):
        np.testing.assert_allclose(found[name], expected[name], rtol=3e-7, atol=1e-30)
        assert np.isfinite(found[name].values).sum() > 55000
    np.testing.assert_array_equal(found.quality, expected.quality)
    for name in ("exposure", "detector", "x_start", "y_start", "visit", "mjd"):
        assert found[name].values[0] == expected[name].values[0]


def test_the_headers_of_the_real_file_say_nothing_of_its_background(real_nips):
    """Nor does any keyword that could: the guesses of the default table are not in it."""
    ds = mx.open_program(real_nips)["g140m-opaque"].to_dataset()
    assert ds.subtracted.values[0] == "" and ds.path.values[0] == str(real_nips.resolve())
    marked = mx.open_program(real_nips, nips_layout={"subtracted": True})
    assert marked["g140m-opaque-subtracted"].subtracted.values[0] == "layout"


# ------------------------------------------------------------------------------------------------
# Flags


OTHERS = {  # flags of no step's quality: the table's text is cut after 30 letters
    "OPEN": "Open pixel",
    "ADJACENT_OPEN": "Adjacent open pixel",
    "HOT": "Hot pixel",
    "WARM": "Warm pixel",
    "SHORTED": "Shorted pixel",
    "TELEGRAPH": "Telegraph pixel",
    "LOW_QE": "Low QE pixel",
    "BAD_REFERENCE": "Bad reference pixel",
    "UNRELIABLE_LINEARITY": "Unreliable linearity",
    "UNRELIABLE_FLAT": "Unreliable flat-field",
    "HIGH_NOISE": "Pixel has high (>12 e-/s)",
    "UNRELIABLE_BIAS": "Unreliable bias",
    "GHOST_CROSSTALK": "Pixel affected by ghost/crosst",
    "COSMIC_RAY": "Pixel affected by cosmic ray",
    "SATURATED_EARLY": "Saturation occured before 2nd",
    "NO_LINEARITY_OR_SATURATION_CHECK": "No linearity correction/sat. c",
    "MSFL_FAILED_OPEN": "MSFL - contamination by a fail",
    "MSFL_ZERO_ORDER": "MFSL - contamination by a zero",
    "MSFL_BRIGHT_SOURCE": "MSFL - contamination by a brig",
    "AWCS_NO_WAVELENGTH": "AWCS - no assigned wavelength",
    "AWCS_WAVELENGTH_OUTSIDE": "AWCS - wavelength outside extr",
    "AWCS_Y_OUTSIDE": "AWCS - relative y coordinate o",
    "RECT_NO_COVERAGE": "RECT - no coverage",
    "RECT_LOW_COVERAGE": "RECT - low coverage",
    "RECT_PARTIAL_COVERAGE": "RECT - partial coverage",
    "DO_NOT_USE": "Do not use",
}


def test_all_64_bits_have_the_names_of_the_product():
    """Against the flag table read off a NIPS 2.0.48 product."""
    path = SHARED / "flags" / "nips_dqflags.csv"
    if not path.is_file():
        pytest.skip("the flag table is not at ../shared/data/flags")
    rows = list(csv.DictReader(path.open()))
    assert [int(r["bit"]) for r in rows] == list(range(64))
    names = {mask.bit_length() - 1: name for name, mask in NIPS_FLAGS.items()}
    for row in rows:
        bit, text = int(row["bit"]), row["description"]
        # As a 64-bit integer with a sign; the table has 0 for the first bit.
        assert int(row["value_in_file"]) % 2**64 in {1 << bit, 0 if bit == 0 else 1 << bit}
        if text == "Not assigned.":
            assert bit not in names or (bit, names[bit]) == (62, "OUTLIER")
            continue
        step, _, rest = text.partition(" - ")
        usual = {"no correction": f"{step}_NONE", "low-quality correction": f"{step}_LOW"}
        name = usual.get(rest) or next(n for n, begin in OTHERS.items() if text.startswith(begin))
        assert NIPS_FLAGS[name] == 1 << bit
    assert len(names) == len(NIPS_FLAGS) == 51


def test_every_bit_is_read_and_found_by_its_name(files, tmp_path):
    def edit(name, suffix, hdu):
        hdu = hdu.copy()
        if name == "QUALITY":
            hdu.data[2, :64] = np.uint64(1) << np.arange(64, dtype=np.uint64)
        return hdu

    ds = opened(rewritten(files[:1], tmp_path / "a", edit), None)
    one = ds.isel(slit=int(np.flatnonzero(ds.detector.values == "NRS1")[0]), y=2).quality
    for name, mask in NIPS_FLAGS.items():
        set_here = (one.values & np.uint64(flag_mask(ds.quality, [name]))) != 0
        assert set_here[:64].tolist() == [1 << b == mask for b in range(64)], name


def test_flags_by_name_of_their_table(files, original):
    assert mx.NipsLayout.from_mapping({"flags": "stsci"}).flags == JWST_FLAGS
    assert mx.NipsLayout.from_mapping({"flags": "NIPS"}).flags == NIPS_FLAGS
    assert mx.NipsLayout.from_mapping({"flags": {"DO_NOT_USE": 4}}).flags == {"DO_NOT_USE": 4}


# ------------------------------------------------------------------------------------------------
# What the table may hold


def test_an_empty_table_is_the_default(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("# nothing\n")
    for layout in (None, {}, path, str(path), mx.NipsLayout()):
        assert asdict(mx.NipsLayout.of(layout)) == asdict(mx.NipsLayout())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('wavelenght = "AWCS"', ("unknown key", ", wavelenght", "did you mean wavelength?")),
        ("colour = 1", ("unknown key", "one of detectors error flag_bits")),
        ("flux = 3", ("wrong kind", ", flux", "expected text", "found 3")),
        ("flux = true", ("wrong kind", "found True")),
        ('outside = "low"', ("wrong kind", ", outside", "expected a number")),
        ("outside = true", ("wrong kind", "expected a number")),
        ('subtracted = "yes"', ("wrong kind", "true or false")),
        ("turned = [2]", ("wrong kind", ", turned")),
        ('turned = ["NRS3"]', ("unknown detector", ", turned", "NRS3")),
        ('detectors = "NRS1"', ("wrong kind", "expected a table")),
        ("[detectors]\n1 = 491", ("wrong kind", "detectors.1", "found 491")),
        ('[detectors]\n1 = "NRS3"', ("unknown detector", ", detectors", "NRS3")),
        ("[detectors]", ("without a name", "detectors")),
        ("[keywords]\nslitlets = 'A'", ("unknown coordinate", ", keywords", "slitlets")),
        ("[keywords]\nslitlet = 4", ("wrong kind", "keywords.slitlet")),
        ("[sentinels]\nflux = ['x']", ("wrong kind", "sentinels.flux")),
        ("[sentinels]\nquality = [0]", ("unknown plane", ", sentinels", "quality")),
        ("[flag_bits]\nDO_NOT_USE = 64", ("no such bit", "flag_bits.DO_NOT_USE", "0 to 63")),
        ("[flag_bits]\nHOT = 2", ("without DO_NOT_USE", ", flags")),
        ("[flags]\nDO_NOT_USE = 0", ("beyond 64 bits", ", flags")),
        ('flags = "ours"', ("unknown table of flags", "nips stsci")),
        ('flags = "nips"\n[flag_bits]\nDO_NOT_USE = 1', ("two tables of flags",)),
        ('flux = ""', ("without a name", ", extensions")),
        ('wavelength_unit = "furlong"', ("unknown unit", "furlong")),
        ('position_unit = "rows"', ("positions along the slit", "open pitch", "rows")),
        ("flux = ,", ("not a TOML file", "line 1")),
    ],
)
def test_tables_that_make_no_sense(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ParameterError) as caught:
        mx.open_program(tmp_path, nips_layout=path)
    for word in ("mine.toml", *words):
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(ParameterError, match=r"cannot read the layout .*none\.toml"):
        mx.NipsLayout.from_toml(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match=r"not a TOML file .*b\.toml"):
        mx.NipsLayout.from_toml(tmp_path / "b.toml")


def test_on_the_command_line(files, tmp_path):
    out = ["--out", str(tmp_path / "out.zarr")]
    run = ["run", *map(str, files), "--nips-layout", str(tmp_path / "a.toml"), *out]
    (tmp_path / "a.toml").write_text('wavelength = "AWCS"\n')
    answer = CliRunner().invoke(main, run)
    assert answer.exit_code == 2 and "no AWCS1" in answer.stderr
    (tmp_path / "a.toml").write_text('wave = "AWCS"\n')
    answer = CliRunner().invoke(main, run)
    assert answer.exit_code == 2 and "a.toml, wave" in answer.stderr
    assert not (tmp_path / "out.zarr").exists()
