r"""A Gaussian matrix whose entries are deferred: it is revealed only along the vectors that it is multiplied with.

W, shape (rows, columns) with independent N(0, 1) entries, is never drawn.  Known are orthonormal right vectors V with
their images W V, and orthonormal left vectors U with theirs, W^T U.  A new right vector v = V c + r, and the image of
its new direction q = r / |r|, is given all that is known (docs/theory/training.md)::

    W v = (W V) c + |r| W q,   W q = g + U ((W^T U)^T q - U^T g),   g ~ N(0, 1)^rows

Left vectors likewise, with the roles exchanged.  Every answer has exactly the conditional law given all earlier ones,
also where the vectors depend on them.  Vectors are rows here, in blocks of shape (draws, vectors, length), for several
independent matrices at once, and the arithmetic is NumPy's or that of torch, as the generator's.

This is the principle of deferred decisions: nothing random is drawn before an answer depends on it.  Y. M. Lu,
"Householder Dice: A Matrix-Free Algorithm for Simulating Dynamics on Gaussian and Random Orthogonal Ensembles" (IEEE
Transactions on Information Theory 67, 2021, 8264-8272) solves the same problem at the same cost, O(n T) numbers and
O(n T^2) operations for T products, by random reflections instead of bases and their images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from finwidth import arguments
from finwidth.arguments import count
from finwidth.errors import FinwidthError
from finwidth.memory import afford, check_memory
from finwidth.networks.laws import FloatArray
from finwidth.sampling.random.device import DeviceGenerator, as_array, generator_namespace, normals

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", FloatArray, "torch.Tensor")  # as the generator draws
Generator = np.random.Generator | DeviceGenerator

_ITEM_BYTES = {"float64": 8, "float32": 4}
# A direction shorter than _ABSENT rounding errors of its vector is taken as absent: rounding alone makes as much.  One
# that rounding makes all the same (equal vectors of 10^6 equal entries, on torch) costs memory, and does no harm.
_ABSENT = 1000
# Of the Gram matrix of unit vectors: above it, whitening by its eigenvectors loses no more than Newton's step repairs.
_SAFE = 1e-4
_BLOCK = 32  # vectors of a block that is still added to
_RUN = 1024  # entries of a vector that are summed at once
_PIECES = 16  # in which a matrix is materialized


class NotFiniteError(FinwidthError):
    """A vector is not finite."""


def kept_numbers(rows: int, columns: int, left: int, right: int) -> int:
    """Most numbers that a matrix keeps after products with ``left`` and ``right`` independent vectors.

    (left + right)(rows + columns), while these are no more than half of rows * columns.  Past that the matrix is
    materialized: rows * columns numbers are kept, and half as many again are needed on the way.
    """
    known = (left + right) * (rows + columns)
    return known if 2 * known <= rows * columns else rows * columns * 3 // 2


def work_numbers(rows: int, columns: int, at_once: int) -> int:
    """Numbers that a product with ``at_once`` vectors needs temporarily, on top of those that are kept."""
    return (8 * at_once + _BLOCK) * (rows + columns)


def matrix_bytes(
    rows: int, columns: int, left: int, right: int, *, at_once: int = 1, draws: int = 1, dtype: str = "float64"
) -> int:
    """Bytes that a `DeferredGaussianMatrix` needs at most: `kept_numbers` and `work_numbers`.

    Examples
    --------
    >>> from finwidth.sampling.lazy_matrix.gaussian import matrix_bytes
    >>> matrix_bytes(10**6, 10**6, 20, 20, at_once=4) / 2**30    # the matrix itself would be 7,450 GiB
    1.54...
    """
    numbers = kept_numbers(rows, columns, left, right) + work_numbers(rows, columns, at_once)
    return _ITEM_BYTES[dtype] * draws * numbers


def transpose(stack: Array) -> Array:
    """The transposes of a stack of matrices."""
    return stack.swapaxes(-1, -2)


@dataclass
class _Side(Generic[Array]):
    """The vectors met on one side, orthonormal rows of blocks (draws, vectors, length), and their images."""

    vectors: list[Array] = field(default_factory=list)
    images: list[Array] = field(default_factory=list)

    def append(self, vectors: Array, images: Array, xp: ModuleType) -> None:
        """Add vectors; small blocks are joined, so that products remain products of matrices."""
        if self.vectors and self.vectors[-1].shape[1] < _BLOCK:
            vectors = xp.concatenate([self.vectors.pop(), vectors], 1)
            images = xp.concatenate([self.images.pop(), images], 1)
        self.vectors.append(vectors)
        self.images.append(images)


def inner_products(X: Array, blocks: Sequence[Array], xp: ModuleType) -> Array:
    """X Y^T for the rows Y of all blocks, (draws, m, size).

    They are summed in runs: whatever the BLAS, they round as sums of 1024 + length/1024 terms do.
    """
    found, runs = [X[..., :0]], X.shape[-1] // _RUN
    end = runs * _RUN
    for Y in blocks:
        total = X[..., end:] @ Y[..., end:].swapaxes(-1, -2)
        if runs:
            # Draw by draw, for torch would copy a stack of this layout: views of the rows in runs, (runs, m, _RUN).
            folded = [[rows[:, :end].reshape(len(rows), runs, _RUN).swapaxes(0, 1) for rows in one] for one in (X, Y)]
            total = total + xp.stack([(x @ y.swapaxes(-1, -2)).sum(0) for x, y in zip(*folded, strict=True)])
        found.append(total)
    products: Array = xp.concatenate(found, -1)
    return products


def linear_combination(coefficients: Array, blocks: list[Array], onto: Array) -> Array:
    """``onto`` plus the sums of the blocks' rows with these coefficients, (draws, m, size or less)."""
    start, total = 0, onto
    for block in blocks:
        some = coefficients[..., start : start + block.shape[1]]
        product = some @ block[:, : some.shape[-1]]
        product += total
        total, start = product, start + block.shape[1]
    return total


def add_product(target: Array, left: Array, right: Array) -> None:
    """Add left^T right to the target, (draws, rows, columns), in pieces that need little memory of their own."""
    step = -(-target.shape[1] // _PIECES)
    for start in range(0, target.shape[1], step):
        piece = slice(start, start + step)
        target[:, piece] += transpose(left[..., piece]) @ right


class DeferredGaussianMatrix(Generic[Array]):
    r"""A matrix of independent N(0, deviation^2), revealed only along the vectors that it is multiplied with.

    ``W @ V`` and ``W.T @ U`` have, together and for vectors chosen in view of earlier answers, exactly the law that
    they have for a matrix drawn in advance.  k vectors on either side take 2 k (rows + columns) numbers and
    O(k (rows + columns)) operations for each further one; once that is half of the matrix (`kept_numbers`), it is
    materialized: drawn as a whole.

    Parameters
    ----------
    rows, columns
        Its shape.
    rng
        Where the fresh numbers come from: a NumPy generator, or a `DeviceGenerator` for torch tensors on a device.
    deviation
        Standard deviation of the entries, positive.
    draws
        How many independent matrices to follow at once; then every array has a leading axis of this size, and
        arrays without one are for all of them.
    memory
        What the matrix may use, in bytes or such as ``"4GiB"``; a product that would need more is refused.  By default
        what a product adds has to fit three quarters of what there is then (`finwidth.memory`).
    dtype
        ``"float64"`` or ``"float32"``.  Answers agree with each other, after k vectors on either side, up to lengths of
        10^6 and on any processor, within 2 10^4 (k + 1) rounding errors eps (docs/theory/training.md)::

            |u.(W v) - (W^T u).v| <= 2 10^4 (k + 1) eps deviation (sqrt(rows) + sqrt(columns)) |u| |v|

        That is a worst case, 10^-11 and 5 10^-3 after the first; measured were below 10 eps (docs/processors.md).

    Raises
    ------
    FinwidthError
        If an argument is not allowed, a vector is not finite or of the wrong length, or the memory does not suffice.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.lazy_matrix.gaussian import DeferredGaussianMatrix
    >>> W = DeferredGaussianMatrix(10**6, 10**6, np.random.default_rng(0))
    >>> v = np.ones(10**6) / 1000
    >>> u = W @ v
    >>> mismatch = np.sum(u * (W @ v)) - np.sum((W.T @ u) * v)  # sums in pairs; a product would round like 10^6 terms
    >>> bool(abs(mismatch) <= 1e-11 * 2000 * np.linalg.norm(u)), W.known
    (True, (1, 1))
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        rng: Generator,
        *,
        deviation: float = 1.0,
        draws: int | None = None,
        memory: float | str | None = None,
        dtype: str = "float64",
    ) -> None:
        self.shape = (count("rows", rows), count("columns", columns))
        self.deviation = arguments.real("deviation", deviation, "a positive number", lambda s: 0 < s < math.inf)
        self.rng, self.dtype = rng, arguments.one_of("dtype", dtype, _ITEM_BYTES)
        self.budget = None if memory is None else check_memory(memory)
        self._in_memory = not isinstance(rng, DeviceGenerator) or rng.device.type == "cpu"
        self.materialized = False
        self.dense: Array | None = None  # once materialized, the matrix itself, deviation and all
        self._batched, self._draws = draws is not None, 1 if draws is None else count("draws", draws)
        self._xp = generator_namespace(rng)
        on_device = {"device": rng.device} if isinstance(rng, DeviceGenerator) else {}
        self._kind = {"dtype": getattr(self._xp, dtype)} | on_device
        self._left: _Side[Array] = _Side()
        self._right: _Side[Array] = _Side()
        self._round, self._item = float(np.finfo(dtype).eps), _ITEM_BYTES[dtype]
        # Squares above it, and below its inverse, are good.
        self._safe = float(np.finfo(dtype).tiny) ** 0.5 / self._round

    @property
    def known(self) -> tuple[int, int]:
        """Numbers of orthonormal vectors kept on the left and on the right; 0 and 0 once it is materialized."""
        return sum(block.shape[1] for block in self._left.vectors), sum(block.shape[1] for block in self._right.vectors)

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        numbers = self.shape[0] * self.shape[1] if self.materialized else sum(self.known) * sum(self.shape)
        return numbers * self._draws * self._item

    @property
    def T(self) -> _TransposedMatrix[Array]:
        """The transpose, to multiply vectors from the left with."""
        return _TransposedMatrix(self)

    def __matmul__(self, V: Array) -> Array:
        """W V for V of shape (columns,) or (columns, k), with a leading axis of draws where the matrix has one."""
        return self._public(V, "W @ V", self.shape[1], lambda X: self.from_right(self.right(X)))

    def _public(self, given: Array, what: str, length: int, product: Callable[[Array], Array]) -> Array:
        """A product in terms of columns by one in terms of rows."""
        array: Array = as_array(self.rng, given, self.dtype)
        single = array.ndim == 1
        columns = array[:, None] if single else array
        lead: tuple[int, ...] = (self._draws,) if self._batched and columns.ndim == 3 else ()
        if columns.ndim != 2 + len(lead) or tuple(columns.shape[:-1]) != (*lead, length):
            leads = f", each with a leading {self._draws} or without" if self._batched else ""
            raise FinwidthError(
                f"{what}: the vectors have shape {tuple(array.shape)}; give ({length},) or ({length}, k){leads}"
            )
        self.materialize_if_smaller()
        answer = transpose(product(transpose(columns if lead else columns[None])))
        answer = answer if self._batched else answer[0]
        return answer[..., 0] if single else answer

    def materialize_if_smaller(self, coming: int = 0) -> None:
        """Draw the whole matrix if the vectors kept take more than half of its memory: then dense products are faster.

        Also if the next ``coming`` vectors and their images would take more memory than the matrix. Products with ``@``
        do so by themselves. It makes the coordinates that `right` and `left` returned invalid.
        """
        rows, columns = self.shape
        vectors = max(2 * sum(self.known), coming)
        if not self.materialized and vectors * (rows + columns) > rows * columns:
            self.materialize()

    def right(self, X: Array) -> Array:
        """Meet right vectors, the rows of X, (draws or 1, m, columns): their coordinates in the basis on the right.

        A basis only grows, so that coordinates are good, padded with zeros, until the matrix is materialized; then
        the basis is that of the entries.
        """
        return self._meet(X, self._right, self._left, self.shape)

    def left(self, X: Array) -> Array:
        """Meet left vectors, the rows of X, (draws or 1, m, rows): their coordinates in the basis on the left."""
        return self._meet(X, self._left, self._right, self.shape[::-1])

    def from_right(self, coordinates: Array) -> Array:
        """W v for right vectors of these coordinates, as rows, (draws, m, rows)."""
        return self._images(coordinates, self._right, self.shape[0])

    def from_left(self, coordinates: Array) -> Array:
        """W^T u for left vectors of these coordinates, as rows, (draws, m, columns)."""
        return self._images(coordinates, self._left, self.shape[1])

    def _images(self, coordinates: Array, side: _Side[Array], length: int) -> Array:
        if self.dense is not None:
            return coordinates @ (transpose(self.dense) if side is self._right else self.dense)
        zeros = self.zeros((*coordinates.shape[:2], length))
        return linear_combination(self.deviation * coordinates, side.images, zeros)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """An array of the kind that the matrix works with."""
        found: Array = self._xp.zeros(shape, **self._kind)
        return found

    def _meet(self, X: Array, side: _Side[Array], other: _Side[Array], shape: tuple[int, int]) -> Array:
        """Coordinates of the rows of X on one side, of vectors of length shape[1]; new directions are revealed."""
        xp, X = self._xp, as_array(self.rng, X, self.dtype)
        self._afford(0, X.shape[1])
        sizes, X, lengths = self._lengths(X)
        if self.materialized:
            return X * sizes
        unit: Array = xp.broadcast_to(X / (lengths + (lengths == 0)), (self._draws, *X.shape[1:]))
        coordinates: Array = inner_products(unit, side.vectors, xp)
        rest = linear_combination(-coordinates, side.vectors, unit)
        fresh, there = self._directions(rest)
        if fresh.shape[1]:
            self._afford(fresh.shape[1] * sum(shape), X.shape[1])
            fresh = self._orthonormal(fresh, there, side)
            coordinates = xp.concatenate([coordinates, inner_products(rest, [fresh], xp)], -1)
            images = normals(self.rng, (self._draws, fresh.shape[1], shape[0]), self.dtype) * there
            fixed = inner_products(fresh, other.images, xp) - inner_products(images, other.vectors, xp)
            side.append(fresh, linear_combination(fixed, other.vectors, images), xp)
        return coordinates * lengths * sizes

    def _lengths(self, X: Array) -> tuple[Array | float, Array, Array]:
        """(sizes, X / sizes, lengths of that), the sizes 1 unless the square of a vector leaves the numbers' range."""
        xp = self._xp
        with np.errstate(over="ignore", under="ignore"):
            squares = (X * X).sum(-1)[..., None]
        if bool(((squares > self._safe) & (squares < 1 / self._safe)).all()):
            return 1.0, X, squares**0.5
        sizes: Array = xp.amax(abs(X), -1)[..., None]
        if not bool(xp.isfinite(sizes).all()):
            raise NotFiniteError("a vector is not finite; give finite numbers")
        sizes = sizes + (sizes == 0)
        return sizes, X / sizes, ((X / sizes) ** 2).sum(-1)[..., None] ** 0.5

    def _directions(self, rest: Array) -> tuple[Array, Array]:
        """Almost orthonormal rows that span the rows of ``rest``, and 1 for each that is there, 0 for a row of zeros.

        The draws may have different ranks; there are as many rows as the largest.  Equal singular values apart, which
        rows does not depend on the processor, so that the numbers that are drawn for them mean the same everywhere.
        """
        xp = self._xp
        values, vectors = xp.linalg.eigh(inner_products(rest, [rest], xp))
        if float(values.min()) > _SAFE:
            rows = vectors @ (transpose(vectors) / values[..., None] ** 0.5) @ rest
            return rows, as_array(self.rng, np.ones((1, 1, 1)), self.dtype)
        q, triangle = xp.linalg.qr(transpose(rest))
        u, lengths, shares = xp.linalg.svd(triangle, full_matrices=False)
        # Signs of singular vectors are the processor's choice; here the rows, weighted 1, 1/2, ..., sum to more than 0.
        signs = 2 * (shares @ as_array(self.rng, 1 / np.arange(1, shares.shape[-1] + 1), self.dtype) >= 0) - 1
        u = u * signs[:, None]
        found = lengths > _ABSENT * self._round
        there = found[..., : int(found.sum(-1).max()), None] * as_array(self.rng, np.ones(1), self.dtype)
        return transpose(q @ u[..., : there.shape[1]]) * there, there

    def _orthonormal(self, rows: Array, there: Array, side: _Side[Array]) -> Array:
        """The rows made orthogonal to the basis and to each other, to rounding: the second of two projections.

        What the first left along the basis is amplified where a vector was nearly dependent; then it takes more.
        """
        xp = self._xp
        unit = as_array(self.rng, np.eye(rows.shape[1]), self.dtype) * there
        for _ in range(4):
            rows = linear_combination(-inner_products(rows, side.vectors, xp), side.vectors, rows)
            gram = inner_products(rows, [rows], xp)
            rows = 1.5 * rows - 0.5 * gram @ rows  # Newton's step: an error e of the Gram matrix becomes 3/4 e^2
            if float(abs(gram - unit).max()) < self._round**0.5:
                break
        return rows

    def materialize(self) -> None:
        """Draw all that is not known yet, and keep the dense matrix."""
        self._afford(self.shape[0] * self.shape[1], 1)
        self.dense = self._drawn()

    def _drawn(self) -> Array:
        """The dense matrix, given all that is known, which is then let go."""
        W: Array = normals(self.rng, (self._draws, *self.shape), self.dtype)
        for vectors, images in zip(self._right.vectors, self._right.images, strict=True):
            add_product(W, images - vectors @ transpose(W), vectors)
        for vectors, images in zip(self._left.vectors, self._left.images, strict=True):
            add_product(W, vectors, images - vectors @ W)
        W *= self.deviation
        self.materialized, self._left, self._right = True, _Side(), _Side()
        return W

    def _afford(self, more: int, at_once: int) -> None:
        """Refuse to go on if ``more`` numbers for each draw, and a product of so many vectors, exceed the budget.

        Without one, what is to come has to fit what there is then; on a device it is for torch to say.
        """
        rows, columns = self.shape
        left, right = self.known
        coming = (more + work_numbers(rows, columns, at_once)) * self._draws * self._item
        what = f"a Gaussian matrix of {rows} x {columns} that has met {left} left and {right} right vectors"
        if self.budget is not None:
            afford(self.nbytes + coming, what, "give more, or multiply with fewer vectors", self.budget)
        elif self._in_memory:
            afford(coming, what, "multiply with fewer vectors")


@dataclass
class _TransposedMatrix(Generic[Array]):
    """The transpose, ``W.T``: W^T U by ``@``."""

    matrix: DeferredGaussianMatrix[Array]

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[::-1]

    @property
    def T(self) -> DeferredGaussianMatrix[Array]:
        return self.matrix

    def __matmul__(self, U: Array) -> Array:
        W = self.matrix
        return W._public(U, "W.T @ U", W.shape[0], lambda X: W.from_left(W.left(X)))
