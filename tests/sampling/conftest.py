"""What the tests of matrix-free layers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from finwidth.sampling.lazy_matrix.combination import SharedMatrix


@pytest.fixture
def double() -> Iterator[None]:
    """Torch in float64."""
    import torch

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def never_materialized(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix is ever materialized."""
    monkeypatch.setattr(SharedMatrix, "materialize_if_smaller", lambda self, coming=0: None)
