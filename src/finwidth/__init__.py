"""What finite depth and width do to neural networks: the neural tangent kernel, exactly and in law."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as typing has it, without the time that typing takes
if TYPE_CHECKING:
    from typing import Any

    from finwidth.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Load the library with the first name that is asked for; the command line is ready for an interrupt before."""
    public = import_module("finwidth.public")
    if name in globals():  # a part of the package that this has loaded
        return globals()[name]
    if name in {"paper", "plots"}:
        return import_module(f"finwidth.{name}")
    if name in {"LawLinear", "LawConv2d", "tangent_kernel"}:  # which need torch
        return getattr(import_module("finwidth.sampling.law_layers"), name)
    if name in {"__version__", "__all__", *getattr(public, "__all__", ())}:
        return getattr(public, name)
    raise AttributeError(f"module 'finwidth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *import_module("finwidth.public").__all__]
