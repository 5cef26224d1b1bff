"""How exact the master is, and how honest about it: figures against what they must reach.

    python benchmarks/accuracy [--seeds 4] [--full] [--only WORD] [--markdown] [--real DIR]
    python benchmarks/accuracy --methods | --weights [--seeds 4] [--markdown]

Programmes with known truth are simulated, fitted and held to it; the three real slitlets, where
they are at hand, are held out nod by nod. Prints a table, one row a figure, and one JSON line.
`--full` adds the large programmes; `--methods` prints, instead, the same figures of the toolkit, of
the method it began with, of a plain scipy spline and of nodding; `--weights` what ways to weigh
outliers down come to; `--markdown` prints Markdown.

To add a figure write a function that takes the options and gives a number, put `@figure` on it, and
import its module here.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import errors
import few
import heldout
import lines
import methods
import real
import science
import slits
import weights
from figures import FIGURES, NotAvailableError
from rich.console import Console
from rich.table import Table

#: Modules whose rows make the table, in its order: importing them is what adds the rows.
ROOMS = (errors, heldout, slits, lines, few, real, science)
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "real_slitlets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4, help="programmes of each kind")
    parser.add_argument("--full", action="store_true", help="the large programmes too")
    parser.add_argument("--only", default="", help="figures whose name contains this")
    parser.add_argument("--methods", action="store_true", help="four methods side by side")
    parser.add_argument("--weights", action="store_true", help="rules for outliers side by side")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument("--real", default=str(REAL), help="directory of real slitlets")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if options.methods:
            row = side_by_side(methods.measure(options), "% of the sky", options)
        elif options.weights:
            row = side_by_side(weights.measure(options), "outliers", options)
        else:
            row = against_goals(options)
    print(json.dumps({"seeds": options.seeds, **row}))


def against_goals(options: argparse.Namespace) -> dict[str, float | str]:
    rows: list[list[str]] = []
    row: dict[str, float | str] = {}
    for one in FIGURES:
        if options.only.lower() not in one.name.lower() or (one.large and not options.full):
            continue
        start = time.perf_counter()
        try:
            value = float(one.measure(options))
        except NotAvailableError as reason:
            rows.append([one.name, one.must, "not available", str(reason), ""])
            row[one.name.strip()] = "not available"
            continue
        reached = one.reached(value)
        verdict = "" if reached is None else "yes" if reached else "no"
        seconds = time.perf_counter() - start
        rows.append([one.name, one.must, f"{value:.3g} {one.unit}", verdict, f"{seconds:.1f}"])
        row[one.name.strip()] = round(value, 4)
    if options.markdown:
        rows = [line[:-1] for line in rows]
        show(["figure", "must reach", "measured", "reached"], rows, markdown=True)
    else:
        show(["figure", "must reach", "measured", "", "s"], rows, markdown=False)
    return row


def side_by_side(
    found: dict[str, dict[str, float]], heading: str, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    names = list(next(iter(found.values())))
    rows = [[name, *(f"{of[name]:.2f}" for of in found.values())] for name in names]
    show([heading, *found], rows, markdown=options.markdown)
    return {k: {n: round(v, 4) for n, v in of.items()} for k, of in found.items()}


def show(headings: list[str], rows: list[list[str]], *, markdown: bool) -> None:
    if markdown:
        print("| " + " | ".join(headings) + " |")
        print("| --- |" + " ---: |" * (len(headings) - 1))
        for row in rows:
            print("| " + " | ".join(cell.strip() for cell in row) + " |")
        return
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
