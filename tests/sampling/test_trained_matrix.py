"""Steps of gradient descent on revealed matrices: the same numbers as the steps on the matrix itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from finwidth.sampling.lazy_matrix.gaussian import GaussianMatrix
from finwidth.sampling.lazy_matrix.trained import TrainedMatrix
from finwidth.sampling.random.device import DeviceGenerator
from finwidth.sampling.random.streams import stream

Array = Any
ROWS, COLUMNS = 60, 50


def followed(W: TrainedMatrix, momentum: float, draws: int, steps: int) -> list[tuple[Array, ...]]:
    """Right vectors, products, left vectors, products of each step; vectors depend on the answers."""
    rng, met = np.random.default_rng(0), []
    A: Array = rng.standard_normal((1, 3, COLUMNS))
    for step in range(steps):
        Y, a = W.push(A)
        W.push(rng.standard_normal((1, 1, COLUMNS)))  # met after a was made
        J: Array = np.tanh(np.asarray(Y)) if step % 2 else rng.standard_normal((draws, 3, ROWS))
        L, j = W.pull(J)
        met.append((A, np.asarray(Y), J, np.asarray(L)))
        W.step(j, a, lr=0.01, momentum=momentum)
        A = A + 0.1 * np.asarray(L)
    return met


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("completed", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_products_are_those_of_the_matrix_that_takes_the_steps(
    kind: str, completed: bool, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The initial matrix is read off at the end; replayed from it, every product must come out the same."""
    if kind == "torch":
        pytest.importorskip("torch", reason="needs the torch extra")
    if not completed:
        monkeypatch.setattr(GaussianMatrix, "settle", lambda self: None)
    draws, steps = 2, 9
    rng = DeviceGenerator("cpu", 0, 0) if kind == "torch" else stream(0, 0)
    W = TrainedMatrix(ROWS, COLUMNS, rng, deviation=0.2, draws=draws)
    met = followed(W, momentum, draws, steps)
    assert (W.whole is not None) == completed
    final = np.asarray(W @ np.eye(COLUMNS))
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
    W, rng = TrainedMatrix(10**4, 10**4, stream(0, 0)), np.random.default_rng(0)
    A, J = rng.standard_normal((2, 1, 4, 10**4))
    for _ in range(3):
        _, a = W.push(A)
        _, j = W.pull(J)
        W.step(j, a, lr=1e-6, momentum=0.9)
    assert W.known == (4, 4)
    assert W.nbytes == 8 * (8 * 2 * 10**4 + 2 * 16)
