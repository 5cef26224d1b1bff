"""Shared data: three real slitlets, where they are at hand, and small simulated programmes."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest
import xarray as xr

import mbkg_xr as mx

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_slitlets"

#: Nothing but sky and noise: what an estimator must get right.
CLEAN = {
    "throughput_scatter": 0.0,
    "colour_scatter": 0.0,
    "contaminated_fraction": 0.0,
    "leak": 0.0,
    "barshadow_mismatch": 0.0,
    "pedestal": 0.0,
    "sky_drift": 0.0,
}


@pytest.fixture(scope="session")
def real_files() -> list[Path]:
    files = sorted(REAL.glob("*.fits"))
    if not files:
        pytest.skip("the real slitlets are not at ../shared/data/real_slitlets")
    return files


@pytest.fixture(scope="session")
def real(real_files) -> xr.Dataset:
    """The three real slitlets, in memory."""
    return mx.open_program(real_files)["prism-clear"].to_dataset().load()


@pytest.fixture(scope="session")
def real_selected(real) -> xr.Dataset:
    return mx.select_background(real)


@pytest.fixture(scope="session")
def real_master(real_selected) -> xr.Dataset:
    return mx.fit_master(real_selected)


@pytest.fixture(scope="session")
def faint() -> xr.Dataset:
    """Sky slits of a signal to noise of 3 a pixel, with 1.5 % outliers, selected, in memory."""
    ds = mx.simulate_program(
        exposures=3,
        slits=40,
        background_slits=40,
        signal_to_noise=3,
        outlier_fraction=0.015,
        seed=11,
        **CLEAN,
    )
    return mx.select_background(ds.load())


@pytest.fixture(scope="session")
def program() -> xr.Dataset:
    """A small realistic programme of three nods, lazy, four slits a chunk."""
    return mx.simulate_program(exposures=3, slits=8, background_slits=4, seed=5, chunks=4)


@pytest.fixture(scope="session")
def selected(program) -> xr.Dataset:
    return mx.select_background(program)


@pytest.fixture(scope="session")
def master(selected) -> xr.Dataset:
    return mx.fit_master(selected)


@pytest.fixture
def compute_nothing():
    """A scheduler that fails if anything computes."""

    def refuse(*args, **kwargs):
        raise AssertionError("this should have stayed lazy")

    with dask.config.set(scheduler=refuse):
        yield
