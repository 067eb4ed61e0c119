"""A torch tensor that stands for a matrix of weights, gradients or momentum without its entries.

It lets torch.optim.SGD train what is never formed: sums and multiples, all that SGD makes of weights and gradients, are
those of a `Combination`; any other operation is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import torch

from finwidth.errors import FinwidthError
from finwidth.sampling.lazy_matrix.combination import Combination
from finwidth.sampling.random.device import DeviceGenerator


def refuse(what: str) -> NoReturn:
    """Raise the one error."""
    raise FinwidthError(
        f"{what} is not possible with a matrix-free layer: the entries of its weights are never formed. "
        "torch.optim.SGD works, with momentum, weight decay and clip_grad_norm_, because sums and multiples of weights "
        "and gradients stay known; what acts on entries (Adam and other elementwise methods, foreach=True), reading or "
        "setting them, copies, files, and a device or dtype other than the layer was made with do not: "
        "use nn.Linear, nn.Conv1d or nn.Conv2d for this layer"
    )


class MatrixFreeTensor(torch.Tensor):
    """A `Combination` as a tensor with no storage, shape (out, in), with draws and groups, if any, in front."""

    combination: Combination[torch.Tensor]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, combination: Combination[torch.Tensor]) -> MatrixFreeTensor:  # noqa: D102
        matrix = combination.matrix
        groups = (matrix.groups,) if matrix.groups > 1 else ()
        shape = (*((matrix.draws,) if matrix.draws else ()), *groups, *matrix.shape)
        assert isinstance(matrix.rng, DeviceGenerator)
        kind = {"dtype": getattr(torch, matrix.dtype), "device": matrix.rng.device}
        tensor: MatrixFreeTensor = torch.Tensor._make_wrapper_subclass(cls, shape, **kind)
        return tensor

    def __init__(self, combination: Combination[torch.Tensor]) -> None:
        self.combination = combination

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        left, right = self.combination.matrix.known
        known = "materialized" if self.combination.matrix.materialized else f"met {left} left, {right} right"
        return f"MatrixFreeTensor(shape={tuple(self.shape)}, dtype={self.dtype}, {known})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Sums and multiples; refuses all else."""
        rule = _RULES.get(func)
        if rule is None:
            refuse(f"torch's {func.overloadpacket.__name__!r}")
        return rule(*args, **(kwargs or {}))

    def numpy(self, **_: object) -> NoReturn:
        """Refused."""
        refuse("numpy()")

    def tolist(self) -> NoReturn:
        """Refused."""
        refuse("tolist()")

    def share_memory_(self) -> NoReturn:
        """Refused."""
        refuse("shared memory")

    def __deepcopy__(self, memo: object) -> NoReturn:
        refuse("a copy")  # it would have to meet new vectors independently of the original, and could not

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        refuse("a file or pickle")


def _add_(one: MatrixFreeTensor, other: object, *, alpha: float = 1.0) -> MatrixFreeTensor:
    if not (isinstance(one, MatrixFreeTensor) and isinstance(other, MatrixFreeTensor)):
        refuse("a sum with entries")
    one.combination.add(other.combination, float(alpha))
    return one


def _mul_(one: MatrixFreeTensor, factor: torch.Tensor | float) -> MatrixFreeTensor:
    if isinstance(factor, torch.Tensor) and (isinstance(factor, MatrixFreeTensor) or factor.ndim):
        refuse("a product with entries")
    one.combination.multiply(float(factor))
    return one


def _clone(one: MatrixFreeTensor, **_: object) -> MatrixFreeTensor:
    return MatrixFreeTensor(one.combination.copy())


def _norm(one: MatrixFreeTensor, order: float = 2, *_: object, **__: object) -> torch.Tensor:
    """Of gradients, whose core has the same: for torch.nn.utils.clip_grad_norm_."""
    if order != 2 or one.combination.scale or one.combination.matrix.draws:
        refuse("a norm that is not the Frobenius norm of one draw's gradient")
    norm: torch.Tensor = torch.linalg.vector_norm(one.combination.padded())
    return norm


_aten = torch.ops.aten
_RULES: dict[object, Callable[..., object]] = {
    _aten.detach.default: lambda one: MatrixFreeTensor(one.combination),
    _aten.clone.default: _clone,
    _aten.add.Tensor: lambda one, other, alpha=1.0: _add_(_clone(one), other, alpha=alpha),
    _aten.add_.Tensor: _add_,
    _aten.mul.Tensor: lambda one, factor: _mul_(_clone(one), factor),
    _aten.mul_.Tensor: _mul_,
    _aten.neg.default: lambda one: _mul_(_clone(one), -1.0),
    _aten.zero_.default: lambda one: _mul_(one, 0.0),
    _aten.linalg_vector_norm.default: _norm,
}
