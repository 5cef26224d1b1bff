"""The small table that describes a layout, as it comes from a TOML file or a mapping."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ParameterError
from ..quality import JWST_FLAGS, NIPS_FLAGS

__all__ = ["checked_values", "read_toml", "refuse_unknown"]

_FLAG_TABLES = {"nips": NIPS_FLAGS, "stsci": JWST_FLAGS}

Kind = Callable[[Any, str], Any]


def read_toml(path: str | os.PathLike) -> dict[str, Any]:
    """The table in a TOML file.

    Raises
    ------
    ParameterError
        Where there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(
            "cannot read the layout",
            where=str(path),
            expected="a TOML file",
            found=error.strerror,
            remedy="check the path",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError("not a TOML file", where=str(path), found=error) from error


def checked_values(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of a table by attribute, each of its kind.

    Raises
    ------
    ParameterError
        On an unknown key or a value of another kind; it names both.
    """
    for key in table:
        if key not in _KINDS:
            near = difflib.get_close_matches(str(key), _KINDS, n=1)
            raise ParameterError(
                "unknown key in the layout",
                where=f"{where}, {key}",
                expected="one of " + " ".join(sorted(_KINDS)),
                found=key,
                remedy=f"did you mean {near[0]}?" if near else None,
            )
    if "flags" in table and "flag_bits" in table:
        raise ParameterError("two tables of flags", where=f"{where}, flags and flag_bits")
    values = {key: _KINDS[key](value, f"{where}, {key}") for key, value in table.items()}
    bits = values.pop("flag_bits", None)
    if bits is not None:
        values["flags"] = {name: 1 << bit for name, bit in bits.items()}
    return values


def refuse_unknown(where: str, given: Iterable, allowed: Iterable[str], what: str) -> None:
    """Raise where something is none of what there is.

    Raises
    ------
    ParameterError
    """
    allowed = sorted(allowed)
    unknown = [str(name) for name in given if name not in allowed]
    if unknown:
        raise ParameterError(
            f"unknown {what}",
            where=where,
            expected="one of " + " ".join(allowed),
            found=" ".join(unknown),
        )


# ------------------------------------------------------------------------------------------------
# Kinds of values


def _one(kind: type | tuple[type, ...], what: str) -> Kind:
    def read(value: Any, where: str) -> Any:
        # True is an integer in Python, but no number in a table.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ParameterError(
                "wrong kind of value in the layout", where=where, expected=what, found=repr(value)
            )
        return value

    return read


def _some(kind: Kind) -> Kind:
    """Several values; one may stand alone."""

    def read(value: Any, where: str) -> tuple:
        several = value if isinstance(value, list | tuple) else [value]
        return tuple(kind(v, where) for v in several)

    return read


def _table(kind: Kind) -> Kind:
    def read(value: Any, where: str) -> dict:
        if not isinstance(value, Mapping):
            raise ParameterError(
                "wrong kind of value in the layout",
                where=where,
                expected="a table",
                found=repr(value),
            )
        return {str(k): kind(v, f"{where}.{k}") for k, v in value.items()}

    return read


_text = _one(str, "text")
_number = _one((int, float), "a number")


def _bit(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 63:
        raise ParameterError(
            "no such bit", where=where, expected="a number from 0 to 63", found=repr(value)
        )
    return value


def _flags(value: Any, where: str) -> dict[str, int]:
    if isinstance(value, str):
        refuse_unknown(where, [value.lower()], _FLAG_TABLES, "table of flags")
        return dict(_FLAG_TABLES[value.lower()])
    return _table(_one(int, "an integer mask"))(value, where)


_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(
        ("flux", "quality", "variance", "error", "wavelength", "position", "read_variance",
         "position_unit", "wavelength_unit", "flux_unit"),
        _text,
    ),
    "detectors": _table(_text),
    "turned": _some(_text),
    "outside": _number,
    "sentinels": _table(_some(_number)),
    "flux_units": _some(_text),
    "flags": _flags,
    "flag_bits": _table(_bit),
    "keywords": _table(_some(_text)),
    "subtracted_keywords": _table(_some(_text)),
    "subtracted": _one(bool, "true or false"),
}  # fmt: skip
