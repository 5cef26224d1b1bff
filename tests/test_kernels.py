"""The fused kernels beside plain numpy, on pixels of every awkward kind."""

from contextlib import ExitStack

import dask
import numpy as np
import pytest

import mbkg_xr as mx
from mbkg_xr.differences import shutter_sight
from mbkg_xr.held import held
from mbkg_xr.moments import PassState, accumulate
from mbkg_xr.packing import Packed, pack
from mbkg_xr.planes import Planes
from mbkg_xr.shutters import look
from mbkg_xr.spans import span_grid
from mbkg_xr.terms import Terms, bin_phase


@pytest.fixture(scope="module")
def awkward():
    """Slits with NaN, infinite and wild values, flags and outliers, and a response."""
    ds = mx.simulate_program(exposures=2, slits=8, background_slits=3, seed=11).compute()
    rng = np.random.default_rng(0)
    for name, values in {"flux": [np.nan, np.inf, 50], "error": [0, -1, np.nan, 1e27]}.items():
        where = rng.random(ds[name].shape) < 0.01
        ds[name].values[where] = rng.choice(values, where.sum())
    quality = ds.quality.values
    quality[rng.random(quality.shape) < 0.02] |= 2**29
    response = rng.choice(np.float32([0, 1, 1, 1, 1, 1.5, np.nan]), quality.shape)
    return ds.assign_coords(response=(("slit", "y", "x"), response))


def _plain(ds, exclude):
    """Selection before the median filter, written plainly."""
    with np.errstate(invalid="ignore"):
        good = (ds.quality.values & exclude) == 0
        good &= np.isfinite(ds.flux.values) & np.isfinite(ds.wavelength.values)
        good &= np.isfinite(ds.error.values) & (ds.error.values > 0)
        good &= np.isfinite(ds.response.values) & (ds.response.values > 0)
        yrel = ds.yrel.values
        count = ds.n_shutters.values[:, None, None]
        shutter = np.round(yrel)
        opened = (shutter >= -((count - 1) // 2)) & (shutter <= count // 2)
        rows = opened & (np.abs(yrel - shutter) <= 0.4)
        centres = np.any([(yrel >= a) & (yrel <= b) for a, b in mx.SHUTTER_CENTRES], axis=0)
        good &= np.where(ds.is_background.values[:, None, None], rows, centres)
        for s in range(ds.sizes["slit"]):
            taken = [] if ds.is_background.values[s] else [float(ds.source_shutter.values[s])]
            for shutter in [*taken, *map(float, ds.occupied.values[s].split())]:
                good[s] &= ~(np.abs(yrel[s] - shutter) <= 0.5)
    known = ds.is_background.values | np.isfinite(ds.source_shutter.values)
    return good & known[:, None, None]


def test_selection_in_one_kernel(awkward):
    exclude = 1 | 16 | 2**28 | 2**29
    plain = _plain(awkward, exclude)
    alone = mx.select_background(awkward, median_window=None)
    np.testing.assert_array_equal(alone.selected.values, plain)
    # The filter judges sky only, and counts all pixels that are good enough.
    found = mx.flag_outliers(awkward)
    outlier = (found.quality.values & ~awkward.quality.values) != 0
    both = mx.select_background(awkward)
    np.testing.assert_array_equal(both.selected.values, plain & ~outlier)
    changed = both.quality.values != awkward.quality.values
    np.testing.assert_array_equal(changed, plain & outlier)
    assert (plain & outlier).sum() > 20


def test_subtraction_in_one_kernel(awkward):
    nods = mx.subtract_nods(awkward)
    background, other = nods.background.values, nods.background_error.values
    with np.errstate(invalid="ignore", over="ignore"):
        flux = (awkward.flux.values - background).astype(np.float32)
        error = np.hypot(awkward.error.values.astype(float), other.astype(float))
    np.testing.assert_array_equal(nods.flux.values, flux)
    np.testing.assert_allclose(nods.error.values, error, rtol=1e-6)
    missing = np.isfinite(awkward.wavelength.values) & ~np.isfinite(background)
    np.testing.assert_array_equal(nods.quality.values, awkward.quality.values | missing)


@pytest.fixture(scope="module")
def chosen(awkward):
    """Selected pixels, some of them flagged ones that a user chose all the same."""
    ds = mx.select_background(awkward)
    ds = ds.assign(flux=ds.flux.where(np.isfinite(ds.flux), 0.1))
    use = ds.selected.values.copy()
    use[np.random.default_rng(5).random(use.shape) < 0.01] = True
    return ds.assign(selected=(("slit", "y", "x"), use, ds.selected.attrs))


def _sources(ds, sight, tmp_path):
    """The same pixels, wherever they may be held."""
    grid = span_grid(ds)
    for given in (ds, ds.chunk({"slit": 3})):
        yield Planes.of(given, grid, sight)
        yield held(given, grid, memory=0, sight=sight)
        yield held(given, grid, memory=2**30, sight=sight)
        for memory in (0, 2**18):
            place = dask.config.set({"temporary-directory": str(tmp_path)})
            with place, ExitStack() as stack:
                source = held(given, grid, memory=memory, sight=sight, stack=stack)
                yield source
                assert source.room.scratch.size > 0
            assert source.room.scratch.closed


def test_packed_pixels_are_the_selected_ones(chosen, tmp_path):
    ds, grid = chosen, span_grid(chosen)
    span = np.floor(np.nan_to_num(grid.pixel_coordinate(ds.wavelength.values), nan=-1))
    use = ds.selected.values & (span >= 0)
    slit = np.indices(use.shape)[0]
    sight = shutter_sight(ds, profile=True)
    seen = sight.mask(slice(None), ds.quality.values, ds.yrel.values) & (span >= 0)
    names = ("flux", "error", "wavelength", "yrel", "var_rnoise", "var_poisson")

    def block(slits, parts, shared):
        parts = list(parts)
        rows = [np.array([where.start, *p.start, *p.stop]) for where, p in parts]
        assert slits.stop - slits.start >= max((r.size - 1) // 2 for r in rows)
        out = []
        for where, p in parts:
            at = np.concatenate([np.arange(*ends) for ends in zip(p.start, p.stop)] or [[]])
            at = p.order[at.astype(int)] if p.order.size else at.astype(int)
            of = np.repeat(np.arange(where.start, where.stop), p.stop - p.start)
            out.append((of, *(c[at] for c in p.columns)))
        return [np.concatenate(column) for column in zip(*out, strict=True)]

    def joined(a, b):
        return [np.concatenate(pair) for pair in zip(a, b, strict=True)]

    def ordered(columns):
        return np.array(columns)[:, np.lexsort(columns)]

    kinds = set()
    for source in _sources(ds, sight, tmp_path):
        kinds.add(type(source).__name__)
        assert source.size == use.sum()
        for mask, looking in ((use, False), (seen, True)):
            expected = [slit[mask], *(ds[name].values[mask] for name in names)]
            found = source.reduce(block, joined, seen=looking)
            np.testing.assert_array_equal(ordered(found), ordered(expected))
    assert kinds == {"Planes", "Held"}


def test_packed_in_the_order_of_the_spans(chosen):
    ds, grid = chosen, span_grid(chosen)
    columns = [ds[name].values for name in ("flux", "error", "wavelength", "yrel")]
    use = ds.selected.values
    made = pack(use, use & (ds.quality.values == 0), columns, grid)
    for part, first in ((made.selected, made.barred), (made.others, np.zeros(use.shape[0], int))):
        for start, n, stop in zip(part.start, first, part.stop):
            for some in (part.columns[2][start : start + n], part.columns[2][start + n : stop]):
                assert (np.diff(np.searchsorted(grid.edges, some, side="right")) >= 0).all()
    assert made.barred.sum() > 50 and made.others.size == 0


def test_sums_are_the_same_wherever_pixels_are_held(chosen, tmp_path):
    """Those of passes and those of looks, from planes of pixels and from packed ones."""
    ds, grid = chosen, span_grid(chosen)
    n = grid.size
    model = np.zeros((n, 4))
    model[:, 0] = 0.1
    state = PassState(
        model, np.full(n, 2e-3), np.full(n, 1e-4), np.full(n, 0.1), np.full(n, 3.0), np.full(n, 9.0)
    )
    groups = np.arange(ds.sizes["slit"]) % 3
    sight = shutter_sight(ds, profile=True)
    terms = Terms.none(ds.sizes["slit"], n)
    phase = bin_phase(grid.edges, np.ones(n, bool))[1]
    expected = None
    for source in _sources(ds, sight, tmp_path):
        sums = accumulate(source, state, groups, 3, terms)
        seen = look(source, state, terms, sight=sight, sky=sight.sky, phase=phase)
        found = [sums.moments, sums.noise, seen.weight, seen.excess, seen.profile.gram]
        counts = [sums.count, sums.selected, sums.histogram, sums.pixels]
        expected = expected or (found, counts)
        for a, b in zip(found, expected[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(b).max())
        for a, b in zip(counts, expected[1], strict=True):
            np.testing.assert_array_equal(a, b)
    assert expected[0][0].any() and expected[0][2].any() and expected[0][4].any()


@pytest.mark.parametrize("limit", [0, 2**19, 2**30])
def test_what_is_kept_keeps_to_the_limit(chosen, tmp_path, limit):
    """All slits and some of them together; what is not kept gives the same sums."""
    ds, grid, rows = chosen.chunk({"slit": 3}), span_grid(chosen), np.array([1, 4, 5, 10])
    sight = shutter_sight(ds, profile=True)
    n, few = grid.size, ds.isel(slit=rows).compute()
    zero, one = np.zeros((n, 4)), np.ones(n)
    state = PassState(zero + 0.1, 2e-3 * one, 1e-4 * one, 0.1 * one, 3 * one, 9 * one)
    groups, terms = np.arange(rows.size), Terms.none(rows.size, n)
    phase = bin_phase(grid.edges, np.ones(n, bool))[1]
    mine = sight.part(rows)

    def sums(source):
        seen = look(source, state, terms, sight=mine, sky=mine.sky, phase=phase)
        passed = accumulate(source, state, groups, rows.size, terms)
        return [passed.moments, passed.pixels, seen.weight, seen.excess, seen.far]

    expected = sums(held(few, grid, memory=2**30, sight=mine))
    assert all(one.any() for one in expected)
    with dask.config.set({"temporary-directory": str(tmp_path)}), ExitStack() as stack:
        whole = held(ds, grid, memory=limit, sight=sight, stack=stack)
        part = whole.part(rows, stack)
        lots = [lot for source in (whole, part) for (lot,) in source.graph.values()]
        kept = [one.nbytes for lot in lots for one in lot() if isinstance(one, Packed)]
        assert sum(kept) <= limit
        assert (len(kept) > 0) == (limit > 0)
        assert (whole.room.scratch is not None) == (limit < 2**30)
        for found, known in zip(sums(part), expected, strict=True):
            np.testing.assert_allclose(found, known, rtol=1e-12, atol=1e-12 * np.abs(known).max())


def test_one_master_whatever_is_kept():
    """Read again or kept, in any chunks, in any order of exposures, on any scheduler."""
    ds = mx.simulate_program(exposures=3, slits=8, background_slits=3, seed=12).compute()
    model = mx.BSpline(spacing=16, penalty=1e-2)

    def sky(ds, **options):
        return mx.fit_master(mx.select_background(ds), model=model, **options).polynomial.values

    expected = sky(ds)
    order = np.argsort(ds.exposure.values, kind="stable")[::-1]
    turned = ds.isel(slit=order).chunk({"slit": 7})
    others = [sky(ds.chunk({"slit": 5}), memory=0), sky(turned)]
    with dask.config.set(scheduler="sync"):
        others.append(sky(ds.chunk({"slit": 1}), memory=2**21))
    level = np.nanmax(np.abs(expected[:, 0]))
    for other in others:
        np.testing.assert_allclose(other, expected, rtol=0, atol=1e-9 * level)
