"""Scores by slit, and the figures of all slits: what they say is what the pixels say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import mbkg_xr as mx
from mbkg_xr import plot
from mbkg_xr.errors import DatasetError, ParameterError
from mbkg_xr.plot.residual_map import cell_medians
from mbkg_xr.spans import span_grid


@pytest.fixture(scope="module")
def result(selected, master):
    return mx.residuals(mx.subtract(selected, master)).compute()


@pytest.fixture(scope="module")
def scores(result, master):
    return mx.score_slits(result, master)


@pytest.fixture
def ax():
    return Figure().subplots()


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text)]


# --- the scores -----------------------------------------------------------------------------------


def test_scores_are_those_of_the_pixels(result, scores):
    centre = mx.sky_centres(result).values
    u = span_grid(result).pixel_coordinate(result.wavelength.values)
    for i in (0, 5, 11):
        use = centre[i]
        z = result.residual.values[i][use].astype(float)
        flux, sky = (result[k].values[i][use].astype(float) for k in ("flux", "background"))
        assert scores.n[i] == use.sum() > 100
        assert scores["median"][i] == pytest.approx(np.median(z))
        assert scores.excess[i] == pytest.approx(100 * np.median(flux) / np.median(sky), rel=1e-5)
        mad = 1.4826 * np.median(np.abs(z - np.median(z)))
        assert scores.mad_sigma[i] == pytest.approx(mad)
        near, at = np.abs(z) <= 5, (u[i][use] // 2).astype(int)
        sums = [z[near & (at == b)] for b in np.unique(at[near])]
        stack = np.sqrt(np.mean([s.sum() ** 2 / s.size for s in sums]))
        assert scores["stack"][i] == pytest.approx(stack)


def test_scores_of_one_slit_are_those_of_compare(result, scores):
    one = result.isel(slit=[3])
    table = mx.compare(one).loc["master"]
    assert scores.n[3] == table.n
    for name, close in (("median", 0.01), ("mad_sigma", 0.01), ("noise_gain", 0.002)):
        assert float(scores[name][3]) == pytest.approx(table[name], abs=close)
    assert float(scores["stack"][3]) == pytest.approx(table["stack"], rel=1e-6)


def test_wide_bins_hold_all_that_is_within_five_sigma(result, scores):
    # A residual of 1 everywhere makes sum(z) / sqrt(n) = sqrt(n).
    ones = result.assign(residual=result.residual * 0 + 1)
    z = mx.score_slits(ones, bins=7).z
    np.testing.assert_allclose((z**2).sum("bin"), scores.n, rtol=1e-9)


def test_scales_are_those_that_were_simulated(program, scores):
    true = program.true_scale
    true = true.mean([d for d in true.dims if d != "slit"]).values
    off = (scores.scale.values / np.mean(scores.scale.values)) / (true / true.mean()) - 1
    assert np.std(off) < 0.6 * np.std(true)
    assert (scores.scale_error > 0).all()


def test_chunks_do_not_matter(result, scores, master):
    again = mx.score_slits(result.chunk({"slit": 5}), master)
    assert again.equals(scores)


def test_slits_without_sky_pixels_have_no_score(result):
    unknown = result.assign_coords(
        is_background=result.is_background & False,
        source_shutter=result.source_shutter * np.nan,
    )
    found = mx.score_slits(unknown)
    assert (found.n == 0).all() and found["stack"].isnull().all()
    with pytest.raises(DatasetError, match="no slit has this value"):
        plot.plot_slit_ranking(found, ax=Figure().subplots())


def test_what_has_no_residuals_is_refused(selected):
    with pytest.raises(DatasetError, match="no residuals to score"):
        mx.score_slits(selected)
    with pytest.raises(ParameterError, match="bins"):
        mx.score_slits(mx.residuals(mx.subtract_nods(selected)), bins=0)


# --- the MSA --------------------------------------------------------------------------------------


def test_msa_shows_each_slitlet_once_with_its_median(scores, ax):
    marks = plot.plot_msa(scores, value="stack", ax=ax)
    collections = [c for c in ax.collections if len(c.get_offsets())]
    drawn = np.concatenate([np.asarray(c.get_array()) for c in collections])
    frame = scores["stack"].to_dataframe().groupby("slitlet")["stack"].median()
    np.testing.assert_allclose(np.sort(drawn), np.sort(frame.to_numpy()))
    assert marks is collections[0]
    assert len(marks.get_offsets()) == np.unique(scores.slitlet[scores.is_background]).size
    assert {"Q1", "Q2", "Q3", "Q4"} <= set(texts(ax.figure))
    assert ax.figure.axes[1].get_ylabel() == "stacked residual (1: noise alone)"


def test_quadrants_lie_as_the_detectors_see_them(scores, ax):
    # Q3 Q1 over Q4 Q2; rows grow to the left, columns downwards.
    place = {}
    for q in (1, 2, 3, 4):
        one = scores.isel(slit=[0]).assign_coords(
            quadrant=("slit", [q]), shutter_row=("slit", [100]), shutter_column=("slit", [50])
        )
        ax.clear()
        place[q] = np.asarray(plot.plot_msa(one, ax=ax).get_offsets())[0]
    assert place[3][0] == place[4][0] < place[1][0] == place[2][0]
    assert place[4][1] == place[2][1] < place[3][1] == place[1][1]
    one = one.assign_coords(shutter_row=("slit", [101]), shutter_column=("slit", [52]))
    ax.clear()
    moved = np.asarray(plot.plot_msa(one, ax=ax).get_offsets())[0] - place[4]
    assert moved.tolist() == [-1, -2]


def test_nothing_wrong_is_the_middle_of_the_colours(scores, ax):
    for value, middle in (("excess", 0.0), ("scale", 1.0)):
        ax.clear()
        norm = plot.plot_msa(scores, value=value, ax=ax).norm
        assert norm(middle) == pytest.approx(0.5)
        assert norm.vmax - middle == pytest.approx(middle - norm.vmin)


def test_slits_without_a_place_are_counted_or_refused(scores, ax):
    lost = scores.quadrant.values.copy()
    lost[:2] = -1
    plot.plot_msa(scores.assign_coords(quadrant=("slit", lost)), ax=ax)
    assert any("without a place or value: 2" in t for t in texts(ax.figure))
    with pytest.raises(DatasetError, match="no slit has a place"):
        plot.plot_msa(scores.assign_coords(quadrant=("slit", lost * 0)), ax=ax)
    with pytest.raises(ParameterError, match="no such value by slit"):
        plot.plot_msa(scores, value="z", ax=ax)


# --- the ranking ----------------------------------------------------------------------------------


def test_ranking_has_the_worst_first(scores, ax):
    marks = plot.plot_slit_ranking(scores, count=4, ax=ax)
    x = np.asarray(marks.get_offsets())[:, 0]
    np.testing.assert_array_equal(x, np.sort(scores["stack"].values)[::-1][:4])
    worst = int(np.argmax(scores["stack"].values))
    top = ax.get_yticklabels()[0].get_text()
    assert top.startswith(f"slitlet {scores.slitlet.values[worst]}, ")
    assert top.endswith(str(scores.exposure.values[worst])[-5:])


def test_ranking_by_distance_from_neutral(scores, ax):
    low = scores.copy(deep=True)
    low.excess.values[7] = -99.0
    marks = plot.plot_slit_ranking(low, value="excess", count=3, ax=ax)
    assert marks.get_offsets()[0][0] == -99.0
    assert ax.get_xlabel() == "median residual (% of the sky)"
    with pytest.raises(ParameterError, match="nothing to show"):
        plot.plot_slit_ranking(scores, count=0, ax=ax)


# --- map and profile ------------------------------------------------------------------------------


def test_cell_medians_are_those_of_brute_force():
    rng = np.random.default_rng(1)
    x, y, z = rng.random(2000), rng.random(2000), rng.normal(size=2000)
    edges = np.linspace(0, 1, 8)
    found = cell_medians(z, x, y, edges, edges)
    for i in range(7):
        for j in range(7):
            cell = (x >= edges[i]) & (x < edges[i + 1]) & (y >= edges[j]) & (y < edges[j + 1])
            assert found[i, j] == np.median(z[cell])


def test_map_shows_a_row_that_is_left(result, ax):
    row = np.abs(result.yrel.values - 0.6) < 0.1
    wrong = result.assign(residual=result.residual + np.where(row, np.float32(5), np.float32(0)))
    cells = np.ma.filled(plot.plot_residual_map(wrong, ax=ax).get_array(), np.nan)
    edges = plot.plot_residual_map(wrong, ax=ax).get_coordinates()[:, 0, 1]
    at = np.flatnonzero(np.isclose(0.5 * (edges[1:] + edges[:-1]), 0.6))
    medians = np.nanmedian(cells, axis=1)
    assert at.size == 1 and medians[at[0]] > 4
    assert np.abs(np.delete(medians, at)).max() < 1


def test_map_leaves_out_sources_and_checks_its_widths(result, ax):
    science = result.isel(slit=~result.is_background.values)
    hidden = science.assign(
        residual=science.residual.where(np.abs(science.yrel - science.source_shutter) > 0.5, 1e3)
    )
    cells = plot.plot_residual_map(hidden, ax=ax).get_array()
    assert np.abs(cells).max() < 50
    with pytest.raises(ParameterError, match="bin width"):
        plot.plot_residual_map(result, bin_yrel=0, ax=ax)
    nowhere = science.assign_coords(source_shutter=science.source_shutter * np.nan)
    with pytest.raises(DatasetError, match="no pixel of a sky shutter"):
        plot.plot_residual_map(nowhere, ax=ax)


def test_profile_is_the_masters(master, ax):
    line = plot.plot_profile(master, ax=ax)
    drawn = np.array([li.get_ydata() for li in ax.lines if len(li.get_xdata()) > 2])
    values = master.profile.values[0]
    known = [values[:, b].tolist() for b in range(values.shape[1])]
    assert all(row.tolist() in known for row in drawn)
    at_centre = np.abs(line.get_xdata()) < 0.02
    np.testing.assert_allclose(line.get_ydata()[at_centre], 1, atol=0.05)
    with pytest.raises(ParameterError, match="no profile of such slitlets"):
        plot.plot_profile(master, n_shutters=5, ax=ax)
    with pytest.raises(DatasetError, match="no bar-shadow profile"):
        plot.plot_profile(master.drop_vars("profile"), ax=ax)


def test_model_choice_rings_what_is_within_one_standard_error(master, ax):
    plot.plot_model_choice(master, ax=ax)
    (ring,) = (li for li in ax.lines if li.get_label() == "within 1 s.e.")
    score, error = master.score_heldout.values, master.score_heldout_se.values
    near = score - score.min() <= error
    near[np.argmin(score)] = True
    np.testing.assert_array_equal(np.sort(ring.get_ydata()), np.sort(score[near]))


def test_white_noise_shows_rms_and_floor(result, selected, ax):
    sets = {"master": result, "nods": mx.residuals(mx.subtract_nods(selected))}
    found = mx.white_noise(sets, sizes=[1, 4, 16, 64])
    line = plot.plot_white_noise(found, ax=ax)
    np.testing.assert_array_equal(line.get_ydata(), found.rms.sel(subtraction="master"))
    np.testing.assert_array_equal(line.get_xdata(), found.pixels.sel(subtraction="master"))
    labels = texts(ax.figure)
    for name, shown in (("master", "master"), ("nods", "nodding")):
        floor = float(found.floor.sel(subtraction=name))
        assert any(t.startswith(f"{shown}: floor {floor:.2f}") for t in labels)
    with pytest.raises(DatasetError, match="no white-noise test"):
        plot.plot_white_noise(found.drop_vars("floor"), ax=ax)
