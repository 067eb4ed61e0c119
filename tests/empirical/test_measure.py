"""`finwidth.compare` of a torch module and `finwidth measure`, which runs a file with one."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import finwidth
from finwidth import MLP
from finwidth.cli.main import main
from finwidth.empirical.reference.brute_force import draw_networks, kernel_at_input, simulate

torch = pytest.importorskip("torch")
nn = torch.nn

Run: TypeAlias = Callable[[str], tuple[int, str, str]]

X = np.array([[0.4, -0.5, 0.2], [1.0, 2.0, -1.0], [-0.3, 0.1, 0.9], [0.5, 0.5, 0.0]])

FILE = """
import torch
from torch import nn

import neighbour

print("the file prints")


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2))


def big():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)

    def forward(self, x):
        return self.conv(x).flatten(1)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, x):
        return self.table(x).sum(1)


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 3)

    def forward(self, x):
        return self.bag(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.u(x).sum(), x, create_graph=True)[0]


trained = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 1))
nn.init.constant_(trained[0].weight, 0.1)
dropout = nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 1))


def broken():
    raise RuntimeError("first line\\nsecond line")


def leaves():
    raise SystemExit(0)


number = 3
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "wrong.py").write_text("import torch, (")
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(5, 1, 4, 4)))
    np.save(tmp_path / "words.npy", np.array([[0, 1, 2], [4, 4, 4]]))
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process, which has torch: status, standard output and error."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["finwidth", *shlex.split(line)])
        with pytest.raises(SystemExit) as exited:
            main()
        return (int(exited.value.code or 0), *capsys.readouterr())

    return run


# ---- finwidth.compare(module, x)


def test_a_module_beside_its_law() -> None:
    net = MLP([3, 16, 16, 1])
    exact = finwidth.moments(net, X[1])
    right = kernel_at_input(net, *draw_networks(net, 1, np.random.default_rng(6)), X[1])
    found = finwidth.compare(finwidth.empirical.MLP(net, 6), X[1], draws=40_000)
    assert found.in_law
    assert found.draws == 40_000
    assert found.cv == exact.cv
    assert [row.quantity for row in found.rows] == ["K", "K_w", "K_b", "dK"]
    draws = finwidth.sample(net, X[1], 40_000, seed=0)
    for row in found.rows:
        assert row.measured == pytest.approx(float(right[row.quantity][0]), rel=1e-10)
        assert row.percentile == pytest.approx(100 * float((draws[row.quantity] < row.measured).mean()), abs=1e-9)
        if row.quantity == "dK":
            assert row.exact == float(exact.update["dK"])
            assert row.sd is row.z is None
        else:
            assert row.z == pytest.approx((row.measured - getattr(exact, row.quantity).mean) / row.sd)
    json.dumps(found.to_json(), allow_nan=False)


def test_percentiles_of_fresh_modules_are_uniform() -> None:
    """Of 200 fresh torch modules; a wrong statement of how they were drawn is seen."""
    torch.manual_seed(53)

    def percentiles(init: str) -> list[float]:
        return [
            finwidth.compare(
                nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), X[1], init=init, networks=1_000
            ).rows[0].percentile
            for _ in range(200)
        ]  # fmt: skip

    from scipy import stats

    assert stats.kstest(percentiles("default"), stats.uniform(0, 100).cdf).pvalue > 1e-9
    assert stats.kstest(percentiles("kaiming_uniform"), stats.uniform(0, 100).cdf).pvalue < 1e-9


def test_what_pytorch_users_write() -> None:
    torch.manual_seed(54)
    module = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 5))
    found = finwidth.compare(module, X[1], networks=3_000)
    assert not found.in_law
    assert found.draws == 3_000
    assert found.network.describe() == MLP.pytorch([3, 40, 5]).describe()
    drawn = simulate(found.network, X[1], 3_000, np.random.default_rng(0))
    row = found.rows[0]
    assert 0 < found.rows[3].percentile < 100  # dK, with five outputs
    assert row.percentile == pytest.approx(100 * (drawn["K"] < row.measured).mean(), abs=1e-9)
    assert row.exact == pytest.approx(float(finwidth.moments(found.network, X[1]).mean))


def test_mup_and_several_outputs() -> None:
    net = MLP([3, 8, 6, 2], parameterization="mup", bias_variance=0.5)
    found = finwidth.compare(finwidth.empirical.MLP(net, 6), X[1], networks=500)
    right = kernel_at_input(net, *draw_networks(net, 1, np.random.default_rng(6)), X[1])
    for row in found.rows:
        assert row.measured == pytest.approx(float(right[row.quantity][0]), rel=1e-10)


def test_smooth_and_frozen() -> None:
    net = MLP([3, 16, 1], activation="gelu", bias="frozen")
    found = finwidth.compare(finwidth.empirical.MLP(net), X[1], networks=2_000)
    assert [row.quantity for row in found.rows] == ["K"]
    assert found.cv is found.rows[0].exact is found.rows[0].z is None
    assert 0 < found.rows[0].percentile < 100
    json.dumps(found.to_json(), allow_nan=False)


def test_quantities_that_do_not_vary_are_in_the_middle() -> None:
    found = finwidth.compare(finwidth.empirical.MLP(MLP([3, 1])), X[1], draws=1_000)
    assert [row.percentile for row in found.rows] == [50, 50, 50, 50]


def test_what_is_not_recognised_is_told() -> None:
    with pytest.raises(finwidth.FinwidthError, match=r"how this module is drawn cannot be told: .* give factory="):
        finwidth.compare(nn.Conv2d(1, 1, 1), X[1])
    with pytest.raises(finwidth.FinwidthError, match=r"give a finwidth\.MLP"):
        finwidth.compare(3, X[1])  # type: ignore[call-overload]


# ---- finwidth measure


def measured(found: Any) -> dict[str, Any]:
    """What ``measure --json`` has of the module's kernel."""
    return {name: each["module"]["value"] for name, each in found["results"]["quantities"].items()}


def test_measure_json_is_the_kernel(folder: Path) -> None:
    """As a stranger runs it: in a process of its own."""
    line = "measure model.py:make -i X.npy --seed 5 --json"
    command = [sys.executable, "-c", "from finwidth.cli.main import main; main()", *line.split()]
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, timeout=120)
    assert process.stderr == "the file prints\n"
    found = json.loads(process.stdout)
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2))
    K = finwidth.empirical.ntk(module, X, outputs="trace").double().numpy()
    assert found["results"]["parameters"] == 160 + 1640 + 82
    assert found["results"]["inputs"] == [4, 3]
    kernel = measured(found)
    assert np.allclose(kernel["K"], K, rtol=1e-6)
    assert np.shape(kernel["K"]) == (4, 4)
    assert kernel["trace"] == pytest.approx(np.trace(K), rel=1e-6)
    assert kernel["eigenvalues"] == pytest.approx(np.linalg.eigvalsh(K)[::-1], rel=1e-4)
    assert kernel["condition"] == pytest.approx(np.linalg.cond(K), rel=1e-3)
    theory = found["results"]["theory"]
    assert found["network"] == MLP.pytorch([3, 40, 40, 2]).describe()
    assert theory["quantities"]["K"]["exact"]["value"] == float(
        finwidth.moments(MLP.pytorch([3, 40, 40, 2]), X[0]).mean
    )


def test_measure_modules_without_theory(run: Run) -> None:
    full = json.loads(run("measure model.py:Conv -i images.npy --outputs full --json")[1])
    assert np.shape(measured(full)["K"]) == (5 * 18, 5 * 18)
    assert full["results"]["theory"] is None
    assert "Conv" in full["results"]["no_theory"]
    assert measured(full)["condition"] is None  # 90 rows, 10 parameters
    words = json.loads(run("measure model.py:Words -i words.npy --outputs 1 --json")[1])
    assert measured(words)["K"] == [[3, 0], [0, 9]]  # counts of common words
    bag = json.loads(run("measure model.py:Bag -i words.npy --outputs 1 --json")[1])
    assert np.array(measured(bag)["K"]) == pytest.approx(np.array(measured(words)["K"]) / 9)  # a mean of 3
    residual = json.loads(run("measure model.py:Residual -i X.npy --json")[1])
    assert np.shape(measured(residual)["K"]) == (4, 4)
    one = json.loads(run("measure model.py:make -i 1,2,3 --outputs 0 --json")[1])
    assert np.shape(measured(one)["K"]) == (1, 1)
    beside = one["results"]["theory"]["quantities"]["K"]["module"]["value"]
    assert measured(one)["trace"] == pytest.approx(beside, rel=1e-5)


def test_measure_for_people(run: Run) -> None:
    status, printed, _ = run("measure model.py:make -i X.npy")
    assert status == 0
    for words in ("shape of K", "trace", "eigenvalue 1", "condition", "exact mean", "percentile", "random networks"):
        assert words in printed
    assert "No theory beside it: this module is not" in run("measure model.py:Conv -i images.npy")[1]
    assert "runs the Python file" in run("measure --help")[1]


MISTAKES = {
    "measure missing.py:make -i X.npy": "missing.py does not exist",
    "measure model.py -i X.npy": "names no module",
    "measure model.py:absent -i X.npy": "model.py has no 'absent'",
    "measure model.py:number -i X.npy": "is a int, and not a torch module",
    "measure model.py:broken -i X.npy": "raises RuntimeError: first line second line",
    "measure model.py:leaves -i X.npy": "raises SystemExit",
    "measure wrong.py:make -i X.npy": "wrong.py is not Python",
    "measure model.py:make -i absent.npy": "does not exist",
    "measure model.py:make -i images.npy": "cannot be applied to inputs of shape (5, 1, 4, 4)",
    "measure model.py:make -i X.npy --outputs 2": "outputs is 2",
    "measure model.py:make -i X.npy --outputs diagonal": "choose trace, full or a number",
    "measure model.py:make -i X.npy --outputs many": "outputs is 'many'",
    "measure model.py:make -i X.npy --init magic": "init 'magic' is not known",
    "measure model.py:dropout -i X.npy": "call module.eval() first",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line: str, run: Run) -> None:
    status, printed, errors = run(line)
    assert status == 2, printed + errors
    assert not printed
    (message,) = [each for each in errors.splitlines() if each != "the file prints"]
    assert message.startswith("finwidth: error: ")
    assert MISTAKES[line] in message


def test_without_torch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, errors = run("measure model.py:make -i X.npy")
    assert status == 2
    assert (
        errors
        == "finwidth: error: a torch module needs PyTorch, which is not installed; pip install 'finwidth[torch]'\n"
    )


# ---- what users' files may do

NASTY = """
import ctypes, os, subprocess, sys
from dataclasses import dataclass

import torch

libc = ctypes.CDLL(None)


@dataclass
class Sizes:
    n: "int" = 3


def shout():
    os.write(1, b"by number\\n")
    libc.printf(b"by C\\n")
    subprocess.run(["echo", "by a program"], check=True)
    sys.__stdout__.write("by its other name\\n")
    print("by name", sys.argv)


class Loud(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(Sizes().n, 1)

    def forward(self, x):
        import later

        shout()
        return self.layer(x)


class Own(Exception):
    pass


class Base(BaseException):
    pass


def raising(error):
    class Raising(Loud):
        def forward(self, x):
            raise error

    return Raising


own, base, leaves, stops = map(raising, (Own("the text"), Base("the text"), SystemExit(0), KeyboardInterrupt()))


class OneOnly(Loud):
    def forward(self, x):
        if len(x) > 1:
            raise Own("only one")
        return self.layer(x)


class NoGrad(Loud):
    @torch.no_grad()
    def forward(self, x):
        return self.layer(x)


class Detached(Loud):
    def forward(self, x):
        return self.layer(x).detach()


def takes(an_argument):
    return Loud()


def parses():
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--mine", default=3, type=int)
    return torch.nn.Linear(parser.parse_args().mine, 1)


def relative():
    from . import later


shout()
"""
USERS_FAULTS = {  # in the order of the file above
    "own": "Own: the text (nasty.py, line 46, in forward; --traceback shows the way there)",
    "base": "nasty.py raises Base: the text (nasty.py, line 46, in forward; --traceback",
    "leaves": "nasty.py raises SystemExit: 0 (nasty.py, line 46, in forward; --traceback",
    "OneOnly": "Own for 2 samples, torch.float32 of shape (2, 3): only one (nasty.py, line 57, in forward",
    "NoGrad": "does not depend on its parameters by differentiable operations (detach, no_grad?)",
    "Detached": "does not depend on its parameters by differentiable operations (detach, no_grad?)",
    "takes": "takes() missing 1 required positional argument",
    "relative": "ImportError: attempted relative import with no known parent package (nasty.py, line 85, in relative",
}


@pytest.fixture
def nasty(folder: Path) -> Path:
    (folder / "nasty.py").write_text(NASTY)
    (folder / "later.py").write_text("")
    return folder


@pytest.mark.parametrize("name", USERS_FAULTS)
def test_a_fault_of_the_users_is_told_with_its_place(name: str, nasty: Path, run: Run) -> None:
    status, printed, errors = run(f"measure nasty.py:{name} -i X.npy")
    assert (status, printed) == (2, "")
    (line,) = [each for each in errors.splitlines() if each.startswith("finwidth: ")]
    assert "Traceback" not in errors
    assert USERS_FAULTS[name] in line


def test_the_whole_traceback_is_shown_if_asked_for(nasty: Path, run: Run) -> None:
    status, printed, errors = run("measure nasty.py:own -i X.npy --traceback")
    assert (status, printed) == (2, "")
    assert "raise error\n" in errors
    assert errors.splitlines()[-1].startswith("finwidth: error: ")


def test_standard_output_has_the_result_only(nasty: Path) -> None:
    """However a user's module prints: by number, C, other programs, at the end. Nothing is written beside it."""
    (nasty / "nasty.py").write_text(f"import atexit\natexit.register(print, 'at the end')\n{NASTY}")
    command = [sys.executable, "-m", "finwidth", "measure", "nasty.py:Loud", "-i", "X.npy", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=nasty, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    assert np.shape(measured(json.loads(process.stdout))["K"]) == (4, 4)
    for words in ("by number", "by C", "by a program", "by its other name", "by name ['nasty.py']", "at the end"):
        assert words in process.stderr
    assert not list(nasty.rglob("nasty*.pyc"))


def test_what_users_files_use(nasty: Path, run: Run) -> None:
    """Arguments of their own, neighbours that are imported late; sys.path and sys.argv are given back."""
    before = sys.path[:]
    assert run("measure nasty.py:parses -i X.npy")[0] == 0
    assert run("measure nasty.py:Loud -i X.npy")[0] == 0
    assert sys.path == before
    assert run("measure nasty.py:stops -i X.npy")[::2] == (130, run("measure nasty.py:stops -i X.npy")[2])


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1, 2**64, 10**40])
def test_seeds_of_any_size(seed: int, folder: Path, run: Run) -> None:
    lines = [f"measure model.py:make -i X.npy --seed {each} --json" for each in (seed, seed, seed + 1)]
    one, same, other = (measured(json.loads(run(line)[1]))["trace"] for line in lines)
    assert one == same != other


def test_a_fault_of_finwidths_own_is_seen_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finwidth.measurement._theory", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("measure model.py:make -i X.npy")


# ---- finwidth regime and compare, of a module in a file


def test_regime_and_compare_of_a_module_in_a_file(run: Run) -> None:
    status, output, _ = run("regime model.py:make -i 0.4,-0.5,0.2 --draws 60 --target 1,-1 --json")
    assert status == 0
    told = json.loads(output)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2))
    found = finwidth.regime(module, X[0], target=(1, -1), draws=60)
    assert told["results"] == json.loads(json.dumps(found.to_json()["results"]))
    assert told["settings"] == {"draws": 60, "module": "model.py:make", "init": None, "redraw": False}
    status, output, _ = run("compare model.py:make -i 0.4,-0.5,0.2 --networks 80 --json")
    wanted = finwidth.compare(module, X[0], networks=80)
    assert (status, json.loads(output)["results"]) == (0, json.loads(json.dumps(wanted.to_json()["results"])))
    status, output, _ = run("regime model.py:make -i 0.4,-0.5,0.2 --draws 60")
    assert output.startswith("model.py:make\nThe network is ")


def test_a_module_that_is_not_recognised_is_drawn_again(run: Run, folder: Path) -> None:
    np.save(folder / "one.npy", np.ones((1, 1, 4, 4)))
    layers, made = (
        json.loads(run(f"compare model.py:big -i one.npy --networks 20 --json{more}")[1])["results"]["compared"]
        for more in ("", " --redraw")
    )
    assert "drawn again as its weights tell" in layers
    assert "networks that factory makes" in made
    for line, message in (
        ("regime model.py:Conv -i one.npy", "give factory= (--redraw of the command line), a function"),
        ("regime model.py:Conv -i images.npy", "images.npy holds 5 inputs, shape (5, 1, 4, 4); give one"),
        ("regime model.py:trained -i 1,2,3 --redraw", "--redraw is for functions that make a module; model.py:trained"),
        ("regime model.py:broken -i 1,2,3", "raises RuntimeError: first line"),
        ("compare model.py:nothing -i 1,2,3", "model.py has no 'nothing'"),
    ):
        status, output, errors = run(line)
        assert (status, output) == (2, "")
        assert message in errors.splitlines()[-1] or message in errors


def test_a_module_of_what_is_installed_or_beside(run: Run, folder: Path) -> None:
    (folder / "zoo").mkdir()
    (folder / "zoo" / "__init__.py").write_text("")
    (folder / "zoo" / "nets.py").write_text("from torch import nn\n\n\ndef small():\n    return nn.Linear(3, 1)\n")
    status, output, _ = run("measure zoo.nets:small -i 1,2,3 --json")
    assert (status, json.loads(output)["results"]["quantities"]["trace"]["module"]["value"]) == (0, 15)
    status, _, errors = run("measure zoo.missing:small -i 1,2,3")
    assert status == 2
    assert "cannot import zoo.missing: No module named 'zoo.missing'" in errors
