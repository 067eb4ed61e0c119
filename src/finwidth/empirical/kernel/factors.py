"""Gradients by a parameter in factors, and their inner products over pairs of inputs.

Index order everywhere: o outputs, n inputs, g groups, P positions at which a layer uses its weight, a numbers that go
into it there, c that come out.  The derivation and the count of operations are in docs/empirical-ntk.md.

Blocks of the kernel have shape (O1, n1, O2, n2) with all pairs of outputs and (o, n1, n2) with each output by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

Tensor: TypeAlias = torch.Tensor
_PULLED = 2**20  # numbers of gradients by a weight that are formed at once, to be pulled back to its parameters
_RUN = 2**13  # numbers of a gradient that are summed at once


@dataclass(frozen=True)
class DenseFactor:
    """Gradients themselves, shape (n, o, p); ``group`` is the number of the parameters' group."""

    G: Tensor
    group: int = 0

    def part(self, inputs: slice | Tensor) -> DenseFactor:
        """The gradients at some of the inputs; of a slice of them a view."""
        return replace(self, G=self.G[inputs])

    tile = part

    def gathered(self, times: int) -> DenseFactor:
        """The gradients of inputs that had so many consecutive rows each."""
        return self if times == 1 else replace(self, G=torch.unflatten(self.G, 0, (-1, times)).sum(1))

    def summed(self) -> DenseFactor:
        """The outputs as further parameters of a single one: products then sum over the outputs."""
        return replace(self, G=self.G.flatten(1)[:, None])

    def room(self, n: int) -> DenseFactor:
        """A factor for n inputs without numbers yet; `fill` fills parts of it."""
        return replace(self, G=self.G.new_empty(n, *self.G.shape[1:]))

    def fill(self, other: GradientFactor) -> None:
        """Copy the numbers of another factor."""
        self.G.copy_(other.dense().G)

    def dense(self) -> DenseFactor:
        """The gradients are formed already."""
        return self


@dataclass(frozen=True, eq=False)
class Pull:
    """From gradients by a weight to those by the parameters that it is made of.

    ``into(rows, found)`` writes the latter, shape (rows, ``numbers``), into ``found``.
    """

    numbers: int
    into: Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class OuterFactor:
    """Gradients sum_p D[i, n, g, p, :] x A[n, g, p, :] of a weight that multiplies A, in its two factors.

    ``A`` has shape (n, g, P, a) and ``D`` has shape (o, n, g, P, c).  Of a table whose rows are looked up, ``rows`` is
    the number of rows, and ``A``, shape (n, P), holds the numbers of those that are.  Where ``channels_at_once`` is not
    0, products take the gradients themselves, formed for so many of the c at a time.  With ``pull``, the gradients are
    those by the parameters that the weight is made of.  ``group`` is the number of the parameters' group.
    """

    A: Tensor
    D: Tensor
    rows: int | None = None
    channels_at_once: int = 0
    pull: Pull | None = None
    group: int = 0

    def part(self, inputs: slice | Tensor) -> OuterFactor:
        """The gradients at some of the inputs; of a slice of them a view."""
        return replace(self, A=self.A[inputs], D=self.D[:, inputs])

    def gathered(self, times: int) -> OuterFactor:
        """The gradients of inputs that had so many consecutive rows each: these become positions."""
        if times == 1:
            return self
        A, D = torch.unflatten(self.A, 0, (-1, times)), torch.unflatten(self.D, 1, (-1, times))
        A = A.flatten(1, 2) if self.rows is not None else A.transpose(1, 2).flatten(2, 3)
        return replace(self, A=A, D=D.transpose(2, 3).flatten(3, 4))

    def tile(self, inputs: slice) -> OuterFactor:
        """The factors at some of the inputs, contiguous, as matrix products are fastest with them."""
        part = self.part(inputs)
        return part if self.channels_at_once else replace(part, A=part.A.contiguous(), D=part.D.contiguous())

    def room(self, n: int) -> OuterFactor:
        """A factor for n inputs without numbers yet; `fill` fills parts of it."""
        o, _, *sizes, P, c = self.D.shape
        D = self.D.new_empty(o, n, *sizes, c, P).mT  # positions last, as gradients are formed from it
        return replace(self, A=self.A.new_empty(n, *self.A.shape[1:]), D=D)

    def fill(self, other: GradientFactor) -> None:
        """Copy the numbers of another factor."""
        assert isinstance(other, OuterFactor)
        self.A.copy_(other.A)
        self.D.copy_(other.D)

    def channels(self, some: slice) -> OuterFactor:
        """The gradients by the weights of some of the c output channels."""
        return replace(self, D=self.D[..., some])

    def summed(self) -> OuterFactor:
        """The outputs as further numbers of a single one: products then sum over the outputs."""
        return replace(self, D=self.D.movedim(0, 4).flatten(3)[None])

    def dense(self) -> DenseFactor:
        """The gradients themselves, in the order of the weight's numbers."""
        o, n, g, P, c = self.D.shape
        if self.pull is not None:
            return DenseFactor(self._pulled(self.pull), self.group)
        if self.rows is not None:
            return DenseFactor(self.add_rows(self.D.new_zeros(n, o, self.rows * c)), self.group)
        D = self.D.permute(1, 2, 0, 4, 3).reshape(n * g, o * c, P)
        G = torch.bmm(D, self.A.reshape(n * g, P, -1))
        return DenseFactor(G.view(n, g, o, -1).transpose(1, 2).flatten(2), self.group)

    def add_rows(self, G: Tensor) -> Tensor:
        """Add the gradients by rows that are looked up to others by the same table, shape (n, o, numbers)."""
        o, n, _, P, c = self.D.shape
        places = self.A[:, None, :, None].expand(n, o, P, c)
        return G.view(n, o, -1, c).scatter_add_(2, places, self.D[:, :, 0].transpose(0, 1)).flatten(2)

    def _pulled(self, pull: Pull) -> Tensor:
        """The gradients by the parameters behind the weight, shape (n, o, numbers), from some inputs at a time."""
        o, n, g, _, c = self.D.shape
        found, weight = self.D.new_empty(n, o, pull.numbers), replace(self, pull=None)
        few = max(1, _PULLED // (o * g * c * (self.rows or self.A.shape[-1])))
        for start in range(0, n, few):
            some = slice(start, start + few)
            pull.into(weight.part(some).dense().G.flatten(0, 1), found[some].flatten(0, 1))
        return found


GradientFactor: TypeAlias = DenseFactor | OuterFactor


@dataclass(frozen=True)
class FactorSize:
    """The sizes of a factor for one input and one output; P = 0 for gradients themselves, c of them.

    ``pulled`` is the number of parameters that a weight is made of, 0 if it is one itself. Of a table whose rows are
    ``looked_up``, a is the number of rows.
    """

    g: int
    P: int
    a: int
    c: int
    pulled: int = 0
    looked_up: bool = False

    @classmethod
    def of(cls, factor: GradientFactor) -> FactorSize:
        """The shape of a factor."""
        if isinstance(factor, DenseFactor):
            return cls(1, 0, 0, factor.G.shape[-1])
        a = factor.A.shape[-1] if factor.rows is None else factor.rows
        _, _, g, P, c = factor.D.shape
        return cls(g, P, a, c, factor.pull.numbers if factor.pull else 0, factor.rows is not None)

    def materializes(self, o: int, n: int, *, all_pairs: bool) -> bool:
        """Whether a product of n inputs with n takes fewer multiplications if the gradients are formed.

        Examples
        --------
        >>> from finwidth.empirical.kernel.factors import FactorSize
        >>> FactorSize(1, 1, 512, 512).materializes(10, 64, all_pairs=True)
        False
        >>> FactorSize(1, 256, 27, 32).materializes(10, 64, all_pairs=True)
        True
        >>> FactorSize(1, 8, 50_000, 32, looked_up=True).materializes(1, 64, all_pairs=False)
        False
        """
        g, P, c = self.g, self.P, self.c
        if g > 1 or not P or self.pulled:
            return True
        outputs = o * o if all_pairs else o
        a = 1 if self.looked_up else self.a  # two of its rows are the same or they are not
        formed = outputs * self.a * c + 2 * o * P * a * c / n
        if P == 1 or not all_pairs:
            return formed < P * P * (a + outputs * c)
        return formed < P * P * (a + o * c) + P * outputs * c

    def numbers(self, o: int, *, formed: bool) -> int:
        """Numbers held for one input and o outputs, as gradients (``formed``) or as factors."""
        g, P, a, c = self.g, self.P, self.a, self.c
        if not P:
            return o * c
        return o * (self.pulled or g * a * c) if formed else g * P * ((1 if self.looked_up else a) + o * c)


def add_pairs(K: Tensor, one: GradientFactor, other: GradientFactor) -> None:
    """Add the products of all pairs of inputs and of outputs to ``K``, shape (O1, n1, O2, n2)."""
    if not (isinstance(one, OuterFactor) and isinstance(other, OuterFactor)):
        o1, n1, o2, n2 = K.shape
        products = _inner_products(one.dense().G.flatten(0, 1)[None], other.dense().G.flatten(0, 1)[None])
        K += products.view(n1, o1, n2, o2).permute(1, 0, 3, 2)
    elif one.D.shape[3] == other.D.shape[3] == 1:
        D1, D2 = one.D.flatten(2).flatten(0, 1), other.D.flatten(2).flatten(0, 1)
        K.addcmul_((D1 @ D2.T).view(K.shape), _input_products(one, other)[None, :, None, :])
    else:
        _add_by_positions(K, one, other)


def _inner_products(G1: Tensor, G2: Tensor) -> Tensor:
    """G1 G2^T of matrices (b, n, p), in runs of p: a single sum of so many numbers loses digits in single precision."""
    p = G1.shape[-1]
    found = torch.bmm(G1[..., :_RUN], G2[..., :_RUN].mT)
    for start in range(_RUN, p, _RUN):
        found = found + torch.bmm(G1[..., start : start + _RUN], G2[..., start : start + _RUN].mT)
    return found


def _add_by_positions(K: Tensor, one: OuterFactor, other: OuterFactor) -> None:
    """sum_pq (A_ap . A_bq) (D_iap . D_jbq), the positions p summed first: O1 n2 q c numbers for each input a."""
    O1, n1, O2, n2 = K.shape
    P, Q, c = one.D.shape[3], other.D.shape[3], other.D.shape[4]
    inner = _input_products(one, other).view(n1, P, n2 * Q)
    D1 = one.D[:, :, 0].permute(1, 2, 3, 0).reshape(n1, P, c * O1)
    D2 = other.D[:, :, 0].permute(1, 2, 3, 0).reshape(n2, Q * c, O2)
    for a in range(n1):
        weighed = (inner[a].T @ D1[a]).view(n2, Q * c, O1)
        K[:, a] += torch.bmm(weighed.transpose(1, 2), D2).permute(1, 2, 0)


def add_outputs(K: Tensor, one: GradientFactor, other: GradientFactor) -> None:
    """Add the products of all pairs of inputs, each output by itself, to ``K``, shape (o, n1, n2)."""
    if not (isinstance(one, OuterFactor) and isinstance(other, OuterFactor)):
        K += _inner_products(one.dense().G.transpose(0, 1), other.dense().G.transpose(0, 1))
        return
    o, n1, n2 = K.shape
    products = torch.bmm(one.D.flatten(1, 3), other.D.flatten(1, 3).mT)
    if products.shape[1:] == (n1, n2):
        K.addcmul_(products, _input_products(one, other))
    else:
        K += (products * _input_products(one, other)).view(o, n1, -1, n2, other.D.shape[3]).sum((2, 4))


def _input_products(one: OuterFactor, other: OuterFactor) -> Tensor:
    """A_ap . A_bq, shape (n1 P1, n2 P2)."""
    if one.rows is None:
        return one.A.flatten(0, 2) @ other.A.flatten(0, 2).T
    return (one.A.reshape(-1, 1) == other.A.reshape(1, -1)).to(one.D.dtype)


def each_with_itself(one: GradientFactor, other: GradientFactor, *, all_pairs: bool) -> Tensor:
    """Products at equal inputs: shape (n, O1, O2) with all pairs of outputs, (n, o) with each by itself."""
    if isinstance(one, OuterFactor) and isinstance(other, OuterFactor) and one.D.shape[3] > 1:
        return torch.stack([_at_one_input(one, other, a, all_pairs=all_pairs) for a in range(one.D.shape[1])])
    G1, G2 = (each.D.flatten(2).transpose(0, 1) if isinstance(each, OuterFactor) else each.G for each in (one, other))
    found = _inner_products(G1, G2) if all_pairs else (G1 * G2).sum(2)
    if isinstance(one, OuterFactor) and one.rows is None:
        found = found * one.A.square().sum((1, 2, 3)).view(-1, *[1] * (found.ndim - 1))
    return found


def _at_one_input(one: OuterFactor, other: OuterFactor, a: int, *, all_pairs: bool) -> Tensor:
    """Products at one input, shape (O1, O2) or (o,)."""
    left, right = one.tile(slice(a, a + 1)), other.tile(slice(a, a + 1))
    if all_pairs:
        K = left.D.new_zeros(len(left.D), 1, len(right.D), 1)
        add_pairs(K, left, right)
        return K[:, 0, :, 0]
    K = left.D.new_zeros(len(left.D), 1, 1)
    add_outputs(K, left, right)
    return K[:, 0, 0]
