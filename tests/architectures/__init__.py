"""Public architectures with random weights, to try the kernel of torch modules on: the zoo."""

from architectures import language, own, vision
from architectures.entries import ENTRIES, Entry

__all__ = ["ENTRIES", "Entry", "language", "own", "vision"]
