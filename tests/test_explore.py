"""The explorer: a server of its own, a page that follows what is picked, slits read one by one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import opened
from click.testing import CliRunner

import mbkg_xr as mx
from mbkg_xr.chain import run_tree
from mbkg_xr.cli import main
from mbkg_xr.errors import DatasetError, ParameterError, StoreError
from mbkg_xr.explore.slit import images_of, rastered, spectrum_of
from mbkg_xr.plot.slits import OneSlit


@pytest.fixture(scope="module")
def store(program, tmp_path_factory):
    path = tmp_path_factory.mktemp("explore") / "result.zarr"
    run_tree({"prism-clear": program}, path)
    return path


@pytest.fixture(scope="module")
def result(store):
    return mx.open_program(store)["prism-clear"].to_dataset()


@pytest.fixture(scope="module")
def address(store):
    """The page of a server in a process of its own."""
    command = [sys.executable, "-c", "from mbkg_xr.cli import main; main()", "explore", str(store)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Where the tests run in a shell's background, interrupts are ignored: not by a server.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        yield re.search(r"http://localhost:\d+/", line).group()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


def science(result):
    return int(np.flatnonzero(~result.is_background.values)[1])


# --- what is shown --------------------------------------------------------------------------------


def test_images_are_the_slits_and_hide_what_is_bad(result):
    i = science(result)
    one = OneSlit(result, i, ["residual"])
    images = images_of(one)
    slit = result.isel(slit=i).load()
    inside = np.isfinite(slit.wavelength.values)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    good = np.isfinite(images["after"])
    assert 0.8 < good.sum() / inside.sum() <= 1
    np.testing.assert_array_equal(images["after"][good], slit.flux.values[box][good])
    np.testing.assert_array_equal(images["residual"][good], slit.residual.values[box][good])
    np.testing.assert_allclose(
        (images["before"] - images["background"])[good], images["after"][good], atol=1e-5
    )
    flagged = (slit.quality.values[box] & 1) != 0
    assert np.isnan(images["before"][flagged]).all()


def test_spectra_are_of_the_sources_shutter_and_of_the_others(result):
    one = OneSlit(result, science(result), ["residual"])
    source, sky = (spectrum_of(one, source=s) for s in (True, False))
    for found in (source, sky):
        assert (np.diff(found.wavelength) >= 0).all() and found.wavelength.size > 100
    # What is left is the source where it is, and next to nothing where it is not.
    level = np.median(np.abs(source.background))
    assert abs(np.median(sky.after)) < 0.05 * level
    assert np.median(source.after) > 3 * abs(np.median(sky.after))
    empty = OneSlit(result, int(np.flatnonzero(result.is_background.values)[0]), ["residual"])
    assert spectrum_of(empty, source=True) is None


def test_raster_counts_every_point_once():
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"x": rng.random(5000), "y": rng.random(5000)})
    image = rastered(table, (0, 1), (0, 1))
    assert np.nansum(10**image) == pytest.approx(5000, rel=1e-4)
    half = rastered(table, (0, 0.5), (0, 1))
    assert np.nansum(10**half) == pytest.approx((table["x"] <= 0.5).sum(), abs=2)


def test_only_the_slits_looked_at_are_read(store, result):
    from mbkg_xr.explore.view import View

    seen: list[int] = []

    def count(block, block_info=None):
        seen.append(block_info[0]["chunk-location"][0])
        return block

    lazy = result.chunk({"slit": 1})
    counted = lazy.assign(
        flux=lazy.flux.copy(data=lazy.flux.data.map_blocks(count, dtype=np.float32))
    )
    fitted = mx.open_program(store)["prism-clear/master"].to_dataset()
    view = View({"prism-clear": (counted, fitted)})
    exposure = result.exposure.values
    first = set(np.flatnonzero(exposure == sorted(set(exposure))[0]).tolist())
    assert set(seen) == first  # the slit, and the sky pixels of its exposure
    seen.clear()
    view._step(1)
    assert len(set(seen)) == 1  # of the same exposure: only the next slit


# --- serving --------------------------------------------------------------------------------------


def test_what_cannot_be_served_is_said(store, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="not a Zarr store"):
        mx.explore(tmp_path / "none.zarr", run=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ParameterError, match="cannot be served"):
            mx.explore(store, port=taken.getsockname()[1], run=False)
    monkeypatch.setitem(sys.modules, "datashader", None)
    outcome = CliRunner().invoke(main, ["explore", str(store)])
    assert outcome.exit_code == 2
    assert "pip install 'mbkg_xr[explore]'" in outcome.output


def test_a_store_without_a_result_is_refused(tmp_path, program):
    mx.save(program.isel(slit=[0]).compute(), tmp_path / "program.zarr")
    with pytest.raises(DatasetError, match="no result in this store"):
        mx.explore(tmp_path / "program.zarr", run=False)


# --- in a browser ---------------------------------------------------------------------------------

IMAGE = """() => {
  const d = Bokeh.documents[0], image = d.get_model_by_name("images").data.after[0];
  let sum = 0, n = 0;
  for (const v of image) { if (!isNaN(v)) { sum += v; n += 1; } }
  return {title: d.get_model_by_name("before").title.text, sum: sum, n: n};
}"""


def test_page_follows_what_is_picked(address, result):
    with opened(address) as tab:
        tab.wait("() => window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
        first = tab.ask(IMAGE)
        assert first["n"] > 1000
        picture = tab.page.screenshot()

        # Another slit: its own pixels, and another picture.
        slits = tab.ask("() => Bokeh.documents[0].get_model_by_name('slit').options")
        chosen, label = next(o for o in slits if result.is_background.values[int(o[0])])
        tab.page.get_by_label("slit", exact=True).select_option(label=label)
        title = "Bokeh.documents[0].get_model_by_name('before').title.text"
        tab.wait(f"() => {title} !== {first['title']!r}")
        second = tab.ask(IMAGE)
        one = OneSlit(result, int(chosen), ["residual"])
        after = images_of(one)["after"]
        assert second["n"] == np.isfinite(after).sum()
        assert second["sum"] == pytest.approx(np.nansum(after, dtype=float), rel=1e-3, abs=1e-2)
        assert f"slitlet {result.slitlet.values[int(chosen)]}" in second["title"]
        tab.wait("() => Bokeh.documents[0].is_idle")
        assert tab.page.screenshot() != picture

        # Another exposure keeps the slitlet.
        exposures = tab.ask("() => Bokeh.documents[0].get_model_by_name('exposure').options")
        tab.page.get_by_label("exposure", exact=True).select_option(label=exposures[1])
        tab.wait(f"() => {title}.startsWith('before subtraction: {exposures[1]}')")
        assert f"slitlet {result.slitlet.values[int(chosen)]}" in tab.ask(IMAGE)["title"]

        # A narrower wavelength range narrows all figures.
        tab.ask(
            "() => {const r = Bokeh.documents[0].get_model_by_name('range');"
            "r.value = [2, 3]; r.value_throttled = [2, 3];}"
        )
        tab.wait("() => Bokeh.documents[0].get_model_by_name('cloud').x_range.end === 3")
        shown = tab.ask(
            "() => {const r = Bokeh.documents[0].get_model_by_name('after').x_range;"
            "return [r.start, r.end]}"
        )
        assert shown[1] - shown[0] < 0.5 * after.shape[1]
        assert tab.ask("() => Bokeh.documents[0].get_model_by_name('message').text") == ""
        assert tab.errors == []
        hosts = {re.match(r"\w+:(?://([^:/]*))?", u).group(1) for u in tab.requests}
        assert hosts <= {"localhost", "127.0.0.1", None}


def test_served_to_this_machine_only(address):
    port = int(re.search(r":(\d+)/", address).group(1))
    # Linux says which addresses are listened on: 0100007F is 127.0.0.1.
    tables = [p for p in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if p.exists()]
    rows = [line.split() for p in tables for line in p.read_text().splitlines()[1:]]
    bound = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    if not tables:
        pytest.skip("only Linux tells what is listened on")
    assert bound == [f"0100007F:{port:04X}"]
