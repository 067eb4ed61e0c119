"""Kernels are right or refused: programs that no rule foresees, faults planted in the route, what is left behind."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import plain_backward as plain  # noqa: E402
from finwidth.empirical import explain, ntk, sgd_update  # noqa: E402
from finwidth.empirical.kernel import (  # noqa: E402
    check,
    compositions,
    computation,
    factors,
    gradients,
    layout,
    operations,
    owners,
    recording,
    tiles,
    weights,
)
from finwidth.empirical.kernel.preparation import prepare  # noqa: E402
from plain_backward import near  # noqa: E402
from programs import PROGRAMS, Body, by_score, force, normal, perceptron, tied, words  # noqa: E402

Tensor = Any
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of torch.func.jvp


def make(name: str, n: int = 9) -> tuple[nn.Module, Tensor]:
    build, inputs = PROGRAMS[name]
    torch.manual_seed(3)
    return build().double(), inputs(n)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    """In blocks too, in which the samples have other company."""
    module, x = make(name)
    right = plain.kernel(module, x)
    assert near(ntk(module, x), right)
    assert near(ntk(module, x, check=False), right)  # the plan knows; the check is a second line
    assert near(ntk(module, x, outputs="trace", entries="diagonal"), right.diagonal(dim1=2, dim2=3).sum(-1).diagonal())
    assert near(ntk(module, x[:4], x[4:], 0), right[:4, 4:, 0, 0])


@pytest.mark.parametrize("name", [each for each in PROGRAMS if each not in {"bag of words", "sparse table twice"}])
def test_programs_move(name: str) -> None:
    module, x = make(name, 5)
    y = torch.randn(module(x.clone()).reshape(5, -1).shape, dtype=torch.float64)
    targets = y.reshape(module(x.clone()).shape)
    assert near(sgd_update(module, x, targets), plain.update(module, x, y), 1e-5)


def test_a_batch_that_is_sorted_but_for_a_pair() -> None:
    """Two neighbours of 64 change places, which neither the first three nor a random sample is likely to show."""
    torch.manual_seed(0)
    module, x = make("sorted by length")[0], torch.randint(1, 9, (64, 4))
    x[30, -1] = 0
    right = plain.kernel(module, x)
    assert near(ntk(module, x), right)
    assert near(ntk(module, x, outputs="trace", entries="diagonal"), right[..., 0, 0].diagonal())


def frozen(x: Tensor) -> nn.Module:
    """An embedding of which one row is not trained, by a hook of its parameter."""
    module = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(4 * x.shape[1], 2)).double()
    mask = torch.ones(9, 1).double()
    mask[7] = 0
    module[0].weight.register_hook(lambda gradient: gradient * mask)  # type: ignore[operator]
    return module


def test_hooks_of_parameters() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 7, (40, 3))
    x[:4, 0] = 7
    module = frozen(x)
    assert near(ntk(module, x), plain.kernel(module, x))
    y = torch.randn(40, 2).double()
    assert near(sgd_update(module, x, y), plain.update(module, x, y), 1e-5)


# Randomness and samples that meet


class Drops(nn.Module):
    """Stochastic depth of samples, by a generator of one kind or another."""

    def __init__(self, draw: Callable[[int], Tensor], generator: Any = None) -> None:
        super().__init__()
        self.draw, self.generator = draw, generator

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.as_tensor(self.draw(len(x)), dtype=x.dtype) > 0.01)[:, None]


def centred(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    return m.last(torch.tanh(h - h.mean(0)))


def attended(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.softmax(m.first(x), 0))


def by_rank(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.first(x)) * (1 + x.sum(1).argsort().argsort()[:, None]))


def by_place(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.first(x)) * torch.arange(1, len(x) + 1)[:, None])


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "torch": lambda: Drops(torch.rand),
    "in place": lambda: Drops(lambda n: torch.empty(n).bernoulli_(0.99)),
    "numpy": lambda: Drops(np.random.rand),
    "python": lambda: Drops(lambda n: [random.random() for _ in range(n)]),
}


@pytest.mark.parametrize("name", [*RANDOM, "own numpy", "own torch", "own python"])
@pytest.mark.parametrize("x", [torch.ones(6, 4), torch.arange(24.0).view(6, 4)])
def test_random_numbers_are_refused(name: str, x: Tensor) -> None:
    """However rarely they make a difference: here they are drawn and seldom, or never, change anything."""
    own = {"own numpy": np.random.default_rng(0), "own torch": torch.Generator(), "own python": random.Random(0)}
    draws = {
        "own numpy": own["own numpy"].random,
        "own torch": lambda n: torch.rand(n, generator=own["own torch"]),
        "own python": lambda n: [own["own python"].random() for _ in range(n)],
    }
    drops = RANDOM[name]() if name in RANDOM else Drops(draws[name], own[name])
    module = nn.Sequential(nn.Linear(4, 8), drops, nn.Linear(8, 1))
    for _ in range(10):
        with pytest.raises(FinwidthError, match="random numbers"):
            ntk(module, x)


@pytest.mark.parametrize("forward", [centred, attended, by_rank, by_place])
@pytest.mark.parametrize("equal", [0, 3, 7])
def test_samples_that_meet_are_refused(forward: Callable[..., Tensor], equal: int) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.zeros(equal, 4), torch.randn(9 - equal, 4)])
    module = Body(forward, first=nn.Linear(4, 6), last=nn.Linear(6, 2))
    for given in (x, x.flip(0)):
        with pytest.raises(FinwidthError, match="depends on the other samples"):
            ntk(module, given)


def test_samples_that_meet_where_the_plan_does_not_see_it() -> None:
    """Only batches of more than three are centred."""

    def late(m: Any, x: Tensor) -> Tensor:
        return centred(m, x) if len(x) > 3 else m.last(torch.tanh(m.first(x)))

    module = Body(late, first=nn.Linear(4, 6), last=nn.Linear(6, 2)).double()
    with pytest.raises(FinwidthError, match=r"depends on the other samples|backward pass"):
        ntk(module, torch.randn(8, 4).double())


def trimmed(m: Any, x: Tensor) -> Tensor:
    """Padding as everyone writes it: the batch is cut to its longest text, and the rest is read as words."""
    return m.out(m.cell(m.table(x[:, : int((x != 0).sum(1).max())]))[0][:, -1])


def test_one_long_text_among_short_ones() -> None:
    torch.manual_seed(0)
    layers = {"table": nn.Embedding(9, 3), "cell": nn.GRU(3, 4, batch_first=True), "out": nn.Linear(4, 2)}
    module, x = Body(trimmed, **layers).double(), torch.randint(1, 9, (64, 6))
    x[:, 2:] = 0
    assert near(ntk(module, x), plain.kernel(module, x))
    x[41] = 5
    with pytest.raises(FinwidthError, match="depends on the other samples"):
        ntk(module, x)
    with pytest.raises(FinwidthError, match="depends on the other samples"):
        ntk(module, x[:3], x)


class Reversed(torch.autograd.Function):  # type: ignore[misc, name-defined]
    """A gradient reversal layer, whose derivative is none of its values."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()


def doubled(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    if h.requires_grad:
        h.register_hook(lambda gradient: 2 * gradient)
    return m.last(torch.tanh(h))


def reversing(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(Reversed.apply(m.first(x))))


class Backwards(torch.autograd.Function):  # type: ignore[misc, name-defined]
    """The same without a forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def backwards(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(Backwards.apply(m.first(x))))


def test_a_gradient_that_cannot_be_followed_is_refused() -> None:
    torch.manual_seed(0)
    module = Body(backwards, first=nn.Linear(3, 5), last=nn.Linear(5, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    assert near(ntk(module, x), plain.kernel(module, x))
    with pytest.raises(FinwidthError, match="its derivatives do not"):
        sgd_update(module, x, y)


def test_a_rare_input_that_changes_the_others() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.net(x / 10 if x.abs().max() > 50 else x)

    torch.manual_seed(0)
    module, x = Body(forward, net=perceptron(3, 5, 2)).double(), torch.randn(64, 3).double()
    ntk(module, x)
    x[41] = 60
    with pytest.raises(FinwidthError, match="depends on the other samples"):
        ntk(module, x)


def test_cached_parametrizations() -> None:
    torch.manual_seed(0)
    module, x = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double(), torch.randn(5, 3).double()
    right = plain.kernel(module, x)
    with nn.utils.parametrize.cached():
        assert near(ntk(module, x), right)
        module(x)
        assert near(ntk(module, x, check=False), right)


def exchanged(m: Any, x: Tensor) -> Tensor:
    """The first layer has the samples in another order, if there are five or more."""
    if len(x) < 5:
        return m.last(torch.tanh(m.first(x)))
    h = m.first(torch.cat(torch.split(x, [3, len(x) - 3], -2)[::-1], -2))
    return m.last(torch.tanh(torch.cat(torch.split(h, [len(x) - 3, 3], -2)[::-1], -2)))


def test_another_order_in_large_batches_only() -> None:
    """Which no plan made from three samples can know of."""
    torch.manual_seed(0)
    module, x = Body(exchanged, first=nn.Linear(3, 5), last=nn.Linear(5, 2)).double(), torch.randn(9, 3).double()
    right = plain.kernel(module, x)
    assert near(ntk(module, x, check=False), right)
    assert near(ntk(module, x), right)


@pytest.mark.parametrize(
    ("operation", "reorders"),
    {
        "cat": (lambda x, first: torch.cat([x, x], first), True),
        "cat of features": (lambda x, first: torch.cat([x, x], first + 1), False),
        "split": (lambda x, first: torch.split(x, 2, first)[0], True),
        "split of features": (lambda x, first: torch.split(x, [1, 3], first + 1)[0], False),
        "unbind": (lambda x, first: torch.unbind(x, first)[0], True),
        "unbind of features": (lambda x, first: torch.unbind(x, first + 1)[0], False),
        "select": (lambda x, first: x.select(first, 0), True),
        "select of features": (lambda x, first: x.select(first + 1, 0), False),
        "slice": (lambda x, first: x.narrow(first, 0, 2), True),
        "stack": (lambda x, first: torch.stack([x, x], first if first == 0 else first - 1), True),
        "stack of features": (lambda x, first: torch.stack([x, x], first + 1), False),
        "transpose": (lambda x, first: x.transpose(first, first + 1), True),
        "permute": (lambda x, first: x.permute(first + 1, first), True),
        "permute nothing": (lambda x, first: x.permute(first, first + 1), False),
    }.values(),
)
def test_dimensions_counted_from_behind(operation: Callable[[Tensor, int], Tensor], reorders: bool) -> None:
    """autograd saves -2 as 2^64 - 2."""
    for first in (0, -2):
        node = operation(torch.randn(3, 4, requires_grad=True) * 1.0, first).grad_fn
        assert node is not None
        assert recording._reorders(node) == reorders


def test_inside_inference_mode() -> None:
    torch.manual_seed(0)
    module, x, y = perceptron(3, 5, 2).double(), torch.randn(6, 3).double(), torch.randn(6, 2).double()
    right, moved = ntk(module, x), sgd_update(module, x, y)
    with torch.inference_mode():
        assert near(ntk(module, x.clone()), right)
        assert near(sgd_update(module, x.clone(), y), moved)


@pytest.mark.parametrize("forward", [doubled, reversing])
def test_gradients_that_are_none_move_as_they_do(forward: Callable[..., Tensor]) -> None:
    """A backward pass through such a backward pass is not its derivative; a difference of kernels is."""
    torch.manual_seed(0)
    module = Body(forward, first=nn.Linear(3, 5), last=nn.Linear(5, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    assert near(ntk(module, x), plain.kernel(module, x))
    assert near(sgd_update(module, x, y), plain.update(module, x, y), 1e-5)


def test_single_precision_of_long_gradients() -> None:
    """Sums of a million products in float32 lose four digits unless they are made of shorter ones."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(1000, 1000)), nn.Tanh(), nn.Linear(1000, 2))
    x = torch.randn(5, 1000)
    K = ntk(module, x)
    assert near(K.double(), ntk(module.double(), x), 3e-6)


# Faults in the route


def convolutions() -> nn.Module:
    layers = [nn.Conv1d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 4, 2, groups=2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(20, 3))


def table() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.LayerNorm(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def positions() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Flatten(), nn.Linear(90, 2))


def twice(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.layer(torch.tanh(m.layer(x)))))


class Places(nn.Module):
    """A table of relative places on scores, and a gain: parameters that meet the samples outside of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table, self.gain = nn.Linear(3, 2), nn.Embedding(3, 4), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scores = torch.tanh(self.table(torch.tensor([0, 2, 1, 2])) + h @ h.mT)
        return (scores @ (self.gain * torch.sin(h))).mean(1)


def bags() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 4), nn.Tanh(), nn.Linear(4, 2))


def experts(m: Any, x: Tensor) -> Tensor:
    """Each sample is for one of two."""
    best, found = m.gate(x).max(1), x.new_zeros(len(x), 2)
    for i, expert in enumerate((m.one, m.two)):
        rows = (best.indices == i).nonzero()[:, 0].flip(0)
        found = found.index_add(0, rows, expert(x[rows]))
    return found * best.values[:, None]


def recurrent(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)[0][:, -1]


def attending(m: Any, x: Tensor) -> Tensor:
    return m.layer(x, x, x)[0].flatten(1)[:, :3]


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "perceptron": (lambda: perceptron(3, 6, 5, 3), normal(3)),
    "convolutions": (convolutions, normal(2, 6)),
    "table": (table, words(4)),
    "twice": (lambda: Body(twice, layer=nn.Linear(3, 3), last=nn.Linear(3, 3)), normal(3)),
    "positions": (positions, normal(3, 20)),
    "force": (lambda: Body(force, net=perceptron(3, 6, 1)), normal(3)),
    "sorted": (lambda: Body(by_score, net=perceptron(3, 6, 2)), normal(3)),
    "tied": (lambda: Body(tied, table=nn.Embedding(9, 4)), lambda n: torch.randint(0, 9, (n, 4))),
    "places": (Places, normal(4, 3)),
    "bags": (bags, words(4)),
    "experts": (lambda: Body(experts, gate=nn.Linear(3, 2), one=perceptron(3, 4, 2), two=nn.Linear(3, 2)), normal(3)),
    "recurrent": (lambda: Body(recurrent, layer=nn.GRU(3, 4, batch_first=True)), normal(4, 3)),
    "attention": (lambda: Body(attending, layer=nn.MultiheadAttention(4, 2, batch_first=True)), normal(3, 4)),
}
Plant = Callable[[pytest.MonkeyPatch], None]
FAULTS: dict[str, tuple[str, Plant]] = {}


def fault(module: str) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        FAULTS[plant.__name__] = module, plant
        return plant

    return note


def on_factor(patch: pytest.MonkeyPatch, wrong: Callable[[Any], Any], numbers: int) -> None:
    """Change the factor of the layer whose weights and biases have so many numbers."""
    right = operations.factor

    def change(*arguments: Any) -> Any:
        found = right(*arguments)
        return wrong(found) if factors.FactorSize.of(found).c * factors.FactorSize.of(found).a == numbers else found

    patch.setattr(gradients, "factor", change)


def on_rule(patch: pytest.MonkeyPatch, function: Any, wrong: Callable[[Any], Any]) -> None:
    right = operations.OPERATIONS[function]

    def change(*arguments: Any, **options: Any) -> Any:
        operation = right(*arguments, **options)
        return operation and replace(operation, rule=wrong(operation.rule))

    patch.setitem(operations.OPERATIONS, function, change)


@fault("perceptron")
def one_layer_is_off_by_one_percent(patch: pytest.MonkeyPatch) -> None:
    on_factor(patch, lambda found: replace(found, D=found.D * 1.01**0.5), 7 * 5)


@fault("perceptron")
def a_bias_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    on_factor(patch, lambda found: replace(found, A=found.A[..., :-1]), 7 * 5)


@fault("perceptron")
def a_sample_is_taken_for_another(patch: pytest.MonkeyPatch) -> None:
    on_factor(patch, lambda found: replace(found, A=found.A.flip(0)), 7 * 5)


@fault("convolutions")
def padding_on_one_side(patch: pytest.MonkeyPatch) -> None:
    on_rule(patch, functional.conv1d, lambda rule: replace(rule, padding=tuple((0, p + q) for p, q in rule.padding)))


@fault("table")
def a_padding_row_is_trained(patch: pytest.MonkeyPatch) -> None:
    on_rule(patch, functional.embedding, lambda rule: replace(rule, padding=None))


@fault("table")
def nothing_is_normalised(patch: pytest.MonkeyPatch) -> None:
    on_rule(patch, functional.layer_norm, lambda rule: replace(rule, scaled=lambda x: x))


@fault("twice")
def a_second_use_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gradients, "together", lambda parts: parts[0])


@fault("force")
def a_derivative_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    right = recording._Graph.above

    def itself(graph: Any, nodes: set[Any], without: Any = None) -> set[Any]:
        return right(graph, nodes) if without is None else nodes

    patch.setattr(recording._Graph, "above", itself)


@fault("experts")
def rows_are_those_of_others(patch: pytest.MonkeyPatch) -> None:
    right = owners.owners

    def next_one(use: Any, plain: Tensor, weighted: Tensor, of_samples: Tensor) -> Tensor:
        found = right(use, plain, weighted, of_samples)
        return None if found is None else (found + 1) % len(of_samples)

    patch.setattr(owners, "owners", next_one)


@fault("recurrent")
def a_recurrent_network_is_another(patch: pytest.MonkeyPatch) -> None:
    def step(*given: Any) -> Any:
        return (1.01 * compositions._gated(*given)[0],)

    patch.setitem(compositions.COMPOSITIONS, torch.gru, partial(compositions._recurrent, step))


@fault("attention")
def positions_and_samples_are_exchanged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gradients, "_like", lambda *arguments: True)
    patch.setattr(recording, "_reorders", lambda node: False)


@fault("tied")
def a_use_without_rule_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recording.Record, "others", {})
    patch.delitem(operations.OPERATIONS, functional.embedding)


@fault("sorted")
def another_order_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gradients, "_like", lambda *arguments: True)
    patch.setattr(recording, "_reorders", lambda node: False)


@fault("places")
def copies_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    right = operations.Expansion.summed
    patch.setattr(operations.Expansion, "summed", lambda rule, D: right(rule, D * (torch.arange(4) < 1)[:, None]))


@fault("places")
def expansions_are_those_of_another_sample(patch: pytest.MonkeyPatch) -> None:
    right = operations.Expansion.summed
    patch.setattr(operations.Expansion, "summed", lambda rule, D: right(rule, D.roll(1, 1)))


@fault("places")
def a_row_of_a_table_is_lost(patch: pytest.MonkeyPatch) -> None:
    right = weights.parameter_gradients

    def without_some(network: Any, *given: Any) -> factors.DenseFactor:
        G = right(network, *given).G.clone()
        G[..., -4:] = 0
        return factors.DenseFactor(G)

    patch.setattr(gradients, "parameter_gradients", without_some)


@fault("places")
def an_expansion_is_not_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recording.Record, "others", {})
    patch.setitem(operations.MEETINGS, torch.Tensor.mul, lambda *arguments: None)


@fault("bags")
def a_mean_is_taken_for_a_sum(patch: pytest.MonkeyPatch) -> None:
    on_rule(patch, functional.embedding_bag, lambda rule: replace(rule, mean=False))


@fault("positions")
def positions_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    right = factors._input_products
    patch.setattr(factors, "_input_products", lambda one, other: right(one, replace(other, A=other.A.flip(2))))


@fault("perceptron")
def a_block_has_no_mirror(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tiles, "_mirror", lambda *arguments, **options: None)


@fault("perceptron")
def blocks_overlap(patch: pytest.MonkeyPatch) -> None:
    right = layout.pieces

    def wider(whole: range, size: int) -> list[range]:
        return [range(max(whole.start, part.start - 1), part.stop) for part in right(whole, size)]

    patch.setattr(layout, "pieces", wider)
    patch.setattr(tiles, "pieces", wider)


IN_BLOCKS = {"a_block_has_no_mirror", "blocks_overlap"}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.parametrize("blocks", [True, False])
def test_planted_faults_are_found(name: str, outputs: str, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks; and where all inputs are in one, whose gradients are those that the plan was made by."""
    module_name, plant = FAULTS[name]
    build, inputs = MODULES[module_name]
    torch.manual_seed(0)
    module, x = build().double(), inputs(8)
    if blocks:
        monkeypatch.setattr(computation, "fit_memory", lambda sizes, N, o: (min(N, 3), o))
    elif name in IN_BLOCKS:
        pytest.skip("a fault between blocks")
    right = plain.kernel(module, x)
    right = right if outputs == "full" else right.diagonal(dim1=2, dim2=3).sum(-1)
    assert near(ntk(module, x, outputs=outputs, check=False), right)
    plant(monkeypatch)
    assert not near(ntk(module, x, outputs=outputs, check=False), right, 1e-6)
    try:
        found = ntk(module, x, outputs=outputs)
    except FinwidthError:  # the fault is in what the general route uses too
        assert name in IN_BLOCKS
    else:
        assert near(found, right)


def test_a_fault_in_one_of_many_outputs_is_found() -> None:
    """Of a trace; in whichever output it is."""
    torch.manual_seed(0)
    module, x = perceptron(3, 6, 12).double(), torch.randn(20, 3).double()
    _, job = computation.compute(prepare(ExitStack(), module, x, None, "trace", "full", "1GiB", None, None))
    K = ntk(module, x, outputs="diagonal")
    for i in range(12):
        off = K.clone()
        off[..., i] *= 1.01
        (part,) = check.by_output(job)
        right, part = computation.compute(part)
        wrong = right.clone()
        wrong[..., i, i] *= 1.01
        assert check.worst(job, K.sum(-1), [(right, part)]) is None
        assert check.worst(job, off.sum(-1), [(wrong, part)]) is not None


def test_a_lost_tangent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, x, y = perceptron(3, 6, 5, 2).double(), torch.randn(6, 3).double(), torch.randn(6, 2).double()
    right = plain.update(module, x, y)
    monkeypatch.setattr(weights, "unpack_dual", lambda x: (x, None))
    assert not near(sgd_update(module, x, y, check=False), right, 1e-3)
    assert near(sgd_update(module, x, y), right, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("outputs", "at_once"), [("full", False), ("trace", False), ("trace", True), ("diagonal", False), (1, False)]
)
def test_a_fault_of_one_percent_is_found(dtype: Any, outputs: str | int, at_once: bool) -> None:
    """Of any layer of networks of many sizes, at any number of inputs, whatever the layer's part of the kernel.

    In float32 of five per cent, if the layer makes a twentieth of the kernel or more. A trace is held against all pairs
    of its outputs where all gradients were found ``at_once``.
    """
    missed, size = [], 0.01 if dtype == torch.float64 else 0.05
    for seed in range(24):
        torch.manual_seed(seed)
        depth = 2 + seed % 4
        module = perceptron(3, *[4 + seed % 7] * depth, 2 + seed % 5).to(dtype)
        x = torch.randn(1 + 2 * seed, 3, dtype=dtype)
        job = prepare(ExitStack(), module, x, None, outputs, "full", "1GiB", None, None, at_once=at_once)
        K, job = computation.compute(job)
        parts = [computation.compute(each) for each in check.by_output(job)]
        names = [f"{2 * (seed % (depth + 1))}.{kind}" for kind in ("weight", "bias")]
        part = ntk(module, x, outputs=outputs, parameters=names)
        if dtype == torch.float32 and part.norm() < 0.05 * K.norm():
            continue
        assert check.worst(job, K, parts) is None
        if check.worst(job, K + size * part, parts) is None:
            missed.append(seed)
    assert not missed


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_right_is_not_touched(name: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "a kernel that is right was refused"
    monkeypatch.setattr(computation.KernelJob, "generalised", lambda self, *ways: pytest.fail(refusal))
    build, inputs = MODULES[name]
    for seed in range(3):
        torch.manual_seed(seed)
        module, x = build().to(dtype), inputs(40)
        for outputs in ("full", "trace", "diagonal", 0):
            ntk(module, x, outputs=outputs)
        ntk(module, x, x[:7])


def test_weights_whose_gradients_cannot_be_pulled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while all inputs make the plan, nor later: every gradient is formed."""

    def fails(*given: Any) -> None:
        raise weights.OtherRouteError

    build, inputs = MODULES["tied"]
    torch.manual_seed(0)
    module, x = build().double(), inputs(8)
    monkeypatch.setattr(gradients, "parameter_gradients", fails)
    assert near(ntk(module, x), plain.kernel(module, x))


@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_how_often_the_module_is_called(outputs: str) -> None:
    """One sample and two for the plan, all for plan and kernel; halves, three and one for the check."""
    torch.manual_seed(0)
    module, x, sizes = perceptron(3, 6, 5, 3), torch.randn(16, 3), list[int]()
    handle = module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    ntk(module, x, outputs=outputs)
    assert sizes == [1, 2, 16, 8, 8, 3, 1]
    sizes.clear()
    ntk(module, x, x.clone(), outputs=outputs, check=False)
    assert sizes == [1, 2, 3, 16, 16]
    handle.remove()


# What is left behind


class Counting(nn.Module):
    """Changes all it can: buffers in place and anew, attributes, a cache; and fails in its fifth call, if it does."""

    calls: Tensor
    mean: Tensor
    count = itertools.count()

    def __init__(self, fails: type[BaseException] | None = None) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.ones(4))
        self.seen, self.fails, self.cache = 0, fails, {"n": 0}
        Counting.count = itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        self.seen += 1
        self.last = h
        self.cache["n"] = len(x)
        if self.fails and next(Counting.count) > 3:
            raise self.fails("on the way")
        return self.norm(torch.tanh(h)[:, :, None].expand(-1, -1, 3) * torch.arange(3.0)).flatten(1)


def state(module: Any) -> list[Any]:
    parts: list[Any] = [{key: id(value) for key, value in part.__dict__.items()} for part in module.modules()]
    parts.append(dict(module.cache))
    modes = [part.training for part in module.modules()]
    gradients = [None if each.grad is None else each.grad.clone() for each in module.parameters()]
    numbers = [each.clone() for each in module.state_dict().values()]
    return [parts, modes, gradients, numbers, torch.get_rng_state(), random.getstate(), repr(np.random.get_state())]  # noqa: NPY002


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("fails", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [ntk, lambda m, x: sgd_update(m, x, torch.zeros(len(x), 12)), explain])
def test_the_module_is_left_as_it_was(fails: type[BaseException] | None, call: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    module, x = Counting(fails), torch.randn(5, 3)
    module.norm.eval()
    (module.layer.weight.sum() + module.norm.weight.sum()).backward()  # type: ignore[no-untyped-call]
    before, given = state(module), x.clone()
    if fails is None:
        call(module, x)
    else:
        with pytest.raises((FinwidthError, KeyboardInterrupt)):
            call(module, x)
    assert equal(state(module), before)
    assert torch.equal(x, given)


def test_buffers_are_the_same_in_every_pass() -> None:
    """Spectral norm in training mode takes a step of power iteration at every call."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)
    ).double()
    x, twin = torch.randn(5, 3).double(), copy.deepcopy(module)
    assert near(ntk(module, x), plain.kernel(twin, x))


class Rescaling(nn.Module):
    """Halves its own weights at the first call, or at every call."""

    def __init__(self, *, once: bool) -> None:
        super().__init__()
        self.net, self.once, self.done = perceptron(3, 5, 2), once, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            with torch.no_grad():
                next(self.net.parameters()).div_(2)
            self.done = self.once
        return self.net(x)


def test_weights_that_a_call_changes() -> None:
    torch.manual_seed(0)
    module, x = Rescaling(once=True).double(), torch.randn(9, 3).double()
    before, twin = copy.deepcopy(module.state_dict()), copy.deepcopy(module)
    K = ntk(module, x)
    twin(x)
    assert near(K, plain.kernel(twin, x))
    assert not module.done
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    with pytest.raises(FinwidthError, match=r"in-place|inplace|differ"):
        ntk(Rescaling(once=False).double(), x)


# What is given


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_stored_images(dtype: Any) -> None:
    module, x = perceptron(3, 4, 2), torch.randint(0, 2, (5, 3))
    assert torch.equal(ntk(module, x.to(dtype)), ntk(module, x.float()))


def test_inputs_keep_their_precision() -> None:
    """The first parameter is in half precision, and the inputs go to the layers in single precision."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.tanh(m.first(x))) * m.gain.weight[0, 0].float()

    torch.manual_seed(0)
    module = Body(forward, gain=nn.Linear(1, 1, bias=False).half(), first=nn.Linear(3, 5), last=nn.Linear(5, 1))
    x = torch.randn(6, 3)
    K = ntk(module, x, parameters=lambda name, p: p.dtype == torch.float32)
    module.gain.requires_grad_(False)
    assert near(K, plain.kernel(module, x), 1e-5)


def test_autocast_is_switched_off() -> None:
    torch.manual_seed(0)
    module, x = perceptron(3, 5, 2), torch.randn(6, 3)
    right = ntk(module, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ntk(module, x), right)
        assert np.array_equal(ntk(module, x, labelled=True).to_numpy(), right.numpy())


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("o", [1, 3])
def test_squeezed_outputs(n: int, o: int) -> None:
    torch.manual_seed(0)
    net = perceptron(3, 5, o).double()
    layers = Body(lambda m, x: m.net(x).squeeze(), net=net)
    assert near(ntk(layers, torch.ones(n, 3).double()), ntk(net, torch.ones(n, 3).double()))


def checkpointed(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.utils.checkpoint.checkpoint(m.first, x.requires_grad_(), use_reentrant=True))


MISTAKES: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "script": (lambda: torch.jit.script(nn.Linear(4, 2)), lambda: torch.ones(6, 4), "compiled by torch.jit"),
    "parallel": (lambda: nn.DataParallel(nn.Linear(4, 2)), lambda: torch.ones(6, 4), "give its .module"),
    "meta": (lambda: nn.Linear(4, 2, device="meta"), lambda: torch.ones(6, 4), "to_empty"),
    "lazy": (lambda: nn.LazyLinear(2), lambda: torch.ones(6, 4), "no shape yet"),
    "batch size": (
        lambda: Body(lambda m, x: m.net(x.view(6, -1)), net=nn.Linear(4, 2)), lambda: torch.ones(6, 4), "any number"
    ),
    "reentrant": (
        lambda: Body(checkpointed, first=nn.Linear(4, 4), last=nn.Linear(4, 2)),
        lambda: torch.ones(6, 4),
        "use_reentrant=False",
    ),
    "shape": (lambda: nn.Linear(4, 2), lambda: torch.ones(6, 5), "raises RuntimeError for"),
    "tuple": (lambda: nn.Linear(4, 2), lambda: (torch.ones(6, 4), torch.ones(6, 4)), "takes 2 positional"),
    "no tensor": (lambda: nn.Linear(4, 2), lambda: "x", "give one tensor"),
    "no gradient": (
        lambda: Body(lambda m, x: m.net(x).detach(), net=nn.Linear(4, 2)), lambda: torch.ones(6, 4), "does not depend"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_told_in_one_line(name: str) -> None:
    make_module, make_x, words = MISTAKES[name]
    with pytest.raises(FinwidthError, match=words) as caught:
        ntk(make_module(), make_x())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outputs", [[], [["a"]], None, 1.0, "sum", True, np.bool_(True), -1, [True, False], {0: 1}])
def test_outputs_that_are_none(outputs: Any) -> None:
    with pytest.raises(FinwidthError, match="choose"):
        ntk(nn.Linear(4, 2), torch.ones(6, 4), outputs=outputs)


@pytest.mark.parametrize("outputs", [np.int64(1), np.uint8(1), torch.tensor(1)])
def test_outputs_may_be_any_whole_number(outputs: Any) -> None:
    assert ntk(nn.Linear(4, 2), torch.ones(6, 4), outputs=outputs).shape == (6, 6)


def test_an_overflow_of_the_change_is_told() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    for size in (1e10, 1e12):
        with pytest.raises(FinwidthError, match="overflow"):
            sgd_update(module, torch.eye(3) * size, torch.ones(3, 2), outputs="trace")


class Coarse(nn.Module):
    """A float64 module that normalises in float32, and whose samples may meet."""

    def __init__(self, coupling: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 64), nn.Linear(64, 2)
        self.coupling = coupling

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.layer_norm(self.first(x).float(), (64,)).double()
        return self.last(torch.tanh(hidden)) + self.coupling * self.first(x).mean()


def test_a_module_that_computes_in_float32_inside_is_held_to_that() -> None:
    torch.manual_seed(0)
    module, x = Coarse().double(), torch.randn(9, 6).double()
    assert near(ntk(module, x), plain.kernel(module, x), 1e-6)
    module.coupling = 1e-2
    with pytest.raises(FinwidthError, match="depends on the other samples"):
        ntk(module, x)
