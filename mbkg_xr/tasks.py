"""Calls with small results through dask, some at a time: memory does not grow with their number.

Dask does the scheduling, whichever scheduler is in use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import dask
from dask.system import CPU_COUNT

from .errors import StoreError

__all__ = ["batches", "results"]

T = TypeVar("T")


def batches(items: Iterable[tuple[int, T]]) -> Iterator[list[T]]:
    """Items in lots that keep dask's workers busy, a few tasks each.

    Parameters
    ----------
    items
        With the number of tasks that each of them means.

    Examples
    --------
    >>> [item for lot in batches([(1, "a"), (2, "b")]) for item in lot]
    ['a', 'b']
    """
    least = 4 * _workers()
    lot: list[T] = []
    weight = 0
    for size, item in items:
        lot.append(item)
        weight += size
        if weight >= least:
            yield lot
            lot, weight = [], 0
    if lot:
        yield lot


def results(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What calls return; an exception in place of what could not be had.

    Raises
    ------
    StoreError
        At once: where a store cannot be written, nothing else can be done.

    Examples
    --------
    >>> results([lambda: 1, lambda: 1 / 0])
    [1, ZeroDivisionError('division by zero')]
    """
    tasks = [dask.delayed(call, pure=False)() for call in calls]
    try:
        return list(dask.compute(*tasks))
    except StoreError:
        raise
    except Exception:  # a worker that died, say: which of them was it?
        pass
    out: list[Any] = []
    for task in tasks:
        try:
            out.append(task.compute())
        except StoreError:
            raise
        except Exception as error:
            out.append(error)
    return out


def _workers() -> int:
    """How many tasks dask runs at a time, nearly."""
    distributed: Any = sys.modules.get("distributed")
    try:
        return max(sum(distributed.default_client().nthreads().values()), 1)
    except (AttributeError, ValueError):
        return int(dask.config.get("num_workers", None) or CPU_COUNT)
