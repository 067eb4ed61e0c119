"""The command on the source paper: `paper`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finwidth.cli.options import Json
from finwidth.cli.output import print_json, verb
from finwidth.documents import extended
from finwidth.outputs import RULE, check, written


def paper_command(
    ids: Annotated[list[str] | None, typer.Argument(help="Statements, such as theorem-1; by default all.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help=f"Write an HTML page here. {RULE}", show_default=False),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help=f"Write the same as Markdown here. {RULE}", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every numbered statement of the source paper, one line each."""
    from finwidth.cli import tables
    from finwidth.paper import page, statements

    check(output, markdown)
    if output is not None:
        page.import_jinja2()
    checked = []
    for id in ids or statements.STATEMENTS:
        checked.append(statements.check(id))
        if not as_json:
            tables.print_statement(checked[-1])
    found = statements.findings() if not ids else ()
    if as_json:
        print_json(extended(statements.to_json(checked, found), files=written(output, markdown)))
    else:
        tables.print_findings(found)
    for path, write in ((output, page.write_page), (markdown, page.write_markdown)):
        if path is not None:
            done = verb(path)
            write(path, checked, found)
            typer.echo(f"{done} {path}.", err=as_json)
    if not all(statement.holds for statement in checked):
        raise typer.Exit(1)
