"""One input: draws of the output, the kernel and its first change, whatever the width; what the user calls.

For Gaussian weights and activations of two slopes.  Of fully connected networks those with ReLU and without random
biases take the chain of `norm_chain`, the others that of `two_slope_chain`, and those of several outputs that of
`outputs_chain`; residual ones that of `residual_chain`, with one matrix a block `stream_chain`.  Normalised ones take
`normalised_chain` and `normalised_residual_chain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from finwidth.arguments import check_device
from finwidth.errors import FinwidthError
from finwidth.memory import amount
from finwidth.networks.activations import Activation, SmoothActivation
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network
from finwidth.networks.inputs import Vector, check_input, check_vector, exponent
from finwidth.networks.mlp import MLP
from finwidth.networks.norm import Norm
from finwidth.networks.residual import ResidualNetwork
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import algorithm, check_supported, unsupported_by
from finwidth.quantities import KERNEL_DRAWS, attributes
from finwidth.sampling.one_input.norm_chain import NormChain, plain_relu
from finwidth.sampling.one_input.normalised_chain import NormalisedChain
from finwidth.sampling.one_input.normalised_residual_chain import NormalisedResidualChain
from finwidth.sampling.one_input.outputs_chain import OutputsChain
from finwidth.sampling.one_input.residual_chain import ResidualChain
from finwidth.sampling.one_input.stream_chain import VECTORS, StreamChain, StreamVariates
from finwidth.sampling.one_input.two_slope_chain import TwoSlopeChain
from finwidth.sampling.random.variates import Variates
from finwidth.sampling.sampler import Chunk, Columns, Sampler, collect

if TYPE_CHECKING:
    import torch
    import xarray as xr

SECONDS = 6e-8  # about so many for a layer of a draw
_RESIDUAL_SECONDS = 3e-7  # and for a block
_STREAM_SECONDS = 3e-8  # and for a neuron of a block of one matrix

_CHUNK_CELLS = 2**21  # layers x draws of one chunk: 16 MiB an array, five arrays
_CHUNK_BYTES = 10**8  # of one chunk of several outputs
_LARGEST_CHUNK = 2**14
_DEVICE_CELLS = 2**22  # on a torch device: 14 arrays of 32 MiB, and some for a layer at a time
_LARGEST_DEVICE_CHUNK = 2**20
_LARGEST_RESIDUAL_CHUNK = 2**13
_RESIDUAL_NUMBERS = 11 * 2**20  # of one chunk: 88 MiB
_DEVICE_RESIDUAL_NUMBERS = 2**26
_STREAM_NUMBERS = 2**16  # of a vector for each draw: it stays in a core's cache
_WIDEST = 2**62  # of the integers of NumPy's binomial generator


class AtOneInput(Sampler):
    """Draws of a network at one input by a chain of scalars, whatever its widths; ``method`` is its name.

    ``first_output``: of several outputs only the numbers of output 0 are given, in the shapes of one output; those of
    the others have the same law.
    """

    method: ClassVar[str]

    def __init__(
        self, net: Network, x: Vector, device: torch.device | None = None, *, first_output: bool = False
    ) -> None:
        self.device = device
        self.depth, self.outputs = net.depth, net.widths[-1]
        several = () if self.outputs == 1 or first_output else (self.outputs,)
        self.shapes: Mapping[str, tuple[int, ...]]
        self.shapes = dict.fromkeys(KERNEL_DRAWS, 2 * several) | {"output": several}
        given = check_vector(x, net.widths)
        self.largest = float(np.abs(given).max())
        self.exponent = exponent(given)  # |x|^2 = 4^exponent norm; 0 unless |x|^2 may overflow or underflow
        self.norm = float(np.square(np.ldexp(given, -self.exponent)).sum())
        if net.norm is not None:
            self._check_normalised(net)

    def _check_normalised(self, net: Network) -> None:
        """Raise FinwidthError for an input that the chain of a normalised network does not take."""
        assert net.norm is not None
        if not (self.largest or net.norm.epsilon or (net.bias_variance[0] and net.bias_scale[0])):
            raise FinwidthError(
                "the input is 0, where a norm without epsilon has no derivative; give another input, or biases of the "
                "first layer that are random"
            )
        if self.exponent:
            raise FinwidthError(
                f"the largest entry of the input is {self.largest:.3g}, and the chain of a normalised network takes "
                "one between 1e-77 and 1e77; rescale the input"
            )

    @staticmethod
    def unsupported(net: Any) -> list[str]:
        """Reasons why no chain draws this network; none if one does."""
        reasons = []
        if net.norm is not None and net.norm.parameters == "trained":
            reasons.append("its norm has trained parameters (their derivatives need each neuron by itself)")
        if net.weight_law.name != "gaussian":
            reasons.append(f"its weights are {net.weight_law.name} (the chain rests on Gaussian weights)")
        if isinstance(net.activation, SmoothActivation):
            reasons.append(f"its activation is {net.activation.name} (two slopes, such as relu, are supported)")
        if net.random_bias and net.bias_law.name != "gaussian":
            reasons.append(f"its initial biases are {net.bias_law.name} (Gaussian and zero ones are supported)")
        if max(net.widths) > _WIDEST:
            reasons.append(f"it has a width of {max(net.widths)} (up to {_WIDEST} is supported)")
        return reasons

    def check(self, drawn: Columns) -> None:
        """Raise FinwidthError where draws overflow."""
        for name, power in (("K", "second"), ("dK", "fourth"), ("weight", "")):
            if name in drawn and not np.isfinite(drawn[name]).all():
                raise self._overflow(f"{name} grows like its {power} power" if power else "the weights of the draws do")

    def _overflow(self, grows: str) -> FinwidthError:
        return FinwidthError(
            f"the draws overflow a double: the largest entry of the input is {self.largest:.3g} and {grows}; "
            "rescale the input, or take smaller gains or fewer layers"
        )


def _centres_freely(norm: Norm, phi: Activation | SmoothActivation) -> bool:
    """Whether nothing tells the directions across (1, ..., 1) apart, in which LayerNorm works."""
    if isinstance(phi, SmoothActivation):
        return False
    return phi.positive == phi.negative or (norm.position == "before" and abs(phi.positive) == abs(phi.negative))


def first_output(columns: Columns) -> Columns:
    """What draws of any number of outputs tell of output 0: of K and dK the entry K_00."""
    return {name: values.reshape(len(values), -1)[:, 0] for name, values in columns.items()}


class MLPAtOneInput(AtOneInput):
    """Draws of a fully connected network at one input, by one of the chains.

    On a torch device there is one kind of chain for all networks of one output.
    """

    fewer: ClassVar[str] = "use fewer threads, or take fewer layers or outputs"
    method: ClassVar[str] = "norm chain"

    def __init__(self, net: MLP, x: Vector, device: torch.device | None = None, *, first_output: bool = False) -> None:
        super().__init__(net, x, device, first_output=first_output)
        self._short = device is None and plain_relu(net) and self.outputs == 1
        self.chain: NormChain | TwoSlopeChain
        if net.norm is not None:
            self.chain = NormalisedChain(net)
        else:
            chain = NormChain if self._short else TwoSlopeChain if self.outputs == 1 else OutputsChain
            self.chain = chain(net, self.exponent)

    @staticmethod
    def unsupported(net: MLP) -> list[str]:
        """Reasons why no chain draws this network; none if one does."""
        reasons = AtOneInput.unsupported(net)
        if net.norm is not None and net.widths[-1] != 1:
            reasons.append(f"it is normalised and has {net.widths[-1]} outputs (one is supported)")
        if net.norm is not None and net.norm.centred and not _centres_freely(net.norm, net.activation):
            reasons.append(
                "its LayerNorm takes the mean of neurons that its gates tell apart, for which their number is not "
                'enough (norm="rms" is supported, and LayerNorm of a linear network, or of abs before it)'
            )
        return reasons

    @property
    def chunk_size(self) -> int:
        """Draws of a chunk, by the network only."""
        if self.device is not None:
            return max(1, min(_LARGEST_DEVICE_CHUNK, _DEVICE_CELLS // (self.depth * self.outputs**2)))
        largest = _LARGEST_CHUNK if self._short else _LARGEST_CHUNK // 2
        if self.outputs > 1:
            return max(1, min(largest, _CHUNK_BYTES // self.memory(1)))
        return max(1, min(largest, _CHUNK_CELLS // self.depth))

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        depth, o = self.depth, self.outputs
        arrays = 8 * depth + 20 if self._short else 24 * depth + 60
        if o > 1:
            arrays = (7 * depth + 20) * o**2 + (9 * depth + 20) * o + 10 * depth
        return 8 * draws * arrays + 200 * depth

    @property
    def seconds(self) -> float:
        """About how long a draw takes."""
        return SECONDS * self.depth * (1 if self.outputs == 1 else 10 * self.outputs**2)

    def task(self, draws: int) -> str:
        """The work in words."""
        return f"drawing {amount(draws)} networks of {self.depth} layers"

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk: output, K_w, K_b, K and dK, in the shapes of ``shapes``."""
        rng = chunk.stream_on(self.device)
        numbers = Variates(rng) if isinstance(rng, np.random.Generator) else rng
        if isinstance(self.chain, NormChain):
            assert isinstance(numbers, Variates)
            return self.chain.draw(self.norm, numbers, chunk.draws)
        try:
            drawn = self.chain.draw(self.norm, numbers, chunk.draws)
        except FloatingPointError:
            raise self._overflow("dK grows like its fourth power") from None
        return drawn if self.shapes["output"] else first_output(drawn)


class ResidualAtOneInput(AtOneInput):
    """Draws of a residual network at one input."""

    def __init__(
        self, net: ResidualNetwork, x: Vector, device: torch.device | None = None, *, first_output: bool = False
    ) -> None:
        super().__init__(net, x, device, first_output=first_output)
        if net.random_bias and self.exponent:
            raise FinwidthError(
                f"the largest entry of the input is {self.largest:.3g}, and beside random initial biases the chain of "
                "a residual network takes one between 1e-77 and 1e77; rescale the input, or start the biases at zero"
            )

    @staticmethod
    def unsupported(net: Any) -> list[str]:
        """Reasons why the chain does not draw this network; none if it does."""
        reasons = AtOneInput.unsupported(net)
        if net.widths[-1] != 1:
            reasons.append(f"it has {net.widths[-1]} outputs (one is supported of a residual network)")
        return reasons

    def task(self, draws: int) -> str:
        """The work in words."""
        return f"drawing {amount(draws)} networks of {self.depth} blocks"


class ResNetAtOneInput(ResidualAtOneInput):
    """Draws of a `ResNet`, by scalars."""

    fewer: ClassVar[str] = "use fewer threads, or take fewer blocks"
    method: ClassVar[str] = "residual chain"

    def __init__(
        self, net: ResNet, x: Vector, device: torch.device | None = None, *, first_output: bool = False
    ) -> None:
        super().__init__(net, x, device, first_output=first_output)
        self.chain = (
            ResidualChain(net, self.norm, self.exponent)
            if net.norm is None
            else NormalisedResidualChain(net, self.norm)
        )

    @staticmethod
    def unsupported(net: ResNet) -> list[str]:
        """Reasons why the chain does not draw this network; none if it does."""
        reasons = ResidualAtOneInput.unsupported(net)
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
        return _RESIDUAL_SECONDS * self.depth

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk: output, K_w, K_b, K and dK, shape (draws,) each."""
        rng = chunk.stream_on(self.device)
        return self.chain.draw(Variates(rng) if isinstance(rng, np.random.Generator) else rng, chunk.draws)


class BalancedResNetAtOneInput(ResidualAtOneInput):
    """Draws of a `BalancedResNet`, by the vectors of its stream."""

    fewer: ClassVar[str] = "use fewer threads, or take fewer blocks or a narrower stream"
    method: ClassVar[str] = "stream chain"

    def __init__(
        self, net: BalancedResNet, x: Vector, device: torch.device | None = None, *, first_output: bool = False
    ) -> None:
        super().__init__(net, x, device, first_output=first_output)
        self.width = net.widths[1]
        self.chain = StreamChain(net, self.norm, self.exponent)

    @property
    def chunk_size(self) -> int:
        """Draws of a chunk, by the network only."""
        kept = VECTORS * self.width * self.depth
        if self.device is not None:
            return max(1, min(_LARGEST_DEVICE_CHUNK, _DEVICE_RESIDUAL_NUMBERS // kept))
        return max(1, min(_LARGEST_RESIDUAL_CHUNK, _STREAM_NUMBERS // self.width, _RESIDUAL_NUMBERS // kept))

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        return 8 * draws * ((VECTORS * self.depth + 6) * self.width + 13 * self.depth) + 2**23

    @property
    def seconds(self) -> float:
        """About how long a draw takes."""
        return _STREAM_SECONDS * self.width * self.depth

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk: output, K_w, K_b, K and dK, shape (draws,) each."""
        rng = chunk.stream_on(self.device)
        return self.chain.draw(StreamVariates(rng) if isinstance(rng, np.random.Generator) else rng, chunk.draws)


SAMPLERS: dict[type, type[AtOneInput]] = {
    MLP: MLPAtOneInput,
    ResNet: ResNetAtOneInput,
    BalancedResNet: BalancedResNetAtOneInput,
}


def unsupported(net: Network) -> list[str]:
    """Reasons why `sample` does not draw this network; none if it does."""
    return unsupported_by(SAMPLERS, net)


def one_input_sampler(
    net: Network, x: Vector, device: str | torch.device | None = None, *, first_output: bool = False
) -> AtOneInput:
    """What draws a network at one input, or only its ``first_output``; raises FinwidthError unless something does.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.one_input.sample import one_input_sampler
    >>> from finwidth.sampling.sampler import Chunk
    >>> one_input_sampler(MLP([2, 4, 4, 1]), [1, 2]).draw(Chunk(seed=0, number=0, draws=3))["K"].shape
    (3,)
    """
    check_supported("finwidth.sample", net)
    place = None if device is None else check_device(device)
    return algorithm(SAMPLERS, net)(net, x, place, first_output=first_output)


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

    `finwidth.summarize` tells means and quantiles of as many draws as are wanted, with their errors.

    Parameters
    ----------
    net
        An `MLP`, of any number o of outputs, or a `ResNet` or `BalancedResNet` of one, with Gaussian weights, an
        activation of two slopes (relu, leaky_relu, linear, abs), and initial biases that are zero or Gaussian.
        Normalised ones of one output:
        of an `MLP` with ``norm="rms"``, of a `ResNet` also ``"layer"``, without trained parameters of the norm.
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
        With several outputs ``output`` is over (draw, component), and ``K_w``, ``K_b``, ``K`` and ``dK`` are matrices
        over (draw, component, component_): K_kl = sum dN_k/dtheta dN_l/dtheta, and its change under a step on
        |N - N*|^2/2. Memory: 40 bytes a draw (o^2 times as much with several outputs), and at most 100 MiB a thread;
        time O(depth), with several outputs O(depth o^3) a draw. The widths do not matter, but for a `BalancedResNet`,
        whose draws take O(depth n) numbers and time each.

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
    >>> finwidth.sample(finwidth.MLP([2, 10**6, 10**6, 3]), [1, 2], draws=5).K.dims
    ('draw', 'component', 'component_')
    """
    import xarray as xr

    sampler = one_input_sampler(net, x, device)
    columns = collect(sampler, draws, seed, threads=threads, progress=progress)
    method = sampler.method if device is None else f"{sampler.method} on a torch device ({device})"
    return xr.Dataset(
        {
            name: (("draw", "component", "component_")[: column.ndim], column, KERNEL_DRAWS[name].attrs)
            for name, column in columns.items()
        },
        attrs=attributes(net, method=method, seed=seed, input=check_input(net, x)),
    )
