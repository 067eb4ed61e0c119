"""What is public, read from the package: a new name is called too, or the fuzz fails for want of its arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

EXPORTING = ("finwidth", "finwidth.empirical", "finwidth.paper", "finwidth.plots", "finwidth.sweeps")  # by `dir`
OPEN = (  # modules whose every public name is for users
    "finwidth.networks.activations",
    "finwidth.exact.closed_form",
    "finwidth.exact.grid",
    "finwidth.exact.residual_form",
    "finwidth.networks.laws",
    "finwidth.observables",
    "finwidth.quantities",
    "finwidth.report",
    "finwidth.sampling.layers.modules",
)
NAMED = (  # of modules that are for the rest of the package otherwise
    "finwidth.empirical.reference.jacobian.jacobian",
    "finwidth.explorer.write_explorer",
    "finwidth.measurement.measure",
    "finwidth.memory.check_memory",
    "finwidth.networks.widths.parse_widths",
    "finwidth.paper.page.write_page",
    "finwidth.paper.paths.enumerate_moments",
    "finwidth.sampling.one_input.importance.importance_estimates",
    "finwidth.sampling.training.train.default_rate",
    "finwidth.sampling.training.train.mean_trajectory",
)
HELPERS = {  # what the package calls with what it has checked
    "finwidth.exact.grid.MLPGrid",
    "finwidth.networks.activations.array_namespace",
    "finwidth.networks.activations.has_curvature",
    "finwidth.quantities.attributes",
    "finwidth.quantities.doubts",
    "finwidth.quantities.of_several",
    "finwidth.quantities.plain",
    "finwidth.quantities.storable",
}


def public() -> dict[str, Callable[..., Any]]:
    """Everything public that users call, by the first of its names; results, which they are given, are not called."""
    found: dict[str, Callable[..., Any]] = {}
    for name, each in _names():
        if callable(each) and name not in HELPERS and each not in found.values() and not _is_result(each):
            found[name] = each
    return found


def _is_result(each: Any) -> bool:
    """An exception, or a dataclass without checks of its own."""
    if not hasattr(each, "__dataclass_fields__"):
        return inspect.isclass(each) and issubclass(each, Exception)
    return "__post_init__" not in vars(each) and not inspect.getsource(each).count("def __init__")


def _names() -> Iterator[tuple[str, Any]]:
    for place in EXPORTING:
        module = importlib.import_module(place)
        for name in dir(module):
            each = None if name.startswith("_") else getattr(module, name)
            if str(getattr(each, "__module__", "")).startswith("finwidth"):
                yield f"{place}.{name}", each
    for place in OPEN:
        for name, each in vars(importlib.import_module(place)).items():
            if not name.startswith("_") and getattr(each, "__module__", None) == place:
                yield f"{place}.{name}", each
    for path in NAMED:
        place, _, name = path.rpartition(".")
        yield path, getattr(importlib.import_module(place), name)


if __name__ == "__main__":
    for name, each in public().items():
        print(name, inspect.signature(each))
