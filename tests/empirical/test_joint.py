"""Block matrices of the kernels of functions that share parameters, against plain backward passes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from finwidth.empirical import ntk  # noqa: E402
from finwidth.empirical.kernel import computation, parts  # noqa: E402
from plain_rows import close, rows  # noqa: E402

Tensor = Any


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(8)


def field() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()


class Laplacian(nn.Module):
    """-u_xx - u_yy, by differentiating u."""

    def __init__(self, u: nn.Module) -> None:
        super().__init__()
        self.u = u

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(self.u(x).sum(), x, create_graph=True)
        second = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
        return -second[0] - second[1]


def blocks(functions: Sequence[Any], sets: Sequence[Tensor], parameters: Any) -> Tensor:
    """The gradients of every function at its inputs, one sample at a time."""
    parameters = list(parameters)
    return torch.cat([
        rows((f(X[[a]].clone()) for a in range(len(X))), parameters) for f, X in zip(functions, sets, strict=True)
    ])  # fmt: skip


def points(*sizes: int) -> list[Tensor]:
    return [torch.rand(n, 2).double() for n in sizes]


def test_a_field_and_its_residual() -> None:
    u = field()
    r, sets = Laplacian(u), points(4, 9)
    J = blocks([u, r], sets, u.parameters())
    found = ntk([u, r], sets, labelled=True)
    assert found.dims == ("input", "input_", "output", "output_")
    assert close(torch.from_numpy(found.to_numpy())[..., 0, 0], J @ J.T)
    assert found.function.to_numpy().tolist() == ["0"] * 4 + ["1"] * 9
    assert found.number_.to_numpy().tolist() == [*range(4), *range(9)]
    assert close(ntk([u, r], sets, outputs="trace", memory="60KB"), J @ J.T)
    assert close(ntk([u, r], sets, outputs=0, entries="diagonal"), (J @ J.T).diagonal())
    mine: dict[str, Any] = {"u": u, "r": r.forward}  # a function that calls a module
    named = ntk(mine, dict(zip("ur", sets, strict=True)), outputs="trace", labelled=True)
    between = named.where((named.function == "u") & (named.function_ == "r"), drop=True).to_numpy()
    assert np.allclose(between, (J[:4] @ J[4:].T).numpy(), rtol=1e-11)


def test_other_inputs_and_groups() -> None:
    u = field()
    r, sets, others = Laplacian(u), points(4, 9), points(2, 3)
    one, two = blocks([u, r], sets, u.parameters()), blocks([u, r], others, u.parameters())
    done: list[int] = []
    assert close(ntk([u, r], sets, others, outputs="trace", progress=done.append), one @ two.T)
    assert done[-1] == 13 * 5
    assert done == sorted(done)
    ntk([u, r], sets, outputs="trace", progress=done.append)
    assert done[-1] == 13 * 13
    parts = ntk([u, r], sets, outputs="trace", by="layer")
    assert parts.shape == (3, 13, 13)
    assert close(parts.sum(0), one @ one.T)
    weights = ntk([u, r], sets, outputs="trace", parameters=lambda name, each: name.endswith("weight"))
    names = [name for name, _ in u.named_parameters()]
    own = one.split([each.numel() for each in u.parameters()], 1)
    J = torch.cat([each for name, each in zip(names, own, strict=True) if "weight" in name], 1)
    assert close(weights, J @ J.T)


class Heads(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def test_several_outputs_of_modules_with_parameters_of_their_own() -> None:
    trunk = nn.Sequential(nn.Linear(2, 5), nn.Tanh()).double()
    heads, sets = [Heads(trunk), Heads(trunk)], points(3, 4)
    every = [*trunk.parameters(), *heads[0].head.parameters(), *heads[1].head.parameters()]
    right = blocks(heads, sets, every)
    right = (right @ right.T).unflatten(1, (7, 3)).unflatten(0, (7, 3)).transpose(1, 2)
    assert close(ntk(heads, sets), right)
    assert close(ntk(heads, sets, outputs="diagonal"), right.diagonal(dim1=2, dim2=3))
    assert close(ntk(heads, sets, outputs=[2, 0]), right[:, :, [2, 0]][:, :, :, [2, 0]])
    assert close(ntk(heads, sets, outputs=lambda output, sample: output.sum(1)), right.sum((2, 3)))
    assert close(ntk(heads, sets, by={"first": heads[0].head}).sum(0), right)


DRAWS = random.Random(0)
MISTAKES: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "no module": (lambda u: [torch.sin, torch.cos], "none of the functions is a module"),
    "no function": (lambda u: [u, 3], "the module is"),
    "nothing": (lambda u: [], r"the module is \[\]; give a torch.nn.Module, or a list"),
    "name": (lambda u: {"a.b": u}, "the module is"),
    "name of a method": (lambda u: {"train": u, "test": u}, "a function is named 'train'"),
    "random numbers": (lambda u: [u, lambda x: DRAWS.random() * u(x)], "draws random numbers"),
    "outputs": (lambda u: [u, lambda x: torch.cat([u(x), u(x)], 1)], "1 and 2 outputs; give functions with equally"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name: str) -> None:
    u = field()
    functions, words = MISTAKES[name]
    with pytest.raises(FinwidthError, match=words):
        ntk(functions(u), points(2, 2))
    with pytest.raises(FinwidthError, match="give the inputs of each of the 2 functions"):
        ntk([u, u], torch.ones(3, 2))
    with pytest.raises(FinwidthError, match="one module at one batch"):
        ntk([u, u], points(2, 2), coupled=True)


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal", 0])
def test_faults_are_found(outputs: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a block between two functions, and in putting blocks together."""
    u = field()
    functions, sets = [u, Laplacian(u)], points(4, 4)
    right = ntk(functions, sets, outputs=outputs)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "_block_places", lambda sets, diagonal: iter([
            (0, 0, slice(0, 4), slice(0, 4)), (1, 1, slice(0, 4), slice(4, 8)), (0, 1, slice(4, 8), slice(4, 8)),
            (0, 0, slice(4, 8), slice(0, 4)),
        ]))  # fmt: skip
        assert not close(ntk(functions, sets, outputs=outputs, check=False), right, 1e-2)
        with pytest.raises(FinwidthError, match=r"by its parts, and .* by a backward pass"):
            ntk(functions, sets, outputs=outputs)
    between = computation.compute

    def other(job: Any) -> Any:
        K, done = between(job)
        return (K if job.x2 is None else 1.01 * K), done

    monkeypatch.setattr("finwidth.empirical.kernel.ntk.compute", other)
    with pytest.raises(FinwidthError, match="a number of the kernel is"):
        ntk(functions, sets, outputs=outputs)


class TwoNames(nn.Module):
    """One layer under two names, by torch.func, which cannot take the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Bilinear(2, 2, 2), nn.LSTM(1, 2, batch_first=True)
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(x, x), x)[..., None])[0][:, -1]


def test_layers_under_two_names_keep_their_parameters() -> None:
    """Without the check too, which would find the gradients of others."""
    module, (x,) = TwoNames().double(), points(5)
    J = blocks([module], [x], module.parameters())
    assert close(
        ntk(module, x, outputs="trace", check=False),
        (J @ J.T).unflatten(1, (5, 2)).unflatten(0, (5, 2)).diagonal(dim1=1, dim2=3).sum(-1),
    )
    u = field()
    functions, sets = [u, Laplacian(u)], points(4, 9)
    J = blocks(functions, sets, u.parameters())
    assert close(ntk(functions, sets, outputs="trace", check=False), J @ J.T)
