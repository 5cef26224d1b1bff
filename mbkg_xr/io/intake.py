"""The report of an ingest: what became of each file, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from .survey import Found

__all__ = ["IngestReport"]


@dataclass(frozen=True)
class IngestReport:
    """What became of each file that was given to `ingest`.

    Attributes
    ----------
    store
        The store.
    files
        By name and path: ``path``, ``status`` (accepted, skipped, failed, or used for metafiles)
        and ``reason`` of each.

    Examples
    --------
    >>> report = IngestReport("a.zarr", (Found("b.fits", status="failed", reason="no SCI"),))
    >>> print(report)
    0 accepted, 0 skipped, 1 failed
    >>> report.failed
    {'b.fits': 'no SCI'}
    """

    store: str
    files: tuple[Found, ...]

    @property
    def accepted(self) -> list[str]:
        """Paths that are in the store now."""
        return [f.path for f in self.files if f.status == "accepted"]

    @property
    def skipped(self) -> dict[str, str]:
        """Why, by paths that were in already, or are copies of others."""
        return {f.path: f.reason for f in self.files if f.status == "skipped"}

    @property
    def failed(self) -> dict[str, str]:
        """Why, by paths that cannot be used."""
        return {f.path: f.reason for f in self.files if f.status == "failed"}

    @property
    def used(self) -> list[str]:
        """Paths of metafiles."""
        return [f.path for f in self.files if f.status == "used"]

    def to_dataframe(self) -> pd.DataFrame:
        """One row a file."""
        return pd.DataFrame([_row(f) for f in self.files], columns=list(_COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = Counter(f.status for f in self.files)
        return {
            "store": self.store,
            **{status: counts[status] for status in ("accepted", "skipped", "failed", "used")},
            "files": [_row(f) for f in self.files],
        }

    def __str__(self) -> str:
        count = Counter(f.status for f in self.files)
        return ", ".join(f"{count[s]} {s}" for s in ("accepted", "skipped", "failed"))

    def __rich__(self) -> Table:
        """A table of all files where they are few, and otherwise of those that failed."""
        shown = [f for f in self.files if len(self.files) <= 40 or f.status == "failed"]
        table = Table(title=Text(f"{self.store}: {self}"))
        for column in ("file", "", "reason"):
            table.add_column(column, overflow="fold")
        table.add_column("slits", justify="right")
        for one in shown:
            cells = (one.name, one.status, one.reason, str(_row(one)["slits"] or ""))
            table.add_row(*map(Text, cells))  # brackets are not markup here
        if len(shown) < len(self.files):
            table.caption = f"{len(self.files) - len(shown)} files without problems are not shown"
        return table


_COLUMNS = ("path", "status", "reason", "configuration", "exposure", "detector", "slits", "digest")


def _row(one: Found) -> dict[str, Any]:
    return {
        "path": one.path,
        "status": one.status,
        "reason": one.reason,
        "configuration": " ".join(sorted({p.group for p in one.parts})),
        "exposure": " ".join(sorted({p.exposure for p in one.parts})),
        "detector": " ".join(sorted({p.detector for p in one.parts})),
        "slits": sum(len(p.slitlets) for p in one.parts),
        "digest": one.digest,
    }
