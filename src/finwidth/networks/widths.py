"""Widths: how they are checked, written and read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from finwidth import arguments
from finwidth.errors import FinwidthError, shown

_MOST_LAYERS = 10**7
_WIDEST = 10**100  # powers of it are doubles


def check_widths(widths: Sequence[int], name: str = "widths") -> tuple[int, ...]:
    """Widths of a network, input to output; messages call them ``name``."""
    wanted = "give whole numbers of at least 1, input to output, such as [16, 64, 64, 1]"
    listed = arguments.items(name, widths, wanted.removeprefix("give "))
    if len(listed) > _MOST_LAYERS + 1:
        raise FinwidthError(f"the network has {len(listed) - 1} layers; give at most {_MOST_LAYERS:,}")
    if len(listed) < 2:
        raise FinwidthError(f"{name} has {len(listed)} entries, and a network needs an input and an output; {wanted}")
    checked: list[int] = []
    last = None
    for place, width in enumerate(listed):
        if width is last:  # a deep network is mostly copies of one width
            checked.append(checked[-1])
            continue
        number = arguments.index(width)
        if number is None or not 1 <= number <= _WIDEST:
            raise FinwidthError(f"width number {place} is {shown(width)}, {_why_no_width(number)}; {wanted}")
        checked.append(number)
        last = width
    return tuple(checked)


def check_width(name: str, width: object) -> int:
    """One width of a network."""
    number = arguments.count(name, width)
    if number > _WIDEST:
        raise FinwidthError(f"{name} is {shown(width)}; give at most {_WIDEST:.0e}")
    return number


def format_widths(widths: Sequence[int]) -> str:
    """Widths as the command line writes them: ``16,64x8,1``."""
    parts = [str(widths[0])]
    for width, run in groupby(widths[1:]):
        repeat = len(list(run))
        parts.append(f"{width}x{repeat}" if repeat > 1 else str(width))
    return ",".join(parts)


def parse_widths(text: str) -> list[int]:
    """Widths from the way the command line writes them.

    >>> from finwidth.networks.widths import parse_widths
    >>> parse_widths("16,64x3,1")
    [16, 64, 64, 64, 1]
    """
    widths: list[int] = []
    for part in arguments.text("widths", text, "a text such as 16,64x8,1").split(","):
        width, times, repeat = part.strip().partition("x")
        try:
            count = int(repeat) if times else 1
            if count < 1:
                raise ValueError
            if count > _MOST_LAYERS + 1 - len(widths):
                raise FinwidthError(f"widths {text!r} are over {_MOST_LAYERS:,} layers; give fewer")
            widths += [int(width)] * count
        except FinwidthError:
            raise
        except ValueError:
            raise FinwidthError(
                f"widths {shown(text)}: {shown(part)} is not a width; write whole numbers with commas, and 64x8 for "
                f"eight layers of 64, such as 16,64x8,1"
            ) from None
    return widths


def check_depth(name: str, depth: object, least: int = 1) -> int:
    """A number of weight layers that a network can have."""
    checked = arguments.count(name, depth, least)
    if checked > _MOST_LAYERS:
        raise FinwidthError(f"{name} is {shown(depth)}; a network has at most {_MOST_LAYERS:,} layers")
    return checked


def _why_no_width(number: int | None) -> str:
    if number is None:
        return "not a whole number"
    return "less than 1" if number < 1 else f"more than {_WIDEST:.0e}"
