"""Tables by slit that do not stay in memory: where they are large, in scratch files.

The files are mapped, so that all that takes arrays takes them. What was seen of a table stays in
memory until it is let go of, which costs next to nothing: the system keeps it as long as it has
room, and reads it again otherwise. So those who go over all slits go over some at a time (`lots`).
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .scratch import nameless_file, scratch_folder

__all__ = ["LOT", "let_go", "lots", "zeros"]

#: Slits at a time.
LOT = 1024
_LARGE = 2**21  # bytes

_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_lock = threading.Lock()


def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float64) -> NDArray:
    """An array of zeros, in a scratch file of its own where it is large.

    The file has no name, and ends with the array; processes that are forked share it. Where it
    cannot be made the array is in memory, with a warning.

    Examples
    --------
    >>> zeros((2, 3)).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size <= _LARGE:
        return np.zeros(shape, dtype)
    folder = scratch_folder()
    try:
        with nameless_file(folder) as file:
            _take_room(file.fileno(), size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        warnings.warn(
            f"no room for scratch files ({folder}: {error}): tables by slit stay in memory; set "
            "dask's temporary-directory (DASK_TEMPORARY_DIRECTORY) to a larger disk",
            stacklevel=2,
        )
        return np.zeros(shape, dtype)
    with _lock:
        _maps.add(mapped)
    return np.frombuffer(mapped, dtype).reshape(shape)


def _take_room(file: int, size: int) -> None:
    """Make a file so long; on a full disk that is an error now, and not a crash later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    block, place = bytes(2**20), 0
    while place < size:
        place += os.pwrite(file, block[: size - place], place)


def let_go() -> None:
    """Let go of what was seen of all tables in scratch files; it is there when asked for."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    with _lock:
        maps = list(_maps)
    for mapped in maps:
        with suppress(OSError):  # where the system must keep it
            mapped.madvise(mmap.MADV_DONTNEED)


def lots(n: int) -> Iterator[slice]:
    """Some of so many slits after the other; what is seen of tables meanwhile is let go of."""
    for first in range(0, n, LOT):
        yield slice(first, min(first + LOT, n))
        let_go()
