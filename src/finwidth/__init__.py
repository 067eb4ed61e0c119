"""What finite depth and width do to neural networks: the neural tangent kernel, exactly and in law."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as typing has it, without the time that typing takes
if TYPE_CHECKING:
    from typing import Any

    from finwidth.public import *  # noqa: F403


_LAZY = {
    "paper": "finwidth.paper",
    "plots": "finwidth.plots",
    "LawConv2d": "finwidth.sampling.law_layers",
    "LawLinear": "finwidth.sampling.law_layers",
    "tangent_kernel": "finwidth.sampling.law_layers",
}


def __getattr__(name: str) -> Any:
    """Load the library with the first name that is asked for; the command line is ready for an interrupt before."""
    public = import_module("finwidth.public")
    if name in globals():  # a part of the package that this has loaded
        return globals()[name]
    if name in _LAZY:
        module = import_module(_LAZY[name])
        return module if module.__name__.endswith(f".{name}") else getattr(module, name)
    if name in {"__version__", "__all__", *getattr(public, "__all__", ())}:
        return getattr(public, name)
    raise AttributeError(f"module 'finwidth' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Everything public, whether it is loaded or not."""
    return sorted({*globals(), *_LAZY, *import_module("finwidth.public").__all__})
