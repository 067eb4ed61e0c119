"""The pages as they came out: every link and anchor is there, and nothing is asked of another host."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# What a browser loads by itself, and by which attribute.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What a page links to, loads, and names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        found = dict(attrs)
        self.names |= {name for key in ("id", "name") if (name := found.get(key))}
        if tag == "a" and (link := found.get("href")):
            self.links.append(link)
        reads = tag != "link" or found.get("rel") in {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch"}
        if reads and (source := found.get(_LOADED.get(tag, ""))):
            self.loaded.append(source)


def faults(root: Path) -> list[str]:
    """What is wrong with the pages under a folder, a line each."""
    pages = {path.resolve(): Page(path.read_text()) for path in root.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for source in page.loaded:
            parts = urlsplit(source)
            if parts.netloc or parts.scheme not in {"", "data"}:
                found.append(f"{path.name} loads {source}")
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{path.name} has a link to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
                found.append(f"{path.name} has a link to {link}, and the page has no such anchor")
    return sorted(set(found))


def check(app: Sphinx, exception: Exception | None) -> None:
    """Fail the build if a page is not whole."""
    found = [] if exception or app.builder.name != "html" else faults(Path(app.outdir))
    if found:
        raise ExtensionError("\n".join(["pages are not whole:", *found]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Check when all is written."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
