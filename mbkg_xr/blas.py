"""Linear algebra on one thread.

The matrices here have a few hundred rows: more threads gain nothing on them, and where the cores
are taken (by dask's own threads, or by other programs) they wait for each other in a spin, which
was measured to make a fit thirteen times slower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

__all__ = ["serial_blas"]

P = ParamSpec("P")
R = TypeVar("R")


def serial_blas(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with BLAS on one thread, and leave it as it was (a decorator).

    Examples
    --------
    >>> from threadpoolctl import threadpool_info
    >>> @serial_blas
    ... def threads():
    ...     return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
    >>> threads()
    {1}
    """

    @functools.wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited
