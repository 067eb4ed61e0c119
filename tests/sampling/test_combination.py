"""Steps of gradient descent on deferred matrices: the same numbers as the steps on the matrix itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from finwidth.sampling.lazy_matrix.combination import Combination, SharedMatrix, sgd_step
from finwidth.sampling.lazy_matrix.gaussian import DeferredGaussianMatrix
from finwidth.sampling.random.device import DeviceGenerator
from finwidth.sampling.random.streams import stream

Array = Any
ROWS, COLUMNS = 60, 50


class Trained:
    """A matrix, its weights and their velocity."""

    def __init__(self, initial: SharedMatrix[Any]) -> None:
        self.initial, self.weights, self.velocity = initial, Combination(initial, scale=1.0), Combination(initial)

    def step(self, j: Array, a: Array, momentum: float) -> None:
        sgd_step(self.weights, self.velocity, j.swapaxes(1, 2) @ a, 0.01, momentum)
        self.initial.materialize_if_smaller()


def followed(W: Trained, momentum: float, draws: int, steps: int) -> list[tuple[Array, ...]]:
    """Right vectors, products, left vectors, products of each step; vectors depend on the answers."""
    rng, met = np.random.default_rng(0), []
    A: Array = rng.standard_normal((1, 3, COLUMNS))
    for step in range(steps):
        a = W.initial.right(A)
        Y = W.weights.from_right(a)
        W.initial.right(rng.standard_normal((1, 1, COLUMNS)))  # met after a was made
        J: Array = np.tanh(np.asarray(Y)) if step % 2 else rng.standard_normal((draws, 3, ROWS))
        j = W.initial.left(J)
        L = W.weights.from_left(j)
        met.append((A, np.asarray(Y), J, np.asarray(L)))
        W.step(j, a, momentum)
        A = A + 0.1 * np.asarray(L)
    return met


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("materialized", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_products_are_those_of_the_matrix_that_takes_the_steps(
    kind: str, materialized: bool, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The initial matrix is read off at the end; replayed from it, every product must come out the same."""
    if kind == "torch":
        pytest.importorskip("torch", reason="needs the torch extra")
    if not materialized:
        monkeypatch.setattr(DeferredGaussianMatrix, "materialize_if_smaller", lambda self: None)
    draws, steps = 2, 9
    rng = DeviceGenerator("cpu", 0, 0) if kind == "torch" else stream(0, 0)
    W = Trained(SharedMatrix(ROWS, COLUMNS, rng, deviation=0.2, draws=draws))
    met = followed(W, momentum, draws, steps)
    assert W.initial.materialized == materialized
    final = np.asarray(W.weights.from_right(W.initial.right(np.eye(COLUMNS)[None]))).swapaxes(1, 2)
    velocity: Array = 0.0
    moved: Array = np.zeros((draws, ROWS, COLUMNS))
    for A, _, J, _ in met:
        velocity = momentum * velocity + J.swapaxes(1, 2) @ np.asarray(A)
        moved = moved - 0.01 * velocity
    initial = final - moved
    assert initial.std() == pytest.approx(0.2, abs=6 * 0.2 / math.sqrt(2 * initial.size))
    present, velocity = initial, 0.0
    for A, Y, J, L in met:
        assert np.allclose(np.asarray(A) @ present.swapaxes(1, 2), Y, atol=1e-11)
        assert np.allclose(J @ present, L, atol=1e-11)
        velocity = momentum * velocity + J.swapaxes(1, 2) @ np.asarray(A)
        present = present - 0.01 * velocity


def test_steps_cost_no_vectors() -> None:
    W, rng = Trained(SharedMatrix(10**4, 10**4, stream(0, 0))), np.random.default_rng(0)
    A, J = rng.standard_normal((2, 1, 4, 10**4))
    for _ in range(3):
        W.step(W.initial.left(J), W.initial.right(A), 0.9)
    assert W.initial.known == (4, 4)
    assert W.initial.nbytes == 8 * (8 * 2 * 10**4 + 2 * 16)
