"""Variances of sums of pixels: against the whole covariance matrix, and against the truth."""

import dask
import numpy as np
import pytest
import xarray as xr
from numpy.polynomial import legendre

import mbkg_xr as mx
from mbkg_xr.models import ERROR_NODES
from mbkg_xr.simulate import CLEAN
from mbkg_xr.slit_terms import slit_terms
from mbkg_xr.spans import span_grid

EDGES = [0.8, 1.5, 2.5, 4.0, 5.0]


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    ds = mx.simulate_program(exposures=2, slits=6, background_slits=3, seed=3)
    return mx.select_background(ds).compute()


@pytest.fixture(scope="module")
def small_master(small) -> xr.Dataset:
    return mx.fit_master(small)


@pytest.fixture(scope="module")
def sub(small, small_master) -> xr.Dataset:
    return mx.subtract(small, small_master)


@pytest.fixture(scope="module")
def weights(sub) -> xr.DataArray:
    """Of every hundredth pixel or so, of either sign."""
    rng = np.random.default_rng(1)
    shape = sub.flux.shape
    values = np.where(rng.random(shape) < 0.01, rng.normal(1, 1, shape), 0)
    return xr.DataArray(np.where(sub.yrel.notnull(), values, 0), dims=sub.flux.dims)


def profile_weights(master, yrel, u):
    """``(pixel, node, bin)`` of a bilinear table, one dense matrix after the other."""
    nodes, bins = master.yrel_node.values, master.sizes["bin"]
    along = np.array([np.interp(yrel, nodes, row) for row in np.eye(nodes.size)]).T
    across = np.array([np.interp(u / 16 - 0.5, np.arange(bins), row) for row in np.eye(bins)]).T
    return along, across


def test_it_is_the_whole_covariance_matrix_between_two_vectors(small, small_master, sub, weights):
    """J C J' of all pixels at once, built with other code."""
    master = small_master
    good = (weights.values != 0) & np.isfinite(sub.flux.values) & (sub.quality.values & 1 == 0)
    s = np.nonzero(good)[0]
    h = weights.values[good].astype(np.float32).astype(float)
    wave, yrel = (sub[n].values[good].astype(float) for n in ("wavelength", "yrel"))
    grid = span_grid(sub)
    u = grid.pixel_coordinate(wave)
    n = u.astype(int)
    terms = slit_terms(sub, master)
    z = np.clip(np.floor(yrel + 0.5).astype(int) + 2, 0, 4)
    order = master.sizes["order"]
    basis = legendre.legvander(master.phase.values[n], order - 1)
    f = 1 + (terms.scale[s, z] * basis).sum(axis=1)
    along, across = profile_weights(master, yrel, u)
    kinds = master.n_shutters.values.tolist()
    kind = np.array([kinds.index(k) for k in sub.n_shutters.values[s]])
    g = np.einsum("py,pyb,pb->p", along, master.profile.values[kind], across)
    pedestal = master.pedestal.values[s] * master.pedestal_shape.values[n]
    if "pedestal_along" in master:
        raised = master.pedestal_along.values[kind]
        pedestal = pedestal * np.einsum("py,pyb,pb->p", along, raised, across)
    level = sub.background.values[good] - pedestal

    # The master: Lagrange's polynomials of the nodes.
    t = u - n
    lagrange = np.ones((t.size, 4))
    for m, at in enumerate(ERROR_NODES):
        for other in np.delete(ERROR_NODES, m):
            lagrange[:, m] *= (t - other) / (at - other)
    rows = np.einsum("pm,pmr->pr", lagrange, master.covariance_factor.values[n].astype(float))
    jacobian = (f * g)[:, None] * rows
    covariance = jacobian @ jacobian.T
    # Scales, and what is the shutters' own.
    slope = master.shutter_level_slope.values[s, z]
    design = (level / f)[:, None] * (basis + slope)
    for a in range(len(h)):
        same = s == s[a]
        block = design[a] @ master.scale_covariance.values[s[a]] @ design[same].T
        own = (level / f)[a] * (level / f)[same] * master.shutter_level_variance.values[s[a], z[a]]
        block = block + own * (z[same] == z[a])
        bins = (z[same] == z[a]) & (n[same] // 16 == n[a] // 16)
        block = block + master.attrs["floor"] ** 2 * level[a] * level[same] * bins
        covariance[a, same] += block
    # The profile.
    table = np.einsum("bo,kyor->kybr", master.profile_basis.values, master.profile_factor.values)
    for k in range(len(kinds)):
        part = np.einsum("py,ybr,pb->pr", along, table[k].astype(float), across)
        part = part * (level / g * (kind == k))[:, None]
        covariance += part @ part.T
    error, other = (sub[v].values[good].astype(float) for v in ("error", "background_error"))
    covariance += np.diag(error**2 - other**2)

    found = mx.propagate(sub, master, weights=weights.astype("f4"))
    direct = h @ covariance @ h
    assert found.n_pixels == h.size > 300
    np.testing.assert_allclose(found.variance - found.variance_shared, direct, rtol=1e-10)
    np.testing.assert_allclose(found.value, h @ sub.flux.values[good].astype(float), rtol=1e-10)

    # What fitted pixels share with the master, likewise.
    used = small.selected.values[good] & master.shutter_used.values[s, z]
    shared = -2 * (h @ jacobian) @ ((h * used) @ jacobian)
    np.testing.assert_allclose(found.variance_shared, shared, rtol=1e-8)


def test_single_pixels_have_the_errors_of_the_result(small, small_master, sub):
    """But that errors are interpolated between nodes, where what errs is known to be smoother."""
    small_master = small_master.drop_vars([v for v in small_master if "profile" in v])
    for heldout in (False, True):
        one = mx.subtract(small, small_master, heldout=heldout)
        good = np.isfinite(one.background.values) & (one.quality.values & 1 == 0)
        where = [tuple(i) for i in np.argwhere(good)[:: good.sum() // 20]]
        picked = np.zeros((len(where), *one.flux.shape), dtype=np.float32)
        for i, at in enumerate(where):
            picked[(i, *at)] = 1
        weights = xr.DataArray(picked, dims=("pixel", *one.flux.dims))
        found = mx.propagate(one, small_master, weights=weights)
        assert found.value.dims == ("pixel",)
        parts = found.variance - found.variance_noise - found.variance_shared
        expected = np.array([one.background_error.values[at] for at in where])
        np.testing.assert_allclose(np.sqrt(parts), expected, rtol=0.02)


def test_the_factor_is_the_covariance(small_master):
    factor = small_master.covariance_factor.values.astype(float)
    lost = 1 - np.square(factor).sum(axis=2) / small_master.sky_error.values**2
    inside = small_master.constrained.values
    assert lost[inside].min() > -1e-5 and lost[inside].max() < 1.001e-3
    assert factor.shape[2] < small_master.sizes["parameter"]


@pytest.mark.parametrize(
    "model", [mx.BSpline(spacing=8), mx.LogPolynomial(degree=5), mx.LogPolynomial(method="seed")]
)
def test_every_model_has_a_factor(small, model):
    master = mx.fit_master(small, model=model, scales=None, profile=False)
    factor = master.covariance_factor.values.astype(float)
    share = np.square(factor).sum(axis=2) / master.sky_error.values**2
    inside = master.constrained.values
    np.testing.assert_allclose(share[inside], 1, atol=1.1e-3)
    again = mx.fit_master(small, model=mx.Template(master), scales=None, profile=False)
    factor = again.covariance_factor.values.astype(float)
    share = np.square(factor).sum(axis=2) / again.sky_error.values**2
    np.testing.assert_allclose(share[inside], 1, atol=3e-3)


def test_chunks_and_ways_to_ask_agree(sub, small_master):
    lazy = sub.chunk(slit=5)
    by = {"slit": None, "wavelength": EDGES}
    asked = mx.propagate(lazy, small_master, by=by)
    assert dask.is_dask_collection(asked.variance.data)
    found = asked.compute()
    whole = mx.propagate(sub, small_master, by=by)
    xr.testing.assert_allclose(found, whole, rtol=1e-12)
    assert found.value.dims == ("slit", "wavelength")
    assert (found.slitlet.values == sub.slitlet.values).all()

    bands = mx.propagate(lazy, small_master, by={"wavelength": EDGES}).compute()
    for name in ("value", "n_pixels", "variance_noise", "variance_floor", "variance_scale"):
        np.testing.assert_allclose(bands[name], found[name].sum("slit"), rtol=1e-9)
    # A master that is wrong is wrong in all slits at once.
    assert (bands.variance_master > found.variance_master.sum("slit")).all()

    slitlets = mx.propagate(lazy, small_master, by=["slitlet", "nod"]).compute()
    assert slitlets.value.dims == ("slitlet", "nod")
    one = mx.propagate(sub.isel(slit=sub.slitlet.values == 2), small_master, by="nod")
    np.testing.assert_allclose(slitlets.variance.sel(slitlet=2), one.variance, rtol=1e-9)

    masks = [sub.wavelength < 2.0, sub.yrel > 0.0]
    both = xr.concat(masks, "which").assign_coords(which=["blue", "upper"])
    several = mx.propagate(lazy, small_master, weights=both, by="slit").compute()
    assert several.value.dims == ("slit", "which")
    blue = mx.propagate(sub, small_master, weights=masks[0], by="slit")
    xr.testing.assert_allclose(several.variance.sel(which="blue", drop=True), blue.variance)


def test_what_has_no_value_is_counted_and_left_out(sub, small_master):
    weights = xr.zeros_like(sub.flux) + 1
    found = mx.propagate(sub, small_master, weights=weights, by="slit")
    usable = np.isfinite(sub.flux) & (sub.error > 0) & ((sub.quality & 1) == 0)
    np.testing.assert_array_equal(found.n_pixels, usable.sum(("y", "x")))
    np.testing.assert_array_equal(found.n_missing, (~usable).sum(("y", "x")))
    none = mx.propagate(sub, small_master, weights=weights * np.nan)
    assert none.n_pixels == 0 and none.n_missing == 0 and np.isnan(none.variance)


def test_errors_of_bands_are_true_where_quadrature_is_far_off():
    """Against the truth, over noise: sums of the background in bands of all slits."""
    pulls, naive = [], []
    for seed in range(5):
        ds = mx.simulate_program(exposures=2, slits=8, background_slits=8, seed=seed, **CLEAN)
        ds = mx.select_background(ds.compute())
        master = mx.fit_master(ds, scales=None, profile=False)
        sub = mx.subtract(ds, master)
        edges = span_grid(ds).edges[60:460:50]
        background = sub.assign(
            flux=sub.flux.copy(data=(ds.true_background - sub.background).values.astype("f4"))
        )
        weights = np.abs(ds.yrel) < 0.2
        found = mx.propagate(background, master, weights=weights, by={"wavelength": edges})
        squares = sub.flux.copy(data=sub.background_error.values**2)
        quadrature = mx.propagate(
            sub.assign(flux=squares), master, weights=weights, by={"wavelength": edges}
        ).value
        pulls.append(found.value / np.sqrt(found.variance_master))
        naive.append(found.value / np.sqrt(quadrature))
    assert 0.75 < np.sqrt(np.mean(np.square(pulls))) < 1.25
    assert np.sqrt(np.mean(np.square(naive))) > 10


def test_masters_of_parts_err_independently():
    ds = mx.simulate_program(exposures=1, visits=2, slits=4, background_slits=4, seed=2)
    ds = mx.select_background(ds.compute())
    both = mx.fit_master(ds, by="visit", model=mx.BSpline(spacing=12), profile=False)
    sub = mx.subtract(ds, both)
    by = {"wavelength": EDGES}
    whole, lazy = (mx.propagate(one, both, by=by) for one in (sub, sub.chunk(slit=3)))
    xr.testing.assert_allclose(whole, lazy.compute(), rtol=1e-12)
    slits = mx.propagate(sub, both, by={"slit": None, **by})
    alone = []
    for visit in both.part.values:
        part = ds.isel(slit=ds.visit.values == visit)
        master = mx.master_part(both, visit)
        alone.append(mx.propagate(mx.subtract(part, master), master, by=by))
        local = mx.propagate(mx.subtract(part, master), master, by={"slit": None, **by})
        here = slits.variance.values[ds.visit.values == visit]
        np.testing.assert_allclose(here, local.variance, rtol=1e-12)
    np.testing.assert_allclose(whole.variance, alone[0].variance + alone[1].variance, rtol=1e-9)
    np.testing.assert_allclose(whole.value, alone[0].value + alone[1].value, rtol=1e-9, atol=1e-9)


def test_bad_requests_are_told(sub, small, small_master):
    with pytest.raises(mx.MbkgError, match="result of subtract; found background: nods"):
        mx.propagate(mx.subtract_nods(small), small_master)
    other = mx.fit_master(small, model=mx.BSpline(spacing=12))
    with pytest.raises(mx.MbkgError, match="another master was subtracted"):
        mx.propagate(sub, other)
    with pytest.raises(mx.MbkgError, match="fit it anew"):
        mx.propagate(sub, small_master.drop_vars("covariance_factor"))
    with pytest.raises(mx.MbkgError, match="sums by wavelength need bins"):
        mx.propagate(sub, small_master, by="wavelength")
    with pytest.raises(mx.MbkgError, match=r"cannot be taken apart by this .*; found colour"):
        mx.propagate(sub, small_master, by="colour")
    with pytest.raises(mx.MbkgError, match="rising edges"):
        mx.propagate(sub, small_master, by={"wavelength": [2.0, 1.0]})
    with pytest.raises(mx.MbkgError, match="unusable weights"):
        mx.propagate(sub, small_master, weights=sub.flux.isel(slit=0))
