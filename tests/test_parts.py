"""One master for each value of a slit coordinate, all in one dataset."""

from __future__ import annotations

import warnings

import dask
import numpy as np
import pytest
import xarray as xr

import mbkg_xr as mx

MODEL = mx.BSpline(spacing=8)
VISITS = ("09999001001", "09999002001")


@pytest.fixture(scope="module")
def slits() -> xr.Dataset:
    """Two visits whose slits take turns in the dataset, selected, in memory."""
    ds = mx.simulate_program(
        exposures=1, visits=2, slits=6, background_slits=5, sky_drift=0.05, seed=5
    )
    ds = mx.select_background(ds.compute())
    return ds.isel(slit=np.arange(12).reshape(2, 6).T.ravel())


@pytest.fixture(scope="module")
def both(slits) -> xr.Dataset:
    return mx.fit_master(slits, by="visit", model=MODEL)


def _lazy(ds: xr.Dataset, length: int) -> xr.Dataset:
    return ds.chunk({"slit": length}).assign_coords(
        {c: v for c, v in ds.coords.items() if v.ndim == 1}
    )


def _visit(ds: xr.Dataset, visit: str) -> xr.Dataset:
    return ds.isel(slit=np.flatnonzero(ds.visit.values == visit))


def test_each_part_is_the_fit_of_its_slits_alone(slits, both):
    assert both.attrs["by"] == "visit"
    assert both.part.values.tolist() == list(VISITS)
    assert both.polynomial.dims == ("part", "span", "power")
    for visit in VISITS:
        alone = mx.fit_master(_visit(slits, visit), model=MODEL)
        xr.testing.assert_identical(mx.master_part(both, visit), alone)
        for heldout in (False, True):
            found = mx.subtract(slits, both, heldout=heldout)
            expected = mx.subtract(_visit(slits, visit), alone, heldout=heldout)
            for name in ("flux", "error", "background", "background_error", "quality"):
                np.testing.assert_array_equal(_visit(found, visit)[name], expected[name])


def test_parts_of_unlike_sizes_are_filled_up(slits):
    """Models of other knots, slits of other numbers: what comes back is what went in."""
    one = mx.fit_master(_visit(slits, VISITS[0]), model=mx.BSpline(spacing=6))
    two = mx.fit_master(_visit(slits, VISITS[1]), model=mx.BSpline(spacing=12, penalty=1.0),
                        scales=None, profile=False)  # fmt: skip
    from mbkg_xr.parts import join_parts

    rows = [np.flatnonzero(slits.visit.values == v) for v in VISITS]
    joined = join_parts([one, two], np.array(VISITS), rows, "visit")
    xr.testing.assert_identical(mx.master_part(joined, VISITS[0]), one)
    xr.testing.assert_identical(mx.master_part(joined, VISITS[1]), two)
    assert "scale" not in mx.master_part(joined, VISITS[1])


def test_saves_and_comes_back_equal(slits, both, tmp_path):
    mx.save({"prism-clear/master": both}, tmp_path / "m.zarr")
    back = mx.open_program(tmp_path / "m.zarr")["prism-clear/master"].to_dataset().load()
    xr.testing.assert_identical(back, both)
    xr.testing.assert_identical(mx.master_part(back, VISITS[1]), mx.master_part(both, VISITS[1]))
    from mbkg_xr.master import identity

    assert identity(back) == identity(both)
    assert identity(both)["background_slits"] == 12


def test_lazy_and_the_same_for_any_chunks(slits, both, compute_nothing):
    expected = mx.subtract(slits, both)
    for length in (1, 5):
        lazy = mx.subtract(_lazy(slits, length), both)
        assert lazy.background.chunks[0] == _lazy(slits, length).flux.chunks[0]
        with dask.config.set(scheduler="sync"):
            np.testing.assert_array_equal(lazy.flux.values, expected.flux.values)
            np.testing.assert_array_equal(lazy.error.values, expected.error.values)
    with dask.config.set(scheduler="threads"):
        other = mx.fit_master(_lazy(slits, 5), by="visit", model=MODEL).polynomial.values
    sky = both.polynomial.values
    np.testing.assert_allclose(other, sky, rtol=0, atol=1e-9 * np.nanmax(sky))


def test_values_of_all_parts(both):
    wave = np.array([[1.0, 2.0], [3.0, 9.0]])
    values = mx.evaluate(both, wave)
    assert values.shape == (2, 2, 2)
    fine = mx.sample_master(both)
    assert fine.sky.dims == ("part", "wavelength")
    for i, visit in enumerate(VISITS):
        one = mx.master_part(both, visit)
        np.testing.assert_array_equal(values[i], mx.evaluate(one, wave))
        inside = np.isfinite(fine.sky.values[i])
        at = fine.wavelength.values[inside]
        np.testing.assert_allclose(
            fine.sky.values[i][inside][:-1], mx.evaluate(one, at)[:-1], rtol=1e-9
        )


def test_slits_of_a_part_that_was_not_fitted(slits, both):
    """NaN and a flag, as outside the fitted range, and a warning; none at all is an error."""
    names = np.where(np.arange(12) < 3, "other", slits.visit.values)
    strange = slits.assign_coords(visit=("slit", names))
    with pytest.warns(UserWarning, match="no master for visit other: the 3 slits"):
        found = mx.subtract(_lazy(strange, 5), both).compute()
    assert np.isnan(found.flux.values[:3]).all()
    inside = np.isfinite(strange.wavelength.values[:3])
    assert (found.quality.values[:3][inside] & 1).all()
    expected = mx.subtract(slits, both)
    np.testing.assert_array_equal(found.flux.values[3:], expected.flux.values[3:])
    with pytest.raises(mx.MbkgError, match=r"no sky for any.*found other"):
        mx.subtract(slits.assign_coords(visit=("slit", np.full(12, "other"))), both)


def test_one_bad_part(slits):
    ds = slits.copy()
    ds["selected"] = ds.selected & (ds.visit != VISITS[1])
    with pytest.raises(mx.MbkgError, match=rf"visit {VISITS[1]}"):
        mx.fit_master(ds, by="visit", model=MODEL)
    with pytest.warns(UserWarning, match=rf"left out: .*visit {VISITS[1]}"):
        found = mx.fit_master(ds, by="visit", model=MODEL, bad_slits="skip")
    assert found.part.values.tolist() == [VISITS[0]]


def test_by_several_coordinates_and_of_moments(slits, both):
    found = mx.fit_master(slits, by=["visit", "nod"], model=MODEL)
    assert found.attrs["by"] == "visit,nod"
    assert found.part.values.tolist() == [f"{v}/1" for v in VISITS]
    np.testing.assert_array_equal(found.polynomial.values, both.polynomial.values)
    one = mx.fit_master(slits, model=MODEL)
    parts = mx.fit_master(mx.moments(slits, one), by="visit", model=MODEL)
    alone = mx.fit_master(mx.moments(_visit(slits, VISITS[0]), one), model=MODEL)
    xr.testing.assert_identical(mx.master_part(parts, VISITS[0]), alone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.project_master(slits, parts)


def test_two_skies_are_told_apart():
    """Visits at skies that differ: a master each is nearer to the truth than one for both."""
    parts = []
    for number, sky in enumerate(("ceers", "uncover")):
        ds = mx.simulate_program(
            exposures=1, slits=8, background_slits=6, sky=sky, seed=3
        ).compute()
        names = np.full(8, f"visit {number}")
        exposures = np.full(8, f"exposure {number}")
        parts.append(ds.assign_coords(visit=("slit", names), exposure=("slit", exposures)))
    ds = mx.select_background(xr.concat(parts, "slit", join="outer"))
    off = {}
    for by in (None, "visit"):
        master = mx.fit_master(ds, by=by, model=mx.BSpline(spacing=6), scales=None)
        ratio = mx.project_master(ds, master).background / ds.true_sky - 1
        off[by] = float(np.sqrt((ratio.where(ds.selected) ** 2).mean()))
    assert off["visit"] < 0.5 * off[None]


def test_what_makes_no_sense(slits, both):
    with pytest.raises(mx.MbkgError, match="cannot fit one master for each"):
        mx.fit_master(slits, by="colour")
    with pytest.raises(mx.MbkgError, match="no such part"):
        mx.master_part(both, "other")
    with pytest.raises(mx.MbkgError, match="without parts"):
        mx.master_part(mx.master_part(both, VISITS[0]), VISITS[0])
    for refused in (
        lambda: mx.master_image(both),
        lambda: mx.moments(slits, both),
        lambda: mx.Template(both),
    ):
        with pytest.raises(mx.MbkgError, match=r"one part: mx\.master_part"):
            refused()
    with pytest.raises(mx.MbkgError, match="no slit to fit"):
        mx.fit_master(slits.isel(slit=[]))


def test_the_chain_by_visit(slits, tmp_path):
    from mbkg_xr.chain import run_tree

    ds = _lazy(slits.drop_vars("selected"), 4)
    found = run_tree(
        {"prism-clear": ds}, tmp_path / "r.zarr", model=MODEL, by="visit", report=tmp_path / "page"
    )["prism-clear"]
    assert found.master.polynomial.dims == ("part", "span", "power")
    assert {"master", "heldout"} <= set(found.table.index)
    assert np.isfinite(found.table.loc["heldout", "mad_sigma"])
    page = (tmp_path / "page" / "index.html").read_text()
    for visit in VISITS:
        assert f"prism-clear-visit-{visit}" in page
    scores = mx.score_slits(found.result, found.master)
    for visit in VISITS:
        own = mx.score_slits(_visit(found.result, visit), mx.master_part(found.master, visit))
        np.testing.assert_array_equal(_visit(scores, visit).scale, own.scale)
