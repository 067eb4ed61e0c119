"""Training in law: against networks that hold their weights, the kernel's first change, and the infinite width."""

from __future__ import annotations

import functools
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import finwidth
from dense_training import dense_training
from finwidth import MLP, FinwidthError, sample_gram, train
from finwidth.empirical.reference.brute_force import draw_networks
from finwidth.sampling.lazy_matrix import gaussian
from finwidth.sampling.lazy_matrix.combination import Combination
from finwidth.sampling.lazy_matrix.gaussian import DeferredGaussianMatrix
from finwidth.sampling.training.losses import LOSSES
from finwidth.sampling.training.networks import Networks
from finwidth.sampling.training.spec import training_bytes, training_spec
from finwidth.sampling.training.train import default_rate, mean_trajectory
from stats import same_law

Array = Any
Drawn = dict[str, Array]

X = np.array([[1.0, 2.0, 0.5], [0.5, -1.0, 1.0]])
Y = np.array([1.0, -0.5])
MORE = np.array([[1.0, 2.0, 0.5], [0.5, -1.0, 1.0], [-1.0, 0.3, 0.3]])
PROBE = np.array([[1.0, 1.0, 1.0], [0.0, -1.0, 2.0]])
STEPS = (0, 1, 2, 5, 20)
DRAWS = 10_000

RUNS: dict[str, tuple[MLP, dict[str, Any]]] = {
    "relu": (MLP([3, 8, 7, 1]), {"X": X, "y": Y, "lr": 0.03}),
    "gelu, momentum": (
        MLP([3, 7, 8, 1], activation="gelu"),
        {"X": X, "y": Y, "lr": 0.01, "momentum": 0.8},
    ),
    "relu, mini-batches, probe": (
        MLP([3, 6, 6, 6, 1]),
        {"X": MORE, "y": [1.0, -0.5, 0.3], "lr": 0.02, "batch": 2, "probe": PROBE},
    ),
    "gelu, mini-batches, momentum, random biases": (
        MLP([3, 7, 6, 1], activation="gelu", bias_variance=[0.3, 0.1, 0.2]),
        {"X": MORE, "y": [1.0, -0.5, 0.3], "lr": 0.01, "batch": 2, "momentum": 0.5},
    ),
    "tanh, classes, standard": (
        MLP([3, 6, 5, 3], activation="tanh", parameterization="standard", bias_variance=0.1),
        {"X": MORE, "y": np.array([0, 2, 1]), "lr": 0.1, "loss": "cross-entropy"},
    ),
    "several outputs, probe, mup, no biases": (
        MLP([3, 8, 7, 2], activation="gelu", parameterization="mup", bias="none"),
        {"X": X, "y": [[1.0, 0.0], [0.5, -1.0]], "lr": 0.02, "probe": PROBE, "momentum": 0.3},
    ),
    "centred, mini-batches, probe": (
        MLP([3, 6, 6, 1], activation="gelu"),
        {"X": MORE, "y": [1.0, -0.5, 0.3], "lr": 0.03, "batch": 2, "probe": PROBE, "centred": True},
    ),
    "frozen random biases, more inputs than neurons": (
        MLP([3, 2, 2, 1], activation="erf", bias="frozen", bias_variance=0.2),
        {"X": MORE, "y": [1.0, -0.5, 0.3], "lr": 0.05},
    ),
}


def test_every_loss_has_a_run() -> None:
    assert {arguments.get("loss", "squared") for _, arguments in RUNS.values()} == LOSSES.keys()


# Kernel entries, outputs, losses and their changes at every recorded step; how they depend on each other at the last.
VIEWS: dict[str, Callable[[Drawn], Array]] = {
    "loss": lambda d: d["loss"],
    "output": lambda d: d["output"][..., 0, 0],
    "K 01": lambda d: d["K"][..., 0, 1],
    "change of K 00": lambda d: d["K"][:, 1:, 0, 0] - d["K"][:, :1, 0, 0],
    "ratio of losses": lambda d: d["loss"][:, 1:] / d["loss"][:, :1],
    "determinant": lambda d: np.linalg.det(d["K"][:, -1:]),
    "output against kernel": lambda d: d["output"][:, -1:, 0, 0] ** 2 / (1e-9 + d["K"][:, -1:, 0, 0]),
    "change of K 01": lambda d: d["K"][:, -1:, 0, 1] / d["K"][:, :1, 0, 0] - d["K"][:, :1, 0, 1] / d["K"][:, :1, 0, 0],
    "probe output": lambda d: d["probe_output"][:, -1:, -1, -1],
}


def in_law(name: str, draws: int = DRAWS, seed: int = 5) -> Drawn:
    net, arguments = RUNS[name]
    run = train(net, steps=STEPS[-1], draws=draws, seed=seed, record=STEPS, **arguments)
    found = {"loss": run.loss.to_numpy(), "K": run.K.to_numpy()}
    for each in ("output", "probe_output"):
        values = run.get(each, run.output).to_numpy()
        found[each] = values[..., None] if net.widths[-1] == 1 else values
    return found


@functools.cache
def drawn_weights(name: str, draws: int = DRAWS) -> Drawn:
    net, arguments = RUNS[name]
    rest = {key: value for key, value in arguments.items() if key not in {"X", "y", "lr"}}
    X, y, lr = arguments["X"], np.asarray(arguments["y"]), arguments["lr"]
    return dense_training(net, X, y, STEPS[-1], lr, draws, np.random.default_rng(9), STEPS, **rest)


def views(d: Drawn) -> dict[str, Array]:
    """Every view at every recorded step, shape (draws, steps); rounding apart, equal numbers are equal."""
    return {name: view(d).round(8) for name, view in VIEWS.items()}


WHOLE = ["relu", "gelu, mini-batches, momentum, random biases"]


@pytest.mark.parametrize(("name", "whole"), [*((name, False) for name in RUNS), *((name, True) for name in WHOLE)])
def test_training_has_the_law_of_networks_that_hold_their_weights(
    name: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every product conditioned on all earlier ones to the last step, or with matrices materialized on the way."""
    if not whole:
        monkeypatch.setattr(DeferredGaussianMatrix, "materialize_if_smaller", lambda self: None)
    ours, theirs = views(in_law(name)), views(drawn_weights(name))
    for view, values in ours.items():
        for place in range(values.shape[1]):
            assert same_law(values[:, place], theirs[view][:, place]), (view, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_training_has_the_law_of_networks_to_higher_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeferredGaussianMatrix, "materialize_if_smaller", lambda self: None)
    ours, theirs = views(in_law(name, 60_000)), views(drawn_weights(name, 60_000))
    for view, values in ours.items():
        for place in range(values.shape[1]):
            assert same_law(values[:, place], theirs[view][:, place]), (view, place)


FULL_BATCH = [name for name, (_, arguments) in RUNS.items() if "batch" not in arguments]


def with_weights(name: str, centred: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Drawn, Any]:
    """A run of few draws, the same of networks that hold its initial weights, and how these are trained."""
    made: list[tuple[Networks, list[Combination[Any]], list[Array]]] = []

    def remembering(*given: Any) -> Networks:
        networks = Networks(*given)
        made.append(
            (networks, [each.weights.copy() for each in networks.layers], [b.bias.value for b in networks.layers])
        )
        return networks

    monkeypatch.setattr("finwidth.sampling.training.train.Networks", remembering)
    net, arguments = RUNS[name]
    run = train(net, steps=STEPS[-1], draws=4, seed=5, record=STEPS, centred=centred, **arguments)
    ((_, initial, biases),) = made
    W = [np.swapaxes(each.from_right(each.matrix.right(np.eye(each.matrix.shape[1])[None])), 1, 2) for each in initial]
    inputs = np.concatenate([arguments["X"], arguments.get("probe", np.zeros((0, 3)))])
    W[0] = W[0] @ np.linalg.qr(inputs.T)[0].T  # the first layer acts on coordinates of the inputs
    rest = {key: value for key, value in arguments.items() if key not in {"X", "y", "lr"}}
    X, y, lr = arguments["X"], np.asarray(arguments["y"]), arguments["lr"]

    def dense(centred: bool) -> Drawn:
        start = (W, [each[:, 0] for each in biases])
        rng = np.random.default_rng(0)
        return dense_training(net, X, y, STEPS[-1], lr, 4, rng, STEPS, start=start, centred=centred, **rest)

    return run, dense(centred), dense


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", FULL_BATCH)
def test_training_is_that_of_its_initial_weights(name: str, centred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read off at the end, and trained as dense matrices, they give the same numbers."""
    run, theirs, dense = with_weights(name, centred, monkeypatch)
    for each in ("loss", "output", "K"):
        ours = run[each].to_numpy()
        assert ours == pytest.approx(theirs[each].reshape(ours.shape), rel=1e-8, abs=1e-10), each
    if "probe_output" in run:
        ours = run.probe_output.to_numpy()
        assert ours == pytest.approx(theirs["probe_output"].reshape(ours.shape), rel=1e-8, abs=1e-10)
    if centred:
        assert not run.output[:, 0].any()
        assert run.attrs["outputs_are"] == "N(x) - N_0(x), centred"
    wrong = dense(not centred)
    for each in ("loss", "output"):
        assert run[each].to_numpy() != pytest.approx(wrong[each].reshape(run[each].shape), rel=1e-2), each
    assert run.K.to_numpy()[:, 0] == pytest.approx(wrong["K"][:, 0])  # the kernel is the same function of the weights
    assert run.K.to_numpy()[:, -1] != pytest.approx(wrong["K"][:, -1], rel=1e-3)


def test_uncentred_training_is_rejected() -> None:
    """Against centred networks that hold their weights, in mini-batches and at a probe."""
    name = "centred, mini-batches, probe"
    net, arguments = RUNS[name]
    run = train(net, steps=STEPS[-1], draws=DRAWS, seed=5, record=STEPS, **{**arguments, "centred": False})
    theirs = drawn_weights(name)
    for place in range(1, len(STEPS)):
        assert not same_law(run.loss.to_numpy()[:, place], theirs["loss"][:, place])
    assert not same_law(run.probe_output.to_numpy()[:, -1, 0], theirs["probe_output"][:, -1, 0, 0])


def forget(side: str) -> Callable[..., Array]:
    """Meet vectors as if none were known on the other side: `right` forgets the left, `left` the right."""
    meet, nothing = DeferredGaussianMatrix._meet, gaussian._Side()

    def forgetful(W: DeferredGaussianMatrix[Any], X: Array, met: Any, other: Any, shape: tuple[int, int]) -> Array:
        forgotten = met is (W._right if side == "right" else W._left)
        return meet(W, X, met, nothing if forgotten else other, shape)

    return forgetful


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_forgotten_conditioning_is_rejected(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeferredGaussianMatrix, "materialize_if_smaller", lambda self: None)
    monkeypatch.setattr(DeferredGaussianMatrix, "_meet", forget(side))
    name = "gelu, momentum"
    ours, theirs = views(in_law(name)), views(drawn_weights(name))
    assert same_law(ours["output"][:, 0], theirs["output"][:, 0])  # the first forward pass knows nothing yet
    for place in (0, 3):
        assert not same_law(ours["ratio of losses"][:, place], theirs["ratio of losses"][:, place])


@pytest.mark.parametrize("wrong", [{"momentum": 0.75}, {"lr": 0.0115}])
def test_slightly_wrong_training_is_rejected(wrong: dict[str, float]) -> None:
    net, arguments = RUNS["gelu, momentum"]
    theirs = views(drawn_weights("gelu, momentum"))["ratio of losses"]
    run = train(net, steps=STEPS[-1], draws=DRAWS, seed=5, record=STEPS, **{**arguments, **wrong})
    losses = run.loss.to_numpy()
    ours = losses[:, 1:] / losses[:, :1]
    assert not all(same_law(ours[:, place], theirs[:, place]) for place in range(4))


@pytest.mark.parametrize("name", ["gelu, momentum", "tanh, classes, standard", "relu, mini-batches, probe"])
def test_the_ground_truth_is_torch(name: str) -> None:
    """One network of `dense_training` against torch's modules, autograd and SGD; batches of all the inputs."""
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    net, arguments = RUNS[name]
    W, b = draw_networks(net, 1, np.random.default_rng(0))
    modules: list[Any] = []
    with torch.no_grad():
        for weight, bias in zip(W, b, strict=True):
            linear = torch.nn.Linear(weight.shape[2], weight.shape[1], dtype=torch.float64)
            linear.weight[:] = torch.as_tensor(weight[0])
            linear.bias[:] = torch.as_tensor(bias[0])
            modules += [
                linear,
                {"gelu": torch.nn.GELU, "tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[net.activation.name](),
            ]
    model = torch.nn.Sequential(*modules[:-1])
    inputs, y = torch.as_tensor(arguments["X"]), torch.as_tensor(np.asarray(arguments["y"]))
    lr, momentum = arguments["lr"], arguments.get("momentum", 0.0)
    groups = [
        {"params": [parameter], "lr": lr * float(multiplier)}
        for linear, layer in zip(modules[::2], net.layers, strict=True)
        for parameter, multiplier in (
            (linear.weight, layer.weight_multiplier),
            (linear.bias, layer.bias_multiplier),
        )
    ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    losses = []
    for _ in range(21):
        optimizer.zero_grad()
        output = model(inputs)
        if "loss" in arguments:
            loss = torch.nn.functional.cross_entropy(output, y, reduction="sum")
        else:
            loss = torch.square(output[:, 0] - y).sum() / 2
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    theirs = dense_training(
        net, arguments["X"], arguments["y"], 20, lr, 1, np.random.default_rng(0), STEPS, start=(W, b),
        momentum=momentum, loss=arguments.get("loss", "squared"),
    )  # fmt: skip
    assert theirs["loss"][0] == pytest.approx([losses[step] for step in STEPS], rel=1e-10)


def test_the_first_step_is_that_of_sample_gram() -> None:
    """At step 0 the kernel has sample_gram's law; a tiny step changes it by lr times its dK, and the outputs too."""
    net, targets, lr, draws = MLP([3, 9, 12, 1], activation="gelu"), [1.0, -0.5, 0.3], 1e-6, 160_000
    run = train(net, MORE, targets, steps=1, lr=lr, draws=draws, seed=1)
    gram = sample_gram(net, MORE, draws, seed=2, y=targets)
    K, dK = run.K.to_numpy(), (run.K.diff("step") / lr).to_numpy()[:, 0]
    for a, b in ((0, 0), (0, 1), (1, 2)):
        assert same_law(K[:, 0, a, b], gram.K.to_numpy()[:, a, b])
        assert same_law(dK[:, a, b], gram.dK.to_numpy()[:, a, b])
        assert not same_law(1.15 * dK[:, a, b], gram.dK.to_numpy()[:, a, b])
    moved = (run.output.diff("step") / lr).to_numpy()[:, 0]
    expected = -np.einsum("dab,db->da", K[:, 0], run.output.to_numpy()[:, 0] - targets)
    assert np.allclose(moved, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_kernel_freezes_like_one_over_n_and_outputs_are_those_of_the_linearised_network() -> None:
    """Medians over draws: drift falls like 1/n; so does the distance of the outputs from training with K_0 held fixed.

    From training with the kernel of infinite width they differ by that of K_0, which falls like 1/sqrt(n). With ReLU
    the kernel freezes like 1/sqrt(n) only: its gates flip (docs/weak-feature-learning.md).
    """
    widths, depth, steps, lr = (64, 256, 1024), 4, 10, 0.05

    def net(n: int, activation: str) -> MLP:
        return MLP([3, *[n] * (depth - 1), 1], activation=activation, bias="none")

    drifts, of_relu = [], []
    from_own: list[float] = []
    from_limit: list[float] = []
    wide = sample_gram(net(20_000, "gelu"), X, 40, seed=3).K.mean("draw").to_numpy()
    for n in widths:
        of_relu.append(float(train(net(n, "relu"), X, Y, steps, lr, draws=150, seed=n).drift[:, -1].median()))
        run = train(net(n, "gelu"), X, Y, steps, lr, draws=150, seed=n)
        drifts.append(float(run.drift[:, -1].median()))
        N, K = run.output.to_numpy(), run.K.to_numpy()[:, 0]
        for kernel, errors in ((K, from_own), (np.broadcast_to(wide, K.shape), from_limit)):
            step = np.linalg.matrix_power(np.eye(2) - lr * kernel, steps)
            expected = Y + np.einsum("dab,db->da", step, N[:, 0] - Y)
            errors.append(float(np.median(np.linalg.norm(N[:, -1] - expected, axis=1))))

    def slope(values: list[float]) -> float:
        return float(np.polyfit(np.log(widths), np.log(values), 1)[0])

    assert slope(drifts) == pytest.approx(-1, abs=0.15)
    assert slope(of_relu) == pytest.approx(-0.5, abs=0.15)
    assert slope(from_own) == pytest.approx(-1, abs=0.15)
    assert slope(from_limit) == pytest.approx(-0.5, abs=0.15)


def flips(depth: int, width: int, share: float) -> float:
    """What gates that flip add to E[K_1 - K_0] / lr: ReLU, |x|^2 = n_0, target 0 (docs/theory/training.md)."""
    total = 0.0
    for i in range(1, depth):
        t = i * (i - 1) * (2 * i - 1) / 6
        total += i * ((3 - i * i / (i * i + t)) * math.sqrt(i * i + t) - math.sqrt(t))
    return -share * share * total / (2 * math.sqrt(math.pi**3 * width))


@pytest.mark.parametrize(
    ("activation", "depth", "bias", "lr", "n", "draws"),
    [
        ("relu", 2, "none", 0.1, 6_000, 3_000),
        ("relu", 4, "trained", 0.01, 3_000, 2_000),
        ("linear", 2, "none", 0.01, 6_000, 1_000),
    ],
)
def test_gates_that_flip_change_the_mean_kernel_where_the_derivative_sees_nothing(  # noqa: PLR0917
    activation: str, depth: int, bias: str, lr: float, n: int, draws: int
) -> None:
    x = np.ones((1, 4))
    net = MLP([4, *[n] * (depth - 1), 1], activation=activation, bias=bias)
    change = train(net, x, [0.0], 1, lr, draws, seed=0).K.to_numpy()[:, :, 0, 0] @ [-1 / lr, 1 / lr]
    derivative, error = float(finwidth.moments(net, x[0]).update["dK"]), float(change.std() / draws**0.5)
    expected = flips(depth, n, 2.0 if bias == "none" else 3.0) if activation == "relu" else 0.0
    assert abs(change.mean() - derivative - expected) < 5 * error
    if activation == "relu":
        assert abs(expected) > 15 * error  # the test sees it
        assert abs(expected) > 5 * abs(derivative)


def test_dataset() -> None:
    net = MLP([3, 20, 20, 2], activation="gelu")
    told: list[int] = []
    run = train(
        net, X, [0, 1], 6, 0.01, draws=3, seed=4, probe=PROBE, loss="cross-entropy", record=[2], progress=told.append
    )
    assert run.step.to_numpy().tolist() == [0, 2, 6]
    sizes = {"draw": 3, "step": 3, "input": 2, "component": 2, "probe": 2, "probe_": 2, "eigenvalue": 2}
    assert dict(run.sizes) == sizes
    assert run.output.dims == ("draw", "step", "input", "component")
    assert "alignment" not in run
    assert run.attrs["seed"] == 4
    assert run.attrs["lr"] == 0.01
    assert told[-1] == 3 * 7
    assert (run.drift[:, 0] == 0).all()
    assert np.allclose(run.eigenvalues.sum("eigenvalue"), np.trace(run.K, axis1=2, axis2=3))
    single = train(MLP([3, 20, 1]), X, Y, 2, 0.1, draws=2)
    t = np.outer(Y, Y)
    K = single.K.to_numpy()
    expected = (K * t).sum((2, 3)) / np.linalg.norm(K, axis=(2, 3)) / np.linalg.norm(t)
    assert np.allclose(single.alignment, expected)
    assert single.output.dims == ("draw", "step", "input")


def test_a_seed_fixes_the_numbers_and_wide_draws_do_not_depend_on_their_number() -> None:
    net = MLP([3, 100_000, 50_000, 1])
    three, two = (train(net, X, Y, 2, 0.1, draws=draws, seed=1) for draws in (3, 2))
    assert np.array_equal(three.K[:2], two.K)
    assert not np.array_equal(three.K[0], three.K[1])
    small = MLP([3, 10, 10, 1])
    one, same, other = (train(small, X, Y, 3, 0.1, draws=50, seed=seed, batch=1) for seed in (1, 1, 2))
    assert one.identical(same)
    assert not np.array_equal(one.K, other.K)
    every = train(small, X, Y, 3, 0.1, draws=50, seed=1, batch=2)
    assert np.allclose(every.loss, train(small, X, Y, 3, 0.1, draws=50, seed=1).loss)  # a full batch in any order


@pytest.mark.parametrize("widths", [[3, 1], [3, 2], [3, 1, 1], [3, 40_000, 1]])
def test_shallow_networks_train(widths: list[int]) -> None:
    y = Y if widths[-1] == 1 else np.ones((2, 2))
    run = train(MLP(widths), X, y, 30, 0.05, draws=2, seed=0)
    assert (run.loss[:, -1] <= run.loss[:, 0]).all()
    if len(widths) == 2:  # a linear model: its kernel is fixed
        assert np.allclose(run.drift, 0, atol=1e-12)


def test_duplicate_and_zero_inputs() -> None:
    inputs = np.array([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    run = train(MLP([3, 30, 30, 1], bias="none"), inputs, [1.0, 1.0, 0.0], 8, 0.05, draws=20, seed=1)
    assert np.allclose(run.output[..., 0], run.output[..., 1], atol=1e-10)
    assert not run.output[..., 2].any()
    assert not run.K[..., 2, :].any()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("n", "steps"), [(30_000, 6), (500, 25)], ids=["deferred", "materialized"])
def test_memory_is_as_promised(n: int, steps: int, momentum: float) -> None:
    net, inputs = MLP([8, *[n] * 4, 1]), np.random.default_rng(0).standard_normal((4, 8))
    arguments: dict[str, Any] = {"X": inputs, "y": np.ones(4), "steps": steps, "lr": 0.01}
    promised = training_bytes(training_spec(net, **arguments, momentum=momentum))
    tracemalloc.start()
    train(net, **arguments, momentum=momentum, draws=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert promised / 2 < peak < promised


def test_a_budget_is_refused_at_once() -> None:
    net, inputs = MLP([8, *[30_000] * 4, 1]), np.random.default_rng(0).standard_normal((4, 8))
    with pytest.raises(
        finwidth.FinwidthError, match=r"training 1 draw at once.* needs up to [\d.]+ MiB, and memory is 10 MiB"
    ):
        train(net, inputs, np.ones(4), 6, 0.05, draws=1, memory="10MiB")


NET = MLP([3, 5, 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: train(MLP([3, 5, 1], "uniform"), X, Y, 1, 0.1, 1), "its weights are uniform"),
        (lambda: train(MLP([3, 5, 1], bias_variance=1, bias_law="uniform"), X, Y, 1, 0.1, 1), "biases are uniform"),
        (lambda: train(NET, X[0], Y, 1, 0.1, 1), r"shape \(3,\)"),
        (lambda: train(NET, X, Y[:1], 1, 0.1, 1), r"targets have shape \(1,\)"),
        (lambda: train(NET, X, [1, math.nan], 1, 0.1, 1), "finite numbers of shape"),
        (lambda: train(NET, X, ["a", "b"], 1, 0.1, 1), "not an array of numbers"),
        (lambda: train(NET, X, Y, 0, 0.1, 1), "steps is 0"),
        (lambda: train(NET, X, Y, 1, 0.0, 1), "lr is 0.0"),
        (lambda: train(NET, X, Y, 1, math.nan, 1), "lr is nan"),
        (lambda: train(NET, X, Y, 1, 0.1, 0), "draws is 0"),
        (lambda: train(NET, X, Y, 1, 0.1, 1, seed=-1), "seed is -1"),
        (lambda: train(NET, X, Y, 1, 0.1, 1, momentum=1.0), "momentum is 1.0"),
        (lambda: train(NET, X, Y, 1, 0.1, 1, batch=3), "batch is 3 for 2"),
        (lambda: train(NET, X, Y, 1, 0.1, 1, record=[2]), "record holds 2; give whole numbers from 0 to 1"),
        (lambda: train(NET, X, Y, 1, 0.1, 1, record=[-1]), "a step of record is -1"),
        (lambda: train(NET, X, Y, 1, 0.1, 1, record=np.array([0.5])), "a step of record is .*0.5"),
        (lambda: train(NET, X, [[1], [1, 2]], 1, 0.1, 1), "not an array of numbers"),
        (lambda: train(NET, X, Y, 1, 0.1, 1, probe=np.ones((1, 2))), r"shape \(1, 2\)"),
        (lambda: train(NET, X, Y, 1, 0.1, 1, centred=1), "centred is 1; give True or False"),  # type: ignore[arg-type]
        (lambda: train(NET, X, Y, 1, 0.1, 1, loss="hinge"), "loss 'hinge'"),
        (lambda: train(NET, X, [0, 1], 1, 0.1, 1, loss="cross-entropy"), "give 2 or more"),
        (lambda: train(MLP([3, 5, 2]), X, [0, 2], 1, 0.1, 1, loss="cross-entropy"), "whole numbers from 0 to 1"),
        (lambda: train(MLP([3, 90, 90, 1]), X, Y, 500, 50.0, 3), "diverges.*stable below"),
        (lambda: train(NET, 1e200 * X, Y, 1, 0.1, 1), "kernel at initialization overflows"),
    ],
)
def test_mistakes_are_told(call: Callable[[], object], words: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=words):
        call()


def test_a_dead_network_has_no_alignment_and_spoils_no_mean() -> None:
    """Narrow networks without trained biases: some kernels are zero, and means are those of the others."""
    net, X = MLP([3, 2, 2, 2, 1], bias="frozen"), np.random.default_rng(1).standard_normal((5, 3))
    run = finwidth.train(net, X, [1, -1, 1, -1, 1], 2, 0.01, 12, seed=0)
    dead = ~run.K.to_numpy().any(axis=(1, 2, 3))
    assert 0 < dead.sum() < 12
    found: Any = mean_trajectory(run)
    for name in ("drift", "alignment"):
        living = run[name].to_numpy()[~dead]
        assert np.isfinite(living).all()
        assert found[name]["mean"] == pytest.approx(living.mean(0))
        assert found[name]["se"] == pytest.approx(living.std(0, ddof=1) / len(living) ** 0.5)
        assert found[name]["left_out"] == [int(dead.sum())] * 3
    assert found["loss"]["mean"] == pytest.approx(run.loss.mean("draw").to_numpy())
    assert found["loss"]["left_out"] == [0, 0, 0]
    alone = mean_trajectory(run.isel(draw=slice(0, 1)))
    assert alone["loss"]["se"] is None


def test_what_overflows_at_the_start_is_not_a_learning_rate() -> None:
    for call in (
        lambda: finwidth.train(MLP([2, 8, 1]), [[1e160, 0.0], [1.0, 2.0]], [1.0, 2.0], 1, 0.1, 2),
        lambda: default_rate(MLP([2, 8, 1]), [[1e160, 0.0], [1.0, 2.0]]),
    ):
        with pytest.raises(FinwidthError, match=r"kernel at initialization overflows .* 1e\+160 \(input 0\)"):
            call()
