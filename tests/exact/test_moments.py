"""`finwidth.moments` as users call it: known values, limits, sizes, mistakes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import finwidth
from finwidth import MLP, Activation, FinwidthError, WeightLaw, moments
from finwidth.paper.paths import enumerate_deltas


def test_value_to_recognise() -> None:
    """theory.md, part II."""
    found = moments(MLP([2, 3, 3, 1]), [1, 2], exact=True)
    assert (found.K_w.mean, found.K_b.mean, found.mean) == (Fraction(15, 2), Fraction(31, 16), Fraction(151, 16))
    assert (found.K_w.second_moment, found.K_b.second_moment) == (Fraction(2300, 9), Fraction(473, 72))
    assert found.mixed == Fraction(65, 2)
    assert found.update == {"D_ww": Fraction(650, 9), "D_wb": Fraction(35, 6), "D_bb": 0, "dK": Fraction(-1510, 9)}
    assert found.second_moment == Fraction(2300, 9) + 2 * Fraction(65, 2) + Fraction(473, 72)
    assert found.variance == found.second_moment - found.mean**2


def test_one_neuron_by_hand() -> None:
    """Widths (1, 1, 1), x = 1: N = w2 sqrt(2) max(w1, 0).

    With g = 1{w1 > 0}: K_w = 2 g w2^2 + 2 g w1^2 and K_b = 1 + g w2^2, and g^T H g = 2 sqrt(2) w1 w2 g (2 + 1).
    """
    found = moments(MLP([1, 1, 1]), [1], exact=True)
    assert found.K_w.mean == Fraction(1, 2) * (2 + 2)
    assert found.K_b.mean == 1 + Fraction(1, 2)
    assert found.K_w.second_moment == Fraction(1, 2) * (4 * 3 + 4 * 3 + 2 * 4)
    assert found.K_b.second_moment == 1 + 2 * Fraction(1, 2) + Fraction(1, 2) * 3
    assert found.mixed == Fraction(1, 2) * (2 + 2) + Fraction(1, 2) * (2 * 3 + 2)
    # Delta_ww + 2 Delta_wb = N g^T H g: the path w1, w2 with both derivatives, by weights (twice 2) and by the bias.
    assert found.update["dK"] == -2 * Fraction(1, 2) * (8 + 4)


def test_one_layer() -> None:
    found = moments(MLP([3, 1]), [1, 2, 3], exact=True, order=4)
    assert found.raw == tuple((Fraction(14, 3) + 1) ** p for p in range(1, 5))
    assert found.cv == found.skewness == found.kurtosis == 0
    assert found.update["dK"] == 0


@pytest.mark.parametrize("phi", ["relu", "leaky_relu", "linear", "abs"])
def test_input_zero(phi: str) -> None:
    """Every pre-activation is exactly zero, so every slope is phi'(0)."""
    found = moments(MLP([2, 3, 1], activation=phi, gains=1), [0, 0], exact=True)
    slope = {"leaky_relu": Fraction(1, 100), "linear": Fraction(1)}.get(phi, Fraction(0))
    assert found.K_w.mean == 0
    assert found.K_b.mean == 1 + slope**2  # sum over n = 3 neurons of weight variance 1/3
    assert found.update["dK"] == 0


def test_overflow_gives_logarithms() -> None:
    """beta = 1000: a double overflows; depth 1000 at width 1 grows by 6/... per layer, so the logarithm is known."""
    net = MLP([1] * 1001 + [1])
    found = moments(net, [1.0])
    assert float(net.beta_hidden) == 1000
    assert found.second_moment == math.inf
    # Linear growth apart, E[K_w^2] gains mu_4 2^2/2 = 6 a layer.
    shorter = moments(MLP([1] * 1000 + [1]), [1.0])
    growth = found.K_w.log_second_moment - shorter.K_w.log_second_moment
    assert growth == pytest.approx(math.log(6), abs=0.003)
    document = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(document)["results"]["quantities"]["K^2"]["exact"]["value"] is None


def test_what_overflows_even_the_usual_decimals_has_logarithms() -> None:
    """Python's own decimals end at 10^999999; the moments have their own context."""
    found = moments(MLP([4] * 2000 + [1], gains=1e300), [1, 0, 0, 0])
    assert found.K.log_raw[0] > 500_000 * math.log(10)
    assert found.log_by_name["K^2"] == found.log_second_moment
    document: Any = found.to_json()
    assert document["results"]["quantities"]["dK"]["exact"]["log"] == found.log_by_name["dK"] > 2_000_000


@pytest.mark.parametrize("law", ["gaussian", "uniform"])
def test_first_use_is_quick(law: str) -> None:
    """In a process that has compiled nothing; the calls of functions are counted, which no busy machine changes."""
    code = f"""
import cProfile, finwidth

def count(run):
    profile = cProfile.Profile()
    profile.runcall(run)
    return sum(entry.callcount for entry in profile.getstats())

net = finwidth.MLP([3, 4, 5, 1], "{law}", "leaky_relu", bias_variance=1, bias_law="{law}")
print(count(lambda: finwidth.moments(net, [1, 2, 3], order=4)))
print(count(finwidth.moments(net, [1, 2, 3], order=4).update_variance))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert max(map(int, printed.split())) < 2_000_000


def test_time_is_linear_in_depth() -> None:
    moments(MLP([4, 4, 1]), [1, 1, 1, 1])

    def seconds(depth: int) -> float:
        net = MLP([4] * depth + [1])
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            moments(net, [1, 1, 1, 1])
            best = min(best, time.perf_counter() - start)
        return best

    # Sixteen times the depth in less than 64 times the time; quadratic work would take 256.
    assert seconds(8000) < 64 * seconds(500)


def test_decimals_agree_with_fractions() -> None:
    net = MLP([3, 7, 2, 9, 1], weight_law="laplace", parameterization="mup")
    exact, fast = (moments(net, [1, 2, -3], exact=flag, order=4) for flag in (True, False))
    assert fast.joint == {key: float(value) for key, value in exact.joint.items()}
    assert fast.update == {key: float(value) for key, value in exact.update.items()}
    assert fast.kurtosis == pytest.approx(exact.kurtosis, rel=1e-14)


def test_variance_keeps_its_digits_when_wide() -> None:
    """Var[K] is of order 1/n: at n = 10^12 a double-precision difference of moments would keep four digits."""
    wide = moments(MLP([2, 10**12, 10**12, 1]), [1, 2])
    exact = moments(MLP([2, 10**12, 10**12, 1], gains=[2, 2, 1], bias="none"), [1, 2], exact=True)
    assert wide.K_w.variance == pytest.approx(float(exact.variance), rel=1e-15)
    limit = moments(MLP([2, 10**6, 10**6, 1]), [1, 2])
    assert wide.variance * 10**12 == pytest.approx(limit.variance * 10**6, rel=1e-4)


SMALL_NETWORKS = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(lambda hidden: [2, *hidden, 1])
INPUTS = st.tuples(st.integers(-5, 5), st.integers(-5, 5))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SMALL_NETWORKS, INPUTS, st.sampled_from(["gaussian", "uniform", "laplace", "smoothed-rademacher"]))
def test_symmetries_and_signs(widths: list[int], x: tuple[int, int], law: str) -> None:
    net = MLP(widths, law)
    found = moments(net, x, exact=True)
    assert moments(net, x[::-1], exact=True).joint == found.joint
    assert moments(net, (-x[0], x[1]), exact=True).joint == found.joint
    assert found.variance >= 0
    assert found.K_w.variance >= 0
    assert found.update["dK"] <= 0
    # K_w is quadratic in x, K_b does not see its length.
    scaled = moments(net, (3 * x[0], 3 * x[1]), exact=True)
    assert scaled.K_w.second_moment == 81 * found.K_w.second_moment
    assert scaled.mixed == 9 * found.mixed
    assert scaled.K_b.second_moment == found.K_b.second_moment
    assert scaled.update["D_ww"] == 81 * found.update["D_ww"]
    assert scaled.update["D_wb"] == 9 * found.update["D_wb"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SMALL_NETWORKS, INPUTS)
def test_heavier_weights_spread_the_kernel(widths: list[int], x: tuple[int, int]) -> None:
    """Means do not see mu_4; second moments grow with it."""
    laws = ("smoothed-rademacher", "uniform", "gaussian", "laplace")  # mu_4 from smallest to largest
    by_law = [moments(MLP(widths, law), x, exact=True) for law in laws]
    assert len({found.mean for found in by_law}) == 1
    seconds = [found.second_moment for found in by_law]
    assert seconds == sorted(seconds)


def test_limits() -> None:
    """At infinite width the kernel is deterministic; depth makes it wider, width narrower."""
    spreads = [moments(MLP([2, *[10**p] * 4, 1]), [1, 2]).cv for p in range(1, 8)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] / spreads[-3] == pytest.approx(0.1, rel=1e-3)
    deeper = [moments(MLP([2, *[32] * d, 1]), [1, 2]).cv for d in range(1, 30)]
    assert deeper == sorted(deeper)
    net = MLP([2, *[10**9] * 4, 1])
    assert moments(net, [1, 2]).mean == pytest.approx(finwidth.infinite_width(net, [1, 2]), rel=1e-12)


def test_several_outputs_by_hand() -> None:
    """K_aa does not see the other outputs, its update does; -40 is from a derivation by hand (docs/theory)."""
    one, three = (moments(MLP([1, 4, outputs]), [1], exact=True) for outputs in (1, 3))
    assert one.joint == three.joint
    assert moments(MLP([2, 3, 3], "uniform"), [1, 2], exact=True).update["dK"] == -40


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("parameterization", ["ntk", "mup"])
def test_update_with_several_outputs_is_that_of_all_paths(outputs: int, parameterization: str) -> None:
    net = MLP([2, 2, 2, outputs], parameterization=parameterization)
    total = sum(
        enumerate_deltas(net, [1, 2], [kinds], outputs=[(c, 0)])
        for kinds in ("ww", "wb", "bw", "bb")
        for c in range(outputs)
    )
    assert moments(net, [1, 2], exact=True).update["dK"] == -2 * total


def test_symmetric_bernoulli_weights_have_no_spread_in_one_layer() -> None:
    """With weights +-1 and a single hidden neuron that is open or not, K takes two values."""
    signs = WeightLaw("signs", (1, 1, 1, 1), lambda rng, shape: rng.choice([-1.0, 1.0], shape))
    found = moments(MLP([1, 1, 1], signs), [1], exact=True)
    # open: K = 2 + 2 + 1 + 1; closed: K = 1
    assert found.mean == Fraction(1, 2) * (6 + 1)
    assert found.second_moment == Fraction(1, 2) * (36 + 1)


FOUR_MOMENTS = WeightLaw("w", (1, 2), lambda rng, shape: np.zeros(shape))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MLP([]), "0 entries"),
        (lambda: MLP([2]), "1 entries"),
        (lambda: MLP([2, 0, 1]), "width number 1 is 0"),
        (lambda: MLP([2, -3, 1]), "width number 1 is -3"),
        (lambda: MLP([2, 2.5, 1]), "2.5, not a whole number"),  # type: ignore[list-item]
        (lambda: MLP([2, True, 1]), "width number 1 is True"),
        (lambda: MLP([2, 3, 0]), "width number 2 is 0"),
        (lambda: MLP("2,3,1"), "widths is '2,3,1'"),  # type: ignore[arg-type]
        (lambda: MLP([2, 3, 1], "cauchy"), "choose one of gaussian"),
        (lambda: MLP([2, 3, 1], activation="softsign"), "choose one of relu"),
        (lambda: MLP([2, 3, 1], parameterization="ntp"), "choose one of ntk"),
        (lambda: MLP([2, 3, 1], bias="yes"), "choose one of trained"),
        (lambda: MLP([2, 3, 1], gains=[1, 2, 3]), "3 entries for 2 weight layers"),
        (lambda: MLP([2, 3, 1], gains=-1), "gains is -1"),
        (lambda: MLP([2, 3, 1], gains=math.nan), "gains is nan"),
        (lambda: MLP([2, 3, 1], bias="none", bias_variance=1), "bias_variance"),
        (lambda: WeightLaw("wide", (2, 3), lambda rng, shape: rng.normal(size=shape)), "mu_2 = 1"),
        (lambda: WeightLaw("odd", (1, 0.5), lambda rng, shape: rng.normal(size=shape)), "no law of unit variance"),
        (lambda: Activation("none", 0, 0), "not both 0"),
        (lambda: Activation("odd", 1, 0, at_zero=1), "at_zero must be 0"),
        (lambda: moments(MLP([2, 3, 1]), [1, 2, 3]), r"shape \(3,\)"),
        (lambda: moments(MLP([2, 3, 1]), [1, math.nan]), "nan at place 1"),
        (lambda: moments(MLP([2, 3, 1]), [math.inf, 1]), "inf at place 0"),
        (lambda: moments(MLP([2, 3, 1]), "ab"), "not an array of numbers"),
        (lambda: moments(MLP([2, 3, 1]), [[1, 2]]), r"shape \(1, 2\)"),
        (lambda: moments(MLP([2, 3, 1]), [1, 2], order=5), "give 2, 3 or 4"),
        (lambda: moments(MLP([2, 10**9, 1]), [1, 2], exact=True), "binary digits"),
        (lambda: moments(MLP([2, 3, 1], "truncated-normal"), [1, 2], exact=True), "use exact=False"),
        (lambda: moments(MLP([2, 3, 1], FOUR_MOMENTS), [1, 2], order=3), "mu_6"),
        (lambda: moments(MLP([2, 3, 1]), [1, 2]).skewness, "ask for order=3"),
        (lambda: finwidth.bounds(MLP([2, 3, 1], activation="abs"), [1, 2]), "activation is abs"),
    ],
)
def test_mistakes_are_told(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FinwidthError, match=words):
        call()
