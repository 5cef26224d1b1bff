"""Simulated programmes as files: STScI _cal and _msa, and NIPS irregular 2-D spectra."""

import contextlib
import warnings

import numpy as np
import pytest
from astropy.io import fits

from mbkg_xr.errors import ParameterError, StoreError
from mbkg_xr.quality import NIPS_FLAGS
from mbkg_xr.simulate import simulate_program, sky_spectrum, write_jwst, write_nips

datamodels = pytest.importorskip("stdatamodels.jwst.datamodels")


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
    return ds.compute()


@pytest.fixture(scope="module")
def opened(jwst_files):
    """The products as stdatamodels gives them; opening takes most of the time."""
    with contextlib.ExitStack() as stack:
        yield [(path, stack.enter_context(model)) for path, model in models(jwst_files)]


@pytest.fixture(scope="module")
def jwst_files(programme, tmp_path_factory):
    return write_jwst(programme, tmp_path_factory.mktemp("jwst"))


def models(paths):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            if path.name.endswith("_cal.fits"):
                yield path, datamodels.open(path)


def the_slit(programme, path, slit):
    exposure, detector = path.name[:25], path.name[26:30].upper()
    here = (programme.exposure == exposure) & (programme.detector == detector)
    one = programme.isel(slit=np.flatnonzero(here & (programme.slitlet == slit.slitlet_id))[0])
    ny, nx = slit.data.shape
    return one.isel(y=slice(ny), x=slice(nx)), one


def test_names(jwst_files):
    assert [p.name for p in jwst_files] == [
        "jw09999001001_03101_00001_nrs1_cal.fits",
        "jw09999001001_03101_00001_nrs2_cal.fits",
        "jw09999001001_03101_00002_nrs1_cal.fits",
        "jw09999001001_03101_00002_nrs2_cal.fits",
        "jw09999001001_01_msa.fits",
    ]


def test_stdatamodels_opens_them_as_multislit_models(opened):
    for path, model in opened:
        assert isinstance(model, datamodels.MultiSlitModel)
        model.validate()
        assert len(model.slits) == 5
        assert model.meta.exposure.type == "NRS_MSASPEC"
        assert model.meta.instrument.grating == "PRISM"
        assert model.meta.instrument.detector == path.name[26:30].upper()
        assert model.meta.dither.position_number == int(path.name[20:25])
        assert model.meta.cal_step.photom == "COMPLETE"
        assert model.meta.cal_step.bkg_subtract == "SKIPPED"


def test_pixels_are_the_datasets(programme, opened):
    for path, model in opened:
        for slit in model.slits:
            one, whole = the_slit(programme, path, slit)
            for name, plane in (
                ("flux", slit.data),
                ("error", slit.err),
                ("quality", slit.dq),
                ("wavelength", slit.wavelength),
                ("var_rnoise", slit.var_rnoise),
                ("var_poisson", slit.var_poisson),
            ):
                np.testing.assert_array_equal(plane, one[name].values)
            # Nothing of the slit is left outside the cut-out.
            inside = np.isfinite(whole.wavelength.values).sum()
            assert np.isfinite(slit.wavelength).sum() == inside
            assert (slit.xstart, slit.ystart) == (one.x_start + 1, one.y_start + 1)
            assert slit.meta.bunit_data == "MJy/sr"


def test_wcs(programme, opened):
    for path, model in opened[:2]:
        for slit in model.slits:
            one, _ = the_slit(programme, path, slit)
            y, x = np.mgrid[: slit.data.shape[0], : slit.data.shape[1]].astype(float)
            wcs = slit.meta.wcs
            assert wcs.available_frames == ["detector", "slit_frame", "world"]
            _, slit_y, metres = wcs.get_transform("detector", "slit_frame")(x, y)
            inside = np.isfinite(slit.wavelength)
            np.testing.assert_allclose(1e6 * metres[inside], slit.wavelength[inside], atol=5e-7)
            # As io reads it: from the middle of the slitlet, half a pitch more if it is even.
            yrel = (slit_y - (slit.slit_ymin + slit.slit_ymax) / 2) / 1.15
            yrel += 0.5 * (len(slit.shutter_state) % 2 == 0)
            np.testing.assert_allclose(yrel[inside], one.yrel.values[inside], atol=1e-6)
            ra, dec, wavelength = wcs(x[inside], y[inside])
            np.testing.assert_allclose(wavelength, 1e6 * metres[inside], rtol=1e-12)
            back = wcs.get_transform("world", "detector")(ra, dec, wavelength)
            np.testing.assert_allclose(back[0], x[inside], atol=1e-6)
            np.testing.assert_allclose(back[1], y[inside], atol=1e-6)


def test_source_and_shutters(programme, opened):
    for path, model in opened:
        for slit in model.slits:
            one, _ = the_slit(programme, path, slit)
            n = int(one.n_shutters)
            middle = (n - 1) // 2
            assert len(slit.shutter_state) == n
            place = slit.shutter_state.index("x") - middle
            if one.is_background:
                # The pipeline knows them by this, and marks their middle shutter.
                assert "BKG" in slit.source_name and place == 0
            else:
                assert "BKG" not in slit.source_name and place == float(one.source_shutter)
            assert slit.shutter_id == slit.xcen + (slit.ycen - 1) * 365
            assert slit.ycen == int(one.shutter_column) + place
            assert slit.source_type == "EXTENDED" and slit.barshadow_corrected


def test_bar_shadow_and_path_loss_are_what_was_divided_out(opened):
    for _, model in opened[:1]:
        for slit in model.slits:
            bars = slit.barshadow[np.isfinite(slit.wavelength)]
            assert 0.35 < bars.min() < 0.6 and 0.99 < bars.max() < 1.01
            loss = slit.pathloss_uniform[np.isfinite(slit.wavelength)]
            assert loss.min() > 1.4 and loss.max() < 2.7


def test_point_sources_are_in_mjy_with_their_bars(tmp_path):
    ds = simulate_program(
        exposures=1, slits=3, background_slits=1, calibration="POINT", seed=3
    ).compute()
    paths = write_jwst(ds, tmp_path)
    for path, model in models(paths):
        for slit in model.slits:
            one, _ = the_slit(ds, path, slit)
            background = bool(one.is_background)
            assert slit.source_type == ("EXTENDED" if background else "POINT")
            assert slit.meta.bunit_data == ("MJy/sr" if background else "MJy")
            area = 1.0 if background else slit.meta.photometry.pixelarea_steradians
            np.testing.assert_allclose(slit.data, one.flux.values * area, rtol=1e-6)
            if not background:
                assert np.all(slit.barshadow[np.isfinite(slit.wavelength)] == 1)


def test_msa_metafile(programme, jwst_files):
    with fits.open(jwst_files[-1]) as hdus:
        shutters, sources = hdus["SHUTTER_INFO"].data, hdus["SOURCE_INFO"].data
        image = hdus["SHUTTER_IMAGE"].data
        assert image.shape == (730, 342)
        for nod in (1, 2):
            here = shutters[shutters["dither_point_index"] == nod]
            assert set(here["slitlet_id"]) == set(programme.slitlet.values.tolist())
            for slitlet in set(here["slitlet_id"]):
                rows = here[here["slitlet_id"] == slitlet]
                at = (programme.slitlet == slitlet) & (programme.nod == nod)
                one = programme.isel(slit=np.flatnonzero(at)[0])
                assert len(rows) == int(one.n_shutters)
                primary = rows[rows["primary_source"] == "Y"]
                assert len(primary) == (0 if one.is_background else 1)
                assert np.sum(rows["background"] == "N") == len(primary)
                if len(primary):
                    place = int(one.shutter_column) + int(one.source_shutter)
                    assert primary["shutter_column"][0] == place
                    assert primary["source_id"][0] in sources["source_id"]
                assert np.sum(image == slitlet) == int(one.n_shutters)


def test_nips(programme, tmp_path):
    paths = write_nips(programme, tmp_path)
    by_exposure = {(e, s) for e, s in zip(programme.exposure.values, programme.slitlet.values)}
    assert len(paths) == len(by_exposure)
    seen = 0
    for path in paths:
        with fits.open(path) as hdus:
            header = hdus[0].header
            assert path.name == f"Trace_SLITLET_{header['SLITLET']}_{header['OBS_ID']}.fits"
            at = (programme.slitlet == header["SLITLET"]) & (programme.exposure == header["OBS_ID"])
            for index in np.flatnonzero(at):
                one, seen = programme.isel(slit=index), seen + 1
                suffix = str(one.detector.values)[-1]
                names = ("DATA", "QUALITY", "VAR", "LAMBDA", "SLITY", "MSAX", "MSAY")
                planes = {n: hdus[n + suffix].data for n in names}
                reference = hdus["DATA" + suffix].header
                first = [
                    int(reference[f"CRVAL{a}"] + 1 - reference[f"CRPIX{a}"] - 1) for a in (1, 2)
                ]
                if suffix == "2":
                    planes = {n: p[::-1, ::-1] for n, p in planes.items()}
                    first = [2048 - f - n for f, n in zip(first, planes["DATA"].shape[::-1])]
                assert first == [int(one.x_start), int(one.y_start)]
                ny, nx = planes["DATA"].shape
                one = one.isel(y=slice(ny), x=slice(nx))
                inside = np.isfinite(one.wavelength.values)
                assert np.array_equal(planes["LAMBDA"] > 0, inside)
                assert np.all(planes["SLITY"][~inside] == -1)
                assert all(np.isfinite(planes[n]).all() for n in names)
                np.testing.assert_allclose(
                    1e6 * planes["LAMBDA"][inside], one.wavelength.values[inside], rtol=2e-7
                )
                np.testing.assert_array_equal(planes["SLITY"][inside], one.yrel.values[inside])
                assert planes["QUALITY"].dtype == np.uint64
                bad = planes["QUALITY"] & np.uint64(NIPS_FLAGS["DO_NOT_USE"]) != 0
                assert np.array_equal(bad, (one.quality.values & 1) != 0)
                np.testing.assert_array_equal(planes["DATA"][~bad], one.flux.values[~bad])
                np.testing.assert_allclose(
                    np.sqrt(planes["VAR"][~bad]), one.error.values[~bad], rtol=1e-6
                )
    assert seen == programme.sizes["slit"]


def test_files_are_not_overwritten_unasked(programme, tmp_path):
    one = programme.isel(slit=[0])
    for write in (write_jwst, write_nips):
        write(one, tmp_path)
        with pytest.raises(StoreError, match="exists already"):
            write(one, tmp_path)
        write(one, tmp_path, overwrite=True)


def test_only_simulated_programmes_are_written(programme, tmp_path):
    for write in (write_jwst, write_nips):
        with pytest.raises(ParameterError, match="not a simulated programme"):
            write(programme.drop_vars("true_x_offset"), tmp_path)
    point = simulate_program(exposures=1, slits=2, background_slits=1, calibration="POINT")
    with pytest.raises(ParameterError, match="point sources"):
        write_nips(point, tmp_path)


def test_the_official_pipeline_reads_the_metafile_as_we_do(jwst_files, opened):
    nirspec = pytest.importorskip("jwst.assign_wcs.nirspec")
    for path, model in opened:
        nod = model.meta.dither.position_number
        theirs = nirspec.get_open_msa_slits("9999", str(jwst_files[-1]), 1, nod)
        by_name = {int(s.name): s for s in theirs}
        for ours in model.slits:
            slit = by_name[ours.slitlet_id]
            for name in (
                *("shutter_id", "xcen", "ycen", "quadrant", "shutter_state"),
                *("source_id", "source_name", "source_alias"),
            ):
                assert str(getattr(slit, name)) == str(getattr(ours, name)), (path.name, name)
            assert slit.ymin + slit.ymax == pytest.approx(ours.slit_ymin + ours.slit_ymax)


def test_the_official_pipeline_knows_and_subtracts_the_background(programme, opened):
    """The true sky as a 1-D master, by the pipeline's own functions."""
    official = pytest.importorskip("jwst.master_background.nirspec_utils")
    wavelength = np.linspace(0.5, 5.5, 4000)
    table = np.zeros(wavelength.size, datamodels.CombinedSpecModel().get_dtype("spec_table"))
    table["WAVELENGTH"], table["SURF_BRIGHT"] = wavelength, sky_spectrum(wavelength)
    master = datamodels.CombinedSpecModel(spec_table=table)
    for path, model in opened[:2]:
        made = official.map_to_science_slits(model, master)
        left = official.apply_master_background(model.copy(), made)
        assert len(made.slits) == len(left.slits) == len(model.slits)
        for slit, sky, rest in zip(model.slits, made.slits, left.slits, strict=True):
            one, _ = the_slit(programme, path, slit)
            assert official.is_background_msa_slit(slit) == bool(one.is_background)
            true = one.true_sky.values
            inside = np.isfinite(true) & (slit.wavelength > 0.7) & (slit.wavelength < 5.2)
            # The drift of this exposure, and the curvature of the sky within a pixel.
            np.testing.assert_allclose(sky.data[inside], true[inside], rtol=0.06)
            centre = np.abs(one.yrel.values - np.round(one.yrel.values)) < 0.2
            usable = inside & centre & (one.quality.values & 1 == 0)
            if one.is_background and not one.contaminated:
                assert abs(np.median(rest.data[usable] / true[usable])) < 0.12


def test_the_official_pipeline_rectifies_them(programme, opened, monkeypatch):
    monkeypatch.setenv("STPIPE_DISABLE_CRDS_STEPPARS", "true")
    resample = pytest.importorskip("jwst.resample").ResampleSpecStep
    path, model = opened[0]
    rectified = resample().run(model.copy())
    assert rectified.meta.cal_step.resample == "COMPLETE"
    assert len(rectified.slits) == len(model.slits)
    for slit, flat in zip(model.slits, rectified.slits, strict=True):
        one, _ = the_slit(programme, path, slit)
        assert flat.source_name == slit.source_name
        # Wavelength is one a column now, and rises.
        y, x = np.mgrid[: flat.data.shape[0], : flat.data.shape[1]].astype(float)
        _, _, wavelength = flat.meta.wcs(x, y)
        assert np.nanmax(np.nanstd(wavelength, axis=0)) < 1e-6
        assert np.all(np.diff(wavelength[flat.data.shape[0] // 2]) > 0)
        ends = np.nanmin(slit.wavelength), np.nanmax(slit.wavelength)
        assert np.nanmin(wavelength) == pytest.approx(ends[0], abs=0.05)
        assert np.nanmax(wavelength) == pytest.approx(ends[1], abs=0.05)
        if one.is_background:
            level = np.nanmedian(one.true_background.values)
            assert np.nanmedian(flat.data[flat.data != 0]) == pytest.approx(level, rel=0.15)


def test_the_flats_error_is_in_var_flat(tmp_path):
    ds = simulate_program(exposures=1, slits=2, background_slits=1, pixel_flat=0.004, seed=3)
    for path, model in models(write_jwst(ds, tmp_path)):
        for slit in model.slits:
            one, _ = the_slit(ds.compute(), path, slit)
            np.testing.assert_array_equal(slit.var_flat, one.var_flat.values)
            good = np.isfinite(slit.wavelength) & (slit.dq & 1 == 0)
            np.testing.assert_allclose(
                slit.var_flat[good], (0.004 * slit.data[good]) ** 2, rtol=1e-5
            )
            total = slit.var_rnoise + slit.var_poisson + slit.var_flat
            np.testing.assert_allclose(slit.err[good] ** 2, total[good], rtol=1e-5)
