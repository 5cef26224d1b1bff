"""The bar-shadow profile: told apart from the slits' own scales, and found beside sources."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import legendre

import mbkg_xr as mx
from mbkg_xr.profile_sums import (
    FADES,
    N_NODES,
    ORDER,
    PROFILE_FIRST,
    PROFILE_STEP,
    SPILT,
    ProfileSums,
    splines,
)
from mbkg_xr.simulate import CLEAN


def test_sums_are_least_squares_with_the_slits_own_solved_for():
    """Against a design matrix with columns for scales of degree 3, levels of three shutters, and
    light of a source.
    """
    rng = np.random.default_rng(0)
    n_slits, n_bins = 3, 7
    phase = np.linspace(-1, 1, n_bins)
    w = 100 * rng.random((n_slits, N_NODES, n_bins))
    w[:, :40], w[:, 203:] = 0, 0
    d = w * (1 + 0.1 * rng.standard_normal(w.shape))
    g = 1 - 0.3 * rng.random((1, N_NODES, n_bins))
    source, light = np.array([np.nan, 0.8, np.nan]), 1 + rng.random((n_slits, n_bins))
    sums = ProfileSums.of(w, d, np.array([0, 0, -1]), (3,), g, phase, source, light)

    along = splines().toarray()
    of_profile = np.einsum("ni,bk->nbik", along, legendre.legvander(phase, ORDER))
    of_profile = of_profile.reshape(N_NODES * n_bins, -1)
    r = PROFILE_FIRST + PROFILE_STEP * np.arange(N_NODES)
    nearest = np.clip(np.rint(r), -1, 1)
    of_slit = np.concatenate(
        [
            np.tile(legendre.legvander(phase, 3), (N_NODES, 1)),
            np.repeat(nearest[:, None] == [-1, 0, 1], n_bins, axis=0),
        ],
        axis=1,
    )
    of_slit = of_slit * g.reshape(-1, 1)
    sides = np.stack([r < 0.3, r > 1.3], axis=1)  # of the shutter of the source at 0.8
    near = np.exp(-(np.abs(r - 0.8) - 0.5) / FADES)[:, None, None] * sides[:, None]
    tilted = near * phase[:, None]
    shapes = np.concatenate([near + 0 * tilted, tilted, sides[:, None] + 0 * tilted], axis=2)
    beside = (shapes * light[1][:, None]).reshape(N_NODES * n_bins, -1)
    spread = [0.05, 0.02, 0.02, 0.02, 0.01, 0.01, 0.01, *[SPILT] * 4, 0.01, 0.01]
    gram, right = np.zeros_like(sums.gram[0]), np.zeros_like(sums.right[0])
    for s in range(2):
        weight, y = w[s].ravel(), (d[s] - w[s]).ravel()
        columns = np.concatenate([of_slit, beside], axis=1) if s else of_slit
        prior = np.diag(1 / np.square(spread[: columns.shape[1]]))
        cross = of_profile.T @ (weight[:, None] * columns)
        own = np.linalg.inv(columns.T @ (weight[:, None] * columns) + prior)
        gram += of_profile.T @ (weight[:, None] * of_profile) - cross @ own @ cross.T
        right += of_profile.T @ y - cross @ own @ (columns.T @ y)
    assert np.allclose(sums.gram[0], gram, rtol=1e-10, atol=1e-10 * np.abs(gram).max())
    assert np.allclose(sums.right[0], right, rtol=1e-10, atol=1e-10 * np.abs(right).max())
    each = [
        ProfileSums.of(w[i], d[i], np.zeros(1, int), (3,), g, phase, source[i], light[i])
        for i in (slice(1), slice(1, 2))
    ]
    both = each[0] + each[1]
    assert np.allclose(both.gram, sums.gram, rtol=1e-12, atol=1e-12 * np.abs(gram).max())


def test_slits_of_other_colours_make_no_profile():
    """Slits that differ by 3 and 5 %, products whose bars are right: the profile is 1."""
    options = CLEAN | {"throughput_scatter": 0.03, "colour_scatter": 0.05}
    ds = mx.simulate_program(exposures=2, slits=10, background_slits=10, seed=3, **options)
    master = mx.fit_master(mx.select_background(ds.compute()))
    r = master.yrel_node.values
    at = (np.abs(r) < 1.4) & (np.abs(r - np.rint(r)) <= 0.2)
    off, error = master.profile.values[0, at] - 1, master.profile_error.values[0, at]
    assert np.sqrt((off**2).mean()) < 1.5 * np.sqrt((error**2).mean())
    assert np.abs(off).max() < 0.01


@pytest.fixture(scope="module")
def sourced():
    ds = mx.simulate_program(exposures=3, slits=10, background_slits=0, seed=5)
    return mx.select_background(ds.compute())


def test_bars_are_subtracted_without_sky_slits(sourced):
    """Against the truth, rows that are not centres: the bars are wrong by half in the products.

    Programmes of other seeds come to 0.49 to 0.63 of the error without a profile.
    """
    ds = sourced
    wave, yrel = ds.wavelength.values, ds.yrel.values
    rows = (wave > 0.7) & (wave < 5.2) & (np.abs(yrel) < 1.4) & np.isfinite(yrel)
    centres = rows & (np.abs(yrel - np.round(yrel)) <= 0.2)

    def rms(which, **options):
        sky = mx.project_master(ds, mx.fit_master(ds, **options)).background
        off = (sky / ds.true_background).values[which] - 1
        return float(np.sqrt(np.nanmean((off - np.nanmean(off)) ** 2)))

    assert rms(rows & ~centres) < 0.75 * rms(rows & ~centres, profile=False)
    assert rms(centres) < 1.2 * rms(centres, profile=False)


def test_real_slitlets_row_by_row(real_selected):
    """Each nod from the two others, all rows past a pitch from the source, past the slit too."""
    ds = real_selected
    z: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for k in range(3):
        others, one = ds.isel(slit=[i for i in range(3) if i != k]), ds.isel(slit=[k])
        far = np.abs(ds.yrel.values[k] - ds.source_shutter.values[k]) > 1
        for profile, kept in z.items():
            result = mx.subtract(one, mx.fit_master(others, profile=profile))
            ratio = (result.flux / one.error).values[0]
            good = far & ((result.quality.values[0] & 1) == 0) & np.isfinite(ratio)
            kept.append(ratio[good & (np.abs(ds.yrel.values[k]) > 1.3)])
    with_it, without = (np.concatenate(z[p]) for p in (True, False))
    assert with_it.size > 3000
    assert abs(np.median(with_it)) < 0.2
    assert np.median(without) < -1
    assert np.median(np.abs(with_it)) < 0.6 * np.median(np.abs(without))
