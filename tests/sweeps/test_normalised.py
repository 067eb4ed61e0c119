"""Sweeps over normalised networks: medians and quantiles, and means only where they are finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finwidth
from finwidth import MLP, FinwidthError, ResNet
from finwidth.exact.normalised import tail_exponent
from finwidth.quantities import DRAWN, MOMENTS
from finwidth.sweeps import plots
from finwidth.sweeps.quantities.records import SHARES
from finwidth.sweeps.quantities.sketches import BINS, BoundedSketch
from finwidth.sweeps.schema.grid import Cell, cell_seed, input_vector

pytest.importorskip("zarr", reason="needs the sweep extra")

AXES: dict[str, Any] = {"depth": [2, 6], "width": [5, 24], "n_0": 3, "norm": ["none", "rms"]}
DRAWS = 20_000


def config(kind: str = "resnet", **tables: dict[str, Any]) -> dict[str, Any]:
    return {"seed": 4, "quantities": list(tables), "axes": AXES, "network": {"kind": kind}, **tables}


def network(kind: str, width: int, depth: int, norm: str) -> MLP | ResNet:
    given = None if norm == "none" else norm
    return ResNet([3, width, 1], depth, norm=given) if kind == "resnet" else MLP(
        [3, *[width] * (depth - 1), 1], norm=given
    )  # fmt: skip


def seed_of(quantity: str, stage: str, width: int, depth: int, norm: str) -> int:
    cell = Cell(3, "gaussian", "relu", "ntk", "ones", depth, width, (("norm", norm),))
    return cell_seed(4, cell, quantity, stage)


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_quantiles_are_those_of_the_draws_and_means_are_told_where_they_exist(kind: str) -> None:
    found = finwidth.sweep(config(kind, sampled={"draws": DRAWS}))
    told = set()
    for depth, width, norm in [(2, 5, "rms"), (6, 24, "rms"), (6, 24, "none")]:
        net, here = network(kind, width, depth, norm), found.sel(depth=depth, width=width, norm=norm)
        drawn = finwidth.sample(net, [1, 1, 1], DRAWS, seed_of("sampled", "draws", width, depth, norm))
        columns = {str(name): drawn[name].to_numpy() for name in drawn}
        exponent = tail_exponent(net)
        for name, value in DRAWN.items():
            values, one = value(columns), here.sel(moment=name)
            np.testing.assert_allclose(
                one.sampled_quantile, np.quantile(values, SHARES), rtol=0.02, atol=0.005 * np.median(abs(values))
            )
            finite = MOMENTS[name].order < exponent
            told.add(finite)
            assert np.isfinite(one.sampled_mean) == finite
            assert not one.sampled_trust or 2 * MOMENTS[name].order < exponent
            if finite:
                assert float(one.sampled_mean) == pytest.approx(values.mean(), rel=1e-9)
        assert here.sampled_converged
    assert told == {True, False}
    other = found.sampled_quantile.sel(depth=6, width=24, moment="K", norm="none")  # a control: of another network
    assert not np.allclose(other, found.sampled_quantile.sel(depth=6, width=24, moment="K", norm="rms"), rtol=0.02)
    assert found.sampled_quantile.attrs["units"].startswith("1; of dK")


def test_standard_errors_of_medians_are_those_of_repeated_samples() -> None:
    net = network("resnet", 5, 2, "rms")
    medians, errors = [], []
    for seed in range(200):
        sketch = BoundedSketch()
        sketch.add(finwidth.sample(net, [1, 1, 1], 1000, seed).K.to_numpy())
        medians.append(sketch.quantile(0.5).value)
        errors.append(sketch.quantile(0.5).se)
    assert 0.75 < np.mean(errors) / np.std(medians) < 1.33


def test_gram_and_training_keep_quantiles() -> None:
    inputs = ["ones", "random:2"]
    training = {"inputs": inputs, "targets": [1, -1], "steps": 3, "lr": 0.01, "draws": 60}
    gram = {"inputs": inputs, "draws": 700, "targets": [1, -1]}
    found = finwidth.sweep(config(gram=gram, training=training)).sel(depth=2, width=24)
    X = np.array([input_vector(name, 3, Path()) for name in inputs])
    for norm in ("none", "rms"):
        net, here = network("resnet", 24, 2, norm), found.sel(norm=norm)
        drawn = finwidth.sample_gram(net, X, 700, seed_of("gram", "draws", 24, 2, norm), y=[1, -1])
        for name in ("K", "dK"):
            expected = np.moveaxis(np.quantile(drawn[name].to_numpy(), SHARES, axis=0), 0, -1)
            size = np.median(abs(drawn[name].to_numpy()))
            np.testing.assert_allclose(here.gram_quantile.sel(gram_moment=name), expected, rtol=0.03, atol=0.06 * size)
        runs = finwidth.train(net, X, [1, -1], 3, 0.01, 60, seed_of("training", "chunk 0", 24, 2, norm))
        median = here.training_quantile.sel(quantile=0.5)
        for name in ("loss", "drift", "alignment"):
            middle = np.quantile(runs[name].sel(step=3), [0.45, 0.5, 0.55])
            assert middle[0] <= float(median.sel(followed=name, step=3)) <= middle[2]
        for name, step in (("loss", 3), ("drift", 3), ("loss", 0), ("alignment", 3)):
            finite = norm == "none" or step == 0 or name == "alignment"
            assert np.isfinite(here.training_mean.sel(followed=name, step=step)) == finite
    assert found.training_converged.all()


def test_a_store_goes_on_to_the_same_quantiles(tmp_path: Path) -> None:
    small = config(sampled={"draws": 17_000}, gram={"inputs": ["ones", "unit"], "draws": 130})
    large = config(sampled={"draws": 40_000}, gram={"inputs": ["ones", "unit"], "draws": 300})
    finwidth.sweep(small, tmp_path / "a.zarr")
    assert finwidth.sweep(large, tmp_path / "a.zarr").identical(finwidth.sweep(large))
    with pytest.raises(FinwidthError, match=r"sampled\.quantiles was True and is not given"):
        finwidth.sweep(large | {"sampled": {"draws": 40_000, "quantiles": False}}, tmp_path / "a.zarr")


def test_a_target_is_of_the_median() -> None:
    found = finwidth.sweep(config(sampled={"target": 0.02, "most_draws": 100_000}))
    median, error = (each.sel(moment="K", quantile=0.5) for each in (found.sampled_quantile, found.sampled_quantile_se))
    assert (error < 0.03 * median).all()
    assert (found.sampled_draws < 100_000).all()
    assert found.sampled_draws.min() < found.sampled_draws.max()  # each cell as many as it needs


def test_quantiles_where_they_are_asked_for() -> None:
    axes = {name: values for name, values in AXES.items() if name != "norm"}
    plain = config(sampled={"draws": 900}) | {"axes": axes}
    with_quantiles = plain | {"sampled": {"draws": 900, "quantiles": True}}
    one, other = finwidth.sweep(plain), finwidth.sweep(with_quantiles)
    assert "sampled_quantile" not in one
    assert one.sampled_mean.identical(other.sampled_mean)
    with pytest.raises(FinwidthError, match=r"sampled\.quantiles: 1 is neither true nor false"):
        finwidth.sweep(plain | {"sampled": {"draws": 900, "quantiles": 1}})


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_pictures_show_quantiles(kind: str, tmp_path: Path) -> None:
    several: dict[str, Any] = {"inputs": ["ones", "unit"], "draws": 40}
    training = several | {"targets": [1, -1], "steps": 2, "lr": 0.01}
    finwidth.sweep(config(kind, sampled={"draws": 2000}, gram=several, training=training), tmp_path / "a.zarr")
    found = plots.cut(finwidth.sweeps.read(tmp_path / "a.zarr"), ["norm=rms"])
    low, middle, high = (found.sampled_quantile.sel(moment="K", quantile=q) for q in (0.16, 0.5, 0.84))
    spread = (high - low) / (2 * middle)
    for name in plots.PICTURES:
        plots.plot(tmp_path / "a.zarr", name, tmp_path / f"{name}.png", at=["norm=rms"])
    axes = plots.collapse(found).axes[0]
    assert "norm rms" in axes.get_title()
    drawn = [line.get_ydata() for line in axes.get_lines() if len(np.atleast_1d(line.get_ydata())) == 2]
    for width in (5, 24):
        assert any(np.allclose(np.asarray(each, float), spread.sel(width=width)) for each in drawn)
    moves = plots.update_collapse(found).axes[0]
    assert "median" in moves.get_ylabel()


# ---- the sketch


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.integers(1, 5))
def test_a_sketch_is_the_same_in_any_pieces(values: list[float], pieces: int) -> None:
    whole, parts = BoundedSketch(), BoundedSketch()
    whole.add(np.array(values))
    for part in np.array_split(np.array(values), pieces)[::-1]:
        parts.add(part)
        parts = BoundedSketch(parts.state())
    assert np.array_equal(whole.state(), parts.state())
    assert whole.draws == len(values)


@pytest.mark.parametrize("law", ["lognormal", "narrow", "cauchy", "negative", "mixed"])
def test_quantiles_of_a_sketch_are_right(law: str) -> None:
    """Against sorting, for laws whose bins were merged often: 10^5 draws over many decades."""
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(100_000)
    values = {
        "lognormal": np.exp(3 * normal),
        "narrow": np.exp(0.01 * normal),
        "cauchy": rng.standard_cauchy(100_000),
        "negative": -np.exp(normal),
        "mixed": np.where(normal < -1, 0, normal),
    }[law]
    sketch = BoundedSketch()
    for chunk in np.array_split(values, 9):
        sketch.add(chunk)
        assert len(sketch._bins) <= BINS
    for share in SHARES:
        found = sketch.quantile(share)
        exact = np.quantile(values, share)
        assert abs(found.value - exact) < 0.3 * found.se + 0.002 * abs(exact) + 0.003 * (law == "cauchy")
    assert np.isnan(BoundedSketch().quantile(0.5).value)


def test_infinite_draws_have_their_share() -> None:
    sketch = BoundedSketch()
    sketch.add(np.array([1.0, 2.0, np.inf, np.inf, np.inf, -np.inf]))
    assert sketch.quantile(0.6).value == np.inf
    assert sketch.quantile(0.05).value == -np.inf
    assert sketch.quantile(0.3).value == pytest.approx(1, rel=0.01)
    assert sketch.quantile(0.6).se == np.inf
