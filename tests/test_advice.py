"""What `regime` says is what happens: to networks that hold their weights, to torch modules, to those `train` draws."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

import finwidth
from dense_training import dense_training
from finwidth import MLP, BalancedResNet, Norm, ResNet, moments, regime
from finwidth.empirical.training import first_step as dense
from finwidth.exact.expansion.one_input import to_first_order
from finwidth.networks.description import Network
from finwidth.sampling.lazy_matrix.gaussian import NotFiniteError
from finwidth.sampling.training import first_step as in_law
from stats import ALPHA, same_law

Array = Any
DRAWS = 10_000


def trained(net: MLP, x: Array, target: Array, lr: float, draws: int, *, seed: int) -> Array:
    """K_0 and K_1, shape (draws, 2), of networks that hold their weights, by plain backpropagation."""
    rng = np.random.default_rng(seed)
    return dense_training(net, x[None], np.atleast_2d(target), 1, lr, draws, rng, [0, 1])["K"][:, :, 0, 0]


def change(before: Array, after: Array) -> Array:
    return np.abs(after - before)


# network, target, learning rate times E[K]
CASES: list[tuple[MLP, float, float]] = [
    (MLP([3, 12, 1]), 0.0, 1.0),
    (MLP([3, 9, 7, 1], activation="leaky_relu", bias="none"), 1.0, 0.5),
    (MLP([3, 8, 8, 8, 8, 1]), 3.0, 1.0),
    (MLP([3, 20, 20, 1], parameterization="mup"), 1.0, 1.0),
    (MLP([3, 20, 20, 1], parameterization="mup", activation="gelu", bias="frozen"), 3.0, 0.3),
    (MLP([3, 10, 12, 1], parameterization="standard", activation="abs"), 0.0, 1.5),
    (MLP([3, 16, 16, 1], activation="tanh", bias_variance=0.2, gains=1.5), 1.0, 1.0),
    (MLP([3, 8, 8, 8, 1], activation="silu"), 1.0, 1.0),
    (MLP([3, 12, 12, 1], activation="erf", parameterization="standard"), -2.0, 1.0),
    (MLP([3, 10, 10, 1], activation="linear"), 3.0, 1.0),
]
POINT = np.array([1.0, -0.5, 1.5])


def rate(net: MLP, times: float) -> float:
    return times / float(in_law.sampled_kernels(net, POINT, 2000, seed=99).mean())


@pytest.mark.parametrize(("net", "target", "times"), CASES, ids=str)
def test_one_step_in_law_is_one_step_of_networks_with_weights(net: MLP, target: float, times: float) -> None:
    """Two samples of |K_1 - K_0|; a step of 0.4 of its length must be seen."""
    lr = rate(net, times)
    K = trained(net, POINT, target, lr, DRAWS, seed=5)
    before, after = in_law.sampled_first_step(net, POINT, np.array([target]), lr, DRAWS, seed=6)
    assert same_law(change(before, after), change(*K.T))
    assert same_law(after, K[:, 1])
    assert not same_law(
        change(*in_law.sampled_first_step(net, POINT, np.array([target]), 0.4 * lr, DRAWS, seed=6)), change(*K.T)
    )


RESIDUAL: list[tuple[Network, float]] = [
    (ResNet([3, 16, 1], 2, branch=0.5), 1.0),
    (ResNet([3, 24, 1], 3, 12, branch="1/sqrt(depth)", parameterization="standard"), 0.0),
    (BalancedResNet([3, 16, 1], 2, branch=0.5, bias_variance=0.3), 1.0),
    (ResNet([3, 16, 1], 2, activation="gelu", branch=0.5), 1.0),
]


@pytest.mark.parametrize(("net", "target"), RESIDUAL, ids=str)
def test_regime_of_residual_networks_is_that_of_networks_with_weights(net: Network, target: float) -> None:
    """Movement, its median and the spread against steps by autograd; a step half as long must be seen."""
    pytest.importorskip("torch")
    found = regime(net, POINT, target=target, draws=DRAWS)
    before, after, half = autograd_steps(net, POINT, target, (found.lr, found.lr / 2), 4000)
    moved, less = np.abs(after - before) / before.mean(), np.abs(half - before) / before.mean()
    error = math.hypot(found.movement_error, moved.std() / len(moved) ** 0.5)
    assert abs(found.movement - moved.mean()) < 5.5 * error
    assert abs(found.movement - less.mean()) > 5.5 * error
    assert found.median == pytest.approx(float(np.median(moved)), rel=0.1)
    assert found.cv == pytest.approx(before.std() / before.mean(), rel=0.1)
    assert (found.cv_error > 0) == (net.activation.name == "gelu")


def autograd_steps(net: Network, x: Array, target: float, rates: tuple[float, ...], draws: int) -> list[Array]:
    """K before a step, and after one of each rate, of networks that hold their weights."""
    import torch
    from torch.func import vmap

    from autograd_networks import AutogradNetworks

    networks = AutogradNetworks(net)
    X, targets = torch.tensor(x[None]), torch.tensor([[target]], dtype=torch.float64)

    def one(at: Any, signs: Any) -> Any:
        step = networks.step(at, signs, X, targets)
        reached = [at, *({name: at[name] + lr * step[name] for name in at} for lr in rates)]
        return [torch.stack(networks.kernels(each, signs, X)).sum(0)[0, 0, 0, 0] for each in reached]

    return [each.detach().numpy() for each in vmap(one)(*networks.draw(draws, seed=5))]


NORMALISED: list[Network] = [
    MLP([3, 16, 16, 1], norm="rms"),
    MLP([3, 16, 12, 1], norm="layer"),
    MLP([3, 12, 12, 1], activation="tanh", norm=Norm("layer", "after", parameters="trained")),
    ResNet([3, 16, 1], 2, norm=Norm("layer", parameters="trained", epsilon=1e-5)),
    ResNet([3, 12, 1], 2, norm=Norm("rms", "after"), activation="gelu", branch=0.5),
]


def robust_spread(K: Array) -> float:
    low, middle, high = np.quantile(K, scipy_stats.norm.cdf([-1, 0, 1]))
    return float(high - low) / float(2 * middle)


@pytest.mark.parametrize("net", NORMALISED, ids=str)
def test_regime_of_normalised_networks_is_that_of_networks_with_weights(net: Network) -> None:
    """Median, robust spread and median movement against steps by autograd; a step half as long must be seen."""
    pytest.importorskip("torch")
    found = regime(net, POINT, draws=DRAWS)
    before, after, half = autograd_steps(net, POINT, 1.0, (found.lr, found.lr / 2), 4000)
    middle, errors = np.median(before), (1 + DRAWS / 4000) ** 0.5  # of the other sample, too
    assert abs(1 / found.lr / middle - 1) < 6 * found.cv_error
    assert abs(found.cv - robust_spread(before)) < 5.5 * errors * found.cv_error
    moved, less = np.median(change(before, after)) / middle, np.median(change(before, half)) / middle
    assert abs(found.movement - moved) < 5.5 * errors * found.movement_error < abs(found.movement - less)
    assert found.relative_to == "median"
    assert found.movement == found.median


def test_a_normalised_network_is_told_by_quantiles() -> None:
    """Not by means: 100 times as many draws do not move what is told, which they would move the mean of K."""
    few, many = (regime(MLP([3, 6, 6, 6, 1], norm="rms"), draws=draws, seed=1) for draws in (1000, 100_000))
    assert abs(few.cv - many.cv) < 5 * few.cv_error
    assert abs(few.movement - many.movement) < 5 * few.movement_error
    assert "(q84 - q16)/2; E[K] is infinite" in few.advice
    assert "= 1/median K" in few.advice
    assert "of its median or more in half of the networks" in few.advice


def test_normalised_networks_that_are_not_drawn() -> None:
    with pytest.raises(finwidth.FinwidthError, match=r"its weights are uniform.*finwidth\.empirical\.Ensemble"):
        regime(MLP([3, 10, 1], "uniform", norm="rms"))
    dead = MLP([3, *[1] * 6, 1], norm="rms", bias="none")
    with pytest.raises(finwidth.FinwidthError, match="median kernel of this network is zero"):
        regime(dead)


def test_residual_networks_that_are_not_drawn() -> None:
    with pytest.raises(finwidth.FinwidthError, match=r"finwidth\.regime cannot serve.*its weights are uniform"):
        regime(ResNet([3, 10, 1], 2, weight_law="uniform"))
    with pytest.raises(finwidth.FinwidthError, match=r"only if you say how often: it has 6.1e"):
        regime(ResNet([3, 10**6, 1], 20))
    assert regime(ResNet([3, 4000, 1], 16, branch="1/sqrt(depth)"), draws=32).name == "near-deterministic"


@pytest.mark.parametrize(("net", "target", "times"), CASES[:6], ids=str)
def test_one_step_of_drawn_weights(net: MLP, target: float, times: float) -> None:
    """The code for weights of any law, on weights of another."""
    other = MLP(net.widths, "laplace", net.activation, net.parameterization, bias=net.bias)
    lr = rate(net, times)
    K = trained(other, POINT, target, lr, DRAWS, seed=5)
    first = dense.first_step(other, POINT, np.array([target]), lr, DRAWS, seed=6)
    assert same_law(change(*first), change(*K.T))
    assert np.array_equal(first[0], dense.initial(other, POINT, DRAWS, seed=6))
    third = dense.first_step(other, POINT, np.array([target]), 0.4 * lr, DRAWS, seed=6)
    assert not same_law(change(*third), change(*K.T))


def test_several_outputs_by_both_codes() -> None:
    """K of output 0, all outputs trained, each to a target of its own."""
    net, target = MLP([3, 12, 12, 4], activation="gelu"), np.array([2.0, -1.0, 0.0, 3.0])
    lr = rate(net, 1.0)
    one = in_law.sampled_first_step(net, POINT, target, lr, DRAWS, seed=1)
    other = dense.first_step(net, POINT, target, lr, DRAWS, seed=2)
    assert same_law(change(*one), change(*other))
    assert not same_law(change(*one), change(*dense.first_step(net, POINT, np.zeros(4), lr, DRAWS, seed=2)))


@pytest.mark.parametrize("net", [MLP([3, 20, 20, 1]), MLP([3, 20, 20, 1], activation="tanh")], ids=str)
def test_movement_is_the_mean_of_what_train_does(net: MLP) -> None:
    found = regime(net, POINT, target=1, seed=3)
    K = finwidth.train(net, POINT[None], [1.0], steps=1, lr=found.lr, draws=4000, seed=4).K.to_numpy()[:, :, 0, 0]
    moved = change(*K.T) * found.lr  # lr = 1/E[K]
    assert abs(z_score(found, moved)) < 5
    before, after = in_law.sampled_first_step(net, POINT, np.ones(1), found.lr, 4000, seed=3)
    assert found.movement == pytest.approx(change(before, after).mean() * found.lr, rel=1e-12)
    assert found.median == pytest.approx(np.median(change(before, after)) * found.lr, rel=1e-12)


def z_score(found: finwidth.Regime, moved: Array) -> float:
    error = math.hypot(found.movement_error, moved.std() / math.sqrt(len(moved)))
    return float(moved.mean() - found.movement) / error if error else 0.0


# ---- the cases that were once called near-deterministic


def test_gates_that_flip_are_in_the_movement() -> None:
    """d = 16 at the width where cv = 0.1: the derivative's mean moves K by 0.4%, the step by 9 and 12%."""
    net = MLP([64, *[3723] * 15, 1])
    x = np.ones(64)
    for target in (0.0, 1.0):
        found = regime(net, target=target, draws=60)
        K = finwidth.train(net, x[None], [target], steps=1, lr=found.lr, draws=60, seed=1).K.to_numpy()[:, :, 0, 0]
        assert abs(z_score(found, change(*K.T) * found.lr)) < 5
        derivative = abs(float(moments(net, x).update["dK"])) * found.lr**2
        assert derivative < 0.005
        assert found.movement - 5 * found.movement_error > 0.05


@pytest.mark.parametrize("width", [1295, 20720])
def test_the_target_moves_a_kernel_in_mup_at_every_width(width: int) -> None:
    found = regime(MLP([64, *[width] * 3, 1], parameterization="mup"), target=1, draws=100)
    assert found.cv < 0.1
    assert found.name == "moving"
    assert found.movement == pytest.approx(0.24, abs=0.02)
    assert regime(MLP([64, *[width] * 3, 1], parameterization="mup"), target=0, draws=100).movement < 0.1


def test_mup_against_networks_with_weights() -> None:
    net, x = MLP([16, 256, 256, 1], parameterization="mup"), np.ones(16)
    found = regime(net, target=1)
    moved = change(*trained(net, x, 1.0, found.lr, 200, seed=8).T) * found.lr
    assert abs(z_score(found, moved)) < 5
    assert found.name == "moving"


# ---- torch modules

torch = pytest.importorskip("torch", reason="needs torch")


def module_step(make: Any, x: Any, target: float, lr: float) -> tuple[float, float]:
    """K of output 0 of a module before and after a step of torch.optim.SGD, by autograd."""
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)

    def kernel() -> float:
        grads = torch.autograd.grad(module(x)[0, 0], list(module.parameters()))
        return float(sum((grad**2).sum() for grad in grads))

    before = kernel()
    optimizer.zero_grad()
    (0.5 * ((module(x) - target) ** 2).sum()).backward()
    optimizer.step()
    return before, kernel()


@pytest.mark.parametrize("outputs", [1, 5])
def test_a_torch_module_by_its_own_steps(outputs: int) -> None:
    """nn.Linear's own initialization is moved by half of itself and more: nothing there is near-deterministic."""
    nn = torch.nn

    def make() -> Any:
        layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)]
        return nn.Sequential(*layers).double()

    torch.manual_seed(1)
    found = regime(make(), draws=1000, init=None if outputs == 5 else "default")
    K = np.array([module_step(make, torch.ones(1, 64).double(), 1.0, found.lr) for _ in range(300)])
    assert abs(z_score(found, change(*K.T) * found.lr)) < 5
    assert found.name == "moving"
    assert found.movement > 0.5


def test_a_module_that_is_not_recognised() -> None:
    with pytest.raises(finwidth.FinwidthError, match=r"x is None; give one input, .* not a network that finwidth rec"):
        regime(torch.nn.LayerNorm(3))
    with pytest.raises(finwidth.FinwidthError, match=r"as one tensor: a module of several arguments .* forward"):
        regime(torch.nn.LayerNorm(3), {"ids": torch.ones(3)}, factory=lambda: torch.nn.LayerNorm(3))
    embedding = torch.nn.Embedding(3, 2)
    torch.nn.init.constant_(embedding.weight, 0.1)
    with pytest.raises(
        finwidth.FinwidthError, match=r"drawn cannot be told: .* not a network that finwidth recognises"
    ):
        regime(embedding, 1)


# ---- what it says


def test_regime_states_its_thresholds() -> None:
    names = set()
    for hidden in (20, 200, 2000):
        net = MLP([10, *[hidden] * 4, 1])
        found = regime(net, draws=200)
        assert found.cv == moments(net, [1.0] * 10).cv
        wanted = "moving" if found.movement > 0.1 else "noisy" if found.cv > 0.1 else "near-deterministic"
        assert found.name == wanted
        names.add(wanted)
    assert len(names) == 3


def test_advice_says_what_it_is_about() -> None:
    net = MLP([10, 30, 1], activation="tanh")
    for found, words in (
        (regime(net), ("target 1 ", "= 1/E[K]")),
        (regime(net, target=-0.5, lr=0.01), ("target -0.5 ", "rate 0.01,")),
        (regime(MLP([10, 30, 2]), target=[1, 0]), ("target (1, 0) ",)),
    ):
        for text in (*words, "first step", "this input alone", "longer training", f"{found.movement:.2g} ± "):
            assert text in found.advice
        assert "infinite-width" not in found.advice


def test_the_same_seed_gives_the_same_numbers() -> None:
    net = MLP([10, 30, 1], activation="gelu")
    assert regime(net) == regime(net) != regime(net, seed=1)


def test_an_activation_of_the_users_own() -> None:
    cosine = finwidth.SmoothActivation("cos", np.cos, lambda y: -np.sin(y))
    net = MLP([3, 12, 12, 1], activation=cosine)
    found = regime(net, POINT, target=2)
    moved = change(*trained(net, POINT, 2.0, found.lr, 4000, seed=3).T) * found.lr
    assert abs(z_score(found, moved)) < 5


def test_drawn_spread_and_its_error() -> None:
    """Of one ReLU network by the code for smooth ones, against exact moments."""
    from finwidth import advice

    net = MLP([10, *[40] * 3, 1])
    K = in_law.sampled_kernels(net, np.ones(10), 4000, seed=0)
    error = advice._cv_error(K / K.mean())
    assert abs(K.std() / K.mean() - moments(net, [1.0] * 10).cv) < 5 * error
    found = [
        float(k.std() / k.mean()) for k in in_law.sampled_kernels(net, np.ones(10), 100_000, seed=1).reshape(25, -1)
    ]
    assert np.std(found) == pytest.approx(error, rel=0.5)


def test_the_spread_of_wide_smooth_networks_is_to_first_order() -> None:
    """It is that of other draws, within what is told; narrow networks are drawn."""
    net = MLP([10, 200, 200, 1], activation="gelu")
    found = regime(net, draws=500)
    wide = to_first_order(net, [1.0] * 10)
    assert (found.cv, found.cv_error) == (wide.cv, wide.cv * wide.left_out / 4)
    assert f"to first order in 1/width, which leaves out at most about {wide.left_out:.1%}" in found.advice
    K = finwidth.sample_gram(net, [[1.0] * 10], 10_000, seed=7).K.to_numpy()
    error = 3 / math.sqrt(2 * 10_000)
    assert 1 - error < float(K.std() / K.mean()) / found.cv < 1 + wide.left_out / 2 + error
    narrow = regime(MLP([10, 10, 10, 1], activation="gelu"), draws=500)
    assert "first order in" not in narrow.advice
    assert narrow.cv_error > 0


def test_a_mean_that_few_networks_carry_is_not_told() -> None:
    """n = 10, d = 50: the average of a thousand draws is another one each time."""
    net = MLP([64, *[10] * 49, 1])
    found = regime(net, draws=1000)
    assert math.isnan(found.movement)
    assert "too few networks carry" in found.advice
    assert not math.isnan(regime(MLP([64, *[64] * 16, 1]), draws=1000).movement)


def test_a_step_past_the_range_of_a_double() -> None:
    found = regime(MLP([3, 4, 4, 1]), lr=1e150)
    assert found.name == "moving"
    assert "past a double's range" in found.advice
    with pytest.raises(NotFiniteError):
        in_law.sampled_first_step(MLP([3, 4, 4, 1]), POINT, np.ones(1), 1e150, 10, seed=0)
    uniform = regime(MLP([3, 4, 4, 1], weight_law="uniform"), lr=1e150)
    assert "past a double's range" in uniform.advice


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: regime(MLP([2, 3, 1], bias="none"), [0, 0]), "nothing is trained"),
        (lambda: regime(MLP([2, 3, 1], bias="none", activation="tanh"), [0, 0]), "nothing is trained"),
        (lambda: regime(MLP([2, 3, 1]), target=math.inf), "target is inf"),
        (lambda: regime(MLP([2, 3, 2]), target=[1, 2, 3]), "one for each of 2 outputs"),
        (lambda: regime(MLP([2, 3, 2]), target="one"), "target is 'one'"),  # type: ignore[arg-type]
        (lambda: regime(MLP([2, 3, 1]), lr=0), "lr is 0"),
        (lambda: regime(MLP([2, 3, 1]), draws=0), "draws is 0"),
        (lambda: regime(MLP([2, 3, 1]), draws=1), "at least 2"),
        (lambda: regime(MLP([2, 3, 1]), seed=-1), "seed is -1"),
        (lambda: regime(MLP([2, 3, 1]), [1.0]), "shape"),
        (lambda: regime(MLP([2, 10**7, 1])), "give draws=32"),
        (lambda: regime(MLP([2, *[4000] * 4, 1], weight_law="uniform")), "drawn whole"),
        (lambda: regime(MLP([2, *[4] * 3000, 1], gains=9.0)), "past the range"),
    ],
)
def test_mistakes_are_told(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(finwidth.FinwidthError, match=words):
        call()


# ---- the slow tier


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 5, 8, 16])
def test_movement_over_a_grid_against_networks_with_weights(depth: int) -> None:
    """Widths, activations, parameterizations, targets, rates: z-scores of means, as normal as 400 draws make them."""
    rates, x = itertools.cycle((1.0, 0.3, 1.5)), np.linspace(-1, 2, 8)
    found: list[tuple[float, float]] = []
    grid = itertools.product((16, 64), finwidth.networks.activations.ACTIVATIONS, ("ntk", "standard", "mup"))
    for width, phi, parameterization in grid:
        net = MLP([8, *[width] * (depth - 1), 1], activation=phi, parameterization=parameterization)
        scale = regime(net, x, draws=1000).lr
        for target in (0.0, 1.0, 3.0):
            told = regime(net, x, target=target, lr=scale * next(rates), seed=1)
            if math.isnan(told.movement):
                continue
            draws = 2000 if width == 16 else 400
            moved = change(*trained(net, x, target, told.lr, draws, seed=7).T) * scale
            found.append((z_score(told, moved), float(moved.mean()) / told.movement - 1))
    z, relative = np.array(found).T
    print(
        f"d = {depth}: {len(z)} of 144 told, largest |z| {np.abs(z).max():.2f}, rms {np.sqrt((z**2).mean()):.2f}, "
        f"median |difference| {np.median(np.abs(relative)):.1%}"
    )
    assert np.abs(z).max() < scipy_stats.norm.isf(ALPHA / (2 * len(z)))
    assert np.sqrt((z**2).mean()) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["ntk", "mup"])
def test_the_targets_part_against_exact_second_moments(parameterization: str) -> None:
    """E[(K_1 - K_0)^2] per squared rate at a tiny rate, against E[dK^2] = 4 (E[N^2 G^2] + t^2 E[G^2]).

    Of linear networks: with gates that flip, the left side grows without bound as the rate falls.
    """
    net, lr = MLP([2, 6, 6, 1], activation="linear", parameterization=parameterization), 1e-6
    exact = moments(net, [1.0, 1.0], order=4)
    for target in (0, 3):
        before, after = in_law.sampled_first_step(net, np.ones(2), np.array([target]), lr, 400_000, seed=2)
        squares = ((after - before) / lr) ** 2
        wanted = float(exact.update_variance(target)) + float(exact.update["dK"]) ** 2
        z = (squares.mean() - wanted) / (squares.std() / math.sqrt(len(squares)))
        print(f"{parameterization}, target {target}: {squares.mean():.5g}, exact {wanted:.5g}, z = {z:.2f}")
        assert abs(z) < 5
