"""Options of the command line that describe a network: each line is the network of Python, or one true sentence."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import finwidth
from finwidth import MLP, Activation, BalancedResNet, FinwidthError, Norm, ResNet
from finwidth.cli.main import app
from finwidth.cli.networks import read_options
from finwidth.cli.sweeps import sweep_app
from finwidth.networks.description import Network
from finwidth.networks.widths import parse_widths
from fuzzing import Called, call

SLOPES = Activation("slopes(1,1/5)", 1, Fraction(1, 5))
LINES: dict[str, Network] = {
    "3,4x2,1": MLP([3, 4, 4, 1]),
    "3,4,1 --law uniform --activation gelu --parameterization standard": MLP([3, 4, 1], "uniform", "gelu", "standard"),
    "3,4,1 --activation 1,1/5": MLP([3, 4, 1], activation=SLOPES),
    "3,4,1 --gains 1/3": MLP([3, 4, 1], gains=Fraction(1, 3)),
    "3,4x3,2 --gains 2x3,0.1": MLP([3, 4, 4, 4, 2], gains=[2, 2, 2, Fraction(1, 10)]),
    "3,4x2,1 --bias trained,frozen,none --bias-scale 0.5": MLP(
        [3, 4, 4, 1], bias=["trained", "frozen", "none"], bias_scale=0.5
    ),
    "3,4,1 --bias-variance 0,1/4 --bias-law laplace": MLP([3, 4, 1], bias_variance=[0, 0.25], bias_law="laplace"),
    "3,4x2,1 --parameterization mup --base-widths 2": MLP([3, 4, 4, 1], parameterization="mup", base_widths=2),
    "3,4,1 --parameterization mup --base-widths 3,2,1": MLP([3, 4, 1], parameterization="mup", base_widths=[3, 2, 1]),
    "3,4,1 --norm rms": MLP([3, 4, 1], norm="rms"),
    "3,4,1 --norm layer,after,trained": MLP([3, 4, 1], norm=Norm("layer", "after", parameters="trained")),
    "3,4,1 --pytorch default": MLP.pytorch([3, 4, 1]),
    "3,4,1 --pytorch kaiming_normal,zeros --activation tanh": MLP.pytorch(
        [3, 4, 1], "kaiming_normal", "tanh", biases="zeros"
    ),
    "3,4,1 --pytorch kaiming_uniform,none": MLP.pytorch([3, 4, 1], "kaiming_uniform", biases="none"),
    "3,4,1 --neural-tangents 1.5,0.05": MLP(
        [3, 4, 1], gains=Fraction(9, 4), bias_variance=1, bias_scale=Fraction(1, 20)
    ),
    "3,4,1 --neural-tangents 1.5": MLP([3, 4, 1], gains=2.25, bias="none"),
    "3,4,1 --blocks 2": ResNet([3, 4, 1], 2),
    "3,4,1 --blocks 3 --hidden 5,6x2 --skip 0.5 --branch 1/sqrt(depth)": ResNet(
        [3, 4, 1], 3, [5, 6, 6], skip=0.5, branch="1/sqrt(depth)"
    ),
    "3,4,1 --blocks 2 --hidden 8 --branch 1/3,sqrt(3/4) --norm rms": ResNet(
        [3, 4, 1], 2, 8, branch=[Fraction(1, 3), "sqrt(3/4)"], norm="rms"
    ),
    "3,4,1 --blocks 2 --gains 1,2,1,3 --bias none --law laplace": ResNet(
        [3, 4, 1], 2, gains=[1, 2, 1, 3], bias="none", weight_law="laplace"
    ),
    "3,4,1 --blocks 2 --balanced --branch 0.5": BalancedResNet([3, 4, 1], 2, branch=0.5),
    "3,4,1 --blocks 2 --balanced --no-signs": BalancedResNet([3, 4, 1], 2, signs=False),
    "3,4,1 --blocks 2 --balanced --signs": BalancedResNet([3, 4, 1], 2),
}  # fmt: skip
REFUSED = {
    "--hidden 3": "--hidden is for residual networks; say how many blocks, such as --blocks 8",
    "--balanced": "--balanced is for residual networks",
    "--blocks 2 --base-widths 3": "--base-widths does not go with --blocks",
    "--blocks 2 --balanced --hidden 3": "--hidden does not go with --balanced",
    "--no-signs": "--signs is for residual networks",
    "--blocks 2 --no-signs": "--signs does not go with --blocks",
    "--blocks 2 --balanced --norm rms": "--norm does not go with --balanced",
    "--blocks 2 --pytorch default": "--blocks does not go with --pytorch",
    "--law gaussian --pytorch default": "--law does not go with --pytorch",
    "--gains 2 --neural-tangents 1": "--gains does not go with --neural-tangents",
    "--pytorch default --balanced": "--balanced does not go with --pytorch",
    "--pytorch default --neural-tangents 1": "--neural-tangents does not go with --pytorch",
    "--neural-tangents 1 --blocks 2": "--blocks does not go with --neural-tangents",
    "--neural-tangents 1,2,3": "give W_std, or W_std,b_std",
    "--pytorch xavier": "init 'xavier' is not known",
    "--pytorch default,ones": "biases 'ones' is not known",
    "--gains 2,x": "--gains: 'x' is not a number",
    "--bias-scale 1e200": "its square, or that times bias_variance, is past a double's range",
    "--bias-scale 0.5,1e150 --bias-variance 1e100": "is past a double's range",
    "--blocks 2 --bias-scale 1e-200": "is past a double's range",
    "--gains 2x3": "gains has 3 entries for 2 weight layers",
    "--blocks 2 --hidden 2.5": "--hidden: '2.5' is not a width",
    "--blocks 2 --branch 1/sqrt(L)": "branch is '1/sqrt(L)'; give numbers",
    "--blocks 0": "depth is 0",
    "--blocks 2.5": "--blocks: '2.5' is not a whole number; give how many blocks",
    "--bias-variance 9x99999999999999999": "at most 10,000,000 layers",
    "--activation 1,2,3": "give a name, or two slopes",
    "--activation 1,b": "'b' is not a number",
    "--norm batch": "norm 'batch' is not known",
}


def network(line: str) -> Network:
    """The network of widths and options, by way of the program's parser."""
    from typer.main import get_command

    found: list[Network] = []
    command: Any = get_command(app).commands["moments"]  # type: ignore[attr-defined]
    with command.make_context("moments", [*shlex.split(line), "-i", "ones"]) as context:
        given = {name: value for name, value in context.params.items() if name in options()}
        found.append(read_options(**given).network(parse_widths(context.params["widths"])))
    return found[0]


def options() -> set[str]:
    import inspect

    return {*inspect.signature(read_options).parameters}


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_the_network_that_python_has(line: str) -> None:
    assert network(line) == LINES[line]


def test_every_argument_of_a_description_is_an_option() -> None:
    import inspect

    for kind in (MLP, ResNet, BalancedResNet):
        arguments = {*inspect.signature(kind).parameters} - {"widths", "depth"}
        assert arguments <= options()


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_go_together_is_one_sentence(line: str) -> None:
    found = call(["moments", "3,4,1", "-i", "ones", *shlex.split(line)])
    assert found.fault() is None
    assert found.status == 2
    assert REFUSED[line] in found.errors


def examples(program: typer.Typer) -> list[str]:
    """Those of every help text."""
    found: list[str] = re.findall(r"^ *finwidth (?!COMMAND)(.*)$", str(program.info.epilog), re.M)
    for each in program.registered_commands:
        assert each.epilog is not None, each.name
        found += re.findall(r"^ *finwidth (.*)$", each.epilog, re.M)
        assert max(map(len, found)) < 69
    return found


def test_examples_of_sweeps_are_of_sweeps() -> None:
    lines = examples(sweep_app)
    assert len(lines) > 6
    assert all(line.startswith("sweep ") for line in lines)


def lines_of_the_docs() -> list[str]:
    """The commands of docs/command-line.md."""
    text = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    return re.findall(r"^finwidth ([^#\n]*)", text, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("line", [*examples(app), *lines_of_the_docs()])
def test_every_example_runs(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="measures a module")
    pytest.importorskip("sklearn", reason="reads digits")
    pytest.importorskip("jinja2", reason="writes a page")
    monkeypatch.chdir(tmp_path)
    np.save("X.npy", np.eye(3))
    Path("model.py").write_text("import torch\ndef make(): return torch.nn.Linear(3, 2)\n")
    found = call(shlex.split(line))
    assert (found.status, found.errors) == (0, ""), found.fault()


def document(line: str) -> Any:
    found: Called = call([*shlex.split(line), "--json"])
    assert found.status == 0, found.errors
    return json.loads(found.output)


def test_moments_and_draws_of_a_residual_network() -> None:
    net = ResNet([3, 8, 1], 4, 6, branch="1/sqrt(depth)")
    options = '3,8,1 --blocks 4 --hidden 6 --branch "1/sqrt(depth)" -i 1,2,3'
    assert document(f"moments {options}")["results"]["quantities"]["K"]["exact"]["value"] == float(
        finwidth.moments(net, [1, 2, 3]).mean
    )
    drawn = document(f"sample {options} --draws 500")
    of_command = {"command": "sample", "input": [1, 2, 3], "settings": {"tilted": False}}
    assert drawn == finwidth.summarize(net, [1, 2, 3], 500).to_json() | of_command
    assert drawn["network"] == net.describe()
    told = call(["moments", *shlex.split(options)]).output
    assert told.startswith("ResNet 3,8,1 of 4 blocks (hidden width 6; branch 0.5) relu")
    assert "do not cover this network: it is a ResNet (MLP is supported)." in told


def test_gram_is_that_of_sample_gram(tmp_path: Path) -> None:
    net, X = MLP([2, 16, 16, 2], activation="tanh"), np.array([[1, 0], [0.5, -1], [1, 1]])
    line = "gram 2,16x2,2 --activation tanh -i 1,0 -i 1/2,-1 -i ones --draws 700 --seed 4"
    found = document(line)
    K = finwidth.sample_gram(net, X, 700, 4).K.to_numpy()[..., 0, 0]
    of_K = found["results"]["quantities"]["K"]
    np.testing.assert_allclose(of_K["sampled"]["value"], K.mean(0), rtol=1e-12)
    np.testing.assert_allclose(of_K["sampled"]["se"], K.std(0, ddof=1) / 700**0.5, rtol=1e-12)
    np.testing.assert_allclose(of_K["infinite_width"]["value"], finwidth.infinite_width_gram(net, X))
    np.save(tmp_path / "y.npy", np.array([[1.0, 0], [0, 1], [1, 1]]))
    table = call([*line.split(), "--targets", str(tmp_path / "y.npy"), "-o", str(tmp_path / "g.nc")])
    assert table.status == 0, table.errors
    assert "E[ΔK_ab]/λ" in table.output
    import xarray as xr

    with xr.open_dataset(tmp_path / "g.nc", engine="scipy") as kept:
        np.testing.assert_array_equal(kept.K[..., 0, 0], K)


@pytest.mark.parametrize(
    ("line", "python"),
    [
        ("regime 4,20x3,1", lambda: finwidth.regime(MLP([4, 20, 20, 20, 1]))),
        (
            "regime 4,20x2,2 -i unit --target 0,1 --lr 0.1 --draws 100 --seed 3 --activation tanh",
            lambda: finwidth.regime(
                MLP([4, 20, 20, 2], activation="tanh"), [0.5] * 4, target=[0, 1], lr=0.1, draws=100, seed=3
            ),
        ),
        ("regime 4,20x2,1 --norm layer", lambda: finwidth.regime(MLP([4, 20, 20, 1], norm="layer"))),
    ],
)
def test_regime(line: str, python: Callable[[], finwidth.Regime]) -> None:
    found, wanted = document(line), python()
    assert found["results"] == wanted.to_json()["results"]
    assert (found["results"]["regime"], found["results"]["cv"]["value"]) == (wanted.name, wanted.cv)
    told = call(line.split()).output
    assert wanted.advice in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("compare 4,16x2,1 --norm rms -i ones --draws 2000 --networks 100", "No exact moments: E[K] is infinite."),
        ("report 4,16,1 --blocks 2 --norm rms -i ones --draws 2000 -o {folder}", "(q84 - q16) / (2 median)"),
        ("width-for 3 --cv 0.4 --norm rms", "of its median"),
        ("depth-for 60 --cv 0.4 --norm layer", ""),
    ],
)
def test_commands_on_normalised_networks(line: str, told: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    output = call(line.format(folder=tmp_path / "r").split()).output
    assert told in " ".join(output.split())


def test_sizes_of_networks_as_options_say() -> None:
    line = "--pytorch kaiming_normal,zeros --activation 1,0.2 --cv 0.9"
    phi = Activation("leaky", 1, Fraction(1, 5))
    found = document(f"width-for 3 {line}")
    wanted = finwidth.width_for(3, 0.9, parameterization="standard", activation=phi, gains=phi.default_gain)
    assert found["results"]["width"] == wanted
    told = call(["width-for", "3", "--cv", "0.9"]).output
    assert max(map(len, told.splitlines())) <= 80
    assert "depend on the widths" in call(["width-for", "4", "--pytorch", "default"]).errors
    found = document('width-for --blocks 16 --cv 0.2 --branch "1/sqrt(depth)"')
    assert found["results"]["width"] == finwidth.width_for(16, 0.2, kind=ResNet, branch="1/sqrt(depth)")
    assert found["network"]["kind"] == "ResNet"
    for line in ("width-for", "width-for 3 --blocks 3", "width-for --blocks any"):
        assert "give the number of weight layers" in call(line.split()).errors


def test_depth_for() -> None:
    found = document("depth-for 3723")
    assert found["results"] == {"width": 3723, "depth": 16, "spread_from": "exact moments"}
    assert found["settings"] == {"cv": 0.1, "input_norm": 1.0}
    blocks = document("depth-for 400 --cv 0.2 --blocks any --balanced --branch 0.5")["results"]["depth"]
    assert blocks == finwidth.depth_for(400, 0.2, kind=BalancedResNet, branch=0.5)
    assert call(shlex.split('depth-for 400 --blocks any --branch "1/sqrt(depth)"')).output.startswith("any\n")
    assert "what depth-for finds" in call(["depth-for", "9", "--blocks", "2"]).errors
    assert "is for depth-for" in call(["moments", "3,4,1", "-i", "ones", "--blocks", "any"]).errors
    told = call(shlex.split("depth-for 3 --cv 2 --gains 0.1")).output.splitlines()
    assert told[0] == "10000"
    assert told[1].startswith("! at width 3 the spread is at most 2.0 at every depth looked at")


def test_a_width_of_zero_is_a_whole_number() -> None:
    with pytest.raises(FinwidthError, match=r"width number 0 is 0, less than 1; give whole numbers"):
        MLP([0, 3, 1])
    with pytest.raises(FinwidthError, match=r"width number 1 is 2.5, not a whole number; give"):
        MLP([1, 2.5, 1])  # type: ignore[list-item]
    with pytest.raises(FinwidthError, match=r"more than 1e\+100"):
        MLP([1, 10**200, 1])


def test_titles_tell_biases_shortly() -> None:
    bias = ["trained"] * 50 + ["none"]
    net = MLP([2, *[3] * 50, 1], bias=bias, bias_scale=[0.5] * 50 + [7])
    assert str(net).endswith(", 50 trained/1 no biases (scale 0.5)")
    variances = [0.25] * 50 + [0]
    net = MLP([2, *[3] * 50, 1], bias=bias, bias_variance=variances)
    assert str(net).endswith(", 50 trained/1 no gaussian biases (variance 0.25)")
    assert str(MLP([2, 3, 1], bias="none", bias_scale=2)).endswith(", no biases")
    assert str(MLP([2, 3, 1], bias="frozen")).endswith(", frozen biases")


@pytest.mark.parametrize(
    "line",
    [
        "sample 2,3,1 -i 1,2 --draws 50 -o kept",
        "gram 2,3,1 -i 1,2 --draws 50 -o kept",
        "expansion 2,30,1 -i 1,2 -o kept",
        "train 2,3,1 -i X.npy -t 1,-1 --steps 1 --draws 2 -o kept",
        "report 2,3,1 -i 1,2 --draws 50 -o kept",
        "paper lemma-9 --markdown kept",
        "explore -o kept",
    ],
)
def test_it_is_said_whether_there_was_a_file(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("X.npy", np.eye(2))
    for word in ("Wrote", "Replaced", "Replaced"):
        found = call(line.split())
        assert found.status == 0, found.errors
        assert re.search(rf"^{word} kept", found.output, re.M)
