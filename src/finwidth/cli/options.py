"""The options and arguments that commands share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer


def either(names: Iterable[str]) -> str:
    """Names as a help text lists them.

    >>> from finwidth.cli.options import either
    >>> either(["a", "b", "c"]), either(["a"])
    ('a, b or c', 'a')
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


Input = Annotated[
    str,
    typer.Option(
        "--input",
        "-i",
        help="Numbers such as 1,2; ones; random:7, a direction; a .npy file; or digits:17, an image of scikit-learn's "
        "digits (pixels 0 to 16).",
        show_default=False,
    ),
]
Draws = Annotated[int, typer.Option("--draws", "-n", help="How many random networks to draw in law.")]
Seed = Annotated[int, typer.Option("--seed", "-s", help="A whole number that fixes every draw.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]


def examples(command: str, *lines: str) -> str:
    """The end of a command's help.

    >>> from finwidth.cli.options import examples
    >>> examples("paper", "theorem-1")
    'Examples:\\n\\n  finwidth paper theorem-1'
    """
    return "\n\n".join(["Examples:", *(f"  finwidth {command} {line}".rstrip() for line in lines)])
