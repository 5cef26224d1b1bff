"""Which slits are sky, which shutter holds the source, and what decided it.

In order of precedence: the user's own list or table, on request the source's number (negative ones
are virtual sources), the MSA metafile, the source's name (``BKG``, ``BACKGROUND``), and the shutter
state that the product itself gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..barshadow import shutter_positions
from .msa import Slitlet
from .user_sky import UserSky

__all__ = ["Verdict", "judge", "overrule", "state_verdict"]

_NAN = float("nan")


@dataclass(frozen=True)
class Verdict:
    """What was decided for one slit.

    Attributes
    ----------
    is_background
        No primary source in any shutter.
    source_shutter
        yrel of the shutter that holds the source, NaN if there is none or it is not known.
    reason
        What decided, in a few words.
    others
        yrel of shutters with sources that are not the primary one.
    closed
        yrel of shutters of the slitlet that are closed.
    source_id
        Number of the source, 0 if there is none or only the product knows it.
    conflict
        What metafile and product contradict each other in, where they do.
    """

    is_background: bool
    source_shutter: float
    reason: str
    others: tuple[int, ...] = ()
    closed: tuple[int, ...] = ()
    source_id: int = 0
    conflict: str = ""

    @property
    def coords(self) -> dict[str, Any]:
        """As slit coordinates."""
        occupied = {*self.others, *self.closed} - {self.source_shutter}
        return {
            "is_background": self.is_background,
            "source_shutter": self.source_shutter,
            "occupied": " ".join(map(str, sorted(occupied))),
            "sky_reason": self.reason,
        }


def judge(
    coords: Mapping[str, Any],
    state: str,
    slitlets: Mapping[int, Slitlet] | str,
    *,
    user: UserSky | None = None,
    virtual_sky: bool = False,
) -> Verdict:
    """Decide on one slit.

    Parameters
    ----------
    coords
        Its slit coordinates, as its product gives them.
    state
        Its shutter state, such as ``"1x1"``; empty where there is none.
    slitlets
        Those of its metafile at its nod; or text that says why there are none, empty where none
        was to be found.
    user
        The user's own choice.
    virtual_sky
        Whether slits with a virtual source (a negative number) are sky.

    Examples
    --------
    >>> judge({"slitlet": 3, "source_name": "1345_BKG3", "source_id": 3}, "1x1", "").reason
    'name 1345_BKG3'
    """
    verdict, note = _by_metafile(coords, slitlets)
    if verdict is None:
        verdict = _by_product(coords, state)
        if note:
            conflict = "" if isinstance(slitlets, str) else note
            verdict = replace(verdict, reason=f"{verdict.reason} ({note})", conflict=conflict)
    return overrule(verdict, coords, user=user, virtual_sky=virtual_sky)


def overrule(
    verdict: Verdict, coords: Mapping[str, Any], *, user: UserSky | None, virtual_sky: bool
) -> Verdict:
    """A verdict after the user's own word; parameters as of `judge`."""
    number = verdict.source_id or int(coords.get("source_id") or 0)
    if virtual_sky and number < 0 and not verdict.is_background:
        reason = f"virtual source {number}"
        verdict = Verdict(True, _NAN, reason, verdict.others, verdict.closed)
    choice = None if user is None else user.choice(coords)
    if choice is None:
        return verdict
    if choice.is_background:
        return Verdict(True, _NAN, choice.reason, closed=verdict.closed)
    shutter, reason = choice.source_shutter, choice.reason
    if shutter is None:
        shutter, reason = verdict.source_shutter, f"{choice.reason}; {verdict.reason}"
    return replace(verdict, is_background=False, source_shutter=shutter, reason=reason)


def _by_metafile(
    coords: Mapping[str, Any], slitlets: Mapping[int, Slitlet] | str
) -> tuple[Verdict | None, str]:
    """What the metafile says, or why it says nothing of this slit."""
    if isinstance(slitlets, str):
        return None, slitlets
    slitlet = slitlets.get(coords["slitlet"])
    if slitlet is None:
        return None, "not in the metafile"
    elsewhere = _elsewhere(coords, slitlet)
    if elsewhere:
        return None, elsewhere
    others = tuple(yrel for yrel, _ in slitlet.others)
    if slitlet.all_background or not slitlet.primary:
        why = "every shutter background" if slitlet.all_background else "no primary source"
        for yrel, number in slitlet.others:
            why += f", but source {number} in shutter {yrel:+d}"
        verdict = Verdict(True, _NAN, f"metafile: {why}", others, slitlet.closed)
        return _contradicted(verdict, _named_source(coords)), ""
    (first, number), rest = slitlet.primary[0], slitlet.primary[1:]
    verdict = Verdict(
        False,
        float(first),
        f"metafile: source {number} in shutter {first:+d}",
        (*(yrel for yrel, _ in rest), *others),
        slitlet.closed,
        source_id=number,
    )
    same = coords.get("source_id", 0) in (0, number)
    said = "" if same else _named_source(coords) or f"it is {coords['source_name']}"
    return _contradicted(verdict, said), ""


def _named_source(coords: Mapping[str, Any]) -> str:
    """The source that the product has in a slit, empty where it has none."""
    number = int(coords.get("source_id") or 0)
    # The pipeline numbers slitlets without a source by themselves.
    if _is_sky_name(coords) or number in (0, coords["slitlet"]):
        return ""
    return f"source {number}"


def _contradicted(verdict: Verdict, said: str) -> Verdict:
    if not said:
        return verdict
    reason = f"{verdict.reason} (the product says {said})"
    return replace(verdict, reason=reason, conflict=reason)


def _elsewhere(coords: Mapping[str, Any], slitlet: Slitlet) -> str:
    """How the metafile's shutters differ from the product's, empty where they do not."""
    theirs = (slitlet.quadrant, slitlet.row, slitlet.column, slitlet.n_shutters)
    names = ("quadrant", "shutter_row", "shutter_column", "n_shutters")
    ours = tuple(int(coords.get(name, -1)) for name in names)
    if all(a in (-1, b) for a, b in zip(ours, theirs, strict=True)):
        return ""
    place = "quadrant {} row {} column {} of {}".format
    return f"shutters differ: {place(*theirs)} in the metafile, {place(*ours)} in the product"


def _by_product(coords: Mapping[str, Any], state: str) -> Verdict:
    verdict = state_verdict(state)
    if _is_sky_name(coords):
        # The pipeline marks a shutter of such slitlets with x too.
        return Verdict(True, _NAN, f"name {coords['source_name']}", closed=verdict.closed)
    return verdict


def _is_sky_name(coords: Mapping[str, Any]) -> bool:
    return bool(re.search("BKG|BACKGROUND", str(coords.get("source_name", "")).upper()))


def state_verdict(state: str) -> Verdict:
    """What a shutter state alone tells.

    Examples
    --------
    >>> verdict = state_verdict("x101")
    >>> verdict.source_shutter, verdict.closed, verdict.reason
    (-1.0, (1,), 'shutter state x101')
    """
    positions = shutter_positions(len(state)).tolist()
    closed = tuple(p for p, c in zip(positions, state, strict=True) if c == "0")
    marked = [p for p, c in zip(positions, state, strict=True) if c == "x"]
    if not state:
        return Verdict(False, _NAN, "nothing tells")
    if not marked:
        return Verdict(True, _NAN, f"shutter state {state} without a source", closed=closed)
    shutter = float(marked[0]) if len(marked) == 1 else _NAN
    return Verdict(False, shutter, f"shutter state {state}", closed=closed)
