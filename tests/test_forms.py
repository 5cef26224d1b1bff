"""The forms a programme comes in open equal to the simulator's own dataset."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import mbkg_xr as mx
from mbkg_xr.quality import NIPS_FLAGS
from mbkg_xr.schema import SLIT_COORDS

# What no format has: the path and name of a product are the product's own, and what was decided on
# opening it is of the opened dataset only.
OWN = {"filename", "path", "sky_reason", "subtracted", "calibrated_as", "calibration"}
OWN |= {"flux_factor"}


def opened(paths, **options):
    return mx.open_program(paths, **options)["prism-clear"].to_dataset().load()


def assert_coordinates_equal(ds, truth, *, but=()):
    for name in SLIT_COORDS.keys() - OWN - set(but):
        np.testing.assert_array_equal(ds[name].values, truth[name].values, err_msg=name)


def assert_bits_equal(ds, truth, names):
    for name in names:
        found, expected = ds[name].values, truth[name].values
        assert found.dtype == expected.dtype
        # As bytes: every NaN with its payload, every flag.
        assert found.tobytes() == expected.tobytes(), name


def assert_jwst_equal(ds, truth):
    """``_cal``: pixels to the bit; yrel is the WCS's, in double precision."""
    assert_coordinates_equal(ds, truth)
    assert_bits_equal(
        ds,
        truth,
        ("flux", "error", "wavelength", "var_rnoise", "var_poisson", "quality"),
    )
    np.testing.assert_allclose(ds.yrel, truth.yrel, rtol=0, atol=1e-5)
    assert ds.flux.attrs["units"] == truth.flux.attrs["units"]


def assert_nips_equal(ds, truth):
    """I2D: metres and variances are a rounding of float32 away; bad pixels hold 0, not NaN."""
    assert_coordinates_equal(ds, truth)
    assert ds.quality.dtype == np.uint64
    bad = (truth.quality.values & 1) > 0
    np.testing.assert_array_equal(ds.quality.values >> np.uint64(63) > 0, bad)
    assert NIPS_FLAGS["DO_NOT_USE"] == 1 << 63
    np.testing.assert_array_equal(ds.flux.values[~bad], truth.flux.values[~bad])
    np.testing.assert_array_equal(ds.yrel, truth.yrel)
    for name in ("error", "wavelength"):
        np.testing.assert_allclose(ds[name].values[~bad], truth[name].values[~bad], rtol=2e-7)
    # The photon part is a difference of float32 numbers.
    tolerance = 3e-7 * truth.error.values[~bad] ** 2
    for name in ("var_rnoise", "var_poisson"):
        assert (abs(ds[name].values[~bad] - truth[name].values[~bad]) <= tolerance).all(), name


@pytest.mark.parametrize("cached", [False, True])
def test_cal(shutters, cal_files, tmp_path, cached):
    if cached:
        opened(cal_files, cache=tmp_path)
    ds = opened(cal_files, cache=tmp_path if cached else False)
    assert_jwst_equal(ds, shutters)


def test_i2d(shutters, i2d_files):
    assert_nips_equal(opened(i2d_files), shutters)


def test_store(shutters, tmp_path):
    mx.save(shutters, tmp_path / "p.zarr")
    xr.testing.assert_identical(opened(tmp_path / "p.zarr"), shutters)


def test_the_order_of_files_does_not_matter(cal_files, i2d_files):
    for files in (cal_files, i2d_files):
        expected = opened(files)
        folder = files[0].parent
        shuffled = [files[i] for i in np.random.default_rng(3).permutation(len(files))]
        again = [folder, f"{folder}/*_0000[12]*.fits", shuffled, [*files, folder, files[0]]]
        for given in again:
            xr.testing.assert_identical(opened(given), expected)
        keys = list(
            zip(
                *(expected[k].values.tolist() for k in ("exposure", "detector", "slitlet")),
                strict=True,
            )
        )
        assert keys == sorted(keys)


def test_files_are_found_in_folders(cal_files, tmp_path):
    for i, path in enumerate(cal_files):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / path.name).symlink_to(path)
    found = opened(f"{tmp_path}/**/*_cal.fits")
    xr.testing.assert_identical(found, opened(cal_files))
