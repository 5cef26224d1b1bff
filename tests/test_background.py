"""Projection and subtraction in one kernel, beside plain numpy."""

import numpy as np
import pytest
from numpy.polynomial import legendre
from scipy.interpolate import PPoly, RegularGridInterpolator

import mbkg_xr as mx


def _edges(wave):
    """Wavelengths of a row's pixel edges: cubic between four centres, linear between two."""
    w = np.concatenate([[np.nan, np.nan], wave, [np.nan, np.nan]])
    cubic = (9 * (w[1:-2] + w[2:-1]) - w[:-3] - w[3:]) / 16
    linear = 0.5 * (w[1:-2] + w[2:-1])
    first = w[2:-1] - 0.5 * (w[3:] - w[2:-1])
    last = w[1:-2] + 0.5 * (w[1:-2] - w[:-3])
    out = cubic
    for other in (linear, first, last):
        out = np.where(np.isnan(out), other, out)
    return out


def _plain(ds, master):
    """Background and its error, row by row."""
    edges = master.edge.values
    widths = np.diff(edges)
    powers = master.polynomial.values / widths[:, None] ** np.arange(4)
    sky = PPoly(np.nan_to_num(powers).T[::-1], edges).antiderivative()
    out = np.full((2, *ds.flux.shape), np.nan)
    basis = legendre.legvander(master.phase.values, master.sizes["order"] - 1)
    for s, i in np.ndindex(*ds.flux.shape[:2]):
        wave, yrel = ds.wavelength.values[s, i].astype(float), ds.yrel.values[s, i].astype(float)
        at = _edges(wave)
        with np.errstate(invalid="ignore"):
            mean = (sky(at[1:]) - sky(at[:-1])) / (at[1:] - at[:-1])
        n = np.clip(
            np.searchsorted(edges, np.nan_to_num(wave), side="right") - 1, 0, widths.size - 1
        )
        inside = (wave >= edges[0]) & (wave < edges[-1]) & master.constrained.values[n]
        t = (wave - edges[n]) / widths[n]
        nodes = (np.arange(widths.size)[:, None] + np.arange(4) / 4).ravel()
        error = np.interp(n + t, nodes, np.nan_to_num(master.sky_error.values).ravel())
        z = np.clip(np.floor(np.nan_to_num(yrel) + 0.5) + 2, 0, 4).astype(int)
        f = 1 + basis[n] @ master.scale.values[s] + master.shutter_level.values[s, z]
        by = basis[n] + master.shutter_level_slope.values[s, z]
        variance = np.einsum("nk,kl,nl->n", by, master.scale_covariance.values[s], by)
        variance += master.shutter_level_variance.values[s, z]
        g, e, raised = np.ones_like(f), np.zeros_like(f), np.ones_like(f)
        kinds = master.n_shutters.values.tolist() if "profile" in master else []
        if int(ds.n_shutters.values[s]) in kinds:
            kind = kinds.index(int(ds.n_shutters.values[s]))
            axes = (master.yrel_node.values, np.arange(master.sizes["bin"]) + 0.5)
            points = np.column_stack(
                [np.clip(np.nan_to_num(yrel), axes[0][0], axes[0][-1]),
                 np.clip((n + np.nan_to_num(t)) / 16, axes[1][0], axes[1][-1])]
            )  # fmt: skip
            g = RegularGridInterpolator(axes, master.profile.values[kind])(points)
            e = RegularGridInterpolator(axes, master.profile_error.values[kind])(points)
            raised = RegularGridInterpolator(axes, master.pedestal_along.values[kind])(points)
        shift = master.pedestal.values[s] * master.pedestal_shape.values[n] * raised
        floor = master.attrs["floor"] * mean
        total = (f * g * error) ** 2 + mean**2 * (g**2 * variance + (f * e) ** 2)
        out[0, s, i] = np.where(inside, mean * f * g + shift, np.nan)
        out[1, s, i] = np.where(inside, np.sqrt(total + (f * g * floor) ** 2), np.nan)
    return out


@pytest.mark.parametrize("response", [False, True])
def test_background_and_subtraction(selected, master, response):
    ds = selected.isel(slit=slice(0, 6)).compute()
    rng = np.random.default_rng(0)
    holes = rng.random(ds.flux.shape) < 0.02
    ds = ds.assign_coords(wavelength=ds.wavelength.where(~holes))
    ds.error.values[rng.random(ds.flux.shape) < 0.01] = 1e27
    background, error = _plain(ds, master.isel(slit=slice(0, 6)))
    if response:
        ratio = rng.choice(np.float32([0.5, 1, 1.5, np.nan]), ds.flux.shape)
        ds = ds.assign_coords(response=(("slit", "y", "x"), ratio))
        background, error = background * ratio, error * ratio
    sub = mx.residuals(mx.subtract(ds, master))
    projected = mx.project_master(ds, master)
    for found in (sub, projected):
        # Where a pixel's edge reaches past the spans there is no mean to compare.
        both = np.isfinite(background) & np.isfinite(found.background.values)
        assert both.sum() > 0.99 * np.isfinite(background).sum() > 10_000
        assert not np.isfinite(found.background.values[~np.isfinite(background)]).any()
        for name, expected in (("background", background), ("background_error", error)):
            np.testing.assert_allclose(found[name].values[both], expected[both], rtol=1e-6)
    ours, theirs = sub.background.values, sub.background_error.values.astype(float)
    np.testing.assert_array_equal(sub.flux.values, ds.flux.values - ours)
    grown = np.hypot(ds.error.values.astype(float), theirs)
    np.testing.assert_allclose(sub.error.values, grown, rtol=1e-6)
    missing = np.isfinite(ds.wavelength.values) & ~np.isfinite(ours)
    np.testing.assert_array_equal(sub.quality.values, ds.quality.values | missing)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(sub.error.values > 0, sub.flux.values / sub.error.values, np.nan)
    np.testing.assert_allclose(sub.residual.values, ratio, rtol=1e-6)


def test_a_pixel_without_a_place_along_the_slit_has_no_background(selected, master):
    ds = selected.isel(slit=slice(0, 3)).compute()
    lost = np.random.default_rng(3).random(ds.flux.shape) < 0.02
    ds = ds.assign_coords(yrel=ds.yrel.where(~lost))
    whole = mx.subtract(selected.isel(slit=slice(0, 3)), master).compute()
    sub = mx.subtract(ds, master)
    lost &= np.isfinite(whole.background.values)
    assert lost.sum() > 100
    assert np.isnan(sub.background.values[lost]).all()
    assert np.isnan(sub.background_error.values[lost]).all()
    assert (sub.quality.values[lost] & 1).all()
    np.testing.assert_array_equal(
        np.where(lost, np.nan, whole.background.values), sub.background.values
    )
