"""Networks of public kinds, written as people write them, that need torch only."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from architectures.entries import First, numbers, register, tokens

Tensor = Any


def _mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1])


class Recurrent(nn.Module):
    """A language model over characters: embedding, recurrent layers, and the next character's logits."""

    def __init__(self, layer: Any, **given: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.layer = layer(8, 16, batch_first=True, **given)
        self.head = nn.Linear(32 if self.layer.bidirectional else 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T) to (N, 3)."""
        return self.head(self.layer(self.embedding(x))[0][:, -1])


@register("LSTM, two layers, both ways", tokens(10, 12))
def _lstm() -> nn.Module:
    return Recurrent(nn.LSTM, num_layers=2, bidirectional=True)


@register("GRU", tokens(10, 12))
def _gru() -> nn.Module:
    return Recurrent(nn.GRU)


class CellLoop(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences (N, T, 4) to (N, 3)."""
        h = c = x.new_zeros(len(x), 12)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


register("LSTMCell in a loop", numbers(8, 4))(CellLoop)


class Sine(nn.Module):
    def __init__(self, frequency: float = 30.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return torch.sin(self.frequency * x)


@register("SIREN", numbers(2))
def _siren() -> nn.Module:
    net = nn.Sequential(
        nn.Linear(2, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 3)
    )
    for layer in list(net)[2::2]:
        assert isinstance(layer, nn.Linear)
        bound = math.sqrt(6 / 64) / 30
        nn.init.uniform_(layer.weight, -bound, bound)
    return net


class Residual(nn.Module):
    """The residual of Burgers' equation u_t + u u_x - nu u_xx of a network of Fourier features, as PINNs have it."""

    def __init__(self, *, enable_grad: bool) -> None:
        super().__init__()
        self.enable_grad = enable_grad
        self.register_buffer("frequencies", 2 * torch.randn(2, 16))
        self.u = _mlp(32, 32, 32, 1)

    def features(self, x: Tensor) -> Tensor:
        """Sines and cosines."""
        phase = x @ self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=1)

    def residual(self, x: Tensor) -> Tensor:
        """At points (N, 2) of x and t."""
        x = x.detach().requires_grad_()
        u = self.u(self.features(x))
        du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        u_xx = torch.autograd.grad(du[:, 0].sum(), x, create_graph=True)[0][:, 0]
        return du[:, 1] + u[:, 0] * du[:, 0] - 0.01 * u_xx

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N,)."""
        if not self.enable_grad:
            return self.residual(x)
        with torch.enable_grad():
            return self.residual(x)


@register("PINN residual", numbers(2))
def _pinn() -> nn.Module:
    return Residual(enable_grad=False)


@register("PINN residual under enable_grad", numbers(2))
def _pinn_enabled() -> nn.Module:
    return Residual(enable_grad=True)


class FunctionalResidual(nn.Module):
    """u_t - u_xx by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.u = _mlp(2, 24, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Points (N, 2) to (N,)."""

        def u(point: Tensor) -> Tensor:
            return self.u(point).squeeze()

        gradient = torch.func.vmap(torch.func.grad(u))(x)
        hessian = torch.func.vmap(torch.func.hessian(u))(x)
        return gradient[:, 1] - hessian[:, 0, 0]


register("PINN residual by torch.func", numbers(2))(FunctionalResidual)


class Hamiltonian(nn.Module):
    """Time derivatives (dH/dp, -dH/dq) of a learned energy."""

    def __init__(self) -> None:
        super().__init__()
        self.H = _mlp(4, 32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 4)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            dq, dp = torch.autograd.grad(self.H(x).sum(), x, create_graph=True)[0].chunk(2, dim=1)
        return torch.cat([dp, -dq], dim=1)


register("Hamiltonian network", numbers(4))(Hamiltonian)


class Forces(nn.Module):
    """Energies of atoms, embedded by pairs, and the forces -dE/dx on the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.atom = _mlp(8, 16, 8, activation=nn.SiLU), _mlp(8, 16, 1, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """Positions (N, atoms, 3) to (N, 4): the energy and a force."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            r = (x[:, :, None] - x[:, None] + 1e-3).norm(dim=-1, keepdim=True)
            messages = self.pair(torch.exp(-((r - torch.linspace(0, 3, 8).to(x)) ** 2))).sum(2)
            energy = self.atom(messages).sum((1, 2))
            force = -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
        return torch.cat([energy[:, None], force[:, 0]], dim=1)


register("Interatomic potential with forces", numbers(5, 3))(Forces)


class DeepONet(nn.Module):
    """Branch and trunk: the first 10 numbers are a function's values, the last two where to evaluate."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = _mlp(10, 32, 3 * 16), _mlp(2, 32, 3 * 16)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        branch, trunk = (
            net(part).unflatten(1, (3, 16)) for net, part in ((self.branch, x[:, :10]), (self.trunk, x[:, 10:]))
        )
        return (branch * trunk).sum(2) + self.bias


register("DeepONet", numbers(12))(DeepONet)


class Hypernetwork(nn.Module):
    """A network whose weights another network gives for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = _mlp(4, 16, 8 * 6 + 3 * 8)

    def forward(self, x: Tensor) -> Tensor:
        """Conditions and inputs (N, 4 + 6) to (N, 3)."""
        W = self.weights(x[:, :4])
        first, second = W[:, :48].view(-1, 8, 6), W[:, 48:].view(-1, 3, 8)
        return (second @ torch.tanh(first @ x[:, 4:, None]))[..., 0]


register("Hypernetwork", numbers(10))(Hypernetwork)


class GraphConvolutions(nn.Module):
    """A graph convolutional network; every sample is a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        A = (torch.rand(7, 7) < 0.4).float()
        A = ((A + A.T + torch.eye(7)) > 0).float()
        d = A.sum(1).rsqrt()
        self.register_buffer("A", d[:, None] * A * d)
        self.first, self.second = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 7, 5) to (N, 3)."""
        return (self.A @ self.second(torch.relu(self.A @ self.first(x)))).mean(1)


register("Graph convolutions", numbers(7, 5))(GraphConvolutions)


class UNet(nn.Module):
    """Down and up again, with a skip connection and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(2, 16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 16, 16) to (N, 3): the means of three bands of the result."""
        low = self.down(x)
        found = self.head(torch.cat([low, self.up(self.middle(low))], dim=1))
        return found[:, 0, :15].reshape(len(x), 3, -1).mean(2)


register("U-Net", numbers(1, 16, 16))(UNet)


@register("Convolutions normalised by weight (TCN)", numbers(3, 24))
def _tcn() -> nn.Module:
    layers: list[nn.Module] = []
    for i, n in enumerate((3, 16, 16)):
        layers += [
            nn.ConstantPad1d((2 * 2**i, 0), 0.0),
            parametrizations.weight_norm(nn.Conv1d(n, 16, 3, dilation=2**i)),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3))


@register("Linear layers normalised by weight, the older way", numbers(6))
def _old_weight_norm() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(
            *(nn.utils.weight_norm(nn.Linear(n, m)) if n else nn.Tanh() for n, m in ((6, 24), (0, 0), (24, 3)))
        )


@register("Spectral normalisation", numbers(3, 12, 12))
def _spectral() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, stride=2)),
        nn.LeakyReLU(0.2),
        parametrizations.spectral_norm(nn.Conv2d(8, 16, 3)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        parametrizations.spectral_norm(nn.Linear(144, 3)),
    )


@register("Orthogonal weights", numbers(8))
def _orthogonal() -> nn.Module:
    return nn.Sequential(
        parametrizations.orthogonal(nn.Linear(8, 16)),
        nn.Tanh(),
        parametrizations.orthogonal(nn.Linear(16, 16)),
        nn.Tanh(),
        nn.Linear(16, 3),
    )


class NeuralODE(nn.Module):
    """dx/dt = f(x), by classical Runge-Kutta steps of a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.head = _mlp(4, 32, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        h = 0.1
        for _ in range(10):
            k1 = self.f(x)
            k2 = self.f(x + h / 2 * k1)
            k3 = self.f(x + h / 2 * k2)
            k4 = self.f(x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.head(x)


register("Neural ODE", numbers(4))(NeuralODE)


class Equilibrium(nn.Module):
    """A fixed point z = tanh(W z + U x), found without a graph, then one step with it."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U, self.head = nn.Linear(16, 16), nn.Linear(6, 16, bias=False), nn.Linear(16, 3)
        self.W.weight.data *= 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        z = x.new_zeros(len(x), 16)
        with torch.no_grad():
            for _ in range(60):
                z = torch.tanh(self.W(z) + self.U(x))
        return self.head(torch.tanh(self.W(z) + self.U(x)))


register("Deep equilibrium", numbers(6))(Equilibrium)


class LowRank(nn.Module):
    """A frozen layer with a trained change of low rank (LoRA)."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(n, m).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, n)), nn.Parameter(torch.zeros(m, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, m)."""
        return self.frozen(x) + x @ self.A.T @ self.B.T


@register("LoRA", numbers(8))
def _lora() -> nn.Module:
    return nn.Sequential(LowRank(8, 24), nn.GELU(), LowRank(24, 24), nn.GELU(), LowRank(24, 3))


class Recommender(nn.Module):
    """A recommender (DLRM): bags of categories with sparse gradients, their products, and a network."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(30, 8, mode="sum", sparse=sparse) for _ in range(3))
        self.top = _mlp(9 + 24, 16, 3, activation=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        """Categories (N, 3, 4) to (N, 3)."""
        found = torch.stack([bag(x[:, i]) for i, bag in enumerate(self.bags)], dim=1)
        products = (found @ found.mT).flatten(1)
        return self.top(torch.cat([products, found.flatten(1)], dim=1))


def _bags(n: int) -> Tensor:
    return torch.randint(0, 30, (n, 3, 4))


@register("Recommender, sparse gradients", _bags)
def _sparse_recommender() -> nn.Module:
    return Recommender(sparse=True)


@register("Recommender", _bags)
def _recommender() -> nn.Module:
    return Recommender(sparse=False)


class Experts(nn.Module):
    """A mixture of experts: every sample goes to the best one, which is called on the samples it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList(_mlp(6, 16, 3, activation=nn.ReLU) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        weight, best = self.gate(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 3)
        for i, expert in enumerate(self.experts):
            mine = (best == i).nonzero()[:, 0]
            out = out.index_add(0, mine, expert(x[mine]) * weight[mine, None])
        return out


register("Mixture of experts, best one", numbers(6))(Experts)


class SkippingExperts(Experts):
    """The same, with experts that get no sample left out."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        weight, best = self.gate(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 3)
        for i in best.unique().tolist():
            mine = best == i
            out[mine] = self.experts[i](x[mine]) * weight[mine, None]
        return out


register("Mixture of experts, others not called", numbers(6))(SkippingExperts)


@register("PReLU and InstanceNorm", numbers(3, 10, 10))
def _prelu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.PReLU(8),
        nn.Flatten(),
        nn.Linear(288, 3),
    )


class Sorted(nn.Module):
    """A forward pass that sorts its batch by length and puts it back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        order = x[:, 0].argsort(descending=True)
        hidden = torch.tanh(self.first(x[order]))
        return self.last(hidden)[order.argsort()]


register("Batch sorted and put back", numbers(4))(Sorted)


class Packed(nn.Module):
    """Sequences packed by length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(4, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences (N, T, 4), of lengths that their first numbers say, to (N, 3)."""
        lengths = (3 + 2 * x[:, 0, 0].abs()).long().clamp(max=x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.layer(packed)[1][0])


register("Packed sequences", numbers(7, 4))(Packed)


@register("Transformer encoder", numbers(6, 16))
def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return First(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), lambda net, x: net(x).mean(1))


@register("Transformer, encoder and decoder", numbers(6, 16))
def _transformer() -> nn.Module:
    net = nn.Transformer(16, 4, 1, 1, 32, dropout=0.0, batch_first=True)
    return First(net, lambda net, x: net(x, x[:, :2])[:, -1])


class Charts(nn.Module):
    """A NeRF: positions encoded, density and a colour that depends on the direction; batches in chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.colour = _mlp(3 + 24, 32, 32, 33, activation=nn.ReLU), _mlp(32 + 3, 16, 3, activation=nn.ReLU)

    def ray(self, x: Tensor) -> Tensor:
        """Positions and directions (n, 6) to colours times densities."""
        position, direction = x.chunk(2, dim=1)
        phases = torch.cat([position * 2**i for i in range(4)], dim=1)
        hidden = self.body(torch.cat([position, phases.sin(), phases.cos()], dim=1))
        colour = torch.sigmoid(self.colour(torch.cat([hidden[:, 1:], direction], dim=1)))
        return functional.softplus(hidden[:, :1]) * colour

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        return torch.cat([self.ray(chunk) for chunk in x.split(5)])


register("NeRF, batch in chunks", numbers(6))(Charts)


class Tied(nn.Module):
    """A language model whose output layer is its embedding, without a bias."""

    def __init__(self, vocabulary: int = 20) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(vocabulary, 8), _mlp(8, 16, 8)
        self.head = nn.Linear(8, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T) to logits (N, vocabulary)."""
        return self.head(self.hidden(self.embedding(x).mean(1)))


@register("Tied embedding, first logits", tokens(5, 20))
def _tied() -> nn.Module:
    return First(Tied(), lambda net, x: net(x))


@register("Tied embedding, one logit of 5,000", tokens(5, 5000), outputs=7)
def _tied_wide() -> nn.Module:
    return Tied(5000)


class KAN(nn.Module):
    """A layer of learned functions of each input (Kolmogorov-Arnold), by einsum."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2, 2, 6))
        self.coefficients = nn.Parameter(0.3 * torch.randn(n, m, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, m)."""
        return torch.einsum("nik,ijk->nj", torch.exp(-((x[..., None] - self.centres) ** 2)), self.coefficients)


@register("Kolmogorov-Arnold", numbers(4))
def _kan() -> nn.Module:
    return nn.Sequential(KAN(4, 12), KAN(12, 3))


class Checkpointed(nn.Module):
    """Layers computed again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """The inner layer's."""
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self.inner, x, use_reentrant=False)


@register("Checkpointed layers", numbers(8))
def _checkpointed() -> nn.Module:
    return nn.Sequential(Checkpointed(_mlp(8, 24, 24)), Checkpointed(_mlp(24, 24, 3)))


class Equivariant(nn.Module):
    """Deep sets: a function of each element, their sum, and another function; bilinear at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = _mlp(3, 16, 16, activation=nn.ReLU), nn.Bilinear(16, 16, 3)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(16)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """Sets (N, 5, 3) to (N, 3)."""
        total = self.each(x).sum(1)
        return self.all(total * self.scales[0], torch.tanh(total * self.scales[1]))


register("Deep sets, bilinear", numbers(5, 3))(Equivariant)


class Hybrid(nn.Module):
    """Convolutions, then attention with a bias by distance that is kept from call to call in eval mode (LeViT)."""

    distances: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.Hardswish())
        self.norm, self.qkv, self.head = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 3)
        self.biases = nn.Parameter(torch.randn(16))
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        steps = (places[:, None] - places).abs()
        self.register_buffer("distances", steps[..., 0] * 4 + steps[..., 1])
        self.cache: dict[str, Tensor] = {}

    def bias(self) -> Tensor:
        """Shape (16, 16)."""
        if self.training:
            return self.biases[self.distances]
        if "bias" not in self.cache:
            self.cache["bias"] = self.biases[self.distances]
        return self.cache["bias"]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 8, 8) to (N, 3)."""
        q, k, v = self.qkv(self.norm(self.stem(x).flatten(2).transpose(1, 2))).chunk(3, dim=2)
        attention = (q @ k.mT / 4 + self.bias()).softmax(2)
        return self.head((attention @ v).mean(1))


register("Convolutions, then attention", numbers(3, 8, 8))(Hybrid)


class Reading(nn.Module):
    """An autoencoder's part: a scan over the numbers of a sample by plain Python numbers."""

    def __init__(self, f: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.first, self.last, self.f = nn.Linear(5, 12), nn.Linear(12, 3), f

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3)."""
        hidden = self.first(x)
        for _ in range(int(x[0].abs().sum().item() * 0) + 2):
            hidden = hidden + self.f(hidden)
        return self.last(hidden)


register("Python numbers in forward", numbers(5))(Reading)
