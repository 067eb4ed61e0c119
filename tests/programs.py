"""Modules as people write them that no rule foresees: they differentiate, reorder, route, tie, fold and count."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Tensor = Any


class Body(nn.Module):
    """A module of layers and a forward that uses them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def perceptron(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def slope(values: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), x, create_graph=True)[0]


def force(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return -slope(m.net(x), x)


def residual(m: Any, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    u = m.net(x)
    first = slope(u, x)
    return slope(first[:, 0], x)[:, :1] - 4 * slope(first[:, 1], x)[:, 1:] + u**3


def hamiltonian(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        q, p = slope(m.net(x), x).chunk(2, 1)
        return torch.cat([p, -q], 1)


def image_slope(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return slope(m.last(torch.tanh(m.first(x)).flatten(1)), x).mean((1, 2))


def laplacian(m: Any, x: Tensor) -> Tensor:
    hessians = torch.func.vmap(torch.func.hessian(lambda z: m.net(z)[0]))(x)
    return hessians.diagonal(dim1=1, dim2=2).sum(1)


def along(m: Any, x: Tensor) -> Tensor:
    return torch.func.jvp(m.net, (x,), (torch.ones_like(x),))[1]


def func_grad(m: Any, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda z: m.net(z)[0]))(x)


def by_length(m: Any, x: Tensor) -> Tensor:
    order = (x != 0).sum(1).argsort(descending=True)
    return m.out(torch.tanh(m.hidden(m.table(x[order]))).mean(1))[order.argsort()]


def by_score(m: Any, x: Tensor) -> Tensor:
    order = x.sum(1).argsort()
    return torch.zeros(len(x), 2, dtype=x.dtype).index_copy(0, order, m.net(x[order]))


def flipped(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.first(x.flip(0)).flip(0)))


def rolled(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.first(x).roll(1, 0))).roll(-1, 0)


def permutation_matrix(m: Any, x: Tensor) -> Tensor:
    P = torch.eye(len(x), dtype=x.dtype)[x[:, 0].argsort()]
    return P.T @ m.last(torch.tanh(P @ m.first(x)))


def halves(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    k = len(x) // 2
    h = m.last(torch.tanh(torch.cat([h[k:], h[:k]])))
    return torch.cat([h[len(x) - k :], h[: len(x) - k]])


def packed(m: Any, x: Tensor) -> Tensor:
    lengths = 2 + (x[:, :, 0] > 0).sum(1).clamp(max=2)
    pack = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return m.out(m.cell(pack)[1][0])


def routed(m: Any, x: Tensor) -> Tensor:
    weights = m.gate(x).softmax(1)
    out = x.new_zeros(len(x), 3)
    for k, expert in enumerate((m.one, m.two)):
        chosen = (weights.argmax(1) == k).nonzero()[:, 0]
        out = out.index_add(0, chosen, expert(x[chosen]) * weights[chosen, k, None])
    return out


def tied(m: Any, x: Tensor) -> Tensor:
    return functional.linear(torch.tanh(m.table(x)), m.table.weight)[:, -1]


def twice_by_bias(m: Any, x: Tensor) -> Tensor:
    return functional.linear(torch.tanh(m.layer(x)), m.layer.weight, m.last.bias) + m.last(x)


def in_place(m: Any, x: Tensor) -> Tensor:
    x -= x.mean(1, keepdim=True)
    return m.net(x)


def chunked(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.net(each) for each in x.split(4)])


def standardised(m: Any, x: Tensor) -> Tensor:
    w = m.first.weight
    w = (w - w.mean((1, 2), keepdim=True)) / w.std((1, 2), keepdim=True)
    return m.last(torch.tanh(functional.conv1d(x, w, m.first.bias)).flatten(1))


def squeezed(m: Any, x: Tensor) -> Tensor:
    return m.net(x).squeeze()


def unbatched(m: Any, x: Tensor) -> Tensor:
    return torch.stack([m.net(each) for each in x])


def bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 4, mode="sum", sparse=True), nn.Tanh(), nn.Linear(4, 2))


def sparse_twice(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.tanh(m.table(x).sum(1)) * m.table(x.flip(1)).prod(1))


def slopes() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(m.norm(m.slope(m.first(x)).mT).mT[:, 0])

    layers = {"first": nn.Linear(4, 6), "slope": nn.PReLU(3), "norm": nn.InstanceNorm1d(6, affine=True)}
    return Body(forward, **layers, out=nn.Linear(6, 2))


def linears(n: int, m: int, o: int) -> dict[str, nn.Module]:
    return {"first": nn.Linear(n, m), "last": nn.Linear(m, o)}


def normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def words(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(1, 9, (n, *shape)) * (torch.rand(n, *shape) < 0.7)


PROGRAMS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "force": (lambda: Body(force, net=perceptron(2, 5, 1)), normal(2)),
    "residual of a wave equation": (lambda: Body(residual, net=perceptron(2, 5, 4, 1)), normal(2)),
    "hamiltonian": (lambda: Body(hamiltonian, net=perceptron(4, 5, 1)), normal(4)),
    "slope of a convolution": (
        lambda: Body(image_slope, first=nn.Conv2d(2, 3, 2), last=nn.Linear(27, 1)),
        normal(2, 4, 4),
    ),
    "laplacian by torch.func": (lambda: Body(laplacian, net=perceptron(2, 5, 1)), normal(2)),
    "jvp by torch.func": (lambda: Body(along, net=perceptron(2, 5, 2)), normal(2)),
    "grad by torch.func": (lambda: Body(func_grad, net=perceptron(2, 5, 1)), normal(2)),
    "sorted by length": (
        lambda: Body(by_length, table=nn.Embedding(9, 4), hidden=nn.Linear(4, 5), out=nn.Linear(5, 1)),
        words(4),
    ),
    "sorted by score": (lambda: Body(by_score, net=perceptron(3, 5, 2)), normal(3)),
    "flipped": (lambda: Body(flipped, **linears(3, 5, 2)), normal(3)),
    "rolled": (lambda: Body(rolled, **linears(3, 5, 2)), normal(3)),
    "permutation matrix": (lambda: Body(permutation_matrix, **linears(3, 5, 2)), normal(3)),
    "halves exchanged": (lambda: Body(halves, **linears(3, 5, 2)), normal(3)),
    "packed sequence": (
        lambda: Body(packed, cell=nn.GRU(2, 3, batch_first=True), out=nn.Linear(3, 2)),
        normal(4, 2),
    ),
    "experts": (
        lambda: Body(routed, gate=nn.Linear(4, 2), one=nn.Linear(4, 3), two=nn.Linear(4, 3)),
        normal(4),
    ),
    "tied without bias": (lambda: Body(tied, table=nn.Embedding(9, 4)), words(3)),
    "weight with two biases": (
        lambda: Body(twice_by_bias, layer=nn.Linear(3, 3), last=nn.Linear(3, 3)),
        normal(3),
    ),
    "input in place": (lambda: Body(in_place, net=perceptron(3, 5, 2)), normal(3)),
    "chunks": (lambda: Body(chunked, net=perceptron(3, 5, 2)), normal(3)),
    "standardised weights": (
        lambda: Body(standardised, first=nn.Conv1d(2, 3, 2), last=nn.Linear(9, 2)),
        normal(2, 4),
    ),
    "squeezed": (lambda: Body(squeezed, net=perceptron(3, 5, 1)), normal(3)),
    "samples one by one": (lambda: Body(unbatched, net=perceptron(3, 5, 2)), normal(3)),
    "bag of words": (bag, words(4)),
    "sparse table twice": (
        lambda: Body(sparse_twice, table=nn.Embedding(9, 4, sparse=True), out=nn.Linear(4, 2)),
        words(3),
    ),
    "slopes and instance norm": (slopes, normal(3, 4)),
    "slope": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 4), nn.PReLU(4)), normal(3)),
}  # fmt: skip
