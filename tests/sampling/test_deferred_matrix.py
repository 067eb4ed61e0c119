"""Gaussian matrices revealed along vectors: consistent, sound with any vectors, and in law those drawn in advance."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth.sampling.lazy_matrix import gaussian
from finwidth.sampling.lazy_matrix.gaussian import DeferredGaussianMatrix, matrix_bytes
from finwidth.sampling.random.device import DeviceGenerator, as_array, generator_namespace
from finwidth.sampling.random.streams import stream
from stats import same_law

Array = Any
DRAWS = 60_000


def generator(kind: str, seed: int = 0) -> Any:
    if kind == "torch":
        pytest.importorskip("torch", reason="needs the torch extra")
        return DeviceGenerator("cpu", seed, 0)
    return stream(seed, 0)


@pytest.fixture
def never_materialized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeferredGaussianMatrix, "materialize_if_smaller", lambda self: None)


def awkward(length: int, rng: np.random.Generator, before: list[Array]) -> Array:
    """A block of vectors that are new, nearly old, old, zero, tiny, large and dependent, shape (length, 8)."""
    new = rng.standard_normal((length, 3))
    old = before[-1][:, 0] if before else new[:, 2]
    almost = [old + size * rng.standard_normal(length) for size in (1e-5, 1e-9)]
    columns = [
        new[:, 0],
        1e-8 * new[:, 1],
        *almost,
        1e8 * old,
        np.zeros(length),
        new[:, 0] - 2e-8 * new[:, 1],
        new[:, 0],
    ]
    return np.stack(columns, axis=1)


def meet_all(W: DeferredGaussianMatrix[Any], blocks: int, rng: np.random.Generator) -> tuple[list[Array], ...]:
    """Right and left vectors that W met in turn, and its answers."""
    rows, columns = W.shape
    V: list[Array] = []
    U: list[Array] = []
    WV, WU = [], []
    for _ in range(blocks):
        V.append(awkward(columns, rng, V))
        WV.append(np.asarray(W @ V[-1]))
        # vectors that depend on the answers
        U.append(np.concatenate([np.tanh(WV[-1][:, :2]), awkward(rows, rng, U)], axis=1))
        WU.append(np.asarray(W.T @ U[-1]))
        V.append(np.maximum(WU[-1][:, :2], 0))
        WV.append(np.asarray(W @ V[-1]))
    return V, WV, U, WU


def worst(V: list[Array], WV: list[Array], U: list[Array], WU: list[Array]) -> float:
    """The largest disagreement of u . (W v) with (W^T u) . v, over |u| |W v| + |W^T u| |v|."""
    v, wv, u, wu = (np.concatenate(each, axis=1).astype(np.float64) for each in (V, WV, U, WU))
    norm = np.linalg.norm
    scale = norm(u, axis=0)[:, None] * norm(wv, axis=0) + norm(wu, axis=0)[:, None] * norm(v, axis=0)
    return float((abs(u.T @ wv - wu.T @ v) / np.where(scale > 0, scale, 1)).max())


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(("dtype", "error", "least"), [("float64", 1e-12, 60), ("float32", 1e-5, 40)])
@pytest.mark.usefixtures("never_materialized")
def test_answers_agree_with_each_other(kind: str, dtype: str, error: float, least: int) -> None:
    W = DeferredGaussianMatrix(150, 120, generator(kind), dtype=dtype, deviation=2.0)
    met = meet_all(W, 12, np.random.default_rng(1))
    assert least < W.known[1] <= 120
    assert worst(*met) < error
    for left, right in ((met[0], met[1]), (met[2], met[3])):
        for v, image in zip(left, right, strict=True):
            product = W @ v if left is met[0] else W.T @ v
            sizes = np.linalg.norm(v, axis=0) * math.sqrt(150) * 2
            assert (np.linalg.norm(np.asarray(product) - image, axis=0) <= 10 * error * sizes).all()  # met again


VECTORS: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "equal": lambda n, rng: np.full(n, 0.1),  # all roundings of a plain sum have one sign
    "nearly equal": lambda n, rng: 1 + 1e-6 * rng.standard_normal(n),
    "ramp": lambda n, rng: np.arange(1.0, n + 1),
    "positive": lambda n, rng: rng.random(n),
    "normal": lambda n, rng: rng.standard_normal(n),
}


def disagreement(W: DeferredGaussianMatrix[Any], v: Array, u: Array, wv: Array, wu: Array) -> float:
    """|u.(W v) - (W^T u).v| over what docs/theory/training.md allows, the sums exact."""
    u, v = (np.asarray(each, W.dtype).astype(np.float64) for each in (u, v))
    allowed = 2e4 * (max(W.known) + 1) * np.finfo(W.dtype).eps * W.deviation * sum(np.sqrt(W.shape))
    apart = math.fsum(u * np.asarray(wv, np.float64)) - math.fsum(np.asarray(wu, np.float64) * v)
    return float(abs(apart) / (allowed * np.linalg.norm(u) * np.linalg.norm(v)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(100, 100), (1000, 3000), (10**4, 10**4), (10**6, 10**5)])
@pytest.mark.usefixtures("never_materialized")
def test_answers_agree_within_the_bound_at_any_length(shape: tuple[int, int], dtype: str) -> None:
    W, rng = DeferredGaussianMatrix(*shape, stream(5, 0), dtype=dtype, deviation=0.7), np.random.default_rng(3)
    right = [make(shape[1], rng) for make in list(VECTORS.values())[: 5 if max(shape) < 10**6 else 2]]
    images = [W @ v for v in right]
    left = [np.maximum(images[0], 0), VECTORS["equal"](shape[0], rng)]
    answers = [W.T @ u for u in left]
    for v, wv in zip(right, images, strict=True):
        for u, wu in zip(left, answers, strict=True):
            assert disagreement(W, v, u, wv, wu) <= 1
    off = (1e-9 if dtype == "float64" else 0.5) * np.linalg.norm(answers[0]) * right[0] / np.linalg.norm(right[0])
    assert disagreement(W, right[0], left[0], images[0], answers[0] + off) > 1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("length", [1, 1023, 1024, 5000, 10**5 + 7])
def test_inner_products_round_as_short_sums(length: int, kind: str, dtype: str) -> None:
    rng, generated = np.random.default_rng(4), generator(kind)
    rows = np.stack([VECTORS[name](length, rng) for name in ("equal", "ramp", "normal")]).astype(dtype)
    given = as_array(generated, np.stack([rows, rows[::-1]]), dtype)
    found = np.asarray(gaussian.inner_products(given, [given], generator_namespace(generated)), np.float64)
    products = rows.astype(np.float64)[:, None] * rows
    exact = np.array([[math.fsum(each) for each in row] for row in products])
    terms = min(length, 1024) + length // 1024 + 2  # an entry goes through at most so many roundings
    allowed = terms * np.finfo(dtype).eps / 2 * abs(products).sum(-1)
    assert (abs(found[0] - exact) <= allowed).all()
    assert (abs(found[1] - exact[::-1, ::-1]) <= allowed[::-1, ::-1]).all()


def test_a_single_sum_rounds_as_a_long_one() -> None:
    square = np.full(10**6, 0.1, np.float32) ** 2
    exact = math.fsum(square.astype(np.float64))
    one_after_the_other = float(np.add.accumulate(square)[-1])
    assert abs(one_after_the_other - exact) > (1024 + 1000) * np.finfo(np.float32).eps / 2 * exact


@pytest.mark.usefixtures("never_materialized")
def test_more_vectors_than_dimensions_know_the_matrix_and_cost_nothing_more() -> None:
    W, rng = DeferredGaussianMatrix(40, 30, stream(1, 0)), np.random.default_rng(2)
    met = meet_all(W, 20, rng)
    assert W.known == (40, 30)
    assert worst(*met) < 1e-12
    dense = W @ np.eye(30)
    v, u = rng.standard_normal(30), rng.standard_normal((40, 5))
    assert np.allclose(W @ v, dense @ v, atol=1e-12)
    assert np.allclose(W.T @ u, dense.T @ u, atol=1e-12)
    assert W.known == (40, 30)


def test_materialization_keeps_every_answer() -> None:
    W, rng = DeferredGaussianMatrix(40, 30, stream(1, 0), deviation=0.3), np.random.default_rng(2)
    met = meet_all(W, 8, rng)
    assert W.materialized
    assert W.nbytes == 8 * 40 * 30
    assert worst(*met) < 1e-12
    for v, image in zip(met[0], met[1], strict=True):
        assert np.allclose(W @ v, image, rtol=1e-9, atol=1e-9 * np.linalg.norm(v))
    wide = DeferredGaussianMatrix(1, 10**4, stream(0, 0))  # one answer is as long as the matrix
    assert wide.T @ np.ones(1) == pytest.approx(wide.T @ np.ones(1))
    wide @ np.ones(10**4)
    assert wide.materialized


def test_vectors_are_met_once() -> None:
    W, rng = DeferredGaussianMatrix(500, 400, stream(0, 0)), np.random.default_rng(0)
    v = rng.standard_normal((400, 3))
    answers = W @ v
    assert W.known == (0, 3)
    assert np.allclose(W @ (v @ [1.0, 2.0, -1e6]), answers @ [1.0, 2.0, -1e6], rtol=1e-10)
    assert not (W @ np.zeros(400)).any()
    assert W.known == (0, 3)
    assert not (DeferredGaussianMatrix(5, 4, stream(0, 0)) @ np.zeros((4, 2))).any()
    close = v[:, 0] + 1e-11 * rng.standard_normal(400)  # well above rounding: a direction of its own
    assert np.allclose(W @ close, answers[:, 0], atol=1e-8)
    assert W.known == (0, 4)


# The law: functions of adaptively revealed matrices (draws, rows, columns), against matrices drawn in advance.
SHAPE = (5, 4)


def dense(draws: int) -> Array:
    return np.random.default_rng(11).standard_normal((draws, *SHAPE))


def iterate(multiply: Callable[[Array], Array], transposed: Callable[[Array], Array], draws: int) -> Array:
    """Nonlinear power iteration with blocks and single vectors; half of the draws skip directions."""
    v = np.broadcast_to(np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 1.0]]), (draws, 4, 2)).copy()
    v[: draws // 2, :, 1] = 2 * v[: draws // 2, :, 0]  # dependent in these draws
    found = []
    for _ in range(3):
        u = multiply(v)
        found.append(np.stack([(u[:, :, 0] * u[:, :, 1]).sum(1), u[:, 0, 0], np.square(u).sum((1, 2))], axis=1))
        u = np.maximum(u, 0)  # some are zero, and zero in some draws only
        v = np.sin(transposed(u))
        found.append(np.stack([v[:, 0, 0] * v[:, 1, 1], v[:, 2, 0], np.abs(v).sum((1, 2))], axis=1))
    return np.concatenate(found, axis=1)


def iterates_of(W: DeferredGaussianMatrix[Any]) -> Array:
    return iterate(lambda v: W @ v, lambda u: W.T @ u, DRAWS)


@pytest.mark.usefixtures("never_materialized")
def test_adaptive_products_have_the_law_of_drawn_matrices() -> None:
    matrices = dense(DRAWS)
    theirs = iterate(lambda v: matrices @ v, lambda u: matrices.swapaxes(1, 2) @ u, DRAWS)
    ours = iterates_of(DeferredGaussianMatrix(*SHAPE, stream(3, 0), draws=DRAWS))
    for column in range(theirs.shape[1]):
        # exact zeros are zeros up to rounding
        assert same_law(ours[:, column].round(9), theirs[:, column].round(9)), column


@pytest.mark.usefixtures("never_materialized")
def test_a_matrix_that_forgets_its_left_side_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = dense(DRAWS)
    theirs = iterate(lambda v: matrices @ v, lambda u: matrices.swapaxes(1, 2) @ u, DRAWS)
    meet = DeferredGaussianMatrix._meet
    nothing = gaussian._Side()
    monkeypatch.setattr(
        DeferredGaussianMatrix,
        "_meet",
        lambda W, X, side, other, shape: meet(W, X, side, nothing if side is W._right else other, shape),
    )
    ours = iterates_of(DeferredGaussianMatrix(*SHAPE, stream(3, 0), draws=DRAWS))
    assert same_law(ours[:, 3].round(9), theirs[:, 3].round(9))  # before the left is met
    rejected = [c for c in range(6, 18) if not same_law(ours[:, c].round(9), theirs[:, c].round(9))]
    assert len(rejected) > 3


@pytest.mark.parametrize("finish", ["columns", "rows", "complete"])
@pytest.mark.usefixtures("never_materialized")
def test_a_matrix_revealed_in_full_has_independent_normal_entries(finish: str) -> None:
    W: DeferredGaussianMatrix[Any] = DeferredGaussianMatrix(*SHAPE, stream(4, 0), draws=DRAWS)
    v = W.T @ np.tanh(W @ np.array([1.0, 1.0, 0.0, -1.0]))[..., None]
    W @ np.cos(v)
    if finish == "columns":
        ours = W @ np.eye(4)
    elif finish == "rows":
        ours = (W.T @ np.eye(5)).swapaxes(1, 2)
    else:
        W.materialize()
        ours = W @ np.eye(4)
    theirs = dense(DRAWS)
    for a in range(5):
        for b in range(4):
            assert same_law(ours[:, a, b], theirs[:, a, b])
    values = [np.linalg.svd(each, compute_uv=False) for each in (ours, theirs)]
    for k in range(4):
        assert same_law(values[0][:, k], values[1][:, k])
    assert same_law(ours[:, 0, 0] * ours[:, 1, 1], theirs[:, 0, 0] * theirs[:, 1, 1])
    assert same_law(ours.sum((1, 2)), theirs.sum((1, 2)))
    assert not same_law(1.05 * values[0][:, 0], values[1][:, 0])


def meet(W: DeferredGaussianMatrix[Any], vectors: list[Array]) -> None:
    for v, u in zip(vectors[::2], vectors[1::2], strict=True):
        W @ v
        W.T @ u


def test_memory_is_as_promised_and_a_budget_is_kept() -> None:
    n, m, blocks = 20_000, 4, 12
    promised = matrix_bytes(n, n, m * blocks, m * blocks, at_once=m)
    W, rng = DeferredGaussianMatrix(n, n, stream(0, 0)), np.random.default_rng(0)
    vectors = [rng.standard_normal((n, m)) for _ in range(2 * blocks)]
    tracemalloc.start()
    meet(W, vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert W.nbytes == 8 * 4 * n * m * blocks
    assert W.nbytes < peak < promised
    poor = DeferredGaussianMatrix(n, n, stream(0, 0), memory="40MiB")
    with pytest.raises(finwidth.FinwidthError, match=r"20000 x 20000 that has met \d+ left.*memory is 40 MiB"):
        meet(poor, vectors)
    assert poor.known[0] > 2 * m


def test_memory_of_a_materialized_matrix_is_as_promised() -> None:
    n = 600
    W, rng = DeferredGaussianMatrix(n, n, stream(0, 0)), np.random.default_rng(0)
    vectors = [rng.standard_normal((n, 20)) for _ in range(40)]
    tracemalloc.start()
    for v in vectors:
        W @ v
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert W.materialized
    assert 8 * n * n < peak < matrix_bytes(n, n, 0, 800, at_once=20)


def test_a_seed_fixes_the_numbers() -> None:
    v = np.arange(6.0)
    one, same, other = (DeferredGaussianMatrix(5, 6, stream(seed, 0)) @ v for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.usefixtures("never_materialized")
def test_numbers_do_not_depend_on_signs_that_a_processor_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    block = rng.standard_normal((70, 4))
    blocks = [block[:, :3], block @ rng.standard_normal((4, 3)), np.stack([block[:, 3], -block[:, 3]], axis=1)]
    blocks[1][:, 2] = 0  # of rank 2; the last block has rank 1

    def answers() -> Array:
        W = DeferredGaussianMatrix(90, 70, stream(0, 0), draws=3)
        found = []
        for X in blocks:
            found.append(W @ X)
            found.append(W.T @ np.maximum(found[-1], 0))
        return np.concatenate([each.reshape(3, -1) for each in found], axis=1)

    usual = answers()
    eigh, svd = np.linalg.eigh, np.linalg.svd

    def other_eigh(A: Array) -> Any:
        values, vectors = eigh(A)
        return values, vectors * (-1.0) ** np.arange(vectors.shape[-1])

    def other_svd(A: Array, **options: Any) -> Any:
        u, lengths, shares = svd(A, **options)
        signs = -((-1.0) ** np.arange(u.shape[-1]))
        return u * signs, lengths, shares * signs[:, None]

    monkeypatch.setattr(np.linalg, "eigh", other_eigh)
    monkeypatch.setattr(np.linalg, "svd", other_svd)
    assert np.allclose(answers(), usual, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("never_materialized")
def test_thousands_of_vectors() -> None:
    n, rng = 2500, np.random.default_rng(0)
    W = DeferredGaussianMatrix(n, n, stream(0, 0))
    v, u = rng.standard_normal((n, 50)), rng.standard_normal((n, 50))
    kept: tuple[list[Array], ...] = ([], [], [], [])
    for step in range(90):
        wv, wu = W @ v, W.T @ u
        for place, each in zip(kept, (v, wv, u, wu), strict=True):
            place.append(each[:, :5])
        # a slow drift, as in training, and new directions
        v, u = v + 1e-3 * np.tanh(wu) / math.sqrt(n), u + 10.0 ** -(step % 12) * np.tanh(wv) / math.sqrt(n)
        v[:, :20], u[:, :20] = rng.standard_normal((n, 20)), rng.standard_normal((n, 20))
    assert min(W.known) > 2000
    assert worst(*kept) < 1e-12


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DeferredGaussianMatrix(0, 3, stream(0, 0)), "rows is 0"),
        (lambda: DeferredGaussianMatrix(3, 3, stream(0, 0), deviation=0.0), "deviation is 0.0"),
        (lambda: DeferredGaussianMatrix(3, 3, stream(0, 0), dtype="float16"), "dtype 'float16'"),
        (lambda: DeferredGaussianMatrix(3, 3, stream(0, 0), memory="4 potatoes"), "memory is '4 potatoes'"),
        (lambda: DeferredGaussianMatrix(3, 3, stream(0, 0), memory=-1), "memory is -1"),
        (lambda: DeferredGaussianMatrix(3, 2, stream(0, 0)) @ np.ones(3), r"shape \(3,\); give \(2,\) or \(2, k\)"),
        (lambda: DeferredGaussianMatrix(3, 2, stream(0, 0)).T @ np.ones((2, 1)), r"give \(3,\)"),
        (lambda: DeferredGaussianMatrix(3, 2, stream(0, 0), draws=4) @ np.ones((3, 2, 1)), "leading 4"),
        (lambda: DeferredGaussianMatrix(3, 2, stream(0, 0)) @ ["a", "b"], "not an array of numbers"),  # type: ignore[operator]
        (lambda: DeferredGaussianMatrix(3, 2, stream(0, 0)) @ np.array([1, math.nan]), "not finite"),
        (lambda: DeferredGaussianMatrix(3, 2, stream(0, 0)) @ np.array([1, math.inf]), "not finite"),
        (
            lambda: DeferredGaussianMatrix(10**6, 10**6, stream(0, 0), memory="1MB") @ np.ones(10**6),
            "needs up to .* MiB, and memory is 1000000 bytes",
        ),
    ],
)
def test_mistakes_are_told(call: Callable[[], object], words: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=words):
        call()
