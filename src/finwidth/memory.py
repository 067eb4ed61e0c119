"""A number of bytes, as users write it, and the memory that there is: what needs more than it may use is refused first.

The rule, for every command and function: what does not fit the memory that ``memory=`` names, or by default three
quarters of what this process can still have (`available`), is refused before the work begins, with the figures.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from finwidth.arguments import as_fraction, index, is_double
from finwidth.errors import FinwidthError, SizeError, shown

_NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e\+?[0-9]+)?")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SMALL = 2**26  # bytes; less is not worth a look at what there is


def check_memory(memory: object) -> int:
    """Bytes from a number of them, or from a text of a number and a unit.

    The number is decimal, with an exponent or without; the unit is B, kB, MB, GB or TB, which are powers of 1000, or
    KiB, MiB, GiB or TiB, which are powers of 1024. The case of the letters, the B and spaces between the two do not
    count. Parts of a byte are dropped.

    Raises
    ------
    FinwidthError
        If it is anything else, or less than one byte.

    Examples
    --------
    >>> from finwidth.memory import check_memory
    >>> check_memory("1.5 GiB"), check_memory("200MB"), check_memory("4g"), check_memory(4096), check_memory(1e9)
    (1610612736, 200000000, 4000000000, 4096, 1000000000)
    """
    amount: float | Fraction = 0
    if isinstance(memory, str):
        amount = _amount(memory.strip().lower())
    elif (whole := index(memory)) is not None:
        amount = whole
    elif is_double(memory):
        amount = as_fraction(memory)
    if not 1 <= amount < math.inf:
        raise FinwidthError(f'memory is {shown(memory)}; give a number of bytes, or a text such as "1GiB" or "200 MB"')
    return int(amount)


def _amount(text: str) -> float:
    """The number of bytes that a text in small letters states, 0 if it is none."""
    number = _NUMBER.match(text)
    if number is None:
        return 0.0
    unit = text[number.end() :].strip()
    return float(number[0]) * _UNITS.get(unit.removesuffix("b"), 0)


def afford(needed: int, what: str, change: str, memory: object = None) -> None:
    """Refuse what needs more than ``memory`` or, where that is None, than three quarters of what there is.

    Parameters
    ----------
    needed
        Bytes, at the peak.
    what, change
        The object that needs them, and the advice: the message is made of these.
    memory
        As users give it.

    Raises
    ------
    SizeError
        A `FinwidthError` with the figures.

    Examples
    --------
    >>> from finwidth.memory import afford
    >>> afford(2**40, "a kernel of 370,000 inputs", "give fewer", memory="4 GiB")
    Traceback (most recent call last):
    finwidth.errors.SizeError: a kernel of 370,000 inputs needs up to 1024 GiB, and memory is 4 GiB; give fewer
    """
    if memory is not None:
        budget = check_memory(memory)
        told = f"memory is {size(budget)}"
    elif needed <= _SMALL:
        return
    else:
        there = available()
        budget = there * 3 // 4
        told = f"of the {size(there)} that this process can have, at most {size(budget)} are used"
    if needed > budget:
        raise SizeError(f"{what} needs up to {size(needed)}, and {told}; {change}")


def amount(number: int) -> str:
    """A whole number of any size as it is told.

    >>> from finwidth.memory import amount
    >>> amount(123456), amount(10**30), amount(2**63)
    ('123456', '1e+30', '9.22e+18')
    """
    return str(number) if number < 10**7 else f"{Decimal(number).normalize():.3g}"  # too long for a float, or a line


def size(number: int) -> str:
    """Bytes as they are told.

    >>> from finwidth.memory import size
    >>> size(1000), size(3 * 2**20), size(40 * 10**9), size(10**32)
    ('1000 bytes', '3 MiB', '37.25 GiB', '9.31e+22 GiB')
    """
    if number < 2**20:
        return f"{number} bytes"
    unit, name = (2**30, "GiB") if number >= 2**30 else (2**20, "MiB")
    return f"{number / unit:.4g} {name}" if number < 2**44 else f"{Decimal(number) / unit:.3g} {name}"


# ---- what there is


def available(root: Path = Path("/")) -> int:
    """Bytes that this process can still have: what the system, its cgroups and its resource limits leave it.

    The least of Linux' MemAvailable (elsewhere all memory), of limit less usage of each memory cgroup that the process
    is in, version 1 or 2, up to the root, and of RLIMIT_AS and RLIMIT_DATA less what it has of them. Pages that the
    kernel gives back when they are needed, inactive ones of files, do not count as used. 2^62 where nothing tells.

    Parameters
    ----------
    root
        Where ``proc`` and the cgroups are: another folder for tests.

    Examples
    --------
    >>> from finwidth.memory import available
    >>> available() > 2**20
    True
    """
    return max(0, min([2**62, *_system(root), *_cgroups(root), *_limits(root)]))


def _system(root: Path) -> Iterator[int]:
    told = [line.split() for line in _lines(root / "proc/meminfo") if line.startswith("MemAvailable:")]
    if told:
        yield 1024 * int(told[0][1])
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups(root: Path) -> Iterator[int]:
    """Memory that each cgroup leaves, from the cgroup of the process up to the one that is mounted."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        for top, mounted in _mounts(root, "cgroup" if controllers else "cgroup2"):
            inside = path.removeprefix(mounted.rstrip("/")).strip("/") if path.startswith(mounted) else ""
            folder = top / inside if ".." not in inside else top
            for each in (folder, *folder.parents):
                yield from _left(each)
                if each == top:
                    break


def _mounts(root: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Where cgroups are mounted, and which of them is there: proc(5), mountinfo."""
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, filesystem = line.partition(" - ")
        words = filesystem.split()  # its name, source and options
        if kind in words[:1] and (kind == "cgroup2" or "memory" in words[-1].split(",")):
            mounted, top = place.split()[3:5]
            yield root / top.strip("/"), mounted


def _left(folder: Path) -> Iterator[int]:
    """Limit less usage of one cgroup, if it has a limit."""
    for most, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = ("".join(_lines(folder / name)) for name in (most, used))
        if limit.isdecimal() and usage.isdecimal():
            statistics = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat"))
            yield int(limit) - int(usage) + int(statistics.get(cache, 0))


def _limits(root: Path) -> Iterator[int]:
    """Memory that setrlimit leaves, of the address space and of data."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    pages = "".join(_lines(root / "proc/self/statm")).split()
    for limit, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            yield most - (int(pages[column]) * resource.getpagesize() if pages else 0)


def _lines(path: Path) -> list[str]:
    """Lines of a small file of the kernel's; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
