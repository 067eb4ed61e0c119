"""What results look like: in a sentence, at 80 columns, in a notebook, as JSON, and as numbers."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from xml.etree import ElementTree

import numpy as np
import pytest

import finwidth
from finwidth import MLP, Activation, BalancedResNet, Norm, ResNet, public
from finwidth.comparison import compare, compare_with_law
from finwidth.networks.description import Network
from finwidth.paper import statements
from finwidth.paper.findings import output_bias
from finwidth.report import report
from finwidth.summary import summarize_gram
from finwidth.tables import Result, Table, told
from fuzzing import misshapen

DEEP, SMALL, SMOOTH = MLP([64, *[64] * 16, 1]), MLP([2, 8, 8, 1]), MLP([2, 20, 20, 1], activation="tanh")
NORMED = MLP([2, 8, 8, 1], norm="rms")
RESIDUAL = ResNet([2, 8, 1], 4, branch="1/sqrt(depth)", skip=[1, 0.3, 1, 1])
X, ONES = [1.0, 2.0], [1.0] * 64
Estimates = finwidth.Estimate


def _of_module(kind: str) -> Result:
    torch = pytest.importorskip("torch")
    from finwidth import empirical
    from finwidth.measurement import measure

    module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).double()
    if kind == "Explanation":
        return empirical.explain(module, torch.eye(2, dtype=torch.float64))
    if kind == "Measurement":
        return measure(module, np.eye(2))
    net = MLP([2, 8, 1])
    return compare_with_law(net, empirical.MLP(net), X, lambda _: None, draws=500)


def _of_quantiles() -> Result:
    pytest.importorskip("torch")
    return compare(NORMED, X, draws=500, networks=50)


RESULTS: dict[str, list[Callable[[], Result]]] = {
    "KernelMoments": [
        lambda: finwidth.moments(DEEP, ONES, order=4),
        lambda: finwidth.moments(MLP([2, 3, 3, 2]), X, exact=True, order=3),
        lambda: finwidth.moments(MLP([4, *[4] * 1000, 1]), [1.0] * 4),
    ],
    "SignalMoments": [lambda: finwidth.signal_moments(MLP([4, *[4] * 100, 1]), [1.0] * 4, order=4)],
    "Bounds": [lambda: finwidth.bounds(DEEP, ONES)],
    "Growth": [
        lambda: finwidth.growth(DEEP),
        lambda: finwidth.growth(RESIDUAL),
        lambda: finwidth.growth(MLP([2, *range(3, 40), 1])),
    ],
    "Criticality": [lambda: finwidth.critical("gelu"), lambda: finwidth.critical("relu")],
    "Regime": [lambda: finwidth.regime(SMALL, X, draws=50), lambda: finwidth.regime(NORMED, X, draws=50)],
    "Summary": [
        lambda: finwidth.summarize(DEEP, ONES, 500),
        lambda: finwidth.summarize(SMALL, X, 500, method="importance"),
        lambda: finwidth.summarize(NORMED, X, 500),
    ],
    "Estimate": [lambda: Estimates(1.5, 0.1, 2000, 1800.0, True, "as it should be")],
    "Comparison": [lambda: compare(MLP([2, 8, 8, 2]), X, draws=500, networks=50)],
    "ExpandedComparison": [lambda: compare(SMOOTH, X, draws=200, networks=50)],
    "QuantileComparison": [_of_quantiles],
    "Report": [lambda: report(DEEP, [200.0] * 64, 500)],
    "ExpandedReport": [lambda: report(SMOOTH, X, 200)],
    "QuantileReport": [lambda: report(NORMED, X, 500)],
    "GramSummary": [lambda: summarize_gram(SMOOTH, np.eye(2), 100, y=[1.0, -1.0])],
    "Statement": [lambda: statements.check("lemma-9")],
    "Finding": [output_bias],
    **{each: [functools.partial(_of_module, each)] for each in ("Explanation", "ModuleComparison", "Measurement")},
}
CASES = [pytest.param(make, id=f"{name}-{place}") for name, each in RESULTS.items() for place, make in enumerate(each)]


@functools.cache
def _made(make: Callable[[], Result]) -> Result:
    return make()


def _all_kinds(base: type[Result] = Result) -> Iterator[type[Result]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _all_kinds(kind)


def test_every_kind_of_result_is_tried() -> None:
    pytest.importorskip("torch")
    import finwidth.empirical.kernel.explanation
    import finwidth.measurement

    assert {kind.__name__ for kind in _all_kinds()} == set(RESULTS)
    classes = [each for name in public.__all__ if inspect.isclass(each := getattr(finwidth, name))]
    others = {each.__name__ for each in classes if not issubclass(each, Result | Network | Activation | Norm)}
    assert others == {"WeightLaw", "FinwidthError"}


@pytest.mark.parametrize("make", CASES)
def test_it_reads_well(make: Callable[[], Result]) -> None:
    found = _made(make)
    assert isinstance(found, Result)
    assert len(repr(found)) < 600
    assert repr(found).startswith(f"<{type(found).__name__} ")
    text, page = str(found), found._repr_html_()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    inside = ElementTree.fromstring(page)
    cells, rows = [each.text for each in inside.iter("td")], [row for row in found._table().rows if row]
    assert (inside.find("table") is not None) is bool(cells) is bool(rows)
    for cell in cells:
        assert cell is None or len(cell) > 13 or cell.strip() in text
    names = [each.name for each in dataclasses.fields(found) if each.name.startswith("_")]  # type: ignore[arg-type]
    for name in (*names, "Decimal("):
        assert not any(name in each for each in (repr(found), text, page))


@pytest.mark.parametrize("make", CASES)
def test_programs_can_take_it(make: Callable[[], Result]) -> None:
    found = _made(make)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["results"]
    assert misshapen(document) is None
    frame = found.to_pandas()
    assert frame.columns.is_unique
    assert len(frame) == len([row for row in found._table().rows if row])
    dataset = found.to_xarray()
    assert {*dataset.data_vars} == {*frame.columns}
    assert dataset.attrs["title"]


def test_numbers_are_those_of_the_result() -> None:
    found = finwidth.moments(SMALL, X, exact=True)
    assert found.to_pandas().loc["E[K²]", "exact"] == found.second_moment
    assert float(found.to_xarray()["exact"].sel(quantity="CV of K")) == found.cv
    beside = compare(SMALL, X, draws=500, networks=50)
    frame = beside.to_pandas()
    assert frame.loc["E[K]", "std. err. (networks)"] == beside.rows[0].networks.se
    assert frame.loc["E[K]", "exact"] == float(found.mean)


def test_a_notebook_gets_the_text_of_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich would show HTML in place of it, and leave the text empty."""
    plain = str(finwidth.moments(finwidth.MLP([2, 3, 1]), [1, 2]))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(finwidth.moments(finwidth.MLP([2, 3, 1]), [1, 2])) == plain != ""


def test_a_long_table_is_thinned_out_and_told_whole_to_programs() -> None:
    table = Table("title", ("step", "loss"), most=3)
    for step in range(9):
        table.add(str(step), told(step / 10, ".1f"))
    assert [line.split() for line in str(table).splitlines()[4:7]] == [["0", "0.0"], ["4", "0.4"], ["8", "0.8"]]
    assert table.html().count("<td>") == 3
    assert len(table.frame()) == 9


def test_what_does_not_fit_is_stacked() -> None:
    """No number is broken, and an estimate stays with its error."""
    table = Table("title", ("quantity", "exact", "sampled", "std. err.", "z"))
    table.add("E[K]", "1" * 30, "2" * 30, "0.1", "+1.00")
    table.add("CV of K", "3" * 30)
    lines = [line.split() for line in str(table).splitlines()]
    assert ["E[K]", "1" * 30] in lines
    assert ["E[K]", "2" * 30, "0.1", "+1.00"] in lines
    assert lines.count(["CV", "of", "K", "3" * 30]) == 1
    assert sum(line[:1] == ["CV"] for line in lines) == 1


def test_what_users_name_is_no_markup() -> None:
    table = Table("[bold]title[/bold]", ("quantity", "E[q]"), "<notes> & [red]more")
    table.add("[blue]sky", "<b>")
    text = str(table)
    for part in ("[bold]title[/bold]", "E[q]", "[blue]sky", "<b>", "<notes> & [red]more"):
        assert part in text
    assert "<b>" not in table.html()


@pytest.mark.parametrize(
    "net",
    [
        DEEP,
        SMOOTH,
        MLP([2, 3, 4, 1], gains=[1, Fraction(1, 3), 0.1], bias=["none", "trained", "frozen"]),
        MLP([3, 8, 8, 1], "uniform", "leaky_relu", "mup", base_widths=4, bias_variance=0.2, bias_law="uniform"),
        MLP([2, 8, 8, 1], norm=Norm("layer", "after", epsilon=1e-5, parameters="trained")),
        MLP([2, 8, 1], norm="rms", activation=Activation("bent", 1, 0.3, 0.5)),
        MLP([2, 8, 1], parameterization="standard", bias_scale=0.5),
        RESIDUAL,
        ResNet([16, 64, 1], 2, hidden=[32, 128], gains=[1, 2, 0.5, 1], norm="rms"),
        BalancedResNet([3, 6, 1], 3, skip="sqrt(1/2)", branch="sqrt(1/2)"),
        BalancedResNet([3, 6, 1], 3, signs=False),
    ],
    ids=str,
)
def test_a_description_is_shown_as_it_is_typed(net: Network) -> None:
    text = repr(net)
    assert len(text) < 300
    assert eval(text, {**vars(public), "Fraction": Fraction}) == net


def test_a_description_that_is_long_to_type_is_shown_by_its_title() -> None:
    net = MLP([2, *range(2, 300), 1])
    assert repr(net).startswith("<MLP 2,2,3,")
    assert len(repr(MLP([2, *[3] * 300, 1]))) < 40


def test_printing_draws_no_random_numbers() -> None:
    """In a process of its own: only the first table would."""
    code = (
        "import random, finwidth; random.seed(0); found = finwidth.moments(finwidth.MLP([2, 4, 1]), [1, 1]); "
        "before = random.getstate(); text = str(found); assert random.getstate() == before, text"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
