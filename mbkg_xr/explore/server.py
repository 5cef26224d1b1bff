"""Serving the explorer: on this machine only."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..errors import ParameterError
from ..methods import stored_results

__all__ = ["explore"]

_HOST = "127.0.0.1"


def explore(
    path: str | os.PathLike,
    *,
    port: int = 0,
    on_ready: Callable[[str], None] | None = None,
    run: bool = True,
) -> Any:
    """Serve a page to look at a stored result: exposure, slit, wavelength range.

    The page shows the slit before subtraction, its background, what is left, residuals, and the
    spectra of its source and sky rows; and the sky pixels of the whole exposure, drawn as a raster
    however many they are. Only the slits that are looked at are read. It is served to this machine
    alone, until it is stopped.

    Parameters
    ----------
    path
        A store that `mbkg-xr run` wrote.
    port
        Where to serve; 0 for any that is free.
    on_ready
        Called with the page's address when it can be opened.
    run
        Serve until stopped. Without, the server comes back started, and its ``io_loop`` must run.

    Returns
    -------
    bokeh.server.server.Server

    Raises
    ------
    StoreError, DatasetError
        Where `path` holds no result.
    ParameterError
        Where the port cannot be had, or datashader is not installed.

    Examples
    --------
    >>> import mbkg_xr as mx, tempfile, pathlib
    >>> from mbkg_xr.chain import run_tree
    >>> ds = mx.simulate_program(exposures=2, slits=2, background_slits=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = pathlib.Path(folder) / "result.zarr"
    ...     _ = run_tree({"prism-clear": ds}, store)
    ...     server = mx.explore(store, run=False)
    ...     server.stop()
    """
    try:
        import datashader  # noqa: F401
        from bokeh.server.server import Server
    except ImportError as error:
        raise ParameterError(
            "the explorer is not installed",
            expected="datashader beside mbkg_xr",
            found=str(error),
            remedy="pip install 'mbkg_xr[explore]'",
        ) from error
    from .view import View

    results = stored_results(path)  # whether there is anything to look at

    def document(doc: Any) -> None:
        doc.title = f"mbkg_xr: {os.path.basename(os.path.normpath(path))}"
        doc.add_root(View(results).layout)

    try:
        server = Server({"/": document}, address=_HOST, port=port)
    except OSError as error:
        raise ParameterError(
            "the page cannot be served here",
            where=f"{_HOST}:{port}",
            expected="a free port",
            found=error.strerror or str(error),
            remedy="choose another one (--port), or none",
        ) from error
    server.start()
    if on_ready is not None:
        on_ready(f"http://localhost:{server.port}/")
    if run:
        try:
            server.io_loop.start()
        finally:
            server.stop()
    return server
