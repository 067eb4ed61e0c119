"""The checks of the paper as one HTML page that stands on its own, and as a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from html import escape
from importlib import resources
from pathlib import Path

from finwidth import outputs
from finwidth.arguments import instance, items
from finwidth.arguments import path as checked_path
from finwidth.extras import load_extra
from finwidth.paper.records import Figure, Finding, Statement

_PAPER = 'B. Hanin, M. Nica, "Finite Depth and Width Corrections to the Neural Tangent Kernel", ICLR 2020'
_LINK = "https://arxiv.org/abs/1909.05989"
_INTRODUCTION = (
    "Every numbered statement of the paper, checked by a computation that runs in seconds. Statements that give an "
    "identity or a count are checked exactly, in fractions or network by network; statements up to universal "
    "constants by the ratio of the exact value to the printed form, which must stay bounded and settle as depth and "
    'width grow together. "Holds" means that the check described beside it came out as claimed, no more: none of this '
    "is a proof."
)


def _figure_text(value: Figure) -> str:
    """A figure for people: whole numbers and short fractions as they are, others with four digits.

    >>> _figure_text(Fraction(15, 2)), _figure_text(0.72326), _figure_text(1e-9), _figure_text(20000)
    ('15/2', '0.7233', '1e-09', '20000')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Fraction) and value.denominator > 10**4:
        return f"{float(value):.4g}"
    return str(value)


def figure_texts(statement: Statement | Finding) -> dict[str, str]:
    """The figures as a page shows them."""
    return {name: _figure_text(value) for name, value in statement.figures.items()}


def title(statement: Statement) -> str:
    """The name of a statement as the paper writes it: "Theorem 1"."""
    kind, _, number = statement.id.partition("-")
    return f"{kind.capitalize()} {number}"


def verdict(statement: Statement) -> str:
    """Holds or FAILS."""
    return "holds" if statement.holds else "FAILS"


def markdown(statements: Sequence[Statement], findings: Sequence[Finding]) -> str:
    """docs/paper.md; figures are rounded, so that it is the same on every machine."""
    lines = [
        f"<!-- {outputs.SOURCE} -->",
        "",
        "# The paper, statement by statement",
        "",
        f"[{_PAPER}]({_LINK}).",
        "",
        _INTRODUCTION,
        "",
        "This page is printed by `finwidth paper --markdown docs/paper.md`; a test holds it to the code.",
        "",
        "## Statements",
        "",
        "| statement | claim, in our words | how it is checked | verdict |",
        "| :--- | :--- | :--- | :--- |",
    ]
    for each in statements:
        row = (f"[{title(each)}](#{each.id})", _escaped(each.claim), _escaped(each.checked_by), verdict(each))
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "## Figures"]
    for each in statements:
        lines += ["", f'<a id="{each.id}"></a>', "", f"**{title(each)}.** {_escaped(each.note)}".rstrip(), ""]
        lines += [f"- {_escaped(name)}: {_escaped(value)}" for name, value in figure_texts(each).items()]
    lines += ["", "## What an exact computation finds different"]
    for number, finding in enumerate(findings, 1):
        lines += ["", f"### {number}. {_escaped(finding.title)}", ""]
        lines += [f"Printed: {_escaped(finding.printed)}", "", f"Exact: {_escaped(finding.exact)}", ""]
        lines += [f"- {_escaped(name)}: {_escaped(value)}" for name, value in figure_texts(finding).items()]
        lines += ["", f"{_escaped(finding.verdict)}"]
    return "\n".join(lines) + "\n"


_SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "lambda": "λ", "mu": "μ", "xi": "ξ", "Gamma": "Γ", "Delta": "Δ",
}  # fmt: skip
_REWRITES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (rf"(?<![A-Za-z])({'|'.join(_SYMBOLS)})(?![a-z])", lambda match: _SYMBOLS[match[1]]),
    (r"\bsum(?=_| 1/n)", "∑"),
    (r"\bprod(?=_| 1/n| 2\^| \()", "∏"),
    (r"&lt;=", "≤"),
    (r"&gt;=", "≥"),
    (r"-&gt;", "→"),
    (r"(K_w)\*(K_b)", r"\1 \2"),
    (r"\bD_(?=w|b)", "Δ_"),
    (r"\bdK\b|Δ K\b", "ΔK"),
    (r"_([A-Za-z0-9]+)", r"<sub>\1</sub>"),
    (r"_\{([^{}]*)\}", r"<sub>\1</sub>"),
    (r"\^(\([a-z]\)|\w+)", r"<sup>\1</sup>"),
    (r"\^\{([^{}]*)\}", r"<sup>\1</sup>"),
)


def typeset(line: str) -> str:
    """Plain formulas as HTML.

    >>> typeset("E[K_b^2] <= sum_{i<=j} e^{-5 S_j}")
    'E[K<sub>b</sub><sup>2</sup>] ≤ ∑<sub>i≤j</sub> e<sup>-5 S<sub>j</sub></sup>'
    """
    line = escape(line, quote=False)
    for pattern, replacement in _REWRITES:
        line = re.sub(pattern, replacement, line)
    return line


def _escaped(line: str) -> str:
    """`typeset`, with what Markdown would read as markup escaped."""
    return " ".join(typeset(line).replace("*", r"\*").replace("|", "&#124;").split())


def import_jinja2() -> None:
    """Raise FinwidthError unless Jinja2 is installed, which makes the HTML page."""
    load_extra("jinja2", "the HTML page")


def html(statements: Sequence[Statement], findings: Sequence[Finding]) -> str:
    """The page, with its drawings in it: no other file and no network access is needed to read it."""
    import_jinja2()
    import jinja2

    from finwidth.paper import cartoons

    template = resources.files("finwidth.paper").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"shown": figure_texts, "title": title, "verdict": verdict, "typeset": typeset}
    drawings = {
        "kept": cartoons.svg(cartoons.cartoon(1), "Four paths that keep their partners"),
        "swapped": cartoons.svg(cartoons.cartoon(2), "Swapped partners: four paths, one loop"),
        "ratios": cartoons.svg(cartoons.ratios(), "Ratios of exact values to the forms"),
    }
    return environment.from_string(template).render(
        source=outputs.SOURCE,
        paper=_PAPER,
        link=_LINK,
        introduction=_INTRODUCTION,
        statements=statements,
        findings=findings,
        drawings=drawings,
    )


def write_page(path: str | Path, statements: Sequence[Statement], findings: Sequence[Finding]) -> Path:
    """Write the HTML page; returns its path.

    Raises
    ------
    FinwidthError
        If Jinja2 is not installed, or the file cannot be written, or there is one that finwidth did not write.
    """
    return _write(path, html(*_checked_results(statements, findings)))


def write_markdown(path: str | Path, statements: Sequence[Statement], findings: Sequence[Finding]) -> Path:
    """Write the Markdown page; returns its path. Raises FinwidthError as `write_page`."""
    return _write(path, markdown(*_checked_results(statements, findings)))


def _checked_results(
    statements: Sequence[Statement], findings: Sequence[Finding]
) -> tuple[list[Statement], list[Finding]]:
    checked = items("statements", statements, "statements of finwidth.paper.check")
    found = items("findings", findings, "the result of finwidth.paper.findings()")
    for statement in checked:
        instance("a statement", statement, Statement, "the result of finwidth.paper.check")
    for finding in found:
        instance("a finding", finding, Finding, "the result of finwidth.paper.findings()")
    return checked, found


def _write(path: str | Path, content: str) -> Path:
    path = checked_path("path", path)
    with outputs.replacing(path) as [partial]:
        partial.write_text(content, encoding="utf-8")
    return path
