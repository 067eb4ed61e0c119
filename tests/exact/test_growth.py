"""Growth factors against exact moments of lengths and kernels, which are found by counting paths."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

import finwidth
from finwidth import MLP, Activation, BalancedResNet, FinwidthError, ResNet, growth, moments, signal_moments
from finwidth.networks.description import Network

LEAKY = Activation("leaky", 1, -0.5)
NETWORKS: dict[str, Network] = {
    "MLP": MLP([2, 3, 5, 4, 1]),
    "leaky, standard": MLP([2, 3, 1, 4, 1], activation=LEAKY, parameterization="standard", gains=[1, 2, 3, 4]),
    "ResNet": ResNet([2, 3, 1], 4, [1, 2, 5, 2], skip=[1, 0.5, 0, 2], branch=[1, 2, 0.5, 0], bias="none"),
    "leaky ResNet, gains": ResNet([2, 4, 1], 3, 2, activation=LEAKY, gains=[1, 3, 0.5, 2], branch="1/sqrt(depth)"),
    "balanced": BalancedResNet([2, 3, 1], 3, skip=[1, 0.5, 2], branch=[1, 2, 0.5], gains=[1, 3, 2]),
    "balanced, linear": BalancedResNet([2, 3, 1], 3, activation="linear"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_factors_are_those_of_the_fourth_power_of_lengths(name: str) -> None:
    """As fractions, for two inputs; of an `MLP` from the second hidden layer on, and the first from the input."""
    net = NETWORKS[name]
    found = growth(net)
    for x in ([1, 2], [3, 0]):
        lengths = signal_moments(net, x, exact=True).hidden
        ratios = [each.second_moment / each.mean**2 for each in lengths]
        if isinstance(net, MLP):
            ratios.insert(0, 1)
        assert list(found.factors) == [above / below for below, above in pairwise(ratios)]
    assert math.exp(found.exponent) == pytest.approx(float(math.prod(found.factors)), rel=1e-12)


@pytest.mark.parametrize(
    "net",
    [
        lambda n, depth: MLP([2, *[n] * (depth - 1), 1]),
        lambda n, depth: ResNet([2, n, 1], depth, 2 * n),
        lambda n, depth: BalancedResNet([2, n, 1], depth, branch=0.5),
    ],
)
def test_the_kernel_grows_alike(net) -> None:  # type: ignore[no-untyped-def]
    """E[K^2]/E[K]^2 grows by the factor a layer, in the limit of many."""
    n, ratios = 4, []
    for depth in (200, 400, 401):
        exact = moments(net(n, depth), [1, 2])
        ratios.append(exact.log_second_moment - 2 * exact.K.log_raw[0])
    factor = float(growth(net(n, 3)).factors[0])
    assert ratios[2] - ratios[1] == pytest.approx(math.log(factor), rel=0.02)
    assert (ratios[1] - ratios[0]) / 200 == pytest.approx(math.log(factor), rel=0.05)


def test_leading_forms() -> None:
    """Within O(1/width) of the exponent; 5 beta for ReLU, and 4 c/n for small branches."""
    net = MLP([3, *[50, 200] * 8, 1])
    assert growth(net).leading == pytest.approx(5 * float(net.beta_hidden))
    for kind in (ResNet, BalancedResNet):
        for n in (10**3, 10**6):
            found = growth(kind([3, n, 1], 20, branch=0.7))
            assert found.leading == pytest.approx(found.exponent, rel=20 / n)
        deep = growth(kind([3, 50, 1], 4000, branch="sqrt(3/4000)"))
        assert deep.leading == pytest.approx(4 * 3 / 50, rel=0.01)
        assert deep.exponent == pytest.approx(4 * 3 / 50, rel=0.01)


def test_it_can_be_written() -> None:
    found = growth(ResNet([3, 64, 1], 3, branch=[1, 1, 2]))
    document = json.loads(json.dumps(found.to_json()))
    assert [each["times"] for each in document["results"]["factors"]] == [2, 1]
    form = "the exponent is sum of (4 a^2 b^2/n + b^4 (2/n + 5/m))/(a^2 + b^2)^2 over blocks."
    assert form in " ".join(str(found).split())
    assert growth(MLP([2, 1])).exponent == 0


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (MLP([2, 3, 1], activation="tanh"), "its activation is tanh"),
        (MLP([2, 3, 1], "uniform"), "its weights are uniform"),
        (ResNet([2, 3, 1], 2, bias_variance=1), "random"),
        (ResNet([2, 3, 1], 2, norm="rms"), "normalised"),
        (3, "the network is 3"),
    ],
)
def test_other_networks_are_refused(net: Network, words: str) -> None:
    with pytest.raises(FinwidthError, match=words):
        finwidth.growth(net)
