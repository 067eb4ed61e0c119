"""Ensembles: the same kernels and the same training as networks one by one, and the exact law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import finwidth
from dense_training import dense_training
from finwidth import MLP
from stats import same_law, same_mean

torch = pytest.importorskip("torch")
nn = torch.nn
jacobian = pytest.importorskip("finwidth.empirical.reference.jacobian")
Ensemble = finwidth.empirical.Ensemble

X = np.random.default_rng(80).normal(size=(6, 3))
Y = np.sin(3 * X[:, :1])

NETWORKS = {
    "ntk": MLP([3, 8, 6, 2]),
    "standard, random biases": MLP([3, 8, 6, 2], parameterization="standard", bias_variance=0.5),
    "mup": MLP([3, 8, 6, 2], activation="leaky_relu", parameterization="mup"),
    "PyTorch": MLP.pytorch([3, 8, 6, 2], activation="gelu"),
    "frozen": MLP([3, 8, 6, 2], activation="abs", bias="frozen", bias_variance=1),
    "no biases": MLP([3, 8, 6, 2], activation="tanh", bias="none"),
    "one layer": MLP([3, 2]),
    "linear": MLP([3, 8, 6, 2], activation="linear", parameterization="mup"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small_cnn() -> Any:
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).double()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", ["1GiB", 1])
def test_kernels_are_those_of_the_members(name: str, memory: Any) -> None:
    ensemble = Ensemble(NETWORKS[name], 4, seed=1)
    for outputs in ("trace", 0, 1):
        K = ensemble.kernels(X, outputs, memory=memory)
        right = [jacobian.reference_ntk(ensemble.member(i), X, scale=ensemble.scale).numpy() for i in range(4)]
        for i in range(4):
            wanted = np.trace(right[i], axis1=2, axis2=3) if outputs == "trace" else right[i][:, :, outputs, outputs]
            assert np.allclose(K[i], wanted, rtol=1e-10, atol=1e-12)


def test_outputs_are_those_of_the_members() -> None:
    for make in (NETWORKS["mup"], small_cnn):
        ensemble = Ensemble(make, 3)
        x = torch.tensor(X)
        assert torch.allclose(ensemble.outputs(x), torch.stack([ensemble.member(i)(x) for i in range(3)]), rtol=1e-12)


def test_any_module_can_be_an_ensemble() -> None:
    ensemble = Ensemble(small_cnn, 3, seed=2)
    K = ensemble.kernels(X)
    for i in range(3):
        right = jacobian.reference_ntk(ensemble.member(i), X).diagonal(dim1=2, dim2=3).sum(-1)
        assert torch.allclose(K[i], right, rtol=1e-10)
    assert not torch.allclose(K[0], K[1])
    found = ensemble.train(X, np.hstack([Y, Y]), steps=3, lr=0.01)
    assert (found.loss[:, -1] < found.loss[:, 0]).all()


class ByMode(nn.Module):  # type: ignore[name-defined,misc]
    """A layer that is another function in training than in evaluation, and draws nothing."""

    def forward(self, x: Any) -> Any:
        return x.tanh() if self.training else 3 * x


def with_layer(layer: Any, *, training: bool) -> Any:
    """A function that makes modules with this layer in the middle, in this mode."""

    def make() -> Any:
        return nn.Sequential(nn.Linear(3, 4), layer(), nn.ReLU(), nn.Linear(4, 1)).double().train(training)

    return make


class FunctionalDropout(nn.Module):  # type: ignore[name-defined,misc]
    def forward(self, x: Any) -> Any:
        return nn.functional.dropout(x, 0.5, self.training)


class StochasticDepth(nn.Module):  # type: ignore[name-defined,misc]
    def forward(self, x: Any) -> Any:
        kept = torch.bernoulli(torch.full((len(x), 1), 0.5, dtype=x.dtype)) if self.training else 1.0
        return x * kept


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [ByMode, lambda: nn.LayerNorm(4), lambda: nn.Dropout(0.0)])
def test_members_are_in_the_mode_in_which_they_are_made(layer: Any, training: bool) -> None:
    ensemble = Ensemble(with_layer(layer, training=training), 2)
    x, K = torch.tensor(X), ensemble.kernels(X)
    for i in range(2):
        module = ensemble.member(i)
        assert module.training == training
        assert torch.allclose(ensemble.outputs(X)[i], module(x), rtol=1e-12)
        assert torch.allclose(K[i], jacobian.reference_ntk(module, X)[:, :, 0, 0], rtol=1e-10)


def test_a_mode_that_makes_a_difference_makes_one() -> None:
    one, other = (Ensemble(with_layer(ByMode, training=training), 2).kernels(X) for training in (True, False))
    assert not torch.allclose(one, other, rtol=0.1)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: nn.BatchNorm1d(4), "a BatchNorm1d, is in training mode"),
        (lambda: nn.Dropout(0.1), "a Dropout, is active"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "a BatchNorm1d, is in training mode"),
        (lambda: nn.Sequential(nn.Identity(), nn.AlphaDropout(0.2)), "'1.1', a AlphaDropout, is active"),
    ],
)
def test_what_is_no_function_in_training_is_refused(layer: Any, words: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=f"{words}.*return module.eval"):
        Ensemble(with_layer(layer, training=True), 2)


@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm1d(4), lambda: nn.Dropout(0.1), FunctionalDropout])
def test_and_taken_in_eval_mode(layer: Any) -> None:
    ensemble = Ensemble(with_layer(layer, training=False), 2)
    for i, K in enumerate(ensemble.kernels(X)):
        assert torch.allclose(K, jacobian.reference_ntk(ensemble.member(i), X)[:, :, 0, 0], rtol=1e-10)


@pytest.mark.parametrize("layer", [FunctionalDropout, StochasticDepth])
def test_random_numbers_in_a_forward_pass_are_told(layer: Any) -> None:
    ensemble = Ensemble(with_layer(layer, training=True), 2)
    calls: list[Any] = [lambda: ensemble.outputs(X), lambda: ensemble.train(X, Y, 1, 0.01)]
    for call in calls:
        with pytest.raises(finwidth.FinwidthError, match=r"draw random numbers .* return module\.eval"):
            call()


def test_buffers_stay_as_they_are_made() -> None:
    """Of a normalisation that keeps running statistics and of a counter, in training mode."""

    class Counting(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return x

    def make() -> Any:
        return nn.Sequential(
            nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 1), nn.InstanceNorm1d(2, track_running_stats=True), Counting(),
            nn.Flatten(), nn.Tanh(), nn.Linear(6, 1),
        ).double()  # fmt: skip

    ensemble = Ensemble(make, 2)
    before = {name: each.clone() for name, each in ensemble._buffers.items()}
    assert len(before) == 4
    first = ensemble.outputs(X)
    ensemble.train(X, Y, 2, 1e-4, record=1)
    assert all(torch.equal(each, before[name]) for name, each in ensemble._buffers.items())
    assert torch.allclose(first, Ensemble(make, 2).outputs(X), rtol=1e-12)


def one_by_one(module: Any, scale: dict[str, float], targets: Any, steps: int, lr: float) -> Any:
    """Losses before each step, by torch's optimizer, and the module after."""
    groups = [
        {"params": [p], "lr": lr * scale.get(name, 1.0)} for name, p in module.named_parameters() if p.requires_grad
    ]
    optimizer, losses = torch.optim.SGD(groups), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(torch.tensor(X)) - torch.tensor(targets)).square().sum() / 2
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("name", ["standard, random biases", "mup"])
@pytest.mark.parametrize("centred", [True, False])
def test_training_is_that_of_networks_that_hold_their_weights(name: str, centred: bool) -> None:
    net, targets, record = NETWORKS[name], np.hstack([Y, np.cos(Y)]), range(6)
    ensemble = Ensemble(net, 3, seed=5)
    parameters = {name: each.detach().numpy().copy() for name, each in ensemble.parameters.items()}
    start = tuple([parameters[f"{i}.{kind}"] for i in (0, 2, 4)] for kind in ("weight", "bias"))
    found = ensemble.train(X, targets, steps=5, lr=0.02, record=1, centred=centred)

    def dense(centred: bool) -> Any:
        rng = np.random.default_rng(0)
        return dense_training(net, X, targets, 5, 0.02, 3, rng, record, start=start, centred=centred)  # type: ignore[arg-type]

    theirs = dense(centred)
    assert found.loss.to_numpy() == pytest.approx(theirs["loss"], rel=1e-10)
    assert found.diagonal.to_numpy() == pytest.approx(np.diagonal(theirs["K"], axis1=2, axis2=3), rel=1e-9)
    assert found.loss.to_numpy() != pytest.approx(dense(not centred)["loss"], rel=0.1)
    if centred:
        assert found.loss[:, 0].to_numpy() == pytest.approx([np.square(targets).sum() / 2] * 3)


@pytest.mark.parametrize("name", [*NETWORKS, "cnn"])
def test_training_is_that_of_the_members(name: str) -> None:
    targets = np.hstack([Y, -Y])
    net = NETWORKS.get(name, small_cnn)
    ensemble, lr = Ensemble(net, 3, seed=3), [0.001, 0.004, 0.007]
    singles = [ensemble.member(i) for i in range(3)]
    initial = ensemble.kernels(X)
    found = ensemble.train(X, targets, steps=7, lr=lr, record=1)
    for i, module in enumerate(singles):
        losses = one_by_one(module, ensemble.scale, targets, 7, lr[i])
        assert np.allclose(found.loss[i, :-1], losses, rtol=1e-10)
        for one, other in zip(module.parameters(), ensemble.member(i).parameters(), strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    K = ensemble.kernels(X)
    drift = torch.linalg.matrix_norm(K - initial) / torch.linalg.matrix_norm(initial)
    assert np.allclose(found.drift[:, -1], drift, rtol=1e-10)
    assert np.allclose(found.diagonal[:, -1], K.diagonal(dim1=1, dim2=2), rtol=1e-10)
    spread = found.diagonal.std("draw", ddof=1) / found.diagonal.mean("draw")
    assert np.allclose(found.cv, spread.mean("input"))


def test_ensembles_and_trackers_see_the_same() -> None:
    ensemble = Ensemble(MLP([3, 8, 1]), 2, seed=4)
    module = ensemble.member(1)
    probe, targets = X[:4], Y[:4, 0]
    tracker = finwidth.empirical.Tracker(module, probe, targets, scale=ensemble.scale)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for _ in range(12):
        optimizer.zero_grad()
        ((module(torch.tensor(X)) - torch.tensor(Y)).square().sum() / 2).backward()
        optimizer.step()
        tracker.step()
    found = ensemble.train(X, Y, 12, 0.01, probe=probe, probe_targets=targets)
    recorded = tracker.dataset()
    assert found.step.to_numpy().tolist() == recorded.step.to_numpy().tolist()
    for name in recorded:
        if name != "loss":
            assert np.allclose(found[name].isel(draw=1), recorded[name], rtol=1e-8, atol=1e-10), name


def test_the_law_is_the_exact_one() -> None:
    """Mean of K and K^2, and the joint law of outputs and off-diagonal entries, of 20,000 fresh networks."""
    net = MLP([3, 6, 5, 1])
    ensemble = Ensemble(net, 20_000, seed=5)
    exact = finwidth.moments(net, X[0], order=4)
    K = ensemble.kernels(X[:2]).numpy()
    assert same_mean(K[:, 0, 0], float(exact.mean), float(exact.variance))
    assert same_mean(K[:, 0, 0] ** 2, float(exact.raw[1]), float(exact.raw[3]) - float(exact.raw[1]) ** 2)
    assert not same_mean(K[:, 0, 0], 1.3 * float(exact.mean), float(exact.variance))
    drawn = finwidth.sample_gram(net, X[:2], 20_000, seed=6)
    assert same_law(K[:, 0, 1], drawn.K[:, 0, 1].to_numpy())
    output = ensemble.outputs(X[:2]).detach().numpy()[:, :, 0]
    assert same_law(output[:, 0] * output[:, 1], drawn.output.prod("input").to_numpy())
    wider = finwidth.sample_gram(MLP([3, 6, 9, 1]), X[:2], 20_000, seed=6)
    assert not same_law(K[:, 0, 0], wider.K[:, 0, 0].to_numpy())


def test_members_are_modules_of_the_network() -> None:
    seeds = np.random.SeedSequence(7).spawn(3)
    for net in NETWORKS.values():
        ensemble = Ensemble(net, 3, seed=7)
        for i, seed in enumerate(seeds):
            module = finwidth.empirical.MLP(net, np.random.default_rng(seed))
            for name, each in module.named_parameters():
                assert torch.equal(ensemble.parameters[name][i], each)
                assert ensemble.parameters[name].requires_grad == each.requires_grad


def test_members_do_not_depend_on_their_number() -> None:
    for make in (NETWORKS["ntk"], small_cnn):
        few, many = Ensemble(make, 2, seed=7), Ensemble(make, 5, seed=7)
        other = Ensemble(make, 2, seed=8)
        for name, each in few.parameters.items():
            assert torch.equal(each, many.parameters[name][:2])
        weights = [name for name in few.parameters if name.endswith("weight")]
        assert not any(torch.equal(few.parameters[name], other.parameters[name]) for name in weights)


def test_provenance() -> None:
    found = Ensemble(NETWORKS["ntk"], 2, seed=9).train(X, np.hstack([Y, Y]), 2, 0.01)
    assert found.attrs["seed"] == 9
    assert found.attrs["lr"] == 0.01
    assert "ntk" in found.attrs["network"]
    assert Ensemble(small_cnn, 2).train(X, np.hstack([Y, Y]), 2, 0.01).attrs["module"] == "Sequential"


def nets(draws: int = 2, net: Any = NETWORKS["ntk"]) -> Any:
    return Ensemble(net, draws)


MISTAKES: dict[str, Any] = {
    "draws is 0": lambda: nets(0),
    "seed is -1": lambda: Ensemble(NETWORKS["ntk"], 2, seed=-1),
    "made a int": lambda: nets(net=lambda: 3),
    "outputs is 'full'": lambda: nets().kernels(X, "full"),
    "outputs is 2, and the networks have 2": lambda: nets().kernels(X, 2),
    r"targets have shape \(6, 1\)": lambda: nets().train(X, Y, 2, 0.1),
    "steps is 0": lambda: nets().train(X, np.hstack([Y, Y]), 0, 0.1),
    "lr is -1": lambda: nets().train(X, np.hstack([Y, Y]), 2, -1),
    r"lr is \[0.1\]": lambda: nets().train(X, np.hstack([Y, Y]), 2, [0.1]),
    "diverge before step": lambda: nets().train(X, np.hstack([Y, Y]), 200, 10.0),
    "both of probe and probe_targets": lambda: nets().train(X, np.hstack([Y, Y]), 2, 0.1, probe=X),
    "memory is 'some'": lambda: nets().kernels(X, memory="some"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_told(words: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=words):
        MISTAKES[words]()
