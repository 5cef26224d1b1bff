"""Figures: what is drawn is what is in the data, and nothing more is read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

import mbkg_xr as mx
from mbkg_xr import plot, report
from mbkg_xr.errors import DatasetError, ParameterError
from mbkg_xr.plot import canvas, spectra

REAL = Path(__file__).resolve().parents[1] / "../shared/data/real_slitlets"
REAL_FILES = sorted(REAL.glob("*.fits"))


def chain(ds):
    # Dask arrays still, but each is computed once for all tests.
    ds = mx.select_background(ds).persist()
    master = mx.fit_master(ds)
    sets = {
        "master": mx.residuals(mx.subtract(ds, master)),
        "nods": mx.residuals(mx.subtract_nods(ds)),
        "heldout": mx.residuals(mx.subtract(ds, master, heldout=True)),
    }
    sets = dict(zip(sets, dask.persist(*sets.values()), strict=True))
    return SimpleNamespace(ds=ds, master=master, sets=sets, result=sets["master"])


@pytest.fixture(scope="module")
def sim():
    return chain(mx.simulate_program(exposures=3, slits=6, background_slits=3, seed=1))


@pytest.fixture(scope="module")
def real():
    if not REAL_FILES:
        pytest.skip("the real slitlets are not at ../shared/data")
    return chain(mx.open_program(REAL_FILES)["prism-clear"].to_dataset())


@pytest.fixture(params=["sim", "real"])
def run(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def ax():
    return Figure().subplots()


FUNCTIONS = {
    "plot_selection": lambda run, ax: plot.plot_selection(run.ds, slit=-1, ax=ax),
    "plot_cloud": lambda run, ax: plot.plot_cloud(run.result, run.master, ax=ax),
    "plot_master_image": lambda run, ax: plot.plot_master_image(run.master, ax=ax),
    "plot_residuals": lambda run, ax: plot.plot_residuals(run.sets, ax=ax),
    "plot_model_choice": lambda run, ax: plot.plot_model_choice(run.master, ax=ax),
    "plot_residual_spectrum": lambda run, ax: plot.plot_residual_spectrum(run.sets, ax=ax),
    "plot_residual_map": lambda run, ax: plot.plot_residual_map(run.result, ax=ax),
}
UNITS = {
    "plot_selection": ("(pixel)", "(pixel)", "(MJy/sr)"),
    "plot_cloud": ("(um)", "(MJy/sr)", None),
    "plot_master_image": ("(um)", "(shutter pitches)", "(MJy/sr)"),
    "plot_residuals": ("(units of its error)", "(per unit)", None),
    "plot_model_choice": ("degrees of freedom", "a pixel", None),
    "plot_residual_spectrum": ("(um)", "(% of the sky)", None),
    "plot_residual_map": ("(um)", "(shutter pitches)", "(its error)"),
}


def texts(figure):
    """All that is written on a figure."""
    return [t.get_text() for t in figure.findobj(Text)]


# --- every figure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_draws_on_the_given_axes_with_units(run, ax, name):
    open_before = pyplot.get_fignums()
    artist = FUNCTIONS[name](run, ax)
    assert artist.axes is ax
    assert pyplot.get_fignums() == open_before
    x, y, bar = UNITS[name]
    assert ax.get_xlabel().endswith(x)
    assert y in ax.get_ylabel()
    if bar:
        assert ax.figure.axes[1].get_ylabel().endswith(bar)
    assert all(np.isfinite(ax.get_xlim())) and all(np.isfinite(ax.get_ylim()))
    assert texts(ax.figure)


def test_without_axes_a_figure_of_its_own(sim):
    for name in FUNCTIONS:
        artist = FUNCTIONS[name](sim, None)
        assert artist.figure.number in pyplot.get_fignums()
        pyplot.close(artist.figure)
    image = plot.plot_subtraction(sim.result)
    assert len(image.figure.axes) == 4  # with the colour bar
    pyplot.close(image.figure)


def test_covers_all_public_functions():
    others = {"plot_subtraction", "plot_msa", "plot_profile", "plot_slit_ranking"}
    others |= {"plot_white_noise"}
    assert {*FUNCTIONS} | others == set(plot.__all__)


def test_lazy_and_loaded_give_the_same(sim):
    loaded = sim.result.compute()
    lazy = loaded.chunk({"slit": 5})
    for draw in (
        lambda ds, ax: plot.plot_selection(ds, ax=ax).get_array(),
        lambda ds, ax: plot.plot_cloud(ds, sim.master, ax=ax).get_offsets(),
        lambda ds, ax: plot.plot_residuals({"master": ds}, ax=ax).get_data().values,
        lambda ds, ax: plot.plot_residual_spectrum({"master": ds}, ax=ax).get_ydata(),
    ):
        axes = Figure().subplots(2)
        first, second = (
            np.ma.filled(draw(ds, a), np.nan) for ds, a in zip((loaded, lazy), axes, strict=True)
        )
        np.testing.assert_array_equal(first, second)


# --- one slitlet ----------------------------------------------------------------------------------


def test_selection_is_in_detector_pixels_with_flags_apart(run, ax):
    slit = report.typical_slit(run.ds)
    image = plot.plot_selection(run.ds, slit=slit, ax=ax)
    one = run.ds.isel(slit=slit).load()
    inside = np.isfinite(one.wavelength.values)
    columns = np.flatnonzero(inside.any(axis=0)) + one.x_start.item()
    rows = np.flatnonzero(inside.any(axis=1)) + one.y_start.item()
    assert image.get_extent() == [
        columns[0] - 0.5, columns[-1] + 0.5, rows[0] - 0.5, rows[-1] + 0.5
    ]  # fmt: skip
    shown, bad = (i.get_array() for i in ax.images)
    assert not (np.isfinite(shown.filled(np.nan)) & np.isfinite(bad.filled(np.nan))).any()
    usable = inside & ((one.quality.values & 1) == 0) & np.isfinite(one.flux.values)
    assert 0.9 * usable.sum() < shown.count() <= usable.sum()
    assert shown.count() + bad.count() == inside.sum()
    low, high = image.get_clim()
    assert 0 < high - low < 20 * np.nanmedian(np.abs(one.flux.values[usable]))
    assert "source" in texts(ax.figure)


def test_selection_shows_the_flux_before_subtraction(sim):
    axes = Figure().subplots(2)
    before = plot.plot_selection(sim.ds, slit=4, ax=axes[0]).get_array().filled(np.nan)
    after = plot.plot_selection(sim.result, slit=4, ax=axes[1]).get_array().filled(np.nan)
    both = np.isfinite(before) & np.isfinite(after)
    assert both.mean() > 0.8
    np.testing.assert_allclose(before[both], after[both], rtol=0, atol=1e-5)


def test_selection_reads_one_slit_only(sim, ax):
    one = sim.ds.isel(slit=4).load()
    rest = sim.ds.copy()
    for name in ("flux", "selected"):
        rest[name] = rest[name].copy(data=_explode(rest[name], keep=4))
    image = plot.plot_selection(rest, slit=4, ax=ax)
    assert image.get_array().count() > 0.8 * np.isfinite(one.flux.values).sum()


def _explode(array, keep):
    """The array in chunks of one slit, each of which fails if it is read, but one."""
    import dask.array as da

    data = np.asarray(array.data)

    def block(part, block_id=None):
        assert block_id[0] == keep, "a slit was read that is not shown"
        return part

    return da.from_array(data, chunks=(1, -1, -1)).map_blocks(
        block, dtype=data.dtype, meta=np.empty((0, 0, 0), data.dtype)
    )


def test_background_slit_has_no_source(sim, ax):
    assert sim.ds.is_background.values[0]
    plot.plot_selection(sim.ds, slit=0, ax=ax)
    labels = texts(ax.figure)
    assert "source" not in labels and "source's shutter" not in labels


def test_subtraction_panels_add_up_in_one_stretch(run):
    axes = Figure().subplots(3)
    image = plot.plot_subtraction(run.result, slit=1, axes=axes)
    before, background, after = (a.images[0].get_array().filled(np.nan) for a in axes)
    np.testing.assert_allclose(before - background, after, atol=1e-5)
    assert len({a.images[0].get_clim() for a in axes}) == 1
    assert image.axes is axes[2]
    low, high = image.get_clim()
    assert low < 0 < np.nanmedian(background) < high
    assert axes[0].figure.axes[3].get_ylabel() == "flux (MJy/sr)"
    assert axes[1].get_title(loc="left") == "master background"


def test_a_bright_source_does_not_hide_the_sky(sim, ax):
    slit = int(np.flatnonzero(~sim.ds.is_background.values)[0])
    result = sim.result.isel(slit=[slit]).load()
    lit = abs(result.yrel - result.source_shutter) < 0.3
    bright = result.assign(flux=result.flux.where(~lit, 100.0))
    sky = np.nanpercentile(result.background, 99)
    for image in (plot.plot_subtraction(bright), plot.plot_selection(bright, ax=ax)):
        assert sky < image.get_clim()[1] < 4 * sky


def test_what_cannot_be_drawn_is_said(sim, ax):
    with pytest.raises(ParameterError, match="no such slit"):
        plot.plot_selection(sim.ds, slit=99, ax=ax)
    with pytest.raises(DatasetError, match="no selected"):
        plot.plot_selection(sim.ds.drop_vars("selected"), ax=ax)
    with pytest.raises(DatasetError, match="no background"):
        plot.plot_subtraction(sim.ds)
    with pytest.raises(ParameterError, match="number of axes"):
        plot.plot_subtraction(sim.result, axes=[ax])
    with pytest.raises(DatasetError, match="no residual"):
        plot.plot_residuals({"master": sim.ds}, ax=ax)
    with pytest.raises(DatasetError, match="different slits"):
        plot.plot_residuals({"a": sim.result, "b": sim.result.isel(slit=[0])}, ax=ax)
    with pytest.raises(ParameterError, match="nothing to draw"):
        plot.plot_residuals({}, ax=ax)
    with pytest.raises(ParameterError, match="bin width"):
        plot.plot_residual_spectrum(sim.sets, bin_pixels=0, ax=ax)


# --- the master -----------------------------------------------------------------------------------


def marked(ax):
    """Wavelengths and fluxes of the points drawn as clipped."""
    (line,) = (li for li in ax.lines if li.get_label().startswith("beyond"))
    return line.get_data()


def test_cloud_shows_every_selected_pixel_once(run, ax):
    points = plot.plot_cloud(run.ds, run.master, ax=ax)
    kept, clipped = len(points.get_offsets()), len(marked(ax)[0])
    assert kept + clipped == int(run.master.n_selected.sum())
    # The fit clips at a running width, the figure at the mean one.
    left_out = int((run.master.n_selected - run.master.n_used).sum())
    assert abs(clipped - left_out) <= max(5, 0.3 * left_out)
    label = next(t for t in texts(ax.figure) if t.startswith("beyond"))
    assert f"{clipped:,} (the fit left out {left_out:,}" in label
    low, high = run.master.attrs["wavelength_range"]
    assert low - 0.1 < ax.get_xlim()[0] <= low and high <= ax.get_xlim()[1] < high + 0.1
    sky = mx.evaluate(run.master, np.linspace(low, high, 100)[1:-1])
    bottom, top = ax.get_ylim()
    assert bottom < sky.min() and sky.max() < top < 3 * sky.max()


def test_cloud_is_the_same_before_and_after_subtraction(sim):
    axes = Figure().subplots(2)
    before = plot.plot_cloud(sim.ds, sim.master, ax=axes[0]).get_offsets()
    after = plot.plot_cloud(sim.result, sim.master, ax=axes[1]).get_offsets()
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_cloud_marks_an_outlier_even_off_scale(sim, ax):
    ds = sim.ds.compute().copy(deep=True)
    where = tuple(np.argwhere(ds.selected.values)[1000])
    ds.flux.values[where] = 1e4
    plot.plot_cloud(ds, sim.master, ax=ax)
    x, y = marked(ax)
    hit = np.isclose(x, ds.wavelength.values[where])
    assert (y[hit] == ax.get_ylim()[1]).any()
    assert ax.get_ylim()[1] < 5
    assert any("off scale" in t for t in texts(ax.figure))


def test_cloud_of_many_points_is_a_histogram(sim, ax, monkeypatch):
    monkeypatch.setattr(spectra, "MAX_POINTS", 1000)
    cells = plot.plot_cloud(sim.ds, sim.master, ax=ax)
    total = int(cells.get_array().sum()) + len(marked(ax)[0])
    assert total == int(sim.master.n_selected.sum())
    assert ax.figure.axes[1].get_ylabel() == "pixels a cell"


def test_cloud_of_other_models(sim, ax):
    for method, name in (("link", "log-polynomial"), ("seed", "seed recipe")):
        master = mx.fit_master(sim.ds, model=mx.LogPolynomial(degree=6, method=method))
        ax.clear()
        plot.plot_cloud(sim.ds, master, ax=ax)
        labels = texts(ax.figure)
        assert f"master: {name}, degree 6" in labels and "knots" not in labels
        plot.plot_model_choice(master, ax=Figure().subplots())


def test_cloud_divides_by_the_response(sim, ax):
    ds = sim.ds.compute()
    two = np.float32(2) + 0 * ds.flux
    ds = ds.assign_coords(response=two.assign_attrs(units="1"))
    ds["flux"] = (2 * ds.flux).astype(np.float32).assign_attrs(ds.flux.attrs)
    points = plot.plot_cloud(ds, sim.master, ax=ax)
    x, y = np.asarray(points.get_offsets()).T
    ratio = y / mx.evaluate(sim.master, x)
    assert 0.95 < np.median(ratio) < 1.05
    assert ax.get_ylabel() == "flux / response (MJy/sr)"


def test_master_image_spans_the_fitted_range(run, ax):
    mesh = plot.plot_master_image(run.master, ax=ax)
    low, high = run.master.attrs["wavelength_range"]
    assert ax.get_xlim() == pytest.approx((low, high), abs=0.1)
    vmin, vmax = mesh.get_clim()
    assert 0 < vmin < vmax


def test_model_choice_marks_the_chosen(run, ax):
    mark = plot.plot_model_choice(run.master, ax=ax)
    chosen = run.master.score_chosen.values
    assert mark.get_xdata()[0] == run.master.score_dof.values[chosen][0]
    assert mark.get_ydata()[0] == run.master.score_heldout.values[chosen][0]
    bottom, top = ax.get_ylim()
    assert bottom < mark.get_ydata()[0] < top
    series = [line for line in ax.lines if line.get_marker() in (".", "^")]
    drawn = sum(len(line.get_xdata()) for line in series)
    assert drawn == run.master.sizes["candidate"]


def test_model_choice_without_heldout(ax):
    ds = mx.simulate_program(exposures=1, slits=1, background_slits=1, seed=1)
    master = mx.fit_master(mx.select_background(ds))
    plot.plot_model_choice(master, ax=ax)
    assert "restricted likelihood" in ax.get_ylabel()


# --- residuals ------------------------------------------------------------------------------------


def test_histograms_agree_with_the_table(run, ax):
    plot.plot_residuals(run.sets, ax=ax)
    table = mx.compare(run.sets["master"], run.sets["nods"], heldout=run.sets["heldout"])
    labels = texts(ax.figure)
    for name, shown in (("master", "master"), ("nods", "nodding"), ("heldout", "master, held out")):
        text = next(t for t in labels if t.startswith(f"{shown}: σ"))
        assert float(text.split("=")[1]) == pytest.approx(table.mad_sigma[name], abs=0.011)
    assert any(t.startswith(f"{table.n['master']:,} pixels") for t in labels)
    for patch in ax.patches:
        data = patch.get_data()
        total = (data.values * np.diff(data.edges)).sum()
        assert 0.97 < total <= 1.0
    bottom, top = ax.get_ylim()
    assert 0 < bottom < 0.1 and 0.4 < top < 2


def test_a_set_without_residuals_does_not_hide_the_others(ax):
    ds = mx.select_background(mx.simulate_program(exposures=1, slits=3, background_slits=2, seed=1))
    result = mx.residuals(mx.subtract(ds, mx.fit_master(ds)))
    nods = mx.residuals(mx.subtract_nods(ds))
    plot.plot_residuals({"master": result, "nods": nods}, ax=ax)
    assert len(ax.patches) == 1
    with pytest.raises(DatasetError, match="no pixel at the centre"):
        plot.plot_residuals({"nods": nods}, ax=ax)


def test_residual_spectrum_measures_an_offset(sim, ax):
    wrong = sim.result.compute()
    attrs = wrong.flux.attrs
    wrong["flux"] = (wrong.flux + np.float32(0.1) * wrong.background).assign_attrs(attrs)
    value = plot.plot_residual_spectrum({"master": wrong}, bin_pixels=16, ax=ax).get_ydata()
    right = plot.plot_residual_spectrum({"master": sim.result}, bin_pixels=16, ax=ax).get_ydata()
    known = np.isfinite(value)
    assert known.sum() > 20
    np.testing.assert_allclose((value - right)[known], 10, atol=1.5)
    bottom, top = ax.get_ylim()
    assert bottom == -top and top < 50


def test_colours_are_those_the_colour_blind_can_tell_apart(sim, ax):
    plot.plot_residuals(sim.sets, ax=ax)
    drawn = [to_hex(p.get_edgecolor()).upper() for p in ax.patches]
    assert drawn == ["#0072B2", "#E69F00", "#009E73"]


# --- large programmes -----------------------------------------------------------------------------


def test_large_programmes_are_thinned_and_say_so(sim, monkeypatch):
    n = sim.ds.sizes["slit"]
    monkeypatch.setattr(canvas, "MAX_PIXELS", 5 * sim.ds.sizes["y"] * sim.ds.sizes["x"])
    for name in ("plot_cloud", "plot_residuals", "plot_residual_spectrum", "plot_residual_map"):
        axes = Figure().subplots()
        FUNCTIONS[name](sim, axes)
        assert any(f"5 of {n} slits" in t for t in texts(axes.figure))


def test_thinning_is_even_and_does_not_follow_the_slitlets():
    ds = mx.simulate_program(exposures=12, slits=60, background_slits=15)
    part, note = canvas.subset(ds)
    again, _ = canvas.subset(ds)
    assert note == f"{part.sizes['slit']} of 720 slits"
    assert part.sizes["slit"] * ds.sizes["y"] * ds.sizes["x"] <= canvas.MAX_PIXELS
    assert (part.slitlet.values == again.slitlet.values).all()
    assert np.unique(part.slitlet).size > 50
    # As many of each exposure, but for the ends.
    counts = np.unique(part.exposure, return_counts=True)[1]
    assert counts.size == 12 and np.ptp(counts) <= 2


def test_figures_do_not_depend_on_the_scheduler(sim):
    axes = Figure().subplots(2)
    with dask.config.set(scheduler="synchronous"):
        one = plot.plot_cloud(sim.ds, sim.master, ax=axes[0]).get_offsets()
    with dask.config.set(scheduler="threads"):
        two = plot.plot_cloud(sim.ds, sim.master, ax=axes[1]).get_offsets()
    np.testing.assert_array_equal(one, two)
