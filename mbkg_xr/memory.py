"""How much memory a run takes, before it begins.

What is held at a time depends on the size of a chunk and the number of threads, and on what each
slit adds to tables that are kept whole; the pixels of more exposures add nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import xarray as xr

from .drift import Drift
from .errors import ParameterError
from .nods import nod_memory
from .room import MOST_KEPT, pixel_room, tables_by_slit
from .spans import span_grid
from .tasks import cluster, workers

__all__ = ["Prediction", "check_memory", "parse_bytes", "predict_memory"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

#: Bytes of Python, its libraries and kernels (measured: 450e6, and 600e6 while they are compiled).
BASE = 600 * 10**6
#: Blocks of a pixel variable that one task holds at most: what it read, made and encodes.
_ARRAYS = 32
#: Share of all pixels that is packed; of them 24 bytes are kept.
_PACKED = 0.4
#: Chunks that wait for others, beside those being worked on.
_WAITING = 8
#: Bytes a span of what one lot of pixels adds up to (measured: G140H, 47e6), and of each further
#: product with time.
_A_SPAN, _A_PRODUCT = 8_200, 64 * 12 * 8
_OF_LOT = 2**19  # pixels that are added up in one lot, nearly


def parse_bytes(text: str | int) -> int:
    """Bytes from a text such as ``4GB``, ``512 MiB`` or ``1e9``.

    Raises
    ------
    ParameterError

    Examples
    --------
    >>> parse_bytes("4GB"), parse_bytes("1.5 GiB")
    (4000000000, 1610612736)
    """
    match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmgt]?i?)b?\s*", str(text).lower())
    unit = {**_UNITS, **_BINARY}.get(match[2]) if match else None
    try:
        size = int(float(match[1]) * unit) if match and unit else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise ParameterError(
            "not an amount of memory", expected="such as 4GB or 800MiB", found=repr(text)
        )
    return size


@dataclass(frozen=True)
class Prediction:
    """What a run on some slits will hold in memory.

    Attributes
    ----------
    base, data
        Bytes of Python itself, and of datasets that lie in memory.
    working
        Of chunks being worked on.
    slits
        Of what is known of slits, beside tables in scratch files.
    sums
        Of what passes add up, or of the model's covariance, whichever is more.
    kept
        Of pixels kept between passes.
    nods
        Of what is added up to compare the result with nods.
    threads
        Of one process.
    chunk
        Bytes of one pixel variable in a chunk.
    """

    base: int
    data: int
    working: int
    slits: int
    sums: int
    kept: int
    nods: int
    threads: int
    chunk: int

    @property
    def fit(self) -> int:
        """What is held in the fit, in bytes."""
        return self._always + self.slits + self.sums + self.kept

    @property
    def total(self) -> int:
        """The most that is held at a time, in bytes: in the fit, or as it is compared with nods."""
        return max(self.fit, self._always + self.slits + self.nods)

    @property
    def _always(self) -> int:
        return self.base + self.data + self.working

    def __str__(self) -> str:
        shares = {
            "at work": self.working,
            "by slit": self.slits,
            "sums": self.sums,
            "pixels kept": self.kept,
            "nods, after the fit": self.nods,
            "the program": self.base,
        }
        if self.data:
            shares["the data"] = self.data
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in shares.items())
        return f"memory: at most {self.total / 1e9:.2f} GB ({parts}; {self.threads} threads)"


def predict_memory(
    datasets: Mapping[str, xr.Dataset] | xr.Dataset,
    *,
    memory: int | None = None,
    drift: Drift | None = None,
) -> Prediction:
    """What the chain will hold in memory. Reads no pixel.

    Parameters
    ----------
    datasets
        Slit datasets, which are worked on one after the other.
    memory
        Bytes allowed in all; what is left of them keeps pixels between passes, up to 1 GiB. None:
        64 MiB are kept between passes: of slits first, then pixels.
    drift
        As for `fit_master`.

    Returns
    -------
    Prediction
        Of one process: of a cluster, of each worker.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> few = mx.simulate_program(exposures=2, slits=8, background_slits=4, chunks=8)
    >>> many = mx.simulate_program(exposures=20, slits=8, background_slits=4, chunks=8)
    >>> a, b = mx.predict_memory(few), mx.predict_memory(many)
    >>> a.working == b.working
    True
    """
    all_of_them = {"": datasets} if isinstance(datasets, xr.Dataset) else datasets
    client = cluster()
    threads = workers() if client is None else max(client.nthreads().values(), default=1)
    order = drift.order if drift is not None else 0
    predictions = [_of_one(ds, threads, memory, order) for ds in all_of_them.values()]
    return max(predictions, key=lambda p: p.total)


def _of_one(ds: xr.Dataset, threads: int, memory: int | None, order: int) -> Prediction:
    n, ny, nx = ds["flux"].shape
    lazy = ds["flux"].chunks
    length = max(lazy[0]) if lazy else min(64, n)
    chunk = 4 * length * ny * nx
    spans = _spans(ds)
    # Partial sums are added eight at a time; with a drift all products of times are among them.
    levels = math.log(max(n * ny * nx * _PACKED / _OF_LOT, 8), 8)
    products = (order + 1) * (order + 2) // 2 - 1
    added = int((threads + 7 * levels) * spans * (_A_SPAN + _A_PRODUCT * products))
    model = 6 * 8 * (spans // 2) ** 2  # covariance of the coefficients, and what is made of it
    least = Prediction(
        base=BASE,
        data=0 if lazy else ds.nbytes,
        working=threads * _ARRAYS * chunk + _WAITING * 3 * chunk,
        slits=tables_by_slit(n),
        sums=max(added, model),
        kept=0,
        nods=nod_memory(ds, chunk, threads),
        threads=threads,
        chunk=chunk,
    )
    room = pixel_room(n)
    if memory is not None:
        room = min(MOST_KEPT, max(memory - least.fit, 0))
    # Of packed pixels; what does not fit goes to a scratch file.
    return replace(least, kept=min(room, n * (int(24 * _PACKED * ny * nx) + 1)))


def _spans(ds: xr.Dataset) -> int:
    try:
        return span_grid(ds).size
    except ParameterError:  # of a disperser whose spans are given
        return int(ds.sizes["x"])


def check_memory(
    datasets: Mapping[str, xr.Dataset], memory: int | None, *, drift: Drift | None = None
) -> Prediction:
    """The prediction, where it keeps to a limit.

    Raises
    ------
    ParameterError
        Where it does not, or a worker of the cluster has less than it would take, with what would.
    """
    found = predict_memory(datasets, memory=memory, drift=drift)
    _check_workers(found)
    if memory is None or found.total <= memory:
        return found
    advice = []
    left = memory - (found.total - found.working)
    a_chunk = found.working / (found.threads * _ARRAYS + _WAITING * 3)
    if left > (_ARRAYS + _WAITING * 3) * a_chunk:
        threads = int((left / a_chunk - _WAITING * 3) / _ARRAYS)
        advice.append(f"{threads} threads (DASK_NUM_WORKERS={threads})")
    slits = {name: max(ds["flux"].chunks[0]) for name, ds in datasets.items() if ds["flux"].chunks}
    if slits and left > 0:
        fewer = int(max(slits.values()) * left / found.working)
        if fewer >= 1:
            advice.append(f"{fewer} slits a chunk (--chunks {fewer})")
    raise ParameterError(
        "more memory than allowed",
        where=f"chunks of {found.chunk / 1e6:.0f} MB a variable, {found.threads} threads",
        expected=f"at most {memory / 1e9:.2f} GB",
        found=f"{found.total / 1e9:.2f} GB",
        remedy=" or ".join([*advice, f"--memory {1.05 * found.total / 1e9:.1f}GB"]),
    )


def _check_workers(found: Prediction) -> None:
    """Refuse workers whose own limit a chunk would pass: dask would halt them, and wait."""
    client = cluster()
    if client is None:
        return
    about = client.scheduler_info(-1)["workers"]
    limits = {name: one["memory_limit"] for name, one in about.items() if one["memory_limit"]}
    need = found.base + found.working
    if limits and min(limits.values()) < need:
        least = min(limits, key=limits.__getitem__)
        raise ParameterError(
            "a worker of the cluster has too little memory",
            where=f"{least}, chunks of {found.chunk / 1e6:.0f} MB a variable",
            expected=f"at least {need / 1e9:.2f} GB for {found.threads} threads",
            found=f"{limits[least] / 1e9:.2f} GB",
            remedy="start fewer workers with more memory each, or take fewer slits a chunk "
            "(--chunks)",
        )
