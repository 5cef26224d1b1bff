"""How far a cluster is with what it was asked for, as its scheduler counts its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from distributed.diagnostics.progressbar import ProgressBar

__all__ = ["followed"]

_WAIT = 10  # s, for the scheduler's first count


class _Count(ProgressBar):
    """Dask's bar, drawn elsewhere."""

    def __init__(self, futures: Sequence[Any], show: Callable[[int, int], None]):
        super().__init__(futures)
        self._show, self.begun, self.total = show, asyncio.Event(), 0

    async def listen(self) -> None:
        try:
            await super().listen()
        finally:
            self.begun.set()

    def _draw_bar(self, remaining: int, all: int, **kwargs: Any) -> None:
        self.total = all
        self._show(all - remaining, all)
        self.begun.set()


@contextmanager
def followed(
    client: Any, futures: Sequence[Any], show: Callable[[int, int], None]
) -> Iterator[None]:
    """Call `show` with the tasks done and all that a cluster does for some futures.

    The scheduler has counted them when the body begins: those that the body lets go of are not
    missed. To follow is no part of the work: where it fails, the work goes on unseen.

    Parameters
    ----------
    client
        The `distributed.Client`.
    futures
        What it was asked for.
    show
        Called about ten times a second, from another thread.
    """
    count = _Count(list(futures), show)
    following: asyncio.Task | None = None

    async def begin() -> asyncio.Task:
        task = asyncio.ensure_future(count.listen())
        await asyncio.wait_for(count.begun.wait(), _WAIT)
        return task

    async def end(task: asyncio.Task) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with suppress(OSError, TimeoutError):
        following = client.sync(begin)
    try:
        yield
        if count.total:
            show(count.total, count.total)
    finally:
        if following is not None:
            client.sync(end, following)
