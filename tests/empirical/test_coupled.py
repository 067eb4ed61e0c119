"""The kernel of a batch as one function: batch statistics, and graphs; against the whole batch's own Jacobian."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from finwidth.empirical import ntk  # noqa: E402
from finwidth.empirical.kernel import coupled, operations  # noqa: E402
from plain_rows import close, rows  # noqa: E402

Tensor = Any
N = 6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(9)


def convolutional() -> tuple[nn.Module, Tensor]:
    body = [
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
    ]
    module = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return module.double(), torch.randn(N, 2, 6, 6).double()


class Graph(nn.Module):
    """Messages between all samples, a gain, and a table of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.gain = nn.Linear(3, 5), nn.Linear(5, 3), nn.Parameter(torch.rand(5))
        self.table, self.attention = nn.Parameter(torch.randn(N, 5)), nn.MultiheadAttention(5, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = torch.tanh(edges @ self.first(x)) * self.gain + self.table
        return self.last(h + self.attention(h, h, h)[0])


def graph() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return Graph().double(), (torch.randn(N, 3).double(), torch.rand(N, N).double())


def whole(module: nn.Module, x: Any, *, hooked: bool = False) -> Tensor:
    """K of all outputs of one batch, shape (N, N, O, O), by a Jacobian: of a copy, without hooks, or its own."""
    module = module if hooked else copy.deepcopy(module)
    J = rows([module(*x) if isinstance(x, tuple) else module(x)], list(module.parameters()))
    return (J @ J.T).unflatten(1, (N, -1)).unflatten(0, (N, -1)).transpose(1, 2)


BUILT = {"batch norm": convolutional, "graph": graph}


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("memory", ["1GiB", "200KB"])
def test_all_outputs_of_a_batch(kind: str, memory: str) -> None:
    module, x = BUILT[kind]()
    right = whole(module, x)

    def found(**how: Any) -> Tensor:
        return ntk(module, x, coupled=True, memory=memory, **how)

    assert close(found(), right)
    assert close(found(outputs="trace"), right.diagonal(dim1=2, dim2=3).sum(-1))
    assert close(found(outputs="diagonal"), right.diagonal(dim1=2, dim2=3))
    assert close(found(outputs=1), right[:, :, 1, 1])
    assert close(found(outputs=[2, 0]), right[:, :, [2, 0]][:, :, :, [2, 0]])
    C = torch.randn(2, 3).double()
    assert close(found(outputs=C), torch.einsum("abij,ki,lj->abkl", right, C, C))
    assert close(found(outputs=C[0]), torch.einsum("abij,i,j->ab", right, C[0], C[0]))
    assert close(found(outputs=lambda output, sample: output.sum(1)), right.sum((2, 3)))
    assert close(found(entries="diagonal"), torch.einsum("aaij->aij", right))
    assert close(found(outputs="trace", entries="diagonal"), torch.einsum("aaii->a", right))
    parts = ntk(module, x, coupled=True, by="layer", labelled=True)
    assert parts.dims == ("group", "input", "input_", "output", "output_")
    assert close(torch.from_numpy(parts.to_numpy()).sum(0), right)
    one = ntk(module, x, coupled=True, by="layer", outputs="trace", entries="diagonal", labelled=True)
    assert one.dims == ("group", "input")


def test_samples_do_meet() -> None:
    """The kernel is another one than in eval mode, and than of another batch."""
    module, x = convolutional()
    K = ntk(module, x, coupled=True, outputs="trace")
    assert not close(ntk(module, x[:4], coupled=True, outputs="trace"), K[:4, :4], 0.01)
    assert not close(ntk(module.eval(), x, outputs="trace"), K, 0.01)
    assert close(ntk(module, x, coupled=True, outputs="trace"), ntk(module, x, outputs="trace"))  # none do now


def test_the_module_is_left_as_it_was() -> None:
    module, x = convolutional()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    done: list[int] = []
    ntk(module, x, coupled=True, outputs="trace", progress=done.append)
    assert done == [12, 24, 36]
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each.grad is None for each in module.parameters())


def test_hooks_of_parameters() -> None:
    module, x = convolutional()
    module.get_parameter("0.weight").register_hook(lambda gradient: 2 * gradient)  # type: ignore[no-untyped-call]
    right = whole(module, x, hooked=True)
    assert not close(whole(module, x), right, 0.01)
    assert close(ntk(module, x, coupled=True), right)
    assert close(ntk(module, x, coupled=True, check=False), right)


def test_mistakes_are_told() -> None:
    module, x = convolutional()
    with pytest.raises(FinwidthError, match="coupled=True for the kernel of the batch as a whole"):
        ntk(module, x)
    with pytest.raises(FinwidthError, match="leave x2 out"):
        ntk(module, x, x, coupled=True)
    with pytest.raises(FinwidthError, match="coupled is 1; give True or False"):
        ntk(module, x, coupled=1)  # type: ignore[call-overload]
    with pytest.raises(FinwidthError, match=r"the module's output has shape \(\)"):
        ntk(module, x, coupled=True, outputs=lambda output, sample: output.sum())
    with pytest.raises(FinwidthError, match="is active and draws a new network"):
        ntk(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), torch.ones(2, 3), coupled=True)


def test_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what is wrong with a layer, the general route helps; what is wrong in putting samples together is told."""
    module, x = convolutional()
    right = whole(module, x)
    scaled = operations.Scaling.features
    with monkeypatch.context() as patch:
        patch.setattr(operations.Scaling, "features", lambda rule, D, start: scaled(rule, D * 1.01, start))
        assert not close(ntk(module, x, coupled=True, check=False), right, 1e-4)
        assert close(ntk(module, x, coupled=True), right)
    unflatten = torch.unflatten

    def mixed(K: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
        own = dim in {-1, -3} and sizes[0] == N
        return unflatten(K, dim, sizes[::-1]).transpose(dim - 1, dim) if own else unflatten(K, dim, sizes)

    monkeypatch.setattr(f"{coupled.__name__}.torch.unflatten", mixed)
    assert not close(ntk(module, x, coupled=True, check=False), right, 1e-2)
    with pytest.raises(FinwidthError, match=r"by its parts, and .* by a backward pass"):
        ntk(module, x, coupled=True)
