"""The command on the page to play with: `explore`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from finwidth.cli.output import verb
from finwidth.outputs import RULE


def explore_command(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help=f"Write the page here, and open nothing. {RULE}", show_default=False
        ),
    ] = None,
) -> None:
    """Open the explorer in a browser: choose a network, see the moments and the law of its kernel.

    It is one page that needs neither a server nor the internet.
    """
    from finwidth.explorer import write_explorer

    if output is not None:
        done = verb(output)
        typer.echo(f"{done} {write_explorer(output)}.")
        return
    page = write_explorer(Path(tempfile.mkdtemp(prefix="finwidth-")) / "explorer.html")
    opened = typer.launch(page.as_uri()) == 0
    typer.echo(f"{'Opened' if opened else 'No browser was found; open'} {page}.")
