"""The kernel of torch modules: against the whole Jacobian, layer by layer and in networks as people build them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import finwidth
from finwidth.memory import check_memory

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from finwidth.empirical import explain, ntk  # noqa: E402
from finwidth.empirical.kernel import calls, computation, factors, gradients, layout, weights  # noqa: E402
from finwidth.empirical.kernel.batch import Batch  # noqa: E402
from finwidth.empirical.reference.jacobian import reference_ntk  # noqa: E402

Tensor = Any


class Scaled(nn.Module):
    """A linear layer of unit weights and a factor, as the NTK parameterization has it, made by hand."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(m, n)), nn.Parameter(torch.randn(m))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight) / self.weight.shape[1] ** 0.5 + 0.1 * self.bias


class Gain(nn.Module):
    """A layer of the user's own."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * torch.sin(x)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Tied(nn.Module):
    """One weight in two layers, with a bias in only one, and the table of an embedding as the last weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.one = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.other, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 7)
        self.other.weight, self.last.weight = self.one.weight, self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.other(torch.tanh(self.one(self.table(x)))))).mean(1)


class Functional(nn.Module):
    """A weight that is used once by its layer and once behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("na,ab->nb", torch.tanh(self.layer(x)), self.layer.weight)


class Product(nn.Linear):
    """A layer whose weight has one more use, as the factor of a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x)) @ self.weight


class SequenceFirst(nn.Module):
    """Samples in the second dimension inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1)).mean(0)


class Folded(nn.Module):
    """Samples and positions in one dimension inside, in either order."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.swapped, self.layer = swapped, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, p, _ = x.shape
        if self.swapped:
            return torch.tanh(self.layer(x.transpose(0, 1).reshape(n * p, -1))).reshape(p, n, -1).sum(0)
        return torch.tanh(self.layer(x.reshape(n * p, -1))).reshape(n, p, -1).sum(1)


class Windows(nn.Module):
    """Convolutions and normalisation of windows, which are samples of their own in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv1d(4, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(-1, (3, 4)).transpose(1, 2).flatten(0, 1)  # (n 3, 2, 4)
        return self.layers(windows).unflatten(0, (-1, 3)).flatten(2).sum(1)


class Standardised(nn.Conv1d):
    """A convolution whose weights are made of parameters by what torch can differentiate in every way."""

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2), keepdim=True)
        weight = centred / (centred.square().mean((1, 2), keepdim=True) + 0.1).sqrt()
        return nn.functional.conv1d(x, weight, self.bias)


class Multiplied(nn.Module):
    """Weights the other way round, as in GPT-2; one is also that of a linear layer, one is made of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.third = (nn.Parameter(torch.randn(a, c)) for a, c in ((3, 4), (4, 3), (3, 2)))
        self.bias, self.scale = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(torch.addmm(self.bias, x, self.one))
        z = torch.tanh(torch.addmm(self.bias[:3], z, self.other)) + nn.functional.linear(z, self.one)
        return torch.addmm(self.scale, z, self.scale * self.third)


class NoVmap(nn.Module):
    """A route that depends on the sample, which torch.func cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.gain = nn.Linear(3, 2), nn.Linear(3, 2), Gain(2)

    def forward(self, x: Tensor) -> Tensor:
        layers = [self.one if float(each.sum()) > 0 else self.other for each in x]
        return self.gain(torch.stack([layer(each) for layer, each in zip(layers, x, strict=True)]))


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(1))


def normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def words(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(0, 7, (n, *shape))


Case = tuple[Callable[[], nn.Module], Callable[[int], Tensor], set[str]]
NOTHING: set[str] = set()

# module, inputs, and the parameters that go the general way
CASES: dict[str, Case] = {
    "linear": (lambda: nn.Linear(4, 3), normal(4), NOTHING),
    "linear, one output, no bias": (lambda: nn.Linear(4, 1, bias=False), normal(4), NOTHING),
    "linear, no output axis": (lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), normal(4), NOTHING),
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(inplace=True), nn.Linear(9, 9), nn.GELU(), nn.Linear(9, 3)),
        normal(4),
        NOTHING,
    ),
    "perceptron, no biases": (
        lambda: nn.Sequential(nn.Linear(4, 9, bias=False), nn.Tanh(), nn.Linear(9, 3, bias=False)),
        normal(4),
        NOTHING,
    ),
    "scaled": (lambda: nn.Sequential(Scaled(4, 9), nn.ReLU(), Scaled(9, 2)), normal(4), NOTHING),
    "linear at positions": (lambda: flat(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), normal(4, 3), NOTHING),
    "linear at many positions": (lambda: flat(nn.Linear(2, 2), nn.AvgPool1d(2)), normal(64, 2), NOTHING),
    "linear at positions of two axes": (lambda: flat(nn.Linear(3, 2), nn.Tanh()), normal(2, 2, 3), NOTHING),
    "conv1d": (lambda: flat(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Conv1d(4, 2, 2)), normal(3, 9), NOTHING),
    "conv1d, all at once": (
        lambda: flat(nn.Conv1d(4, 6, 3, 2, 2, 2, 2), nn.Tanh(), nn.Conv1d(6, 2, 2, bias=False)),
        normal(4, 9),
        NOTHING,
    ),
    "conv2d": (lambda: flat(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2)), normal(2, 5, 6), NOTHING),
    "conv2d, few positions": (lambda: flat(nn.Conv2d(8, 9, 3), nn.AvgPool2d(2)), normal(8, 4, 4), NOTHING),
    "conv2d, stride and padding": (
        lambda: flat(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2)), nn.Tanh()),
        normal(2, 5, 4),
        NOTHING,
    ),
    "conv2d, dilation": (lambda: flat(nn.Conv2d(2, 3, 2, dilation=(2, 3)), nn.Tanh()), normal(2, 5, 6), NOTHING),
    "conv2d, groups": (lambda: flat(nn.Conv2d(4, 6, 2, groups=2), nn.Tanh()), normal(4, 4, 4), NOTHING),
    "conv2d, depthwise": (lambda: flat(nn.Conv2d(4, 4, 3, padding=1, groups=4)), normal(4, 3, 3), NOTHING),
    "conv2d, same": (lambda: flat(nn.Conv2d(2, 3, (2, 4), padding="same", dilation=2)), normal(2, 5, 5), NOTHING),
    "conv2d, circular": (
        lambda: flat(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Tanh()),
        normal(2, 4, 4),
        NOTHING,
    ),
    "conv2d, reflect, same": (
        lambda: flat(nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), nn.Tanh()),
        normal(2, 4, 4),
        NOTHING,
    ),
    "conv3d": (lambda: flat(nn.Conv3d(2, 3, 2, padding=(0, 1, 1), groups=1)), normal(2, 3, 3, 2), NOTHING),
    "transposed convolution": (
        lambda: flat(nn.ConvTranspose2d(2, 3, 2), nn.Tanh()),
        normal(2, 3, 3),
        NOTHING,
    ),
    "embedding": (lambda: flat(nn.Embedding(7, 4), nn.Linear(4, 3)), words(3), NOTHING),
    "embedding, long texts": (lambda: flat(nn.Embedding(7, 2), nn.AvgPool1d(2)), words(40), NOTHING),
    "embedding, one word": (lambda: nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 3)), words(), NOTHING),
    "embedding, padding": (lambda: flat(nn.Embedding(7, 4, padding_idx=-1), nn.Linear(4, 2)), words(3), NOTHING),
    "layer norm": (lambda: flat(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)), normal(4), NOTHING),
    "layer norm at positions": (lambda: flat(nn.LayerNorm(5), nn.Linear(5, 2)), normal(3, 5), NOTHING),
    "layer norm of two axes, no bias": (lambda: flat(nn.LayerNorm((3, 5), bias=False)), normal(2, 3, 5), NOTHING),
    "rms norm": (lambda: flat(nn.Linear(4, 5), nn.RMSNorm(5), nn.Linear(5, 2)), normal(4), NOTHING),
    "group norm": (
        lambda: flat(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 2, 2)),
        normal(2, 4, 4),
        NOTHING,
    ),
    "batch norm": (lambda: flat(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), normal(4), NOTHING),
    "batch norm of images": (lambda: flat(nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.ReLU()), normal(2, 4, 4), NOTHING),
    "instance norm": (lambda: flat(nn.InstanceNorm1d(3, affine=True)), normal(3, 5), NOTHING),
    "gain": (lambda: nn.Sequential(nn.Linear(4, 5), Gain(5), nn.PReLU(), nn.Linear(5, 2)), normal(4), NOTHING),
    "used twice": (Twice, normal(3), NOTHING),
    "tied": (Tied, words(5), NOTHING),
    "used behind its back": (Functional, normal(3), {"layer.weight"}),
    "matrix product": (lambda: Product(3, 2), normal(3), NOTHING),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)),
        normal(4),
        NOTHING,
    ),
    "sequence first": (lambda: SequenceFirst(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))), normal(3, 3), NOTHING),
    "samples and positions folded": (lambda: Folded(False), normal(3, 3), NOTHING),
    "positions and samples folded": (lambda: Folded(True), normal(3, 3), NOTHING),
    "transposed convolutions": (
        lambda: flat(
            nn.ConvTranspose1d(4, 6, 3, stride=2, padding=2, output_padding=1, groups=2), nn.Tanh(),
            nn.ConvTranspose1d(6, 2, 2, dilation=3, output_padding=2, bias=False), nn.Tanh(),
        ),
        normal(4, 3),
        NOTHING,
    ),
    "transposed convolution, parametrized": (
        lambda: flat(nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(2, 4, 2, 1, 1, groups=2)), nn.Tanh()),
        normal(2, 3),
        NOTHING,
    ),
    "standardised": (lambda: flat(Standardised(2, 4, 2), nn.Tanh(), Standardised(4, 3, 2)), normal(2, 4), NOTHING),
    "windows": (Windows, normal(2, 12), NOTHING),
    "multiplied": (Multiplied, normal(3), NOTHING),
    "route by sample": (NoVmap, normal(3), {"one.weight", "one.bias", "other.weight", "other.bias", "gain.gain"}),
    "small CNN": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 10),
        ),
        normal(1, 8, 8),
        NOTHING,
    ),
    "residual network": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            *[
                Residual(nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1)))
                for _ in range(2)
            ],
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        ),
        normal(2, 5, 5),
        NOTHING,
    ),
}  # fmt: skip
for norm_first in (False, True):
    for batch_first in (False, True):

        def encoder(norm_first: bool = norm_first, batch_first: bool = batch_first) -> nn.Module:
            layer = nn.TransformerEncoderLayer(6, 2, 8, norm_first=norm_first, batch_first=batch_first)
            inner = nn.Sequential(layer, nn.Linear(6, 2))
            return flat(inner) if batch_first else nn.Sequential(SequenceFirst(inner), nn.Flatten(1))

        name = f"transformer, norm_first={norm_first}, batch_first={batch_first}"
        CASES[name] = encoder, normal(4, 6), NOTHING


def make(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A module and two sets of inputs."""
    build, inputs, _ = CASES[name]
    torch.manual_seed(1)
    module = build().double().eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.get_buffer("running_mean"))
            nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 2)
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.weight)
    return module, inputs(5), inputs(4)


def near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-10 * other.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_is_that_of_the_jacobian(name: str) -> None:
    module, x1, x2 = make(name)
    for others in (None, x2):
        right = reference_ntk(module, x1, others)
        assert near(ntk(module, x1, others), right)
        assert near(ntk(module, x1, others, "diagonal"), right.diagonal(dim1=2, dim2=3))
        assert near(ntk(module, x1, others, "trace"), right.diagonal(dim1=2, dim2=3).sum(-1))
        last = right.shape[-1] - 1
        assert near(ntk(module, x1, others, last), right[..., last, last])
    right = reference_ntk(module, x1).diagonal(dim1=0, dim2=1).movedim(-1, 0)
    assert near(ntk(module, x1, entries="diagonal"), right)
    assert near(ntk(module, x1, outputs="diagonal", entries="diagonal"), right.diagonal(dim1=1, dim2=2))
    assert near(ntk(module, x1, outputs="trace", entries="diagonal"), right.diagonal(dim1=1, dim2=2).sum(-1))


@pytest.mark.parametrize("name", CASES)
def test_what_goes_the_general_way(name: str) -> None:
    module, x1, _ = make(name)
    parameters = dict(module.named_parameters())
    network = calls.MeasuredModule(module, parameters, dict.fromkeys(parameters, 1.0), calls.Snapshot(module))
    assert gradients.plan_gradients(network, Batch.of(x1), torch.arange(3))[0].general.keys() == CASES[name][2]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("inputs", [2, 100])
def test_blocks_make_the_same_kernel(name: str, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two of the five inputs and all outputs, or of all inputs and a part of the outputs."""
    module, x1, x2 = make(name)
    part = 100 if inputs == 2 else -(-count_outputs(module, x1) // 2)
    monkeypatch.setattr(computation, "fit_memory", lambda sizes, N, o: (min(N, inputs), min(o, part)))
    right = reference_ntk(module, x1, x2)
    assert near(ntk(module, x1, x2), right)
    assert near(ntk(module, x1, x2, "diagonal"), right.diagonal(dim1=2, dim2=3))
    right = reference_ntk(module, x1)
    assert near(ntk(module, x1), right)
    assert near(ntk(module, x1, outputs="trace"), right.diagonal(dim1=2, dim2=3).sum(-1))
    assert near(ntk(module, x1, entries="diagonal"), right.diagonal(dim1=0, dim2=1).movedim(-1, 0))


@pytest.mark.parametrize("inputs", [2, 100])
def test_long_weights_are_pulled_back_one_by_one(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights made of parameters, whose gradients are formed for a product, one input and output at a time."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm
    layers = normed(nn.Conv1d(2, 6, 2)), nn.Tanh(), nn.Flatten(), normed(nn.Linear(18, 5, bias=False))
    module, x1, x2 = nn.Sequential(*layers).double(), torch.randn(5, 2, 4).double(), torch.randn(4, 2, 4).double()
    monkeypatch.setattr(factors, "_PULLED", 1)
    monkeypatch.setattr(weights, "_LONG", 1)
    monkeypatch.setattr(computation, "fit_memory", lambda sizes, N, o: (min(N, inputs), o))
    shapes: list[tuple[int, ...]] = []
    pull = weights.pullback

    def noted(network: calls.MeasuredModule, made: list[Tensor], leaves: Any) -> factors.Pull:
        shapes.extend(tuple(each.shape) for each in made)
        return pull(network, made, leaves)

    monkeypatch.setattr(gradients, "pullback", noted)
    scale = {name: 0.3 + i for i, name in enumerate(dict(module.named_parameters()))}
    right = reference_ntk(module, x1, x2, scale=scale)
    assert near(ntk(module, x1, x2, scale=scale), right)
    assert near(ntk(module, x1, x2, "trace", scale=scale), right.diagonal(dim1=2, dim2=3).sum(-1))
    assert {(6, 2, 2), (5, 18)} <= set(shapes)  # both weights did take this way


@pytest.mark.parametrize("inputs", [2, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_formed_late_make_the_same_kernel(inputs: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of one input, tiles of three at the most, and gradients of one channel at a time."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, bias=bias), nn.Tanh(), nn.Conv2d(4, 6, 3, 2, groups=2, bias=bias)
    module = nn.Sequential(*layers, nn.Tanh(), nn.Conv2d(6, 5, 2), nn.Flatten()).double()
    x1, x2 = torch.randn(7, 3, 7, 7).double(), torch.randn(4, 3, 7, 7).double()
    for name, value in {"_PASS_BYTES": 1, "_DEFERRED_BYTES": 1, "_TILE_ROWS": 15}.items():
        monkeypatch.setattr(layout, name, value)
    monkeypatch.setattr(computation, "fit_memory", lambda sizes, N, o: (min(N, inputs), o))
    late = []
    channels = factors.OuterFactor.channels

    def noted(self: factors.OuterFactor, some: slice) -> factors.OuterFactor:
        late.append(some)
        return channels(self, some)

    monkeypatch.setattr(factors.OuterFactor, "channels", noted)
    right = reference_ntk(module, x1)
    assert near(ntk(module, x1), right)
    assert slice(2, 3) in late
    assert near(ntk(module, x1, x2), reference_ntk(module, x1, x2))
    assert near(ntk(module, x1, outputs="diagonal"), right.diagonal(dim1=2, dim2=3))
    assert near(ntk(module, x1, outputs="trace"), right.diagonal(dim1=2, dim2=3).sum(-1))


def count_outputs(module: nn.Module, x: Tensor) -> int:
    return int(module(x[:1]).numel())


class Classic(nn.Module):
    """Two layers whose weight is one number: N = w^2 x, so K(x, x) = (2 w x)^2, and half of it if each counts alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


def test_a_shared_weight_counts_once() -> None:
    module = Classic().double()
    w = float(module.one.weight.detach())
    assert float(ntk(module, torch.ones(1, 1), outputs=0)) == pytest.approx(4 * w * w, rel=1e-12)


def test_parameters_and_scales() -> None:
    module, x, _ = make("perceptron")
    names = ["0.weight", "4.bias"]
    some = ntk(module, x, parameters=names)
    assert near(some, reference_ntk(module, x, parameters=names))
    assert near(ntk(module, x, parameters=lambda name, p: name in names), some)
    scale = {"0.weight": 2.5, "2.bias": 0.0}
    scaled = ntk(module, x, scale=scale)
    assert near(scaled, reference_ntk(module, x, scale=scale))
    assert near(ntk(module, x, scale=lambda name, p: scale.get(name, 1.0)), scaled)
    for name, each in module.named_parameters():
        each.requires_grad_(name in names)
    assert near(ntk(module, x), some)
    with torch.no_grad():
        assert near(ntk(module, x), some)
    assert all(each.grad is None for each in module.parameters())


def test_precision_is_that_of_the_module() -> None:
    module, x, _ = make("small CNN")
    right = ntk(module, x)
    single = ntk(module.float(), x)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), right, rtol=1e-4, atol=1e-5 * right.abs().max().item())


def test_labels() -> None:
    module, x, x2 = make("perceptron")
    assert dict(ntk(module, x, x2, labelled=True).sizes) == {"input": 5, "input_": 4, "output": 3, "output_": 3}
    assert ntk(module, x, outputs="diagonal", entries="diagonal", labelled=True).dims == ("input", "output")
    assert ntk(module, x, outputs=1, labelled=True).dims == ("input", "input_")


PEAK = """
import resource, torch
from torch import nn
from finwidth.empirical import ntk
torch.set_num_threads(1)
layers = {{
    "perceptron": [nn.Linear(3072, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)],
    "convolutions": [
        nn.Unflatten(1, (3, 32, 32)), nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 10),
    ],
}}
module = nn.Sequential(*layers["{network}"])
ntk(module, torch.randn(4, 3072), outputs="trace")
x = torch.randn({inputs}, 3072)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
K = ntk(module, x, outputs="{outputs}", memory="{memory}")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, K.numel() * 4 / 2**20)
"""


def peak(network: str, inputs: int, outputs: str, memory: str) -> tuple[float, float]:
    """Growth of a process's peak, and the size of the kernel, in MiB."""
    code = PEAK.format(network=network, inputs=inputs, outputs=outputs, memory=memory)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    grown, kernel_size = map(float, found.split())
    return grown, kernel_size


@pytest.mark.parametrize(
    ("network", "inputs", "outputs", "memory"),
    [
        ("perceptron", 600, "trace", "40MiB"),
        ("convolutions", 64, "full", "30MiB"),
        ("convolutions", 64, "trace", "30MiB"),
        pytest.param("perceptron", 2000, "trace", "1GiB", marks=pytest.mark.slow),
    ],
)
def test_memory_is_kept_to(network: str, inputs: int, outputs: str, memory: str) -> None:
    """The budget, the kernel, and some of the allocator's own."""
    grown, kernel_size = peak(network, inputs, outputs, memory)
    assert grown < check_memory(memory) / 2**20 + 3 * kernel_size + 10


def test_convolutions_take_a_third_of_their_jacobian() -> None:
    """With memory to spare: 69,610 parameters, 64 inputs and 10 outputs make a Jacobian of 170 MiB."""
    grown, _ = peak("convolutions", 64, "full", "1GiB")
    assert grown < 170 / 3


class OnMeta(nn.Linear):
    """A module whose output has a shape and no numbers."""

    def forward(self, input: Any) -> Any:
        return super().forward(input).to("meta")


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), {}, r"layer '1', a BatchNorm1d, is in training mode"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), {}, "keeps no running statistics"),
        (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1)), {}, r"layer '1', a Dropout, is active"),
        (nn.RReLU(), {}, "no parameter counts"),
        (nn.Sequential(nn.Linear(3, 4), nn.RReLU()), {}, "draws random numbers when it is called"),
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(0)), {}, "depends on the other samples"),
        (nn.Linear(3, 2), {"x1": torch.full((2, 3), float("nan"))}, "x1 holds numbers that are not finite"),
        (nn.Linear(3, 2), {"x1": torch.zeros(0, 3)}, r"x1 has shape \(0, 3\)"),
        (nn.Linear(3, 2), {"x1": object()}, "x1 is <object object"),
        (nn.Linear(3, 2), {"outputs": 2}, "outputs is 2, and the module has 2"),
        (nn.Linear(3, 2), {"outputs": "all"}, "outputs is 'all'"),
        (nn.Linear(3, 2), {"entries": "some"}, "entries is 'some'"),
        (nn.Linear(3, 2), {"entries": "diagonal", "x2": torch.ones(2, 3)}, "leave x2 out"),
        (nn.Linear(3, 2), {"memory": "much"}, "memory is 'much'"),
        (nn.Linear(3, 2), {"memory": 10}, "give at least memory="),
        (nn.Linear(3, 2), {"parameters": ["wieght"]}, "parameters names 'wieght'.*it has weight, bias"),
        (nn.Linear(3, 2), {"scale": {"weight": -1}}, "the scale of .weight. is -1"),
        (nn.Linear(3, 2), {"parameters": []}, "no parameter counts"),
        (torch.ones, {}, "give a torch.nn.Module"),
        (nn.LSTM(3, 2, batch_first=True), {"x1": torch.ones(2, 4, 3)}, "the module returns a tuple"),
        (OnMeta(3, 2), {}, "is on the device meta, and holds no numbers"),
    ],
)
def test_mistakes_are_told(module: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(finwidth.FinwidthError, match=words):
        ntk(**{"module": module, "x1": torch.randn(4, 3), **arguments})


def test_explain_tells_how_large_a_kernel_is_that_memory_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = nn.Linear(3, 1), torch.randn(1000, 3)
    monkeypatch.setattr("finwidth.memory._SMALL", 0)
    monkeypatch.setattr("finwidth.memory.available", lambda: 4_000_000)
    with pytest.raises(finwidth.FinwidthError, match="a kernel of 1000000 numbers needs up to"):
        ntk(module, x)
    assert explain(module, x).kernel_bytes == 4_000_000


class OfAGraph(nn.Module):
    """A layer between the nodes of a graph, whose adjacency is a sparse buffer."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)
        adjacency = torch.eye(4, dtype=torch.float64) + torch.eye(4, dtype=torch.float64).roll(1, 0) / 2
        self.register_buffer("A", adjacency.to_sparse() if layout == "coo" else adjacency.to_sparse_csr())

    def forward(self, x: Any) -> Any:
        return (self.A @ self.layer(x).T).T


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_buffers(layout: str) -> None:
    torch.manual_seed(3)
    module, x = OfAGraph(layout).double(), torch.randn(6, 5, dtype=torch.float64)
    assert torch.allclose(ntk(module, x), reference_ntk(module, x), rtol=1e-11)


class ByFunctionalCall(nn.Module):
    """A layer of two names, called by torch.func with other weights and inside a transform."""

    def __init__(self, *, tie_weights: bool) -> None:
        super().__init__()
        self.tie_weights = tie_weights
        layer = nn.Linear(3, 3)
        self.inner = nn.Sequential(layer, nn.Tanh(), layer)

    def forward(self, x: Tensor) -> Tensor:
        def of(weights: dict[str, Tensor]) -> Tensor:
            found: Tensor = torch.func.functional_call(self.inner, weights, (x,), tie_weights=self.tie_weights)
            return found

        twice = {name: 2 * each for name, each in self.inner.named_parameters()}
        values, pull = torch.func.vjp(of, twice)
        return values + pull(torch.ones_like(values))[0]["0.bias"].sum() * 0


def test_what_functional_call_leaves_in_the_place_of_parameters_is_refused() -> None:
    """In torch 2.13; the kernel of the module as it was made is right, and so is that of one made as advised."""
    x = torch.randn(4, 3, dtype=torch.float64)
    kernels = []
    for tie_weights in (True, False):
        torch.manual_seed(0)
        module = ByFunctionalCall(tie_weights=tie_weights).double()
        kernels.append(ntk(module, x))
        module(x)
        if tie_weights:
            for call in (ntk, explain):
                with pytest.raises(finwidth.FinwidthError, match=r"'inner.0.weight' is of a transform .* tie_weights"):
                    call(module, x)
        else:
            kernels.append(ntk(module, x))
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()
    layer.weight.data *= 2
    layer.bias.data *= 2
    for K in kernels:
        assert torch.allclose(K, 4 * ntk(nn.Sequential(layer, nn.Tanh(), layer), x), rtol=1e-12)
