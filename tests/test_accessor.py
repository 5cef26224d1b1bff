"""The accessor only delegates; descriptions say what a dataset is."""

import inspect

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

import mbkg_xr as mx


def test_methods_are_the_functions(program):
    methods = [n for n in vars(mx.MbkgAccessor) if not n.startswith("_")]
    assert len(methods) > 15
    for name in methods:
        function, method = getattr(mx, name), getattr(program.mbkg, name)
        if name == "describe":
            continue
        assert method.__doc__ == function.__doc__
        own = list(inspect.signature(function).parameters.values())[1:]
        assert list(inspect.signature(method).parameters.values()) == own


def test_delegates(program, compute_nothing):
    res = program.mbkg.subtract_nods().mbkg.residuals()
    assert set(res.variables) == set(mx.residuals(mx.subtract_nods(program)).variables)
    assert res.residual.chunks is not None and res.attrs["background_method"] == "nods"
    assert repr(res.mbkg.query(nod=1)) == repr(mx.query(res, nod=1))


def test_a_master_tells_what_it_is(master):
    text = repr(master.mbkg)
    chosen = master.candidate.values[master.score_chosen.values][0]
    assert f"* {chosen}" in text and f"{master.attrs['dof']:.1f}" in text
    assert f"{master.attrs['n_pixels']} sky pixels" in text
    rows = mx.describe(master).rows
    assert len(rows) == 5 and rows[0][0].startswith("* ")
    html = master.mbkg._repr_html_()
    assert html.count("<tr>") == len(rows) + 1 + len(mx.describe(master).lines)
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(master.mbkg)
    assert str(chosen) in console.export_text()


def test_masters_with_parts_tell_of_each():
    ds = mx.simulate_program(exposures=2, slits=3, background_slits=3, seed=3).load()
    ds = ds.assign_coords(visit=("slit", np.where(ds.nod.values == 1, "one", "two")))
    master = mx.fit_master(
        mx.select_background(ds), by="visit", model=mx.LogPolynomial(), scales=None, profile=False
    )
    found = mx.describe(master)
    assert [row[0] for row in found.rows] == ["one", "two"] and "by visit" in found.title


def test_slits_tell_what_was_done(program):
    assert mx.describe(program).lines["done"] == "as calibrated"
    done = mx.describe(mx.residuals(mx.subtract_nods(program))).lines["done"]
    assert done == "background subtracted: nods; residuals"
    assert "24: 3 exposures, 8 slitlets" in repr(program.mbkg)
    with pytest.raises(mx.MbkgError, match="not a slit dataset"):
        mx.describe(xr.Dataset())


def test_html_is_escaped(program):
    odd = program.assign_attrs(configuration="<b>")
    assert "&lt;b&gt;" in odd.mbkg._repr_html_()
