"""The product's own documentation: which pages exist, and how Markdown becomes HTML.

Pages are the files under `templates/docs/`, trusted like code, so raw HTML in them is allowed.
A page is looked up by its name in the list of files that exist, never by joining paths, so no
name can lead out of the folder. In a file, links go to other files (`worker-protocol.md`), so that
they work in a checkout too; here they become links to pages.
"""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache
from pathlib import Path

import markdown
import msgspec
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe

from gpucloud.env import BASE_DIR

DOCS_DIR = BASE_DIR / "templates" / "docs"
INDEX = "index"
FIRST = ("architecture", "glossary")
"""Pages that lead the list; the others follow by title."""

_LINK = re.compile(r'href="(?![a-z]+:|/|#)([^"#]+)\.md(#[^"]*)?"')
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


class DocEntry(msgspec.Struct, frozen=True):
    """A page in the list of pages."""

    name: str
    """Path without ending: `architecture`, `decisions/one-dispatcher`."""
    title: str

    @property
    def url(self) -> str:
        """Where the page is read."""
        return page_url(self.name)


class DocGroup(msgspec.Struct, frozen=True):
    """Pages listed together; the first group has no title."""

    title: str
    pages: tuple[DocEntry, ...]


class DocPage(msgspec.Struct, frozen=True):
    """A rendered page."""

    name: str
    title: str
    html: SafeString


def page_url(name: str) -> str:
    """Return a page's URL."""
    return reverse("docs") if name == INDEX else reverse("doc", args=[name])


def list_pages() -> tuple[DocGroup, ...]:
    """List all pages in reading order, the decision notes by themselves."""
    entries = [DocEntry(name, _source(path)[0]) for name, path in _files().items()]
    entries.sort(key=lambda entry: (entry.name != INDEX, _rank(entry.name), entry.title))
    notes = tuple(entry for entry in entries if "/" in entry.name)
    groups = [DocGroup("", tuple(entry for entry in entries if "/" not in entry.name))]
    return (*groups, DocGroup("Decisions", notes)) if notes else tuple(groups)


def get_page(name: str) -> DocPage | None:
    """Return the page of this name, if there is one."""
    path = _files().get(name)
    if path is None:
        return None
    title, text = _source(path)
    return DocPage(name, title, _render(name, text))


def _files() -> dict[str, Path]:
    return {path.relative_to(DOCS_DIR).with_suffix("").as_posix(): path for path in sorted(DOCS_DIR.rglob("*.md"))}


def _source(path: Path) -> tuple[str, str]:
    text = path.read_text(encoding="utf-8")
    title = _TITLE.search(text)
    return (title[1] if title else path.stem.replace("-", " ").capitalize()), text


def _rank(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


@lru_cache(maxsize=64)
def _render(name: str, text: str) -> SafeString:
    # `align` attributes instead of the extension's inline styles, which the CSP forbids.
    html = markdown.markdown(
        text,
        extensions=["tables", "fenced_code", "toc", "sane_lists"],
        extension_configs={"tables": {"use_align_attribute": True}},
    )

    def to_page(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link[1]))
        return f'href="{page_url(target)}{link[2] or ""}"'

    return mark_safe(_LINK.sub(to_page, html))
