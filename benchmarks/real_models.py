"""Real models at small sizes: formed kernel, its trace, K v and ten eigenvalues, beside torch.func and a plain loop.

    OMP_NUM_THREADS=1 python benchmarks/real_models.py [--models NAME ...]

Needs the libraries of the group "zoo" (docs/zoo.md); models have random weights, from their configuration. float32.
Every way's kernel, trace and product are first held against autograd in float64, at two inputs, and the eigenvalues of
all ways against each other. Each model is a process of its own. Times are of the processor, all threads together, which
other work on the machine changes least: medians of three, or one where it takes over a second. K v is the first
product, its operator made and checked. Peak memory is that of the first run above what the process held before;
promised is what `explain` and the operator reckon with. Both include the result.

"torch.func" forms the Jacobian by vmap of jacrev, and K of it parameter by parameter; its products are vjp and jvp, and
its eigenvalues SciPy's eigsh of these. "loop" is a backward pass for each sample and output, then K, and the
eigenvalues of the whole K.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray  # noqa: F401 - loaded before memory is measured
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import finwidth
from finwidth.empirical import KernelOperator, explain, ntk
from timing import forget_peak, status_memory

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from architectures import truth
from architectures.libraries import load

Tensor = torch.Tensor
WORDS = {"vocab_size": 1000, "num_hidden_layers": 4, "num_attention_heads": 4}
LONGEST = 1.0  # seconds after which nothing is repeated
QUANTITIES = {
    "formed": "K, all pairs of outputs",
    "trace": "its trace over outputs",
    "product": "K v",
    "again": "another K v",
    "ten": "ten eigenvalues",
}


class Read(nn.Module):
    """Some numbers of what a model of transformers returns for words."""

    def __init__(self, model: nn.Module, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.read = model, read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.model(input_ids=x))


class Pinn(nn.Module):
    """u and the residual -u'' - u^3 of its equation, at every point."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        self.u = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        def slope(u: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda z: torch.func.vjp(u, z)[1](torch.ones_like(z))[0]

        u: Tensor = self.u(x)
        return torch.cat([u, -slope(slope(self.u))(x) - u**3], dim=1)


def resnet18() -> nn.Module:
    model: nn.Module = load("torchvision").models.resnet18(weights=None, num_classes=3)
    return model


def vit() -> nn.Module:
    module = load("timm").models.vision_transformer.VisionTransformer
    model: nn.Module = module(img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=4, num_classes=10)
    return model


def bert() -> nn.Module:
    library = load("transformers")
    config = library.BertConfig(**WORDS, hidden_size=64, intermediate_size=256, num_labels=3)
    return Read(library.BertForSequenceClassification(config), lambda found: found.logits)


def gpt2() -> nn.Module:
    library = load("transformers")
    given = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
    config = library.GPT2Config(vocab_size=1000, use_cache=False, **given)
    return Read(library.GPT2LMHeadModel(config), lambda found: found.logits[:, -1, :10])


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32)


def words(n: int) -> Tensor:
    return torch.randint(3, 1000, (n, 32))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], int, str]] = {
    "resnet18": (resnet18, images, 8, "32 x 32 images, 3 classes"),
    "ViT": (vit, images, 16, "4 blocks of 64, 10 classes"),
    "BERT": (bert, words, 16, "4 blocks of 64, 32 words, 3 classes"),
    "GPT-2": (gpt2, words, 16, "4 blocks of 64, 32 words, 10 logits"),
    "PINN": (Pinn, lambda n: 2 * torch.rand(n, 1) - 1, 256, "64-64, u and its residual"),
}


def subject(name: str, n: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A model in eval mode, with the averages of one batch, and inputs."""
    build, inputs, _, _ = MODELS[name]
    torch.manual_seed(0)
    module, x = build(), inputs(max(n, 8))
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    for each in norms:
        each.momentum = 1.0
    if norms:
        with torch.no_grad():
            module.train()(x)
    module = module.eval().to(dtype)
    return module, x[:n].to(dtype) if x.is_floating_point() else x[:n]


# ---- ways


class Finwidth:
    """`ntk` and `KernelOperator`."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x

    def formed(self) -> Tensor:
        return ntk(self.module, self.x)

    def trace(self) -> Tensor:
        return ntk(self.module, self.x, outputs="trace")

    def product(self, v: Tensor) -> Tensor:
        self.K = KernelOperator(self.module, self.x)
        return self.again(v)

    def again(self, v: Tensor) -> Tensor:
        found: Tensor = self.K @ v
        return found

    def ten(self, v: Tensor) -> Any:
        return KernelOperator(self.module, self.x).eigenpairs(10).eigenvalue.to_numpy()

    def promised(self, quantity: str) -> float | None:
        """MiB, the result included; None of eigenvalues, which are many products and what SciPy keeps."""
        if quantity in {"formed", "trace"}:
            told = explain(self.module, self.x, outputs="full" if quantity == "formed" else "trace")
            return (told.kernel_bytes + told.working_bytes) / 2**20
        if quantity == "ten":
            return None
        numbers = 6 * self.K._parameter_numbers + self.K._inputs_at_once() * self.K._numbers_of_a_pass
        return float(4 * (numbers + 3 * self.K.shape[0]) / 2**20)


class TorchFunc:
    """vmap of jacrev; vjp and jvp."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x
        self.parameters = {name: each.detach() for name, each in truth.trained(module).items()}

    def _values(self, given: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(self.module, given, (x,))
        return found

    def _jacobians(self) -> list[Tensor]:
        """Of every parameter, shape (N, O, numbers)."""
        one = torch.func.jacrev(lambda given, sample: self._values(given, sample[None])[0])
        return [each.flatten(2) for each in torch.func.vmap(one, (None, 0))(self.parameters, self.x).values()]

    def formed(self) -> Tensor:
        return _pairs(self._jacobians())

    def trace(self) -> Tensor:
        return _traces(self._jacobians())

    def product(self, v: Tensor) -> Tensor:
        def outputs(given: dict[str, Tensor]) -> Tensor:
            return self._values(given, self.x)

        with sdpa_kernel(SDPBackend.MATH):  # no other attention has a forward derivative
            back = torch.func.vjp(outputs, self.parameters)[1]
            found: Tensor = torch.func.jvp(outputs, (self.parameters,), back(v))[1]
        return found

    again = product

    def ten(self, v: Tensor) -> Any:
        def product(u: Any) -> Any:
            return self.product(torch.from_numpy(u).to(v).reshape(v.shape)).flatten().numpy()

        whole = LinearOperator((v.numel(),) * 2, product, dtype=np.float32)
        return eigsh(whole, 10, which="LA", tol=1e-4)[0][::-1]


class Loop:
    """A backward pass for each sample and output."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x

    def _jacobians(self) -> list[Tensor]:
        parameters = list(truth.trained(self.module).values())
        rows: list[list[Tensor]] = [[] for _ in parameters]
        for sample in torch.split(self.x, 1):
            for value in self.module(sample)[0]:
                found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
                for row, each in zip(rows, found, strict=True):
                    row.append(each.flatten())
        return [torch.stack(rows.pop(0)).view(len(self.x), -1, each.numel()) for each in parameters]

    def formed(self) -> Tensor:
        return _pairs(self._jacobians())

    def trace(self) -> Tensor:
        return _traces(self._jacobians())

    def ten(self, v: Tensor) -> Any:
        K = self.formed().permute(0, 2, 1, 3).reshape(v.numel(), -1)
        return torch.linalg.eigvalsh(K.detach()).numpy()[::-1][:10]


def _pairs(J: list[Tensor]) -> Tensor:
    """K, shape (N, N, O, O)."""
    N, o = J[0].shape[:2]
    K = sum((rows := each.flatten(0, 1)) @ rows.T for each in J)
    assert isinstance(K, Tensor)
    return K.view(N, o, N, o).permute(0, 2, 1, 3)


def _traces(J: list[Tensor]) -> Tensor:
    K = sum((rows := each.flatten(1)) @ rows.T for each in J)
    assert isinstance(K, Tensor)
    return K


WAYS: dict[str, type[Finwidth | TorchFunc | Loop]] = {"finwidth": Finwidth, "torch.func": TorchFunc, "loop": Loop}


# ---- measurements


def check(name: str, way: str) -> None:
    """Hold a way against autograd in float64."""
    module, x = subject(name, 2, torch.float64)
    right = truth.kernel(J := truth.jacobians(module, x), dict.fromkeys(J, 1.0))
    v = torch.sin(torch.arange(right.shape[0] * right.shape[2]).double()).view(len(x), -1)
    own = WAYS[way](*subject(name, 2, torch.float64))
    wanted = {"formed": right, "trace": right.diagonal(dim1=2, dim2=3).sum(-1)}
    wanted["product"] = torch.einsum("abij,bj->ai", right, v)
    for quantity, each in wanted.items():
        if hasattr(own, quantity):
            found = getattr(own, quantity)(*([v] if quantity == "product" else []))
            error = float((found - each).abs().max() / each.abs().max())
            if not error < 1e-9:
                sys.exit(f"{name}, {way}: {quantity} is wrong by {error:.1e}")


def measure(name: str, way: str) -> dict[str, Any]:
    """Seconds and MiB of every quantity, in this process."""
    check(name, way)
    module, x = subject(name, MODELS[name][2], torch.float32)
    WAYS[way](module, x[:2]).formed()  # what is loaded when it is first used
    own, outputs = WAYS[way](module, x), module(x[:2]).shape[1]
    v = torch.sin(torch.arange(float(len(x) * outputs))).view(len(x), -1)
    found: dict[str, Any] = {"numbers": sum(each.numel() for each in module.parameters()), "outputs": outputs}
    for quantity in QUANTITIES:
        compute = getattr(own, quantity, None)
        if compute is None:
            continue
        given = [] if quantity in {"formed", "trace"} else [v]
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back, so that it counts when it is used again
        forget_peak()
        results: list[Any] = []
        before, times = status_memory("VmRSS"), [_seconds(compute, given, results)]
        peak = status_memory("VmHWM") - before
        times += [_seconds(compute, given, results) for _ in range(2 if times[0] < LONGEST else 0)]
        promised = own.promised(quantity) if isinstance(own, Finwidth) else None
        found[quantity] = {"seconds": statistics.median(times), "peak": peak, "promised": promised}
        if quantity == "ten":
            found["eigenvalues"] = [float(each) for each in results[-1]]
    return found


def _seconds(compute: Callable[..., object], given: list[Tensor], results: list[Any]) -> float:
    start = time.process_time()
    results[:] = [compute(*given)]
    return time.process_time() - start


def row(name: str, quantity: str, found: dict[str, dict[str, Any]]) -> str:
    """A line of the table: seconds of every way, the fastest peer's over finwidth's, and memory."""
    cells = {way: each.get(quantity) for way, each in found.items()}
    times = [f"{cell['seconds']:.3g}" if cell else "-" for cell in cells.values()]
    peers = [cell["seconds"] for way, cell in cells.items() if cell and way != "finwidth"]
    own = cells["finwidth"]
    assert own is not None
    ratio = f"{min(peers) / own['seconds']:.1f}" if peers else "-"
    peaks = [f"{cell['peak']:.0f}" if cell else "-" for cell in cells.values()]
    promised = "-" if own["promised"] is None else f"{own['promised']:.0f}"
    return f"| {' | '.join([name, QUANTITIES[quantity], *times, ratio, promised, *peaks])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # those of other libraries
    if given.one:
        print(json.dumps({way: measure(given.one, way) for way in WAYS}))
        return
    libraries = ", ".join(f"{each} {version(each)}" for each in ("torch", "torchvision", "timm", "transformers"))
    print(f"finwidth {finwidth.__version__}, Python {platform.python_version()}, {libraries}, float32")
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    seconds, peaks = (" | ".join(f"{way}, {unit}" for way in WAYS) for unit in ("s", "MiB"))
    print(f"| model | quantity | {seconds} | fastest peer / finwidth | promised, MiB | {peaks} |")
    print("|---|---|" + "--:|" * (2 * len(WAYS) + 2))
    for name in given.models:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        about = found["finwidth"]
        for way, each in found.items():
            if not np.allclose(
                each["eigenvalues"], about["eigenvalues"], rtol=1e-3, atol=1e-4 * about["eigenvalues"][0]
            ):
                sys.exit(f"{name}, {way}: the eigenvalues are not those of finwidth")
        for quantity in QUANTITIES:
            told = f"{name}, N = {MODELS[name][2]}" if quantity == "formed" else ""
            print(row(told, quantity, found), flush=True)
        print(f"<!-- {name}: {MODELS[name][3]}; {about['numbers']:,} parameters, {about['outputs']} outputs -->")


if __name__ == "__main__":
    main()
