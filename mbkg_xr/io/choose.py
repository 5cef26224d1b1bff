"""Which files an ingest takes, and why not the others: a choice that no order of files changes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from .journal import Journal
from .survey import Found, flags_digest

__all__ = ["choose"]

#: Slits by (group, exposure, detector, slitlet).
Key = tuple[str, str, str, int]


def choose(found: Iterable[Found], journal: Journal, options: Mapping[str, str]) -> list[Found]:
    """Decide what becomes of each file.

    Parameters
    ----------
    found
        From `survey`.
    journal
        Of the store.
    options
        From `describe`.

    Returns
    -------
    list of Found
        By name and path. Those of status ``"new"`` are to be ingested; all others have a reason.
    """
    out = sorted(found, key=lambda f: (f.name, f.path))
    names = {p.digest: name for name, p in sorted(journal.products.items(), reverse=True)}
    out = [_against_journal(f, journal, names, options) for f in out]
    out = _without_copies(out)
    out = _without_twins(out, journal)
    return _of_one_kind(out, journal)


def _against_journal(
    one: Found, journal: Journal, names: Mapping[str, str], options: Mapping[str, str]
) -> Found:
    if one.status != "new":
        return one
    name = one.name if one.name in journal.products else names.get(one.digest)
    if name is None:
        return one
    known = journal.products[name]
    if known.digest != one.digest:
        return one.failed(
            "a file of this name is in the store with other content",
            expected=f"{known.size} bytes with digest {known.digest}",
            found=f"{one.size} bytes with digest {one.digest}",
            remedy="ingest changed products into a new store",
        )
    if known.options != options:
        return one.failed(
            "in the store already, opened with other options",
            expected=json.dumps(known.options),
            found=json.dumps(dict(options)),
            remedy="use the same options, or ingest into a new store",
        )
    return one.but("skipped", "in already" if name == one.name else f"in already, as {name}")


def _without_copies(files: list[Found]) -> list[Found]:
    """Of files with the same content the first by name; of others with the same name none."""
    first: dict[str, Found] = {}
    contents: dict[str, set[str]] = defaultdict(set)
    for one in files:
        if one.status == "new":
            first.setdefault(one.digest, one)
            contents[one.name].add(one.digest)
    out = []
    for one in files:
        if one.status == "new" and len(contents[one.name]) > 1:
            one = one.failed(
                "several files of one name and different contents",
                expected="one",
                found=len(contents[one.name]),
                remedy="give the one that is right",
            )
        elif one.status == "new" and first[one.digest] is not one:
            one = one.but("skipped", f"a copy of {first[one.digest].path}")
        out.append(one)
    return out


def _without_twins(files: list[Found], journal: Journal) -> list[Found]:
    """No slit twice: neither of two new ones, since nothing says which is right."""
    holders: dict[Key, list[str]] = defaultdict(list)
    for one in files:
        for key in _keys(one):
            holders[key].append(one.name)
    if not holders:
        return files
    for name, group in journal.groups.items():
        for block in group.blocks:
            slitlets, names = block.coord("slitlet"), block.coord("filename", "")
            for slitlet, file in zip(slitlets, names, strict=True):
                key = (name, block.exposure, block.detector, slitlet)
                if key in holders:
                    holders[key].append(f"{file} (in the store)")
    out = []
    for one in files:
        twice = [k for k in _keys(one) if len(holders[k]) > 1]
        if twice:
            _, exposure, detector, slitlet = twice[0]
            more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
            one = one.failed(
                "the same slit in several products",
                expected="each slit once",
                found=f"{exposure} {detector} slitlet {slitlet}{more}, in "
                + ", ".join(sorted(holders[twice[0]])),
                remedy="give one of them; what is in a store stays",
            )
        out.append(one)
    return out


def _keys(one: Found) -> list[Key]:
    return [k for part in one.parts for k in part.keys] if one.status == "new" else []


def _of_one_kind(files: list[Found], journal: Journal) -> list[Found]:
    """One unit and one quality table a group: the store's, or those that most new slits have."""
    counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for one in files:
        for part in one.parts if one.status == "new" else ():
            counts[part.group][part.units, part.flags] += len(part.slitlets)
    # Of two that are as common the first by name: what is chosen must not depend on order.
    kinds = {name: min(c, key=lambda kind: (-c[kind], kind)) for name, c in counts.items()}
    for name, group in journal.groups.items():
        if group.blocks:
            kinds[name] = group.blocks[0].units, flags_digest(group.variables["quality"])
    out = []
    for one in files:
        odd = [p for p in one.parts if one.status == "new" and kinds[p.group][0] != p.units]
        other = [p for p in one.parts if one.status == "new" and kinds[p.group][1] != p.flags]
        if odd:
            one = one.failed(
                "slits in another unit than the others of their configuration",
                expected=kinds[odd[0].group][0],
                found=odd[0].units,
                remedy="ingest products of different units into stores of their own",
            )
        elif other:
            one = one.failed(
                "another table of quality flags than the others of its configuration",
                expected="the same names and bits",
                remedy="ingest products of different flags into stores of their own",
            )
        out.append(one)
    return out
