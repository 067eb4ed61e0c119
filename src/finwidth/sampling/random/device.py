"""Random numbers on a torch device, by the methods of `variates.Variates` that the samplers call.

The samplers' arithmetic is written once, over NumPy or torch arrays (`generator_namespace`); the law of the draws is
the same on every device, the numbers of a seed are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finwidth.errors import FinwidthError


def generator_namespace(rng: Any) -> Any:
    """NumPy for its generators, torch for a `DeviceGenerator`: what makes the arrays that go with ``rng``."""
    return getattr(rng, "xp", np)


def as_array(rng: Any, values: Any, dtype: str) -> Any:
    """The values as an array of the kind that goes with ``rng``; raises FinwidthError unless they are numbers."""
    xp = generator_namespace(rng)
    try:
        if xp is np:
            return np.asarray(values, dtype=dtype)
        return xp.as_tensor(values, dtype=getattr(xp, dtype), device=rng.device)
    except (TypeError, ValueError, RuntimeError):
        raise FinwidthError(f"{type(values).__name__} is not an array of numbers; give one") from None


def normals(rng: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Independent N(0, 1), in float64 or float32."""
    return rng.standard_normal(shape, dtype=np.dtype(dtype) if generator_namespace(rng) is np else dtype)


class DeviceGenerator:
    """Stream number ``chunk`` of a seed on a torch device; draws are float64 tensors where nothing else is asked for.

    Examples
    --------
    >>> from finwidth.sampling.random.device import DeviceGenerator
    >>> DeviceGenerator("cpu", seed=0, chunk=0).standard_normal((2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, device: Any, seed: int, chunk: int) -> None:
        import torch

        self.xp: Any = torch
        self._generator = torch.Generator(device)
        state = np.random.SeedSequence(seed, spawn_key=(chunk,)).generate_state(1, np.uint64)
        self._generator.manual_seed(int(state[0] >> np.uint64(1)))
        self.device = self._generator.device
        self._kind = {"dtype": torch.float64, "device": self.device}

    def full(self, size: Any, value: float) -> Any:
        """A tensor of one value on the device."""
        return self.xp.full(size if isinstance(size, tuple) else (size,), value, **self._kind)

    def standard_normal(self, size: Any, dtype: str = "float64") -> Any:
        """Independent N(0, 1)."""
        kind = {"dtype": getattr(self.xp, dtype), "device": self.device}
        return self.xp.randn(size if isinstance(size, tuple) else (size,), generator=self._generator, **kind)

    def coins(self, n: int, count: int) -> Any:
        """Independent numbers of heads among ``n`` fair coins, as floats."""
        return self.xp.binomial(self.full(count, float(n)), self.full(count, 0.5), generator=self._generator)

    def chi_square(self, k: Any, less: int = 0) -> Any:
        """Independent chi2(k - less), elementwise; 0 where k <= less (torch: the least positive number)."""
        shape = (k - less).clip(0) / 2
        return 2 * self.xp._standard_gamma(shape, generator=self._generator) * (shape > 0)

    def chi_squares(self, k: int, count: int) -> Any:
        """``count`` independent chi2(k) of one number k; 0 where k <= 0."""
        return self.chi_square(self.full(count, float(k)))
