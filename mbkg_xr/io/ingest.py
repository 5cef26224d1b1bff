"""Products into a Zarr store: in parallel, exposure by exposure, and as often as need be."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputFilesError, MbkgError, ParameterError, StoreError
from ..tasks import batches, results
from . import _expand
from .choose import choose
from .deliver import Delivered, Order, deliver
from .ingested import common_attrs
from .intake import IngestReport
from .journal import Group, Journal, Product, has_journal, read_journal, write_journal
from .location import located
from .lock import Lock, write_lock
from .slots import grow, mirror, sweep
from .store import create_store, finish, is_store
from .survey import Found, Survey, absolute, describe, reason_of, survey

__all__ = ["ingest"]

# 64 slits of PRISM are written and read a quarter faster than 32 (benchmarks/storage.py); planes of
# gratings fill the memory that chunks are worked on in.
_LENGTHS = (32, 64)
_SMALL = 2**14  # pixels of a plane
_EMPTY = 1.1  # slots that longer chunks may take, over those that shorter ones do
_MARGIN = (8, 32)  # rows and columns that chunks are rounded up to, for larger slits to come
_LOOK_AT, _LOOK_AT_BYTES = 32, 2**25  # files, and bytes, that one task looks into together


def ingest(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    store: str | os.PathLike,
    *,
    chunks: int | None = None,
    on_error: str = "collect",
    on_step: Callable[[str], None] | None = None,
    **open_options: Any,
) -> IngestReport:
    """Bring slit products into a Zarr store, and new ones into one that exists. Computes.

    An exposure appears in the store when all that was given of it is written; if the process is
    killed, running it again goes on with what is missing. Files that are in with the same content
    are passed over, and what `open_program` shows of the store does not depend on the order of
    files, nor on how many calls brought them in. Work goes through dask: threads by default, or
    what `dask.config` says, or the `distributed.Client` in use.

    Parameters
    ----------
    paths
        As for `open_program`: files, glob patterns, directories. MSA metafiles serve the reader.
    store
        The Zarr store to make or to add to, a path or a URL. One process at a time may write to it.
    chunks
        Slits in a chunk of a new store; by default 64 where their planes are small and exposures
        have so many, otherwise 32.
    on_error
        ``"collect"`` unusable files in the report and take the others, or ``"raise"`` before
        anything is written.
    on_step
        Called with a line of text about what is being done.
    **open_options
        Passed to `open_program`, such as ``nips_layout``. What the reader decides with them (which
        slits are sky, say) is stored.

    Returns
    -------
    IngestReport
        What became of each file, with reasons.

    Raises
    ------
    ParameterError
        Where an option makes no sense.
    StoreError
        Where the store cannot be written, is not of this function's making, or another process
        writes to it.
    InputFilesError
        With ``on_error="raise"``, where files cannot be used.

    Examples
    --------
    >>> import mbkg_xr as mx, pathlib, tempfile
    >>> from mbkg_xr.simulate.nips import write_nips
    >>> ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = write_nips(ds, folder)
    ...     store = pathlib.Path(folder) / "program.zarr"
    ...     print(mx.ingest(files, store))
    ...     print(mx.ingest(files, store))
    ...     mx.open_program(store)["prism-clear"].sizes["slit"]
    2 accepted, 0 skipped, 0 failed
    0 accepted, 2 skipped, 0 failed
    2
    """
    if on_error not in ("collect", "raise"):
        raise ParameterError("unknown on_error", expected="collect or raise", found=on_error)
    if chunks is not None and (not isinstance(chunks, int) or chunks < 1):
        raise ParameterError("unusable chunks", expected="slits, 1 or more", found=chunks)
    path = located(store)
    if path.exists() and not has_journal(path):
        raise StoreError(
            "not a store that ingest made",
            where=str(path),
            expected="such a store, or nothing",
            found="a store of another kind" if is_store(path) else "something else",
            remedy="choose another name",
        )
    call = _Call(path, chunks, on_error, on_step or (lambda text: None), open_options)
    files, absent = _expanded(paths)
    if not has_journal(path):
        seen = call.look(files, Journal())
        if not any(f.status == "new" for f in call.chosen(seen, absent, Journal())):
            return call.report()
        with create_store(path) as staging:
            finish(staging)
            write_journal(staging, Journal())
    else:
        seen = None
    with write_lock(path) as lock:
        journal = read_journal(path)
        sweep(path, journal)
        seen = seen or call.look(files, journal)
        new = [f for f in call.chosen(seen, absent, journal) if f.status == "new"]
        call.bring_in(new, seen, journal, lock)
    return call.report()


def _expanded(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
) -> tuple[list[str], list[Found]]:
    """Files that were meant, and patterns that mean none."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise ParameterError("no input files", expected="paths of slit products", found="none")
    files: dict[str, None] = {}
    absent = []
    for path in given:
        try:
            files |= dict.fromkeys(str(Path(f).absolute()) for f in _expand(path))
        except MbkgError as error:
            absent.append(Found(os.fspath(path), status="failed", reason=str(error)))
    return sorted(files), absent


class _Call:
    """One call of `ingest`: its options, and what became of each file so far."""

    def __init__(
        self,
        store: Path,
        chunks: int | None,
        on_error: str,
        say: Callable[[str], None],
        options: dict[str, Any],
    ):
        self.store, self.chunks, self.on_error, self.say = store, chunks, on_error, say
        self.options = {name: absolute(value) for name, value in options.items()}
        self.told = describe(options)
        self.rows: dict[str, Found] = {}
        self.orders: list[Order] = []

    def report(self) -> IngestReport:
        """What became of the files.

        Raises
        ------
        InputFilesError
            Where that was asked for, and some cannot be used.
        """
        bad = [MbkgError(f.reason) for f in self.rows.values() if f.status == "failed"]
        if bad and self.on_error == "raise":
            raise InputFilesError(bad)
        return IngestReport(str(self.store), tuple(self.rows.values()))

    def look(self, files: Sequence[str], journal: Journal) -> Survey:
        """Digests and structure of all files, whatever is known of them."""
        known = {name: p.digest for name, p in journal.products.items()}
        seen = Survey()
        for some in batches((1, bundle) for bundle in _bundles(files)):
            self.say(f"looked at {len(seen.found)} of {len(files)} files")
            tasks = []
            for bundle in some:
                names = [Path(f).name for f in bundle]
                theirs = {n: known[n] for n in names if n in known}
                tasks.append(partial(survey, bundle, theirs, self.options))
            for bundle, result in zip(some, results(tasks), strict=True):
                if isinstance(result, Survey):
                    seen.add(result)
                else:
                    reason = reason_of(result)
                    seen.found += [Found(f, status="failed", reason=reason) for f in bundle]
        return seen

    def chosen(self, seen: Survey, absent: list[Found], journal: Journal) -> list[Found]:
        """What is to become of all files; those with problems are told now, if that was asked."""
        files = choose([*seen.found, *absent], journal, self.told)
        self.rows = {f.path: f for f in files}
        self.report()
        return files

    def bring_in(self, new: Sequence[Found], seen: Survey, journal: Journal, lock: Lock) -> None:
        """Write what is new, and commit it exposure by exposure."""
        if not new:
            return
        self.orders = orders = self._plan(new, seen, journal, lock)
        write_journal(self.store, journal)  # what is made from here on is known to be ours
        self._grow(journal)
        exposures: dict[str, list[Order]] = defaultdict(list)
        for order in orders:
            exposures[order.exposure].append(order)
        done = 0
        for batch in batches((len(some), some) for some in exposures.values()):
            self.say(f"wrote {done} of {len(exposures)} exposures")
            self._commit(self._delivered([o for some in batch for o in some]), journal, lock)
            done += len(batch)
        if any(f.status == "failed" for f in self.rows.values()):
            sweep(self.store, journal)  # of what could not be read to the end

    def _plan(
        self, new: Sequence[Found], seen: Survey, journal: Journal, lock: Lock
    ) -> list[Order]:
        """Slots for all that is new, by exposure and detector, whatever the order of files."""
        holders: dict[tuple[str, str, str], list[Found]] = defaultdict(list)
        sizes: dict[str, list[tuple[int, int]]] = defaultdict(list)
        counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        for one in new:
            for part in one.parts:
                holders[part.exposure, part.group, part.detector].append(one)
                sizes[part.group].append(part.shape)
                counts[part.group][part.exposure, part.detector] += len(part.slitlets)
                group = journal.groups.setdefault(part.group, Group((0, 0, 0)))
                for name, variable in seen.variables[part.group, part.flags].items():
                    group.variables.setdefault(name, variable)
        for name, shapes in sizes.items():
            group = journal.groups[name]
            if not group.blocks:
                rows, columns = (max(n) for n in zip(*shapes, strict=True))
                plane = _rounded(rows, _MARGIN[0]), _rounded(columns, _MARGIN[1])
                group.chunk = (self.chunks or _usual_length(counts[name].values(), plane), *plane)
            elif self.chunks not in (None, group.chunk[0]):
                raise ParameterError(
                    "the store has chunks of another length",
                    where=str(self.store),
                    expected=group.chunk[0],
                    found=self.chunks,
                    remedy="leave out chunks, or ingest into a new store",
                )
        metafiles = tuple(f.path for f in self.rows.values() if f.status == "used")
        free = {name: group.slots for name, group in journal.groups.items()}
        orders = []
        for (exposure, name, detector), files in sorted(holders.items()):
            group = journal.groups[name]
            orders.append(
                Order(
                    lock=lock,
                    group=name,
                    exposure=exposure,
                    detector=detector,
                    start=free[name],
                    files=tuple(files),
                    metafiles=metafiles,
                    chunk=group.chunk,
                    variables=group.variables,
                    options=self.options,
                    told=self.told,
                )
            )
            free[name] += _rounded(orders[-1].count, group.chunk[0])
        return orders

    def _grow(self, journal: Journal) -> None:
        """Arrays for all that is planned."""
        for name, group in journal.groups.items():
            mine = [o for o in self.orders if o.group == name]
            rows = max([group.shape[0], *(o.shape[0] for o in mine)])
            columns = max([group.shape[1], *(o.shape[1] for o in mine)])
            slots = max([group.slots, *(o.start + o.count for o in mine)])
            grow(self.store, name, group, slots, (rows, columns))

    def _delivered(self, orders: list[Order]) -> list[Delivered]:
        """Blocks as written. A file that fails in one of them is left out of all."""
        done: dict[int, Delivered] = {}
        todo = dict(enumerate(orders))
        while todo:
            got = results([partial(deliver, order) for order in todo.values()])
            for (key, order), result in zip(todo.items(), got, strict=True):
                if isinstance(result, Exception):
                    reason = reason_of(result)
                    result = Delivered(order, None, {}, {f.path: reason for f in order.files})
                done[key] = result
                for path, reason in result.failed.items():
                    self.rows[path] = self.rows[path].but("failed", reason)
            todo = {}
            for key, result in done.items():
                good = tuple(f for f in result.written if self.rows[f.path].status != "failed")
                if len(good) < len(result.written):
                    todo[key] = replace(result.order, files=good)
        return list(done.values())

    def _commit(self, delivered: Sequence[Delivered], journal: Journal, lock: Lock) -> None:
        """Make a batch of exposures visible, all at once."""
        written = [d for d in delivered if d.block is not None]
        fresh = False
        for one in written:
            coords = journal.groups[one.order.group].coords
            fresh |= bool(one.coords.keys() - coords.keys())
            journal.groups[one.order.group].coords = {**one.coords, **coords}
        if fresh:
            write_journal(self.store, journal)
            self._grow(journal)
        for name in sorted({d.order.group for d in written}):
            group = journal.groups[name]
            blocks = [d.block for d in written if d.order.group == name and d.block is not None]
            start = group.slots
            group.blocks = [*group.blocks, *blocks]
            mirror(self.store, name, group, start, common_attrs(group.blocks, name))
        blocks_of: dict[str, list[str]] = defaultdict(list)
        for one in written:
            for file in one.written:
                blocks_of[file.path].append(f"{one.order.group}/{one.order.start}")
        for path, names in blocks_of.items():
            file = self.rows[path] = self.rows[path].but("accepted")
            journal.products[file.name] = Product(file.size, file.digest, names, self.told)
        lock.check()
        write_journal(self.store, journal)


def _usual_length(counts: Iterable[int], plane: tuple[int, int]) -> int:
    """Slits a chunk, for exposures of so many slits on planes of this shape."""
    short, long = _LENGTHS
    slots = [sum(_rounded(n, length) for n in counts) for length in _LENGTHS]
    return long if plane[0] * plane[1] <= _SMALL and slots[1] <= _EMPTY * slots[0] else short


def _rounded(n: int, step: int) -> int:
    return -(-n // step) * step


def _bundles(files: Sequence[str]) -> list[list[str]]:
    """Files that one task looks into: a large one, or many small ones."""
    out: list[list[str]] = []
    size = _LOOK_AT_BYTES
    for file in files:
        here = os.path.getsize(file) if os.path.exists(file) else 0
        if size + here > _LOOK_AT_BYTES or len(out[-1]) == _LOOK_AT:
            out.append([])
            size = 0
        out[-1].append(file)
        size += here
    return out
