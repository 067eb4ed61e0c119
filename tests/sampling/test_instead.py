"""What a refusal names instead does serve the network."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, FinwidthError

X, Y = np.eye(2), [1.0, -1.0]
CALLS: dict[str, Callable[[MLP], Any]] = {
    "moments": lambda net: finwidth.moments(net, X[0]),
    "sample": lambda net: finwidth.sample(net, X[0], draws=10),
    "sample_gram": lambda net: finwidth.sample_gram(net, X, draws=10),
    "train": lambda net: finwidth.train(net, X, np.zeros((2, net.widths[-1])), steps=1, lr=0.1, draws=1),
    "empirical.Ensemble": lambda net: pytest.importorskip("torch") and finwidth.empirical.Ensemble(net, 2).kernels(X),
}
NETWORKS = [
    MLP([2, 3, outputs], weight_law=law, activation=activation, bias_variance=variance)
    for outputs in (1, 2)
    for law in ("gaussian", "uniform")
    for activation in ("relu", "abs", "tanh")
    for variance in (0, 1)
]


@pytest.mark.parametrize("name", ["sample", "sample_gram", "train"])
@pytest.mark.parametrize("net", NETWORKS, ids=str)
def test_what_is_named_instead_serves(name: str, net: MLP) -> None:
    try:
        CALLS[name](net)
    except FinwidthError as error:
        named = re.findall(r"finwidth\.([\w.]+) (?!cannot)", str(error))
        assert "empirical.Ensemble" in named
        for other in named:
            CALLS[other](net)
        for other in CALLS.keys() - {*named, name}:
            with pytest.raises(FinwidthError):
                CALLS[other](net)
