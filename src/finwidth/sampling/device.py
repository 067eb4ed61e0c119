"""Random numbers on a torch device, by the methods of `variates.Variates` that the samplers call.

The samplers' arithmetic is written once, over NumPy or torch arrays (`array_module`); the law of the draws is the same
on every device, the numbers of a seed are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finwidth.errors import FinwidthError


def array_module(rng: Any) -> Any:
    """NumPy for its generators, torch for a `DeviceGenerator`: what makes the arrays that go with ``rng``."""
    return getattr(rng, "xp", np)


def check_device(device: str) -> Any:
    """The torch device called ``device``; raises FinwidthError unless torch is installed and finds it."""
    try:
        import torch
    except ModuleNotFoundError:
        raise FinwidthError(
            f"device={device!r} needs PyTorch, which is not installed; pip install 'finwidth[torch]', or leave it out"
        ) from None
    try:
        found = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise FinwidthError(f"device={device!r} cannot be used: {reason}; give one such as 'cpu' or 'cuda:0'") from None
    return found


class DeviceGenerator:
    """Stream number ``chunk`` of a seed on a torch device; draws are float64 tensors.

    Examples
    --------
    >>> from finwidth.sampling.device import DeviceGenerator
    >>> DeviceGenerator("cpu", seed=0, chunk=0).standard_normal((2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, device: Any, seed: int, chunk: int) -> None:
        import torch

        self.xp: Any = torch
        self._generator = torch.Generator(device)
        state = np.random.SeedSequence(seed, spawn_key=(chunk,)).generate_state(1, np.uint64)
        self._generator.manual_seed(int(state[0] >> np.uint64(1)))
        self._kind = {"dtype": torch.float64, "device": self._generator.device}

    def full(self, size: Any, value: float) -> Any:
        """A tensor of one value on the device."""
        return self.xp.full(size if isinstance(size, tuple) else (size,), value, **self._kind)

    def placed(self, values: Any) -> Any:
        """The values as a tensor on the device."""
        return self.xp.as_tensor(values, **self._kind)

    def standard_normal(self, size: Any) -> Any:
        """Independent N(0, 1)."""
        return self.xp.randn(size if isinstance(size, tuple) else (size,), generator=self._generator, **self._kind)

    def coins(self, n: int, count: int) -> Any:
        """Independent numbers of heads among ``n`` fair coins, as floats."""
        return self.xp.binomial(self.full(count, float(n)), self.full(count, 0.5), generator=self._generator)

    def chi_square(self, k: Any, less: int = 0) -> Any:
        """Independent chi2(k - less), elementwise; 0 where k <= less (torch: the least positive number)."""
        shape = (k - less).clip(0) / 2
        return 2 * self.xp._standard_gamma(shape, generator=self._generator) * (shape > 0)
