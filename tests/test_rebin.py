"""Area-overlap rebinning against exact rational arithmetic, and corners against a real WCS."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mbkg_xr.errors import ParameterError
from mbkg_xr.rebin import pixel_areas, pixel_corners, rebin2d

REAL = Path(__file__).resolve().parents[1] / "../shared/data/real_slitlets"
REAL_FILES = sorted(REAL.glob("*.fits")) or [None]


# --- the reference: Sutherland-Hodgman clipping in rational arithmetic, hence without rounding ---


def clip(polygon, axis, limit, keep_above):
    """Part of a polygon on one side of an axis-parallel line."""
    inside = [(p[axis] >= limit) if keep_above else (p[axis] <= limit) for p in polygon]
    out = []
    for n, p in enumerate(polygon):
        q = polygon[n - 1]
        if inside[n] != inside[n - 1]:
            t = (limit - q[axis]) / (p[axis] - q[axis])
            crossing = [a + t * (b - a) for a, b in zip(q, p, strict=True)]
            crossing[axis] = limit
            out.append(tuple(crossing))
        if inside[n]:
            out.append(p)
    return out


def signed_area(polygon):
    return sum(
        (
            q[1] * p[0] - q[0] * p[1]
            for q, p in zip(polygon[-1:] + polygon[:-1], polygon, strict=True)
        ),
        Fraction(0),
    ) / Fraction(2)


def exact_overlaps(y_edges, x_edges, y, x):
    """Signed area of a 2 x 2 corner mesh, and of its overlap with each cell."""
    ys, xs = [Fraction(v) for v in y_edges], [Fraction(v) for v in x_edges]
    around = ((0, 0), (0, 1), (1, 1), (1, 0))
    polygon = [(Fraction(float(y[n])), Fraction(float(x[n]))) for n in around]
    cells = []
    for bottom, top in pairwise(ys):
        strip = clip(clip(polygon, 0, bottom, True), 0, top, False)
        cells.append(
            [
                signed_area(clip(clip(strip, 1, left, True), 1, right, False))
                for left, right in pairwise(xs)
            ]
        )
    return signed_area(polygon), cells


def box_area(y, x):
    return float(np.ptp(y) * np.ptp(x))


def check_against_exact(grid, y_edges, x_edges, y, x):
    area, overlaps = exact_overlaps(y_edges, x_edges, y, x)
    covered = sum((a for row in overlaps for a in row), Fraction(0))
    flux = sum(
        (
            a * Fraction(float(v))
            for row, values in zip(overlaps, grid, strict=True)
            for a, v in zip(row, values, strict=True)
        ),
        Fraction(0),
    )
    mean, coverage = (float(a[0, 0]) for a in rebin2d(grid, y_edges, x_edges, y, x))
    box, peak = box_area(y, x), float(np.abs(grid).max())
    assert float(pixel_areas(y, x)[0, 0]) == pytest.approx(abs(float(area)), rel=0, abs=1e-14 * box)
    if coverage == 0:
        assert np.isnan(mean)
        assert float(covered / area) * abs(float(area)) <= 2e-13 * box
        return
    # All tolerances are absolute in units of the bounding box: what rounding can reach.
    fraction = float(covered / area)
    assert coverage == pytest.approx(fraction, rel=0, abs=2e-13 * box / abs(float(area)))
    # Where corners cross over, parts cancel: the mean may lie far outside the values, and errs by
    # what flux and area do, in units of an area that may be next to nothing.
    expected = float(flux / covered)
    scale = (peak + abs(expected)) * (1 + box / abs(float(covered)))
    assert abs(mean - expected) <= 5e-14 * scale
    assert 0 < coverage <= 1


def edges_of(steps, start):
    return start + np.concatenate([[0.0], np.cumsum(steps)])


def floats(low, high):
    """Multiples of 2^-30: what underflows to subnormal numbers is no matter of geometry."""
    return st.floats(low, high).map(lambda v: round(v * 2**30) / 2**30)


cell_sizes = st.lists(st.floats(0.05, 2.0), min_size=1, max_size=5)


@st.composite
def grids(draw):
    y_edges = edges_of(draw(cell_sizes), draw(st.floats(-2, 0)))
    x_edges = edges_of(draw(cell_sizes), draw(st.floats(-2, 0)))
    size = (y_edges.size - 1) * (x_edges.size - 1)
    values = draw(st.lists(floats(-10, 10), min_size=size, max_size=size))
    return np.reshape(values, (y_edges.size - 1, x_edges.size - 1)), y_edges, x_edges


@st.composite
def simple_quadrilaterals(draw):
    """Corners seen from a centre at rising angles: convex or not, thin or not, either turn."""
    wedge = draw(st.tuples(*[st.floats(0.1, 0.9)] * 4))
    angle = (np.arange(4) + np.array(wedge)) * (np.pi / 2)
    radius = np.array(draw(st.tuples(*[st.floats(0.05, 1.5)] * 4)))
    points = radius * np.exp(1j * angle)
    thin = 10.0 ** -draw(st.floats(0, 6))
    points = (points.real + 1j * thin * points.imag) * np.exp(1j * draw(st.floats(0, 6.3)))
    points += draw(st.floats(-1, 1)) + 1j * draw(st.floats(-1, 1))
    points = np.roll(points, draw(st.integers(0, 3)))
    if draw(st.booleans()):
        points = points[::-1]
    mesh = points[[0, 1, 3, 2]].reshape(2, 2)
    return mesh.imag.copy(), mesh.real.copy()


@settings(max_examples=400, deadline=None)
@given(grids(), simple_quadrilaterals())
def test_simple_pixels_agree_with_exact_clipping(grid, pixel):
    check_against_exact(*grid, *pixel)


@settings(max_examples=200, deadline=None)
@given(grids(), st.lists(floats(-1.5, 1.5), min_size=8, max_size=8))
def test_any_four_corners_agree_with_exact_clipping(grid, corners):
    """Includes coincident corners, corners on a side, and sides that lie on edges of cells."""
    y, x = np.reshape(corners, (2, 2, 2))
    area, overlaps = exact_overlaps(*grid[1:], y, x)
    covered = sum((a for row in overlaps for a in row), Fraction(0))
    assume(abs(float(area)) > 2e-13 * box_area(y, x))
    # A pixel folded over itself can have overlaps of both signs, and any ratio of them.
    assume(0 <= covered / area <= 1)
    check_against_exact(*grid, y, x)


LATTICE = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0])


@settings(max_examples=200, deadline=None)
@given(st.lists(LATTICE, min_size=8, max_size=8), st.integers(0, 1000))
def test_corners_on_the_edges_of_cells(corners, seed):
    y, x = np.reshape(corners, (2, 2, 2))
    edges = np.array([0.0, 0.5, 1.0, 1.5])
    grid = np.random.default_rng(seed).normal(size=(3, 3))
    area, overlaps = exact_overlaps(edges, edges, y, x)
    covered = sum((a for row in overlaps for a in row), Fraction(0))
    if area == 0:
        mean, coverage = rebin2d(grid, edges, edges, y, x)
        assert np.isnan(mean).all() and (coverage == 0).all()
        return
    assume(0 <= covered / area <= 1)
    check_against_exact(grid, edges, edges, y, x)


def test_a_far_origin_costs_only_the_rounding_of_the_coordinates():
    # All of these coordinates are multiples of 2^-26, and so exact at any of these offsets.
    rng = np.random.default_rng(5)
    y, x = np.round(rng.uniform(0, 1, (2, 2, 2)) * 2**20) / 2**20
    y, x = (
        np.array([[0.0, 0.125], [1.0, 0.875]]) + y / 8,
        np.array([[0.0, 1.0], [0.25, 1.0]]) + x / 8,
    )
    edges = np.arange(9) / 8
    grid = rng.random((8, 8))
    near = rebin2d(grid, edges, edges, y, x)
    far = rebin2d(grid, edges + 4096, edges - 2048, y + 4096, x - 2048)
    np.testing.assert_allclose(far[0], near[0], rtol=1e-14)
    np.testing.assert_allclose(far[1], near[1], rtol=1e-14)


def test_pixels_much_smaller_and_much_larger_than_cells():
    grid = np.array([[3.0, 5.0]])
    y, x = np.array([[0.1, 0.1], [1.1, 1.2]]) * 1e-9, np.array([[-1.0, 1.0], [-1.0, 1.0]]) * 1e-9
    mean, coverage = rebin2d(grid, [-1e6, 1e6], [-1e6, 0, 1e6], y, x)
    assert coverage[0, 0] == 1
    assert mean[0, 0] == pytest.approx((3 * 1.025 + 5 * 1.075) / 2.1, rel=1e-13)
    # Enough cells for the scratch arrays to grow.
    rng = np.random.default_rng(0)
    grid = rng.random((150, 170))
    edges = np.arange(171) / 4.0
    mesh = np.array([[-1.0, -1.0], [50.0, 50.0]])
    mean, coverage = rebin2d(grid, edges[:151], edges, mesh, mesh.T)
    assert mean[0, 0] == pytest.approx(grid.mean(), rel=1e-12)
    assert coverage[0, 0] == pytest.approx(37.5 * 42.5 / 51**2, rel=1e-13)


# --- flux ---


def perturbed_mesh(rng, ny, nx, low, high, amount=0.3):
    """A mesh that tiles a rectangle, its inner corners displaced, the outer along the border."""
    y, x = np.meshgrid(np.linspace(low[0], high[0], ny + 1), np.linspace(low[1], high[1], nx + 1),
                       indexing="ij")  # fmt: skip
    dy, dx = rng.uniform(-amount, amount, (2, ny + 1, nx + 1))
    dy[[0, -1]] = 0
    dx[:, [0, -1]] = 0
    return y + dy * (high[0] - low[0]) / ny, x + dx * (high[1] - low[1]) / nx


def interval_overlaps(edges, low, high):
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([(1, 1), (-1, 1), (1, -1), (-1, -1)]),
)
def test_pixels_that_tile_the_grid_receive_its_flux(seed, ny, nx, turn):
    rng = np.random.default_rng(seed)
    y_edges, x_edges = (
        edges_of(rng.uniform(0.1, 1, 9), -2.0),
        edges_of(rng.uniform(0.01, 0.1, 30), 1.0),
    )
    grid = rng.lognormal(size=(9, 30))
    # A border beyond the grid on all sides, by whole or part pixels.
    margin = rng.uniform(0, 0.5, 2)
    y, x = perturbed_mesh(
        rng, ny, nx, (y_edges[0] - margin[0], x_edges[0] - margin[1]),
        (y_edges[-1] + margin[0], x_edges[-1] + margin[1]),
    )  # fmt: skip
    y, x = y[:: turn[0], :: turn[1]], x[:: turn[0], :: turn[1]]
    mean, coverage = rebin2d(grid, y_edges, x_edges, y, x)
    area = pixel_areas(y, x)
    cell = np.outer(np.diff(y_edges), np.diff(x_edges))
    assert np.nansum(mean * coverage * area) == pytest.approx((grid * cell).sum(), rel=1e-10)
    assert (coverage * area).sum() == pytest.approx(cell.sum(), rel=1e-10)
    assert np.isnan(mean[coverage == 0]).all() and np.isfinite(mean[coverage > 0]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_pixels_within_the_grid_receive_the_flux_of_their_union(seed, ny, nx):
    rng = np.random.default_rng(seed)
    y_edges, x_edges = (
        edges_of(rng.uniform(0.1, 1, 20), 0.0),
        edges_of(rng.uniform(0.1, 1, 20), 0.0),
    )
    low, high = (0.5, 0.4), (float(y_edges[-1] - 0.3), float(x_edges[-1] - 0.2))
    y, x = perturbed_mesh(rng, ny, nx, low, high)
    area = pixel_areas(y, x)
    assert area.sum() == pytest.approx((high[0] - low[0]) * (high[1] - low[1]), rel=1e-12)

    grid = rng.normal(size=(20, 20))
    mean, coverage = rebin2d(grid, y_edges, x_edges, y, x)
    assert (coverage == 1).all()
    rows, cols = (interval_overlaps(e, low[k], high[k]) for k, e in enumerate((y_edges, x_edges)))
    expected = rows @ grid @ cols
    assert (mean * area).sum() == pytest.approx(expected, rel=1e-10, abs=1e-10 * area.sum())

    mean, coverage = rebin2d(np.full((20, 20), 7.25), y_edges, x_edges, y, x)
    np.testing.assert_allclose(mean, 7.25, rtol=1e-13)
    assert (coverage == 1).all()


def test_a_brightness_linear_in_wavelength_gives_its_value_at_the_centroid():
    j, i = np.mgrid[:13, :21] - 0.5
    y = 1.2 - 0.2 * j
    x = 2.0 + 0.01 * (i + 0.125 * j)  # iso-wavelength lines tilted as on the detector
    centroid = 0.25 * (x[:-1, :-1] + x[:-1, 1:] + x[1:, :-1] + x[1:, 1:])  # of parallelograms
    y_edges = np.linspace(y.min(), y.max(), 65)
    x_edges = np.linspace(x.min(), x.max(), 64 * 22 + 1)
    value = 3.0 + 100.0 * (x_edges[1:] + x_edges[:-1]) / 2
    mean, coverage = rebin2d(np.tile(value, (64, 1)), y_edges, x_edges, y, x)
    assert (coverage == 1).all()
    # In units of what the brightness changes by over one pixel (1.0); cells of 1/64 pixel.
    assert np.abs(mean - (3.0 + 100.0 * centroid)).max() < 1e-5


# --- coverage and NaN ---


def test_cells_without_a_value_and_pixels_off_the_grid():
    y, x = np.meshgrid([0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0, 4.0], indexing="ij")
    x = x + 0.5
    grid = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, np.inf]])
    mean, coverage = rebin2d(grid, [0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0], y, x)
    np.testing.assert_allclose(coverage, [[0.5, 0.5, 0.5, 0], [1, 0.5, 0, 0]], atol=1e-15)
    np.testing.assert_allclose(mean, [[1, 3, 3, np.nan], [4.5, 5, np.nan, np.nan]], atol=1e-14)


def test_a_tilted_pixel_at_the_border_of_the_grid():
    y, x = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 2.0]])
    mean, coverage = rebin2d([[1.0, 3.0]], [0.0, 0.5], [-1.0, 0.5, 5.0], y, x)
    assert coverage[0, 0] == pytest.approx(0.5, rel=1e-15)
    assert mean[0, 0] == pytest.approx((0.125 * 1 + 0.375 * 3) / 0.5, rel=1e-14)


def test_its_bounding_box_overlaps_the_grid_but_the_pixel_does_not():
    y, x = np.array([[0.1, 1.1], [0.3, 1.3]]), np.array([[-1.0, 0.0], [-1.3, -0.3]])
    mean, coverage = rebin2d([[1.0]], [-5.0, 0.3], [-1.0, 5.0], y, x)
    assert 0 < coverage[0, 0] < 0.1 and mean[0, 0] == 1.0
    mean, coverage = rebin2d([[1.0]], [-5.0, 0.3], [-0.7, 5.0], y, x)
    assert coverage[0, 0] == 0 and np.isnan(mean[0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_without_all_corners_receive_nothing(bad):
    y, x = np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij")
    x[1, 2] = bad
    mean, coverage = rebin2d(np.ones((1, 1)), [-1.0, 9.0], [-1.0, 9.0], y, x)
    lost = np.zeros((3, 4), bool)
    lost[:2, 1:3] = True
    np.testing.assert_array_equal(np.isnan(mean), lost)
    np.testing.assert_array_equal(coverage, np.where(lost, 0.0, 1.0))
    np.testing.assert_array_equal(np.isnan(pixel_areas(y, x)), lost)


@pytest.mark.parametrize(
    "x", [[[0.3, 0.3], [0.3, 0.3]], [[0.1, 0.1], [0.7, 0.7]], [[0.0, 0.9], [0.3, 0.6]]]
)
def test_pixels_without_area_receive_nothing(x):
    x = np.array(x)
    y = 0.1 + x / 3  # on one line
    assert pixel_areas(y, x)[0, 0] < 1e-16
    mean, coverage = rebin2d(np.ones((4, 4)), np.arange(5) / 4, np.arange(5) / 4, y, x)
    assert np.isnan(mean[0, 0]) and coverage[0, 0] == 0


def test_stacks_layouts_and_types():
    rng = np.random.default_rng(2)
    meshes = [perturbed_mesh(rng, 4, 6, (0, 0), (3, 5)) for _ in range(6)]
    y, x = (np.array([m[k] for m in meshes]).reshape(2, 3, 5, 7) for k in (0, 1))
    grid, edges = rng.random((8, 12)), (np.linspace(0, 3, 9), np.linspace(0, 4, 13))
    mean, coverage = rebin2d(grid, *edges, y, x)
    assert mean.shape == coverage.shape == pixel_areas(y, x).shape == (2, 3, 4, 6)
    for n, (one_y, one_x) in enumerate(meshes):
        one = rebin2d(grid, *edges, one_y, one_x)
        np.testing.assert_array_equal(mean[divmod(n, 3)], one[0])
        np.testing.assert_array_equal(coverage[divmod(n, 3)], one[1])
    frozen = np.asfortranarray(y).astype(">f8")
    frozen.flags.writeable = False
    np.testing.assert_array_equal(rebin2d(grid.tolist(), *edges, frozen, x)[0], mean)
    assert rebin2d(grid, *edges, y[:0], x[:0])[0].shape == (0, 3, 4, 6)
    # The same pixels in another order of rows and columns.
    flipped = rebin2d(grid, *edges, y[..., ::-1, :], x[..., ::-1, :])[0]
    np.testing.assert_allclose(flipped[..., ::-1, :], mean, rtol=1e-13)


def test_importing_compiles_nothing():
    code = (
        "import mbkg_xr.rebin as r; from numba.core.registry import CPUDispatcher as D;"
        "found = [f for f in vars(r).values() if isinstance(f, D)];"
        "assert found and not any(f.signatures for f in found)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --- corners ---


def prism_like(ny=12, nx=40):
    """Wavelength and yrel as smooth functions of column and row, like PRISM's."""

    def at(j, i):
        t = i + 0.125 * j
        return (
            1.0 + 0.012 * t + 1e-4 * t**2 - 1e-6 * t**3,
            1.0 - 0.1986 * j + 1e-5 * i + 1e-6 * i * j,
        )

    j, i = np.mgrid[:ny, :nx].astype(float)
    jc, ic = np.mgrid[: ny + 1, : nx + 1] - 0.5
    return at(j, i), at(jc, ic)


def slanted(ny=12, nx=40):
    """A slit whose borders step through the rows, as traces do."""
    j, i = np.mgrid[:ny, :nx]
    return (j >= 1 + i // 15) & (j <= 7 + i // 12) & (i >= 2)


def test_corners_of_a_full_slit_follow_a_cubic():
    (wave, yrel), (wave_true, yrel_true) = prism_like()
    wave_corners, yrel_corners = pixel_corners(wave, yrel)
    assert wave_corners.shape == yrel_corners.shape == (13, 41)
    inside = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(wave_corners[inside], wave_true[inside], rtol=1e-14)
    np.testing.assert_allclose(yrel_corners, yrel_true, atol=1e-14)
    # Beyond the border the rule is quadratic: off by 5/16 of the third derivative, 6e-6.
    assert np.abs(wave_corners - wave_true).max() < 2.0e-6


def test_ragged_slits_lose_no_pixel_and_leave_no_gap():
    (wave, yrel), (wave_true, yrel_true) = prism_like()
    valid = slanted()
    wave[~valid], yrel[~valid] = np.nan, np.nan
    wave_corners, yrel_corners = pixel_corners(wave.astype("f4"), yrel.astype("f4"))
    area = pixel_areas(yrel_corners, wave_corners)
    assert np.isfinite(area[valid]).all()
    touched = np.isfinite(wave_corners)
    np.testing.assert_array_equal(touched, np.isfinite(yrel_corners))
    # Corners are there where a valid pixel touches them, and nowhere else.
    around = np.zeros((13, 41), bool)
    for j, i in np.argwhere(valid):
        around[j : j + 2, i : i + 2] = True
    np.testing.assert_array_equal(touched, around)
    # Beyond two borders at once, about twice 5/16 of the third derivative; and float32.
    assert np.abs(wave_corners - wave_true)[touched].max() < 5e-6
    assert np.abs(yrel_corners - yrel_true)[touched].max() < 1e-6
    # All pixels turn the same way and tile: their areas are those of the true pixels.
    np.testing.assert_allclose(area[valid], pixel_areas(yrel_true, wave_true)[valid], rtol=1e-3)


def test_padding_and_stacking_do_not_change_corners():
    (wave, yrel), _ = prism_like()
    wave[~slanted()] = np.nan  # one of the two is enough
    alone = pixel_corners(wave, yrel)
    padded = [np.full((2, 15, 44), np.nan) for _ in range(2)]
    padded[0][1, :12, :40], padded[1][1, :12, :40] = wave, yrel
    stacked = pixel_corners(*padded)
    for one, two in zip(alone, stacked, strict=True):
        np.testing.assert_array_equal(two[1, :13, :41], one)
        assert np.isnan(two[0]).all() and np.isnan(two[1, 13:]).all() and one.flags.c_contiguous
    flipped = pixel_corners(wave[::-1, ::-1], yrel[::-1, ::-1])
    np.testing.assert_allclose(flipped[0][::-1, ::-1], alone[0], rtol=1e-15)


def test_holes_and_spikes_keep_their_corners():
    (wave, yrel), (wave_true, yrel_true) = prism_like()
    valid = np.zeros((12, 40), bool)
    valid[4:9, 5:30] = True
    valid[6, 12] = False  # a hole
    valid[1:4, 20] = True  # a spike of one column
    valid[8:9, 30:34] = True  # a spike of one row
    valid[11, 39] = True  # a pixel on its own, which nothing defines
    wave[~valid] = np.nan
    wave_corners, yrel_corners = pixel_corners(wave, yrel)
    area = pixel_areas(yrel_corners, wave_corners)
    assert np.isnan(area[11, 39])
    valid[11, 39] = False
    assert np.isfinite(area[valid]).all() and np.isfinite(area[6, 12])
    known = np.isfinite(wave_corners)
    dispersion = np.diff(wave_true, axis=1).mean()
    assert np.abs(wave_corners - wave_true)[known].max() < 0.02 * dispersion
    assert np.abs(yrel_corners - yrel_true)[known].max() < 1e-4


def test_the_smallest_slit_is_linear():
    wave, yrel = pixel_corners([[1.0, 2.0], [1.25, 2.25]], [[0.0, 0.0], [-1.0, -1.0]])
    np.testing.assert_allclose(wave[0], [0.375, 1.375, 2.375], rtol=1e-15)
    np.testing.assert_allclose(yrel[:, 0], [0.5, -0.5, -1.5], rtol=1e-15)


# --- a real slitlet ---


@pytest.fixture(scope="module", params=REAL_FILES, ids=lambda p: p.stem[-20:] if p else "none")
def real(request):
    """Coordinates of a real PRISM slitlet, as a function of 0-based column and row."""
    if request.param is None:
        pytest.skip("the real slitlets are not at ../shared/data/real_slitlets")
    pytest.importorskip("gwcs")
    datamodels = pytest.importorskip("stdatamodels.jwst.datamodels")
    with datamodels.open(request.param) as slit:
        to_slit = slit.meta.wcs.get_transform("detector", "slit_frame")
        middle = (slit.slit_ymin + slit.slit_ymax) / 2
        shape = slit.data.shape

    def at(j, i):
        _, slit_y, wave = to_slit(i, j)
        return wave * 1e6, (slit_y - middle) / 1.15

    j, i = np.mgrid[: shape[0], : shape[1]].astype(float)
    jc, ic = np.mgrid[: shape[0] + 1, : shape[1] + 1] - 0.5
    return at(j, i), at(jc, ic)


def corner_errors(found, truth):
    """Largest error of corners along wavelength and yrel, in units of a pixel."""
    dispersion = np.abs(np.gradient(truth[0], axis=1))
    height = np.abs(np.gradient(truth[1], axis=0))
    scales = (dispersion, height)
    return [np.nanmax(np.abs(f - t) / s) for f, t, s in zip(found, truth, scales, strict=True)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_real_corners_are_those_of_the_wcs(real, dtype):
    centres, truth = real
    wave, yrel = (c.astype(dtype) for c in centres)
    valid = np.isfinite(wave)
    assert valid.sum() > 6000
    corners = pixel_corners(wave, yrel)
    # Measured: 3.6e-4 pixel in wavelength (at the border, on 7e-5 inside), 1e-6 along the slit.
    errors = corner_errors(corners, truth)
    assert errors[0] < 5e-4 and errors[1] < 1e-5

    # The WCS ends at the slit's own border. To see what is beyond one, move the border inwards.
    small = valid.copy()
    for _ in range(2):
        small[1:-1, 1:-1] &= small[:-2, 1:-1] & small[2:, 1:-1] & small[1:-1, :-2] & small[1:-1, 2:]
        small[:, [0, -1]] = False
        small[[0, -1]] = False
    corners = pixel_corners(np.where(small, wave, np.nan), np.where(small, yrel, np.nan))
    assert np.isfinite(truth[0][np.isfinite(corners[0])]).all()
    errors = corner_errors(corners, truth)
    assert errors[0] < 5e-4 and errors[1] < 1e-5


def test_real_pixels_are_covered_by_a_grid_that_spans_them(real):
    wave, yrel = (c.astype("f4") for c in real[0])
    valid = np.isfinite(wave)
    wave_corners, yrel_corners = pixel_corners(wave, yrel)
    area = pixel_areas(yrel_corners, wave_corners)
    assert np.isfinite(area[valid]).all() and (area[valid] > 0).all()
    x_edges = np.linspace(np.nanmin(wave_corners), np.nanmax(wave_corners), 8 * 341 + 1)
    y_edges = np.linspace(np.nanmin(yrel_corners), np.nanmax(yrel_corners), 65)
    centre = (x_edges[1:] + x_edges[:-1]) / 2
    mean, coverage = rebin2d(np.tile(centre, (64, 1)), y_edges, x_edges, yrel_corners, wave_corners)
    np.testing.assert_array_equal(coverage, np.where(valid, 1.0, 0.0))
    # The mean wavelength of a pixel is that of its centre, but for the curvature within it.
    dispersion = np.abs(np.gradient(wave, axis=1))[valid]
    assert np.nanmax(np.abs(mean - wave)[valid] / dispersion) < 0.01
    # An iso-wavelength line crosses 2.5 columns: rows must not all see the same wavelength.
    assert np.ptp(mean[5:21, 200]) > 1.5 * np.nanmedian(np.abs(np.diff(wave[:, 200:202], axis=1)))


# --- errors ---

OK = {
    "grid": np.ones((2, 3)),
    "yrel_edges": [0.0, 1.0, 2.0],
    "wavelength_edges": [0.0, 1.0, 2.0, 3.0],
    "yrel_corners": np.zeros((3, 4)),
    "wavelength_corners": np.zeros((3, 4)),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": np.ones((3, 2))}, r"expected shape \(2, 3\).*found shape \(3, 2\)"),
        ({"grid": np.ones(6)}, r"found shape \(6,\)"),
        ({"yrel_edges": [0.0, 2.0, 1.0]}, r"yrel_edges.*increasing.*\[2.0, 1.0\] at index 1"),
        ({"yrel_edges": [0.0, 1.0, 1.0]}, r"yrel_edges.*\[1.0, 1.0\] at index 1"),
        ({"wavelength_edges": [0.0, 1.0, np.nan, 3.0]}, r"wavelength_edges.*finite.*index 1"),
        ({"wavelength_edges": [0.0, 1.0, 2.0, np.inf]}, r"wavelength_edges.*\[inf\] at index 3"),
        ({"wavelength_edges": [1.0]}, r"wavelength_edges.*at least 2.*found shape \(1,\)"),
        ({"yrel_edges": np.zeros((2, 2))}, r"yrel_edges.*1-D.*found shape \(2, 2\)"),
        ({"yrel_corners": np.zeros((3, 5))}, r"yrel_corners \(3, 5\), wavelength_corners \(3, 4\)"),
        ({"yrel_corners": np.zeros(4), "wavelength_corners": np.zeros(4)}, r"\(4,\)"),
        ({"yrel_corners": np.zeros((1, 4)), "wavelength_corners": np.zeros((1, 4))}, r"\(1, 4\)"),
    ],
)
def test_rebin2d_names_what_does_not_fit(change, words):
    with pytest.raises(ParameterError, match=words):
        rebin2d(**{**OK, **change})


def test_the_others_name_what_does_not_fit():
    with pytest.raises(ParameterError, match=r"yrel_corners \(2, 2\), wavelength_corners \(2, 3\)"):
        pixel_areas(np.zeros((2, 2)), np.zeros((2, 3)))
    for wave, yrel in (((3, 4), (4, 3)), ((1, 5), (1, 5)), ((5, 1), (5, 1)), ((4,), (4,))):
        with pytest.raises(ParameterError, match=r"at least 2; found wavelength \("):
            pixel_corners(np.zeros(wave), np.zeros(yrel))
