"""What finite depth and width do to neural networks: the neural tangent kernel, exactly and in law."""

from __future__ import annotations

from finwidth.activations import Activation
from finwidth.errors import FinwidthError
from finwidth.exact.bounds import Bounds, bounds
from finwidth.exact.moments import KernelMoments, infinite_width, moments
from finwidth.laws import WeightLaw
from finwidth.network import MLP
