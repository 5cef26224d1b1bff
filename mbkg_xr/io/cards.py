"""The cards of a FITS header, parsed when their keyword is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputFileError

__all__ = ["CARD", "END", "Header"]

CARD = 80
END = b"END     "
_COMMENTARY = {b"COMMENT ", b"HISTORY ", b"CONTINUE", b"        ", END}
_VALUE = re.compile(
    r"""\ *(?:
        '(?P<text>(?:[^']|'')*)'
      | (?P<logical>[TF])
      | (?P<integer>[+-]?[0-9]+)
      | (?P<real>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[EeDd][+-]?[0-9]+)?)
      | \(\ *(?P<re>[^,\ ]+)\ *,\ *(?P<im>[^)\ ]+)\ *\)
    )?\ *(?:/.*)?$""",
    re.VERBOSE,
)


class Header(Mapping[str, Any]):
    """Keywords and values of one header, read-only; commentary is left out.

    Parameters
    ----------
    raw
        The header's bytes, whole blocks.
    where
        What messages call it.
    start
        Its byte offset in the file.

    Examples
    --------
    >>> cards = ["SIMPLE  =                    T", "EXPTIME =           1.25D+02 / s", "END"]
    >>> header = Header("".join(c.ljust(80) for c in cards).encode())
    >>> header["EXPTIME"], header.get("FILTER", "none"), list(header)
    (125.0, 'none', ['SIMPLE', 'EXPTIME'])
    """

    __slots__ = ("_places", "raw", "start", "where")

    def __init__(self, raw: bytes, where: str = "", start: int = 0):
        self.raw, self.where, self.start = raw, where, start
        self._places: dict[str, int] | None = None

    def _index(self) -> dict[str, int]:
        """Where each keyword's card begins; of a keyword that is there twice, the first."""
        if self._places is None:
            raw = self.raw
            places: dict[str, int] = {}
            for place in range(0, len(raw), CARD):
                key = raw[place : place + 8]
                if key == END:
                    break
                if key == b"HIERARCH":
                    long, equals, _ = raw[place + 9 : place + CARD].partition(b"=")
                    if equals:
                        places.setdefault(_keyword(long.strip()).upper(), place)
                elif key not in _COMMENTARY and raw[place + 8 : place + 9] == b"=":
                    places.setdefault(_keyword(key.rstrip()), place)
            self._places = places
        return self._places

    def __getitem__(self, key: str) -> Any:
        return self._value(self._index()[key])

    def __contains__(self, key: object) -> bool:
        return key in self._index()

    def __iter__(self) -> Iterator[str]:
        return iter(self._index())

    def __len__(self) -> int:
        return len(self._index())

    def __repr__(self) -> str:
        return f"<Header of {len(self)} keywords{f' [{self.where}]' if self.where else ''}>"

    def _value(self, place: int) -> Any:
        card = self.raw[place : place + CARD]
        field = card[10:] if card[:8] != b"HIERARCH" else card.partition(b"=")[2]
        found = _parsed(field)
        if found is None or (card[:8] != b"HIERARCH" and card[9:10] != b" "):
            raise self._unreadable(card)
        if found["text"] is not None:
            return self._text(found["text"], place)
        if found["logical"]:
            return found["logical"] == "T"
        try:
            if found["integer"]:
                return int(found["integer"])
            if found["real"]:
                return _real(found["real"])
            return complex(_real(found["re"]), _real(found["im"])) if found["re"] else None
        except ValueError:
            raise self._unreadable(card) from None

    def _text(self, first: str, place: int) -> str:
        """A string and what continues it on the following cards."""
        parts = [first]
        while self.raw[(place := place + CARD) : place + 8] == b"CONTINUE":
            card = self.raw[place : place + CARD]
            found = _parsed(card[8:])
            if found is None or found["text"] is None:
                raise self._unreadable(card)
            parts.append(found["text"])
        parts = [part.rstrip(" ").replace("''", "'") for part in parts]
        if len(parts) == 1:
            return parts[0]
        return "".join(part.removesuffix("&") for part in parts).rstrip(" ")

    def _unreadable(self, card: bytes) -> InputFileError:
        return InputFileError(
            "unreadable header card",
            where=self.where or None,
            expected="KEYWORD = value / comment",
            found=repr(card.decode("latin1").rstrip()),
            remedy="fetch the file again",
        )


def _keyword(raw: bytes) -> str:
    return raw.decode("latin1")


def _parsed(field: bytes) -> re.Match[str] | None:
    return _VALUE.match(field.decode("ascii")) if field.isascii() else None


def _real(text: str) -> float:
    return float(text.upper().replace("D", "E"))
