"""The command on what ``--json`` prints: `schema`."""

from __future__ import annotations

from finwidth.cli.output import print_json


def schema_command() -> None:
    """Print the JSON Schema of what --json prints and to_json() returns (draft 2020-12)."""
    from finwidth.documents import schema

    print_json(schema())
