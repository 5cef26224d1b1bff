"""Zarr stores: equal when they come back, whole or not there at all, and checked."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
import zarr

import mbkg_xr as mx
from mbkg_xr.io.store import create_store


@pytest.fixture(scope="module")
def result(selected, master):
    return mx.residuals(mx.subtract(selected, master))


def test_result_comes_back_equal(result, tmp_path):
    path = tmp_path / "r.zarr"
    mx.save(result, path)
    back = xr.open_zarr(path, group="prism-clear", consolidated=False)
    xr.testing.assert_identical(back.compute(), result.compute())
    for name in result.variables:
        if result[name].dtype.kind in "fiub":
            assert back[name].dtype == result[name].dtype, name
    assert isinstance(back.flux.data, type(result.flux.data))


def test_real_result_comes_back_equal(real_selected, real_master, tmp_path):
    whole = mx.residuals(mx.subtract(real_selected, real_master))
    path = tmp_path / "r.zarr"
    mx.save({"prism-clear": whole, "prism-clear/master": real_master}, path)
    xr.testing.assert_identical(
        xr.open_zarr(path, group="prism-clear", consolidated=False).compute(), whole
    )
    xr.testing.assert_identical(
        xr.open_zarr(path, group="prism-clear/master", consolidated=False).compute(), real_master
    )


def test_a_tree_comes_back(result, master, tmp_path):
    tree = xr.DataTree.from_dict({"prism-clear": result.drop_vars("residual")})
    mx.save(tree, tmp_path / "t.zarr")
    back = mx.open_program(tmp_path / "t.zarr")
    assert list(back.children) == ["prism-clear"]


def test_order_of_variables_is_the_same_however_a_store_is_listed(
    result, master, tmp_path, monkeypatch
):
    mx.save({"prism-clear": result, "prism-clear/master": master}, tmp_path / "t.zarr")
    first = mx.open_program(tmp_path / "t.zarr")
    listed = zarr.Group.members
    monkeypatch.setattr(zarr.Group, "members", lambda *a, **k: listed(*a, **k)[::-1])
    again = mx.open_program(tmp_path / "t.zarr")
    assert [node.path for node in first.subtree] == [node.path for node in again.subtree]
    for path in ("prism-clear", "prism-clear/master"):
        assert list(first[path].variables) == list(again[path].variables)
    assert list(first["prism-clear"].data_vars)[:2] == ["flux", "error"]


def test_a_failed_write_leaves_nothing(result, tmp_path):
    path = tmp_path / "r.zarr"
    bad = result.assign_attrs(unwritable=object())
    with pytest.raises(Exception, match=r"."):
        mx.save(bad, path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_store(result, tmp_path):
    path = tmp_path / "r.zarr"
    mx.save(result, path)
    with pytest.raises(RuntimeError, match="power cut"), create_store(path, overwrite=True):
        raise RuntimeError("power cut")
    back = xr.open_zarr(path, group="prism-clear", consolidated=False)
    xr.testing.assert_identical(back.compute(), result.compute())
    assert [p.name for p in tmp_path.iterdir()] == ["r.zarr"]


def test_no_overwriting_unasked(result, tmp_path):
    mx.save(result, tmp_path / "r.zarr")
    with pytest.raises(mx.MbkgError, match="the store exists"):
        mx.save(result, tmp_path / "r.zarr")


def test_a_flipped_byte_is_an_error(result, tmp_path):
    path = tmp_path / "r.zarr"
    mx.save(result, path)
    rng = np.random.default_rng(0)
    for name in ("flux", "wavelength", "quality"):
        files = (path / "prism-clear" / name).rglob("*")
        chunk = next(p for p in files if p.is_file() and p.name == "0")
        good = chunk.read_bytes()
        for place in rng.integers(0, len(good), 5):
            bad = bytearray(good)
            bad[place] ^= 0x10
            chunk.write_bytes(bytes(bad))
            ds = xr.open_zarr(path, group="prism-clear", consolidated=False)
            with pytest.raises(Exception, match=r"."):
                ds[name].load()
        chunk.write_bytes(good)


def test_a_newer_store_is_refused(result, tmp_path):
    import zarr

    mx.save(result, tmp_path / "r.zarr")
    zarr.open_group(tmp_path / "r.zarr", mode="a").attrs["mbkg_xr_schema"] = "2.0"
    with pytest.raises(mx.MbkgError, match="newer version"):
        mx.open_program(tmp_path / "r.zarr")


def test_chunks_are_whole_slits(result, tmp_path):
    mx.save(result, tmp_path / "r.zarr")
    back = xr.open_zarr(tmp_path / "r.zarr", group="prism-clear", consolidated=False)
    assert back.flux.data.chunks[1:] == ((result.sizes["y"],), (result.sizes["x"],))
    assert back.flux.data.chunks[0] == result.flux.data.chunks[0]


def test_two_writers_at_once(result, tmp_path):
    """Who comes second is told, and the first result stays."""
    path = tmp_path / "r.zarr"
    with pytest.raises(mx.MbkgError, match="the store exists"), create_store(path) as staging:
        mx.save(result, path)
        (staging / "zarr.json").write_text("{}")
    xr.testing.assert_identical(
        xr.open_zarr(path, group="prism-clear", consolidated=False).compute(), result.compute()
    )
    assert [p.name for p in tmp_path.iterdir()] == ["r.zarr"]


def test_what_a_killed_run_left_is_cleared(result, tmp_path):
    """By the next of the same name, if the process is dead for certain; of others it is told."""
    path = tmp_path / "r.zarr"
    code = (
        "import os, sys; from mbkg_xr.io.store import create_store\n"
        "with create_store(sys.argv[1]) as staging:\n"
        "    (staging / 'zarr.json').write_text('{}'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    left, mark = sorted(tmp_path.iterdir())
    assert left.name.startswith(".r.zarr.staging-") and mark.name == f"{left.name}.writer"
    with pytest.warns(UserWarning, match=f"removed .*{left.name}: a run that was killed"):
        mx.save(result, path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.zarr"]

    elsewhere = tmp_path / ".r.zarr.staging-00000000"
    elsewhere.mkdir()
    mark = tmp_path / f"{elsewhere.name}.writer"
    mark.write_text('{"pid": 1, "host": "elsewhere.invalid"}')
    unmarked = tmp_path / ".r.zarr.staging-11111111"
    unmarked.mkdir()
    with pytest.warns(UserWarning, match="stays") as told:
        mx.save(result, path, overwrite=True)
    said = [str(w.message) for w in told if "stays" in str(w.message)]
    assert len(said) == 2 and "process 1 on elsewhere.invalid" in said[0]
    assert elsewhere.exists() and unmarked.exists()


def test_a_kill_while_a_store_is_replaced_loses_nothing(result, tmp_path):
    """Between the two renames the former store has another name; it is spoken of, and kept."""
    path, old = tmp_path / "r.zarr", tmp_path / ".r.zarr.old-00000000"
    mx.save(result, old)
    with pytest.warns(UserWarning, match="is the former r.zarr"):
        mx.save(result, path)
    assert old.exists()
    mx.save(result, path, overwrite=True)  # and now it has been replaced
    assert [p.name for p in tmp_path.iterdir()] == ["r.zarr"]


def test_damage_is_told_with_the_slits(program, tmp_path):
    """A missing chunk is never fill, and a damaged one no bare codec's error."""
    path = tmp_path / "r.zarr"
    mx.save(program, path)
    ds = mx.open_program(path)["prism-clear"].to_dataset()
    first = program.isel(slit=slice(4))
    slits = f"{first.exposure.values[0]} {first.detector.values[0]} slitlets "
    slits += " ".join(map(str, first.slitlet.values))
    chunk = path / "prism-clear" / "flux" / "c" / "0" / "0" / "0"
    good = bytearray(chunk.read_bytes())
    good[len(good) // 2] ^= 1
    chunk.write_bytes(bytes(good))
    with pytest.raises(mx.MbkgError) as error:
        ds.flux.load()
    for words in ("damaged chunk", str(path), "prism-clear/flux", slits, "verify"):
        assert words in str(error.value)
    chunk.unlink()
    with pytest.raises(mx.MbkgError, match=f"missing chunk .*prism-clear/flux.*{slits}"):
        ds.flux.load()
    assert np.isfinite(ds.error.isel(slit=0)).any()
    (path / "prism-clear" / "nod" / "c" / "0").unlink()
    with pytest.raises(mx.MbkgError, match=r"missing chunk .*prism-clear/nod"):
        mx.open_program(path)


def test_the_master_is_never_read_as_fill(master, tmp_path):
    path = tmp_path / "m.zarr"
    mx.save({"prism-clear/master": master}, path)
    name = next(n for n, v in master.data_vars.items() if v.ndim == 1)
    (path / "prism-clear" / "master" / name / "c" / "0").unlink()
    with pytest.raises(mx.MbkgError, match=f"missing chunk .*prism-clear/master/{name}"):
        mx.open_program(path)


def test_every_bit_and_every_chunk_is_kept(program, tmp_path):
    """NaN payloads and slits of nothing but fill."""
    ds = program.isel(slit=slice(8)).load()
    bits = np.random.default_rng(0).integers(0, 2**32, ds.flux.shape, dtype=np.uint32)
    ds["flux"] = ds.flux.copy(data=bits.view(np.float32))
    ds["error"] = xr.full_like(ds.error, np.nan)
    mx.save(ds.chunk({"slit": 4}), tmp_path / "r.zarr")
    back = mx.open_program(tmp_path / "r.zarr")["prism-clear"].to_dataset()
    assert back.flux.values.tobytes() == bits.tobytes()
    assert np.isnan(back.error.values).all()
    assert len(list((tmp_path / "r.zarr" / "prism-clear" / "error" / "c").iterdir())) == 2


def test_stores_of_other_tools(program, tmp_path):
    """Xarray's leave out chunks of fill, and may pack numbers: they are read as it reads them."""
    ds = program.isel(slit=slice(8)).load()
    ds["error"] = xr.full_like(ds.error, np.nan)
    ds["var_rnoise"] = ds.var_rnoise.clip(0, 1).fillna(0)
    packed = {"var_rnoise": {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -1}}
    ds.to_zarr(tmp_path / "x.zarr", group="prism-clear", encoding=packed, consolidated=False)
    back = mx.open_program(tmp_path / "x.zarr")["prism-clear"].to_dataset()
    plain = xr.open_zarr(tmp_path / "x.zarr", group="prism-clear", consolidated=False)
    for name in ("flux", "error", "var_rnoise", "quality"):
        assert back[name].chunks is not None
        np.testing.assert_array_equal(back[name].values, plain[name].values)
