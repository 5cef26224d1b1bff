"""Shutters and pixels that are not what they seem: found, told apart, applied on request."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.chain import run_tree
from mbkg_xr.cli import main
from mbkg_xr.simulate import CLEAN

IDENTITY = ["exposure", "detector", "slitlet"]
DIRTY = {k: v for k, v in CLEAN.items() if k != "contaminated_fraction"} | {
    "contaminated_fraction": 0.2,
    "contaminant_scatter": 0.0,
}


@pytest.fixture(scope="module")
def dirty() -> tuple[xr.Dataset, xr.Dataset]:
    """Sky slits at a signal to noise of 3 a pixel; in a fifth of the slitlets a source of 5 %."""
    ds = mx.simulate_program(
        exposures=3, slits=40, background_slits=40, signal_to_noise=3, seed=1, **DIRTY
    )
    ds = mx.select_background(ds.compute())
    return ds, mx.fit_master(ds)


@pytest.fixture(scope="module")
def table(dirty) -> pd.DataFrame:
    return mx.find_contaminants(*dirty)


def _by_slit(ds: xr.Dataset, table: pd.DataFrame) -> np.ndarray:
    """``(slit,)``: some shutter is contaminated, by the table."""
    bad = {tuple(r) for r in table.loc[table.verdict == "contaminated", IDENTITY].to_numpy()}
    return np.array([k in bad for k in zip(*(ds[c].values for c in IDENTITY), strict=True)])


def test_faint_contaminants_are_found(dirty, table):
    ds, _ = dirty
    found, truth = _by_slit(ds, table), ds.contaminated.values
    assert truth.sum() >= 8
    assert found[truth].mean() > 0.8
    assert found[~truth].mean() < 0.03
    assert (np.diff(table.score) <= 0).all()
    real = table[table.verdict == "contaminated"].head(5)
    assert set(real["shape"]) == {"trace"}
    assert real.excess.between(2, 9).all()
    assert len(table) == 3 * ds.sizes["slit"]


def test_clean_shutters_score_like_noise(table):
    """Far down the ranking are shutters of sky: their excess scatters as its error says."""
    sky = table[table.verdict == "sky"]
    z = sky.excess / sky.excess_error
    assert 0.6 < z.std() < 1.4
    assert abs(z.median()) < 0.3


@pytest.mark.parametrize(
    ("kind", "shape"), [("line", "line"), ("rising", "rising"), ("flat", "flat")]
)
def test_shapes(dirty, kind, shape):
    """An excess put into the middle shutter of one slit is told for what it is."""
    ds, master = dirty
    one = int(np.flatnonzero(~ds.contaminated.values)[7])
    wave, sky = ds.wavelength.values[one], ds.true_background.values[one]
    if kind == "line":
        light = 1.5 * np.exp(-0.5 * ((wave - 2.6) / 0.02) ** 2)
    else:
        light = {"rising": 0.15 * (wave - 1) / 4, "flat": 0.12 + 0 * wave}[kind]
    inside = np.abs(ds.yrel.values[one]) < 0.5
    flux = ds.flux.values.copy()
    flux[one] += np.where(inside, light * sky, 0)
    # The master was fitted to the slit as it was: what was put in is in the residual alone.
    held = mx.subtract(ds, master, heldout=True)
    held = held.assign(flux=held.flux + (flux - ds.flux.values))
    found = mx.find_contaminants(held, master)
    slit = {c: ds[c].values[one] for c in IDENTITY}
    row = found[(found[list(slit)] == pd.Series(slit)).all(axis=1) & (found.shutter == 0)].iloc[0]
    assert row.verdict == "contaminated"
    assert row["shape"] == shape


def test_left_out_on_request_only(dirty, table):
    ds, master = dirty
    assert "occupied" not in ds.coords or not (ds.occupied.values != "").any()
    clean = mx.without_contaminants(ds, table)
    n = int((table.verdict == "contaminated").sum())
    assert len(clean.attrs["contaminants_left_out"]) == n
    assert (clean.occupied.values != "").sum() <= n
    fewer = ds.selected.values & ~clean.selected.values
    dirty_slits = _by_slit(ds, table)
    assert fewer[dirty_slits].any(axis=(1, 2)).all()
    assert not fewer[~dirty_slits].any()
    again = mx.fit_master(clean)
    centre = np.abs(ds.yrel - ds.yrel.round()) <= 0.2
    share = (ds.true_background / ds.true_sky).where(ds.selected & centre).mean()
    assert float(share) == pytest.approx(1, abs=1e-3)

    def bias(one):
        ratio = mx.project_master(clean, one).background / ds.true_background - 1
        return abs(float(ratio.where(clean.selected).mean()))

    assert bias(again) < max(bias(master), 0.002)
    whole = mx.without_contaminants(ds, table, whole_slits=True)
    assert not whole.selected.values[dirty_slits].any()


def test_leaks_of_bright_sources_are_told_from_contaminants():
    ds = mx.simulate_program(
        exposures=3, slits=16, background_slits=6, seed=3, **{**CLEAN, "leak": 0.05}
    ).compute()
    ds = mx.select_background(ds)
    table = mx.find_contaminants(ds, mx.fit_master(ds))
    assert (table.verdict == "contaminated").mean() < 0.03
    sky = {tuple(k) for k in zip(*(ds[c].values[ds.is_background] for c in IDENTITY), strict=True)}
    leaks = table.loc[table.verdict == "leak", IDENTITY].itertuples(index=False)
    assert not any(tuple(row) in sky for row in leaks)


def test_bad_tables_are_refused(dirty, table):
    ds, master = dirty
    with pytest.raises(mx.MbkgError, match="not a table of shutters"):
        mx.without_contaminants(ds, table[["score"]])
    with pytest.raises(mx.MbkgError, match="does not hold"):
        mx.without_contaminants(ds.isel(slit=slice(1, 3)), table.assign(verdict="contaminated"))
    with pytest.raises(mx.MbkgError, match="limit"):
        mx.find_contaminants(ds, master, limit=0)
    with pytest.raises(mx.MbkgError, match="no residuals"):
        mx.find_bad_pixels(ds)
    with pytest.raises(mx.MbkgError, match="not a table of pixels"):
        mx.flag_pixels(ds, table)


# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hot() -> tuple[xr.Dataset, xr.Dataset]:
    """Six exposures of a realistic programme; one detector pixel in 500 has a light of its own."""
    ds = mx.simulate_program(exposures=6, slits=10, background_slits=5, hot_fraction=0.002, seed=2)
    ds = mx.select_background(ds.compute())
    return ds, mx.residuals(mx.subtract(ds, mx.fit_master(ds, max_passes=7)))


def _places(ds: xr.Dataset, mask: np.ndarray) -> pd.Series:
    """How often each detector pixel (row, column) is in the mask."""
    slit, y, x = np.nonzero(mask)
    rows, columns = ds.y_start.values[slit] + y, ds.x_start.values[slit] + x
    return pd.Series(list(zip(rows, columns, strict=True))).value_counts()


def test_hot_pixels_are_found_and_no_others(hot):
    ds, res = hot
    table = mx.find_bad_pixels(res)
    source = np.nan_to_num(ds.source_shutter.values, nan=-9)[:, None, None]
    yrel = ds.yrel.values
    seen = ds.hot.values & ((ds.quality.values & 1) == 0) & (np.abs(yrel) < 1.5)
    seen &= np.isfinite(res.residual.values) & (np.abs(np.round(yrel) - source) > 0.5)
    often = _places(ds, seen)
    truth = set(often[often >= 3].index)
    found = set(zip(table.y, table.x, strict=True))
    assert len(truth) > 40
    assert len(found & truth) > 0.85 * len(truth)
    assert len(found - set(_places(ds, ds.hot.values).index)) <= 2
    assert (table.median_z > 4).all()
    assert (np.diff(table.probability) >= 0).all()
    assert table.n_seen.max() <= 6


def test_pixels_are_flagged_on_request_only(hot):
    ds, res = hot
    table = mx.find_bad_pixels(res)
    flagged = mx.flag_pixels(ds, table)
    assert flagged.attrs["flagged_pixels"] == len(table)
    new = (flagged.quality.values & 1) & ~(ds.quality.values & 1)
    assert _places(ds, new > 0).index.isin(list(zip(table.y, table.x, strict=True))).all()
    assert not (flagged.selected.values & (new > 0)).any()
    assert (flagged.selected.values | (new > 0) | ~ds.selected.values).all()
    lazy = mx.flag_pixels(ds.chunk(slit=7), table)
    assert (lazy.quality.values == flagged.quality.values).all()
    other = mx.flag_pixels(ds, table.assign(detector="NRS2"))
    assert (other.quality.values == ds.quality.values).all()


def test_chunks_make_no_difference(hot):
    _, res = hot
    whole = mx.find_bad_pixels(res)
    pd.testing.assert_frame_equal(mx.find_bad_pixels(res.chunk(slit=13)), whole, rtol=1e-9)


def test_command(tmp_path):
    ds = mx.simulate_program(exposures=3, slits=8, background_slits=4, seed=1)
    run_tree({"prism-clear": ds}, tmp_path / "result.zarr")
    table, pixels = tmp_path / "shutters.csv", tmp_path / "pixels.csv"
    done = CliRunner().invoke(
        main,
        ["slits", str(tmp_path / "result.zarr"), "--table", str(table), "--pixels", str(pixels)],
    )
    assert done.exit_code == 0, done.output
    assert "sky shutters" in done.output
    found = pd.read_csv(table)
    assert len(found) == 4 * 3 * 3 + 4 * 3 * 2
    assert (np.diff(found.score) <= 0).all()
    assert {"detector", "x", "y", "n_bad"} <= set(pd.read_csv(pixels).columns)
