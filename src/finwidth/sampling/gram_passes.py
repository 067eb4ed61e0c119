r"""Several inputs: the forward and the backward pass of networks whose weights are never drawn.

Rows are the m inputs and blocks hold neurons, so Y_i has shape (draws, m, n_i), cut along n_i.  b_i is the variance of
the initial biases, and A'_{i-1} is A_{i-1} with one more neuron of constant value sqrt(b_i/v_i), whose weights are the
biases.  The weights W' meet A' in the forward pass and J in the backward pass (docs/theory/gram.md)::

    forward   the columns of Y_i are independent N(0, v_i A'_{i-1} A'_{i-1}^T),   A_i = phi(Y_i)
    backward  L_{i-1} = J_i W_i = (J_i Y_i^T) (A' A'^T)^- A' + (sqrt(v_i) Z)(1 - P_A'),
              Z with independent columns N(0, J_i J_i^T);   J_{i-1} = phi'(Y_{i-1}) * L_{i-1}
    kernel    K_w = sum_i c_i (A_{i-1} A_{i-1}^T) * (J_i J_i^T),   K_b = sum_i e_i J_i J_i^T   (entrywise products)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from finwidth.activations import Activation, Array, array_module
from finwidth.network import MLP, Layer
from finwidth.sampling.device import DeviceGenerator
from finwidth.sampling.normals import BLOCK

Blocks: TypeAlias = list[Array]  # one layer's neurons for all inputs, (draws, m, neurons) each

DEVICE_BLOCK = 2**22
# A direction of squared length below RANK of what it is measured against is taken as absent: an angle of 10^-5.
# Rounding makes relative errors of 10^-16/RANK along the weakest direction kept.
RANK = 1e-10
_ALONE, _PIECE = 500, 512  # from how many numbers on NumPy lets other threads run; the fewest neurons of a piece
_SAFE = 1e-6  # the least pivot for which a Cholesky factor is as good as the eigenvectors


def block(rng: Any) -> int:
    """Numbers of a block where this generator draws."""
    return DEVICE_BLOCK if isinstance(rng, DeviceGenerator) else BLOCK


def turned(stack: Array) -> Array:
    """The transposes of a stack of matrices."""
    return stack.swapaxes(-1, -2)


def diagonal(stack: Array) -> Array:
    """The diagonals of a stack of matrices."""
    return stack.diagonal(0, -2, -1)


@dataclass
class Factor:
    """A root R, R R^T = a Gram matrix, for a stack of them; and, made when asked for, a generalised inverse of it."""

    root: Array
    invert: Callable[[], Array]

    @cached_property
    def inverse(self) -> Array:
        """The generalised inverse, shape (draws, m, m)."""
        return self.invert()


def factor(gram: Array, squares: Array | None = None) -> Factor:
    """The `Factor` of a stack of Gram matrices, shape (draws, m, m).

    ``squares``, shape (draws, m), are the squared lengths that RANK refers to, by default the diagonal: for the Gram
    matrix of residuals they are those of the vectors before the projection.  R has as many columns as the largest
    rank of the stack.
    """
    squares = diagonal(gram) if squares is None else squares
    root = _cholesky(gram, squares)
    if root is not None:
        return Factor(root, lambda: _inverse(gram, squares))
    xp = array_module(gram)
    cosines, scales = _cosines(gram, squares)
    if not xp.isfinite(cosines).all():
        raise FloatingPointError("a Gram matrix overflows")
    values, vectors = xp.linalg.eigh(cosines)
    kept = values > RANK * gram.shape[-1]
    some = kept.reshape(-1, kept.shape[-1]).any(0)
    root = xp.sqrt(squares)[..., None] * (vectors * xp.sqrt(kept * values.clip(0.0))[..., None, :])[..., some]
    weights = (kept / (values + ~kept))[..., None, :]
    return Factor(root, lambda: scales * ((vectors * weights) @ turned(vectors)) * turned(scales))


def _cholesky(gram: Array, squares: Array) -> Array | None:
    """The Cholesky factors, or None if some are too close to singular for them."""
    if not isinstance(gram, np.ndarray):
        return None  # devices take one road for all draws: no waiting for an answer
    try:
        root = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return None
    return root if (diagonal(root) ** 2 > _SAFE * squares).all() else None


def _cosines(gram: Array, squares: Array) -> tuple[Array, Array]:
    """The Gram matrix of the vectors at length one, and what divides by their lengths: 0 for a length of 0."""
    lengths = array_module(gram).sqrt(squares)[..., None]
    scales = (lengths > 0) / (lengths + (lengths == 0))
    return gram * scales * turned(scales), scales


def _inverse(gram: Array, squares: Array) -> Array:
    """The inverse of regular Gram matrices by way of that of the cosines, whatever the lengths of the vectors."""
    cosines, scales = _cosines(gram, squares)
    return scales * np.linalg.inv(cosines) * turned(scales)


def product(X: Array, Y: Array) -> Array:
    """X Y^T, in pieces that are summed: NumPy lets no other thread run while it makes fewer than 500 numbers."""
    n, numbers = X.shape[-1], math.prod(X.shape[:-1]) * Y.shape[-2]
    if not 0 < numbers < _ALONE or n < 2 * _PIECE or not isinstance(X, np.ndarray):
        return X @ turned(Y)
    pieces = min(-(-_ALONE // numbers), n // _PIECE)
    size, rest = divmod(n, pieces)
    left, right = (Z[..., rest:].reshape(*Z.shape[:-1], pieces, size).swapaxes(-2, -3) for Z in (X, Y))
    total = (left @ turned(right)).sum(-3)
    return total + X[..., :rest] @ turned(Y[..., :rest]) if rest else total


def square(X: Array) -> Array:
    """X X^T by two rectangular products: NumPy takes the routine for symmetric ones, thrice slower for few rows."""
    m, half = X.shape[-2], X.shape[-2] // 2
    if m % 2:
        total = array_module(X).concatenate([product(X[..., :half, :], X), product(X[..., half:, :], X)], -2)
    else:
        total = product(X.reshape(len(X), 2, half, X.shape[-1]), X[:, None]).reshape(len(X), m, m)
    return (total + turned(total)) / 2  # the same on both sides, to the last bit


def products(left: Blocks, right: Blocks) -> Array:
    """Left right^T, a sum over the blocks."""
    total = product(left[0], right[0])
    for one, other in zip(left[1:], right[1:], strict=True):
        total += product(one, other)
    return total


@dataclass
class Known:
    """What is known of the weight matrix W_i of ``draws`` networks, and of the layer above it."""

    layer: Layer
    gram: Array  # A_{i-1} A_{i-1}^T, shape (draws, m, m); one for all draws in the first layer
    A_factor: Factor  # of A' A'^T
    Y: Blocks = field(default_factory=list)
    L: Blocks = field(default_factory=list)  # J_{i+1} W_{i+1}, kept for the update only
    J_gram: Array = field(init=False)  # J_i J_i^T
    JY: Array = field(init=False)  # J_i Y_i^T

    @cached_property
    def J_factor(self) -> Factor:
        """`factor` of J_i J_i^T."""
        return factor(self.J_gram)

    @property
    def deviation(self) -> float:
        """sqrt(v_i), of a weight."""
        return math.sqrt(self.layer.weight_variance)

    @property
    def constant(self) -> float:
        """sqrt(b_i/v_i), the value of the constant neuron."""
        return math.sqrt(self.layer.bias_variance / self.layer.weight_variance)

    @property
    def share(self) -> Array:
        """c_i A_{i-1} A_{i-1}^T + e_i: times J_i J_i^T, entrywise, the layer's part of K."""
        return float(self.layer.weight_multiplier) * self.gram + float(self.layer.bias_multiplier)


def sizes(width: int, m: int, rng: Any) -> Iterator[int]:
    """Neurons of each block of a layer."""
    step = max(1, block(rng) // m)
    for start in range(0, width, step):
        yield min(step, width - start)


def fresh(rng: Any, root: Array, layer: Blocks) -> Blocks:
    """Standard normal numbers, shape (draws, columns of the root, neurons), for each block of a layer."""
    return [rng.standard_normal((len(block), root.shape[-1], block.shape[-1])) for block in layer]


def overlap(rng: Any, Z: Blocks, A: Blocks, constant: float) -> Array:
    """Z A'^T, with the numbers of the constant neuron drawn if there is one."""
    total = products(Z, A)
    if constant:
        total += constant * rng.standard_normal((*total.shape[:2], 1))
    return total


def forward(net: MLP, X: Array, draws: int, rng: Any) -> list[Known]:
    """The forward pass at inputs X, shape (m, n_0)."""
    gram, known = (X @ X.T)[None], []
    for layer in net.layers:
        step = Known(layer, gram, factor(gram + float(layer.bias_variance / layer.weight_variance)))
        root = step.deviation * step.A_factor.root
        known.append(step)
        gram = 0 * step.gram
        for size in sizes(layer.fan_out, len(X), rng):
            step.Y.append(root @ rng.standard_normal((draws, root.shape[-1], size)))
            if len(known) < net.depth:
                gram = gram + square(net.activation.value(step.Y[-1]))
    return known


def backward(phi: Activation, known: list[Known], rng: Any, *, keep: bool) -> None:
    """The backward pass after the forward pass; ``keep`` the L_i for the update."""
    (output,) = known[-1].Y
    known[-1].JY = turned(output) + 0 * output
    known[-1].J_gram = 0 * known[-1].JY + 1
    for below, step in zip(known[-2::-1], known[:0:-1], strict=True):
        _pull_back(phi, below, step, rng, keep=keep)


def _pull_back(phi: Activation, below: Known, step: Known, rng: Any, *, keep: bool) -> None:
    """J_i W_i, given that A' has met W_i, and J_{i-1}."""
    root = step.deviation * step.J_factor.root
    Z = fresh(rng, root, below.Y)
    A = [phi.value(y) for y in below.Y]
    along = (step.JY - root @ overlap(rng, Z, A, step.constant)) @ step.A_factor.inverse
    below.J_gram = below.JY = 0 * step.JY
    for y in below.Y:
        L = root @ Z.pop(0)  # not kept: what is freed is still in the cache, and used again
        L += along @ A.pop(0)
        if keep:
            below.L.append(L)
            L = phi.derivative(y) * L
        else:
            L *= phi.derivative(y)  # into L: what a user's function returns may be y itself
        below.J_gram = below.J_gram + square(L)
        below.JY = below.JY + product(L, y)
