"""Room for packed pixels: so many bytes of memory, then scratch files.

The page cache serves scratch files nearly as fast as memory does, and gives way where others need
it: little is lost by keeping little.
"""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import dask

from .packing import Packed, Stored

__all__ = ["NoRoom", "Room"]


class NoRoom(Exception):
    """Neither in memory nor for scratch files."""


class Room:
    """What there is room for, asked from several threads.

    Parameters
    ----------
    memory
        Bytes of packed pixels that stay in memory.
    stack
        At its end the scratch files go. None: there are to be none.
    """

    def __init__(self, memory: int, stack: ExitStack | None):
        self.left, self.stack = memory, stack
        self.folder: TemporaryDirectory | None = None
        self.names = count()
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
            try:
                if self.folder is None:
                    place = dask.config.get("temporary-directory", None)
                    folder = TemporaryDirectory(prefix="mbkg-xr-", dir=place)
                    self.stack.enter_context(folder)
                    self.folder = folder
                # Other threads write at the same time, and others need room, too.
                if shutil.disk_usage(self.folder.name).free < 8 * packed.nbytes:
                    raise NoRoom
            except OSError as error:
                raise NoRoom from error
            path = Path(self.folder.name) / f"{next(self.names)}.pixels"
        try:
            return packed.write(path)
        except OSError as error:
            raise NoRoom from error
