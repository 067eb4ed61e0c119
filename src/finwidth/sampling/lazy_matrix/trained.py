r"""A weight matrix under gradient descent; its initial value is revealed only along the vectors it is multiplied with.

A gradient is a sum of products J^T A of vectors that the matrix has met, the rows of A on the right (forward) and those
of J on the left (backward).  So with the bases V and U of `revealed`, every iterate is given by a small matrix C::

    W_t = W_0 + U^T C V,   C <- C - lr S,   S <- momentum S + (J U^T)^T (A V^T)

(vectors are rows), with the velocity S of heavy-ball momentum kept in the same coordinates.  A step costs no vector.
"""

from __future__ import annotations

from finwidth.sampling.lazy_matrix.gaussian import Array, GaussianMatrix, add_product, combination, turned


class TrainedMatrix(GaussianMatrix):
    """A `GaussianMatrix` that takes steps of SGD; every product is with its present value W_t.

    Arguments are those of `GaussianMatrix`.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.lazy_matrix.trained import TrainedMatrix
    >>> W = TrainedMatrix(10**5, 10**5, np.random.default_rng(0), deviation=0.01)
    >>> A = np.ones((1, 1, 10**5)) / 100  # one right vector, of one draw
    >>> Y, a = W.push(A)
    >>> pulled, j = W.pull(Y)             # the gradient of |W v|^2 / 2 is Y^T A
    >>> W.step(j, a, lr=0.1)
    >>> moved, _ = W.push(A)
    >>> bool(np.allclose(moved, (1 - 0.1 * (A**2).sum()) * Y))
    True
    """

    drift: Array | None = None  # C, (draws, left, right)
    velocity: Array | None = None  # S likewise; once the matrix is completed, (draws, rows, columns)

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        kept = [each for each in (self.drift, self.velocity) if each is not None]
        return super().nbytes + sum(int(each.shape[0] * each.shape[1] * each.shape[2]) for each in kept) * self._item

    def push(self, A: Array) -> tuple[Array, Array]:
        """A W^T for right vectors, the rows of A, (draws or 1, m, columns), and their coordinates, for `step`."""
        coordinates = self.right(A)
        return self.from_right(coordinates), coordinates

    def pull(self, J: Array) -> tuple[Array, Array]:
        """J W for left vectors, the rows of J, (draws or 1, m, rows), and their coordinates, for `step`."""
        coordinates = self.left(J)
        return self.from_left(coordinates), coordinates

    def from_right(self, coordinates: Array) -> Array:
        """W_t v for right vectors of these coordinates, as rows, (draws, m, rows)."""
        initial = super().from_right(coordinates)
        if self.drift is None:
            return initial
        size = min(self.drift.shape[2], coordinates.shape[2])
        along = coordinates[..., :size] @ turned(self.drift[..., :size])
        return combination(along, self._left.vectors, initial)

    def from_left(self, coordinates: Array) -> Array:
        """W_t^T u for left vectors of these coordinates, as rows, (draws, m, columns)."""
        initial = super().from_left(coordinates)
        if self.drift is None:
            return initial
        size = min(self.drift.shape[1], coordinates.shape[2])
        along = coordinates[..., :size] @ self.drift[:, :size]
        return combination(along, self._right.vectors, initial)

    def step(self, j: Array, a: Array, lr: float, momentum: float = 0.0) -> None:
        """One step of torch.optim.SGD along the gradient sum_k J_k^T A_k, given by the coordinates of both.

        Coordinates from before a step are of no use after it: the matrix may be completed now.
        """
        change = self._padded(turned(j) @ a)
        if momentum:
            self.velocity = change if self.velocity is None else momentum * self._padded(self.velocity) + change
            change = self.velocity
        if self.whole is not None:
            self.whole -= lr * change
            return
        self.drift = -lr * change if self.drift is None else self._padded(self.drift) - lr * change
        self.settle()

    def _padded(self, matrix: Array) -> Array:
        """The matrix in the bases as they are now, longer than when it was made."""
        if self.whole is not None:
            return matrix
        draws, left, right = matrix.shape
        padded = self._zeros((draws, *self.known))
        padded[:, :left, :right] = matrix
        return padded

    def complete(self) -> None:
        """Draw all that is not known yet, and keep matrix and velocity as wholes."""
        left, right = self._left.vectors, self._right.vectors
        drift, velocity = self.drift, self.velocity
        if velocity is not None:
            self._afford(2 * self.shape[0] * self.shape[1], 1)
        super().complete()
        self.drift = None
        if drift is not None:
            self._add_lifted(self.whole, drift, left, right)
        if velocity is not None:
            self.velocity = self._zeros((len(velocity), *self.shape))
            self._add_lifted(self.velocity, velocity, left, right)

    def _add_lifted(self, target: Array, matrix: Array, left: list[Array], right: list[Array]) -> None:
        """Add U^T matrix V to the target; the matrix may be smaller than the bases."""
        draws, top, _ = matrix.shape
        start = 0
        for vectors in left:
            stop = min(start + vectors.shape[1], top)
            rows = self._zeros((draws, stop - start, self.shape[1]))
            add_product(target, vectors[:, : stop - start], combination(matrix[:, start:stop], right, rows))
            start = stop
