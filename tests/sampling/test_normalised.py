"""The chains of normalised networks, in law, against networks that draw their weights, and their refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import finwidth
from devices import DEVICE
from finwidth import MLP, Activation, FinwidthError, Norm, ResNet
from finwidth.sampling.one_input.normalised_chain import NormalisedChain, Normaliser
from finwidth.sampling.one_input.normalised_residual_chain import NormalisedResidualChain
from finwidth.sampling.random.streams import stream
from finwidth.sampling.random.variates import Variates
from kernel_draws import DRAWS, VIEWS, Drawn, X, assert_memory_is_told, draw, viewed
from stats import same_law

torch = pytest.importorskip("torch", reason="differentiates the networks")

from normalised_networks import simulate_normalised  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of torch.func.jvp

BENT = Activation("bent", 1, -0.6)
RANDOM = [0.5, 1, 0.3, 2]


def _mlps(norm: Norm) -> dict[str, MLP]:
    return {
        "relu": MLP([3, 6, 5, 7, 1], norm=norm),
        "bent, standard": MLP([3, 4, 3, 5, 1], activation=BENT, norm=norm, parameterization="standard"),
        "dead layers": MLP([3, 2, 2, 3, 1], norm=norm),
        "width 1": MLP([3, 1, 4, 1, 3, 1], norm=norm, activation=BENT),
        "random biases": MLP([3, 5, 4, 4, 1], norm=norm, bias_variance=RANDOM),
        "some random biases": MLP([3, 3, 2, 4, 1], norm=norm, bias_variance=[0, 1, 3, 0], activation=BENT),
        "no biases": MLP([3, 4, 1], norm=norm, bias="none"),
    }


def _resnets(norm: Norm) -> dict[str, ResNet]:
    return {
        "relu": ResNet([3, 6, 1], 2, 5, norm=norm),
        "bent, standard": ResNet([3, 5, 1], 3, 4, activation=BENT, norm=norm, parameterization="standard", skip=0.5),
        "dead streams": ResNet([3, 4, 1], 3, 2, norm=norm, skip=[1, 0, 0.5]),
        "stream of 2": ResNet([3, 2, 1], 3, 3, norm=norm),
        "stream of 3": ResNet([3, 3, 1], 2, [1, 4], norm=norm, bias_scale=[0.5, 2, 0.7, 1.5]),
        "random biases": ResNet([3, 6, 1], 2, 4, norm=norm, bias_variance=RANDOM),
        "random biases in V": ResNet([3, 4, 1], 3, [1, 2, 3], norm=norm, bias_variance=[0, 4, 0, 0], branch=0.7),
        "random biases in W": ResNet([3, 4, 1], 3, 2, norm=norm, bias_variance=[0, 0, 3, 0], skip=[0, 1, 0.5]),
        "random biases of the head": ResNet([3, 4, 1], 2, 3, norm=norm, bias_variance=[0, 0, 0, 5]),
        "linear": ResNet([3, 5, 1], 3, 2, activation="linear", norm=norm, branch=[1, 0, 1]),
    }


def _networks() -> dict[str, MLP | ResNet]:
    found: dict[str, MLP | ResNet] = {}
    for epsilon in (0.0, 0.3):
        with_epsilon = f" + {epsilon}" * bool(epsilon)
        for position in ("before", "after"):
            rms, layer = (Norm(kind, position, epsilon=epsilon) for kind in ("rms", "layer"))
            found |= {f"MLP, rms {position}{with_epsilon}: {name}": net for name, net in _mlps(rms).items()}
            linear = MLP([3, 4, 3, 5, 1], norm=layer, activation="linear", bias_variance=RANDOM)
            found[f"MLP, layer {position}{with_epsilon}: linear"] = linear
            for norm in (rms, layer):
                nets = _resnets(norm).items()
                found |= {f"ResNet, {norm.kind} {position}{with_epsilon}: {name}": net for name, net in nets}
        found[f"MLP, layer before{with_epsilon}: abs"] = MLP(
            [3, 4, 3, 5, 1], norm=Norm("layer", epsilon=epsilon), activation="abs"
        )
    return found


NETWORKS = _networks()
QUICK = [
    "MLP, rms before: relu", "MLP, rms after: relu", "MLP, rms before + 0.3: some random biases",
    "MLP, rms after: dead layers", "MLP, layer before: abs", "ResNet, rms before: relu", "ResNet, layer before: relu",
    "ResNet, rms after: dead streams", "ResNet, layer after: stream of 3", "ResNet, layer before + 0.3: random biases",
    "ResNet, layer after + 0.3: bent, standard",
]  # fmt: skip


def assert_joint_law(net: MLP | ResNet, x: list[float], draws: int, views: Iterable[str] = VIEWS) -> None:
    chain, networks = draw(net, x, draws), simulate_normalised(net, x, draws, 4)
    for view in views:
        assert same_law(viewed(view, chain), viewed(view, networks)), view


@pytest.mark.parametrize("name", QUICK)
def test_joint_law_is_that_of_networks(name: str) -> None:
    assert_joint_law(NETWORKS[name], X, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_joint_law_is_that_of_many_networks(name: str) -> None:
    """Laws that differ by 0.017 anywhere are rejected."""
    assert_joint_law(NETWORKS[name], X, 80_000, ("K_w", "K_b", "dK", "dK against both"))


@pytest.mark.parametrize(
    "net",
    [
        MLP([3, 4, 3, 1], norm="rms", bias_variance=[1, 0, 0]),
        MLP([3, 4, 3, 1], activation="leaky_relu", norm=Norm("rms", "after", epsilon=0.3), bias_variance=[0, 1, 0]),
        ResNet([3, 4, 1], 2, 3, norm="layer", bias_variance=[1, 0, 0, 0]),
        ResNet([3, 4, 1], 2, 3, activation="leaky_relu", norm=Norm("layer", "after", epsilon=0.3)),
    ],
    ids=["MLP", "MLP, epsilon", "ResNet", "ResNet, epsilon"],
)
def test_joint_law_at_input_zero(net: MLP | ResNet) -> None:
    assert_joint_law(net, [0.0, 0.0, 0.0], DRAWS)


# ---- wrong chains


class Loose(Normaliser):
    """It scales, and does not project."""

    def loose(self, square):  # type: ignore[no-untyped-def]
        return 1.0 + 0 * square


class Flat(Normaliser):
    """It takes the norm to be linear."""

    def bend(self, square, along, across, gained, pulled):  # type: ignore[no-untyped-def]
        return 0 * square


class Full(Variates):
    """Gradients have as many fresh directions as there are neurons in a group, not one fewer."""

    def chi_square(self, k, less=0, scale=1.0, out=None):  # type: ignore[no-untyped-def]
        return super().chi_square(k, 0 if less == 1 else less, scale, out)


RMS, CENTRED = MLP([3, 6, 5, 7, 1], norm=Norm("rms", "after")), MLP([3, 6, 3, 1], "gaussian", "linear", norm="layer")
PRE, POST = ResNet([3, 6, 1], 2, 5, norm="rms"), ResNet([3, 3, 1], 1, 5, norm=Norm("layer", "after"))


def chain_of(net: MLP | ResNet, norm: type[Normaliser] = Normaliser, less: int = 0) -> Any:
    """The chain of a network with another norm, that of vectors ``less`` wide."""
    if isinstance(net, MLP):
        chain = NormalisedChain(net)
        chain.norms = [norm(each.width - less, each.epsilon) for each in chain.norms]
        return chain
    residual = NormalisedResidualChain(net, 9.0)
    residual.normaliser = norm(residual.normaliser.width - less, residual.normaliser.epsilon)
    return residual


def _drawn(chain: Any, rng: Variates) -> Drawn:
    found: Drawn = chain.draw(9.0, rng, DRAWS) if isinstance(chain, NormalisedChain) else chain.draw(rng, DRAWS)
    return found


def _untilted() -> NormalisedResidualChain:
    """Its first block reads the stream as if that had no mean."""
    chain = NormalisedResidualChain(POST, 9.0)
    chain.tilted = False
    return chain


WRONG: dict[str, tuple[MLP | ResNet, Callable[[], Any], type[Variates], str]] = {
    "no projection": (RMS, lambda: chain_of(RMS, Loose), Variates, "K_w"),
    "no projection of an output": (CENTRED, lambda: chain_of(CENTRED, Loose), Variates, "K_b"),
    "no projection in a pre-norm network": (PRE, lambda: chain_of(PRE, Loose), Variates, "K_w"),
    "no projection in a post-norm network": (POST, lambda: chain_of(POST, Loose), Variates, "K_b"),
    "no curvature": (RMS, lambda: chain_of(RMS, Flat), Variates, "dK"),
    "no curvature in a pre-norm network": (PRE, lambda: chain_of(PRE, Flat), Variates, "dK against both"),
    "no curvature in a post-norm network": (POST, lambda: chain_of(POST, Flat), Variates, "dK against both"),
    "a direction too many": (RMS, lambda: chain_of(RMS), Full, "K_w"),
    "LayerNorm of n - 1": (CENTRED, lambda: chain_of(CENTRED, less=1), Variates, "output"),
    "LayerNorm of n - 1 in a post-norm network": (POST, lambda: chain_of(POST, less=1), Variates, "output"),
    "a mean of the stream that is not there": (POST, _untilted, Variates, "K_w against K_b"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_chain_is_rejected(name: str) -> None:
    net, make, variates, view = WRONG[name]
    networks = simulate_normalised(net, X, DRAWS, 4)
    right = _drawn(chain_of(net), Variates(stream(3, 0)))
    assert same_law(viewed(view, right), viewed(view, networks))
    assert not same_law(viewed(view, _drawn(make(), variates(stream(3, 0)))), viewed(view, networks))


# ---- draw by draw


class Watched(NormalisedResidualChain):
    """It keeps what the output gains along the tangent before the last norm."""

    def _normed_tangent(self, at, X1, X2, X3):  # type: ignore[no-untyped-def]
        nu, rho = at.above
        self.gained = at.U2**0.5 * at.grown * (nu * X1 + rho * X2)
        return super()._normed_tangent(at, X1, X2, X3)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("ResNet") and "dead" not in name])
def test_the_kernel_is_what_the_output_gains_along_its_gradient(name: str) -> None:
    """G.dx before the last norm and c_o R + e are K: what the tangent pass finds is what those before it summed."""
    net = NETWORKS[name]
    assert isinstance(net, ResNet)
    chain, rng = Watched(net, 9.0), Variates(stream(5, 0))
    with np.errstate(all="ignore"):
        passed, U2, along = chain._forward(rng, 500)
        _, K_w, K_b, G = chain._backward(passed, U2, along, rng)
        chain._tangent(passed, U2 * along, G, rng)
    head = float(net.head.weight_multiplier) * U2 * along**2 + float(net.head.bias_multiplier)
    assert np.abs((chain.gained - (K_w + K_b - head)) / (K_w + K_b)).max() < 1e-9


@pytest.mark.parametrize("position", ["before", "after"])
def test_without_biases_an_mlp_does_not_know_the_size_of_its_input(position: str) -> None:
    net = MLP([3, 6, 5, 1], norm=Norm("rms", position), bias="none")
    one, other = draw(net, draws=400), draw(net, [1e50 * value for value in X], draws=400)
    for name in ("output", "K_w"):
        assert other[name] == pytest.approx(one[name], rel=1e-9)


def test_the_output_is_normal_and_tells_nothing_of_the_kernel() -> None:
    """Of norms after the activation; networks of a dead layer apart."""
    drawn = draw(MLP([3, *[30] * 4, 1], norm=Norm("rms", "after")), draws=40_000)
    assert same_law(drawn["output"], np.random.default_rng(5).standard_normal(40_000))
    large = drawn["K_w"] > np.median(drawn["K_w"])
    halves = drawn["output"][large], drawn["output"][~large]
    shortest = min(map(len, halves))
    assert same_law(halves[0][:shortest], halves[1][:shortest])
    assert not same_law(halves[0][:shortest], 1.3 * halves[1][:shortest])


@pytest.mark.parametrize(
    "net",
    [MLP([3, *[2] * 300, 1], norm="rms"), ResNet([3, 2, 1], 500, norm="layer"), ResNet([3, 8, 1], 500, norm="rms")],
)
def test_deep_networks_give_finite_numbers(net: MLP | ResNet) -> None:
    assert all(np.isfinite(column).all() for column in draw(net, draws=200).values())


# ---- the sampler

SERVED = [MLP([3, 6, 5, 1], norm="rms", bias_variance=1), POST, PRE]


@pytest.mark.parametrize("net", SERVED, ids=str)
def test_a_seed_fixes_the_numbers_whatever_the_threads(net: MLP | ResNet) -> None:
    one, several, other = (draw(net, seed=seed, threads=threads) for seed, threads in ((5, 1), (5, 3), (6, 1)))
    assert all(np.array_equal(one[name], several[name]) for name in one)
    assert not np.array_equal(one["K"], other["K"])


@pytest.mark.parametrize("net", SERVED, ids=str)
def test_a_device_draws_the_same_law(net: MLP | ResNet) -> None:
    here, there = draw(net, seed=1), draw(net, seed=2, device=DEVICE)
    for view in ("output", "K_w", "dK against both"):
        assert same_law(viewed(view, here), viewed(view, there)), view


@pytest.mark.parametrize(
    "net",
    [
        MLP([3, *[50] * 30, 1], norm="rms"),
        ResNet([3, 50, 1], 30, norm="rms"),
        ResNet([3, 9, 1], 30, norm=Norm("layer", "after")),
    ],
    ids=str,
)
def test_memory_is_what_is_told(net: MLP | ResNet) -> None:
    assert_memory_is_told(net)


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (MLP([3, 6, 5, 1], norm="layer"), X, "its LayerNorm takes the mean of neurons"),
        (
            MLP([3, 6, 5, 1], norm=Norm("layer", "after"), activation="abs"),
            X,
            "its LayerNorm takes the mean of neurons",
        ),
        (MLP([3, 6, 5, 1], norm=Norm("rms", parameters="trained")), X, "trained parameters"),
        (ResNet([3, 6, 1], 2, norm=Norm("rms", parameters="trained")), X, "trained parameters"),
        (MLP([3, 6, 5, 2], norm="rms"), X, "normalised and has 2 outputs"),
        (MLP([3, 6, 5, 1], "uniform", norm="rms"), X, "its weights are uniform"),
        (MLP([3, 6, 5, 1], activation="tanh", norm="rms"), X, "its activation is tanh"),
        (MLP([3, 6, 5, 1], norm="rms"), [0.0, 0, 0], "the input is 0, where a norm without epsilon"),
        (ResNet([3, 6, 1], 2, norm="rms"), [1e90, 0, 0], r"takes one between 1e-77 and 1e77"),
    ],
)
def test_what_is_not_drawn_is_refused(net: MLP | ResNet, x: list[float], message: str) -> None:
    with pytest.raises(FinwidthError, match=message):
        finwidth.sample(net, x, 10)
