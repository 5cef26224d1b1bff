"""The scanner of FITS structure against astropy, and what it makes of damaged files."""

from __future__ import annotations

import io
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from astropy.io import fits
from conftest import REAL
from hypothesis import HealthCheck, example, given, settings

from mbkg_xr.errors import InputFileError, MbkgError
from mbkg_xr.io.headers import Header, hdu_table, read_headers

DATA = REAL.parent
FILES = sorted(DATA.rglob("*.fits"))
QUIET = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

printable = st.characters(min_codepoint=32, max_codepoint=126)
words = st.text(printable, max_size=200).map(str.rstrip)
numbers = st.one_of(
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.complex_numbers(allow_nan=False, allow_infinity=False, max_magnitude=1e30),
)
keys = st.from_regex(r"[A-Z][A-Z0-9_-]{0,7}", fullmatch=True).filter(
    lambda k: (
        k not in ("END", "COMMENT", "HISTORY", "CONTINUE", "HIERARCH", "GROUPS")
        and not k.startswith(
            ("NAXIS", "BITPIX", "PCOUNT", "GCOUNT", "T", "EXT", "SIMPLE", "X", "B")
        )
    )
)
long_keys = st.from_regex(r"ESO [A-Z]{2,9} [A-Z]{1,9}", fullmatch=True)


@st.composite
def cards(draw):
    kind = draw(st.sampled_from(["text", "number", "long", "comment", "history", "D", "blank"]))
    if kind == "text":
        comment = draw(st.sampled_from(["", "a / comment", "it's"]))
        return fits.Card(draw(keys), draw(words), comment)
    if kind == "number":
        return fits.Card(draw(keys), draw(numbers), draw(st.sampled_from(["", "of / pixels"])))
    if kind == "long":
        return fits.Card("HIERARCH " + draw(long_keys), draw(st.integers(-99999, 99999)))
    if kind == "D":
        mantissa, power = draw(st.integers(-999, 999)), draw(st.integers(-30, 30))
        text = f"{draw(keys):8}= {mantissa / 100:.2f}{draw(st.sampled_from('Dd'))}{power:+03d} / x"
        return fits.Card.fromstring(text)
    if kind == "blank":
        return fits.Card.fromstring(f"{draw(keys):8}=   / nothing")
    return fits.Card(kind.upper(), draw(words))


dtypes = st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8", "u2", "u4", "u8"])


@st.composite
def extensions(draw):
    name = draw(st.sampled_from(["SCI", "ERR", "DQ", "LAMBDA1", ""]))
    kind = draw(st.sampled_from(["image", "empty", "table", "heap", "ascii"]))
    n = draw(st.integers(0, 40))
    if kind == "image":
        shape = draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
        hdu = fits.ImageHDU(np.zeros(shape, draw(dtypes)), name=name)
    elif kind == "empty":
        hdu = fits.ImageHDU(name=name)
    elif kind == "ascii":
        hdu = fits.TableHDU.from_columns([fits.Column("a", "F12.4", array=np.zeros(n))], name=name)
    else:
        format_ = "PJ()" if kind == "heap" else draw(st.sampled_from(["D", "7A", "300B"]))
        array = [np.arange(i, dtype="i4") for i in range(n)] if kind == "heap" else None
        column = fits.Column("a", format_, array=array)
        hdu = fits.BinTableHDU.from_columns([column], nrows=n, name=name)
    if draw(st.booleans()):
        hdu.ver = draw(st.integers(1, 500))
    return hdu


def assert_agrees(path, hdus):
    found = read_headers(path)
    assert len(found) == len(hdus)
    for ours, theirs in zip(found, hdus, strict=True):
        info = theirs.fileinfo()
        assert (ours.name, ours.version) == (theirs.name, theirs.ver)
        assert (ours.header.start, ours.offset, ours.size) == (
            info["hdrLoc"],
            info["datLoc"],
            info["datSpan"],
        )
        raw = fits.Header.fromstring(ours.header.raw)  # as in the file: BZERO and all
        for key in raw:
            if key in ("", "COMMENT", "HISTORY"):
                assert key not in ours.header
                continue
            value = None if isinstance(raw[key], fits.card.Undefined) else raw[key]
            assert ours.header[key] == value, (key, raw.cards[key].image)
            assert type(ours.header[key]) is type(value)


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
@QUIET
@given(st.lists(cards(), max_size=60), st.lists(extensions(), max_size=6), st.booleans())
@example([fits.Card("LONG", "it's " * 60 + "&"), fits.Card("A", "&"), fits.Card("B", "''")], [], 0)
def test_scanner_agrees_with_astropy(tmp_path, some, more, fill):
    primary = fits.PrimaryHDU()
    for card in some:
        primary.header.append(card, end=True)
    for hdu in more[:2]:
        for card in some[:5]:
            hdu.header.append(card, end=True)
    stream = io.BytesIO()
    fits.HDUList([primary, *more]).writeto(stream, output_verify="ignore")
    path = tmp_path / "any.fits"
    path.write_bytes(stream.getvalue() + fill * bytes(2880))
    with fits.open(path, lazy_load_hdus=False, disable_image_compression=True) as hdus:
        assert_agrees(path, hdus)


@pytest.mark.parametrize("path", FILES or [None], ids=lambda p: p.name if p else "none")
def test_scanner_agrees_with_astropy_on_real_files(path):
    if path is None:
        pytest.skip("no real files at ../shared/data")
    with fits.open(path, lazy_load_hdus=False, memmap=False) as hdus:
        assert_agrees(path, hdus)


def test_headers_are_plain_mappings(real_files):
    header = hdu_table(real_files[0])[1].header
    assert header.get("EXTNAME") == "SCI"
    assert header.get("NOTHING", 7) == 7
    assert "NAXIS1" in header
    assert dict(header)["NAXIS1"] == header["NAXIS1"] == 341
    again = pickle.loads(pickle.dumps(header))
    assert dict(again) == dict(header)
    with pytest.raises(TypeError):
        header["NAXIS1"] = 1


# ------------------------------------------------------------------------------------------------
# Damaged files


def product(path, *, name="SCI", shape=(40, 30)):
    primary = fits.PrimaryHDU()
    primary.header["INSTRUME"] = "NIRSPEC"
    fits.HDUList([primary, fits.ImageHDU(np.zeros(shape, "f4"), name=name)]).writeto(path)
    return path


def replace_card(path, old, new, *, count=1):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new.ljust(len(old))[: len(old)], count))


def card(key, value):
    return f"{key:8}= {value:>20}".encode()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (card("NAXIS1", 30), card("NAXIS1", 10**17), "truncated"),
        (card("NAXIS2", 40), card("NAXIS2", 10**19), "truncated"),
        (card("NAXIS1", 30), card("NAXIS1", -30), "NAXIS1"),
        (card("NAXIS1", 30), card("NAXIS1", "3O"), "NAXIS1"),
        (card("NAXIS1", 30), card("NAXIS9", 30), "NAXIS1"),
        (card("BITPIX", -32), card("BITPIX", -31), "BITPIX"),
        (card("NAXIS", 2), card("NAXIS", 1000), "NAXIS"),
        (card("NAXIS", 2), card("NAXIS", 3), "NAXIS3"),
        (card("PCOUNT", 0), card("PCOUNT", 10**12), "truncated"),
        (card("PCOUNT", 0), card("PCOUNT", -1), "PCOUNT"),
        (b"XTENSION= 'IMAGE", b"XTENSIOM= 'IMAGE", "mangled FITS file"),
        (b"EXTNAME = 'SCI     '", b"EXTNAME = 'SCI      ", "unreadable header card"),
    ],
)
def test_mangled_cards(tmp_path, old, new, words):
    path = product(tmp_path / "mangled.fits")
    replace_card(path, old, new)
    with pytest.raises(InputFileError, match=words) as error:
        hdu_table(path)
    assert "mangled.fits" in str(error.value)


def test_a_header_without_end(tmp_path):
    path = product(tmp_path / "endless.fits")
    data = bytearray(path.read_bytes())
    last = data.rindex(b"END     ")
    data[last : last + 3] = b"   "
    path.write_bytes(data)
    with pytest.raises(InputFileError, match="without END"):
        hdu_table(path)


def test_a_bad_card_matters_when_it_is_asked_for():
    text = "SIMPLE  =                    T".ljust(80) + "FILTER  = 'CLEAR".ljust(80)
    header = Header((text + "END".ljust(80)).encode(), "a.fits")
    assert header["SIMPLE"] is True
    with pytest.raises(InputFileError, match=r"unreadable header card \[a.fits\].*FILTER"):
        header["FILTER"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_compressed_files(tmp_path, suffix):
    import bz2
    import gzip
    import lzma

    tools = {".gz": (gzip, "gunzip"), ".bz2": (bz2, "bunzip2"), ".xz": (lzma, "unxz")}
    module, tool = tools[suffix]
    data = product(tmp_path / "a.fits").read_bytes()
    path = tmp_path / f"a.fits{suffix}"
    path.write_bytes(module.compress(data))
    with pytest.raises(InputFileError, match=f"compressed file .*{path.name}.*{tool}"):
        hdu_table(path)
    path.write_bytes(data)  # named so, but it is none
    assert len(hdu_table(path)) == 2


def test_another_instrument(tmp_path):
    path = product(tmp_path / "nircam.fits")
    replace_card(path, b"'NIRSPEC '", b"'NIRCAM  '")
    with pytest.raises(InputFileError, match=r"not a NIRSpec product .*nircam.fits.*found NIRCAM"):
        hdu_table(path)


@QUIET
@given(data=st.data())
def test_a_changed_byte_is_an_error_or_harmless(tmp_path, cal_file, data):
    """Never another exception, never memory for what a header claims."""
    import mbkg_xr as mx

    raw = bytearray(cal_file.read_bytes())
    spans = [(h.header.start, h.offset) for h in hdu_table(cal_file)]
    for _ in range(data.draw(st.integers(1, 3))):
        start, _ = data.draw(st.sampled_from(spans))
        # Where keywords and values are.
        place = start + data.draw(st.integers(0, 30)) * 80 + data.draw(st.integers(0, 40))
        raw[place] = data.draw(st.one_of(st.integers(32, 126), st.integers(0, 255)))
    path = tmp_path / "changed_cal.fits"
    path.write_bytes(raw)
    try:
        tree = mx.open_program(path, cache=False)
    except MbkgError as error:
        assert "changed_cal.fits" in str(error) or "slit dataset" in str(error)
        return
    assert sum(node.sizes["slit"] for node in tree.children.values()) == 3
