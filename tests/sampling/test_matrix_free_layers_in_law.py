"""Matrix-free layers have the law of layers that draw their weights, before, during and after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import stats

torch = pytest.importorskip("torch", reason="needs the torch extra")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from finwidth import tangent_kernel  # noqa: E402
from finwidth.sampling.layers.tensor import MatrixFreeTensor  # noqa: E402
from finwidth.sampling.lazy_matrix.combination import SharedMatrix  # noqa: E402
from finwidth.sampling.lazy_matrix.gaussian import _Side  # noqa: E402
from law_modules import Attention, ConvNet, Drawing, InLaw, ResidualMLP, inputs_for  # noqa: E402

MODULES = [ResidualMLP, ConvNet, Attention]
PHI = {"relu": functional.relu, "gelu": functional.gelu}


pytestmark = pytest.mark.usefixtures("double")


def dense_kernel(module: Any, X: Any) -> Any:
    """K of each draw, (draws, m, m), from the gradients of all its parameters."""
    parameters = list(module.parameters())
    out = module(X)
    rows = []
    for a in range(out.shape[1]):
        gradients = torch.autograd.grad(out[:, a].sum(), parameters, retain_graph=True)
        rows.append(torch.cat([each.reshape(len(out), -1) for each in gradients], 1))
    return torch.stack([torch.stack([(one * other).sum(1) for other in rows], 1) for one in rows], 1)


def rise(module: Any, inputs: Any) -> Any:
    """By how much outputs rise when inputs move along the gradient by the inputs: right vectors of left answers."""
    inputs = inputs.clone().requires_grad_()
    out = module(inputs)
    (slope,) = torch.autograd.grad(out.sum(), inputs)
    lengths = slope.flatten(2).norm(dim=2).reshape(*slope.shape[:2], *(1 for _ in slope.shape[2:]))
    with torch.no_grad():
        return module(inputs + slope / (1 + lengths)) - out


def recorded(module: Any, X: Any, steps: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """Outputs, loss, and kernel entries of each draw after some steps on mini-batches of one or two."""
    parameters = list(module.parameters())
    in_law = any(isinstance(each, MatrixFreeTensor) for each in parameters)
    inputs = X.expand(len(parameters[0]), *X.shape)
    optimizer, y = torch.optim.SGD(parameters, **options), torch.tensor([1.0, -1.0])
    values = {}
    for step in range(max(steps) + 1):
        if step in steps:
            kernel = tangent_kernel(module(inputs), parameters) if in_law else dense_kernel(module, inputs)
            out = module(inputs).detach()
            values[f"rise after {step}"] = rise(module, inputs)[:, 0].detach()
            values[f"output after {step}"] = out[:, 0]
            values[f"loss after {step}"] = (out - y).square().sum(1)
            values[f"K_00 after {step}"], values[f"K_01 after {step}"] = kernel[:, 0, 0], kernel[:, 0, 1]
        batch = slice(None) if step % 3 == 0 else [step % 2]  # both inputs, then one of them
        optimizer.zero_grad()
        (module(inputs[:, batch]) - y[batch]).square().sum().backward()
        optimizer.step()
    return {name: each.numpy() for name, each in values.items()}


def begun(kind: Any, layers: Any, phi: str, width: int, seed: int) -> Any:
    """A module with random biases."""
    torch.manual_seed(seed)
    module = kind(layers, PHI[phi], width)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    return module


RATES = {ResidualMLP: 0.001, ConvNet: 0.005, Attention: 0.0005}  # none of the draws diverges


def samples(kind: Any, phi: str, draws: int, steps: tuple[int, ...]) -> Iterator[tuple[str, Any, Any]]:
    """Names of the recorded values, each in law and of networks that draw their weights."""
    X, options = inputs_for(kind, 2), {"lr": RATES[kind], "momentum": 0.8}
    in_law = recorded(begun(kind, InLaw(draws), phi, 20, 1), X, steps, **options)
    drawn = recorded(begun(kind, Drawing(draws), phi, 20, 2), X, steps, **options)
    return ((name, in_law[name], drawn[name]) for name in drawn)


STEPS = (0, 1, 2, 5, 20)
DRAWS = {ResidualMLP: 3000, ConvNet: 1000, Attention: 1500}
CASES = [(ResidualMLP, "relu"), (ConvNet, "relu"), (Attention, "gelu")]


@pytest.mark.parametrize(("kind", "phi"), CASES)
def test_same_law_as_networks_that_draw_their_weights(kind: Any, phi: str) -> None:
    for name, in_law, drawn in samples(kind, phi, DRAWS[kind], STEPS):
        assert stats.same_law(in_law, drawn), name


@pytest.mark.usefixtures("never_materialized")
def test_same_law_when_all_is_revealed_vector_by_vector() -> None:
    for name, in_law, drawn in samples(ResidualMLP, "gelu", 1500, STEPS):
        assert stats.same_law(in_law, drawn), name


@pytest.mark.slow
@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("kind", MODULES)
def test_same_law_with_more_draws(kind: Any, phi: str) -> None:
    for name, in_law, drawn in samples(kind, phi, 3 * DRAWS[kind], STEPS):
        assert stats.same_law(in_law, drawn), name


@pytest.mark.slow
@pytest.mark.usefixtures("never_materialized")
@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("kind", MODULES)
def test_same_law_with_more_draws_vector_by_vector(kind: Any, phi: str) -> None:
    for name, in_law, drawn in samples(kind, phi, 2 * DRAWS[kind], STEPS):
        assert stats.same_law(in_law, drawn), name


def forgetful(side: str) -> Any:
    """Products on one side that forget what the other side has revealed."""
    if side == "left":
        return lambda self, X: self._meet(X, self._left, _Side(), self.shape[::-1])
    return lambda self, X: self._meet(X, self._right, _Side(), self.shape)


@pytest.mark.usefixtures("never_materialized")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", MODULES)
def test_a_layer_that_forgets_one_side_is_rejected(kind: Any, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedMatrix, side, forgetful(side))
    assert not all(stats.same_law(in_law, drawn) for _, in_law, drawn in samples(kind, "gelu", DRAWS[kind], (0,)))
