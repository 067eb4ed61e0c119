"""The kernel of public architectures (tests/zoo) against plain autograd of the whole batch."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")

from architectures import ENTRIES, Entry, truth  # noqa: E402
from finwidth.empirical import ntk  # noqa: E402
from finwidth.empirical.kernel.computation import KernelJob  # noqa: E402
from finwidth.errors import FinwidthError  # noqa: E402

CASES = [
    pytest.param(each, id=name, marks=[] if each.library == "torch" else pytest.mark.slow)
    for name, each in ENTRIES.items()
]


@pytest.mark.parametrize("entry", CASES)
def test_kernel_is_that_of_plain_autograd(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter counts with a scale that gives it the same part of the kernel, so that no fault can hide.

    And the run-time check does not fire, which would hide one too. The plan is made by a pass of all five inputs, and
    by one of three.
    """
    retreat = KernelJob.generalised
    fired: list[str] = []

    def generalised(job: KernelJob, *ways: str) -> KernelJob:
        fired.extend([] if ways else [entry.name])  # the check gives no ways
        return retreat(job, *ways)

    monkeypatch.setattr(KernelJob, "generalised", generalised)
    pytest.importorskip(entry.library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other libraries
        module, x = entry.subject(5, torch.float64)
        J = truth.jacobians(module, x, entry.outputs)
        scales = truth.equal_shares(J)
        right = truth.kernel(J, scales)
        assert right.isfinite().all()
        module, x = entry.subject(5, torch.float64)  # a layer may have kept something of the passes before
        if entry.refused:
            with pytest.raises(FinwidthError, match=entry.refused):
                ntk(module, x, outputs=entry.outputs, scale=scales)
            return
        K = ntk(module, x, outputs=entry.outputs, scale=scales)
        few = ntk(module, x[:3], outputs=entry.outputs, scale=scales)
    gap = torch.stack(
        [(K.view(right.shape) - right).abs().max(), (few.view_as(right[:3, :3]) - right[:3, :3]).abs().max()]
    )
    error = float(gap.max() / right.abs().max())
    print(f"{entry.name}: {error:.1e}, {sum(each == 0 for each in scales.values())} of {len(scales)} gradients are 0")
    assert error < entry.tolerance
    assert not fired


def test_a_single_sample_is_right_where_torch_is_not() -> None:
    """In torch 2.13 on the CPU batch normalisation makes a wrong gradient of a transposed one of a single sample."""
    entry = ENTRIES["Convolutions, then attention"]
    module, x = entry.subject(3, torch.float64)
    J = truth.jacobians(module, x)
    right = truth.kernel(J, dict.fromkeys(J, 1.0))
    module, x = entry.subject(3, torch.float64)
    for some in (slice(1), slice(1, 2)):
        torch.testing.assert_close(ntk(module, x[some]), right[some, some])
    torch.testing.assert_close(ntk(module, x, entries="diagonal"), right[range(3), range(3)])
    assert not module.cache
