"""The quantity `training` is `finwidth.train` in every cell."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, FinwidthError
from finwidth.sweeps.schema.grid import Cell, cell_seed, input_vector

pytest.importorskip("zarr", reason="needs the sweep extra")

TABLE: dict[str, Any] = {
    "inputs": ["ones", "random:1"], "targets": [1, -1], "steps": 3, "lr": 0.05, "draws": 40, "record": [1],
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "seed": 2, "quantities": ["training"], "axes": {"depth": [2, 3], "width": [4, 16], "n_0": 3}, "training": TABLE,
}  # fmt: skip


def test_means_are_those_of_train_with_the_seed_of_the_chunk() -> None:
    found = finwidth.sweep(CONFIG)
    assert found.training_mean.sizes == {"depth": 2, "width": 2, "followed": 3, "step": 3}
    X = [input_vector(name, 3, Path()) for name in TABLE["inputs"]]
    cell = Cell(3, "gaussian", "relu", "ntk", "ones", 3, 16)
    seed = cell_seed(2, cell, "training", "chunk 0")
    runs = finwidth.train(MLP([3, 16, 16, 1]), X, [1, -1], 3, 0.05, 40, seed)
    here = found.sel(depth=3, width=16)
    for step in (0, 1, 3):
        for name in ("loss", "drift", "alignment"):
            mean = float(here.training_mean.sel(followed=name, step=step))
            assert mean == pytest.approx(float(runs[name].sel(step=step).mean()), rel=1e-12)
    assert (found.training_mean.sel(followed="drift", step=0) == 0).all()


def test_dead_networks_have_no_alignment_and_spoil_no_mean() -> None:
    network = {"bias": "frozen"}
    axes = {"depth": [4], "width": [2], "n_0": 3}
    found = finwidth.sweep(CONFIG | {"network": network, "axes": axes})
    X = [input_vector(name, 3, Path()) for name in TABLE["inputs"]]
    seed = cell_seed(2, Cell(3, "gaussian", "relu", "ntk", "ones", 4, 2), "training", "chunk 0")
    runs = finwidth.train(MLP([3, 2, 2, 2, 1], bias="frozen"), X, [1, -1], 3, 0.05, 40, seed)
    dead = ~runs.K.to_numpy().any(axis=(1, 2, 3))
    assert 0 < dead.sum() < 40
    here = found.isel(depth=0, width=0) if "depth" in found.training_mean.dims else found
    for name, draws in (
        ("loss", runs.loss[:, 1]),
        ("alignment", runs.alignment[~dead, 1]),
        ("drift", runs.drift[~dead, 1]),
    ):
        assert float(here.training_mean.sel(followed=name, step=1)) == pytest.approx(float(draws.mean()), rel=1e-12)
        assert np.isfinite(float(here.training_se.sel(followed=name, step=1)))


def test_more_draws_and_workers_change_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finwidth.sweeps.quantities.training.training_chunk_size", lambda net, inputs: 15)
    finwidth.sweep(CONFIG, tmp_path / "a.zarr")
    more = CONFIG | {"training": TABLE | {"draws": 70}}
    assert finwidth.sweep(more, tmp_path / "a.zarr").identical(finwidth.sweep(more, workers=1))


def test_real_networks_are_an_ensemble_with_the_seed_of_the_chunk() -> None:
    pytest.importorskip("torch")
    table = TABLE | {"method": "networks"}
    axes = CONFIG["axes"] | {"law": ["gaussian", "uniform"]}
    found = finwidth.sweep(CONFIG | {"training": table, "axes": axes})
    X = np.array([input_vector(name, 3, Path()) for name in TABLE["inputs"]])
    seed = cell_seed(2, Cell(3, "uniform", "relu", "ntk", "ones", 3, 16), "training", "chunk 0")
    ensemble = finwidth.empirical.Ensemble(MLP([3, 16, 16, 1], "uniform"), 40, seed)
    runs = ensemble.train(X, np.array([1.0, -1.0]), 3, 0.05, record=[1])
    here = found.sel(depth=3, width=16, law="uniform")
    for step in (0, 1, 3):
        for name in ("loss", "drift", "alignment"):
            mean = float(here.training_mean.sel(followed=name, step=step))
            assert mean == pytest.approx(float(runs[name].sel(step=step).mean()), rel=1e-9, abs=1e-12)


def test_both_methods_agree() -> None:
    """Six standard errors of 400 networks each, at every followed quantity and step but the drift at 0."""
    pytest.importorskip("torch")
    axes = {"depth": 3, "width": 16, "n_0": 3}
    law, networks = (
        finwidth.sweep(CONFIG | {"axes": axes, "training": TABLE | {"draws": 400, "method": method}})
        for method in ("law", "networks")
    )
    spread = np.hypot(law.training_se, networks.training_se)
    assert (abs(law.training_mean - networks.training_mean) <= 6 * spread + 1e-12).all()
    assert float(spread.sel(followed="loss", step=3) / law.training_mean.sel(followed="loss", step=3)) < 0.2


def test_diverging_training_is_inf_and_not_trusted() -> None:
    table = TABLE | {"lr": 1e6, "steps": 200}
    found = finwidth.sweep(CONFIG | {"training": table})
    assert np.isinf(found.training_mean.sel(followed="loss", step=200)).all()
    assert not found.training_converged.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": TABLE | {"targets": [1]}}, "training.targets: give a list of 2 numbers"),
        ({"training": TABLE | {"record": [4]}}, "training.record: 4 is not a whole number from 0 to 3"),
        ({"training": TABLE | {"method": "torch"}}, "training.method"),
        pytest.param(
            {"training": TABLE | {"method": "networks", "targets": [1, 1]}},
            "the targets are all equal",
            marks=pytest.mark.skipif(find_spec("torch") is None, reason="needs the torch extra"),
        ),
        ({"training": {"steps": 3}}, "training.inputs: this key is missing"),
        ({"axes": CONFIG["axes"] | {"law": "uniform"}}, "\"training\" cannot be had for law 'uniform'"),
        ({"axes": CONFIG["axes"] | {"input": ["ones", "unit"]}}, "for training takes its inputs from the table"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FinwidthError) as caught:
        finwidth.sweep(CONFIG | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["phase-diagram", "phase-diagram-sampled", "training"])
def test_the_examples_are_configs(name: str) -> None:
    pytest.importorskip("sklearn", reason="needs the digits extra")
    from finwidth.sweeps.config import read_config

    config, _ = read_config(Path(__file__).parents[2] / "examples" / f"{name}.toml")
    assert config.quantities
