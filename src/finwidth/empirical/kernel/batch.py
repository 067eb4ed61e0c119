"""Samples as a module is called with them: `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

Tensor = torch.Tensor


class Call(NamedTuple):
    """What a module is called with, and the whole of the samples as the user gave them."""

    args: tuple[object, ...]
    kwargs: dict[str, object]
    sample: object


@dataclass(frozen=True)
class Form:
    """How the tensors of a batch become a call.

    ``spec`` is the structure of what the user gave; ``dims`` has for each of its leaves the dimension of the samples,
    None for those that all samples share; ``names`` says what they are. ``paired``: the second of two is no argument,
    but a target. With ``collate``, the one tensor has the numbers of the samples, and it makes their batch of them.
    ``function`` is the number of the function that is called, of several that share parameters. With ``rows``, of a
    batch that is one sample, only these rows of what is returned are outputs.
    """

    spec: pytree.TreeSpec
    dims: tuple[int | None, ...]
    names: tuple[str, ...]
    paired: bool = False
    collate: Callable[[list[int]], object] | None = None
    function: int | None = None
    rows: range | None = None

    @cached_property
    def plain(self) -> bool:
        """Whether a module is called with one tensor and nothing else."""
        return self.dims == (0,) and self.spec == _ONE and self.collate is None and self.function is None

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle: an example of the structure, since torch warns of a TreeSpec that is loaded."""
        example = pytree.tree_unflatten([0] * len(self.dims), self.spec)
        return _form_like, (example, self.dims, self.names, self.paired, self.collate, self.function, self.rows)


def _form_like(example: object, *others: Any) -> Form:
    return Form(pytree.tree_structure(example), *others)


_ONE = pytree.tree_structure(0)


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples in a module's call: what differs between them, and what all of them share.

    ``tensors`` have the samples first; ``shared`` is everything else, in order. A batch without tensors is one sample:
    all that the user gave, as a whole.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical.kernel.batch import Batch
    >>> batch = Batch.of(torch.arange(6.0).reshape(3, 2))
    >>> len(batch), batch[1:].call().args
    (3, (tensor([[2., 3.],
            [4., 5.]]),))
    """

    tensors: tuple[Tensor, ...]
    shared: tuple[object, ...]
    form: Form

    @classmethod
    def of(cls, x: Tensor) -> Batch:
        """The samples of one tensor, the only argument."""
        return cls((x,), (), Form(_ONE, (0,), ("",)))

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.tensors else 1

    def __getitem__(self, some: slice | Tensor) -> Batch:
        return self.like([each[some] for each in self.tensors])

    def like(self, tensors: Sequence[Tensor]) -> Batch:
        """Other samples in the same call."""
        return replace(self, tensors=tuple(tensors))

    def split(self, size: int) -> list[Batch]:
        """Consecutive parts of so many samples."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def flip(self) -> Batch:
        """The samples in reverse order."""
        return self.like([each.flip(0) for each in self.tensors])

    def clone(self) -> Batch:
        """A copy, which a module may change."""
        shared = tuple(each.clone() if isinstance(each, Tensor) else each for each in self.shared)
        return replace(self, tensors=tuple(each.clone() for each in self.tensors), shared=shared)

    def call(self) -> Call:
        """What the module is called with."""
        if self.form.plain:
            return Call(self.tensors, {}, self.tensors[0])
        own, shared, leaves = iter(self.tensors), iter(self.shared), list[object]()
        for dim in self.form.dims:
            leaves.append(next(shared) if dim is None else next(own).movedim(0, dim))
        sample = pytree.tree_unflatten(leaves, self.form.spec)
        if self.form.collate is not None:
            sample = self.form.collate(self.tensors[0].tolist())
        given = sample[0] if self.form.paired else sample
        args = given if isinstance(given, tuple) else () if isinstance(given, dict) else (given,)
        which = () if self.form.function is None else (self.form.function,)
        return Call((*which, *args), given if isinstance(given, dict) else {}, sample)

    @property
    def target(self) -> object:
        """What comes with the inputs in a pair; None if there is nothing."""
        sample = self.call().sample
        return sample[1] if self.form.paired and isinstance(sample, tuple) else None

    def alike(self, other: Batch) -> bool:
        """Whether samples of both can be in one batch."""
        kinds = ([(each.shape[1:], each.dtype) for each in batch.tensors] for batch in (self, other))
        same = all(one is two for one, two in zip(self.shared, other.shared, strict=False))
        return self.form == other.form and next(kinds) == next(kinds) and same and bool(self.tensors)

    def join(self, other: Batch) -> Batch:
        """These samples and then those of another batch."""
        return self.like([torch.cat(pair) for pair in zip(self.tensors, other.tensors, strict=True)])

    def same(self, i: int, j: int) -> bool:
        """Whether two samples are equal."""
        return all(torch.equal(each[i], each[j]) for each in self.tensors)

    @property
    def own(self) -> tuple[Tensor, ...]:
        """All tensors, of the samples and of what they share; of graphs those of their batch."""
        if self.form.collate is not None:
            whole: dict[str, object] = getattr(self.call().sample, "to_dict", dict)()
            return *self.tensors, *(each for _, each in sorted(whole.items()) if isinstance(each, Tensor))
        return *self.tensors, *(each for each in self.shared if isinstance(each, Tensor))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first tensor."""
        return self.own[0].dtype

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the inputs, or of the smallest in use."""
        return min((each.element_size() for each in self.tensors if each.is_floating_point()), default=4)

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return next((each.device for each in (*self.tensors, *self.shared) if isinstance(each, Tensor)), _CPU)

    def __str__(self) -> str:
        """Number, types and shapes of the samples."""
        if len(self.tensors) == len(self.form.dims) == 1:
            return f"{len(self)} samples, {self.tensors[0].dtype} of shape {tuple(self.tensors[0].shape)}"
        own, shared = iter(self.tensors), iter(self.shared)
        leaves = [next(shared) if dim is None else next(own) for dim in self.form.dims]
        shown = [
            f"{name}: {_shape(each)}".removeprefix(": ") for name, each in zip(self.form.names, leaves, strict=True)
        ]
        return f"{len(self)} samples, {', '.join(shown)}"


_CPU = torch.device("cpu")


def _shape(each: object) -> str:
    if isinstance(each, Tensor):
        return f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}"
    return type(each).__name__
