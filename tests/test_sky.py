"""Which slits are sky and which shutter holds the source: metafile, names, states, the user."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from conftest import REAL

import mbkg_xr as mx
from mbkg_xr.errors import InputFileError, ParameterError
from mbkg_xr.io import msa
from mbkg_xr.io.msa import read_metafile
from mbkg_xr.io.sky import judge, state_verdict
from mbkg_xr.schema import occupied_shutters
from mbkg_xr.simulate import simulate_program, write_jwst, write_nips

METAFILES = REAL.parent / "msa_metafiles"
COORDS = ("is_background", "source_shutter")


def metafile(name):
    path = METAFILES / f"{name}_msa.fits.gz"
    if not path.exists():
        pytest.skip("the metafiles are not at ../shared/data/msa_metafiles")
    return path


def opened(paths, **options):
    return mx.open_program(paths, **options)["prism-clear"].to_dataset()


def decided(ds, name="sky_reason"):
    return dict(zip(ds.slitlet.values.tolist(), ds[name].values.tolist(), strict=True))


@pytest.fixture(scope="module")
def programme():
    return simulate_program(
        exposures=3, slits=8, background_slits=2, n_shutters={1: 1, 2: 1, 3: 8}, seed=7
    ).compute()


@pytest.fixture(scope="module")
def folder(programme, tmp_path_factory):
    folder = tmp_path_factory.mktemp("visit")
    write_jwst(programme, folder)
    return folder


def rewritten(source, target, edit):
    """A metafile with its rows of SHUTTER_INFO changed."""
    with fits.open(source) as hdus:
        edit(hdus)
        hdus.writeto(target, overwrite=True)
    return target


# ------------------------------------------------------------------------------------------------
# Real metafiles


@pytest.mark.parametrize(
    ("name", "identifier", "nod", "slitlets", "all_background", "no_primary"),
    [
        ("jw02561002003_01", 1, 1, 191, 50, 55),
        ("jw02561002003_01", 194, 6, 191, 50, 55),
        ("jw02609009001_04", 1, 1, 103, 0, 0),
        ("jw02736007001_01", 1, 1, 74, 0, 0),
        ("jw02736007001_01", 76, 3, 74, 23, 23),
    ],
)
def test_real_metafiles(name, identifier, nod, slitlets, all_background, no_primary):
    """Counted from the table's rows with pandas, and by the reader."""
    path = metafile(name)
    table = Table.read(path, hdu="SHUTTER_INFO").to_pandas()
    here = table[(table.msa_metadata_id == identifier) & (table.dither_point_index == nod)]
    by_slitlet = here.groupby("slitlet_id")
    counts = (
        by_slitlet.ngroups,
        int(by_slitlet.background.apply(lambda b: (b == b"Y").all()).sum()),
        int(by_slitlet.primary_source.apply(lambda p: (p != b"Y").all()).sum()),
    )
    assert counts == (slitlets, all_background, no_primary)
    found = read_metafile(path).slitlets(identifier, nod)
    assert len(found) == slitlets
    assert sum(s.all_background for s in found.values()) == all_background
    assert sum(not s.primary for s in found.values()) == no_primary
    for number, slitlet in found.items():
        rows = by_slitlet.get_group(number)
        middle = (rows.shutter_column.min() + rows.shutter_column.max()) // 2
        assert (slitlet.quadrant, slitlet.row, slitlet.column, slitlet.n_shutters) == (
            rows.shutter_quadrant.iloc[0], rows.shutter_row.iloc[0], middle,
            rows.shutter_column.nunique(),
        )  # fmt: skip
        primary = rows[rows.primary_source == b"Y"]
        assert slitlet.primary == tuple(zip(primary.shutter_column - middle, primary.source_id))


def test_plain_tables_are_what_astropy_reads(tmp_path):
    """Metafiles from orbit, uncompressed, are read without astropy, to the same table."""
    for name in ("jw02561002003_01", "jw02609009001_04", "jw02736007001_01"):
        packed = metafile(name)
        path = tmp_path / f"{name}_msa.fits"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        assert msa._plain_table(path) is not None
        assert msa._plain_table(packed) is None
        plain, other = read_metafile(path), read_metafile(packed)
        assert plain.visit == other.visit
        assert plain.rows.keys() == other.rows.keys()
        for column, values in plain.rows.items():
            np.testing.assert_array_equal(values, other.rows[column])


def test_real_slitlets_with_and_without_a_source():
    """Every slitlet of a visit: 55 are sky, five of which have a source that is not the primary."""
    slitlets = read_metafile(metafile("jw02561002003_01")).slitlets(1, 3)
    verdicts = {
        number: judge({"slitlet": number, "source_name": "", "source_id": 0}, "", slitlets)
        for number in slitlets
    }
    sky = [number for number, v in verdicts.items() if v.is_background]
    assert len(sky) == 55
    with_others = [n for n in sky if verdicts[n].others]
    assert with_others == [8, 38, 86, 107, 191]
    assert verdicts[8].coords["occupied"] == "-1"
    assert verdicts[8].reason == "metafile: no primary source, but source 35426 in shutter -1"
    source = verdicts[2]
    assert (source.is_background, source.source_shutter) == (False, -1.0)
    assert source.reason == "metafile: source 46491 in shutter -1"


def test_second_sources_and_virtual_ones():
    slitlets = read_metafile(metafile("jw02736007001_01")).slitlets(1, 3)
    coords = {"slitlet": 26, "source_name": "", "source_id": 8277}
    verdict = judge(coords, "1x", slitlets)  # two sources in one shutter, one in another
    assert verdict.source_shutter == 1 and verdict.coords["occupied"] == "-1"
    slitlets = read_metafile(metafile("jw02736007001_01")).slitlets(1, 1)
    virtual = {"slitlet": 2, "source_name": "2736_-1", "source_id": -1}
    assert not judge(virtual, "1x", slitlets).is_background
    found = judge(virtual, "1x", slitlets, virtual_sky=True)
    assert found.is_background and found.reason == "virtual source -1"
    n = [
        judge({"slitlet": k, "source_name": "", "source_id": 0}, "", slitlets, virtual_sky=True)
        for k in slitlets
    ]
    assert sum(v.is_background for v in n) == 31


def test_the_official_pipeline_reads_real_metafiles_as_we_do():
    nirspec = pytest.importorskip("jwst.assign_wcs.nirspec")
    for name, identifier, nod in (
        ("jw02561002003_01", 1, 3),
        ("jw02609009001_04", 105, 1),
        ("jw02736007001_01", 76, 2),
    ):
        path = metafile(name)
        slitlets = read_metafile(path).slitlets(identifier, nod)
        theirs = nirspec.get_open_msa_slits("1", str(path), identifier, nod)
        assert sorted(slitlets) == sorted(int(s.name) for s in theirs)
        for slit in theirs:
            ours = slitlets[int(slit.name)]
            verdict = judge({"slitlet": int(slit.name), "source_id": 0}, "", slitlets)
            assert verdict.is_background == ("BKG" in slit.source_name)
            assert (ours.quadrant, ours.row, ours.n_shutters) == (
                slit.quadrant, slit.xcen, len(slit.shutter_state),
            )  # fmt: skip
            marked = slit.shutter_state.index("x") - (ours.n_shutters - 1) // 2
            assert ours.column + marked == slit.ycen
            if not verdict.is_background:
                # They mark the first source of several; the primary one is ours.
                assert marked in (verdict.source_shutter, *verdict.others)
                assert marked == verdict.source_shutter or len(ours.others) > 0
                assert verdict.source_id == slit.source_id


# ------------------------------------------------------------------------------------------------
# Products and their metafile


def test_the_metafile_beside_the_products(programme, folder):
    ds = opened(folder / "*_cal.fits")
    for name in COORDS:
        np.testing.assert_array_equal(ds[name].values, programme[name].values)
    reasons = set(ds.sky_reason.values)
    assert "metafile: every shutter background" in reasons
    assert all(text.startswith("metafile: ") for text in reasons)
    among = opened(folder)
    np.testing.assert_array_equal(among.sky_reason.values, ds.sky_reason.values)


def test_without_a_metafile_the_product_tells(programme, folder, tmp_path):
    for path in folder.glob("*_cal.fits"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    ds = opened(tmp_path)
    for name in COORDS:
        np.testing.assert_array_equal(ds[name].values, programme[name].values)
    for name, reason in zip(ds.source_name.values, ds.sky_reason.values, strict=True):
        assert reason.startswith(f"name {name}" if "BKG" in name else "shutter state ")
    # The same metafile from elsewhere, compressed.
    source = next(folder.glob("*_msa.fits"))
    given = tmp_path / "elsewhere" / "edited_msa.fits.gz"
    given.parent.mkdir()
    given.write_bytes(gzip.compress(source.read_bytes()))
    ds = opened(tmp_path, metafile=given)
    assert all(text.startswith("metafile: ") for text in ds.sky_reason.values)


def test_a_metafile_that_knows_more_than_the_product(programme, folder, tmp_path):
    """A second source, a closed shutter, and a slitlet that turned out empty."""
    science = np.unique(programme.slitlet[~programme.is_background & (programme.n_shutters == 3)])
    second, closed, empty, virtual = (int(n) for n in science[:4])

    def edit(hdus):
        rows = hdus["SHUTTER_INFO"].data
        no_source = (rows["primary_source"] != "Y") & (rows["dither_point_index"] == 1)
        this = no_source & (rows["slitlet_id"] == second)
        first = np.flatnonzero(this)[0]
        rows["source_id"][first], rows["background"][first] = 4711, "N"
        first = np.flatnonzero(no_source & (rows["slitlet_id"] == closed))[0]
        rows["shutter_state"][first] = "CLOSED"
        rows["primary_source"][rows["slitlet_id"] == empty] = "N"
        rows["background"][rows["slitlet_id"] == empty] = "Y"
        rows["source_id"][(rows["slitlet_id"] == virtual) & (rows["source_id"] > 0)] = -5

    edited = rewritten(next(folder.glob("*_msa.fits")), tmp_path / "x_msa.fits", edit)
    first = next(folder.glob("*00001_nrs1_cal.fits"))
    with pytest.warns(UserWarning, match="do not agree") as caught:
        ds = opened(first, metafile=edited)
    text = "".join(str(w.message) for w in caught)
    assert f"slitlet {empty}: metafile: every shutter background (the product says source" in text
    assert f"slitlet {virtual}: metafile: source -5" in text and f"slitlet {second}" not in text
    assert decided(ds, "is_background")[empty]
    occupied = decided(ds, "occupied")
    # The source is in the middle shutter at the first nod.
    assert occupied[second] == "-1" and occupied[closed] == "-1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = opened(first, metafile=edited, virtual_sky=True)
    assert decided(ds, "is_background")[virtual]

    # Neither shutter is taken for sky, in any of the steps.
    selected = mx.select_background(ds).selected.values
    centres = mx.sky_centres(mx.residuals(mx.subtract_nods(opened(folder, metafile=edited)))).values
    both = decided(ds, "source_shutter")
    for i, number in enumerate(ds.slitlet.values.tolist()):
        yrel = ds.yrel.values[i]
        seen = set(np.unique(np.round(yrel[selected[i]])).astype(int))
        if number in (second, closed):
            assert both[number] == 0 and seen == {1}
            assert set(np.unique(np.round(yrel[centres[i]])).astype(int)) <= {1}
        elif number in (empty, virtual):
            assert seen == {-1, 0, 1}


def test_metafile_of_another_visit(folder, tmp_path):
    with pytest.raises(InputFileError, match=r"another visit.*09999001001.*02561002003"):
        opened(folder, metafile=metafile("jw02561002003_01"))

    # Beside the product under the name it gives, but not its own.
    def edit(hdus):
        hdus[0].header["VISIT_ID"] = "09999002001"

    for path in folder.glob("*00001_nrs1_cal.fits"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = next(folder.glob("*_msa.fits"))
    rewritten(source, tmp_path / source.name, edit)
    with pytest.warns(UserWarning, match="is of visit 09999002001"):
        ds = opened(tmp_path)
    assert "is of visit 09999002001" in ds.sky_reason.values[0]
    assert ds.sky_reason.values[0].startswith(("name ", "shutter state "))


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda rows: rows["shutter_row"].__iadd__(1), "shutters differ: quadrant"),
        (lambda rows: rows["slitlet_id"].__iadd__(500), "not in the metafile"),
        (lambda rows: rows["msa_metadata_id"].__iadd__(1), "no MSA configuration 1 at nod 1"),
    ],
)
def test_a_metafile_that_does_not_fit_is_said_and_not_used(folder, tmp_path, edit, match):
    source = next(folder.glob("*_msa.fits"))
    edited = rewritten(source, tmp_path / source.name, lambda h: edit(h["SHUTTER_INFO"].data))
    with pytest.warns(UserWarning, match=match):
        ds = opened(next(folder.glob("*00001_nrs1_cal.fits")), metafile=edited)
    assert all(match in text for text in ds.sky_reason.values)
    assert all(text.startswith(("name ", "shutter state ")) for text in ds.sky_reason.values)


@pytest.mark.parametrize("keep", [0, 100, 3000, 20000])
def test_broken_metafiles(folder, tmp_path, keep):
    source = next(folder.glob("*_msa.fits"))
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes()[:keep])
    cal = next(folder.glob("*00001_nrs1_cal.fits"))
    with pytest.raises(InputFileError, match=r"_msa.fits"):
        opened(cal, metafile=path)
    with pytest.raises(InputFileError, match=r"nothing_msa.fits"):
        opened(cal, metafile=tmp_path / "nothing_msa.fits")
    with pytest.raises(InputFileError, match="not an MSA metafile"):
        opened(cal, metafile=cal)
    (tmp_path / cal.name).write_bytes(cal.read_bytes())
    with pytest.raises(InputFileError, match=r"_msa.fits"):
        opened(tmp_path / cal.name)
    with pytest.warns(UserWarning, match="metafile"):
        ds = opened(tmp_path / cal.name, on_error="warn")
    assert ds.sizes["slit"] == 8


# ------------------------------------------------------------------------------------------------
# Shutter states, and the user's word


@pytest.mark.parametrize(
    ("state", "sky", "source", "closed"),
    [
        ("1x1", False, 0, ()),
        ("x11", False, -1, ()),
        ("11x", False, 1, ()),
        ("111", True, np.nan, ()),
        ("1x", False, 1, ()),
        ("x", False, 0, ()),
        ("x0011", False, -2, (-1, 0)),
        ("xx1", False, np.nan, ()),
        ("", False, np.nan, ()),
    ],
)
def test_shutter_states(state, sky, source, closed):
    verdict = state_verdict(state)
    np.testing.assert_equal(
        (verdict.is_background, verdict.source_shutter, verdict.closed), (sky, source, closed)
    )


def test_a_list_of_slitlets_is_the_whole_truth(programme, folder):
    sky = np.unique(programme.slitlet[programme.is_background]).tolist()
    science = np.unique(programme.slitlet[~programme.is_background]).tolist()
    ds = opened(folder, sky=[sky[0], science[0]])
    found = decided(ds, "is_background")
    assert [n for n, is_sky in found.items() if is_sky] == sorted([sky[0], science[0]])
    reasons = decided(ds)
    assert reasons[sky[0]] == "the user's list"
    assert reasons[sky[1]] == "not in the user's list; metafile: every shutter background"
    # A slitlet that is no sky, and has no source that is known, is used for nothing.
    assert np.isnan(decided(ds, "source_shutter")[sky[1]])
    assert decided(ds, "source_shutter").keys() == found.keys()
    chosen = mx.select_background(ds).selected.any(("y", "x")).values
    assert not chosen[ds.slitlet.values == sky[1]].any()
    with pytest.raises(ParameterError, match=r"not in the products.*found 77"):
        opened(folder, sky=[sky[0], 77])
    for wrong in ([], "three", [1.5], {"slitlet": 3}):
        with pytest.raises((ParameterError, InputFileError), match="sky"):
            opened(folder, sky=wrong)


def test_a_table_of_slitlets(programme, folder, tmp_path):
    sky, science = (
        int(programme.slitlet[programme.is_background.values == flag][0]) for flag in (True, False)
    )
    exposure = str(programme.exposure.values[-1])
    table = pd.DataFrame(
        {
            "slitlet": [sky, science],
            "exposure": [None, exposure],
            "is_background": [False, False],
            "source_shutter": [1, -1],
        }
    )
    table.to_csv(tmp_path / "sky.csv", index=False)
    Table.from_pandas(table.fillna({"exposure": ""})).write(tmp_path / "sky.ecsv")
    plain = opened(folder)
    for given in (table, tmp_path / "sky.csv", str(tmp_path / "sky.ecsv")):
        ds = opened(folder, sky=given)
        of_sky = ds.slitlet.values == sky
        assert not ds.is_background.values[of_sky].any()
        assert (ds.source_shutter.values[of_sky] == 1).all()
        changed = (ds.slitlet.values == science) & (ds.exposure.values == exposure)
        assert changed.sum() == 1 and ds.source_shutter.values[changed] == -1
        rest = ~of_sky & ~changed
        for name in (*COORDS, "sky_reason"):
            np.testing.assert_array_equal(ds[name].values[rest], plain[name].values[rest])
        assert "row 2" in ds.sky_reason.values[changed][0]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ({"slit": [1]}, "unknown columns.*found slit"),
        ({"slitlet": [2], "colour": ["red"]}, "unknown columns"),
        ({"slitlet": ["two"]}, "row 1.*whole number; found two"),
        ({"slitlet": [None]}, "row 1"),
        ({"slitlet": [1], "is_background": ["perhaps"]}, "true or false; found perhaps"),
        ({"slitlet": [1], "is_background": [True], "source_shutter": [0]}, "unusable row"),
        ({"slitlet": [1, 1], "is_background": [True, False]}, "contradict each other.*slitlet 1"),
        ({"slitlet": [1], "exposure": ["jw0"]}, "not in the products"),
    ],
)
def test_bad_tables(folder, rows, match):
    with pytest.raises(ParameterError, match=match):
        opened(folder, sky=pd.DataFrame(rows))


def test_the_users_word_on_a_store(program, tmp_path):
    mx.save(program, tmp_path / "p.zarr")
    science = np.unique(program.slitlet[~program.is_background])
    ds = opened(tmp_path / "p.zarr", sky=science)
    np.testing.assert_array_equal(ds.is_background.values, np.isin(ds.slitlet, science))
    assert set(ds.sky_reason.values) == {"the user's list", "not in the user's list; "}
    with pytest.raises(ParameterError, match="not in the products"):
        opened(tmp_path / "p.zarr", sky=[999])
    with pytest.raises(ParameterError, match="a store was decided on when it was made"):
        opened(tmp_path / "p.zarr", metafile="x_msa.fits")


def test_the_users_word_on_nips_products(tmp_path):
    ds = simulate_program(exposures=1, slits=3, background_slits=1, seed=6).compute()
    write_nips(ds, tmp_path)
    science = int(ds.slitlet[~ds.is_background][0])
    found = opened(tmp_path, sky=[science])
    assert decided(found, "is_background") == {int(n): int(n) == science for n in ds.slitlet.values}


def test_the_engine_takes_the_users_word_too(programme, folder):
    import xarray as xr

    from mbkg_xr.io.backend import MbkgBackend

    number = int(programme.slitlet[~programme.is_background][0])
    ds = xr.open_dataset(folder, engine=MbkgBackend, sky=[number])
    assert np.unique(ds.slitlet[ds.is_background]).tolist() == [number]


def test_occupied_shutters(program):
    ds = program.isel(slit=slice(3)).assign_coords(
        is_background=("slit", [False, True, False]),
        source_shutter=("slit", np.array([1, np.nan, 0], np.float32)),
        occupied=("slit", ["-1 0", "1", ""]),
    )
    nan = np.nan
    expected = [[1, -1, 0], [1, nan, nan], [0, nan, nan]]
    np.testing.assert_array_equal(occupied_shutters(ds)[:, 0], expected)
