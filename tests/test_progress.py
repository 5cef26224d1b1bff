"""Bars of long work follow dask, whoever computes."""

import io
import time

import numpy as np
import pytest
from dask.callbacks import Callback
from distributed import Client, LocalCluster
from rich.console import Console

from mbkg_xr.progress import _TaskCounter, show_progress
from mbkg_xr.tasks import completed, hold


class Bar:
    """A bar that is looked at by a test."""

    def __init__(self):
        self.seen = []

    def update(self, bar, completed, total):
        self.seen.append((completed, total))

    def reset(self, bar, total):
        self.seen.append((0, total))

    def advance(self, bar):
        done, total = self.seen[-1]
        self.seen.append((done + 1, total))


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp",
            host="127.0.0.1", dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def _graph(n):
    """So many slow tasks, one after the other, and a sum of each two."""
    graph = {("one", i): (_slow, i) for i in range(n)}
    return graph | {("two", i): (sum, [("one", 2 * i), ("one", 2 * i + 1)]) for i in range(n // 2)}


def _slow(i):
    time.sleep(0.04)
    return i


def test_a_bar_follows_the_tasks_of_a_cluster(client):
    """All that its scheduler does, not the results only; and those let go of meanwhile, too."""
    bar = Bar()
    with _TaskCounter(bar, 0):
        assert list(completed(_graph(12), [("two", i) for i in range(6)])) == [1, 5, 9, 13, 17, 21]
    done = [d for d, _ in bar.seen]
    assert {total for _, total in bar.seen} == {18}
    assert done == sorted(done) and done[0] < 6 and done[-1] == 18 and len(set(done)) >= 4


def test_what_fails_on_a_cluster_raises_while_a_bar_follows(client):
    graph = {**_graph(2), "fails": (np.linalg.inv, np.zeros((2, 2)))}
    with _TaskCounter(Bar(), 0), pytest.raises(np.linalg.LinAlgError):
        list(completed(graph, [("two", 0), "fails"]))
    with _TaskCounter(Bar(), 0), pytest.raises(np.linalg.LinAlgError):
        hold(graph, [("two", 0)], ["fails"])
    # The next one is followed as ever.
    bar = Bar()
    with _TaskCounter(bar, 0):
        futures, small = hold(_graph(4), [("two", 0)], [("two", 1)])
    assert small == [5] and futures[0].result() == 1
    assert {total for _, total in bar.seen} == {6}


def test_a_scheduler_that_does_not_count_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr("mbkg_xr.cluster_progress._WAIT", 0.001)
    with _TaskCounter(Bar(), 0):
        assert list(completed(_graph(2), [("two", 0)])) == [1]


def test_a_bar_follows_threads():
    bar = Bar()
    with _TaskCounter(bar, 0):
        assert list(completed(_graph(2), [("two", 0)], local=True)) == [1]
    assert bar.seen[-1] == (3, 3)


def test_nothing_is_left_behind():
    with show_progress(Console(file=io.StringIO())) as say:
        say("work")
    assert not Callback.active
