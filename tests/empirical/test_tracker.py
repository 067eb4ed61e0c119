"""A tracker records the kernel of a training network, leaves the training alone, and survives what befalls it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import finwidth
from finwidth import MLP, observables
from finwidth.schedule import schedule

torch = pytest.importorskip("torch")
nn = torch.nn
Tracker = finwidth.empirical.Tracker
home = pytest.importorskip("finwidth.empirical.training.tracker")
jacobian = pytest.importorskip("finwidth.empirical.reference.jacobian")


X = torch.tensor(np.random.default_rng(60).normal(size=(7, 3)))
Y = torch.sin(3 * X[:, 0])


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(61)


def training(module: Any, rate: float = 0.02) -> Iterator[Any]:
    """The loss of each step of full-batch SGD, without end."""
    optimizer = torch.optim.SGD(module.parameters(), rate)
    while True:
        optimizer.zero_grad()
        loss = (module(X)[:, 0] - Y).square().sum() / 2
        loss.backward()
        optimizer.step()
        yield loss


def network(outputs: int = 1) -> Any:
    return finwidth.empirical.MLP(MLP([3, 20, 20, outputs]), seed=3)


def run(trained: int, *, start: int = 0, **how: Any) -> Any:
    """A tracker after that many steps; a run that goes on has been trained up to ``start`` first, untracked."""
    module = network()
    losses = training(module)
    for _ in range(start):
        next(losses)
    tracker = Tracker(module, X, Y, start=start, **how)
    for _ in range(trained - start):
        tracker.step(next(losses))
    return tracker


def test_what_is_recorded_is_what_the_kernels_say() -> None:
    module = network(outputs=2)
    targets = torch.stack([Y, Y.square()], dim=1)
    tracker = Tracker(module, X, targets, record=[2, 5], kernels=True)
    kernels, losses = [jacobian.reference_ntk(module, X).diagonal(dim1=2, dim2=3).sum(-1).numpy()], [np.nan]
    for step, loss in zip(range(1, 7), training(module), strict=False):
        assert tracker.step(loss) == (step in {2, 5})
        if step in {2, 5}:
            kernels.append(jacobian.reference_ntk(module, X).diagonal(dim1=2, dim2=3).sum(-1).numpy())
            losses.append(loss.item())
    found = tracker.dataset()
    assert found.step.to_numpy().tolist() == [0, 2, 5]
    assert np.allclose(found.K, kernels, rtol=1e-10)
    assert np.allclose(found.initial_K, kernels[0], rtol=1e-10)
    assert np.allclose(found.loss, losses, equal_nan=True)
    G = (targets @ targets.T).numpy()
    H = np.eye(7) - 1 / 7
    for place, K in enumerate(kernels):
        here = found.isel(step=place)
        assert float(here.drift) == pytest.approx(
            np.linalg.norm(K - kernels[0]) / np.linalg.norm(kernels[0]), abs=1e-12
        )
        flat = [K.ravel(), kernels[0].ravel(), G.ravel(), (H @ K @ H).ravel(), (H @ G @ H).ravel()]
        pairs = ((flat[0], flat[1]), (flat[0], flat[2]), (flat[3], flat[4]))
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
        assert [1 - here.rotation, here.alignment, here.centred_alignment] == pytest.approx(cosines, abs=1e-12)
        eigenvalues = np.linalg.svd(K, compute_uv=False)
        assert np.allclose(here.eigenvalues, eigenvalues, rtol=1e-8)
        assert float(here.trace) == pytest.approx(eigenvalues.sum())
        assert float(here.effective_rank) == pytest.approx(np.exp(stats.entropy(eigenvalues)), rel=1e-8)
        assert np.allclose(here.diagonal, np.diag(K))
    assert found.drift[2] > found.drift[1] > 0  # something moved


def test_the_plain_alignment_sees_a_constant_and_the_centred_one_does_not() -> None:
    K, G = np.diag([1.0, 2.0, 3.0]), observables.target_gram([1.0, -1.0, 0.5], 3, 1)
    one, other = (observables.observe(each, K, G) for each in (K, K + 10))
    assert one["centred_alignment"] == pytest.approx(other["centred_alignment"])
    assert abs(one["alignment"] - other["alignment"]) > 0.1


def test_classes_align_like_one_hot_targets() -> None:
    classes = np.array([0, 2, 1, 2, 0, 0, 1])
    assert np.array_equal(observables.target_gram(classes, 7, 3), observables.target_gram(np.eye(3)[classes], 7, 3))


def test_one_output_and_options_of_the_kernel() -> None:
    module = network(outputs=3)
    K = jacobian.reference_ntk(module, X, parameters=["0.weight"]).numpy()
    found = Tracker(module, X, outputs=2, parameters=["0.weight"]).dataset()
    assert np.allclose(found.initial_K, K[:, :, 2, 2], rtol=1e-10)
    assert "alignment" not in found


def test_training_is_left_alone() -> None:
    """Bit by bit, with dropout, running statistics and gradients that accumulate over two steps."""

    def trained(*, tracked: bool) -> Any:
        torch.manual_seed(62)
        module = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
        ).double()
        module[3].eval()  # a mode of its own inside a module in training mode
        module[3].train()
        module[1].eval()
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        tracker = Tracker(module, X, Y, record=1) if tracked else None
        for step in range(6):
            module(X).square().sum().backward()
            if tracker:
                tracker.step()
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
        assert [layer.training for layer in module] == [True, False, True, True, True]
        return module.state_dict(), torch.random.get_rng_state()

    (one, random), (other, random_too) = trained(tracked=True), trained(tracked=False)
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert torch.equal(random, random_too)


def test_steps() -> None:
    log = schedule("log")
    found = [step for step in range(1, 70) if log(step)]
    assert found == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 23, 27, 32, 39, 46, 54, 64]
    assert sum(log(step) for step in range(1, 2**16 + 1)) == 7 + 4 * 13 + 1  # 1 to 7, then four an octave, and the last
    assert [step for step in range(1, 10) if schedule(3)(step)] == [3, 6, 9]
    assert [step for step in range(1, 10) if schedule({4, 2})(step)] == [2, 4]


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, measurement: float) -> None:
        self.now = 0.0
        measured = home._symmetric

        def slow(K: Any) -> Any:
            self.now += measurement
            return measured(K)

        monkeypatch.setattr(home, "_symmetric", slow)
        monkeypatch.setattr(home.time, "perf_counter", lambda: self.now)


def test_tracking_takes_at_most_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, measurement=1.0)
    module = network()
    tracker = Tracker(module, X, record=1, share=0.1)
    for _ in range(100):
        clock.now += 1.0
        if tracker.step():
            assert tracker.dataset().attrs["tracking_share"] <= 0.1
    found = tracker.dataset()
    assert found.step.to_numpy().tolist() == [0, *range(20, 101, 10)]  # the initial kernel counts too
    assert found.attrs["tracking_share"] == pytest.approx(0.1)
    rare = Tracker(module, X, record=[5, 50], share=0.1)
    for _ in range(60):
        clock.now += 1.0
        rare.step()
    assert rare.dataset().step.to_numpy().tolist() == [0, 20, 50]  # step 5 had to wait


def slow_training(clock: Clock, tracker: Any, steps: int, seconds: float) -> Any:
    """The dataset after so many steps, each of which takes so long."""
    for step in range(steps):
        clock.now += seconds
        tracker.step(float(step))
    return tracker.dataset()


def test_missed_measurements_are_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second a measurement: of 25 that are due in 160 steps none is had in a second of training, all in a day."""
    clock = Clock(monkeypatch, measurement=1.0)
    with pytest.warns(UserWarning, match=r"share=0.05 let the tracker take 0 of 25 .* one takes 1 s; give a larger"):
        found = slow_training(clock, Tracker(network(), X, share=0.05), 160, 1 / 160)
    assert found.step.to_numpy().tolist() == [0, 160]
    assert (found.attrs["measurements_due"], found.attrs["measurements_missed"]) == (25, 24)  # the last stands for one
    some = slow_training(clock, Tracker(network(), X, share=0.05), 160, 2.0)
    assert some.attrs["tracking_share"] <= 0.05
    assert some.attrs["measurements_missed"] == 25 - (some.sizes["step"] - 2)  # steps 0 and 160 were not due
    assert 10 < some.attrs["measurements_missed"] < 20
    for whole in (slow_training(clock, Tracker(network(), X, share=0.05), 160, 1e3), run(160).dataset()):
        assert whole.attrs["measurements_missed"] == 0
        assert whole.sizes["step"] == 1 + whole.attrs["measurements_due"] + 1  # with steps 0 and 160


def test_the_warning_is_given_once_and_only_where_nearly_all_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, measurement=1.0)
    tracker = Tracker(network(), X, share=0.01, record=1)
    with pytest.warns(UserWarning, match="0 of 30"):
        slow_training(clock, tracker, 30, 0.1)
    slow_training(clock, tracker, 30, 0.1)  # warnings are errors here
    slow_training(clock, Tracker(network(), X, share=0.5, record=1), 30, 1.0)


def test_what_only_a_first_measurement_costs_does_not_starve_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first call of torch that takes 100 s, in a run whose measurements take 1 s each."""
    clock = Clock(monkeypatch, measurement=1.0)
    ntk = home.ntk
    calls: list[int] = []

    def first_is_slow(*given: Any, **named: Any) -> Any:
        clock.now += 0 if calls else 100
        calls.append(1)
        return ntk(*given, **named)

    monkeypatch.setattr(home, "ntk", first_is_slow)
    found = slow_training(clock, Tracker(network(), X, share=0.1, record=1), 100, 1.0)
    assert found.step.to_numpy().tolist() == [0, *range(20, 101, 10)]
    assert found.attrs["tracking_seconds"] == 10


@pytest.mark.parametrize(("steps", "trained"), [("log", 9), ("log", 160), (7, 20), (50, 3), ([4], 4), ("log", 8)])
def test_the_last_step_is_had(tmp_path: Path, steps: Any, trained: int) -> None:
    """With the loss of that step, whether or not it is on the schedule; and not twice."""
    module = network()
    tracker, losses = Tracker(module, X, Y, record=steps, path=tmp_path / "run.nc", kernels=True), training(module)
    for _ in range(trained):
        loss = next(losses)
        tracker.step(loss)
    found = tracker.dataset()
    assert int(found.step[-1]) == trained
    assert float(found.loss[-1]) == loss.item()
    assert np.allclose(found.K[-1], jacobian.reference_ntk(module, X)[:, :, 0, 0], rtol=1e-10)
    spent = tracker.dataset().attrs["tracking_seconds"]
    assert spent == found.attrs["tracking_seconds"]  # what is had is not measured again
    xr.testing.assert_equal(xr.load_dataset(tmp_path / "run.nc", engine="scipy"), found)


def test_named_steps_are_those_that_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """But one of them that had to wait is taken in the end."""
    assert run(9, record=[2, 5]).dataset().step.to_numpy().tolist() == [0, 2, 5]
    clock = Clock(monkeypatch, measurement=1.0)
    with pytest.warns(UserWarning, match="take 0 of 2"):
        waiting = slow_training(clock, Tracker(network(), X, record=[2, 5], share=0.1), 9, 0.1)
    assert waiting.step.to_numpy().tolist() == [0, 9]
    assert waiting.attrs["measurements_missed"] == 1


@pytest.mark.parametrize("looked_at", [[], [9], [9, 11, 13], [33]])
def test_looking_changes_nothing_in_a_run(tmp_path: Path, looked_at: list[int]) -> None:
    module = network()
    tracker, losses = Tracker(module, X, Y, path=tmp_path / "run.nc"), training(module)
    for step in range(1, 36):
        tracker.step(next(losses))
        if step in looked_at:
            assert int(tracker.dataset().step[-1]) == step
    found, whole = tracker.dataset(), run(35).dataset()
    xr.testing.assert_identical(found.drop_attrs(), whole.drop_attrs())


@pytest.mark.parametrize("stopped", [9, 20, 33])
def test_a_run_goes_on_from_a_file_that_was_looked_at(tmp_path: Path, stopped: int) -> None:
    """The last step of the first half is not one of the whole."""
    path = tmp_path / "run.nc"
    run(stopped, path=path).dataset()
    both, whole = run(40, path=path, start=stopped).dataset(), run(40).dataset()
    xr.testing.assert_identical(both.drop_attrs(), whole.drop_attrs())
    assert both.attrs["measurements_due"] == whole.attrs["measurements_due"]


HALVES: dict[str, Any] = {
    "MLP": lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)),
    "norm": lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    ),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, name: str, dtype: Any) -> None:
    """Modules, inputs, targets and losses of half precision; the kernel to the precision of its numbers."""
    module = HALVES[name]().to(dtype)
    inputs, targets = X.to(dtype), torch.stack([Y, Y.square()], 1).to(dtype)
    tracker = Tracker(module, inputs, targets, path=tmp_path / "run.nc", record=1, kernels=True)
    with torch.no_grad():
        module[-1].weight.mul_(1.25)
    tracker.step((module(inputs) - targets).square().sum())
    found = tracker.dataset()
    assert found.attrs["dtype"] == str(dtype).removeprefix("torch.")
    right = jacobian.reference_ntk(module.eval().double(), inputs.double()).diagonal(dim1=2, dim2=3).sum(-1).numpy()
    error = np.linalg.norm(found.K[-1] - right) / np.linalg.norm(right)
    assert error < 8 * torch.finfo(dtype).eps
    assert np.isfinite(found.drop_vars("loss").isel(step=-1).to_array().max())
    assert np.isfinite(found.loss[-1])


@pytest.mark.parametrize("name", HALVES)
def test_autocast_is_off_in_a_measurement(name: str) -> None:
    """The kernel of the parameters as they are, in their own precision; the caller's autocast goes on."""
    module, inputs = HALVES[name](), X.float()
    without = Tracker(module, inputs, Y).dataset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tracker = Tracker(module, inputs, Y, record=1, share=1.0)
        loss = module(inputs).sum()
        tracker.step(loss)
        assert module(inputs).dtype == torch.bfloat16
        within = tracker.dataset()
    assert np.allclose(within.initial_K, without.initial_K, rtol=1e-6)
    assert float(within.loss[-1]) == loss.item()


def test_classes_are_those_of_the_module() -> None:
    """Whole numbers beside several outputs, also of one output of them; finding that out touches nothing."""

    class Counting(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.layer = nn.Linear(3, outputs).double()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    classes = torch.tensor([0, 2, 1, 2, 0, 0, 1])
    one_hot = torch.nn.functional.one_hot(classes).double()
    for module, kind in ((Counting(3), "classes"), (Counting(1), "numbers")):
        state = torch.random.get_rng_state()
        for outputs in ("trace", 0):
            found = Tracker(module, X, classes, outputs=outputs).dataset()
            same = Tracker(module, X, one_hot if kind == "classes" else classes.double(), outputs=outputs).dataset()
            assert found.attrs["targets_are"] == kind
            assert np.array_equal(found.alignment, same.alignment)
        assert torch.equal(state, torch.random.get_rng_state())


def test_tracking_tells_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, measurement=2.0)
    tracker = Tracker(network(), X, record=[3])
    for _ in range(4):
        clock.now += 5.0
        tracker.step()
    assert tracker.dataset().attrs["tracking_share"] == pytest.approx(4 / 20)


def test_file_holds_the_dataset(tmp_path: Path) -> None:
    tracker = run(9, path=tmp_path / "run.nc", kernels=True)
    measured = xr.load_dataset(tmp_path / "run.nc", engine="scipy")
    found = tracker.dataset()  # with step 9, which is not on the schedule
    stored = xr.load_dataset(tmp_path / "run.nc", engine="scipy")
    xr.testing.assert_equal(stored, found)
    xr.testing.assert_equal(measured, found.isel(step=slice(-1)))
    assert stored.attrs["finwidth_version"] == finwidth.__version__
    assert stored.drift.attrs == {"long_name": observables.OBSERVABLES["drift"].meaning, "units": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]


@pytest.mark.parametrize(("stopped", "checkpoint"), [(20, 20), (30, 17), (20, 21)])
def test_two_halves_are_the_whole(tmp_path: Path, stopped: int, checkpoint: int) -> None:
    """Also from a checkpoint that is older than the last measurement, or younger."""
    path = tmp_path / "run.nc"
    run(stopped, path=path)
    both, whole = run(40, path=path, start=checkpoint).dataset(), run(40).dataset()
    xr.testing.assert_identical(both.drop_attrs(), whole.drop_attrs())
    xr.testing.assert_equal(xr.load_dataset(path, engine="scipy"), whole)


TRAINERS = """
import os, sys
sys.path[:0] = [sys.argv[1]]
import torch
from empirical.test_tracker import X, Y, Tracker, network, training
torch.set_num_threads(1)
for path in sys.argv[2:]:
    if not os.fork():
        module = network()
        tracker = Tracker(module, X, Y, path=path, record=1)
        os.write(1, f"{os.getpid()}\\n".encode())
        for loss in training(module):
            tracker.step(loss)
for _ in sys.argv[2:]:
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -9
"""


def test_a_killed_run_keeps_what_it_measured_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL at moments that no one chose; then the run goes on to what an undisturbed one gives."""
    paths = [str(tmp_path / f"run{number}.nc") for number in range(3)]
    command = [sys.executable, "-c", TRAINERS, str(Path(__file__).parents[1]), *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for pid in [int(process.stdout.readline()) for _ in paths]:
            time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 0
    whole = run(30, record=1).dataset()
    for path in paths:
        done = xr.load_dataset(path, engine="scipy").step.to_numpy().tolist()
        assert done == list(range(len(done)))
        last = min(done[-1], 20)
        if last:
            both = run(30, record=1, path=path, start=last).dataset()
            xr.testing.assert_equal(both, whole)


def test_diverged_training_ends_the_tracking_and_not_the_training(tmp_path: Path) -> None:
    module = network()
    tracker = Tracker(module, X, Y, path=tmp_path / "run.nc", record=1)
    tracker.step()
    with torch.no_grad():
        module[0].weight.fill_(float("inf"))
    with pytest.warns(UserWarning, match="tracking stops: the kernel cannot be measured at step 2: .* not finite"):
        tracker.step()
    assert not tracker.step()
    stored = xr.load_dataset(tmp_path / "run.nc", engine="scipy")
    assert stored.step.to_numpy().tolist() == [0, 1]
    assert "cannot be measured at step 2" in stored.attrs["stopped"]
    assert all(np.isfinite(stored[name]).all() for name in stored if name != "loss")


def test_an_ensemble_of_runs(tmp_path: Path) -> None:
    runs = []
    for seed in range(4):
        module = finwidth.empirical.MLP(MLP([3, 20, 1]), seed)
        tracker = Tracker(module, X, Y, record=2 if seed else 3, path=tmp_path / f"{seed}.nc")
        for _, loss in zip(range(12), training(module), strict=False):
            tracker.step(loss)
        runs.append(tracker.dataset())
    joined = finwidth.empirical.combine(runs)
    assert joined.step.to_numpy().tolist() == [0, 6, 12]
    assert joined.drift.sizes == {"draw": 4, "step": 3}
    diagonals = np.array([each.sel(step=[0, 6, 12]).diagonal for each in runs])
    assert np.allclose(joined.cv, (np.std(diagonals, axis=0, ddof=1) / np.mean(diagonals, axis=0)).mean(-1))
    xr.testing.assert_equal(joined, finwidth.empirical.combine([tmp_path / f"{seed}.nc" for seed in range(4)]))
    with pytest.raises(finwidth.FinwidthError, match="of one and the same probe set"):
        finwidth.empirical.combine([runs[0], Tracker(network(), X[:3]).dataset()])


def existing(tmp_path: Path) -> Path:
    run(2, path=tmp_path / "run.nc")
    return tmp_path / "run.nc"


MISTAKES: dict[str, Any] = {
    r"the module is \[\]; give a torch.nn.Module": lambda folder: Tracker([], X),  # type: ignore[arg-type]
    "X has shape": lambda folder: Tracker(network(), X[:0]),
    r"targets have shape \(3,\)": lambda folder: Tracker(network(), X, Y[:3]),
    "no array of real numbers": lambda folder: Tracker(network(), X, ["a"] * 7),
    "targets are all equal": lambda folder: Tracker(network(), X, torch.ones(7)),
    "outputs is 'full'": lambda folder: Tracker(network(), X, outputs="full"),
    "outputs is 1": lambda folder: Tracker(network(), X, outputs=1),
    "share is 2": lambda folder: Tracker(network(), X, share=2),
    "record is 'often'": lambda folder: Tracker(network(), X, record="often"),
    "record is 0;": lambda folder: Tracker(network(), X, record=0),
    r"a step of record is 0.5": lambda folder: Tracker(network(), X, record=[0.5]),  # type: ignore[list-item]
    "start is -1": lambda folder: Tracker(network(), X, start=-1),
    "must name; None is none": lambda folder: Tracker(network(), X, start=3),
    "absent.nc is none": lambda folder: Tracker(network(), X, start=3, path=folder / "absent.nc"),
    "run.nc exists; give another path": lambda folder: Tracker(network(), X, path=existing(folder)),
    "is a run on another probe set": lambda folder: Tracker(network(), X + 1, path=existing(folder), start=1),
    "is a run on other targets": lambda folder: Tracker(network(), X, 2 * Y, path=existing(folder), start=1),
    "rows must be equally long": lambda folder: Tracker(network(), X, [[1.0], [1.0, 2.0]]),
    "is a run on other outputs": lambda folder: Tracker(network(), X, outputs=0, path=existing(folder), start=1),
    "cannot write .*/run.nc": lambda folder: Tracker(network(), X, path=folder / "absent" / "run.nc"),
    "the kernel on the probe set is zero or not finite": lambda folder: Tracker(
        network(), X, scale=lambda name, each: 0.0
    ),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_told(words: str, tmp_path: Path) -> None:
    with pytest.raises(finwidth.FinwidthError, match=words):
        MISTAKES[words](tmp_path)


class Leaving(nn.Module):  # type: ignore[name-defined,misc]
    """A counter, a running average, statistics of instance norm, a number of its own: all changed by every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv1d(1, 4, 2), nn.Linear(8, 2)
        self.norm = nn.InstanceNorm1d(4, track_running_stats=True)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(3))
        self.told = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.average: Any = 0.9 * self.average + 0.1 * x.detach().mean(0)
        self.told += 1
        return self.head(self.norm(self.layer(x[:, None])).tanh().flatten(1))


@pytest.mark.parametrize("targets", [None, torch.tensor([0, 1, 1, 0, 0, 1, 0]), Y])
@pytest.mark.parametrize("training", [True, False])
def test_buffers_and_attributes_are_left_as_they_were(targets: Any, training: bool) -> None:
    module = Leaving().double().train(training)
    module(X)
    state = {name: each.clone() for name, each in module.state_dict().items()}
    tracker = Tracker(module, X, targets, record=2)
    for _ in range(3):
        tracker.step()
    tracker.dataset()
    assert module.told == 1
    assert module.training == training
    assert all(torch.equal(each, state[name]) for name, each in module.state_dict().items())
