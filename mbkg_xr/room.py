"""Room for packed pixels: so many bytes of memory, then a scratch file.

The page cache serves scratch files nearly as fast as memory does, and gives way where others need
it: little is lost by keeping little.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from contextlib import ExitStack

from .packing import Packed, Stored
from .scratch import Scratch, scratch_folder
from .tasks import cluster

__all__ = ["MOST_KEPT", "NoRoom", "Room", "pixel_room", "tables_by_slit"]

#: The most of packed pixels that is kept, whatever is allowed, or that a cluster's worker holds.
MOST_KEPT = 2**30
# What is kept between passes where no limit is stated: what is known of slits, and packed pixels
# where that leaves room; few, as scratch files are nearly as fast.
_KEPT = 2**26
# Bytes a slit: its coordinates, results, and what of its tables does not lie in files (measured
# from 10^4 to 10^5 PRISM slits: 3.3e3, with 42e6 less of pixels).
_A_SLIT = 4_000
_LEFT = 2**30  # bytes, or a twentieth of the disk, that are left to others


def tables_by_slit(n_slits: int) -> int:
    """Bytes of what is known of each slit that stays in memory, beside tables in scratch files."""
    return n_slits * _A_SLIT


def pixel_room(n_slits: int) -> int:
    """Bytes of packed pixels that a process keeps between passes where no limit is stated."""
    if cluster() is not None:
        return MOST_KEPT
    return max(_KEPT - tables_by_slit(n_slits), 0)


class NoRoom(Exception):
    """Neither in memory nor for scratch files."""


class Room:
    """What there is room for, asked from several threads.

    Parameters
    ----------
    memory
        Bytes of packed pixels that stay in memory.
    stack
        At its end the scratch file goes. None: there is to be none.
    """

    def __init__(self, memory: int, stack: ExitStack | None):
        self.left, self.stack = memory, stack
        self.scratch: Scratch | None = None
        self.lock = threading.Lock()

    def keep(self, packed: Packed) -> Packed | Stored:
        """The same, in memory or in a file.

        Raises
        ------
        NoRoom
        """
        with self.lock:
            if packed.nbytes <= self.left:
                self.left -= packed.nbytes
                return packed
            if self.stack is None:
                raise NoRoom
            folder = scratch_folder()
            try:
                if self.scratch is None:
                    self.scratch = Scratch(folder)
                    self.stack.callback(self.scratch.close)
                disk = shutil.disk_usage(folder)
            except OSError as error:
                raise NoRoom(f"{folder}: {error}") from error
            # Other threads write at the same time, and others need room, too.
            if disk.free < 8 * packed.nbytes + min(_LEFT, disk.total // 20):
                raise NoRoom(f"{folder}: {disk.free / 1e9:.1f} GB free")
        try:
            return packed.write(self.scratch)
        except OSError as error:
            raise NoRoom(f"{folder}: {error}") from error

    def give_up(self, reason: NoRoom) -> None:
        """Let go of what was written, where not all has room; say so, once."""
        if self.scratch is None and not str(reason):
            return
        if self.scratch is not None:
            self.scratch.close()
        warnings.warn(
            f"no room for scratch files ({reason}): pixels are read again in each pass, which "
            "takes longer; set dask's temporary-directory (DASK_TEMPORARY_DIRECTORY) to a larger "
            "disk",
            stacklevel=4,
        )
