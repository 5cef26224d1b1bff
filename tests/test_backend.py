"""xarray's own way in: ``xr.open_dataset(path, engine="mbkg")``."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points

import dask
import numpy as np
import pytest
import xarray as xr

import mbkg_xr as mx
from mbkg_xr.errors import InputFileError, ParameterError
from mbkg_xr.io.backend import MbkgBackend


@pytest.fixture(scope="module")
def whole(cal_files):
    return mx.open_program(cal_files)["prism-clear"].to_dataset().load()


@pytest.fixture(scope="module")
def two_configurations(i2d_files, tmp_path_factory):
    """Half of the products under another grating's name."""
    folder = tmp_path_factory.mktemp("two")
    for i, path in enumerate(i2d_files):
        data = path.read_bytes()
        if i % 2:
            data = data.replace(b"'PRISM   '", b"'G395M   '").replace(b"'CLEAR   '", b"'F290LP  '")
        (folder / path.name).write_bytes(data)
    return folder


def opened(path, **options):
    return xr.open_dataset(path, engine=MbkgBackend, **options)


def test_files_directories_globs_lists_and_stores(cal_files, whole, tmp_path):
    folder = cal_files[0].parent
    for given in (folder, str(folder), f"{folder}/*_cal.fits", [str(p) for p in cal_files]):
        ds = opened(given)
        assert not any(v.chunks for v in ds.variables.values())
        xr.testing.assert_identical(ds.load(), whole)
    one = opened(cal_files[0])
    assert set(one.exposure.values) == {"jw09999001001_03101_00001"}
    mx.save(whole, tmp_path / "p.zarr")
    xr.testing.assert_identical(opened(tmp_path / "p.zarr").load(), whole)


def test_nothing_is_read_but_what_is_indexed(cal_files, whole, monkeypatch):
    from mbkg_xr.io import jwst_file

    ds = opened(cal_files)
    read = []
    monkeypatch.setattr(
        jwst_file,
        "read_bytes",
        lambda path, at, size, f=jwst_file.read_bytes: read.append(at) or f(path, at, size),
    )
    one = ds.flux.variable.isel(slit=3, y=slice(2, 9), x=[4, 7]).values
    assert len(read) == 1
    np.testing.assert_array_equal(one, whole.flux.values[3, 2:9][:, [4, 7]])


@pytest.mark.parametrize(
    "key",
    [
        {"slit": 2},
        {"slit": slice(1, 7, 2)},
        {"slit": [5, 0, 0]},
        {"slit": slice(None, None, -1), "x": 3},
        {"y": slice(3, 1)},
        {"slit": [1, 4], "y": [3, 2], "x": [9, 8, 7]},
        {"slit": xr.DataArray([1, 4], dims="p"), "x": xr.DataArray([9, 8], dims="p")},
        {"slit": np.arange(12) % 2 == 0},
    ],
    ids=str,
)
def test_indexing(cal_files, whole, key):
    ds = opened(cal_files)
    for name in ("flux", "quality", "yrel"):
        xr.testing.assert_identical(ds[name].isel(key).load(), whole[name].isel(key))


def test_chunks_as_xarray_has_them(cal_files, whole):
    for chunks, sizes in (({}, (12,)), ({"slit": 6}, (6, 6)), ("auto", (12,)), (-1, (12,))):
        ds = opened(cal_files, chunks=chunks)
        assert ds.flux.chunksizes["slit"] == sizes
        assert ds.flux.chunksizes["y"] == (ds.sizes["y"],)
        xr.testing.assert_identical(ds.load(), whole)


def test_several_configurations(two_configurations):
    with pytest.raises(InputFileError, match=r"several configurations .*g395m-f290lp.*prism-clear"):
        opened(two_configurations)
    with pytest.raises(InputFileError, match=r"no such group .*g395m-f290lp.*found g140m"):
        opened(two_configurations, group="g140m-f070lp")
    tree = mx.open_program(two_configurations)
    assert sorted(tree.children) == ["g395m-f290lp", "prism-clear"]
    for group in tree.children:
        expected = tree[group].to_dataset().load()
        xr.testing.assert_identical(opened(two_configurations, group=group).load(), expected)
    lazy = xr.open_datatree(two_configurations, engine=MbkgBackend, chunks={})
    xr.testing.assert_identical(lazy.load(), tree.load())


def test_groups_of_a_store(tmp_path, master, program):
    path = tmp_path / "r.zarr"
    mx.save({"prism-clear": program, "prism-clear/master": master}, path)
    assert "true_background" in opened(path)
    assert opened(path, group="prism-clear/master").identical(master)


def test_options(cal_files, tmp_path):
    ds = opened(cal_files[0], drop_variables=["var_rnoise", "nothing"], index=tmp_path)
    assert "var_rnoise" not in ds and "var_poisson" in ds
    assert list(tmp_path.rglob("*.slits"))
    bad = tmp_path / "bad.fits"
    bad.write_bytes(b"not one")
    with pytest.raises(InputFileError, match="not a FITS file"):
        opened([cal_files[0], bad])
    with pytest.warns(UserWarning, match=r"left out.*bad.fits"):
        assert opened([cal_files[0], bad], on_error="warn").sizes["slit"] == 3


def test_lazy_datasets_travel(cal_files, whole):
    """Between processes, as dask's workers need it."""
    for lazy in (opened(cal_files), opened(cal_files, chunks={"slit": 6})):
        again = pickle.loads(pickle.dumps(lazy))
        with dask.config.set(scheduler="synchronous"):
            xr.testing.assert_identical(again.load(), whole)


def test_threads(cal_files, whole):
    ds = opened(cal_files, cache=False)
    with ThreadPoolExecutor(8) as threads:
        for i, one in enumerate(threads.map(lambda i: ds.isel(slit=i % 12).load(), range(48))):
            xr.testing.assert_identical(one, whole.isel(slit=i % 12))


def test_a_lazy_array_can_be_changed_in_memory(cal_files, whole):
    ds = mx.open_program(cal_files, chunks=None)["prism-clear"].to_dataset()
    ds.flux[0, 0, 0] = 5.0
    assert ds.flux.values[0, 0, 0] == 5
    assert mx.open_program(cal_files)["prism-clear"].flux.values[0, 0, 0] != 5


def test_guessing_reads_nothing(tmp_path):
    backend = MbkgBackend()
    assert backend.guess_can_open("nowhere/a_cal.fits")
    assert backend.guess_can_open(tmp_path / "A_CAL.FITS")
    for other in (tmp_path, "a.nc", "a.zarr", b"SIMPLE  =", ["a.fits"]):
        assert not backend.guess_can_open(other)


def test_the_engine_has_a_name(cal_files, whole):
    found = [e for e in entry_points(group="xarray.backends") if e.name == "mbkg"]
    if not found:
        pytest.skip("mbkg_xr is not installed, or was installed before it had an engine")
    assert found[0].load() is MbkgBackend
    xr.testing.assert_identical(
        xr.open_dataset(str(cal_files[0].parent), engine="mbkg").load(), whole
    )


# ------------------------------------------------------------------------------------------------
# The same choice of chunks in open_program


def test_chunks_of_open_program(cal_files, whole, program, tmp_path):
    mx.save(program, tmp_path / "p.zarr")  # 24 slits, four a chunk
    for chunks, of_files, of_store in (
        (5, (5, 5, 2), (4,) * 6),
        ({"slit": 7}, (7, 5), (8, 8, 8)),
        ({}, (12,), (4,) * 6),
        ({"slit": (6, 6)}, (6, 6), None),
        ("auto", (12,), (24,)),
        (-1, (12,), (24,)),
    ):
        ds = mx.open_program(cal_files, chunks=chunks)["prism-clear"].to_dataset()
        assert ds.flux.chunks[0] == ds.yrel.chunks[0] == of_files
        assert ds.flux.chunks[1:] == ((ds.sizes["y"],), (ds.sizes["x"],))
        if of_store:
            stored = mx.open_program(tmp_path / "p.zarr", chunks=chunks)["prism-clear"]
            assert stored.flux.chunks[0] == of_store, chunks
    plain = mx.open_program(tmp_path / "p.zarr", chunks=None)["prism-clear"].to_dataset()
    assert not plain.flux.chunks
    key = {"slit": [3, 20], "y": slice(2, 5), "x": [9, 1]}
    np.testing.assert_array_equal(plain.flux.isel(key), program.flux.isel(key))


@pytest.mark.parametrize(
    "chunks", [0, -2, "many", {"slit": 0}, {"y": 4}, {"time": 2}, {"slit": (1, 2)}, 1.5]
)
def test_senseless_chunks(cal_files, chunks):
    with pytest.raises(ParameterError, match="unusable chunks"):
        mx.open_program(cal_files, chunks=chunks)


def test_graphs_stay_small(cal_files):
    """One task a chunk and variable, and one for what the chunk's variables share."""
    ds = mx.open_program(cal_files, chunks=4)["prism-clear"].to_dataset()
    graph = dict(ds.__dask_graph__())
    variables = sum(v.chunks is not None for v in ds.variables.values())
    assert len(graph) == 3 * (variables + 1)
    # A chunk's task carries its own slits only.
    one = pickle.dumps(ds.flux.data.blocks[0])
    assert len(one) < 1.6 * len(pickle.dumps(ds.isel(slit=slice(4)).flux.data))
