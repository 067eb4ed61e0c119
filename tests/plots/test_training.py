"""Figures of a kernel in training show what the dataset holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import finwidth
from finwidth import plots

STEPS = np.array([0, 1, 2, 4, 8])


def dataset(draws: int = 0, *, targets: bool = True, loss: bool = True) -> xr.Dataset:
    rng = np.random.default_rng(70)
    dims, shape = (("draw", "step"), (draws, 5)) if draws else (("step",), (5,))
    names = ["drift", "rotation", "effective_rank", *(["alignment", "centred_alignment"] * targets)]
    variables: dict[str, Any] = {name: (dims, rng.uniform(0.1, 0.9, shape)) for name in names}
    variables["loss"] = (
        dims,
        np.where(STEPS > 0, rng.uniform(1, 2, shape), np.nan) if loss else np.full(shape, np.nan),
    )
    variables["eigenvalues"] = ((*dims, "eigenvalue"), np.sort(rng.uniform(1, 9, (*shape, 12)))[..., ::-1])
    if draws:
        variables["cv"] = ("step", rng.uniform(0.1, 0.9, 5))
    return xr.Dataset(variables, {"step": STEPS})


def curves_of(axes: Any) -> list[Any]:
    return [np.asarray(line.get_ydata()) for line in axes.lines]


def test_one_run(tmp_path: Path) -> None:
    found = dataset()
    figure = plots.kernel_in_training(found, "a title")
    loss, movement, alignment, spectrum = figure.axes
    assert np.array_equal(loss.lines[0].get_ydata(), found.loss, equal_nan=True)
    curves = [*curves_of(movement), *curves_of(alignment)]
    for curve, name in zip(curves, ("drift", "rotation", "alignment", "centred_alignment"), strict=True):
        assert np.array_equal(curve, found[name]), name
    assert np.array_equal(np.array(curves_of(spectrum)), found.eigenvalues[:, :8].T)
    assert plots.save(figure, tmp_path / "training")[0].stat().st_size > 10_000


def test_small_rotations_are_seen_beside_a_large_drift() -> None:
    found = dataset()
    found["drift"][:] = [0, 1, 10, 50, 60]
    found["rotation"][:] = [0, 1e-5, 1e-4, 1e-3, 7e-3]
    movement = plots.kernel_in_training(found).axes[1]
    bottom, top = movement.get_ylim()
    assert movement.get_yscale() == "log"
    assert bottom < 1e-5
    assert 60 < top < 1e6
    found["drift"][:] = found["rotation"][:] = 0.0
    assert plots.kernel_in_training(found).axes[1].get_ylim() == (0, 1e-3)


def test_dead_members_are_left_out_and_counted() -> None:
    found = dataset(draws=7)
    for name in ("drift", "alignment"):
        found[name][2] = np.nan
    figure = plots.kernel_in_training(found)
    drift, alignment = curves_of(figure.axes[1])[0], curves_of(figure.axes[2])[0]
    for curve, name in ((drift, "drift"), (alignment, "alignment")):
        assert np.allclose(curve, np.median(np.delete(found[name].to_numpy(), 2, axis=0), axis=0))
    labels = [label for axes in figure.axes[1:3] for label in axes.get_legend_handles_labels()[1]]
    assert ["1 dead left out" in label for label in labels] == [True, False, False, True, False]


def test_an_ensemble_is_shown_by_its_quantiles(tmp_path: Path) -> None:
    found = dataset(draws=7)
    figure = plots.kernel_in_training(found)
    _, movement, _, _ = figure.axes
    drift, _, cv = curves_of(movement)
    assert np.array_equal(cv, found.cv)
    assert np.allclose(drift, np.median(found.drift, axis=0))
    band = np.asarray(movement.collections[0].get_paths()[0].vertices)
    assert np.isin(np.quantile(found.drift, 0.84, axis=0).round(12), band[:, 1].round(12)).all()
    plots.save(figure, tmp_path / "ensemble")


def test_draws_in_law_are_shown_like_members(tmp_path: Path) -> None:
    run = finwidth.train(finwidth.MLP([2, 20, 1]), np.eye(2), [1.0, -1.0], 4, 0.05, draws=5)
    figure = plots.kernel_in_training(run)
    _, movement, alignment, spectrum = figure.axes
    assert np.allclose(curves_of(movement)[0], run.drift.median("draw"))
    assert np.allclose(curves_of(alignment)[1], run.centred_alignment.median("draw"))
    assert np.allclose(curves_of(spectrum)[0], run.eigenvalues[..., 0].median("draw"))
    assert figure.get_suptitle() == "2,20,1 relu, gaussian weights"
    plots.save(figure, tmp_path / "law")


def test_without_targets_or_loss(tmp_path: Path) -> None:
    figure = plots.kernel_in_training(dataset(targets=False, loss=False))
    assert figure.axes[0].texts[0].get_text() == "no loss was given"
    assert figure.axes[2].get_ylabel() == "effective rank"
    plots.save(figure, tmp_path / "bare")


def test_other_datasets_are_refused() -> None:
    with pytest.raises(finwidth.FinwidthError, match="holds no training"):
        plots.kernel_in_training(finwidth.sample(finwidth.MLP([2, 3, 1]), [1, 2], 10))
