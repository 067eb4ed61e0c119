"""Gradients by weights, and from them those by the parameters that the weights are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch

from finwidth.empirical.kernel.calls import MeasuredModule, dual, unpack_dual
from finwidth.empirical.kernel.factors import DenseFactor, FactorSize, GradientFactor, OuterFactor, Pull
from finwidth.empirical.kernel.operations import Linear, Rule, Scaling, gradient_of
from finwidth.empirical.kernel.recording import Record, Use

Tensor = torch.Tensor
_LONG = 2**16  # numbers of a weight whose gradients are pulled back one by one
Weights: TypeAlias = dict[str, list[tuple[Rule, GradientFactor]]]  # the gradients by weights, of every use of each


class OtherRouteError(Exception):
    """A pass cannot be done as the plan says."""


def connected(pulled: Collection[str], pass_: Record, rough: Weights) -> list[Weights]:
    """The weights in groups; those of different groups have no parameters in common."""
    groups: list[tuple[set[str], Weights]] = []
    for key, parts in rough.items():
        names, weights = set(parameters_behind(pulled, pass_, [key])), {key: parts}
        for group in [each for each in groups if each[0] & names]:
            groups.remove(group)
            names, weights = names | group[0], group[1] | weights
        groups.append((names, weights))
    return [weights for _, weights in groups]


def parameters_behind(pulled: Collection[str], pass_: Record, keys: Iterable[str]) -> list[str]:
    """The parameters behind weights, as far as their gradients are pulled back."""
    return sorted(set(pulled) & {name for key in keys for name in pass_.made_of.get(key, {key})})


def parameter_gradients(
    network: MeasuredModule, pulled: Collection[str], pass_: Record, rough: Weights, leaves: Mapping[str, Tensor]
) -> DenseFactor:
    """The gradients by parameters, from those by the weights that are made of them, or by themselves."""
    rows = [_summed(parts) for parts in rough.values()]
    (key, *others), weights = rough, {**leaves, **pass_.made}
    if not others and key in leaves:
        root = network.scales[key] ** 0.5
        return DenseFactor(rows[0] if root == 1 else root * rows[0])
    behind = {name: leaves[name] for name in parameters_behind(pulled, pass_, rough)}
    pull = pullback(network, [weights[key] for key in rough], behind)
    whole = rows[0] if len(rows) == 1 else torch.cat(rows, dim=2)
    found = whole.new_empty(*whole.shape[:2], pull.numbers)
    pull.into(whole.flatten(0, 1), found.view(-1, pull.numbers))
    return DenseFactor(found)


def rows_of_products(parts: list[tuple[Rule, GradientFactor]]) -> int | None:
    """In how many rows of a table the products with it have gradients at a sample; those of one logit have in one.

    None unless the table is looked up or multiplied only, each product has gradients in as many rows at every sample,
    and those by all such rows are fewer numbers than those by the whole table.
    """
    products, lookups = list[OuterFactor](), list[OuterFactor]()
    for rule, each in parts:
        if not isinstance(each, OuterFactor) or (each.rows is None and type(rule) is not Linear):
            return None
        (products if each.rows is None else lookups).append(each)
    if not lookups:
        return None
    counts = [_nonzero_rows(each).sum(1) for each in products]
    if any(int(each.min()) != int(each.max()) for each in counts):  # which rows there are depends on the numbers
        return None
    many, o = max((int(each.max()) for each in counts), default=0), len(lookups[0].D)
    size = size_in_rows(parts, many)
    return many if size.numbers(o, formed=False) < size.numbers(o, formed=True) else None


def size_in_rows(parts: list[tuple[Rule, GradientFactor]], many: int) -> FactorSize:
    """The size of what `in_rows` gives."""
    outers = [each for _, each in parts if isinstance(each, OuterFactor)]
    P = sum(many if each.rows is None else each.D.shape[3] for each in outers)
    first = next(each for each in outers if each.rows is not None)
    return replace(FactorSize.of(first), P=P)


def in_rows(parts: list[tuple[Rule, GradientFactor]], many: int, scale: float) -> OuterFactor:
    """The gradients by a table as those by rows that are looked up, of each product with it so many at a sample."""
    rows, gradients, table = list[Tensor](), list[Tensor](), 0
    for _, each in parts:
        assert isinstance(each, OuterFactor)
        D = each.D[:, :, 0]
        if each.rows is not None:
            table = each.rows
            rows.append(each.A)
            gradients.append(D)
            continue
        used = _nonzero_rows(each)
        if int(used.sum(1).max()) > many:
            raise OtherRouteError
        chosen = used.to(torch.uint8).topk(many, dim=1).indices  # some may be zeros
        own = D.gather(3, chosen[:, None, :].expand(*D.shape[:3], many))
        rows.append(chosen)
        gradients.append(own.mT @ each.A[:, 0])
    return OuterFactor(torch.cat(rows, 1), scale**0.5 * torch.cat(gradients, 2)[:, :, None], table)


def _nonzero_rows(product: OuterFactor) -> Tensor:
    """The rows of a weight in which a product with it has gradients, or their tangents, shape (n, rows)."""
    parts = (each for each in unpack_dual(product.D) if each is not None)
    return torch.stack([(each != 0).any((0, 2, 3)) for each in parts]).any(0)


def _summed(parts: list[tuple[Rule, GradientFactor]]) -> Tensor:
    """The gradients by a weight, the sum of those of its uses; rows that are looked up are added where they are."""
    looked_up = [each for _, each in parts if isinstance(each, OuterFactor) and each.rows is not None]
    others = [(rule, each) for rule, each in parts if not any(each is one for one in looked_up)]
    if not others:
        first, *looked_up = looked_up
        found = first.dense().G
    elif len(others) > 1:
        found = torch.stack([gradient_of(rule, each) for rule, each in others]).sum(0)
    else:
        ((rule, only),) = others
        found = gradient_of(rule, only)
        if looked_up and isinstance(only, DenseFactor):  # whose gradients are not formed anew
            found = found.clone()
    for each in looked_up:
        each.add_rows(found)
    return found


def pullback(network: MeasuredModule, weights: list[Tensor], leaves: Mapping[str, Tensor]) -> Pull:
    """Small backward passes from weights to the parameters they are made of.

    All rows go back at once, but for long ones, which take less time one after another, and far less memory.
    """
    sizes, numbers = [each.numel() for each in weights], [each.numel() for each in leaves.values()]

    def into(rows: Tensor, found: Tensor) -> None:
        at_once = 1 if sum(sizes) > _LONG else len(rows)
        for some, place in zip(torch.split(rows, at_once), torch.split(found, at_once), strict=True):
            batched = len(some) > 1
            given = [
                each.reshape([*([len(some)] if batched else []), *weight.shape]).to(weight.dtype)
                for each, weight in zip(torch.split(some, sizes, 1), weights, strict=True)
            ]
            try:
                columns = torch.autograd.grad(
                    weights,
                    list(leaves.values()),
                    given,
                    retain_graph=True,
                    is_grads_batched=batched,
                    materialize_grads=True,
                )
            except NotImplementedError:  # no forward derivative: there is another route
                raise
            except RuntimeError as error:
                raise OtherRouteError from error
            for name, column, own in zip(leaves, columns, torch.split(place, numbers, 1), strict=True):
                root = network.scales[name] ** 0.5
                own.copy_((column if root == 1 else root * column).reshape(own.shape))

    return Pull(sum(numbers), into)


def input_as(use: Use, dtype: torch.dtype) -> Tensor:
    """A use's input without its graph, but with its tangent, in this type if it is a factor of the gradients."""
    primal, tangent = unpack_dual(use.input)
    x = use.input.detach() if tangent is None else dual(primal.detach(), tangent.detach())
    return x.to(dtype) if x.is_floating_point() and not isinstance(use.rule, Scaling) else x
