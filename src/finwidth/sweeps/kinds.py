"""The table of quantities: a `Kind` that one of these modules defines is one."""

from inspect import isabstract

from finwidth.sweeps import drawn_kinds, exact_kinds, training_kind
from finwidth.sweeps.kind import Kind, Settings

__all__ = ["KINDS", "Kind", "Settings"]

_MODULES = (exact_kinds, drawn_kinds, training_kind)  # in the order of messages and of the variables of a result

KINDS: dict[str, Kind] = {
    kind.name: kind()
    for module in _MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Kind) and kind.__module__ == module.__name__ and not isabstract(kind)
}
