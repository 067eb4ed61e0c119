"""Draws and kernels on a torch device beside the CPU, in one run.

    python benchmarks/device.py cuda

Draws per second of `sample` and `sample_gram` on all cores by NumPy, and on the device; seconds of `ntk` of modules in
float32 on both.  Means of K by both are checked first.  Medians; the device is waited for.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from finwidth import MLP, BalancedResNet, ResNet, sample, sample_gram
from finwidth.empirical import ntk
from finwidth.networks.description import Network
from timing import seconds

X = np.random.default_rng(0).normal(size=(8, 16))
NETWORKS: dict[str, Network] = {
    "MLP 512 x 32, ReLU": MLP([16, *[512] * 32, 1]),
    "ResNet 512, 32 blocks": ResNet([16, 512, 1], 32),
    "MLP 512 x 32, RMSNorm": MLP([16, *[512] * 32, 1], norm="rms"),
    "ResNet 512, 32 blocks, RMSNorm": ResNet([16, 512, 1], 32, norm="rms"),
}
SEVERAL: dict[str, Network] = {
    "MLP 512 x 8, GELU": MLP([16, *[512] * 8, 1], activation="gelu"),
    "ResNet 512, 4 blocks, ReLU": ResNet([16, 512, 1], 4),
    "BalancedResNet 512, 8 blocks": BalancedResNet([16, 512, 1], 8),
    "pre-norm ResNet 512, 4 blocks": ResNet([16, 512, 1], 4, norm="layer"),
}
MODULES: dict[str, tuple[nn.Module, torch.Tensor, str]] = {
    "MLP 784-1024x3-10, 1,000 samples, trace": (
        nn.Sequential(
            nn.Linear(784, 1024),
            nn.ReLU(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Linear(1024, 10),
        ),
        torch.randn(1000, 784),
        "trace",
    ),
    "CNN of 4 layers, 64 channels, 32 x 32, 64 samples, full": (
        nn.Sequential(
            *[part for i in range(4) for part in (nn.Conv2d(64 if i else 3, 64, 3, padding=1), nn.ReLU())],
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        ),
        torch.randn(64, 3, 32, 32),
        "full",
    ),
    "transformer of 4 layers, 256 wide, 64 words, 32 samples, trace": (
        nn.Sequential(
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True), 4, enable_nested_tensor=False
            ),
            nn.Flatten(),
            nn.Linear(64 * 256, 10),
        ).eval(),
        torch.randn(32, 64, 256),
        "trace",
    ),
}


def finished(run: Callable[[], object]) -> Callable[[], object]:
    """A run with all that it has left on the device."""

    def whole() -> object:
        found = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return found

    return whole


def rates(name: str, draw: Callable[..., object], draws: tuple[int, int]) -> None:
    """A row: draws per second here and there."""
    device = sys.argv[1]
    here = draws[0] / seconds(lambda: draw(draws[0]))
    draw(1000, device=device)
    there = draws[1] / seconds(finished(lambda: draw(draws[1], device=device)))
    print(f"| {name} | {here:,.0f} | {there:,.0f} | {there / here:.1f} |", flush=True)


def kernels(name: str) -> None:
    """A row: seconds of a kernel here and there."""
    module, x, outputs = MODULES[name]
    placed, inputs = copy.deepcopy(module).to(sys.argv[1]), x.to(sys.argv[1])
    found, other = ntk(module, x, outputs=outputs), ntk(placed, inputs, outputs=outputs).cpu()
    here = seconds(lambda: ntk(module, x, outputs=outputs))
    there = seconds(finished(lambda: ntk(placed, inputs, outputs=outputs)))
    difference = float((found - other).abs().max() / found.abs().max())
    print(f"| {name} | {here:.2f} | {there:.3f} | {here / there:.1f} | {difference:.1e} |", flush=True)


def check(net: Network) -> None:
    """K of both has one mean."""
    ours, theirs = (sample(net, X[0], 200_000, device=device).K.to_numpy() for device in (None, sys.argv[1]))
    error = np.hypot(ours.std(), theirs.std()) / np.sqrt(200_000)
    if abs(ours.mean() - theirs.mean()) > 6 * error:
        raise AssertionError(f"{net}: {ours.mean()} and {theirs.mean()}")


def main() -> None:
    """Print the tables."""
    device = sys.argv[1]
    card = torch.cuda.get_device_name() if device.startswith("cuda") else device
    print(f"{card}; {os.cpu_count()} cores; torch {torch.__version__}, NumPy {np.__version__}\n")
    check(MLP([16, 6, 5, 1]))
    check(ResNet([16, 6, 1], 2, 5))
    print("| draws/s | CPU | device | times |\n|---|---|---|---|")
    for name, net in NETWORKS.items():
        rates(name, lambda draws, net=net, **options: sample(net, X[0], draws, **options), (20_000, 2_000_000))
    for name, net in SEVERAL.items():
        rates(
            f"{name}, 8 inputs",
            lambda draws, net=net, **options: sample_gram(net, X, draws, **options),
            (1000, 20_000),
        )
    print("\n| seconds | CPU | device | times | largest difference, of the largest entry |\n|---|---|---|---|---|")
    for name in MODULES:
        kernels(name)


if __name__ == "__main__":
    main()
