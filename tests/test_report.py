"""The report: complete, alone, read from a store in pieces, and alive in a browser."""

from __future__ import annotations

import re
from types import SimpleNamespace

import dask
import numpy as np
import pandas as pd
import pytest
from browser import opened
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr import report
from mbkg_xr.chain import run_tree
from mbkg_xr.cli import main
from mbkg_xr.errors import DatasetError, ParameterError, StoreError
from mbkg_xr.report import decisions, figures, write

FIGURES = (
    "cloud master_2d model_choice msa profile ranking residual_map residual_spectrum residuals "
    "selection subtraction white_noise"
).split()


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    """A stored run, and its report."""
    folder = tmp_path_factory.mktemp("run")
    store = folder / "result.zarr"
    item = run_tree({"prism-clear": program}, store, report=folder / "report")["prism-clear"]
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    return SimpleNamespace(folder=folder, store=store, page=page, **vars(item))


@pytest.fixture
def few(monkeypatch):
    """Few figures, quickly drawn: the tests are of what is around them."""
    plans = {k: figures._PLANS[k] for k in ("master_2d", "profile", "msa")}
    monkeypatch.setattr(figures, "_PLANS", plans)
    monkeypatch.setattr(figures, "_DPI", 20)
    return set(plans)


def without_data(page):
    """What is written on a page: no scripts, no images."""
    return re.sub(r"<script.*?</script>|base64,[^\"]*", "", page, flags=re.DOTALL)


# --- what is on it --------------------------------------------------------------------------------


def test_all_figures_are_on_the_page_and_beside_it(run):
    files = {p.name for p in (run.folder / "report").iterdir()}
    assert files == {"index.html", *(f"{name}.png" for name in FIGURES)}
    text = re.sub(r"<script.*?</script>", "", run.page, flags=re.DOTALL)
    images = re.findall(r'<img [^>]*src="([^"]*)"', text)
    assert len(images) == len(FIGURES)
    assert all(i.startswith("data:image/png;base64,") for i in images)
    assert sorted(p.name for p in run.folder.iterdir()) == ["report", "result.zarr"]


def test_page_refers_to_nothing_outside(run):
    text = without_data(run.page)
    assert "http" not in text and "//" not in text
    heads = re.sub(r"(<script[^>]*>).*?</script>", r"\1", run.page, flags=re.DOTALL)
    assert re.findall(r'<(?:script|link|iframe|img)[^>]*(?:src|href)="(?!data:)', heads) == []


def test_page_says_what_went_in_and_what_came_out(run):
    text = without_data(run.page)
    for name in np.unique(run.result.exposure.values):
        assert name in text
    for value in (run.table.mad_sigma["master"], run.table["stack_nod"]["nods"]):
        assert f"{value:.4g}" in text
    for word in ("heldout", "bspline", "numpy", mx.__version__, "MJy/sr", "dof"):
        assert word in text
    assert f"{int(run.master.n_used.sum()):,} of them used by the fit" in text
    assert run.result.attrs["background_sha256"][:16] in text
    for number in run.master.pass_used.values:
        assert f"{number:,}" in text


def test_decisions_are_those_of_the_master(run):
    scores = mx.score_slits(run.result, run.master)
    table = decisions.decisions(scores, run.master)
    assert len(table) == run.result.sizes["slit"]
    np.testing.assert_array_equal(table["selected"], run.master.n_selected)
    np.testing.assert_array_equal(table["used"], run.master.n_used)
    sky = run.result.is_background.values
    assert (table["sky"][sky] == "all shutters").all()
    source = run.result.source_shutter.values[~sky]
    assert table["sky"][~sky].tolist() == [f"all but {s:+.0f}" for s in source]


def test_decisions_name_shutters_left_out_and_slits_without_part(run):
    master = run.master.copy(deep=True)
    master["shutter_used"][2, 3] = False
    master["shutter_excess"][2, 3] = 7.3
    master["n_selected"][4] = master["n_used"][4] = 0
    scores = mx.score_slits(run.result, master)
    stranger = scores.assign_coords(slitlet=("slit", scores.slitlet.values + 1000))
    fit = decisions.decisions(scores, master)["fit"]
    assert fit[2].startswith("in, without shutter ")
    assert f"{master.shutter.values[3]:+d} (7.3 σ over the others)" in fit[2]
    assert fit[4] == "no part: no pixel selected"
    assert (decisions.decisions(stranger, master)["used"] == 0).all()


# --- from a store ---------------------------------------------------------------------------------


def test_store_gives_the_report_of_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_DPI", 20)
    files = mx.write_report(run.store, tmp_path / "again")
    assert files[0] == (tmp_path / "again").resolve() / "index.html"
    page = files[0].read_text(encoding="utf-8")
    # But for the names of places, which bokeh draws at random.
    plain = [re.sub(r'id="[^"]*"', "", without_data(p)) for p in (page, run.page)]
    plain = [re.sub(r'data-root-id="[^"]*"', "", p) for p in plain]
    assert plain[0] == plain[1]


def test_reports_of_several_configurations_are_one_page(run, tmp_path, few):
    part = report.Section(run.result, run.master, table=run.table)
    files = report.write_pages({"prism-clear": part, "other": part}, tmp_path)
    page = files[0].read_text(encoding="utf-8")
    assert '<a href="#other">' in page and '<h2 id="other">' in page
    assert {f.name for f in files[1:]} == {
        f"{name}-{figure}.png" for name in ("prism-clear", "other") for figure in few
    }


def test_command_writes_beside_the_store(run, few, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["report", str(run.store)])
    assert result.exit_code == 0, result.output
    page = tmp_path / "result_report" / "index.html"
    assert str(page) in result.output.replace("\n", "") or "result_report" in result.output
    assert page.stat().st_size > 1e6
    missing = CliRunner().invoke(main, ["report", "nothing.zarr"])
    assert missing.exit_code == 2 and "not a Zarr store" in missing.output


def test_no_more_than_a_chunk_at_a_time(run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_DPI", 20)
    monkeypatch.setattr(write, "_KEEP", 0)
    monkeypatch.setattr("mbkg_xr.plot.canvas.MAX_PIXELS", 2 * 25 * 441)
    largest = 0

    class Watch(dask.callbacks.Callback):
        def _posttask(self, key, result, dsk, state, worker_id):
            nonlocal largest
            if isinstance(result, np.ndarray) and result.ndim >= 3:
                largest = max(largest, result.shape[0])

    lazy = run.result.chunk({"slit": 2})
    with Watch(), dask.config.set(scheduler="synchronous"):
        mx.write_report(lazy, tmp_path, master=run.master, table=run.table)
    assert 0 < largest <= 4  # two at once, or those of a figure's few


def test_what_does_not_go_together_is_refused(run, tmp_path):
    with pytest.raises(ParameterError, match="needs the master"):
        mx.write_report(run.result, tmp_path)
    with pytest.raises(ParameterError, match="brings its own"):
        mx.write_report(run.store, tmp_path, master=run.master)
    with pytest.raises(StoreError, match="not a Zarr store"):
        mx.write_report(tmp_path / "none.zarr", tmp_path)
    mx.save(run.master, tmp_path / "master.zarr")
    with pytest.raises(DatasetError, match="no result in this store"):
        mx.write_report(tmp_path / "master.zarr", tmp_path / "report")


# --- files ----------------------------------------------------------------------------------------


def test_report_replaces_its_own_files_only(run, tmp_path, few):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "index.html").write_text("old")
    mx.write_report(run.result, tmp_path, master=run.master, table=run.table)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "prism-clear" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 2 + len(few)


def test_a_failure_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("a product went missing")

    monkeypatch.setattr(figures, "plot_selection", fail)
    with pytest.raises(OSError, match="went missing") as caught:
        mx.write_report(run.result, tmp_path / "report", master=run.master, table=run.table)
    assert not isinstance(caught.value, StoreError)  # the directory is not to blame
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_directory_is_found_before_the_work(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(write, "compare", None)
    for folder in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(StoreError, match="cannot be written"):
            mx.write_report(run.result, folder, master=run.master)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_drawn_is_said(run, tmp_path, few):
    nowhere = run.result.assign_coords(quadrant=run.result.quadrant * 0)
    master = run.master.drop_vars(["profile", "profile_error"])
    mx.write_report(nowhere, tmp_path, master=master, table=run.table)
    text = without_data((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "Not drawn: no slit has a place on the MSA and sky pixels." in text
    assert "Not drawn: without sky slits no profile is fitted." in text
    assert not (tmp_path / "msa.png").exists() and (tmp_path / "master_2d.png").exists()


def test_names_are_escaped(run, tmp_path, few):
    part = report.Section(run.result, run.master, table=pd.DataFrame(run.table))
    page = report.write_pages({"a <name>": part}, tmp_path)[0].read_text(encoding="utf-8")
    assert "a &lt;name&gt;" in page and "a <name>" not in without_data(page)


def test_typical_slit(run):
    ds = run.result
    slit = report.typical_slit(ds)
    assert not ds.is_background.values[slit]
    count = ds.selected.sum(("y", "x")).values
    science = count[~ds.is_background.values]
    assert abs(count[slit] - np.median(science)) == np.abs(science - np.median(science)).min()
    empty = ds.isel(slit=ds.is_background.values)
    assert 0 <= report.typical_slit(empty) < empty.sizes["slit"]
    with pytest.raises(DatasetError, match="no pixels are marked"):
        report.typical_slit(ds.drop_vars("selected"))
    with pytest.raises(DatasetError, match="no pixel is selected"):
        report.typical_slit(ds.assign(selected=ds.selected & False))


# --- in a browser ---------------------------------------------------------------------------------

SHOWN = """() => {
  const d = Bokeh.documents[0], lines = d.get_model_by_name("lines").data;
  return {title: d.get_model_by_name("slit_spectrum").title.text, names: lines.name, ys: lines.ys};
}"""


def test_page_is_alive_in_a_browser(run):
    scores = mx.score_slits(run.result, run.master)
    with opened((run.folder / "report" / "index.html").as_uri()) as tab:
        tab.wait("() => window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
        tab.wait("() => document.images.length && [...document.images].every(i => i.complete)")
        assert tab.ask("() => [...document.images].every(i => i.naturalWidth > 100)")
        assert tab.ask(SHOWN)["title"] == "point at a slitlet"

        # Pointing at a slitlet shows the residuals of its exposures.
        tab.point_at("msa", "marks", 2)
        tab.wait('() => Bokeh.documents[0].get_model_by_name("lines").data.ys.length > 0')
        seen = tab.ask(SHOWN)
        slitlet = int(re.match(r"slitlet (\d+),", seen["title"]).group(1))
        mine = np.flatnonzero(scores.slitlet.values == slitlet)
        assert len(seen["names"]) == mine.size == 3
        for name, line in zip(seen["names"], seen["ys"], strict=True):
            (i,) = [k for k in mine if name.startswith(str(scores.exposure.values[k]))]
            drawn = np.array([np.nan if v is None else v for v in line], dtype=float)
            np.testing.assert_allclose(drawn, scores.z.values[i], rtol=1e-5)

        # So does selecting a row of the table.
        tab.ask("() => {Bokeh.documents[0].get_model_by_name('rows').selected.indices = [0]}")
        assert tab.ask(SHOWN)["title"].startswith(f"slitlet {scores.slitlet.values[0]},")

        # The wheel zooms the cloud.
        before = tab.ask("() => Bokeh.documents[0].get_model_by_name('cloud').x_range.end")
        tab.ask(
            "() => {const d = Bokeh.documents[0], p = d.get_model_by_name('cloud');"
            "Bokeh.index.find_one_by_id(p.id).el.scrollIntoView()}"
        )
        box = tab.ask(
            "() => {const d = Bokeh.documents[0], p = d.get_model_by_name('cloud');"
            "const b = Bokeh.index.find_one_by_id(p.id).el.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]}"
        )
        tab.page.mouse.move(*box)
        tab.page.mouse.wheel(0, -400)
        tab.wait(f"() => Bokeh.documents[0].get_model_by_name('cloud').x_range.end < {before}")

        # Another value colours the map anew.
        tab.ask("() => {Bokeh.documents[0].get_model_by_name('value').value = 'stack'}")
        assert tab.ask(
            "() => {const m = Bokeh.documents[0].get_model_by_name('marks').data;"
            "return m.shown === m.stack}"
        )
        assert tab.errors == []
        assert [u for u in tab.requests if not u.startswith(("file:", "data:", "blob:"))] == []
