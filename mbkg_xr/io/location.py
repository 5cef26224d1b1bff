"""Where stores are: local directories, and URLs of object stores and servers.

A local directory is a `pathlib.Path`; a URL (``s3://bucket/result.zarr``) becomes a path of
`universal_pathlib`, which has the same methods, and the files below it fsspec's. Credentials,
endpoints and other settings are those of fsspec and of its packages: the environment's, here and
on every worker.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ..errors import MbkgError, StoreError

__all__ = [
    "create_exclusively",
    "is_remote",
    "is_url",
    "local_path",
    "located",
    "move_store",
    "reaching",
    "remove_tree",
    "sizes_below",
    "zarr_store",
]

# What others write must be seen: a listing is never taken from memory.
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}
# Chunks are small enough for one request each; in parts, their sizes would be asked for first.
_OPTIONS_OF = {"s3": {"max_concurrency": 1}, "s3a": {"max_concurrency": 1}}


def is_url(path: object) -> bool:
    """Whether this is a URL, of files elsewhere.

    Examples
    --------
    >>> is_url("s3://bucket/a.zarr"), is_url("file:///home/a.zarr"), is_url("a.zarr")
    (True, False, False)
    """
    return "://" in str(path) and not str(path).startswith("file://")


def located(path: str | os.PathLike) -> Path:
    """A store's place: a path, or for a URL what has the methods of one.

    Absolute: the workers of a cluster may stand in other directories.

    Raises
    ------
    StoreError
        Where the URL is of no known kind, or a package is missing that it takes.
    """
    if is_remote(path):
        return cast(Path, path)
    text = os.fspath(path)
    if not is_url(text):
        return Path(text.removeprefix("file://")).absolute()
    with reaching(text):
        import upath

        remote: Any = upath.UPath
        place = remote(text.rstrip("/"), **_options(text))
        place.fs  # noqa: B018  a package that is missing is told here
        return place


def _options(url: str) -> dict[str, Any]:
    return _OPTIONS | _OPTIONS_OF.get(url.partition("://")[0], {})


def is_remote(path: object) -> bool:
    """Whether a place is not a local directory."""
    return not isinstance(path, Path) and hasattr(path, "storage_options")


def local_path(path: str | os.PathLike, what: str) -> Path:
    """A local path, for what only goes there; absolute.

    Raises
    ------
    StoreError
        Where it is a URL.
    """
    if is_url(path):
        raise StoreError(
            f"{what} go to local files only",
            where=str(path),
            expected="a local path",
            found="a URL",
            remedy="write here, and copy them",
        )
    return Path(path).absolute()


def zarr_store(place: Path) -> Any:
    """A place as Zarr takes it."""
    if not is_remote(place):
        return place
    from zarr.storage import FsspecStore

    with reaching(place):
        return FsspecStore.from_url(str(place), storage_options=_options(str(place)))


@contextmanager
def reaching(where: object) -> Iterator[None]:
    """Turn whatever a remote place makes go wrong into one line that names it."""
    try:
        yield
    except MbkgError:
        raise
    except ImportError as error:
        raise StoreError(
            "a package is missing for stores of this kind",
            where=str(where),
            found=error,
            remedy="pip install 'mbkg_xr[remote]' for s3:// and http://, or the package named here",
        ) from error
    except Exception as error:  # of fsspec, botocore, aiohttp and others
        raise StoreError(
            "cannot reach the store",
            where=str(where),
            found=f"{type(error).__name__}: {error}",
            remedy="look at the URL, and at credentials and endpoint in the environment "
            "(docs/files.md)",
        ) from error


def sizes_below(place: Path) -> dict[str, int]:
    """All files below a place, relative to it, and their bytes."""
    if is_remote(place):
        fs, root = _system(place)
        with reaching(place):
            found = fs.find(root, detail=True)
        return {name[len(root) + 1 :]: int(about["size"] or 0) for name, about in found.items()}
    out: dict[str, int] = {}
    for folder, _, files in os.walk(place):
        inside = Path(folder).relative_to(place)
        out |= {(inside / file).as_posix(): (Path(folder) / file).stat().st_size for file in files}
    return out


def create_exclusively(place: Path, text: str) -> bool:
    """Make a remote file with its text at once; False where it is there already."""
    fs, path = _system(place)
    with reaching(place):
        try:
            fs.pipe_file(path, text.encode(), mode="create")
        except FileExistsError:
            return False
    return True


def remove_tree(place: Path) -> None:
    """Remove all that lies at a place; nothing, and what cannot be removed, are passed over."""
    if not is_remote(place):
        shutil.rmtree(place, ignore_errors=True)
        return
    fs, root = _system(place)
    try:
        _remove(fs, [f"{root}/{name}" for name in sizes_below(place)])
        # File systems proper keep empty directories.
        fs.rm(root, recursive=True)
    except Exception:
        return


def move_store(staging: Path, place: Path) -> None:
    """Give a remote store its name, in place of what is there.

    Objects are copied where they are. The old store's root goes first and the new one's comes last:
    whoever looks in between finds no store, never a mixture of both.

    Raises
    ------
    StoreError
        Where a copy fails, again and again; the new store then stays where it was written.
    """
    fs, here = _system(place)
    _, there = _system(staging)
    with reaching(place):
        old = sorted(sizes_below(place), key=lambda name: name != _ROOT)
        if old[:1] == [_ROOT]:
            fs.rm_file(f"{here}/{_ROOT}")
            old = old[1:]
        _remove(fs, [f"{here}/{name}" for name in old])
        new = [name for name in sizes_below(staging) if name != _ROOT]
        try:
            for some in [*_lots(new), [_ROOT]]:
                _copy(fs, [f"{there}/{n}" for n in some], [f"{here}/{n}" for n in some])
        except Exception as error:
            raise StoreError(
                "the store is complete, and cannot be given its name",
                where=str(place),
                found=f"{type(error).__name__}: {error}",
                remedy=f"copy it from {staging}, the zarr.json of its root last, or remove that",
            ) from error


_ROOT = "zarr.json"
_WAITS = (1, 5, None)  # s, before copying is tried again, and given up


def _copy(fs: Any, sources: list[str], targets: list[str]) -> None:
    """Copy objects, and what a bad connection cost once or twice again."""
    for wait in _WAITS:
        try:
            fs.copy(sources, targets)
            return
        except Exception:
            if wait is None:
                raise
            time.sleep(wait)


def _remove(fs: Any, paths: list[str]) -> None:
    for some in _lots(paths):
        fs.rm(some)


def _lots(items: list[str], most: int = 1000) -> Iterable[list[str]]:
    return (items[i : i + most] for i in range(0, len(items), most))


def _system(place: Path) -> tuple[Any, str]:
    """Fsspec's file system of a remote place, and the path in it."""
    remote: Any = place
    return remote.fs, remote.path.rstrip("/")
