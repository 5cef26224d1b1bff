"""Shared data: three real slitlets, where they are at hand, and small simulated programmes."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest
import xarray as xr
from threadpoolctl import threadpool_limits

import mbkg_xr as mx
from mbkg_xr.simulate import CLEAN

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_slitlets"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or fills the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBKG_XR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _serial_blas():
    """Tests run side by side: the threads of their own linear algebra would wait for each other."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


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


@pytest.fixture(scope="session")
def shutters() -> xr.Dataset:
    """A programme of slitlets of one, two and three shutters on both detectors, in memory."""
    return mx.simulate_program(
        exposures=2,
        slits=3,
        background_slits=1,
        detectors=("NRS1", "NRS2"),
        n_shutters={1: 1, 2: 1, 3: 1},
        seed=4,
    ).compute()


@pytest.fixture(scope="session")
def cal_files(shutters, tmp_path_factory) -> list[Path]:
    """It as STScI products: a multi-slit product an exposure and detector."""
    pytest.importorskip("stdatamodels.jwst.datamodels")
    from mbkg_xr.simulate import write_jwst

    paths = write_jwst(shutters, tmp_path_factory.mktemp("cal"))
    return [p for p in paths if p.name.endswith("_cal.fits")]


@pytest.fixture(scope="session")
def cal_file(cal_files) -> Path:
    return cal_files[0]


@pytest.fixture(scope="session")
def i2d_files(shutters, tmp_path_factory) -> list[Path]:
    """The same as NIPS products: one a slitlet and exposure."""
    from mbkg_xr.simulate import write_nips

    return write_nips(shutters, tmp_path_factory.mktemp("i2d"))
