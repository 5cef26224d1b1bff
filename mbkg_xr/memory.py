"""How much memory a run takes, before it begins.

What is held at a time depends on the size of a chunk and the number of threads, and on what each
slit adds to tables that are kept whole; the pixels of more exposures add nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from .errors import ParameterError
from .tasks import cluster, workers

__all__ = ["Prediction", "check_memory", "parse_bytes", "pixel_room", "predict_memory"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

#: Bytes of Python, its libraries and kernels (measured: 450e6, and 600e6 while they are compiled),
#: and of what passes add up.
BASE = 600 * 10**6
#: Blocks of a pixel variable that one task holds at most: what it read, made and encodes.
_ARRAYS = 32
#: Bytes a slit: sums by shutter and bin, scales and their covariances while they are solved for
#: (measured from 10^3 to 10^4 PRISM slits: 12e3).
_A_SLIT = 14_000
# What is kept between passes where no limit is stated: these, and packed pixels where they leave
# room; few, as scratch files are nearly as fast.
_KEPT = 2**27
# And the most of packed pixels that is kept, whatever is allowed, or that a cluster's worker holds.
_MOST_KEPT = 2**30
#: Share of all pixels that is packed; of them 24 bytes are kept.
_PACKED = 0.4
#: Chunks that wait for others, beside those being worked on: partial sums and other nods.
_WAITING = 8


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
    base, working, slits, kept
        Bytes of Python itself, of chunks being worked on, of tables by slit, and of pixels kept
        between passes.
    threads
        Of one process.
    chunk
        Bytes of one pixel variable in a chunk.
    """

    base: int
    working: int
    slits: int
    kept: int
    threads: int
    chunk: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.base + self.working + self.slits + self.kept

    def __str__(self) -> str:
        shares = {
            "at work": self.working,
            "by slit": self.slits,
            "pixels kept": self.kept,
            "the program": self.base,
        }
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in shares.items())
        return f"memory: at most {self.total / 1e9:.2f} GB ({parts}; {self.threads} threads)"


def predict_memory(
    datasets: Mapping[str, xr.Dataset] | xr.Dataset, *, memory: int | None = None
) -> Prediction:
    """What the chain will hold in memory. Reads no pixel.

    Parameters
    ----------
    datasets
        Slit datasets, which are worked on one after the other.
    memory
        Bytes allowed in all; what is left of them keeps pixels between passes, up to 1 GiB. None:
        128 MiB are kept between passes, tables by slit first, then pixels.

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
    predictions = [_of_one(ds, threads, memory) for ds in all_of_them.values()]
    return max(predictions, key=lambda p: p.total)


def _of_one(ds: xr.Dataset, threads: int, memory: int | None) -> Prediction:
    n, ny, nx = ds["flux"].shape
    lazy = ds["flux"].chunks
    length = max(lazy[0]) if lazy else min(64, n)
    chunk = 4 * length * ny * nx
    working = threads * _ARRAYS * chunk + _WAITING * 3 * chunk
    each = int(24 * _PACKED * ny * nx) + 1
    slits = n * _A_SLIT
    room = pixel_room(n)
    if memory is not None:
        least = Prediction(BASE, working, slits, 0, threads, chunk)
        room = min(_MOST_KEPT, max(memory - least.total, 0))
    # Of packed pixels; what does not fit goes to scratch files.
    kept = min(room, n * each) + (0 if lazy else ds.nbytes)
    return Prediction(BASE, working, slits, kept, threads, chunk)


def pixel_room(n_slits: int) -> int:
    """Bytes of packed pixels that a process keeps between passes where no limit is stated."""
    return _MOST_KEPT if cluster() is not None else max(_KEPT - n_slits * _A_SLIT, 0)


def check_memory(datasets: Mapping[str, xr.Dataset], memory: int | None) -> Prediction:
    """The prediction, where it keeps to a limit.

    Raises
    ------
    ParameterError
        Where it does not, or a worker of the cluster has less than it would take, with what would.
    """
    found = predict_memory(datasets, memory=memory)
    _check_workers(found)
    if memory is None or found.total <= memory:
        return found
    advice = []
    left = memory - found.base - found.slits - found.kept
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
