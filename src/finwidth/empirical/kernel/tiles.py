"""The gradients of the blocks of a kernel, cut into tiles, and the products of tiles, added to the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from finwidth.empirical.kernel.factors import (
    FactorSize,
    GradientFactor,
    OuterFactor,
    add_outputs,
    add_pairs,
    each_with_itself,
)
from finwidth.empirical.kernel.layout import Block, Entries, Layout, Pass, Sizes, pieces

Tensor = torch.Tensor


@dataclass(frozen=True)
class Tile:
    """Factors of the gradients of some outputs at some inputs, and their place in the kernel."""

    inputs: slice
    outputs: slice
    factors: Sequence[GradientFactor]


class BlockTiles:
    """The tiles of the blocks that are in use."""

    def __init__(self, layout: Layout) -> None:
        self._tile, self._summed = layout.tile, layout.entries.summed
        self._blocks: dict[Block, list[Tile]] = {}
        self._joined: list[GradientFactor] = []

    def __getitem__(self, block: Block) -> list[Tile]:
        return self._blocks[block]

    def keep(self, blocks: Iterable[Block]) -> None:
        """Drop all other blocks."""
        self._blocks = {block: self._blocks.get(block, []) for block in blocks}

    def add(self, pass_: Pass, factors: list[GradientFactor]) -> None:
        """Take the gradients of one pass; memory peaks at those of its run and of the pass."""
        block, run, inputs = pass_
        if inputs != run:
            start = inputs.start - run.start
            self._joined = self._joined or [each.room(len(run)) for each in factors]
            for into, each in zip(self._joined, factors, strict=True):
                into.part(slice(start, start + len(inputs))).fill(each)
            factors = self._joined
        if inputs.stop == run.stop:
            self._joined = []
            place = slice(0, 1) if self._summed else slice(block.outputs.start, block.outputs.stop)
            for part in pieces(range(len(run)), self._tile):
                own = slice(run.start + part.start, run.start + part.stop)
                tile = [each.tile(slice(part.start, part.stop)) for each in factors]
                self._blocks[block].append(Tile(own, place, tile))


def compact(factors: Iterable[GradientFactor], sizes: Sizes, layout: Layout) -> list[GradientFactor]:
    """The gradients of a pass as a block keeps them: formed, or in factors where these take less work or memory."""
    n, o, kept = layout.inputs, layout.outputs, list[GradientFactor]()
    for factor in factors:
        size = FactorSize.of(factor)
        if isinstance(factor, OuterFactor) and sizes.deferred(size, n, o):
            kept.append(replace(factor, channels_at_once=sizes.channels(size, n, o)))
        else:
            found = factor.dense() if sizes.materializes(size, n, o) else factor
            kept.append(found.summed() if layout.entries.summed else found)
    return kept


def add_products(K: Tensor, entries: Entries, left: list[Tile], right: list[Tile]) -> None:
    """Add the products of two blocks to the kernel; if x2 is x1, they are copied to the mirror image of their place."""
    same = left is right
    pairs = [(i, j) for i in range(len(left)) for j in range(i if same else 0, len(right))]
    by_group, across = K if entries.groups else K[None], _parts(right, entries)
    for group, ones in _parts(left, entries):
        others = ones if same else next(across)[1]
        for i, j in pairs:
            _add_tiles(by_group[group], ones[i], others[j], all_pairs=entries.all_pairs)
    if entries.second is None:
        for each, (i, j) in product(by_group, pairs):
            _mirror(each, left[i], right[j], all_pairs=entries.all_pairs)


def add_diagonal(K: Tensor, entries: Entries, left: list[Tile], right: list[Tile]) -> None:
    """Add the products of two blocks at the same inputs, of every input with itself only."""
    by_group = K if entries.groups else K[None]
    for one, other in zip(left, right, strict=True):
        place = one.inputs, one.outputs, *([other.outputs] if entries.all_pairs else [])
        for mine, theirs in zip(_by_group(one), _by_group(other), strict=True):
            factors = zip(mine.factors, theirs.factors, strict=True)
            found = sum(each_with_itself(*pair, all_pairs=entries.all_pairs) for pair in factors)
            by_group[mine.factors[0].group][place] += found


def _add_tiles(K: Tensor, one: Tile, other: Tile, *, all_pairs: bool) -> None:
    """Add the products of two tiles."""
    place = _entries_of(K, one, other, all_pairs=all_pairs)
    found = place if len(one.factors) == 1 else torch.zeros_like(place, memory_format=torch.contiguous_format)
    for left, right in zip(one.factors, other.factors, strict=True):
        (add_pairs if all_pairs else add_outputs)(found, left, right)
    if found is not place:
        place += found


def _mirror(K: Tensor, one: Tile, other: Tile, *, all_pairs: bool) -> None:
    """Copy the entries of two tiles to where the tiles are exchanged."""
    if one is not other:
        here, there = _entries_of(K, one, other, all_pairs=all_pairs), _entries_of(K, other, one, all_pairs=all_pairs)
        there.copy_(here.permute(2, 3, 0, 1) if all_pairs else here.mT)


def _entries_of(K: Tensor, one: Tile, other: Tile, *, all_pairs: bool) -> Tensor:
    """The part of the kernel that belongs to two tiles, with its dimensions in the order of products."""
    if all_pairs:
        return K[one.inputs, other.inputs, one.outputs, other.outputs].permute(2, 0, 3, 1)
    return K[one.inputs, other.inputs, one.outputs].permute(2, 0, 1)


def _by_group(tile: Tile) -> list[Tile]:
    """The factors of each group by themselves."""
    groups = dict.fromkeys(each.group for each in tile.factors)
    return [replace(tile, factors=[each for each in tile.factors if each.group == group]) for group in groups]


def _parts(tiles: list[Tile], entries: Entries) -> Iterator[tuple[int, list[Tile]]]:
    """A block, parameters by parameters, with their group: what is held as it is multiplied; the rest, in parts."""
    factors = enumerate(tiles[0].factors)
    deferred = {i: each for i, each in factors if isinstance(each, OuterFactor) and each.channels_at_once}
    if len(deferred) < len(tiles[0].factors):
        held = [replace(tile, factors=[f for i, f in enumerate(tile.factors) if i not in deferred]) for tile in tiles]
        for parts in zip(*map(_by_group, held), strict=True):
            yield parts[0].factors[0].group, list(parts)
    for i, factor in deferred.items():
        for some in pieces(range(factor.D.shape[-1]), factor.channels_at_once):
            formed = []
            for tile in tiles:
                whole = tile.factors[i]
                assert isinstance(whole, OuterFactor)
                gradients = whole.channels(slice(some.start, some.stop)).dense()
                formed.append(replace(tile, factors=[gradients.summed() if entries.summed else gradients]))
            yield factor.group, formed
