"""The names that `finwidth` itself has."""

from importlib.metadata import version

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
