"""Contributions of groups of parameters to a kernel: each is right, they add up, and what is wrong is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

from finwidth.empirical import ntk  # noqa: E402
from finwidth.empirical.kernel import computation, gradients  # noqa: E402
from finwidth.empirical.kernel.layout import Layout  # noqa: E402
from plain_rows import close, rows  # noqa: E402
from programs import PROGRAMS  # noqa: E402

Tensor = Any
N = 6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def groups_of(module: nn.Module, x: Tensor, groups: dict[str, list[str]]) -> Tensor:
    """The contributions of groups, from the gradients of every number, shape (groups, N, N, O, O)."""
    parameters = dict(module.named_parameters())
    J = rows((module(x[[a]]) for a in range(len(x))), list(parameters.values()))
    columns = dict(zip(parameters, J.split([each.numel() for each in parameters.values()], 1), strict=True))
    found = []
    for names in groups.values():
        own = torch.cat([columns[name] for name in names], 1)
        found.append((own @ own.T).unflatten(1, (len(x), -1)).unflatten(0, (len(x), -1)).transpose(1, 2))
    return torch.stack(found)


def mixed() -> tuple[nn.Module, Tensor]:
    """Convolutions, norms, a weight made of parameters, recurrent layers, and a tied table, by all routes."""
    return Mixed().double(), torch.randn(N, 2, 5).double()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU())
        self.normed = parametrizations.weight_norm(nn.Linear(3, 4))
        self.tied, self.recurrent, self.gain = (
            nn.Linear(4, 4),
            nn.GRU(4, 3, batch_first=True),
            nn.Parameter(torch.ones(3)),
        )
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.normed(self.body(x)))
        h = torch.tanh(self.tied(h)) @ self.tied.weight
        return self.head(self.recurrent(h)[0][:, -1] * self.gain)


LAYERS = {
    "": ["gain"],
    "body.0": ["body.0.weight", "body.0.bias"],
    "body.1": ["body.1.weight", "body.1.bias"],
    "normed": ["normed.bias"],
    "normed.parametrizations.weight": [f"normed.parametrizations.weight.original{i}" for i in range(2)],
    "tied": ["tied.weight", "tied.bias"],
    "recurrent": [f"recurrent.{kind}_{of}_l0" for kind in ("weight", "bias") for of in ("ih", "hh")],
    "head": ["head.weight", "head.bias"],
}


@pytest.mark.parametrize("memory", ["1GiB", "50KB"])
def test_layers_and_modules(memory: str) -> None:
    module, x = mixed()
    found = ntk(module, x, by="layer", labelled=True, memory=memory)
    assert found.dims == ("group", "input", "input_", "output", "output_")
    names = found.group.to_numpy().tolist()
    right = groups_of(module, x, {name: LAYERS["" if name == "gain" else name] for name in names})
    assert set(names) == {name or "gain" for name in LAYERS}
    for i, name in enumerate(names):
        assert close(torch.from_numpy(found.sel(group=name).to_numpy()), right[i]), name
    assert close(right.sum(0), ntk(module, x))
    children = ntk(module, x, by="module", labelled=True, memory=memory)
    assert children.group.to_numpy().tolist() == ["gain", "body", "normed", "tied", "recurrent", "head"]
    body = right[[names.index("body.0"), names.index("body.1")]].sum(0)
    assert close(torch.from_numpy(children.sel(group="body").to_numpy()), body)


@pytest.mark.parametrize("outputs", ["full", "diagonal", "trace", 1])
@pytest.mark.parametrize("entries", ["full", "diagonal"])
def test_shapes_and_sums(outputs: str | int, entries: str) -> None:
    module, x = mixed()
    whole = ntk(module, x, outputs=outputs, entries=entries)
    parts = ntk(module, x, outputs=outputs, entries=entries, by="layer")
    assert parts.shape == (8, *whole.shape)
    assert close(parts.sum(0), whole)
    if entries == "full":
        assert close(ntk(module, x, x[:2], outputs, by="layer"), parts[:, :, :2])


def test_groups_of_ones_own() -> None:
    """Weights and biases of one layer, of one made weight, and of the tied one apart; the rest is a group."""
    module, x = mixed()
    groups: dict[str, list[str]] = {
        "weights": [
            "body.0.weight",
            "normed.parametrizations.weight.original1",
            "tied.weight",
            "recurrent.weight_hh_l0",
        ],
        "biases": ["body.0.bias", "normed.parametrizations.weight.original0", "tied.bias"],
        "head": LAYERS["head"],
    }
    names = [name for name, _ in module.named_parameters()]
    rest = [name for name in names if not any(name in each for each in groups.values())]
    given: dict[str, Any] = {**groups, "head": module.head}
    found = ntk(module, x, by=given, labelled=True)
    assert found.group.to_numpy().tolist() == [*groups, "rest"]
    assert close(torch.from_numpy(found.to_numpy()), groups_of(module, x, {**groups, "rest": rest}))
    parts: dict[str, list[Any]] = {"a": ["body", module.normed, "gain"], "b": ["tied", "recurrent", "head"]}
    halves = ntk(module, x, by=parts, labelled=True)
    assert halves.group.to_numpy().tolist() == ["a", "b"]
    scaled = ntk(module, x, by={"head": "head"}, parameters=lambda name, each: "weight" in name, scale=lambda *_: 2.0)
    assert close(scaled[0], 2 * groups_of(module, x, {"head": ["head.weight"]})[0])


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    torch.manual_seed(3)
    build, inputs = PROGRAMS[name]
    module, x = build().double(), inputs(5)
    each = {name: [name] for name, _ in module.named_parameters()}
    found = ntk(module, x, by=each)
    assert close(found.sum(0), ntk(module, x), 1e-10)
    alone = ntk(module, x, parameters=list(each)[:1])
    assert bool((found[0] - alone).abs().max() <= 1e-10 * found.sum(0).abs().max())


def test_a_group_whose_gradients_are_rounding() -> None:
    """The bias of keys moves nothing, but for rounding, which no check can confirm."""
    module = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).double().eval()
    K = ntk(Mean(module), torch.randn(N, 3, 4).double(), by={"keys": "layer.self_attn.in_proj_bias"})
    assert torch.isfinite(K).all()
    split = Keys().double()
    parts = ntk(split, torch.randn(N, 3, 4).double(), by={"bias": "keys.bias"})
    assert float(parts[0].abs().max()) < 1e-25 * float(parts[1].abs().max())


class Mean(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


class Keys(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys, self.queries, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(((self.queries(x) @ self.keys(x).mT).softmax(-1) @ x).mean(1))


def test_memory_is_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = mixed()
    asked: list[int] = []
    monkeypatch.setattr(computation, "afford", lambda needed, *told: asked.append(needed))
    ntk(module, x, by="layer", check=False)
    ntk(module, x, check=False)
    assert max(asked[:2]) - max(asked[2:]) == 7 * 8 * N * N * 2 * 2


MISTAKES: dict[str, tuple[Any, str]] = {
    "a word": ("layers", "by is 'layers'; give \"layer\""),
    "nothing": ({}, "by is {}"),
    "unknown": (
        {"a": ["body.0.wieght"]},
        "group 'a' names 'body.0.wieght', which is no parameter or part of the module",
    ),
    "twice": ({"a": "body", "b": "body.0.weight"}, "groups 'a' and 'b' share a parameter"),
    "empty": ({"a": []}, "no parameter of group 'a' counts"),
    "another": ({"a": [1]}, "group 'a' names 1, which"),
    "a number": ({1: "body"}, "a group 1; give names"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name: str) -> None:
    module, x = mixed()
    by, words = MISTAKES[name]
    with pytest.raises(FinwidthError, match=words):
        ntk(module, x, by=by)
    with pytest.raises(FinwidthError, match="no parameter of group 'head' counts"):
        ntk(module, x, parameters=["gain"], by={"head": module.head})


def swapped(network: Any, *given: Any, **more: Any) -> list[Any]:
    found = RIGHT(network, *given, **more)
    return [replace(each, group=(each.group + 1) % (1 + max(network.groups.values()))) for each in found]


RIGHT = gradients.gradients


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_a_fault_in_a_group_is_found(outputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of all groups is right, and no check of it can see that the groups are exchanged, or one is scaled."""
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = torch.randn(20, 3).double()
    right = ntk(module, x, outputs=outputs, by="layer")
    monkeypatch.setattr(computation, "gradients", swapped)
    wrong = ntk(module, x, outputs=outputs, by="layer", check=False)
    assert close(wrong.sum(0), right.sum(0))
    assert not close(wrong, right, 1e-2)
    with pytest.raises(FinwidthError, match="a number of the kernel is"):
        ntk(module, x, outputs=outputs, by="layer")


@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_fault_of_one_percent_of_a_group_is_found(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the smallest group is far below what the whole kernel would show."""
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    for each in module[-1].parameters():
        each.data *= 1e-6
    x = torch.randn(20, 3).double()
    right = ntk(module, x, by="layer")
    finished = computation.finished

    def off(K: Tensor, *given: Any, **more: Any) -> Tensor:
        found = finished(K, *given, **more).clone()
        found[group] *= 1.01
        return found

    monkeypatch.setattr(computation, "finished", off)
    assert close(ntk(module, x, by="layer", check=False)[(group + 1) % 3], right[(group + 1) % 3])
    with pytest.raises(FinwidthError, match="a number of the kernel is"):
        ntk(module, x, by="layer")


def test_parts_of_layers_are_in_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gradients are formed for each product anew, a few channels at a time."""
    module = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    module, x = module.double(), torch.randn(12, 2, 6, 6).double()
    names = {f"{i}": [f"{i}.weight", f"{i}.bias"] for i in (0, 2, 5)}
    right = groups_of(module, x, names)
    assert close(ntk(module, x, by="layer"), right)
    steps = Layout.steps
    monkeypatch.setattr(Layout, "steps", lambda self: steps(replace(self, inputs=5, tile=2)))
    assert close(ntk(module, x, by="layer", memory="300KB"), right)
