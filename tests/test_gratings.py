"""Gratings: a detector shows each slit another part of the range."""

import numpy as np
import pytest

import mbkg_xr as mx
from mbkg_xr.models.basis import ERROR_NODES
from mbkg_xr.models.factor import LOSS

MODEL = mx.BSpline(spacing=8, penalty=1.0)


def programme(grating, **options):
    return mx.select_background(mx.simulate_program(grating=grating, **options).compute())


@pytest.mark.parametrize(
    ("grating", "options"),
    [
        ("G140H", {"exposures": 2, "slits": 40, "background_slits": 15}),
        ("G395M", {"exposures": 2, "slits": 10, "background_slits": 4}),
        ("G235M", {"exposures": 2, "slits": 8, "detectors": ("NRS1", "NRS2")}),
    ],
)
def test_the_background_of_each_slit(grating, options):
    ds = programme(grating, **options)
    master = mx.fit_master(ds)
    assert master.slit_used.values.all()
    off = (mx.subtract(ds, master).background / ds.true_background - 1).where(ds.selected)
    off = off.values[np.isfinite(off.values)]
    assert off.size > 0.99 * int(ds.selected.sum())
    assert abs(off.mean()) < 0.01 and off.std() < 0.04  # few slits, of colours of their own


def test_a_slit_that_is_wrong_is_found():
    ds = programme("G140H", exposures=2, slits=40, background_slits=15)
    bad = ds.is_background & (ds.slitlet == ds.slitlet[ds.is_background][0])
    ds = ds.assign(flux=ds.flux * (1 + bad).astype(np.float32))
    master = mx.fit_master(ds, model=MODEL)
    np.testing.assert_array_equal(~master.slit_used.values, bad.values)


def test_the_factor_is_that_of_the_covariance():
    """Though it is never formed at all nodes at once; each node keeps its variance."""
    ds = programme("G395M", exposures=2, slits=6, background_slits=3)
    master = mx.fit_master(ds, model=MODEL, scales=None, profile=False)
    error = master.sky_error.values
    known = master.constrained.values & (error > 0).all(axis=1)
    factor = master.covariance_factor.values[known]
    assert factor.shape[1] == len(ERROR_NODES)
    share = np.square(factor).sum(axis=2) / error[known] ** 2
    assert share.max() < 1 + 1e-6 and share.min() > 1 - LOSS - 1e-6
