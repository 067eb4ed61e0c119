"""Inputs as people have them, as one `Batch`: tensors, several arguments, datasets, loaders, graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils import data

from finwidth.arguments import index, running
from finwidth.empirical.kernel.arguments import check_batch, check_tensor
from finwidth.empirical.kernel.batch import Batch, Form
from finwidth.empirical.kernel.calls import repeatable
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford

Tensor = torch.Tensor
InDims: TypeAlias = "int | tuple[InDims, ...] | Mapping[str, InDims] | None"
_SHUFFLING = data.RandomSampler | data.SubsetRandomSampler | data.WeightedRandomSampler
_ALLOWED = (
    "a tensor of shape (N, ...), a tuple of arguments, a dict of arguments by name, a Dataset, a DataLoader, or a list "
    "of samples"
)


@dataclass(frozen=True)
class _Leaf:
    """One tensor or other value among the arguments, where it is, and its dimension of samples (None: it has none)."""

    name: str
    value: object
    dim: int | None


def read_batch(
    module: nn.Module, x: object, name: str = "x1", in_dims: object = 0, *, coupled: bool = False, trial: bool = True
) -> Batch:
    """The samples that a user gave, on the module's device and in a dtype that it takes.

    Parameters
    ----------
    module
        The module that is called with them.
    x
        One tensor or array, for ``module(x)``; a tuple, for ``module(*x)``; a mapping, for ``module(**x)``; a Dataset,
        a DataLoader or a list of samples, which are read and joined: pairs are inputs and their targets.
    name
        The argument, for messages.
    in_dims
        The dimension of the samples, as for `torch.func.vmap`: one for all tensors, or a tuple or dict like ``x``; None
        for what all samples share, as are numbers, texts and tensors without dimensions in any case.
    coupled
        All that was given is one sample.
    trial
        As of `check_batch`, if there is one tensor.

    Raises
    ------
    FinwidthError
        If there are no samples, tensors have different numbers of them, or their order is not fixed.
    """
    if isinstance(x, Batch):
        return x
    x, paired = _all_samples(x, name)
    graphs, in_dims = [] if coupled else _graphs(x), None if coupled else in_dims
    if graphs:
        return _of_graphs(module, graphs)
    if not isinstance(x, tuple | dict) and index(in_dims) == 0:
        return Batch.of(check_batch(module, x, name, trial=trial))
    whole, leaves = _leaves(x, name, in_dims, "in_dims")
    form = Form(pytree.tree_structure(whole), tuple(each.dim for each in leaves), _argument_names(leaves, name), paired)
    ready = [replace(each, value=_as_given(module, each)) for each in leaves]
    tensors = tuple(each.value.movedim(each.dim, 0) for each in ready if each.dim is not None)  # type: ignore[attr-defined]
    if not tensors and not coupled:
        raise FinwidthError(f"{name} is {shown(x)}, which has no tensor with samples by in_dims; give {_ALLOWED}")
    _check_lengths(tensors, [each for each in ready if each.dim is not None], name)
    return Batch(tensors, tuple(each.value for each in ready if each.dim is None), form)


def _argument_names(leaves: list[_Leaf], name: str) -> tuple[str, ...]:
    return tuple(each.name.removeprefix(name).strip("[]").replace("][", ".").replace("'", "") for each in leaves)


def _check_lengths(tensors: Sequence[Tensor], leaves: Sequence[_Leaf], name: str) -> None:
    """Raise FinwidthError unless all tensors have the same number of samples, at least one."""
    lengths = {len(each) for each in tensors}
    if len(lengths) > 1:
        told = ", ".join(f"{leaf.name} {len(each)}" for leaf, each in zip(leaves, tensors, strict=True))
        raise FinwidthError(
            f"the arguments have different numbers of samples: {told}; in_dims= says which dimension the samples have "
            "in each, None for an argument that all samples share"
        )
    if lengths == {0}:
        raise FinwidthError(f"{name} has no samples; give at least one")


def _as_given(module: nn.Module, leaf: _Leaf) -> object:
    """A value as the module takes it: tensors on its device, floating ones in its dtype."""
    x = leaf.value
    if not isinstance(x, Tensor):
        return x
    first = next(module.parameters(), torch.zeros(()))
    floating = {each.dtype for each in module.parameters() if each.is_floating_point()}
    x = x.detach().to(first.device)
    if x.isnan().any():
        raise FinwidthError(f"{leaf.name} holds numbers that are not finite")
    return x.to(next(iter(floating))) if x.is_floating_point() and len(floating) == 1 else x


def _leaves(value: object, name: str, in_dims: object, told: str) -> tuple[object, list[_Leaf]]:
    """The arguments in tuples and dicts, with arrays as tensors; and all that is in them, in order."""
    if isinstance(value, Mapping):
        keys = list(map(str, value))
        found = [
            _leaves(each, f"{name}[{key!r}]", _dims_of(in_dims, key, keys, told), told)
            for key, each in zip(keys, value.values(), strict=True)
        ]
        return dict(zip(keys, [whole for whole, _ in found], strict=True)), [leaf for _, some in found for leaf in some]
    if isinstance(value, tuple):
        places = list(range(len(value)))
        found = [
            _leaves(each, f"{name}[{i}]", _dims_of(in_dims, i, places, told), told) for i, each in enumerate(value)
        ]
        return tuple(whole for whole, _ in found), [leaf for _, some in found for leaf in some]
    if not isinstance(value, Tensor | np.ndarray | list):
        return value, [_Leaf(name, value, None)]
    x = check_tensor(value, name, "a tensor or an array of numbers")
    if x.ndim == 0 or in_dims is None:
        return x, [_Leaf(name, x, None)]
    dim = index(in_dims)
    if dim is None or not -x.ndim <= dim < x.ndim:
        raise FinwidthError(
            f"{name} has shape {tuple(x.shape)}, and {told} is {shown(in_dims)} there; give the dimension of the "
            "samples, or None for what all of them share"
        )
    return x, [_Leaf(name, x, dim % x.ndim)]


def _dims_of(in_dims: object, key: object, keys: list[Any], told: str) -> object:
    """What ``in_dims`` says of one of some arguments: its own, or what is said of all; 0 where a dict says nothing."""
    if isinstance(in_dims, Mapping):
        strange = [each for each in in_dims if each not in keys]
        if strange:
            raise FinwidthError(
                f"{told} names {shown(strange[0])}, which is no argument; there are {', '.join(map(str, keys))}"
            )
        return in_dims.get(key, 0)
    if isinstance(in_dims, tuple | list):
        if len(in_dims) != len(keys):
            raise FinwidthError(f"{told} is {shown(in_dims)} for {len(keys)} arguments; give one for each")
        return in_dims[keys.index(key)]
    return in_dims


def _all_samples(x: object, name: str) -> tuple[object, bool]:
    """What the module is called with, in one piece; and whether it is a pair of inputs and targets."""
    if isinstance(x, data.DataLoader):
        with repeatable():  # it draws a seed whenever it begins
            batches = list(_loader_batches(x, name))
        graphs = list(map(_graphs, batches))
        if graphs and all(graphs):
            return [each for some in graphs for each in some], False
        return _as_call(_as_one_batch(batches, name), name)
    if isinstance(x, data.IterableDataset):
        raise FinwidthError(
            f"{name} is an IterableDataset, which may have no end; give a list of some of its samples: "
            "list(itertools.islice(dataset, 100))"
        )
    if isinstance(x, data.Dataset) or hasattr(x, "__getitems__") or _is_samples(x):
        with repeatable():
            samples = _of_samples(x, name)
        return _as_call(samples, name) if not _graphs(samples) else (samples, False)
    if isinstance(x, Mapping):
        return dict(x), False
    return x, False


def _is_samples(x: object) -> bool:
    """Whether it is a list of samples, and no list of numbers."""
    return isinstance(x, list) and any(
        isinstance(each, Mapping) or any(map(_is_tensor, pytree.tree_leaves(each))) for each in x
    )


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor | np.ndarray) and x.ndim > 0


def _as_call(batch: object, name: str) -> tuple[object, bool]:
    """A batch that was read as arguments, and whether it is a pair of inputs and targets."""
    if isinstance(batch, list | tuple):
        if len(batch) == 1:
            return _as_call(batch[0], name)
        if len(batch) > 2:
            raise FinwidthError(
                f"the samples of {name} have {len(batch)} parts; give samples that are inputs, or pairs of inputs (a "
                "tensor, a tuple of arguments, or a dict of them by name) and targets, or the tensors themselves: a "
                "tuple of arguments"
            )
        inputs = tuple(batch[0]) if isinstance(batch[0], list) else batch[0]
        return (inputs, batch[1]), True
    return (dict(batch) if isinstance(batch, Mapping) else batch), False


def _of_samples(samples: Any, name: str) -> object:
    """All samples of a dataset or list, in order, in one batch."""
    count = len(samples)
    if not count:
        raise FinwidthError(f"{name} has no samples; give at least one")
    with running(f"{name}[0]"):
        first = samples[0]
    needed = sum(each.nbytes for each in pytree.tree_leaves(first) if isinstance(each, Tensor | np.ndarray))
    afford(2 * count * needed, f"{count} samples in memory", "give fewer: torch.utils.data.Subset")
    with running(f"a sample of {name}"):
        read = [samples[i] for i in range(count)]
    if _graphs(read):
        return read
    try:
        return data.default_collate(read)
    except Exception as error:  # whatever it raises of samples that it cannot join
        raise FinwidthError(
            f"the samples of {name} cannot be joined ({' '.join(str(error).split())[:150]}); give samples of one shape "
            "(pad them), or a DataLoader with a collate_fn that does it"
        ) from None


def _loader_batches(loader: data.DataLoader[Any], name: str) -> Iterator[object]:
    """The batches of a loader, unless it gives others the next time."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, _SHUFFLING) or getattr(sampler, "shuffle", False):
        raise FinwidthError(
            f"{name} is a DataLoader that shuffles, so that nobody knows which sample a row of the kernel is of; give "
            "one with shuffle=False, or its dataset"
        )
    if isinstance(loader.dataset, data.IterableDataset) or (loader.batch_size is None and loader.batch_sampler is None):
        raise FinwidthError(
            f"{name} is a DataLoader of an IterableDataset, or without batches; give one of a Dataset, with a "
            "batch_size"
        )
    with running(f"the DataLoader {name}"):
        yield from loader


def _as_one_batch(batches: list[Any], name: str) -> object:
    """Batches in one."""
    if not batches:
        raise FinwidthError(f"{name} has no batches; give a DataLoader that has at least one")
    found = [_leaves(tuple(each) if isinstance(each, list) else each, name, 0, "in_dims") for each in batches]
    structures = [pytree.tree_structure(whole) for whole, _ in found]
    columns = list(zip(*(leaves for _, leaves in found), strict=False))
    if any(each != structures[0] for each in structures):
        raise FinwidthError(f"the batches of {name} differ in their parts; give a DataLoader whose batches are alike")
    return pytree.tree_unflatten([_column(each) for each in columns], structures[0])


def _column(leaves: Iterable[_Leaf]) -> object:
    """One part of all batches."""
    parts = [each.value for each in leaves]
    name = next(iter(leaves)).name
    tensors = [each for each in parts if isinstance(each, Tensor)]
    if len(tensors) < len(parts) or not any(each.ndim for each in tensors):
        return _alike_in_all(parts, name)
    if len({each.shape[1:] for each in tensors}) > 1 or not all(each.ndim for each in tensors):
        shapes = ", ".join(map(str, dict.fromkeys(tuple(each.shape) for each in tensors)))
        raise FinwidthError(
            f"the batches of {name} have shapes {shapes[:200]}, which cannot be joined; pad all samples to one length, "
            "not to the longest of each batch"
        )
    return torch.cat(tensors)


def _alike_in_all(parts: list[object], name: str) -> object:
    """What has no samples in some batches, and is the same in all."""
    first = parts[0]
    with running(f"a comparison of {name}"):
        others = [each for each in parts if each is not first and (type(each) is not type(first) or each != first)]
    if others:
        raise FinwidthError(
            f"{name} is {shown(first)} in one batch and {shown(others[0])} in another, and all samples share it; give "
            "a tensor with an entry for each sample, or batches that have the same"
        )
    return first


def _graphs(x: object) -> list[Any]:
    """The graphs of a batch of graphs as of PyTorch Geometric, or of a list of them; otherwise none."""
    if hasattr(x, "to_data_list"):
        return list(x.to_data_list())
    if isinstance(x, list | tuple) and x and all(hasattr(each, "edge_index") and hasattr(each, "to") for each in x):
        return list(x)
    if hasattr(x, "edge_index") and hasattr(x, "to"):
        raise FinwidthError(
            "the input is one graph, whose nodes meet each other, so that no node has a gradient of its own; give a "
            "list or a batch of graphs (one sample is one graph), or for the kernel of all nodes of this one give its "
            "tensors and coupled=True: ntk(module, (x, edge_index), coupled=True)"
        )
    return []


def _of_graphs(module: nn.Module, graphs: list[Any]) -> Batch:
    """A batch whose samples are graphs."""
    from importlib import import_module

    first = next(module.parameters(), torch.zeros(()))
    ready = [each.to(first.device) for each in graphs]
    home = type(graphs[0]).__module__.partition(".")[0]
    try:
        join: Callable[[list[Any]], object] = import_module(f"{home}.data").Batch.from_data_list
    except (ImportError, AttributeError):
        raise FinwidthError(
            f"the samples are graphs of {home}, whose batches are not known; give dense tensors: nodes (N, nodes, "
            "features), adjacency (N, nodes, nodes), and a mask"
        ) from None
    numbers = torch.arange(len(ready))
    spec = pytree.tree_structure(numbers)
    return Batch(
        (numbers,), (), Form(spec, (0,), ("graphs",), collate=lambda some: join([ready[i].clone() for i in some]))
    )
