"""The kernel of random Gaussian networks before and after one step of SGD at one input, in law.

One input meets a network twice, so that a draw costs four Gaussian vectors a layer and no matrix, whatever the
activation (derivation in docs/theory/training.md).  Of several outputs it is the kernel of output 0; all are trained.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finwidth.memory import amount
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network, kept_widths
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import algorithm, not_gaussian, unsupported_by
from finwidth.sampling.lazy_matrix.gaussian import NotFiniteError
from finwidth.sampling.sampler import Chunk, Columns, Sampler, collect
from finwidth.sampling.training.losses import SQUARED
from finwidth.sampling.training.networks import Networks
from finwidth.sampling.training.spec import TrainingSpec, training_bytes

_SECONDS = 1e-7  # about so many for a neuron of a draw
_CHUNK_NEURONS = 2**18  # of all layers and draws of a chunk


def sampled_kernels(net: Network, x: FloatArray, draws: int, seed: int) -> FloatArray:
    """K_00(x,x) of random networks, shape (draws,); `sampled_first_step` with the same seed draws the same networks.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.sampling.training.first_step import sampled_kernels
    >>> abs(float(sampled_kernels(MLP([2, 3, 3, 1]), np.array([1.0, 2.0]), 100_000, seed=0).mean()) - 151 / 16) < 0.2
    True
    """
    return collect(algorithm(SAMPLERS, net)(net, x), draws, seed, threads=1)["before"]


def sampled_first_step(  # noqa: PLR0917
    net: Network, x: FloatArray, target: FloatArray, lr: float, draws: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """K_00(x,x) before and after one step on |N(x) - t|^2 / 2, each of shape (draws,).

    Parameters
    ----------
    net
        A network with Gaussian weights and biases, any activation.
    x, target
        One input, shape (n_0,), and its target, shape (n_d,).
    lr
        Learning rate of the network's parameterization.
    draws, seed
        How many networks, and what fixes them.

    Raises
    ------
    NotFiniteError
        If a step leads past a double's range.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.sampling.training.first_step import sampled_first_step
    >>> x, target = np.array([1.0, 1.0]), np.array([1.0])
    >>> before, after = sampled_first_step(MLP([2, 100, 1]), x, target, 0.1, draws=1000, seed=0)
    >>> before.shape, bool((before != after).any())
    ((1000,), True)
    """
    columns = collect(algorithm(SAMPLERS, net)(net, x, target, lr), draws, seed, threads=1)
    return columns["before"], columns["after"]


class FirstStep(Sampler):
    """Kernels at one input before a step and, where a target is given, after it."""

    fewer: ClassVar[str] = "draw fewer, or take a narrower network"

    def __init__(self, net: Network, x: FloatArray, target: FloatArray | None = None, lr: float = 0.0) -> None:
        self.net, self.x, self.target, self.lr = net, x, target, lr
        self.neurons = sum(kept_widths(net))
        self.shapes = {"before": ()} if target is None else {"before": (), "after": ()}

    @staticmethod
    def unsupported(net: Network) -> list[str]:
        """Reasons why this network is not drawn so; none if it is."""
        return not_gaussian(net)

    @property
    def chunk_size(self) -> int:
        """Draws of a chunk, by the network only."""
        return max(1, _CHUNK_NEURONS // self.neurons)

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        targets = np.zeros((1, self.net.widths[-1]))
        return draws * training_bytes(TrainingSpec(self.net, self.x[None], targets, 1, 1.0, 0.0, 1, SQUARED, range(2)))

    @property
    def seconds(self) -> float:
        """About how long a draw takes."""
        return _SECONDS * self.neurons

    def task(self, draws: int) -> str:
        """The work in words."""
        return f"drawing {amount(draws)} networks of {amount(self.neurons)} neurons"

    def draw(self, chunk: Chunk) -> Columns:
        """The kernels of a chunk, shape (draws,)."""
        networks = Networks(self.net, self.x[None], chunk.draws, chunk.stream())
        kernels: Columns = {}
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is seen in the kernels
            for when in self.shapes:
                forward = networks.forward(None)
                cotangents = np.zeros_like(forward.output)
                cotangents[..., 0] = 1.0
                backward = networks.backward(forward, cotangents, None)
                kernels[when] = networks.kernel(backward, None, 1)[:, 0, 0]  # K_00
                if self.target is not None and when == "before":
                    slope = forward.output - self.target
                    if len(self.target) > 1:
                        backward = networks.backward(forward, slope, None)
                        slope = np.ones_like(slope[..., :1])
                    networks.step(backward, slope[..., 0], self.lr, 0.0)
        return kernels

    def check(self, drawn: Columns) -> None:
        """Raise NotFiniteError where the step led past a double's range."""
        if "after" in drawn and not np.isfinite(drawn["after"]).all():
            raise NotFiniteError("a kernel after the step is not finite")


SAMPLERS: dict[type, type[FirstStep]] = dict.fromkeys((MLP, ResNet, BalancedResNet), FirstStep)


def unsupported(net: Network) -> list[str]:
    """Reasons why the first step of this network is not drawn so; none if it is."""
    return unsupported_by(SAMPLERS, net)
