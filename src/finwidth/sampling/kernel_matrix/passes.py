r"""Several inputs: the forward and the backward pass of networks whose weights are never drawn.

Rows are the m inputs and blocks hold neurons, so Y_i has shape (draws, m, n_i), cut along n_i.  b_i is the variance of
the initial biases, and A'_{i-1} is A_{i-1} with one more neuron of constant value sqrt(b_i/v_i), whose weights are the
biases.  J_i has a row for each pair (input, output), the outputs of an input side by side: m o rows for o outputs.
The weights W' meet A' in the forward pass and J in the backward pass (docs/theory/gram.md)::

    forward   the columns of Y_i are independent N(0, v_i A'_{i-1} A'_{i-1}^T),   A_i = phi(Y_i)
    backward  L_{i-1} = J_i W_i = (J_i Y_i^T) (A' A'^T)^- A' + (sqrt(v_i) Z)(1 - P_A'),
              Z with independent columns N(0, J_i J_i^T);   J_{i-1} = phi'(Y_{i-1}) * L_{i-1}
    kernel    K_w = sum_i c_i (A_{i-1} A_{i-1}^T) * (J_i J_i^T),   K_b = sum_i e_i J_i J_i^T   (entrywise products)

Where a matrix of inputs meets one of pairs, its rows and columns are repeated for the outputs.

Rows whose squares would leave a double are kept in units, powers of two of their own: A = 2^p A', Y = 2^p Y'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.networks.activations import Activation, Array, SmoothActivation, array_namespace
from finwidth.networks.description import Layer
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sampling.random.device import DeviceGenerator, as_array
from finwidth.sampling.random.normals import BLOCK, Normals

Generator: TypeAlias = np.random.Generator | Normals | DeviceGenerator
Blocks: TypeAlias = list[Array]  # one layer's neurons for all inputs, (draws, m, neurons) each

DEVICE_BLOCK = 2**22
# A direction of squared length below RANK of what it is measured against is taken as absent: an angle of 10^-5.
# Rounding makes relative errors of 10^-16/RANK along the weakest direction kept.
RANK = 1e-10
_ALONE, _PIECE = 500, 512  # from how many numbers on NumPy lets other threads run; the fewest neurons of a piece
_SMALL, _LARGE = 1e-200, 1e200  # squared lengths whose products with another such are far from a double's ends
_USUAL = 160  # powers of two: lengths below it, and above its inverse, need no unit of their own
_SAFE = 1e-6  # the least pivot for which a Cholesky factor is as good as the eigenvectors


def block(rng: Generator) -> int:
    """Numbers of a block where this generator draws."""
    return DEVICE_BLOCK if isinstance(rng, DeviceGenerator) else BLOCK


def transposed(stack: Array) -> Array:
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


def factorise(gram: Array, squares: Array | None = None) -> Factor:
    """The `Factor` of a stack of Gram matrices, shape (draws, m, m).

    ``squares``, shape (draws, m), are the squared lengths that RANK refers to, by default the diagonal: for the Gram
    matrix of residuals they are those of the vectors before the projection.  Where a matrix is singular the roots are
    symmetric ones of the cosines: LAPACK chooses the signs of eigenvectors, and a basis of those of equal values, by
    the processor, and these roots do not depend on its choice.
    """
    squares = diagonal(gram) if squares is None else squares
    root = _cholesky(gram, squares)
    if root is not None:
        return Factor(root, partial(_inverse, gram, squares))
    xp = array_namespace(gram)
    cosines, scales = _cosines(gram, squares)
    if not xp.isfinite(cosines).all():
        raise FloatingPointError("a Gram matrix overflows")
    values, vectors = xp.linalg.eigh(cosines)
    kept = values > RANK * gram.shape[-1]
    root = (vectors * xp.sqrt(kept * values.clip(0.0))[..., None, :]) @ transposed(vectors)
    root = xp.sqrt(squares)[..., None] * root
    weights = (kept / (values + ~kept))[..., None, :]
    return Factor(root, lambda: scales * ((vectors * weights) @ transposed(vectors)) * transposed(scales))


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
    """The matrix of cosines, and the reciprocal lengths of the vectors (0 for a zero vector)."""
    lengths = array_namespace(gram).sqrt(squares)[..., None]
    scales = (lengths > 0) / (lengths + (lengths == 0))
    return gram * scales * transposed(scales), scales


def _inverse(gram: Array, squares: Array) -> Array:
    """The inverse of regular Gram matrices, by inverting the cosines: works for lengths of any size."""
    cosines, scales = _cosines(gram, squares)
    return scales * np.linalg.inv(cosines) * transposed(scales)


def product(X: Array, Y: Array) -> Array:
    """X Y^T, in pieces that are summed: NumPy lets no other thread run while it makes fewer than 500 numbers."""
    n, numbers = X.shape[-1], math.prod(X.shape[:-1]) * Y.shape[-2]
    if not 0 < numbers < _ALONE or n < 2 * _PIECE or not isinstance(X, np.ndarray):
        return X @ transposed(Y)
    pieces = min(-(-_ALONE // numbers), n // _PIECE)
    size, rest = divmod(n, pieces)
    left, right = (Z[..., rest:].reshape(*Z.shape[:-1], pieces, size).swapaxes(-2, -3) for Z in (X, Y))
    total = (left @ transposed(right)).sum(-3)
    return total + X[..., :rest] @ transposed(Y[..., :rest]) if rest else total


def square(X: Array) -> Array:
    """X X^T by two rectangular products: NumPy takes the routine for symmetric ones, thrice slower for few rows."""
    m, half = X.shape[-2], X.shape[-2] // 2
    if m % 2:
        total = array_namespace(X).concatenate([product(X[..., :half, :], X), product(X[..., half:, :], X)], -2)
    else:
        total = product(X.reshape(len(X), 2, half, X.shape[-1]), X[:, None]).reshape(len(X), m, m)
    return (total + transposed(total)) / 2  # the same on both sides, to the last bit


def products(left: Blocks, right: Blocks) -> Array:
    """Left right^T, a sum over the blocks."""
    total = product(left[0], right[0])
    for one, other in zip(left[1:], right[1:], strict=True):
        total += product(one, other)
    return total


def repeated(X: Array, times: int, axis: int) -> Array:
    """Each row (axis -2) or column (-1) several times, side by side."""
    return np.repeat(X, times, axis) if isinstance(X, np.ndarray) else X.repeat_interleave(times, axis)


def for_pairs(matrix: Array, outputs: int) -> Array:
    """A matrix of inputs, (..., m, m), as one of pairs, (..., m o, m o): rows and columns repeated."""
    return repeated(repeated(matrix, outputs, -1), outputs, -2)


def gated(gate: Array, rows: Array) -> Array:
    """Rows of inputs or of pairs, (draws, m or m o, n), each times the gate's row of its input."""
    draws, m, n = gate.shape
    return (gate[:, :, None] * rows.reshape(draws, m, -1, n)).reshape(rows.shape)


def gate_in_place(gate: Array, rows: Array) -> None:
    """`gated` into the rows, which are contiguous."""
    draws, m, n = gate.shape
    pairs = rows.reshape(draws, m, -1, n)
    pairs *= gate[:, :, None]


def ordinary(gram: Array) -> bool:
    """Whether the squared lengths of all rows are far from overflow and underflow."""
    squares = diagonal(gram)
    return bool(((squares > _SMALL) & (squares < _LARGE)).all())


def scaled(X: Array, power: Array | None, sign: int = 1) -> Array:
    """X times two to a power (None: 0), or to minus the power."""
    if power is None:
        return X
    if isinstance(power, np.ndarray):
        return np.ldexp(X, sign * power)
    half = (power / 2).floor()  # neither factor leaves the range alone
    return X * (sign * half).exp2() * (sign * (power - half)).exp2()


def row_powers(rows: Iterable[Array], rng: Generator, least: float = 0.0, power: Array | None = None) -> Array | None:
    """Powers of two, (draws or 1, m, 1), next to the largest entries of rows in units, or to ``least`` if that is more.

    They are 0 for a row of zeros, and where the largest entry's square is safe; None where all are 0.
    """
    sizes: Array = 0.0
    for block in rows:
        largest = abs(block).max(-1) if isinstance(block, np.ndarray) else abs(block).max(-1).values
        sizes = np.maximum(sizes, _in_numpy(largest)[..., None])
    fewest = _floor_log2(np.array(least)) if least else None
    powers = _floor_log2(sizes) + (0 if power is None else _in_numpy(power).astype(np.int64))
    if fewest is not None:
        powers = np.where(sizes > 0, np.maximum(powers, fewest), fewest)
    usual = (np.abs(powers) < _USUAL) | (sizes == 0) & (fewest is None) | ~np.isfinite(sizes)
    powers = np.where(usual, 0, powers)
    if not powers.any():
        return None
    return as_array(rng, powers, "float64") if isinstance(rng, DeviceGenerator) else powers


def _in_numpy(array: Array) -> FloatArray:
    """The array as one of NumPy's."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def _floor_log2(values: FloatArray) -> npt.NDArray[np.int64]:
    """The largest powers of two that are no larger, as whole numbers."""
    return np.frexp(values)[1].astype(np.int64) - 1


@dataclass
class Known:
    """State of layer i of ``draws`` networks: Gram matrices, and the products with W_i revealed so far."""

    layer: Layer
    gram: Array  # A'_{i-1} A'_{i-1}^T without the constant, (draws, m, m); one for all draws in the first layer
    A_factor: Factor  # of A' A'^T
    power: Array | None = None  # p of the units of the rows of A_{i-1} and Y_i, (draws or 1, m, 1); None: 0
    power_above: Array | None = None  # likewise of A_i
    Y: Blocks = field(default_factory=list)  # in units
    L: Blocks = field(default_factory=list)  # J_{i+1} W_{i+1}, kept for the update only
    J_gram: Array = field(init=False)  # J_i J_i^T, (draws, m o, m o)
    JY: Array = field(init=False)  # J_i Y_i^T, (draws, m o, m)

    @cached_property
    def J_factor(self) -> Factor:
        """Of J_i J_i^T."""
        return factorise(self.J_gram)

    @property
    def deviation(self) -> float:
        """sqrt(v_i), of a weight."""
        return math.sqrt(self.layer.weight_variance)

    @property
    def constant(self) -> float | Array:
        """sqrt(b_i/v_i), the value of the constant neuron, in units if there are any, (draws or 1, 1, m)."""
        value = constant(self.layer)
        return value if self.power is None or not value else transposed(_column(value, self.power))

    def weight_share(self, pairs: Array | float = 1.0) -> Array:
        """c_i A_{i-1} A_{i-1}^T times a matrix of pairs, entrywise."""
        outputs = 1 if isinstance(pairs, float) else pairs.shape[-1] // self.gram.shape[-1]
        product = float(self.layer.weight_multiplier) * for_pairs(self.gram, outputs) * pairs
        if self.power is None:
            return product
        power = repeated(self.power, outputs, -2)
        return scaled(scaled(product, power), transposed(power))

    @property
    def mean_gram(self) -> Array:
        """A_{i-1} A_{i-1}^T / n_{i-1}, without units."""
        mean = self.gram / self.layer.fan_in
        return mean if self.power is None else scaled(scaled(mean, self.power), transposed(self.power))

    @property
    def share(self) -> Array:
        """c_i A_{i-1} A_{i-1}^T + e_i, of inputs: times J_i J_i^T, entrywise, the layer's part of K."""
        return self.weight_share() + float(self.layer.bias_multiplier)

    def argument(self, phi: Activation, y: Array) -> Array:
        """A block of Y for the activation: without its unit if it is smooth; two slopes do not depend on the unit."""
        return scaled(y, self.power) if isinstance(phi, SmoothActivation) else y

    def value(self, phi: Activation, y: Array) -> Array:
        """A block of A_i in the units of that, for one of Y_i."""
        value = phi.value(self.argument(phi, y))
        own = None if isinstance(phi, SmoothActivation) else self.power
        if own is None or self.power_above is None:
            return scaled(scaled(value, own), self.power_above, -1)
        return scaled(value, own - self.power_above)

    def values(self, phi: Activation) -> Blocks:
        """A_i in units."""
        return [self.value(phi, y) for y in self.Y]

    def gated(self, phi: Activation, other: Blocks) -> Blocks:
        """phi'(Y_i) * other, which has rows of inputs or of pairs."""
        return [gated(phi.derivative(self.argument(phi, y)), each) for y, each in zip(self.Y, other, strict=True)]


def constant(layer: Layer) -> float:
    """sqrt(b_i/v_i)."""
    return math.sqrt(layer.bias_variance / layer.weight_variance)


def sizes(width: int, rows: int, rng: Generator) -> Iterator[int]:
    """Neurons of each block of a layer of so many rows."""
    step = max(1, block(rng) // rows)
    for start in range(0, width, step):
        yield min(step, width - start)


def fresh(rng: Generator, root: Array, layer: Blocks) -> Blocks:
    """Standard normal numbers, shape (draws, columns of the root, neurons), for each block of a layer."""
    return [rng.standard_normal((len(block), root.shape[-1], block.shape[-1])) for block in layer]


def overlap(rng: Generator, Z: Blocks, A: Blocks, constant: float | Array) -> Array:
    """Z A'^T, with the numbers of the constant neuron drawn if there is one."""
    total = products(Z, A)
    if not isinstance(constant, float) or constant:
        total += constant * rng.standard_normal((*total.shape[:2], 1))
    return total


def forward(net: MLP, X: Array, draws: int, rng: Generator) -> list[Known]:
    """The forward pass at inputs X, shape (m, n_0)."""
    phi, known = net.activation, []
    power, gram = _with_units(lambda: [X[None]], (X @ X.T)[None], None, net.layers[0], rng)
    for layer, above in zip(net.layers, [*net.layers[1:], None], strict=True):
        if power is None or not layer.bias_variance:
            step = Known(layer, gram, factorise(gram + float(layer.bias_variance / layer.weight_variance)))
        else:
            column = _column(constant(layer), power)
            step = Known(layer, gram, factorise(gram + column * transposed(column)))
        step.power = power
        root = step.deviation * step.A_factor.root
        known.append(step)
        gram = 0 * step.gram
        # Until the rows of A are known, they are taken in the units of Y, or of phi(Y).
        power = step.power_above = None if isinstance(phi, SmoothActivation) else step.power
        pairs = len(X) * net.widths[-1]
        for size in sizes(layer.fan_out, pairs, rng) if above else [layer.fan_out]:
            step.Y.append(root @ rng.standard_normal((draws, root.shape[-1], size)))
            if above is not None:
                gram = gram + square(step.value(phi, step.Y[-1]))
        if above is not None:
            power, gram = _with_units(partial(step.values, phi), gram, power, above, rng)
            step.power_above = power
    return known


def _with_units(
    rows: Callable[[], Blocks], gram: Array, power: Array | None, layer: Layer, rng: Generator
) -> tuple[Array | None, Array]:
    """The units of rows that enter a layer, and their Gram matrix; both as given where no square leaves a double."""
    if ordinary(gram) and (power is None or not layer.bias_variance):
        return power, gram
    blocks = rows()
    new = row_powers(blocks, rng, constant(layer), power)
    if new is None and power is None:
        return power, gram
    change = power if new is None else -new if power is None else power - new
    squares = [square(scaled(block, change)) for block in blocks]
    return new, sum(squares[1:], squares[0])


def _column(value: float, power: Array) -> Array:
    """A number in each row's units."""
    return scaled(0.0 * power + value, power, -1)


def backward(phi: Activation, known: list[Known], rng: Generator, *, keep: bool) -> None:
    """The backward pass after the forward pass; ``keep`` the L_i for the update."""
    (output,) = known[-1].Y
    (draws, m, outputs), unit = output.shape, as_array(rng, np.eye(output.shape[-1]), "float64")
    JY = transposed(output)[:, None] + 0 * output[..., :1, None]  # J_d: for each input the unit vectors
    known[-1].JY = JY.reshape(draws, m * outputs, m)
    known[-1].J_gram = (0 * JY[..., None] + unit[:, None, :]).reshape(draws, m * outputs, m * outputs)
    for below, step in zip(known[-2::-1], known[:0:-1], strict=True):
        _pull_back(phi, below, step, rng, keep=keep)


def _pull_back(phi: Activation, below: Known, step: Known, rng: Generator, *, keep: bool) -> None:
    """J_i W_i, given that A' has met W_i, and J_{i-1}."""
    root = step.deviation * step.J_factor.root
    Z = fresh(rng, root, below.Y)
    A = below.values(phi)
    along = (step.JY - root @ overlap(rng, Z, A, step.constant)) @ step.A_factor.inverse
    below.J_gram, below.JY = 0 * step.J_gram, 0 * step.JY
    for y in below.Y:
        L = root @ Z.pop(0)  # not kept: what is freed is still in the cache, and used again
        L += along @ A.pop(0)
        if keep:
            below.L.append(L)
            L = gated(phi.derivative(below.argument(phi, y)), L)
        else:
            gate_in_place(phi.derivative(below.argument(phi, y)), L)  # what a user's function returns may be y itself
        below.J_gram = below.J_gram + square(L)
        below.JY = below.JY + product(L, y)
