"""Matrix-free layers: the numbers of torch's own layers that hold the matrix revealed; what is refused, and memory."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from finwidth import FinwidthError, MatrixFreeConv1d, MatrixFreeConv2d, MatrixFreeLinear, tangent_kernel  # noqa: E402
from finwidth.sampling.lazy_matrix.combination import Combination  # noqa: E402
from law_modules import Attention, ConvNet, InLaw, ResidualMLP, Usual, inputs_for  # noqa: E402

MODULES = [ResidualMLP, ConvNet, Attention]


pytestmark = pytest.mark.usefixtures("double")


def entries(initial: Combination[Any]) -> Any:
    """The initial matrix of one draw, or those of all draws and groups, read off by meeting all right vectors."""
    matrix = initial.matrix
    number = (matrix.draws or 1) * matrix.groups
    found = initial.from_right(matrix.right(torch.eye(matrix.shape[1]).repeat(number, 1, 1))).mT
    return found[0] if number == 1 else found


def twin(module: Any, layers: InLaw, phi: Any, width: int) -> Any:
    """The module with torch's layers, at the values where the module in law began."""
    usual = type(module)(Usual(), phi, width)
    for name, layer in module.named_children():
        weight = usual.get_submodule(name).weight
        weight.data.copy_(entries(layers.initial[layer]).reshape(weight.shape))
        usual.get_submodule(name).bias.data.zero_()
    return usual


def trained(module: Any, X: Any, steps: int, clip: float | None = None, **options: Any) -> Any:
    """Outputs at all inputs before each step on mini-batches, and the gradient by the inputs at the end."""
    optimizer, y = torch.optim.SGD(module.parameters(), **options), torch.arange(len(X)) - 1.0
    outputs = []
    for step in range(steps):
        with torch.no_grad():
            outputs.append(module(X))
        batch = [step % len(X), (step + 1) % len(X)]
        optimizer.zero_grad(set_to_none=bool(step % 2))
        (module(X[batch]) - y[batch]).square().sum().backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    last = X.clone().requires_grad_()
    out = module(last)
    out.sum().backward()
    return [torch.stack([*outputs, out.detach()]), last.grad]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.002},
    "momentum": {"lr": 0.001, "momentum": 0.9},
    "all": {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05, "clip": 0.7},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("materialized", [True, False], ids=["materialized", "deferred"])
@pytest.mark.parametrize("kind", MODULES)
def test_training_is_that_of_the_matrix_revealed(
    kind: Any, materialized: bool, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """20 steps, then the initial matrices are read off, and torch's own layers repeat them from there."""
    if not materialized:
        request.getfixturevalue("never_materialized")
    torch.manual_seed(0)
    layers, width = InLaw(), 40
    module, X = kind(layers, functional.gelu, width), inputs_for(kind, 3)
    outputs, slope = trained(module, X, 20, **options)
    hidden = module.two if kind is ConvNet else module.down
    assert hidden.weight.combination.matrix.materialized == materialized
    usual_outputs, usual_slope = trained(twin(module, layers, functional.gelu, width), X, 20, **options)
    assert (outputs[-1] - outputs[0]).abs().max() > 0.1
    assert torch.allclose(outputs, usual_outputs, rtol=0, atol=1e-9)
    assert torch.allclose(slope, usual_slope, rtol=0, atol=1e-9)
    initial, gain = entries(layers.initial[hidden]), hidden.gain
    assert initial.square().mean() == pytest.approx(gain / initial.shape[1], rel=6 * (2 / initial.numel()) ** 0.5)


@pytest.mark.usefixtures("never_materialized")
@pytest.mark.parametrize("kind", MODULES)
def test_kernel_is_that_of_the_matrix_revealed(kind: Any) -> None:
    torch.manual_seed(0)
    layers, width = InLaw(), 40
    module, X = kind(layers, functional.gelu, width), inputs_for(kind, 3)
    trained(module, X, 2, lr=0.001)
    kernel = tangent_kernel(module(X), module.parameters())
    usual = twin(module, layers, functional.gelu, width)
    trained(usual, X, 2, lr=0.001)
    outputs = usual(X)
    slopes = [torch.autograd.grad(each, [*usual.parameters()], retain_graph=True) for each in outputs]
    flat = torch.stack([torch.cat([part.flatten() for part in of_one]) for of_one in slopes])
    assert torch.allclose(kernel, flat @ flat.T, rtol=1e-9)


def followed(module: Any, X: Any, steps: int, **options: Any) -> Any:
    """`trained` for three draws of a module at once: outputs, (draws, steps + 1, inputs)."""
    optimizer, y = torch.optim.SGD(module.parameters(), **options), torch.arange(len(X)) - 1.0
    inputs, outputs = X.expand(3, *X.shape), []
    for step in range(steps):
        outputs.append(module(inputs).detach())
        batch = [step % len(X), (step + 1) % len(X)]
        optimizer.zero_grad()
        (module(inputs[:, batch]) - y[batch]).square().sum().backward()
        optimizer.step()
    return torch.stack([*outputs, module(inputs).detach()], 1)


@pytest.mark.parametrize("kind", MODULES)
def test_draws_are_the_layers_one_by_one(kind: Any) -> None:
    """Each draw of a module that follows three is trained as torch's layers from its initial matrices."""
    torch.manual_seed(0)
    layers, width = InLaw(draws=3), 30
    module, X = kind(layers, functional.relu, width), inputs_for(kind, 3)
    outputs = followed(module, X, 3, lr=0.002, momentum=0.9)
    for draw in range(3):
        usual = kind(Usual(), functional.relu, width)
        for name, layer in module.named_children():
            initial = layers.initial[layer]
            matrix = initial.from_right(initial.matrix.right(torch.eye(initial.matrix.shape[1])[None]))[draw].T
            usual.get_submodule(name).weight.data.copy_(matrix.reshape(usual.get_submodule(name).weight.shape))
            usual.get_submodule(name).bias.data.zero_()
        expected, _ = trained(usual, X, 3, lr=0.002, momentum=0.9)
        assert torch.allclose(outputs[draw], expected, rtol=0, atol=1e-9)


# What is refused


def test_what_needs_the_entries_is_refused() -> None:
    model: Any = nn.Sequential(MatrixFreeLinear(300, 300), nn.ReLU(), MatrixFreeLinear(300, 1))
    layer, x = model[0], torch.ones(2, 300)
    model(x).sum().backward()
    refused: dict[str, Any] = {
        "Adam": torch.optim.Adam(model.parameters()).step,
        "RMSprop": torch.optim.RMSprop(model.parameters()).step,
        "foreach": torch.optim.SGD(model.parameters(), foreach=True).step,
        "clipping entries": lambda: nn.utils.clip_grad_value_(model.parameters(), 1.0),
        "norm of weights": lambda: torch.linalg.vector_norm(layer.weight.detach()),
        "sum with entries": lambda: layer.weight.detach() + torch.ones(300, 300),
        "product with entries": lambda: layer.weight.detach() * torch.ones(300, 300),
        "reading": lambda: layer.weight[0, 0],
        "numpy": lambda: layer.weight.detach().numpy(),
        "tolist": layer.weight.tolist,
        "setting": lambda: nn.init.normal_(layer.weight),
        "linear": lambda: functional.linear(x, layer.weight),
        "dtype": lambda: model.to(torch.float32),
        "copy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.dumps(model),
        "file": lambda: torch.save(model, io.BytesIO()),
        "shared": model.share_memory,
        "state_dict": model.state_dict,
        "load": lambda: model.load_state_dict({}),
    }
    for name, attempt in refused.items():
        with pytest.raises(FinwidthError, match="entries of its weights are never formed"):
            pytest.fail(f"{name} gave {attempt()}")
    with pytest.raises(FinwidthError, match="second derivative"):
        torch.autograd.grad(model(x).sum(), layer.bias, create_graph=True)
    assert repr(layer.weight) == "MatrixFreeTensor(shape=(300, 300), dtype=torch.float64, met 1 left, 1 right)"
    with pytest.raises(FinwidthError, match="different matrices"):
        layer.weight.detach() + MatrixFreeLinear(300, 300).weight.detach()


def test_a_step_between_forward_and_backward_is_refused() -> None:
    """By torch, as for its own layers."""
    layer = MatrixFreeLinear(300, 300)
    loss = layer(torch.ones(2, 300)).sum()
    loss.backward(retain_graph=True)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: MatrixFreeLinear(0, 4), "in_features is 0"),
        (lambda: MatrixFreeLinear(3, 4, gain=-1), "gain is -1; give a positive number"),
        (lambda: MatrixFreeLinear(3, 4, draws=0), "draws is 0"),
        (lambda: MatrixFreeLinear(3, 4, dtype=torch.bfloat16), "dtype 'bfloat16' is not known"),
        (lambda: MatrixFreeLinear(3, 4, device="nowhere"), "device='nowhere' cannot be used"),
        (lambda: MatrixFreeLinear(3, 4)(torch.ones(2, 5)), r"is \(2, 5\); give a tensor \(\.\.\., 3\)"),
        (lambda: MatrixFreeLinear(3, 4)(torch.ones(0, 3)), r"is \(0, 3\)"),
        (lambda: MatrixFreeLinear(3, 4)(3.0), "is float; give a tensor"),
        (lambda: MatrixFreeLinear(3, 4, draws=5)(torch.ones(2, 3)), r"give a tensor \(5, \.\.\., 3\).*expand\(5"),
        (
            lambda: MatrixFreeLinear(3, 4)(torch.ones(3, dtype=torch.float32)),
            "torch.float32 on cpu and the layer torch.fl",
        ),
        (lambda: MatrixFreeLinear(3, 4)(torch.tensor([1.0, 2.0, float("nan")])), "not finite"),
        (lambda: MatrixFreeConv2d(3, 4, 0), "kernel_size is 0"),
        (lambda: MatrixFreeConv1d(3, 4, (2, 2)), r"kernel_size is \(2, 2\); give a whole number of at least 1"),
        (lambda: MatrixFreeConv1d(3, 4, 1, groups=2), "groups is 2; give a divisor of the channels, 3 and 4"),
        (lambda: MatrixFreeConv1d(3, 4, 1)(torch.ones(2, 2, 5)), r"give a tensor \(..., 3, length\)"),
        (lambda: MatrixFreeConv2d(3, 4, 3, padding="same"), "padding is 'same'"),  # type: ignore[arg-type]
        (
            lambda: MatrixFreeConv2d(3, 4, 3)(torch.ones(1, 2, 5, 5)),
            r"is \(1, 2, 5, 5\); give a tensor \(\.\.\., 3, height",
        ),
        (lambda: MatrixFreeConv2d(3, 4, 3)(torch.ones(1, 3, 2, 5)), "smaller than the kernel"),
        (
            lambda: MatrixFreeLinear(10**5, 10**5, memory="1MB")(torch.ones(10**5)),
            "needs up to .* MiB, and memory is 1000000 bytes",
        ),
    ],
)
def test_mistakes(mistake: Any, message: str) -> None:
    with pytest.raises(FinwidthError, match=message):
        mistake()


# The tensor, the convolution, and memory


def test_draws_are_independent_and_seeded_by_torch() -> None:
    def product() -> Any:
        torch.manual_seed(3)
        return torch.stack([MatrixFreeLinear(50, 40, bias=False)(torch.ones(50)) for _ in range(2)])

    one, two = product()
    assert torch.equal(product()[0], one)
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.8


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"padding": 2, "stride": (2, 1)},
    "dilation": {"dilation": (1, 2), "padding": (0, 3)},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "stride": 2},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (4, 5, 6), (2, 2, 4, 5, 6)], ids=len)
@pytest.mark.parametrize("sides", [1, 2])
def test_convolution_is_torchs(options: dict[str, Any], shape: tuple[int, ...], sides: int) -> None:
    """Also where one of the groups of channels has the place of another: `expected` would differ."""
    torch.manual_seed(0)
    if sides == 1:
        options = {name: value[-1:] if isinstance(value, tuple) else value for name, value in options.items()}
        shape = shape[:-1]
    kinds: Any = ((MatrixFreeConv1d, nn.Conv1d), (MatrixFreeConv2d, nn.Conv2d))
    ours, theirs = kinds[sides - 1]
    layer: Any = ours(4, 8, (2, 3)[-sides:], **options)
    usual: Any = theirs(4, 8, (2, 3)[-sides:], **options)
    initial = layer.weight.combination.copy()
    nn.init.normal_(layer.bias)
    x = torch.randn(shape).requires_grad_()
    y = layer(x)
    usual.weight.data.copy_(entries(initial).reshape(usual.weight.shape))
    usual.bias.data.copy_(layer.bias.detach())
    expected = usual(x.reshape(-1, *shape[-sides - 1 :]))
    assert torch.allclose(y, expected.reshape(y.shape), atol=1e-12)
    (slope,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    (expected_slope,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.allclose(slope, expected_slope, atol=1e-11)


def test_a_grouped_convolution_trains_as_torchs() -> None:
    """With momentum, and gradients that are clipped."""
    layer: Any = MatrixFreeConv1d(40, 60, 3, groups=2)
    initial, usual = layer.weight.combination.copy(), nn.Conv1d(40, 60, 3, groups=2)
    assert usual.bias is not None
    x = torch.randn(1, 40, 3)
    outputs = []
    for each in (layer, usual):
        if each is usual:
            usual.weight.data.copy_(entries(initial).reshape(usual.weight.shape))
            nn.init.zeros_(usual.bias)
        optimizer = torch.optim.SGD(each.parameters(), lr=0.01, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            nn.utils.clip_grad_norm_(each.parameters(), 3.0)
            optimizer.step()
        outputs.append(each(x).detach())
    assert torch.allclose(*outputs, atol=1e-10)


def test_draws_of_grouped_convolutions_are_layers_by_themselves() -> None:
    torch.manual_seed(1)
    layer: Any = MatrixFreeConv2d(4, 6, 2, groups=2, draws=3)
    initial = layer.weight.combination.copy()
    x = torch.randn(3, 2, 4, 2, 2)
    y = layer(x)
    W = entries(initial).reshape(3, 6, 2, 2, 2)
    for draw in range(3):
        assert torch.allclose(y[draw], functional.conv2d(x[draw], W[draw], groups=2), atol=1e-12)
    kernel = tangent_kernel(y.flatten(2)[..., 0], layer.parameters())
    A = x[:, :, :2].flatten(2)  # of output channel 0, in the first group
    assert torch.allclose(kernel, A @ A.mT + 1, atol=1e-12)


def test_slopes_are_those_of_finite_differences() -> None:
    for layer, shape in ((MatrixFreeLinear(6, 40), (2, 6)), (MatrixFreeConv2d(2, 40, 2), (1, 2, 3, 3))):
        x = torch.randn(shape).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, layer=layer: layer(x).tanh().mean(-1), x)


def test_directions_that_were_met_cost_nothing() -> None:
    layer, x = MatrixFreeLinear(1000, 2000, memory="2MB"), torch.randn(3, 1000)
    for _ in range(50):
        layer.zero_grad()
        layer(x)[:, 0].sum().backward()
    matrix = layer.weight.combination.matrix
    assert matrix.known == (1, 3)
    assert matrix.nbytes == 8 * (4 * 3000 + 3)


def test_gradients_for_other_tensors_leave_no_trace() -> None:
    layer, x = MatrixFreeLinear(200, 200), torch.randn(2, 200).requires_grad_()
    torch.autograd.grad(layer(x).sum(), x)
    assert layer.weight.grad is None
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
