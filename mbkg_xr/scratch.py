"""A scratch file: numbers that are to be read again, on a disk, until they are let go of.

The file has no name, so that nothing stays of a run that is killed. Threads write and read it side
by side.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import dask
import numpy as np
from numpy.typing import NDArray

__all__ = ["Scratch", "nameless_file", "scratch_folder"]

_USUAL = Path("/var/tmp")


def scratch_folder() -> str:
    """Where scratch files go: dask's ``temporary-directory``, ``TMPDIR``, or a disk of the system.

    ``/tmp`` is memory on many systems, ``/var/tmp`` is not.
    """
    chosen = dask.config.get("temporary-directory", None) or os.environ.get("TMPDIR")
    if chosen:
        return str(chosen)
    return str(_USUAL) if os.access(_USUAL, os.W_OK) else tempfile.gettempdir()


def nameless_file(folder: str) -> IO[bytes]:
    """A file that nothing stays of, however the program ends.

    Raises
    ------
    OSError
        Where it cannot be made.
    """
    return tempfile.TemporaryFile(prefix="mbkg-xr-", dir=folder)


class Scratch:
    """A file that columns of numbers are written to, one after the other.

    Parameters
    ----------
    folder
        Where it is.

    Raises
    ------
    OSError
        Where it cannot be made.
    """

    def __init__(self, folder: str):
        self._file = nameless_file(folder)
        self._end = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._end

    @property
    def closed(self) -> bool:
        """Whether it is let go of."""
        return self._file.closed

    def write(self, columns: Iterable[NDArray[np.float32]]) -> int:
        """Write columns; where they begin, in bytes.

        Raises
        ------
        OSError
            On a full disk.
        """
        columns = [np.ascontiguousarray(column) for column in columns if column.size]
        with self._lock:
            place = self._end
            self._end += sum(column.nbytes for column in columns)
        at = place
        for column in columns:
            left = memoryview(column.data).cast("B")
            while left:
                written = os.pwrite(self._file.fileno(), left, at)
                at += written
                left = left[written:]
        return place

    def read(self, place: int, count: int) -> NDArray[np.float32]:
        """So many numbers from a place.

        Raises
        ------
        OSError
            Where they are not there.
        """
        out = np.empty(count, dtype=np.float32)
        left = memoryview(out.data).cast("B") if count else memoryview(b"")
        while left:
            got = os.preadv(self._file.fileno(), [left], place)
            if not got:
                raise OSError(f"{len(left)} bytes of a scratch file are not there: was it cut off?")
            place += got
            left = left[got:]
        return out

    def close(self) -> None:
        """Let go of it, and of its room on the disk."""
        self._file.close()
