"""Residual and normalised torch modules as people write them: recognised with factors, norms and laws, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import finwidth
from finwidth import MLP, BalancedResNet, FinwidthError, Norm, ResNet

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
recognise: Any = finwidth.empirical.recognise

N, M = 24, 40


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(51)


class Block(nn.Module):  # type: ignore[misc, name-defined]
    """The usual one; ``forward`` is that of the subclasses."""

    def __init__(self, n: int = N, m: int = M, norm: Any = None, bias: bool = True) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(n, m, bias), nn.Linear(m, n, bias)
        self.norm = nn.Identity() if norm is None else norm(n)
        self.act, self.alpha = nn.ReLU(), 0.5
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Any) -> Any:
        return x + self.fc2(self.act(self.fc1(x)))


def block(forward: Callable[[Any, Any], Any]) -> Any:
    """A block class with this forward."""
    return type("Written", (Block,), {"forward": forward})


Half = block(lambda self, x: x + self.alpha * self.fc2(self.act(self.fc1(x))))
Scaled = block(lambda self, x: (x + self.fc2(self.act(self.fc1(x)))) / math.sqrt(2))
Swapped = block(lambda self, x: self.fc2(functional.relu(self.fc1(x))) * 0.25 + x * 0.75)
Method = block(lambda self, x: torch.add(x, self.fc2(self.fc1(x).clamp(min=0)), alpha=0.3))
Decayed = block(lambda self, x: x * 0.8 + 0.6 * self.fc2(self.act(self.fc1(self.norm(x)))))
Summed = block(lambda self, x: sum([x, self.fc2(self.act(self.fc1(x))) / 4]))
Products = block(lambda self, x: x + torch.mm(self.act(x @ self.fc1.weight.T + self.fc1.bias), self.fc2.weight.t()))
AddMM = block(lambda self, x: x + torch.addmm(self.fc2.bias, self.fc1(x).relu(), self.fc2.weight.mT))
InPlace = block(lambda self, x: self.fc2(torch.relu_(self.fc1(x))).mul_(0.5).add_(x))
PreNorm = block(lambda self, x: x + self.dropout(self.fc2(self.dropout(self.act(self.fc1(self.norm(x)))))))
PostNorm = block(lambda self, x: self.norm(x + self.fc2(self.act(self.fc1(x)))))


def _augmented(self: Any, x: Any) -> Any:
    residual = x
    x = self.norm(x)
    x = self.act(self.fc1(x))
    x = functional.dropout(x, 0.2, self.training)
    x = self.fc2(x)
    x += residual
    return x


Augmented = block(_augmented)


class Branch(nn.Module):  # type: ignore[misc, name-defined]
    """x + f(x) for any f."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Any, **kwargs: Any) -> Any:
        return self.fn(x, **kwargs) + x


class OwnRMSNorm(nn.Module):  # type: ignore[misc, name-defined]
    """As in language models: in float32 whatever it is given."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.gain = eps, nn.Parameter(torch.ones(dim))

    def _norm(self, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Any) -> Any:
        return self._norm(x.float()).type_as(x) * self.gain


class OwnLayerNorm(nn.Module):  # type: ignore[misc, name-defined]
    """With names in an order of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.beta, self.gamma = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Any) -> Any:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return self.gamma * (x - mean) / torch.sqrt(var + 1e-3) + self.beta


class AnnotatedLayerNorm(nn.Module):  # type: ignore[misc, name-defined]
    """Divides by an unbiased deviation plus epsilon, which is no `Norm`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Any) -> Any:
        return self.a * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.b


def plain(n: int) -> Any:
    return nn.LayerNorm(n, elementwise_affine=False)


class Net(nn.Module):  # type: ignore[misc, name-defined]
    """Everything in one forward, with a loop."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, N), nn.Linear(N, 3)
        self.up = nn.ModuleList(nn.Linear(N, M) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(M, N) for _ in range(depth))
        self.ln = nn.ModuleList(nn.LayerNorm(N) for _ in range(depth))
        self.ln_f = nn.LayerNorm(N)

    def forward(self, x: Any, scale: float = 0.5) -> Any:
        x = self.stem(x.view(x.size(0), -1))
        for up, down, ln in zip(self.up, self.down, self.ln, strict=True):
            x = x + scale * down(functional.gelu(up(ln(x))))
        return self.head(self.ln_f(x))


class Functional(nn.Module):  # type: ignore[misc, name-defined]
    """Parameters of its own, and torch.nn.functional."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, N), nn.Linear(N, 3)
        made = nn.Linear(N, M), nn.Linear(M, N)
        self.w1, self.b1, self.w2, self.b2 = (each for layer in made for each in layer.parameters())
        self.register_buffer("factor", torch.tensor(0.25))

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        y = functional.linear(functional.layer_norm(x, (N,)), self.w1, self.b1).tanh()
        x = x + self.factor * functional.linear(y, self.w2, self.b2)
        return self.head(functional.layer_norm(x, (N,)))


def stack(*blocks: Any, final: Any = None) -> Any:
    return nn.Sequential(nn.Linear(12, N), *blocks, *([] if final is None else [final]), nn.Linear(N, 3))


def kaiming(module: Any) -> Any:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


def net(depth: int, **options: Any) -> ResNet:
    """With nn.Linear's default law."""
    law: Any = {"weight_law": "uniform", "gains": 1 / 3, "bias_law": "uniform", "parameterization": "standard"}
    variances = [1 / 36, 1 / (3 * N), 1 / (3 * M), 1 / (3 * N)]
    return ResNet([12, N, 3], depth, M, **(law | {"bias_variance": variances} | options))


class OneNumber(nn.Module):  # type: ignore[misc, name-defined]
    """One output, of shape (samples,), in one of the ways that people write it."""

    def __init__(self, last: Callable[[Any], Any]) -> None:
        super().__init__()
        self.body, self.head, self.last = nn.Sequential(nn.Linear(12, N), Block()), nn.Linear(N, 1), last

    def forward(self, x: Any) -> Any:
        return self.last(self.head(self.body(x)))


layer_norm = Norm("layer", epsilon=1e-5, parameters="trained")
FORMS: dict[str, tuple[Callable[[], Any], Any]] = {
    "usual": (lambda: stack(Block(), Block()), net(2)),
    "half": (lambda: stack(Half(), Half(), Half()), net(3, branch=0.5)),
    "over sqrt 2": (lambda: stack(Scaled(), Scaled()), net(2, skip="sqrt(1/2)", branch="sqrt(1/2)")),
    "swapped": (lambda: stack(Swapped()), net(1, skip=0.75, branch=0.25)),
    "torch.add, clamp": (lambda: stack(Method()), net(1, branch=0.3)),
    "in place": (lambda: stack(InPlace(), InPlace()), net(2, branch=0.5)),
    "skips below 1": (
        lambda: stack(Decayed(norm=plain), Decayed(norm=plain), Decayed(norm=plain), final=plain(N)),
        net(3, skip="sqrt(16/25)", branch="sqrt(9/25)", norm=Norm("layer", epsilon=1e-5)),
    ),
    "skips below 1, and over sqrt 2": (
        lambda: stack(Scaled(), Decayed(), Scaled()),
        net(3, skip=["sqrt(1/2)", "sqrt(16/25)", "sqrt(1/2)"], branch=["sqrt(1/2)", "sqrt(9/25)", "sqrt(1/2)"]),
    ),
    "sum of a list": (lambda: stack(Summed(), Summed()), net(2, branch=0.25)),
    "addmm": (lambda: stack(AddMM(), AddMM()), net(2)),
    "nested": (lambda: nn.Sequential(nn.Linear(12, N), nn.Sequential(Block(), Block()), nn.Linear(N, 3)), net(2)),
    "pre-norm, dropout in eval": (
        lambda: stack(PreNorm(norm=nn.LayerNorm), PreNorm(norm=nn.LayerNorm), final=nn.LayerNorm(N)).eval(),
        net(2, norm=layer_norm),
    ),
    "pre-norm without parameters": (
        lambda: stack(PreNorm(norm=plain), final=plain(N)).eval(),
        net(1, norm=Norm("layer", epsilon=1e-5)),
    ),
    "post-norm": (
        lambda: stack(PostNorm(norm=nn.LayerNorm), PostNorm(norm=nn.LayerNorm)),
        net(2, norm=Norm("layer", "after", epsilon=1e-5, parameters="trained")),
    ),
    "RMSNorm, the residual kept": (
        lambda: stack(Augmented(norm=nn.RMSNorm), Augmented(norm=nn.RMSNorm), final=nn.RMSNorm(N)).eval(),
        net(2, norm=Norm("rms", epsilon=float(torch.finfo(torch.float32).eps), parameters="trained")),
    ),
    "own RMSNorm": (
        lambda: stack(PreNorm(norm=OwnRMSNorm), final=OwnRMSNorm(N)).eval(),
        net(1, norm=Norm("rms", epsilon=1e-6, parameters="trained")),
    ),
    "own LayerNorm": (
        lambda: stack(PostNorm(norm=OwnLayerNorm)),
        net(1, norm=Norm("layer", "after", epsilon=1e-3, parameters="trained")),
    ),
    "branch as a Sequential": (
        lambda: stack(*(Branch(nn.Sequential(nn.Linear(N, M), nn.Tanh(), nn.Linear(M, N))) for _ in range(2))),
        net(2, activation="tanh"),
    ),
    "one forward": (Net, net(3, branch=0.5, activation="gelu", norm=layer_norm)),
    "functional": (Functional, net(1, branch=0.25, activation="tanh", norm=Norm("layer", epsilon=1e-5))),
    "kaiming": (
        lambda: kaiming(stack(Block(), Block())),
        net(2, weight_law="gaussian", gains=2, bias_variance=0, bias_law="gaussian"),
    ),
    "no biases in blocks": (
        lambda: stack(Block(bias=False)),
        net(1, bias=("trained", "none", "none", "trained"), bias_variance=[1 / 36, 0, 0, 1 / (3 * N)]),
    ),
    "linear": (
        lambda: stack(Branch(nn.Sequential(nn.Linear(N, M), nn.Linear(M, N)))),
        net(1, activation="linear"),
    ),
    "double": (lambda: stack(Half(), Half()).double(), net(2, branch=0.5)),
}


def same(found: Any, wanted: Any) -> bool:
    """The same description, but for the rounding of variances that are given as numbers."""
    one, other = found.describe(), wanted.describe()
    close = all(
        math.isclose(float(a), float(b), rel_tol=1e-12)
        for name in ("gains", "bias_variance")
        for a, b in zip(getattr(found, name), getattr(wanted, name), strict=True)
    )
    for described in (one, other):
        del described["gains"], described["bias_variance"]
        described["branch_squared"] = [float(finwidth.arguments.as_fraction(b)) for b in wanted.branch_squared]
    return bool(close and one == other and type(found) is type(wanted))


@pytest.mark.parametrize("name", FORMS)
def test_residual_forms_are_recognised(name: str) -> None:
    make, wanted = FORMS[name]
    found = recognise(make())
    assert same(found, wanted), f"{found.describe()}\n{wanted.describe()}"
    squares = [float(b) for b in wanted.branch_squared]
    assert [float(b) for b in found.branch_squared] == pytest.approx(squares, rel=1e-12)


LAST: dict[str, Callable[[Any], Any]] = {
    "squeeze": lambda y: y.squeeze(-1),
    "view": lambda y: y.view(-1),
    "flatten": nn.Flatten(0),
    "column": lambda y: y[:, 0],
    "ellipsis": lambda y: y[..., 0],
}


@pytest.mark.parametrize("name", LAST)
def test_one_output_may_have_no_axis(name: str) -> None:
    module = OneNumber(LAST[name]).eval()
    found = recognise(module)
    assert found.widths == (12, N, 1)
    rows = {row.quantity: row for row in finwidth.compare(module, [1.0] * 12, networks=20).rows}
    module.last = nn.Identity()
    same_rows = {row.quantity: row for row in finwidth.compare(module, [1.0] * 12, networks=20).rows}
    assert rows == same_rows


def test_weights_may_be_used_by_matrix_products() -> None:
    module = stack(Products(bias=True), Products(bias=True))
    module[1].fc2.bias = module[2].fc2.bias = None
    wanted = net(2, bias=("trained", "trained", "none", "trained"), bias_variance=[1 / 36, 1 / (3 * N), 0, 1 / (3 * N)])
    assert same(recognise(module), wanted)


NORMALISED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "before": (lambda: [nn.LayerNorm(M), nn.ReLU()], "layer", "before"),
    "after": (lambda: [nn.ReLU(), nn.LayerNorm(M)], "layer", "after"),
    "rms": (lambda: [nn.RMSNorm(M), nn.ReLU()], "rms", "before"),
    "own": (lambda: [OwnRMSNorm(M), nn.ReLU()], "rms", "before"),
    "dropout between": (lambda: [nn.Dropout(0.5), nn.LayerNorm(M), nn.ReLU(), nn.Dropout(0.5)], "layer", "before"),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_networks_are_recognised(name: str) -> None:
    between, kind, position = NORMALISED[name]
    module = nn.Sequential(nn.Linear(12, M), *between(), nn.Linear(M, M), *between(), nn.Linear(M, 2)).eval()
    found = recognise(module)
    assert isinstance(found, MLP)
    assert found.norm is not None
    assert (found.norm.kind, found.norm.position, found.norm.parameters) == (kind, position, "trained")
    assert found.widths == (12, M, M, 2)


def test_modules_of_ours_are_the_networks_they_were_made_of() -> None:
    for net in (ResNet([3, 4, 1], 2, norm="rms"), BalancedResNet([3, 4, 1], 2), MLP([3, 4, 1], norm="layer")):
        kind = finwidth.empirical.MLP if isinstance(net, MLP) else finwidth.empirical.ResNet
        assert recognise(kind(net)) is net


def test_branches_of_inverse_square_roots_are_exact() -> None:
    class Deep(Block):
        def forward(self, x: Any) -> Any:
            return x + self.fc2(self.act(self.fc1(x))) / 7**0.5

    assert (
        recognise(stack(*(Deep() for _ in range(7)))).branch_squared
        == ResNet([2, 2, 1], 7, branch="1/sqrt(depth)").branch_squared
    )


class Gain(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Any) -> Any:
        return x + self.gain * self.fc2(self.act(self.fc1(x)))


class LayerScale(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(N))

    def forward(self, x: Any) -> Any:
        return x + self.gamma * self.fc2(self.act(self.fc1(x)))


class Unused(Block):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(N, N)


class DependsOnData(Block):
    def forward(self, x: Any) -> Any:
        return x + self.fc2(self.act(self.fc1(x))) if float(x.sum()) > 0 else x


class TwoInputs(Block):
    def forward(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return y + self.fc2(self.act(self.fc1(x)))


class Alias(Block):
    """In place on the stream, which the graph of the forward does not show."""

    def forward(self, x: Any) -> Any:
        x.mul_(0.5)
        return x + self.fc2(self.act(self.fc1(x)))


shared_block = Block()


def trained_norms() -> Any:
    module = stack(PreNorm(norm=nn.LayerNorm), final=nn.LayerNorm(N)).eval()
    module[2].weight.data[3] += 0.01
    return module


def zero_initialised() -> Any:
    module = stack(Block())
    nn.init.zeros_(module[1].fc2.weight)
    return module


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "skip before the activation": (
        lambda: stack(block(lambda s, x: s.act(x + s.fc2(s.act(s.fc1(x)))))()),
        "followed by an activation",
    ),
    "activation of the sum inside": (
        lambda: stack(block(lambda s, x: s.fc2(s.act(x + s.fc1(x))))(m=N)),
        "followed by an activation, or is inside a branch",
    ),
    "two shares of the skip": (
        lambda: stack(block(lambda s, x: 0.5 * x + 0.25 * x + s.fc2(s.act(s.fc1(x))))()),
        "is not one of x and of two Linear layers",
    ),
    "a multiple inside the branch": (
        lambda: stack(block(lambda s, x: x + s.fc2(s.act(s.fc1(0.5 * x))))()),
        "is multiplied by 0.5",
    ),
    "weights that are not transposed": (
        lambda: stack(block(lambda s, x: x + s.act(x @ s.fc1.weight) @ s.fc2.weight.T)(m=N, bias=False)),
        "of several tensors",
    ),
    "half of the samples": (lambda: OneNumber(lambda y: y[::2, 0]), "does not compute"),
    "learned gain": (lambda: stack(Gain()), "multiplies by a parameter, '1.gain'"),
    "layer scale": (lambda: stack(LayerScale()), "multiplies by a parameter, '1.gamma'"),
    "norm on the branch": (
        lambda: stack(block(lambda s, x: x + s.norm(s.fc2(s.act(s.fc1(x)))))(norm=nn.LayerNorm)),
        "is not one of x and of two Linear layers",
    ),
    "norm inside the branch": (
        lambda: stack(block(lambda s, x: x + s.fc2(s.norm(s.act(s.fc1(x)))))(m=N, norm=nn.LayerNorm)),
        "is not one of x and of two Linear layers",
    ),
    "norm of the skip too": (
        lambda: stack(block(lambda s, x: s.norm(x) + s.fc2(s.act(s.fc1(s.norm(x)))))(norm=nn.LayerNorm)),
        "is not one of x and of two|share parameters|norms are not those",
    ),
    "no final norm": (lambda: stack(PreNorm(norm=nn.LayerNorm)).eval(), "its norms are not those in front of every"),
    "a norm in one block only": (
        lambda: stack(PreNorm(norm=nn.LayerNorm), Block(), final=nn.LayerNorm(N)).eval(),
        "its norms are not those in front of every block",
    ),
    "norms that differ": (
        lambda: stack(PreNorm(norm=nn.LayerNorm), final=nn.LayerNorm(N, eps=1e-3)).eval(),
        "its norms differ",
    ),
    "LayerNorm without shift": (
        lambda: stack(PreNorm(norm=lambda n: nn.LayerNorm(n, bias=False)), final=nn.LayerNorm(N, bias=False)).eval(),
        "other parameters than scale and shift",
    ),
    "unbiased deviation": (lambda: stack(PostNorm(norm=AnnotatedLayerNorm)), "is of type AnnotatedLayerNorm"),
    "trained norm": (trained_norms, "scales and shifts of its norms are not 1 and 0"),
    "shared block": (lambda: stack(shared_block, shared_block), "layers share parameters"),
    "dropout in training": (lambda: stack(PreNorm(norm=nn.LayerNorm), final=nn.LayerNorm(N)), "call module.eval"),
    "functional dropout in training": (
        lambda: stack(Augmented(norm=nn.RMSNorm), final=nn.RMSNorm(N)),
        "draws random numbers; call module.eval",
    ),
    "batch norm": (lambda: stack(PostNorm(norm=nn.BatchNorm1d)).eval(), "is of type BatchNorm1d"),
    "one matrix a block": (
        lambda: stack(block(lambda s, x: x + s.act(s.fc1(x)))(m=N)),
        "is not one of x|not one of its",
    ),
    "subtracted": (lambda: stack(block(lambda s, x: x - s.fc2(s.act(s.fc1(x))))()), "negative factor"),
    "three matrices": (
        lambda: stack(Branch(nn.Sequential(*(nn.Linear(N, N) for _ in range(3))))),
        "is not one of x and of two Linear layers",
    ),
    "skip over two blocks": (
        lambda: stack(Branch(nn.Sequential(Block(), Block()))),
        "is not one of x and of two Linear layers",
    ),
    "no stem": (lambda: nn.Sequential(Block(), nn.Linear(N, 1)), "stream passes through 'input'|not one of x"),
    "no head": (lambda: nn.Sequential(nn.Linear(12, N), Block()), "does not end with a Linear layer"),
    "unused layer": (lambda: stack(Unused()), "its parameter '1.extra"),
    "control flow": (lambda: stack(DependsOnData()), "cannot be followed"),
    "two inputs": (TwoInputs, "does not end with|takes 'y' besides"),
    "in place on the stream": (lambda: stack(Alias()), "does not compute what the ResNet does"),
    "no gradient through a branch": (
        lambda: stack(block(lambda s, x: x + s.fc2(s.act(s.fc1(x.detach()))))()),
        "does not compute what the ResNet does",
    ),
    "half a gradient": (
        lambda: stack(block(lambda s, x: x + s.fc2(s.act(s.fc1((x + x.detach()) / 2))))()),
        "is not one of x and of two|does not compute",
    ),
    "activations differ": (
        lambda: stack(Block(), Branch(nn.Sequential(nn.Linear(N, M), nn.Tanh(), nn.Linear(M, N)))),
        "its activations differ",
    ),
    "hidden widths differ, with biases": (lambda: stack(Block(), Block(m=30)), "hidden widths differ"),
    "trained blocks": (
        lambda: nn.Sequential(nn.Linear(12, N), Block(), nn.Linear(N, 3).requires_grad_(False)),
        "are not trained",
    ),
    "zero-initialised branch": (
        zero_initialised,
        "how this module was initialised cannot be told",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_residual_forms_are_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(FinwidthError, match=words):
        recognise(make())


def test_a_misread_factor_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the check by running sees a factor, a skip and a norm that are not the module's."""
    from finwidth.empirical.modules import recognition

    right = recognition._described

    for change in ({"branch": 0.500001}, {"skip": 0.999999}, {"norm": Norm("layer", epsilon=1.0001e-5)}):

        def wrong(module: Any, read: Any, init: Any, change: dict[str, Any] = change) -> Any:
            found: Any = right(module, read, init)
            given = {"branch": 0.5, "norm": found.norm} | change
            return ResNet(found.widths, found.depth, found.hidden, parameterization="standard", **given)

        monkeypatch.setattr(recognition, "_described", wrong)
        module = stack(block(lambda s, x: x + 0.5 * s.fc2(s.act(s.fc1(s.norm(x)))))(norm=plain), final=plain(N))
        with pytest.raises(FinwidthError, match="does not compute"):
            recognise(module)
