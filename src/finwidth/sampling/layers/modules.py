r"""Layers for torch modules whose Gaussian weights are never formed: outputs, gradients and training are exact in law.

W_0 has independent N(0, gain / fan_in) entries and is revealed along the inputs of the forward passes (on the right)
and the output gradients of the backward passes (on the left) only; the weights W_t at any time, their gradients and
momentum are `Combination`s of it (docs/matrix-free-layers.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, NoReturn, Protocol

import torch
from torch import nn
from torch.nn import functional

from finwidth import arguments
from finwidth.arguments import check_device, count
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount
from finwidth.sampling.layers.tensor import MatrixFreeTensor, refuse
from finwidth.sampling.lazy_matrix.combination import Combination, SharedMatrix
from finwidth.sampling.lazy_matrix.gaussian import transpose
from finwidth.sampling.random.device import DeviceGenerator

_LARGEST = 2**60  # weights of a layer; torch counts the bytes of a tensor in 63 bits
_LARGEST_SIDE = 2**20  # of a convolution's kernel, and what else moves it
_NO_SIDE = {"kernel_size": (1,), "dilation": (1,), "padding": (0,), "stride": (1,)}  # along a side of length 1


class _Context(Protocol):
    """What a forward pass keeps for the backward pass."""

    coordinates: torch.Tensor | None
    saved_tensors: tuple[torch.Tensor, MatrixFreeTensor]
    needs_input_grad: tuple[bool, bool]

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Keep tensors, which torch then guards against changes in place."""


class _Product(torch.autograd.Function):
    """X W^T for rows X, (draws or 1, m, in), and the weights W of a layer; gradients D W, and D^T X as factors."""

    @staticmethod
    def forward(ctx: _Context, X: torch.Tensor, weight: MatrixFreeTensor) -> torch.Tensor:
        matrix = weight.combination.matrix
        matrix.materialize_if_smaller(X.shape[1])
        a = matrix.right(X)
        ctx.save_for_backward(X, weight)
        ctx.coordinates = None if matrix.materialized else a
        product: torch.Tensor = weight.combination.from_right(a)
        return product

    @staticmethod
    def backward(ctx: _Context, D: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if torch.is_grad_enabled():
            raise FinwidthError(
                "create_graph=True, a second derivative through a matrix-free layer, is not possible: its backward "
                "pass reveals weights; take first derivatives, or use nn.Linear"
            )
        X, weight = ctx.saved_tensors
        matrix = weight.combination.matrix
        matrix.materialize_if_smaller(D.shape[1])
        j = matrix.left(D)
        # Materialized, maybe since the forward pass: then the coordinates are the entries.
        a = X if matrix.materialized or ctx.coordinates is None else ctx.coordinates
        wanted, trained = ctx.needs_input_grad
        pulled = weight.combination.from_left(j) if wanted else None
        return pulled, MatrixFreeTensor(Combination(matrix, core=transpose(j) @ a)) if trained else None


class _MatrixFreeLayer(nn.Module):
    """Common to the layers: rows in, rows out."""

    weight: MatrixFreeTensor
    bias: nn.Parameter | None

    def __init__(  # noqa: PLR0917
        self,
        fan_in: int,
        fan_out: int,
        gain: float,
        bias: bool,
        draws: int | None,
        memory: float | str | None,
        device: str | torch.device,
        dtype: torch.dtype | None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        wanted = "a positive number, fan-in times the variance of a weight"
        self.gain: float = arguments.real("gain", gain, wanted, lambda value: 0 < value < math.inf)
        self.draws: int | None = None if draws is None else count("draws", draws)
        draws, bias = self.draws, arguments.flag("bias", bias)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise FinwidthError(f"dtype is {shown(dtype)}; give torch.float32 or torch.float64")
        one = (groups * fan_in + fan_out) * (draws or 1)  # numbers for each vector it meets
        what = f"a layer of {amount(fan_out)} x {amount(fan_in)} weights that meets one vector"
        afford(4 * one, what, "take a narrower layer", memory)
        if fan_in * fan_out * (draws or 1) > _LARGEST:
            raise FinwidthError(f"a layer of {fan_in} by {fan_out} weights is too large; give at most {_LARGEST:.0e}")
        kind = str(dtype or torch.get_default_dtype()).removeprefix("torch.")
        generator = DeviceGenerator(check_device(device), int(torch.randint(2**62, ())), 0)
        deviation = (self.gain / fan_in) ** 0.5
        initial: SharedMatrix[torch.Tensor] = SharedMatrix(
            fan_out // groups,
            fan_in,
            generator,
            deviation=deviation,
            draws=draws,
            groups=groups,
            memory=memory,
            dtype=kind,
        )
        self.register_parameter("weight", nn.Parameter(MatrixFreeTensor(Combination(initial, scale=1.0))))
        lead = () if draws is None else (draws,)
        zeros = torch.zeros(*lead, fan_out, dtype=self.weight.dtype, device=self.weight.device)
        self.bias = nn.Parameter(zeros) if bias else None

    def _check(self, x: torch.Tensor, shape: str, *lengths: int | None) -> None:
        """Refuse an input that does not end in these lengths (None: any), or is not for the draws."""
        lead = () if self.draws is None else (self.draws,)
        given = tuple(x.shape) if isinstance(x, torch.Tensor) else ()
        tail = given[len(lead) :][-len(lengths) :]
        fits = given[: len(lead)] == lead and len(tail) == len(lengths) and 0 not in given
        if not fits or any(length not in {None, found} for length, found in zip(lengths, tail, strict=True)):
            draws = f"{self.draws}, " if lead else ""
            advice = f" (the same inputs for all draws: x.expand({self.draws}, *x.shape))" if lead else ""
            layer, found = type(self).__name__, given or type(x).__name__
            raise FinwidthError(f"the input of {layer} is {found}; give a tensor ({draws}{shape}){advice}")
        if (x.dtype, x.device) != (self.weight.dtype, self.weight.device):
            raise FinwidthError(
                f"the input is {x.dtype} on {x.device} and the layer {self.weight.dtype} on {self.weight.device}; "
                "convert the input, or give dtype= and device= to the layer"
            )

    def _rows(self, X: torch.Tensor) -> torch.Tensor:
        """X W^T + b for X of shape (..., fan-in); the first axes are over draws and groups, if there are any."""
        matrix = self.weight.combination.matrix
        rows = X.reshape((matrix.draws or 1) * matrix.groups, -1, X.shape[-1])
        Y: torch.Tensor = _Product.apply(rows, self.weight)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            Y = Y + self.bias.reshape(-1, 1, Y.shape[-1])
        return Y.reshape(*X.shape[:-1], Y.shape[-1])

    def _save_to_state_dict(self, *_: object) -> NoReturn:
        refuse("the state_dict")

    def _load_from_state_dict(self, *_: object) -> NoReturn:
        refuse("loading")


class MatrixFreeLinear(_MatrixFreeLayer):
    r"""nn.Linear with independent N(0, gain / in_features) weights that are never formed: exact in law at any width.

    Outputs, gradients with respect to inputs and biases, and training by torch.optim.SGD have exactly the law that
    they have with ``nn.Linear`` after ``nn.init.normal_(weight, std=(gain / in_features) ** 0.5)`` and a zero bias;
    the layer may be used several times in a forward pass. k vectors met on either side, inputs forward and output
    gradients backward, take 2 k (in_features + out_features) numbers, until the matrix itself would be no larger;
    then it is materialized. ``torch.manual_seed`` before the layer is made fixes its numbers.

    Parameters
    ----------
    in_features, out_features
        Widths.
    gain
        in_features times the variance of a weight; positive.
    bias
        Whether to add a bias, a parameter that starts at 0.
    draws
        How many independent layers to follow at once. Then inputs are (draws, ..., in_features), biases
        (draws, out_features), and a loss summed over the draws trains each by itself.
    memory
        What the layer may use for its weights, in bytes or such as ``"4GiB"``; more is refused. By default what a
        product adds has to fit three quarters of what there is then (`finwidth.memory`).
    device, dtype
        As in torch. How far products agree with each other: `DeferredGaussianMatrix`.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, inputs do not fit or are not finite, the memory does not suffice, or something
        needs the weights' entries: another optimizer than SGD, reading them, a copy, ``state_dict``.

    Examples
    --------
    >>> import torch
    >>> from finwidth import MatrixFreeLinear
    >>> layer = MatrixFreeLinear(10**6, 10**6, gain=2, dtype=torch.float64)
    >>> x = torch.randn(3, 10**6, dtype=torch.float64)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6, momentum=0.9)
    >>> layer(x).relu().mean().backward()
    >>> optimizer.step()
    >>> layer.weight
    MatrixFreeTensor(shape=(1000000, 1000000), dtype=torch.float64, met 3 left, 3 right)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        gain: float = 1.0,
        bias: bool = True,
        draws: int | None = None,
        memory: float | str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        fan_in, fan_out = count("in_features", in_features), count("out_features", out_features)
        super().__init__(fan_in, fan_out, gain, bias, draws, memory, device, dtype)
        self.in_features, self.out_features = fan_in, fan_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X W^T + b, shape (..., out_features)."""
        self._check(x, f"..., {self.in_features}", self.in_features)
        return self._rows(x)

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"{self.in_features}, {self.out_features}, gain={self.gain:g}, bias={self.bias is not None}"


class _MatrixFreeConvolution(_MatrixFreeLayer):
    """Common to convolutions along one side or two; what has one side is an image of height 1."""

    sides: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        gain: float = 1.0,
        bias: bool = True,
        draws: int | None = None,
        memory: float | str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        sides = len(self.sides)
        unfold = {
            "kernel_size": _side_numbers("kernel_size", kernel_size, 1, sides),
            "dilation": _side_numbers("dilation", dilation, 1, sides),
            "padding": _side_numbers("padding", padding, 0, sides),
            "stride": _side_numbers("stride", stride, 1, sides),
        }
        channels, fan_out, groups = (
            count("in_channels", in_channels),
            count("out_channels", out_channels),
            count("groups", groups),
        )
        if channels % groups or fan_out % groups:
            raise FinwidthError(f"groups is {groups}; give a divisor of the channels, {channels} and {fan_out}")
        fan_in = channels // groups * math.prod(unfold["kernel_size"])
        super().__init__(fan_in, fan_out, gain, bias, draws, memory, device, dtype, groups)
        self.in_channels, self.out_channels, self.groups, self._unfold = channels, fan_out, groups, unfold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution, shape (..., out_channels, positions along each side)."""
        self._check(x, f"..., {self.in_channels}, {', '.join(self.sides)}", self.in_channels, *[None] * len(self.sides))
        images, lead = x.shape[-len(self.sides) :], x.shape[: -len(self.sides) - 1]
        size = [self._positions(n, side) for side, n in enumerate(images)]
        if min(size) < 1:
            raise FinwidthError(f"images of {tuple(images)} are smaller than the kernel {self._unfold}")
        flat = (1,) * (2 - len(self.sides))
        unfold = {name: (*_NO_SIDE[name] * len(flat), *numbers) for name, numbers in self._unfold.items()}
        patches = functional.unfold(x.reshape(-1, self.in_channels, *flat, *images), **unfold)
        by_group = patches.reshape(self.draws or 1, -1, self.groups, patches.shape[1] // self.groups, patches.shape[-1])
        Y = self._rows(by_group.permute(0, 2, 1, 4, 3)).permute(0, 2, 1, 4, 3)
        return Y.reshape(*lead, self.out_channels, *size)

    def _positions(self, n: int, side: int) -> int:
        """Positions along one side."""
        kernel, dilation, padding, stride = (numbers[side] for numbers in self._unfold.values())
        return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

    def extra_repr(self) -> str:
        """For `repr`."""
        options = ", ".join(f"{name}={numbers}" for name, numbers in self._unfold.items())
        options += f", groups={self.groups}" * (self.groups > 1)
        return f"{self.in_channels}, {self.out_channels}, {options}, gain={self.gain:g}, bias={self.bias is not None}"


class MatrixFreeConv2d(_MatrixFreeConvolution):
    r"""nn.Conv2d with independent N(0, gain / fan-in) weights that are never formed.

    fan-in = in_channels / groups kh kw. Its weight is a matrix (out_channels, fan-in), one for each group of channels,
    that meets patches of the input, one vector for each position and image, so that it pays where channels outnumber
    positions. All else is as for `MatrixFreeLinear`.

    Parameters
    ----------
    in_channels, out_channels
        Numbers of channels.
    kernel_size, stride, padding, dilation
        As in nn.Conv2d, numbers or pairs; zeros are padded.
    groups
        As in nn.Conv2d.
    gain, bias, draws, memory, device, dtype
        As for `MatrixFreeLinear`; inputs are (..., in_channels, height, width), the first axis that of draws where
        there are any.

    Raises
    ------
    FinwidthError
        As for `MatrixFreeLinear`.

    Examples
    --------
    >>> import torch
    >>> from finwidth import MatrixFreeConv2d
    >>> MatrixFreeConv2d(3, 10**5, 3, padding=1)(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 100000, 4, 4])
    """

    sides = ("height", "width")


class MatrixFreeConv1d(_MatrixFreeConvolution):
    r"""nn.Conv1d with independent N(0, gain / fan-in) weights that are never formed, as `MatrixFreeConv2d`.

    Parameters
    ----------
    in_channels, out_channels
        Numbers of channels.
    kernel_size, stride, padding, dilation, groups
        As in nn.Conv1d; zeros are padded.
    gain, bias, draws, memory, device, dtype
        As for `MatrixFreeLinear`; inputs are (..., in_channels, length), the first axis that of draws where there are
        any.

    Raises
    ------
    FinwidthError
        As for `MatrixFreeLinear`.

    Examples
    --------
    >>> import torch
    >>> from finwidth import MatrixFreeConv1d
    >>> MatrixFreeConv1d(3, 10**5, 3, padding=1, dilation=2)(torch.ones(2, 3, 8)).shape
    torch.Size([2, 100000, 6])
    """

    sides = ("length",)


def _side_numbers(name: str, given: object, least: int, sides: int) -> tuple[int, ...]:
    """A whole number for each side."""
    numbers = given if isinstance(given, tuple) else (given,) * sides
    checked = [number for number in map(arguments.index, numbers) if number is not None]
    if (len(numbers), len(checked)) != (sides, sides) or not all(least <= each <= _LARGEST_SIDE for each in checked):
        raise FinwidthError(
            f"{name} is {shown(given)}; give a whole number of at least {least}{', or two' * (sides == 2)}"
        )
    return tuple(checked)


def tangent_kernel(outputs: torch.Tensor, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    r"""The neural tangent kernel K_ab = sum_p <d outputs_a / dp, d outputs_b / dp> of a module with matrix-free layers.

    For each parameter p by itself; of a `MatrixFreeLinear` or a convolution, it is the kernel of its weights,
    (A A^T) * (J J^T). It takes one backward pass for each output, which meets left vectors.

    Parameters
    ----------
    outputs
        Shape (m,), or (draws, m) for modules that follow several draws, with parameters (draws, ...).
    parameters
        Those of the kernel, ``module.parameters()`` or some of them.

    Returns
    -------
    torch.Tensor
        Shape (m, m) or (draws, m, m).

    Examples
    --------
    >>> import torch
    >>> from finwidth import MatrixFreeLinear
    >>> from finwidth.sampling.layers.modules import tangent_kernel
    >>> readout = MatrixFreeLinear(10**6, 1, dtype=torch.float64)
    >>> x = torch.ones(2, 10**6, dtype=torch.float64) / 1000
    >>> tangent_kernel(readout(x).squeeze(1), readout.parameters())
    tensor([[2.0000, 2.0000],
            [2.0000, 2.0000]], dtype=torch.float64)
    """
    wanted = "a tensor of shape (m,), or (draws, m), of modules with matrix-free layers"
    if not isinstance(outputs, torch.Tensor) or outputs.layout != torch.strided or outputs.is_nested:
        raise FinwidthError(f"the outputs are {shown(outputs)}; give {wanted}")
    if outputs.ndim not in {1, 2} or not outputs.is_floating_point():
        raise FinwidthError(f"the outputs are {outputs.dtype} of shape {tuple(outputs.shape)}; give {wanted}")
    given = _counted(parameters)
    if not given:
        raise FinwidthError("no parameter counts: none of those given requires a gradient; give module.parameters()")
    batched = outputs[None] if outputs.ndim == 1 else outputs
    if not batched.requires_grad and batched.numel():
        raise FinwidthError("the outputs depend on no parameter by differentiable operations; do not detach them")
    if outputs.ndim == 2 and any(_draws(each) != len(outputs) for each in given):
        raise FinwidthError(
            f"the outputs have shape {tuple(outputs.shape)}, and some parameter is not of {len(outputs)} draws; give "
            "outputs (draws, m) of layers made with draws=, or outputs (m,) of layers without"
        )
    gradients = [
        torch.autograd.grad(batched[:, a].sum(), given, retain_graph=True, allow_unused=True)
        for a in range(batched.shape[1])
    ]
    kernel = batched.new_zeros(*batched.shape, batched.shape[1])
    for of_one in zip(*gradients, strict=True):
        rows = [_entries(gradient, len(batched)) for gradient in of_one if gradient is not None]
        if len(rows) == len(of_one):
            stacked = torch.stack(rows, 1)
            kernel = kernel + stacked @ transpose(stacked)
    return kernel[0] if outputs.ndim == 1 else kernel


def _counted(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Those that require a gradient."""
    try:
        listed: list[object] = list(parameters)
    except Exception:  # whatever looking at the user's object raises
        listed = [None]
    tensors = [each for each in listed if isinstance(each, torch.Tensor)]
    if len(tensors) < len(listed):
        raise FinwidthError(f"the parameters are {shown(parameters)}; give module.parameters(), or some of them")
    return [each for each in tensors if each.requires_grad]


def _draws(parameter: torch.Tensor) -> int | None:
    """How many draws a parameter is of, if it can be told."""
    return parameter.shape[0] if parameter.ndim else None


def _entries(gradient: torch.Tensor, draws: int) -> torch.Tensor:
    """The numbers of a gradient, (draws, all of them), in an orthonormal basis."""
    numbers: torch.Tensor = gradient.combination.padded() if isinstance(gradient, MatrixFreeTensor) else gradient
    return numbers.reshape(draws, -1)
