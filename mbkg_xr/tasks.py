"""Graphs and calls with small results through dask: memory does not grow with their number.

Dask does the scheduling, whichever scheduler is in use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import dask
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.system import CPU_COUNT

from .errors import StoreError
from .heap import trim

__all__ = ["batches", "cluster", "completed", "hold", "results", "workers"]

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
    least = 4 * workers()
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


def completed(graph: Mapping, keys: Sequence[Hashable], *, local: bool = False) -> Iterator[Any]:
    """Results of a graph, in the order of `keys`, each let go of as soon as it is there.

    On a cluster a result that was fetched is not made again when the worker that held it dies.

    Parameters
    ----------
    graph
        A dask graph.
    keys
        What is wanted of it.
    local
        Whether its data lie in this process, so that no cluster should be sent them.

    Examples
    --------
    >>> list(completed({"a": (abs, -1), "b": (abs, "a")}, ["b", "a"]))
    [1, 1]
    """
    client = None if local else cluster()
    if client is None:
        scheduler = {"scheduler": "threads"} if local and cluster() is not None else {}
        trim()  # what lies free in this thread cannot be used by those of dask
        found = dask.compute(*[Delayed(key, graph) for key in keys], **scheduler)
        trim()
        yield from found
        return
    from distributed import as_completed

    futures = client.get(dict(graph), list(keys), sync=False)
    with _shown(client, futures):
        place = {future.key: i for i, future in enumerate(futures)}
        done = as_completed(futures, with_results=True)
        del futures
        held: dict[int, Any] = {}
        following = 0
        for future, result in done:
            held[place[future.key]] = result
            future.release()
            while following in held:
                yield held.pop(following)
                following += 1


def hold(
    graph: Mapping, keys: Sequence[Hashable], small: Sequence[Hashable]
) -> tuple[list[Any], list[Any]]:
    """Results that stay with the workers of the cluster, as futures, and others that are fetched.

    Parameters
    ----------
    graph
        A dask graph.
    keys, small
        What is to be held, and what is wanted here.
    """
    client = cluster()
    futures = client.get(dict(graph), [*keys, *small], sync=False)
    with _shown(client, futures):
        return futures[: len(keys)], client.gather(futures[len(keys) :])


def _shown(client: Any, futures: Sequence[Any]) -> AbstractContextManager:
    """Follow a cluster's work where there is a bar to be moved (`mbkg_xr.progress`)."""
    owners = [next((getattr(c, "__self__", None) for c in cs if c), None) for cs in Callback.active]
    bars: list[Any] = [one for one in owners if hasattr(one, "show")]
    if not bars:
        return nullcontext()
    from .cluster_progress import followed

    def show(done: int, total: int) -> None:
        for bar in bars:
            bar.show(done, total)

    return followed(client, futures, show)


def cluster() -> Any:
    """The `distributed.Client` that dask computes with, or None."""
    client = getattr(get_scheduler(), "__self__", None)
    distributed: Any = sys.modules.get("distributed")
    return client if distributed is not None and isinstance(client, distributed.Client) else None


def workers() -> int:
    """How many tasks dask runs at a time, nearly."""
    client = cluster()
    if client is not None:
        return max(sum(client.nthreads().values()), 1)
    return int(dask.config.get("num_workers", None) or CPU_COUNT)
