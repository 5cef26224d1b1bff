"""Opening STScI slit products: the contract, the pixels, the WCS, and laziness."""

import asdf
import numpy as np
import pytest
from astropy.io import fits

import mbkg_xr as mx
from mbkg_xr.quality import flag_mask
from mbkg_xr.schema import SLIT_COORDS, validate


def test_contract_of_the_real_slitlets(real):
    validate(real)
    assert real.flux.dims == ("slit", "y", "x")
    assert dict(real.sizes) == {"slit": 3, "y": 25, "x": 341}
    assert real.flux.attrs["units"] == "MJy/sr"
    assert real.quality.dtype == np.uint32
    assert set(SLIT_COORDS) <= set(real.coords)
    assert real.source_shutter.values.tolist() == [0, -1, 1]
    assert real.nod.values.tolist() == [1, 2, 3]
    assert real.exposure.values.tolist() == [f"jw01345062001_03101_0000{i}" for i in (1, 2, 3)]
    assert set(real.detector.values) == {"NRS2"}
    assert set(real.slitlet.values) == {138}
    assert set(real.quadrant.values) == {2}
    assert set(real.shutter_row.values) == {295}
    assert set(real.shutter_column.values) == {33}
    assert set(real.n_shutters.values) == {3}
    assert set(real.y_start.values) == {658}
    assert set(real.x_start.values) == {0}
    assert set(real.visit.values) == {"01345062001"}
    assert not real.is_background.values.any()
    np.testing.assert_allclose(real.exposure_time, 1021.222)
    assert flag_mask(real.quality, ["DO_NOT_USE", "OUTLIER"]) == 17


def test_pixels_are_the_files_own(real, real_files):
    for i, path in enumerate(real_files):
        with fits.open(path) as hdus:
            for variable, name in [
                ("flux", "SCI"),
                ("error", "ERR"),
                ("wavelength", "WAVELENGTH"),
                ("var_rnoise", "VAR_RNOISE"),
                ("var_poisson", "VAR_POISSON"),
            ]:
                np.testing.assert_array_equal(real[variable].values[i], hdus[name].data)
            np.testing.assert_array_equal(real.quality.values[i], hdus["DQ"].data)


def test_yrel_is_the_wcs_own(real, real_files):
    """Against gwcs evaluated through asdf, on every pixel."""
    for i, path in enumerate(real_files):
        with fits.open(path) as hdus:
            blob = hdus["ASDF"].data["ASDF_METADATA"][0].tobytes()
        from io import BytesIO

        tree = asdf.open(BytesIO(blob)).tree
        y, x = np.mgrid[:25, :341].astype(float)
        _, slit_y, wavelength = tree["meta"]["wcs"].get_transform("detector", "slit_frame")(x, y)
        middle = (tree["slit_ymin"] + tree["slit_ymax"]) / 2
        expected = (slit_y - middle) / 1.15
        inside = np.isfinite(real.wavelength.values[i])
        assert inside.sum() == 6554
        np.testing.assert_array_equal(np.isfinite(real.yrel.values[i]), inside)
        np.testing.assert_allclose(real.yrel.values[i][inside], expected[inside], atol=1e-5)
        np.testing.assert_allclose(
            real.wavelength.values[i][inside], wavelength[inside] * 1e6, atol=1e-5
        )
    # The facts measured on these files.
    assert abs(np.nanmin(real.yrel) + 1.912) < 2e-3
    assert abs(np.nanmedian(np.diff(real.yrel.values, axis=1)) + 0.1986) < 2e-4


def test_opening_computes_nothing(real_files, compute_nothing):
    ds = mx.open_program(real_files)["prism-clear"].to_dataset()
    ds = mx.select_background(ds)
    assert ds.selected.dtype == bool


def test_opening_reads_no_pixels(real_files, tmp_path):
    """A file whose pixels were cut out of it would open just as well: only offsets are kept."""
    from mbkg_xr.io.jwst import scan_file

    source = scan_file(real_files[0])[0]
    with fits.open(real_files[0]) as hdus:
        assert source.offsets["flux"] == hdus["SCI"].fileinfo()["datLoc"]
    assert source.shape == (25, 341)


def test_glob_directory_and_chunks(real_files):
    folder = real_files[0].parent
    by_folder = mx.open_program(folder, chunks=1)["prism-clear"].to_dataset()
    by_glob = mx.open_program(str(folder / "*_00002_*.fits"))["prism-clear"].to_dataset()
    assert by_folder.flux.chunksizes["slit"] == (1, 1, 1)
    assert by_glob.sizes["slit"] == 1
    np.testing.assert_array_equal(by_glob.flux.values[0], by_folder.flux.values[1])


def test_the_same_slit_twice_is_an_error(real_files, tmp_path):
    copy = tmp_path / real_files[0].name
    copy.write_bytes(real_files[0].read_bytes())
    with pytest.raises(mx.MbkgError, match="occurs more than once"):
        mx.open_program([real_files[0], copy])
