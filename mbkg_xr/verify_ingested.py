"""Whether a store that `ingest` made is what its journal says, to the last byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from .errors import MbkgError, StoreError
from .findings import Problem, VerifyReport, collect, compare_files, last_codec, problem
from .io.chunks import chunk_name, damage, open_array
from .io.ingested import open_ingested
from .io.journal import Block, Group, Journal, read_journal
from .io.location import located, sizes_below
from .io.lock import LOCK_NAME, holder
from .io.slots import coord_values, digest, expected_files, fill_of, unknown_of
from .schema import validate

__all__ = ["check_ingested"]


def check_ingested(store: Path, report: VerifyReport, say: Callable[[str], None]) -> None:
    """Check a store against its journal; what is wrong goes to the report."""
    held = holder(store)
    if held is not None:
        who, gone = held
        what = "left by an ingest that died: run it again" if gone else "an ingest is running"
        report.problems.append(Problem("locked", LOCK_NAME, "no lock", f"{who}, {what}"))
    try:
        journal = read_journal(store)
        for node in open_ingested(store).children.values():
            validate(node.to_dataset())
    except MbkgError as error:
        report.problems.append(problem(error))
        return
    ours = {LOCK_NAME} if held else set()
    compare_files(sizes_below(store), {*expected_files(journal), *ours}, report)
    report.groups = sum(bool(g.blocks) for g in journal.groups.values())
    report.slits = sum(b.count for g in journal.groups.values() for b in g.blocks)
    _check_products(journal, report)
    calls: list[Callable[[], list[Problem]]] = []
    for name, group in journal.groups.items():
        _check_blocks(name, group, report)
        broken = _check_arrays(store, name, group, report)
        _check_coords(store, name, group, broken, report)
        for variable, made in group.variables.items():
            mine = [b for b in group.blocks if variable in b.digests]
            report.chunks += sum(len(list(group.chunk_indices(b))) for b in mine)
            if variable not in broken:
                where = (str(store), f"{name}/{variable}")
                calls += [partial(_check_pixels, *where, b, group.chunk, made) for b in mine]
    if report.deep:
        collect(report, calls, say)


def _check_products(journal: Journal, report: VerifyReport) -> None:
    """Products and blocks must name each other."""
    files: dict[str, set[str]] = {}
    for name, group in journal.groups.items():
        for block in group.blocks:
            files[f"{name}/{block.start}"] = set(block.coord("filename", ""))
    for product_name, known in journal.products.items():
        for place in known.blocks:
            if product_name not in files.get(place, set()):
                what = f"slits of {product_name}"
                report.problems.append(Problem("journal", place, what, "none"))
    for place, names in files.items():
        for name in sorted(names - journal.products.keys()):
            report.problems.append(Problem("journal", place, f"product {name}", "none"))


def _check_blocks(name: str, group: Group, report: VerifyReport) -> None:
    """Blocks begin at chunks, do not overlap, and their coordinates are as many as their slits."""
    free = 0
    for block in sorted(group.blocks, key=lambda b: b.start):
        where = f"{name}, {block.exposure} {block.detector}"
        if block.start % group.chunk[0] or block.start < free:
            expected = f"a multiple of {group.chunk[0]} from {free} on"
            report.problems.append(Problem("slots", where, expected, str(block.start)))
        free = -(-block.stop // group.chunk[0]) * group.chunk[0]
        for coord, values in block.coords.items():
            if isinstance(values, list) and len(values) != block.count:
                counts = f"{block.count} values", str(len(values))
                report.problems.append(Problem("journal", f"{where}, {coord}", *counts))


def _check_arrays(store: Path, name: str, group: Group, report: VerifyReport) -> set[str]:
    """Arrays as the journal says; the names of those that cannot be used."""
    broken = set()
    for variable in (*group.variables, *group.coords):
        pixels = variable in group.variables
        made = group.variables[variable] if pixels else group.coords[variable]
        fill = fill_of(made) if pixels else unknown_of(variable, made)
        try:
            array = open_array(store, f"{name}/{variable}")
        except StoreError as error:
            report.problems.append(problem(error))
            broken.add(variable)
            continue
        kind = array.dtype.name if array.dtype.kind not in "TOU" else "U"
        facts = {
            "dtype": (made["dtype"], kind),
            "slots": (group.slots, array.shape[0]),
            "chunk": (group.chunk if pixels else array.chunks, array.chunks),
            "dims": (("slit", "y", "x") if pixels else ("slit",), _dims(array)),
            "fill": (str(np.array(fill)), str(np.array(array.fill_value))),
            "checksum": ("crc32c", last_codec(array)),
            "attributes": (made["attrs"], dict(array.attrs)),
        }
        for fact, (expected, found) in facts.items():
            if expected != found:
                where = f"{name}/{variable}, {fact}"
                report.problems.append(Problem("metadata", where, str(expected), str(found)))
                broken.add(variable)
    return broken


def _check_coords(
    store: Path, name: str, group: Group, broken: set[str], report: VerifyReport
) -> None:
    """Coordinates' arrays, which serve other tools, against the journal."""
    for coord, made in group.coords.items():
        if coord in broken:
            continue
        unknown = unknown_of(coord, made)
        kind = object if made["dtype"] == "U" else made["dtype"]
        expected = np.full(group.slots, unknown, dtype=kind)
        for block in group.blocks:
            expected[block.start : block.stop] = coord_values(coord, made, block)
        try:
            found = np.asarray(open_array(store, f"{name}/{coord}")[:])
        except Exception as error:
            report.problems.append(problem(damage(store, f"{name}/{coord}", "c", error)))
            continue
        found = found.astype(object) if made["dtype"] == "U" else found
        same = (found == expected) | ((found != found) & (expected != expected))
        if not same.all():
            slot = int(np.flatnonzero(~same)[0])
            where = f"{name}/{coord}, slot {slot}"
            values = str(expected[slot]), str(found[slot])
            report.problems.append(Problem("coordinates", where, *values))


def _check_pixels(
    store: str, name: str, block: Block, chunk: tuple[int, int, int], made: Mapping[str, Any]
) -> list[Problem]:
    """Read a block of one variable: checksums, digest, and padding that is fill."""
    array = open_array(store, name)
    length, ny, nx = chunk
    rows, columns = block.shape
    counts = -(-rows // ny), -(-columns // nx)
    fill = np.asarray(fill_of(made), dtype=made["dtype"])
    so_far = digest(np.empty(0))
    for first in range(block.start, block.stop, length):
        files = [chunk_name(array, (first // length, *i)) for i in product(*map(range, counts))]
        if not all((located(store) / name / file).exists() for file in files):
            return []  # told by the listing
        slots = range(first, min(first + length, block.stop))
        try:
            values = np.asarray(array[first : first + length, : counts[0] * ny, : counts[1] * nx])
        except Exception as error:
            return [problem(damage(store, name, files[0], error, slots))]
        so_far = digest(values, so_far)
        outside = (values[len(slots) :], values[:, rows:], values[:, :, columns:])
        if not all(_same_bits(part, fill) for part in outside):
            where = f"{name}, {block.exposure} {block.detector}"
            return [Problem("padding", where, f"fill, {fill}", "other values")]
    found, expected = so_far.hexdigest(), block.digests[name.rpartition("/")[2]]
    where = f"{name}, {block.exposure} {block.detector}"
    return [] if found == expected else [Problem("digest", where, expected, found)]


def _same_bits(values: np.ndarray, one: np.ndarray) -> bool:
    bits = f"u{one.itemsize}"
    return bool((np.ascontiguousarray(values).view(bits) == one.view(bits)).all())


def _dims(array: zarr.Array) -> tuple:
    return tuple(getattr(array.metadata, "dimension_names", None) or ())
