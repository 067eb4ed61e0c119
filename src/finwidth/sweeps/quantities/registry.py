"""The table of quantities: a `Kind` that one of these modules defines is one."""

from inspect import isabstract

from finwidth.sweeps.quantities import exact as exact_kinds
from finwidth.sweeps.quantities import sampled as drawn_kinds
from finwidth.sweeps.quantities import training as training_kind
from finwidth.sweeps.quantities.base import Kind, Settings

__all__ = ["KINDS", "Kind", "Settings"]

_MODULES = (exact_kinds, drawn_kinds, training_kind)  # in the order of messages and of the variables of a result

KINDS: dict[str, Kind] = {
    kind.name: kind()
    for module in _MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Kind) and kind.__module__ == module.__name__ and not isabstract(kind)
}
