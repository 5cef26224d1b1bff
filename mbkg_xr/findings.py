"""What may be wrong with a store, and how reports say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import zarr
from rich.table import Table
from rich.text import Text

from .errors import MbkgError
from .tasks import batches, results

__all__ = ["Problem", "VerifyReport", "collect", "compare_files", "last_codec", "problem"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: its kind, where, what was expected and found."""

    kind: str
    where: str
    expected: str = ""
    found: str = ""


@dataclass
class VerifyReport:
    """What `verify` found.

    Attributes
    ----------
    store, deep
        The store, and whether all its pixels were read.
    groups, slits, chunks, size
        Configurations, slits, chunks and bytes of the store.
    problems
        All that is wrong.
    """

    store: str
    deep: bool
    groups: int = 0
    slits: int = 0
    chunks: int = 0
    size: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dataframe(self) -> pd.DataFrame:
        """One row a problem."""
        return pd.DataFrame(
            [asdict(p) for p in self.problems], columns=["kind", "where", "expected", "found"]
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        state = "whole" if self.ok else f"{len(self.problems)} problems"
        how = "every chunk read" if self.deep else "chunks listed, not read"
        return f"{state}: {self.slits} slits, {self.chunks} chunks, {how}"

    def __rich__(self) -> Table:
        """A table of the problems."""
        table = Table(title=Text(f"{self.store}: {self}"))
        for column in ("", "where", "expected", "found"):
            table.add_column(column, overflow="fold")
        for one in self.problems:
            # Brackets are not markup here.
            table.add_row(*map(Text, (one.kind, one.where, one.expected, one.found)))
        return table


def collect(report: VerifyReport, calls: Sequence[Callable[[], list[Problem]]], say: Any) -> None:
    """Read pixels, some at a time, and gather what is wrong with them."""
    done = 0
    for lot in batches((1, call) for call in calls):
        say(f"read {done} of {len(calls)}")
        for result in results(lot):
            if isinstance(result, Exception):
                raise result
            report.problems += result
        done += len(lot)


def compare_files(sizes: Mapping[str, int], expected: set[str], report: VerifyReport) -> None:
    """Files that should be there, and those that should not, from the bytes of those that are."""
    found = set(sizes)
    report.size = sum(sizes[name] for name in found & expected)
    for name in sorted(expected - found):
        kind = "missing metadata" if name.endswith("zarr.json") else "missing chunk"
        report.problems.append(Problem(kind, name, "a file", "none"))
    report.problems += [Problem("litter", n, "nothing", "a file") for n in sorted(found - expected)]


def problem(error: Exception) -> Problem:
    """An error as a row of the report."""
    if not isinstance(error, MbkgError):
        return Problem("damaged", "", "", " ".join(f"{type(error).__name__}: {error}".split()))
    expected = "" if error.expected is None else str(error.expected)
    found = "" if error.found is None else " ".join(str(error.found).split())
    return Problem(error.cause, error.where or "", expected, found)


def last_codec(array: zarr.Array) -> str:
    """The codec that chunks end in; it should be the checksum."""
    codecs: Any = array.metadata.to_dict().get("codecs")
    return str(codecs[-1]["name"]) if codecs else "none"
