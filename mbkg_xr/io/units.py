"""Units as NIPS files spell them."""

from __future__ import annotations

import re

from astropy import units as u

__all__ = ["respelled", "unit_of"]

_WORDS = {
    **dict.fromkeys(("count", "counts"), "ct"),
    **dict.fromkeys(("electron", "electrons"), "electron"),
    **dict.fromkeys(("meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("micron", "microns", "micrometer", "micrometers", "micrometre"), "um"),
    **dict.fromkeys(("nanometer", "nanometers", "nanometre", "nanometres"), "nm"),
    **dict.fromkeys(("angstrom", "angstroms"), "Angstrom"),
}
_CAPITALS = {"S": "s", "SR": "sr", "M": "m", "UM": "um", "NM": "nm", "MJY": "MJy", "JY": "Jy"}


def respelled(text: str) -> str:
    """A unit as astropy spells it: NIPS writes words, and all of them in capitals.

    Examples
    --------
    >>> respelled("COUNTS S-1"), respelled("METER"), respelled("MJy/sr")
    ('ct s-1', 'm', 'MJy/sr')
    """
    capitals = text == text.upper()

    def word(found: re.Match[str]) -> str:
        name = found[0]
        return _WORDS.get(name.lower()) or (_CAPITALS.get(name, name) if capitals else name)

    return re.sub(r"[A-Za-z]+", word, text.strip())


def unit_of(text: object) -> u.UnitBase | None:
    """The astropy unit of a header's text, None where there is no such unit.

    Examples
    --------
    >>> unit_of("(COUNTS S-1)**2") == unit_of("ct2 s-2")
    True
    """
    spelled = respelled(str(text or ""))
    squared = re.fullmatch(r"\((.*)\)\s*(?:\*\*|\^)\s*2", spelled)
    try:
        unit = u.Unit(squared[1] if squared else spelled)
    except (ValueError, TypeError):
        return None
    return unit**2 if squared else unit
