"""The variance of the first update and the kernel between outputs, against every real network of a discrete law."""

from __future__ import annotations

from typing import Any

import pytest

import finwidth
from exhaustive import FOUR_VALUED, RealNetwork, average
from finwidth import MLP, moments

CASES: dict[str, tuple[MLP, list[int]]] = {
    "one hidden layer": (MLP([2, 2, 1], FOUR_VALUED, gains=[50, 2]), [1, 10]),
    "dead layers": (MLP([2, 1, 1, 1], FOUR_VALUED, gains=[50, 25, 1]), [1, 10]),
    "standard": (MLP([1, 2, 1], FOUR_VALUED, gains=[25, 2], parameterization="standard"), [1]),
    "leaky": (MLP([1, 1, 1], FOUR_VALUED, "leaky_relu", gains=[25, 1]), [1]),
    "no biases": (MLP([1, 2, 1], FOUR_VALUED, gains=[25, 2], bias="none"), [1]),
}
TARGETS = (0, 3)


def change(network: RealNetwork, target: int) -> Any:
    """Delta K / lambda towards a target, from the derivatives of a real network."""
    curvature = sum(network.curvature(kinds) for kinds in ("ww", "wb", "bw", "bb"))
    return -2 * (network.output() - target) * curvature


@pytest.mark.parametrize("case", CASES)
def test_variance_is_that_of_every_network(case: str) -> None:
    net, x = CASES[case]

    def quantities(network: RealNetwork) -> dict[str, Any]:
        changes = {target: change(network, target) for target in TARGETS}
        return {f"{power} {target}": value**power for target, value in changes.items() for power in (1, 2)}

    real = average(net, x, quantities)
    found = moments(net, x, exact=True, order=4)
    for target in TARGETS:
        assert real[f"1 {target}"] == found.update["dK"]
        assert real[f"2 {target}"] - real[f"1 {target}"] ** 2 == found.update_variance(target)
    assert found.update_variance(3) > found.update_variance()


def test_decimals_agree() -> None:
    net = MLP([3, 5, 4, 1], "laplace")
    exact, fast = (moments(net, [1, 2, 3], exact=flag, order=4) for flag in (True, False))
    assert fast.update_variance(0.5) == float(exact.update_variance(0.5))


@pytest.mark.parametrize("widths", [(1, 2), (2, 2), (1, 2, 2), (2, 1, 3)])
def test_kernel_between_outputs(widths: tuple[int, ...]) -> None:
    net = MLP(widths, FOUR_VALUED, gains=[25 * n for n in widths[:-1]])
    x = [1, 10][: widths[0]]

    def quantities(network: RealNetwork) -> dict[str, Any]:
        between = network.kernel("w", 0, 1) + network.kernel("b", 0, 1)
        return {"mean": between, "square": between**2}

    real = average(net, x, quantities)
    assert real == {"mean": 0, "square": moments(net, x, exact=True).between_outputs}


def test_what_was_not_computed_is_told() -> None:
    with pytest.raises(finwidth.FinwidthError, match="order=4"):
        moments(MLP([2, 3, 1]), [1, 2]).update_variance()
    with pytest.raises(finwidth.FinwidthError, match="with one output"):
        moments(MLP([2, 3, 2]), [1, 2], order=4).update_variance()
    with pytest.raises(finwidth.FinwidthError, match="several outputs"):
        _ = moments(MLP([2, 3, 1]), [1, 2]).between_outputs
