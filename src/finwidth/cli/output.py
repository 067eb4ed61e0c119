"""Results on standard output: one JSON document for programs, and lines for people; tables are in `cli.tables`."""

from __future__ import annotations

import json
from collections.abc import Mapping

import typer

from finwidth.quantities import plain


def print_json(document: Mapping[str, object]) -> None:
    """One JSON document: fractions as texts, numbers that are not finite as null."""
    typer.echo(json.dumps(plain(dict(document)), indent=1, allow_nan=False))
