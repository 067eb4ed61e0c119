"""Observables of a kernel: their definitions by plain loops, their edges, and one number by every route."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import linalg, stats

import finwidth
from finwidth import MLP, FinwidthError, observables
from finwidth.observables import observe, target_gram

Array = Any
AS_THE_KERNEL = {"trace", "eigenvalues", "diagonal"}  # grow like it; the others do not depend on its size


def kernels(seed: int, members: int = 3, N: int = 5) -> Array:
    J = np.random.default_rng(seed).normal(size=(members, N, 7))
    return J @ J.swapaxes(1, 2)


def plainly(K: Array, K_0: Array, G: Array) -> dict[str, float]:
    """Of one kernel, by SciPy and loops."""

    def dot(A: Array, B: Array) -> float:
        return sum(float(a) * float(b) for a, b in zip(A.ravel(), B.ravel(), strict=True))

    def angle(A: Array, B: Array) -> float:
        return dot(A, B) / math.sqrt(dot(A, A) * dot(B, B))

    H = np.eye(len(K)) - 1 / len(K)
    values = linalg.eigvalsh(K)
    return {
        "drift": math.sqrt(dot(K - K_0, K - K_0) / dot(K_0, K_0)),
        "rotation": 1 - angle(K, K_0),
        "alignment": angle(K, G),
        "centred_alignment": angle(H @ K @ H, H @ G @ H),
        "trace": sum(K[i, i] for i in range(len(K))),
        "effective_rank": float(np.exp(stats.entropy(values))),
    }


@pytest.mark.parametrize(
    ("targets", "outputs"),
    [([1.0, -1.0, 1.0, 0.5, 2.0], 1), ([0, 2, 1, 2, 0], 3), (np.arange(10.0).reshape(5, 2), 2), ([3, -1, 3, 7, 7], 4)],
)
def test_definitions(targets: Any, outputs: int) -> None:
    K, K_0, G = kernels(0), kernels(1), target_gram(targets, 5, outputs)
    found = observe(K, K_0, G)
    for member in range(3):
        for name, value in plainly(K[member], K_0[member], G).items():
            assert found[name][member] == pytest.approx(value, rel=1e-12), name
    assert set(found) | {"K", "initial_K", "cv"} == set(observables.OBSERVABLES)


def test_what_targets_are() -> None:
    """Whole numbers beside several outputs are classes: by any integer type, as a column too; nothing else is."""
    one_hot = np.eye(3)[[0, 2, 1, 2]]
    for classes in ([0, 2, 1, 2], np.array([0, 2, 1, 2], np.uint8), np.array([[0], [2], [1], [2]]), [5, -1, 9, -1]):
        assert observables.targets_are(classes, 3) == "classes"
        assert np.array_equal(target_gram(classes, 4, 3), one_hot @ one_hot.T)
    assert np.array_equal(target_gram([True, False, True], 3, 2), target_gram([1, 0, 1], 3, 2))
    numbers: list[tuple[Any, int]] = [([0, 2, 1, 2], 1), ([0.0, 2.0, 1.0, 2.0], 3), (np.eye(4, dtype=int), 4)]
    for targets, outputs in numbers:
        Y = np.asarray(targets, float).reshape(4, -1)
        assert observables.targets_are(targets, outputs) == "numbers"
        assert np.array_equal(target_gram(targets, 4, outputs), Y @ Y.T)
    assert np.array_equal(target_gram([1, -1], 2, 1), target_gram([1.0, -1.0], 2, 1))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-40, 1e40, 1e160, 1e300])
def test_size_of_the_kernel_does_not_matter(scale: float) -> None:
    """Squares and fourth powers of the entries leave the range of doubles; the observables do not."""
    K, K_0, G = kernels(2), kernels(3), target_gram([1.0, -1.0, 1.0, 0.5, 2.0], 5, 1)
    found, right = observe(scale * K, scale * K_0, G), observe(K, K_0, G)
    for name, values in right.items():
        factor = scale if name in AS_THE_KERNEL else 1
        assert np.allclose(found[name] / factor, values, rtol=1e-11), name


def test_a_small_rotation_keeps_its_digits() -> None:
    """1 - cos of an angle of 1e-9 is 5e-19, which 1 - <K, K_0> rounds to 0."""
    angle = 1e-9
    K_0, K = np.diag([1.0, 0.0]), np.diag([np.cos(angle), np.sin(angle)])
    assert float(observables.rotation(K, K_0)) == pytest.approx(angle**2 / 2, rel=1e-6)
    assert 1 - np.cos(angle) == 0


def test_dead_networks_have_no_value_and_the_others_have_theirs() -> None:
    G = target_gram([1.0, -1.0, 1.0, 0.5, 2.0], 5, 1)
    K, K_0 = kernels(4), kernels(5)
    right = observe(K, K_0, G)
    K[1] = K_0[1] = 0
    found = observe(K, K_0, G)
    for name, values in found.items():
        assert np.array_equal(values[[0, 2]], right[name][[0, 2]]), name
        if name in AS_THE_KERNEL:
            assert not values[1].any()
        else:
            assert np.isnan(values[1]).all()


@pytest.mark.parametrize("constant", [1.0, 0.1, 1 / 3, 1e-200, 7e150])
def test_a_constant_kernel_has_no_centred_alignment(constant: float) -> None:
    """As of a network whose output bias alone is alive: what rounding leaves of HKH is not a direction."""
    G = target_gram(np.random.default_rng(6).normal(size=9), 9, 1)
    found = observe(np.full((9, 9), constant), np.full((9, 9), constant), G)
    assert np.isnan(found["centred_alignment"])
    assert float(found["effective_rank"]) == pytest.approx(1)
    with pytest.raises(FinwidthError, match="all equal"):
        observables.check_varied(target_gram(np.full(9, constant), 9, 1))


def test_spread_is_over_inputs_that_have_one() -> None:
    diagonals = np.array([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0], [2.0, 0.0, 5.0]])
    alive = diagonals[:, [0, 2]]
    assert float(observables.spread(diagonals)) == pytest.approx((alive.std(0, ddof=1) / alive.mean(0)).mean())
    assert np.isnan(observables.spread(np.zeros((3, 2))))


# One number by every route


def tracked(net: MLP, targets: Any, loss: Callable[..., Any]) -> Any:
    """What a tracker saw of a module that torch trained for three steps, with its kernels."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    module = finwidth.empirical.MLP(net, seed=3)
    optimizer = torch.optim.SGD(module.parameter_groups(lr=0.02))
    tracker = finwidth.empirical.Tracker(module, X, targets, record=1, scale=module.scale, kernels=True)
    for _ in range(3):
        optimizer.zero_grad()
        loss(module(torch.as_tensor(X))).backward()
        optimizer.step()
        tracker.step()
    return tracker.dataset()


def same_numbers(run: Any, G: Array) -> None:
    """What a dataset holds is what one function says of the kernels that it holds."""
    K = run.K.to_numpy()
    found = observe(K, K[..., :1, :, :], G)
    for name, values in found.items():
        assert np.allclose(run[name], values, rtol=1e-10, atol=1e-13, equal_nan=True), name
        assert run[name].attrs == observables.OBSERVABLES[name].attrs


X = np.random.default_rng(7).normal(size=(6, 3))
CASES: dict[str, tuple[int, Any, str, str]] = {
    "classes": (3, np.array([0, 2, 1, 2, 0, 0]), "cross-entropy", "classes"),
    "signs as whole numbers": (1, np.array([1, -1, 1, 1, -1, -1]), "squared", "numbers"),
    "whole numbers": (1, np.array([0, 2, 1, 2, 0, 5]), "squared", "numbers"),
    "numbers": (1, np.sin(3 * X[:, 0]), "squared", "numbers"),
    "one-hot numbers": (3, np.eye(3)[[0, 2, 1, 2, 0, 0]], "squared", "numbers"),
}


@pytest.mark.parametrize("name", CASES)
def test_train_and_tracker_give_one_number(name: str) -> None:
    """Of one kernel: that which `train` recorded is given to the tracker's module as its own."""
    torch = pytest.importorskip("torch")
    outputs, targets, loss, kind = CASES[name]
    net = MLP([3, 8, outputs])
    run = finwidth.train(net, X, targets, 3, 0.02, draws=4, loss=loss)
    Y = np.eye(3)[targets] if kind == "classes" else np.asarray(targets, float).reshape(6, -1)
    assert run.attrs["targets_are"] == kind
    same_numbers(run, Y @ Y.T)

    def of_torch(output: Any) -> Any:
        if loss == "squared":
            return (output - torch.as_tensor(Y)).square().sum() / 2
        return torch.nn.functional.cross_entropy(output, torch.as_tensor(targets), reduction="sum")

    tracker = tracked(net, targets, of_torch)
    assert tracker.attrs["targets_are"] == kind
    same_numbers(tracker, Y @ Y.T)
    K = run.K.to_numpy()[0]
    G = target_gram(targets, 6, outputs)
    assert np.allclose(observe(K, K[:1], G)["alignment"], run.alignment[0], rtol=1e-12)  # the tracker's own function


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][2] == "squared"])
def test_ensembles_give_the_number_of_the_tracker(name: str) -> None:
    pytest.importorskip("torch")
    outputs, targets, _, kind = CASES[name]
    ensemble = finwidth.empirical.Ensemble(MLP([3, 8, outputs]), 2, seed=3)
    K = ensemble.kernels(X).numpy()
    found = ensemble.train(X, targets, 2, 0.02, record=1)
    assert found.attrs["targets_are"] == kind
    right = observe(K, K, target_gram(targets, 6, outputs))
    tracker = finwidth.empirical.Tracker(
        finwidth.empirical.Ensemble(MLP([3, 8, outputs]), 2, seed=3).member(1), X, targets, scale=ensemble.scale
    ).dataset()
    for observable, values in right.items():
        assert np.allclose(found[observable].isel(step=0), values, rtol=1e-9, atol=1e-13), observable
        assert np.allclose(tracker[observable].isel(step=0), values[1], rtol=1e-9, atol=1e-13), observable


def test_classes_of_a_probe_set() -> None:
    pytest.importorskip("torch")
    classes = [0, 1, 1, 0]
    found = [
        finwidth.empirical.Ensemble(MLP([3, 8, 2]), 2).train(
            X, np.eye(2)[[0, 1, 0, 1, 1, 0]], 1, 0.02, probe=X[:4], probe_targets=targets
        )
        for targets in (classes, np.eye(2)[classes])
    ]
    assert [each.attrs["targets_are"] for each in found] == ["classes", "numbers"]
    assert np.array_equal(found[0].alignment, found[1].alignment)


def test_dead_networks_in_every_route() -> None:
    """Networks of width 1 without biases: half of them are dead on these inputs."""
    pytest.importorskip("torch")
    net, inputs = MLP([2, 1, 1, 1], bias="none"), np.array([[1.0, 2.0], [2.0, 1.0]])
    run = finwidth.train(net, inputs, [1.0, -1.0], 1, 1e-6, draws=40)
    found = finwidth.empirical.Ensemble(net, 40).train(inputs, [1.0, -1.0], 1, 1e-6)
    for each in (run, found):
        dead = each.trace[:, 0].to_numpy() == 0
        assert 5 < dead.sum() < 39
        for name in ("drift", "rotation", "alignment", "centred_alignment", "effective_rank"):
            assert np.isnan(each[name][dead]).all()
            if name != "centred_alignment":  # of parallel features there may be none
                assert np.isfinite(each[name][~dead]).all()
