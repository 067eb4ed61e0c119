"""The options and arguments that commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption


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
        metavar="INPUT",
        help="Numbers such as 1,2; ones; random:7, a direction; a .npy file; or digits:17, an image of scikit-learn's "
        "digits (pixels 0 to 16).",
        show_default=False,
    ),
]
Flag = functools.partial(typer.Option, metavar="")  # nothing follows it
Draws = Annotated[int, typer.Option("--draws", "-n", metavar="NUMBER", help="How many random networks to draw in law.")]
Seed = Annotated[int, typer.Option("--seed", "-s", metavar="NUMBER", help="A whole number that fixes every draw.")]
Json = Annotated[bool, Flag("--json", help="Print one JSON document, for programs.")]


def without_types(parameters: Iterable[Any]) -> list[Any]:
    """Parameters of Click without the types of Python, such as <bool>, that Typer shows in a help text."""
    found = [*parameters]
    for each in found:
        if isinstance(each, TyperArgument):  # its name is shown beside
            vars(each)["display_type_rich"] = lambda ctx: None
        elif isinstance(each, TyperOption) and each.is_flag:  # --help and --version
            each.metavar = ""
    return found


class PlainCommand(TyperCommand):
    """A command whose help shows no types of Python."""

    # The context is Click's, and newer Typer has a Click of its own.
    def get_params(self, ctx: Any) -> list[Any]:
        """What Click lists, without types."""
        return without_types(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """The same of a command that has commands of its own."""

    def get_params(self, ctx: Any) -> list[Any]:
        """What Click lists, without types."""
        return without_types(super().get_params(ctx))


def examples(command: str, *lines: str) -> str:
    """The end of a command's help.

    >>> from finwidth.cli.options import examples
    >>> examples("paper", "theorem-1")
    'Examples:\\n\\n  finwidth paper theorem-1'
    """
    called = f"  finwidth {command}".rstrip()
    return "\n\n".join(["Examples:", *(f"{called} {line}".rstrip() for line in lines)])
