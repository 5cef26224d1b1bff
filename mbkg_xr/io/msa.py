"""MSA metafiles (``_msa.fits``): which shutters were open, and where the sources lay.

Their table SHUTTER_INFO has a row for each shutter of each slitlet, for each MSA configuration
(``msa_metadata_id``, the products' MSAMETID) and nod (``dither_point_index``, their PATT_NUM); a
shutter with several sources has a row for each. Rows and columns of shutters count from 1, as in
the products. Source: the documentation of the official pipeline's ``assign_wcs`` step, and three
metafiles from orbit.
"""

from __future__ import annotations

import gzip
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import NDArray

from ..errors import InputFileError
from .fits import read_bytes
from .headers import read_headers

__all__ = ["Metafile", "Metafiles", "Slitlet", "read_metafile"]

_COLUMNS = (
    *("slitlet_id", "msa_metadata_id", "dither_point_index", "shutter_quadrant"),
    *("shutter_row", "shutter_column", "source_id", "background", "primary_source"),
)
_TYPES = {"I": ">i2", "J": ">i4", "E": ">f4", "D": ">f8"}
_OF_SHUTTER = (
    *("slitlet_id", "shutter_quadrant", "shutter_row", "shutter_column", "source_id"),
    *("background", "primary_source", "is_open"),
)


@dataclass(frozen=True)
class Slitlet:
    """One slitlet at one nod, as the metafile has it.

    Attributes
    ----------
    quadrant, row, column
        MSA quadrant, and row and column of the middle shutter (of an even number, the one below
        the middle).
    n_shutters
        From the first shutter to the last.
    primary
        ``(yrel, source_id)`` of each primary source; there should be one at most.
    others
        The same of sources that are not the primary one.
    closed
        yrel of shutters between that are not open.
    all_background
        Whether every shutter is flagged background.
    """

    quadrant: int
    row: int
    column: int
    n_shutters: int
    primary: tuple[tuple[int, int], ...]
    others: tuple[tuple[int, int], ...]
    closed: tuple[int, ...]
    all_background: bool


@dataclass(frozen=True)
class Metafile:
    """A metafile's name, its visit, and its slitlets.

    Attributes
    ----------
    path
        The file.
    visit
        Programme, observation and visit, as products name them; empty where it does not say.
    rows
        The table, by column.
    """

    path: str
    visit: str
    rows: dict[str, NDArray]

    @property
    def name(self) -> str:
        return Path(self.path).name.removesuffix(".gz")

    def slitlets(self, metadata_id: int, nod: int) -> dict[int, Slitlet]:
        """Slitlets of one MSA configuration at one nod, by number."""
        rows = self.rows
        here = (rows["msa_metadata_id"] == metadata_id) & (rows["dither_point_index"] == nod)
        columns = [rows[name][here].tolist() for name in _OF_SHUTTER]
        shutters: dict[int, list[tuple]] = {}
        for number, *shutter in zip(*columns, strict=True):
            shutters.setdefault(number, []).append(tuple(shutter))
        return {number: _slitlet(shutters[number]) for number in sorted(shutters)}


def _slitlet(shutters: list[tuple]) -> Slitlet:
    """From rows of the columns `_OF_SHUTTER`, without the first."""
    quadrant, row = shutters[0][:2]
    columns = [s[2] for s in shutters]
    first, last = min(columns), max(columns)
    middle = first + (last - first) // 2
    is_open = {column for _, _, column, *_, is_open in shutters if is_open}
    primary, others = [], []
    for _, _, column, number, background, is_primary, _ in shutters:
        if is_primary == "Y":
            primary.append((column - middle, number))
        elif background == "N" and number != 0:
            # Number 0 is no source, and a source's number is repeated on shutters it is not in.
            others.append((column - middle, number))
    return Slitlet(
        quadrant=quadrant,
        row=row,
        column=middle,
        n_shutters=last - first + 1,
        primary=tuple(sorted(primary)),
        others=tuple(sorted(others)),
        closed=tuple(c - middle for c in range(first, last + 1) if c not in is_open),
        all_background=all(s[4] == "Y" for s in shutters),
    )


def read_metafile(path: str | Path) -> Metafile:
    """Read an MSA metafile, compressed by gzip or not.

    Raises
    ------
    InputFileError
        Where the file is missing, unreadable, or no metafile.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            warnings.filterwarnings("error", ".*truncated", AstropyWarning)
            primary, table = _plain_table(path) or _astropy_table(path)
            has_table = table.dtype.names is not None
            missing = [name for name in _COLUMNS if name not in (table.dtype.names or ())]
            if not missing:
                rows = _rows(table)
    except (OSError, ValueError, TypeError, KeyError, EOFError, IndexError, Warning) as error:
        raise InputFileError(
            "cannot read the MSA metafile",
            where=str(path),
            found=getattr(error, "strerror", None) or error,
            remedy="check the path, or fetch the file again",
        ) from error
    if missing:
        raise InputFileError(
            "not an MSA metafile",
            where=path.name,
            expected="a table SHUTTER_INFO with " + " ".join(_COLUMNS),
            found="no " + " ".join(missing) if has_table else "no such table",
            remedy="give the _msa.fits of the visit",
        )
    parts = [str(primary.get(k) or "").strip() for k in ("PROGRAM", "OBSERVTN", "VISIT")]
    visit = str(primary.get("VISIT_ID") or "").strip() or "".join(parts)
    return Metafile(str(path.resolve()), visit, rows)


def _plain_table(path: Path) -> tuple[Mapping, NDArray] | None:
    """Primary header and SHUTTER_INFO, None where it is not as simple as metafiles have it.

    Every programme with a metafile waits for this: astropy takes five times as long.
    """
    if path.name.endswith(".gz"):
        return None
    try:
        hdus = read_headers(path)
        table = next(h for h in hdus if h.name == "SHUTTER_INFO")
        header = table.header
        size = int(header["NAXIS1"]), int(header["NAXIS2"])
        columns = []
        for i in range(1, int(header["TFIELDS"]) + 1):
            form = str(header[f"TFORM{i}"]).strip()
            known = re.fullmatch(r"(\d*)([AIJED])", form)
            if not known or any(f"{key}{i}" in header for key in ("TSCAL", "TZERO", "TDIM")):
                return None
            count = int(known[1] or 1)
            kind = f"S{count}" if known[2] == "A" else _TYPES[known[2]]
            if count != 1 and known[2] != "A":
                return None
            columns.append((str(header[f"TTYPE{i}"]).strip(), kind))
        dtype = np.dtype(columns)
        if dtype.itemsize != size[0]:
            return None
        data = read_bytes(path, table.offset, size[0] * size[1])
    except (InputFileError, StopIteration, KeyError, ValueError, TypeError):
        return None  # astropy says what is wrong with it
    return hdus[0].header, np.frombuffer(data, dtype)


def _astropy_table(path: Path) -> tuple[Mapping, NDArray]:
    """The same of any metafile; a table without columns where there is none."""
    with _stream(path) as stream, fits.open(stream) as hdus:
        # The bare bytes: astropy's own columns take ten times as long.
        found = hdus["SHUTTER_INFO"].data if "SHUTTER_INFO" in hdus else np.empty(0)
        return dict(hdus[0].header), np.array(found)


def _stream(path: Path):
    return gzip.open(path) if path.name.endswith(".gz") else path.open("rb")


def _rows(table: NDArray) -> dict[str, NDArray]:
    rows = {name: _column(table[name]) for name in _COLUMNS}
    names = table.dtype.names or ()
    everywhere = np.ones(table.size, bool)
    rows["is_open"] = everywhere
    if "shutter_state" in names:
        rows["is_open"] = _column(table["shutter_state"]) == "OPEN"
    # The fixed slits of a combined exposure have no slitlet number.
    of_msa = everywhere
    if "fixed_slit" in names:
        of_msa = np.isin(_column(table["fixed_slit"]), ("NONE", ""))
    return {name: values[of_msa] for name, values in rows.items()}


def _column(values: NDArray) -> NDArray:
    """Numbers as they are, and text in capitals without what fills it up."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    distinct, which = np.unique(values, return_inverse=True)
    texts = [bytes(v).decode("latin1").strip(" \0").upper() for v in distinct]
    return np.array(texts, dtype=str)[which]


class Metafiles:
    """The metafiles at hand: those that are given, lie among the inputs, or beside the products.

    Parameters
    ----------
    given
        Metafiles the user names: of their visit they count, whatever they are called.
    among
        Metafiles among the inputs: these, and those in a product's directory, count for products
        whose header names them (MSAMETFL).

    on_error
        ``"warn"``: do without metafiles that cannot be read, unless they are given.

    Raises
    ------
    InputFileError
        Where one cannot be read.
    """

    def __init__(
        self,
        given: Iterable[str | Path] = (),
        among: Iterable[str | Path] = (),
        *,
        on_error: str = "raise",
    ):
        self._on_error = on_error
        self._given = [read_metafile(path) for path in given]
        self._among = {Path(path).name: Path(path) for path in among}
        self._read: dict[Path, Metafile | str] = {}
        self._slitlets: dict[tuple[str, int, int], dict[int, Slitlet]] = {}
        self._answers: dict[tuple, dict[int, Slitlet] | str] = {}
        self._used: set[str] = set()

    def slitlets(
        self, product: str, name: str, visit: str, metadata_id: int | None, nod: int
    ) -> dict[int, Slitlet] | str:
        """Slitlets of a product, or why there are none; empty text where it has no metafile.

        Parameters
        ----------
        product
            Path of the product.
        name, metadata_id, visit, nod
            Its MSAMETFL, MSAMETID, visit and PATT_NUM.
        """
        question = (product, name, visit, metadata_id, nod)
        if question not in self._answers:
            self._answers[question] = self._answer(*question)
        return self._answers[question]

    def _answer(
        self, product: str, name: str, visit: str, metadata_id: int | None, nod: int
    ) -> dict[int, Slitlet] | str:
        metafile = self._find(Path(product), name, visit)
        if isinstance(metafile, str):
            return metafile
        self._used.add(metafile.path)
        if metafile.visit not in ("", visit):
            return f"{metafile.name} is of visit {metafile.visit}"
        if metadata_id is None or nod < 0:
            return f"{metafile.name} not used: no {'MSAMETID' if nod >= 0 else 'PATT_NUM'}"
        key = (metafile.path, metadata_id, nod)
        if key not in self._slitlets:
            self._slitlets[key] = metafile.slitlets(metadata_id, nod)
        return self._slitlets[key] or (
            f"{metafile.name} has no MSA configuration {metadata_id} at nod {nod}"
        )

    def _find(self, product: Path, name: str, visit: str) -> Metafile | str:
        of_visit = [m for m in self._given if m.visit in ("", visit)]
        named = [m for m in of_visit if m.name == name]
        if len(named or of_visit) == 1:
            return (named or of_visit)[0]
        if of_visit:
            return f"several metafiles of visit {visit} given, none of them {name or 'named'}"
        if not name or name.upper() == "N/A":
            return ""
        beside = (product.with_name(name), product.with_name(f"{name}.gz"))
        path = self._among.get(name) or next((p for p in beside if p.is_file()), None)
        if path is None:
            return ""
        if path not in self._read:
            try:
                self._read[path] = read_metafile(path)
            except InputFileError as error:
                if self._on_error == "raise":
                    raise
                self._read[path] = str(error)
        return self._read[path]

    def check(self, visits: Iterable[str]) -> None:
        """Raise where a given metafile is of no product's visit.

        Raises
        ------
        InputFileError
        """
        visits = sorted(set(visits))
        for metafile in self._given:
            if metafile.path not in self._used and metafile.visit not in visits:
                raise InputFileError(
                    "MSA metafile of another visit",
                    where=metafile.name,
                    expected="one of visit " + " or ".join(visits),
                    found=metafile.visit,
                    remedy="give the metafile that the products name in MSAMETFL",
                )
