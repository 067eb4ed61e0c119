"""The layers that modules of networks are made of, where torch.nn has none: scaled, residual, normalising."""

from __future__ import annotations

import torch
from torch import nn

from finwidth.networks.norm import Norm


class ScaledLinear(nn.Linear):
    """x -> factor W x + bias_scale b; the two numbers, of a network's parameterization, are not parameters."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        factor: float = 1.0,
        bias_scale: float = 1.0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.factor = factor
        self.bias_scale = bias_scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's value, shape (..., out_features); input shape (..., in_features)."""
        bias = self.bias if self.bias is None or self.bias_scale == 1 else self.bias_scale * self.bias
        return nn.functional.linear(self.factor * input, self.weight, bias)

    def extra_repr(self) -> str:
        """For `repr`."""
        scale = "" if self.bias_scale == 1 else f", bias_scale={self.bias_scale:.6g}"
        return f"{super().extra_repr()}, factor={self.factor:.6g}{scale}"


class ResidualBlock(nn.Module):
    """x -> skip x + factor branch(x)."""

    def __init__(self, branch: nn.Module, skip: float, factor: float) -> None:
        super().__init__()
        self.branch, self.skip, self.factor = branch, skip, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The stream after the block, of the shape before it."""
        stream: torch.Tensor = self.skip * x + self.factor * self.branch(x)
        return stream

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"skip={self.skip:.6g}, factor={self.factor:.6g}"


class RandomSigns(nn.Module):
    """x -> signs * x; the signs are a buffer."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("signs", torch.ones(width, dtype=dtype, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (..., width)."""
        signed: torch.Tensor = self.get_buffer("signs") * x
        return signed


class ExactNorm(nn.Module):
    """RMSNorm, or LayerNorm if ``centred``, without an epsilon; the vector zero stays zero, and has no gradient."""

    def __init__(self, width: int, *, centred: bool, trained: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.centred = centred
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype, device=device)) if trained else None
        self.bias = nn.Parameter(torch.zeros(width, dtype=dtype, device=device)) if trained and centred else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (..., width)."""
        size = x.detach().abs().amax(-1, keepdim=True)
        x = x / torch.where(size > 0, size, 1)  # which changes nothing, but that squares stay in range
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        square = x.square().mean(-1, keepdim=True)
        alive = square > 0
        x = x * (alive / torch.where(alive, square, 1).sqrt())
        x = x if self.weight is None else self.weight * x
        return x if self.bias is None else x + self.bias

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"centred={self.centred}, trained={self.weight is not None}"


def norm_module(norm: Norm, width: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A norm as a torch module: torch's own where it has an epsilon, for with 0 that makes NaN of the vector zero.

    Examples
    --------
    >>> import torch
    >>> from finwidth import Norm
    >>> from finwidth.empirical.modules.parts import norm_module
    >>> norm_module(Norm("rms", epsilon=1e-5), 8, torch.float64, torch.device("cpu"))
    RMSNorm((8,), eps=1e-05, elementwise_affine=False)
    >>> norm_module(Norm("rms"), 2, torch.float64, torch.device("cpu"))(torch.tensor([[3.0, 3.0], [0.0, 0.0]]))
    tensor([[1., 1.],
            [0., 0.]])
    """
    trained = norm.parameters == "trained"
    if not norm.epsilon:
        return ExactNorm(width, centred=norm.centred, trained=trained, dtype=dtype, device=device)
    kind = nn.LayerNorm if norm.centred else nn.RMSNorm
    return kind(width, float(norm.epsilon), trained, device=device, dtype=dtype)
