"""The command line: thin, every command is one function of the package."""

from __future__ import annotations

import signal
import threading
import warnings
from typing import Any

import click

from ..errors import MbkgError
from .compare import compare_command
from .demo import demo
from .explore import explore_command
from .info import info_command
from .ingest import ingest_command
from .query import query_command
from .report import report_command
from .run import run_command
from .simulate import simulate
from .slits import slits_command
from .verify import verify_command

__all__ = ["main"]


class _Group(click.Group):
    """Turns the package's own errors into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        # Told to stop, clean up as after any other error: nothing half-written stays.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: ctx.exit(143))
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except MbkgError as error:
                click.echo(f"error: {error}", err=True)
                ctx.exit(2)


def _show_warning(message: Any, category: Any, *where: Any, **more: Any) -> None:
    """Show the package's warnings as one line; those of libraries are for developers."""
    if category is UserWarning:
        click.echo(f"warning: {message}", err=True)


@click.group(cls=_Group)
@click.version_option(package_name="mbkg_xr")
def main() -> None:
    """Master background subtraction for JWST NIRSpec multi-object spectra."""


for command in (
    run_command,
    info_command,
    ingest_command,
    verify_command,
    compare_command,
    query_command,
    slits_command,
    report_command,
    explore_command,
    simulate,
    demo,
):
    main.add_command(command)
