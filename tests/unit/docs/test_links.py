"""Every link of the documentation and every reference to a section of it leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("tests/**/*.md")])
SOURCES = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "recipes", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".cpp", ".h", ".yaml", ".toml", ".js"}
)

LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"algorithm\.md((?:#[a-z0-9-]+(?:, (?:with groups )?)?)+)")
NAMED_PAGE = re.compile(r"\bdocs/[a-z/-]+\.md\b")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return frozenset(heading.strip().replace(" ", "-") for heading in plain)


def broken_links(page: Path) -> Iterator[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in LINK.findall(text):
        path = (page.parent / target).resolve() if target else page
        if not path.exists():
            yield target
        elif anchor and anchor not in anchors(path):
            yield f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(broken_links(page))


def test_docstrings_name_sections_of_the_algorithm_that_exist() -> None:
    known = anchors(DOCS / "concepts" / "algorithm.md")
    named = {
        (path.relative_to(ROOT), anchor)
        for path in SOURCES
        for group in REFERENCE.findall(path.read_text(encoding="utf-8"))
        for anchor in re.findall(r"#([a-z0-9-]+)", group)
    }
    assert len(named) > 40
    assert not [entry for entry in named if entry[1] not in known]


def test_pages_that_code_names_exist() -> None:
    named = {
        (path.relative_to(ROOT), page)
        for path in SOURCES
        for page in NAMED_PAGE.findall(path.read_text(encoding="utf-8"))
    }
    assert named
    assert not [entry for entry in named if not (ROOT / entry[1]).is_file()]


def test_every_page_is_in_the_sites_navigation() -> None:
    navigation = re.findall(r": ([a-z/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(navigation) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
