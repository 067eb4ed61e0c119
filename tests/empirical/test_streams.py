"""Modules that send samples different ways, some of which get none; functions that give no gradient; nested tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import plain_backward as plain  # noqa: E402
from finwidth.empirical import KernelOperator, ntk, sgd_update  # noqa: E402

Tensor = Any
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element")


class Streams(nn.Module):
    """Rows of one kind go through one net, the others through another."""

    def __init__(self, one: nn.Module, other: nn.Module, kind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.kind = one, other, kind

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 2)."""
        mine = self.kind(x)
        found = torch.zeros(len(x), 2, dtype=next(self.parameters()).dtype)
        found[mine] = self.one(x[mine]).reshape(-1, 2)
        found[~mine] = self.other(x[~mine]).reshape(-1, 2)
        return found


class Gain(nn.Module):
    """A gain and a shift that meet the samples by broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 2)."""
        return torch.tanh(x[:, :2] * self.gain + self.gain)


class Rare(nn.Module):
    """Words by frequency: the rare ones have layers of their own, which most batches do not need."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 6, 9], div_value=2)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        return self.last.log_prob(self.first(x))[:, :3]


def positive(x: Tensor) -> Tensor:
    """By the first number of a sample."""
    return x.flatten(1)[:, 0] > 0


def even(x: Tensor) -> Tensor:
    """By the place in the batch; both ways are one."""
    return torch.arange(len(x)) % 2 == 0


def _norms() -> nn.Module:
    layers = [nn.Linear(3, 4), nn.LayerNorm(4), nn.PReLU(4), nn.RMSNorm(4), nn.Linear(4, 2)]
    return Streams(nn.Sequential(*layers), Gain(), positive)


def _same() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return Streams(net, net, even)


def _convolutions() -> nn.Module:
    one = nn.Sequential(nn.Conv1d(3, 2, 1), nn.AdaptiveAvgPool1d(1))
    return Streams(one, nn.Sequential(nn.ConvTranspose1d(3, 1, 1), nn.Flatten(), nn.Linear(4, 2)), positive)


def _words() -> nn.Module:
    return Streams(nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(6, 2)), nn.EmbeddingBag(9, 2), _long)


def _long(x: Tensor) -> Tensor:
    return x[:, 0] > 4


STREAMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "norms and gains": (_norms, (3,)),
    "by place": (_same, (3,)),
    "convolutions": (_convolutions, (3, 4)),
    "words": (_words, ()),
    "rare words": (Rare, (3,)),
    "no features": (lambda: nn.Sequential(nn.Linear(0, 4), nn.Tanh(), nn.Linear(4, 2)), (0,)),
    "no units": (lambda: nn.Sequential(nn.Linear(3, 0), nn.Tanh(), nn.Linear(0, 2)), (3,)),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("n", [1, 6, 9])
def test_ways_that_get_few_samples_or_none(name: str, n: int) -> None:
    torch.manual_seed(0)
    make, shape = STREAMS[name]
    module = make().double()
    x = torch.randn(n, *shape).double() if shape else torch.randint(0, 9, (n, 3))
    K = plain.kernel(module, x)
    trace = K.diagonal(dim1=2, dim2=3).sum(-1)
    assert torch.allclose(ntk(module, x), K, rtol=1e-10, atol=1e-12)
    assert torch.allclose(ntk(module, x, outputs="trace", memory="200KB"), trace, rtol=1e-10, atol=1e-12)
    v = torch.randn(n).double()
    assert torch.allclose(KernelOperator(module, x, outputs="trace") @ v, trace @ v, rtol=1e-8, atol=1e-10)


class Stopping(torch.autograd.Function):  # type: ignore[misc, name-defined]
    """x W^T without a gradient by x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ W.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, gradient.T @ ctx.saved_tensors[0]


class Stopped(nn.Module):
    """Layers before a function that gives no gradient, and one beside it."""

    def __init__(self, *, beside: bool) -> None:
        super().__init__()
        self.first, self.W, self.beside = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4)), beside

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 2)."""
        h = self.first(x)
        return Stopping.apply(torch.tanh(h), self.W) + (h[:, :2] if self.beside else 0)


@pytest.mark.parametrize("beside", [False, True])
def test_functions_that_give_no_gradient(beside: bool) -> None:
    torch.manual_seed(0)
    module, x, y = Stopped(beside=beside).double(), torch.randn(6, 3).double(), torch.randn(6, 2).double()
    assert torch.allclose(ntk(module, x), plain.kernel(module, x), rtol=1e-10)
    if not beside:  # the kernel of the last layer is that of a linear function of features that stay
        assert torch.allclose(sgd_update(module, x, y), plain.update(module, x, y), atol=1e-7)


class Jagged(nn.Module):
    """Sequences of different lengths in one nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences (N, T, 3) to (N, 2)."""
        parts = [each[: 2 + int(each[0, 0] > 0)] for each in x]
        nested = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
        return torch.stack([each.mean(0) for each in self.last(torch.tanh(self.first(nested))).unbind()])


def test_nested_tensors() -> None:
    torch.manual_seed(0)
    module, x = Jagged().double(), torch.randn(6, 5, 3).double()
    assert torch.allclose(ntk(module, x), plain.kernel(module, x), rtol=1e-10)
