"""The exact moments against networks that draw their weights, for everything that defines an MLP.

Each comparison is `stats.same_mean` with the exact variance: that of a product of kernels comes from the moments of
twice its order, that of the first update from states of eight paths.  Each case names a network that is wrong in one
respect only, and a moment by which the same draws must reject it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

import finwidth
from exact.test_enumeration import delta, moment
from finwidth import MLP, Activation
from finwidth.empirical.reference.brute_force import draw_networks, kernel_at_input, simulate
from finwidth.exact.partitions import State
from finwidth.exact.transfer import Input, compile_program, evaluate
from finwidth.networks.laws import LAWS
from stats import same_mean

Entries: TypeAlias = Sequence[Any]  # integers and fractions
Drawn: TypeAlias = dict[str, npt.NDArray[np.float64]]

NETWORKS_DRAWN = 200_000
HALF = Fraction(1, 2)

VIEWS: dict[str, Callable[[Drawn], npt.NDArray[np.float64]]] = {
    "K_w": lambda d: d["K_w"],
    "K_b": lambda d: d["K_b"],
    "K_w^2": lambda d: d["K_w"] ** 2,
    "K_w K_b": lambda d: d["K_w"] * d["K_b"],
    "K_b^2": lambda d: d["K_b"] ** 2,
    "K": lambda d: d["K"],
    "K^2": lambda d: d["K"] ** 2,
    "dK": lambda d: d["dK"],
}
POWERS = {"K_w": (1, 0), "K_b": (0, 1), "K_w^2": (2, 0), "K_w K_b": (1, 1), "K_b^2": (0, 2)}


def means(net: MLP, x: Entries) -> dict[str, float]:
    """Exact means of the views."""
    exact = finwidth.moments(net, x)
    found = {view: exact.joint[power] for view, power in POWERS.items()}
    found |= {"K": exact.mean, "K^2": exact.second_moment, "dK": exact.update["dK"]}
    return {view: float(mean) for view, mean in found.items()}


def kernel_variances(net: MLP, x: Entries) -> dict[str, float]:
    """Exact variances of the views of the kernel."""
    exact = finwidth.moments(net, x, order=4)
    found = {view: float(exact.joint[2 * a, 2 * b]) - float(exact.joint[a, b]) ** 2 for view, (a, b) in POWERS.items()}
    found |= {"K": float(exact.variance), "K^2": float(exact.raw[3]) - float(exact.raw[1]) ** 2}
    return {view: max(0.0, variance) for view, variance in found.items()}


def update_variance(net: MLP, x: Entries) -> float:
    """Exact variance of dK = -2 sum_c N_c g_c^T H_0 g_0, by the outputs c and c' of its two factors."""
    others = net.widths[-1] - 1
    outputs = {((0, 0), (0, 0)): 1, ((0, 0), (1, 0)): 2 * others, ((1, 0), (1, 0)): others}
    outputs |= {((1, 0), (2, 0)): others * (others - 1)}
    # Two derivatives by biases do not occur: no path has two of them.
    terms = [
        (count, delta(kinds, list(pair)))
        for (pair, count), kinds in product(outputs.items(), product(("ww", "wb", "bw"), repeat=2))
        if count
    ]
    values = evaluated(net, x, [state for _, state in terms])
    second: float = 4 * sum(count * value for (count, _), value in zip(terms, values, strict=True))
    return max(0.0, second - float(finwidth.moments(net, x).update["dK"]) ** 2)


def evaluated(net: MLP, x: Entries, states: Sequence[State], *, dead_layers: bool = True) -> list[float]:
    """The engine in floating point: what is subtracted from these values is not close to them."""
    program = compile_program(states, net)
    return evaluate(program, net, Input.of([Fraction(each) for each in x], 8), float, dead_layers=dead_layers)


class Case(NamedTuple):
    """A network, and one that differs in what the case is about; ``view`` tells the two apart."""

    net: MLP
    x: Entries
    wrong: MLP
    view: str
    wrong_x: Entries | None = None


STEEP = Activation("steep", 3, -HALF)
STEEPER = Activation("steeper", 3, -2)
KINK = Activation("kink", 1, HALF, at_zero=2)
REVERSED = Activation("reversed", 0, 2)

CASES: dict[str, Case] = {
    # weight laws: the same network with another law
    "gaussian": Case(MLP([2, 2, 1]), [1, 2], MLP([2, 2, 1], "uniform"), "K_w^2"),
    "uniform": Case(MLP([2, 2, 2, 1], "uniform"), [1, 2], MLP([2, 2, 2, 1]), "K_w^2"),
    "laplace": Case(MLP([2, 2, 1], "laplace"), [1, 2], MLP([2, 2, 1]), "K_w^2"),
    "smoothed-rademacher": Case(
        MLP([2, 2, 2, 1], "smoothed-rademacher"), [1, 2], MLP([2, 2, 2, 1], "uniform"), "K_w^2"
    ),
    "truncated-normal": Case(MLP([2, 2, 1], "truncated-normal"), [1, 2], MLP([2, 2, 1]), "K_w^2"),
    # inputs of the same length
    "input": Case(
        MLP([2, 2, 1], "smoothed-rademacher"), [5, 0], MLP([2, 2, 1], "smoothed-rademacher"), "K_w^2", [3, 4]
    ),
    # widths and gains in another order
    "unequal widths": Case(MLP([3, 1, 5, 2, 1]), [1, -2, HALF], MLP([3, 5, 2, 1, 1]), "K_b"),
    "gains": Case(
        MLP([2, 3, 3, 1], "uniform", gains=(1, 3, HALF)), [1, 2], MLP([2, 3, 3, 1], "uniform", gains=(3, 1, HALF)), "K"
    ),
    # the same law of the network, other learning rates
    "ntk": Case(MLP([2, 3, 3, 1]), [1, 2], MLP([2, 3, 3, 1], parameterization="standard"), "K_w"),
    "standard": Case(
        MLP([2, 3, 4, 1], "uniform", parameterization="standard"), [1, 2], MLP([2, 3, 4, 1], "uniform"), "dK"
    ),
    "mup": Case(
        MLP([2, 3, 4, 1], "uniform", parameterization="mup"),
        [1, 2],
        MLP([2, 3, 4, 1], "uniform", parameterization="standard", gains=(2, 2, Fraction(1, 4))),
        "dK",
    ),
    # biases
    "trained": Case(MLP([2, 3, 3, 1]), [1, 2], MLP([2, 3, 3, 1], bias="frozen"), "K_b"),
    "frozen": Case(MLP([2, 3, 3, 1], bias="frozen"), [1, 2], MLP([2, 3, 3, 1]), "K"),
    "none": Case(MLP([2, 3, 3, 1], "uniform", bias="none"), [1, 2], MLP([2, 3, 3, 1], "uniform"), "K"),
    "random biases": Case(
        MLP([2, 2, 3, 1], "uniform", bias_variance=4), [1, HALF], MLP([2, 2, 3, 1], "uniform", bias_variance=3), "K_w"
    ),
    "law of random biases": Case(
        MLP([1, 1, 1], "smoothed-rademacher", bias_variance=16, bias_law="gaussian"),
        [1],
        MLP([1, 1, 1], "smoothed-rademacher", bias_variance=16, bias_law="uniform"),
        "K_w^2",
    ),
    "uniform random biases": Case(
        MLP([1, 1, 1], "smoothed-rademacher", bias_variance=16, bias_law="uniform"),
        [1],
        MLP([1, 1, 1], "smoothed-rademacher", bias_variance=16, bias_law="gaussian"),
        "K_w^2",
    ),
    "random biases of a layer": Case(
        MLP([2, 2, 2, 1], "uniform", bias_variance=(0, 2, 0)),
        [1, 2],
        MLP([2, 2, 2, 1], "uniform", bias_variance=(2, 0, 0)),
        "dK",
    ),
    "random bias of the output": Case(
        MLP([2, 3, 1], "uniform", bias_variance=(0, 4)), [1, 2], MLP([2, 3, 1], "uniform", bias_variance=(4, 0)), "dK"
    ),
    "random biases, frozen": Case(
        MLP([2, 3, 3, 1], "uniform", bias="frozen", bias_variance=2), [1, 2], MLP([2, 3, 3, 1], "uniform"), "K_w"
    ),
    "random biases, no input": Case(
        MLP([2, 3, 3, 1], "uniform", bias_variance=2), [0, 0], MLP([2, 3, 3, 1], "uniform", bias_variance=1), "K"
    ),
    # activations
    "relu": Case(MLP([2, 1, 1, 1]), [1, 2], MLP([2, 1, 1, 1], activation="leaky_relu"), "K_b"),
    "leaky_relu": Case(MLP([2, 1, 1, 1], activation="leaky_relu"), [1, 2], MLP([2, 1, 1, 1]), "K_b"),
    "linear": Case(MLP([2, 3, 3, 1], activation="linear"), [1, 2], MLP([2, 3, 3, 1], activation=STEEP, gains=1), "K_w"),
    "abs": Case(MLP([2, 3, 3, 1], activation="abs"), [1, 2], MLP([2, 3, 3, 1]), "K_w^2"),
    "another activation": Case(
        MLP([2, 3, 3, 1], "uniform", STEEP), [1, 2], MLP([2, 3, 3, 1], "uniform", STEEPER), "K_w^2"
    ),
    "open below zero": Case(
        MLP([2, 2, 2, 1], "uniform", REVERSED), [1, 2], MLP([2, 2, 2, 1], "uniform", STEEP, gains=(HALF, HALF, 1)), "K"
    ),
    "no input, slope at zero": Case(
        MLP([2, 3, 3, 1], "uniform", KINK), [0, 0], MLP([2, 3, 3, 1], "uniform", Activation("bend", 1, HALF)), "K_b"
    ),
    # several outputs: K is that of the first, and all of them move the parameters
    "several outputs": Case(MLP([2, 3, 3, 3], "uniform"), [1, 2], MLP([2, 3, 3, 1], "uniform"), "dK"),
    "several outputs, mup": Case(
        MLP([2, 3, 2], "uniform", STEEP, "mup", bias_variance=1),
        [1, 2],
        MLP([2, 3, 2], "uniform", STEEP, "standard", gains=(Fraction(8, 37), Fraction(1, 3)), bias_variance=1),
        "K",
    ),
    # what nn.Linear makes
    "PyTorch": Case(MLP.pytorch([3, 4, 4, 1]), [1, 2, -1], MLP.pytorch([3, 4, 4, 1], biases="zeros"), "K_w"),
    "PyTorch, zeros": Case(MLP.pytorch([3, 4, 4, 1], biases="zeros"), [1, 2, -1], MLP.pytorch([3, 4, 4, 1]), "dK"),
    "PyTorch, kaiming_normal": Case(
        MLP.pytorch([3, 2, 1], "kaiming_normal"), [1, 2, -1], MLP.pytorch([3, 2, 1], "kaiming_uniform"), "K_w^2"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_moments_are_those_of_networks(name: str) -> None:
    net, x, wrong, control, wrong_x = CASES[name]
    drawn = simulate(net, x, NETWORKS_DRAWN, np.random.default_rng(21))
    right = means(net, x)
    variances = kernel_variances(net, x) | {"dK": update_variance(net, x)}
    for view, function in VIEWS.items():
        assert same_mean(function(drawn), right[view], variances[view]), view
    expected = means(wrong, wrong_x or x)[control]
    assert not same_mean(VIEWS[control](drawn), expected, variances[control])


@pytest.mark.parametrize("net", [MLP([2, 1, 2, 1]), MLP([1, 1, 1, 1, 1], activation=REVERSED)], ids=str)
def test_without_dead_layers_the_biases_are_rejected(net: MLP) -> None:
    x = [1, 2][: net.widths[0]]
    K_b = simulate(net, x, NETWORKS_DRAWN, np.random.default_rng(22))["K_b"]
    variance = kernel_variances(net, x)["K_b"]
    assert same_mean(K_b, evaluated(net, x, [moment("b")])[0], variance)
    assert not same_mean(K_b, evaluated(net, x, [moment("b")], dead_layers=False)[0], variance)


# ---- kernel entries of two outputs

Pairs: TypeAlias = Sequence[tuple[int, int]]

TWO_OUTPUTS: dict[str, Case] = {
    "the paper's": Case(MLP([2, 2, 2, 2], "uniform"), [1, 2], MLP([2, 2, 2, 2]), "K_01^2"),
    "one layer": Case(MLP([2, 2], parameterization="standard"), [1, 2], MLP([2, 2]), "K_00 K_11"),
    "mup, random biases": Case(
        MLP([2, 3, 3], "uniform", STEEP, "mup", bias_variance=4),
        [1, 2],
        MLP([2, 3, 3], "uniform", STEEP, "mup", bias_variance=2),
        "K_00 K_11",
    ),
    "PyTorch": Case(MLP.pytorch([2, 4, 4, 3]), [1, 2], MLP.pytorch([2, 4, 4, 3], biases="zeros"), "K_01^2"),
}
ENTRIES: dict[str, Pairs] = {
    "K_11": [(1, 1)],
    "K_01": [(0, 1)],
    "K_01^2": [(0, 1), (0, 1)],
    "K_00 K_11": [(0, 0), (1, 1)],
    "K_00 K_01": [(0, 0), (0, 1)],
}


def mean_product(net: MLP, x: Entries, pairs: Pairs) -> float:
    """E[prod_j K_{a_j b_j}] over all weights and biases."""
    kinds = product("wb", repeat=len(pairs))
    return sum(evaluated(net, x, [moment("".join(each), list(pairs)) for each in kinds]))


def entries(net: MLP, x: Entries, networks: int, rng: np.random.Generator) -> Drawn:
    """K_00, K_11 and K_01, from the first output of networks whose first two outputs are swapped or rotated.

    The output (N_0 + N_1)/sqrt(2) has the kernel (K_00 + K_11)/2 + K_01.
    """
    weights, biases = draw_networks(net, networks, rng)

    def first(mixing: npt.ArrayLike) -> npt.NDArray[np.float64]:
        whole = np.eye(net.widths[-1])
        whole[:2, :2] = mixing
        mixed = [*weights[:-1], whole @ weights[-1]], [*biases[:-1], biases[-1] @ whole.T]
        return kernel_at_input(net, *mixed, x)["K"]

    K_00, K_11 = first([[1, 0], [0, 1]]), first([[0, 1], [1, 0]])
    rotated = first(np.sqrt(0.5) * np.array([[1, 1], [1, -1]]))
    return {"00": K_00, "11": K_11, "01": rotated - (K_00 + K_11) / 2}


@pytest.mark.parametrize("name", TWO_OUTPUTS)
def test_entries_of_two_outputs_are_those_of_networks(name: str) -> None:
    net, x, wrong, control, _ = TWO_OUTPUTS[name]
    drawn = entries(net, x, NETWORKS_DRAWN, np.random.default_rng(23))
    for entry, pairs in ENTRIES.items():
        draws = np.prod([drawn[f"{a}{b}"] for a, b in pairs], axis=0)
        right = mean_product(net, x, pairs)
        variance = max(1e-24, mean_product(net, x, [*pairs, *pairs]) - right**2)  # K_01 = 0 in one layer, but rounded
        assert same_mean(draws, right, variance), entry
        if entry == control:
            assert not same_mean(draws, mean_product(wrong, x, pairs), variance)


# ---- samplers of the weight laws

DISTRIBUTIONS = {
    "gaussian": stats.norm(),
    "uniform": stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)),
    "laplace": stats.gamma(1, scale=np.sqrt(0.5)),  # of the absolute value
    "smoothed-rademacher": stats.rv_histogram(
        (np.array([1, 0, 1]), np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(13 / 12)), density=True
    ),
    "truncated-normal": stats.truncnorm(-2, 2, scale=1 / stats.truncnorm(-2, 2).std()),
}


def test_every_law_is_here() -> None:
    assert set(DISTRIBUTIONS) == set(LAWS)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_declared_moments_are_those_of_the_distribution(name: str) -> None:
    for order in (2, 4, 6, 8):
        expected = DISTRIBUTIONS[name].expect(lambda w, order=order: w**order)
        assert float(LAWS[name].moment(order)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samplers_draw_what_is_declared(name: str) -> None:
    law = LAWS[name]
    W = law.sample(np.random.default_rng(24), (NETWORKS_DRAWN, 2))
    mu_4, mu_6, mu_8 = (float(law.moment(order)) for order in (4, 6, 8))
    first, second = W.T
    assert same_mean(first, 0, 1)
    assert same_mean(first**3, 0, mu_6)
    assert same_mean(first**2, 1, mu_4 - 1)
    assert same_mean(first**4, mu_4, mu_8 - mu_4**2)
    assert same_mean(first * second, 0, 1)
    assert same_mean(first**2 * second**2, 1, mu_4**2 - 1)
    others = [float(other.moment(4)) for other in LAWS.values()]
    nearest = min((mu for mu in others if abs(mu - mu_4) > 0.2 * mu_4), key=lambda mu: abs(mu - mu_4))
    assert not same_mean(first**4, nearest, mu_8 - mu_4**2)  # the draws tell the law from its neighbour
    assert not same_mean(first**2 * first**2, 1, mu_4**2 - 1)  # entries that are copies of each other
