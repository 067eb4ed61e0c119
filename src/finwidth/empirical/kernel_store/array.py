"""How a kernel lies on disk: one array, cut into blocks of inputs, each of which is one chunk, one file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Place: TypeAlias = tuple[int, ...]  # of a block: its number along each dimension of inputs
Labels: TypeAlias = "list[str] | list[int]"  # of a dimension
Numbers: TypeAlias = npt.NDArray[np.generic]

_CHUNK_BYTES = 2**24  # of a file; a kill loses the work for one on each thread
_SHARE = 64  # a chunk takes at most this part of the memory
_PIECES, _FEW = 4, 64  # inputs are cut into so many pieces, for threads, unless a piece would have fewer inputs


@dataclass(frozen=True)
class KernelArray:
    """The array of a kernel, and its blocks.

    ``shape`` has the dimensions ``dims``: groups of parameters if they are told apart, inputs, which are cut into
    pieces of ``sides``, and outputs. With ``symmetric`` a block below the diagonal is the mirror image of one above,
    and is written with it.

    Examples
    --------
    >>> from finwidth.empirical.kernel_store.array import KernelArray
    >>> whole = KernelArray((5, 5), (2, 2), ("input", "input_"), "float64", symmetric=True)
    >>> list(whole.blocks())
    [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    >>> KernelArray((9, 5, 5), (2, 2), ("group", "input", "input_"), "float64", symmetric=True).chunk_place((1, 2))
    (0, 1, 2)
    >>> whole.region((1, 2)), whole.pairs((1, 2)), sum(map(whole.pairs, whole.blocks()))
    ((range(2, 4), range(4, 5)), 4, 25)
    """

    shape: tuple[int, ...]
    sides: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    symmetric: bool

    @property
    def _cut(self) -> slice:
        """The dimensions of inputs."""
        first = self.dims.index("input")
        return slice(first, first + len(self.sides))

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of a chunk."""
        return (*self.shape[: self._cut.start], *self.sides, *self.shape[self._cut.stop :])

    @property
    def chunk_bytes(self) -> int:
        """The size of each file."""
        return math.prod(self.chunks) * np.dtype(self.dtype).itemsize

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return math.prod(self.grid) * self.chunk_bytes

    @property
    def grid(self) -> tuple[int, ...]:
        """Numbers of blocks along the dimensions of inputs."""
        return tuple(-(-n // side) for n, side in zip(self.shape[self._cut], self.sides, strict=True))

    def places(self) -> Iterator[Place]:
        """All of them."""
        return product(*map(range, self.grid))

    def blocks(self) -> Iterator[Place]:
        """Those that are computed."""
        return (place for place in self.places() if place == min(self.mirrored(place)))

    def mirrored(self, place: Place) -> list[Place]:
        """The places that are written with this one, itself last."""
        return [place[::-1], place] if self.symmetric and place != place[::-1] else [place]

    def region(self, place: Place) -> tuple[range, ...]:
        """The inputs of a block."""
        cuts = zip(place, self.sides, self.shape[self._cut], strict=True)
        return tuple(range(i * side, min((i + 1) * side, n)) for i, side, n in cuts)

    def chunk_place(self, place: Place) -> Place:
        """The number of a block's chunk along every dimension."""
        numbers = [0] * len(self.shape)
        numbers[self._cut] = place
        return tuple(numbers)

    def place_of(self, chunk: Place) -> Place:
        """The block of a chunk, by its numbers."""
        return chunk[self._cut]

    def pairs(self, place: Place) -> int:
        """How many pairs of inputs are done with a block and its mirror image."""
        return len(self.mirrored(place)) * math.prod(map(len, self.region(place)))

    def chunk(self, entries: Numbers) -> bytes:
        """The file of a block: its entries, filled up with NaN to the shape of a chunk."""
        whole = np.full(self.chunks, np.nan, np.dtype(self.dtype).newbyteorder("<"))
        whole[tuple(map(slice, entries.shape))] = entries
        return whole.tobytes()

    def mirror(self, entries: Numbers) -> Numbers:
        """The block with its inputs exchanged, and its outputs too."""
        dims = self.dims
        exchanged = [f"{name}_" if f"{name}_" in dims else name.removesuffix("_") for name in dims]
        return entries.transpose([dims.index(name) for name in exchanged])


def block_sides(sizes: tuple[int, ...], pair_bytes: int, memory: int) -> tuple[int, ...]:
    """Numbers of inputs of a block along each dimension: nearly equal pieces, as large as is good.

    Examples
    --------
    >>> from finwidth.empirical.kernel_store.array import block_sides
    >>> block_sides((20_000, 20_000), 4, 2**30), block_sides((20_000,), 4, 2**30), block_sides((50, 3), 8, 2**14)
    ((2000, 2000), (5000,), (5, 3))
    """
    pairs = max(1, min(_CHUNK_BYTES, memory // _SHARE) // pair_bytes)
    most = min(pairs if len(sizes) == 1 else math.isqrt(pairs), max(_FEW, -(-max(sizes) // _PIECES)))
    return tuple(-(-n // -(-n // most)) for n in sizes)


def function_coordinates(functions: Mapping[str, Mapping[str, int]]) -> dict[str, tuple[str, Labels]]:
    """For every input of a block matrix the function that it is an input of, and its number among those.

    ``functions`` has, for each dimension of inputs, how many every function has.

    Examples
    --------
    >>> from finwidth.empirical.kernel_store.array import function_coordinates
    >>> function_coordinates({"input_": {"u": 2, "r": 1}})
    {'function_': ('input_', ['u', 'u', 'r']), 'number_': ('input_', [0, 1, 0])}
    """
    found: dict[str, tuple[str, Labels]] = {}
    for dim, sizes in functions.items():
        mark = dim.removeprefix("input")
        found[f"function{mark}"] = dim, [name for name, n in sizes.items() for _ in range(n)]
        found[f"number{mark}"] = dim, [i for n in sizes.values() for i in range(n)]
    return found
