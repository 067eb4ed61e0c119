"""The HTML page stands on its own, and docs/paper.md is what the code prints."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finwidth.errors import FinwidthError
from finwidth.paper import cartoons, page
from finwidth.paper.records import Finding, Statement

DOCS = Path(__file__).parents[2] / "docs" / "paper.md"
Results = tuple[tuple[Statement, ...], tuple[Finding, ...]]


@pytest.fixture(scope="session")
def results(checked: dict[str, Statement], found: tuple[Finding, ...]) -> Results:
    return tuple(checked.values()), found


def test_committed_page_is_what_the_code_prints(results: Results) -> None:
    assert DOCS.read_text(encoding="utf-8") == page.markdown(*results)


def test_html_stands_on_its_own(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    written = page.write_page(tmp_path / "paper.html", *results).read_text(encoding="utf-8")
    assert written.count("<svg ") == 3
    assert not re.search(r'(src|href)="(?!#|https://arxiv\.org)', written.replace("xlink:href", "xlink"))
    assert "FAILS" not in re.sub(r"<style>.*?</style>", "", written, flags=re.DOTALL)
    assert all(f'id="{statement.id}"' in written for statement in results[0])
    identifiers = re.findall(r'\bid="([^"]+)"', written)
    assert len(identifiers) == len(set(identifiers))
    assert not re.search(r"\b(nan|inf)\b", written)


def test_html_escapes_and_shows_failure(results: Results) -> None:
    pytest.importorskip("jinja2")
    failed = replace(results[0][0], holds=False, claim="1 < 2 & <script>.")
    written = page.html([failed], [])
    assert "FAILS" in re.sub(r"<style>.*?</style>", "", written, flags=re.DOTALL)
    assert "<script>" not in written
    assert "0 of 1 checks hold" in written
    assert "FAILS" in page.markdown([failed], [])


def test_without_jinja2(results: Results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(FinwidthError, match="Jinja2"):
        page.write_page(tmp_path / "paper.html", *results)
    assert page.write_markdown(tmp_path / "paper.md", *results).exists()


def test_a_file_that_cannot_be_written(results: Results, tmp_path: Path) -> None:
    with pytest.raises(FinwidthError, match="cannot write"):
        page.write_markdown(tmp_path / "none" / "paper.md", *results)


def test_cartoons_draw_four_paths_and_are_reproducible() -> None:
    figure = cartoons.cartoon(1)
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert [label for label in labels if str(label).startswith("path")] == [f"path {k}" for k in (1, 2, 3, 4)]
    assert cartoons.svg(cartoons.cartoon(2), "two") == cartoons.svg(cartoons.cartoon(2), "two")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("E[K_b^2] ~ exp(5 beta)", "E[K<sub>b</sub><sup>2</sup>] ~ exp(5 β)"),
        ("2^{-n_i} < 1", "2<sup>-n<sub>i</sub></sup> &lt; 1"),
        ("E^Gamma(i), W^(d)", "E<sup>Γ</sup>(i), W<sup>(d)</sup>"),
        ("the sum over pairs", "the sum over pairs"),
        ("D_ww >= mu_4", "Δ<sub>ww</sub> ≥ μ<sub>4</sub>"),
    ],
)
def test_typeset(line: str, shown: str) -> None:
    assert page.typeset(line) == shown
