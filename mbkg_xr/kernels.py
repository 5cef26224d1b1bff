"""How kernels are compiled: without the GIL, never parallel, and kept on disk between runs.

Numba's own cache looks only at the file of the function it keeps: a kernel that calls one of
another file, or reads a constant of it, would go on as it was after that file changed. Here
what is kept is kept under a digest of the whole package, so a change anywhere compiles anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba

_PACKAGE = Path(__file__).parent


def kernel(function: Callable | None = None, **options: Any) -> Any:
    """Compile a function that touches pixels (a decorator).

    Parameters
    ----------
    function : callable, optional
        The function; without one, a decorator with these options.
    **options
        Of `numba.njit`, such as ``inline="always"``.

    Returns
    -------
    callable
        Compiled at its first call without the GIL (dask's threads run side by side), or read
        from ``__pycache__`` of the package, or from the user's cache where that cannot be
        written. ``NUMBA_CACHE_DIR``, where set, goes before both.
    """
    if function is None:
        return functools.partial(kernel, **options)
    folder = cache_folder()
    with _cached_in(folder):
        # The numpy error model spares a test for zero before each division.
        return numba.njit(nogil=True, error_model="numpy", cache=folder is not None, **options)(
            function
        )


@functools.cache
def cache_folder() -> Path | None:
    """Where this version's compiled kernels are kept; None where no place can be written."""
    version = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        version.update(str(path.relative_to(_PACKAGE)).encode())
        version.update(path.read_bytes())
    mine = f"kernels-{hashlib.sha256(str(_PACKAGE).encode()).hexdigest()[:8]}"
    for place in _places():
        folder = place / f"{mine}-{version.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            for other in place.glob(f"{mine}-*"):
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
            return folder
    return None


def _places() -> Iterator[Path]:
    if numba.config.CACHE_DIR:
        yield Path(numba.config.CACHE_DIR)
    yield _PACKAGE / "__pycache__"
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbkg_xr"


@contextlib.contextmanager
def _cached_in(folder: Path | None) -> Iterator[None]:
    """Numba chooses a kernel's place when it is decorated, from its settings."""
    before = numba.config.CACHE_DIR
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before
