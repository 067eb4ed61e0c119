"""A torchvision ResNet, a vision transformer and a small GPT in their own laws: the slow tier."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import FinwidthError, module_law
from stats import same_law

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """examples/kernel_of_real_models.py, with its libraries."""
    for name in ("torchvision", "transformers"):
        if not importlib.util.find_spec(name):
            pytest.skip(f"needs {name}")
    from architectures.libraries import load

    load("torchvision")
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    monkeypatch.delitem(sys.modules, "kernel_of_real_models", raising=False)
    return importlib.import_module("kernel_of_real_models")


IMAGE, TEXT = torch.linspace(-1, 1, 3 * 16 * 16).reshape(3, 16, 16), torch.arange(8)


def test_a_resnet_is_drawn_again_as_torchvision_draws_it(example: Any) -> None:
    make = example.resnet((1, 1, 1, 1))
    torch.manual_seed(1)
    module, (weights, last) = make(), ("conv1.weight", "fc.weight")
    law = module_law.law_of_module(module)
    assert law.told.startswith("networks drawn again as its weights tell (12 layers with kaiming (fan_out) gaussian")
    made = module_law.law_of_module(module, make)
    assert made.moved == ()
    X = module_law.one_input(module, IMAGE)
    one, other = (module_law.kernels_of_draws(each, X, 460, seed) for seed, each in enumerate((law, made)))
    assert same_law(one, other)
    assert not same_law(one, 1.3 * other)
    replaced: Any = finwidth.in_law(module)
    assert replaced.told_in_law.startswith("in law: 12 layers; drawn again: 1 layer with default weights")
    named = dict(law.draw(np.random.SeedSequence(3)).named_parameters())
    assert all(not torch.equal(named[name], dict(module.named_parameters())[name]) for name in (weights, last))


def test_transformers_need_a_factory(example: Any) -> None:
    makes = {
        "ViT": (example.vit(64, 2), torch.linspace(-1, 1, 3072).reshape(3, 32, 32)),
        "GPT": (example.gpt(64, 2), TEXT),
    }
    for make, x in makes.values():
        torch.manual_seed(1)
        module = make()
        with pytest.raises(FinwidthError, match=r"how this module is drawn cannot be told: parameter .* give factory="):
            finwidth.compare(module, x, networks=3)
        found = finwidth.compare(module, x, networks=20, factory=make)
        assert "does not pass" not in found.compared
        regime = finwidth.regime(module, x, draws=8, factory=make)
        assert regime.movement > 0
        with torch.no_grad():
            next(each for each in module.parameters() if each.ndim > 1 and each.any()).mul_(1.5)
        assert "does not pass" in finwidth.compare(module, x, networks=3, factory=make).compared


ANSWERS = {
    "ResNet": ("mean", ""),
    "ViT": ("median", "it normalises (layer_norm)"),
    "GPT": ("median", "it normalises (layer_norm"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_question_of_a_practitioner_is_answered(example: Any, name: str) -> None:
    """Settled, noisy or moving, by means or medians, and what to ask next: of each with its own initialization."""
    image = torch.linspace(-1, 1, 3072).reshape(3, 32, 32)
    make, x = {
        "ResNet": (example.resnet((1, 1, 1, 1)), image),
        "ViT": (example.vit(64, 2), image),
        "GPT": (example.gpt(64, 2), TEXT),
    }[name]
    relative_to, reason = ANSWERS[name]
    done: list[int] = []
    found = finwidth.regime(make(), x, draws=16, factory=make, progress=done.append)
    assert found.relative_to == relative_to
    assert reason in found.advice
    assert found.name == "moving"
    assert "what would change this is seen by asking the same of variants, by factory=: wider layers" in found.advice
    assert done == list(range(1, 33))
    placed = finwidth.compare(make(), x, networks=20, factory=make)
    assert f"among {placed.draws} networks that factory makes" in str(placed)
    # The movement is that of plain steps of torch's own optimizer.
    moves = []
    torch.manual_seed(8)
    for _ in range(16):
        module = make()
        K = module_law.kernel_of(module, x[None])
        optimizer = torch.optim.SGD(module.parameters(), lr=found.lr)
        (0.5 * (module(x[None]) - 1).square().sum()).backward()
        optimizer.step()
        moves.append(abs(module_law.kernel_of(module, x[None]) - K) * found.lr)
    middle = np.mean(moves) if relative_to == "mean" else np.median(moves)
    assert 0.5 < middle / found.movement < 2


def test_a_vision_transformer_as_torchvision_makes_it_has_one_kernel(example: Any) -> None:
    """Its last layer begins at zero."""
    from torchvision.models import VisionTransformer

    def make() -> Any:
        return VisionTransformer(32, 8, 2, 1, 64, 128, num_classes=10).eval()

    found = finwidth.regime(make(), torch.linspace(-1, 1, 3072).reshape(3, 32, 32), draws=4, factory=make)
    assert "all draws have one kernel up to rounding" in found.advice
