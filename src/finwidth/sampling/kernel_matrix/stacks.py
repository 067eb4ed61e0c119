"""Stacks of matrices whose rows are inputs, cut into blocks of neurons: products, roots of Gram matrices, and units.

Blocks have the shape (draws, rows, neurons).  Rows are the m inputs, or the m o pairs (input, output), the outputs of
an input side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from operator import iadd
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.networks.activations import Array, array_namespace
from finwidth.networks.laws import FloatArray
from finwidth.sampling.random.device import DeviceGenerator, as_array, in_numpy
from finwidth.sampling.random.normals import Normals

Generator: TypeAlias = np.random.Generator | Normals | DeviceGenerator
Blocks: TypeAlias = list[Array]  # one layer's neurons for all inputs, (draws, m, neurons) each

DEVICE_BLOCK = 2**22  # numbers of a block on a device
# A direction of squared length below _RANK of what it is measured against is taken as absent: an angle of 10^-5.
# Rounding makes relative errors of 10^-16/_RANK along the weakest direction kept.
_RANK = 1e-10
_ALONE, _PIECE = 500, 512  # from how many numbers on NumPy lets other threads run; the fewest neurons of a piece
_SMALL, _LARGE = 1e-200, 1e200  # squared lengths whose products with another such are far from a double's ends
_USUAL = 160  # powers of two: lengths below it, and above its inverse, need no unit of their own
_SAFE = 1e-6  # the least pivot for which a Cholesky factor is as good as the eigenvectors
_AT_ONCE = 2**14  # matrices whose eigenvectors a device finds together


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

    ``squares``, shape (draws, m), are the squared lengths that _RANK refers to, by default the diagonal: for the Gram
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
    values, vectors = _eigenvectors(cosines)
    kept = values > _RANK * gram.shape[-1]
    root = (vectors * xp.sqrt(kept * values.clip(0.0))[..., None, :]) @ transposed(vectors)
    root = xp.sqrt(squares)[..., None] * root
    weights = (kept / (values + ~kept))[..., None, :]
    return Factor(root, lambda: scales * ((vectors * weights) @ transposed(vectors)) * transposed(scales))


def _eigenvectors(stack: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of symmetric matrices, shape (draws, m, m).

    A device takes some at a time: it works on all it is given at once, in 30 kB and more for each.
    """
    xp = array_namespace(stack)
    if isinstance(stack, np.ndarray):
        values, vectors = xp.linalg.eigh(stack)
        return values, vectors
    parts = [xp.linalg.eigh(part) for part in stack.split(_AT_ONCE)]
    return xp.cat([values for values, _ in parts]), xp.cat([vectors for _, vectors in parts])


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
    lengths = squares[..., None] ** 0.5
    scales = (lengths > 0) / (lengths + (lengths == 0))
    return gram * scales * scales.swapaxes(-1, -2), scales


def _inverse(gram: Array, squares: Array) -> Array:
    """The inverse of regular Gram matrices, by inverting the cosines: works for lengths of any size."""
    cosines, scales = _cosines(gram, squares)
    return scales * np.linalg.inv(cosines) * transposed(scales)


def product(X: Array, Y: Array) -> Array:
    """X Y^T, in pieces that are summed: NumPy lets no other thread run while it makes fewer than 500 numbers."""
    n, numbers = X.shape[-1], math.prod(X.shape[:-1]) * Y.shape[-2]
    if not 0 < numbers < _ALONE or n < 2 * _PIECE or not isinstance(X, np.ndarray):
        return X @ Y.swapaxes(-1, -2)
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


def products(left: Iterable[Array], right: Iterable[Array]) -> Array:
    """Left right^T, a sum over the blocks."""
    return reduce(iadd, (product(one, other) for one, other in zip(left, right, strict=True)))


def repeated(X: Array, times: int, axis: int) -> Array:
    """Each row (axis -2) or column (-1) several times, side by side."""
    return np.repeat(X, times, axis) if isinstance(X, np.ndarray) else X.repeat_interleave(times, axis)


def for_pairs(matrix: Array, outputs: int) -> Array:
    """A matrix of inputs, (..., m, m), as one of pairs, (..., m o, m o): rows and columns repeated."""
    return repeated(repeated(matrix, outputs, -1), outputs, -2)


def gated(rows: Array, gate: Array) -> Array:
    """Rows of inputs or of pairs, (draws, m or m o, n), each times the gate's row of its input."""
    draws, m, n = gate.shape
    return (gate[:, :, None] * rows.reshape(draws, m, -1, n)).reshape(rows.shape)


def gated_in_place(rows: Array, gate: Array) -> Array:
    """`gated`, written into the rows, which are contiguous."""
    draws, m, n = gate.shape
    pairs = rows.reshape(draws, m, -1, n)
    pairs *= gate[:, :, None]
    return rows


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
        sizes = np.maximum(sizes, in_numpy(largest)[..., None])
    fewest = _floor_log2(np.array(least)) if least else None
    powers = _floor_log2(sizes) + (0 if power is None else in_numpy(power).astype(np.int64))
    if fewest is not None:
        powers = np.where(sizes > 0, np.maximum(powers, fewest), fewest)
    usual = (np.abs(powers) < _USUAL) | (sizes == 0) & (fewest is None) | ~np.isfinite(sizes)
    powers = np.where(usual, 0, powers)
    if not powers.any():
        return None
    return as_array(rng, powers, "float64") if isinstance(rng, DeviceGenerator) else powers


def _floor_log2(values: FloatArray) -> npt.NDArray[np.int64]:
    """The largest powers of two that are no larger, as whole numbers."""
    return np.frexp(values)[1].astype(np.int64) - 1


def fresh(rng: Generator, root: Array, sizes: list[int], draws: int) -> Blocks:
    """Standard normal numbers, shape (draws, columns of the root, neurons), for blocks of these sizes."""
    return [rng.standard_normal((draws, root.shape[-1], size)) for size in sizes]


def overlap(rng: Generator, Z: Blocks, A: Iterable[Array], constant: float | Array) -> Array:
    """Z A'^T, with the numbers of the constant neuron drawn if there is one."""
    total = products(Z, A)
    if not isinstance(constant, float) or constant:
        total += constant * rng.standard_normal((*total.shape[:2], 1))
    return total
