"""The user's own word on which slits are sky: a list of slitlets, or a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.table import Table

from ..errors import InputFileError, ParameterError

__all__ = ["Choice", "UserSky", "user_sky"]

_KEYS = ("slitlet", "exposure", "detector", "visit", "nod")
_VALUES = ("is_background", "source_shutter")
_TRUE, _FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")


@dataclass(frozen=True)
class Choice:
    """What the user says of one slit."""

    is_background: bool
    source_shutter: float | None
    reason: str


@dataclass(frozen=True)
class UserSky:
    """What the user says of all slits.

    Attributes
    ----------
    rows
        Choices by the names and by the values of the coordinates that a slit must have.
    complete
        Whether slits that no row is for are no sky.
    """

    rows: dict[tuple[str, ...], dict[tuple, list[Choice]]]
    complete: bool

    @classmethod
    def of(cls, rows: Iterable[tuple[dict[str, Any], Choice]], *, complete: bool) -> UserSky:
        table: dict[tuple[str, ...], dict[tuple, list[Choice]]] = {}
        for key, choice in rows:
            table.setdefault(tuple(key), {}).setdefault(tuple(key.values()), []).append(choice)
        return cls(table, complete)

    def choice(self, coords: Mapping[str, Any]) -> Choice | None:
        """The choice for one slit, None where there is none.

        Raises
        ------
        ParameterError
            Where rows contradict each other.
        """
        found = [
            choice
            for names, values in self.rows.items()
            for choice in values.get(tuple(coords[n] for n in names), ())
        ]
        if len({(c.is_background, c.source_shutter) for c in found}) > 1:
            raise ParameterError(
                "rows of the table of sky slits contradict each other",
                where=f"{coords.get('exposure', '')}, slitlet {coords['slitlet']}",
                found=" and ".join(c.reason for c in found),
            )
        if not found and self.complete:
            return Choice(False, None, "not in the user's list")
        return found[0] if found else None

    def check(self, slits: Sequence[Mapping[str, Any]]) -> None:
        """Raise where a row is for no slit.

        Raises
        ------
        ParameterError
        """
        unknown = []
        for names, values in self.rows.items():
            present = {tuple(s[n] for n in names) for s in slits}
            unknown += [" ".join(map(str, v)) for v in values if v not in present]
        if not unknown:
            return
        numbers = [str(n) for n in sorted({s["slitlet"] for s in slits})]
        raise ParameterError(
            "sky slits that are not in the products",
            where="sky",
            expected="slitlets among " + ", ".join(numbers[:20]) + " ..." * (len(numbers) > 20),
            found=", ".join(unknown[:10]) + " ..." * (len(unknown) > 10),
        )


def user_sky(sky: Any) -> UserSky | None:
    """The user's choice from what they gave.

    Parameters
    ----------
    sky
        Numbers of slitlets: these are sky, and no others. Or a table (DataFrame, or a CSV or ECSV
        file) with the column ``slitlet`` and any of ``exposure``, ``detector``, ``visit`` and
        ``nod``, which say what slits a row is for (a blank cell: for all), and
        ``is_background`` (true where there is no such column) and ``source_shutter`` (yrel). Slits
        that no row is for are decided as without the table.

    Raises
    ------
    ParameterError
        Where it is none of these, or a cell cannot be read.
    InputFileError
        Where a file cannot be read.

    Examples
    --------
    >>> user_sky([3, 5]).choice({"slitlet": 3}).reason
    "the user's list"
    """
    if sky is None or isinstance(sky, UserSky):
        return sky
    if isinstance(sky, pd.DataFrame):
        return _from_table(sky, "the user's table")
    if isinstance(sky, str | os.PathLike):
        return _from_table(_read(Path(sky)), Path(sky).name)
    numbers = np.atleast_1d(np.asarray(sky)) if not isinstance(sky, Mapping) else np.array(["?"])
    if numbers.ndim != 1 or numbers.size == 0 or numbers.dtype.kind not in "iu":
        raise ParameterError(
            "unusable choice of sky slits",
            where="sky",
            expected="numbers of slitlets, a table, or a CSV or ECSV file",
            found=repr(sky),
        )
    choice = Choice(True, None, "the user's list")
    return UserSky.of([({"slitlet": int(n)}, choice) for n in numbers], complete=True)


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".ecsv":
            return Table.read(path, format="ascii.ecsv").to_pandas()
        return pd.read_csv(path, comment="#", skipinitialspace=True, dtype=str)
    except Exception as error:  # of parsers, of many kinds
        raise InputFileError(
            "cannot read the table of sky slits",
            where=str(path),
            expected="a CSV or ECSV file with a column slitlet",
            found=getattr(error, "strerror", None) or str(error).splitlines()[0],
        ) from error


def _from_table(table: pd.DataFrame, name: str) -> UserSky:
    columns = [str(c) for c in table.columns]
    unknown = [c for c in columns if c not in (*_KEYS, *_VALUES)]
    if "slitlet" not in columns or unknown:
        raise ParameterError(
            "unknown columns in the table of sky slits",
            where=name,
            expected="slitlet, and any of " + " ".join((*_KEYS[1:], *_VALUES)),
            found=" ".join(columns),
        )
    rows = enumerate(table.to_dict("records"), 1)
    return UserSky.of([_row(row, name, i) for i, row in rows], complete=False)


def _row(row: Mapping[Any, Any], name: str, number: int) -> tuple[dict[str, Any], Choice]:
    cells = {k: v for k, v in row.items() if not _is_blank(v)}
    where = f"{name}, row {number}"
    key: dict[str, Any] = {k: str(cells[k]).strip() for k in _KEYS if k in cells}
    key |= {k: _integer(cells[k], where) for k in ("slitlet", "nod") if k in cells}
    shutter = _integer(cells["source_shutter"], where) if "source_shutter" in cells else None
    sky = _truth(cells.get("is_background", shutter is None), where)
    if "slitlet" not in key or (sky and shutter is not None):
        raise ParameterError(
            "unusable row in the table of sky slits",
            where=where,
            expected="a slitlet, and a source_shutter only where is_background is false",
            found=", ".join(f"{k} {v}" for k, v in cells.items()) or "nothing",
        )
    return key, Choice(sky, None if shutter is None else float(shutter), where)


def _is_blank(value: Any) -> bool:
    return value is None or value is pd.NA or value == "" or value != value


def _integer(value: Any, where: str) -> int:
    try:
        number = float(value)
        if number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ParameterError(
        "unreadable cell in the table of sky slits",
        where=where,
        expected="a whole number",
        found=value,
    )


def _truth(value: Any, where: str) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ParameterError(
        "unreadable is_background in the table of sky slits",
        where=where,
        expected="true or false",
        found=value,
    )
