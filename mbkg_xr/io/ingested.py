"""Ingested stores as datasets: the exposures that are complete, in an order of their own."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..schema import PIXEL_VARIABLES, slit_dataset
from .chunks import lazy_pixels, places
from .journal import Block, Group, read_journal
from .slots import coord_values, flag_table_of

__all__ = ["common_attrs", "open_ingested"]

NIPS = "-nips"
_RESPONSE = "response"


def open_ingested(path: str | os.PathLike) -> xr.DataTree:
    """Open a store that `ingest` made, lazily. Only its journal is read.

    Parameters
    ----------
    path
        The store.

    Returns
    -------
    xarray.DataTree
        What `open_program` gives for the same products, with slits by exposure, detector and
        slitlet: nothing in it depends on the order in which they were ingested.
    """
    groups = {name: g for name, g in read_journal(path).groups.items() if g.blocks}
    datasets = {}
    for name, group in sorted(groups.items()):
        # As when the products are opened: apart from STScI's only where there are such.
        plain = name.removesuffix(NIPS)
        shown = name if plain in groups else plain
        datasets[shown] = _dataset(str(path), name, shown, group)
    return xr.DataTree.from_dict(datasets)


def _dataset(store: str, name: str, shown: str, group: Group) -> xr.Dataset:
    blocks = sorted(group.blocks, key=lambda b: (b.exposure, b.detector, b.start))
    coords = {
        coord: np.concatenate([coord_values(coord, made, b) for b in blocks])
        for coord, made in group.coords.items()
    }
    where = np.concatenate([places(np.arange(b.start, b.stop), *b.shape) for b in blocks])
    numbers = _exposure_numbers(blocks)
    order = np.lexsort((coords["slitlet"], numbers))
    lengths = _chunk_lengths(np.bincount(numbers).tolist(), group.chunk[0])
    variables = _variables(blocks)
    dtypes = {f"{name}/{v}": group.variables[v]["dtype"] for v in variables}
    lacking = np.repeat([_RESPONSE not in b.digests for b in blocks], [b.count for b in blocks])
    pixels = lazy_pixels(where[order], lengths, store, dtypes, group.shape)
    arrays: dict[str, Any] = {v: pixels[f"{name}/{v}"] for v in variables}
    if _RESPONSE in variables and lacking.any():
        where["rows"][lacking] = 0  # nothing was written there
        one = f"{name}/{_RESPONSE}"
        written = lazy_pixels(where[order], lengths, store, {one: dtypes[one]}, group.shape)[one]
        arrays[_RESPONSE] = da.map_blocks(
            _ones_inside,
            written,
            arrays["wavelength"],
            da.from_array(lacking[order][:, None, None], chunks=(tuple(lengths), 1, 1)),
            dtype=written.dtype,
        )
    ds = slit_dataset(
        {v: arrays[v] for v in variables if v != "quality"},
        arrays["quality"],
        {coord: values[order] for coord, values in coords.items()},
        units=blocks[0].units,
        configuration=shown,
        flags=flag_table_of(group.variables["quality"]),
        attrs=common_attrs(blocks, shown),
    )
    for extra in [v for v in variables if v not in PIXEL_VARIABLES and v != "quality"]:
        made = group.variables[extra]
        ds = ds.set_coords(extra) if made["coord"] else ds
        ds[extra].attrs = dict(made["attrs"])
    return ds


def _exposure_numbers(blocks: list[Block]) -> NDArray[np.int64]:
    """For each slit, the ordinal of its exposure and detector."""
    keys = [(b.exposure, b.detector) for b in blocks]
    ordinal = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.repeat([ordinal[k] for k in keys], [b.count for b in blocks])


def _chunk_lengths(counts: Iterable[int], length: int) -> list[int]:
    """No chunk goes across exposures: each is then read from one chunk of the store."""
    out: list[int] = []
    for count in counts:
        out += [length] * (count // length) + [count % length] * (count % length > 0)
    return out


def _variables(blocks: list[Block]) -> list[str]:
    """Pixel variables that all slits have, in the schema's order; the response, where some do."""
    common = set.intersection(*(set(b.digests) for b in blocks))
    common |= {_RESPONSE for b in blocks if _RESPONSE in b.digests}
    known = [v for v in (*PIXEL_VARIABLES, "quality") if v in common]
    return known + sorted(common - set(known))


def _ones_inside(response: NDArray, wavelength: NDArray, lacking: NDArray) -> NDArray:
    """The response of slits that came without one: calibrated for uniform sky, it is 1."""
    ones = np.where(np.isfinite(wavelength), np.float32(1), np.float32(np.nan))
    return np.where(lacking, ones, response)


def common_attrs(blocks: list[Block], shown: str) -> dict[str, Any]:
    """Attributes of the dataset: where blocks differ, all that were said."""
    out: dict[str, Any] = {}
    for key in dict.fromkeys(k for b in blocks for k in b.attrs):
        said = [(b.attrs[key], len(set(b.coord("filename")))) for b in blocks if key in b.attrs]
        texts = sorted({str(text) for text, _ in said})
        if all(_STATUSES.fullmatch(text) for text in texts):
            out[key] = _summed([(str(text), files) for text, files in said])
        elif len(texts) == 1:
            out[key] = said[0][0]
        else:
            out[key] = ", ".join(sorted({part for text in texts for part in text.split(", ")}))
    return {**out, "configuration": shown}


# Statuses of calibration steps, and in how many of the files: "S_FLAT COMPLETE (1 of 3); ...".
_STATUS = r"(S_\w+) ([^\s;]+)(?: \((\d+) of \d+\))?"
_STATUSES = re.compile(rf"{_STATUS}(?:; {_STATUS})*")


def _summed(said: list[tuple[str, int]]) -> str:
    """The same for all files, from what was said of some and how many they were."""
    counts: Counter[tuple[str, str]] = Counter()
    for text, files in said:
        for step, status, some in re.findall(_STATUS, text):
            counts[step, status] += int(some or files)
    total = sum(files for _, files in said)
    longest = max((text for text, _ in said), key=lambda text: (text.count(";"), text))
    steps = [step for step, *_ in re.findall(_STATUS, longest)]
    order = {step: i for i, step in enumerate(dict.fromkeys([*steps, *(k[0] for k in counts)]))}
    return "; ".join(
        f"{step} {status}" + ("" if n == total else f" ({n} of {total})")
        for (step, status), n in sorted(counts.items(), key=lambda c: (order[c[0][0]], c[0][1]))
    )
