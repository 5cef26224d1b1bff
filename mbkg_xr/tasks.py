"""Graphs and calls with small results through dask: memory does not grow with their number.

Dask does the scheduling, whichever scheduler is in use.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import dask
import dask.multiprocessing
import dask.threaded
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.system import CPU_COUNT

from .errors import ClusterError, StoreError
from .heap import trim

__all__ = [
    "await_workers",
    "batches",
    "cluster",
    "completed",
    "hold",
    "results",
    "threads",
    "workers",
]

_SETTLE = 60  # s that tasks get to end, which go on though others failed

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

    Raises
    ------
    ClusterError
        Where the cluster was lost, or its workers died again and again over one task.

    Examples
    --------
    >>> list(completed({"a": (abs, -1), "b": (abs, "a")}, ["b", "a"]))
    [1, 1]
    """
    client = None if local else cluster()
    if client is None:
        trim()  # what lies free in this thread cannot be used by those of dask
        # Not by `dask.compute`, which for so many results takes time and memory by their square.
        with _threads() as get:
            found = get(graph, list(keys))
        trim()
        yield from found
        return
    from distributed import as_completed

    futures = client.get(dict(graph), list(keys), sync=False)
    with _watched(client, [future.key for future in futures]), _shown(client, futures):
        place = {future.key: i for i, future in enumerate(futures)}
        done = as_completed(futures, with_results=True)
        del futures
        held: dict[int, Any] = {}
        following = 0
        for future, result in done:
            if future.status != "finished":  # a lost future gives its error as its result
                raise ClusterError(
                    "the cluster was lost before its work was done",
                    found=f"{type(result).__name__}: {result}",
                    remedy="see whether its scheduler still runs, and begin again",
                )
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
    with _watched(client, [future.key for future in futures]), _shown(client, futures):
        return futures[: len(keys)], client.gather(futures[len(keys) :])


@contextmanager
def _threads() -> Iterator[Callable[[Mapping, list], Sequence[Any]]]:
    """What dask computes with where no cluster does: threads that end with the body.

    Those of dask's own pool would work on after one of them failed, and write where all has been
    cleared away.
    """
    other = get_scheduler()
    known = (None, dask.threaded.get, dask.multiprocessing.get)  # its processes share no memory
    if cluster() is None and (other not in known or dask.config.get("pool", None) is not None):
        yield other or dask.threaded.get
        return
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="mbkg_xr")
    try:
        yield partial(dask.threaded.get, pool=pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _watched(client: Any, keys: Sequence[Any]) -> Iterator[None]:
    """On an error have the cluster leave off what was asked of it, and wait until it did.

    Keys, for futures would hold results.
    """
    from distributed import Future, KilledWorker

    try:
        yield
    except GeneratorExit:  # nobody asks for the rest, and it is let go of
        raise
    except BaseException as error:
        with suppress(Exception):  # of a cluster that is gone
            client.cancel([Future(key, client) for key in keys])
            _settle(client, {_name(key) for key in keys})
        if isinstance(error, KilledWorker):
            raise ClusterError(
                "workers of the cluster died again and again",
                found=error,
                remedy="see their logs; too little memory is the usual reason: give them more, or "
                "take fewer slits a chunk (--chunks)",
            ) from error
        raise


def _settle(client: Any, names: set[str]) -> None:
    """Wait for tasks that run still: a worker ends what it is at."""

    def running(dask_worker: Any) -> bool:
        return any(_name(task.key) in names for task in dask_worker.state.all_running_tasks)

    end = time.monotonic() + _SETTLE
    while any(client.run(running).values()) and time.monotonic() < end:
        time.sleep(0.05)


def _name(key: Any) -> str:
    return str(key[0] if isinstance(key, tuple) else key)


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


def await_workers(say: Callable[[str], None]) -> None:
    """Wait for the first worker of a cluster: what is done where goes by the workers there are.

    Parameters
    ----------
    say
        Called with a line of text where there is none yet.
    """
    client = cluster()
    if client is not None and not client.nthreads():
        say("waiting for workers of the cluster")
        client.submit(int, pure=False).result()  # which an adaptive cluster sees, too


def workers() -> int:
    """How many tasks dask runs at a time, nearly."""
    client = cluster()
    return threads() if client is None else max(sum(client.nthreads().values()), 1)


def threads() -> int:
    """How many threads dask computes with in this process."""
    return int(dask.config.get("num_workers", None) or CPU_COUNT)
