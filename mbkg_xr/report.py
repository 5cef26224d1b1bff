"""The report: the figures of a run, and one page that holds them all."""

from __future__ import annotations

import base64
import io
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping
from html import escape
from importlib import metadata
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from .errors import DatasetError, StoreError
from .plot import (
    plot_cloud,
    plot_master_image,
    plot_model_choice,
    plot_residual_spectrum,
    plot_residuals,
    plot_selection,
    plot_subtraction,
)
from .plot.canvas import subset
from .residuals import compare

__all__ = ["typical_slit", "write_report"]

_DPI = 150
_KEEP = 2**29  # bytes of datasets that are read once for all figures

# name: (inches, rows, heading, what is to be seen)
_FIGURES: Mapping[str, tuple[tuple[float, float], int, str, str]] = {
    "selection": (
        (7.1, 3.2), 1, "Selection",
        "A typical slitlet before subtraction. Pixels between the lines of a window in use are "
        "the sky that the master is fitted to.",
    ),
    "cloud": (
        (7.1, 4.4), 1, "Sky pixels and master",
        "Flux of the selected pixels against wavelength, and the master fitted to them.",
    ),
    "master_2d": (
        (7.1, 2.4), 1, "Two-dimensional master",
        "The master on a regular grid, constant along the slit, as it is projected on the pixels.",
    ),
    "subtraction": (
        (7.1, 5.2), 3, "Subtraction",
        "The same slitlet before subtraction, the background on its own pixels, and what is left.",
    ),
    "residuals": (
        (4.6, 3.9), 1, "Residuals",
        "Residuals over their propagated errors, at the centres of shutters that see only sky. "
        "σ is the scaled median absolute deviation.",
    ),
    "model_choice": (
        (5.6, 4.2), 1, "Choice of the model",
        "Score of all models tried. Lines join the models of one knot distance.",
    ),
    "residual_spectrum": (
        (7.1, 3.4), 1, "Residual spectrum",
        "What is left where all sky pixels of a wavelength are taken together. Residuals of nods "
        "cancel over the nods by construction.",
    ),
}  # fmt: skip

_STATISTICS = {
    "n": "pixels",
    "median": "median of residual / error",
    "std": "standard deviation (within 40 errors)",
    "mad_sigma": "scaled median absolute deviation",
    "skew": "skewness",
    "frac_3sigma": "fraction beyond 3 errors",
    "frac_5sigma": "fraction beyond 5 errors",
    "frac_under": "fraction under-subtracted (residual above 0)",
    "frac_over": "fraction over-subtracted (residual below 0)",
    "noise_gain": "median growth of the error by the subtraction",
    "stack": "rms over wavelength bins of sum(z) / sqrt(n); 1 is noise alone",
}
_PACKAGES = "numpy scipy numba xarray dask zarr astropy matplotlib".split()
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums;
        display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, td.text { text-align: left; }
figure { margin: 2rem 0; }
figure img { max-width: 100%; }
figcaption, .note { color: #555; font-size: .9rem; }
"""


def typical_slit(ds: xr.Dataset) -> int:
    """The slit to show: one with a source, and with as many selected pixels as most have.

    Parameters
    ----------
    ds
        A slit dataset with ``selected``. Of large programmes, some slits from all over are
        counted.

    Returns
    -------
    int
        Index of the slit whose number of selected pixels is nearest the median, among slits with
        a source where any of those has sky pixels.

    Raises
    ------
    DatasetError
        Where no pixels are marked, or none of them as sky.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=1, slits=4, background_slits=3)
    >>> typical_slit(mx.select_background(ds))
    3
    """
    if "selected" not in ds:
        raise DatasetError(
            "no pixels are marked as sky",
            expected="variable selected",
            remedy="call select_background first",
        )
    numbered = ds[["selected"]].assign(index=("slit", np.arange(ds.sizes["slit"])))
    part, _ = subset(numbered)
    count = part["selected"].sum(("y", "x")).values
    some = count > 0
    if not some.any():
        raise DatasetError("no pixel is selected", expected="some sky pixels", found="0")
    source = some & ~part["is_background"].values & np.isfinite(part["source_shutter"].values)
    among = np.flatnonzero(source if source.any() else some)
    distance = np.abs(count[among] - np.median(count[among]))
    return int(part["index"].values[among[np.argmin(distance)]])


def write_report(
    result: xr.Dataset,
    master: xr.Dataset,
    directory: str | os.PathLike,
    *,
    nods: xr.Dataset | None = None,
    heldout: xr.Dataset | None = None,
    table: pd.DataFrame | None = None,
    name: str = "",
) -> list[Path]:
    """Write the figures of a run and a page that shows them. Computes.

    The page holds its figures and refers to nothing outside, so that it can be sent alone. Files
    are completed beside `directory` and then moved there: an existing report is replaced, other
    files in the directory stay, and a failure leaves everything as it was.

    Parameters
    ----------
    result
        From `residuals` of `subtract`, with ``selected``.
    master
        From `fit_master`.
    directory
        Where to write.
    nods
        Residuals of `subtract_nods` of the same slits.
    heldout
        Residuals of ``subtract(..., heldout=True)``.
    table
        From `compare`, made here where it is not given.
    name
        Heading of the page, by default the configuration.

    Returns
    -------
    list of pathlib.Path
        ``index.html`` and the figures, as PNG.

    Raises
    ------
    StoreError
        Where the directory cannot be written.
    DatasetError
        Where the datasets are not those of a run.

    Examples
    --------
    >>> import tempfile
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=3, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> result = mx.residuals(mx.subtract(ds, master))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = write_report(result, master, folder)
    >>> files[0].name, len(files)
    ('index.html', 8)
    """
    folder = Path(directory).resolve()
    _write({}, folder)  # to learn of an unusable directory before the work, not after it
    given = {"master": result, "nods": nods, "heldout": heldout}
    sets = {key: ds for key, ds in given.items() if ds is not None}
    if sum(ds.nbytes for ds in sets.values()) <= _KEEP:
        sets = dict(zip(sets, dask.persist(*sets.values()), strict=True))
    if table is None:
        table = compare(sets["master"], sets.get("nods"), heldout=sets.get("heldout"))
    images = {}
    for key, figure in _figures(sets, master):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        images[key] = buffer.getvalue()
    heading = name or str(result.attrs["configuration"])
    page = _page(heading, result, master, table, images)
    files = {"index.html": page.encode()} | {f"{key}.png": data for key, data in images.items()}
    return _write(files, folder)


def _write(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files beside a folder, and move them there when all are complete."""
    staging = folder.with_name(f".{folder.name}.staging-{uuid.uuid4().hex[:8]}")
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError("a file of that name")
        staging.mkdir(parents=True)
        for name, data in files.items():
            (staging / name).write_bytes(data)
        if files:
            folder.mkdir(exist_ok=True)
        # The page comes first in the list and is moved last: it shows what is there.
        for name in reversed(list(files)):
            os.replace(staging / name, folder / name)
    except OSError as error:
        raise StoreError(
            "the report cannot be written",
            where=str(folder),
            expected="a directory that can be written",
            found=str(error),
            remedy="choose another directory",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / name for name in files]


def _figures(sets: dict[str, xr.Dataset], master: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The figures, one after another: each is forgotten before the next is made."""
    result = sets["master"]
    slit = typical_slit(result)
    for key, (size, rows, _, _) in _FIGURES.items():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, squeeze=False)[:, 0]
        if key == "selection":
            plot_selection(result, slit=slit, ax=axes[0])
        elif key == "cloud":
            plot_cloud(result, master, ax=axes[0])
        elif key == "master_2d":
            plot_master_image(master, ax=axes[0])
        elif key == "subtraction":
            plot_subtraction(result, slit=slit, axes=list(axes))
        elif key == "residuals":
            plot_residuals(sets, ax=axes[0])
        elif key == "model_choice":
            plot_model_choice(master, ax=axes[0])
        else:
            plot_residual_spectrum(sets, ax=axes[0])
        yield key, figure


# ------------------------------------------------------------------------------------------------
# The page


def _page(
    name: str,
    result: xr.Dataset,
    master: xr.Dataset,
    table: pd.DataFrame,
    images: Mapping[str, bytes],
) -> str:
    heading = f"Master background: {escape(name)}"
    parts = [f"<h1>{heading}</h1>", _table(_summary(result, master))]
    statistics = {str(k): [_number(v) for v in row] for k, row in table.iterrows()}
    parts.append("<h2>Residuals at the centres of sky shutters</h2>")
    parts.append(_table(statistics, ["", *map(str, table.columns)]))
    meaning = "; ".join(f"{k}: {_STATISTICS[k]}" for k in table.columns if k in _STATISTICS)
    parts.append(f'<p class="note">{escape(meaning)}.</p>')
    for key, image in images.items():
        _, _, title, caption = _FIGURES[key]
        data = base64.b64encode(image).decode("ascii")
        parts.append(
            f'<h2>{title}</h2>\n<figure><img alt="{escape(caption)}" '
            f'src="data:image/png;base64,{data}">\n<figcaption>{escape(caption)}</figcaption>'
            "</figure>"
        )
    parts.append("<h2>Parameters of the master</h2>")
    parts.append(_table({k: [_text(v)] for k, v in sorted(master.attrs.items())}))
    passes = [str(k) for k in master.data_vars if str(k).startswith("pass_")]
    if passes:
        rows = zip(*(master[k].values for k in passes), strict=True)
        history = {str(i + 1): [_number(v) for v in row] for i, row in enumerate(rows)}
        parts.append("<h2>Passes of the fit</h2>")
        parts.append(_table(history, ["pass", *(k.removeprefix("pass_") for k in passes)]))
    parts.append("<h2>Versions</h2>")
    parts.append(_table({k: [v] for k, v in _versions().items()}))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n"
        "</html>\n"
    )


def _summary(result: xr.Dataset, master: xr.Dataset) -> dict[str, list[str]]:
    def values(coord: str) -> str:
        found = [v for v in np.unique(result[coord].values).tolist() if v != ""]
        return ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")

    background = result["is_background"].values
    low, high = master.attrs["wavelength_range"]
    selected, used = (int(master[k].sum()) for k in ("n_selected", "n_used"))
    return {
        "configuration": [str(result.attrs["configuration"])],
        "programme": [values("program")],
        "detectors": [values("detector")],
        "exposures": [f"{np.unique(result['exposure'].values).size:,}"],
        "slits": [f"{background.size:,}, {int(background.sum()):,} of them without a source"],
        "sky pixels": [f"{selected:,}, {used:,} of them used by the fit"],
        "fitted range": [f"{low:.4g} to {high:.4g} um"],
    }


def _table(rows: Mapping[str, list[str]], header: list[str] | None = None) -> str:
    style = "" if header else ' class="text"'
    lines = []
    if header:
        lines.append("<tr>" + "".join(f"<th>{escape(h)}</th>" for h in header) + "</tr>")
    for name, cells in rows.items():
        inner = "".join(f"<td{style}>{escape(c)}</td>" for c in cells)
        lines.append(f"<tr><td>{escape(name)}</td>{inner}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _number(value: object) -> str:
    number = float(value)  # type: ignore[arg-type]
    if not np.isfinite(number):
        return "-"
    return f"{number:,.0f}" if number == int(number) and abs(number) >= 10 else f"{number:.4g}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(map(_text, np.ravel(np.asarray(value))))
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _versions() -> dict[str, str]:
    from . import __version__

    versions = {"mbkg_xr": __version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in _PACKAGES}
