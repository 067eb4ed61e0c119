"""Every command's JSON, and every result's, is one shape, which the schema in the package says; faults are refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, Activation, BalancedResNet, Norm, ResNet
from finwidth.cli.main import app
from finwidth.cli.sweeps import sweep_app
from finwidth.documents import document, schema
from finwidth.networks.description import Network
from fuzzing import COMMANDS, GRID, call, misshapen

pytest.importorskip("jsonschema", reason="checks documents by their schema")

LINES = (
    "moments 2,3,3,1 -i 1,1/3 --exact",
    "moments 2,3,3,2 -i 1,0.1 --order 4 --law uniform",
    "moments 2,3,1 --blocks 2 --branch 1/sqrt(depth) -i 1,2 --exact --order 3",
    "moments 2,3,1 --blocks 2 --balanced -i 1,2 --activation 1,0.2",
    "moments 2,1x1100,1 -i 1,2",
    "moments 2,8,1 -i 1,2 --parameterization mup --base-widths 2 --bias trained,none",
    "expansion 2,9x2,1 -i 1,0 -i 0,1 --activation gelu -o wide.nc",
    "critical relu",
    "critical gelu",
    "sample 2,4x2,1 -i 1,2 --draws 300 -o draws.nc",
    "sample 2,4x2,1 -i 1,2 --draws 300 --tilted",
    "sample 2,8x2,1 -i ones --draws 300 --norm rms",
    "sample 2,2x900,1 -i 1,2 --draws 300",
    "sample 3,1 -i 1e154,0,0 --bias none --draws 50",
    "gram 2,4x2,2 -i 1,0 -i 0,1 --activation tanh --draws 30 -t y.npy",
    "gram 2,4,1 -i ones --draws 30 --law gaussian --norm layer",
    "train 2,8,1 -i X.npy -t 1,-1 --steps 3 --draws 1 -o run.nc",
    "train 2,8,1 -i X.npy -t 1,-1 --steps 3 --draws 3 --batch 1 --momentum 0.5 --centred --record log",
    "report 2,8x2,1 -i 1,2 --draws 300",
    "report 2,8x2,1 -i 1,2 --draws 300 --activation tanh",
    "report 2,8x2,1 -i 1,2 --draws 300 --norm rms",
    "report 2,3,1 -i 0,0 --draws 300",
    "compare 2,4,1 -i 1,2 --draws 300 --networks 20",
    "compare 2,4,1 -i 1,2 --law uniform --networks 20",
    "compare 2,4x2,1 -i 1,2 --draws 300 --networks 20 --activation erf",
    "compare 2,4x2,1 -i 1,2 --draws 300 --networks 20 --norm rms",
    "regime 2,9,1 --draws 50",
    "regime 2,9x2,2 --draws 50 --norm rms --target 1,-1 --lr 0.1",
    "compare model.py:make -i 1,2 --init default --networks 30",
    "compare model.py:draw -i picture.npy --networks 30 --redraw",
    "regime model.py:make -i 1,2 --draws 50 --init default",
    "regime model.py:draw -i picture.npy --draws 4 --redraw",
    "measure model.py:make -i X.npy",
    "measure model.py:conv -i image.npy --outputs 0",
    "width-for 3 --cv 0.5",
    "width-for 16 --law uniform",
    "depth-for 60 --cv 0.5",
    'depth-for 400 --blocks any --branch "1/sqrt(depth)"',
    "paper lemma-9 -o page.html --markdown page.md",
    "sweep run grid.toml",
    "sweep status grid.zarr",
    "sweep check grid.zarr",
    "sweep collect grid.zarr -o grid.nc",
    "sweep plot grid.zarr phase -o phase.png",
    "sweep merge grid.zarr -o whole.zarr",
)  # fmt: skip
NEEDS = {"measure": "torch", "sweep": "zarr", "paper": "jinja2", "compare": "torch"}
WITHOUT_JSON = {"explore", "schema"}
MODELS = """
import torch
make = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
def draw(): return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten())
conv = draw()
"""


def names() -> set[str]:
    """Of all commands of the program."""
    single = {str(each.name) for each in app.registered_commands}
    return single | {f"sweep {each.name}" for each in sweep_app.registered_commands}


def test_every_command_is_tried_here_and_by_chance() -> None:
    here = {" ".join(line.split()[: 1 + line.startswith("sweep")]) for line in LINES}
    assert here == names() - WITHOUT_JSON
    assert {"sweep run" if name == "sweep" else name for name in COMMANDS} == names()
    assert {*schema()["properties"]["command"]["enum"]} == here


def folder_for(line: str, folder: Path) -> None:
    """What a command reads."""
    np.save(folder / "X.npy", np.eye(2))
    np.save(folder / "y.npy", np.array([[1.0, 0], [0, 1]]))
    np.save(folder / "image.npy", np.ones((2, 1, 3, 3)))
    np.save(folder / "picture.npy", np.ones((1, 1, 3, 3)))
    (folder / "model.py").write_text(MODELS)
    (folder / "grid.toml").write_text(GRID)
    if line.startswith("sweep") and not line.startswith("sweep run"):
        assert call(["sweep", "grid.toml", "-q", "--workers", "1"]).status == 0


@pytest.mark.parametrize("line", LINES)
def test_a_command_prints_what_the_schema_says(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if line.split(maxsplit=1)[0] in NEEDS:
        pytest.importorskip(NEEDS[line.split(maxsplit=1)[0]])
    if "model.py" in line:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    folder_for(line, tmp_path)
    found = call([*shlex.split(line), "--json"])
    assert found.status == 0, found.errors
    told = json.loads(found.output)
    assert misshapen(told) is None
    assert told["command"] == " ".join(line.split()[: 1 + line.startswith("sweep")])
    for file in told.get("files", ()):
        assert Path(file).exists()
    if line.startswith("report"):
        kept = json.loads(Path("report/report.json").read_text())
        assert misshapen(kept) is None
        assert kept["results"] == told["results"]
        assert kept["input"] == told["input"]


def test_the_schema_is_printed() -> None:
    assert json.loads(call(["schema"]).output) == schema()


def of_moments() -> Any:
    found = json.loads(call(shlex.split("moments 2,3,3,1 -i 1,1/3 --exact --json")).output)
    assert misshapen(found) is None
    return found


def _renamed(mapping: dict[str, Any], old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


FAULTS: dict[str, Callable[[Any], object]] = {
    "no version": lambda found: found.pop("finwidth"),
    "no type": lambda found: found.pop("type"),
    "no results": lambda found: found.pop("results"),
    "no network": lambda found: found.pop("network"),
    "no input": lambda found: found.pop("input"),
    "a type that is none": lambda found: found.update(type="Moments"),
    "another result's type": lambda found: found.update(type="Regime"),
    "another command": lambda found: found.update(command="sample"),
    "a key that is none": lambda found: found.update(draw=3),
    "a quantity of another name": lambda found: _renamed(found["results"]["quantities"], "K^2", "second_moment"),
    "a route of another name": lambda found: _renamed(found["results"]["quantities"]["K"], "exact", "theory"),
    "a bare number": lambda found: found["results"]["quantities"]["K"].update(exact=3.0),
    "a fraction for a number": lambda found: found["results"]["quantities"]["K"]["exact"].update(value="173/48"),
    "a number for a fraction": lambda found: found["results"]["quantities"]["K"]["exact"].update(fraction=3.6),
    "a decimal for a fraction": lambda found: found["results"]["quantities"]["K"]["exact"].update(fraction="3.6"),
    "an exact value without value": lambda found: found["results"]["quantities"]["K"]["exact"].pop("value"),
    "no quantities": lambda found: found["results"].update(quantities={}),
    "gains as numbers": lambda found: found["network"].update(gains=[2, 2, 1]),
    "a network without its kind": lambda found: found["network"].pop("kind"),
    "a residual network without its blocks": lambda found: found["network"].update(kind="ResNet"),
    "a width of 0": lambda found: found["network"]["widths"].append(0),
    "a setting that is none": lambda found: found["settings"].update(exactly=True),
    "an input in words": lambda found: found.update(input="1,2"),
    "draws that are no whole number": lambda found: found.update(draws=0.5),
    "a list": lambda found: found.update(results=[found["results"]]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_schema_refuses(fault: str) -> None:
    found = of_moments()
    FAULTS[fault](found)
    assert misshapen(found) is not None


@pytest.mark.parametrize("kind", schema()["properties"]["type"]["enum"])
def test_the_schema_says_something_of_every_type(kind: str) -> None:
    assert misshapen(document(kind, {})) is not None
    assert misshapen(document(kind, {"anything": 1})) is not None


def rebuilt(described: dict[str, Any]) -> Network:
    """The network that a document describes."""
    given = dict(described)
    kind = getattr(finwidth, given.pop("kind"))
    for name in ("gains", "bias_variance", "bias_scale"):
        given[name] = [Fraction(text) for text in given[name]]
    if "slopes" in given:
        slopes = [Fraction(text) for text in given.pop("slopes")]
        given["activation"] = Activation(given["activation"], *slopes)
    if "norm" in given:
        norm = given["norm"]
        given["norm"] = Norm(**{**norm, "epsilon": Fraction(norm["epsilon"])})
    if "skip_squared" in given:
        given["depth"] = len(given["skip_squared"])
        for name in ("skip", "branch"):
            given[name] = [f"sqrt({text})" for text in given.pop(f"{name}_squared")]
    made: Network = kind(**given)
    return made


NETWORKS = (
    MLP([2, 3, 1]),
    MLP([2, 3, 4, 1], gains=[1, Fraction(1, 3), 0.1], bias=["none", "trained", "frozen"]),
    MLP([3, 8, 8, 1], "uniform", "leaky_relu", "mup", base_widths=4, bias_variance=0.2, bias_law="uniform"),
    MLP([2, 8, 8, 1], norm=Norm("layer", "after", epsilon=1e-5, parameters="trained")),
    MLP([2, 8, 1], activation=Activation("bent", 1, 0.3, 0.5), bias_scale=0.5, parameterization="standard"),
    MLP.pytorch([2, 8, 1], "kaiming_normal", "gelu"),
    ResNet([2, 8, 1], 4, branch="1/sqrt(depth)", skip=[1, 0.3, 1, 1]),
    ResNet([16, 64, 1], 2, hidden=[32, 128], gains=[1, 2, 0.5, 1], norm="rms"),
    BalancedResNet([3, 6, 1], 3, skip="sqrt(1/2)", branch="sqrt(1/2)"),
    BalancedResNet([3, 6, 1], 3, signs=False),
)


@pytest.mark.parametrize("net", NETWORKS, ids=str)
def test_a_description_is_enough_to_make_the_network_again(net: Network) -> None:
    described = json.loads(json.dumps(net.describe()))
    assert rebuilt(described) == net
    told = document("Depth", {"width": 1, "depth": None, "spread_from": ""}, network=described)
    assert misshapen(told) is None
