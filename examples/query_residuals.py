"""Where is a result bad? Slits, wavelengths, rows, quadrants, and the pixels themselves.

    python examples/query_residuals.py [RESULT.zarr] [FIGURE.png]

RESULT.zarr is a store that `mbkg-xr run` wrote; without one, a programme is simulated.
"""

import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

import mbkg_xr as mx
from mbkg_xr import plot
from mbkg_xr.chain import run_tree


def main(store: str = "", figure: str = "residuals.png") -> None:
    with tempfile.TemporaryDirectory() as name:
        if not store:
            store = str(Path(name) / "result.zarr")
            program = mx.simulate_program(exposures=3, slits=12, background_slits=4, seed=4)
            run_tree({"prism-clear": program}, store)
        node = next(iter(mx.open_program(store).children.values()))
        result, master = node.to_dataset(), node["master"].to_dataset()

        scores = mx.score_slits(result, master)
        columns = ["exposure", "slitlet", "excess", "excess_error", "stack", "scale"]
        table = scores[columns].to_dataframe()[columns].sort_values("stack", ascending=False)
        print(table.head(5).round(2).to_string(index=False))

        found = mx.summarize(result, by=["quadrant", "nod"])
        for by, statistics in found.children.items():
            frame = statistics.to_dataset().to_dataframe()
            print(f"\nby {by}\n", frame[["n", "median", "mad_sigma", "frac_3sigma"]].round(3))

        wild = mx.query(result, residual=[(None, -5), (5, None)], where=mx.sky_centres)
        points = wild[["exposure", "slitlet", "wavelength", "yrel", "residual"]].to_dataframe()
        print(f"\n{len(points)} pixels beyond 5 errors at the centres of sky shutters")

        page = Figure(figsize=(7.5, 9), layout="constrained")
        axes = page.subplots(2, height_ratios=(1, 1.6))
        plot.plot_residual_map(result, ax=axes[0])
        plot.plot_msa(scores, ax=axes[1])
        page.savefig(figure, dpi=110)
        print("wrote", figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
