"""Statistics by coordinate against plain numpy, group by group."""

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

import mbkg_xr as mx
from mbkg_xr.keyed import Keyed, add_up
from mbkg_xr.spans import span_grid


@pytest.fixture(scope="module")
def result(program) -> xr.Dataset:
    return mx.residuals(mx.subtract_nods(program))


@pytest.fixture(scope="module")
def pixels(result):
    """Columns of the pixels that count, in memory."""
    loaded = result.compute()
    mask = mx.sky_centres(loaded).values
    slit = np.nonzero(mask)[0]
    columns = {n: loaded[n].values[mask] for n in ("residual", "wavelength", "yrel", "flux")}
    for n in ("nod", "slitlet", "quadrant", "exposure", "detector", "is_background"):
        columns[n] = loaded[n].values[slit]
    return columns


def check(row: dict, z: np.ndarray, wavelength: np.ndarray, nod: np.ndarray, grid) -> None:
    """One group against numpy and scipy."""
    assert row["n"] == z.size
    if not z.size:
        assert all(np.isnan(v) for k, v in row.items() if k != "n")
        return
    z = z.astype(float)
    near = z[np.abs(z) < 40]
    assert abs(row["median"] - np.median(z)) < 6e-3 + 0.1 * (z.size < 50)
    assert row["mean"] == pytest.approx(near.mean(), abs=1e-9)
    assert row["std"] == pytest.approx(near.std(), abs=1e-7)
    spread = stats.median_abs_deviation(z, scale="normal")
    assert abs(row["mad_sigma"] - spread) < 1e-2 + 0.1 * (z.size < 50)
    assert row["frac_3sigma"] == np.mean(np.abs(z) > 3)
    assert row["frac_5sigma"] == np.mean(np.abs(z) > 5)
    assert row["frac_under"] == np.mean(z > 0)
    assert row["frac_over"] == np.mean(z < 0)
    if near.std() > 0 and z.size > 2:
        assert row["skew"] == pytest.approx(stats.skew(near), abs=1e-6)
    kept = np.abs(z) <= 5
    bins = (grid.pixel_coordinate(wavelength[kept]) // 2).astype(int)
    if kept.any():
        for name, keys in (("stack", bins), ("stack_nod", bins + 1000 * nod[kept])):
            total, n = Keyed.of(keys, z[kept]).sums[:, 1], Keyed.of(keys).sums[:, 0]
            assert row[name] == pytest.approx(np.sqrt(np.mean(total**2 / n)), rel=1e-9)


EDGES = {"wavelength": [0.7, 1.0, 2.0, 3.5, 5.2], "yrel": np.arange(-1.5, 1.6, 0.5)}


def test_many_groupings_in_one_pass(result, pixels):
    by = [None, "nod", "exposure", "wavelength", ("quadrant", "wavelength"), ("nod", "yrel")]
    tree = mx.summarize(result, by=by, bins=EDGES)
    assert list(tree.children) == [
        "all", "nod", "exposure", "wavelength", "quadrant_wavelength", "nod_yrel",
    ]  # fmt: skip
    grid = span_grid(result)
    z, wave, nod = pixels["residual"], pixels["wavelength"], pixels["nod"]
    groups = 0
    for name, one in zip(tree.children, by, strict=True):
        found = tree[name].to_dataset()
        assert found.sizes == {k: found[k].size for k in found.dims}
        for place in np.ndindex(*found.sizes.values()):
            row = {k: v.values[place].item() for k, v in found.data_vars.items()}
            use = np.ones(z.size, bool)
            for dim, i in zip(found.dims, place, strict=True):
                if dim in EDGES:
                    low, high = EDGES[dim][i], EDGES[dim][i + 1]
                    assert found[f"{dim}_low"].values[i] == low
                    last = i == len(EDGES[dim]) - 2
                    values = pixels[dim]
                    use &= (values >= low) & ((values < high) | (last & (values == high)))
                else:
                    use &= pixels[dim] == found[dim].values[i]
            check(row, z[use], wave[use], nod[use], grid)
            groups += 1
    assert groups > 30
    alone = mx.summarize(result, by=("nod", "yrel"), bins={"yrel": EDGES["yrel"]})
    xr.testing.assert_identical(alone, tree["nod_yrel"].to_dataset())
    row = mx.compare(result).loc["master"]
    whole = tree["all"]
    for name in ("n", "std", "skew", "stack", "stack_nod", "frac_3sigma"):
        assert float(whole[name]) == pytest.approx(row[name], rel=1e-9)
    for name in ("median", "mad_sigma"):
        assert float(whole[name]) == pytest.approx(row[name], abs=1e-6)


def test_a_list_of_one_grouping(result):
    assert mx.summarize(result, by=["nod"]).identical(mx.summarize(result, by="nod"))


def test_any_chunks(result):
    by = ["slitlet", ("quadrant", "wavelength")]
    expected = mx.summarize(result.compute(), by=by)
    for chunk in (1, 3, 24):
        found = mx.summarize(result.chunk({"slit": chunk}), by=by)
        for name in expected.children:
            for statistic in expected[name].data_vars:
                np.testing.assert_allclose(
                    found[name][statistic], expected[name][statistic], rtol=1e-9, atol=1e-12,
                    err_msg=statistic,
                )  # fmt: skip


def test_conditions_and_masks(result, pixels):
    use = (pixels["wavelength"] > np.float32(1)) & (pixels["nod"] == 2)
    found = mx.summarize(result, wavelength=(1.0, None), nod=2)
    assert int(found.n) == use.sum()
    sky = mx.summarize(result, by="is_background", is_background=True)
    assert sky.is_background.values.tolist() == [True]
    assert int(sky.n.sum()) == pixels["is_background"].sum()
    everything = mx.summarize(result, where=None)
    assert int(everything.n) == int(np.isfinite(result.residual).sum())
    assert "wavelength (1.0, None)" in found.attrs["pixels"]


def test_other_variables(result, pixels):
    found = mx.summarize(result, by="nod", of="flux")
    assert "stack" not in found and found["median"].attrs["units"] == "MJy/sr"
    for i, nod in enumerate(found.nod.values):
        flux = pixels["flux"][pixels["nod"] == nod].astype(float)
        spread = stats.median_abs_deviation(flux, scale="normal")
        assert abs(float(found["median"][i]) - np.median(flux)) < 0.01 * spread
        assert float(found.mad_sigma[i]) == pytest.approx(spread, rel=0.01)


def test_nothing_found(result):
    found = mx.summarize(result, by="quadrant", wavelength=(0.0, 0.1))
    assert (found.n == 0).all() and found.mad_sigma.isnull().all()


@pytest.mark.parametrize(("mean", "sigma", "outliers"), [(0.0, 1.0, 0.0), (0.3, 1.4, 0.02)])
def test_the_gaussian_is_that_of_the_core(mean, sigma, outliers):
    from mbkg_xr.histogram_core import of_histogram
    from mbkg_xr.scores import Z_EDGES

    rng = np.random.default_rng(3)
    z = rng.normal(mean, sigma, 60_000)
    wild = rng.random(z.size) < outliers
    z[wild] += rng.exponential(20, wild.sum())
    bins, counts = np.unique(np.searchsorted(Z_EDGES, z, side="right"), return_counts=True)
    median, spread, mu, width = of_histogram(bins, counts.astype(float), Z_EDGES)
    assert median == pytest.approx(np.median(z), abs=5e-3)
    assert spread == pytest.approx(stats.median_abs_deviation(z, scale="normal"), abs=1e-2)
    core = z[np.abs(z - median) < 2.5 * spread]

    def loss(p):
        a, b = ((e - p[0]) / p[1] for e in (median - 2.5 * spread, median + 2.5 * spread))
        return -stats.truncnorm.logpdf(core, a, b, p[0], p[1]).mean()

    best = optimize.minimize(loss, [0.1, 1.2], method="Nelder-Mead").x
    assert mu == pytest.approx(best[0], abs=3e-3) and width == pytest.approx(best[1], abs=5e-3)
    assert abs(mu - mean) < 0.03 and abs(width - sigma) < 0.02 * sigma


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=9), st.booleans())
def test_sums_by_key_add(parts, far):
    offset = 1 << 40 if far else 0
    keys = [np.array(p, np.int64) + offset for p in parts]
    total = add_up(Keyed.of(k, k.astype(float)) for k in keys)
    joined = np.concatenate(keys) if keys else np.empty(0, np.int64)
    if total is None:
        assert not parts
        return
    unique, counts = np.unique(joined, return_counts=True)
    np.testing.assert_array_equal(total.keys, unique)
    np.testing.assert_array_equal(total.sums, np.stack([counts, counts * unique], axis=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "quadrnt"}, "unknown coordinate 'quadrnt'"),
        ({"by": "flux"}, "no bins of flux"),
        ({"by": "wavelength", "bins": {"wavelength": [2, 1]}}, "edges that increase"),
        ({"by": "wavelength", "bins": {"wavelength": 0}}, "edges that increase"),
        ({"by": "nod", "bins": {"wavelength": 3}}, "not grouped by"),
        ({"by": ("nod", "nod")}, "that differ"),
        ({"by": []}, "nothing to group by"),
        ({"of": "fluxx"}, "no variable 'fluxx'"),
        ({"of": "outlier"}, "real numbers"),
        ({"nod": "one"}, "numbers, or ranges"),
    ],
)
def test_what_makes_no_sense(result, options, said):
    with pytest.raises(mx.MbkgError, match=said):
        mx.summarize(result, **options)


def test_few_columns_are_read(result, monkeypatch):
    """One pass: each chunk is computed once whatever the number of groupings."""
    seen = []
    counted = result.assign(
        residual=result.residual.copy(
            data=result.residual.data.map_blocks(
                lambda b: seen.append(b.shape) or b, dtype="f4", meta=np.empty((0, 0, 0), "f4")
            )
        )
    )
    with dask.config.set(scheduler="synchronous"):
        mx.summarize(counted, by=["nod", "quadrant", "yrel", ("nod", "wavelength")], where=None)
    assert len(seen) == result.residual.data.numblocks[0]
