"""``mbkg-xr explore``: a local page to look at a stored result."""

from __future__ import annotations

import click

from ..explore import explore

__all__ = ["explore_command"]


@click.command("explore")
@click.argument("result", type=click.Path())
@click.option("--port", default=0, help="Where to serve.  [default: any free port]")
def explore_command(result: str, port: int) -> None:
    """Serve a page, to this machine only, to look at RESULT, a store written by run."""

    def ready(url: str) -> None:
        click.echo(f"exploring {result} at {url}   (stop with Ctrl-C)")

    try:
        explore(result, port=port, on_ready=ready)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
