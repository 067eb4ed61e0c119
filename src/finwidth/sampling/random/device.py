"""Random numbers on a torch device, by the methods of `variates.Variates` that the samplers call.

The samplers' arithmetic is written once, over NumPy or torch arrays (`generator_namespace`); the law of the draws is
the same on every device, the numbers of a seed are not.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.networks.activations import Array
from finwidth.networks.laws import FloatArray

if TYPE_CHECKING:
    import torch


def generator_namespace(rng: object) -> ModuleType:
    """NumPy for its generators, torch for a `DeviceGenerator`: what makes the arrays that go with ``rng``."""
    return rng.xp if isinstance(rng, DeviceGenerator) else np


def as_array(rng: object, values: object, dtype: str) -> Array:
    """The values as an array of the kind that goes with ``rng``; raises FinwidthError unless they are numbers."""
    try:
        if isinstance(rng, DeviceGenerator):
            return rng.xp.as_tensor(values, dtype=getattr(rng.xp, dtype), device=rng.device)
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError):
        raise FinwidthError(f"{type(values).__name__} is not an array of numbers; give one") from None


def in_numpy(array: Array) -> FloatArray:
    """The array as one of NumPy's."""
    return np.asarray(array if isinstance(array, np.ndarray) else array.cpu())


def normals(rng: np.random.Generator | DeviceGenerator, shape: tuple[int, ...], dtype: str) -> Array:
    """Independent N(0, 1), in float64 or float32."""
    if isinstance(rng, DeviceGenerator):
        return rng.standard_normal(shape, dtype)
    return rng.standard_normal(shape, np.float32 if dtype == "float32" else np.float64)


class DeviceGenerator:
    """Stream number ``chunk`` of a seed on a torch device; draws are float64 tensors where nothing else is asked for.

    Examples
    --------
    >>> from finwidth.sampling.random.device import DeviceGenerator
    >>> DeviceGenerator("cpu", seed=0, chunk=0).standard_normal((2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, device: torch.device | str, seed: int, chunk: int) -> None:
        import torch

        self.xp: ModuleType = torch
        self._generator = torch.Generator(device)
        state = np.random.SeedSequence(seed, spawn_key=(chunk,)).generate_state(1, np.uint64)
        self._generator.manual_seed(int(state[0] >> np.uint64(1)))
        self.device = self._generator.device

    def full(self, size: int | tuple[int, ...], value: float) -> torch.Tensor:
        """A tensor of one value on the device."""
        shape = size if isinstance(size, tuple) else (size,)
        filled: torch.Tensor = self.xp.full(shape, value, dtype=self.xp.float64, device=self.device)
        return filled

    def standard_normal(self, size: int | tuple[int, ...], dtype: str = "float64") -> torch.Tensor:
        """Independent N(0, 1)."""
        kind = {"dtype": getattr(self.xp, dtype), "device": self.device}
        shape = size if isinstance(size, tuple) else (size,)
        drawn: torch.Tensor = self.xp.randn(shape, generator=self._generator, **kind)
        return drawn

    def coins(self, n: int, count: int) -> torch.Tensor:
        """Independent numbers of heads among ``n`` fair coins, as floats."""
        coins, fair = self.full(count, float(n)), self.full(count, 0.5)
        heads: torch.Tensor = self.xp.binomial(coins, fair, generator=self._generator)
        return heads

    def chi_square(self, k: torch.Tensor, less: int = 0) -> torch.Tensor:
        """Independent chi2(k - less), elementwise; 0 where k <= less (torch: the least positive number)."""
        shape = (k - less).clip(0) / 2
        gamma: torch.Tensor = self.xp._standard_gamma(shape, generator=self._generator)
        return 2 * gamma * (shape > 0)

    def chi_squares(self, k: int, count: int) -> torch.Tensor:
        """``count`` independent chi2(k) of one number k; 0 where k <= 0."""
        return self.chi_square(self.full(count, float(k)))
