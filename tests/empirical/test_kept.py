"""What modules keep from call to call, numbers that come from nowhere, and rare samples: right or refused."""

from __future__ import annotations

import copy
import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import plain_backward as plain  # noqa: E402
from finwidth.empirical import KernelOperator, explain, ntk, sgd_update  # noqa: E402
from finwidth.empirical.kernel.computation import KernelJob  # noqa: E402
from plain_backward import near  # noqa: E402
from programs import Body, perceptron  # noqa: E402

Tensor = Any


# Caches of what is made of parameters


class Cache:
    """An object of a module that is no module."""

    def __init__(self) -> None:
        self.weight: Tensor = None
        self.means = {"first": torch.zeros(5).double()}


class Caching(nn.Module):
    """A perceptron that makes its first weight once, and keeps it in one place or another."""

    kept: dict[str, Tensor] = {}  # noqa: RUF012 - that all share it is the fault

    def __init__(self, place: str) -> None:
        super().__init__()
        self.net: Any = perceptron(3, 5, 2)
        self.place, self.cache, self.nested = place, Cache(), [[Cache()]]

    @functools.cached_property
    def property(self) -> Tensor:
        """The weight."""
        return 1.0 * self.net[0].weight

    @functools.cache  # noqa: B019
    def method(self) -> Tensor:
        """The weight."""
        return 1.0 * self.net[0].weight

    def weight(self) -> Tensor:
        """Made at the first call."""
        if self.place == "property":
            return self.property
        if self.place == "method":
            return self.method()
        if self.place == "class":
            return self.kept.setdefault("weight", 1.0 * self.net[0].weight)
        cache = self.cache if self.place == "object" else self.nested[0][0]
        if cache.weight is None:
            cache.weight = 1.0 * self.net[0].weight
        cache.means["first"].mul_(0.9)
        return cache.weight

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 2)."""
        return self.net[2](torch.tanh(nn.functional.linear(x, self.weight(), self.net[0].bias)))


@pytest.mark.parametrize("place", ["object", "nested object", "property"])
def test_caches_in_reach_are_put_back(place: str) -> None:
    torch.manual_seed(0)
    module, x, y = Caching(place).double(), torch.randn(9, 3).double(), torch.randn(9, 2).double()
    K = plain.kernel(module.net, x)
    for call in (ntk, lambda m, x: KernelOperator(m, x) @ torch.eye(18).double(), explain):
        found = call(module, x)
        if call is ntk:
            assert near(found, K)
        assert module.cache.weight is None
        assert module.nested[0][0].weight is None
        assert torch.equal(module.cache.means["first"], torch.zeros(5).double())
    assert near(sgd_update(module, x, y), plain.update(module.net, x, y), 1e-5)


@pytest.mark.parametrize("package", ["mine", "torchlike.caches"])
def test_tensors_that_objects_keep_have_their_numbers_back(package: str) -> None:
    module = Caching("object").double()
    module.cache.__class__ = type("PackagedCache", (Cache,), {"__module__": package})
    module.cache.means["first"] += 1
    ntk(module, torch.randn(9, 3).double())
    assert torch.equal(module.cache.means["first"], torch.ones(5).double())


class Hiding(nn.Module):
    """Layers in a list of Python's, which torch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.InstanceNorm1d(4, track_running_stats=True)
        self.first, self.hidden = nn.Linear(3, 4), [nn.Sequential(nn.Linear(4, 4), norm).double()]

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 12)."""
        h = self.hidden[0][0](torch.tanh(self.first(x)))
        return self.hidden[0][1](h[:, :, None] * torch.arange(3.0)).flatten(1)


def test_layers_that_torch_does_not_know_of() -> None:
    torch.manual_seed(0)
    module, x = Hiding().double(), torch.randn(9, 3).double()
    K = plain.kernel(copy.deepcopy(module), x)
    before = copy.deepcopy(module.hidden[0].state_dict())
    assert near(ntk(module, x), K)
    assert all(torch.equal(each, before[name]) for name, each in module.hidden[0].state_dict().items())


@pytest.mark.parametrize("place", ["class", "method"])
def test_caches_out_of_reach_are_refused(place: str) -> None:
    """Again and again: what is kept is from the first call, and so would be the gradients."""
    torch.manual_seed(0)
    module, x = Caching(place).double(), torch.randn(9, 3).double()
    Caching.kept.clear()
    for call in (ntk, ntk, KernelOperator, lambda m, x: sgd_update(m, x, torch.zeros(9, 2).double()), explain):
        with pytest.raises(FinwidthError, match=r"keeps what it makes of its parameter 'net\.0\.weight'"):
            call(module, x)
    Caching.kept.clear()


def test_results_that_a_hook_keeps_are_no_fault() -> None:
    torch.manual_seed(0)
    module, x, seen = perceptron(3, 5, 2).double(), torch.randn(9, 3).double(), list[Tensor]()
    handle = next(module.children()).register_forward_hook(lambda *given: seen.append(given[2]))
    K = ntk(module, x)
    handle.remove()
    assert near(K, plain.kernel(module, x))


# Random numbers


class Noise:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)


GENERATORS = [np.random.default_rng(0)]
SYSTEM = random.SystemRandom()


class Noisy(nn.Module):
    """Some samples are dropped, rarely."""

    def __init__(self, draw: Callable[[Any, int], Any]) -> None:
        super().__init__()
        self.net, self.noise, self.draw = perceptron(3, 5, 2), Noise(), draw

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 2)."""
        return self.net(x) * torch.as_tensor(self.draw(self, len(x)), dtype=x.dtype)[:, None]


@pytest.mark.parametrize(
    "draw", [lambda m, n: m.noise.rng.random(n) > 1e-3, lambda m, n: GENERATORS[0].random(n) > 1e-3]
)
def test_generators_in_objects_and_lists(draw: Callable[[Any, int], Any]) -> None:
    module, x = Noisy(draw).double(), torch.randn(9, 3).double()
    for _ in range(5):
        with pytest.raises(FinwidthError, match="random numbers"):
            ntk(module, x)


def test_a_generator_without_a_state_in_reach() -> None:
    module, x = Noisy(lambda m, n: np.ones(n) * (SYSTEM is not None)).double(), torch.randn(9, 3).double()
    assert near(ntk(module, x), plain.kernel(module.net, x))


def rarely(u: Any) -> Any:
    """A factor for each sample by a number in [0, 1): one in twenty is small, and no two of these are the same."""
    return np.where(np.asarray(u) > 0.05, 1.0, u)


STATELESS: list[Callable[[Any, int], Any]] = [
    lambda m, n: rarely(np.random.default_rng().random(n)),
    lambda m, n: rarely([int.from_bytes(os.urandom(6), "big") / 2**48 for _ in range(n)]),
    lambda m, n: rarely([SYSTEM.random() for _ in range(n)]),
]


def refusals(module: Noisy, n: int, kernel: Callable[..., Tensor] = ntk, **options: Any) -> int:
    """How many of 20 kernels are refused; the others are those in which no sample is another."""
    torch.manual_seed(0)
    x = torch.randn(n, 3).double()
    right, refused = kernel(module.net, x, **options), 0
    for _ in range(20):
        try:
            assert near(kernel(module, x, **options), right)
        except FinwidthError:
            refused += 1
    return refused


@pytest.mark.parametrize("draw", STATELESS)
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_random_numbers_that_leave_no_trace(draw: Callable[[Any, int], Any], outputs: str) -> None:
    """Of fewer than 64 inputs each is passed again: no kernel comes of which a sample was another."""
    assert refusals(Noisy(draw).double(), 40, outputs=outputs) > 10


def test_random_numbers_in_a_store(tmp_path: Path) -> None:
    """Of the gradients that blocks share, once where they are found."""

    def stored(module: nn.Module, x: Tensor, **options: Any) -> Tensor:
        where = tmp_path / str(len([*tmp_path.iterdir()]))
        found = ntk(module, x, store=where, memory="100kB", workers=1, **options)
        assert len([*(where / "K").glob("c.*")]) > 2
        return torch.as_tensor(found.to_numpy())

    assert refusals(Noisy(STATELESS[0]).double(), 40, stored) > 10


@pytest.mark.parametrize("options", [{"entries": "diagonal"}, {"memory": "3KB"}])
def test_random_numbers_at_few_inputs(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of three of eight inputs are compared, and so the outputs of all, by the passes of the kernel.

    Where gradients do not agree they would be formed sample by sample, in passes that are not compared.
    """

    def refuse(*given: Any) -> Any:
        raise FinwidthError("not by uses")

    monkeypatch.setattr(KernelJob, "generalised", refuse)
    assert refusals(Noisy(STATELESS[0]).double(), 8, **options) > 5


# Samples that meet, rarely


def among_equal(m: Any, x: Tensor) -> Tensor:
    """Equal rows share one output."""
    return m.net(x) / (x[:, None] == x).all(2).sum(1)[:, None]


def after_large(m: Any, x: Tensor) -> Tensor:
    """A row after one that begins with a large number takes over its output."""
    h = m.net(x)
    large = torch.cat([torch.zeros(1), (x[:-1, 0] > 5).double()])[:, None]
    return h + large * h.roll(1, 0)


@pytest.mark.parametrize("forward", [among_equal, after_large])
@pytest.mark.parametrize("n", [40, 100])
def test_rare_pairs_that_meet(forward: Callable[..., Tensor], n: int) -> None:
    torch.manual_seed(0)
    module, x = Body(forward, net=perceptron(3, 5, 8)).double(), torch.randn(n, 3).double()
    assert near(ntk(module, x), plain.kernel(module, x))
    x[17, 0], x[18] = 6, x[9]
    with pytest.raises(FinwidthError, match="depends on the other samples"):
        ntk(module, x)


# Layers that are computed again, and tables that rescale themselves


def twice_checkpointed(m: Any, x: Tensor) -> Tensor:
    return checkpoint(m.last, checkpoint(m.first, x, use_reentrant=False), use_reentrant=False)


def test_the_first_change_through_checkpoints() -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    for first in (perceptron(3, 5, 4), normed):
        module = Body(twice_checkpointed, first=first, last=perceptron(4, 5, 2)).double()
        before = copy.deepcopy(module.state_dict())
        assert near(sgd_update(module, x, y), plain.update(module, x, y), 1e-6)
        assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("bound", [1.0, 2.5])
def test_tables_that_bound_their_rows(kind: Any, bound: float) -> None:
    """The kernel is that of the rows as they are after a call, some of which the first input may not look up."""
    torch.manual_seed(0)
    module, x = nn.Sequential(kind(9, 4, max_norm=bound), nn.Flatten(), nn.LazyLinear(2)), torch.randint(0, 9, (6, 5))
    module(x[:1])
    module = module.double()
    before, twin = copy.deepcopy(module.state_dict()), copy.deepcopy(module)
    twin(x)
    for _ in range(2):
        assert near(ntk(module, x), plain.kernel(twin, x))
        assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    with pytest.raises(FinwidthError, match="max_norm"):
        sgd_update(module, x, torch.zeros(6, 2).double())
