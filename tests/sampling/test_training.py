"""Training in law: against networks that hold their weights, the kernel's first change, and the infinite width."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import finwidth
from dense_training import dense_training
from finwidth import MLP, sample_gram, train
from finwidth.empirical.brute_force import draw_networks
from finwidth.sampling import revealed
from finwidth.sampling.revealed import GaussianMatrix
from stats import same_law

Array = Any
Drawn = dict[str, Array]

X = np.array([[1.0, 2.0, 0.5], [0.5, -1.0, 1.0]])
Y = np.array([1.0, -0.5])
MORE = np.array([[1.0, 2.0, 0.5], [0.5, -1.0, 1.0], [-1.0, 0.3, 0.3]])
PROBE = np.array([[1.0, 1.0, 1.0], [0.0, -1.0, 2.0]])
STEPS = (0, 1, 2, 5, 20)
DRAWS = 6_000

RUNS: dict[str, tuple[MLP, dict[str, Any]]] = {
    "relu": (MLP([3, 8, 7, 1]), {"X": X, "y": Y, "lr": 0.03}),
    "gelu, momentum": (
        MLP([3, 7, 8, 1], activation="gelu"),
        {"X": X, "y": Y, "lr": 0.01, "momentum": 0.8},
    ),
    "relu, mini-batches, probe": (
        MLP([3, 6, 6, 6, 1]),
        {"X": MORE, "y": [1.0, -0.5, 0.3], "lr": 0.02, "batch": 2, "probe": PROBE},
    ),
    "gelu, mini-batches, momentum, random biases": (
        MLP([3, 7, 6, 1], activation="gelu", bias_variance=[0.3, 0.1, 0.2]),
        {"X": MORE, "y": [1.0, -0.5, 0.3], "lr": 0.01, "batch": 2, "momentum": 0.5},
    ),
    "tanh, classes, standard": (
        MLP([3, 6, 5, 3], activation="tanh", parameterization="standard", bias_variance=0.1),
        {"X": MORE, "y": np.array([0, 2, 1]), "lr": 0.1, "loss": "cross-entropy"},
    ),
    "several outputs, probe, mup, no biases": (
        MLP([3, 8, 7, 2], activation="gelu", parameterization="mup", bias="none"),
        {"X": X, "y": [[1.0, 0.0], [0.5, -1.0]], "lr": 0.02, "probe": PROBE, "momentum": 0.3},
    ),
    "frozen random biases, more inputs than neurons": (
        MLP([3, 2, 2, 1], activation="erf", bias="frozen", bias_variance=0.2),
        {"X": MORE, "y": [1.0, -0.5, 0.3], "lr": 0.05},
    ),
}

# At each recorded step; kernel entries, outputs, loss, and how they depend on each other.
VIEWS: dict[str, Callable[[Drawn], Array]] = {
    "loss": lambda d: d["loss"],
    "output": lambda d: d["output"][..., 0, 0],
    "output of the last": lambda d: d["output"][..., -1, -1],
    "K 00": lambda d: d["K"][..., 0, 0],
    "K 01": lambda d: d["K"][..., 0, 1],
    "determinant": lambda d: np.linalg.det(d["K"]),
    "output against kernel": lambda d: d["output"][..., 0, 0] ** 2 / (1e-9 + d["K"][..., 0, 0]),
}
CHANGES: dict[str, Callable[[Drawn], Array]] = {
    "change of K 00": lambda d: d["K"][:, 1:, 0, 0] - d["K"][:, :1, 0, 0],
    "change of K 01": lambda d: d["K"][:, 1:, 0, 1] / d["K"][:, :1, 0, 0] - d["K"][:, :1, 0, 1] / d["K"][:, :1, 0, 0],
    "ratio of losses": lambda d: d["loss"][:, 1:] / d["loss"][:, :1],
    "probe output": lambda d: d["probe_output"][:, 1:, 0, 0],
}


def in_law(name: str, draws: int = DRAWS, seed: int = 5) -> Drawn:
    net, arguments = RUNS[name]
    run = train(net, steps=STEPS[-1], draws=draws, seed=seed, record=STEPS, **arguments)
    found = {"loss": run.loss.to_numpy(), "K": run.K.to_numpy()}
    for each in ("output", "probe_output"):
        values = (run[each] if each in run else run.output).to_numpy()
        found[each] = values[..., None] if net.widths[-1] == 1 else values
    return found


def drawn_weights(name: str, draws: int = DRAWS) -> Drawn:
    net, arguments = RUNS[name]
    rest = {key: value for key, value in arguments.items() if key not in {"X", "y", "lr"}}
    X, y, lr = arguments["X"], np.asarray(arguments["y"]), arguments["lr"]
    return dense_training(net, X, y, STEPS[-1], lr, draws, np.random.default_rng(9), STEPS, **rest)


def views(d: Drawn) -> dict[str, Array]:
    """Every view at every recorded step, shape (draws, steps); rounding apart, equal numbers are equal."""
    return {name: view(d).round(8) for name, view in {**VIEWS, **CHANGES}.items()}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_training_has_the_law_of_networks_that_hold_their_weights(
    name: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every product conditioned on all earlier ones to the last step, and with matrices completed on the way."""
    if not whole:
        monkeypatch.setattr(GaussianMatrix, "settle", lambda self: None)
    elif name not in {"relu", "gelu, mini-batches, momentum, random biases"}:
        pytest.skip("two runs suffice")
    ours, theirs = views(in_law(name)), views(drawn_weights(name))
    for view, values in ours.items():
        for place in range(values.shape[1]):
            assert same_law(values[:, place], theirs[view][:, place]), (view, place)
