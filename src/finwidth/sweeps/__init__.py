"""Sweeps over grids of networks: one file says what, one command computes it, and a store keeps what is done."""

from finwidth.sweeps.execution.run import sweep
from finwidth.sweeps.store.dataset import read
from finwidth.sweeps.store.mending import check
from finwidth.sweeps.store.merge import merge

__all__ = ["check", "merge", "read", "sweep"]
