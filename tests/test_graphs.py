"""One task a chunk: the same numbers as dask's own graphs give, from few tasks."""

from collections import Counter
from functools import partial

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import mbkg_xr as mx
from mbkg_xr.alike import gathered
from mbkg_xr.blocks import aligned, reduce_blocks
from mbkg_xr.fuse import fused
from mbkg_xr.io import writing


@pytest.fixture
def counted(monkeypatch):
    """Sizes of the graphs that are computed, by what they are for."""
    from mbkg_xr import blocks

    sizes = []

    def completed(graph, keys, **options):
        sizes.append(len(graph))
        return original(graph, keys, **options)

    original = blocks.completed
    monkeypatch.setattr(blocks, "completed", completed)
    monkeypatch.setattr(writing, "completed", completed)
    return sizes


def test_fused_gives_the_same():
    x = da.random.default_rng(0).normal(size=(40, 6), chunks=(8, 6))
    y = da.map_blocks(np.add, x, x[::-1].rechunk((8, 6)))
    z = da.map_blocks(np.multiply, y, x)
    keys = [key for row in z.__dask_keys__() for key in row]
    small = fused(dict(z.__dask_graph__()), keys)
    # Each x is needed by two of the results and made once; that in the middle by one only.
    assert len(small) == 5 + 4
    blocks = dask.get(small, keys)
    np.testing.assert_array_equal(np.concatenate(blocks), z.compute())


def test_only_chunks_of_some_rows_are_read():
    read = []

    def source(block, block_info=None):
        read.append(block_info[0]["chunk-location"][0])
        return block

    values = np.arange(40.0).reshape(20, 2, 1)
    lazy = da.from_array(values, chunks=(4, 2, 1)).map_blocks(source, meta=values[:0])
    rows = np.array([5, 6, 19])

    def block(start, arrays, shared):
        return arrays[0][rows[slice(*rows.searchsorted([start, start + 4]))] - start]

    ds = xr.Dataset({"x": (("slit", "y", "x"), lazy)})
    found = reduce_blocks(ds, ["x"], block, lambda a, b: np.concatenate([a, b]), rows=rows)
    np.testing.assert_array_equal(found, values[rows])
    assert sorted(read) == [1, 4]


def test_values_are_not_taken_for_keys():
    graph = {"a": (tuple, ["b", "b"]), "b": (str, "c"), "c": 1, "d": (len, "a"), "e": (list, "a")}
    small = fused(graph, ["d", "e"])
    assert dask.get(small, ["d", "e"]) == (2, ["1", "1"])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_random_graphs(data):
    """Of any shape: the same values, and every task is run once."""
    n = data.draw(st.integers(1, 12))
    graph, runs = {}, Counter()

    def add(i, *values):
        runs[i] += 1
        return i + sum(values)

    for i in range(n):
        needs = data.draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        graph[f"k{i}"] = (add, i, *(f"k{k}" for k in sorted(needs)))
    wanted = [f"k{i}" for i in sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))]
    expected = dask.get(graph, wanted)
    before = dict(runs)
    runs.clear()
    small = fused(graph, wanted)
    assert dask.get(small, wanted) == expected
    assert runs == before
    assert len(small) <= len(before)


@pytest.fixture(scope="module")
def stored(program, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "p.zarr"
    mx.save(program.compute().chunk({"slit": 2}), path)
    return mx.select_background(mx.open_program(path, chunks={})["prism-clear"].to_dataset())


def test_a_pass_is_a_task_a_chunk(stored, counted):
    """Selection and all, from a store: one task a chunk, and one for eight to add up."""
    ds = stored
    n = ds.flux.data.numblocks[0]
    assert n == 12
    names = ["flux", "selected", "quality", "wavelength"]
    total = reduce_blocks(ds, names, lambda i, a, _: a[0][a[1]].size, lambda a, b: a + b)
    assert total == int(ds.selected.sum())
    # A few tasks more: for what all chunks share.
    assert n < counted[0] <= 1.25 * n + 4


def test_results_are_written_in_a_task_a_chunk(stored, master, tmp_path, counted):
    res = mx.residuals(mx.subtract(stored, master))
    n = res.flux.data.numblocks[0]
    mx.save(res, tmp_path / "r.zarr")
    assert n <= counted[0] <= n + 16
    back = mx.open_program(tmp_path / "r.zarr")["prism-clear"].to_dataset()
    xr.testing.assert_equal(back.compute(), res.compute())


@pytest.mark.parametrize("lengths", [(5, 3, 7, 1), (9, 7), (16,), (1,) * 16])
def test_any_chunks_are_written_whole(lengths, tmp_path):
    ds = mx.simulate_program(exposures=2, slits=8, background_slits=2, seed=2).load()
    assert ds.sizes["slit"] == sum(lengths)
    mx.save(ds.chunk({"slit": lengths}), tmp_path / "r.zarr")
    back = mx.open_program(tmp_path / "r.zarr")["prism-clear"].to_dataset()
    assert len(set(back.flux.data.chunks[0][:-1])) <= 1
    xr.testing.assert_equal(back.compute(), ds)


@pytest.mark.parametrize("lengths", [(5, 3, 7, 1), (4,) * 4])
def test_what_is_found_from_pixels_is_written_beside_them(lengths, tmp_path, counted):
    """In the same tasks, so that no pixel is read for it again."""
    ds = mx.simulate_program(exposures=2, slits=8, background_slits=2, seed=2).load()
    read = Counting(np.positive)
    lazy = ds.chunk({"slit": lengths})
    wavelength = lazy.wavelength.copy(
        data=lazy.wavelength.data.map_blocks(read, meta=np.empty((0, 0, 0), np.float32))
    )
    lazy = mx.slit_ranges(lazy.assign_coords(wavelength=wavelength))
    assert lazy.wavelength_max.chunks == (lengths,)
    expected = mx.slit_ranges(ds)
    read.calls = 0
    mx.save(lazy, tmp_path / "r.zarr")
    assert len(counted) == 1 and read.calls == len(lengths)
    back = mx.open_program(tmp_path / "r.zarr")["prism-clear"].to_dataset()
    assert isinstance(back.wavelength_max.data, np.ndarray)
    xr.testing.assert_equal(back.compute(), expected)


def test_aligned_takes_what_comes():
    a, b = da.zeros((10, 2, 2), chunks=(4, 1, 2)), da.ones((10, 2, 2), chunks=(5, 2, 2))
    chunks, graph, keys = aligned([a, b, np.full((10, 2, 2), 2.0)])
    assert chunks == (4, 1, 3, 2)
    for n, key in zip(chunks, keys, strict=True):
        found = dask.get(graph, key)
        assert [f.shape for f in found] == [(n, 2, 2)] * 3
        assert [float(np.max(f)) for f in found] == [0, 1, 2]


class Counting:
    """A function that counts its calls, by block."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *blocks, **kwargs):
        self.calls += blocks[0].size > 0
        return self.function(*blocks, **kwargs)


def steps(x):
    """Arrays of the chunks of `x` as they come: each in several steps, some of them shared."""
    vector = da.from_array(np.arange(x.shape[0], dtype=float), chunks=(x.chunks[0],))
    shared = Counting(np.square)
    squares = x.map_blocks(shared, meta=np.empty((0, 0, 0)))
    constant = da.from_array(np.full((1, 1, 2), 3.0), chunks=-1)
    return shared, {
        "alike": squares * 2 - x,
        "of_vector": squares + vector[:, None, None],
        "constant": squares * constant,
        "literal": squares.map_blocks(np.add, dask.delayed(np.float64)(7), dtype=float),
        "by_place": da.map_blocks(
            lambda b, block_id=None: b + block_id[0], squares, dtype=float, meta=np.empty((0, 0, 0))
        ),
        "reversed": (squares + 1)[::-1].rechunk(x.chunks),
        "across": squares.rechunk((x.chunks[0], 1, 2)).sum(axis=1, keepdims=True) + squares,
        "all": squares - squares.mean(),
        "as_it_is": x,
    }


STEPS = sorted(steps(da.ones((4, 2, 2), chunks=(2, 2, 2)))[1])


@pytest.mark.parametrize("lengths", [(7,), (4, 3), (2, 2, 3)])
@pytest.mark.parametrize("name", STEPS)
def test_chunks_alike_give_the_same(name, lengths):
    x = da.from_array(np.random.default_rng(1).random((7, 2, 2)), chunks=(lengths, 2, 2))
    array = steps(x)[1][name]
    graph, keys = gathered([array])
    found = np.concatenate([block for key in keys for block in dask.get(graph, key)])
    np.testing.assert_array_equal(found, array.compute())


@given(st.sets(st.sampled_from(STEPS), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_what_chunks_share_is_made_once(names):
    """Of several arrays, some of which need blocks of other chunks."""
    x = da.from_array(np.random.default_rng(1).random((8, 2, 2)), chunks=(2, 2, 2))
    shared, arrays = steps(x)
    expected = [arrays[name].compute() for name in names]
    graph, keys = gathered([arrays[name] for name in names])
    shared.calls = 0
    found = list(zip(*dask.get(fused(graph, keys), keys), strict=True))
    for blocks, values in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(blocks), values)
    assert shared.calls == (0 if names == {"as_it_is"} else 4)


def test_what_is_read_is_used_at_once():
    """And not after all else is read, which would be held until then."""
    place = da.from_array(np.ones((6, 2, 2)), chunks=(2, 2, 2))
    log = []

    def step(what, block):
        log.append(what)
        return block + 1

    arrays = [
        place.map_blocks(partial(step, f"read {i}"), dtype=float, meta=np.empty((0, 0, 0)))
        .map_blocks(partial(step, f"use {i}"), dtype=float, meta=np.empty((0, 0, 0)))
        for i in range(3)
    ]  # fmt: skip
    graph, keys = gathered(arrays)
    dask.get(fused(graph, keys), keys[2])
    assert log == [f"{what} {i}" for i in range(3) for what in ("read", "use")]


def test_what_all_chunks_share_is_no_part_of_each():
    x = da.from_array(np.ones((8, 2, 2)), chunks=(2, 2, 2))
    single = Counting(np.negative)
    low = da.from_array(np.ones((1, 1, 2)), chunks=-1).map_blocks(single, meta=np.empty((0, 0, 0)))
    graph, keys = gathered([x + low])
    dask.get(fused(graph, keys), keys)
    assert single.calls == 1


def test_arrays_that_were_optimised():
    """Their layers have other names than they."""
    x = da.from_array(np.arange(16.0).reshape(4, 2, 2), chunks=(2, 2, 2)) + 1
    (optimised,) = dask.optimize(x)
    graph, keys = gathered([optimised * 2, x.persist(scheduler="sync") - 1])
    for i, key in enumerate(keys):
        double, same = dask.get(graph, key)
        expected = x[2 * i : 2 * i + 2].compute()
        np.testing.assert_array_equal(double, 2 * expected)
        np.testing.assert_array_equal(same, expected - 1)


def test_pixels_in_memory_beside_lazy_ones(selected, master):
    """As where a programme in memory takes its geometry from the result's store."""
    ds = selected.compute()
    mixed = ds.assign_coords(wavelength=ds.wavelength.chunk({"slit": 5}))
    found = mx.residuals(mx.subtract(mixed, master)).compute()
    xr.testing.assert_equal(found, mx.residuals(mx.subtract(ds, master)))
