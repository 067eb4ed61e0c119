"""What finite depth and width do to neural networks: the neural tangent kernel, exactly and in law."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

TYPE_CHECKING = False  # as typing has it, without the time that typing takes
if TYPE_CHECKING:
    from typing import Any

    from finwidth import empirical as empirical
    from finwidth import paper as paper
    from finwidth import plots as plots
    from finwidth import sweeps as sweeps
    from finwidth.module_law import in_law as in_law
    from finwidth.public import *  # noqa: F403
    from finwidth.public import __version__ as __version__
    from finwidth.sampling.layers.modules import MatrixFreeConv1d as MatrixFreeConv1d
    from finwidth.sampling.layers.modules import MatrixFreeConv2d as MatrixFreeConv2d
    from finwidth.sampling.layers.modules import MatrixFreeLinear as MatrixFreeLinear
    from finwidth.sampling.layers.modules import tangent_kernel as tangent_kernel


_LAYERS = "finwidth.sampling.layers.modules"
_OF_TORCH = {
    "MatrixFreeConv1d": _LAYERS,
    "MatrixFreeConv2d": _LAYERS,
    "MatrixFreeLinear": _LAYERS,
    "in_law": "finwidth.module_law",
    "tangent_kernel": _LAYERS,
}


if not TYPE_CHECKING:  # a type checker would take any name

    def __getattr__(name: str) -> Any:
        """Load the library with the first name that is asked for; the command line is ready for an interrupt before."""
        if name in _OF_TORCH:
            import_module("finwidth.extras").load_extra("torch", f"finwidth.{name}")
            return getattr(import_module(_OF_TORCH[name]), name)
        if not name.startswith("_") and find_spec(f"finwidth.{name}"):  # a part of the package, which others may load
            return import_module(f"finwidth.{name}")
        public = import_module("finwidth.public")
        if name in {"__version__", "__all__", *getattr(public, "__all__", ())}:
            return getattr(public, name)
        module = import_module(__name__)  # of whose names Python suggests one
        raise AttributeError(f"module 'finwidth' has no attribute {name!r}", name=name, obj=module)


def __dir__() -> list[str]:
    """Everything public, whether it is loaded or not."""
    return sorted({*globals(), *_OF_TORCH, "paper", "plots", *import_module("finwidth.public").__all__})
