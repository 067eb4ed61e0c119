"""The explorer in a browser: its numbers are those of the package, its draws have the law."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, Activation, ResNet
from finwidth.explorer import write_explorer
from finwidth.networks.description import Network
from stats import same_law

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright's client and Chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write_explorer(tmp_path_factory.mktemp("explorer") / "explorer.html")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.asked = []
        page.set_default_timeout(120_000)  # busy machines
        page.on("request", lambda request: page.asked.append(request.url))
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("document.body.dataset.done")
        yield page
        browser.close()


def network(state: dict[str, Any]) -> Network:
    activation: Any = Activation("two slopes", 1, state["negative"]) if state["negative"] else "relu"
    if state["kind"] == "mlp":
        widths = [1, *[state["width"]] * (state["depth"] - 1), 1]
        return MLP(widths, activation=activation, norm=state.get("norm"))
    return ResNet(
        [1, state["width"], 1], state["depth"], branch=state["branch"], activation=activation, norm=state.get("norm")
    )


def states(**axes: list[Any]) -> list[dict[str, Any]]:
    found = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [state for state in found if state["kind"] == "resnet" or state["branch"] == 1]


GRID = states(
    kind=["mlp", "resnet"], depth=[1, 2, 5, 40], width=[6, 64, 5000], negative=[0, 0.3, 1], branch=[1, 0.5],
    input=[0.3, 2.0],
)  # fmt: skip


def test_moments_are_those_of_the_package(page: Any) -> None:
    found = page.evaluate("nets => nets.map(moments)", GRID)
    for state, ours in zip(GRID, found, strict=True):
        exact = finwidth.moments(network(state), [state["input"] ** 0.5])
        values = exact.mean, exact.second_moment, exact.update["dK"]
        assert [ours["mean"], ours["second"], ours["update"]] == pytest.approx([float(v) for v in values], rel=1e-9)


LAWS = states(
    kind=["mlp", "resnet"], depth=[2, 5], width=[6, 70], negative=[0, 0.3], branch=[1], input=[1.7], norm=[None, "rms"]
)


def drawn(page: Any, state: dict[str, Any]) -> Any:
    return np.array(
        page.evaluate(
            "net => { const r = generator(7); return Array.from({length: 20000}, () => draw(net, r)) }", state
        )
    )


@pytest.mark.parametrize("state", LAWS, ids=lambda state: "-".join(map(str, state.values())))
def test_draws_have_the_law_of_the_package(page: Any, state: dict[str, Any]) -> None:
    ours = drawn(page, state)
    theirs = finwidth.sample(network(state), [state["input"] ** 0.5], len(ours), seed=1).K.to_numpy()
    assert same_law(ours.round(9), theirs.round(9))


def test_another_width_is_rejected(page: Any) -> None:
    state = LAWS[0]
    theirs = finwidth.sample(network(state | {"width": 9}), [state["input"] ** 0.5], 20000, seed=1).K.to_numpy()
    assert not same_law(drawn(page, state).round(9), theirs.round(9))


def shown(page: Any, change: str) -> dict[str, Any]:
    """What the page shows after a change of its state."""
    before = page.evaluate("document.body.dataset.done")
    page.evaluate(change)
    page.wait_for_function(f"document.body.dataset.done !== '{before}'")
    found: dict[str, Any] = page.evaluate(
        "({values: at('values').innerText, says: at('says').innerText, python: at('python').innerText, "
        "shell: at('shell').innerText, hash: location.hash, label: at('law').getAttribute('aria-label')})"
    )
    return found


@pytest.mark.parametrize(
    "state",
    [
        "kind=mlp&depth=9&width=32&input=2&negative=0&norm=none",
        "kind=mlp&depth=4&width=50&input=1&negative=0.2&norm=none",
        "kind=resnet&depth=8&width=40&input=1&negative=0&branch=1/sqrt(depth)&norm=none",
    ],
)
def test_the_python_that_it_shows_gives_the_numbers_that_it_shows(page: Any, state: str) -> None:
    found = shown(page, f"location.hash = '{state}'")
    names: dict[str, Any] = {}
    exec("\n".join(line for line in found["python"].splitlines() if not line.startswith("print")), names)
    result = page.evaluate("({mean: result.exact.mean, median: [...result.K].sort((a, b) => a - b)[10000]})")
    assert float(names["m"].mean) == pytest.approx(result["mean"], rel=1e-9)
    assert float(np.median(names["K"])) == pytest.approx(result["median"], rel=0.05)
    assert "settled" in found["says"] or "noisy" in found["says"]


def test_normalised_networks_have_no_means(page: Any) -> None:
    found = shown(page, "location.hash = 'kind=mlp&depth=9&width=32&norm=rms'")
    assert "mean" not in found["values"]
    assert "median" in found["values"]
    assert "summarize" in found["python"]
    assert "--norm rms" in found["shell"]


def test_the_page_asks_nothing_of_any_host_and_fits_a_phone(page: Any) -> None:
    assert all(url.startswith("file:") for url in page.asked)
    for state in (
        "",
        "kind=resnet&depth=300&width=6&branch=1",
        "kind=mlp&depth=1000&width=100000",
        "norm=rms&depth=300",
    ):
        shown(page, f"location.hash = 'seed=3&{state}'")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        boxes = "[...document.querySelectorAll('#law text')].map((each) => each.getBBox())"
        letters = page.evaluate(f"{boxes}.map((each) => [each.x, each.width])")
        across = page.evaluate("at('law').viewBox.baseVal.width")
        assert across == page.evaluate("at('law').clientWidth")  # letters are as large as they are meant
        assert all(0 <= x <= across - width for x, width in letters)
    assert not page.faults


def test_wrong_numbers_are_told_and_change_nothing(page: Any) -> None:
    page.fill("#width", "64")
    before = page.evaluate("location.hash")
    page.fill("#width", "2.5")
    assert page.get_attribute("#width", "aria-invalid") == "true"
    assert page.inner_text("#fault").startswith("Width: give a whole number from 6 to 100000.")
    assert page.evaluate("location.hash") == before
    page.fill("#width", "64")
    assert page.get_attribute("#width", "aria-invalid") == "false"
    assert not page.inner_text("#fault")


def test_a_link_to_what_cannot_be_says_so(page: Any) -> None:
    page.evaluate("location.hash = 'depth=5000&input=much'")
    page.wait_for_function("at('fault').innerText")
    told = page.inner_text("#fault")
    assert told.startswith("Depth: give a whole number from 1 to 1000. Input: give a number from 0.0001 to 10000.")
    shown(page, "location.hash = 'depth=3'")
    assert not page.inner_text("#fault")


def test_dead_networks_are_told(page: Any) -> None:
    share = page.evaluate("deadShare({kind: 'mlp', depth: 9, width: 6, negative: 0})")
    assert share == pytest.approx(1 - (63 / 64) ** 8)
    state = {"kind": "mlp", "depth": 9, "width": 6, "negative": 0, "input": 1.0, "norm": None}
    dead = np.mean(drawn(page, state) == 1)
    assert abs(dead - share) < 5 * (share * (1 - share) / 20000) ** 0.5
    for norm in "none", "rms":
        says = shown(page, f"location.hash = 'kind=mlp&depth=1000&width=6&norm={norm}'")["says"]
        assert says.startswith("Nearly all such networks are dead")
        assert "settled" not in says
    assert "11.8% of such networks are dead" in shown(page, "location.hash = 'kind=mlp&depth=9&width=6'")["says"]


def test_sizes_read_well(page: Any) -> None:
    values = [1e7, -6.3233e276, 3.04e-5, 1500.5, 0.0, 1e400]
    assert page.evaluate("values => values.map((value) => number(value, 2))", values) == [
        *("10⁷", "-6.3 × 10²⁷⁶", "3 × 10⁻⁵", "1500", "0", "beyond 10³⁰⁸"),
    ]
    net = {"kind": "resnet", "depth": 1000, "width": 6, "negative": 0, "branch": 1, "input": 1e4, "norm": None}
    assert "beyond the numbers of this page" in page.evaluate("net => words(net, moments(net))", net)


def test_it_is_named_for_screen_readers(page: Any) -> None:
    shown(page, "location.hash = 'kind=mlp&depth=4&width=512'")
    assert page.get_attribute("#width-slider", "aria-valuetext") == "512"  # not its place, 9
    assert "half below" in page.get_attribute("#law", "aria-label")
    names = page.evaluate("[...document.querySelectorAll('button')].map((each) => each.ariaLabel || each.innerText)")
    assert len(set(names)) == len(names)


def test_draws_are_shown_as_they_come(page: Any) -> None:
    page.evaluate("location.hash = 'kind=resnet&depth=1000&width=64&branch=0.25'")
    page.wait_for_function("at('drawn').innerText.includes('of 20,000')")
    assert "of its mean" in page.inner_text("#says")
    assert "…" not in page.inner_text("#values")
    shown(page, "location.hash = 'depth=3'")  # stops it
    assert page.inner_text("#drawn") == "20,000"


def test_the_state_is_in_the_link(page: Any) -> None:
    found = shown(page, "location.hash = 'kind=resnet&depth=3&width=20&input=4&branch=0.5'")
    assert json.dumps(found["hash"]).count("=") == 8
    assert page.input_value("#branch") == "0.5"
    assert page.is_checked("input[value=resnet]")


def test_it_is_fast(page: Any) -> None:
    """From a file to exact numbers within a second, here with an allowance for a busy machine; draws follow."""
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function("at('values').innerText.includes('exact')", timeout=10_000)
    page.wait_for_function("document.body.dataset.done")


def test_the_file_is_replaced_only_if_it_is_ours(tmp_path: Path) -> None:
    path = write_explorer(tmp_path / "page.html")
    write_explorer(path)
    path.write_text("mine")
    with pytest.raises(finwidth.FinwidthError, match="did not write"):
        write_explorer(path)
