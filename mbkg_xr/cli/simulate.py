"""The command ``mbkg-xr simulate``: a programme with known truth, as files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from ..errors import MbkgError, ParameterError, StoreError
from ..io import save
from ..io.store import is_store
from ..progress import show_progress
from ..simulate import DISPERSERS, SKIES, simulate_program, write_jwst, write_nips
from .options import many_valued
from .tables import console

__all__ = ["simulate"]

_DEFAULTS = {n: p.default for n, p in inspect.signature(simulate_program).parameters.items()}
_STORE = "program.zarr"

# Numbers that go to `simulate_program` as they are.
_NUMBERS: dict[str, tuple[Any, str]] = {
    "exposures": (int, "Exposures of each visit."),
    "slits": (int, "Slitlets on each detector in each exposure."),
    "background_slits": (int, "How many of them hold no source."),
    "nods": (int, "Positions of the source, one shutter apart: 1, 2, 3 or 5."),
    "visits": (int, "Visits, each with its own shutters."),
    "signal_to_noise": (float, "Median of sky over noise in a pixel.  [default: as CEERS]"),
    "exposure_time": (float, "Of an exposure, in s."),
    "read_noise": (float, "In units of that of the CEERS slitlets."),
    "error_scale": (float, "True scatter over ERR."),
    "outlier_fraction": (float, "Of pixels with an outlier no flag tells of."),
    "flagged_fraction": (float, "Of pixels that are flagged and hold wild values."),
    "contaminated_fraction": (float, "Of slitlets with a second source in an empty shutter."),
    "contaminant_brightness": (float, "Median of their light, in units of the sky."),
    "contaminant_scatter": (float, "Standard deviation of its logarithm."),
    "hot_fraction": (float, "Of detector pixels with a signal of their own, unflagged."),
    "throughput_scatter": (float, "Standard deviation of the slitlets' log throughput."),
    "colour_scatter": (float, "Standard deviation of its change over the band."),
    "flat_share": (float, "Share of that variance that is left of the spectrograph flat."),
    "pixel_flat": (float, "Pixel-to-pixel error of the flat; 0.004: as of CEERS slitlets."),
    "pedestal": (float, "Offset of each exposure, in units of the read noise of a pixel."),
    "sky_drift": (float, "Relative change of the sky from exposure to exposure."),
    "sky_trend": (
        (float, float),
        "Relative change of sunlight and of thermal light from the first exposure to the last.",
    ),
    "leak": (float, "Share of a source's light in wide wings."),
    "barshadow_mismatch": (float, "Error of the bar-shadow correction; 1: as of CEERS slitlets."),
    "seed": (int, "One seed gives the same programme in every format."),
}


def _numbers(command: Callable) -> Callable:
    for name, (kind, text) in reversed(_NUMBERS.items()):
        default = _DEFAULTS[name]
        command = click.option(
            "--" + name.replace("_", "-"),
            type=kind,
            default=default,
            show_default=default is not None,
            help=text,
        )(command)
    return command


@click.command("simulate", cls=many_valued("--detectors"))
@click.option("--out", required=True, type=click.Path(), help="Directory to write to.")
@click.option(
    "--format", "form", type=click.Choice(["jwst", "nips", "zarr"]), default="jwst",
    show_default=True,
    help="STScI _cal and _msa files, NIPS irregular 2-D spectra, or a Zarr store with the truth.",
)  # fmt: skip
@click.option(
    "--detectors", multiple=True, metavar="NAME ...",
    help="NRS1, NRS2 or both.  [default: NRS1]",
)  # fmt: skip
@click.option(
    "--grating", default=_DEFAULTS["grating"], show_default=True,
    help="One of " + ", ".join(DISPERSERS) + ".",
)  # fmt: skip
@click.option("--filter", help="Its filter.  [default: the usual one]")
@click.option(
    "--shutters", default=str(_DEFAULTS["n_shutters"]), show_default=True,
    help="Open shutters of a slitlet (1, 2, 3 or 5), or shares of several, such as 1:1,3:4.",
)  # fmt: skip
@click.option(
    "--sky", help="One of " + ", ".join(SKIES) + ", or a CSV file of wavelength (um) and MJy/sr."
)
@click.option(
    "--calibration", type=click.Choice(["EXTENDED", "POINT"], case_sensitive=False),
    default="EXTENDED", show_default=True, help="Of slits with a source.",
)  # fmt: skip
@_numbers
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def simulate(
    out: str,
    form: str,
    detectors: tuple[str, ...],
    shutters: str,
    sky: str | None,
    calibration: str,
    overwrite: bool,
    **options: Any,
) -> None:
    """Simulate a NIRSpec MOS programme with known truth, and write it to a directory."""
    names = [d.upper() for text in detectors for d in text.split(",") if d]
    ds = simulate_program(
        detectors=tuple(dict.fromkeys(names)) or _DEFAULTS["detectors"],
        n_shutters=_shutters(shutters),
        sky=_sky(sky),
        calibration=calibration.upper(),
        **options,
    )
    folder = Path(out)
    if not overwrite and _products(folder):
        raise StoreError(
            "the directory holds products already",
            where=str(folder),
            expected="a new or empty directory",
            found=", ".join(p.name for p in _products(folder)[:3]) + " ...",
            remedy="choose another one, or overwrite them (--overwrite)",
        )
    try:
        with show_progress(Console(stderr=True)) as say:
            written = _write(ds, folder, form, overwrite, say)
    except MbkgError:
        raise
    except OSError as error:
        raise StoreError("cannot write here", where=str(folder), found=error.strerror) from error
    _print(ds, folder, form, written)
    others = [p.name for p in _products(folder) if p not in written]
    if others:
        click.echo(
            f"note: {folder} holds {len(others)} other products, which belong to another "
            f"programme: {', '.join(others[:3])} ...",
            err=True,
        )


def _write(
    ds: xr.Dataset, folder: Path, form: str, overwrite: bool, say: Callable[[str], None]
) -> list[Path]:
    if form == "zarr":
        say("writing the store")
        save(ds, folder / _STORE, overwrite=overwrite)
        return [folder / _STORE]
    write = write_jwst if form == "jwst" else write_nips
    return write(ds, folder, overwrite=overwrite, on_step=say)


def _products(folder: Path) -> list[Path]:
    """What `open_program` would find in a directory."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix == ".fits" or is_store(p))


def _shutters(text: str) -> int | dict[int, float]:
    try:
        if ":" not in text:
            return int(text)
        pairs = [part.split(":") for part in text.split(",")]
        return {int(n): float(share) for n, share in pairs}
    except ValueError:
        raise ParameterError(
            "bad value of shutters",
            where="--shutters",
            expected="1, 2, 3 or 5, or shares of them such as 1:1,3:4",
            found=text,
        ) from None


def _sky(text: str | None) -> object:
    if text is None or not Path(text).is_file():
        return text  # a name; what is none of them is refused as such
    try:
        table = np.genfromtxt(text, delimiter=",", usecols=(0, 1))
    except ValueError as error:
        raise ParameterError(
            "unreadable table of the sky",
            where=text,
            expected="two columns with a comma between: wavelength in um, MJy/sr",
            found=str(error).splitlines()[-1],
        ) from error
    if table.ndim == 2 and np.isnan(table[0]).all():
        table = table[1:]  # names of the columns
    return tuple(np.atleast_2d(table).T)


def _print(ds: xr.Dataset, folder: Path, form: str, written: Sequence[Path]) -> None:
    files = [f for p in written for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
    size = sum(f.stat().st_size for f in files)
    table = Table(title=f"simulated programme {ds.attrs['configuration']}", show_header=False)
    rows = {
        "exposures": len(np.unique(ds.exposure)),
        "nods": len(np.unique(ds.nod)),
        "detectors": " ".join(np.unique(ds.detector)),
        "slits": ds.sizes["slit"],
        "of them without a source": int(ds.is_background.sum()),
        "rows x columns of a slit, at most": f"{ds.sizes['y']} x {ds.sizes['x']}",
        "units": ds.flux.attrs["units"],
        "format": form,
        "products": len(written),
        "size": f"{size / 1e6:.1f} MB",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    out = console()
    out.print(table)
    out.print(f"written: {folder}   next: mbkg-xr run {folder} --out result.zarr", soft_wrap=True)
