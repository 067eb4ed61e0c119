r"""Several inputs: the joint law of outputs and kernel in O(n m^2) a layer, with no weight matrix.

For Gaussian weights, any activation.  Columns are the m inputs, b_i the variance of the initial biases, and
A'_{i-1} is A_{i-1} with one more neuron of constant value sqrt(b_i/v_i), whose weights are the biases::

    forward   Y_i has independent rows N(0, v_i A'_{i-1}^T A'_{i-1}),   A_i = phi(Y_i)
    backward  given the forward pass, W_i^T J_i = A' (A'^T A')^+ Y_i^T J_i + (I - A' (A'^T A')^+ A'^T) G,
              G with independent rows N(0, v_i J_i^T J_i);   J_{i-1} = phi'(Y_{i-1}) * (W_i^T J_i)
    kernel    K_w = sum_i c_i (A_{i-1}^T A_{i-1}) * (J_i^T J_i),   K_b = sum_i e_i J_i^T J_i   (entrywise products)

The weights meet A' on the right (the forward pass fixes What A' = Y) and J_i on the left; What is fixed along A' and
fresh across it.  Gram matrices are m x m, so their pseudo-inverses cost nothing; directions below RANK of the largest
eigenvalue are taken as absent, which is exact for duplicate, collinear and dead inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.laws import FloatArray
from finwidth.network import MLP, Layer, check_inputs, count
from finwidth.quantities import KERNEL_DRAWS, attributes
from finwidth.sampling.streams import check_seed, collect, stream

if TYPE_CHECKING:
    import xarray as xr

RANK = 1e-13
_BATCH_BYTES = 2**26


def check_network(net: MLP) -> None:
    """Raise FinwidthError unless the kernel of several inputs of this network can be drawn in law."""
    reasons = []
    if net.weight_law.name != "gaussian":
        reasons.append(f"its weights are {net.weight_law.name} (the conditioning rests on Gaussian weights)")
    if net.random_bias and net.bias_law.name != "gaussian":
        reasons.append(f"its initial biases are {net.bias_law.name} (Gaussian ones are supported)")
    if net.widths[-1] != 1:
        reasons.append(f"it has {net.widths[-1]} outputs (one is supported)")
    if reasons:
        raise FinwidthError(f"finwidth.sample_gram cannot draw this network: {'; '.join(reasons)}")


def memory(net: MLP, m: int) -> int:
    """Bytes that one draw of `sample_gram` needs at its peak, for m inputs: every layer's Y, and four such arrays.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.gram import memory
    >>> memory(MLP([8, *[10**6] * 15, 1]), 8) / 2**30      # n = 10^6, d = 16: under 1.2 GiB
    1.13...
    """
    return 8 * m * (sum(net.widths[1:]) + 4 * max(net.widths))


def chunk_size(net: MLP, m: int) -> int:
    """How many draws are made at once: as many as fit into 64 MiB, at least one; so a seed fixes the numbers."""
    return max(1, _BATCH_BYTES // memory(net, m))


def chunks(
    net: MLP, X: npt.ArrayLike, draws: int, seed: int = 0, *, progress: Callable[[int], object] | None = None
) -> Iterator[dict[str, FloatArray]]:
    """The draws of `sample_gram` in pieces of at most `chunk_size`: output (draws, m); K_w, K_b, K (draws, m, m)."""
    check_network(net)
    inputs = check_inputs(net, X)
    draws, seed = count("draws", draws), check_seed(seed)
    size = chunk_size(net, len(inputs))
    for number, start in enumerate(range(0, draws, size)):
        try:
            with np.errstate(over="raise", invalid="raise"):
                drawn = draw(net, inputs, min(size, draws - start), stream(seed, number))
        except (FloatingPointError, np.linalg.LinAlgError):
            raise FinwidthError("the draws overflow a double; rescale the inputs or the gains") from None
        yield drawn
        if progress is not None:
            progress(min(start + size, draws))


def sample_gram(
    net: MLP, X: npt.ArrayLike, draws: int, seed: int = 0, *, progress: Callable[[int], object] | None = None
) -> xr.Dataset:
    """Draw the outputs and the kernel matrix of several inputs exactly in law, without building a network.

    Parameters
    ----------
    net
        A network with Gaussian weights, any activation, one output; biases from zero, Gaussian, frozen or absent.
    X
        Inputs, shape (m, n_0); duplicates and linear dependence are fine.
    draws
        How many independent networks to draw, at least 1.
    seed
        A whole number, 0 or more; it fixes every number.
    progress
        Called with the number of draws finished, each time some are.

    Returns
    -------
    xarray.Dataset
        ``output`` over (draw, input) and ``K_w``, ``K_b``, ``K`` over (draw, input, input_); dimensionless, float64.
        Time O(depth n m^2) a draw; memory is that of the result and `memory` or 64 MiB.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, or the network is not one that can be drawn.

    Examples
    --------
    >>> import numpy as np, finwidth
    >>> net = finwidth.MLP([2, *[10**5] * 3, 1], activation="gelu")
    >>> draws = finwidth.sample_gram(net, np.eye(2), draws=2, seed=0)
    >>> draws.K.dims, draws.K.shape
    (('draw', 'input', 'input_'), (2, 2, 2))
    """
    import xarray as xr

    inputs = check_inputs(net, X)
    draws, m = count("draws", draws), len(inputs)
    columns = {"output": np.empty((draws, m)), **{name: np.empty((draws, m, m)) for name in ("K_w", "K_b", "K")}}
    collect(chunks(net, inputs, draws, seed, progress=progress), columns)
    dims = {"output": ("draw", "input"), **dict.fromkeys(("K_w", "K_b", "K"), ("draw", "input", "input_"))}
    return xr.Dataset(
        {name: (dims[name], column, KERNEL_DRAWS[name].attrs) for name, column in columns.items()},
        attrs=attributes(net, method="conditioned Gaussian layers", seed=seed, inputs=inputs.ravel()),
    )


def draw(net: MLP, X: FloatArray, draws: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """``draws`` draws at inputs X, shape (m, n_0): output (draws, m), K_w, K_b and K (draws, m, m)."""
    phi, layers = net.activation, net.layers
    bottom = np.broadcast_to(X.T, (draws, *X.T.shape))
    pre: list[FloatArray] = []  # Y_i, shape (draws, n_i, m)
    grams: list[FloatArray] = []  # A_{i-1}^T A_{i-1}
    A = bottom
    for layer in layers:
        grams.append(_gram(A))
        scale = float(layer.weight_variance) * grams[-1] + float(layer.bias_variance)
        pre.append(rng.standard_normal((draws, layer.fan_out, len(X))) @ _root(scale))
        A = phi.value(pre[-1]) if len(pre) < len(layers) else A
    J = np.ones((draws, 1, len(X)))
    K_w, K_b = np.zeros((2, draws, len(X), len(X)))
    for i in reversed(range(len(layers))):
        layer, squares = layers[i], _gram(J)
        K_w += float(layer.weight_multiplier) * grams[i] * squares
        K_b += float(layer.bias_multiplier) * squares
        if i:
            A = phi.value(pre[i - 1])
            J = phi.derivative(pre[i - 1]) * _pull_back(layer, A, pre[i], J, rng)
    return {"output": pre[-1][:, 0], "K_w": K_w, "K_b": K_b, "K": K_w + K_b}


def _pull_back(layer: Layer, A: FloatArray, Y: FloatArray, J: FloatArray, rng: np.random.Generator) -> FloatArray:
    """What^T J given What A' = Y, without the row of the constant neuron.

    Shapes: A and the result (draws, n_{i-1}, m), Y and J (draws, n_i, m).
    """
    root = _root(float(layer.weight_variance) * _gram(J))
    fresh = rng.standard_normal(A.shape) @ root
    overlap = A.transpose(0, 2, 1) @ fresh
    constant = float(layer.bias_variance / layer.weight_variance)
    if constant:
        overlap += constant**0.5 * (rng.standard_normal((len(A), 1, A.shape[2])) @ root)
    inverse = np.linalg.pinv(_gram(A) + constant, rcond=RANK, hermitian=True)
    return fresh + A @ (inverse @ (Y.transpose(0, 2, 1) @ J - overlap))


def _gram(A: FloatArray) -> FloatArray:
    return A.transpose(0, 2, 1) @ A


def _root(gram: FloatArray) -> FloatArray:
    """R with R^T R = gram, for a stack of positive semi-definite matrices."""
    values, vectors = np.linalg.eigh(gram)
    top = np.max(values, axis=-1, keepdims=True)
    values = np.where(values > RANK * top, values, 0.0)
    root: FloatArray = np.sqrt(values)[..., :, None] * vectors.transpose(0, 2, 1)
    return root
