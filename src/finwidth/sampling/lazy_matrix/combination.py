r"""Gaussian matrices under gradient descent, revealed only along the vectors that they are multiplied with.

Weights, gradients and momentum are all sums of multiples of the initial matrix W_0 and of products J^T A of vectors
that it has met, the rows of A on the right and those of J on the left.  In the bases V and U of `revealed`::

    M = scale W_0 + U^T core V,   M v = scale W_0 v + U^T core (V v),   |U^T core V|_F = |core|_F

(vectors are rows), so that sums and multiples of such matrices are those of their scales and small cores.
"""

from __future__ import annotations

import weakref
from typing import Any

from finwidth.errors import FinwidthError
from finwidth.sampling.lazy_matrix.gaussian import Array, GaussianMatrix, add_product, combination, turned


class SharedMatrix(GaussianMatrix):
    """W_0, and the combinations of it that are still in use; the arguments are those of `GaussianMatrix`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.made: weakref.WeakSet[Combination] = weakref.WeakSet()

    @property
    def nbytes(self) -> int:
        """Bytes that are held now, the combinations' included."""
        cores = [each.core for each in self.made if each.core is not None]
        numbers = sum(int(core.shape[0] * core.shape[1] * core.shape[2]) for core in cores)
        return (super().nbytes if self.whole is None else 0) + numbers * self._item

    def settle(self, coming: int = 0) -> None:
        """Complete the matrix also if the next ``coming`` vectors and their images would take more memory than it."""
        super().settle()
        rows, columns = self.shape
        if self.whole is None and coming * (rows + columns) > rows * columns:
            self.complete()

    def complete(self) -> None:
        """Draw all that is not known yet; each combination is then kept as a whole, in its core."""
        left, right = self._left.vectors, self._right.vectors
        made = list(self.made)
        self._afford((1 + len(made)) * self.shape[0] * self.shape[1], 1)
        super().complete()
        initial: Array = self.whole
        for each in made:
            whole = each.scale * initial
            if each.core is not None:
                self._add_lifted(whole, each.core, left, right)
            each.scale, each.core = 0.0, whole
        self.whole = self._zeros((0,))  # its numbers are in the combinations now

    def _add_lifted(self, target: Array, core: Array, left: list[Array], right: list[Array]) -> None:
        """Add U^T core V to the target, (draws, rows, columns); the core may be smaller than the bases."""
        start = 0
        for vectors in left:
            some = core[:, start : start + vectors.shape[1]]
            rows = combination(some, right, self._zeros((*some.shape[:2], self.shape[1])))
            add_product(target, vectors[:, : some.shape[1]], rows)
            start += vectors.shape[1]

    @property
    def draws(self) -> int | None:
        """Number of independent matrices; None for one matrix without an axis of draws."""
        return self._draws if self._batched else None

    def zeros(self) -> Array:
        """A core of zeros."""
        return self._zeros((self._draws, *(self.known if self.whole is None else self.shape)))

    @property
    def left_vectors(self) -> list[Array]:
        """Blocks of U."""
        return self._left.vectors

    @property
    def right_vectors(self) -> list[Array]:
        """Blocks of V."""
        return self._right.vectors


class Combination:
    """M = scale W_0 + U^T core V, the core (draws, left, right), or None for 0.

    Once W_0 is completed the scale is 0, and the core is M, (draws, rows, columns).

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.lazy_matrix.combination import Combination, SharedMatrix
    >>> initial = SharedMatrix(10**5, 10**5, np.random.default_rng(0), deviation=0.01)
    >>> W = Combination(initial, scale=1.0)
    >>> A = np.ones((1, 1, 10**5)) / 100  # one right vector, of one draw
    >>> a = initial.right(A)
    >>> Y = W.from_right(a)
    >>> gradient = Combination(initial, core=turned(initial.left(Y)) @ a)  # that of |W v|^2 / 2, Y^T A
    >>> W.add(gradient, -0.1)
    >>> bool(np.allclose(W.from_right(a), (1 - 0.1 * (A**2).sum()) * Y))
    True
    """

    def __init__(self, matrix: SharedMatrix, scale: float = 0.0, core: Array | None = None) -> None:
        self.matrix, self.scale, self.core = matrix, scale, core
        matrix.made.add(self)

    def copy(self) -> Combination:
        """Another, of the same value."""
        return Combination(self.matrix, self.scale, None if self.core is None else 1 * self.core)

    def from_right(self, coordinates: Array) -> Array:
        """M v for right vectors of these coordinates, as rows, (draws, m, rows)."""
        if self.matrix.whole is not None:
            return coordinates @ turned(self.core)
        initial = self.scale * self.matrix.from_right(coordinates)
        if self.core is None:
            return initial
        size = min(self.core.shape[2], coordinates.shape[2])
        along = coordinates[..., :size] @ turned(self.core[..., :size])
        return combination(along, self.matrix.left_vectors, initial)

    def from_left(self, coordinates: Array) -> Array:
        """M^T u for left vectors of these coordinates, as rows, (draws, m, columns)."""
        if self.matrix.whole is not None:
            return coordinates @ self.core
        initial = self.scale * self.matrix.from_left(coordinates)
        if self.core is None:
            return initial
        size = min(self.core.shape[1], coordinates.shape[2])
        along = coordinates[..., :size] @ self.core[:, :size]
        return combination(along, self.matrix.right_vectors, initial)

    def padded(self) -> Array:
        """The core in the bases as they are now, longer than when it was made."""
        core = self.matrix.zeros()
        if self.core is not None:
            core[:, : self.core.shape[1], : self.core.shape[2]] = self.core
        return core

    def add(self, other: Combination, factor: float = 1.0) -> None:
        """Add a multiple of another of the same matrix."""
        if other.matrix is not self.matrix:
            raise FinwidthError("two law layers' weights cannot be added: they are different matrices")
        self.scale += factor * other.scale
        if other.core is None:
            return
        _, left, right = other.core.shape
        if self.core is None or left > self.core.shape[1] or right > self.core.shape[2]:
            self.core = self.padded()
        self.core[:, :left, :right] += factor * other.core

    def multiply(self, factor: float) -> None:
        """Multiply by a number."""
        self.scale *= factor
        if self.core is not None:
            self.core *= factor
