"""Mistakes of every kind are told in one FinwidthError; what users' own functions raise passes through progress."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import FinwidthError
from finwidth.errors import shown
from finwidth.measurement import measure
from finwidth.report import report
from finwidth.sampling.one_input.importance import importance_estimates
from finwidth.summary import summarize_gram

fw: Any = finwidth  # whose types would refuse the mistakes
NET = fw.MLP([2, 3, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: fw.bounds(1, [1, 2]),
        lambda: fw.infinite_width("2,3,1", [1, 2]),
        lambda: fw.infinite_width_gram(None, [[1, 2]]),
        lambda: fw.expansion(None, [[1, 2]]),
        lambda: fw.sample([2, 3, 1], [1, 2], 5),
        lambda: fw.sample_gram(1.0, [[1, 2]], 5),
        lambda: fw.train(np.ones(3), [[1, 2]], [1], 1, 0.1, 1),
        lambda: fw.regime(1),
        lambda: fw.compare({}, [1, 2]),
        lambda: fw.MLP(np.array(3)),
        lambda: fw.MLP(b"abc"),
        lambda: fw.MLP([2, 10**5000, 1]),
        lambda: fw.MLP([2, 3, 1], parameterization=np.array(["ntk", "mup"])),
        lambda: fw.MLP([2, 3, 1], gains=10**400),
        lambda: fw.Activation(1, "x", 0),
        lambda: fw.Activation("x", 1, [0]),
        lambda: fw.SmoothActivation("x", np.sin, None),
        lambda: fw.MLP([2, 3, 1], activation=fw.SmoothActivation("x", lambda y: y["a"], np.cos)),
        lambda: fw.WeightLaw("x", 3, lambda rng, shape: rng.normal(size=shape)),
        lambda: fw.WeightLaw("x", (1, 3), None),
        lambda: fw.moments(NET, [1, 2], exact="yes"),
        lambda: fw.moments(NET, np.ma.masked_array([1.0, 2.0], [True, False])),
        lambda: fw.sample(NET, [1, 2], 5, progress=3),
        lambda: fw.sample(NET, [1, 2], 5, seed=True),
        lambda: fw.sweep(3),
        lambda: fw.sweep(Path()),
        lambda: fw.plots.growth_with_depth([1, 2], 3, 4),
        lambda: fw.paper.check(["lemma-9"]),
    ],
)
def test_mistakes_are_told_in_one_line(call: Callable[[], Any]) -> None:
    with pytest.raises(FinwidthError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "make",
    [lambda: 10**5000, lambda: [10**5000], lambda: "x" * 5000, lambda: np.ones((50, 50)), lambda: {"a": "b\nc"}],
)
def test_values_are_shown_in_one_short_line(make: Callable[[], Any]) -> None:
    text = shown(make())
    assert "\n" not in text
    assert len(text) <= 100


@pytest.mark.parametrize(
    "x",
    [
        [Fraction(1, 3), Decimal("0.2")],
        (Fraction(1, 3), Fraction(1, 5)),
        np.array([Fraction(1, 3), Decimal("0.2")], dtype=object),
    ],
)
def test_exact_numbers_stay_exact(x: Any) -> None:
    assert fw.moments(NET, x, exact=True).K_w.mean == Fraction(1, 2) * 2 * (Fraction(1, 9) + Fraction(1, 25))


def test_fractions_of_any_length_are_written() -> None:
    found = fw.moments(NET, [Fraction(1, 10**299 + 7), 10**300 + 1], exact=True, order=4)
    document = json.loads(json.dumps(found.to_json()))
    quantities = document["results"]["quantities"]
    assert len(quantities["K^4"]["exact"]["fraction"]) > 4300
    assert quantities["K"]["exact"]["fraction"] == str(found.mean)


@pytest.mark.parametrize("entry", [fw.sample, fw.sample_gram])
def test_what_progress_raises_passes_through(entry: Callable[..., Any]) -> None:
    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def stop(done: int) -> None:
        raise Stop(done)

    with pytest.raises(Stop):
        entry(NET, [1.0, 2.0] if entry is fw.sample else [[1.0, 2.0]], 5, progress=stop)


def test_numbers_of_torch() -> None:
    torch: Any = pytest.importorskip("torch")
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    for given in (x, x.detach().bfloat16()):
        assert fw.moments(NET, given).mean == fw.moments(NET, [1.0, 2.0]).mean
    for given in (x.to("meta"), x.to_sparse(), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(FinwidthError, match="not an array of numbers"):
            fw.moments(NET, given)


def test_mistakes_with_modules_are_told() -> None:
    torch: Any = pytest.importorskip("torch")
    from finwidth import empirical

    module, x, y = torch.nn.Linear(2, 1), torch.eye(2), torch.ones(2, 1)
    layer = fw.MatrixFreeLinear(2, 3)
    ensemble = empirical.Ensemble(NET, 2)
    mistakes: tuple[Callable[[], Any], ...] = (
        lambda: empirical.ntk(module, x.to("meta")),
        lambda: empirical.ntk(module, x.to_sparse()),
        lambda: empirical.ntk(module, torch.ones(2, 3)),
        lambda: empirical.ntk(module, torch.ones(2, 2, dtype=torch.int64)[:, :1]),
        lambda: empirical.ntk(torch.nn.ReLU(), x),
        lambda: empirical.sgd_update(torch.nn.ReLU(), x, y),
        lambda: empirical.sgd_update(module, x, y, lr="x"),  # type: ignore[call-overload]
        lambda: empirical.Tracker(torch.nn.ReLU(), x),
        lambda: empirical.Tracker(module, x, record=object()),  # type: ignore[arg-type]
        lambda: empirical.combine(None),  # type: ignore[arg-type]
        lambda: empirical.combine("x"),
        lambda: empirical.combine([1]),  # type: ignore[list-item]
        lambda: ensemble.train(x.double(), "x", 1, 0.1),
        lambda: ensemble.train(x.double(), y, 1, "x"),
        lambda: ensemble.member(5),
        lambda: fw.MatrixFreeLinear(10**30, 5),
        lambda: fw.MatrixFreeLinear(2, 5, device="meta"),
        lambda: fw.sample(NET, [1, 2], 5, device="meta"),
        lambda: fw.tangent_kernel(layer(torch.ones(2, 2)), layer.parameters()),
    )
    for call in mistakes:
        with pytest.raises(FinwidthError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_tracker_takes_bfloat16() -> None:
    torch: Any = pytest.importorskip("torch")
    tracker = fw.empirical.Tracker(torch.nn.Linear(2, 1).bfloat16(), torch.eye(2), [1.0, -1.0])
    assert tracker.dataset().attrs["dtype"] == "bfloat16"


@pytest.mark.parametrize("size", [1e10, 1e12])
def test_an_update_past_the_range_is_refused(size: float) -> None:
    torch: Any = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    with pytest.raises(FinwidthError, match="overflows"):
        fw.empirical.sgd_update(module, size * torch.eye(3), torch.ones(3, 2), outputs="trace")


SEEDED: dict[str, Callable[[Any], Any]] = {
    "sample": lambda seed: fw.sample(NET, [1, 2], 5, seed),
    "sample_gram": lambda seed: fw.sample_gram(NET, [[1, 2]], 5, seed),
    "train": lambda seed: fw.train(NET, [[1, 2]], [1], 1, 0.1, 1, seed),
    "summarize": lambda seed: fw.summarize(NET, [1, 2], 5, seed),
    "summarize_gram": lambda seed: summarize_gram(NET, [[1, 2]], 5, seed),
    "importance": lambda seed: importance_estimates(NET, [1, 2], 5, seed),
    "expansion": lambda seed: fw.expansion(NET, [[1, 2], [2, 1]], seed=seed),
    "regime": lambda seed: fw.regime(NET, draws=4, seed=seed),
    "compare": lambda seed: fw.compare(NET, [1, 2], draws=5, networks=5, seed=seed),
    "report": lambda seed: report(NET, [1, 2], 5, seed),
    "growth_with_depth": lambda seed: fw.plots.growth_with_depth([1, 2], [4], [2], draws=5, seed=seed),
    "kernel_on_a_circle": lambda seed: fw.plots.kernel_on_a_circle([4], 2, draws=2, points=3, seed=seed),
    "spread_over_depth": lambda seed: fw.plots.spread_over_depth([1, 2], [4], [2], draws=50, seed=seed),
    "update_over_depth": lambda seed: fw.plots.update_over_depth([4], [2], [1, 2], draws=5, seed=seed),
    "sweep": lambda seed: fw.sweep({"seed": seed, "quantities": ["exact"], "axes": {"depth": 2, "width": 3, "n_0": 2}}),
}
OF_TORCH: dict[str, Callable[[Any], Any]] = {
    "Ensemble": lambda seed: fw.empirical.Ensemble(NET, 2, seed),
    "eigenpairs": lambda seed: _operator().eigenpairs(1, seed=seed),
    "measure": lambda seed: measure(fw.empirical.MLP(NET), [[1, 2]], seed=seed),
}


def _operator() -> Any:
    return fw.empirical.KernelOperator(fw.empirical.MLP(NET), np.eye(2))


@pytest.mark.parametrize("name", [*SEEDED, *OF_TORCH])
def test_a_seed_is_a_number_that_results_record(name: str) -> None:
    """What cannot be recorded is refused everywhere, with what to type instead; and what that says is taken."""
    if name in OF_TORCH:
        pytest.importorskip("torch")
    call = (SEEDED | OF_TORCH)[name]
    call(np.int64(3))
    for given, whole in (
        (np.random.default_rng(1), r"int\(rng.integers\(2\*\*63\)\)"),
        (np.random.SeedSequence(1), r"int\(sequence.generate_state\(1, np.uint64\)\[0\]\)"),
    ):
        wanted = (
            "seed: .* is not a whole number from 0 up"
            if name == "sweep"
            else f"which a result cannot record; .*{whole}"
        )
        with pytest.raises(FinwidthError, match=wanted):
            call(given)
    call(int(np.random.default_rng(1).integers(2**63)))
    call(int(np.random.SeedSequence(1).generate_state(1, np.uint64)[0]))


def test_modules_take_generators_too() -> None:
    """They hold their weights, and record no seed."""
    pytest.importorskip("torch")
    of_number, of_generator, of_sequence = (
        fw.empirical.MLP(NET, seed).state_dict() for seed in (7, np.random.default_rng(7), np.random.SeedSequence(7))
    )
    for name, value in of_number.items():
        assert value.equal(of_generator[name])
        assert value.equal(of_sequence[name])
