"""The options and arguments that commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
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


def among(names: Iterable[str]) -> Callable[[], list[str]]:
    """What a shell completes an option with.

    >>> from finwidth.cli.options import among
    >>> among(["relu", "tanh"])()
    ['relu', 'tanh']
    """
    return lambda: [*names]


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
Flag = functools.partial(typer.Option, metavar="")  # without the <bool> of Typer
Draws = Annotated[int, typer.Option("--draws", "-n", help="How many random networks to draw in law.")]
Seed = Annotated[int, typer.Option("--seed", "-s", help="A whole number that fixes every draw.")]
Json = Annotated[bool, Flag("--json", help="Print one JSON document, for programs.")]


def examples(command: str, *lines: str) -> str:
    """The end of a command's help.

    >>> from finwidth.cli.options import examples
    >>> examples("paper", "theorem-1")
    'Examples:\\n\\n  finwidth paper theorem-1'
    """
    called = f"  finwidth {command}".rstrip()
    return "\n\n".join(["Examples:", *(f"{called} {line}".rstrip() for line in lines)])
