"""One writer a store: a lock file that says who holds it, and counts for nothing once they died."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError
from .location import create_exclusively, is_remote, located

__all__ = ["LOCK_NAME", "Lock", "holder", "mark", "marked", "write_lock"]

LOCK_NAME = ".ingest.lock"


@dataclass(frozen=True)
class Lock:
    """A lock that is held: the store's, and the word by which its holder knows it."""

    store: str
    token: str

    def check(self) -> None:
        """Make sure that it is still held; what was started under a lost lock must not write.

        Raises
        ------
        StoreError
            Where another process has taken over.
        """
        if _read(located(self.store) / LOCK_NAME).get("token") != self.token:
            raise StoreError(
                "another process has taken over the store",
                where=self.store,
                remedy="let that ingest end, and run this one again",
            )


@contextmanager
def write_lock(store: str | Path) -> Iterator[Lock]:
    """Hold a store's lock while the body runs.

    A lock whose holder has died (its process is gone, or its machine has started again since) is
    taken over.

    Parameters
    ----------
    store
        The store's directory.

    Raises
    ------
    StoreError
        Where another process holds it, or on a machine whose processes cannot be seen from here;
        where the directory cannot be written.
    """
    path = located(store) / LOCK_NAME
    lock = Lock(str(store), uuid.uuid4().hex)
    text = json.dumps({"token": lock.token, **_myself()})
    if not _create(path, text):
        found = _read(path)
        if found and not _is_gone(found):
            raise StoreError(
                "another ingest is writing to the store",
                where=str(store),
                found=f"process {found.get('pid')} on {found.get('host')}",
                remedy="wait for it to end; if that machine is gone for good, remove "
                f"{path.name} from the store",
            )
        _remove_stale(path, found)
        if not _create(path, text):
            raise StoreError(
                "another ingest is writing to the store",
                where=str(store),
                remedy="wait for it to end",
            )
    try:
        yield lock
    finally:
        with suppress(OSError):
            if _read(path).get("token") == lock.token:
                path.unlink()


def holder(store: str | Path) -> tuple[str, bool] | None:
    """Who holds a store's lock, and whether they are gone; None where nobody does."""
    path = located(store) / LOCK_NAME
    if not path.exists():
        return None
    found = _read(path)
    return f"process {found.get('pid')} on {found.get('host')}", not found or _is_gone(found)


def mark(file: Path) -> None:
    """Say in a file that nobody else writes that this process is at work."""
    file.write_text(json.dumps(_myself()))


def marked(file: Path) -> tuple[str, bool | None]:
    """Who wrote a mark, and whether they live; None where that cannot be known."""
    found = _read(file)
    if not found:
        return "nobody says who", None
    gone = _is_gone(found)
    here = found.get("host") == socket.gethostname()
    return f"process {found.get('pid')} on {found.get('host')}", not gone if gone or here else None


def _create(path: Path, text: str) -> bool:
    """Make the file with its text at once; False where it is there already."""
    if is_remote(path):
        return create_exclusively(path, text)
    mine = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        mine.write_text(text)
        try:
            os.link(mine, path)  # fails where it exists, and never shows a file half-written
        except PermissionError:  # volumes that know no links
            with path.open("x") as stream:
                stream.write(text)
        finally:
            mine.unlink()
    except FileExistsError:
        return False
    except OSError as error:
        raise StoreError("cannot write here", where=str(path), found=error.strerror) from error
    return True


def _remove_stale(path: Path, found: dict) -> None:
    """Put a dead process's lock out of the way; one of two that try does."""
    if is_remote(path):
        # Who loses a lock to another in this moment learns of it before it commits anything.
        if _read(path).get("token") == found.get("token"):
            path.unlink(missing_ok=True)
        return
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _read(aside).get("token") != found.get("token"):
        # Somebody was quicker, and this is their new lock: give it back.
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink()


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _myself() -> dict:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "boot": _boot(), "started": _started(pid)}


def _is_gone(found: dict) -> bool:
    """Whether a lock's process is certainly dead."""
    if found.get("host") != socket.gethostname():
        return False
    if found.get("boot") != _boot():
        return True
    pid = int(found.get("pid", 0))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it lives, and belongs to somebody else
    # Numbers of processes are used again; when they started tells them apart.
    return found.get("started") != _started(pid)


def _boot() -> str:
    return _first_line("/proc/sys/kernel/random/boot_id")


def _started(pid: int) -> str:
    """When a process started, in the kernel's own count; a dead one's parent may not know yet."""
    fields = _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if not fields or fields[0] == "Z" else fields[19]


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
