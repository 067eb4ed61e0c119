"""The site: Sphinx over docs/, built by scripts/docs. It asks nothing of another host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import finwidth
from finwidth.explorer import write_explorer

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "finwidth"
author = "the finwidth developers"
copyright = "the finwidth developers"
release = version = finwidth.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "accessible",
    "plain_docstrings",
    "whole_pages",
]
exclude_patterns = ["_ext", "_build"]
templates_path = ["_templates"]
OUTSIDE = {
    "](../CONTRIBUTING.md)": "](contributing.md)",
    "](../README.md)": "](index.md)",
    "](CHANGELOG.md)": "](changelog.md)",
}

# Markdown
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
# Anchors are checked in the pages as they come out (scripts/docs): Sphinx does not know those written in HTML.
suppress_warnings = ["myst.header", "myst.xref_missing"]

# The reference, from the docstrings
default_role = "py:obj"
autosummary_generate = True
autodoc_typehints = "none"  # signatures stay short; docstrings give shapes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
html_math_renderer = "mathml"

# The look
html_theme = "furo"
html_title = "finwidth"
html_static_path = ["_static"]
html_css_files = ["finwidth.css"]
html_js_files = ["finwidth.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def links_to_pages(_app: Sphinx, *where_and_source: Any) -> None:
    """Files outside of docs/ that are pages of the site."""
    source: list[str] = where_and_source[-1]
    for link, page in OUTSIDE.items():
        source[0] = source[0].replace(link, page)


def explorer(app: Sphinx, exception: Exception | None) -> None:
    """The explorer is a page by itself."""
    if not exception and app.builder.name == "html":
        page = write_explorer(Path(app.outdir) / "explorer.html")
        home = '<header>\n<p><a href="index.html">finwidth: the site</a></p>'
        page.write_text(page.read_text().replace("<header>", home, 1))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    for event in ("source-read", "include-read"):
        app.connect(event, links_to_pages)
    app.connect("build-finished", explorer, priority=450)  # when pages were mended, before they are checked
