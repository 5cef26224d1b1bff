"""Whether a store is whole: what should be in it is, nothing else, and all of it can be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import zarr

from .errors import MbkgError, StoreError
from .findings import Problem, VerifyReport, collect, compare_files, last_codec, problem
from .io.chunks import chunk_name, damage, open_array
from .io.journal import has_journal
from .io.location import is_remote, located, sizes_below, zarr_store
from .io.store import is_complete, is_store, open_store
from .schema import validate
from .verify_ingested import check_ingested

__all__ = ["VerifyReport", "verify"]


def verify(
    store: str | os.PathLike,
    *,
    deep: bool = True,
    on_step: Callable[[str], None] | None = None,
) -> VerifyReport:
    """Check a store: its metadata, the list of its chunks, checksums and padding. Computes.

    Parameters
    ----------
    store
        What `ingest` or `save` wrote.
    deep
        Read every chunk, through dask, and hold it to its checksum and, in an ingested store, to
        the digest of what was written. Otherwise chunks are only listed.
    on_step
        Called with a line of text about what is being done.

    Returns
    -------
    VerifyReport
        All that is wrong; ``ok`` where nothing is.

    Raises
    ------
    StoreError
        Where there is no store.

    Examples
    --------
    >>> import mbkg_xr as mx, pathlib, tempfile
    >>> ds = mx.simulate_program(exposures=1, slits=2, background_slits=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "a.zarr"
    ...     mx.save(ds, path)
    ...     before = mx.verify(path)
    ...     (path / "prism-clear/flux/c/0/0/0").unlink()
    ...     after = mx.verify(path)
    >>> before.ok, after.problems[0].kind
    (True, 'missing chunk')
    """
    path = located(store)
    if not (is_store(path) if is_remote(path) else path.is_dir()):
        raise StoreError("not a Zarr store", where=str(path), found="no such directory")
    report = VerifyReport(str(path), deep)
    say = on_step or (lambda text: None)
    say("listing chunks")
    check = check_ingested if has_journal(path) else _check_saved
    check(path, report, say)
    return report


def _check_saved(store: Path, report: VerifyReport, say: Callable[[str], None]) -> None:
    arrays = {}
    expected: set[str] = set()
    files = sizes_below(store)
    for metadata in sorted(f for f in files if f.rpartition("/")[2] == "zarr.json"):
        name = metadata.rpartition("/")[0] or "."
        expected.add(metadata)
        try:
            node = zarr.open(zarr_store(store / name if name != "." else store), mode="r")
        except Exception as error:
            report.problems.append(Problem("damaged metadata", name, "Zarr", str(error)))
            continue
        if isinstance(node, zarr.Array):
            arrays[name] = node
    complete = is_complete(store)
    for name, array in arrays.items():
        indices = list(_indices(array))
        chunks = {f"{name}/{chunk_name(array, index)}" for index in indices}
        expected |= chunks if complete else chunks & files.keys()
        report.chunks += len(chunks)
        if last_codec(array) != "crc32c":
            report.problems.append(Problem("no checksum", name, "crc32c", last_codec(array)))
    compare_files(files, expected, report)
    try:
        tree = open_store(store)
        slits = [n.to_dataset(inherit=False) for n in tree.subtree if "flux" in n.data_vars]
        report.groups, report.slits = len(slits), sum(ds.sizes["slit"] for ds in slits)
        for ds in slits:
            validate(ds)
    except MbkgError as error:
        report.problems += [] if _is_told(error, report) else [problem(error)]
    if report.deep:
        lots = [
            partial(_check_chunks, str(store), name, some)
            for name, array in arrays.items()
            for some in _lots(list(_indices(array)), 8)
        ]
        collect(report, lots, say)


def _is_told(error: MbkgError, report: VerifyReport) -> bool:
    return error.cause in {p.kind for p in report.problems}


def _indices(array: zarr.Array) -> Iterator[tuple[int, ...]]:
    counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
    return product(*map(range, counts))


def _lots(items: list, length: int) -> list[list]:
    return [items[i : i + length] for i in range(0, len(items), length)]


def _check_chunks(store: str, name: str, indices: list[tuple[int, ...]]) -> list[Problem]:
    array = open_array(store, name)
    out = []
    for index in indices:
        file = chunk_name(array, index)
        if not (located(store) / name / file).exists():
            continue  # told by the listing, or nothing but fill
        place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, array.chunks, strict=True))
        slots = range(*place[0].indices(array.shape[0])) if place and array.ndim == 3 else ()
        try:
            array[place]
        except Exception as error:
            out.append(problem(damage(store, name, file, error, slots)))
    return out
