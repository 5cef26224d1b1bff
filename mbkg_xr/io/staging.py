"""Where a store lies while it is written: beside its name, with a mark of who writes it.

What a run that was killed left is removed by the next one of the same name, once its process is
known to be dead; what may still be written to stays, and is spoken of.
"""

from __future__ import annotations

import uuid
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path

from ..errors import StoreError
from .location import is_remote, reaching, remove_tree
from .lock import mark, marked

__all__ = ["begin_staging", "clear_leftovers", "end_staging", "leave_staging", "staging_of"]


def staging_of(path: Path) -> tuple[Path, Path]:
    """Where to write a store, and where to put the one that it replaces."""
    token = uuid.uuid4().hex[:8]
    return path.with_name(f".{path.name}.staging-{token}"), path.with_name(
        f".{path.name}.old-{token}"
    )


def begin_staging(staging: Path, path: Path) -> None:
    """Begin, and so learn that nothing can be written here before the work, not after it.

    Raises
    ------
    StoreError
    """
    if is_remote(staging):
        with reaching(path):
            mark(_mark_of(staging))
        return
    try:
        staging.mkdir(parents=True)
        mark(_mark_of(staging))
    except OSError as error:
        raise StoreError("cannot write here", where=str(path), found=error.strerror) from error


def leave_staging(staging: Path) -> None:
    """Have it stay, with a mark that says whose it is taken away: no run will remove it."""
    with suppress(Exception):
        _mark_of(staging).unlink(missing_ok=True)


def end_staging(staging: Path) -> None:
    """Remove what is left of it, and the mark."""
    remove_tree(staging)
    with suppress(Exception):  # of a place that cannot be reached any more
        _mark_of(staging).unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Remove what former runs of the same name left when they were killed."""
    left = _beside(path, "staging")
    for place in sorted({p.with_name(p.name.removesuffix(_MARK)) for p in left}):
        who, alive = marked(_mark_of(place))
        if alive:
            continue
        if alive is None:
            warnings.warn(
                f"{place} stays: another run may be writing it ({who}); remove it if that has "
                "ended",
                stacklevel=4,
            )
            continue
        end_staging(place)
        warnings.warn(
            f"removed {place}: a run that was killed ({who}) left it unfinished", stacklevel=4
        )
    for place in _beside(path, "old"):
        if path.exists():
            remove_tree(place)
            continue
        warnings.warn(
            f"{place} is the former {path.name}: a run that was to replace it was killed as it "
            "did; rename it to have it back",
            stacklevel=4,
        )


_MARK = ".writer"


def _mark_of(staging: Path) -> Path:
    return staging.with_name(staging.name + _MARK)


def _beside(path: Path, what: str) -> list[Path]:
    with reaching(path) if is_remote(path) else nullcontext():
        if not path.parent.exists():
            return []
        start = f".{path.name}.{what}-"
        return sorted(p for p in path.parent.iterdir() if p.name.startswith(start))
