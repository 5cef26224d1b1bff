"""Slits that are wrong as a whole: left out, named, the master as if they had not been there."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import mbkg_xr as mx
from mbkg_xr.report.decisions import decisions
from mbkg_xr.simulate import CLEAN
from mbkg_xr.vetoes import _shorth

SCATTERED = CLEAN | {"throughput_scatter": 0.03, "colour_scatter": 0.02}
KINDS = {
    "brighter": lambda y, w: 1.3 * y,
    "fainter": lambda y, w: 0.7 * y,
    "negative": lambda y, w: -y,
    "blue": lambda y, w: y * (1 + 0.5 * np.exp(1 - w)),
    "line": lambda y, w: y * (1 + 2 * np.exp(-0.5 * ((w - 2.5) / 0.05) ** 2)),
    "nothing": lambda y, w: 0 * y,
}


@pytest.fixture(scope="module")
def clean() -> xr.Dataset:
    ds = mx.simulate_program(exposures=2, slits=9, background_slits=9, seed=6, **SCATTERED)
    return ds.compute()


@pytest.fixture(scope="module")
def by_hand(clean) -> xr.Dataset:
    """What a user gets who knows the wrong slits."""
    return mx.fit_master(mx.select_background(clean.isel(slit=~_wrong(clean))))


def _wrong(ds: xr.Dataset) -> np.ndarray:
    return np.isin(ds.slitlet.values, np.unique(ds.slitlet.values)[:2])


def _spoilt(ds: xr.Dataset, kind: str) -> xr.Dataset:
    """Two slitlets of nine wrong in all their pixels."""
    new = np.where(
        _wrong(ds)[:, None, None], KINDS[kind](ds.flux.values, ds.wavelength.values), ds.flux.values
    )
    return mx.select_background(ds.assign(flux=(ds.flux.dims, new.astype("f4"), ds.flux.attrs)))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_slits_are_left_out_and_no_others(clean, by_hand, kind):
    with pytest.warns(UserWarning, match="4 of 18 slits are left out of the fit"):
        master = mx.fit_master(_spoilt(clean, kind))
    assert (master.slit_used.values == ~_wrong(clean)).all()
    assert not master.shutter_used.values[_wrong(clean)].any()
    assert not master.n_used.values[_wrong(clean)].any()
    sky, error = by_hand.expected.values[:, 0], by_hand.sky_error.sel(node=0.5).values
    known = by_hand.constrained.values & master.constrained.values
    off = (master.expected.values[:, 0] - sky)[known] / error[known]
    # The first looks saw other slits; what that leaves is far below the master's error.
    assert np.sqrt(np.mean(off**2)) < 0.5


def test_left_out_slits_are_named_with_the_reason(clean, tmp_path):
    ds = _spoilt(clean, "brighter")
    with pytest.warns(UserWarning, match="left_out_slits"):
        master = mx.fit_master(ds)
    table = mx.left_out_slits(master)
    assert len(table) == 4
    assert set(table.slitlet) == set(clean.slitlet.values[_wrong(clean)].tolist())
    assert table.level.between(20, 40).all()
    assert table.reason.str.contains("brighter than the others").all()
    assert "brighter" in mx.describe(master).lines["slits left out as a whole"]
    sub = mx.subtract(ds, master)
    scores = mx.score_slits(mx.residuals(sub), master)
    said = decisions(scores, master)["fit"]
    assert said[_wrong(clean)].str.startswith("out as a whole").all()
    assert (said[~_wrong(clean)].str.startswith("in")).all()
    # It has the sky of the others, with an error as large as what it departs by.
    background = sub.background.values[_wrong(clean)]
    truth = clean.true_background.values[_wrong(clean)]
    assert abs(np.nanmedian(background / truth) - 1) < 0.1
    assert 0.2 < np.nanmedian(sub.background_error.values[_wrong(clean)] / background) < 0.5

    mx.save({"prism-clear/master": master}, tmp_path / "master.zarr")
    again = mx.open_program(tmp_path / "master.zarr")["prism-clear/master"].to_dataset()
    assert mx.left_out_slits(again).equals(table)


def test_scattered_slits_all_stay(clean):
    master = mx.fit_master(mx.select_background(clean))
    assert master.slit_used.values.all()
    assert mx.left_out_slits(master).empty
    assert "slits left out as a whole" not in mx.describe(master).lines


def test_most_slits_cannot_be_wrong(clean):
    """Six slitlets of nine, each wrong in its own way: nobody knows what is sky."""
    factor = np.ones(clean.sizes["slit"])
    numbers = np.unique(clean.slitlet.values)
    for number, wrong in zip(numbers, [0.2, 0.5, 1.5, 2.2, 3.1, 4.5], strict=False):
        factor[clean.slitlet.values == number] = wrong
    ds = clean.assign(flux=(clean.flux * factor[:, None, None].astype("f4")).astype("f4"))
    ds.flux.attrs.update(clean.flux.attrs)
    with pytest.warns(UserWarning, match="too many to tell what is sky"):
        master = mx.fit_master(mx.select_background(ds))
    assert master.slit_used.values.all()


def test_no_slit_is_left_out_where_that_is_not_wanted(clean):
    master = mx.fit_master(_spoilt(clean, "fainter"), scales=mx.Scales(slit_veto=None))
    assert master.slit_used.values.all()


def test_real_slits_all_stay(real_master):
    assert real_master.slit_used.values.all()
    assert real_master.attrs["slits_suspect"] == 0


def test_the_densest_half():
    rng = np.random.default_rng(0)
    middles, widths = zip(*(_shorth(rng.normal(3, 2, 400)) for _ in range(200)), strict=True)
    assert abs(np.mean(middles) - 3) < 0.2
    assert np.mean(widths) * 1.4826 == pytest.approx(2, rel=0.08)
    # A third of it elsewhere hardly moves it.
    both = np.concatenate([rng.normal(3, 0.1, 200), np.full(100, 9.0)])
    assert abs(_shorth(both)[0] - 3) < 0.1


def test_limits_that_make_no_sense():
    with pytest.raises(mx.MbkgError, match="slit_veto"):
        mx.Scales(slit_veto=0.0)
