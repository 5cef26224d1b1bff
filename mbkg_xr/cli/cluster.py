"""``--cluster``: where the work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ..errors import ParameterError
from ..tasks import await_workers

__all__ = ["cluster_options", "on_cluster"]

_WAIT = 30  # s, for a scheduler to answer


def cluster_options(command: Callable) -> Callable:
    """Options of `on_cluster`."""
    for option in (
        click.option("--dashboard", is_flag=True, help="With --cluster local: show dask's page."),
        click.option(
            "--workers", type=click.IntRange(min=1),
            help="With --cluster local: how many processes.  [default: one a core]",
        ),
        click.option(
            "--cluster", metavar="ADDRESS",
            help="A dask scheduler that does the work (tcp://...), or local for processes here.  "
            "[default: threads]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@contextmanager
def on_cluster(
    address: str | None, *, workers: int | None = None, dashboard: bool = False
) -> Iterator[None]:
    """Have dask compute on a cluster while the body runs.

    Parameters
    ----------
    address
        Of a scheduler; ``"local"`` for processes of this machine, bound to loopback, that end with
        the body; None for dask's threads.
    workers, dashboard
        Of a local cluster.

    Raises
    ------
    ParameterError
        Where there is no such scheduler, or `distributed` is not installed.
    """
    if address is None:
        yield
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ParameterError(
            "no distributed scheduler without the package distributed",
            where="--cluster",
            remedy="pip install 'mbkg_xr[cluster]'",
        ) from error
    if address == "local":
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                # Any free port: of its usual one, taken by another cluster, dask would warn.
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": dashboard},
            ) as cluster,
            Client(cluster),
        ):
            if dashboard:
                click.echo(f"dashboard: {cluster.dashboard_link}", err=True)
            yield
        return
    try:
        client = Client(address, timeout=_WAIT)
    except (OSError, ValueError, TimeoutError) as error:
        raise ParameterError(
            "no scheduler answers",
            where=f"--cluster {address}",
            expected="the address of a dask scheduler, such as tcp://10.0.0.1:8786, or local",
            found=str(error) or type(error).__name__,
            remedy="start one (dask scheduler) and its workers",
        ) from error
    with client:
        await_workers(lambda text: click.echo(text, err=True))
        yield
