"""Three models on the same slitlets: master, nodding and held-out master, as a Markdown table.

    python examples/real_slitlets.py FILES...

FILES are STScI slit products of one configuration, such as the nods of one slitlet.
"""

import sys

import mbkg_xr as mx

MODELS = {
    "`BSpline()`": mx.BSpline(),
    "`LogPolynomial()`": mx.LogPolynomial(),
    '`LogPolynomial(method="seed")`': mx.LogPolynomial(method="seed"),
}
COLUMNS = ("median", "std", "mad_sigma", "skew", "frac_3sigma", "noise_gain", "stack", "stack_nod")


def main(files: list[str]) -> None:
    tree = mx.open_program(files)
    ds = next(iter(tree.children.values())).to_dataset().compute()
    ds = mx.select_background(ds)
    nods = mx.residuals(mx.subtract_nods(ds))
    print("| model | | pixels | " + " | ".join(COLUMNS) + " |")
    print("| --- | --- | " + " | ".join("---:" for _ in range(len(COLUMNS) + 1)) + " |")
    for name, model in MODELS.items():
        master = mx.fit_master(ds, model=model)
        result = mx.residuals(mx.subtract(ds, master))
        held = mx.residuals(mx.subtract(ds, master, heldout=True))
        table = mx.compare(result, nods, heldout=held)
        for method in ("master", "heldout"):
            _print_row(name, method, table.loc[method])
    _print_row("nodding", "", table.loc["nods"])


def _print_row(name, method, row) -> None:
    values = " | ".join(f"{row[c]:.3f}" for c in COLUMNS)
    print(f"| {name} | {method} | {row['n']:.0f} | {values} |")


if __name__ == "__main__":
    main(sys.argv[1:])
