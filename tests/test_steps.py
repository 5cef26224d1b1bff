"""What pixels of STScI products mean: each decision by a table, all together against truth."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

import mbkg_xr as mx
from mbkg_xr.barshadow import reference_profile
from mbkg_xr.errors import InputFileError, ParameterError
from mbkg_xr.io.calibration import Facts, calibration
from mbkg_xr.io.jwst import scan_file
from mbkg_xr.io.steps import (
    bars_divided_out,
    calibrated_as,
    path_loss_divided_out,
    subtracted_by,
    surface_brightness,
    wavelength_shifted,
)
from mbkg_xr.simulate import CLEAN, simulate_program, write_jwst

PS, UN, BARS = "PATHLOSS_PS", "PATHLOSS_UN", "BARSHADOW"
DONE, SKIPPED = "COMPLETE", "SKIPPED"


def edited(source, target, edit):
    with fits.open(source) as hdus:
        hdus = fits.HDUList([h.copy() for h in hdus])
        hdus = edit(hdus) or hdus
        hdus.writeto(target)
    return target


def opened(paths, **options):
    return mx.open_program(paths, **options)["prism-clear"].to_dataset()


# ------------------------------------------------------------------------------------------------
# One decision each


@pytest.mark.parametrize(
    ("corrected", "status", "point", "filed", "expected"),
    [
        (True, None, False, None, True),
        (False, DONE, False, True, False),  # the slit's own keyword counts
        (None, DONE, False, True, True),
        (None, DONE, False, None, True),
        (None, DONE, False, False, False),  # all 1: nothing was divided out
        (None, DONE, True, False, False),  # bars stay in slits of point sources
        (None, SKIPPED, False, True, False),  # the profile is there, and was not applied
        (None, SKIPPED, False, None, False),
        (None, None, False, True, True),  # the real slitlets
        (None, None, False, False, False),
        (None, None, False, None, False),  # older reductions
    ],
)
def test_bars(corrected, status, point, filed, expected):
    assert bars_divided_out(corrected, status, point, filed) is expected


@pytest.mark.parametrize(
    ("kind", "status", "point", "has_extension", "expected"),
    [
        ("POINT", DONE, True, True, "POINT"),
        ("UNIFORM", DONE, True, True, "UNIFORM"),
        (None, DONE, True, True, "POINT"),
        (None, DONE, False, True, "UNIFORM"),
        (None, DONE, False, False, ""),  # a source outside its slit is not corrected
        (None, SKIPPED, False, True, ""),
        (None, "FAILED", False, True, ""),
        (None, None, False, True, "UNIFORM"),
        (None, None, False, False, ""),
    ],
)
def test_path_loss(kind, status, point, has_extension, expected):
    assert path_loss_divided_out(kind, status, point, has_extension) == expected


@pytest.mark.parametrize(
    ("corrected", "status", "point", "frames", "expected"),
    [
        (True, DONE, True, (), True),
        (False, DONE, True, (), False),
        (None, DONE, True, (), True),
        (None, DONE, False, (), False),
        (None, SKIPPED, True, (), False),
        (None, None, True, (), False),
        (None, None, False, ("detector", "slit_frame", "wavecorr_frame"), True),
    ],
)
def test_wavelength(corrected, status, point, frames, expected):
    assert wavelength_shifted(corrected, status, point, frames) is expected


@pytest.mark.parametrize(
    ("source_type", "units", "expected"),
    [
        ("POINT", "MJy", "POINT"),
        ("EXTENDED", "MJy/sr", "EXTENDED"),
        ("UNKNOWN", "MJy/sr", "EXTENDED"),
        ("POINT", "DN/s", "POINT"),
        (None, "MJy/sr", "EXTENDED"),
        (None, "Jy", "POINT"),
        (None, "DN/s", ""),
    ],
)
def test_kind_of_source(source_type, units, expected):
    assert calibrated_as(source_type, units) == expected


@pytest.mark.parametrize(
    ("units", "area", "errors", "expected"),
    [
        ("MJy/sr", None, None, ("MJy/sr", 1.0)),
        ("MJy/sr", 4.8e-13, "MJy/sr", ("MJy/sr", 1.0)),
        ("DN/s", None, "DN/s", ("DN/s", 1.0)),
        ("MJy", 5e-13, "MJy", ("MJy/sr", 2e12)),
        ("Jy", 5e-13, None, ("MJy/sr", 2e6)),
        ("MJy", None, None, "no PIXAR_SR"),
        ("MJy", 0.0, None, "PIXAR_SR 0"),
        ("MJy", float("nan"), None, "PIXAR_SR nan"),
        ("MJy", 1.0, None, "PIXAR_SR 1.0"),  # what the pipeline writes where it knows no area
        ("MJy/sr", 1.0, None, "PIXAR_SR 1.0"),
        ("MJy", 5e-13, "MJy/sr", "different units"),
        ("erg", None, None, "not a surface brightness"),
        ("", None, None, "no BUNIT"),
        ("furlong", None, None, "found furlong"),
    ],
)
def test_units(units, area, errors, expected):
    if isinstance(expected, tuple):
        unit, factor = surface_brightness(units, area, errors)
        assert (unit, pytest.approx(factor)) == expected
    else:
        with pytest.raises(InputFileError, match=expected):
            surface_brightness(units, area, errors)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({}, ""),
        ({"S_BKDSUB": SKIPPED, "S_MSBSUB": SKIPPED}, ""),
        ({"S_BKDSUB": DONE}, "S_BKDSUB"),
        ({"S_MSBSUB": DONE, "S_BKDSUB": SKIPPED}, "S_MSBSUB"),
        ({"S_MSBSUB": DONE, "S_BKDSUB": DONE}, "S_BKDSUB S_MSBSUB"),
    ],
)
def test_subtractions(steps, expected):
    assert subtracted_by(steps) == expected


EXTENDED = Facts(
    {"S_FLAT": DONE, "S_PTHLOS": DONE, "S_BARSHA": DONE, "S_PHOTOM": DONE},
    "MJy/sr",
    source_type="EXTENDED",
    path_loss="UNIFORM",
    bars_corrected=True,
    pixel_area=5e-13,
    shutter_state="1x1",
    extensions=(PS, UN, BARS),
)
POINT = replace(
    EXTENDED,
    units="MJy",
    source_type="POINT",
    path_loss="POINT",
    bars_corrected=False,
    bars_filed=False,
)


@pytest.mark.parametrize(
    ("facts", "common", "loss", "bars"),
    [
        (EXTENDED, False, "", ""),
        (POINT, False, "UN/PS", "profile"),
        (replace(EXTENDED, bars_corrected=False, bars_filed=True), False, "", "BARSHADOW"),
        (replace(EXTENDED, bars_corrected=False, extensions=(PS, UN)), False, "", "profile"),
        (replace(EXTENDED, path_loss=None, steps={"S_PTHLOS": SKIPPED}), False, "UN", ""),
        (
            replace(EXTENDED, path_loss=None, steps={"S_PTHLOS": SKIPPED}, extensions=()),
            True, "", "",
        ),
        (replace(EXTENDED, bars_corrected=False, shutter_state=""), False, "", ""),  # a fixed slit
    ],
)  # fmt: skip
def test_response(facts, common, loss, bars):
    found = calibration(facts, common_loss=common)
    assert (found.path_loss, found.bars) == (loss, bars)
    assert found.has_response == bool(loss or bars)
    assert found.units == "MJy/sr"


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        (replace(POINT, extensions=(UN,)), "no PATHLOSS_PS"),
        (replace(POINT, extensions=(PS,)), "no PATHLOSS_UN"),
        (replace(POINT, pixel_area=None), "no PIXAR_SR"),
        (replace(POINT, path_loss=None, extensions=()), "not corrected for path loss"),
        (replace(EXTENDED, path_loss=None, extensions=()), "not corrected for path loss"),
        (replace(EXTENDED, steps={"S_FLAT": SKIPPED}), "S_FLAT SKIPPED"),
        (replace(EXTENDED, steps={"S_PHOTOM": SKIPPED}), "MJy/sr and S_PHOTOM SKIPPED"),
        (replace(EXTENDED, units="DN/s"), "DN/s and S_PHOTOM COMPLETE"),
    ],
)
def test_refusals(facts, match):
    with pytest.raises(InputFileError, match=match):
        calibration(facts)


def test_accepted():
    calibration(replace(EXTENDED, steps={"S_FLAT": SKIPPED}), accept=["S_FLAT"])
    calibration(replace(EXTENDED, units="DN/s"), accept=["S_PHOTOM"])
    with pytest.raises(ParameterError, match="S_BARSHA"):
        mx.open_program("nothing.fits", accept=["S_BARSHA"])


@given(
    status=st.sampled_from([None, DONE, SKIPPED]),
    loss=st.sampled_from([None, "POINT", "UNIFORM"]),
    extensions=st.sets(st.sampled_from([PS, UN, BARS])),
    bars=st.sampled_from([None, True, False]),
    units=st.sampled_from(["MJy", "MJy/sr"]),
    common=st.booleans(),
)
def test_no_path_loss_is_ever_guessed(status, loss, extensions, bars, units, common):
    """Whatever the keywords: a slit is refused, or its response uses extensions that are there."""
    facts = Facts(
        {} if status is None else {"S_PTHLOS": status, "S_BARSHA": status},
        units,
        path_loss=loss,
        bars_corrected=bars,
        pixel_area=5e-13,
        shutter_state="1x1",
        extensions=tuple(sorted(extensions)),
        bars_filed=True if BARS in extensions else None,
    )
    try:
        found = calibration(facts, common_loss=common)
    except InputFileError:
        return
    assert {"": set(), "UN": {UN}, "UN/PS": {UN, PS}}[found.path_loss] <= extensions
    assert found.bars != "BARSHADOW" or BARS in extensions
    assert found.flux_factor == (2e12 if units == "MJy" else 1)


# ------------------------------------------------------------------------------------------------
# Slits of point sources, against simulated truth


@pytest.fixture(scope="module")
def programme():
    """Half of the slits with a point source; nothing but sky, sources and noise."""
    return simulate_program(
        exposures=2,
        slits=8,
        background_slits=4,
        calibration="POINT",
        n_shutters={1: 1, 2: 1, 3: 3},
        seed=3,
        **CLEAN,
    ).compute()


@pytest.fixture(scope="module")
def files(programme, tmp_path_factory):
    return write_jwst(programme, tmp_path_factory.mktemp("point"))


@pytest.fixture(scope="module")
def point(files):
    return opened(files[0].parent).load()


def truth_of(programme, ds):
    def keys(d):
        return list(zip(d.exposure.values.tolist(), d.slitlet.values.tolist(), strict=True))

    order = [keys(programme).index(key) for key in keys(ds)]
    return programme.isel(slit=order, y=slice(ds.sizes["y"]), x=slice(ds.sizes["x"]))


def test_point_sources_open_in_the_unit_of_the_others(programme, point):
    truth = truth_of(programme, point)
    assert point.flux.attrs["units"] == "MJy/sr"
    assert point.response.dtype == np.float32 and point.response.dims == ("slit", "y", "x")
    is_point = np.abs(truth.response - 1).max(("y", "x")).values > 1e-6
    assert point.calibrated_as.values.tolist() == ["POINT" if p else "EXTENDED" for p in is_point]
    np.testing.assert_allclose(point.flux_factor, np.where(is_point, 1 / 4.85e-13, 1))
    for name in ("flux", "error", "var_rnoise", "var_poisson", "response"):
        np.testing.assert_allclose(point[name].values, truth[name].values, rtol=3e-6, err_msg=name)
    inside = np.isfinite(truth.wavelength.values[~is_point])
    np.testing.assert_array_equal(point.response.values[~is_point] == 1, inside)


def test_a_master_of_extended_slits_serves_point_sources(programme, point):
    """Fitted on sky slits alone, subtracted from slits calibrated as point sources."""
    is_point = point.calibrated_as.values == "POINT"
    master = mx.fit_master(mx.select_background(point.isel(slit=~is_point)))
    of_points = point.isel(slit=is_point)
    background = mx.project_master(of_points, master).background.values
    true = truth_of(programme, of_points).true_background.values
    wavelength, yrel = of_points.wavelength.values, of_points.yrel.values
    centre = np.abs(yrel - np.round(yrel)) < 0.35
    mask = np.isfinite(true) & centre & (wavelength > 0.7) & (wavelength < 5.2)
    ratio = background[mask] / true[mask]
    assert abs(np.median(ratio) - 1) < 2e-3
    assert np.percentile(np.abs(ratio - 1), 90) < 0.04  # the noise of this small programme's master
    # Without the response the same master would be wrong by the ratio of path losses.
    wrong = mx.project_master(of_points.drop_vars("response"), master).background.values
    assert np.median(wrong[mask] / true[mask]) < 0.6


def test_nothing_is_computed(files, compute_nothing):
    ds = opened(files[0].parent)
    assert ds.response.chunks is not None
    mx.select_background(ds)


def test_facts_are_plain(files):
    sources = scan_file(files[0])
    assert json.loads(json.dumps([asdict(s) for s in sources]))


@pytest.mark.parametrize("name", [PS, UN])
def test_point_sources_without_path_loss_are_refused(files, tmp_path, name):
    path = edited(
        files[0],
        tmp_path / files[0].name,
        lambda hdus: fits.HDUList([h for h in hdus if h.name != name]),
    )
    with pytest.raises(InputFileError, match=f"_cal.fits, slitlets .*expected .*no {name}"):
        mx.open_program(path)
    with pytest.warns(UserWarning, match="left out: .*slitlets"):
        ds = opened(path, on_error="warn")
    assert set(ds.calibrated_as.values) == {"EXTENDED"}


def test_point_sources_without_pixel_area_are_refused(files, tmp_path):
    def edit(hdus):
        for hdu in hdus:
            if hdu.header.get("SRCTYPE") == "POINT":
                hdu.header["PIXAR_SR"] = 1.0

    path = edited(files[0], tmp_path / files[0].name, edit)
    with pytest.raises(InputFileError, match=r"slitlets \d+, .*found PIXAR_SR 1"):
        mx.open_program(path)


def test_shifted_wavelengths_are_undone(files, point, tmp_path):
    """WAVELENGTH as the wavecorr step leaves it: a fraction of a pixel off."""

    def edit(hdus):
        for hdu in hdus:
            if hdu.name != "SCI":
                continue
            hdu.header["WAVECOR"] = hdu.header["SRCTYPE"] == "POINT"
            if hdu.header["WAVECOR"]:
                hdus["WAVELENGTH", hdu.ver].data += 0.004
        hdus[0].header["S_WAVCOR"] = DONE

    path = edited(files[0], tmp_path / files[0].name, edit)
    with fits.open(path) as hdus:
        filed = hdus["WAVELENGTH", 1].data
    ds = opened(path)
    want = point.isel(slit=slice(ds.sizes["slit"]))
    np.testing.assert_allclose(ds.wavelength.values, want.wavelength.values, atol=1e-5)
    ny, nx = filed.shape
    off = np.nanmedian(filed - want.wavelength.values[0, :ny, :nx])
    assert off == pytest.approx(0.004 if ds.calibrated_as[0] == "POINT" else 0, abs=1e-5)
    shifted = ["shift of wavelength undone" in text for text in ds.calibration.values]
    assert shifted == (ds.calibrated_as.values == "POINT").tolist()


def test_a_frame_added_to_the_wcs_tells_too(files, point, tmp_path):
    """As the wavecorr step adds it; here no keyword says so."""
    from astropy.modeling.models import Identity, Tabular1D
    from gwcs import coordinate_frames as cf
    from stdatamodels.jwst import datamodels

    path = tmp_path / files[0].name
    at = np.linspace(0.5e-6, 5.6e-6, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with datamodels.open(files[0]) as model:
            for slit in model.slits:
                if slit.source_type != "POINT":
                    continue
                spatial = cf.Frame2D(name="slit_spatial", axes_order=(0, 1), unit=("", ""))
                spectral = cf.SpectralFrame(name="spectral", axes_order=(2,), unit=("micron",))
                frame = cf.CompositeFrame([spatial, spectral], name="wavecorr_frame")
                table = Tabular1D(at, at + 4e-9, bounds_error=False, fill_value=None)
                slit.meta.wcs.insert_frame("slit_frame", Identity(2) & table, frame)
                y, x = np.mgrid[: slit.data.shape[0], : slit.data.shape[1]].astype(float)
                inside = np.isfinite(slit.wavelength)
                slit.wavelength = np.where(inside, slit.meta.wcs(x, y)[2], np.nan)
            model.save(path)
    ds = opened(path)
    want = point.isel(slit=slice(ds.sizes["slit"]))
    np.testing.assert_allclose(ds.wavelength.values, want.wavelength.values, atol=1e-5)
    np.testing.assert_allclose(ds.yrel.values, want.yrel.values, atol=1e-6)
    shifted = ["shift of wavelength undone" in text for text in ds.calibration.values]
    assert shifted == (ds.calibrated_as.values == "POINT").tolist()


# ------------------------------------------------------------------------------------------------
# Real slitlets, calibrated otherwise


def test_real_slitlets_have_no_response(real):
    assert "response" not in real.coords
    assert set(real.calibrated_as.values) == {"EXTENDED"}
    assert all("bars divided out (BARSHADOW is not all 1)" in t for t in real.calibration.values)


def _bars_left_in(hdus, *, extension):
    bars = hdus[BARS].data
    for name, power in (("SCI", 1), ("ERR", 1), ("VAR_POISSON", 2), ("VAR_RNOISE", 2)):
        hdus[name].data *= bars**power
    hdus[0].header["S_BARSHA"] = SKIPPED
    if not extension:
        return fits.HDUList([h for h in hdus if h.name != BARS])
    return None


def test_bars_that_were_not_divided_out(real_files, real, tmp_path):
    """From the extension they are exactly what was left in; the package's profile comes close."""
    inside = np.isfinite(real.wavelength.values[0])
    with fits.open(real_files[0]) as hdus:
        bars = hdus[BARS].data
    one = edited(real_files[0], tmp_path / "a.fits", lambda h: _bars_left_in(h, extension=True))
    ds = opened(one).load()
    np.testing.assert_allclose(ds.response.values[0][inside], bars[inside], rtol=1e-6)
    np.testing.assert_allclose(
        (ds.flux / ds.response).values[0][inside], real.flux.values[0][inside], rtol=1e-5
    )
    # Older reductions have no such extension, and no keyword either.
    two = edited(real_files[0], tmp_path / "b.fits", lambda h: _bars_left_in(h, extension=False))
    with fits.open(two, mode="update") as hdus:
        del hdus[0].header["S_BARSHA"]
    ds = opened(two).load()
    assert "bars in response (mbkg_xr's profile)" in str(ds.calibration.values[0])
    yrel = real.yrel.values[0]
    centre = inside & (np.abs(yrel - np.round(yrel)) < 0.2) & (np.abs(yrel) < 1.5)
    difference = (ds.response.values[0] - bars)[centre]
    assert np.sqrt(np.mean(difference**2)) < 0.015
    np.testing.assert_allclose(
        ds.response.values[0][inside], reference_profile(yrel, "1x1")[inside], rtol=1e-6
    )


def test_path_loss_that_was_not_corrected(real_files, real, tmp_path):
    def edit(hdus):
        hdus["SCI"].data *= hdus[UN].data
        hdus[0].header["S_PTHLOS"] = SKIPPED

    ds = opened(edited(real_files[0], tmp_path / "a.fits", edit))
    inside = np.isfinite(real.wavelength.values[0])
    np.testing.assert_allclose(
        (ds.flux / ds.response).values[0][inside], real.flux.values[0][inside], rtol=1e-5
    )

    def bare(hdus):
        edit(hdus)
        return fits.HDUList([h for h in hdus if not h.name.startswith("PATHLOSS")])

    # Where no slit has it, the sky is that behind the path loss: one for all.
    paths = [edited(f, tmp_path / f"b{i}.fits", bare) for i, f in enumerate(real_files[:2])]
    ds = opened(paths)
    assert "response" not in ds.coords
    assert all("path loss corrected in no slit" in text for text in ds.calibration.values)
    with pytest.raises(InputFileError, match=r"b0.fits, slitlet 138.*no PATHLOSS_UN"):
        mx.open_program([paths[0], real_files[1]])


def test_steps_of_files_are_told(real_files, tmp_path):
    def edit(hdus):
        hdus[0].header["S_PXREPL"] = DONE

    path = edited(real_files[0], tmp_path / "a.fits", edit)
    ds = opened([path, real_files[1]])
    assert ds.attrs["calibration_steps"] == "S_PXREPL COMPLETE (1 of 2); S_MSAFLG COMPLETE"


def test_replaced_pixels_are_not_sky(real_files, real_selected, tmp_path):
    """FLUX_ESTIMATED is what the pipeline's pixel replacement leaves in DQ."""
    chosen = real_selected.selected.values[0]
    row, column = np.argwhere(chosen)[len(np.argwhere(chosen)) // 2]

    def edit(hdus):
        hdus[0].header["S_PXREPL"] = DONE
        hdus["DQ"].data[row, column] |= np.uint32(1 << 28)

    ds = mx.select_background(opened(edited(real_files[0], tmp_path / "a.fits", edit)))
    assert not ds.selected.values[0, row, column]
    assert ds.selected.values[0].sum() >= chosen.sum() - 3


def test_subtracted_products_say_so(real_files, tmp_path):
    def edit(hdus):
        hdus[0].header["S_BKDSUB"] = DONE

    tree = mx.open_program([edited(real_files[0], tmp_path / "a.fits", edit), real_files[1]])
    found = {name: node.subtracted.values.tolist() for name, node in tree.children.items()}
    assert found == {"prism-clear-subtracted": ["S_BKDSUB"], "prism-clear": [""]}


def test_subtracted_slits_need_no_path_loss(files, tmp_path):
    """Nothing is projected on them; they open to be compared."""

    def edit(hdus):
        hdus[0].header["S_BKDSUB"] = DONE
        return fits.HDUList([h for h in hdus if h.name not in (PS, UN)])

    path = edited(files[0], tmp_path / files[0].name, edit)
    ds = mx.open_program(path)["prism-clear-subtracted"].to_dataset()
    assert set(ds.calibrated_as.values) == {"EXTENDED", "POINT"} and "response" not in ds.coords


# ------------------------------------------------------------------------------------------------
# The official pipeline's own functions


def _references(folder, disperser_name="PRISM"):
    """Reference files for its steps, with path losses and bars that are no constants."""
    from stdatamodels.jwst import datamodels

    pathloss = datamodels.PathlossModel()
    pathloss.meta.exposure.type = "NRS_MSASPEC"
    for name, shutters in (("MOS1x1", 1), ("MOS1x3", 3)):
        wave, y = np.linspace(0.6e-6, 6.0e-6, 21), np.linspace(-shutters / 2, shutters / 2, 31)
        point = (0.9 - 5e4 * wave)[:, None, None] * (1 - 0.1 * y[None, :, None] ** 2) * np.ones(31)
        pathloss.apertures.append(
            {
                "name": name,
                "shutters": shutters,
                "pointsource_data": point.astype(np.float32),
                "uniform_data": (1.4 + 2e5 * wave * shutters).astype(np.float32),
                "pointsource_wcs": {
                    **{"crpix1": 1.0, "crval1": -0.5, "cdelt1": 1 / 30},
                    **{"crpix2": 1.0, "crval2": float(y[0]), "cdelt2": float(y[1] - y[0])},
                    **{"crpix3": 1.0, "crval3": wave[0], "cdelt3": wave[1] - wave[0]},
                },
                "uniform_wcs": {"crpix1": 1.0, "crval1": wave[0], "cdelt1": wave[1] - wave[0]},
            }
        )
    across = np.linspace(-1, 1, 1001)
    bars = datamodels.BarshadowModel(
        data1x1=np.repeat(reference_profile(across, "1")[:, None], 101, 1).astype(np.float32),
        # Two halves about a bar, with neighbours on both sides.
        data1x3=np.repeat(reference_profile(across + 1, "11111")[:, None], 101, 1).astype("f4"),
    )
    bars.crval1, bars.cdelt1, bars.crval2, bars.cdelt2 = 0.6e-6, 5.0e-8, -1.0, 0.002
    wave = np.linspace(0.5, 5.6, 60).astype(np.float32)
    columns = datamodels.NrsMosPhotomModel().get_dtype("phot_table")
    many = ("wavelength", "relresponse", "reluncertainty")
    row = np.zeros(
        1, [(n, columns[n].base, (60,)) if n in many else (n, columns[n]) for n in columns.names]
    )
    row["filter"], row["grating"], row["photmj"], row["nelem"] = "CLEAR", "PRISM", 2.5, 60
    row["wavelength"], row["relresponse"] = wave, 1 + 0.2 * np.sin(wave)
    photom = datamodels.NrsMosPhotomModel(phot_table=row)
    return pathloss, bars, photom


def test_the_official_steps_leave_of_uniform_light_what_response_says(files, point, tmp_path):
    """Uniform sky walked back to counts as extended, and forth as each slit's own kind of source.

    As the pipeline's ``master_background_mos`` step does it; only the reference files are ours.
    """
    official = pytest.importorskip("jwst.pathloss.pathloss")
    from jwst.barshadow import bar_shadow
    from jwst.photom import photom
    from stdatamodels.jwst import datamodels

    pathloss_file, bars_file, photom_file = _references(tmp_path)
    level = 0.25

    def calibrate(model, kind, inverse):
        def steps():
            yield lambda: official.do_correction_mos(model, pathloss_file, inverse, kind)
            yield lambda: bar_shadow.do_correction(model, bars_file, inverse, kind)

            def flux():
                dataset = photom.DataSet(model, inverse=inverse, source_type=kind)
                dataset.calc_nirspec(photom_file, None)

            yield flux

        for step in reversed(list(steps())) if inverse else steps():
            step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with datamodels.open(files[0]) as model:
            for slit in model.slits:
                slit.data[...] = np.where(np.isfinite(slit.wavelength), level, np.nan)
                slit.err[...] = slit.data / 10
                slit.dq[...] = np.where(np.isfinite(slit.wavelength), 0, 1)
                slit.meta.photometry.pixelarea_steradians = 4.7e-13
            calibrate(model, "EXTENDED", inverse=True)
            calibrate(model, None, inverse=False)
            path = tmp_path / "uniform_cal.fits"
            model.save(path)
    ds = opened(path).load()
    assert sorted(set(ds.calibrated_as.values)) == ["EXTENDED", "POINT"]
    factors = np.where(ds.calibrated_as == "POINT", 1 / 4.7e-13, 1)
    np.testing.assert_allclose(ds.flux_factor, factors)
    wavelength, yrel = ds.wavelength.values, ds.yrel.values
    for i, kind in enumerate(ds.calibrated_as.values):
        half = (ds.n_shutters.values[i] - 1) // 2, ds.n_shutters.values[i] // 2
        inside = (wavelength[i] > 0.7) & (wavelength[i] < 5.3)
        inside &= (yrel[i] > -half[0] - 0.45) & (yrel[i] < half[1] + 0.45)
        inside &= np.isfinite(ds.flux.values[i])
        assert inside.sum() > 500
        # The pipeline joins half shutters one row of 0.002 off, which shows on the bars' slopes.
        centre = np.abs(yrel[i] - np.round(yrel[i]))[inside] <= 0.2
        response = ds.response.values[i][inside]
        for name, value in (("flux", level), ("error", level / 10)):
            found = ds[name].values[i][inside] / response
            np.testing.assert_allclose(found, value, rtol=1.5e-2, err_msg=f"{kind} slit {i}")
            worst = np.max(np.abs(found[centre] / value - 1))
            assert worst < 3e-3, (kind, i, name)
        assert np.ptp(response) > 1 if kind == "POINT" else np.ptp(response) == 0
