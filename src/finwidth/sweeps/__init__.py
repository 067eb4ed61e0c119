"""Sweeps over grids of networks: one file says what, one command computes it, and a store keeps what is done."""

from finwidth.sweeps.dataset import read
from finwidth.sweeps.mending import check
from finwidth.sweeps.merge import merge
from finwidth.sweeps.run import sweep

__all__ = ["check", "merge", "read", "sweep"]
