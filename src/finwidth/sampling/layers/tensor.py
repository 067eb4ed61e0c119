"""A torch tensor that stands for a matrix of weights, gradients or momentum without its entries.

It lets torch.optim.SGD train what is never formed: sums and multiples, all that SGD makes of weights and gradients, are
those of a `Combination`; any other operation is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from finwidth.errors import FinwidthError
from finwidth.sampling.lazy_matrix.combination import Combination
from finwidth.sampling.random.device import DeviceGenerator


def refuse(what: str) -> NoReturn:
    """Raise the one error."""
    raise FinwidthError(
        f"{what} is not possible with a law layer: the entries of its weights are never formed. torch.optim.SGD works, "
        "with momentum, weight decay and clip_grad_norm_, because sums and multiples of weights and gradients stay "
        "known; what acts on entries (Adam and other elementwise methods, foreach=True), reading or setting them, "
        "copies, files, and a device or dtype other than the layer was made with do not: "
        "use nn.Linear or nn.Conv2d for this layer"
    )


class LawTensor(torch.Tensor):
    """The matrix ``made`` of a law layer, shape (out, in) or (draws, out, in), as a tensor with no storage."""

    made: Combination
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, made: Combination) -> LawTensor:  # noqa: D102
        matrix = made.matrix
        shape = (*((matrix.draws,) if matrix.draws else ()), *matrix.shape)
        assert isinstance(matrix.rng, DeviceGenerator)
        kind = {"dtype": getattr(torch, matrix.dtype), "device": matrix.rng.device}
        tensor: LawTensor = torch.Tensor._make_wrapper_subclass(cls, shape, **kind)
        return tensor

    def __init__(self, made: Combination) -> None:
        self.made = made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        left, right = self.made.matrix.known
        known = "complete" if self.made.matrix.whole is not None else f"met {left} left, {right} right"
        return f"LawTensor(shape={tuple(self.shape)}, dtype={self.dtype}, {known})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Sums and multiples; refuses all else."""
        rule = _RULES.get(func)
        if rule is None:
            refuse(f"torch's {func.overloadpacket.__name__!r}")
        return rule(*args, **(kwargs or {}))

    def numpy(self, **_: Any) -> NoReturn:
        """Refused."""
        refuse("numpy()")

    def tolist(self) -> NoReturn:
        """Refused."""
        refuse("tolist()")

    def share_memory_(self) -> NoReturn:
        """Refused."""
        refuse("shared memory")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        refuse("a copy")  # it would have to meet new vectors independently of the original, and could not

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse("a file or pickle")


def _add_(one: LawTensor, other: Any, *, alpha: float = 1.0) -> LawTensor:
    if not (isinstance(one, LawTensor) and isinstance(other, LawTensor)):
        refuse("a sum with entries")
    one.made.add(other.made, float(alpha))
    return one


def _mul_(one: LawTensor, factor: Any) -> LawTensor:
    if isinstance(factor, torch.Tensor) and (isinstance(factor, LawTensor) or factor.ndim):
        refuse("a product with entries")
    one.made.multiply(float(factor))
    return one


def _clone(one: LawTensor, **_: Any) -> LawTensor:
    return LawTensor(one.made.copy())


def _norm(one: LawTensor, order: float = 2, *_: Any, **__: Any) -> torch.Tensor:
    """Of gradients, whose core has the same: for torch.nn.utils.clip_grad_norm_."""
    if order != 2 or one.made.scale or one.made.matrix.draws:
        refuse("a norm that is not the Frobenius norm of one draw's gradient")
    norm: torch.Tensor = torch.linalg.vector_norm(one.made.padded())
    return norm


_aten = torch.ops.aten
_RULES: dict[Any, Callable[..., Any]] = {
    _aten.detach.default: lambda one: LawTensor(one.made),
    _aten.clone.default: _clone,
    _aten.add.Tensor: lambda one, other, alpha=1.0: _add_(_clone(one), other, alpha=alpha),
    _aten.add_.Tensor: _add_,
    _aten.mul.Tensor: lambda one, factor: _mul_(_clone(one), factor),
    _aten.mul_.Tensor: _mul_,
    _aten.neg.default: lambda one: _mul_(_clone(one), -1.0),
    _aten.zero_.default: lambda one: _mul_(one, 0.0),
    _aten.linalg_vector_norm.default: _norm,
}
