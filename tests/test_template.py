"""A template times a smooth ratio: exact enough, better than a spline, clear about bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from astropy.table import Table
from click.testing import CliRunner
from test_models import _points, _problem

import mbkg_xr as mx
from mbkg_xr.cli import main
from mbkg_xr.models import Problem
from mbkg_xr.models.basis import PIXEL_MEAN, dense
from mbkg_xr.models.bspline import spline_basis
from mbkg_xr.models.cubics import product_basis
from mbkg_xr.models.thermal import mixed_ratio
from mbkg_xr.simulate import CLEAN
from mbkg_xr.simulate.sky import as_sky, sky_mean, sky_spectrum
from mbkg_xr.spans import SpanGrid, span_grid

GRID = span_grid(xr.Dataset(attrs={"configuration": "prism-clear"}))
POWERS = np.arange(4)


def _sky_table(step=0.25):
    """The simulated sky itself, finer than the detector's pixels."""
    u = np.arange(20, GRID.size - 20, step)
    wavelength = np.interp(u, np.arange(GRID.size + 1), GRID.edges)
    return wavelength, sky_spectrum(wavelength)


def test_product_is_a_cubic_to_a_ten_thousandth():
    """He I and all: template times ratio, beside the product itself, at ten points of each span."""
    known = mx.Template(_sky_table()).polynomial(GRID)
    rng = np.random.default_rng(0)
    powers = np.vander(np.linspace(0, 1, 10), 4, increasing=True)
    inside = slice(31, GRID.size - 31)
    for spacing, size in ((8, 0.1), (2, 0.02)):
        _, ratio = spline_basis(GRID, 30, GRID.size - 30, spacing)
        product = product_basis(known, ratio)
        c = 1 + size * rng.normal(size=ratio.size)  # each coefficient goes its own way
        coef = product.combine(c, GRID.size)
        exact = (known @ powers.T) * (ratio.combine(c, GRID.size) @ powers.T)
        level = np.abs(exact[inside]).mean(axis=1, keepdims=True)
        assert (np.abs(coef @ powers.T - exact)[inside] / level).max() < 1e-4
        # One span goes on where the other ends.
        np.testing.assert_allclose(coef[inside][:-1].sum(axis=1), coef[inside][1:, 0], rtol=1e-9)


def _means(grid, known, x, ratio):
    """Pixel means of template times ratio at points, by quadrature of the product itself."""
    u = grid.pixel_coordinate(x)
    n, t = u.astype(int), u - u.astype(int)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    total = 0.0
    for node, weight in zip(nodes / 2, weights / 2, strict=True):
        sky = (known[n] * (t + node)[:, None] ** POWERS).sum(axis=1)
        total = total + weight * (sky * ratio(n, t + node).T).T
    return total


def test_the_ratio_is_found():
    """Data that are the template times a straight line: next to nothing is left."""
    grid, x, _, w, group = _points(noise=1e-9)
    fine = np.linspace(grid.edges[0], grid.edges[-1], 4000)
    template = mx.Template((fine, 0.2 + 0.1 * np.sin(5 * fine)), spacing=8, penalty=1e-3, mix=False)
    known = template.polynomial(grid)
    slope = grid.centres.mean()

    def line(n, t):
        return 2 + 0.3 * (grid.edges[n] + t * grid.widths[n] - slope)

    mean = _means(grid, known, x, line)
    fitted = template.fit(_problem(grid, x, mean, w, group))
    u = grid.pixel_coordinate(x)
    n = u.astype(int)
    found = (fitted.expected[n] * (u - n)[:, None] ** POWERS).sum(axis=1)
    assert np.abs(found / mean - 1).max() < 1e-4
    assert fitted.description["templated"] == 1


def test_moments_give_the_direct_solution():
    """Least squares on the points, with the products themselves in the design matrix."""
    grid, x, y, w, group = _points(noise=0.02)
    fine = np.linspace(grid.edges[0], grid.edges[-1], 500)
    template = mx.Template((fine, 1 + 0.3 * np.sin(4 * fine)), spacing=16, penalty=0.1, mix=False)
    problem = _problem(grid, x, y, w, group)
    fitted = template.fit(problem)
    known = template.polynomial(grid)
    _, ratio = spline_basis(grid, *problem.domain, 16)

    def columns(n, t):
        position = np.searchsorted(ratio.spans, n)
        out = np.zeros((n.size, ratio.size))
        local = np.einsum("pm,pmw->pw", t[:, None] ** POWERS, ratio.coef[position])
        for a in range(4):
            np.add.at(out, (np.arange(n.size), ratio.first[position] + a), local[:, a])
        return out

    design = _means(grid, known, x, columns)
    system = template.candidates(problem, known)[0].system
    normal = design.T @ (w[:, None] * design) + dense(system.penalty_bands(0.1))
    expected = np.linalg.solve(normal, design.T @ (w * y))
    np.testing.assert_allclose(design @ fitted.coefficient, design @ expected, rtol=1e-4)


def test_the_mix_of_light_is_found():
    """Two epochs, without noise: five numbers say of their ratio what a straight line cannot."""
    wavelength, _ = _sky_table()
    there = replace(as_sky("ceers"), scattered=0.12, thermal=0.12, thermal_temperature=293.0)
    known = mx.Template((wavelength, sky_spectrum(wavelength, there))).polynomial(GRID)
    spans = np.arange(30, GRID.size - 30)
    truth = sky_mean(GRID.edges[:-1], GRID.edges[1:])[spans]
    moments = np.zeros((1, GRID.size, 12))
    for m in range(7):
        moments[0, spans, m] = 0.5**m / truth**2
    for m in range(4):
        moments[0, spans, 7 + m] = truth * 0.5**m / truth**2
    moments *= 1e4  # an error of one per cent
    count = (moments[..., 0] > 0).astype(np.int64)
    ratio, doubt = mixed_ratio(known, Problem(GRID, moments, count, np.ones(GRID.size)))
    template = known[spans] @ (PIXEL_MEAN.T @ 0.5**POWERS)
    off = template * ratio[spans] / truth - 1
    line = np.polyval(np.polyfit(spans, truth / template, 1), spans) * template / truth - 1
    assert np.sqrt(np.mean(off**2)) < 0.002
    assert np.sqrt(np.mean(line**2)) > 0.04
    assert 0 < np.square(doubt[spans]).sum(axis=1).max() < 1e-4
    # A template that is no sky at all, or data without light, leave the ratio to the spline.
    nothing, none = mixed_ratio(known, Problem(GRID, 0 * moments, count, np.ones(GRID.size)))
    assert (nothing == 1).all()
    assert not none.size


@pytest.fixture(scope="module")
def former() -> xr.Dataset:
    """The master of a former visit: another level, and thermal light of another strength."""
    sky = as_sky("ceers")
    sky = replace(sky, scattered=1.3 * sky.scattered, thermal=0.8 * sky.thermal)
    ds = mx.simulate_program(slits=40, background_slits=40, sky=sky, seed=1, **CLEAN)
    return mx.fit_master(mx.select_background(ds.load()))


def _rms(master):
    edges = master.edge.values
    use = (edges[:-1] > 0.75) & (edges[1:] < 5.2)
    truth = sky_mean(edges[:-1][use], edges[1:][use])
    found = (master.expected.values @ 0.5**POWERS)[use]
    pull = (found - truth) / master.sky_error.sel(node=0.5).values[use]
    return np.sqrt(np.mean((found / truth - 1) ** 2)), pull.std()


def test_two_sky_slits(former):
    rms, pulls = {"spline": [], "template": []}, []
    models = {"spline": mx.BSpline(), "template": mx.Template(former)}
    for seed in (0, 1, 2):
        ds = mx.simulate_program(slits=2, background_slits=2, seed=seed, **CLEAN)
        ds = mx.select_background(ds.load())
        for name, model in models.items():
            value, pull = _rms(mx.fit_master(ds, model=model))
            rms[name].append(value)
            if name == "template":
                pulls.append(pull)
    assert np.mean(rms["template"]) < 0.6 * np.mean(rms["spline"])
    assert 0.6 < np.mean(pulls) < 1.4


def test_spline_and_template_compete(faint, former):
    """Each is scored on the same pixels, and the better one wins."""
    ds = faint.isel(slit=slice(0, 24))
    master = mx.fit_master(ds, model=mx.Template(former, against=mx.BSpline()))
    scores, templated = master.score_heldout.values, master.score_templated.values > 0
    assert templated.any() and (~templated).any()
    best = int(np.argmin(scores))
    assert bool(master.score_chosen.values[best])
    assert master.attrs["templated"] == float(templated[best])
    spline = mx.fit_master(ds, model=mx.BSpline())
    assert abs(scores[~templated].min() / spline.score_heldout.values.min() - 1) < 2e-3


def test_same_master_for_any_chunks_and_order(program, former):
    whole = mx.select_background(program.compute())
    model = mx.Template(former)
    sky = mx.fit_master(whole, model=model).polynomial.values
    order = np.random.default_rng(0).permutation(whole.sizes["slit"])
    found = mx.fit_master(whole.isel(slit=order).chunk({"slit": 5}), model=model).polynomial.values
    np.testing.assert_allclose(found, sky, rtol=0, atol=1e-9 * np.nanmax(sky))


def test_where_the_template_ends_there_is_no_background(selected, former):
    wave = np.linspace(1.0, 4.0, 800)
    master = mx.fit_master(selected, model=mx.Template((wave, mx.evaluate(former, wave))))
    low, high = master.attrs["wavelength_range"]
    assert 1.0 <= low < 1.05 and 3.95 < high <= 4.0
    assert np.isnan(mx.evaluate(master, [0.9, 4.1])).all()
    one = mx.subtract(selected, master).isel(slit=[0]).compute()
    outside = ((one.wavelength < 0.99) | (one.wavelength > 4.01)).values
    assert np.isnan(one.background.values[outside]).all()
    assert ((one.quality.values & 1) == 1)[outside].all()
    with pytest.raises(mx.MbkgError, match="cannot compete"):
        model = mx.Template((wave, np.ones(800)), against=mx.BSpline())
        mx.fit_master(selected, model=model)


def test_master_of_other_spans_and_fluxes_that_are_pixel_means(former):
    other = SpanGrid(GRID.edges[::2])
    whole, half = mx.Template(former).polynomial(GRID), mx.Template(former).polynomial(other)
    for wave in (1.5, 2.5, 4.0):
        n, t = GRID.locate(wave)
        m, s = other.locate(wave)
        assert abs((half[m] @ s**POWERS) / (whole[n] @ t**POWERS) - 1) < 0.01
    edges = GRID.edges[30:-30]
    means = (0.5 * (edges[1:] + edges[:-1]), sky_mean(edges[:-1], edges[1:]))
    true = mx.Template(_sky_table()).polynomial(GRID)
    undone = mx.Template(means, mean=True).polynomial(GRID)
    taken = mx.Template(means).polynomial(GRID)
    at = GRID.locate(1.0833)[0] + np.arange(-2, 3)
    level = np.abs(true[at] @ 0.5**POWERS)
    wrong = [np.abs((p - true)[at] @ 0.5**POWERS / level).max() for p in (undone, taken)]
    assert wrong[0] < 0.5 * wrong[1]


@pytest.mark.parametrize(
    "spectrum",
    [
        ([1.0, 2.0], [1.0, 1.0]),
        ([1.0, 2.0, 2.0, 3.0], [1.0] * 4),
        ([1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 1.0, 1.0]),
        xr.Dataset({"flux": ("x", [1.0])}),
        "sky.csv",
    ],
    ids=["short", "not rising", "NaN", "not a master", "a name"],
)
def test_bad_spectra(spectrum):
    with pytest.raises(mx.MbkgError, match="expected"):
        mx.Template(spectrum)


def test_a_template_that_is_not_positive(selected):
    wave = np.linspace(0.5, 5.7, 600)
    with pytest.raises(mx.MbkgError, match=r"not positive.*um"):
        mx.fit_master(selected, model=mx.Template((wave, np.sin(wave))))
    with pytest.raises(mx.MbkgError, match="no wavelength in common"):
        mx.fit_master(selected, model=mx.Template((np.linspace(0.2, 0.4, 9), np.ones(9))))


def test_reading_templates(former, tmp_path):
    wavelength, flux = _sky_table(1.0)
    rows = [f"{w!r},{f!r}" for w, f in zip(wavelength.tolist(), flux.tolist(), strict=True)]
    (tmp_path / "sky.csv").write_text("\n".join(["wave,flux", *rows]))
    table = Table({"flux": flux[::-1], "WAVELENGTH": 1000 * wavelength[::-1]})
    table["WAVELENGTH"].unit = "nm"
    table.write(tmp_path / "sky.fits")
    table.write(tmp_path / "sky.ecsv")
    for name in ("sky.csv", "sky.fits", "sky.ecsv"):
        found = mx.read_template(tmp_path / name)
        np.testing.assert_allclose(found[0], wavelength, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(found[1], flux, rtol=1e-12, err_msg=name)
    mx.save({"prism-clear/master": former}, tmp_path / "one.zarr")
    xr.testing.assert_identical(mx.read_template(tmp_path / "one.zarr"), former)
    mx.save({"prism-clear/master": former, "other/master": former}, tmp_path / "two.zarr")
    with pytest.raises(mx.MbkgError, match=r"not one master.*prism-clear"):
        mx.read_template(tmp_path / "two.zarr")
    (tmp_path / "bad.csv").write_text("wave,flux\na,b\n")
    (tmp_path / "short.csv").write_text("wave\n1.0\n")
    (tmp_path / "noise.fits").write_bytes(b"not a FITS file")
    for name in ("bad.csv", "short.csv", "noise.fits", "absent.csv"):
        with pytest.raises(mx.MbkgError, match=name):
            mx.read_template(tmp_path / name)


def test_command_line(program, former, tmp_path):
    mx.save(program, tmp_path / "in.zarr")
    mx.save({"prism-clear/master": former}, tmp_path / "former.zarr")
    out = str(tmp_path / "out.zarr")
    run = CliRunner().invoke
    options = ["run", str(tmp_path / "in.zarr"), "--out", out, "--json", "--model", "template"]
    missing = run(main, options)
    assert missing.exit_code == 2
    assert "--template FILE" in missing.output
    done = run(main, [*options, "--template", str(tmp_path / "former.zarr")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["prism-clear"]["master"]["n"] > 100
    master = mx.open_program(out)["prism-clear/master"].to_dataset()
    assert master.attrs["model"] == "template"
