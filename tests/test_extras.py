"""Without an optional library all that needs it says so in one line, with the pip command, before any work is done.

Finders that find none of them stand for an environment without extras.  Importing finwidth changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import finwidth
from finwidth.extras import EXTRAS

WITHOUT = '''
import json, sys, warnings

EXTRAS = {"torch", "zarr", "sklearn", "jinja2", "sympy", "distributed", "dask", "filelock"}

class Without:
    """A finder that finds nothing of the extras."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in EXTRAS else self.finder.find_spec(name, *more)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
'''
SWEEP = {"quantities": ["exact"], "axes": {"depth": [2], "width": [4], "n_0": 2}}
TRAINING = {"inputs": ["ones"], "targets": [1], "steps": 1, "lr": 0.1, "draws": 1, "method": "networks"}
NEEDS = {
    **{f"finwidth.{name}": "torch" for name in sorted(finwidth._OF_TORCH)},
    **{f"finwidth.empirical.{name}": "torch" for name in ("MLP", "Ensemble", "Tracker", "explain", "ntk", "recognise")},
    "finwidth.sample(net, [1, 2], 10, device='cpu')": "torch",
    "finwidth.measurement.load('module.py', 'make')": "torch",
    f"finwidth.sweep({SWEEP})": "sweep",
    f"finwidth.sweep({SWEEP}, 'new.zarr')": "sweep",
    "finwidth.sweeps.read('old.zarr')": "sweep",
    "finwidth.empirical.check_kernel('old.zarr')": "sweep",
    "finwidth.sweeps.check('old.zarr')": "sweep",
    "finwidth.sweeps.merge(['old.zarr', 'old.zarr'], 'new.zarr')": "sweep",
    "finwidth.inputs.parse_input('digits:3')": "digits",
    "finwidth.inputs.parse_training('digits:3-5', None, classes=True)": "digits",
    "finwidth.paper.page.write_page('page.html', [], [])": "paper",
}
COMMANDS = {
    "sample 2,4,1 -i digits:3": "digits",
    "train 2,4,1 -i digits:3-4": "digits",
    "measure module.py:make -i 1,2": "torch",
    "paper -o page.html": "paper",
    "sweep run grid.toml": "sweep",
    "sweep status old.zarr": "sweep",
    "sweep check old.zarr": "sweep",
    "sweep collect old.zarr -o a.nc": "sweep",
    "sweep merge old.zarr old.zarr -o new.zarr": "sweep",
    "sweep plot old.zarr phase -o a.pdf": "sweep",
}


def run(code: str, folder: Path) -> str:
    """The standard output of a program in a folder with a module, a config and something that is no store."""
    (folder / "module.py").write_text("raise SystemExit('the module was run')\n")
    (folder / "grid.toml").write_text('quantities = ["exact"]\n[axes]\ndepth = 2\nwidth = 4\nn_0 = 2\n')
    (folder / "old.zarr").mkdir()
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, text=True, cwd=folder, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(folder.rglob("*")) == before  # nothing was begun
    return done.stdout


def test_every_function_says_what_to_install(tmp_path: Path) -> None:
    code = f"""{WITHOUT}
import finwidth, finwidth.inputs, finwidth.measurement, finwidth.paper.page
net = finwidth.MLP([2, 4, 1])
for call in {list(NEEDS)}:
    try:
        eval(call)
        print(json.dumps([call, "nothing was raised"]))
    except finwidth.FinwidthError as error:
        print(json.dumps([call, str(error)]))
"""
    told = dict(map(json.loads, run(code, tmp_path).splitlines()))
    assert set(told) == set(NEEDS)
    for call, extra in NEEDS.items():
        assert told[call].endswith(f"which is not installed; pip install 'finwidth[{extra}]'"), (call, told[call])


def test_a_refusal_names_what_would_serve_if_it_were_installed(tmp_path: Path) -> None:
    code = f"""{WITHOUT}
import finwidth, numpy as np
for module in (None, "Softplus"):
    phi = finwidth.SmoothActivation("softplus", lambda y: np.logaddexp(0, y), np.tanh, torch_module=module)
    try:
        finwidth.sample(finwidth.MLP([2, 3, 1], activation=phi), [1, 2], 10)
    except finwidth.FinwidthError as error:
        print(error)
"""
    unknown, known = run(code, tmp_path).splitlines()
    assert "finwidth.empirical.Ensemble" not in unknown
    assert known.endswith("finwidth.empirical.Ensemble real networks (pip install 'finwidth[torch]')")


def test_every_command_says_what_to_install(tmp_path: Path) -> None:
    code = f"""{WITHOUT}
import io, contextlib, time
from finwidth.cli.main import main
for command in {list(COMMANDS)}:
    errors, start = io.StringIO(), time.monotonic()
    sys.argv = ["finwidth", *command.split()]
    with contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            print(json.dumps([command, [end.code, errors.getvalue(), time.monotonic() - start]]))
"""
    told = dict(map(json.loads, run(code, tmp_path).splitlines()))
    assert set(told) == set(COMMANDS)
    for command, extra in COMMANDS.items():
        status, errors, seconds = told[command]
        assert status == 2, (command, errors)
        assert errors.startswith("finwidth: error: ")
        assert errors.endswith(f"which is not installed; pip install 'finwidth[{extra}]'\n"), (command, errors)
        assert errors.count("\n") == 1
        assert seconds < 5  # the paper's checks take longer


@pytest.mark.parametrize(("keywords", "extra"), [({"scheduler": "tcp://127.0.0.1:1"}, "dask")])
def test_a_scheduler_is_asked_for_before_the_store_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any], extra: str
) -> None:
    pytest.importorskip("zarr")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(finwidth.FinwidthError, match=rf"a scheduler needs Dask, .* pip install 'finwidth\[{extra}\]'"):
        finwidth.sweep(SWEEP, tmp_path / "a.zarr", **keywords)
    assert not (tmp_path / "a.zarr").exists()


def test_training_of_real_networks_in_a_sweep_asks_for_torch(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    config = {**SWEEP, "quantities": ["training"], "training": TRAINING}
    code = f"""{WITHOUT.replace('"zarr", ', "")}
import finwidth
try:
    finwidth.sweep({config}, "new.zarr")
except finwidth.FinwidthError as error:
    print(error)
"""
    assert run(code, tmp_path).endswith("needs PyTorch, which is not installed; pip install 'finwidth[torch]'\n")


def test_a_library_of_the_library_is_not_confused_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a broken installation misses is told by its own name."""
    from finwidth.extras import load_extra

    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "jinja2":
                raise ModuleNotFoundError("No module named 'markupsafe'", name="markupsafe")

    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="markupsafe"):
        load_extra("jinja2", "the HTML page")


def test_every_extra_is_one_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert {extra for _, extra in EXTRAS.values()} <= set(project["optional-dependencies"])


STATE = """
import json, locale, os, signal, sys, threading, warnings

import numpy as np

def state():
    torch = sys.modules.get("torch")
    return {
        "warnings": [str(each) for each in warnings.filters],
        "showwarning": str(warnings.showwarning),
        "environment": dict(os.environ),
        "signals": [str(signal.getsignal(each)) for each in sorted(signal.valid_signals())],
        "threads": threading.active_count(),
        "errors of NumPy": [str(np.geterr()), str(np.geterrcall()), str(np.get_printoptions())],
        "random numbers": [str(np.random.get_state()[1][:5]), str(__import__("random").getstate()[1][:5])],
        "hooks": [str(sys.excepthook), str(sys.unraisablehook), str(sys.displayhook), str(threading.excepthook)],
        "paths": [*sys.path, os.getcwd()],
        "limits": [sys.getrecursionlimit(), sys.get_int_max_str_digits(), sys.getswitchinterval()],
        "locale": locale.setlocale(locale.LC_ALL),
        "context": str(__import__("decimal").getcontext()),
        "loggers": sorted(__import__("logging").root.manager.loggerDict),
        "torch": torch and [
            torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.initial_seed(),
            torch.are_deterministic_algorithms_enabled(), str(torch.get_default_device()),
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark,
        ],
        "handlers": [str(each) for each in sys.meta_path] + [str(each) for each in sys.path_hooks],
    }

"""


@pytest.mark.parametrize("first", ["numpy, decimal, random, logging, locale", "torch"])
def test_importing_changes_nothing_in_the_process(tmp_path: Path, first: str) -> None:
    if first == "torch":
        pytest.importorskip("torch")
    everything = "finwidth.public, finwidth.report, finwidth.plots, finwidth.paper, finwidth.sweeps, finwidth.cli.main"
    if first == "torch":
        everything += "; finwidth.empirical.ntk; finwidth.empirical.Ensemble; " + "; ".join(
            f"finwidth.{name}" for name in sorted(finwidth._OF_TORCH)
        )
    else:
        everything += "; finwidth.sample"
    code = f"""{STATE}
import {first}
before = state()
import finwidth, {everything}
after = state()
print(json.dumps({{name: [before[name], after[name]] for name in before if before[name] != after[name]}}))
"""
    changed = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    changed.pop("loggers", None)  # libraries that are loaded have loggers of their own
    assert changed == {}


def test_importing_allocates_nothing() -> None:
    """No array, however short its life: 32 MiB would move glibc's threshold for good. The modules take some MiB."""
    code = """
import tracemalloc
import numpy as np
tracemalloc.start()
import finwidth.public, finwidth.report, finwidth.plots
made = tracemalloc.get_traced_memory()[1]
print(max(made - tracemalloc.get_traced_memory()[0], 0))
"""
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak < 2**23
