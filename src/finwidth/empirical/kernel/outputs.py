"""Which numbers of a module a kernel is of: some outputs, combinations of them, or a function of output and sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from finwidth.arguments import index, real_array
from finwidth.empirical.kernel.arguments import check_outputs
from finwidth.empirical.kernel.calls import Combinations
from finwidth.errors import FinwidthError, shown

Tensor = torch.Tensor
Outputs: TypeAlias = "str | int | slice | Sequence[int] | Sequence[Sequence[float]] | Tensor | Callable[..., Tensor]"
_ALLOWED = (
    '"full", "trace", "diagonal", the number of one output, from 0, a list or slice of such numbers, a matrix whose '
    "rows are combinations of the outputs, or a function of output and sample"
)


@dataclass(frozen=True, eq=False)
class Wanted:
    """The ``outputs`` of a kernel, as far as they are known before the module is called.

    ``kind`` is "full", "trace", "diagonal" or the number of an output, among those that are ``chosen``: numbers of
    outputs, or coefficients of combinations (None: all outputs). A ``function`` comes before everything else.
    """

    kind: str | int
    chosen: slice | Tensor | None = None
    function: Callable[[object, object], object] | None = None

    def combinations(self, outputs: int, like: Tensor) -> Combinations | None:
        """The chosen numbers of a module with so many outputs; FinwidthError if it has no such ones."""
        if isinstance(self.kind, int) and self.chosen is None and self.kind >= outputs:
            raise FinwidthError(f"outputs is {self.kind}, and the module has {outputs}, numbered from 0")
        if self.chosen is None:
            return None
        rows = torch.arange(outputs)[self.chosen] if isinstance(self.chosen, slice) else self.chosen
        if not len(rows):
            raise FinwidthError(f"outputs chooses none of the module's {outputs} outputs; give at least one")
        if rows.is_floating_point() and rows.shape[1] != outputs:
            raise FinwidthError(
                f"outputs combines {rows.shape[1]} outputs, and the module has {outputs}; give rows of as many"
            )
        if not rows.is_floating_point() and not 0 <= int(rows.min()) <= int(rows.max()) < outputs:
            raise FinwidthError(f"outputs is {rows.tolist()}, and the module has {outputs}, numbered from 0")
        return Combinations(rows.to(like) if rows.is_floating_point() else rows.to(like.device))


def read_outputs(outputs: object) -> Wanted:
    """What ``outputs`` asks for."""
    if isinstance(outputs, Wanted):
        return outputs
    if isinstance(outputs, str) or index(outputs) is not None:
        return Wanted(_output_names(outputs))
    if isinstance(outputs, slice):
        if any(each is not None and index(each) is None for each in (outputs.start, outputs.stop, outputs.step)) or (
            outputs.step is not None and outputs.step <= 0
        ):
            raise FinwidthError(f"outputs is {shown(outputs)}; give a slice of whole numbers, such as slice(0, 3)")
        return Wanted("full", outputs)
    if callable(outputs) and not isinstance(outputs, type):
        return Wanted("full", function=outputs)
    array = None if outputs is None or isinstance(outputs, bool) else real_array(outputs)
    if array is None or array.ndim not in {1, 2} or not array.size or array.dtype.kind not in "iuf":
        raise FinwidthError(f"outputs is {shown(outputs)}; choose {_ALLOWED}")
    if array.ndim == 1 and array.dtype.kind in "iu":
        return Wanted("full", torch.tensor(array.tolist(), dtype=torch.long))
    rows = torch.tensor(array.tolist(), dtype=torch.float64)
    if not torch.isfinite(rows).all():
        raise FinwidthError("outputs has coefficients that are not finite")
    return Wanted("full", rows) if array.ndim == 2 else Wanted(0, rows[None])


def _output_names(outputs: object) -> str | int:
    try:
        return check_outputs(outputs)
    except FinwidthError:
        raise FinwidthError(f"outputs is {shown(outputs)}; choose {_ALLOWED}") from None
