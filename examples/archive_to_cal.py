"""From `_cal` files to `_cal` files with the master background subtracted.

    python examples/archive_to_cal.py [FILES...]

FILES are `_cal` products that still hold their sky, with their `_msa` metafile beside them; without
any, some are simulated.
"""

import sys
import tempfile
from pathlib import Path

from astropy.io import fits

import mbkg_xr as mx
from mbkg_xr.chain import run
from mbkg_xr.simulate import write_jwst


def main(files: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not files:
            program = mx.simulate_program(exposures=3, slits=6, background_slits=3, seed=7)
            files = list(map(str, write_jwst(program, folder / "cal")))
        for configuration, summary in mx.info(files).summary.items():
            print(configuration, summary["slits"], "slits; sky said by", summary["sky_reason"])
        results = run(files, folder / "result.zarr", fits=folder / "subtracted")
        for configuration, item in results.items():
            print(configuration)
            print(item.table[["n", "median", "mad_sigma", "noise_gain", "stack_nod"]].round(3))
        for path in sorted((folder / "subtracted").iterdir()):
            header = fits.getheader(path)
            print(path.name, header["S_MSBSUB"], header["MBKNDONE"], "slits,", header["MBKMODEL"])


if __name__ == "__main__":
    main(sys.argv[1:])
