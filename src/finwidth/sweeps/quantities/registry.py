"""The table of quantities: a `SweepQuantity` that one of these modules defines is one."""

from inspect import isabstract
from typing import Any, TypeAlias

from finwidth.sweeps.quantities import exact, expansion, sampled, training
from finwidth.sweeps.quantities.base import SweepQuantity

_MODULES = (exact, expansion, sampled, training)  # in the order of messages and of the variables of a result

_AnyQuantity: TypeAlias = SweepQuantity[Any]  # its settings are those that it made itself

QUANTITIES: dict[str, _AnyQuantity] = {
    quantity.name: quantity()
    for module in _MODULES
    for quantity in vars(module).values()
    if isinstance(quantity, type)
    and issubclass(quantity, SweepQuantity)
    and quantity.__module__ == module.__name__
    and not isabstract(quantity)
}
