"""What a layer's parameters contribute: operations with weights, and the factors of their gradients.

An operation is what torch calls (`functional.linear`, not `nn.Linear`), so a layer of the user's own that ends in one
of these is covered, and a subclass that does something else is not mistaken for its parent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch.nn import functional

from finwidth.empirical.kernel.factors import DenseFactor, GradientFactor, OuterFactor
from finwidth.errors import FinwidthError

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True)
class Linear:
    """y = W x + b at every position: all dimensions but the last."""

    def batched(self, x: Tensor, axis: int) -> bool:
        """Whether ``axis`` of the input can be the batch axis."""
        return axis < x.ndim - 1

    def outer(self, x: Tensor, D: Tensor) -> OuterFactor:
        """Factors by the weight, from x (n, ..., a) and D (o, n, ..., c)."""
        o, n = D.shape[:2]
        return OuterFactor(x.reshape(n, 1, -1, x.shape[-1]), D.reshape(o, n, 1, -1, D.shape[-1]))


@dataclass(frozen=True)
class Multiplication(Linear):
    """y = x W + b: the same with a weight of shape (a, c)."""


@dataclass(frozen=True)
class Convolution:
    """A linear layer at every position of the output, on the patch of the input seen there."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def batched(self, x: Tensor, axis: int) -> bool:
        """Whether ``axis`` of the input can be the batch axis."""
        return axis == 0 and x.ndim == 2 + len(self.kernel)

    def outer(self, x: Tensor, D: Tensor) -> OuterFactor:
        """Factors by the weight, from x (n, channels, ...) and D (o, n, channels, ...)."""
        return OuterFactor(self.patches(x), self.channels(D, 2))

    def patches(self, x: Tensor) -> Tensor:
        """The patch of the input at each position, shape (n, g, positions, channels and kernel)."""
        dims, g = len(self.kernel), self.groups
        x = functional.pad(x, [side for pair in reversed(self.padding) for side in pair])
        if dims < 3:  # which torch does quicker
            whole, one = (x.unsqueeze(2), (1,)) if dims == 1 else (x, ())
            strips = functional.unfold(whole, one + self.kernel, one + self.dilation, 0, one + self.stride)
            return torch.unflatten(strips, 1, (g, -1)).mT
        for i, (size, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + i, dilation * (size - 1) + 1, stride)[..., ::dilation]
        x = x.reshape(len(x), g, -1, *x.shape[2:])  # (n, g, channels, *positions, *kernel)
        positions, patch = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
        return x.permute(0, 1, *positions, 2, *patch).flatten(2 + dims).flatten(2, 1 + dims)

    def channels(self, each: Tensor, start: int) -> Tensor:
        """Reshape (..., channels, *positions), channels at ``start``, to (..., g, positions, channels of a group)."""
        g = self.groups
        return each.reshape(*each.shape[:start], g, each.shape[start] // g, -1).mT


@dataclass(frozen=True)
class TransposedConvolution(Convolution):
    """A convolution with input and result exchanged: patches are those of the result, one at each input position."""

    def outer(self, x: Tensor, D: Tensor) -> OuterFactor:
        """Factors by the weight, from x (n, channels, ...) and D (o, n, channels, ...)."""
        return OuterFactor(self.channels(x, 1), torch.unflatten(self.patches(D.flatten(0, 1)), 0, D.shape[:2]))

    def biased(self, outer: OuterFactor, totals: Tensor, root: float) -> OuterFactor:
        """With the bias, as a weight on one more position, where nothing else is; ``totals`` are its gradients."""
        A = functional.pad(outer.A, (0, 1, 0, 1))
        A[..., -1, -1] = root
        o, n, g = outer.D.shape[:3]
        first = functional.pad(totals.reshape(o, n, g, 1, -1, 1), (0, math.prod(self.kernel) - 1)).flatten(4)
        return OuterFactor(A, torch.cat([outer.D, first], dim=3))


@dataclass(frozen=True)
class Lookup:
    """y = W[x], rows of a table."""

    rows: int
    padding: int | None

    def batched(self, x: Tensor, axis: int) -> bool:
        """Whether ``axis`` of the input can be the batch axis."""
        return axis < x.ndim

    def outer(self, x: Tensor, D: Tensor) -> OuterFactor:
        """Factors by the table, from x (n, ...) and D (o, n, ..., c)."""
        o, n = D.shape[:2]
        x, D = x.reshape(n, -1), D.reshape(o, n, 1, -1, D.shape[-1])
        if self.padding is not None:  # torch trains no padding row
            D = D * (x != self.padding)[:, None, :, None]
        return OuterFactor(x, D, self.rows)


@dataclass(frozen=True)
class Bag(Lookup):
    """y = the sum or the mean of rows of a table, which are looked up."""

    mean: bool

    def batched(self, x: Tensor, axis: int) -> bool:
        """Whether ``axis`` of the input can be the batch axis."""
        return axis == 0

    def outer(self, x: Tensor, D: Tensor) -> OuterFactor:
        """Factors by the table, from x (n, P) and D (o, n, c)."""
        if self.mean:
            counted = x != self.padding if self.padding is not None else torch.ones_like(x)
            D = D / counted.sum(1).clamp(min=1)[:, None]
        return super().outer(x, D[:, :, None].expand(-1, -1, x.shape[1], -1))


@dataclass(frozen=True)
class Scaling:
    """y = w * z + b with z = scaled(x), up to terms without w and b; w and b have one number a feature."""

    scaled: Callable[[Tensor], Tensor]
    trailing: int | None  # the features are the last so many dimensions; None: the one after the samples

    def batched(self, x: Tensor, axis: int) -> bool:
        """Whether ``axis`` of the input can be the batch axis."""
        return axis == 0 if self.trailing is None else axis < x.ndim - self.trailing

    def features(self, each: Tensor, start: int) -> Tensor:
        """Reshape (..., n, positions and features) to (..., n, P, features); ``start`` is the dimension after n."""
        if self.trailing is None:
            return each.flatten(start + 1).mT if each.ndim > start + 1 else each.unsqueeze(start)
        count = math.prod(each.shape[each.ndim - self.trailing :])
        return each.reshape(*each.shape[:start], -1, count)


@dataclass(frozen=True)
class Expansion:
    """y = w, copied for every sample and to further places, where it meets them; w has this shape."""

    shape: torch.Size

    def batched(self, x: Tensor, axis: int) -> bool:
        """Whether ``axis`` of the result can be the batch axis: any that has copies."""
        return True

    def summed(self, D: Tensor) -> Tensor:
        """Sum gradients (o, n, *result of a sample) over the copies of a sample, shape (o, n, numbers)."""
        sizes = (1,) * (D.ndim - 2 - len(self.shape)) + tuple(self.shape)
        copies = [(whole // size, size) for whole, size in zip(D.shape[2:], sizes, strict=True)]
        split = D.reshape(*D.shape[:2], *(each for pair in copies for each in pair))
        return split.sum(tuple(range(2, split.ndim, 2))).flatten(2) if copies else D[..., None]


EXCHANGED = Multiplication, TransposedConvolution  # weights of shape (a, c), where those of others are (c, a)
Ints: TypeAlias = int | list[int] | tuple[int, ...]
Rule: TypeAlias = Linear | Convolution | Lookup | Scaling | Expansion


@dataclass(frozen=True)
class Operation:
    """One call: its rule, the tensors it took as weight and bias, and its input; None if it takes nothing else."""

    rule: Rule
    weight: Tensor | None
    bias: Tensor | None
    input: Tensor | None


@dataclass(frozen=True)
class Meeting:
    """One call of an elementwise operation: the tensors that may be expanded, and the shape to which they are."""

    tensors: Sequence[Tensor]
    shape: torch.Size


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operation | None:
    return Operation(Linear(), weight, bias, input) if weight.ndim == 2 else None


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Operation | None:
    return Operation(Multiplication(), mat2, input, mat1) if beta == alpha == 1 and input.ndim == 1 else None


def _matmul(input: Tensor, other: Tensor) -> Operation | None:
    return Operation(Multiplication(), other, None, input) if other.ndim == 2 and input.ndim > 1 else None


def _getitem(input: Tensor, index: object) -> Operation | None:
    """Rows of a table by whole numbers, of which negative ones count from behind."""
    whole = isinstance(index, Tensor) and index.dtype in {torch.int64, torch.int32}
    if not isinstance(index, Tensor) or not whole or input.ndim != 2 or not input.requires_grad:
        return None
    return Operation(Lookup(len(input), None), input, None, index.remainder(len(input)))


def _each(value: Ints, dims: int) -> tuple[int, ...]:
    """One number for each dimension; a single one, in a list or not, is for all."""
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    return given if len(given) == dims else given[:1] * dims


def _convolution(  # noqa: PLR0917 - the signature of torch
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Operation:
    kernel = tuple(weight.shape[2:])
    dims = len(kernel)
    spread = _each(dilation, dims)
    if padding == "same":
        totals = [d * (size - 1) for d, size in zip(spread, kernel, strict=True)]
        sides = tuple((total // 2, total - total // 2) for total in totals)
    else:
        sides = tuple((each, each) for each in _each(0 if isinstance(padding, str) else padding, dims))
    return Operation(Convolution(kernel, _each(stride, dims), sides, spread, groups), weight, bias, input)


def _transposed(  # noqa: PLR0917 - the signature of torch
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Operation:
    kernel = tuple(weight.shape[2:])
    before, more, steps, spread = (_each(value, len(kernel)) for value in (padding, output_padding, stride, dilation))
    sides = tuple((each, each - extra) for each, extra in zip(before, more, strict=True))
    return Operation(TransposedConvolution(kernel, steps, sides, spread, groups), weight, bias, input)


def _embedding(  # noqa: PLR0917
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operation | None:
    if scale_grad_by_freq:
        raise FinwidthError(
            "an embedding has scale_grad_by_freq=True, so that its gradient for a sample depends on the others of the "
            "batch; make it with scale_grad_by_freq=False"
        )
    if max_norm is not None:  # it changes the weight
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    return Operation(Lookup(len(weight), padding_idx), weight, None, input)


def _embedding_bag(  # noqa: PLR0917
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Operation | None:
    unusual = max_norm is not None or scale_grad_by_freq or per_sample_weights is not None
    if unusual or input.ndim != 2 or mode not in {"sum", "mean"}:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    return Operation(Bag(len(weight), padding_idx, mode == "mean"), weight, None, input)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Operation:
    shape = tuple(normalized_shape)
    return Operation(
        Scaling(lambda x: functional.layer_norm(x, shape, None, None, eps), len(shape)), weight, bias, input
    )


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Operation:
    shape = tuple(normalized_shape)
    return Operation(Scaling(lambda x: functional.rms_norm(x, shape, None, eps), len(shape)), weight, None, input)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Operation:
    return Operation(
        Scaling(lambda x: functional.group_norm(x, num_groups, None, None, eps), None), weight, bias, input
    )


def _batch_norm(  # noqa: PLR0917
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Operation | None:
    if training:  # where the whole batch is one function, this input is all of it
        running_mean = running_var = None
    scaled = partial(
        functional.batch_norm, running_mean=running_mean, running_var=running_var, training=training, eps=eps
    )
    return Operation(Scaling(scaled, None), weight, bias, input)


def _instance_norm(  # noqa: PLR0917
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Operation:
    mean, var = (None if each is None else each.clone() for each in (running_mean, running_var))  # it may change them
    scaled = partial(
        functional.instance_norm, running_mean=mean, running_var=var, use_input_stats=use_input_stats, eps=eps
    )
    return Operation(Scaling(scaled, None), weight, bias, input)


def _prelu(input: Tensor, weight: Tensor) -> Operation:
    return Operation(Scaling(lambda x: x.clamp(max=0), 0 if weight.numel() == 1 else None), weight, None, input)


def _expansion(input: Tensor, *args: object, **kwargs: object) -> Operation:
    return Operation(Expansion(input.shape), input, None, None)


def _elementwise(*args: object, **kwargs: object) -> Meeting | None:
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    dtypes = [each.dtype for each in tensors if each.is_floating_point()]
    if len(dtypes) < 2 or len(set(dtypes)) > 1:  # the type of the result depends on the shapes
        return None
    if any(each.is_nested for each in tensors):
        return None
    shapes = {each.shape for each in tensors}
    if len(shapes) == 1:
        return Meeting(tensors, shapes.pop())
    shape: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return Meeting(tensors, shape)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: object, **__: object
) -> Meeting | None:
    if attn_mask is None or attn_mask.dtype != query.dtype:
        return None
    return Meeting([attn_mask], torch.Size((*query.shape[:-1], key.shape[-2])))


OPERATIONS: dict[Callable[..., Tensor], Callable[..., Operation | None]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.mm: _matmul,
    torch.Tensor.__getitem__: _getitem,
    functional.conv1d: _convolution,
    functional.conv2d: _convolution,
    functional.conv3d: _convolution,
    functional.conv_transpose1d: _transposed,
    functional.conv_transpose2d: _transposed,
    functional.conv_transpose3d: _transposed,
    functional.embedding: _embedding,
    functional.embedding_bag: _embedding_bag,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    functional.group_norm: _group_norm,
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
    functional.prelu: _prelu,
    torch.Tensor.expand: _expansion,
    torch.Tensor.expand_as: _expansion,
    torch.broadcast_to: _expansion,
    torch.Tensor.broadcast_to: _expansion,
    torch.Tensor.repeat: _expansion,
    torch.Tensor.tile: _expansion,
    torch.tile: _expansion,
}
_ELEMENTWISE = """
    add sub subtract mul multiply div divide true_divide where maximum minimum pow lerp addcmul addcdiv atan2
    add_ sub_ mul_ div_ lerp_ addcmul_ addcdiv_
"""
MEETINGS: dict[Callable[..., Tensor], Callable[..., Meeting | None]] = {
    functional.scaled_dot_product_attention: _attention,
    **{
        getattr(place, name): _elementwise
        for name in _ELEMENTWISE.split()
        for place in (torch, torch.Tensor)
        if hasattr(place, name)
    },
}


def factor(rule: Rule, x: Tensor, D: Tensor, weight: float | None, bias: float | None) -> GradientFactor:
    """The gradients by an operation's weight and bias, each times the root of its scale; None: it does not count.

    ``x`` is the operation's input, samples first, and ``D``, shape (o, n, ...), the outputs' gradients by its result.
    A bias is a weight on a constant number 1, so it is one more column of what the weight multiplies.
    """
    if isinstance(rule, Expansion):
        return DenseFactor(math.sqrt(weight or 0.0) * rule.summed(D).transpose(0, 1))
    if isinstance(rule, Scaling):
        D = rule.features(D, 2)
        parts = [] if bias is None else [math.sqrt(bias) * D.sum(2)]
        if weight is not None:
            parts.append(math.sqrt(weight) * (D * rule.features(rule.scaled(x).to(D.dtype), 1)).sum(2))
        return DenseFactor(torch.cat(parts, dim=2).transpose(0, 1))
    outer = rule.outer(x, D)
    totals = D.flatten(3).sum(3) if isinstance(rule, TransposedConvolution) else outer.D.sum(3).flatten(2)
    if weight is None:
        return DenseFactor(math.sqrt(bias or 0.0) * totals.transpose(0, 1))
    if outer.rows is not None:
        return OuterFactor(outer.A, math.sqrt(weight) * outer.D, outer.rows)
    A = outer.A if weight == 1 else math.sqrt(weight) * outer.A
    if bias is not None and isinstance(rule, TransposedConvolution):
        return rule.biased(OuterFactor(A, outer.D), totals, math.sqrt(bias))
    if bias is not None:
        A = torch.cat([A, A.new_full((*A.shape[:-1], 1), math.sqrt(bias))], dim=-1)
    return OuterFactor(A, outer.D)


def gradient_of(rule: Rule, factor: GradientFactor) -> Tensor:
    """The gradients themselves, shape (n, o, numbers), in the order of the weight's numbers."""
    G = factor.dense().G
    if isinstance(rule, EXCHANGED) and isinstance(factor, OuterFactor):
        G = torch.unflatten(G, 2, (factor.A.shape[1], -1, factor.A.shape[-1])).mT.flatten(2)
    return G


def together(parts: list[GradientFactor]) -> GradientFactor:
    """The gradients by a weight with several uses: concatenated along positions."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, DenseFactor):
        return DenseFactor(torch.stack([each.dense().G for each in parts]).sum(0))
    outers = [each for each in parts if isinstance(each, OuterFactor)]
    A = torch.cat([each.A for each in outers], dim=1 if first.rows is not None else 2)
    return OuterFactor(A, torch.cat([each.D for each in outers], dim=3), first.rows)
