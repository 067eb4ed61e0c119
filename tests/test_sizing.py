"""`width_for` and `depth_for` are what they say, also where the spread is not monotone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, BalancedResNet, Norm, ResNet, depth_for, moments, sizing, width_for
from finwidth.exact.grid import moments_grid, spread_by_depth, spread_by_width
from finwidth.networks.family import Family
from finwidth.networks.mlp import MLPOptions

X = [1.0] * 64
TORCH: dict[str, Any] = {"gains": 1 / 3, "weight_law": "uniform", "parameterization": "standard"}


def cv(width: int, depth: int, input_norm: float = 1.0, **network: Any) -> float:
    return moments(MLP([64, *[width] * (depth - 1), 1], **network), [input_norm**0.5] * 64).cv


def is_width_for(width: int, wanted: float, spreads: Sequence[float]) -> bool:
    """Whether ``width`` is the smallest from which on spreads (of widths 1, 2, ...) are at most ``wanted``."""
    wide_enough = all(spread <= wanted for spread in spreads[width - 1 :])
    return wide_enough and (width == 1 or spreads[width - 2] > wanted)


# Monotone ones, and others: networks that die when narrow, humps between narrow and wide, biases that carry K.
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "the paper's": (5, {}),
    "PyTorch's weights, which die when narrow": (20, TORCH),
    "PyTorch's weights, a hump at 1573": (6, TORCH),
    "muP that dies": (20, {"parameterization": "mup", "gains": 0.3}),
    "small gains": (12, {"gains": 0.5, "input_norm": 4.0}),
    "no biases, heavy tails": (4, {"bias": "none", "weight_law": "laplace", "activation": "abs"}),
    "random biases": (7, {"gains": 1 / 3, "bias_variance": 0.1, "parameterization": "standard"}),
    "smooth kinks": (9, {"activation": "leaky_relu", "gains": 0.7, "bias": "frozen", "bias_variance": 1.0}),
}


def check_widths(depth: int, network: dict[str, Any], upto: int, ranks: Sequence[float]) -> None:
    """Against the spreads of all widths up to ``upto``, one of which is wanted: a tie."""
    spreads = [cv(width, depth, **network) for width in range(1, upto + 1)]
    tried = 0
    for rank in ranks:
        wanted = sorted(spreads)[int(rank * (upto - 1))]
        width = width_for(depth, wanted, **network)
        if width <= upto:  # a wider one may be right for what happens beyond
            assert is_width_for(width, wanted, spreads)
            tried += 1
        else:
            assert cv(width, depth, **network) <= wanted < cv(width - 1, depth, **network)
    assert tried


@pytest.mark.parametrize("name", NETWORKS)
def test_width_for_among_all_widths(name: str) -> None:
    check_widths(*NETWORKS[name], 150, (0.5, 0.97))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_width_for_among_all_widths_to_3000(name: str) -> None:
    check_widths(*NETWORKS[name], 3000, (0.02, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 0.99, 0.999))


def test_a_width_that_is_not_enough_is_seen() -> None:
    """The negative control: what bisection gives for a network that dies when narrow."""
    spreads = [cv(width, 20, **TORCH) for width in range(1, 301)]
    assert spreads[0] <= 0.03  # a dead network has no spread
    assert not is_width_for(1, 0.03, spreads)
    assert is_width_for(width_for(20, 0.03, **TORCH), 0.03, spreads)


@pytest.mark.parametrize("below", [1e-12, 1e-6])
def test_the_tip_of_a_hump_between_widths_looked_at(below: float) -> None:
    """At 1573 the spread has a maximum, and from 1024 on not every width is looked at."""
    spreads = {width: cv(width, 6, **TORCH) for width in range(1560, 1590)}
    tip = max(spreads, key=lambda width: spreads[width])
    assert spreads[tip] > max(spreads[1560], spreads[1589])
    assert width_for(6, spreads[tip], **TORCH) < 100
    wanted = spreads[tip] * (1 - below)
    width = width_for(6, wanted, **TORCH)
    assert width > tip
    assert cv(width, 6, **TORCH) <= wanted < cv(width - 1, 6, **TORCH)


@pytest.mark.parametrize(("depth", "wanted"), [(2, 0.5), (40, 1.0), (100, 0.02), (3, 1e-5)])
def test_width_for_is_the_smallest(depth: int, wanted: float) -> None:
    width = width_for(depth, wanted)
    assert cv(width, depth) <= wanted < cv(width - 1, depth)


DEEP: dict[str, tuple[int, dict[str, Any]]] = {
    "the paper's": (100, {}),
    "rises, falls and settles": (100, {"gains": 1.0}),
    "PyTorch's": (30, TORCH | {"bias_variance": 1 / 90}),
    "muP": (20, {"parameterization": "mup", "gains": 1.5, "weight_law": "laplace"}),
    "dies": (2, {"gains": 1.0}),
}


@pytest.mark.parametrize("name", DEEP)
def test_depth_for_among_all_depths(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_DEEPEST", 150)
    width, network = DEEP[name]
    spreads = [cv(width, depth, **network) for depth in range(1, 151)]
    assert spread_by_depth(width, range(1, 151), X, **network) == spreads
    for wanted in (*np.quantile(spreads[1:], [0.0, 0.2, 0.5, 0.9]), spreads[6], spreads[20]):  # two are ties
        largest = max(depth for depth, spread in enumerate(spreads, 1) if spread <= wanted)
        unbounded: AbstractContextManager[Any] = (
            pytest.warns(UserWarning, match="no largest") if largest == 150 else nullcontext()
        )
        with unbounded:
            assert depth_for(width, float(wanted), **network) == largest


def test_spreads_past_the_range_of_their_squares() -> None:
    depth = int(depth_for(1, 1e200))
    assert cv(1, depth) <= 1e200 < cv(1, depth + 1)
    width = width_for(500, 1e170)
    assert cv(width, 500) <= 1e170 < cv(width - 1, 500)
    assert width_for(4, 1e300) == width_for(4, 1e300, activation="tanh") == 1


def test_depth_for_without_a_largest_depth() -> None:
    """The spread falls again after three layers: every depth from 6 on is within 0.145."""
    assert cv(100, 4, gains=1) > 0.145 > cv(100, 6, gains=1) > cv(100, 1000, gains=1)
    with pytest.warns(UserWarning, match="every depth looked at from 6 to 10000"):
        assert depth_for(100, 0.145, gains=1) == 10_000


def test_advice_follows_the_network() -> None:
    assert width_for(8, 0.1, weight_law="laplace") > width_for(8, 0.1) > width_for(8, 0.1, weight_law="uniform")
    assert width_for(1, 0.1) == 1


def test_width_grows_with_depth_over_spread_squared() -> None:
    """CV^2 is about a constant times d/n when small."""
    width = width_for(32, 0.04)
    assert width_for(64, 0.04) / width == pytest.approx(2, rel=0.05)
    assert width_for(32, 0.02) / width == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("network", [{}, TORCH, {"bias_variance": 0.3, "activation": "abs"}])
def test_one_pass_over_widths_is_the_grid(network: dict[str, Any]) -> None:
    widths = [1, 2, 7, 100, 10**6]
    assert spread_by_width(widths, 5, X, **network) == pytest.approx(
        moments_grid(widths, [5], X, **network).cv.to_numpy()[:, 0], rel=1e-6
    )


# ---- residual networks

RESIDUAL: dict[str, tuple[type[ResNet | BalancedResNet], dict[str, Any]]] = {
    "plain": (ResNet, {}),
    "1/sqrt(depth)": (ResNet, {"branch": "1/sqrt(depth)"}),
    "no biases, heavy tails": (ResNet, {"bias": "none", "weight_law": "laplace", "activation": "abs", "branch": 0.5}),
    "PyTorch's weights, hidden": (ResNet, TORCH | {"gains": [1 / 3, 2, 1 / 3, 1 / 3], "hidden": 200}),
    "balanced": (BalancedResNet, {"branch": "sqrt(1/2)", "skip": "sqrt(1/2)"}),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_widths_of_residual_networks(name: str) -> None:
    kind, options = RESIDUAL[name]

    def spread(width: int, depth: int) -> float:
        return moments(kind([64, width, 1], depth, **options), X).cv

    depth = 1 if name == "balanced" else 6
    wanted = 0.99 * spread(57, depth)
    width = width_for(depth, wanted, kind=kind, **options)
    assert spread(width, depth) <= wanted < spread(width - 1, depth)
    assert max(spread(wider, depth) for wider in (width, width + 1, 2 * width, 50 * width)) <= wanted


def test_depths_of_residual_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths that are looked at are some apart from 32 on."""
    monkeypatch.setattr(sizing, "_DEEPEST", 100)
    monkeypatch.setattr(sizing, "_EVERY_DEPTH", 32)
    monkeypatch.setattr(sizing, "_RATIO", 1.2)
    spreads = [moments(ResNet([64, 30, 1], depth, branch=0.3), X).cv for depth in range(1, 101)]
    for wanted in (1.01 * spreads[0], spreads[20], 0.999 * spreads[53], 1.0001 * spreads[80]):
        largest = max(depth for depth, spread in enumerate(spreads, 1) if spread <= wanted)
        assert depth_for(30, wanted * (1 + 1e-12), kind=ResNet, branch=0.3) == largest
    with pytest.warns(UserWarning, match="every depth looked at from 1 to 100"):
        assert depth_for(30, 1.01 * spreads[-1], kind=ResNet, branch=0.3) == 100


def test_any_depth_will_do_with_small_branches() -> None:
    """The limit of infinite depth is 0.09319 at this width, approached from below."""
    options: dict[str, Any] = {"kind": ResNet, "branch": "1/sqrt(depth)"}
    assert depth_for(400, 0.0932, **options) == np.inf
    largest = depth_for(400, 0.0931, **options)
    cvs = [moments(ResNet([64, 400, 1], int(largest) + more, branch="1/sqrt(depth)"), X).cv for more in (0, 1)]
    assert cvs[0] <= 0.0931 < cvs[1]
    with pytest.warns(UserWarning, match="no largest"):  # between the spread at 10^4 blocks and the limit
        assert depth_for(400, 0.0931939735, **options) == 10_000
    with pytest.raises(
        finwidth.FinwidthError, match=r"that of 1 is 0.0784, and the smallest 0.0784; raise cv or width"
    ):
        depth_for(400, 0.05, **options)


# ---- by draws

DRAWN_ERROR = 0.1  # stated: a width by draws is right to about this


def by_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_must_be_drawn", lambda family: True)
    monkeypatch.setattr(sizing, "where_it_serves", lambda net, x: None)


@pytest.mark.parametrize(
    ("depth", "wanted", "network"),
    [(4, 0.1, {}), (4, 0.5, {}), (5, 0.05, {"activation": "linear"}), (6, 0.3, {"parameterization": "mup"})],
)
def test_widths_by_draws_are_right_where_exact_ones_exist(
    depth: int, wanted: float, network: MLPOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = width_for(depth, wanted, **network)
    by_draws(monkeypatch)
    assert width_for(depth, wanted, **network) == pytest.approx(exact, rel=DRAWN_ERROR)


@pytest.mark.parametrize(
    ("width", "wanted", "network"),
    [(100, 0.5, {}), (20, 1.0, {"activation": "linear"}), (64, 0.1, {}), (150, 0.3, {"parameterization": "mup"})],
)
def test_depths_by_draws_are_right_where_exact_ones_exist(
    width: int, wanted: float, network: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A depth is the last of whole ones, so its error is told by the spreads there and one deeper: half as large."""
    by_draws(monkeypatch)
    depth = int(depth_for(width, wanted, **network))
    assert cv(width, depth, **network) <= wanted * (1 + DRAWN_ERROR / 2)
    assert cv(width, depth + 1, **network) > wanted * (1 - DRAWN_ERROR / 2)


def test_residual_networks_by_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that are known, and one of a smooth activation at which other draws have the spread."""
    exact = width_for(4, 0.3, kind=ResNet, branch="1/sqrt(depth)")
    with monkeypatch.context() as patch:
        by_draws(patch)
        assert width_for(4, 0.3, kind=ResNet, branch="1/sqrt(depth)") == pytest.approx(exact, rel=DRAWN_ERROR)
    width = width_for(3, 0.3, kind=ResNet, activation="gelu", branch=0.5)
    K = finwidth.sample_gram(ResNet([64, width, 1], 3, activation="gelu", branch=0.5), [X], 5000, seed=17).K.to_numpy()
    assert float(K.std() / K.mean()) == pytest.approx(0.3, rel=DRAWN_ERROR / 2 + 3 / np.sqrt(2 * 5000))


FIRST_ORDER: list[tuple[int, float, dict[str, Any]]] = [
    (4, 0.1, {}),
    (8, 0.05, {"bias": "none"}),
    (6, 0.25, {}),
    (6, 0.2, {"parameterization": "mup"}),
    (6, 0.045, {"gains": 1 / 3, "parameterization": "standard"}),  # the spread rises from width 171 to 1573
]


@pytest.mark.parametrize(("depth", "wanted", "network"), FIRST_ORDER)
def test_sizes_to_first_order_are_right_where_exact_ones_exist(
    depth: int, wanted: float, network: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any draw; at three quarters of the width the spread is seen to be larger."""
    exact = width_for(depth, wanted, **network)
    monkeypatch.setattr(sizing, "_must_be_drawn", lambda family: True)
    monkeypatch.setattr(sizing, "kernel_matrix_sampler", None)
    width = width_for(depth, wanted, **network)
    assert width == pytest.approx(exact, rel=0.015)
    assert cv(3 * width // 4, depth, **network) > wanted * 1.05


def test_depths_to_first_order_are_right_where_exact_ones_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    for network in (MLPOptions(), MLPOptions(bias="none"), MLPOptions(parameterization="mup")):
        exact = depth_for(9000, 0.1, **network)
        with monkeypatch.context() as patch:
            patch.setattr(sizing, "_must_be_drawn", lambda family: True)
            patch.setattr(sizing, "kernel_matrix_sampler", None)
            assert abs(depth_for(9000, 0.1, **network) - exact) <= 1


def test_first_order_is_not_asked_where_it_does_not_serve() -> None:
    """Large spreads, deep networks; SiLU's means move long before its spread is large."""
    family, x = Family(MLP, {"activation": "silu"}), [1.0] * 64
    found = [sizing._width_to_first_order(family, *asked, x) for asked in ((3, 0.5), (65, 0.01), (9, 0.1), (3, 0.1))]
    assert found[:3] == [None, None, None]
    assert found[3] is not None
    assert "leaves out" in sizing.spread_from(family.net(64, found[3], 3), x)
    assert sizing.spread_from(family.net(64, found[3] // 10, 3), x) == "draws"


def test_depth_for_smooth_activations() -> None:
    """The largest depth, by other draws; and one that deeper networks keep, for their signal vanishes."""
    depth = depth_for(100, 0.3, activation="tanh")
    assert drawn_cv(100, round(0.85 * depth), 5_000, activation="tanh") < 0.3
    assert drawn_cv(100, round(1.15 * depth) + 1, 5_000, activation="tanh") > 0.3
    with pytest.warns(UserWarning, match="no largest"):
        assert depth_for(30, 0.5, activation="tanh", gains=0.3) == 32


def drawn_cv(width: int, depth: int, draws: int, **network: Any) -> float:
    K = finwidth.sample_gram(MLP([64, *[width] * (depth - 1), 1], **network), [X], draws, seed=17).K.to_numpy()
    return float(K.std() / K.mean())


def check_smooth(depth: int, wanted: float, draws: int, **network: Any) -> None:
    """The spread at the width found and at a narrower one, by other draws; half of a width's error is in its spread."""
    width = width_for(depth, wanted, **network)
    error = DRAWN_ERROR / 2 + 3 / np.sqrt(2 * draws)
    found = drawn_cv(width, depth, draws, **network)
    assert found <= wanted * (1 + error)
    if width > 1:
        assert drawn_cv(min(width - 1, int(0.8 * width)), depth, draws, **network) > wanted
    print(f"{network} d = {depth}: width {width}, spread {found:.4f} for {wanted}")


def test_width_for_smooth_activations() -> None:
    check_smooth(3, 0.2, 10_000, activation="tanh")
    check_smooth(4, 0.3, 5_000, activation="gelu", parameterization="standard")


@pytest.mark.slow
@pytest.mark.parametrize("phi", ["tanh", "erf", "gelu", "silu"])
@pytest.mark.parametrize("parameterization", ["ntk", "standard", "mup"])
def test_width_for_smooth_activations_at_length(phi: str, parameterization: str) -> None:
    for depth, wanted in ((2, 0.5), (3, 0.1), (8, 0.2)):
        check_smooth(depth, wanted, 4_000, activation=phi, parameterization=parameterization)


def robust_spread(net: MLP | ResNet, x: Sequence[float] = X) -> tuple[float, float]:
    """From the chain at one input, which shares no code with `sample_gram`."""
    found = finwidth.summarize(net, x, draws=40_000).spread
    assert found is not None
    return found.value, found.se


@pytest.mark.parametrize("norm", ["rms", Norm("rms", "after", epsilon=0.01)], ids=str)
@pytest.mark.parametrize("depth", [3, 6])
def test_width_for_of_normalised_networks(depth: int, norm: str | Norm) -> None:
    """The spread at the width found is the one asked for, to 10%; at widths half and twice it is not."""
    width = width_for(depth, 0.3, norm=norm)
    at, half, twice = (
        robust_spread(MLP([64, *[n] * (depth - 1), 1], norm=norm))[0] for n in (width, width // 2, 2 * width)
    )
    assert at == pytest.approx(0.3, rel=0.1)
    assert twice < 0.27
    assert half > 0.33
    deepest = depth_for(width, 0.3, norm=norm)
    assert abs(deepest - depth) <= 1


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_sizes_of_normalised_residual_networks(norm: str) -> None:
    width = width_for(4, 0.25, kind=ResNet, norm=norm)
    assert robust_spread(ResNet([64, width, 1], 4, norm=norm))[0] == pytest.approx(0.25, rel=0.1)
    assert abs(depth_for(width, 0.25, kind=ResNet, norm=norm) - 4) <= 1


def test_normalised_networks_that_die_have_a_spread_all_the_same() -> None:
    """K is 0 in more than half of the narrow ones, whose spread relative to the median is infinite."""
    width = width_for(12, 0.6, norm="rms", bias="none")
    net = MLP([64, *[width] * 11, 1], norm="rms", bias="none")
    assert robust_spread(net)[0] == pytest.approx(0.6, rel=0.15)
    assert width_for(1, 0.3, norm="layer") == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: width_for(0, 0.1), "depth is 0"),
        (lambda: width_for(4.5, 0.1), "depth is 4.5"),  # type: ignore[arg-type]
        (lambda: width_for(4, 0), "cv is 0"),
        (lambda: width_for(4, float("nan")), "cv is nan"),
        (lambda: width_for(4, 1e-9), "no width up to"),
        (lambda: width_for(2, 1e-9, activation="tanh"), "no width up to"),
        (
            lambda: width_for(33, 0.1, activation="tanh"),
            "at most 32 for a smooth.*first order in 1/width does not",
        ),
        (lambda: width_for(3, 0.1, gains=[2, 2, 1]), "give one value"),
        (lambda: width_for(4, 0.1, activation="tanh", weight_law="uniform"), 'give weight_law="gaussian"'),
        (lambda: depth_for(-3, 0.1), "width is -3"),
        (lambda: width_for(4, 0.05, kind=ResNet, hidden=16), "no width up to"),
        (lambda: width_for(4, 0.05, skip=2), "skip is no option of kind=MLP"),
        (
            lambda: width_for(4, 0.1, norm="rms", weight_law="uniform"),
            'with a norm is drawn.*give weight_law="gaussian"',
        ),
        (lambda: width_for(33, 0.1, norm="layer"), "at most 32 for a norm"),
        (lambda: depth_for(10**4, 0.1, norm="rms"), "at most 8192 for a norm"),
        (lambda: depth_for(1, 0.1, norm="layer"), "give widths of at least 2"),
        (lambda: width_for(4, 0.1, kind=ResNet, activation="tanh", weight_law="uniform"), 'give weight_law="gaussian"'),
        (lambda: width_for(4, 0.05, kind=dict), "give one of finwidth.MLP"),  # type: ignore[arg-type]
        (lambda: depth_for(10, 0.1, input_norm=-1), "input_norm is -1"),
        (lambda: depth_for(10**4, 0.1, activation="gelu"), "at most 8192 for a smooth"),
        (lambda: depth_for(10, 0.1, activation="gelu", weight_law="laplace"), 'give weight_law="gaussian"'),
    ],
)
def test_mistakes_are_told(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(finwidth.FinwidthError, match=words):
        call()
