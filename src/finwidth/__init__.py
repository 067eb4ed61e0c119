"""What finite depth and width do to neural networks: the neural tangent kernel, exactly and in law."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from finwidth.activations import Activation, SmoothActivation
from finwidth.advice import Regime, regime
from finwidth.comparison import Comparison, compare
from finwidth.errors import FinwidthError
from finwidth.exact.bounds import Bounds, bounds
from finwidth.exact.infinite_width import infinite_width_gram
from finwidth.exact.moments import KernelMoments, infinite_width, moments
from finwidth.laws import WeightLaw
from finwidth.network import MLP
from finwidth.quantities import Estimate
from finwidth.sampling.diagonal import sample
from finwidth.sampling.gram import sample_gram
from finwidth.sampling.training import train
from finwidth.sizing import depth_for, width_for
from finwidth.sweeps.run import sweep

__version__ = version("finwidth")

__all__ = [
    "MLP",
    "Activation",
    "Bounds",
    "Comparison",
    "Estimate",
    "FinwidthError",
    "KernelMoments",
    "Regime",
    "SmoothActivation",
    "WeightLaw",
    "bounds",
    "compare",
    "depth_for",
    "infinite_width",
    "infinite_width_gram",
    "moments",
    "regime",
    "sample",
    "sample_gram",
    "sweep",
    "train",
    "width_for",
]


_LAZY = {
    "paper": "finwidth.paper",
    "plots": "finwidth.plots",
    "LawConv2d": "finwidth.sampling.law_layers",
    "LawLinear": "finwidth.sampling.law_layers",
    "tangent_kernel": "finwidth.sampling.law_layers",
}


def __getattr__(name: str) -> Any:
    """Load `finwidth.paper`, the figures, and what needs torch when they are first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'finwidth' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    """Everything public, whether it is loaded or not."""
    return sorted([*globals(), *_LAZY])
