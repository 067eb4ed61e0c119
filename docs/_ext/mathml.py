"""Formulas as MathML, made when the site is built: no script, no request to another host, read by screen readers."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)


def mathml(node: nodes.math | nodes.math_block, display: str) -> str:
    """The formula, and its TeX for readers that do not know MathML."""
    tex = node.astext()
    if "\\\\" in tex and "\\begin" not in tex:
        _LOG.warning("a new line, \\\\, outside of an environment: %s", tex, location=node)
    return convert(tex, display=display).replace("<math ", f'<math aria-label="{escape(tex, quote=True)}" ', 1)


def inline(writer: Any, node: nodes.math) -> None:
    """A formula in a line."""
    writer.body.append(f'<span class="math">{mathml(node, "inline")}</span>')
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    """A formula of its own, with its number and anchor if it has a label."""
    target = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    writer.body.append(f'<div class="math" tabindex="0"{target}>{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
