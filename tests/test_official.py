"""The official pipeline takes what is handed back: its own steps, run on files written here.

It runs offline. Its look-ups of reference files in CRDS are answered locally, by the overrides that
its own steps offer: extraction apertures within the slits, no aperture correction, no PSF.
Which context of CRDS that was, it is told by this test. Any other look-up fails the test.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from astropy.io import fits

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN, simulate_program, write_jwst

pytest.importorskip("jwst", reason="the official pipeline (jwst) is not installed here")

import stpipe.crds_client
from jwst.extract_1d import Extract1dStep
from jwst.master_background import MasterBackgroundMosStep, nirspec_utils
from jwst.resample import ResampleSpecStep
from stdatamodels.jwst import datamodels

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(parameters, types, observatory):
        raise AssertionError(f"a look-up in CRDS: {types}")

    monkeypatch.setenv("STPIPE_DISABLE_CRDS_STEPPARS", "true")
    monkeypatch.setattr(stpipe.crds_client, "get_multiple_reference_paths", refuse)
    monkeypatch.setattr(stpipe.crds_client, "get_context_used", lambda observatory: "none.pmap")


@pytest.fixture(scope="module")
def simulated():
    """Sky, sources and noise only, so that sky minus master is noise."""
    ds = simulate_program(
        exposures=3, slits=6, background_slits=3, detectors=("NRS1", "NRS2"), seed=8, **CLEAN
    )
    return ds.compute()


@pytest.fixture(scope="module")
def products(simulated, tmp_path_factory):
    paths = write_jwst(simulated, tmp_path_factory.mktemp("official") / "in")
    return [p for p in paths if "_cal" in p.name]


@pytest.fixture(scope="module")
def programme(products):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = mx.open_program(products)["prism-clear"].to_dataset().load()
    return mx.select_background(ds, slits="background")


@pytest.fixture(scope="module")
def sky(programme):
    # The official step takes all slits to be alike, and these are.
    return mx.fit_master(programme, scales=None, profile=False)


@pytest.fixture(scope="module")
def result(programme, sky):
    return mx.subtract(programme, sky)


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    return mx.write_fits(result, tmp_path_factory.mktemp("official") / "out")


@pytest.fixture(scope="module")
def true(products, simulated, tmp_path_factory):
    """The same products with the true sky taken off, by astropy."""
    folder = tmp_path_factory.mktemp("true")
    for path in products:
        with fits.open(path) as hdus:
            for hdu in (h for h in hdus if h.name == "SCI"):
                one = the_slit(simulated, path, hdu.header["SLITID"])
                ny, nx = hdu.data.shape
                hdu.data -= one.true_background.values[:ny, :nx]
            hdus.writeto(folder / path.name)
    return [folder / path.name for path in products]


def the_slit(ds, path, slitlet):
    exposure, detector = path.name[:25], path.name[26:30].upper()
    at = (ds.exposure == exposure) & (ds.detector == detector) & (ds.slitlet == slitlet)
    return ds.isel(slit=np.flatnonzero(at)[0])


def extracted(path, folder):
    """Rectified and extracted by the official steps, off the slit's ends."""
    rectified = ResampleSpecStep().run(str(path))
    apertures, single = [], isinstance(rectified, datamodels.SlitModel)
    for slit in [rectified] if single else rectified.slits:
        # Beyond the open shutters, four rows, there is no sky; the master does not know that.
        rows = np.flatnonzero(np.isfinite(slit.data).mean(axis=1) > 0.5)
        name = "ANY" if single else slit.name
        apertures.append({"id": name, "ystart": int(rows[4]), "ystop": int(rows[-5])})
    aperture = folder / "aperture.json"
    aperture.write_text(json.dumps({"apertures": apertures}))
    step = Extract1dStep()
    step.override_extract1d = str(aperture)
    step.override_apcorr = step.override_psf = "N/A"
    step.use_source_posn = False
    spectra = step.run(rectified)
    assert rectified.meta.cal_step.resample == spectra.meta.cal_step.extract_1d == "COMPLETE"
    return rectified, spectra


def test_they_open_with_all_slits_and_their_wcs(written, result):
    for path in written:
        with datamodels.open(path) as model:
            assert isinstance(model, datamodels.MultiSlitModel)
            model.validate()
            assert model.meta.cal_step.master_background == "COMPLETE"
            assert len(model.slits) == (result.filename == path.name).sum()
            for slit in model.slits:
                one = the_slit(result, path, slit.slitlet_id)
                ny, nx = slit.data.shape
                one = one.isel(y=slice(ny), x=slice(nx))
                np.testing.assert_array_equal(slit.data, one.flux)
                np.testing.assert_array_equal(slit.err, one.error)
                np.testing.assert_array_equal(slit.dq, one.quality)
                y, x = np.mgrid[:ny, :nx].astype(float)
                _, _, wavelength = slit.meta.wcs(x, y)
                inside = np.isfinite(slit.wavelength)
                np.testing.assert_allclose(
                    wavelength[inside], one.wavelength.values[inside], atol=1e-6
                )


def test_resample_and_extract(written, true, simulated, tmp_path):
    """Sky slits are empty, source slits as with the true sky taken off, within errors."""
    empty, sources = [], []
    for ours, theirs in zip(sorted(written)[:2], sorted(true)[:2], strict=True):
        (flat, spectra), (flat_true, spectra_true) = (
            extracted(path, tmp_path) for path in (ours, theirs)
        )
        assert len(flat.slits) == len(spectra.spec) == len(flat_true.slits)
        for slit, slit_true, spec, spec_true in zip(
            flat.slits, flat_true.slits, spectra.spec, spectra_true.spec, strict=True
        ):
            # The background's variance is in the error that the step made anew.
            variance = slit.var_rnoise + slit.var_poisson + slit.var_flat
            known = np.isfinite(variance) & (slit.err > 0)
            np.testing.assert_allclose(slit.err[known] ** 2, variance[known], rtol=1e-4)
            both = known & np.isfinite(slit_true.err)
            ratio = slit.err[both] / slit_true.err[both]
            assert 1 <= np.median(ratio) < 1.05

            table, reference = spec.spec_table, spec_true.spec_table
            value, error = table["SURF_BRIGHT"], table["SB_ERROR"]
            good = np.isfinite(value) & (error > 0) & (table["NPIXELS"] > 4)
            good &= np.isfinite(reference["SURF_BRIGHT"])
            one = the_slit(simulated, ours, slit.slitlet_id)
            level = np.nanmedian(one.true_background)
            if good.sum() < 50:
                continue
            if bool(one.is_background):
                empty.append((value[good], error[good], level))
            else:
                difference = (value - reference["SURF_BRIGHT"])[good]
                sources.append((difference, error[good], level))
    assert len(empty) >= 3 and len(sources) >= 3
    for value, error, level in empty:
        z = value / error
        spread = 1.4826 * np.median(abs(z - np.median(z)))
        assert abs(np.median(z)) < 0.25 and 0.7 < spread < 1.6
        assert abs(np.median(value)) < 0.01 * level
    for difference, error, level in sources:
        # The noise is the same: what differs is the master's own error.
        assert np.median(abs(difference / error)) < 0.25
        assert abs(np.median(difference)) < 0.01 * level


def test_the_official_master_background_leaves_them_alone(written):
    with datamodels.open(written[0]) as model:
        again = MasterBackgroundMosStep().run(model)
        assert again.meta.cal_step.master_background == "SKIPPED"
        for one, other in zip(model.slits, again.slits, strict=True):
            np.testing.assert_array_equal(one.data, other.data)


def test_real_slitlets_go_through_too(real_files, real_selected, real_master, tmp_path):
    """Single-slit products: rectified and extracted, the sky is gone."""
    sub = mx.subtract(real_selected, real_master)
    copies = mx.write_fits(sub, tmp_path / "out")
    for path, copy in zip(sorted(real_files), sorted(copies), strict=True):
        before, after = (extracted(p, tmp_path)[1].spec[0].spec_table for p in (path, copy))
        known = np.isfinite(after["SURF_BRIGHT"]) & (after["WAVELENGTH"] > 1)
        known &= after["WAVELENGTH"] < 5
        levels = [np.median(t["SURF_BRIGHT"][known]) for t in (before, after)]
        assert levels[0] > 0.05 and levels[1] < 0.15 * levels[0]


def test_user_background(sky, result, products, tmp_path):
    """`master_background_mos` itself, on calibrated slits, so that its calibrations are skipped.

    Compared: the 2-D background it makes from the x1d with that of `subtract`, on all pixels; what
    it subtracts with the x1d; and where it flags DO_NOT_USE.
    """
    path = mx.write_user_background(sky, tmp_path / "sky_x1d.fits")
    step = MasterBackgroundMosStep()
    step.user_background = str(path)
    for name in ("flat_field", "pathloss", "barshadow", "photom"):
        getattr(step, name).skip = True
    worst = 0.0
    for product in products[:2]:
        with datamodels.open(product) as model, datamodels.open(path) as x1d:
            made = nirspec_utils.map_to_science_slits(model, x1d)
            left = step.run(model)
            assert left.meta.cal_step.master_background == "COMPLETE"
            for slit, background, rest in zip(model.slits, made.slits, left.slits, strict=True):
                one = the_slit(result, product, slit.slitlet_id)
                ny, nx = slit.data.shape
                ours = one.background.values[:ny, :nx]
                inside = np.isfinite(slit.wavelength)
                known = inside & np.isfinite(ours)
                difference = background.data[known] / ours[known] - 1
                worst = max(worst, abs(difference).max())
                assert difference.std() < 1e-4
                usable = known & np.isfinite(slit.data)
                np.testing.assert_allclose(
                    rest.data[usable], (slit.data - background.data)[usable], atol=1e-6
                )
                # Outside the fitted range both flag, but for pixels that straddle its ends.
                flagged = (background.dq & 1 != 0) & (slit.dq & 1 == 0)
                assert (flagged[inside] != ~known[inside])[slit.dq[inside] & 1 == 0].mean() < 0.01
    assert worst < 2e-3  # at the ends of the fitted range; 1e-4 elsewhere


def test_user_background_with_a_gap(sky, products, tmp_path):
    """Where the master was not fitted nothing is made up: what the step subtracts is NaN."""
    constrained = sky.constrained.copy()
    constrained[200:220] = False
    low, high = sky.edge.values[[200, 220]]
    path = mx.write_user_background(sky.assign(constrained=constrained), tmp_path / "gap_x1d.fits")
    with datamodels.open(products[0]) as model, datamodels.open(path) as x1d:
        made = nirspec_utils.map_to_science_slits(model, x1d)
        for slit in made.slits:
            gap = (slit.wavelength > low) & (slit.wavelength < high)
            beside = (slit.wavelength > low - 0.2) & (slit.wavelength < low - 0.01)
            assert np.isnan(slit.data[gap]).all() and np.isfinite(slit.data[beside]).all()
