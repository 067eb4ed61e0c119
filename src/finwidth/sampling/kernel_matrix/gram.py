"""Several inputs: the joint law of outputs, kernel and its first change in O(n m^2) a layer, with no weight matrix.

For Gaussian weights, any activation.  The passes are in `gram_passes` and `gram_update`; here is what the user calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import check_device, count
from finwidth.errors import FinwidthError
from finwidth.memory import afford, amount
from finwidth.networks.inputs import check_inputs
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP, check_mlp
from finwidth.progress import check_time, stage
from finwidth.quantities import KERNEL_DRAWS, Quantity, attributes
from finwidth.sampling.instead import advice
from finwidth.sampling.kernel_matrix.passes import DEVICE_BLOCK, backward, block, forward, scaled
from finwidth.sampling.kernel_matrix.update import update
from finwidth.sampling.random.device import DeviceGenerator, array_module, as_array
from finwidth.sampling.random.normals import BLOCK, Normals
from finwidth.sampling.random.streams import check_seed, check_threads, collect, in_order, stream

if TYPE_CHECKING:
    import xarray as xr

_THREADS_BYTES = 2**31  # what the default number of threads may use together
_UPDATE = Quantity("dK", "first-order change of K under one SGD step on the full batch", "learning rate")


def why_not_gaussian(net: MLP) -> list[str]:
    """Reasons why this network is not Gaussian throughout, as conditioning its matrices requires."""
    reasons = []
    if net.weight_law.name != "gaussian":
        reasons.append(f"its weights are {net.weight_law.name} (the conditioning rests on Gaussian weights)")
    if net.random_bias and net.bias_law.name != "gaussian":
        reasons.append(f"its initial biases are {net.bias_law.name} (Gaussian ones are supported)")
    return reasons


def why_not(net: MLP) -> str | None:
    """Why the kernel of several inputs of this network is not drawn in law, or None if it is."""
    reasons = why_not_gaussian(net)
    if net.widths[-1] != 1:
        reasons.append(f"it has {net.widths[-1]} outputs (one is supported)")
    return f"finwidth.sample_gram cannot draw this network: {'; '.join(reasons)}" if reasons else None


def check_network(net: MLP) -> None:
    """Raise FinwidthError unless the kernel of several inputs of this network can be drawn in law."""
    reason = why_not(check_mlp(net))
    if reason:
        raise FinwidthError(f"{reason}; {advice(net)}")


def check_targets(targets: npt.ArrayLike, m: int) -> FloatArray:
    """Targets, one for each of m inputs, as float64; raises FinwidthError unless they are finite."""
    array = arguments.array("targets", targets, f"{m} finite numbers, one for each input")
    if array.shape != (m,):
        raise FinwidthError(f"the targets have shape {array.shape}; give {m} finite numbers, one for each input")
    return array


def memory(net: MLP, m: int, *, targets: bool = False) -> int:
    """Bytes that one draw of `sample_gram` needs at its peak, for m inputs.

    Every hidden layer's Y and two such arrays of the widest; with targets every hidden layer's Y, L and dY and five.
    A few blocks of constant size and, for each layer, 7 or up to 16 Gram matrices come on top.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.kernel_matrix.gram import memory
    >>> memory(MLP([8, *[10**6] * 15, 1]), 8) / 2**30      # n = 10^6, d = 16: under 1.1 GiB
    1.02...
    """
    hidden = net.widths[1:]
    arrays = 3 * sum(hidden) + 5 * max(hidden) if targets else sum(hidden) + 2 * max(hidden)
    grams = 16 if targets else 7
    return 8 * (m * arrays + 5 * min(BLOCK, m * max(hidden)) + grams * m * m * (net.depth + 2))


def chunk_size(net: MLP, m: int, block: int = BLOCK) -> int:
    """Number of draws made at once, which share a random stream: as many as fit into a block.

    By the network and m only, so that a seed fixes the numbers.
    """
    return max(1, min(block // (m * max(net.widths[1:])), 8 * block // (m * sum(net.widths[1:]))))


def chunks(
    net: MLP,
    X: npt.ArrayLike,
    draws: int,
    seed: int = 0,
    *,
    targets: npt.ArrayLike | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[dict[str, FloatArray]]:
    """The draws of `sample_gram` in pieces: output (draws, m), the others (draws, m, m)."""
    check_network(net)
    inputs = check_inputs(net, X)
    draws, seed, m = count("draws", draws), check_seed(seed), len(inputs)
    wanted = None if targets is None else check_targets(targets, m)
    if wanted is not None:
        net.activation.second_derivative(np.zeros(1))  # refuses if there is none
    place, tell = None if device is None else check_device(device), arguments.progress(progress)
    if place is not None:
        _check_on(place, net)
        threads = 1
    elif threads is None:
        threads = min(check_threads(None), max(1, _THREADS_BYTES // memory(net, m, targets=wanted is not None)))
    size = chunk_size(net, m, BLOCK if place is None else DEVICE_BLOCK)
    check_sizes(net, m, draws, check_threads(threads), targets=wanted is not None, on_device=place is not None)

    def piece(number: int) -> dict[str, FloatArray]:
        rng = stream(seed, number) if place is None else DeviceGenerator(place, seed, number)
        return draw(net, inputs, min(size, draws - number * size), rng, wanted)

    done = 0
    with stage("drawing", draws, tell) as told:
        for drawn in in_order(piece, -(-draws // size), check_threads(threads)):
            yield drawn
            done += len(drawn["K"])
            told(done)


def _check_on(place: Any, net: MLP) -> None:
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


def seconds(net: MLP, m: int) -> float:
    """About how long a draw takes in one thread."""
    return 1e-7 * m * sum(net.widths[1:]) + 1e-9 * m * m * (sum(net.widths[1:]) + m * net.depth)


def check_sizes(
    net: MLP, m: int, draws: int, threads: int, *, targets: bool, on_device: bool = False, kept: int = 0
) -> None:
    """Refuse draws that take over a year, or more memory than there is with ``kept`` numbers of each draw."""
    size = min(draws, chunk_size(net, m))
    at_once = 0 if on_device else size * min(threads, -(-draws // size))
    what = f"drawing the kernel of {amount(m)} inputs and {amount(sum(net.widths[1:]))} neurons {amount(draws)} times"
    needed = at_once * memory(net, m, targets=targets) + 8 * kept * draws
    afford(needed, what, "take fewer draws, inputs or threads, or a narrower network")
    check_time(draws, seconds(net, m) / threads, what, "make fewer draws")


def sample_gram(
    net: MLP,
    X: npt.ArrayLike,
    draws: int,
    seed: int = 0,
    *,
    targets: npt.ArrayLike | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> xr.Dataset:
    """Draw the outputs and the kernel matrix of several inputs exactly in law, without building a network.

    Parameters
    ----------
    net
        A network with Gaussian weights, any activation, one output; biases from zero, Gaussian, frozen or absent.
    X
        Inputs x_a, shape (m, n_0); duplicates and linear dependence are fine, and so are any sizes side by side.
    draws
        How many independent networks to draw, at least 1.
    seed
        A whole number, 0 or more; it fixes every number, whatever the number of threads.
    targets
        Targets t_a, shape (m,); then ``dK`` is drawn too. A smooth activation needs its second derivative for it.
    threads
        How many to use; by default one for each core, fewer if their memory would exceed 2 GiB together.
    device
        A torch device to draw on, such as "cuda:0"; by default NumPy. The law is the same, the numbers are not.
    progress
        Called with the number of draws finished, each time some are.

    Returns
    -------
    xarray.Dataset
        ``output`` over (draw, input) and ``K_w``, ``K_b``, ``K`` over (draw, input, input_); with targets also ``dK``,
        the change of every entry of K, per unit learning rate and to first order, under one SGD step on all the inputs
        with the loss sum_a (N(x_a) - t_a)^2 / 2, a sum over the batch and not a mean. Dimensionless, float64.
        Time O(depth n m^2) a draw; memory is that of the result and `memory` for each thread. Inputs or layers within
        an angle of 10^-5 of linear dependence are taken as dependent.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the network is not one that can be drawn, or a draw overflows a double.

    Examples
    --------
    >>> import numpy as np, finwidth
    >>> net = finwidth.MLP([2, *[10**4] * 3, 1], activation="gelu")
    >>> draws = finwidth.sample_gram(net, np.eye(2), draws=2, seed=0, targets=[1, -1])
    >>> draws.dK.dims, draws.dK.shape
    (('draw', 'input', 'input_'), (2, 2, 2))
    """
    import xarray as xr

    check_network(net)
    inputs = check_inputs(net, X)
    draws, m = count("draws", draws), len(inputs)
    quantities = [KERNEL_DRAWS[name] for name in ("K_w", "K_b", "K")] + ([] if targets is None else [_UPDATE])
    kept = m + len(quantities) * m * m
    check_sizes(net, m, draws, 1, targets=targets is not None, on_device=device is not None, kept=kept)
    columns = {"output": np.empty((draws, m)), **{each.name: np.empty((draws, m, m)) for each in quantities}}
    collect(
        chunks(net, inputs, draws, seed, targets=targets, threads=threads, device=device, progress=progress), columns
    )
    method = "conditioned Gaussian layers" + ("" if device is None else f" on a torch device ({device})")
    provenance = attributes(net, method=method, seed=seed, inputs=inputs.ravel())
    if targets is not None:
        provenance["targets"] = check_targets(targets, m)
    variables: dict[str, Any] = {"output": (("draw", "input"), columns["output"], KERNEL_DRAWS["output"].attrs)}
    for each in quantities:
        variables[each.name] = (("draw", "input", "input_"), columns[each.name], each.attrs)
    return xr.Dataset(variables, attrs=provenance)


def draw(net: MLP, X: FloatArray, draws: int, rng: Any, targets: FloatArray | None = None) -> dict[str, FloatArray]:
    """``draws`` draws at inputs X, shape (m, n_0): output (draws, m), K_w, K_b, K and with targets dK (draws, m, m)."""
    m = len(X)
    if isinstance(rng, np.random.Generator):
        rng = Normals(rng)
    step = chunk_size(net, m, block(rng))
    names = ("K_w", "K_b", "K") if targets is None else ("K_w", "K_b", "K", "dK")
    columns = {"output": np.empty((draws, m)), **{name: np.empty((draws, m, m)) for name in names}}
    with np.errstate(all="ignore"):  # overflow is seen in the results
        try:
            collect((_draw(net, X, min(step, draws - i), rng, targets) for i in range(0, draws, step)), columns)
        except FloatingPointError:
            columns[names[-1]][:] = np.inf
    for name, column in columns.items():
        if not np.isfinite(column).all():
            largest = np.abs(X).max(1)
            raise FinwidthError(
                f"the draws overflow a double: {name} is not finite, and the largest number among the inputs is "
                f"{largest.max():.3g} (input {largest.argmax()}); rescale the inputs, the targets or the gains"
            )
    return columns


def _draw(net: MLP, X: FloatArray, draws: int, rng: Any, targets: FloatArray | None) -> dict[str, FloatArray]:
    xp, phi = array_module(rng), net.activation
    known = forward(net, as_array(rng, X, "float64"), draws, rng)
    backward(phi, known, rng, keep=targets is not None)
    output = scaled(known[-1].Y[0], known[-1].power)[:, :, 0]
    drawn = {
        "output": output,
        "K_w": sum(step.weight_share(step.J_gram) for step in known),
        "K_b": sum(float(step.layer.bias_multiplier) * step.J_gram for step in known),
    }
    drawn["K"] = drawn["K_w"] + drawn["K_b"]
    if targets is not None:
        drawn["dK"] = update(phi, known, output - as_array(rng, targets, "float64"), rng)
    return {name: np.asarray(values if xp is np else values.cpu()) for name, values in drawn.items()}
