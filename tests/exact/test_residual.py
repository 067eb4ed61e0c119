"""Exact moments of residual networks: against every network of a discrete law, known fractions, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

import finwidth
from exact.test_exhaustive import REVERSED, STARTS, STEEP, UP_TO_SIX_PATHS
from exhaustive import TWO_VALUED
from finwidth import Activation, BalancedResNet, FinwidthError, ResNet
from finwidth.exact.partitions import State, start_state
from finwidth.exact.residual import ResidualTransfer, ResNetMoments
from finwidth.exact.transfer import Input
from finwidth.networks.laws import WeightLaw
from residual_networks import ODD, VALUES, EveryResNet, mean, single_output

KINK = Activation("kink", 1, -1, at_zero=2)


def small(n_0: int, n: int, m: int | Sequence[int], depth: int = 1, outputs: int = 1, **options: Any) -> ResNet:
    """A network whose weights are whole numbers: signs, or 1 or 3 and a sign."""
    law: WeightLaw = options.pop("law", TWO_VALUED)
    variance, hidden = VALUES[law.name][0], m if isinstance(m, int) else max(m)
    gains = [variance * fan_in for fan_in in (n_0, n, hidden, n)]
    return ResNet([n_0, n, outputs], depth, m, weight_law=law, bias_law=TWO_VALUED, gains=gains, **options)


NETWORKS: dict[str, tuple[ResNet, Sequence[int]]] = {
    "width one": (small(1, 1, 1), [1]),
    "width one, another law": (small(1, 1, 1, law=ODD), [2]),
    "two blocks": (small(1, 1, 1, 2, law=ODD), [1]),
    "three blocks": (small(1, 1, 1, 3), [1]),
    "two in the stream": (small(1, 2, 1), [1]),
    "two in the stream, another law": (small(1, 2, 1, law=ODD, bias="none", activation="linear"), [1]),
    "two in the stream, two blocks": (small(1, 2, 1, 2), [1]),
    "three in the stream": (small(1, 3, 1), [1]),
    "two hidden": (small(1, 1, 2, law=ODD), [1]),
    "three hidden": (small(1, 1, 3), [1]),
    "two of each": (small(1, 2, 2), [1]),
    "two of each, linear": (small(1, 2, 2, activation="linear", skip=2), [1]),
    "two inputs": (small(2, 1, 1, law=ODD), [1, 3]),
    "three inputs": (small(3, 1, 2), [1, -2, 3]),
    "skip and branch": (small(1, 2, 1, skip=3, branch=2), [1]),
    "by block": (small(1, 1, 1, 2, skip=[1, 2], branch=[3, 1]), [1]),
    "hidden by block": (small(1, 1, [1, 4], 2), [1]),
    "no branch in one block": (small(1, 2, 1, 2, branch=[1, 0]), [1]),
    "no skip, no biases": (small(1, 1, 2, 2, skip=[0, 1], bias="none"), [1]),
    "no skip in the last block": (small(1, 1, 2, 2, skip=[1, 0]), [1]),
    "no skip, biases outside": (small(1, 1, 1, 2, skip=[0, 1], bias=["trained", "none", "frozen", "trained"]), [1]),
    "no skip, random biases in V": (small(1, 1, 1, 2, skip=[1, 0], bias_variance=[0, 4, 0, 0]), [1]),
    "no skip, random biases in W": (small(1, 1, 1, 2, skip=[0, 1], bias_variance=[0, 0, 4, 0]), [1]),
    "no skip, abs": (small(1, 2, 1, skip=0, activation="abs"), [1]),
    "abs": (small(1, 2, 1, activation="abs"), [1]),
    "slopes of both signs": (small(1, 2, 1, activation=STEEP), [1]),
    "open below zero": (small(1, 1, 2, activation=REVERSED, branch=2), [1]),
    "standard": (small(1, 2, 1, parameterization="standard", law=ODD, bias="none"), [1]),
    "bias scales": (small(1, 1, 1, bias_scale=[1, 2, 3, 4]), [1]),
    "frozen": (small(1, 2, 1, bias="frozen"), [1]),
    "biases of each kind": (small(1, 1, 2, bias=["trained", "frozen", "trained", "none"]), [1]),
    "random biases": (small(1, 1, 1, 2, bias_variance=[1, 4, 9, 1]), [1]),
    "random biases, another law": (small(1, 1, 1, law=ODD, bias_variance=[4, 1, 4, 1]), [1]),
    "random biases in the stem": (small(1, 2, 1, bias_variance=[4, 0, 0, 0]), [1]),
    "random biases in V": (small(1, 1, 2, bias_variance=[0, 4, 0, 0]), [1]),
    "random biases in W": (small(1, 2, 1, bias_variance=[0, 0, 4, 0]), [1]),
    "random frozen biases": (small(1, 1, 1, 2, bias="frozen", bias_variance=[1, 0, 4, 0]), [1]),
    "no input": (small(1, 2, 1, 2), [0]),
    "no input, slope at zero": (small(1, 2, 1, 2, activation=KINK), [0]),
    "no input, random biases in the stem": (small(1, 2, 1, activation=KINK, bias_variance=[1, 0, 0, 0]), [0]),
    "no input, random biases in V": (small(1, 1, 2, activation=REVERSED, bias_variance=[0, 1, 0, 0]), [0]),
    "no input, random biases in W": (small(1, 1, 1, 3, activation=KINK, bias_variance=[0, 0, 4, 0]), [0]),
    "no input, random biases in the head": (small(1, 2, 1, activation=KINK, bias_variance=[0, 0, 0, 1]), [0]),
}

WITH_EIGHT_PATHS = ("width one", "two of each, linear", "by block", "no input, slope at zero")


def engine(net: ResNet | BalancedResNet, x: Sequence[int], states: dict[str, State]) -> dict[str, Fraction]:
    given = Input.of([Fraction(each) for each in x], 8)
    values, _ = ResNetMoments.values([*states.values()], net, given, lambda number: number)
    return dict(zip(states, values, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_real_network(name: str) -> None:
    net, x = NETWORKS[name]
    real = single_output(EveryResNet(net, x))
    starts = STARTS if name in WITH_EIGHT_PATHS else UP_TO_SIX_PATHS
    assert engine(net, x, starts) == {kinds: real[kinds] for kinds in starts}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NETWORKS} - {*WITH_EIGHT_PATHS}))
def test_every_real_network_with_eight_paths(name: str) -> None:
    net, x = NETWORKS[name]
    real = single_output(EveryResNet(net, x))
    assert engine(net, x, STARTS) == {kinds: real[kinds] for kinds in STARTS}


KINDS = ("ww", "wb", "bw", "bb")


def of_two_outputs(networks: EveryResNet) -> dict[str, Fraction]:
    """Means of kernel products of two outputs, and for output 0 of the sum over c of N_c g_c^T H_0 g_0."""
    found: dict[str, Fraction] = {}
    for one, two in ("ww", "wb", "bb"):
        found[f"{one}01 {two}01"] = mean(networks.kernel(one, 0, 1), networks.kernel(two, 0, 1))
        found[f"{one}00 {two}11"] = mean(networks.kernel(one, 0, 0), networks.kernel(two, 1, 1))
    for kinds in KINDS:
        found[kinds] = sum(
            (mean(networks.output(c), networks.curvature(kinds, c, 0)) for c in range(2)), start=Fraction(0)
        )
    return found


def starts_of_two_outputs() -> dict[str, State]:
    states: dict[str, State] = {}
    for one, two in ("ww", "wb", "bb"):
        marks = ((0, 1, one), (2, 3, two))
        states[f"{one}01 {two}01"] = start_state([(0, 2), (1, 3)], marks)
        states[f"{one}00 {two}11"] = start_state([(0, 1), (2, 3)], marks)
    for kinds in KINDS:
        marks = ((0, 1, kinds[0]), (1, 2, kinds[1]))
        states[f"{kinds} 0"] = start_state([(0, 1, 2, 3)], marks)
        states[f"{kinds} 1"] = start_state([(0, 3), (1, 2)], marks)
    return states


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (small(1, 1, 1, outputs=2, law=ODD), [1]),
        (small(1, 2, 1, outputs=2, skip=2), [1]),
        (small(2, 1, 2, outputs=2, activation=STEEP, parameterization="standard"), [1, 3]),
        (small(1, 1, 1, 2, outputs=2, bias_variance=[1, 0, 4, 0]), [1]),
    ],
    ids=str,
)
def test_several_outputs(net: ResNet, x: Sequence[int]) -> None:
    real = of_two_outputs(EveryResNet(net, x))
    values = engine(net, x, starts_of_two_outputs())
    found = {name: value for name, value in values.items() if len(name) > 4}
    assert found | {kinds: values[f"{kinds} 0"] + values[f"{kinds} 1"] for kinds in KINDS} == real
    public = finwidth.moments(net, x, exact=True)
    assert public.between_outputs == real["w01 w01"] + 2 * real["w01 b01"] + real["b01 b01"]
    assert public.update["dK"] == -2 * sum(real[kinds] for kinds in KINDS)


# ---- values that another derivation found


HALF = Fraction(1, 2)
KNOWN = [  # widths, depth, hidden, skip, branch, bias, x, and E[K], E[K^2], E[dK]
    ([1, 1, 1], 1, 1, 1, "sqrt(1)", "none", [1], "6 512 -508"),
    ([1, 1, 1], 1, 1, 1, "sqrt(1)", "trained", [1], "21/2 2029/2 -810"),
    ([1, 2, 1], 1, 1, 1, "sqrt(1)", "trained", [1], "21/2 530 -333"),
    ([1, 1, 1], 1, 2, HALF, "sqrt(3/4)", "trained", [1], "53/8 41077/128 -3887/16"),
    ([1, 1, 1], 2, 1, 1, "sqrt(1/2)", "trained", [1], "101/8 63061/16 -4092"),
    ([3, 6, 1], 2, 5, 1, "sqrt(1)", "trained", [2, 1, HALF], "75/2 933919/270 -144697/90"),
]


@pytest.mark.parametrize("row", KNOWN, ids=str)
def test_gaussian_weights(row: Any) -> None:
    widths, depth, hidden, skip, branch, bias, x, values = row
    net = ResNet(widths, depth, hidden, skip=skip, branch=branch, bias=bias)
    first, second, change = map(Fraction, values.split())
    found = finwidth.moments(net, x, exact=True)
    assert (found.mean, found.second_moment, found.update["dK"]) == (first, second, change)
    rounded = finwidth.moments(net, x)
    assert rounded.second_moment == pytest.approx(float(second), rel=1e-14)


def test_uniform_weights() -> None:
    found = finwidth.moments(ResNet([2, 4, 1], 2, 3, weight_law="uniform"), [1, 2], exact=True)
    assert (found.mean, found.second_moment) == (Fraction(99, 2), Fraction(256025677, 37500))
    assert found.update["dK"] == Fraction(-1687484, 375)


# ---- forms in depth and width


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs"])
def test_mean_of_the_weights_part(depth: int, activation: str) -> None:
    """E[K_w] = |x|^2/n_0 g_stem g_head sigma^L (2 + 2 L b^2/sigma), sigma = a^2 + b^2, where branches keep lengths."""
    a2, b2 = Fraction(1, 4), Fraction(2, 3)
    net = ResNet(
        [2, 3, 1], depth, 4, skip=HALF, branch="sqrt(2/3)", activation=activation,
        gains=[3, finwidth.MLP([1, 1, 1], activation=activation).gains[0], 1, 5],
    )  # fmt: skip
    sigma = a2 + b2
    assert finwidth.moments(net, [1, 2], exact=True).K_w.mean == Fraction(5, 2) * 15 * sigma**depth * (
        2 + 2 * depth * b2 / sigma
    )


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (5, 4)])
@pytest.mark.parametrize("activation", ["relu", "linear", "leaky_relu"])
def test_growth_of_the_stream(n: int, m: int, activation: str) -> None:
    """E|x_l|^4 grows by alpha a block, and E|x_l|^2 by a^2 + b^2."""
    a2, b2 = Fraction(1, 4), Fraction(2, 3)
    net = ResNet([2, n, 1], 4, m, skip=HALF, branch="sqrt(2/3)", activation=activation)
    phi, over = net.activation, Fraction(1)
    five = 3 * phi.gate_moment(4) / phi.gate_moment(2) ** 2 - 1
    alpha = a2**2 + 2 * a2 * b2 * (1 + 2 * over / n) + b2**2 * (1 + 2 * over / n) * (1 + five / m)
    hidden = finwidth.signal_moments(net, [1, 2], exact=True).hidden
    for below, above in pairwise(hidden):
        assert above.mean == (a2 + b2) * below.mean
        assert above.second_moment == alpha * below.second_moment


@pytest.mark.parametrize(("n", "m"), [(2, 1), (4, 3)])
def test_differences_of_pairings_shrink(n: int, m: int) -> None:
    """Kernels by the stem's biases start in one pairing: E[K_00 K_11] - E[K_01^2] gains rho a block."""
    a2, b2 = Fraction(1, 4), Fraction(2, 3)
    differences = []
    for depth in (1, 2, 3):
        biases = ["trained", "none", "none", "none"]
        net = ResNet([1, n, 2], depth, m, skip=HALF, branch="sqrt(2/3)", bias=biases)
        found = engine(net, [1], starts_of_two_outputs())
        differences.append(found["b00 b11"] - found["b01 b01"])
    less = 1 - Fraction(1, n)
    rho = a2**2 + 2 * a2 * b2 * less + b2**2 * less * (1 - Fraction(1, m))
    assert differences[0]
    assert differences[1] / differences[0] == differences[2] / differences[1] == rho


def second_moment(n: int, m: int, depth: int, b2: Fraction) -> Fraction:
    """E[K_w^2] of ReLU for a = 1, |x|^2 = n_0, by hand: p of the pairing with the marks and q of the others."""
    N, M = Fraction(1, n), Fraction(1, m)
    p, q = [Fraction(1)] * 3, [Fraction(1), Fraction(0), Fraction(0)]  # by the number of marks left
    for _ in range(depth):
        hp, hq = (
            [a + 2 * b * N for a, b in zip(p, q, strict=True)],
            [b + (a + b) * N for a, b in zip(p, q, strict=True)],
        )
        total = [a + 2 * b for a, b in zip(hp, hq, strict=True)]
        p, q = (
            [own[k] + 2 * b2 * h[k] + b2**2 * ((1 - M) * h[k] + 2 * M * total[k]) for k in range(3)]
            for own, h in ((p, hp), (q, hq))
        )
        for k, below, ways in ((1, 0, 1), (2, 1, 2)):  # one of the marks is placed in the block
            p[k] += ways * (2 * b2 * hp[below] + b2**2 * ((2 + 2 * M) * hp[below] + 4 * M * hq[below]))
            q[k] += ways * b2**2 * 2 * M * hp[below]
        p[2] += b2**2 * ((4 + 4 * M) * hp[0] + 4 * M * hq[0])  # both are
        q[2] += b2**2 * 2 * M * hp[0]
    hp = [a + 2 * b * N for a, b in zip(p, q, strict=True)]
    return (1 + 2 * N) * (p[2] + 2 * q[2]) + 2 * hp[1] + hp[0]


@pytest.mark.parametrize(
    ("n", "m", "depth", "square"), [(1, 1, 1, "1"), (3, 2, 4, "1/4"), (64, 64, 16, "1"), (8, 5, 7, "2/7")]
)
def test_second_moment_by_hand(n: int, m: int, depth: int, square: str) -> None:
    found = finwidth.moments(ResNet([1, n, 1], depth, m, branch=f"sqrt({square})"), [1], exact=True)
    assert found.K_w.second_moment == second_moment(n, m, depth, Fraction(square))


RATIOS: dict[Any, dict[int, str]] = {  # E[K_w^2]/E[K_w]^2 by branch and depth
    1: {2: "1.092", 16: "1.720", 64: "9.71"},
    0.5: {2: "1.045", 16: "1.221", 64: "2.07"},
    "1/sqrt(depth)": {2: "1.066", 16: "1.073", 64: "1.073"},
}


@pytest.mark.parametrize("branch", RATIOS)
def test_relative_second_moment(branch: Any) -> None:
    for depth, ratio in RATIOS[branch].items():
        K_w = finwidth.moments(ResNet([1, 64, 1], depth, branch=branch), [1]).K_w
        digits = len(ratio.partition(".")[2])
        assert f"{float(K_w.second_moment) / float(K_w.mean) ** 2:.{digits}f}" == ratio


def deep_limit(n: int, c: float) -> tuple[float, float, float]:
    """E[K_w], E[K_w^2] and E[dK] for a = 1, b^2 = c/L, L to infinity, without biases and for |x|^2 = n_0."""
    kappa, e = 1 + 2 / n, math.exp(-6 * c / n)
    e6 = n / 6 * (1 - e)
    pi, psi = (kappa + (2 - 2 / n) * e) / 3, (kappa - (1 - 1 / n) * e) / 3
    I1, I2 = ((kappa * c**k / k + (2 - 2 / n) * each) / 3 for k, each in ((1, e6), (2, n / 6 * (c - e6))))
    J1, J2 = ((kappa * c**k / k - (1 - 1 / n) * each) / 3 for k, each in ((1, e6), (2, n / 6 * (c - e6))))
    grown = math.exp((2 + 4 / n) * c)
    square = grown * (2 * kappa + 2 * pi + 8 * kappa * I1 + 8 * kappa**2 * I2)
    return math.exp(c) * (2 + 2 * c), square, -2 * grown * (2 * psi + 8 * kappa * J1 + 8 * kappa**2 * J2)


@pytest.mark.parametrize(("n", "m", "c"), [(8, 8, 1), (8, 2, 1), (20, 20, 3), (3, 1, 1)])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_infinite_depth(n: int, m: int, c: int, activation: str) -> None:
    """The limit depends on neither the hidden width nor the activation; reached as 1/L, and extrapolated."""
    depths = (64, 128, 256, 512)
    rows = []
    for depth in depths:
        net = ResNet([1, n, 1], depth, m, branch=f"sqrt({c}/{depth})", activation=activation, bias="none")
        found = finwidth.moments(net, [1])
        rows.append([float(found.K_w.mean), float(found.second_moment), float(found.update["dK"])])
    for order in range(1, len(depths)):  # takes out 1/L, 1/L^2, ...
        rows = [[(2**order * y - x) / (2**order - 1) for x, y in zip(*two, strict=True)] for two in pairwise(rows)]
    assert rows[0] == pytest.approx(deep_limit(n, c), rel=1e-5)


# ---- what must be seen


def test_a_neuron_that_is_taken_is_not_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties that return to the stream as if nobody had stayed there: wrong from four paths on."""
    net, x = NETWORKS["two in the stream"]
    right = engine(net, x, UP_TO_SIX_PATHS)

    def any_neuron(self: ResidualTransfer, neurons: tuple[int, int]) -> Any:
        taken, after = neurons
        return math.perm(self.nets[0].widths[1], after - taken)

    monkeypatch.setattr(ResidualTransfer, "_meeting", any_neuron)
    wrong = engine(net, x, UP_TO_SIX_PATHS)
    assert {name for name in right if right[name] == wrong[name]} == {"w", "b"}


@pytest.mark.parametrize(
    "other",
    [
        {"skip": 1.5},
        {"branch": 1.5},
        {"weight_law": "gaussian"},
        {"bias": "frozen"},
        {"activation": STEEP},
        {"depth": 2},
        {"hidden": 2},
    ],
    ids=str,
)
def test_another_network_is_told_apart(other: dict[str, Any]) -> None:
    net, x = NETWORKS["two in the stream"]
    options = {"depth": 1, "hidden": 1, "weight_law": TWO_VALUED, "gains": net.gains}
    wrong = ResNet([1, 2, 1], **{**options, **other})
    real = single_output(EveryResNet(net, x))
    assert engine(wrong, x, {"ww": STARTS["ww"], "bb": STARTS["bb"]}) != {"ww": real["ww"], "bb": real["bb"]}


def test_a_block_without_skip() -> None:
    """Two matrices and one activation: lengths gain 1 + 2/n, 1 + 5/m and 1 + 2/n from stem, V and W."""
    net = ResNet([2, 3, 1], 1, 4, skip=0, bias="none")
    fourth = 3 * Fraction(5, 2) ** 2 * Fraction(5, 3) * Fraction(9, 4) * Fraction(5, 3)
    assert finwidth.signal_moments(net, [1, 2], exact=True).output.raw == (Fraction(5, 2), fourth)


@pytest.mark.parametrize(
    "options", [{"skip": 0}, {"skip": [0, 1]}, {"skip": 0, "bias_variance": [1, 0, 0, 1]}], ids=str
)
def test_a_stream_that_can_die_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(FinwidthError, match="a block without skip, in which the stream can die"):
        finwidth.moments(ResNet([2, 3, 1], 2, **options), [1, 2])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda net: finwidth.signal_moments(net, [1, 2]), "finwidth.signal_moments"),
        (lambda net: finwidth.infinite_width(net, [1, 2]), "finwidth.infinite_width"),
    ],
)
def test_refusals_name_what_was_called(call, named: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FinwidthError, match=f"^{named} cannot serve this network"):
        call(ResNet([2, 3, 1], 2, activation="tanh"))


# ---- what else comes of it


def test_infinite_width_is_the_mean() -> None:
    net = ResNet([2, 3, 1], 3, 2, branch="1/sqrt(depth)")
    assert finwidth.infinite_width(net, [1, 2]) == finwidth.moments(net, [1, 2]).mean


def test_past_the_range_of_a_double() -> None:
    """E[N^4] = 3 (1 + 2/n)/n_0^2 alpha^L for |x| = 1."""
    found = finwidth.signal_moments(ResNet([4, 4, 1], 1000), [1, 0, 0, 0]).output
    assert found.second_moment == math.inf
    assert found.log_second_moment == pytest.approx(math.log(4.5 / 16) + 1000 * math.log(7.375), rel=1e-14)


def test_very_wide() -> None:
    assert finwidth.moments(ResNet([4, 10**20, 1], 3, 10**30), [1, 0, 0, 0]).cv < 1e-9


def test_in_json() -> None:
    document: Any = finwidth.moments(ResNet([2, 3, 1], 2), [1, 2], exact=True).to_json()
    assert document["network"]["kind"] == "ResNet"
    assert document["network"]["branch_squared"] == ["1", "1"]
    assert "beta" not in document["results"]


@pytest.mark.slow  # its states have eight paths with chains of marks
def test_variance_of_the_update() -> None:
    net, x = NETWORKS["width one"]
    networks = EveryResNet(net, x)
    change = -2 * networks.output() * (networks.curvature("ww") + 2 * networks.curvature("wb"))
    found = finwidth.moments(net, x, exact=True, order=4)
    assert found.update["dK"] == mean(change)
    assert found.update_variance() == mean(change, change) - mean(change) ** 2
