"""Graphs through dask: when one task fails, no other works on behind its back."""

import threading
import time
import tracemalloc

import dask
import pytest
from distributed import Client, LocalCluster

from mbkg_xr.errors import ClusterError
from mbkg_xr.tasks import completed, threads


def _graph(block, n):
    return {("t", i): (block, i) for i in range(n)}, [("t", i) for i in range(n)]


def test_nothing_runs_on_after_an_error():
    """Else it would write where all has been cleared away."""
    running, lock = [0], threading.Lock()

    def block(i):
        if i == 1:
            time.sleep(0.05)
            raise ValueError("the second")
        with lock:
            running[0] += 1
        time.sleep(0.2)
        with lock:
            running[0] -= 1
        return i

    with dask.config.set(num_workers=4), pytest.raises(ValueError, match="the second"):
        list(completed(*_graph(block, 50)))
    assert running[0] == 0
    alive = [t.name for t in threading.enumerate() if t.name.startswith("mbkg_xr")]
    assert not alive


def test_many_tasks_take_memory_by_their_number():
    """And not by its square, as dask's `compute` of as many results does."""
    peaks = []
    for n in (300, 300, 2400):  # the first time more is imported
        graph, keys = _graph(int, n)
        tracemalloc.start()
        assert len(list(completed(graph, keys))) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 16 * peaks[1]


@pytest.mark.parametrize("scheduler", ["threads", "sync", "processes", None])
def test_any_scheduler_of_dask(scheduler):
    """Of processes the memory is not shared: threads do their work."""
    lock = threading.Lock()  # cannot be sent to processes

    def block(i):
        with lock:
            return i * i

    with dask.config.set({"scheduler": scheduler} if scheduler else {}):
        assert list(completed(*_graph(block, 5))) == [0, 1, 4, 9, 16]


def test_a_scheduler_of_ones_own():
    def refuse(graph, keys, **options):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse), pytest.raises(AssertionError, match="computed"):
        list(completed(*_graph(abs, 2)))


def test_as_many_threads_as_asked_for():
    seen = set()

    def block(i):
        seen.add(threading.get_ident())
        time.sleep(0.02)
        return i

    with dask.config.set(num_workers=3):
        assert threads() == 3
        assert list(completed(*_graph(block, 12))) == list(range(12))
    assert 1 < len(seen) <= 3


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


BEGUN: list[int] = []
ENDED: list[int] = []


def _slow(i):
    BEGUN.append(i)
    if len(BEGUN) == 2:
        time.sleep(0.2)
        raise ValueError("the second")
    time.sleep(0.6)
    ENDED.append(i)
    return i


def test_a_cluster_leaves_off_after_an_error(client):
    """What runs ends before the error is told; what does not, never begins."""
    BEGUN.clear()
    ENDED.clear()
    with pytest.raises(ValueError, match="the second") as error:
        list(completed(*_graph(_slow, 40)))
    begun = len(BEGUN)
    assert begun < 10 and len(ENDED) == begun - 1
    time.sleep(1)
    assert len(BEGUN) == begun, "while the error, and the frames it came through, are there"
    assert error.tb


def test_a_cluster_that_is_lost_is_an_error(client):
    """Not results that are none: a store would be taken for complete."""
    timer = threading.Timer(0.3, client.restart, kwargs={"wait_for_workers": False})
    timer.start()
    with pytest.raises(ClusterError, match=r"the cluster was lost.*begin again"):
        list(completed(*_graph(_wait, 20)))
    timer.join()


def _wait(i):
    time.sleep(0.2)
    return i
