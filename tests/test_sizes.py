"""What cannot fit the memory there is, or would take over a year, is refused first; what may run keeps to its estimate.

Peaks are those of processes of their own: VmHWM, for ru_maxrss begins with what the parent had.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, FinwidthError, memory
from finwidth.errors import SizeError
from finwidth.exact.closed_form import closed_form_value
from finwidth.exact.grid import moments_grid
from finwidth.memory import afford, available
from finwidth.paper.paths import PathEnumeration
from finwidth.progress import Stage, check_time, stage, watching
from finwidth.sampling.lazy_matrix.gaussian import DeferredGaussianMatrix
from finwidth.sampling.one_input.importance import importance_estimates
from finwidth.sweeps.execution.run import check_grid_size

GIB = 2**30

# ---- the memory there is


def system(
    root: Path, free: int, *, cgroup: str = "0::/", mounts: str = "", files: dict[str, Any] | None = None
) -> Path:
    """A folder that looks like the root of a Linux system with so many bytes free."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {free // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mounts + "\n")
    for name, content in (files or {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
)
TOP = "sys/fs/cgroup"


def test_memory_without_limits_is_what_the_system_has(tmp_path: Path) -> None:
    assert available(system(tmp_path, 7 * GIB)) == 7 * GIB
    assert available(tmp_path / "nothing there") >= GIB


def test_the_narrowest_cgroup_of_version_2_counts(tmp_path: Path) -> None:
    files = {
        f"{TOP}/memory.max": "max",
        f"{TOP}/a/memory.max": 4 * GIB,
        f"{TOP}/a/memory.current": 3 * GIB,
        f"{TOP}/a/memory.stat": f"anon 5\ninactive_file {GIB // 2}",
        f"{TOP}/a/b/memory.max": 2 * GIB,
        f"{TOP}/a/b/memory.current": 0,
    }
    root = system(tmp_path, 7 * GIB, cgroup="0::/a/b", mounts=V2, files=files)
    assert available(root) == 3 * GIB // 2  # of a, whose inactive pages of files do not count
    (root / TOP / "a/b/memory.current").write_text(str(GIB))
    assert available(root) == GIB
    (root / TOP / "a/b/memory.current").write_text(str(3 * GIB))
    assert available(root) == 0


def test_a_cgroup_of_version_1_counts(tmp_path: Path) -> None:
    files = {
        f"{TOP}/memory/memory.limit_in_bytes": 9223372036854771712,
        f"{TOP}/memory/memory.usage_in_bytes": GIB,
        f"{TOP}/memory/a/memory.limit_in_bytes": 2 * GIB,
        f"{TOP}/memory/a/memory.usage_in_bytes": GIB,
        f"{TOP}/memory/a/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 4}",
        f"{TOP}/cpu/a/memory.limit_in_bytes": 1,
        f"{TOP}/cpu/a/memory.usage_in_bytes": 0,
    }
    root = system(tmp_path, 7 * GIB, cgroup="4:memory:/a\n1:cpu:/a\n0::/", mounts=V1, files=files)
    assert available(root) == 5 * GIB // 4


@pytest.mark.parametrize("path", ["/docker/1", "/docker/1/job", "/../other"])
def test_a_container_sees_its_cgroup_at_the_mount(tmp_path: Path, path: str) -> None:
    """The path may be that of the host, of which a part is mounted, or lead out of what is mounted."""
    files = {f"{TOP}/memory.max": 3 * GIB, f"{TOP}/memory.current": GIB, f"{TOP}/job/memory.max": "max"}
    mounts = V2.replace("0:26 /", "0:26 /docker/1") if path.startswith("/docker") else V2
    assert available(system(tmp_path, 7 * GIB, cgroup=f"0::{path}", mounts=mounts, files=files)) == 2 * GIB


def test_resource_limits_count() -> None:
    program = "import resource\nfrom finwidth.memory import available\nprint(available())\n"
    for limit in ("AS", "DATA"):
        limited = program.replace("print", f"resource.setrlimit(resource.RLIMIT_{limit}, (2**31, -1))\nprint")
        assert 2**30 < int(run(limited).stdout) < 2**31


def test_the_default_bound_is_three_quarters_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 4 * GIB)
    afford(3 * GIB, "this", "less")
    with pytest.raises(SizeError) as caught:
        afford(3 * GIB + 2**20, "this", "take less")
    told = "this needs up to 3.001 GiB, and of the 4 GiB that this process can have, at most 3 GiB are used; take less"
    assert str(caught.value) == told
    afford(3 * GIB + 2**20, "this", "less", memory="5GiB")  # who names a bound is taken at his word


# ---- refusals


def run(program: str, limit: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=limit, check=True)


HUGE, X = 10**30, "-i X.npy -t 1,2,3"
COMMANDS = [
    f"sample 3,1 -i 0,0,0 --draws {HUGE}",
    f"sample 3,1 -i 0,0,0 --draws {2**63}",
    f"sample 3,1 -i 1,0,0 --draws {HUGE} --tilted",
    f"sample 3,1 -i 1,0,0 --draws {HUGE} -o draws.nc",
    "sample 3,1 -i 1,0,0 --draws 10000000000 -o draws.nc",
    f"report 3,8,1 -i 1,0,0 --draws {HUGE}",
    f"compare 3,8,1 -i 1,0,0 --draws {HUGE}",
    f"compare 3,8,1 -i 1,0,0 --networks {HUGE}",
    "compare 3,8,1 -i 1,0,0 --networks 10000000000",
    f"gram 3,8,1 -i 1,0,0 --draws {HUGE}",
    "gram 3,1000000000000x3,1 -i 1,0,0 --draws 1",
    f"train 3,1000000000x3,1 {X} --draws 1",
    f"train 3,1000000000x3,1 {X} --draws 1 --lr 0.1 --memory 1TB",
    f"train 3,8,1 {X} --draws {2**64}",
    f"train 3,8,1 {X} --steps {HUGE}",
    f"train 3,8,1 {X} --steps 1000000000",
    f"train 3,8,1000000000 {X} --loss cross-entropy",
    "moments 3,64x10000000,64x10000000,1 -i 1,1,1",
    f"width-for {HUGE}",
    "sweep draws.toml",
    "sweep training.toml",
    "sweep gram.toml",
]
TABLES = {
    "draws": "[sampled]\ndraws = 1000000000000\n[axes]\ndepth = {from = 1, to = 100}\nwidth = {from = 1, to = 1000}",
    "training": '[training]\ninputs = ["1,2", "2,1"]\ntargets = [1, 2]\nsteps = 3\nlr = 0.1\ndraws = 1\n'
    "[axes]\ndepth = 4\nwidth = 1000000000",
    "gram": '[gram]\ninputs = ["1,2", "2,1"]\ndraws = 1\n[axes]\ndepth = 4\nwidth = [8, 1000000000]',
}


def test_absurd_commands_are_refused_at_once(tmp_path: Path) -> None:
    """All in one process of 4 GiB of addresses, each with the figures and what to change."""
    np.save(tmp_path / "X.npy", np.eye(3))
    for name, table in TABLES.items():
        quantity = "sampled" if name == "draws" else name
        head = f'quantities = ["{quantity}"]\n'
        (tmp_path / f"{name}.toml").write_text(head + table + "\nn_0 = 2\n")
    program = (
        "import json, os, re, resource, sys, time\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, -1))\n"
        "from finwidth.cli.main import main\n"
        f"for line in {COMMANDS!r}:\n"
        "    sys.argv = ['finwidth', *line.split()]\n"
        "    start = time.process_time()\n"
        "    try:\n        main()\n"
        "    except SystemExit as end:\n"
        "        peak = int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "        print(json.dumps([end.code, time.process_time() - start, peak]), flush=True)\n"
    )
    ran = run(program, limit=300)
    found, told = [json.loads(line) for line in ran.stdout.splitlines()], ran.stderr.splitlines()
    assert len(found) == len(told) == len(COMMANDS), ran.stderr
    for line, (status, seconds, peak), message in zip(COMMANDS, found, told, strict=True):
        assert status == 2, line
        assert seconds < 10, line  # two on an idle machine
        assert peak < 300 * 2**10, line
        assert re.search(r"\d (bytes|[MG]iB|years)|layers|give at most", message), message
        assert "; " in message, message
    assert not list(tmp_path.glob("*.nc")) + list(tmp_path.glob("*.zarr"))


NET, ONES = MLP([3, 8, 1]), np.ones(3)
WIDE = MLP([3, 10**9, 10**9, 1])
MANY = np.ones((10**5, 3))
CALLS: dict[str, Callable[[], object]] = {
    "sample": lambda: finwidth.sample(NET, ONES, 10**9),
    "sample for ever": lambda: finwidth.sample(NET, ONES, 10**4000),
    "tilted": lambda: importance_estimates(NET, ONES, HUGE),
    "sample_gram draws": lambda: finwidth.sample_gram(NET, np.eye(3), HUGE),
    "sample_gram inputs": lambda: finwidth.sample_gram(NET, MANY, 1),
    "sample_gram width": lambda: finwidth.sample_gram(WIDE, np.eye(3), 1),
    "sample_gram targets": lambda: finwidth.sample_gram(WIDE, np.eye(3), 1, y=[1, 2, 3]),
    "train width": lambda: finwidth.train(WIDE, np.eye(3), [1, 2, 3], 2, 0.1, 1),
    "train width, no neuron of a float": lambda: finwidth.train(MLP([3, 10**400, 1]), np.eye(3), [1, 2, 3], 2, 0.1, 1),
    "train draws": lambda: finwidth.train(NET, np.eye(3), [1, 2, 3], 2, 0.1, HUGE),
    "train steps": lambda: finwidth.train(NET, np.eye(3), [1, 2, 3], HUGE, 0.1, 1),
    "train inputs": lambda: finwidth.train(NET, MANY, MANY[:, 0], 2, 0.1, 1),
    "regime draws": lambda: finwidth.regime(NET, draws=HUGE),
    "regime width": lambda: finwidth.regime(WIDE, draws=2),
    "regime of held weights": lambda: finwidth.regime(MLP([3, 10**6, 10**6, 1], weight_law="uniform"), draws=2),
    "compare": lambda: finwidth.compare(NET, ONES, networks=HUGE),
    "expansion": lambda: finwidth.expansion(NET, MANY),
    "infinite width": lambda: finwidth.infinite_width_gram(NET, MANY),
    "grid": lambda: moments_grid(range(1, 10**6), range(1, 10**6), ONES),
    "grid of no end": lambda: moments_grid(range(1, 10**12), [2], ONES),
    "closed form": lambda: closed_form_value("K_w^2", width=3, depth=10**15, input_width=2, norm2=5),
    "closed form of wide layers": lambda: closed_form_value("K_b^2", width=10**15, depth=2, input_width=2, norm2=5),
    "layers": lambda: MLP(range(1, 10**12)),
    "paths": lambda: PathEnumeration(MLP([3] * 100), ONES),
    "matrix": lambda: DeferredGaussianMatrix(10**12, 3, np.random.default_rng(0)) @ ONES,
}


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much memory on every machine."""
    monkeypatch.setattr(memory, "available", lambda: 16 * GIB)


@pytest.mark.usefixtures("plenty")
@pytest.mark.parametrize("name", CALLS)
def test_absurd_calls_are_refused_first(name: str) -> None:
    if name.startswith("closed"):
        pytest.importorskip("sympy")
    with pytest.raises(FinwidthError) as caught:
        CALLS[name]()
    assert "; " in str(caught.value)
    assert len(str(caught.value)) < 500


TORCH_CALLS: dict[str, Callable[[Any], object]] = {
    "ntk": lambda e: e.ntk(e.MLP(NET), MANY),
    "ntk of outputs": lambda e: e.ntk(e.MLP(MLP([3, 2, 1000])), MANY[:1000]),
    "sgd_update": lambda e: e.sgd_update(e.MLP(NET), MANY, MANY[:, :1]),
    "module": lambda e: e.MLP(WIDE),
    "predict times": lambda e: e.predict(np.eye(300), np.ones(300), t=np.ones(10**7)),
    "predict kernel": lambda e: e.predict(np.broadcast_to(1.0, (10**5, 10**5)), np.ones(10**5)),
    "predict probes": lambda e: e.predict(np.eye(3), np.ones(3), np.broadcast_to(1.0, (10**10, 3))),
    "linearise": lambda e: e.linearise(e.MLP(NET)).train(MANY, MANY[:, 0]),
    "operator eigenpairs": lambda e: e.KernelOperator(e.MLP(NET), MANY).eigenpairs(10**4),
    "operator trace": lambda e: e.KernelOperator(e.MLP(NET), MANY).trace("hutch++", products=HUGE),
    "operator logdet": lambda e: e.KernelOperator(e.MLP(NET), MANY).logdet(1.0, probes=HUGE),
    "several functions": lambda e: e.ntk([e.MLP(NET), e.MLP(NET)], [MANY, MANY]),
    "by layer": lambda e: e.ntk(e.MLP(NET), MANY, by="layer"),
    "ResNet": lambda e: e.ResNet(finwidth.ResNet([3, 10**9, 1], 2)),
    "members": lambda e: e.Ensemble(NET, HUGE),
    "members' steps": lambda e: e.Ensemble(NET, 2).train(np.eye(3), [1, 2, 3.0], 10**10, 0.1),
    "members of modules": lambda e: e.Ensemble(lambda: e.MLP(MLP([3, 300, 300, 1])), 10**5),
    "kernels": lambda e: e.Ensemble(NET, 2).kernels(MANY),
    "Tracker": lambda e: e.Tracker(e.MLP(NET), MANY),
    "MatrixFreeLinear": lambda e: finwidth.MatrixFreeLinear(10**30, 5),
    "MatrixFreeLinear of draws": lambda e: finwidth.MatrixFreeLinear(10, 5, draws=10**12),
    "MatrixFreeConv1d": lambda e: finwidth.MatrixFreeConv1d(10**12, 5, 3),
    "MatrixFreeConv2d": lambda e: finwidth.MatrixFreeConv2d(10**12, 5, 3),
}


@pytest.mark.usefixtures("plenty")
@pytest.mark.parametrize("name", TORCH_CALLS)
def test_absurd_calls_with_torch_are_refused_first(name: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(SizeError, match=r"needs up to .* GiB.*; "):
        TORCH_CALLS[name](finwidth.empirical)


@pytest.mark.usefixtures("plenty")
def test_a_sweep_of_a_year_on_this_machine_may_run_on_a_cluster() -> None:
    from finwidth.sweeps.config import read_config

    axes = {"depth": list(range(1, 101)), "width": list(range(1, 101)), "n_0": 2}
    config, _ = read_config({"quantities": ["sampled"], "axes": axes, "sampled": {"draws": 10**10}})
    check_grid_size(config, None)
    with pytest.raises(SizeError, match=r"would take about \d+\.\d years"):
        check_grid_size(config, 4)


# ---- estimates


RNG = "np.random.default_rng(0).normal(size=(%d, 3))"
PEAKS: dict[str, tuple[str, int, int]] = {  # a call, a small number to warm up with, and a large one
    "sample": ("finwidth.sample(MLP([3, 8, 8, 1]), [1, 2, 3], %d, threads=1)", 1000, 2 * 10**6),
    "infinite_width_gram": (f"finwidth.infinite_width_gram(MLP([3, 9, 9, 9, 1]), {RNG})", 10, 800),
}
SLOW_PEAKS: dict[str, tuple[str, int, int]] = {
    "sample_gram": ("finwidth.sample_gram(MLP([3, *[%d] * 3, 1]), np.eye(3), 2, threads=1)", 100, 10**6),
    "train": ("finwidth.train(MLP([3, *[%d] * 3, 1]), np.eye(3), [1, 2, 3.0], 3, 0.01, 2)", 100, 10**5),
    "compare": ("finwidth.compare(MLP([3, %d, %d, 1]), [1, 2, 3], draws=1000, networks=1)", 10, 4000),
    "sample, deep": ("finwidth.sample(MLP([3, *[8] * 2000, 1]), [1, 2, 3], %d, threads=1)", 2, 2000),
    "sample, two slopes": (
        "finwidth.sample(MLP([3, *[8] * 200, 1], activation='leaky_relu'), [1, 2, 3], %d, threads=1)", 2, 20000,
    ),
    "sample, residual": ("finwidth.sample(ResNet([3, 8, 1], 200), [1, 2, 3], %d, threads=1)", 2, 20000),
    "sample, residual, random biases": (
        "finwidth.sample(ResNet([3, 8, 1], 200, activation='leaky_relu', bias_variance=1), [1, 2, 3], %d, threads=1)",
        2, 20000,
    ),
    "tilted, residual": (
        "summarize(ResNet([3, 8, 1], 200), [1, 2, 3], %d, method='importance', threads=1)", 2, 20000,
    ),
    "sample_gram, draws": ("finwidth.sample_gram(MLP([3, *[8] * 3, 1]), np.eye(3), %d, threads=1)", 10, 10**6),
    "sample_gram, inputs": (f"finwidth.sample_gram(MLP([3, *[300] * 3, 1]), {RNG}, 2, threads=1)", 10, 1500),
    "sample_gram, targets": (
        "finwidth.sample_gram(MLP([3, *[%d] * 3, 1]), np.eye(3), 2, threads=1, y=[1, 2, 3])", 100, 5 * 10**5,
    ),
    "train, result": (
        "finwidth.train(MLP([3, 20, 1]), np.random.default_rng(0).normal(size=(100, 3)), np.ones(100), %d, 1e-5, 5)",
        2, 200,
    ),
    "moments_grid": ("moments_grid(range(1, %d), range(1, 501), [1.0, 1.0])", 10, 2000),
    "moments_grid, widths": ("moments_grid(range(1, %d), range(1, 5), [1.0, 1.0])", 10, 30000),
    "infinite_width_gram, deep": (f"finwidth.infinite_width_gram(MLP([3, *[9] * 20, 1]), {RNG})", 10, 700),
    "infinite_width_gram, gelu": (
        f"finwidth.infinite_width_gram(MLP([3, 9, 9, 1], activation='gelu'), {RNG})", 10, 1300,
    ),
    "expansion": (f"finwidth.expansion(MLP([3, 9, 9, 9, 1]), {RNG})", 3, 24),
    "expansion, change": (
        f"finwidth.expansion(MLP([3, *[9] * 8, 1], activation='gelu'), {RNG}, np.zeros(%d))", 3, 20,
    ),
    "compare, outputs": ("finwidth.compare(MLP([3, %d, 400]), [1, 2, 3], draws=1000, networks=100)", 10, 400),
    "regime": ("finwidth.regime(MLP([3, %d, %d, 1], weight_law='uniform'), draws=2)", 10, 4000),
    "ntk": (f"finwidth.empirical.ntk(finwidth.empirical.MLP(MLP([3, 30, 1])), {RNG}, memory='10MB')", 10, 5000),
    "sgd_update": (
        f"finwidth.empirical.sgd_update(finwidth.empirical.MLP(MLP([3, 30, 1])), {RNG}, np.zeros((%d, 1)), "
        "memory='10MB')", 10, 3000,
    ),
    **{
        f"predict, {name}": (
            f"finwidth.empirical.predict({K}, np.ones(({y})), {K_test}, t=np.linspace(0, 1, %d))", 2, 20000
        )
        for name, (K, y, K_test) in {
            "one kernel": ("np.eye(100)", "100, 1", "None"),
            "one kernel, probes": ("np.eye(20)", "20, 3", "np.ones((300, 20))"),
            "one for each output": ("np.stack([np.eye(20)] * 20, 2)", "20, 20", "None"),
            "all pairs": ("np.eye(60).reshape(20, 3, 20, 3).swapaxes(1, 2)", "20, 3", "np.ones((300, 20, 3, 3))"),
        }.items()
    },
    "Ensemble": ("finwidth.empirical.Ensemble(MLP([3, 300, 300, 1]), %d)", 10, 200),
    "Ensemble.kernels": (
        f"finwidth.empirical.Ensemble(MLP([3, 30, 30, 1]), 10).kernels({RNG}, memory='10MB')", 10, 1000,
    ),
    "module": ("finwidth.empirical.MLP(MLP([3, %d, %d, 1]))", 10, 3500),
}  # fmt: skip

PROGRAM = """
import re, sys
from pathlib import Path
import numpy as np
import finwidth
from finwidth import MLP, ResNet, memory, summarize
from finwidth.exact.grid import moments_grid

seen = []
real = memory.afford

def noted(needed, what, change, given=None):
    seen.append(needed)

def note():
    for module in list(sys.modules.values()):
        if getattr(module, "afford", None) is real:
            module.afford = noted

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

note()
{small}
note()
seen.clear()
before = peak()
{large}
print(max(seen), peak() - before)
"""


def check_peak(call: str, small: int, large: int) -> None:
    """The estimate is more than the peak, and not more than twice that."""
    if "empirical" in call:
        pytest.importorskip("torch")
    texts = {name: call.replace("%d", str(number)) for name, number in (("small", small), ("large", large))}
    estimate, peak = map(int, run(PROGRAM.format(**texts), limit=300).stdout.split())
    assert 60 * 2**20 < peak < estimate < 2.1 * peak


@pytest.mark.parametrize("name", PEAKS)
def test_peaks_are_as_estimated(name: str) -> None:
    check_peak(*PEAKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_PEAKS)
def test_more_peaks_are_as_estimated(name: str) -> None:
    check_peak(*SLOW_PEAKS[name])


# ---- time, and how far work is


def test_what_takes_years_is_refused() -> None:
    check_time(365 * 86400, 1.0, "this")
    with pytest.raises(SizeError, match=r"this would take about 2.0 years, and more than one is refused; ask for less"):
        check_time(2 * 365 * 86400, 1.0, "this")


def test_the_pace_of_the_first_half_second_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the time until the first call, in which modules are imported."""
    clock = [0.0]
    monkeypatch.setattr("finwidth.progress.time.monotonic", lambda: clock[0])

    def work(pace: float) -> None:
        with stage("this", 10**9) as told:
            clock[0] += 10.0
            for done in range(1, 1000):
                told(done)
                clock[0] += pace

    work(0.01)  # four months
    with pytest.raises(SizeError, match=r"this would take about 3\.2 years"):
        work(0.1)


def test_stages_within_stages_are_silent() -> None:
    seen: list[tuple[str, int]] = []
    with watching(lambda now: seen.append((now.what, now.done))), stage("outer", 2) as told:
        with stage("inner", 5) as inner:
            inner(3)
        told(1)
    with stage("not watched", 1) as told:
        told(1)
    assert seen == [("outer", 1), ("outer", 1)]


def watched(work: Callable[[], object]) -> list[tuple[str, float, bool]]:
    """The stages that a call tells of: name, share that was done in the end, and whether it never went back."""
    seen: dict[int, list[Stage]] = {}
    shares: dict[int, list[float]] = {}

    def note(now: Stage) -> None:
        seen.setdefault(id(now), []).append(now)
        shares.setdefault(id(now), []).append(now.share)

    with watching(note):
        work()
    return [(stages[0].what, shares[key][-1], shares[key] == sorted(shares[key])) for key, stages in seen.items()]


STAGES: dict[str, tuple[Callable[[], object], set[str]]] = {
    "moments": (lambda: finwidth.moments(MLP([3] * 200), ONES), {"exact moments"}),
    "exact": (lambda: finwidth.moments(MLP([3] * 9), ONES, exact=True, order=3), {"exact moments"}),
    "compare": (
        lambda: finwidth.compare(MLP([3, 8, 8, 1]), ONES, draws=1000, networks=100),
        {"exact moments", "drawing networks", "drawing", "drawing in proportion"},
    ),
    "regime": (lambda: finwidth.regime(NET, draws=100), {"exact moments", "drawing"}),
    "train": (lambda: finwidth.train(NET, np.eye(3), [1, 2, 3.0], 3, 0.01, 2), {"training"}),
    "expansion": (
        lambda: finwidth.expansion(MLP([3, 8, 8, 1], activation="tanh"), np.eye(3), points=64),
        {"expansion", "expansion at points"},
    ),
    "kernel": (
        lambda: finwidth.infinite_width_gram(MLP([3, 8, 1], activation="gelu"), np.eye(3)),
        {"kernel at infinite width"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_long_work_tells_how_far_it_is(name: str) -> None:
    work, names = STAGES[name]
    found = watched(work)
    assert {what for what, _, _ in found} <= names
    assert found
    assert all(forward and share <= 1 for _, share, forward in found)


def test_kernels_of_modules_tell_how_far_they_are() -> None:
    """In blocks or as a whole, every input with every other, and in the end all pairs."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(30, 300), torch.nn.ReLU(), torch.nn.Linear(300, 3)).double()
    x, other = torch.randn(40, 30).double(), torch.randn(13, 30).double()
    for memory_, outputs in (
        ("1GiB", "full"),
        ("300kB", "full"),
        ("300kB", "diagonal"),
        ("300kB", "trace"),
        ("1MB", 1),
    ):
        for x2, entries, pairs in ((None, "full", 1600), (other, "full", 520), (None, "diagonal", 40)):
            seen: list[int] = []
            options: dict[str, Any] = {"outputs": outputs, "entries": entries, "memory": memory_}
            finwidth.empirical.ntk(module, x, x2, progress=seen.append, **options)
            assert seen == sorted(seen)
            assert seen[-1] == pairs
    seen = []
    finwidth.empirical.sgd_update(module, x, torch.zeros(40, 3).double(), memory="4MB", progress=seen.append)
    assert seen[-1] == 1600


def test_a_log_gets_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from finwidth.cli.bars import Bars

    clock = [0.0]
    monkeypatch.setattr("finwidth.progress.time.monotonic", lambda: clock[0])
    with watching(Bars()), stage("drawing", 100) as told:
        for done in range(1, 101):
            clock[0] += 1.0
            told(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "drawing: 30.0% done, 0:01:10 left", "drawing: 60.0% done, 0:00:40 left", "drawing: 90.0% done, 0:00:10 left",
    ]  # fmt: skip
