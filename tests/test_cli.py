"""The command line as a stranger meets it: in a process of its own, what it prints and how it exits."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import finwidth
from finwidth.cli.main import app
from finwidth.cli.sweeps import sweep_app
from fuzzing import call


def run(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finwidth", *arguments]
    env = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False, timeout=120)


def test_exact_json_is_the_value_to_recognise() -> None:
    found = json.loads(run("moments", "2,3,3,1", "--input", "1,2", "--exact", "--json").stdout)
    assert (found["command"], found["network"]["widths"], found["input"]) == ("moments", [2, 3, 3, 1], [1, 2])
    assert found["results"]["beta"] == 5 / 3
    quantities = found["results"]["quantities"]
    fractions = {
        "K": "151/16", "K_w": "15/2", "K_b": "31/16", "K^2": "2617/8", "K_w^2": "2300/9", "K_b^2": "473/72",
        "K_w*K_b": "65/2", "var(K)": "60943/256", "dK": "-1510/9", "D_ww": "650/9", "D_wb": "35/6",
    }  # fmt: skip
    for name, fraction in fractions.items():
        assert quantities[name]["exact"]["fraction"] == fraction
        assert quantities[name]["exact"]["value"] == float(Fraction(fraction))
    assert quantities["cv(K)"]["exact"]["value"] == pytest.approx((60943 / 256) ** 0.5 / (151 / 16))
    assert quantities["K"]["form"]["value"] == pytest.approx(9)


def test_moments_options() -> None:
    arguments = ("moments", "2,3x2,1", "-i", "1,0.5", "--law", "uniform", "--parameterization", "standard")
    found = json.loads(run(*arguments, "--order", "4", "--json").stdout)
    net = finwidth.MLP([2, 3, 3, 1], "uniform", parameterization="standard")
    raw = [found["results"]["quantities"][name]["exact"]["value"] for name in ("K", "K^2", "K^3", "K^4")]
    assert raw == list(finwidth.moments(net, [1, 0.5], order=4).raw)
    assert found["type"] == "KernelMoments"  # without the paper's forms
    table = run(*arguments)
    assert table.returncode == 0
    assert "parameterization is standard" in table.stdout


def test_sample_json(tmp_path: Path) -> None:
    file = tmp_path / "draws.nc"
    arguments = ("sample", "2,8,8,1", "-i", "-1,2", "--draws", "20000", "--seed", "3")
    process = run(*arguments, "--json", "-o", str(file))
    found = json.loads(process.stdout)
    assert (found["draws"], found["seed"]) == (20000, 3)
    import xarray as xr

    with xr.open_dataset(file, engine="scipy") as stored:
        assert found["files"] == [str(file)]
        sampled = {name: each["sampled"] for name, each in found["results"]["quantities"].items()}
        assert float(stored.K.mean()) == pytest.approx(sampled["K"]["value"])
        assert stored.attrs["seed"] == 3
        median = float(np.quantile(stored.K, 0.5, method="inverted_cdf"))
        assert sampled["q50(K)"]["value"] == pytest.approx(median, rel=1.001e-3)
        assert sampled["sd(log K)"]["value"] == pytest.approx(float(np.log(stored.K).std()), rel=1e-3)
    for name in ("K", "K_w", "K_b", "K^2", "dK"):
        assert sampled[name]["trust"] is True
        assert sampled[name]["draws"] == 20000
    leaky = run(*arguments, "--activation", "leaky_relu").stdout
    assert leaky.startswith("2,8x2,1 leaky_relu")
    assert "Quantiles of K: 5% " in leaky


def test_tilted_draws() -> None:
    arguments = ("sample", "3,5x15,1", "-i", "1,2,2", "--draws", "30000")
    found = json.loads(run(*arguments, "--tilted", "--json").stdout)
    for each in found["results"]["quantities"].values():
        assert each["tilted"]["trust"] is True
        assert abs(each["tilted"]["value"] / each["exact"]["value"] - 1) < 0.06  # six standard errors of 1%
    assert found["settings"]["tilted"] is True
    assert "(sample --tilted)" in run(*arguments).stdout


def test_train_json(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "X.npy", rng.standard_normal((3, 4)))
    arguments = ("train", "4,30,30,1", "-i", "X.npy", "-t", "1,-1,0.5", "--steps", "4", "--draws", "5", "--seed", "2")
    process = run(*arguments, "--json", "-o", "run.nc", cwd=tmp_path)
    found = json.loads(process.stdout)
    import xarray as xr

    settings, quantities = found["settings"], found["results"]["quantities"]
    with xr.open_dataset(tmp_path / "run.nc", engine="scipy") as stored:
        assert quantities["loss"]["sampled"]["value"] == pytest.approx(stored.loss.mean("draw").to_numpy())
        assert settings["lr"] == stored.attrs["lr"]
        again = finwidth.train(
            finwidth.MLP([4, 30, 30, 1]), np.load(tmp_path / "X.npy"), [1, -1, 0.5], 4, settings["lr"], 5, seed=2
        )
        assert np.array_equal(again.K, stored.K)
    assert found["results"]["step"] == [0, 1, 2, 3, 4]
    assert quantities["drift"]["sampled"]["value"][0] == 0
    centred = json.loads(run(*arguments, "--centred", "--json", cwd=tmp_path).stdout)
    losses = centred["results"]["quantities"]["loss"]["sampled"]
    assert (losses["value"][0], losses["se"][0]) == ((1 + 1 + 0.25) / 2, 0)  # outputs start at 0
    table = run(*arguments, "--activation", "gelu", cwd=tmp_path)
    assert table.returncode == 0
    assert "Learning rate" in table.stdout
    assert len(table.stdout.splitlines()) < 20


def test_train_on_digits() -> None:
    pytest.importorskip("sklearn", reason="needs the digits extra")
    line = "train 64,50,10 -i digits:0-11 --loss cross-entropy --steps 30 --draws 2 --batch 4 --momentum 0.5 --json"
    found = json.loads(run(*line.split()).stdout)
    losses = found["results"]["quantities"]["loss"]["sampled"]["value"]
    assert losses[-1] < losses[0]


def test_report_writes_figures_and_numbers(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the digits extra")
    process = run("report", "64,16x4,1", "--input", "digits:17", "-o", "out", "--draws", "20000", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "E[K²]" in process.stdout
    folder = tmp_path / "out"
    figures = {"law.png", "law.pdf", "depth.png", "depth.pdf"}
    assert {path.name for path in folder.iterdir()} == {"report.json", "manifest.json", *figures}
    assert (folder / "law.png").read_bytes()[:4] == b"\x89PNG"
    document = json.loads((folder / "report.json").read_text())
    from sklearn.datasets import load_digits

    exact = finwidth.moments(finwidth.MLP([64, *[16] * 4, 1]), load_digits().data[17])
    assert document["results"]["quantities"]["K^2"]["exact"]["value"] == exact.second_moment
    assert (document["seed"], document["draws"], len(document["input"])) == (0, 20000, 64)


def test_paper_checks_what_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="needs the paper extra")
    one = run("paper", "lemma-9", "figure-1", "--json", "-o", "page.html", cwd=tmp_path)
    found = json.loads(one.stdout)["results"]
    assert [statement["id"] for statement in found["statements"]] == ["lemma-9", "figure-1"]
    assert all(statement["holds"] for statement in found["statements"])
    assert "<svg" in (tmp_path / "page.html").read_text()
    lines = run("paper", "lemma-9").stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Lemma 9")


def test_compare_and_width_for() -> None:
    found = json.loads(run("compare", "2,8,1", "-i", "1,2", "--draws", "5000", "--networks", "500", "--json").stdout)
    K = found["results"]["quantities"]["K"]
    assert K["exact"]["value"] == float(finwidth.moments(finwidth.MLP([2, 8, 1]), [1, 2]).mean)
    assert K["networks"]["draws"] == 500
    table = run("compare", "2,8,1", "-i", "1,2", "--law", "uniform", "--networks", "500")
    assert "its weights are uniform" in table.stdout
    results = json.loads(run("width-for", "16", "--cv", "0.1", "--json").stdout)["results"]
    assert results["width"] == finwidth.width_for(16, cv=0.1)
    advice = results["regime"]
    assert advice["regime"] == "moving"
    assert (advice["target"], advice["cv"]["se"]) == (1.0, 0.0)
    assert advice["movement"]["value"] > 0.1
    printed = run("width-for", "3", "--target", "0").stdout
    assert printed.startswith(
        f"{finwidth.width_for(3, cv=0.1)}\nA network of 3 weight layers at this width is near-det"
    )
    assert max(map(len, printed.splitlines())) <= 80
    told = " ".join(printed.split())
    assert (
        f"target 0 and learning rate {1 / finwidth.infinite_width(finwidth.MLP([1, 1, 1, 1]), [1]):.3g} = 1/E[K]"
        in told
    )


def test_width_for_smooth_activations_and_for_networks_that_are_not_drawn() -> None:
    smooth = run("width-for", "3", "--cv", "0.3", "--activation", "tanh", "--json")
    advice = json.loads(smooth.stdout)["results"]
    assert advice["width"] == finwidth.width_for(3, cv=0.3, activation="tanh")
    assert abs(advice["regime"]["cv"]["value"] - 0.3) < 0.03
    uniform = json.loads(run("width-for", "16", "--law", "uniform", "--json").stdout)["results"]
    assert (uniform["width"], uniform["regime"]) == (3516, None)
    assert "its weights are uniform" in uniform["not_drawn"]
    told = " ".join(run("width-for", "16", "--law", "uniform").stdout.split())  # in lines of 80 columns
    assert "is not known: its weights are uniform" in told


def test_input_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([1, 2]))
    found = json.loads(run("moments", "2,3,3,1", "-i", str(tmp_path / "x.npy"), "--exact", "--json").stdout)
    assert found["results"]["quantities"]["K"]["exact"]["fraction"] == "151/16"


MISTAKES = {
    "moments '' -i 1": "is not a width",
    "moments 2 -i 1,2": "1 entries",
    "moments 2,0,1 -i 1,2": "width number 1 is 0, less than 1",
    "moments 2,-3,1 -i 1,2": "width number 1 is -3",
    "moments 2,3.5,1 -i 1,2": "'3.5' is not a width",
    "moments model.py:make -i 1": "finwidth measure, regime and compare take a module in a file",
    "regime 2,3,1 --input=": "the input '' is neither numbers nor",
    "regime model.py": "names no module; write a file and a name in it",
    "regime model.py:make": "a torch module needs an input; give one with -i",
    "regime model.py:make -i ones": "the input 'ones' has as many numbers as widths say, and there are none; give",
    "regime model.py:make -i 1,2 --activation tanh": "leave out the options that describe a network",
    "compare 2,3,1 -i 1,2 --redraw": "--redraw is for torch modules, such as model.py:make",
    "moments 2,3x0,1 -i 1,2": "'3x0' is not a width",
    "moments 2,3,0 -i 1,2": "width number 2 is 0",
    "moments 2,3,1 -i nan,1": "nan at place 0",
    "moments 2,3,1 -i 1,inf": "inf at place 1",
    "moments 2,3,1 -i 1,2,3": "shape (3,)",
    "moments 2,3,1 -i 1,1/0": "neither numbers",
    "moments 2,3,1 -i missing.npy": "does not exist",
    "moments 2,3,1 -i text.npy": "not a .npy file",
    "moments 2,3,1 -i pickled.npy": "not a .npy file",
    "moments 2,3,1 -i words.npy": "real numbers",
    "moments 2,3,1 -i digits:x": "not an image",
    "moments 2,3,1": "Missing option",
    "moments 2,3,1 -i 1,2 --law cauchy": "choose one of",
    "moments 2,3,1 -i 1,2 --order 9": "give 2, 3 or 4",
    "moments 2,3,1 -i 1,2 --law truncated-normal --exact": "not all rational",
    "sample 2,3,1 -i 1,2 --draws 0": "draws is 0",
    "sample 2,3,1 -i 1,2 --draws many": "'--draws' / '-n': give a whole number, such as 1000",
    "train 2,3,1 -i X.npy -t 1,2 --lr much": "'--lr': give a number, such as 0.1",
    "sample 2,3,1 -i 1,2 --seed -1": "seed is -1",
    "sample 2,3,1 -i 1,2 -o missing/draws.nc": "cannot write",
    "sample 2,3,1 -i 1,2 --tilted -o draws.nc": "leave one of the two out",
    "sample 2,3,1 -i 1,2 --tilted --activation abs": "tilted draws need ReLU",
    "sample 2,3,1 -i 1,2 --activation tanh": "its activation is tanh",
    "train 2,3,1 -i X.npy": "targets are missing",
    "train 2,3,1 -i X.npy -t 1,2,3": "targets have shape",
    "train 2,3,1 -i X.npy -t 1,2 --lr 0": "lr is 0",
    "train 2,3,1 -i X.npy -t 1,2 --steps 0": "steps is 0",
    "train 2,3,1 -i X.npy -t 1,2 --loss hinge": "loss 'hinge'",
    "train 2,3,1 -i X.npy -t 1,2 --memory 1kB": "and memory is 1000 bytes",
    "train 2,3,1 -i X.npy -t 1,2 --lr 1e9 --steps 500": "training diverges",
    "train 2,3,1 -i 1,2 -t 1": "neither a .npy file nor digits",
    "train 2,3,1 -i missing.npy -t 1": "does not exist",
    "report 2,3,1 -i 1,2 -o text.npy": "cannot write",
    "sample 2,3,2 -i 1,2 --tilted": "one output",
    "compare 2,3,1 -i 1,2 --networks 0": "networks is 0",
    "paper lemma-99": "the paper's statement 'lemma-99' is not known",
    "width-for 0": "depth is 0",
    "width-for 4 --cv -1": "cv is -1",
    "width-for 4 --target nan": "target is nan",
    "width-for 4 --lr 0": "lr is 0",
    "width-for 40 --activation tanh": "at most 32",
    "frobnicate": "No such command",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line: str, tmp_path: Path) -> None:
    import shlex

    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "X.npy", np.eye(2))
    process = run(*shlex.split(line), cwd=tmp_path)
    assert process.returncode == 2, process.stdout + process.stderr
    assert process.stderr.startswith("finwidth: error: ")
    assert process.stderr.count("\n") == 1
    assert MISTAKES[line] in process.stderr
    assert not process.stdout


EXTREMES = (
    "sample 2,2x2000,1 -i 1,2 --draws 500 --json",  # dead networks, and an exact second moment past a double
    "report 2,2x2000,1 -i 1,2 --draws 500 --json",
    "compare 2,2x2000,1 -i 1,2 --draws 500 --networks 20 --json",
    "report 2,3,1 -i 1,2 --bias frozen --draws 500 --json",  # K = 0 in some draws
    "report 2,3,1 -i 0,0 --draws 500 --json",  # K deterministic
    "report 2,1,1 -i 1,2 --draws 500 --json",
    "report 2,3,1 -i 1e70,2 --draws 500 --json",
    "moments 2,3,1 -i 1e300,2 --json",
    "moments 2,1x1100,1 -i 1,2 --json",
)


@pytest.mark.parametrize("line", EXTREMES)
def test_extremes_give_valid_json_and_no_warning(line: str, tmp_path: Path) -> None:
    process = run(*line.split(), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    document = json.loads(process.stdout)
    if line.startswith("sample"):
        assert (
            document["results"]["quantities"]["K"]["sampled"]["trust"] is False
        )  # every draw is dead, the mean is 5005.5


def test_closed_pipe_and_full_disk() -> None:
    command = f"{sys.executable} -c 'from finwidth.__main__ import main; main()'"
    for line, status in (
        (f"{command} paper lemma-9 lemma-7 | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 0),
        (f"PYTHONUNBUFFERED= {command} moments 2,3,1 -i 1,2 > /dev/full", 2),
        (f"PYTHONUNBUFFERED=1 {command} moments 2,3,1 -i 1,2 > /dev/full", 2),
        (f"PYTHONIOENCODING=ascii {command} moments 2,3,1 -i 1,2 > /dev/null", 0),
    ):
        process = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=120)
        assert process.returncode == status, line
        assert "Traceback" not in process.stderr


def test_interrupt_is_one_line() -> None:
    code = (  # a shell's job in the background has interrupts switched off
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from finwidth.cli.main import main; print('ready', flush=True); main()"
    )
    arguments = ["sample", "8,64x50,1", "-i", "1,1,1,1,1,1,1,1", "-n", "100000000"]
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "finwidth: interrupted\n"


def test_a_narrow_terminal_shows_every_digit() -> None:
    arguments = ("sample", "2,64x16,1", "-i", "100,200", "-n", "2000")
    wide = run(*arguments).stdout
    for columns in (80, 50):
        colored = run(*arguments, FORCE_COLOR="1", COLUMNS=str(columns)).stdout
        narrow = re.sub(r"\x1b\[[0-9;]*m", "", colored)
        assert max(map(len, narrow.splitlines())) <= columns
        numbers = {word for word in wide.split() if any(map(str.isdigit, word))}
        assert len(numbers) > 40
        assert numbers <= {*narrow.split()}  # whole, and in the line of what they are of


def test_help_and_version() -> None:
    assert run("--version").stdout == f"finwidth {finwidth.__version__}\n"
    assert "moments" in run().stdout
    assert "--exact" in run("moments", "--help").stdout


def test_expansion_and_critical(tmp_path: Path) -> None:
    line = ("expansion", "2,100x2,1", "--input", "1,0.5", "-i", "0,1", "--activation", "gelu")
    printed = run(*line, cwd=tmp_path, COLUMNS="80")
    table = printed.stdout.split("\n\n")[1].splitlines()
    assert max(map(len, table)) <= 80
    assert "First order" in printed.stdout
    net = finwidth.MLP([2, 100, 100, 1], activation="gelu")
    wide = finwidth.expansion(net, [[1.0, 0.5], [0.0, 1.0]], [0, 0])
    assert f"{wide.K[0, 0, 1].item():.6g}" in printed.stdout
    found = json.loads(run(*line, "--json", "-o", "wide.nc", cwd=tmp_path).stdout)
    assert found["results"]["quantities"]["K"]["correction"]["value"] == wide.K[1].to_numpy().tolist()
    assert found["results"]["first_order"]["verdict"] == wide.attrs["first_order"]
    assert xr.open_dataset(tmp_path / "wide.nc").dK.to_numpy().tolist() == wide.dK.to_numpy().tolist()
    refused = run("expansion", "2,9,1", "-i", "1,2", "--law", "uniform")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    known = finwidth.critical("gelu")
    assert json.loads(run("critical", "gelu", "--json").stdout)["results"] == dataclasses.asdict(known)
    assert "scale-invariant" in run("critical", "1,0.2").stdout
    assert run("critical", "softplus").returncode == 2


def test_smooth_activations_by_first_order(tmp_path: Path) -> None:
    """The advice says where first order serves; report and compare have it beside draws and networks."""
    told = " ".join(run("width-for", "3", "--activation", "tanh").stdout.split())
    assert "This is from first order in 1/width, which leaves out at most about" in told
    assert json.loads(run("depth-for", "60", "--cv", "0.3", "--activation", "tanh", "--json").stdout)["results"][
        "spread_from"
    ]
    line = ("report", "2,64x2,1", "-i", "1,2", "--activation", "tanh", "--draws", "2000")
    printed = run(*line, "-o", "told", cwd=tmp_path)
    assert "First order serves" in printed.stdout
    assert (tmp_path / "told" / "depth.png").stat().st_size > 10_000
    compared = ("compare", "2,16,1", "-i", "1,2", "--activation", "erf", "--draws", "500", "--networks", "50")
    found = json.loads(run(*compared, "--json").stdout)
    assert found["results"]["quantities"]["dK"]["networks"]["draws"] == 50
    assert "first order" in run(*compared).stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("finwidth mo", ["moments"]),
        ("finwidth sweep pl", ["plot"]),
        ("finwidth moments 2,3,1 --bias-l", ["--bias-law"]),
        ("finwidth moments 2,3,1 --norm ", ["rms", "layer"]),
        ("finwidth critical g", ["gelu"]),
    ],
)
def test_shells_complete_what_is_typed(words: str, completed: list[str]) -> None:
    """As bash asks after `finwidth --install-completion`."""
    place = len(words.split()) - (not words.endswith(" "))
    asked = run(_FINWIDTH_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(place))
    assert (asked.returncode, asked.stderr) == (0, "")
    assert [word for word in asked.stdout.split() if word.startswith(words.rsplit(" ", maxsplit=1)[-1])] == completed


@pytest.mark.parametrize("command", ["", "report", "measure", "sweep", "sweep plot", "schema"])
def test_help_fits_a_terminal_and_has_examples(command: str) -> None:
    told = run(*command.split(), "--help", COLUMNS="80").stdout
    assert max(map(len, told.splitlines())) <= 80
    assert "…" not in told
    assert f"finwidth {command}".rstrip() in told.partition("Examples:")[2]


EVERY = [str(each.name) for each in app.registered_commands] + [
    f"sweep {each.name}" for each in sweep_app.registered_commands
]


@pytest.mark.parametrize("command", ["", "sweep", *EVERY])
def test_help_speaks_no_python(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No types such as <bool> or <list[Path]>; what takes a value says of which kind, and fits a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    told = call([*command.split(), "--help"]).output
    assert "Examples:" in told
    assert max(map(len, told.splitlines())) <= 80
    assert not re.search(r"<\w|TEXT|INTEGER|FLOAT|PATH|BOOLEAN", told)
    for line in told.splitlines():
        if "--draws" in line and line.startswith("│"):
            assert "NUMBER" in line


def test_signs_that_a_terminal_does_not_have_are_spelled() -> None:
    told = run("compare", "2,4,1", "-i", "1,2", "--draws", "300", "--networks", "20", PYTHONIOENCODING="ascii").stdout
    assert "E[K_w^2]" in told
    assert "E[dK]/lambda" in told
    assert "?" not in told
    assert "+-" in run("regime", "10,200x4,1", "--draws", "50", PYTHONIOENCODING="ascii").stdout
    assert "±" in run("regime", "10,200x4,1", "--draws", "50", PYTHONIOENCODING="utf-8").stdout
