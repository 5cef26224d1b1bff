"""yrel and wavelength from the files' own WCS, against stdatamodels and gwcs."""

from __future__ import annotations

import io
import warnings

import asdf
import numpy as np
import pytest
from astropy.io import fits

import mbkg_xr as mx
from mbkg_xr.errors import InputFileError
from mbkg_xr.io import wcs
from mbkg_xr.io.asdf_text import AsdfText, Unsplit
from mbkg_xr.io.fits import read_bytes
from mbkg_xr.io.headers import hdu_table
from mbkg_xr.io.jwst import scan_file
from mbkg_xr.io.wcs import slit_metadata, wcs_wavelength, wcs_yrel

datamodels = pytest.importorskip("stdatamodels.jwst.datamodels")


@pytest.fixture(scope="module")
def multi_file(real_files, tmp_path_factory):
    """The real slitlets in one multi-slit product, the first twice, with one WCS object."""
    path = tmp_path_factory.mktemp("multi") / "jw01345062001_03101_00001_nrs2_cal.fits"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with datamodels.MultiSlitModel() as model:
            for number, file in enumerate([*real_files, real_files[0]]):
                with datamodels.SlitModel(file) as one:
                    if number == 0:
                        model.update(one)
                    model.slits.append(one)
                    item = model.slits[-1]
                    for name in ("slit_ymin", "slit_ymax", "shutter_state", "source_id"):
                        setattr(item, name, getattr(one, name))
                    item.slitlet_id, item.name = 138 + number, str(138 + number)
                    item.meta.wcs = model.slits[0].meta.wcs if number == 3 else one.meta.wcs
            model.meta.instrument.name = "NIRSPEC"
            model.save(path)
    return path


def evaluated(path):
    """slit_y from the middle of the slitlet in pitches, and wavelength in um, by stdatamodels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with datamodels.open(path) as model:
            for slit in getattr(model, "slits", [model]):
                y, x = np.mgrid[: slit.data.shape[0], : slit.data.shape[1]].astype(float)
                _, slit_y, metres = slit.meta.wcs.get_transform("detector", "slit_frame")(x, y)
                yrel = (slit_y - (slit.slit_ymin + slit.slit_ymax) / 2) / 1.15
                yield yrel + 0.5 * (len(slit.shutter_state) % 2 == 0), 1e6 * metres


def assert_agrees(path):
    sources = scan_file(path)
    expected = list(evaluated(path))
    assert len(expected) == len(sources)
    pairs = zip(wcs_yrel(sources), wcs_wavelength(sources), expected, strict=True)
    for yrel, wavelength, (true_yrel, true_wavelength) in pairs:
        assert np.isfinite(true_yrel).any()
        np.testing.assert_allclose(yrel, true_yrel, rtol=0, atol=1e-5)
        np.testing.assert_allclose(wavelength, true_wavelength, rtol=0, atol=1e-5)
    return sources


@pytest.fixture
def excerpts_only(monkeypatch):
    """The whole tree of a file is not built."""
    opened = wcs._opened

    def only(raw, *, excerpt):
        assert excerpt
        return opened(raw, excerpt=excerpt)

    monkeypatch.setattr(wcs, "_opened", only)


def test_real_slitlets(real_files, excerpts_only):
    for path in real_files:
        assert_agrees(path)


def test_real_slitlets_in_one_file_with_shared_nodes(multi_file, excerpts_only):
    text = AsdfText(asdf_bytes(multi_file))
    assert len(text._anchors) > 3, "nothing is shared, and nothing tested"
    sources = assert_agrees(multi_file)
    assert len(sources) == 4
    # Any of them alone, though it needs what another slit defines.
    whole = list(wcs_yrel(sources))
    for i, source in enumerate(sources):
        np.testing.assert_array_equal(next(wcs_yrel([source])), whole[i])
    np.testing.assert_array_equal(whole[0], whole[3])


def test_simulated_slits_of_one_two_and_three_shutters(cal_files, excerpts_only):
    counts = set()
    for path in cal_files[:2]:
        counts |= {s.coords["n_shutters"] for s in assert_agrees(path)}
    assert counts == {1, 2, 3}


def test_yrel_of_the_dataset_is_the_simulators(shutters, cal_files):
    ds = mx.open_program(cal_files)["prism-clear"].to_dataset()
    assert ds.slitlet.values.tolist() == shutters.slitlet.values.tolist()
    np.testing.assert_allclose(ds.yrel, shutters.yrel, rtol=0, atol=1e-5)


def asdf_bytes(path):
    hdu = next(h for h in hdu_table(path) if h.name == "ASDF")
    return read_bytes(path, hdu.offset, hdu.size)


def test_text_that_cannot_be_cut_is_read_whole(multi_file, cal_file, monkeypatch):
    def refuse(*args):
        raise Unsplit("another writer's")

    for path in (multi_file, cal_file):
        sources = scan_file(path)
        quick = list(wcs_yrel(sources)), slit_metadata(path, hdu_table(path)[-1])
        with monkeypatch.context() as patch:
            patch.setattr(AsdfText, "__init__", refuse)
            slow = list(wcs_yrel(sources)), slit_metadata(path, hdu_table(path)[-1])
        assert quick[1] == slow[1]
        for a, b in zip(quick[0], slow[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_metadata_is_the_trees(real_files, cal_file, multi_file):
    for path in (real_files[0], cal_file, multi_file):
        found = slit_metadata(path, hdu_table(path)[-1])
        tree = asdf.util.load_yaml(io.BytesIO(asdf_bytes(path)), tagged=True)
        ours, theirs = (t.get("slits", [t]) for t in (found, tree))
        assert ("slits" in found) == ("slits" in tree)
        for one, other in zip(ours, theirs, strict=True):
            frames = one.pop("wcs_frames")
            assert frames[0] == "detector" and "slit_frame" in frames and frames[-1] == "world"
            plain = {k: v for k, v in other.items() if isinstance(v, str | int | float)}
            assert one == plain
            assert {"slit_ymin", "slit_ymax", "shutter_state"} <= one.keys()


# ------------------------------------------------------------------------------------------------
# Cutting text


class Mark:
    """Any tag becomes its content."""


def plain(raw):
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def construct(loader, suffix, node):
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)

    Loader.add_multi_constructor("", construct)
    Loader.add_multi_constructor("!", construct)
    return yaml.load(raw, Loader=Loader)


HEAD = "#ASDF 1.0.0\n%YAML 1.1\n%TAG ! tag:stsci.edu:asdf/\n--- !core/asdf-1.1.0\n"


def text_of(body, blocks=b""):
    return AsdfText((HEAD + body + "...\n").encode() + blocks)


def block(data, flags=0):
    size = len(data).to_bytes(8, "big")
    head = flags.to_bytes(4, "big") + bytes(4) + size + size + size + bytes(16)
    return b"\xd3BLK" + len(head).to_bytes(2, "big") + head + data


SHARED = """\
title: 'R&D &not *an anchor: [x'
slits:
- meta:
    wcs: !<tag:stsci.edu:gwcs/wcs-1.4.0>
      name: ''
      steps:
      - !<tag:stsci.edu:gwcs/step-1.3.0>
        frame: &f1 !<tag:stsci.edu:gwcs/frame2d-1.2.0>
          name: detector
          unit: [&u !unit/unit-1.0.0 pixel, *u]
        transform: !transform/compose-1.4.0
          forward:
          - &t1 !transform/shift-1.4.0
            offset: 1.5
            domain: &d
            - &id001 [-1, [2, ']']]
            - *id001
          - !transform/scale-1.4.0
            factor: !core/ndarray-1.1.0 {source: 1, shape: [2]}
          inverse: &inv !transform/compose-1.4.0
            forward:
            - &deep !transform/scale-1.4.0
              factor: 3.0
            - *t1
          name: after
      - !<tag:stsci.edu:gwcs/step-1.3.0>
        frame: slit_frame
        transform: null
  slit_ymin: -1.5
  source_name: a name that the writer folds because it is longer than a line should be, so that
    it goes on
- meta:
    wcs: !<tag:stsci.edu:gwcs/wcs-1.4.0>
      steps:
      - !<tag:stsci.edu:gwcs/step-1.3.0>
        frame: *f1
        transform: &t2 !transform/compose-1.4.0
          forward:
          - *deep
          - *t1
          values: *d
          inverse: *inv
      - !<tag:stsci.edu:gwcs/step-1.3.0>
        frame: slit_frame
        transform: null
  slit_ymin: .5
- meta:
    wcs: !<tag:stsci.edu:gwcs/wcs-1.4.0>
      steps:
      - !<tag:stsci.edu:gwcs/step-1.3.0>
        frame: *f1
        transform: *t2
"""


def test_excerpts_hold_what_they_need_and_no_more():
    text = text_of(SHARED, block(b"zero") + block(b"one") + block(b"two"))
    tree = plain(HEAD + SHARED)
    steps = [text.wcs_steps(slit) for slit in text.slits]
    assert [[frame for frame, _ in s] for s in steps] == [
        ["detector", "slit_frame"],
        ["detector", "slit_frame"],
        ["detector"],
    ]
    for chosen in ([0, 1, 2], [2], [1], [1, 0]):
        excerpt = text.excerpt([steps[i][0][1] for i in chosen])
        body, blocks = excerpt.split(b"\n...\n")
        found = plain(body)["wanted"]
        for i, one in zip(chosen, found, strict=True):
            expected = dict(tree["slits"][i]["meta"]["wcs"]["steps"][0]["transform"])
            expected.pop("inverse")
            if i == 0:
                assert one["forward"][1]["factor"]["source"] == 0  # numbered anew
                one["forward"][1]["factor"]["source"] = 1
            assert one == expected
        assert blocks == (block(b"one") if 0 in chosen else b"")
        assert b"detector" not in excerpt


def test_scalars_of_each_slit():
    assert text_of(SHARED).scalars() == [
        {
            "slit_ymin": -1.5,
            "source_name": "a name that the writer folds because it is longer than a line "
            "should be, so that it goes on",
        },
        {"slit_ymin": 0.5},
        {},
    ]


@pytest.mark.parametrize(
    "body",
    [
        "slits: [{meta: {wcs: {steps: []}}}]\n",
        "slits:\n- meta: {wcs: {steps: []}}\n",
        "slits:\n- meta:\n    wcs:\n      steps: []\n",
        "slits:\n- meta:\n    wcs: *nowhere\n",
        "a: &x 1\nb: &x 2\nslits:\n- meta:\n    wcs: *x\n",
        "slits:\n- meta:\n    wcs:\n      name: no steps\n",
    ],
)
def test_what_is_laid_out_otherwise_is_not_cut(body):
    text = text_of(body)
    with pytest.raises(Unsplit):
        text.wcs_steps(text.slits[0])


@pytest.mark.parametrize("raw", [b"", b"no yaml", b"--- !x\na: 1\n"])
def test_no_document(raw):
    with pytest.raises(Unsplit):
        AsdfText(raw)


def test_blocks_that_are_missing_or_streamed():
    node = "slits:\n- meta:\n    wcs:\n      steps:\n      - frame: detector\n        transform: "
    for source, blocks in (("3", block(b"a")), ("0", block(b"a", flags=1)), ("-1", block(b"a"))):
        text = text_of(node + f"!core/ndarray-1.1.0 {{source: {source}}}\n", blocks)
        (_, transform), *_ = text.wcs_steps(text.slits[0])
        with pytest.raises(Unsplit):
            text.excerpt([transform])


# ------------------------------------------------------------------------------------------------
# What is wrong with a WCS


def rewritten(source, target, old, new):
    """A copy with bytes of its ASDF extension replaced, of the same length."""
    assert len(old) == len(new)
    data = source.read_bytes()
    start = next(h.offset for h in hdu_table(source) if h.name == "ASDF")
    assert old in data[start:]
    target.write_bytes(data[:start] + data[start:].replace(old, new))
    return target


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"\n  wcs: ", b"\n  wcx: ", "no meta.wcs"),
        (b"name: slit_frame", b"name: slit_frxme", "without a usable WCS"),
        (b"\nslit_ymin: -2.2", b"\nslit_ymax: -2.2", "without a usable WCS"),
        (b"!transform/tabular-1.2.0", b"!transform/tabular-1.2.x", "without a usable WCS"),
        (b"name: slit_frame\n", b"name: [lit_frame\n", "WCS"),
    ],
)
def test_unusable_wcs(real_files, tmp_path, old, new, words):
    path = rewritten(real_files[0], tmp_path / "odd.fits", old, new)
    with pytest.raises(InputFileError, match=words) as error:
        mx.open_program(path)["prism-clear"].yrel.load()
    assert "odd.fits" in str(error.value)


def test_no_binary_table(real_files, tmp_path):
    """Nothing but noise where the YAML should be."""
    path = tmp_path / "noise.fits"
    data = bytearray(real_files[0].read_bytes())
    hdu = next(h for h in hdu_table(real_files[0]) if h.name == "ASDF")
    data[hdu.offset : hdu.offset + 5000] = np.random.default_rng(1).bytes(5000)
    path.write_bytes(data)
    with pytest.raises(InputFileError, match=r"slit without WCS .*noise.fits"):
        mx.open_program(path)
    assert len(fits.open(path)) == 13
