"""Data minus background, by master and by nods."""

import numpy as np
import pytest
import xarray as xr

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN


def test_subtraction(selected, master):
    ds = selected.compute()
    sub = mx.subtract(ds, master)
    inside = np.isfinite(sub.background.values)
    np.testing.assert_allclose(
        sub.flux.values[inside], (ds.flux.values - sub.background.values)[inside]
    )
    with np.errstate(over="ignore"):
        expected = np.hypot(ds.error.values, sub.background_error.values)
    np.testing.assert_allclose(sub.error.values[inside], expected[inside])
    assert sub.attrs["background_method"] == "master"
    assert sub.flux.dtype == sub.error.dtype == np.float32
    # The input is left as it was.
    assert "background" not in ds


def test_wild_errors_stay_finite(real, real_master):
    """Bad pixels carry errors of 1e27, whose squares float32 cannot hold."""
    sub = mx.subtract(real, real_master)
    wild = (real.error.values > 1e20) & np.isfinite(sub.background.values)
    assert wild.any()
    np.testing.assert_array_equal(sub.error.values[wild], real.error.values[wild])


@pytest.mark.parametrize("options", [{}, {"heldout": True}, {"method": "rebin2d"}])
def test_residuals_of_the_same_visit(selected, master, options, tmp_path):
    ds = selected.isel(slit=slice(0, 6))
    both = mx.subtract(ds, master, residual=True, **options)
    expected = mx.residuals(mx.subtract(ds, master, **options))
    xr.testing.assert_identical(both.compute(), expected.compute())
    xr.testing.assert_identical(
        mx.subtract(ds.compute(), master, residual=True, **options), expected.compute()
    )
    assert np.isfinite(both.residual.values).any()


def test_lazy_equals_eager(selected, master):
    xr.testing.assert_identical(
        mx.subtract(selected, master).compute(), mx.subtract(selected.compute(), master)
    )
    xr.testing.assert_identical(
        mx.subtract_nods(selected).compute(), mx.subtract_nods(selected.compute())
    )


def _plain_nods(ds):
    """Nodded subtraction, slit by slit and pixel by pixel."""
    n, ny, nx = ds.flux.shape
    out = np.full((n, ny, nx), np.nan)
    for s in range(n):
        for i in range(ny):
            for j in range(nx):
                if np.isnan(ds.yrel.values[s, i, j]):
                    continue
                values = []
                for p in range(n):
                    same = all(
                        ds[c].values[p] == ds[c].values[s] for c in ("visit", "detector", "slitlet")
                    )
                    if not same or ds.nod.values[p] == ds.nod.values[s]:
                        continue
                    k = i + ds.y_start.values[s] - ds.y_start.values[p]
                    m = j + ds.x_start.values[s] - ds.x_start.values[p]
                    if not (0 <= k < ny and 0 <= m < nx):
                        continue
                    if ds.quality.values[p, k, m] & (1 | 16 | 2**28 | 2**29):
                        continue
                    if not np.isfinite(ds.flux.values[p, k, m]) or not ds.error.values[p, k, m] > 0:
                        continue
                    source = np.nan if ds.is_background.values[p] else ds.source_shutter.values[p]
                    if np.abs(ds.yrel.values[p, k, m] - source) <= 0.5:
                        continue
                    values.append(float(ds.flux.values[p, k, m]))
                if values:
                    out[s, i, j] = np.mean(values)
    return out


def test_nods_against_a_plain_loop(real):
    ds = real.isel(x=slice(100, 160))
    found = mx.subtract_nods(ds).background.values
    np.testing.assert_allclose(found, _plain_nods(ds), rtol=1e-5)


def test_nods_follow_the_detector_pixel(real):
    """A cut-out that begins two rows lower and three columns further left holds the same pixels."""
    plain = mx.subtract_nods(real)
    moved = real.isel(slit=[1]).pad(y=(2, 0), x=(3, 0), mode="wrap")
    moved = moved.assign_coords(y_start=moved.y_start - 2, x_start=moved.x_start - 3)
    moved.quality.values[..., :2, :] |= 1
    moved.quality.values[..., :, :3] |= 1
    others = real.pad(y=(0, 2), x=(0, 3), mode="edge")
    others.quality.values[..., -2:, :] |= 1
    others.quality.values[..., :, -3:] |= 1
    together = xr.concat([others.isel(slit=[0]), moved, others.isel(slit=[2])], "slit")
    found = mx.subtract_nods(together).background.values
    for s in (0, 2):
        inside = np.isfinite(plain.background.values[s])
        np.testing.assert_array_equal(
            found[s, :25, :341][inside], plain.background.values[s][inside]
        )


def test_nods_of_other_shutters_are_not_mixed_in(program):
    """Slitlet numbers begin anew with the next configuration of the MSA."""
    first = program.compute()
    second = first.assign_coords(
        exposure=("slit", [f"{e}b" for e in first.exposure.values]),
        shutter_row=first.shutter_row + 40,
    ).assign(flux=first.flux + 1)
    both = xr.concat([first, second], "slit")
    found = mx.subtract_nods(both).background.isel(slit=slice(0, first.sizes["slit"]))
    np.testing.assert_array_equal(found.values, mx.subtract_nods(first).background.values)


def test_noise_gain_of_nods():
    """sqrt(3/2) on sky slitlets of three nods, sqrt(2) on sky shutters beside a source."""
    ds = mx.simulate_program(
        exposures=3, slits=8, background_slits=4, flagged_fraction=0.0, seed=9, **CLEAN
    ).load()
    nods = mx.residuals(mx.subtract_nods(ds))
    centres = mx.sky_centres(nods).values
    for background, gain in ((True, np.sqrt(1.5)), (False, np.sqrt(2.0))):
        rows = ds.is_background.values == background
        three = rows & (ds.n_shutters.values == 3)
        ratio = (nods.error / ds.error).values[three][centres[three]]
        assert abs(np.median(ratio) / gain - 1) < 0.02


def test_nods_at_one_position_have_no_background(program):
    single = program.isel(slit=program.nod.values == 1).load()
    nods = mx.subtract_nods(single)
    assert np.isnan(nods.background.values).all()
    inside = np.isfinite(single.wavelength.values)
    assert (nods.quality.values[inside] & 1).all()


def test_background_agrees_with_the_truth():
    ds = mx.simulate_program(exposures=3, slits=20, background_slits=20, seed=6, **CLEAN)
    ds = mx.select_background(ds.load())
    sub = mx.subtract(ds, mx.fit_master(ds))
    wave = ds.wavelength.values
    use = ds.selected.values & (wave > 0.7) & (wave < 5.2)
    ratio = (sub.background / ds.true_background).values[use] - 1
    assert abs(ratio.mean()) < 0.002
    assert ratio.std() < 0.01


def test_residuals_need_a_background(program):
    with pytest.raises(mx.MbkgError, match="nothing was subtracted"):
        mx.residuals(program)
