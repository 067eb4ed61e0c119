"""The table of quantities: an entry here is all that a new one needs."""

from finwidth.sweeps.drawn_kinds import Gram, Sampled
from finwidth.sweeps.exact_kinds import Bounds, Exact
from finwidth.sweeps.kind import Kind, Settings
from finwidth.sweeps.training_kind import Training

__all__ = ["KINDS", "Kind", "Settings"]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Exact(), Bounds(), Sampled(), Gram(), Training())}
