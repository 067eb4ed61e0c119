"""What the theme leaves out for keyboards and screen readers, mended in the pages as they came out."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

_MENDED = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    '<th class="head"><p></p></th>': "<td></td>",
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',  # what scrolls is reached without a mouse
}
_PRE = re.compile(r"<pre(?=[ >])(?![^>]*tabindex)")


def mend(app: Sphinx, exception: Exception | None) -> None:
    """Rewrite the pages."""
    if exception or app.builder.name != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = before = path.read_text()
        for left_out, mended in _MENDED.items():
            text = text.replace(left_out, mended)
        text = _PRE.sub('<pre tabindex="0"', text)
        if text != before:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Before the pages are checked."""
    app.connect("build-finished", mend, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
