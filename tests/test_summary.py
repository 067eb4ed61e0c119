"""`finwidth.summarize`: what `finwidth sample` prints, as a function."""

from __future__ import annotations

import json

import numpy as np
import pytest

import finwidth
from devices import DEVICE
from finwidth import MLP, FinwidthError, ResNet
from finwidth.cli.tables import show
from finwidth.quantities import Estimate, doubts
from finwidth.sampling.statistics.estimates import estimate_moments
from finwidth.summary import sample_and_summarize

NET, X = MLP([2, 8, 8, 1]), [1.0, 2.0]


def test_estimates_and_quantiles_are_those_of_the_draws() -> None:
    found = finwidth.summarize(NET, X, 40_000, seed=3)
    drawn = finwidth.sample(NET, X, 40_000, seed=3)
    whole = estimate_moments([{str(name): drawn[name].to_numpy() for name in drawn}])
    for name, each in found.estimates.items():
        assert each.value == pytest.approx(whole[name].value, rel=1e-12)
        assert each.se == pytest.approx(whole[name].se, rel=1e-9)
    assert found.K is not None
    for share in (0.05, 0.5, 0.95):
        assert found.K.quantile(share).value == pytest.approx(float(drawn.K.quantile(share)), rel=2e-3)
    assert (found.method, found.draws, found.seed, found.network) == ("plain", 40_000, 3, NET)


def test_exact_values_stand_beside_them() -> None:
    found, exact = finwidth.summarize(NET, X, 20_000), finwidth.moments(NET, X)
    assert found.exact is not None
    assert found.exact["K^2"] == float(exact.second_moment)
    assert all(abs(each.z(found.exact[name]) or 0) < 6 for name, each in found.estimates.items())


def test_importance_sampling_where_plain_draws_fail() -> None:
    net = MLP([3, *[5] * 15, 1])
    plain, weighted = (finwidth.summarize(net, [1, 2, 2], 60_000, method=each) for each in ("plain", "importance"))
    assert not plain.estimates["dK"].trust
    assert weighted.estimates["dK"].trust
    assert weighted.K is None
    assert weighted.method == "importance"


def test_threads_do_not_change_it_and_a_device_has_the_same_law() -> None:
    one, same = (finwidth.summarize(NET, X, 40_000, threads=threads) for threads in (1, 2))
    assert one.estimates == same.estimates
    pytest.importorskip("torch")
    other = finwidth.summarize(NET, X, 40_000, device=DEVICE)
    assert other.exact is not None
    assert abs(other.estimates["K"].z(other.exact["K"]) or 0) < 6
    assert other.estimates != one.estimates


@pytest.mark.parametrize("method", ["plain", "importance"])
def test_json_and_text(method: str) -> None:
    found = finwidth.summarize(NET, X, 2000, method=method)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    quantities, route = document["results"]["quantities"], "sampled" if method == "plain" else "tilted"
    assert quantities["K"][route]["value"] == found.estimates["K"].value
    assert ("q50(K)" in quantities) is (method == "plain")
    text = str(found)
    assert text.startswith(f"{NET}\n")
    assert f"\n2000 draws, {method}.\n" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("E[K] "))
    assert row[2].rstrip("!") == f"{found.estimates['K'].value:.6g}"
    assert ("Quantiles of K" in text) is (method == "plain")
    assert ("\n! " in text) is not all(each.trust for each in found.estimates.values())


def test_doubts_are_one_line() -> None:
    few = Estimate(1.0, 0.5, 100, 3.0, trust=False, verdict="few draws")
    fewer = Estimate(1.0, 0.5, 100, 2.0, trust=False, verdict="fewer draws")
    sound = Estimate(1.0, 0.5, 100, 90.0, trust=True, verdict="enough")
    assert doubts({"K": sound, "dK": sound}, "in law") == ""
    assert doubts({"K": few, "dK": sound}, "in law") == "! E[K] (in law): few draws.\n"
    told = "! Not to be trusted (networks): E[K], E[ΔK]/λ. At worst E[ΔK]/λ: fewer draws.\n"
    assert doubts({"K": few, "K_w": sound, "dK": fewer}, "networks") == told


def test_progress_is_told() -> None:
    seen: list[int] = []
    finwidth.summarize(MLP([2, 4, 1]), X, 40_000, progress=seen.append)
    assert seen == [16384, 32768, 40_000]


def test_draws_that_are_kept_are_those_of_sample() -> None:
    found, dataset = sample_and_summarize(NET, X, 3000, seed=5)
    assert dataset.identical(finwidth.sample(NET, X, 3000, seed=5))
    assert found.estimates == finwidth.summarize(NET, X, 3000, seed=5).estimates  # one chunk
    assert np.isfinite(dataset.K).all()


def test_of_several_outputs_it_is_the_first() -> None:
    net = MLP([2, 6, 6, 3])
    found, dataset = sample_and_summarize(net, X, 20_000, seed=5)
    assert dataset.identical(finwidth.sample(net, X, 20_000, seed=5))
    assert dataset.K.dims == ("draw", "component", "component_")
    plain = finwidth.summarize(net, X, 20_000, seed=5)
    assert plain.estimates["K"].value == pytest.approx(float(dataset.K[:, 0, 0].mean()), rel=1e-12)
    assert plain.estimates["dK"].value == pytest.approx(float(dataset.dK[:, 0, 0].mean()), rel=1e-12)
    for name, estimate in plain.estimates.items():
        z = estimate.z(plain.exact[name]) if plain.exact else None
        assert z is not None
        assert abs(z) < 6, name
        assert estimate.value == pytest.approx(found.estimates[name].value, rel=1e-12)
    assert "K is that of output 0;" in str(plain)
    assert "20000 draws, plain." in str(plain)


def test_what_cannot_be_summarized_is_refused() -> None:
    with pytest.raises(FinwidthError, match="method 'tilted' is not known; choose one of plain, importance"):
        finwidth.summarize(NET, X, method="tilted")
    with pytest.raises(FinwidthError, match="its activation is tanh"):
        finwidth.summarize(MLP([2, 3, 1], activation="tanh"), X)
    with pytest.raises(FinwidthError, match="importance sampling is on threads"):
        finwidth.summarize(NET, X, method="importance", device=DEVICE)
    with pytest.raises(FinwidthError, match="and one output"):
        finwidth.summarize(MLP([2, 3, 2]), X, method="importance")
    with pytest.raises(FinwidthError, match="tilted draws need ReLU"):
        finwidth.summarize(MLP([2, 3, 1], activation="abs"), X, method="importance")


def test_means_that_are_infinite_are_left_out() -> None:
    """Of ReLU with RMSNorm no mean exists; quantiles and the spread do."""
    net = MLP([2, 32, 32, 1], norm="rms")
    found = finwidth.summarize(net, X, 20_000)
    assert found.estimates == {}
    assert found.exact is None
    assert len(found.infinite) == 8
    assert "Not finite, or not sure to be: E[K], E[K_w]" in str(found)
    K = finwidth.sample(net, X, 20_000).K.to_numpy()
    assert found.K is not None
    assert found.K.quantile(0.5).value == pytest.approx(float(np.median(K)), rel=2e-3)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["results"]["not_finite"] == list(found.infinite)
    assert {"q50(K)", "spread(K)"} <= {*document["results"]["quantities"]}
    assert "K" not in document["results"]["quantities"]


def test_means_whose_errors_are_infinite_are_not_trusted() -> None:
    """E[K^p] of pre-norm ReLU is finite for p < (n + L) / (2 (L + 1)) = 5/3: of K, not of K^2."""
    found = finwidth.summarize(ResNet([2, 8, 1], 2, norm="rms"), X, 20_000)
    assert set(found.estimates) == {"K", "K_w", "K_b"}
    assert not any(each.trust for each in found.estimates.values())
    assert "its standard error is infinite" in found.estimates["K"].verdict
    wide = finwidth.summarize(ResNet([2, 100, 1], 2, norm="rms"), X, 20_000)
    assert not wide.infinite
    assert all(each.trust for each in wide.estimates.values())


def test_the_spread_is_the_coefficient_of_variation_of_a_kernel_that_is_near_to_normal() -> None:
    net = MLP([2, 4000, 4000, 1])
    found, exact = finwidth.summarize(net, X, 40_000), finwidth.moments(net, X)
    assert found.spread is not None
    assert found.spread.se < 0.02 * found.spread.value
    assert abs(found.spread.value - float(exact.cv)) < 6 * found.spread.se
    K = finwidth.sample(net, X, 40_000).K.to_numpy()
    low, middle, high = np.quantile(K, [0.158655, 0.5, 0.841345])
    assert found.spread.value == pytest.approx((high - low) / (2 * middle), rel=0.06)
    assert finwidth.summarize(MLP([2, 8, 1]), X, 1000, method="importance").spread is None


def test_the_table_of_a_network_without_means_has_quantiles_only(capsys: pytest.CaptureFixture[str]) -> None:
    show(finwidth.summarize(MLP([2, 32, 32, 1], norm="rms"), X, 2000))
    told = capsys.readouterr().out
    assert "std. err." not in told
    assert "Not finite, or not sure to be: E[K]," in told
    assert "(q84 - q16) / (2 median) of K: 0." in told
    assert "Quantiles of K: 5%" in told
