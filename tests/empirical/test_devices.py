"""Modules on a torch device: the numbers that they have on the CPU (docs/processors.md tells what was run)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from torch import nn  # noqa: E402

import finwidth  # noqa: E402
from devices import DEVICE  # noqa: E402
from finwidth import MLP, MatrixFreeConv2d, MatrixFreeLinear, ResNet  # noqa: E402
from finwidth.empirical import Ensemble, Tracker, explain, ntk, recognise, sgd_update  # noqa: E402
from stats import same_law  # noqa: E402


class Convolutional(nn.Module):
    """A small convolutional network with a norm, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 5, 3))
        self.head = nn.Linear(5, 3)

    def forward(self, X: Any) -> Any:
        return self.head(self.features(X).mean((2, 3)))


class Language(nn.Module):
    """A transformer of one layer whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.place = nn.Parameter(torch.randn(5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True, norm_first=True)

    def forward(self, words: Any) -> Any:
        return self.layer(self.embedding(words) + self.place)[:, -1] @ self.embedding.weight.T


def modules() -> dict[str, tuple[nn.Module, Any]]:
    """Modules in float64, and inputs."""
    torch.manual_seed(0)
    made: dict[str, tuple[nn.Module, Any]] = {
        "mlp": (nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2)), torch.randn(7, 6)),
        "convolutional": (Convolutional(), torch.randn(5, 1, 7, 7)),
        "language": (Language(), torch.randint(11, (4, 5))),
        "recurrent": (Last(nn.GRU(3, 6, batch_first=True)), torch.randn(4, 5, 3)),
    }
    return {name: (module.double(), X if X.dtype == torch.int64 else X.double()) for name, (module, X) in made.items()}


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, X: Any) -> Any:
        return self.layer(X)[0][:, -1]


def there(module: nn.Module, X: Any) -> tuple[nn.Module, Any]:
    """The same module and inputs on the device."""
    return copy.deepcopy(module).to(DEVICE), X.to(DEVICE)


def assert_equal(ours: Any, other: Any) -> None:
    """Equal but for rounding, ``ours`` from the device."""
    ours = ours.cpu()
    assert torch.allclose(ours, other, rtol=1e-9, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize("name", ["mlp", "convolutional", "language", "recurrent"])
@pytest.mark.parametrize("options", [{}, {"outputs": "trace"}, {"entries": "diagonal"}, {"memory": "1MB"}])
def test_kernels_on_a_device(name: str, options: Any) -> None:
    module, X = modules()[name]
    module.eval()
    found = ntk(*there(module, X), **options)
    assert found.device.type == torch.device(DEVICE).type
    assert_equal(found, ntk(module, X, **options))


@pytest.mark.parametrize("name", ["mlp", "convolutional", "language"])
def test_updates_on_a_device(name: str) -> None:
    module, X = modules()[name]
    module.eval()
    y = torch.zeros(module(X).shape, dtype=torch.float64)
    placed, inputs = there(module, X)
    assert_equal(sgd_update(placed, inputs, y.to(DEVICE)), sgd_update(module, X, y))
    assert "weight" in str(explain(placed, inputs))


def test_another_module_on_a_device_is_told_apart() -> None:
    module, X = modules()["mlp"]
    placed, inputs = there(module, X)
    with torch.no_grad():
        next(placed.parameters())[0, 0] += 1e-3
    assert not torch.allclose(ntk(placed, inputs).cpu(), ntk(module, X), rtol=1e-6)


def test_a_tracker_on_a_device() -> None:
    module, X = modules()["mlp"]
    y = torch.arange(2.0 * len(X), dtype=torch.float64).reshape(-1, 2)
    films = []
    for each, inputs in ((module, X), there(module, X)):
        tracker = Tracker(each, inputs, y.to(inputs.device), record=1, kernels=True)
        optimizer = torch.optim.SGD(each.parameters(), lr=0.001)
        for _ in range(3):
            optimizer.zero_grad()
            loss = (each(inputs) - y.to(inputs.device)).square().sum()
            loss.backward()
            optimizer.step()
            tracker.step(loss)
        films.append(tracker.dataset())
    assert np.allclose(films[0].K, films[1].K, rtol=1e-9)
    assert np.allclose(films[0].drift, films[1].drift, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("net", [MLP([2, 6, 5, 1]), ResNet([2, 6, 1], 2, 5)], ids=str)
def test_an_ensemble_on_a_device_has_the_law(net: Any) -> None:
    X = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    ours = Ensemble(net, 2000, seed=1, device=DEVICE).kernels(X.to(DEVICE))
    drawn = finwidth.sample(net, [1.0, 2.0], 2000, seed=2)
    assert same_law(ours.cpu().numpy().reshape(-1), drawn.K.to_numpy())
    assert not same_law(1.5 * ours.cpu().numpy().reshape(-1), drawn.K.to_numpy())


def test_what_is_said_of_modules_on_a_device() -> None:
    module = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 1)).to(DEVICE)
    x = torch.ones(6, device=DEVICE)
    assert recognise(module).widths == (6, 40, 1)
    finwidth.regime(module, x)
    finwidth.compare(module, x, draws=1000, networks=20)
    other = nn.Sequential(nn.Conv2d(1, 30, 3), nn.ReLU(), nn.Flatten(), nn.Linear(30 * 16, 1)).to(DEVICE)
    images = torch.ones(2, 1, 6, 6, device=DEVICE)
    finwidth.regime(other, images[0], draws=10)
    matrix_free = finwidth.in_law(other, gains=2.0)
    assert matrix_free(images).device.type == torch.device(DEVICE).type


def test_matrix_free_layers_on_a_device() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        MatrixFreeConv2d(1, 1000, 3, device=DEVICE), nn.ReLU(), nn.Flatten(), MatrixFreeLinear(9000, 2, device=DEVICE)
    )
    X = torch.randn(3, 1, 5, 5, device=DEVICE)
    before = net(X)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
    before.square().sum().backward()
    optimizer.step()
    after = net(X)
    assert after.device.type == torch.device(DEVICE).type
    assert after.square().sum().item() < before.square().sum().item()
