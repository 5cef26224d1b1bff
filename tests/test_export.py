"""Datasets as NetCDF and Zarr by xarray's own methods, and the master as the official x1d."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

import mbkg_xr as mx
from mbkg_xr.errors import DatasetError, MbkgError, ParameterError, StoreError
from mbkg_xr.schema import validate
from mbkg_xr.simulate import write_jwst, write_nips

ENGINES = ("h5netcdf", "netcdf4")


@pytest.fixture(scope="module")
def datasets(program, selected, master, tmp_path_factory):
    """One of each kind that a user may hold."""
    folder = tmp_path_factory.mktemp("products")
    few = program.isel(slit=slice(0, 16)).compute()
    write_jwst(few, folder / "jwst")
    write_nips(few, folder / "nips")
    result = mx.residuals(mx.subtract(selected, master))
    mx.save({"prism-clear": result, "prism-clear/master": master}, folder / "r.zarr")
    saved = mx.open_program(folder / "r.zarr")
    mx.save(mx.open_program(folder / "nips"), folder / "n.zarr")
    made = {
        "simulated": program,
        "selected": selected,
        "master": master,
        "result": result,
        "nods": mx.residuals(mx.subtract_nods(selected)),
        "held out": mx.subtract(selected, master, heldout=True),
        "sampled": mx.sample_master(master),
        "image": mx.master_image(master),
        "opened jwst": mx.open_program(folder / "jwst")["prism-clear"].to_dataset(),
        "opened nips": mx.open_program(folder / "nips")["prism-clear"].to_dataset(),
        "saved nips": mx.open_program(folder / "n.zarr")["prism-clear"].to_dataset(),
        "saved result": saved["prism-clear"].to_dataset(),
        "saved master": saved["prism-clear/master"].to_dataset(),
    }
    return {name: ds.compute() for name, ds in made.items()}


KINDS = (
    *("simulated", "selected", "master", "result", "nods", "held out", "sampled", "image"),
    *("opened jwst", "opened nips", "saved nips", "saved result", "saved master"),
)


def same(again, ds):
    xr.testing.assert_identical(again, ds)
    for name, variable in ds.variables.items():
        if variable.dtype.kind in "fiub":
            assert again[name].dtype == variable.dtype, name
    if "flux" in ds and "exposure" in ds.coords:
        validate(again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_netcdf(datasets, kind, engine, tmp_path):
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    datasets[kind].to_netcdf(tmp_path / "a.nc", engine=engine)
    with xr.open_dataset(tmp_path / "a.nc", engine=engine) as again:
        same(again.load(), datasets[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_zarr(datasets, kind, tmp_path):
    datasets[kind].to_zarr(tmp_path / "a.zarr")
    same(xr.open_zarr(tmp_path / "a.zarr").load(), datasets[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_are_text_numbers_and_lists_of_them(datasets, kind):
    ds = datasets[kind]
    plain = (str, int, float, np.integer, np.floating)
    for attrs in (ds.attrs, *(v.attrs for v in ds.variables.values())):
        for name, value in attrs.items():
            values = value if isinstance(value, list | tuple | np.ndarray) else [value]
            assert all(isinstance(v, plain) and not isinstance(v, bool) for v in values), name


def test_flags_keep_cf(datasets):
    """CF: flag_masks are of the variable's own type, 64 bits included."""
    for name in ("opened jwst", "opened nips", "result"):
        quality = datasets[name].quality
        assert quality.attrs["flag_masks"].dtype == quality.dtype
        assert len(quality.attrs["flag_meanings"].split()) == quality.attrs["flag_masks"].size


def test_what_came_from_netcdf_goes_on(datasets, tmp_path):
    """A programme and a master saved as NetCDF are worked with as before."""
    pytest.importorskip("h5netcdf")
    for name in ("selected", "master"):
        datasets[name].to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    ds, master = (
        xr.open_dataset(tmp_path / f"{name}.nc", engine="h5netcdf", chunks={"slit": 4})
        for name in ("selected", "master")
    )
    again = mx.subtract(ds, master).load()
    reference = mx.subtract(datasets["selected"], datasets["master"])
    np.testing.assert_array_equal(again.flux, reference.flux)
    assert again.attrs == reference.attrs


# ------------------------------------------------------------------------------------------------
# The master as an x1d


@pytest.fixture(scope="module")
def x1d(master, tmp_path_factory):
    return mx.write_user_background(master, tmp_path_factory.mktemp("x1d") / "sky_x1d.fits")


def test_the_x1d_is_the_master(master, x1d):
    with fits.open(x1d) as hdus:
        assert hdus[0].header["DATAMODL"] == "MultiSpecModel"
        assert hdus[0].header["FILENAME"] == "sky_x1d.fits"
        assert (hdus[0].header["GRATING"], hdus[0].header["FILTER"]) == ("PRISM", "CLEAR")
        history = "".join(hdus[0].header["HISTORY"])
        assert f"{master.attrs['n_pixels']} pixels" in history and "sha256" in history
        table = hdus["EXTRACT1D"].data
        units = {c.name: c.unit for c in hdus["EXTRACT1D"].columns}
    assert units["WAVELENGTH"] == "um"
    assert units["SURF_BRIGHT"] == units["SB_ERROR"] == "MJy/sr"
    assert units["FLUX"] == units["FLUX_ERROR"] == "Jy"
    wavelength = table["WAVELENGTH"].astype(float)
    assert np.all(np.diff(wavelength) > 0)
    assert [wavelength[0], wavelength[-1]] == master.attrs["wavelength_range"]
    # What linear interpolation in the table loses anywhere of the pixel mean of the sky.
    middle = np.random.default_rng(1).uniform(wavelength[0], wavelength[-1], 20_000)
    found = np.interp(middle, wavelength, table["SURF_BRIGHT"].astype(float))
    np.testing.assert_allclose(found, mx.evaluate(master, middle, mean=True), rtol=2e-4)
    assert np.all(table["SB_ERROR"] > 0) and np.all(table["DQ"] == 0)
    square_arcsecond = (np.pi / 180 / 3600) ** 2 * 1e6
    np.testing.assert_allclose(table["FLUX"], table["SURF_BRIGHT"] * square_arcsecond)


def test_gaps_in_the_master_are_gaps_in_the_x1d(master, tmp_path):
    constrained = master.constrained.copy()
    constrained[200:220] = False
    path = mx.write_user_background(master.assign(constrained=constrained), tmp_path / "a_x1d.fits")
    table = fits.getdata(path, "EXTRACT1D")
    wavelength = table["WAVELENGTH"].astype(float)
    inside = np.linspace(*master.edge.values[[200, 220]], 50)[:-1]
    assert np.isnan(np.interp(inside, wavelength, table["SURF_BRIGHT"].astype(float))).all()
    bad = ~np.isfinite(table["SURF_BRIGHT"])
    assert bad.any() and np.all(table["DQ"][bad] == 1) and np.all(table["DQ"][~bad] == 0)


def test_x1d_refusals(master, x1d, selected, tmp_path):
    with pytest.raises(StoreError, match="exists already"):
        mx.write_user_background(master, x1d)
    assert mx.write_user_background(master, x1d, overwrite=True) == x1d
    assert [p.name for p in x1d.parent.iterdir()] == [x1d.name]
    with pytest.raises(ParameterError, match="not a surface brightness"):
        mx.write_user_background(master.assign_attrs(units="ct s-1"), tmp_path / "a.fits")
    with pytest.raises(DatasetError, match="not a master"):
        mx.write_user_background(selected, tmp_path / "a.fits")
    with pytest.raises(MbkgError, match="cannot write here"):
        mx.write_user_background(master, x1d / "below" / "a.fits")
    assert list(tmp_path.iterdir()) == []
