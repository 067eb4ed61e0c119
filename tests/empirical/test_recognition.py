"""Torch modules read as networks: what PyTorch users write is recognised with its law, and nothing else is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, Activation, FinwidthError, SmoothActivation

torch = pytest.importorskip("torch")
nn = torch.nn
init = nn.init
recognise: Any = finwidth.empirical.recognise

WIDTHS = (12, 40, 30, 3)


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(51)


def sequential(
    widths: Sequence[int] = WIDTHS,
    activation: Callable[[], Any] = nn.ReLU,
    weights: Callable[[Any], object] = lambda weight: None,
    biases: Callable[[Any], object] = lambda bias: None,
    **kind: Any,
) -> Any:
    layers: list[Any] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m, **kind), activation()]
        weights(layers[-2].weight)
        if layers[-2].bias is not None:
            biases(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


relu = nn.ReLU()
RECOGNISED: dict[str, tuple[Callable[[], Any], MLP]] = {
    "default": (sequential, MLP.pytorch(WIDTHS)),
    "no biases": (lambda: sequential(bias=False), MLP.pytorch(WIDTHS, biases="none")),
    "zero biases": (lambda: sequential(biases=init.zeros_), MLP.pytorch(WIDTHS, biases="zeros")),
    "float64": (lambda: sequential(dtype=torch.float64), MLP.pytorch(WIDTHS)),
    "kaiming_normal": (lambda: sequential(weights=init.kaiming_normal_), MLP.pytorch(WIDTHS, "kaiming_normal")),
    "kaiming_uniform": (
        lambda: sequential(weights=lambda w: init.kaiming_uniform_(w, nonlinearity="relu"), biases=init.zeros_),
        MLP.pytorch(WIDTHS, "kaiming_uniform", biases="zeros"),
    ),
    "leaky": (
        lambda: sequential(
            activation=lambda: nn.LeakyReLU(0.5),
            weights=lambda w: init.kaiming_normal_(w, a=0.5, nonlinearity="leaky_relu"),
        ),
        MLP.pytorch(WIDTHS, "kaiming_normal", Activation("leaky_relu", 1, 0.5)),
    ),
    "leaky of the default slope": (
        lambda: sequential(activation=nn.LeakyReLU, weights=init.kaiming_normal_),
        MLP.pytorch(WIDTHS, "kaiming_normal", "leaky_relu"),
    ),
    "leaky with the gain of ReLU": (
        lambda: sequential(activation=lambda: nn.LeakyReLU(0.5), weights=init.kaiming_normal_),
        MLP(
            WIDTHS,
            "gaussian",
            Activation("leaky_relu", 1, 0.5),
            "standard",
            gains=2,
            bias_variance=[Fraction(1, 3 * n) for n in WIDTHS[:-1]],
            bias_law="uniform",
        ),
    ),
    "xavier": (
        lambda: sequential(weights=init.xavier_uniform_, biases=init.zeros_),
        MLP(
            WIDTHS, "uniform", parameterization="standard", gains=[Fraction(2 * n, n + m) for n, m in pairwise(WIDTHS)]
        ),
    ),
    "lecun, tanh": (
        lambda: sequential(
            activation=nn.Tanh, weights=lambda w: init.kaiming_normal_(w, nonlinearity="linear"), biases=init.zeros_
        ),
        MLP(WIDTHS, "gaussian", "tanh", "standard", gains=1),
    ),
    "gelu": (lambda: sequential(activation=nn.GELU), MLP.pytorch(WIDTHS, activation="gelu")),
    "linear": (
        lambda: nn.Sequential(*(nn.Linear(n, m) for n, m in pairwise(WIDTHS))),
        MLP.pytorch(WIDTHS, activation="linear"),
    ),
    "one activation module": (
        lambda: nn.Sequential(nn.Linear(12, 40), relu, nn.Linear(40, 30), relu, nn.Linear(30, 3)),
        MLP.pytorch(WIDTHS),
    ),
    "nested, flattened, dropout in eval": (
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Sequential(nn.Linear(12, 40), nn.Dropout(0.5), nn.ReLU()),
            nn.Sequential(nn.Identity(), nn.Linear(40, 30), nn.ReLU(), nn.Dropout(0.1)),
            nn.Linear(30, 3),
        ).eval(),
        MLP.pytorch(WIDTHS),
    ),
    "frozen biases": (
        lambda: sequential(biases=lambda bias: bias.requires_grad_(False)),
        MLP(
            WIDTHS,
            "uniform",
            parameterization="standard",
            gains=Fraction(1, 3),
            bias="frozen",
            bias_variance=[Fraction(1, 3 * n) for n in WIDTHS[:-1]],
            bias_law="uniform",
        ),
    ),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_what_users_write_is_recognised(name: str) -> None:
    make, net = RECOGNISED[name]
    found = recognise(make())
    described, wanted = found.describe(), net.describe()
    if not net.random_bias:
        del described["bias_law"], wanted["bias_law"]
    assert described == wanted
    assert found.layers == net.layers
    assert isinstance(net.activation, SmoothActivation) or found.activation == net.activation


def test_fresh_networks_are_not_refused() -> None:
    for _ in range(25):
        assert recognise(sequential()).weight_law.name == "uniform"
        assert list(recognise(sequential(weights=init.kaiming_normal_)).gains) == [2, 2, 2]


def test_the_network_computes_what_the_module_does() -> None:
    """The weights of the module in a module made of what was recognised."""
    for name in ("leaky", "gelu", "nested, flattened, dropout in eval", "linear"):
        module = RECOGNISED[name][0]().double()
        again = finwidth.empirical.MLP(recognise(module))
        again.load_state_dict(dict(zip(again.state_dict(), module.state_dict().values(), strict=True)))
        x = torch.randn(5, 12, dtype=torch.float64)
        assert torch.equal(again(x), module(x))


def softplus() -> SmoothActivation:
    return SmoothActivation(
        "softplus",
        lambda y: np.logaddexp(0, y),
        lambda y: 1 / (1 + np.exp(-y)),
        torch_module="Softplus",
    )


def test_a_new_smooth_activation_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is recognised with its default options, whichever way they are written, and with no others."""
    monkeypatch.setitem(finwidth.networks.activations.ACTIVATIONS, "softplus", softplus())
    for usual in (nn.Softplus, partial(nn.Softplus, beta=1, threshold=20)):
        found = recognise(sequential(activation=usual))
        assert found.describe() == MLP.pytorch(WIDTHS, activation="softplus").describe()
    for option in ({"beta": 2}, {"threshold": 1}):
        with pytest.raises(FinwidthError, match=r"is Softplus\(beta=.*; Softplus\(beta=1.*threshold=20.*\) is known"):
            recognise(sequential(activation=partial(nn.Softplus, **option)))
    assert isinstance(finwidth.empirical.MLP(MLP([3, 5, 1], activation="softplus"))[1], nn.Softplus)


def test_a_copy_of_what_torch_has_no_module_for(tmp_path: Path) -> None:
    """The error function, through a copy and through a file."""
    layers = list(finwidth.empirical.MLP(MLP.pytorch(WIDTHS, activation="erf")).float())
    torch.save(nn.Sequential(*layers), tmp_path / "module.pt")
    for module in (copy.deepcopy(nn.Sequential(*layers)), torch.load(tmp_path / "module.pt", weights_only=False)):
        assert recognise(module).activation is finwidth.networks.activations.ACTIVATIONS["erf"]
        x = torch.randn(5, 12)
        assert torch.equal(module[1](x), torch.erf(x))


def test_a_module_of_a_network_is_that_network() -> None:
    net = MLP([4, 5, 1], "laplace", parameterization="mup")
    assert recognise(finwidth.empirical.MLP(net)) is net


def test_the_user_may_say_it() -> None:
    tiny = sequential((2, 3, 1), weights=init.kaiming_normal_)
    assert recognise(tiny, init="kaiming_normal").describe() == MLP.pytorch([2, 3, 1], "kaiming_normal").describe()
    truncated = {"weight_law": "truncated-normal", "gains": 1, "bias_variance": 0}
    found = recognise(tiny, init=truncated)
    assert found.describe() == MLP([2, 3, 1], "truncated-normal", parameterization="standard", gains=1).describe() | {
        "bias_law": "uniform"
    }


def trained(optimizer: str, rate: float, **how: Any) -> Any:
    module = sequential((12, 100, 100, 3), **how)
    x, y = torch.randn(64, 12), torch.randn(64, 3)
    steps = getattr(torch.optim, optimizer)(module.parameters(), rate)
    for _ in range(25):
        steps.zero_grad()
        nn.functional.mse_loss(module(x), y).backward()
        steps.step()
    return module


class Residual(nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x: Any) -> Any:
        return x + 1


class OwnForward(nn.Sequential):  # type: ignore[misc, name-defined]
    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


def hooked() -> Any:
    module = sequential()
    module[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


def frozen() -> Any:
    module = sequential()
    module[2].weight.requires_grad_(False)
    return module


def with_nan() -> Any:
    module = sequential()
    module[2].weight.data[0, 0] = float("nan")
    return module


shared = nn.Linear(5, 5)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: np.ones(3), "is not a torch module"),
    "own class": (Residual, "it adds what is neither a Linear layer.s nor the stream"),
    "own forward": (lambda: OwnForward(nn.Linear(2, 3)), "its output is multiplied by 2"),
    "own layer": (lambda: nn.Sequential(nn.Linear(4, 4), Residual(), nn.Linear(4, 1)), "layer '1' is of type Residual"),
    "batch norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "BatchNorm1d"),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Linear(4, 1)), "Conv1d"),
    "empty": (nn.Sequential, "it has no Linear layer"),
    "ends with an activation": (lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "does not end with a Linear"),
    "begins with one": (lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 3)), "layer '0', ReLU, does not follow"),
    "two activations": (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Tanh(), nn.Linear(3, 1)),
        "does not follow",
    ),
    "activations differ": (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.1), nn.Linear(3, 3), nn.LeakyReLU(0.2), nn.Linear(3, 1)),
        r"differ: leaky_relu \(slopes 1.0, 0.1\), leaky_relu \(slopes 1.0, 0.2\)",
    ),
    "an activation is missing": (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1)),
        r"differ: linear \(slopes 1.0, 1.0\), relu",
    ),
    "gelu by tanh": (lambda: sequential(activation=lambda: nn.GELU("tanh")), "GELU.approximate='tanh'"),
    "dropout in training": (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1), nn.ReLU(), nn.Linear(3, 1)),
        "call module.eval",
    ),
    "flatten inside": (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Flatten(), nn.Linear(3, 1)),
        "layer '1' is of type Flatten",
    ),
    "shared": (lambda: nn.Sequential(shared, nn.ReLU(), shared), "layers share parameters"),
    "some biases": (lambda: nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 1, bias=False)), "some have none"),
    "hooks": (hooked, "layer '0' has forward hooks"),
    "frozen weights": (frozen, "layer '2' are not trained"),
    "not finite": (with_nan, "layer '2' holds numbers that are not finite"),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), "Parametrized"),
    "orthogonal": (lambda: sequential(weights=init.orthogonal_), "are orthogonal"),
    "another law": (
        lambda: sequential(weights=lambda w: init.normal_(w, std=0.02)),
        "fit none of default; .*fan-in times mean square",
    ),
    # Of a network of WIDTHS the variance, 0.77 for 1, is told in five draws of six only.
    "truncated": (lambda: sequential((12, 100, 100, 3), weights=init.trunc_normal_), "fit none of"),
    "constant biases": (lambda: sequential(biases=lambda b: init.constant_(b, 0.01)), "its biases are neither"),
    "too few weights": (lambda: sequential((2, 3, 1), weights=init.kaiming_normal_), "too few to tell"),
    "trained by SGD": (lambda: trained("SGD", 0.1), "so they are trained"),
    "trained a little by SGD": (lambda: trained("SGD", 0.001), "so they are trained"),
    "Gaussian, trained by Adam": (
        lambda: trained("Adam", 0.01, weights=init.kaiming_normal_, bias=False),
        "so they are trained",
    ),
    "zero biases, trained": (
        lambda: trained("SGD", 0.01, weights=init.kaiming_normal_, biases=init.zeros_),
        "its biases are neither",
    ),
    "init unknown": (lambda: recognise(sequential(), init="magic"), "init 'magic' is not known; choose one of default"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(finwidth.FinwidthError, match=words):
        recognise(make())
