"""How a kernel is cut into passes and products: every entry is computed once, in few passes and little memory."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

pytest.importorskip("torch")

from finwidth.empirical.kernel.layout import Entries, Layout

SHAPES = [
    Entries(7, None, range(1)),
    Entries(7, None, range(3)),
    Entries(7, None, range(3), all_pairs=True),
    Entries(7, 4, range(3)),
    Entries(7, 4, range(3), all_pairs=True),
    Entries(4, 7, range(2, 3), summed=True),
    Entries(7, None, range(3), diagonal_only=True),
    Entries(7, None, range(3), all_pairs=True, diagonal_only=True),
]
CUTS = [(7, 3, 7, 7), (3, 3, 2, 1), (3, 1, 1, 3), (2, 2, 2, 2), (5, 2, 3, 2), (1, 1, 1, 1)]


def entries_of(shape: Entries, layout: Layout) -> Counter[tuple[int, int, int, int]]:
    """How often every entry (input, input_, output, output_) is computed, or copied from its mirror image."""
    found: Counter[tuple[int, int, int, int]] = Counter()
    for left, right in (pair for step in layout.steps() for pair in step.products):
        assert right.second == (shape.second is not None)
        for a, b in product(left.inputs, right.inputs):
            for i, j in product(left.outputs, right.outputs):
                if (a == b or not shape.diagonal_only) and (i == j or shape.all_pairs):
                    found[a, b, i, j] += 1
                    if shape.second is None and left != right and not shape.diagonal_only:
                        found[b, a, j, i] += 1
    return found


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_entry_is_computed_once(shape: Entries, cuts: tuple[int, int, int, int]) -> None:
    columns = range(shape.first if shape.second is None else shape.second)
    outputs = range(len(shape.outputs))
    wanted = {
        (a, b, i, j)
        for a, b, i, j in product(range(shape.first), columns, outputs, outputs)
        if (a == b or not shape.diagonal_only) and (i == j or shape.all_pairs)
    }
    found = entries_of(shape, Layout(shape, *cuts))
    assert found == dict.fromkeys(wanted, 1)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_multiplied_has_been_passed(shape: Entries, cuts: tuple[int, int, int, int]) -> None:
    """At most two blocks are held (on the diagonal all outputs of a few inputs), of the given sizes."""
    inputs, outputs, inputs_per_pass, tile = cuts
    layout = Layout(shape, *cuts)
    held: dict[object, list[int]] = {}
    passed = 0
    for step in layout.steps():
        held = {block: held.get(block, []) for block in step.blocks}
        assert len(held) <= 2 or shape.diagonal_only
        for block, run, some in step.passes:
            assert len(some) <= inputs_per_pass
            assert len(run) <= max(inputs_per_pass, tile)
            assert set(some) <= set(run) <= set(block.inputs)
            held[block].extend(some)
            passed += len(some)
        for block in step.blocks:
            assert held[block] == list(block.inputs)  # each input once, in order
            assert len(block.inputs) <= inputs
            assert len(block.outputs) <= outputs
    assert passed == layout.inputs_passed


def test_blocks_are_passed_anew_only_where_another_took_their_place() -> None:
    """Rows of three blocks: the last block of a row is the next row, and so is not passed again."""
    layout = Layout(Entries(6, None, range(1)), 2, 1, 2, 2)
    passes = [[each.inputs.start // 2 for each in step.passes] for step in layout.steps()]
    assert passes == [[0], [2], [1], [], [2], []]
