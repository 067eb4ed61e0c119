"""Sweeps over residual networks: the numbers of the functions, cell by cell; killed, grown and drawn."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

import finwidth
from finwidth import BalancedResNet, FinwidthError, ResNet
from finwidth.sweeps import plots, read
from finwidth.sweeps.config import Config, read_config
from finwidth.sweeps.schema.grid import Cell, cell_seed
from finwidth.sweeps.store.dataset import status

pytest.importorskip("zarr", reason="needs the sweep extra")

CONFIG: dict[str, Any] = {
    "seed": 4,
    "quantities": ["exact", "sampled"],
    "network": {"kind": "resnet", "hidden": 5, "bias": "frozen"},
    "axes": {"depth": [1, 3], "width": [6, 9], "n_0": 2, "branch": [0.5, "1/sqrt(depth)"], "law": "gaussian"},
    "sampled": {"draws": 300},
}
SEVERAL: dict[str, dict[str, Any]] = {
    "gram": {"inputs": ["ones", "unit"], "draws": 60},
    "training": {"inputs": ["ones", "unit"], "targets": [1, -1], "steps": 2, "lr": 0.01, "draws": 5},
}
BRANCHES: dict[str, float | str] = {"0.5": 0.5, "1/sqrt(depth)": "1/sqrt(depth)"}


def changed(**tables: Any) -> dict[str, Any]:
    """The config with some keys of tables changed."""
    return CONFIG | {name: {**CONFIG[name], **more} for name, more in tables.items()}


def test_cells_are_those_of_single_networks() -> None:
    found = finwidth.sweep(CONFIG)
    assert found.exact_cv.dims == ("branch", "depth", "width")
    assert found.depth.attrs["long_name"] == "depth L, the number of blocks"
    for branch, given in BRANCHES.items():
        for depth, width in ((1, 6), (3, 9)):
            net = ResNet([2, width, 1], depth, 5, branch=given, bias="frozen")
            here, exact = found.sel(branch=branch, depth=depth, width=width), finwidth.moments(net, [1.0, 1.0])
            assert float(here.exact_mean) == pytest.approx(float(exact.mean), rel=1e-12)
            assert float(here.exact_cv) == pytest.approx(exact.cv, rel=1e-11)
            assert float(here.exact_log_second_moment) == pytest.approx(exact.log_second_moment, rel=1e-12)
            assert float(here.exact_dK) == pytest.approx(float(exact.update["dK"]), rel=1e-12)
            assert float(here.exact_log_dK) == pytest.approx(np.log(-float(exact.update["dK"])))
            cell = Cell(2, "gaussian", "relu", "ntk", "ones", depth, width, (("branch", branch),))
            draws = finwidth.sample(net, [1.0, 1.0], 300, cell_seed(4, cell, "sampled", "draws"))
            assert float(here.sampled_mean.sel(moment="K^2")) == pytest.approx(float((draws.K**2).mean()), rel=1e-12)


def test_every_argument_of_residual_networks() -> None:
    axes = {"depth": [2], "width": 4, "n_0": 2, "skip": [1, "sqrt(3/4)"], "hidden": [3, 7], "gains": [1.5]}
    network: dict[str, Any] = {"kind": "resnet", "branch": 0.25, "bias_variance": 0.5, "bias_scale": 2.0}
    found = finwidth.sweep({"quantities": "exact", "axes": axes, "network": network})
    net = ResNet([2, 4, 1], 2, 7, skip="sqrt(3/4)", branch=0.25, gains=1.5, bias_variance=0.5, bias_scale=2)
    assert found.exact_cv.sel(skip="sqrt(3/4)", hidden=7).item() == pytest.approx(
        finwidth.moments(net, [1, 1]).cv, rel=1e-11
    )
    axes = {"depth": [2, 3], "width": 4, "n_0": 2}
    found = finwidth.sweep(
        {"quantities": "exact", "axes": axes, "network": {"kind": "balanced", "branch": "sqrt(1/2)"}}
    )
    net_2 = BalancedResNet([2, 4, 1], 3, branch="sqrt(1/2)")
    assert found.exact_cv.sel(depth=3).item() == pytest.approx(finwidth.moments(net_2, [1, 1]).cv, rel=1e-11)


def test_signs_are_an_axis_of_balanced_networks(tmp_path: Path) -> None:
    axes = {"depth": [3], "width": [4], "n_0": 2, "signs": [True, False]}
    config: dict[str, Any] = {"quantities": "sampled", "axes": axes, "network": {"kind": "balanced"}}
    finwidth.sweep(config | {"sampled": {"draws": 300}}, tmp_path / "a.zarr")
    found = read(tmp_path / "a.zarr").sampled_mean.sel(moment="K", depth=3, width=4)
    for signs in (False, True):
        cell = Cell(2, "gaussian", "relu", "ntk", "ones", 3, 4, (("signs", signs),))
        net = BalancedResNet([2, 4, 1], 3, signs=signs)
        draws = finwidth.sample(net, [1.0, 1.0], 300, cell_seed(0, cell, "sampled", "draws"))
        assert float(found.sel(signs=signs)) == pytest.approx(float(draws.K.mean()), rel=1e-12)
    for change, message in (
        ({"axes": axes | {"signs": "no"}}, "axes.signs: 'no' is neither true nor false"),
        ({"quantities": "exact"}, "signs False: .*gates are no fair coins"),
        ({"network": {"kind": "resnet"}}, "axes.signs: only networks of kind balanced have this"),
    ):
        with pytest.raises(FinwidthError, match=message):
            read_config(config | change)


def test_equal_factors_are_one_value_and_the_default_kind_is_no_setting() -> None:
    config, _ = read_config(changed(axes={"branch": [1, 0.5]}))
    again, _ = read_config(changed(axes={"branch": [0.5, 1.0]}))
    assert config == again == Config.from_json(config.to_json())
    assert config.axes["branch"] == ("0.5", "1")
    plain = {"quantities": "exact", "axes": {"depth": 2, "width": 3, "n_0": 1}}
    assert read_config(plain | {"network": {"kind": "mlp"}})[0] == read_config(plain)[0]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"network": {"kind": "transformer"}},
        "network.kind: 'transformer' is not known; choose from mlp, resnet, balanced",
    ),
    ({"network": {"kind": 3}}, "network.kind: 3 is not known"),
    ({"network": {"kind": "mlp"}}, "axes.branch: only networks of kind resnet or balanced have this"),
    ({"network": {"kind": "balanced"}}, "network.hidden: only networks of kind resnet have this"),
    ({"network": {"base_widths": 3}}, "network.base_widths: only networks of kind mlp have this"),
    ({"network": {"branch": 1}}, "axes.branch: this key stands in [network], too"),
    ({"network": {"skip": [1, 2]}}, "network.skip: give one value, the same for all layers"),
    ({"network": {"skip": "2/sqrt(depth)"}}, "network.skip: skip is '2/sqrt(depth)'; give numbers"),
    ({"axes": {"branch": [1, "1/sqrt(L)"]}}, "axes.branch: branch is '1/sqrt(L)'; give numbers"),
    ({"axes": {"branch": [1, 1.0]}}, "axes.branch: '1' comes twice"),
    ({"axes": {"branch": -1}}, "axes.branch: branch is -1"),
    ({"axes": {"branch": True}}, "axes.branch: true is neither a number nor a text"),
    ({"axes": {"branch": 0}, "network": {"skip": 0}}, "skip and branch are 0 in the same block"),
    ({"axes": {"parameterization": "mup"}}, "there is no network of law 'gaussian'"),
    ({"axes": {"norm": "batch"}}, "axes.norm: norm 'batch' is not known"),
    ({"axes": {"norm": "layer", "width": [1, 4]}}, "width 1 is always zero"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FinwidthError) as caught:
        read_config(changed(**change))
    assert message in str(caught.value)


@pytest.mark.parametrize("quantity", ["exact", "bounds", "sampled", "gram", "training"])
@pytest.mark.parametrize("norm", ["none", "rms"])
def test_what_a_quantity_serves_is_computed_and_else_refused_before_any_work(
    quantity: str, norm: str, tmp_path: Path
) -> None:
    """By asking: this holds also once a function serves more."""
    tables: dict[str, dict[str, Any]] = {
        "gram": {"inputs": ["ones", "unit"], "draws": 3},
        "training": {"inputs": ["ones"], "targets": [1], "steps": 2, "lr": 0.01, "draws": 2},
        "sampled": {"draws": 10},
    }
    axes = {"depth": [2], "width": [6], "n_0": 2, "norm": norm}
    config = {"quantities": quantity, "axes": axes, "network": {"kind": "resnet"}, quantity: tables.get(quantity, {})}
    try:
        finwidth.sweep(config, tmp_path / "a.zarr")
    except FinwidthError as error:
        assert f'quantities: "{quantity}" cannot be had for law' in str(error)  # noqa: PT017
        assert not (tmp_path / "a.zarr").exists()
    else:
        assert status(tmp_path / "a.zarr")["complete"]


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_exact_means_that_need_not_exist_are_refused(kind: str, tmp_path: Path) -> None:
    axes = {"depth": [2, 3], "width": [6], "n_0": 2, "norm": ["none", "rms"]}
    config = {"quantities": "exact", "axes": axes, "network": {"kind": kind}}
    with pytest.raises(FinwidthError, match=r"norm 'rms': .*which exact moments do not take"):
        finwidth.sweep(config, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    finwidth.sweep(config | {"axes": axes | {"norm": "none"}})


def test_the_example_of_the_docs_is_allowed(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    [example] = re.findall(r'```toml\n([^`]*?kind = "resnet"[^`]*?)```', docs)
    (tmp_path / "grid.toml").write_text(example)
    config, _ = read_config(tmp_path / "grid.toml")
    assert config.axes["branch"] == ("0.5", "1", "1/sqrt(depth)")


def test_a_store_grows_and_refuses_another_network(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    finwidth.sweep(CONFIG, store)
    more = changed(axes={"branch": [0.5, 1, "1/sqrt(depth)"], "depth": [1, 3, 4]}, sampled={"draws": 500})
    assert finwidth.sweep(more, store).identical(finwidth.sweep(more))
    for other in ({"hidden": 6}, {"kind": "balanced"}, {"norm": "rms"}):
        network = {**CONFIG["network"], **other}
        if network["kind"] == "balanced":
            del network["hidden"]
        with pytest.raises(FinwidthError, match=r"network was|cannot be had for"):
            finwidth.sweep(more | {"network": network}, store)


def test_a_killed_sweep_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    config = tmp_path / "grid.toml"
    config.write_text(
        'quantities = ["sampled"]\n[network]\nkind = "resnet"\nbranch = "1/sqrt(depth)"\n'
        "[axes]\ndepth = [2, 3, 4, 5, 6, 7]\nwidth = [8, 16]\nn_0 = 4\n[sampled]\ndraws = 8_000\n"
    )
    store = tmp_path / "grid.zarr"
    command = [sys.executable, "-m", "finwidth", "sweep", str(config), "--workers", "1", "--quiet"]
    for done in (1, 5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            until = time.monotonic() + 60
            while len(list(store.glob("sampled/c.*"))) < done and time.monotonic() < until:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert 0 < status(store)["quantities"]["sampled"]["done"] < 12
    assert finwidth.sweep(config, store).identical(finwidth.sweep(config, tmp_path / "whole.zarr"))


@pytest.mark.parametrize("picture", plots.PICTURES)
def test_pictures_show_the_values_and_no_form_of_the_paper(picture: str, tmp_path: Path) -> None:
    grid: dict[str, Any] = {**CONFIG, "network": {"kind": "resnet"}}
    grid["axes"] = {"depth": [1, 4, 16], "width": [6, 12], "n_0": 2, "branch": [0.5, 1]}
    if picture in SEVERAL:
        grid |= {"quantities": [*CONFIG["quantities"], picture], picture: SEVERAL[picture]}
    store = tmp_path / "a.zarr"
    finwidth.sweep(grid, store)
    plots.plot(store, picture, tmp_path / "a.png", at=["branch=0.5"])
    found = plots.cut(read(store), ["branch=0.5"])
    figure = plots.PICTURES[picture](found)
    told = " ".join(each.get_text() for each in figure.findobj(Text) if isinstance(each, Text))
    assert "branch 0.5" in told
    assert "blocks" in told
    assert "paper" not in told
    if picture == "phase":
        assert "L/n" in told
    if picture not in {"collapse", "update"}:  # the curves of the others are those of any network
        return
    axes = figure.axes[0]
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    for width in (6, 12):
        for x, y in lines[f"$n={width}$"]:
            depth = round(x * width) if picture == "collapse" else round(x)
            exact = finwidth.moments(ResNet([2, width, 1], depth, branch=0.5), [1, 1])
            second = float(exact.second_moment) / float(exact.mean) ** 2
            change = -float(exact.update["dK"]) / float(exact.mean)
            assert y == pytest.approx(second if picture == "collapse" else change)


def test_recorded_steps_of_training_as_everywhere(tmp_path: Path) -> None:
    table = {"inputs": ["ones", "unit"], "targets": [1, -1], "steps": 12, "lr": 0.01, "draws": 2}
    config = {"quantities": "training", "axes": {"depth": 2, "width": 3, "n_0": 2}}
    for record, steps in (("log", [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12]), (5, [0, 5, 10, 12]), ([3], [0, 3, 12])):
        found, _ = read_config(config | {"training": table | {"record": record}})
        assert found.quantities["training"]["record"] == steps
    with pytest.raises(FinwidthError, match=r"training.record: record is 'often'; give \"log\""):
        read_config(config | {"training": table | {"record": "often"}})
