"""How exact the master is, and how honest about it: figures against what they must reach.

    python benchmarks/accuracy [--seeds 4] [--full] [--only WORD] [--real DIR]

Programmes with known truth are simulated, fitted and held to it; the three real slitlets, where
they are at hand, are held out nod by nod. Prints a table, one row a figure, and one JSON line.
`--full` adds the large programmes. A figure whose machinery is not there yet says "not available".

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
import real
import science
from figures import FIGURES, NotAvailableError
from rich.console import Console
from rich.table import Table

#: Modules whose rows make the table, in its order: importing them is what adds the rows.
ROOMS = (errors, heldout, lines, few, real, science)
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "real_slitlets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4, help="programmes of each kind")
    parser.add_argument("--full", action="store_true", help="the large programmes too")
    parser.add_argument("--only", default="", help="figures whose name contains this")
    parser.add_argument("--real", default=str(REAL), help="directory of real slitlets")
    options = parser.parse_args()
    table = Table("figure", "must reach", "measured", "", "s")
    row: dict[str, float | str] = {}
    for one in FIGURES:
        if options.only.lower() not in one.name.lower() or (one.large and not options.full):
            continue
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                value = float(one.measure(options))
        except NotAvailableError as reason:
            table.add_row(one.name, one.must, "not available", str(reason), "")
            row[one.name.strip()] = "not available"
            continue
        reached = one.reached(value)
        verdict = "" if reached is None else "yes" if reached else "[bold]no[/bold]"
        seconds = time.perf_counter() - start
        table.add_row(one.name, one.must, f"{value:.3g} {one.unit}", verdict, f"{seconds:.1f}")
        row[one.name.strip()] = round(value, 4)
    Console(width=120).print(table)
    print(json.dumps({"seeds": options.seeds, **row}))


if __name__ == "__main__":
    main()
