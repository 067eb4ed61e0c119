"""The kernel of a ResNet, a ViT and a small GPT: settled, noisy or moving, and what changes that.

Each row is a kind of network with its own initialization, made anew 32 times: by how much K(x,x) of output 0 varies,
and by how much one step of SGD towards 1 on that input moves it, at learning rate 1/E[K]. Of networks that normalise,
whose E[K] need not be finite, both are told by quantiles, and the rate is 1/median K. Needs torchvision
and transformers; nothing is downloaded. Takes some 20 minutes on one core.

    python examples/kernel_of_real_models.py [--draws 32]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import finwidth

os.environ["HF_HUB_OFFLINE"] = "1"

Factory = Callable[[], nn.Module]


def resnet(layers: tuple[int, ...] = (2, 2, 2, 2), **options: Any) -> Factory:
    """A torchvision ResNet in eval mode, where batch normalisation at its start divides by 1."""
    from torchvision.models.resnet import BasicBlock, ResNet

    def make() -> nn.Module:
        module: nn.Module = ResNet(BasicBlock, list(layers), num_classes=10, **options)
        return module.eval()

    return make


def vit(width: int = 192, depth: int = 6) -> Factory:
    """A torchvision vision transformer; its last layer, which starts at zero, is given nn.Linear's own weights."""
    from torchvision.models import VisionTransformer

    def make() -> nn.Module:
        module: Any = VisionTransformer(32, 8, depth, max(1, width // 64), width, 4 * width, num_classes=10)
        module.heads.head.reset_parameters()
        made: nn.Module = module.eval()
        return made

    return make


class Logits(nn.Module):
    """The logits of the next word."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (N, words)."""
        logits: torch.Tensor = self.model(x).logits[:, -1]
        return logits


def gpt(width: int = 192, depth: int = 6) -> Factory:
    """A GPT-2 of 512 words."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": width, "n_layer": depth, "n_head": max(1, width // 64)}
    config = GPT2Config(vocab_size=512, n_positions=32, bos_token_id=0, eos_token_id=0, **sizes)
    return lambda: Logits(GPT2LMHeadModel(config)).eval()


def rows() -> dict[str, tuple[Factory, torch.Tensor]]:
    """What is measured, and at which input."""
    torch.manual_seed(0)
    image, text = torch.randn(3, 32, 32), torch.randint(512, (16,))
    group: dict[str, Any] = {"norm_layer": lambda n: nn.GroupNorm(8, n)}
    return {
        "ResNet-10": (resnet((1, 1, 1, 1)), image),
        "ResNet-18": (resnet(), image),
        "ResNet-34": (resnet((3, 4, 6, 3)), image),
        "ResNet-18, branches begin at 0": (resnet(zero_init_residual=True), image),
        "ResNet-18, group norm": (resnet(**group), image),
        "ResNet-34, group norm": (resnet((3, 4, 6, 3), **group), image),
        "ViT, width 64, 6 layers": (vit(64), image),
        "ViT, width 192, 6 layers": (vit(192), image),
        "ViT, width 384, 6 layers": (vit(384), image),
        "ViT, width 192, 12 layers": (vit(192, 12), image),
        "GPT, width 64, 6 layers": (gpt(64), text),
        "GPT, width 192, 6 layers": (gpt(192), text),
        "GPT, width 384, 6 layers": (gpt(384), text),
        "GPT, width 192, 12 layers": (gpt(192, 12), text),
    }


def main(draws: int) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print("| network | parameters | spread of K | movement | over the | is | seconds |\n|---|---|---|---|---|---|---|")
    for name, (factory, x) in rows().items():
        started = time.perf_counter()
        module = factory()
        found = finwidth.regime(module, x, draws=draws, factory=factory)
        size = sum(each.numel() for each in module.parameters())
        spread = f"{found.cv:.2g} ± {found.cv_error:.1g}"
        moved = f"{found.movement:.2g} ± {found.movement_error:.1g}"
        moved += f" (median {found.median:.2g})" * (found.relative_to == "mean")
        seconds = f"{time.perf_counter() - started:.0f}"
        columns = name, f"{size / 1e6:.2g} M", spread, moved, found.relative_to, found.name, seconds
        print(f"| {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=32)
    main(parser.parse_args().draws)
