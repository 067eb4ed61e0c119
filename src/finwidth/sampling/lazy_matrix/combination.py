r"""Gaussian matrices under gradient descent, revealed only along the vectors that they are multiplied with.

Weights, gradients and momentum are all sums of multiples of the initial matrix W_0 and of products J^T A of vectors
that it has met, the rows of A on the right (forward) and those of J on the left (backward).  In the bases V and U of
`DeferredGaussianMatrix`::

    M = scale W_0 + U^T core V,   M v = scale W_0 v + U^T core (V v),   |U^T core V|_F = |core|_F

(vectors are rows), so that sums and multiples of such matrices are those of their scales and small cores.  A step of
SGD (`sgd_step`) meets no vector.
"""

from __future__ import annotations

import weakref
from typing import Generic

from finwidth.errors import FinwidthError
from finwidth.sampling.lazy_matrix.gaussian import (
    Array,
    DeferredGaussianMatrix,
    Generator,
    add_product,
    linear_combination,
    transpose,
)


class SharedMatrix(DeferredGaussianMatrix[Array]):
    """W_0, and the combinations of it that are still in use; the arguments are those of `DeferredGaussianMatrix`.

    Once it is materialized it keeps no entries: they are in the combinations.  With ``groups`` each of the draws is so
    many independent matrices; blocks of vectors are then (draws x groups, vectors, length).
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        rng: Generator,
        *,
        deviation: float = 1.0,
        draws: int | None = None,
        groups: int = 1,
        memory: float | str | None = None,
        dtype: str = "float64",
    ) -> None:
        matrices = draws if groups == 1 else (draws or 1) * groups
        super().__init__(rows, columns, rng, deviation=deviation, draws=matrices, memory=memory, dtype=dtype)
        self.draws, self.groups = draws, groups  # None of one draw without an axis of draws
        self.combinations: weakref.WeakSet[Combination[Array]] = weakref.WeakSet()

    @property
    def nbytes(self) -> int:
        """Bytes that are held now, the combinations' included."""
        cores = [each.core for each in self.combinations if each.core is not None]
        numbers = sum(int(core.shape[0] * core.shape[1] * core.shape[2]) for core in cores)
        return (0 if self.materialized else super().nbytes) + numbers * self._item

    def materialize(self) -> None:
        """Draw all that is not known yet; each combination is then kept dense, in its core."""
        left, right = self._left.vectors, self._right.vectors
        waiting = [each for each in self.combinations if each.scale or each.core is not None]
        self._afford(max(1, len(waiting)) * self.shape[0] * self.shape[1], 1)
        initial = self._drawn()
        while waiting:
            each = waiting.pop()
            dense = 1 * initial if waiting else initial  # the last takes the array itself
            dense *= each.scale
            if each.core is not None:
                self._add_lifted(dense, each.core, left, right)
            each.scale, each.core = 0.0, dense

    def _add_lifted(self, target: Array, core: Array, left: list[Array], right: list[Array]) -> None:
        """Add U^T core V to the target, (draws, rows, columns); the core may be smaller than the bases."""
        start = 0
        for vectors in left:
            some: Array = core[:, start : start + vectors.shape[1]]
            rows = linear_combination(some, right, self.zeros((*some.shape[:2], self.shape[1])))
            add_product(target, vectors[:, : some.shape[1]], rows)
            start += vectors.shape[1]

    @property
    def left_vectors(self) -> list[Array]:
        """Blocks of U."""
        return self._left.vectors

    @property
    def right_vectors(self) -> list[Array]:
        """Blocks of V."""
        return self._right.vectors


class Combination(Generic[Array]):
    """M = scale W_0 + U^T core V, the core (draws, left, right), or None for 0.

    Once W_0 is materialized the scale is 0, and the core is M, (draws, rows, columns).

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.lazy_matrix.combination import Combination, SharedMatrix
    >>> initial = SharedMatrix(10**5, 10**5, np.random.default_rng(0), deviation=0.01)
    >>> W = Combination(initial, scale=1.0)
    >>> A = np.ones((1, 1, 10**5)) / 100  # one right vector, of one draw
    >>> a = initial.right(A)
    >>> Y = W.from_right(a)
    >>> gradient = Combination(initial, core=transpose(initial.left(Y)) @ a)  # that of |W v|^2 / 2, Y^T A
    >>> W.add(gradient, -0.1)
    >>> bool(np.allclose(W.from_right(a), (1 - 0.1 * (A**2).sum()) * Y))
    True
    """

    def __init__(self, matrix: SharedMatrix[Array], scale: float = 0.0, core: Array | None = None) -> None:
        self.matrix: SharedMatrix[Array] = matrix
        self.scale = scale
        self.core: Array | None = core
        matrix.combinations.add(self)

    def copy(self) -> Combination[Array]:
        """Another, of the same value."""
        return Combination(self.matrix, self.scale, None if self.core is None else 1 * self.core)

    def from_right(self, coordinates: Array) -> Array:
        """M v for right vectors of these coordinates, as rows, (draws, m, rows)."""
        if self.matrix.materialized:
            return coordinates @ transpose(self.padded() if self.core is None else self.core)
        initial = self.matrix.from_right(coordinates)
        initial = initial if self.scale == 1 else self.scale * initial
        if self.core is None:
            return initial
        size = min(self.core.shape[2], coordinates.shape[2])
        along = coordinates[..., :size] @ transpose(self.core[..., :size])
        return linear_combination(along, self.matrix.left_vectors, initial)

    def from_left(self, coordinates: Array) -> Array:
        """M^T u for left vectors of these coordinates, as rows, (draws, m, columns)."""
        if self.matrix.materialized:
            return coordinates @ (self.padded() if self.core is None else self.core)
        initial = self.matrix.from_left(coordinates)
        initial = initial if self.scale == 1 else self.scale * initial
        if self.core is None:
            return initial
        size = min(self.core.shape[1], coordinates.shape[2])
        along = coordinates[..., :size] @ self.core[:, :size]
        return linear_combination(along, self.matrix.right_vectors, initial)

    def padded(self) -> Array:
        """The core in the bases as they are now, longer than when it was made."""
        sizes: tuple[int, int] = self.matrix.shape if self.matrix.materialized else self.matrix.known
        core = self.matrix.zeros((self.matrix._draws, *sizes))
        if self.core is not None:
            core[:, : self.core.shape[1], : self.core.shape[2]] = self.core
        return core

    def add(self, other: Combination[Array], factor: float = 1.0) -> None:
        """Add a multiple of another of the same matrix."""
        if other.matrix is not self.matrix:
            raise FinwidthError("two matrix-free layers' weights cannot be added: they are different matrices")
        self.scale += factor * other.scale
        if other.core is not None:
            self.add_core(other.core, factor)

    def add_core(self, core: Array, factor: float = 1.0) -> None:
        """Add a multiple of U^T core V, such as a gradient J^T A, whose core is made of the coordinates of J and A."""
        _, left, right = core.shape
        if self.core is None or left > self.core.shape[1] or right > self.core.shape[2]:
            self.core = self.padded()
        self.core[:, :left, :right] += factor * core

    def multiply(self, factor: float) -> None:
        """Multiply by a number."""
        self.scale *= factor
        if self.core is not None:
            self.core *= factor


def sgd_step(
    weights: Combination[Array], velocity: Combination[Array], gradient: Array, lr: float, momentum: float
) -> None:
    """torch.optim.SGD along g = U^T gradient V: v <- momentum v + g, W <- W - lr v; without momentum v stays 0."""
    if momentum:
        velocity.multiply(momentum)
        velocity.add_core(gradient)
        weights.add(velocity, -lr)
    else:
        weights.add_core(gradient, -lr)
