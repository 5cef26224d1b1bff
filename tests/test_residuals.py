"""Residuals and their statistics, against plain numpy on the same pixels."""

import numpy as np
import pytest
from scipy import stats

import mbkg_xr as mx
from mbkg_xr.residuals import STATISTICS
from mbkg_xr.spans import span_grid


@pytest.fixture(scope="module")
def both(real_selected, real_master):
    result = mx.residuals(mx.subtract(real_selected, real_master))
    return result, mx.residuals(mx.subtract_nods(real_selected))


def test_residual_is_flux_over_error(both):
    for ds in both:
        flux, error = ds.flux.values, ds.error.values
        good = np.isfinite(flux) & (error > 0)
        np.testing.assert_allclose(ds.residual.values[good], flux[good] / error[good], rtol=1e-6)
        assert np.isnan(ds.residual.values[~good]).all()


def test_sky_centres(both):
    result, _ = both
    shutter = np.round(result.yrel.values)
    expected = (np.abs(result.yrel.values - shutter) <= 0.2) & (np.abs(shutter) <= 1)
    expected &= shutter != result.source_shutter.values[:, None, None]
    expected &= (result.quality.values & 1) == 0
    expected &= np.isfinite(result.residual.values)
    np.testing.assert_array_equal(mx.sky_centres(result).values, expected)


def test_statistics_against_numpy(both):
    result, nods = both
    table = mx.compare(result, nods)
    assert list(table.columns) == list(STATISTICS)
    common = mx.sky_centres(result).values & mx.sky_centres(nods).values
    u = span_grid(result).pixel_coordinate(result.wavelength.values)
    for name, ds in (("master", result), ("nods", nods)):
        z = ds.residual.values[common].astype(float)
        row = table.loc[name]
        near = z[np.abs(z) < 40]
        assert row.n == z.size
        assert abs(row["median"] - np.median(z)) < 3e-3
        assert abs(row["std"] - near.std()) < 1e-6
        assert abs(row.mad_sigma - stats.median_abs_deviation(z, scale="normal")) < 6e-3
        assert abs(row["skew"] - stats.skew(near)) < 1e-6
        assert row.frac_3sigma == np.mean(np.abs(z) > 3)
        assert row.frac_5sigma == np.mean(np.abs(z) > 5)
        assert row.frac_under == np.mean(z > 0)
        assert row.frac_over == np.mean(z < 0)
        error, other = (v.values[common].astype(float) for v in (ds.error, ds.background_error))
        gain = np.median(error / np.sqrt(error**2 - other**2))
        assert abs(row.noise_gain - gain) < 1e-3
        bins = (u[common] // 2).astype(int)
        kept = np.abs(z) <= 5
        n = np.bincount(bins[kept])
        total = np.bincount(bins[kept], z[kept])
        stack = np.sqrt(np.mean(total[n > 0] ** 2 / n[n > 0]))
        assert abs(row["stack"] - stack) < 1e-9
        nod = np.broadcast_to(ds.nod.values[:, None, None], common.shape)[common]
        each = []
        for k in (1, 2, 3):
            here = kept & (nod == k)
            n, total = np.bincount(bins[here]), np.bincount(bins[here], z[here])
            each.append(total[n > 0] ** 2 / n[n > 0])
        assert abs(row["stack_nod"] - np.sqrt(np.mean(np.concatenate(each)))) < 1e-9


def test_any_chunks(both):
    result, nods = both
    expected = mx.compare(result, nods)
    found = mx.compare(result.chunk({"slit": 1}), nods.chunk({"slit": 2}))
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)


def test_pure_noise_scores_as_pure_noise():
    """Gaussian residuals of known error: every figure takes its known value."""
    ds = mx.simulate_program(exposures=2, slits=6, background_slits=6, seed=1).load()
    rng = np.random.default_rng(0)
    shape = ds.flux.shape
    inside = np.isfinite(ds.wavelength.values)
    ds["error"] = ds.error.copy(data=np.where(inside, 1.0, np.nan).astype("f4"))
    ds["flux"] = ds.flux.copy(data=np.where(inside, rng.normal(size=shape), np.nan).astype("f4"))
    ds = ds.assign_coords(quality=ds.quality.copy(data=np.where(inside, 0, 1).astype("u4")))
    zero = ds.flux.copy(data=np.zeros(shape, "f4"))
    ds = mx.residuals(ds.assign(background=zero, background_error=zero))
    row = mx.compare(ds).loc["master"]
    n = row.n
    assert n > 10_000
    assert abs(row["median"]) < 5 / np.sqrt(n)
    assert abs(row["std"] - 1) < 4 / np.sqrt(2 * n)
    assert abs(row.mad_sigma - 1) < 5 / np.sqrt(n)
    assert abs(row["skew"]) < 5 * np.sqrt(6 / n)
    assert abs(row.frac_3sigma - 0.0027) < 5 * np.sqrt(0.0027 / n)
    assert abs(row["stack"] - 1) < 0.2
    assert row.noise_gain == pytest.approx(1, abs=1e-3)


def test_real_slitlets_master_beside_nods(both, real_selected, real_master):
    result, nods = both
    held = mx.residuals(mx.subtract(real_selected, real_master, heldout=True))
    table = mx.compare(result, nods, heldout=held)
    assert list(table.index) == ["master", "nods", "heldout"]
    assert abs(table.loc["master", "median"]) < 0.06
    assert 1.05 < table.loc["master", "mad_sigma"] < 1.22
    assert 1.05 < table.loc["nods", "mad_sigma"] < 1.35
    assert table.loc["heldout", "mad_sigma"] < 1.05 * table.loc["nods", "mad_sigma"]
    assert abs(table.loc["nods", "noise_gain"] - np.sqrt(2)) < 0.01
    # The master's own error, and the 2 % by which shutters of one slitlet differ.
    assert table.loc["master", "noise_gain"] < 1.03
    # In flux the master's residuals are the narrower ones by about the noise gain.
    common = mx.sky_centres(result).values & mx.sky_centres(nods).values
    spread = [stats.median_abs_deviation(d.flux.values[common]) for d in (nods, held)]
    assert spread[0] / spread[1] > 1.3


def test_without_nods(program):
    single = mx.select_background(program.isel(slit=program.nod.values == 1))
    master = mx.fit_master(single)
    result = mx.residuals(mx.subtract(single, master))
    table = mx.compare(result, mx.residuals(mx.subtract_nods(single)))
    assert table.loc["nods", "n"] == 0
    assert np.isnan(table.loc["nods", "mad_sigma"])
    assert table.loc["master", "n"] > 1000


def test_other_slits_cannot_be_compared(both):
    result, nods = both
    with pytest.raises(mx.MbkgError, match="different slits"):
        mx.compare(result, nods.isel(slit=[0, 1]))
    with pytest.raises(mx.MbkgError, match="different slits"):
        mx.compare(result, nods.isel(slit=[1, 0, 2]))


def test_errors_of_sky_by_the_master(program):
    """Read noise and the photons of the background, whatever the pixel's own counts."""
    ds = mx.select_background(program.compute())
    both = mx.fit_master(ds, by="nod", model=mx.BSpline(spacing=12), profile=False)
    grid = span_grid(ds)
    for master in (both, mx.master_part(both, both.part.values[0])):
        sub = mx.subtract(ds, both)
        if "part" not in master.dims:
            sub = mx.subtract(ds, master)
        found = mx.residuals(sub, master=master)
        lazy = mx.residuals(sub.chunk(slit=3), master=master)
        np.testing.assert_allclose(lazy.residual, found.residual, rtol=1e-5)
        for s in (0, ds.sizes["slit"] - 1):
            one = sub.isel(slit=s)
            own = master
            if "part" in master.dims:
                own = mx.master_part(both, one.nod.item())
            u = np.nan_to_num(grid.pixel_coordinate(one.wavelength.values)).astype(int)
            span = np.clip(u, 0, grid.size - 1)
            times = one.var_rnoise.values / own.read_floor.values[span]
            kind = np.searchsorted([1, 2, 4, 8], np.nan_to_num(times))
            gain = own.photon_gain.values[span] * own.read_class_gain.values[kind]
            light = np.maximum(one.background.values, 0) * 1000 / one.exposure_time.item()
            variance = (one.var_rnoise.values + gain * light) * own.attrs["scatter"] ** 2
            plain = one.flux.values / np.sqrt(variance + one.background_error.values**2)
            good = np.isfinite(one.flux.values) & (one.error.values > 0)
            good &= one.var_rnoise.values > 0
            z = found.residual.values[s]
            np.testing.assert_allclose(z[good], plain[good], rtol=1e-4)
            assert np.isnan(z[~np.isfinite(one.flux.values)]).all()


def test_residuals_over_given_errors_are_low(faint):
    """Of the truth, too: a pixel that came out low has a small error. Not by the master's."""
    master = mx.fit_master(faint, model=mx.BSpline(spacing=6, penalty=1e-3))
    left = (faint.flux - faint.true_background).values
    sub = mx.subtract(faint, master)
    sub = sub.assign(flux=sub.flux.copy(data=left.astype("f4")))
    given, of_sky = mx.residuals(sub), mx.residuals(sub, master=master)
    use = mx.sky_centres(given).values & ~faint.outlier.values
    assert given.residual.values[use].mean() < -0.1
    assert abs(of_sky.residual.values[use].mean()) < 0.01
    stack = mx.compare(given)["stack"].iloc[0], mx.compare(of_sky)["stack"].iloc[0]
    assert stack[0] > 1.3 and 0.9 < stack[1] < 1.1


def test_errors_of_sky_need_the_noise(selected, master):
    sub = mx.subtract(selected, master)
    with pytest.raises(mx.MbkgError, match=r"noise of the sky is not known.*no photon_gain"):
        mx.residuals(sub, master=master.drop_vars("photon_gain"))
