"""A progress bar for long work: what is being done, and how far dask is with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dask.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["counting", "show_progress"]


class _TaskCounter(Callback):
    """Tells a bar how many tasks of the running graph are done."""

    def __init__(self, progress: Progress, bar: Any):
        super().__init__()
        self._progress, self._bar = progress, bar

    def _start_state(self, dsk: Any, state: dict) -> None:
        total = sum(len(state[k]) for k in ("ready", "waiting", "running"))
        self._progress.reset(self._bar, total=max(total, 1))

    def _posttask(self, key: Any, result: Any, dsk: Any, state: dict, worker: Any) -> None:
        self._progress.advance(self._bar)

    def show(self, done: int, total: int) -> None:
        """The scheduler of a cluster has done so many; see `mbkg_xr.tasks.completed`."""
        self._progress.update(self._bar, completed=done, total=max(total, 1))


@contextmanager
def show_progress(console: Console, *, enabled: bool = True) -> Iterator[Callable[[str], None]]:
    """Show a bar while the body runs; call the yielded function with what it is doing.

    The bar follows the tasks of dask's local schedulers, and those of a cluster as it counts them.
    """
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not enabled) as progress:
        bar = progress.add_task("", total=None)
        with _TaskCounter(progress, bar):
            yield lambda text: progress.update(bar, description=text)


@contextmanager
def counting(
    shown: bool | Callable[[int, int], None], text: str
) -> Iterator[Callable[[int, int], None] | None]:
    """What to call with the number of things done and of all: a bar on stderr, or what is given."""
    if callable(shown) or not shown:
        yield shown or None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
