"""Training of residual and normalised networks in law, against networks that hold their weights and autograd."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from finwidth import MLP, BalancedResNet, FinwidthError, Norm, ResNet, train
from finwidth.networks.description import Network
from finwidth.sampling.lazy_matrix.combination import Combination
from finwidth.sampling.training.first_step import sampled_first_step
from finwidth.sampling.training.networks import Networks, TrainedLayer
from finwidth.sampling.training.spec import training_bytes, training_spec
from stats import same_law

torch = pytest.importorskip("torch")
from autograd_networks import AutogradNetworks, autograd_training  # noqa: E402

Array = Any

X = np.array([[1.0, 2.0, 0.5], [0.5, -1.0, 1.0], [-1.0, 0.5, 2.0]])
TARGETS = np.array([[1.0, -1.0], [0.5, 2.0], [-0.5, 1.0]])
STEPS, LR, MOMENTUM = 3, 0.01, 0.5  # so small that no draw diverges

NETWORKS: dict[str, Network] = {
    "relu": ResNet([3, 7, 1], 2, 6),
    "tanh, random biases, two outputs": ResNet(
        [3, 5, 2], 2, 4, activation="tanh", skip=0.7, branch=0.8, bias_variance=[0.2, 0.3, 0.1, 0.1]
    ),
    "branches and skips cut": ResNet([3, 6, 1], 3, branch=[1, 0, 0.5], skip=[0.5, 1, 0], activation="gelu"),
    "balanced": BalancedResNet([3, 6, 2], 3, branch="1/sqrt(depth)", activation="tanh"),
    "no signs": BalancedResNet([3, 6, 1], 2, activation="gelu", signs=False),
    "rms": MLP([3, 6, 5, 1], norm="rms", parameterization="standard"),
    "layer after, trained": MLP([3, 6, 5, 2], norm=Norm("layer", "after", parameters="trained"), activation="gelu"),
    "rms, trained": MLP([3, 6, 6, 1], norm=Norm("rms", epsilon=0.01, parameters="trained"), activation="silu"),
    "pre-norm": ResNet([3, 6, 2], 2, 5, norm=Norm("layer", epsilon=0.1, parameters="trained"), activation="tanh"),
    "post-norm": ResNet([3, 6, 1], 2, 5, norm=Norm("rms", "after"), activation="gelu"),
}


def targets(net: Network) -> Array:
    y = TARGETS[:, : net.widths[-1]]
    return y if y.shape[1] > 1 else y[:, 0]


def run(net: Network, draws: int, **arguments: Any) -> dict[str, Array]:
    found = train(net, X, targets(net), STEPS, LR, draws, seed=5, momentum=MOMENTUM, **arguments)
    return {"K": found.K.to_numpy(), "output": found.output.to_numpy().reshape(draws, STEPS + 1, len(X), -1)}


def remember(patch: pytest.MonkeyPatch) -> list[tuple[Networks, list[Combination[Any]]]]:
    """The networks that `train` makes, with their initial matrices."""
    made = []

    def remembering(*given: Any) -> Networks:
        networks = Networks(*given)
        made.append((networks, [layer.weights.copy() for layer in networks.layers]))
        return networks

    patch.setattr("finwidth.sampling.training.train.Networks", remembering)
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_that_of_its_initial_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read off at the end, and trained as dense matrices by autograd, they give the same numbers."""
    net, draws = NETWORKS[name], 3
    made = remember(monkeypatch)
    biases: list[Array] = []
    monkeypatch.setattr(
        "finwidth.sampling.training.networks.TrainedLayer",
        lambda *given, **named: remembered(TrainedLayer(*given, **named), biases),
    )
    ours = run(net, draws)
    ((networks, initial),) = made
    W = [np.swapaxes(each.from_right(each.matrix.right(np.eye(each.matrix.shape[1])[None])), 1, 2) for each in initial]
    W[0] = W[0] @ np.linalg.qr(X.T)[0].T  # the first layer acts on coordinates of the inputs
    dense = AutogradNetworks(net)
    at, signs = dense.draw(draws, 0)
    names = dict.fromkeys(dense.layers, 1.0)
    for i, block in enumerate(getattr(net, "blocks", ())):
        names[f"W {i}"] = float(block.branch_squared) ** 0.5
        if not block.branch_squared:
            del names[f"W {i}"], names[f"V {i}"]
    for (place, factor), weight, bias in zip(names.items(), W, biases, strict=True):
        at[f"{place} weight"], at[f"{place} bias"] = (torch.tensor(each / factor) for each in (weight, bias[:, 0]))
    for place, drawn in zip(signs, networks.signs, strict=True):
        signs[place] = torch.tensor(drawn[:, 0])
    theirs = autograd_training(net, at, signs, X, targets(net), STEPS, LR, MOMENTUM)
    for each, values in theirs.items():
        assert ours[each] == pytest.approx(values, rel=1e-7, abs=1e-9), each
    wrong = autograd_training(net, at, signs, X, targets(net), STEPS, 1.05 * LR, MOMENTUM)
    assert ours["K"] != pytest.approx(wrong["K"], rel=1e-4)


def remembered(layer: Any, biases: list[Array]) -> Any:
    biases.append(layer.bias.value.copy())
    return layer


def assert_law(net: Network, draws: int) -> None:
    ours = run(net, draws)
    dense = AutogradNetworks(net)
    theirs = autograd_training(net, *dense.draw(draws, 4), X, targets(net), STEPS, LR, MOMENTUM)
    for each in (ours, theirs):
        each["change"] = each["K"][:, -1] - each["K"][:, 0]
        each["last"] = each["output"][:, -1] - each["output"][:, 0]
    for entry in ((0, 0), (0, 1), (1, 2)):
        assert same_law(ours["K"][:, -1, *entry].round(8), theirs["K"][:, -1, *entry].round(8))
        assert same_law(ours["change"][:, *entry].round(8), theirs["change"][:, *entry].round(8))
    assert same_law(ours["output"][:, -1, 0, -1].round(8), theirs["output"][:, -1, 0, -1].round(8))
    assert same_law(ours["last"][:, 1, 0].round(8), theirs["last"][:, 1, 0].round(8))


@pytest.mark.parametrize("name", ["relu", "pre-norm"])
def test_training_has_the_law_of_networks_that_hold_their_weights(name: str) -> None:
    assert_law(NETWORKS[name], 3000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_training_has_the_law_of_networks_to_higher_precision(name: str) -> None:
    assert_law(NETWORKS[name], 30_000)


def test_another_network_is_rejected() -> None:
    ours = run(NETWORKS["relu"], 3000)
    other = ResNet([3, 7, 1], 2, 6, skip=0.7)
    theirs = autograd_training(other, *AutogradNetworks(other).draw(3000, 4), X, targets(other), STEPS, LR, MOMENTUM)
    assert not same_law(ours["K"][:, -1, 0, 0], theirs["K"][:, -1, 0, 0])


@pytest.mark.parametrize("name", ["relu", "balanced", "pre-norm", "rms, trained"])
def test_the_first_step_at_one_input_is_a_step_of_training(name: str) -> None:
    """Of output 0; the same law as one step of `train`, whose kernel is the trace over the outputs."""
    net = NETWORKS[name]
    x, y, draws = X[0], TARGETS[0, : net.widths[-1]], 3000
    before, after = sampled_first_step(net, x, y, 0.1, draws, seed=2)
    dense = AutogradNetworks(net)
    at, signs = dense.draw(draws, 6)
    inputs, wanted = torch.tensor(x[None]), torch.tensor(y[None])

    def kernels(at: Any, signs: Any) -> Any:
        moves = dense.step(at, signs, inputs, wanted)
        moved = {name: value + 0.1 * moves[name] for name, value in at.items()}
        both = [dense.kernels(where, signs, inputs) for where in (at, moved)]
        return [(K_w + K_b)[0, 0, 0, 0] for K_w, K_b in both]

    theirs = [each.numpy() for each in torch.func.vmap(kernels)(at, signs)]
    assert same_law(before.round(8), theirs[0].round(8))
    assert same_law((after - before).round(8), (theirs[1] - theirs[0]).round(8))
    assert not same_law((after - before).round(8), (2 * (theirs[1] - theirs[0])).round(8))


@pytest.mark.parametrize(("n", "steps"), [(20_000, 5), (300, 25)], ids=["deferred", "materialized"])
@pytest.mark.parametrize("norm", [None, Norm("layer", parameters="trained")])
def test_memory_is_as_promised(n: int, steps: int, norm: Norm | None) -> None:
    net, inputs = ResNet([8, n, 1], 2, norm=norm, activation="gelu"), np.random.default_rng(0).standard_normal((4, 8))
    arguments: dict[str, Any] = {"X": inputs, "y": np.ones(4), "steps": steps, "lr": 0.001, "momentum": 0.9}
    promised = training_bytes(training_spec(net, **arguments))
    tracemalloc.start()
    train(net, **arguments, draws=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert promised / 2 < peak < promised


def test_mini_batches_probes_and_classes_are_served() -> None:
    net = ResNet([3, 30, 3], 2, norm="rms")
    found = train(net, X, [0, 1, 2], 4, 0.05, draws=2, seed=1, batch=2, probe=X[:1], loss="cross-entropy", centred=True)
    assert found.K.shape == (2, 5, 1, 1)
    assert np.isfinite(found.loss).all()


def test_vectors_that_cannot_be_normalised_are_refused() -> None:
    with pytest.raises(FinwidthError, match="the kernel at initialization overflows a double"):
        train(MLP([3, 5, 1], norm="rms", bias="none"), 1e-150 * X, TARGETS[:, 0], 2, 0.1, draws=1)
