"""The explorer: one page, without a server, in which a network is chosen and its kernel's moments and law are shown.

`exact.js` and `law.js` compute what `finwidth.moments` and `finwidth.sample` do, `page.js` shows it; tests hold them to
the package in a browser.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from finwidth import arguments, outputs


def _explorer_page() -> str:
    """The page as HTML, with all that it needs in it: it opens from a file, and asks nothing of any host.

    Examples
    --------
    >>> from finwidth.explorer import _explorer_page
    >>> page = _explorer_page()
    >>> "<title>finwidth explorer</title>" in page, "src=" in page
    (True, False)
    """
    folder = resources.files("finwidth.explorer")
    scripts = "\n".join(folder.joinpath(f"{name}.js").read_text(encoding="utf-8") for name in ("exact", "law", "page"))
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    return page.replace("{source}", outputs.SOURCE).replace("{scripts}", scripts)


def write_explorer(path: str | Path) -> Path:
    """Write the page to a file; returns its path.

    Raises FinwidthError, and changes nothing, where something is that finwidth did not write.

    Examples
    --------
    >>> import tempfile
    >>> from finwidth.explorer import write_explorer
    >>> write_explorer(tempfile.mkdtemp() + "/explorer.html").name
    'explorer.html'
    """
    path = arguments.path("path", path)
    with outputs.replacing(path) as (partial,):
        partial.write_text(_explorer_page(), encoding="utf-8")
    return path
