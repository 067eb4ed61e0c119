"""One input: draws of the output, the kernel and its first change, whatever the width; what the user calls.

For Gaussian weights and activations of two slopes.  Of fully connected networks those with ReLU and without random
biases take the chain of `norm_chain`, the others that of `two_slope_chain`; residual ones that of `residual_chain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from finwidth.arguments import check_device
from finwidth.errors import FinwidthError
from finwidth.memory import amount
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.description import Network
from finwidth.networks.inputs import Vector, check_input, exponent
from finwidth.networks.mlp import MLP
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import algorithm, check_supported, unsupported_by
from finwidth.quantities import KERNEL_DRAWS, attributes
from finwidth.sampling.one_input.norm_chain import NormChain, plain_relu
from finwidth.sampling.one_input.residual_chain import ResidualChain
from finwidth.sampling.one_input.two_slope_chain import TwoSlopeChain
from finwidth.sampling.random.variates import Variates
from finwidth.sampling.sampler import Chunk, Columns, Sampler, collect

if TYPE_CHECKING:
    import torch
    import xarray as xr

SECONDS = 6e-8  # about so many for a layer of a draw
RESIDUAL_SECONDS = 3e-7  # and for a block

_CHUNK_CELLS = 2**21  # layers x draws of one chunk: 16 MiB an array, five arrays
_LARGEST_CHUNK = 2**14
_DEVICE_CELLS = 2**22  # on a torch device: 14 arrays of 32 MiB, and some for a layer at a time
_LARGEST_DEVICE_CHUNK = 2**20
_LARGEST_RESIDUAL_CHUNK = 2**13
_RESIDUAL_NUMBERS = 11 * 2**20  # of one chunk: 88 MiB
_DEVICE_RESIDUAL_NUMBERS = 2**26
_WIDEST = 2**62  # of the integers of NumPy's binomial generator


class AtOneInput(Sampler):
    """Draws of a network at one input by a chain of scalars, whatever its widths; ``method`` is its name."""

    method: ClassVar[str]
    shapes: Mapping[str, tuple[int, ...]] = dict.fromkeys(KERNEL_DRAWS, ())

    def __init__(self, net: Network, x: Vector, device: torch.device | None = None) -> None:
        self.device = device
        self.depth = net.depth
        given = check_input(net, x)
        self.largest = float(np.abs(given).max())
        self.exponent = exponent(given)  # |x|^2 = 4^exponent norm; 0 unless |x|^2 may overflow or underflow
        self.norm = float(np.square(np.ldexp(given, -self.exponent)).sum())

    @staticmethod
    def unsupported(net: Any) -> list[str]:
        """Reasons why no chain draws this network; none if one does."""
        reasons = []
        if net.weight_law.name != "gaussian":
            reasons.append(f"its weights are {net.weight_law.name} (the chain rests on Gaussian weights)")
        if isinstance(net.activation, SmoothActivation):
            reasons.append(f"its activation is {net.activation.name} (two slopes, such as relu, are supported)")
        if net.random_bias and net.bias_law.name != "gaussian":
            reasons.append(f"its initial biases are {net.bias_law.name} (Gaussian and zero ones are supported)")
        if net.widths[-1] != 1:
            reasons.append(f"it has {net.widths[-1]} outputs (one is supported)")
        if max(net.widths) > _WIDEST:
            reasons.append(f"it has a width of {max(net.widths)} (up to {_WIDEST} is supported)")
        return reasons

    def check(self, drawn: Columns) -> None:
        """Raise FinwidthError where draws overflow."""
        for name, power in (("K", "second"), ("dK", "fourth"), ("weight", "")):
            if name in drawn and not np.isfinite(drawn[name]).all():
                grows = f"{name} grows like its {power} power" if power else "the weights of the draws do"
                raise FinwidthError(
                    f"the draws overflow a double: the largest entry of the input is {self.largest:.3g} and {grows}; "
                    "rescale the input, or take smaller gains or fewer layers"
                )


class MLPAtOneInput(AtOneInput):
    """Draws of a fully connected network at one input, by one of the two chains.

    On a torch device there is one kind of chain for all networks.
    """

    fewer: ClassVar[str] = "use fewer threads, or take fewer layers"
    method: ClassVar[str] = "norm chain"

    def __init__(self, net: MLP, x: Vector, device: torch.device | None = None) -> None:
        super().__init__(net, x, device)
        self._short = device is None and plain_relu(net)
        self.chain = NormChain(net, self.exponent) if self._short else TwoSlopeChain(net, self.exponent)

    @property
    def chunk_size(self) -> int:
        """Draws of a chunk, by the network only."""
        if self.device is not None:
            return max(1, min(_LARGEST_DEVICE_CHUNK, _DEVICE_CELLS // self.depth))
        largest = _LARGEST_CHUNK if self._short else _LARGEST_CHUNK // 2
        return max(1, min(largest, _CHUNK_CELLS // self.depth))

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        arrays = 8 * self.depth + 20 if self._short else 24 * self.depth + 60
        return 8 * draws * arrays + 200 * self.depth

    @property
    def seconds(self) -> float:
        """About how long a draw takes."""
        return SECONDS * self.depth

    def task(self, draws: int) -> str:
        """The work in words."""
        return f"drawing {amount(draws)} networks of {self.depth} layers"

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk: output, K_w, K_b, K and dK, shape (draws,) each."""
        rng = chunk.stream_on(self.device)
        if isinstance(rng, np.random.Generator):
            return self.chain.draw(self.norm, Variates(rng), chunk.draws)
        assert isinstance(self.chain, TwoSlopeChain)
        return self.chain.draw(self.norm, rng, chunk.draws)


class ResNetAtOneInput(AtOneInput):
    """Draws of a residual network at one input."""

    fewer: ClassVar[str] = "use fewer threads, or take fewer blocks"
    method: ClassVar[str] = "residual chain"

    def __init__(self, net: ResNet, x: Vector, device: torch.device | None = None) -> None:
        super().__init__(net, x, device)
        if net.random_bias and self.exponent:
            raise FinwidthError(
                f"the largest entry of the input is {self.largest:.3g}, and beside random initial biases the chain of "
                "a residual network takes one between 1e-77 and 1e77; rescale the input, or start the biases at zero"
            )
        self.chain = ResidualChain(net, self.norm, self.exponent)

    @staticmethod
    def unsupported(net: ResNet) -> list[str]:
        """Reasons why the chain does not draw this network; none if it does."""
        reasons = AtOneInput.unsupported(net)
        if max(net.hidden) > _WIDEST:
            reasons.append(f"it has a hidden width of {max(net.hidden)} (up to {_WIDEST} is supported)")
        return reasons

    @property
    def chunk_size(self) -> int:
        """Draws of a chunk, by the network only."""
        kept = self.chain.arrays * self.depth
        if self.device is not None:
            return max(1, min(_LARGEST_DEVICE_CHUNK, _DEVICE_RESIDUAL_NUMBERS // kept))
        return max(1, min(_LARGEST_RESIDUAL_CHUNK, _RESIDUAL_NUMBERS // kept))

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        return 8 * draws * (self.chain.arrays * self.depth + 60) + 8000 * self.depth

    @property
    def seconds(self) -> float:
        """About how long a draw takes."""
        return RESIDUAL_SECONDS * self.depth

    def task(self, draws: int) -> str:
        """The work in words."""
        return f"drawing {amount(draws)} networks of {self.depth} blocks"

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk: output, K_w, K_b, K and dK, shape (draws,) each."""
        rng = chunk.stream_on(self.device)
        return self.chain.draw(Variates(rng) if isinstance(rng, np.random.Generator) else rng, chunk.draws)


SAMPLERS: dict[type, type[AtOneInput]] = {MLP: MLPAtOneInput, ResNet: ResNetAtOneInput}


def unsupported(net: Network) -> list[str]:
    """Reasons why `sample` does not draw this network; none if it does."""
    return unsupported_by(SAMPLERS, net)


def one_input_sampler(net: Network, x: Vector, device: str | torch.device | None = None) -> AtOneInput:
    """What draws a network at one input; raises FinwidthError unless something does.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.one_input.sample import one_input_sampler
    >>> from finwidth.sampling.sampler import Chunk
    >>> one_input_sampler(MLP([2, 4, 4, 1]), [1, 2]).draw(Chunk(seed=0, number=0, draws=3))["K"].shape
    (3,)
    """
    check_supported("finwidth.sample", net)
    return algorithm(SAMPLERS, net)(net, x, None if device is None else check_device(device))


def sample(
    net: Network,
    x: Vector,
    draws: int,
    seed: int = 0,
    *,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> xr.Dataset:
    """Draw the network's output and kernel at one input exactly in law, without building a network.

    Parameters
    ----------
    net
        An `MLP` or a `ResNet` with Gaussian weights, an activation of two slopes (relu, leaky_relu, linear, abs),
        initial biases that are zero or Gaussian, and one output.
    x
        One input, shape (n_0,), of any size at which the results are doubles: K_w grows like |x|^2, dK like |x|^4,
        and where they fall below the smallest double they are 0. K_b depends on the direction of x only, and is not 0.
    draws
        How many independent networks to draw, at least 1.
    seed
        A whole number, 0 or more; it fixes every number, whatever the number of threads.
    threads
        How many to use; by default one for each core, fewer if their memory would exceed 2 GiB together.
    device
        A torch device to draw on, such as "cuda:0"; by default NumPy. The law is the same, the numbers are not.
    progress
        Called with the number of draws finished, each time some are.

    Returns
    -------
    xarray.Dataset
        Over the dimension ``draw``: ``output`` (N), ``K_w``, ``K_b``, ``K``, and ``dK``, the change of K per unit
        learning rate under one SGD step on (N - N*)^2/2 with target N* = 0. Dimensionless, float64; attrs
        carry the network, the seed (from 2^31 on as text, which int() reads), the method and the version.
        Memory: 40 bytes a draw, and at most 100 MiB a thread.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the network is not one that the chain draws, or a draw overflows a double.

    Examples
    --------
    >>> import finwidth
    >>> draws = finwidth.sample(finwidth.MLP([2, 3, 3, 1]), [1, 2], draws=100_000, seed=0)
    >>> abs(float(draws.K.mean()) - 151 / 16) < 0.2    # the exact mean
    True
    """
    import xarray as xr

    sampler = one_input_sampler(net, x, device)
    columns = collect(sampler, draws, seed, threads=threads, progress=progress)
    method = sampler.method if device is None else f"{sampler.method} on a torch device ({device})"
    return xr.Dataset(
        {name: ("draw", column, KERNEL_DRAWS[name].attrs) for name, column in columns.items()},
        attrs=attributes(net, method=method, seed=seed, input=check_input(net, x)),
    )
