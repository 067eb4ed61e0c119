"""The chain of residual networks of one matrix a block, in law, against networks that draw their weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import finwidth
from devices import DEVICE
from finwidth import Activation, BalancedResNet, FinwidthError
from finwidth.empirical.reference.residual import simulate_residual
from finwidth.sampling.one_input.stream_chain import StreamChain, StreamVariates
from finwidth.sampling.random.streams import stream
from kernel_draws import DRAWS, VIEWS, X, assert_memory_is_told, draw, viewed
from stats import same_counts, same_law, same_mean

NORM = 9.0  # |X|^2
BENT = Activation("bent", 1, -0.6)
STEEP = Activation("steep", 1, 0.5, at_zero=2)
NETWORKS = {
    "relu": BalancedResNet([3, 6, 1], 3, branch=0.7),
    "bent, standard": BalancedResNet([3, 4, 1], 3, activation=BENT, parameterization="standard", skip=[0.5, 1, 2]),
    "one block": BalancedResNet([3, 3, 1], 1, bias_scale=[0.5, 2, 1.5]),
    "abs": BalancedResNet([3, 4, 1], 2, activation="abs", bias=["frozen", "none", "trained"]),
    "stream of 1": BalancedResNet([3, 1, 1], 3),
    "dead streams": BalancedResNet([3, 2, 1], 4, skip=[1, 0, 0.5, 1]),
    "random biases": BalancedResNet([3, 5, 1], 2, bias_variance=[0.5, 1, 2]),
    "random biases of W": BalancedResNet([3, 2, 1], 3, skip=[0, 1, 0.5], bias_variance=[0, 3, 0], activation=BENT),
    "random biases of the head": BalancedResNet([3, 2, 1], 3, skip=[0, 1, 0.5], bias_variance=[0, 0, 5]),
    "no signs": BalancedResNet([3, 6, 1], 3, skip="sqrt(1/2)", branch="sqrt(1/2)", signs=False),
    "no signs, bent": BalancedResNet([3, 3, 1], 4, activation=BENT, branch=[1, 0, 2, 1], signs=False),
    "no signs, dead streams": BalancedResNet([3, 3, 1], 4, skip=[1, 0, 1, 0], signs=False),
    "no signs, random biases": BalancedResNet([3, 4, 1], 3, bias_variance=[0, 1, 0.5], signs=False),
}
QUICK = [
    "relu", "bent, standard", "dead streams", "random biases", "random biases of W", "no signs",
    "no signs, random biases",
]  # fmt: skip


def assert_joint_law(net: BalancedResNet, x: Any, draws: int) -> None:
    chain, networks = draw(net, x, draws), simulate_residual(net, x, draws, np.random.default_rng(4))
    for view in VIEWS:
        assert same_law(viewed(view, chain), viewed(view, networks)), view


@pytest.mark.parametrize("name", QUICK)
def test_joint_law_is_that_of_networks(name: str) -> None:
    assert_joint_law(NETWORKS[name], X, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_joint_law_is_that_of_many_networks(name: str) -> None:
    """Laws that differ by 0.014 anywhere are rejected."""
    assert_joint_law(NETWORKS[name], X, 500_000)


@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("variance", [0, [0, 2, 0]])
def test_joint_law_at_input_zero(variance: Any, signs: bool) -> None:
    net = BalancedResNet([3, 3, 1], 3, activation=STEEP, branch=0.8, bias_variance=variance, signs=signs)
    assert_joint_law(net, [0, 0, 0], DRAWS)


# ---- wrong chains


class Fresh(StreamChain):
    """It forgets that the forward pass knows W along z."""

    def _pulled_back(self, b, W, at, g, rng):  # type: ignore[no-untyped-def]
        at.pulled = (W.v * at.Z1 * at.square) ** 0.5 * rng.standard_normal(at.pulled.shape)
        return super()._pulled_back(b, W, at, g, rng)


class Careless(StreamChain):
    """Its tangent forgets what the backward pass said of W."""

    def _tangent(self, passed, x, U2, below, rng):  # type: ignore[no-untyped-def]
        for at in passed:
            at.bDp = 0 * at.bDp
        return super()._tangent(passed, x, U2, below, rng)


class Settled(StreamChain):
    """Its backward pass takes the random biases for known."""

    def _pulled_back(self, b, W, at, g, rng):  # type: ignore[no-untyped-def]
        at.Z1 = at.Z
        return super()._pulled_back(b, W, at, g, rng)


class Coined(StreamChain):
    """Its gates are coins, whatever the stream is."""

    def __init__(self, net: BalancedResNet, norm: float) -> None:
        super().__init__(net, norm)
        self.signs = True


@pytest.mark.parametrize(
    ("wrong", "name", "view"),
    [
        (Fresh, "relu", "K_w"),
        (Fresh, "no signs", "dK against both"),
        (Careless, "relu", "dK against both"),
        (Careless, "no signs", "dK"),
        (Settled, "random biases of W", "K_b"),
        (Coined, "no signs", "K_w"),
        (Coined, "no signs", "K_b"),
    ],
)
def test_a_forgotten_conditioning_is_rejected(wrong: type[StreamChain], name: str, view: str) -> None:
    net, rng = NETWORKS[name], StreamVariates(stream(3, 0))
    networks = simulate_residual(net, X, 5 * DRAWS, np.random.default_rng(4))
    assert not same_law(viewed(view, wrong(net, NORM).draw(rng, 5 * DRAWS)), viewed(view, networks))


@pytest.mark.parametrize("view", ["output", "K_w", "K_b", "dK"])
def test_a_wrong_skip_is_rejected(view: str) -> None:
    net, wrong = NETWORKS["no signs"], BalancedResNet([3, 6, 1], 3, skip=0.9, branch="sqrt(1/2)", signs=False)
    networks = simulate_residual(net, X, DRAWS, np.random.default_rng(4))
    assert not same_law(viewed(view, draw(wrong)), viewed(view, networks))


# ---- draw by draw


@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernel_is_what_the_output_gains_along_its_gradient(name: str) -> None:
    """G.dx at the head + c_o R + e = K: what the tangent pass finds is what the passes before it have summed."""
    net = NETWORKS[name]
    chain, rng = StreamChain(net, NORM), StreamVariates(stream(5, 0))
    with np.errstate(all="ignore"):
        passed, x, U2 = chain._forward(rng, 2000)
        output, K_w, K_b, below = chain._backward(passed, x, U2, rng)
        _, moved = chain._tangent(passed, x, U2, below, rng)
        F = (output / np.sqrt(U2))[:, 0]
    R, K = (U2 * (x * x).sum(1, keepdims=True))[:, 0], (K_w + K_b)[:, 0]
    head = float(net.head.weight_multiplier) * R + float(net.head.bias_multiplier)
    alive = R > 0
    assert alive.sum() > 200
    error = ((passed[-1].G * moved).sum(1) - F * (K - head))[alive] / (np.abs(F) * K)[alive]
    assert np.abs(error).max() < 1e-10


@pytest.mark.parametrize("name", ["relu", "dead streams", "no signs"])
def test_inputs_of_any_size(name: str) -> None:
    net = NETWORKS[name]
    one = draw(net, draws=400)
    for power in (-1060, -600, -400, 100):
        found = draw(net, [math.ldexp(value, power) for value in X], draws=400)
        assert found["K_b"] == pytest.approx(one["K_b"], rel=1e-12)
        for quantity, times in (("output", 1), ("K_w", 2)):
            wanted = np.ldexp(one[quantity], times * power)
            assert found[quantity] == pytest.approx(wanted, rel=1e-9, abs=1e-321)


@pytest.mark.parametrize("skip", [1, 0.25])
@pytest.mark.parametrize("signs", [True, False])
def test_deep_networks_give_finite_numbers(skip: float, signs: bool) -> None:
    net = BalancedResNet([3, 2, 1], 1000, skip=skip, branch=0.3, signs=signs)
    assert all(np.isfinite(column).all() for column in draw(net, draws=100).values())


# ---- means


ALSO = [pytest.param(name, marks=pytest.mark.slow) for name in ("relu", "bent, standard", "random biases")]


@pytest.mark.parametrize("name", ["abs", *ALSO])
def test_means_are_the_exact_ones(name: str) -> None:
    net = NETWORKS[name]
    exact, drawn = finwidth.moments(net, X, order=4), draw(net, draws=200_000, seed=11)
    mean, variance = float(exact.mean), float(exact.variance)
    assert same_mean(drawn["K"], mean, variance)
    assert same_mean(drawn["K"] ** 2, float(exact.second_moment), float(exact.K.raw[3] - exact.second_moment**2))
    assert same_mean(drawn["dK"], float(exact.update["dK"]), float(exact.update_variance()))
    assert not same_mean(drawn["K"], mean + 0.2 * variance**0.5, variance)


def test_slopes_of_one_size_need_no_signs() -> None:
    """The signs of abs can be given to the matrix: without signs of their own its blocks have the same law."""
    with_signs, without = (BalancedResNet([3, 4, 1], 3, activation="abs", signs=signs) for signs in (True, False))
    exact = finwidth.moments(without, X, exact=True)
    assert exact.second_moment == finwidth.moments(with_signs, X, exact=True).second_moment
    one, other = draw(with_signs, seed=1), draw(without, seed=2)
    for view in VIEWS:
        assert same_law(viewed(view, one), viewed(view, other)), view


def test_without_signs_fewer_gates_are_open_and_the_mean_is_larger() -> None:
    """Hypoactivation: at n = 6, a^2 = b^2 = 1/2, |x|^2 = n_0, L = 3: 45.5 % open at the top, E[K] 7 % above paths."""
    net, draws, x = NETWORKS["no signs"], 1_000_000, [1, 1, 1]
    counted = float(finwidth.moments(BalancedResNet([3, 6, 1], 3, skip="sqrt(1/2)", branch="sqrt(1/2)"), x).mean)
    assert counted == 7
    K = draw(net, x, draws)["K"]
    assert same_mean(K, 7.49, K.var())
    assert not same_mean(K, counted, K.var())
    _, top, _ = StreamChain(net, 3.0)._forward(StreamVariates(stream(6, 0)), draws // 5)
    gates = np.array([(top[:, 0] <= 0).sum(), (top[:, 0] > 0).sum()])  # all neurons of the stream have one law
    assert same_counts(gates, np.array([0.545, 0.455]))
    assert not same_counts(gates, np.array([0.5, 0.5]))


# ---- the sampler


@pytest.mark.parametrize("name", ["relu", "no signs, random biases"])
def test_a_seed_fixes_the_numbers_whatever_the_threads(name: str) -> None:
    one, several, other = (draw(NETWORKS[name], seed=s, threads=t) for s, t in ((5, 1), (5, 3), (6, 1)))
    assert all(np.array_equal(one[quantity], several[quantity]) for quantity in one)
    assert not np.array_equal(one["K"], other["K"])


@pytest.mark.parametrize("name", ["bent, standard", "dead streams", "no signs, random biases"])
def test_a_device_draws_the_same_law(name: str) -> None:
    pytest.importorskip("torch", reason="a torch device")
    here, there = draw(NETWORKS[name], seed=1), draw(NETWORKS[name], seed=2, device=DEVICE)
    for view in VIEWS:
        assert same_law(viewed(view, here), viewed(view, there)), view


@pytest.mark.parametrize("signs", [True, False])
def test_several_inputs_have_the_same_law_at_one(signs: bool) -> None:
    """`sample_gram` shares nothing with the chain but its random numbers."""
    net = BalancedResNet([3, 20, 1], 4, signs=signs, branch="1/sqrt(depth)")
    one = draw(net)
    found = finwidth.sample_gram(net, [X], DRAWS, seed=8, y=[0.0])
    other = {str(name): column.to_numpy().reshape(DRAWS) for name, column in found.items()}
    for view in VIEWS:
        assert same_law(viewed(view, one), viewed(view, other)), view


@pytest.mark.parametrize("net", [BalancedResNet([3, 50, 1], 30), BalancedResNet([3, 40_000, 1], 3, signs=False)])
def test_memory_is_what_is_told(net: BalancedResNet) -> None:
    assert_memory_is_told(net)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (BalancedResNet([3, 4, 1], 2, weight_law="uniform"), "its weights are uniform"),
        (BalancedResNet([3, 4, 2], 2), "it has 2 outputs"),
        (BalancedResNet([3, 4, 1], 2, activation="tanh", signs=False), "its activation is tanh"),
        (BalancedResNet([3, 10**12, 1], 2), "narrower stream"),
    ],
)
def test_what_cannot_be_drawn_is_refused(net: BalancedResNet, message: str) -> None:
    with pytest.raises(FinwidthError, match=message):
        finwidth.sample(net, X, 10)


def test_inputs_out_of_range_beside_random_biases_are_refused() -> None:
    with pytest.raises(FinwidthError, match="rescale the input, or start the biases at zero"):
        finwidth.sample(NETWORKS["random biases"], [1e-200, 0, 0], 10)


@pytest.mark.parametrize("function", [finwidth.moments, finwidth.signal_moments, finwidth.infinite_width])
def test_there_are_no_exact_values_without_signs(function: Callable[..., object]) -> None:
    message = r"no fair coins; finwidth\.sample has draws at one input, finwidth\.sample_gram draws at several inputs, "
    with pytest.raises(FinwidthError, match=message):
        function(NETWORKS["no signs"], X)
    with pytest.raises(FinwidthError, match="no fair coins"):
        finwidth.growth(NETWORKS["no signs"])


def test_signs_are_true_or_false() -> None:
    with pytest.raises(FinwidthError, match="signs is 1; give True or False"):
        BalancedResNet([3, 4, 1], 2, signs=1)  # type: ignore[arg-type]
    assert str(NETWORKS["no signs, random biases"]).startswith("BalancedResNet 3,4,1 of 3 blocks (no signs) relu")
    assert NETWORKS["no signs"].describe()["signs"] is False
