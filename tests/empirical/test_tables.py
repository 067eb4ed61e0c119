"""Tables that are looked up and multiplied too, batches that are sorted, and whole numbers that may be images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import plain_backward as plain  # noqa: E402
from finwidth.empirical import explain, ntk, sgd_update  # noqa: E402
from finwidth.empirical.kernel import computation, gradients, layout  # noqa: E402
from plain_backward import near  # noqa: E402
from programs import Body, perceptron, words  # noqa: E402

Tensor = Any
V = 20  # words


def with_head(m: Any, x: Tensor) -> Tensor:
    return functional.linear(m.net(m.table(x).mean(1)), m.table.weight)


def at_every_place(m: Any, x: Tensor) -> Tensor:
    """Logits at all places of a text, of which those of the last count."""
    return functional.linear(m.net(m.table(x)), m.table.weight)[:, -1]


def with_two_heads(m: Any, x: Tensor) -> Tensor:
    h = m.table(x)
    return functional.linear(h.mean(1), m.table.weight) * functional.linear(m.net(h[:, 0]), m.table.weight, m.bias.bias)


def of_bags(m: Any, x: Tensor) -> Tensor:
    bag = functional.embedding_bag(x, m.table.weight, mode="mean")
    return functional.linear(m.net(bag), m.table.weight) + functional.embedding(x, m.table.weight).sum((1, 2))[:, None]


def largest(m: Any, x: Tensor) -> Tensor:
    """The row of the head is another for every text."""
    return with_head(m, x).amax(1, keepdim=True)


def some_twice(m: Any, x: Tensor) -> Tensor:
    """One row of the head for most texts, and two for others."""
    logits = with_head(m, x)
    return torch.where(x[:, :1] < 3, logits[:, :1] * logits[:, 1:2], logits[:, :1])


def build(forward: Callable[..., Tensor], padding: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    table = nn.Embedding(V, 4, padding_idx=padding)
    return Body(forward, table=table, net=perceptron(4, 6, 4), bias=nn.Linear(1, V)).double()


TABLES = {
    "head": lambda: build(with_head),
    "places": lambda: build(at_every_place),
    "heads": lambda: build(with_two_heads),
    "bags": lambda: build(of_bags),
    "padding": lambda: build(with_head, 3),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("blocks", [False, True])
def test_a_chosen_logit_of_a_tied_table(name: str, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients by the whole table are never formed."""
    module, x = TABLES[name](), words(5)(9)
    right = plain.kernel(module, x)
    refusal = "the gradients by the whole table were formed"
    monkeypatch.setattr(gradients, "parameter_gradients", lambda *given: pytest.fail(refusal))
    if blocks:
        monkeypatch.setattr(computation, "fit_memory", lambda sizes, N, o: (min(N, 4), o))
    one = right[..., 7, 7]
    assert near(ntk(module, x, outputs=7, check=False), one)
    assert near(ntk(module, x, outputs=7), one)
    assert near(ntk(module, x[:6], x[6:], outputs=7), one[:6, 6:])
    assert near(ntk(module, x, outputs=7, entries="diagonal"), one.diagonal())
    assert near(ntk(module, x, outputs=[2, 3]), right[:, :, 2:4, 2:4])
    of_table, rest = ntk(module, x, outputs=7, by={"table": ["table.weight"]}, scale={"table.weight": 0.3})
    assert near(of_table / 0.3 + rest, one)


def test_passes_of_two_inputs_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = TABLES["head"](), words(5)(9)
    right = plain.kernel(module, x)[..., 7, 7]
    monkeypatch.setattr(layout, "_PASS_BYTES", 256)
    assert explain(module, x, outputs=7).inputs_at_once < 4
    assert near(ntk(module, x, outputs=7, check=False), right)


@pytest.mark.parametrize("forward", [largest, some_twice])
def test_rows_that_the_texts_choose(forward: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second program, the first three texts do not tell in how many rows another has a gradient."""
    module, x = build(forward), words(5)(12)
    x[:, 0] = torch.tensor([7] * 9 + [1] * 3)
    right = plain.kernel(module, x)
    assert near(ntk(module, x), right)
    monkeypatch.setattr(gradients, "_in_one_pass", lambda few, n, whole: n == 3)
    assert near(ntk(module, x), right)
    assert near(ntk(module, x, check=False), right)


def test_the_memory_of_a_chosen_logit() -> None:
    """Less than the gradients of 40 inputs by a table of 5,000 rows and 320,000 numbers take alone."""
    module, x = Body(with_head, table=nn.Embedding(5_000, 64), net=perceptron(64, 64)), torch.randint(5_000, (40, 5))
    found = explain(module, x, outputs=7)
    assert found.working_bytes < 40 * 4 * 320_000 / 3
    assert {each.parameter: each.route for each in found.routes}["table.weight"] == "products"


# Sorted batches


def by_length(m: Any, x: Tensor) -> Tensor:
    order = x[:, 0].argsort(descending=True)
    return m.last(torch.tanh(m.first(x[order])))[order.argsort()]


def tokens_by_length(m: Any, x: Tensor) -> Tensor:
    """Three tokens of each sample one after another, in a batch that is sorted."""
    order = x[:, 0].argsort()
    tokens = torch.stack([x[order], x[order].flip(1), -x[order]], 1).flatten(0, 1)
    h = m.last(torch.tanh(m.first(tokens))).unflatten(0, (-1, 3)).mean(1)
    return h[order.argsort()]


def tokens_shuffled(m: Any, x: Tensor) -> Tensor:
    """All tokens of all samples by size, whosoever they are."""
    tokens = torch.cat([x, x.flip(1), -x])
    order = tokens[:, 0].argsort()
    return m.last(torch.tanh(m.first(tokens[order])))[order.argsort()].unflatten(0, (3, -1)).mean(0)


@pytest.mark.parametrize("forward", [by_length, tokens_by_length, tokens_shuffled])
def test_a_sorted_batch_is_put_back_by_its_gradients(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient is formed."""
    torch.manual_seed(0)
    module, x = Body(forward, first=nn.Linear(4, 8), last=nn.Linear(8, 2)).double(), torch.randn(40, 4).double()
    right = plain.kernel(module, x)
    monkeypatch.setattr(gradients, "formed", lambda *given, **more: pytest.fail("a gradient was formed"))
    assert near(ntk(module, x), right)
    assert near(ntk(module, x, check=False), right)
    assert near(ntk(module, x, outputs="trace"), right.diagonal(dim1=2, dim2=3).sum(-1))
    monkeypatch.undo()
    for few in (x[:3], x):
        y = torch.randn(len(few), 2).double()
        assert near(sgd_update(module, few, y), plain.update(module, few, y), 1e-5)


# Whole numbers


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def test_words_take_no_pass_of_their_own() -> None:
    module, x, sizes = build(with_head), words(5)(16), list[int]()
    handle = module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    ntk(module, x, outputs=7)
    handle.remove()
    assert sizes == [1, 2, 16, 8, 8, 3, 1]


def test_stored_images_become_numbers_that_the_module_takes() -> None:
    torch.manual_seed(0)
    module, x = Scaled().double(), torch.randint(0, 255, (7, 2, 3), dtype=torch.uint8)
    right = ntk(module, x.double())
    assert torch.equal(ntk(module, x), right)
    assert torch.equal(ntk(module, x[:3], x[3:]), right[:3, 3:])
    assert torch.equal(ntk(module, x[:3].double(), x[3:]), right[:3, 3:])
    assert torch.equal(ntk(module, x[:3], x[3:].double()), right[:3, 3:])
