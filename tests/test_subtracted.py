"""Products whose background others subtracted: recognised, never fitted, and scored."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from nodding import by_slit, official_nods, write_cal

import mbkg_xr as mx
from mbkg_xr import chain
from mbkg_xr.errors import DatasetError, ParameterError
from mbkg_xr.nods import nod_errors
from mbkg_xr.partners import laid_on
from mbkg_xr.schema import already_subtracted
from mbkg_xr.simulate import simulate_program, write_jwst, write_nips
from mbkg_xr.stored import compare_stored
from mbkg_xr.subtract import before_subtraction

REMEDY = (
    r"strun calwebb_spec2 .*--steps\.bkg_subtract\.skip=true "
    r"--steps\.master_background_mos\.skip=true"
)


@pytest.fixture(scope="module")
def programme():
    return simulate_program(
        exposures=3, slits=4, background_slits=2, detectors=("NRS1", "NRS2"), seed=3
    ).load()


@pytest.fixture(scope="module")
def files(programme, tmp_path_factory):
    return write_jwst(programme, tmp_path_factory.mktemp("cal"))


@pytest.fixture(scope="module")
def ds(files):
    return mx.select_background(mx.open_program(files)["prism-clear"].to_dataset().load())


@pytest.fixture(scope="module")
def master(ds):
    return mx.fit_master(ds)


@pytest.fixture(scope="module")
def result(ds, master):
    return mx.residuals(mx.subtract(ds, master))


@pytest.fixture(scope="module")
def own_nods(ds):
    return mx.residuals(mx.subtract_nods(ds))


@pytest.fixture(scope="module")
def nodded(files, own_nods, tmp_path_factory):
    return write_cal(files, own_nods, tmp_path_factory.mktemp("nodded"))


@pytest.fixture(scope="module")
def given(nodded):
    return mx.open_program(nodded)["prism-clear-subtracted"].to_dataset()


# ------------------------------------------------------------------------------------------------
# Recognised


def test_products_with_their_sky_are_not_marked(ds):
    assert not already_subtracted(ds).any() and set(ds.subtracted.values) == {""}


@pytest.mark.parametrize("key", ["S_BKDSUB", "S_MSBSUB"])
def test_stsci_keywords(files, ds, tmp_path, key):
    path = write_cal(files[:1], ds, tmp_path, key=key)
    tree = mx.open_program(path)
    assert list(tree.children) == ["prism-clear-subtracted"]
    opened = tree["prism-clear-subtracted"].to_dataset()
    assert set(opened.subtracted.values) == {key}
    assert opened.attrs["configuration"] == "prism-clear-subtracted"


def test_both_forms_of_one_exposure_open_together(files, nodded, ds):
    tree = mx.open_program([*files, *nodded])
    assert list(tree.children) == ["prism-clear", "prism-clear-subtracted"]
    sizes = {node.to_dataset().sizes["slit"] for node in tree.children.values()}
    assert sizes == {ds.sizes["slit"]}
    assert set(tree["prism-clear"].subtracted.values) == {""}


def test_the_mark_survives_a_store(given, tmp_path):
    mx.save(given, tmp_path / "a.zarr")
    again = mx.open_program(tmp_path / "a.zarr")["prism-clear-subtracted"].to_dataset()
    assert already_subtracted(again).all()


# ------------------------------------------------------------------------------------------------
# Never fitted


@pytest.mark.parametrize(
    "use",
    [
        mx.select_background,
        mx.subtract_nods,
        lambda ds: mx.fit_master(ds.assign(selected=ds.flux > 0)),
        lambda ds: chain.run_tree({"prism-clear": ds}, "never.zarr"),
    ],
)
def test_refused_as_sky(given, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=REMEDY) as caught:
        use(given)
    for word in (
        "already subtracted",
        "S_BKDSUB",
        "_cal.fits, slitlet",
        f"and {len(given.slit) - 1}" if "slit" in given.coords else "others",
    ):
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_not_subtracted_twice(given, master):
    with pytest.raises(DatasetError, match=REMEDY):
        mx.subtract(given, master)


def test_one_of_many_is_enough(ds):
    said = ds.subtracted.values.astype("U20")
    said[5] = "S_BKDSUB"
    mixed = ds.assign_coords(subtracted=("slit", said))
    with pytest.raises(DatasetError, match=rf"slitlet {ds.slitlet.values[5]}\]"):
        mx.fit_master(mixed)
    with pytest.raises(DatasetError, match="nothing was subtracted"):
        mx.residuals(mixed)


def test_a_sky_that_is_not_there_is_told(own_nods):
    """Where headers are silent, the fit sees it."""
    bare = own_nods.drop_vars(["background", "background_error", "residual"])
    with pytest.warns(UserWarning, match="hold no sky.*bkg_subtract"):
        mx.fit_master(mx.select_background(bare))


def test_a_faint_sky_is_no_reason_to_warn(recwarn):
    faint = simulate_program(
        exposures=2, slits=4, background_slits=2, signal_to_noise=0.3, seed=4
    ).load()
    mx.fit_master(mx.select_background(faint))
    assert not [w for w in recwarn if "sky" in str(w.message)]


# ------------------------------------------------------------------------------------------------
# Scored


def test_before_subtraction_is_what_it_was(ds, result, own_nods):
    for sub in (result, own_nods):
        before = before_subtraction(sub)
        there = np.isfinite(sub.background.values)
        assert there.mean() > 0.2
        for name in ("flux", "error"):
            np.testing.assert_allclose(
                before[name].values[there], ds[name].values[there], rtol=2e-5, atol=1e-5
            )
        assert set(before.data_vars) == set(ds.data_vars)
    with pytest.raises(DatasetError, match="nothing was subtracted"):
        before_subtraction(ds)


def test_given_nods_score_as_our_own(result, own_nods, given):
    table = mx.compare(result, own_nods, given=mx.residuals(given))
    assert list(table.index) == ["master", "nods", "given"]
    assert table.attrs["nod_errors"] == {"given": "as given"}
    assert table.loc["given"].n > 1000
    np.testing.assert_allclose(
        table.loc["given"].to_numpy(float), table.loc["nods"].to_numpy(float), rtol=2e-6, atol=1e-6
    )
    alone = mx.compare(result, mx.residuals(given))
    usual = mx.compare(result, own_nods)
    np.testing.assert_allclose(alone.to_numpy(float), usual.to_numpy(float), rtol=1e-4, atol=1e-6)


def cut(ds, y, x):
    """Cut-outs without their first and last rows and columns."""
    part = ds.isel(y=slice(*y), x=slice(*x))
    return part.assign_coords(y_start=ds.y_start + y[0], x_start=ds.x_start + x[0])


@pytest.mark.parametrize("smaller", ["given", "result"])
def test_order_size_and_number_of_slits_may_differ(result, own_nods, given, smaller):
    other = given.isel(slit=np.random.default_rng(1).permutation(given.sizes["slit"])[:-4])
    expected, window = own_nods, ((2, 22), (3, -5))
    if smaller == "given":
        other = cut(other, *window)
    else:
        result, expected = cut(result, *window), cut(own_nods, *window)
    with pytest.warns(UserWarning, match="4 of 24 slits of the result have no partner"):
        out = laid_on(result, other)
    assert out.flux.shape == result.flux.shape
    inside = np.zeros(out.flux.shape[1:], bool)
    inside[slice(*window[0]) if smaller == "given" else slice(None)] = True
    if smaller == "given":
        inside[:, :3] = inside[:, -5:] = False
    found = by_slit(other)
    for key, i in by_slit(result).items():
        there = np.isfinite(out.flux.values[i])
        if key not in found:
            assert not there.any() and (out.quality.values[i] & 1).all()
            continue
        np.testing.assert_array_equal(there, np.isfinite(expected.flux.values[i]) & inside)
        for name in ("flux", "error"):
            values = out[name].values[i][there]
            np.testing.assert_array_equal(values, expected[name].values[i][there])


def test_residuals_of_given_products_are_lazy(given, compute_nothing):
    assert mx.residuals(given).residual.dtype == np.float32


def test_slits_that_are_in_the_products_only(result, given):
    with pytest.warns(UserWarning, match="3 of 24 slits of the products given are not in the res"):
        out = laid_on(result.isel(slit=slice(3, None)), given)
    assert out.sizes["slit"] == 21


def test_errors_that_did_not_grow_are_grown(ds, result, files, tmp_path):
    """The official pipeline leaves ERR as it was: 1.22 too small for three nods."""
    flux, spread = official_nods(ds)
    np.testing.assert_allclose(nod_errors(ds), spread, rtol=1e-6)
    paths = write_cal(files, flux, tmp_path / "official", errors=False)
    official = mx.residuals(mx.open_program(paths)["prism-clear-subtracted"].to_dataset())
    out = laid_on(result, official).compute()
    inside = np.isfinite(result.flux.values) & np.isfinite(spread) & (ds.error.values > 0)
    expected = np.hypot(ds.error.values, spread)
    np.testing.assert_allclose(out.error.values[inside], expected[inside], rtol=2e-5)
    auto = mx.compare(result, official)
    assert auto.attrs["nod_errors"] == {"nods": "as given, and those of the other nods"}
    raw = mx.compare(result, official, nod_errors="given")
    gain = auto.loc["nods"].noise_gain
    assert gain == pytest.approx(np.sqrt(1.5), abs=0.03)
    assert raw.loc["nods"].noise_gain == pytest.approx(1, abs=1e-3)
    assert raw.loc["nods"].mad_sigma / auto.loc["nods"].mad_sigma == pytest.approx(gain, abs=0.03)


def test_what_cannot_be_compared(ds, result, given):
    scored = mx.residuals(given)
    moved = scored.assign_coords(x_start=scored.x_start + 8)
    with pytest.raises(DatasetError, match=r"different wavelengths .*8 pixels.*x_start"):
        mx.compare(result, moved)
    other = scored.assign_coords(
        exposure=("slit", np.char.replace(scored.exposure.values, "jw0", "jw1"))
    )
    with pytest.raises(DatasetError, match=r"no slit in common .*expected .* as in jw0.*jw1"):
        mx.compare(result, other)
    units = scored.assign(flux=scored.flux.assign_attrs(units="DN/s"))
    with pytest.raises(DatasetError, match=r"different units .*expected MJy/sr; found DN/s"):
        mx.compare(result, units)
    with pytest.raises(DatasetError, match="no result to compare with"):
        mx.compare(scored, result)
    with pytest.raises(ParameterError, match="treatment of errors"):
        mx.compare(result, scored, nod_errors="none")
    with pytest.raises(DatasetError, match="nothing was subtracted"):
        mx.residuals(ds)


def test_official_nod_subtraction_leaves_errors_as_they_were():
    """What the README says of the pipeline, and that the steps are called as the error says."""
    pytest.importorskip("jwst", reason="the official pipeline is not in this environment")
    from jwst.background.background_sub import background_sub
    from jwst.pipeline import Spec2Pipeline
    from stdatamodels.jwst.datamodels import ImageModel

    assert {"bkg_subtract", "master_background_mos"} <= Spec2Pipeline.step_defs.keys()
    rng = np.random.default_rng(1)
    models = []
    for _ in range(3):
        model = ImageModel((2048, 2048))
        model.data, model.err = rng.normal(size=(2, 2048, 2048)).astype("f4")
        model.dq = np.zeros((2048, 2048), "u4")
        model.meta.instrument.name = "NIRSPEC"
        models.append(model)
    first, error = models[0].data.copy(), models[0].err.copy()
    _, out = background_sub(models[0], models[1:], sigma=3, maxiters=None)
    np.testing.assert_array_equal(out.err, error)
    np.testing.assert_allclose(
        out.data, first - 0.5 * (models[1].data + models[2].data), rtol=1e-5, atol=1e-6
    )


# ------------------------------------------------------------------------------------------------
# NIPS


def test_nips_products(programme, tmp_path):
    """The same with NIPS files: marked by a keyword of their own, scored as our own nods."""
    paths = write_nips(programme, tmp_path / "nips")
    run = chain.run(paths, tmp_path / "result.zarr")["prism-clear"]
    nods = mx.subtract_nods(mx.open_program(tmp_path / "result.zarr") and opened(paths)).compute()
    position = by_slit(nods)
    (tmp_path / "nodded").mkdir()
    for path in paths:
        with fits.open(path) as hdus:
            hdus[0].header["BKGSTEP"] = "PIXEL"
            slitlet, exposure = hdus[0].header["SLITLET"], hdus[0].header["OBS_ID"]
            for suffix in ("1", "2"):
                if "DATA" + suffix not in hdus:
                    continue
                i = position[exposure, "NRS" + suffix, slitlet]
                ny, nx = hdus["DATA" + suffix].shape
                turn = slice(None, None, -1 if suffix == "2" else 1)
                flux, error, quality = (
                    nods[n].values[i, :ny, :nx][turn, turn] for n in ("flux", "error", "quality")
                )
                hdus["DATA" + suffix].data = np.nan_to_num(flux)
                # Outside the slit, and where nothing was subtracted, there is no variance.
                hdus["VAR" + suffix].data = np.where(np.isfinite(flux), error, 0) ** 2
                hdus["QUALITY" + suffix].data = quality
            hdus.writeto(tmp_path / "nodded" / path.name)
    layout = {"subtracted_keywords": {"BKGSTEP": ["PIXEL"]}}
    with pytest.warns(UserWarning, match="no keyword says"):
        silent = compare_stored(tmp_path / "result.zarr", nods=tmp_path / "nodded")
    table = compare_stored(tmp_path / "result.zarr", nods=tmp_path / "nodded", nips_layout=layout)[
        "prism-clear"
    ]
    assert silent["prism-clear"].equals(table)
    assert list(table.index) == ["master", "nods", "heldout", "given"]
    np.testing.assert_allclose(
        table.loc["given"].to_numpy(float), table.loc["nods"].to_numpy(float), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        table.loc["master"].to_numpy(float), run.table.loc["master"].to_numpy(float), rtol=1e-3
    )


def opened(paths):
    ds = mx.open_program(paths)["prism-clear"].to_dataset()
    return mx.select_background(ds)
