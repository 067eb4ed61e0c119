"""The names that `finwidth` itself has."""

from importlib.metadata import version

from finwidth.advice import Regime, regime
from finwidth.comparison import Comparison, compare
from finwidth.errors import FinwidthError
from finwidth.exact.bounds import Bounds, bounds
from finwidth.exact.growth import Growth, growth
from finwidth.exact.infinite_width import infinite_width_gram
from finwidth.exact.moments import KernelMoments, infinite_width, moments
from finwidth.exact.signal import SignalMoments, signal_moments
from finwidth.networks.activations import Activation, SmoothActivation
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.laws import WeightLaw
from finwidth.networks.mlp import MLP
from finwidth.networks.norm import Norm
from finwidth.networks.resnet import ResNet
from finwidth.quantities import Estimate
from finwidth.sampling.kernel_matrix.sample_gram import sample_gram
from finwidth.sampling.one_input.sample import sample
from finwidth.sampling.training.train import train
from finwidth.sizing import depth_for, width_for
from finwidth.summary import Summary, summarize
from finwidth.sweeps.execution.run import sweep

__version__ = version("finwidth")

__all__ = [
    "MLP",
    "Activation",
    "BalancedResNet",
    "Bounds",
    "Comparison",
    "Estimate",
    "FinwidthError",
    "Growth",
    "KernelMoments",
    "Norm",
    "Regime",
    "ResNet",
    "SignalMoments",
    "SmoothActivation",
    "Summary",
    "WeightLaw",
    "bounds",
    "compare",
    "depth_for",
    "growth",
    "infinite_width",
    "infinite_width_gram",
    "moments",
    "regime",
    "sample",
    "sample_gram",
    "signal_moments",
    "summarize",
    "sweep",
    "train",
    "width_for",
]
