"""What a sweep computes: the numbers of the functions it stands on, whatever the order, the workers and the resumes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import finwidth
from finwidth import MLP, FinwidthError
from finwidth.exact.expansion.one_input import to_first_order
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.random.streams import stream
from finwidth.sampling.statistics.estimates import Accumulator, estimate_moments
from finwidth.sweeps.execution import run
from finwidth.sweeps.quantities.records import ResumableSums, estimate_records
from finwidth.sweeps.schema.grid import Cell, cell_seed, input_vector

pytest.importorskip("zarr", reason="needs the sweep extra")

SEED = 143794394832797326972688184010337740808
AXES = {"depth": [2, 5], "width": [4, 16], "n_0": 3, "input": "random:1"}


def test_exact_and_bounds_are_those_of_single_networks() -> None:
    grid: dict[str, Any] = AXES | {"law": ["gaussian", "laplace"], "parameterization": ["ntk"], "n_0": [3, 7]}
    found = finwidth.sweep({"quantities": ["exact", "bounds"], "axes": grid})
    assert dict(found.exact_mean.sizes) == {"n_0": 2, "law": 2, "parameterization": 1, "depth": 2, "width": 2}
    for n_0 in (3, 7):
        x = input_vector("random:1", n_0, Path())
        for law in ("gaussian", "laplace"):
            for depth in (2, 5):
                for width in (4, 16):
                    net = MLP([n_0, *[width] * (depth - 1), 1], law)
                    exact, forms = finwidth.moments(net, x), finwidth.bounds(net, x)
                    here = found.sel(n_0=n_0, law=law, depth=depth, width=width).squeeze()
                    assert float(here.exact_mean) == pytest.approx(exact.mean, rel=1e-12)
                    assert float(here.exact_cv) == pytest.approx(exact.cv, rel=1e-11)
                    assert float(here.exact_dK) == pytest.approx(exact.update["dK"], rel=1e-12)
                    for name, form in forms.log_form.items():
                        assert float(here.bounds_log_form.sel(form=name)) == pytest.approx(form, rel=1e-12)


@pytest.mark.parametrize("network", [{}, {"bias_variance": 0.5}, {"bias": "none", "gains": 1.5}])
def test_arguments_of_the_network_arrive(network: dict[str, Any]) -> None:
    found = finwidth.sweep({"quantities": ["exact"], "axes": AXES, "network": network})
    net = MLP([3, 4, 4, 4, 4, 1], **network)
    exact = finwidth.moments(net, input_vector("random:1", 3, Path()))
    assert float(found.exact_cv.sel(depth=5, width=4)) == pytest.approx(exact.cv, rel=1e-10)


NETWORK_AXES: dict[str, list[Any]] = {
    "bias": ["frozen", "trained"], "gains": [0.5, 3.0], "bias_variance": [0.0, 0.25], "bias_scale": [0.5, 2.0],
}  # fmt: skip


def test_arguments_of_the_network_are_axes() -> None:
    """Cell by cell the numbers of the functions, with the seeds of the cells; one value more adds cells only."""
    table: dict[str, Any] = {"inputs": ["ones", "random:2"], "draws": 60}
    config: dict[str, Any] = {
        "quantities": ["exact", "sampled", "gram"],
        "axes": {"depth": [1, 3], "width": [4, 6], "n_0": 2, "bias_law": "gaussian", **NETWORK_AXES},
        "sampled": {"draws": 700},
        "gram": table,
    }
    found = finwidth.sweep(config)
    assert dict(found.exact_mean.sizes) == dict.fromkeys([*NETWORK_AXES, "depth", "width"], 2)
    X = np.array([input_vector(name, 2, Path()) for name in table["inputs"]])
    for values in itertools.product([1, 3], [4, 6], *NETWORK_AXES.values()):
        place = dict(zip(["depth", "width", *NETWORK_AXES], values, strict=True))
        here = found.sel(place)
        arguments = {name: place[name] for name in NETWORK_AXES} | {"bias_law": "gaussian"}
        net = MLP([2, *[place["width"]] * (place["depth"] - 1), 1], **arguments)
        assert float(here.exact_cv) == pytest.approx(finwidth.moments(net, [1, 1]).cv, rel=1e-9, abs=1e-7)
        assert float(here.exact_dK) == pytest.approx(float(finwidth.moments(net, [1, 1]).update["dK"]), rel=1e-11)
        cell = Cell(2, "gaussian", "relu", "ntk", "ones", place["depth"], place["width"], tuple(arguments.items()))
        drawn = finwidth.sample(net, [1, 1], 700, cell_seed(0, cell, "sampled", "draws"))
        assert float(here.sampled_mean.sel(moment="K")) == pytest.approx(float(drawn.K.mean()), rel=1e-12)
        gram = finwidth.sample_gram(net, X, 60, cell_seed(0, cell, "gram", "draws"))
        np.testing.assert_allclose(here.gram_mean.sel(gram_moment="K"), gram.K.mean("draw"), rtol=1e-12)
    for name in NETWORK_AXES:  # no axis is without effect
        parts = found.isel({name: 0}), found.isel({name: 1})
        assert not np.allclose(parts[0].sampled_mean.sel(moment="K"), parts[1].sampled_mean.sel(moment="K"))


def test_base_widths_are_an_axis_of_mup() -> None:
    axes = AXES | {"parameterization": "mup", "base_widths": [2, 8]}
    found = finwidth.sweep({"quantities": ["exact"], "axes": axes})
    same = finwidth.sweep(
        {"quantities": ["exact"], "axes": AXES | {"parameterization": "mup"}, "network": {"base_widths": 8}}
    )
    np.testing.assert_array_equal(found.sel(base_widths=8).exact_cv, same.exact_cv)
    for base, width in itertools.product([2, 8], [4, 16]):
        net = MLP([3, *[width] * 4, 1], parameterization="mup", base_widths=base)
        exact = finwidth.moments(net, input_vector("random:1", 3, Path()))
        here = found.sel(base_widths=base, width=width, depth=5)
        assert float(here.exact_mean) == pytest.approx(exact.mean, rel=1e-12)
    with pytest.raises(FinwidthError, match=r"axes: there is no network of .*base_widths 2: base_widths belong to"):
        finwidth.sweep({"quantities": ["exact"], "axes": AXES | {"base_widths": [2]}})


def test_an_axis_that_is_not_given_leaves_the_seed_as_it_is() -> None:
    """A known value: another one would give every sweep other numbers."""
    cell = Cell(3, "gaussian", "relu", "ntk", "random:1", 5, 16)
    assert cell_seed(8, cell, "sampled", "draws") == SEED
    seeds = {cell_seed(8, cell._replace(more=(("gains", gain),)), "sampled", "draws") for gain in (1.0, 2.0)}
    assert len(seeds | {SEED}) == 3


def test_axes_of_arguments_grow_and_merge(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "quantities": ["exact", "sampled"],
        "axes": AXES | {"gains": [2.0], "bias_variance": [0, 0.5]},
        "sampled": {"draws": 50},
    }
    other = part(config, axes={"gains": [1.0]})
    whole = part(config, axes={"gains": [2.0, 1.0]})
    finwidth.sweep(config, tmp_path / "a.zarr")
    finwidth.sweep(other, tmp_path / "b.zarr")
    finwidth.sweeps.merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "c.zarr")
    expected = finwidth.sweep(whole)
    assert finwidth.sweeps.read(tmp_path / "c.zarr").identical(expected)
    assert finwidth.sweep(whole, tmp_path / "a.zarr").identical(expected)
    with pytest.raises(FinwidthError, match=r"axes\.gains was given before"):
        finwidth.sweep({**config, "axes": AXES | {"bias_variance": [0, 0.5]}}, tmp_path / "a.zarr")


@pytest.mark.parametrize("method", ["law", "networks"])
def test_training_takes_them_too(method: str) -> None:
    if method == "networks":
        pytest.importorskip("torch")
    training: dict[str, Any] = {
        "inputs": ["ones", "random:2"],
        "targets": [1, -1],
        "steps": 2,
        "lr": 0.1,
        "draws": 6,
        "method": method,
    }
    axes = {"depth": 3, "width": 4, "n_0": 2, "gains": [1.0, 2.0], "bias_variance": [0.5, 0.0]}
    found = finwidth.sweep({"quantities": ["training"], "axes": axes, "training": training})
    X = np.array([input_vector(name, 2, Path()) for name in training["inputs"]])
    for gain, variance in itertools.product([1.0, 2.0], [0.0, 0.5]):
        net = MLP([2, 4, 4, 1], gains=gain, bias_variance=variance)
        cell = Cell(2, "gaussian", "relu", "ntk", "ones", 3, 4, (("gains", gain), ("bias_variance", variance)))
        seed = cell_seed(0, cell, "training", "chunk 0")
        if method == "law":
            loss = finwidth.train(net, X, [1, -1], 2, 0.1, 6, seed).loss.mean("draw")
        else:
            loss = finwidth.empirical.Ensemble(net, 6, seed).train(X, np.array([1.0, -1.0]), 2, 0.1).loss.mean("draw")
        here = found.sel(gains=gain, bias_variance=variance, followed="loss")
        np.testing.assert_allclose(here.training_mean, loss.sel(step=[0, 2]), rtol=1e-10)


def test_a_ratio_stands_for_the_nearest_width() -> None:
    found = finwidth.sweep({"quantities": ["exact"], "axes": {"depth": [2, 9], "ratio": [0.3, 50.0], "n_0": 2}})
    assert found.width.to_numpy().tolist() == [[7, 1], [30, 1]]
    by_width = finwidth.sweep({"quantities": ["exact"], "axes": {"depth": [2, 9], "width": [1, 7, 30], "n_0": 2}})
    for depth, ratio, width in ((2, 0.3, 7), (9, 0.3, 30), (9, 50.0, 1)):
        assert found.exact_dK.sel(depth=depth, ratio=ratio) == by_width.exact_dK.sel(depth=depth, width=width)


def test_sampled_estimates_are_those_of_sample_with_the_seed_of_the_cell() -> None:
    found = finwidth.sweep({"seed": 8, "quantities": ["sampled"], "axes": AXES, "sampled": {"draws": 70_000}})
    x = input_vector("random:1", 3, Path())
    for depth in (2, 5):
        cell = Cell(3, "gaussian", "relu", "ntk", "random:1", depth, 16)
        drawn = finwidth.sample(MLP([3, *[16] * (depth - 1), 1]), x, 70_000, cell_seed(8, cell, "sampled", "draws"))
        expected = estimate_moments([{str(name): drawn[name].to_numpy() for name in drawn}])
        here = found.sel(depth=depth, width=16)
        for name, estimate in expected.items():
            assert float(here.sampled_mean.sel(moment=name)) == pytest.approx(estimate.value, rel=1e-12)
            assert float(here.sampled_se.sel(moment=name)) == pytest.approx(estimate.se, rel=1e-9)
    # and they are estimates of the exact values, of another cell's seed too far away only by chance
    exact = finwidth.moments(MLP([3, 16, 1]), x)
    here = found.sel(depth=2, width=16, moment="K^2")
    assert abs(float(here.sampled_mean) - float(exact.second_moment)) < 5 * float(here.sampled_se)
    assert bool(here.sampled_trust)


def test_gram_estimates_are_those_of_sample_gram_with_the_seed_of_the_cell() -> None:
    table = {"inputs": ["ones", "random:2"], "targets": [1, -1], "draws": 500}
    found = finwidth.sweep({"quantities": ["gram"], "axes": AXES | {"activation": ["gelu", "relu"]}, "gram": table})
    X = np.array([input_vector(name, 3, Path()) for name in ("ones", "random:2")])
    cell = Cell(3, "gaussian", "gelu", "ntk", "random:1", 5, 4)
    seed = cell_seed(0, cell, "gram", "draws")
    drawn = finwidth.sample_gram(MLP([3, 4, 4, 4, 4, 1], activation="gelu"), X, 500, seed, y=[1, -1])
    here = found.sel(depth=5, width=4, activation="gelu")
    assert here.gram_mean.dims == ("gram_moment", "gram_input", "gram_input_")
    for name, values in (("K", drawn.K), ("K^2", drawn.K**2), ("dK", drawn.dK)):
        np.testing.assert_allclose(here.gram_mean.sel(gram_moment=name), values.mean("draw"), rtol=1e-12)
        np.testing.assert_allclose(here.gram_se.sel(gram_moment=name), values.std("draw", ddof=1) / 500**0.5, rtol=1e-9)


CONFIG: dict[str, Any] = {
    "seed": 5,
    "quantities": ["exact", "bounds", "sampled", "gram"],
    "axes": {"depth": [2, 3, 5], "width": [3, 8], "n_0": 2, "input": "1,2"},
    "sampled": {"target": 0.05, "most_draws": 40_000},
    "gram": {"inputs": ["ones", "1,2"], "draws": 50},
}


def part(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return config | {
        key: config.get(key, {}) | value if isinstance(value, dict) else value for key, value in changes.items()
    }


def test_any_number_of_workers_gives_the_same() -> None:
    one = finwidth.sweep(CONFIG, workers=1)
    assert one.identical(finwidth.sweep(CONFIG, workers=2))
    assert one.identical(finwidth.sweep(CONFIG, workers=7))
    assert not one.identical(finwidth.sweep(part(CONFIG, seed=6), workers=1))


def test_any_order_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finwidth.sweep(CONFIG)
    make_tasks = run.make_tasks

    def shuffled(*arguments: Any) -> Any:
        tasks = list(make_tasks(*arguments))
        random.Random(3).shuffle(tasks)
        return iter(tasks)

    monkeypatch.setattr(run, "make_tasks", shuffled)
    assert whole.identical(finwidth.sweep(CONFIG))
    mixed = part(CONFIG, axes={"depth": [5, 2, 3], "width": [8, 3]}, quantities=CONFIG["quantities"][::-1])
    assert whole.identical(finwidth.sweep(mixed))


def test_what_is_added_is_what_would_have_been(tmp_path: Path) -> None:
    """Axis values before, between and after those there are, quantities, draws, a list for one value."""
    store = tmp_path / "grown.zarr"
    small = part(CONFIG, axes={"depth": 3, "width": [8]}, quantities=["sampled"], sampled={"most_draws": 1})
    del small["gram"]
    finwidth.sweep(small, store)
    more = part(small, axes={"depth": [3, 2]}, quantities=["sampled", "exact"])
    finwidth.sweep(more, store)
    kept = finwidth.sweeps.read(store)
    assert np.isfinite(kept.exact_mean).all()
    assert finwidth.sweep(CONFIG, store).identical(finwidth.sweep(CONFIG))


def test_one_grid_by_width_lengthened_in_the_middle_of_blocks(tmp_path: Path) -> None:
    """The exact blocks are 64 x 256: values are added to a block that is partly there, and beyond it."""
    config: dict[str, Any] = {"quantities": ["exact"], "axes": {"depth": list(range(2, 40, 3)), "width": 7, "n_0": 2}}
    finwidth.sweep(config, tmp_path / "a.zarr")
    config["axes"] |= {"depth": {"from": 1, "to": 70}, "width": {"from": 1, "to": 300}}
    assert finwidth.sweep(config, tmp_path / "a.zarr").identical(finwidth.sweep(config))


def test_more_draws_go_on_from_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"quantities": ["sampled"], "axes": AXES, "sampled": {"draws": 40_000}}
    finwidth.sweep(config, tmp_path / "a.zarr")
    config["sampled"] = {"draws": 110_000}
    whole = finwidth.sweep(config)
    asked: list[int] = []

    def noted(seed: int, number: int) -> np.random.Generator:
        asked.append(number)
        return stream(seed, number)

    monkeypatch.setattr("finwidth.sampling.sampler.stream", noted)
    assert finwidth.sweep(config, tmp_path / "a.zarr").identical(whole)
    size = one_input_sampler(MLP([4, 8, 8, 1]), [1, 1, 1, 1]).chunk_size
    assert sorted(set(asked)) == list(range(40_000 // size, -(-110_000 // size)))  # whole chunks are not drawn again
    assert 40_000 // size > 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_accumulating_in_steps_is_accumulating_at_once(size: int, steps: list[int]) -> None:
    def summed(draws: int, previous: Any = None) -> ResumableSums:
        sums = ResumableSums(2, size, draws, previous)
        for number, count in sums.chunks():
            rng = np.random.default_rng([number, count])
            sums.add([rng.standard_normal(count), rng.exponential(size=count)])
        return sums

    def records(sums: ResumableSums) -> Any:
        return estimate_records([total.estimate() for total in sums.totals], sums.states, sums.draws)

    previous = None
    for draws in sorted(steps):
        previous = records(summed(draws, previous))
    once = summed(max(steps))
    np.testing.assert_array_equal(previous, records(once))
    assert once.totals[0].count == max(steps)


def test_a_heavy_tailed_cell_is_not_called_converged() -> None:
    axes = {"depth": [2, 24], "width": [2, 400], "n_0": 2, "input": "1,2"}
    config = {"quantities": ["sampled", "exact"], "axes": axes, "sampled": {"target": 0.05, "most_draws": 30_000}}
    found = finwidth.sweep(config)
    assert bool(found.sampled_converged.sel(depth=2, width=400))
    deep = found.sel(depth=24, width=2)
    assert not bool(deep.sampled_converged)
    assert not bool(deep.sampled_trust.sel(moment="K^2"))
    assert int(deep.sampled_draws) == 30_000  # it tried
    # as it must: the sample has no idea of the value
    assert float(deep.sampled_mean.sel(moment="K^2")) < 1e-3 * float(np.exp(deep.exact_log_second_moment))


def test_the_target_is_met_where_it_is_said_to_be() -> None:
    axes = AXES | {"width": [64, 256]}
    table = {"target": 0.005, "of": ["K", "K^2"], "most_draws": 10**6}
    found = finwidth.sweep({"quantities": ["sampled"], "axes": axes, "sampled": table})
    relative = (found.sampled_se / abs(found.sampled_mean)).sel(moment=["K", "K^2"]).max("moment")
    assert found.sampled_converged.all()
    assert (relative <= 0.005).all()
    assert (relative > 0.004).all()  # and not by drawing far too many


def test_a_higher_limit_goes_on_where_the_lower_one_stopped(tmp_path: Path) -> None:
    config: dict[str, Any] = {"quantities": ["sampled"], "axes": AXES, "sampled": {"target": 0.03, "most_draws": 3000}}
    first = finwidth.sweep(config, tmp_path / "a.zarr")
    config["sampled"] = {"target": 0.03, "most_draws": 200_000}
    found = finwidth.sweep(config, tmp_path / "a.zarr")
    assert found.identical(finwidth.sweep(config))
    assert (found.sampled_draws >= first.sampled_draws).all()
    assert len(set(found.sampled_draws.to_numpy().ravel())) > 2


def test_a_number_past_a_double_is_inf_and_not_trusted() -> None:
    axes = {"depth": [3], "width": [4], "n_0": 2, "input": "1e90,1e90"}
    with np.errstate(all="raise"):
        found = finwidth.sweep({"quantities": ["sampled"], "axes": axes, "sampled": {"draws": 2000}})
    assert np.isinf(found.sampled_mean.sel(moment="K^2")).all()
    assert not found.sampled_trust.sel(moment="K^2").any()
    assert not found.sampled_converged.any()
    assert np.isfinite(found.sampled_mean.sel(moment="K_b")).all()


def test_the_verdicts_are_those_of_the_estimates() -> None:
    """`sampled_trust` is `Estimate.trust`, which knows the exact value."""
    found = finwidth.sweep({"quantities": ["sampled"], "axes": AXES, "sampled": {"draws": 3000}})
    x = input_vector("random:1", 3, Path())
    for depth in (2, 5):
        for width in (4, 16):
            cell = Cell(3, "gaussian", "relu", "ntk", "random:1", depth, width)
            net = MLP([3, *[width] * (depth - 1), 1])
            drawn = finwidth.sample(net, x, 3000, cell_seed(0, cell, "sampled", "draws"))
            total = Accumulator()
            total.add(drawn.K.to_numpy() ** 2)
            expected = total.estimate(float(finwidth.moments(net, x).second_moment)).trust
            assert bool(found.sampled_trust.sel(depth=depth, width=width, moment="K^2")) == expected
    assert len(set(found.sampled_trust.sel(moment="K^2").to_numpy().ravel())) == 2


def test_workers_and_a_scheduler_exclude_each_other() -> None:
    with pytest.raises(FinwidthError, match="give one of the two"):
        finwidth.sweep(CONFIG, workers=2, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(FinwidthError, match="workers is 0; give a whole number"):
        finwidth.sweep(CONFIG, workers=0)


def test_the_expansion_is_that_of_single_networks() -> None:
    """Smooth and not, at the cell's input; cells where first order does not serve say so."""
    grid: dict[str, Any] = AXES | {"activation": ["tanh", "relu"], "width": [4, 100]}
    found = finwidth.sweep({"quantities": ["expansion"], "axes": grid, "network": {"bias_variance": 0.2}})
    x = input_vector("random:1", 3, Path())
    for activation, depth, width in itertools.product(("tanh", "relu"), (2, 5), (4, 100)):
        net = MLP([3, *[width] * (depth - 1), 1], activation=activation, bias_variance=0.2)
        known, wide = finwidth.expansion(net, [x], [0.0]), to_first_order(net, x)
        here = found.sel(activation=activation, depth=depth, width=width)
        assert float(here.expansion_mean) == pytest.approx(known.K.sum().item(), rel=1e-12)
        assert float(here.expansion_infinite_width) == pytest.approx(known.K[0].item(), rel=1e-12)
        assert float(here.expansion_dK) == pytest.approx(known.dK[1].item(), rel=1e-12)
        assert float(here.expansion_cv) ** 2 == pytest.approx(known.attrs["relative_variance"], rel=1e-12)
        assert float(here.expansion_left_out) == pytest.approx(wide.left_out, rel=1e-12)
        assert bool(here.expansion_serves) == wide.serves
    assert {*found.expansion_serves.to_numpy().ravel().tolist()} == {True, False}


def test_what_the_expansion_refuses_is_refused_before_any_work() -> None:
    with pytest.raises(FinwidthError, match=r'"expansion" cannot be had .*its weights are uniform'):
        finwidth.sweep({"quantities": ["expansion"], "axes": AXES | {"law": ["gaussian", "uniform"]}})


def test_a_cell_past_the_range_of_a_double_is_infinite() -> None:
    axes = {"depth": 2, "width": [4, 8], "n_0": 1, "activation": "tanh", "input": "1e200"}
    found = finwidth.sweep({"quantities": ["expansion"], "axes": axes})
    assert np.isinf(found.expansion_mean).all()
    assert not found.expansion_serves.any()
