"""Queries against brute force on the same arrays: any coordinates, chunks, ranges and NaNs."""

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import mbkg_xr as mx
from mbkg_xr.quality import JWST_FLAGS
from mbkg_xr.schema import slit_dataset

EXPOSURES = ["jw1_01", "jw1_02", "jw2_01"]


def random_slits(seed: int, n: int, shape: tuple[int, int]) -> xr.Dataset:
    """Slits of random coordinates on a coarse grid of values, so that ends of ranges are met."""
    rng = np.random.default_rng(seed)
    full = (n, *shape)
    # Slits lie at different wavelengths; some have no pixel at all.
    wavelength = rng.integers(0, 6, full) / 10 + rng.integers(0, 3, (n, 1, 1))
    wavelength[rng.random(full) < 0.2] = np.nan
    wavelength[rng.random(n) < 0.1] = np.nan
    yrel = rng.integers(-8, 9, full) / 5
    yrel[rng.random(full) < 0.1] = np.nan
    flux = rng.normal(size=full)
    flux[rng.random(full) < 0.1] = np.nan
    quality = rng.choice(np.array([0, 0, 1, 16, 17, 1 << 31], np.uint32), full)
    identity = rng.permutation(n)
    pixels = {"flux": flux, "error": np.abs(flux), "wavelength": wavelength, "yrel": yrel}
    return slit_dataset(
        {k: v.astype(np.float32) for k, v in pixels.items()},
        quality,
        {
            "exposure": rng.choice(EXPOSURES, n),
            "detector": rng.choice(["NRS1", "NRS2"], n),
            "slitlet": identity,
            "nod": rng.integers(-1, 4, n),
            "quadrant": rng.integers(1, 5, n),
            "is_background": rng.random(n) < 0.5,
            "source_shutter": rng.choice(np.array([-1, 0, 1, np.nan]), n),
            "mjd": rng.normal(60000, 1, n),
        },
        units="MJy/sr",
        configuration="prism-clear",
        flags=JWST_FLAGS,
    )


def one_of(values):
    """A value or a list of values."""
    return st.sampled_from(values) | st.lists(st.sampled_from(values), min_size=1, max_size=3)


def ranges(low, high):
    end = st.none() | st.integers(low * 10, high * 10).map(lambda v: v / 10)
    pair = st.tuples(end, end).map(lambda p: tuple(sorted(p)) if None not in p else p)
    return pair | st.lists(pair, min_size=1, max_size=3)


ASKED = st.fixed_dictionaries(
    {},
    optional={
        "wavelength": ranges(0, 3) | one_of([0.1, 1.3, 2.5]),
        "yrel": ranges(-2, 2),
        "flux": ranges(-2, 2),
        "quality": one_of(["good", "OUTLIER", "!OUTLIER", "reference_pixel", 16, 17, 0, 1 << 31]),
        "exposure": one_of([*EXPOSURES, "elsewhere"]),
        "detector": one_of(["NRS1", "NRS2"]),
        "nod": one_of([1, 2, 3, -1]) | st.just((1, 2)) | st.just([(None, 1), 3]),
        "quadrant": one_of([1, 2, 3, 4]),
        "is_background": st.booleans(),
        "source_shutter": one_of([0.0, 1.0, np.nan]) | st.just((None, 0)),
        "mjd": st.just((60000, None)),
    },
)


def by_brute_force(ds: xr.Dataset, asked: dict) -> np.ndarray:
    """The mask, one pixel and one condition after the other."""
    mask = np.isfinite(ds.wavelength.values)
    for name, wanted in asked.items():
        values = np.broadcast_to(
            ds[name].values if ds[name].ndim == 3 else ds[name].values[:, None, None], mask.shape
        )
        if name == "quality":
            mask &= brute_flags(values, wanted)
            continue
        hit = np.zeros(mask.shape, bool)
        for one in wanted if isinstance(wanted, list) else [wanted]:
            if isinstance(one, tuple):
                low, high = (-np.inf if one[0] is None else one[0]), one[1]
                high = np.inf if high is None else high
                if values.dtype.kind == "f":
                    low, high = values.dtype.type(low), values.dtype.type(high)
                hit |= (values >= low) & (values <= high)
            elif isinstance(one, float) and np.isnan(one):
                hit |= np.isnan(values)
            else:
                hit |= values == one
        mask &= hit
    return mask


def brute_flags(values: np.ndarray, wanted) -> np.ndarray:
    alone = np.ones(values.shape, bool)
    some, any_asked = np.zeros(values.shape, bool), False
    for one in wanted if isinstance(wanted, list) else [wanted]:
        if one == 0:
            alone &= values == 0
        elif one == "good":
            alone &= (values & 1) == 0
        elif isinstance(one, str) and one.startswith("!"):
            alone &= (values & JWST_FLAGS[one[1:]]) == 0
        else:
            any_asked = True
            some |= (values & (JWST_FLAGS[one.upper()] if isinstance(one, str) else one)) != 0
    return alone & (some | (not any_asked))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    asked=ASKED,
    chunk=st.none() | st.integers(1, 5),
    known=st.booleans(),
    masked=st.booleans(),
)
def test_query_is_brute_force(seed, n, shape, asked, chunk, known, masked):
    plain = random_slits(seed, n, shape)
    ds = mx.slit_ranges(plain) if known else plain
    if chunk is not None:
        pixels = {k: v.chunk({"slit": chunk}) for k, v in ds.variables.items() if v.ndim == 3}
        ds = ds.assign_coords({k: v for k, v in pixels.items() if k in ds.coords})
        ds = ds.assign({k: v for k, v in pixels.items() if k not in ds.coords})
    expected = by_brute_force(plain, asked)
    where = None
    if masked:
        expected &= plain.error.values > 0.5
        where = lambda d: d.error > 0.5  # noqa: E731
    with dask.config.set(scheduler="synchronous"):
        points = mx.query(ds, where=where, **asked)
        found = points.compute()
        assert points.count() == expected.sum()
        cube = mx.query(ds, where=where, like="slits", **asked).compute()
    place = np.nonzero(expected)
    for name, values in zip(("slit", "y", "x"), place, strict=True):
        np.testing.assert_array_equal(found[name].values, values)
    for name, variable in plain.variables.items():
        values = variable.values[place if variable.ndim == 3 else place[0]]
        assert found[name].shape == values.shape
        if values.size:
            np.testing.assert_array_equal(found[name].values, values, err_msg=name)
    kept = [i for i in range(n) if cube_holds(plain, asked, i)]
    assert cube.sizes["slit"] == len(kept)
    np.testing.assert_array_equal(cube.matched.values, expected[kept])
    np.testing.assert_array_equal(
        cube.flux.values, np.where(expected, plain.flux.values, np.nan)[kept]
    )
    np.testing.assert_array_equal(cube.wavelength.values, plain.wavelength.values[kept])


def cube_holds(plain, asked, i) -> bool:
    """Whether a slit meets the conditions on slits."""
    ones = plain.isel(slit=[i], y=[0], x=[0])
    ones = ones.assign_coords(wavelength=ones.wavelength.copy(data=np.ones((1, 1, 1), "f4")))
    of_slits = {k: v for k, v in asked.items() if plain[k].ndim == 1}
    return bool(by_brute_force(ones, of_slits).any())


# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(program) -> xr.Dataset:
    return mx.residuals(mx.subtract_nods(program))


def test_asking_computes_nothing(result, compute_nothing):
    points = mx.query(result, wavelength=(1.0, 1.1), exposure="x", where=mx.sky_centres)
    assert "not read yet" in repr(points)
    cube = mx.query(result, wavelength=(1.0, 1.1), nod=1, like="slits")
    assert cube.flux.chunks is not None and cube.matched.chunks is not None


class Reads:
    """Counts what zarr reads of each array."""

    def __init__(self, monkeypatch):
        self.bytes: dict[str, int] = {}
        get = zarr.storage.LocalStore.get

        async def counted(store, key, *args, **kwargs):
            value = await get(store, key, *args, **kwargs)
            path = f"{store.root}/{key}"
            if value is not None and "zarr.json" not in path:
                name = path.split("prism-clear/")[1].split("/")[0]
                self.bytes[name] = self.bytes.get(name, 0) + len(value)
            return value

        monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)

    def of(self, step) -> dict[str, int]:
        self.bytes.clear()
        step()
        return {k: v for k, v in self.bytes.items() if v}


@pytest.fixture
def stored(tmp_path) -> xr.Dataset:
    """A result of two exposures, each of three chunks, each chunk of its own wavelengths."""
    parts = [random_slits(i, 4, (6, 30)) for i in range(6)]
    for i, part in enumerate(parts):
        part["wavelength"].values[:] = 1 + i % 3 + np.linspace(0.1, 0.9, 30, dtype=np.float32)
        part["exposure"].values[:] = EXPOSURES[i // 3]
        part["slitlet"].values[:] = np.arange(4 * i, 4 * i + 4)
    ds = mx.slit_ranges(
        xr.concat(parts, "slit", data_vars="all", coords="different", compat="equals")
    )
    ds.attrs |= parts[0].attrs
    mx.save(ds.chunk({"slit": 4}), tmp_path / "r.zarr")
    return mx.open_program(tmp_path / "r.zarr", chunks=4)["prism-clear"].to_dataset()


def test_only_what_can_match_is_read(stored, monkeypatch):
    reads = Reads(monkeypatch)
    whole = reads.of(mx.query(stored).compute)
    one = reads.of(mx.query(stored, exposure=EXPOSURES[0]).compute)
    assert all(one[k] < 0.6 * whole[k] for k in ("flux", "error", "wavelength", "quality"))
    # By the slits' ranges: one chunk of three in each exposure.
    some = reads.of(mx.query(stored, wavelength=(2.2, 2.3)).compute)
    assert all(some[k] < 0.4 * whole[k] for k in ("flux", "wavelength"))
    # Nothing past the coordinate, where nothing is found there.
    none = reads.of(mx.query(stored, wavelength=(2.101, 2.102)).compute)
    assert set(none) == {"wavelength"}
    # Without ranges all wavelengths are read, and of the rest only what matches.
    bare = stored.drop_vars([n for n in stored.coords if n.endswith(("_min", "_max"))])
    plain = reads.of(mx.query(bare, wavelength=(2.2, 2.3)).compute)
    assert plain["wavelength"] == whole["wavelength"] and plain["flux"] == some["flux"]
    # Columns that are not wanted are not read.
    few = reads.of(mx.query(stored, exposure=EXPOSURES[0])[["flux"]].compute)
    assert set(few) == {"wavelength", "flux"}
    assert set(reads.of(mx.query(stored, wavelength=(2.2, 2.3)).count)) == {"wavelength"}
    cube = mx.query(stored, wavelength=(2.2, 2.3), like="slits")
    assert reads.of(cube.flux.compute)["flux"] == some["flux"]


def test_ranges_of_other_pixels_are_an_error(stored):
    shifted = stored.assign_coords(
        wavelength=stored.wavelength.copy(data=stored.wavelength.data + np.float32(0.5))
    )
    with pytest.raises(mx.MbkgError, match=r"does not lie within.*call slit_ranges again"):
        mx.query(shifted, wavelength=(2.2, 2.3)).count()
    assert mx.query(mx.slit_ranges(shifted), wavelength=(2.65, 2.7)).count() > 0


def test_ranges_are_of_pixels_inside(program):
    ds = mx.slit_ranges(program)
    for name in ("wavelength", "yrel"):
        values = program[name].values
        np.testing.assert_array_equal(ds[f"{name}_min"], np.nanmin(values, axis=(1, 2)))
        np.testing.assert_array_equal(ds[f"{name}_max"], np.nanmax(values, axis=(1, 2)))


def test_real_slitlets_from_their_files(real_files, real):
    ds = mx.open_program(real_files)["prism-clear"].to_dataset()
    table = mx.query(ds, wavelength=(2.0, 2.1), yrel=(-0.2, 0.2), quality="good").to_dataframe()
    mask = (real.wavelength >= 2.0) & (real.wavelength <= 2.1) & (abs(real.yrel) <= 0.2)
    mask &= (real.quality & 1) == 0
    assert len(table) == int(mask.sum()) > 30
    np.testing.assert_array_equal(table.flux, real.flux.values[mask.values])
    assert table.exposure.dtype == "category"


def test_points_answer_as_a_dataset_does(result):
    points = mx.query(result, wavelength=(1.0, 1.1), nod=[1, 3], quality="good")
    whole = points.compute()
    assert points.sizes == dict(whole.sizes) and points.dims == ("point",)
    assert set(points) == set(whole.variables) and "flux" in points and "fluxx" not in points
    for name in ("flux", "wavelength", "slitlet", "exposure", "slit"):
        column = whole[name].reset_coords(drop=True)
        assert points[name].identical(column) and getattr(points, name).identical(column)
    assert points.attrs == whole.attrs
    with pytest.raises(AttributeError, match="fluxx"):
        _ = points.fluxx
    with pytest.raises(mx.MbkgError, match="fluxx"):
        _ = points["fluxx"]


def test_files(result, tmp_path):
    points = mx.query(result, wavelength=(1.0, 1.1), nod=[1, 3], quality="good")
    table = points.to_dataframe()
    pytest.importorskip("pyarrow")
    assert points.to_parquet(tmp_path / "p.parquet") == len(table) > 0
    back = pd.read_parquet(tmp_path / "p.parquet")
    for name in table:
        assert (back[name].astype(table[name].dtype) == table[name]).sum() == table[
            name
        ].notna().sum(), name
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(tmp_path / "p.parquet")
    assert file.num_row_groups == sum(1 for _ in points.blocks()) > 1
    assert file.schema_arrow.field("wavelength").metadata[b"units"] == b"um"
    few = points[["slitlet", "wavelength", "flux"]]
    assert few.to_csv(tmp_path / "p.csv") == len(table)
    text = pd.read_csv(tmp_path / "p.csv")
    assert list(text.columns) == ["slitlet", "wavelength", "flux"]
    np.testing.assert_allclose(text.flux, table.flux, rtol=1e-6)
    with pytest.raises(mx.MbkgError, match="the file exists"):
        few.to_csv(tmp_path / "p.csv")
    nothing = mx.query(result, wavelength=(0.0, 0.1))
    assert nothing.to_parquet(tmp_path / "none.parquet") == 0
    assert list(pd.read_parquet(tmp_path / "none.parquet")) == list(nothing.columns)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["none.parquet", "p.csv", "p.parquet"]


def test_a_failed_write_leaves_nothing(stored, tmp_path):
    bad = stored.assign_coords(wavelength=stored.wavelength + np.float32(0.5))
    with pytest.raises(mx.MbkgError):
        mx.query(bad, wavelength=(2.2, 2.3)).to_csv(tmp_path / "out" / "p.csv")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"wavelenght": 1}, "unknown coordinate 'wavelenght'"),
        ({"wavelength": (1.1, 1.0)}, "low <= high"),
        ({"wavelength": (1.0, 1.1, 1.2)}, r"a range \(low, high\)"),
        ({"wavelength": "1.0"}, "numbers, or ranges"),
        ({"yrel": [(0, 1), (2, 1)]}, "low <= high"),
        ({"exposure": 3}, "expected text"),
        ({"is_background": 1}, "true or false"),
        ({"quality": "GOODISH"}, "unknown quality flag"),
        ({"quality": -1}, "bits of 32"),
        ({"quality": []}, "names of flags"),
        ({"nod": []}, "at least one"),
        ({"like": "cubes"}, "'points' or 'slits'"),
        ({"where": lambda ds: ds.flux}, "boolean"),
        ({"where": 3}, "boolean"),
    ],
)
def test_conditions_that_make_no_sense(program, asked, said):
    with pytest.raises(mx.MbkgError, match=said):
        mx.query(program, **asked)


def test_columns_that_are_not_there(program):
    with pytest.raises(mx.MbkgError, match="no column 'fluxx'"):
        mx.query(program)["fluxx"]
