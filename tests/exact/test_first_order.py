"""What the expansion says of one input, and the rule for whether it serves: what it leaves out of Var K."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, SmoothActivation
from finwidth.exact.expansion.expansion import OF_MEANS, SERVED
from finwidth.exact.expansion.one_input import FirstOrder, only_to_first_order, to_first_order, where_it_serves

SIN = SmoothActivation("sin", np.sin, np.cos, 1, lambda y: -np.sin(y))
BARE = SmoothActivation("bare tanh", np.tanh, lambda y: 1 - np.tanh(y) ** 2)


def test_it_is_the_expansion() -> None:
    net = MLP([2, 30, 50, 3], activation="gelu", bias_variance=0.1)
    found, wide = to_first_order(net, [1, -0.5]), finwidth.expansion(net, [[1, -0.5]], [[0, 0, 0]])
    assert (found.infinite_width, found.mean) == (wide.K[0].item(), wide.K.sum().item())
    assert (found.variance, found.change) == (wide.K_covariance[1].item(), wide.dK[1].item())
    assert found.cv**2 == pytest.approx(wide.attrs["relative_variance"], rel=1e-12)
    told = wide.attrs["relative_variance"] + OF_MEANS * wide.attrs["relative_correction"] + 1 / 30
    assert found.left_out == pytest.approx(told)
    assert found.verdict == wide.attrs["first_order"]
    square = found.means["K^2"] - (found.mean**2 + found.variance)  # without the square of a correction
    assert square == pytest.approx(-(found.correction**2), rel=1e-6)


def test_the_verdict_is_that_of_the_rule() -> None:
    narrow, wide = (to_first_order(MLP([2, n, n, 1], activation="tanh"), [1, 2]) for n in (20, 200))
    assert (narrow.serves, wide.serves) == (narrow.left_out <= SERVED, wide.left_out <= SERVED) == (False, True)
    assert narrow.verdict.startswith("does not serve: Var K may be larger by")
    assert wide.verdict.startswith("serves: Var K is larger by at most about")
    assert where_it_serves(MLP([2, 20, 20, 1], activation="tanh"), [1, 2]) is None
    assert where_it_serves(MLP([2, 200, 200, 1], activation="tanh"), [1, 2]) == wide


def test_where_there_is_no_answer() -> None:
    """Other weights; a function that cannot be integrated: nothing serves, and nothing is raised."""
    assert where_it_serves(MLP([2, 200, 1], "uniform", "tanh"), [1, 2]) is None
    assert where_it_serves(MLP([2, 200, 1], activation=SmoothActivation("exp", np.exp, np.exp)), [5, 0]) is None
    assert not only_to_first_order(MLP([2, 200, 1], "uniform", "tanh"))
    assert not only_to_first_order(MLP([2, 200, 1], activation="tanh", norm="rms"))


def test_without_a_second_derivative_there_is_no_change() -> None:
    found = to_first_order(MLP([2, 50, 1], activation=BARE), [1, 2])
    assert found.change is None
    assert set(found.means) == {"K", "K^2"}
    assert found.mean == pytest.approx(to_first_order(MLP([2, 50, 1], activation="tanh"), [1, 2]).mean, rel=1e-9)


SETTINGS: list[dict[str, Any]] = [
    {}, {"bias": "none"}, {"parameterization": "mup"}, {"parameterization": "standard"}, {"bias_variance": 1},
    {"gains": 3},
]  # fmt: skip


def shares_left_out(activation: str, depths: tuple[int, ...], sizes: tuple[float, ...]) -> list[float]:
    """What is left out of exact variances over what is told, where first order is said to serve."""
    shares = []
    for options, depth, width, size in product(SETTINGS, depths, (10, 100, 1000), sizes):
        net, x = MLP([2, *[width] * (depth - 1), 1], activation=activation, **options), [math.sqrt(size)] * 2
        found = where_it_serves(net, x)
        if found is not None:
            more = float(finwidth.moments(net, x).variance) / found.variance - 1
            assert -1e-9 < more < found.left_out, net
            shares.append(more / found.left_out)
    return shares


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_what_is_left_out_of_exact_variances(activation: str) -> None:
    """Two slopes, where the whole variance is known: more than first order by a share from 0 to what is told."""
    shares = shares_left_out(activation, (2, 3, 9), (1.0,))
    assert len(shares) > 25
    assert 0.3 < max(shares) < 1  # the rule is not idle


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", "linear"])
def test_what_is_left_out_over_a_grid(activation: str) -> None:
    shares = shares_left_out(activation, (2, 3, 5, 9, 33, 64), (0.1, 10.0))
    print(f"{activation}: {len(shares)} networks, at most {max(shares):.2f} of what is told")
    assert len(shares) > 75


# ---- draws


def more_than_first_order(found: FirstOrder, K: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """By which share Var K of draws is larger than first order, and its standard error."""
    square = np.square(K - K.mean()) / found.variance
    return float(square.mean()) - 1, float(square.std()) / math.sqrt(len(K))


def at_the_border(
    activation: str | SmoothActivation, depth: int, size: float, **options: Any
) -> tuple[MLP, list[float]]:
    """The narrowest network that is said to be served, about, in the NTK parameterization."""
    n, x = 10**4, [math.sqrt(size)] * 2
    wide = to_first_order(MLP([2, *[n] * (depth - 1), 1], activation=activation, **options), x)
    n = math.ceil(n * wide.left_out / SERVED)
    return MLP([2, *[n] * (depth - 1), 1], activation=activation, **options), x


def check_border(activation: str | SmoothActivation, depth: int, size: float, draws: int, **options: Any) -> None:
    net, x = at_the_border(activation, depth, size, **options)
    found = to_first_order(net, x)
    assert SERVED * (1 - 2 / net.widths[1]) < found.left_out <= SERVED  # of one neuron fewer it would not serve
    K = finwidth.sample_gram(net, [x], draws, seed=depth, threads=1).K.to_numpy().ravel()
    more, error = more_than_first_order(found, K)
    assert -6 * error < more < found.left_out + 6 * error
    assert abs(K.mean() / found.mean - 1) < 0.005 + 6 * K.std() / K.mean() / math.sqrt(draws)
    print(f"{net}: {more:.3f} +- {error:.3f} of {found.left_out:.3f}")


def test_draws_at_the_border() -> None:
    check_border("tanh", 3, 1.0, 20_000)
    check_border(SIN, 3, 1.0, 20_000)


def test_draws_far_beyond_the_border() -> None:
    """The negative control: SiLU at gain 2, whose means move long before the spread is large."""
    net = MLP([2, *[64] * 8, 1], activation="silu")
    found = to_first_order(net, [1, 1])
    assert found.left_out > 1
    K = finwidth.sample_gram(net, [[1, 1]], 4_000, seed=1, threads=1).K.to_numpy().ravel()
    more, error = more_than_first_order(found, K)
    assert more > SERVED + 3 * error


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "erf", "gelu", "silu", SIN], ids=str)
@pytest.mark.parametrize(("depth", "draws"), [(2, 50_000), (3, 50_000), (5, 20_000), (9, 5_000)])
def test_many_draws_at_the_border(activation: str | SmoothActivation, depth: int, draws: int) -> None:
    for size in (0.1, 1.0, 10.0):
        check_border(activation, depth, size, draws)
