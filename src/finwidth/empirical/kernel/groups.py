"""Groups of parameters whose contributions to a kernel are told apart: by layer, by module, or as the user says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from finwidth.arguments import items
from finwidth.errors import FinwidthError, shown

By: TypeAlias = "str | Mapping[str, str | nn.Module | Collection[str | nn.Module]]"
REST = "rest"


@dataclass(frozen=True)
class Groups:
    """The names of groups, and the number of its group for every parameter that counts."""

    names: tuple[str, ...]
    of: Mapping[str, int]


def read_groups(module: nn.Module, by: object, parameters: Collection[str]) -> Groups | None:
    """The groups that ``by`` asks for, of the parameters that count; None if it is None.

    Examples
    --------
    >>> from torch import nn
    >>> from finwidth.empirical.kernel.groups import read_groups
    >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 1))
    >>> names = list(dict(net.named_parameters()))
    >>> [read_groups(net, by, names).names for by in ("layer", "module", {"head": net[1]})]
    [('0.0', '0.2', '1'), ('0', '1'), ('head', 'rest')]
    """
    if by is None:
        return None
    if isinstance(by, str) and by in {"layer", "module"}:
        cut = _layer if by == "layer" else _child
        of = {name: cut(name) for name in parameters}
    elif isinstance(by, Mapping) and by:
        of = _given(module, by, parameters)
    else:
        raise FinwidthError(
            f'by is {shown(by)}; give "layer" (each module with parameters of its own), "module" (each child of the '
            "module), or a dict from names of groups to parameters' names, or modules"
        )
    names = tuple(dict.fromkeys(of.values()))
    if isinstance(by, Mapping):
        names = (*map(str, by), *([REST] if REST in names and REST not in by else []))
    return Groups(names, {name: names.index(group) for name, group in of.items()})


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _child(name: str) -> str:
    return name.partition(".")[0]


def _given(module: nn.Module, by: Mapping[str, object], parameters: Collection[str]) -> dict[str, str]:
    """The group of every parameter that counts, of those that the user names."""
    aliases = dict(module.named_parameters(remove_duplicate=False))
    found: dict[int, str] = {}
    for group, given in by.items():
        if not isinstance(group, str):
            raise FinwidthError(f"by has a group {shown(group)}; give names of groups as texts")
        members = set(map(id, _members(module, group, given, aliases)))
        if members.isdisjoint(id(aliases[name]) for name in parameters):
            raise FinwidthError(f"by: no parameter of group {group!r} counts; leave the group out")
        for each in members:
            if found.setdefault(each, group) != group:
                raise FinwidthError(
                    f"by: groups {found[each]!r} and {group!r} share a parameter, which would count twice; give "
                    "each parameter one group"
                )
    return {name: found.get(id(aliases[name]), REST) for name in parameters}


def _members(
    module: nn.Module, group: str, given: object, aliases: Mapping[str, nn.Parameter]
) -> Iterator[nn.Parameter]:
    """The parameters of one group."""
    parts = dict(module.named_modules())
    several = not isinstance(given, str | nn.Module) or isinstance(given, nn.ModuleList | nn.ParameterList)
    wanted = items(f"by[{group!r}]", given, "names of parameters or modules, or modules") if several else [given]  # type: ignore[arg-type]
    for each in wanted:
        if isinstance(each, nn.Module):
            yield from each.parameters()
        elif isinstance(each, str) and each in aliases:
            yield aliases[each]
        elif isinstance(each, str) and each in parts:
            yield from parts[each].parameters()
        else:
            raise FinwidthError(
                f"by: group {group!r} names {shown(each)}, which is no parameter or part of the module; it has "
                f"{', '.join(list(aliases)[:6])}{', ...' if len(aliases) > 6 else ''}"
            )
