"""Moments by slit: against plain numpy, against least squares on the pixels, saved and merged."""

from __future__ import annotations

import subprocess
import sys

import dask
import numpy as np
import pytest
import xarray as xr
from plain_moments import Pixels, plain_design, plain_pixels

import mbkg_xr as mx
from mbkg_xr.models.banded import without_each
from mbkg_xr.models.basis import dense
from mbkg_xr.models.bspline import spline_basis
from mbkg_xr.models.penalised import PenalisedSystem
from mbkg_xr.moment_fit import group_sums, problem_of

MODEL = mx.BSpline(spacing=6, penalty=1e-2)
TIGHT = 1e-10


@pytest.fixture(scope="module")
def slits() -> xr.Dataset:
    """Sources, leaks, contaminants, bars and slits calibrated as points, in memory."""
    ds = mx.simulate_program(
        exposures=2, slits=6, background_slits=3, calibration="POINT", seed=8, chunks=5
    )
    return mx.select_background(ds.compute(), yrel=((-1.4, 1.4),))


@pytest.fixture(scope="module")
def fitted(slits) -> xr.Dataset:
    return mx.fit_master(slits, model=MODEL)


@pytest.fixture(scope="module")
def made(slits, fitted) -> xr.Dataset:
    return mx.moments(slits, fitted)


@pytest.fixture(scope="module")
def pixels(slits, fitted) -> Pixels:
    return plain_pixels(slits, fitted)


def _close(found, expected, tolerance=TIGHT):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_sums_are_those_of_plain_numpy(made, pixels, fitted):
    assert {"scale", "profile", "source_share"} <= set(fitted.data_vars)
    found, expected = made.moments.values, pixels.moments()
    assert found[..., 12].sum() > 5000
    np.testing.assert_array_equal(found[..., 12:], expected[..., 12:])
    for m in range(12):
        _close(found[..., m], expected[..., m], 1e-12)


def test_the_moments_are_those_of_the_fit(slits, fitted, made):
    """The same master, its errors and held-out masters, without the pixels."""
    again = mx.fit_master(made, model=MODEL)
    for name, variable in fitted.data_vars.items():
        if name.startswith(("pass_", "score_")):
            continue
        found = again[name].values
        if found.dtype.kind == "f":
            both = np.isfinite(variable.values)
            np.testing.assert_array_equal(np.isfinite(found), both, err_msg=name)
            if both.any():
                single = found.dtype == np.float32  # kept to single precision
                _close(found[both], variable.values[both], 1e-6 if single else TIGHT)
        else:
            np.testing.assert_array_equal(found, variable.values, err_msg=name)
    assert {k for k in fitted.attrs if again.attrs.get(k) != fitted.attrs[k]} <= {"dof"}
    sub, same = (mx.subtract(slits, m).flux.values for m in (fitted, again))
    np.testing.assert_allclose(same, sub, rtol=1e-5)


def _direct(pixels: Pixels, design: np.ndarray, penalty: np.ndarray) -> tuple:
    gram = design.T @ (pixels.w[:, None] * design)
    normal = gram + penalty
    return np.linalg.solve(normal, design.T @ (pixels.w * pixels.y)), normal, gram


@pytest.mark.parametrize(("spacing", "penalty"), [(4, 1e-3), (10, 3.0)])
def test_direct_least_squares_on_the_pixels(made, pixels, spacing, penalty):
    """Normal equations, chi2, covariance, held-out fits and scores: scipy's splines, dense."""
    n = made.sizes["slit"]
    sums = group_sums(made, np.arange(n), n)
    problem = problem_of(made, sums.moments)
    knots, basis = spline_basis(problem.grid, *problem.domain, spacing)
    system = PenalisedSystem.build(problem, basis, knots, spacing=spacing)
    design = plain_design(made.edge.values, knots, pixels)
    penalties = dense(system.penalty_bands(penalty))
    expected, normal, gram = _direct(pixels, design, penalties)
    _close(dense(system.total[0]), gram)
    _close(system.total[1], design.T @ (pixels.w * pixels.y))

    model = mx.BSpline(spacing=spacing, penalty=penalty)
    found = mx.fit_master(made, model=model)
    # Coefficients and covariance lose what the condition of the matrix takes.
    _close(found.coefficient.values, expected, 1e-9)
    covariance = np.linalg.inv(normal) * made.attrs["scatter"] ** 2
    _close(found.covariance.values, covariance, 1e-9)
    sky = mx.evaluate(found, _wave(made, pixels), mean=True)
    inside = np.isfinite(sky)
    _close(sky[inside], (design @ expected)[inside])
    row = found.isel(candidate=0)
    rest = pixels.y - design @ expected
    assert abs(row.score_chi2 / (pixels.w * rest**2).sum() - 1) < TIGHT

    score, scored, each = 0.0, 0, []
    inside = problem.scored.count > 0
    for s in range(n):
        mine = pixels.slit == s
        without, _, _ = _direct(pixels.part(~mine), design[~mine], penalties)
        each.append(without)
        mine &= inside[pixels.slit, pixels.span]
        score += (pixels.w[mine] * (pixels.y[mine] - design[mine] @ without) ** 2).sum()
        scored += mine.sum()
    _close(without_each(system.total[0] + system.penalty_bands(penalty), system.total[1],
                        system.bands, system.rhs)[0], np.array(each), 1e-9)  # fmt: skip
    assert abs(float(row.score_heldout) / (score / scored) - 1) < TIGHT


def test_knots_where_they_are_wanted(made, pixels):
    """Close at the He I line, far apart elsewhere, against the same spline through the pixels."""
    knots = (0.8, 0.95, *np.linspace(1.02, 1.15, 7), 1.3, 1.7, 2.2, 2.8, 3.5, 4.2, 4.9)
    model = mx.BSpline(knots=knots, penalty=1e-3)
    found = mx.fit_master(made, model=model)
    edges = made.edge.values
    nearest = edges[np.abs(edges - np.array(knots)[:, None]).argmin(axis=1)]
    np.testing.assert_array_equal(found.knots.values[4:-4], nearest)
    problem = problem_of(made, group_sums(made, np.zeros(made.sizes["slit"], int), 1).moments)
    least, at, basis = next(model.bases(problem))
    system = PenalisedSystem.build(problem, basis, at, spacing=least, even=False)
    design = plain_design(edges, found.knots.values, pixels)
    expected, _, _ = _direct(pixels, design, dense(system.penalty_bands(1e-3)))
    _close(found.coefficient.values, expected, 1e-9)
    assert "spacing" not in found.attrs and found.candidate.values[0].startswith("knots as given")
    scores = mx.score_moments(made, found, heldout=True)
    np.testing.assert_array_equal(scores.chi2, mx.score_moments(made, found, model=model,
                                                                heldout=True).chi2)  # fmt: skip


@pytest.mark.parametrize("options", [{"knots": (2.0, 1.0)}, {"knots": (1.0, 2.0), "spacing": 4}])
def test_knots_that_make_no_sense(options):
    with pytest.raises(mx.MbkgError, match="unusable knots"):
        mx.BSpline(**options)


def _wave(made: xr.Dataset, pixels: Pixels) -> np.ndarray:
    edges = made.edge.values
    return edges[pixels.span] + np.diff(edges)[pixels.span] * pixels.t


@pytest.mark.parametrize("chunk", [None, 5])
def test_scores_of_slits(made, pixels, fitted, chunk):
    """chi2, scale and its error of each slit, held out or not, by dense least squares."""
    lazy = made if chunk is None else made.chunk({"slit": chunk})
    scores = mx.score_moments(lazy, fitted)
    held = mx.score_moments(lazy, fitted, heldout=True)
    n = made.sizes["slit"]
    problem = problem_of(made, made.moments.values)
    knots, basis = spline_basis(problem.grid, *problem.domain, 6)
    system = PenalisedSystem.build(problem, basis, knots, spacing=6)
    design = plain_design(made.edge.values, knots, pixels)
    penalties = dense(system.penalty_bands(1e-2))
    everyone, _, _ = _direct(pixels, design, penalties)
    scored = problem.scored.count > 0
    for s in range(n):
        mine = pixels.slit == s
        if not mine.any():
            assert np.isnan(scores.chi2[s])
            continue
        without, _, _ = _direct(pixels.part(~mine), design[~mine], penalties)
        for found, coefficient, use in (
            (scores, everyone, mine),
            (held, without, mine & scored[pixels.slit, pixels.span]),
        ):
            w, y, m = pixels.w[use], pixels.y[use], design[use] @ coefficient
            assert int(found.pixels[s]) == use.sum()
            assert abs(float(found.chi2[s]) / (w * (y - m) ** 2).sum() - 1) < 1e-9
            assert abs(float(found.scale[s]) - (w * y * m).sum() / (w * m * m).sum()) < TIGHT
            error = made.attrs["scatter"] / np.sqrt((w * m * m).sum())
            assert abs(float(found.scale_error[s]) / error - 1) < TIGHT


def test_lazy_and_saved(slits, fitted, made, tmp_path, compute_nothing):
    chunked = slits.chunk({"slit": 5})
    known = {c: v for c, v in slits.coords.items() if v.ndim == 1}
    lazy = mx.moments(chunked.assign_coords(known), fitted)
    assert lazy.moments.chunks[0] == (5, 5, 2)
    (graph,) = dask.optimize(lazy.moments.data)
    assert len(dict(graph.__dask_graph__())) < 16 * lazy.moments.data.numblocks[0]
    with dask.config.set(scheduler="sync"):
        np.testing.assert_array_equal(lazy.moments.values, made.moments.values)
        mx.save({"prism-clear/moments": lazy}, tmp_path / "m.zarr")
        assert mx.verify(tmp_path / "m.zarr").ok
    back = mx.open_program(tmp_path / "m.zarr")["prism-clear/moments"].to_dataset()
    assert back.moments.chunks[0] == (5, 5, 2)
    with dask.config.set(scheduler="sync"):
        xr.testing.assert_identical(back.compute(), lazy.compute())
        sky = mx.fit_master(back, model=MODEL).polynomial.values
    expected = mx.fit_master(made, model=MODEL).polynomial.values
    np.testing.assert_allclose(sky, expected, rtol=0, atol=1e-9 * np.nanmax(expected))


def test_same_master_for_any_chunks_and_order(made):
    expected = mx.fit_master(made, model=MODEL).polynomial.values
    order = np.random.default_rng(0).permutation(made.sizes["slit"])
    for other in (made.chunk({"slit": 1}), made.isel(slit=order).chunk({"slit": 7})):
        for scheduler in ("sync", "threads"):
            with dask.config.set(scheduler=scheduler):
                found = mx.fit_master(other, model=MODEL).polynomial.values
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.nanmax(expected))


def test_append_and_take_out_again(slits, fitted, made):
    first, second = slits.isel(slit=slice(0, 6)), slits.isel(slit=slice(6, None))
    both = mx.merge_moments(mx.moments(first, fitted), mx.moments(second, fitted))
    xr.testing.assert_identical(both, made)
    left = mx.subtract_moments(both, second)
    xr.testing.assert_identical(left, mx.moments(first, fitted))
    names = [("exposure", "detector", "slitlet")]
    keys = zip(*(second[c].values.tolist() for c in names[0]), strict=True)
    xr.testing.assert_identical(mx.subtract_moments(both, list(keys)), left)


def _files(store):
    return {p.relative_to(store): p.stat() for p in store.rglob("*") if p.is_file()}


def test_append_to_a_store_in_place(slits, fitted, made, tmp_path):
    """Twice: what was there is not written again but the chunk that had room."""
    parts = [slice(0, 5), slice(5, 7), slice(7, 12)]
    first, *others = (mx.moments(slits.isel(slit=p), fitted) for p in parts)
    store = tmp_path / "m.zarr"
    mx.save({"prism-clear/moments": first.chunk({"slit": 2})}, store)
    before = _files(store)
    for new in others:
        mx.append_moments(new, store)
    back = mx.open_program(store)["prism-clear/moments"].to_dataset()
    xr.testing.assert_identical(back.compute(), made.compute())
    after = _files(store)
    same = [p for p, stat in before.items() if after[p].st_ino == stat.st_ino]
    pixels = {p for p in before if "moments/c/" in p.as_posix()}
    assert pixels - set(same) == {p for p in pixels if p.parent.parent.name == "2"}
    again = mx.fit_master(back, model=MODEL)
    _close(again.coefficient.values, mx.fit_master(made, model=MODEL).coefficient.values, 1e-12)
    with pytest.raises(mx.MbkgError, match="in more than one set"):
        mx.append_moments(others[0], store)
    with pytest.raises(mx.MbkgError, match="another master"):
        mx.append_moments(
            mx.moments(slits.isel(slit=[0]), fitted.assign_attrs(clip_unit=2.0)), store
        )
    with pytest.raises(mx.MbkgError, match="not one set of moments"):
        mx.append_moments(others[0].assign_attrs(configuration="g140m-f100lp"), store)
    xr.testing.assert_identical(
        mx.open_program(store)["prism-clear/moments"].to_dataset().compute(), made.compute()
    )


def test_an_append_that_is_killed(slits, fitted, made, tmp_path):
    """Before it was all written the store is as it was; after, the next one ends it."""
    first, second = (mx.moments(slits.isel(slit=p), fitted) for p in (slice(6), slice(6, None)))
    store, killed = tmp_path / "m.zarr", "import os, sys, zarr, xarray, mbkg_xr as mx\n"
    mx.save(first.chunk({"slit": 4}), store)
    mx.save(second, tmp_path / "new.zarr")
    killed += "new = mx.open_program(sys.argv[2])['prism-clear'].to_dataset()\n"
    killed += "from mbkg_xr.io import append\n"
    killed += "def die(*args, **kwargs): os.kill(os.getpid(), 9)\n"
    for moment in ("zarr.core.attributes.Attributes.__setitem__", "zarr.Array.resize"):
        code = f"{killed}{moment} = die\nmx.append_moments(new, sys.argv[1])"
        args = [sys.executable, "-c", code, str(store), str(tmp_path / "new.zarr")]
        assert subprocess.run(args).returncode == -9
        if "resize" not in moment:
            back = mx.open_program(store)["prism-clear"].to_dataset()
            xr.testing.assert_identical(back.compute(), first.compute())
    with pytest.raises(mx.MbkgError, match="that was interrupted"):
        mx.open_program(store)
    mx.append_moments(second, store)
    back = mx.open_program(store)["prism-clear"].to_dataset()
    xr.testing.assert_identical(back.compute(), made.compute())


def test_new_slits_join_with_what_is_usual(slits):
    """An exposure that the master never saw: moments merge, and its slits have wider errors."""
    old, new = slits.isel(slit=slice(0, 6)), slits.isel(slit=slice(6, None))
    master = mx.fit_master(old, model=MODEL)
    both = mx.merge_moments(mx.moments(old, master), mx.moments(new, master))
    joint = mx.fit_master(both, model=MODEL)
    assert joint.sizes["slit"] == 12
    assert joint.attrs["n_pixels"] > 1.5 * master.attrs["n_pixels"]
    inside = joint.constrained.values & master.constrained.values
    ratio = (joint.sky_error / master.sky_error).values[inside]
    assert 0.6 < np.median(ratio) < 0.9
    background = mx.project_master(slits, joint)
    relative = (background.background_error / background.background).median(("y", "x"))
    assert float(relative[6:].min()) > 1.5 * float(relative[:6].median())


def test_what_does_not_belong_together_is_refused(slits, fitted, made):
    with pytest.raises(mx.MbkgError, match=r"in more than one set.*sets 1 and 2"):
        mx.merge_moments(made, made.isel(slit=[3]))
    rest, one = made.isel(slit=slice(1, None)), made.isel(slit=[0])
    for change, message in (
        (one.assign_attrs(configuration="g140m-f100lp"), "configuration differ"),
        (one.assign_attrs(units="DN/s"), "units differ"),
        (one.assign_coords(edge=one.edge * 1.01), "other spans"),
        (mx.moments(slits.isel(slit=[0]), fitted.assign_attrs(clip_unit=2.0)), "another master"),
        (slits.isel(slit=[0]), "not a dataset of moments"),
    ):
        with pytest.raises(mx.MbkgError, match=message):
            mx.merge_moments(rest, change)
    with pytest.raises(mx.MbkgError, match="not there"):
        mx.subtract_moments(rest, one)
    with pytest.raises(mx.MbkgError, match="no slit would be left"):
        mx.subtract_moments(made, made)
    with pytest.raises(mx.MbkgError, match=r"weighted and clipped already \[clip\]"):
        mx.fit_master(made, clip=3.0)
    with pytest.raises(mx.MbkgError, match="expected moments of ln flux"):
        mx.fit_master(made, model=mx.LogPolynomial(method="seed"))
    with pytest.raises(mx.MbkgError, match="how its pixels were weighted"):
        mx.moments(slits, fitted.drop_vars("clip_cut"))
    with pytest.raises(mx.MbkgError, match="select_background first"):
        mx.moments(slits.drop_vars("selected"), fitted)


def test_moments_of_logarithms(slits):
    model = mx.LogPolynomial(degree=6, method="seed")
    master = mx.fit_master(slits, model=model)
    again = mx.fit_master(mx.moments(slits, master), model=model)
    _close(again.coefficient.values, master.coefficient.values, 1e-9)


def test_more_groups_than_usual(made):
    """Leave out by any coordinate; merged to as many groups as asked for."""
    assert mx.fit_master(made, model=MODEL).sizes["leave_out"] == 12
    assert mx.fit_master(made, model=MODEL, max_groups=5).sizes["leave_out"] == 5
    assert mx.fit_master(made, model=MODEL, leave_out="exposure").sizes["leave_out"] == 2
