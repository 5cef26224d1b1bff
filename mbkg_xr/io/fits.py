"""What the readers of FITS products share: many files at once, bytes by offset."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import InputFileError, InputFilesError, ParameterError
from ..schema import SLIT_IDENTITY
from .headers import Hdu, hdu_table
from .lazy import S, Source, lazy_dataset, node_name

__all__ = [
    "Hdu",
    "Source",
    "by_configuration",
    "first_given",
    "hdu_table",
    "lazy_dataset",
    "node_name",
    "read_bytes",
    "scan_files",
]

_THREADS = 8


def read_bytes(path: str | Path, offset: int, size: int) -> bytes:
    """Read `size` bytes at `offset`.

    Raises
    ------
    InputFileError
        Where the file is gone, or ends before.
    """
    # Opened for this one read: no file stays open, and no other thread moves its position.
    try:
        with open(path, "rb", buffering=0) as stream:
            stream.seek(offset)
            data = stream.read(size)
            while len(data) < size and (more := stream.read(size - len(data))):
                data += more
    except OSError as error:
        raise InputFileError(
            "cannot read the file", where=str(path), found=error.strerror, remedy="check the path"
        ) from error
    if len(data) != size:
        raise InputFileError(
            "truncated FITS file",
            where=str(path),
            expected=f"{size} bytes at {offset}",
            found=len(data),
            remedy="fetch the file again",
        )
    return data


def first_given(*values: Any) -> Any:
    """The first value that is neither None nor an empty string; the last, where none is.

    Examples
    --------
    >>> first_given(None, "", 3, 4), first_given(None, "")
    (3, '')
    """
    return next((v for v in values if v is not None and v != ""), values[-1])


def scan_files(
    paths: Iterable[str | Path],
    scan: Callable[[str | Path], Sequence[S]],
    *,
    on_error: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[S]:
    """Read the structure of many products, and report all that cannot be used together.

    Parameters
    ----------
    paths
        Files. Some are read at a time; their order does not matter.
    scan
        Gives the slits of one file.
    on_error
        ``"raise"`` one error that reports all unusable files, or ``"warn"`` and keep the others.
    progress
        Called with the number of files done and of all.

    Returns
    -------
    list of Source
        By exposure, detector and slitlet.

    Raises
    ------
    InputFileError, InputFilesError
        Where one or several files cannot be used.
    ParameterError
        On an unknown `on_error`.
    """
    if on_error not in ("raise", "warn"):
        raise ParameterError(
            "unknown way to treat unusable files",
            where="on_error",
            expected="'raise' or 'warn'",
            found=repr(on_error),
        )
    files = list(paths)
    sources: list[S] = []
    problems: list[InputFileError] = []
    for done, found in enumerate(_each(scan, files), 1):
        if isinstance(found, InputFileError):
            problems.append(found)
        else:
            sources += found
        if progress is not None:
            progress(done, len(files))
    _report(problems, on_error if sources else "raise")
    # Never the order in which files were given.
    return sorted(sources, key=lambda s: (*_identity(s), _path(s)))


def _report(problems: Sequence[InputFileError], on_error: str) -> None:
    if problems and on_error == "raise":
        raise problems[0] if len(problems) == 1 else InputFilesError(list(problems))
    for problem in problems:
        warnings.warn(f"left out: {problem}", stacklevel=4)


def _each(
    scan: Callable[[str | Path], Sequence[S]], files: Sequence[str | Path]
) -> Iterator[Sequence[S] | InputFileError]:
    """Slits of each file, or what is wrong with it, in the order of the files."""

    def one(path: str | Path) -> Sequence[S] | InputFileError:
        try:
            return scan(path)
        except InputFileError as error:
            return error

    if len(files) == 1:
        yield one(files[0])
        return
    # Disks and networks have a latency, which threads share.
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(one, files)


def _identity(source: Source) -> tuple:
    return tuple(source.coords[k] for k in SLIT_IDENTITY)


def _path(source: Source) -> str:
    return str(getattr(source, "path", None) or source.coords["path"])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def by_configuration(sources: Iterable[S], *, on_error: str = "raise") -> dict[str, list[S]]:
    """Slits by disperser and filter, in the order given, each once; those without their sky apart.

    Parameters
    ----------
    sources
        Slits of one format.
    on_error
        What to do about a slit that several files hold: ``"raise"``, or ``"warn"`` and keep the
        first.

    Raises
    ------
    InputFileError, InputFilesError
        Where files hold the same slit; both are named.
    """
    groups: dict[str, dict[tuple, S]] = {}
    twins: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        group = groups.setdefault(node_name(source), {})
        first = group.setdefault(_identity(source), source)
        if first is not source:
            twins.setdefault((_path(first), _path(source)), []).append(
                str(source.coords["slitlet"])
            )
    problems = [
        InputFileError(
            "a slit occurs more than once",
            where=second,
            expected="each slitlet once an exposure and detector",
            found=f"slitlet {_some(slitlets)} in {first} too",
            remedy="give one of the two products",
        )
        for (first, second), slitlets in twins.items()
    ]
    _report(problems, on_error)
    return {name: list(group.values()) for name, group in groups.items()}
