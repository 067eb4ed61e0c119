"""The chain of residual networks, in law, against networks that draw their weights, and its identities draw by draw."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import finwidth
import kernel_draws
from devices import DEVICE
from finwidth import Activation, FinwidthError, ResNet
from finwidth.empirical.reference.residual import simulate_residual
from finwidth.sampling.one_input.residual_chain import ResidualChain
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.random.streams import stream
from finwidth.sampling.random.variates import Variates
from kernel_draws import DRAWS, Drawn, X, draw, rounded
from stats import same_law, same_mean

NORM = 9.0  # |X|^2
BENT = Activation("bent", 1, -0.6)
NETWORKS = {
    "relu": ResNet([3, 6, 1], 2, 5),
    "wide hidden": ResNet([3, 9, 1], 2, 20, branch="1/sqrt(depth)"),
    "leaky": ResNet([3, 8, 1], 3, 4, activation=Activation("leaky", 1, 0.25), skip=0.5, branch="sqrt(3/4)"),
    "abs": ResNet([3, 7, 1], 4, 3, activation="abs", branch=0.7),
    "linear": ResNet([3, 6, 1], 3, 2, activation="linear", parameterization="standard", branch=0.5),
    "below zero": ResNet([3, 4, 1], 2, 3, activation=Activation("below", 0, 1.5), gains=[1, 2, 0.5, 1]),
    "one block": ResNet([3, 6, 1], 1),
    "stream of 5": ResNet([3, 5, 1], 2, [1, 7]),
    "stream of 4": ResNet([3, 4, 1], 3, [3, 1, 2], skip=[1, 0.5, 2], branch=[0.5, 1, 0.3]),
    "stream of 3": ResNet([3, 3, 1], 3, 4, activation=BENT),
    "stream of 2": ResNet([3, 2, 1], 3, 3),
    "stream of 1": ResNet([3, 1, 1], 3, 3, activation=BENT),
    "dead streams": ResNet([3, 3, 1], 4, 2, skip=[1, 0, 0.5, 1]),
    "a branch cut": ResNet([3, 4, 1], 3, 2, branch=[1, 0, 1]),
    "scaled biases": ResNet([3, 4, 1], 2, 3, bias_scale=[0.5, 2, 0.7, 1.5]),
    "frozen biases": ResNet([3, 4, 1], 2, 3, bias=["trained", "frozen", "none", "trained"]),
    "random biases": ResNet([3, 6, 1], 2, 4, bias_variance=[0.5, 1, 0.3, 2]),
    "random biases in V": ResNet([3, 3, 1], 3, [1, 2, 3], bias_variance=[0, 1, 0, 0], activation=BENT, branch=0.7),
    "random biases in W": ResNet([3, 2, 1], 3, 2, bias_variance=[0, 0, 0.5, 0], skip=[0, 1, 0.5]),
    "large random biases": ResNet([3, 3, 1], 4, 1, activation="linear", bias="frozen", bias_variance=[0, 0, 10, 0]),
    "random biases of the head": ResNet([3, 3, 1], 2, 2, bias_variance=[0, 0, 0, 5], skip=[0, 1], bias_scale=0.5),
    "random biases of the stem": ResNet([3, 1, 1], 2, 2, bias_variance=[4, 0, 0, 0], activation="abs"),
    "no biases": ResNet([3, 6, 1], 2, 3, bias="none"),
}
VIEWS = kernel_draws.VIEWS | {
    "dK against K": lambda d: d["dK"] / d["K"] ** 2,
    "dK against output": lambda d: d["dK"] / (1e-9 + d["output"] ** 2),
}


def viewed(view: str, drawn: Drawn) -> npt.NDArray[np.float64]:
    return rounded(VIEWS[view], drawn, 11)


def assert_joint_law(net: ResNet, x: Any, draws: int) -> None:
    chain, networks = draw(net, x, draws), simulate_residual(net, x, draws, np.random.default_rng(4))
    for view in VIEWS:
        assert same_law(viewed(view, chain), viewed(view, networks)), view


@pytest.mark.parametrize("name", NETWORKS)
def test_joint_law_is_that_of_networks(name: str) -> None:
    assert_joint_law(NETWORKS[name], X, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_joint_law_is_that_of_a_million_networks(name: str) -> None:
    """Laws that differ by 0.01 anywhere are rejected."""
    assert_joint_law(NETWORKS[name], X, 10**6)


STEEP = Activation("steep", 1, 0.5, at_zero=2)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", STEEP])
def test_joint_law_at_input_zero(activation: str | Activation) -> None:
    net = ResNet([3, 4, 1], 3, 2, activation=activation, branch=0.8)
    assert_joint_law(net, [0, 0, 0], DRAWS)
    drawn = draw(net, [0, 0, 0], 100)
    assert not any(drawn[name].any() for name in ("output", "K_w", "dK"))


@pytest.mark.parametrize("variance", [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
@pytest.mark.parametrize("activation", ["relu", STEEP])
def test_joint_law_at_input_zero_beside_random_biases(activation: str | Activation, variance: list[int]) -> None:
    """The first block may be silent in every network, with its gates at phi'(0), and the others not."""
    skip = [1, 0.5, 0] if any(variance[:3]) else 1
    net = ResNet(
        [3, 3, 1],
        3,
        2,
        activation=activation,
        bias_variance=variance,
        skip=skip,
        branch=[0, 1, 0.7] if skip == 1 else 0.8,
    )
    assert_joint_law(net, [0, 0, 0], DRAWS)


# ---- wrong chains


class Fresh(ResidualChain):
    """It forgets that the forward pass knows W along z."""

    def _through_outer(self, block, at, pulled, rng):  # type: ignore[no-untyped-def]
        return super()._through_outer(
            block, at, np.sqrt(block.W.v * at.square * at.Z) * rng.standard_normal(len(pulled)), rng
        )


class Careless(ResidualChain):
    """Its tangent forgets what the backward pass said of V."""

    def _hidden_tangent(self, block, at, X, rng):  # type: ignore[no-untyped-def]
        at.q = tuple(0 * each for each in at.q)
        return super()._hidden_tangent(block, at, X, rng)


class Flat(ResidualChain):
    """It has no direction beyond the third of the stream: what V adds to the gradient there is missing."""

    def _chi_square(self, rng, draws, less=0):  # type: ignore[no-untyped-def]
        return super()._chi_square(rng, draws, less) * (less < 3)


class Aligned(ResidualChain):
    """It takes the gradient above a block to lie in the plane of x and h."""

    def _backward(self, passed, U2, along, rng):  # type: ignore[no-untyped-def]
        self.plane = True
        found = super()._backward(passed, U2, along, rng)
        self.plane = False
        return found

    plane = False

    def _chi_square(self, rng, draws, less=0):  # type: ignore[no-untyped-def]
        return super()._chi_square(rng, draws, less) * (not self.plane or less != 2)


class Forgetful(ResidualChain):
    """Its tangent forgets the direction that W has been met along from the left."""

    def _stream_tangent(self, block, at, X, hidden, rng):  # type: ignore[no-untyped-def]
        at.p = 0 * at.p
        return super()._stream_tangent(block, at, X, hidden, rng)


class Settled(ResidualChain):
    """Its backward pass takes the random biases for known."""

    def _left_open(self, share, rng, draws):  # type: ignore[no-untyped-def]
        return 0.0


class Moving(ResidualChain):
    """Its tangent moves the constant neuron of W along with z."""

    def _stream_tangent(self, block, at, X, hidden, rng):  # type: ignore[no-untyped-def]
        at.W_share = 0.0
        return super()._stream_tangent(block, at, X, hidden, rng)


@pytest.mark.parametrize(
    ("wrong", "view"),
    [
        (Fresh, "dK against K"),
        (Fresh, "dK against both"),
        (Careless, "dK against K"),
        (Flat, "K_b"),
        (Flat, "dK against K"),
        (Aligned, "K_w against K_b"),
        (Forgetful, "dK against both"),
        (Settled, "K_b"),
        (Settled, "output against K"),
        (Moving, "dK against K"),
    ],
)
def test_a_forgotten_conditioning_is_rejected(wrong: type[ResidualChain], view: str) -> None:
    net = NETWORKS[{Settled: "random biases", Moving: "large random biases"}.get(wrong, "relu")]
    chain = wrong(net, NORM).draw(Variates(stream(3, 0)), 5 * DRAWS)
    networks = simulate_residual(net, X, 5 * DRAWS, np.random.default_rng(4))
    assert not same_law(viewed(view, chain), viewed(view, networks))


@pytest.mark.parametrize("view", ["output", "K_w", "K_b", "dK"])
def test_a_wrong_skip_is_rejected(view: str) -> None:
    net, wrong = NETWORKS["leaky"], ResNet([3, 8, 1], 3, 4, activation=Activation("leaky", 1, 0.25), skip=0.7)
    networks = simulate_residual(net, X, DRAWS, np.random.default_rng(4))
    assert not same_law(viewed(view, draw(wrong)), viewed(view, networks))


# ---- draw by draw


@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernel_is_what_the_output_gains_along_its_gradient(name: str) -> None:
    """G.dx at the head + c_o R + e = K: what the tangent pass finds is what the passes before it have summed."""
    net = NETWORKS[name]
    chain, rng = ResidualChain(net, NORM), Variates(stream(5, 0))
    with np.errstate(all="ignore"):
        passed, U2, along = chain._forward(rng, 2000)
        output, K_w, K_b, G = chain._backward(passed, U2, along, rng)
        _, (X1, X2) = chain._tangent(passed, U2 * along, G, rng)
        F = output / np.sqrt(U2)
    (nu, rho), R = passed[-1].above, U2 * along**2
    head = float(net.head.weight_multiplier) * R + float(net.head.bias_multiplier)
    left, right = nu * X1 + rho * X2, F * (K_w + K_b - head)
    error = np.abs(left - right) / (np.abs(F) * (K_w + K_b))
    alive = R > 0  # the gradient of a dead stream is not N x / |x|^2 along x
    assert alive.sum() > 500
    assert error[alive].max() < 1e-12


@pytest.mark.parametrize("device", [None, DEVICE])
@pytest.mark.parametrize("name", ["relu", "leaky", "no biases", "dead streams"])
def test_inputs_of_any_size(name: str, device: str | None) -> None:
    if device:
        pytest.importorskip("torch", reason="a torch device")
    net = NETWORKS[name]
    one = draw(net, draws=400, device=device)
    for power in (-1060, -600, -515, -400, 100):
        found = draw(net, [math.ldexp(value, power) for value in X], draws=400, device=device)
        assert found["K_b"] == pytest.approx(one["K_b"], rel=1e-12)
        for quantity, times in (("output", 1), ("K_w", 2)):
            wanted = np.ldexp(one[quantity], times * power)
            assert found[quantity] == pytest.approx(wanted, rel=1e-9, abs=1e-321)
    if name == "no biases":
        found = draw(net, [math.ldexp(value, 240) for value in X], draws=400, device=device)
        assert found["dK"] == pytest.approx(np.ldexp(one["dK"], 960), rel=1e-9)


# ---- means

SERVED = [name for name in NETWORKS if name not in {"dead streams", "random biases of the head"}]  # by `moments`
QUICK = {"relu", "leaky", "stream of 2", "random biases"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SERVED])
def test_means_are_the_exact_ones(name: str) -> None:
    """Means of K, K^2 and dK; what `moments` does not serve is left out."""
    net = NETWORKS[name]
    exact, drawn = finwidth.moments(net, X, order=4), draw(net, draws=100_000, seed=11)
    assert same_mean(drawn["K"], float(exact.mean), float(exact.variance))
    for a, b in ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2)):
        if mean := float(exact.joint[a, b]):
            variance = float(exact.joint[2 * a, 2 * b]) - mean**2
            assert same_mean(drawn["K_w"] ** a * drawn["K_b"] ** b, mean, max(0.0, variance)), (a, b)
    assert same_mean(drawn["dK"], float(exact.update["dK"]), float(exact.update_variance()))


GRID = list(itertools.product((4, 200), (2, 50), (1, 6), (0.5, "1/sqrt(depth)")))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "depth", "branch"), GRID)
def test_means_over_a_grid(n: int, m: int, depth: int, branch: float | str) -> None:
    net = ResNet([3, n, 1], depth, m, branch=branch)
    exact, drawn = finwidth.moments(net, X, order=4), draw(net, draws=20_000, seed=12)
    mean, variance, update = float(exact.mean), float(exact.variance), float(exact.update["dK"])
    assert same_mean(drawn["K"], mean, variance)
    assert same_mean(
        drawn["K"] ** 2, float(exact.second_moment), float(exact.K.raw[3]) - float(exact.second_moment) ** 2
    )
    assert same_mean(drawn["dK"], update, float(exact.update_variance()))
    assert not same_mean(drawn["K"], mean + 0.5 * variance**0.5, variance)


@pytest.mark.parametrize(
    ("n", "depth", "skip", "branch"), [(50, 100, 1, "1/sqrt(depth)"), (20, 30, 1, 0.2), (200, 4, 0.5, 1)]
)
def test_mean_of_the_weight_part(n: int, depth: int, skip: float, branch: str | float) -> None:
    """E[K_w] = (|x|^2/n_0) sigma^L (2 + 2 L b^2/sigma), sigma = a^2 + b^2."""
    net = ResNet([3, n, 1], depth, skip=skip, branch=branch)
    b2, variance = float(net.branch_squared[0]), float(finwidth.moments(net, X).K_w.variance)
    sigma = float(net.skip_squared[0]) + b2
    mean = NORM / 3 * sigma**depth * (2 + 2 * depth * b2 / sigma)
    K_w = draw(net, draws=20_000)["K_w"]
    assert same_mean(K_w, mean, variance)
    assert not same_mean(K_w, mean + 0.5 * variance**0.5, variance)


@pytest.mark.parametrize(
    "net", [ResNet([3, 1, 1], 300), ResNet([3, 2, 1], 1000, skip=0.5), ResNet([3, 8, 1], 2000, branch=0.1)]
)
def test_deep_networks_give_finite_numbers(net: ResNet) -> None:
    assert all(np.isfinite(column).all() for column in draw(net, draws=200).values())


# ---- the sampler


def test_a_seed_fixes_the_numbers_whatever_the_threads() -> None:
    net = NETWORKS["relu"]
    one, same, other = (draw(net, draws=30_000, seed=seed, threads=1) for seed in (5, 5, 6))
    several = draw(net, draws=30_000, seed=5, threads=3)
    assert all(np.array_equal(one[name], same[name]) and np.array_equal(one[name], several[name]) for name in one)
    assert not np.array_equal(one["K"], other["K"])
    size = one_input_sampler(net, X).chunk_size
    assert np.array_equal(draw(net, draws=size, seed=5)["K"], one["K"][:size])


@pytest.mark.parametrize("name", ["relu", "leaky", "stream of 2", "dead streams"])
def test_a_device_draws_the_same_law(name: str) -> None:
    pytest.importorskip("torch", reason="a torch device")
    here, there = draw(NETWORKS[name], seed=1), draw(NETWORKS[name], seed=2, device=DEVICE)
    for view in VIEWS:
        assert same_law(viewed(view, here), viewed(view, there)), view


def test_provenance() -> None:
    dataset = finwidth.sample(NETWORKS["relu"], X, 10, seed=9)
    assert dataset.attrs["method"] == "residual chain"
    assert '"kind": "ResNet"' in dataset.attrs["network"]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (ResNet([3, 4, 1], 2, weight_law="uniform"), "its weights are uniform"),
        (ResNet([3, 4, 2], 2), "it has 2 outputs"),
        (ResNet([3, 4, 1], 2, bias_variance=[0, 0, 1, 0], bias_law="uniform"), "its initial biases are uniform"),
        (ResNet([3, 4, 1], 2, hidden=2**70), "a hidden width of"),
    ],
)
def test_what_cannot_be_drawn_is_refused(net: ResNet, words: str) -> None:
    with pytest.raises(FinwidthError, match=words):
        finwidth.sample(net, X, 10)


def test_draws_that_overflow_are_refused() -> None:
    with pytest.raises(FinwidthError, match="overflow a double"):
        finwidth.sample(ResNet([3, 4, 1], 3000), X, 10)


def test_inputs_out_of_range_beside_random_biases_are_refused() -> None:
    with pytest.raises(FinwidthError, match="rescale the input, or start the biases at zero"):
        finwidth.sample(NETWORKS["random biases"], [1e-200, 0, 0], 10)
