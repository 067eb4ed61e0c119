"""Several inputs: the joint law of outputs, kernel and its first change in O(n m^2) a layer, with no weight matrix.

For Gaussian weights, any activation, and whatever the network is made of: the passes are in `passes`, which reads
`Network.stages`; here is what the user calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import check_device
from finwidth.errors import FinwidthError
from finwidth.memory import amount
from finwidth.networks.activations import array_namespace
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network, kept_widths, weight_layers
from finwidth.networks.inputs import check_inputs, extreme_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.residual import ResidualNetwork
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import algorithm, check_supported, not_gaussian, unsupported_by
from finwidth.quantities import KERNEL_DRAWS, Quantity, attributes
from finwidth.sampling.kernel_matrix.passes import DrawnNetworks
from finwidth.sampling.kernel_matrix.stacks import DEVICE_BLOCK, Generator
from finwidth.sampling.random.device import as_array, in_numpy
from finwidth.sampling.random.normals import BLOCK, Normals
from finwidth.sampling.sampler import Chunk, Columns, Sampler, collect

if TYPE_CHECKING:
    import torch
    import xarray as xr

_UPDATE = Quantity("dK", "first-order change of K under one SGD step on the full batch", "learning rate")


_HIDDEN = Quantity("hidden", "Gram matrix of hidden vectors over their width, A A^T / n")


def check_targets(targets: npt.ArrayLike, m: int, outputs: int = 1) -> FloatArray:
    """Targets as float64, shape (m,), or (m, outputs) if there are several; raises FinwidthError unless finite."""
    shape = (m,) if outputs == 1 else (m, outputs)
    wanted = f"{m} finite numbers, one for each input"
    if outputs > 1:
        wanted = f"finite numbers of shape {shape}, one for each input and output"
    array = arguments.array("targets", targets, wanted)
    if array.shape != shape:
        raise FinwidthError(f"the targets have shape {array.shape}; give {wanted}")
    return array


def bytes_per_draw(net: Network, m: int, *, targets: bool = False) -> int:
    """Bytes that one draw of `sample_gram` needs at its peak, for m inputs.

    Every hidden layer's Y and two such arrays of the widest; with targets every hidden layer's Y, L and dY and five.
    Those that hold gradients are as many times as large as there are outputs.  A residual block counts as one more
    layer, and a norm keeps two more arrays with targets; either works with a few more at a time.  A few blocks of
    constant size and, for each layer and norm, 7 or up to 16 Gram matrices of the inputs and 3 or 4 of pairs (input,
    output) come on top.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.kernel_matrix.sample_gram import bytes_per_draw
    >>> bytes_per_draw(MLP([8, *[10**6] * 15, 1]), 8) / 2**30      # n = 10^6, d = 16: under 1.1 GiB
    1.02...
    """
    outputs, widths = net.widths[-1], kept_widths(net)
    residual, normalised = isinstance(net, ResidualNetwork), net.norm is not None
    norms = kept_widths(net, norms=True)
    arrays = sum(widths) + ((1 + residual) * (1 + outputs) + normalised * outputs) * max(widths)
    if targets:
        arrays = (2 + outputs) * sum(widths) + (1 + outputs) * (sum(norms) - sum(widths))
        arrays += (2 + 3 * outputs + (residual + 2 * normalised) * (1 + outputs)) * max(widths)
    rows, layers = m * outputs, len(widths)
    of_inputs, of_pairs = (16, 4 * layers + 14) if targets else (7, 3 * layers + 6)
    of_pairs += (2 + targets) * (len(norms) - layers)
    grams = of_inputs * m**2 * (layers + 2) + of_pairs * (rows**2 - m**2)
    return 8 * (m * arrays + 5 * min(BLOCK, rows * max(widths)) + grams)


class NetworkAtSeveralInputs(Sampler):
    """Draws of a network at inputs X, shape (m, n_0), step by step.

    With targets also of dK, and with ``hidden`` of the Gram matrices of the hidden vectors.
    """

    fewer: ClassVar = "take fewer draws, inputs, outputs or threads, or a narrower network"

    def __init__(
        self,
        net: Network,
        X: FloatArray,
        targets: FloatArray | None = None,
        device: torch.device | None = None,
        *,
        hidden: bool = False,
    ) -> None:
        self.net, self.X, self.targets, self.device = net, X, targets, device
        self.widths = kept_widths(net)
        self.neurons = sum(layer.fan_out for layer in weight_layers(net))
        m, outputs = len(X), net.widths[-1]
        several = (outputs,) if outputs > 1 else ()
        names = ("K_w", "K_b", "K") if targets is None else ("K_w", "K_b", "K", "dK")
        self.shapes = {"output": (m, *several)} | dict.fromkeys(names, (m, m, *several, *several))
        if hidden:
            self.shapes["hidden"] = (len(net.stages) - 1, m, m)

    @staticmethod
    def unsupported(net: Network) -> list[str]:
        """Reasons why the kernel of several inputs of this network is not drawn; none if it is."""
        return not_gaussian(net)

    @property
    def chunk_size(self) -> int:
        """Draws of a chunk, by the network and m only: as many as fit into a block."""
        block, m, widths = DEVICE_BLOCK if self.device else BLOCK, len(self.X), self.widths
        rows = m * self.net.widths[-1]
        kept = rows * (sum(widths) + (rows - m) * len(widths))  # also matrices of outputs, where there are several
        return max(1, min(block // (rows * max(widths)), 8 * block // kept))

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        hidden = 16 * math.prod(self.shapes.get("hidden", (0,)))  # given, and made
        return draws * (bytes_per_draw(self.net, len(self.X), targets=self.targets is not None) + hidden)

    @property
    def seconds(self) -> float:
        """About how long a draw takes in one thread."""
        rows, neurons = len(self.X) * self.net.widths[-1], self.neurons
        return 1e-7 * rows * neurons + 1e-9 * rows**2 * (neurons + rows * len(self.widths))

    def task(self, draws: int) -> str:
        """The work in words."""
        inputs, neurons = amount(len(self.X)), amount(self.neurons)
        return f"drawing the kernel of {inputs} inputs and {neurons} neurons {amount(draws)} times"

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk, in the shapes of ``shapes``."""
        rng: Generator = chunk.stream_on(self.device)
        if isinstance(rng, np.random.Generator):
            rng = Normals(rng)
        with_change, drawn = self.targets is not None, {}
        with np.errstate(all="ignore"):  # overflow is seen in the results
            try:
                networks = DrawnNetworks(self.net, as_array(rng, self.X, "float64"), chunk.draws, rng)
                output = drawn["output"] = networks.forward()
                drawn["K_w"], drawn["K_b"] = networks.backward(keep=with_change)
                drawn["K"] = drawn["K_w"] + drawn["K_b"]
                if with_change:
                    targets = as_array(rng, self.targets, "float64").reshape(output.shape[1:])
                    networks.move(output - targets)
                    drawn["dK"] = networks.change()
            except FloatingPointError:
                raise self._overflow("dK" if with_change else "K") from None
            if "hidden" in self.shapes:
                drawn["hidden"] = array_namespace(output).stack(networks.hidden_grams(), 1)
        return {name: _arranged(in_numpy(drawn[name]), shape) for name, shape in self.shapes.items()}

    def check(self, drawn: Columns) -> None:
        """Raise FinwidthError where draws overflow."""
        for name, column in drawn.items():
            if not np.isfinite(column).all():
                raise self._overflow(name)

    def _overflow(self, name: str) -> FinwidthError:
        return FinwidthError(
            f"the draws overflow a double: {name} is not finite, and {extreme_input(self.net, self.X)}; rescale the "
            "inputs, the targets or the gains"
        )


def _arranged(values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Draws in their shape; a matrix of pairs (input, output) goes over two inputs, and then over two outputs."""
    if len(shape) < 4:
        return values.reshape(len(values), *shape)
    m, _, outputs, _ = shape
    return values.reshape(len(values), m, outputs, m, outputs).swapaxes(2, 3)


SAMPLERS: dict[type, type[NetworkAtSeveralInputs]] = dict.fromkeys(
    (MLP, ResNet, BalancedResNet), NetworkAtSeveralInputs
)


def unsupported(net: Network) -> list[str]:
    """Reasons why `sample_gram` does not draw this network; none if it does."""
    return unsupported_by(SAMPLERS, net)


def kernel_matrix_sampler(
    net: Network,
    X: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    device: str | torch.device | None = None,
    *,
    hidden: bool = False,
) -> Sampler:
    """What draws a network at several inputs; raises FinwidthError unless something does.

    With targets ``y`` also the change, with ``hidden`` also the Gram matrices of the hidden vectors.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.sampling.kernel_matrix.sample_gram import kernel_matrix_sampler
    >>> from finwidth.sampling.sampler import Chunk
    >>> sampler = kernel_matrix_sampler(MLP([2, 4, 4, 1], activation="tanh"), np.eye(2))
    >>> sampler.draw(Chunk(seed=0, number=0, draws=3))["K"].shape
    (3, 2, 2)
    """
    check_supported("finwidth.sample_gram", net)
    inputs = check_inputs(net, X)
    wanted = None if y is None else check_targets(y, len(inputs), net.widths[-1])
    if wanted is not None:
        net.activation.second_derivative(np.zeros(1))  # refuses if there is none
    place = None if device is None else check_device(device)
    if place is not None:
        _check_takes_tensors(net, place)
    if arguments.flag("hidden", hidden) and len(net.stages) == 1:
        raise FinwidthError("hidden=True needs a network with hidden layers; this one has none")
    return algorithm(SAMPLERS, net)(net, inputs, wanted, place, hidden=hidden)


def _check_takes_tensors(net: Network, place: torch.device) -> None:
    """Raise FinwidthError unless the activation takes tensors on a device."""
    import torch

    probe = torch.zeros(3, dtype=torch.float64, device=place)
    for function in (net.activation.value, net.activation.derivative):
        with arguments.running(f"activation {net.activation.name}, called with a tensor,"):
            found = function(probe)
        if not isinstance(found, torch.Tensor) or found.shape != probe.shape:
            raise FinwidthError(
                f"activation {net.activation.name} makes no tensor of a tensor; give functions of torch, or no device"
            )


def sample_gram(
    net: Network,
    X: npt.ArrayLike,
    draws: int,
    seed: int = 0,
    *,
    y: npt.ArrayLike | None = None,
    hidden: bool = False,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> xr.Dataset:
    """Draw the outputs and the kernel matrix of several inputs exactly in law, without building a network.

    Parameters
    ----------
    net
        A network of any description, fully connected or residual, normalised or not, with Gaussian weights, any
        activation, o outputs; biases from zero, Gaussian, frozen or absent.
    X
        Inputs x_a, shape (m, n_0); duplicates and linear dependence are fine, and so are any sizes side by side.
    draws
        How many independent networks to draw, at least 1.
    seed
        A whole number, 0 or more; it fixes every number, whatever the number of threads.
    y
        Targets, shape (m,), or (m, o) of several outputs; then ``dK`` is drawn too. A smooth activation needs its
        second derivative for it.
    hidden
        Whether to give ``hidden`` too, the Gram matrices of the hidden vectors.
    threads
        How many to use; by default one for each core, fewer if their memory would exceed 2 GiB together.
    device
        A torch device to draw on, such as "cuda:0"; by default NumPy. The law is the same, the numbers are not.
    progress
        Called with the number of draws finished, each time some are.

    Returns
    -------
    xarray.Dataset
        ``output``, N(x_a), over (draw, input); ``K_w``, ``K_b`` and their sum ``K`` over (draw, input, input_); with
        targets also ``dK``, the change of every entry of K, per unit learning rate and to first order, under one SGD
        step on all inputs and outputs with the loss sum_a |N(x_a) - y_a|^2 / 2, a sum over the batch and not a mean.
        With several outputs ``output`` is over (draw, input, component), and the matrices over (draw, input, input_,
        component, component_): entry (a, b, k, l) of K is the sum over parameters of dN_k(x_a) dN_l(x_b). ``hidden``
        over (draw, layer, input, input_) holds A_i A_i^T / n_i, the mean over neurons of the products of the values at
        two inputs: of an `MLP` A_i is what layer i = 1, ..., d - 1 hands on, after activation and norm; of a residual
        network the stream after the stem, i = 0, and after each block i = 1, ..., L (and after the norm of a
        post-norm one). Dimensionless, float64.
        A norm at a vector that is zero gives zero, and takes its derivative to be zero too; vectors whose length over
        sqrt(n) is not within 1e-100 and 1e100 are refused there.
        Time O(depth n m^2 o^2) a draw; memory is that of the result and `bytes_per_draw` for each thread. Inputs or
        layers within an angle of 10^-5 of linear dependence are taken as dependent.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the network is not one that can be drawn, or a draw overflows a double.

    Examples
    --------
    >>> import numpy as np, finwidth
    >>> net = finwidth.MLP([2, *[10**4] * 3, 1], activation="gelu")
    >>> draws = finwidth.sample_gram(net, np.eye(2), draws=2, seed=0, y=[1, -1])
    >>> draws.dK.dims, draws.dK.shape
    (('draw', 'input', 'input_'), (2, 2, 2))

    Of several outputs every one meets every other, in the order of `finwidth.empirical.ntk`:

    >>> K = finwidth.sample_gram(finwidth.MLP([2, 8, 8, 3]), np.eye(2), draws=5).K
    >>> K.dims
    ('draw', 'input', 'input_', 'component', 'component_')
    >>> np.einsum("dabkk->dab", K).shape    # the trace over outputs
    (5, 2, 2)

    The cosine of two orthogonal inputs in each hidden layer of deep narrow networks, whose inputs become alike:

    >>> H = finwidth.sample_gram(finwidth.MLP([2, *[20] * 8, 1]), np.eye(2), draws=1000, hidden=True).hidden
    >>> lengths = np.sqrt(H[..., 0, 0] * H[..., 1, 1])
    >>> cosines = (H[..., 0, 1] / lengths).mean("draw")
    >>> bool((cosines.diff("layer") > 0).all())
    True

    In a residual network they hardly do:

    >>> net = finwidth.ResNet([2, 20, 1], 8, branch="1/sqrt(depth)")
    >>> H = finwidth.sample_gram(net, np.eye(2), draws=1000, hidden=True).hidden
    >>> float((H[..., 0, 1] / np.sqrt(H[..., 0, 0] * H[..., 1, 1])).mean("draw")[-1]) < 0.5
    True
    """
    import xarray as xr

    sampler = kernel_matrix_sampler(net, X, y, device, hidden=hidden)
    columns = collect(sampler, draws, seed, threads=threads, progress=progress)
    inputs = check_inputs(net, X)
    method = "conditioned Gaussian layers" + ("" if device is None else f" on a torch device ({device})")
    provenance = attributes(net, method=method, seed=seed, inputs=inputs.ravel())
    if y is not None:
        provenance["targets"] = check_targets(y, len(inputs), net.widths[-1]).ravel()
    meanings = KERNEL_DRAWS | {each.name: each for each in (_UPDATE, _HIDDEN)}
    components = ("component", "component_") if net.widths[-1] > 1 else ()
    dims = dict.fromkeys(columns, ("draw", "input", "input_", *components))
    dims |= {"output": ("draw", "input", *components[:1]), "hidden": ("draw", "layer", "input", "input_")}
    return xr.Dataset(
        {name: (dims[name], column, meanings[name].attrs) for name, column in columns.items()},
        coords={"layer": net.hidden_places} if hidden else None,
        attrs=provenance,
    )
