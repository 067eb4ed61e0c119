"""Several inputs: the joint law of outputs, kernel and its first change in O(n m^2) a layer, with no weight matrix.

For Gaussian weights, any activation.  The passes are in `passes` and `change`; here is what the user calls.
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
from finwidth.networks.description import Network
from finwidth.networks.inputs import check_inputs
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import algorithm, check_supported, not_normalised, unsupported_by
from finwidth.quantities import KERNEL_DRAWS, Quantity, attributes
from finwidth.sampling.kernel_matrix.change import KernelChange
from finwidth.sampling.kernel_matrix.passes import DEVICE_BLOCK, Generator, backward, forward, scaled
from finwidth.sampling.random.device import as_array
from finwidth.sampling.random.normals import BLOCK, Normals
from finwidth.sampling.sampler import Chunk, Columns, Sampler, collect, not_gaussian

if TYPE_CHECKING:
    import torch
    import xarray as xr

_UPDATE = Quantity("dK", "first-order change of K under one SGD step on the full batch", "learning rate")


_HIDDEN = Quantity("hidden", "Gram matrix of a hidden layer over its width, A A^T / n")


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


def bytes_per_draw(net: MLP, m: int, *, targets: bool = False) -> int:
    """Bytes that one draw of `sample_gram` needs at its peak, for m inputs.

    Every hidden layer's Y and two such arrays of the widest; with targets every hidden layer's Y, L and dY and five.
    Those that hold gradients are as many times as large as there are outputs.  A few blocks of constant size and, for
    each layer, 7 or up to 16 Gram matrices of the inputs and 3 or 4 of pairs (input, output) come on top.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.kernel_matrix.sample_gram import bytes_per_draw
    >>> bytes_per_draw(MLP([8, *[10**6] * 15, 1]), 8) / 2**30      # n = 10^6, d = 16: under 1.1 GiB
    1.02...
    """
    outputs, hidden = net.widths[-1], net.widths[1:]
    arrays = sum(hidden) + (1 + outputs) * max(hidden)
    if targets:
        arrays = (2 + outputs) * sum(hidden) + (2 + 3 * outputs) * max(hidden)
    rows = m * outputs
    of_inputs, of_pairs = (16, 4 * net.depth + 14) if targets else (7, 3 * net.depth + 8)
    grams = of_inputs * m**2 * (net.depth + 2) + of_pairs * (rows**2 - m**2)
    return 8 * (m * arrays + 5 * min(BLOCK, rows * max(hidden)) + grams)


class MLPAtSeveralInputs(Sampler):
    """Draws of a fully connected network at inputs X, shape (m, n_0), layer by layer.

    With targets also of dK, and with ``hidden`` of the Gram matrices of the hidden layers.
    """

    fewer: ClassVar = "take fewer draws, inputs, outputs or threads, or a narrower network"

    def __init__(
        self,
        net: MLP,
        X: FloatArray,
        targets: FloatArray | None = None,
        device: torch.device | None = None,
        *,
        hidden: bool = False,
    ) -> None:
        self.net, self.X, self.targets, self.device = net, X, targets, device
        m, outputs = len(X), net.widths[-1]
        several = (outputs,) if outputs > 1 else ()
        names = ("K_w", "K_b", "K") if targets is None else ("K_w", "K_b", "K", "dK")
        self.shapes = {"output": (m, *several)} | dict.fromkeys(names, (m, m, *several, *several))
        if hidden:
            self.shapes["hidden"] = (net.depth - 1, m, m)

    @staticmethod
    def unsupported(net: MLP) -> list[str]:
        """Reasons why the kernel of several inputs of this network is not drawn; none if it is."""
        return not_normalised(net) + not_gaussian(net)

    @property
    def chunk_size(self) -> int:
        """Draws of a chunk, by the network and m only: as many as fit into a block."""
        block, m, hidden = DEVICE_BLOCK if self.device else BLOCK, len(self.X), self.net.widths[1:]
        rows = m * self.net.widths[-1]
        kept = rows * (sum(hidden) + (rows - m) * self.net.depth)  # also matrices of outputs, where there are several
        return max(1, min(block // (rows * max(hidden)), 8 * block // kept))

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        hidden = 16 * math.prod(self.shapes.get("hidden", (0,)))  # given, and made
        return draws * (bytes_per_draw(self.net, len(self.X), targets=self.targets is not None) + hidden)

    @property
    def seconds(self) -> float:
        """About how long a draw takes in one thread."""
        rows, neurons = len(self.X) * self.net.widths[-1], sum(self.net.widths[1:])
        return 1e-7 * rows * neurons + 1e-9 * rows**2 * (neurons + rows * self.net.depth)

    def task(self, draws: int) -> str:
        """The work in words."""
        neurons = sum(self.net.widths[1:])
        return f"drawing the kernel of {amount(len(self.X))} inputs and {amount(neurons)} neurons {amount(draws)} times"

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk, in the shapes of ``shapes``."""
        rng: Generator = chunk.stream_on(self.device)
        if isinstance(rng, np.random.Generator):
            rng = Normals(rng)
        phi, with_change = self.net.activation, self.targets is not None
        with np.errstate(all="ignore"):  # overflow is seen in the results
            try:
                known = forward(self.net, as_array(rng, self.X, "float64"), chunk.draws, rng)
                backward(phi, known, rng, keep=with_change)
                output = scaled(known[-1].Y[0], known[-1].power)
                drawn = {
                    "output": output,
                    "K_w": sum(step.weight_share(step.J_gram) for step in known),
                    "K_b": sum(float(step.layer.bias_multiplier) * step.J_gram for step in known),
                }
                drawn["K"] = drawn["K_w"] + drawn["K_b"]
                if with_change:
                    targets = as_array(rng, self.targets, "float64").reshape(output.shape[1:])
                    change = KernelChange(phi, known, output - targets, rng)
                    drawn["dK"] = change.backward(change.forward())
            except FloatingPointError:
                raise self._overflow("dK" if with_change else "K") from None
        if "hidden" in self.shapes:
            xp = array_namespace(output)
            drawn["hidden"] = xp.stack([each.mean_gram for each in known[1:]], 1)
        found = {name: np.asarray(values if self.device is None else values.cpu()) for name, values in drawn.items()}
        return {name: _arranged(found[name], shape) for name, shape in self.shapes.items()}

    def check(self, drawn: Columns) -> None:
        """Raise FinwidthError where draws overflow."""
        for name, column in drawn.items():
            if not np.isfinite(column).all():
                raise self._overflow(name)

    def _overflow(self, name: str) -> FinwidthError:
        largest = np.abs(self.X).max(1)
        return FinwidthError(
            f"the draws overflow a double: {name} is not finite, and the largest number among the inputs is "
            f"{largest.max():.3g} (input {largest.argmax()}); rescale the inputs, the targets or the gains"
        )


def _arranged(values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Draws in their shape; a matrix of pairs (input, output) goes over two inputs, and then over two outputs."""
    if len(shape) < 4:
        return values.reshape(len(values), *shape)
    m, _, outputs, _ = shape
    return values.reshape(len(values), m, outputs, m, outputs).swapaxes(2, 3)


SAMPLERS: dict[type, type[MLPAtSeveralInputs]] = {MLP: MLPAtSeveralInputs}


def unsupported(net: Network) -> list[str]:
    """Reasons why `sample_gram` does not draw this network; none if it does."""
    return unsupported_by(SAMPLERS, net)


def kernel_matrix_sampler(
    net: MLP,
    X: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    device: str | torch.device | None = None,
    *,
    hidden: bool = False,
) -> Sampler:
    """What draws a network at several inputs; raises FinwidthError unless something does.

    With targets ``y`` also the change, with ``hidden`` also the Gram matrices of the hidden layers.

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
    if arguments.flag("hidden", hidden) and net.depth == 1:
        raise FinwidthError("hidden=True needs a network with hidden layers; this one has none")
    return algorithm(SAMPLERS, net)(net, inputs, wanted, place, hidden=hidden)


def _check_takes_tensors(net: MLP, place: torch.device) -> None:
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
    net: MLP,
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
        A network with Gaussian weights, any activation, o outputs; biases from zero, Gaussian, frozen or absent.
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
        Whether to give ``hidden`` too, the Gram matrices of the hidden layers.
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
        over (draw, layer, input, input_) holds A_i A_i^T / n_i of the activations of layer i = 1, ..., d - 1, the mean
        over neurons of the products of their values at two inputs. Dimensionless, float64.
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
        coords={"layer": range(1, net.depth)} if hidden else None,
        attrs=provenance,
    )
