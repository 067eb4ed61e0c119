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
