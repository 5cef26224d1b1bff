"""The rows of the table: what each figure is called, what it must reach, how it is measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


class NotAvailableError(Exception):
    """What a figure needs is not part of the toolkit yet, or not at hand."""


@dataclass(frozen=True)
class Figure:
    """One row: what is measured, what it must reach, and how."""

    name: str
    unit: str
    low: float | None
    high: float | None
    measure: Callable[[argparse.Namespace], float]
    large: bool

    @property
    def must(self) -> str:
        if self.low is None and self.high is None:
            return ""
        if self.low is None:
            return f"< {self.high:g}"
        return f"> {self.low:g}" if self.high is None else f"{self.low:g} - {self.high:g}"

    def reached(self, value: float) -> bool | None:
        if self.low is None and self.high is None:
            return None
        return (self.low is None or value > self.low) and (self.high is None or value < self.high)


FIGURES: list[Figure] = []


def figure(
    name: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    large: bool = False,
) -> Callable:
    """Make a row of the table of a function."""

    def add(measure: Callable) -> Callable:
        FIGURES.append(Figure(name, unit, low, high, measure, large))
        return measure

    return add
