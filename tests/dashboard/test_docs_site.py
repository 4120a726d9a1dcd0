"""The site of the documents, read from its folder in a real browser."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect


@pytest.fixture(scope="module")
def build() -> Callable[[Path], None]:
    pytest.importorskip("mkdocs", reason="needs what make docs needs: tools/install docs")
    return importlib.import_module("tools.site.build").build_site


@pytest.fixture(scope="module")
def site(build: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "docs"
    build(out)
    return out


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page that is open; at the end it has asked nobody for anything, and its browser has reported no error."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    faults, page = list[str](), context.new_page()
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url)
    )
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    context.close()
    assert faults == []


def test_a_search_finds_a_page_and_its_link_leads_there(site: Path, page: Page) -> None:
    page.goto(f"file://{site}/index.html")
    page.get_by_placeholder("Search").click()
    expect(page.locator(".md-search-result__meta")).to_have_text("Type to start searching")
    page.get_by_placeholder("Search").press_sequentially("draining a node", delay=20)
    page.locator(".md-search-result__link", has_text="Draining a node").first.click()
    expect(page.locator("article h1")).to_contain_text("Draining a node")
    assert page.url.startswith(f"file://{site}/guide/drain.html")


def test_the_sections_stand_above_each_page_and_their_pages_beside_it(site: Path, page: Page) -> None:
    page.goto(f"file://{site}/reference/errors.html")
    assert page.locator(".md-tabs__link").all_inner_texts()[:4] == ["Home", "Start", "Run things", "Where and when"]
    page.get_by_role("link", name="Exit codes").first.click()
    expect(page.locator("article h1")).to_contain_text("Exit codes")


@pytest.mark.parametrize("name", ["reference/errors", "status", "map", "guide/install", "decisions/README"])
def test_a_wide_table_is_read_without_moving_the_page(site: Path, page: Page, name: str) -> None:
    path = site / f"{name.replace('README', 'index')}.html"
    page.goto(f"file://{path}")
    assert page.locator("article table").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    # No word is cut: a cell's code is in one line, or goes on behind a slash, a comma or a space.
    assert page.evaluate("getComputedStyle(document.querySelector('article table code')).wordBreak") == "normal"


def test_a_link_to_a_heading_that_is_not_there_fails_the_site(build: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# weft\n[a](docs/a.md#there) [b](docs/a.md#gone)\n")
    (tmp_path / "docs" / "a.md").write_text("# A\n## There\n")
    (tmp_path / "docs" / "README.md").write_text("# All pages\n## Start\n- [A](a.md)\n")
    with pytest.raises(Exception, match="1 warnings in strict mode"):
        build(tmp_path / "site", tmp_path)
    assert not (tmp_path / "site").exists()


@pytest.mark.long
def test_the_same_documents_give_the_same_site(
    site: Path, build: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    build(tmp_path / "again")
    first, second = (
        {str(path.relative_to(place)): hash_file(path) for path in place.rglob("*") if path.is_file()}
        for place in (site, tmp_path / "again")
    )
    assert first == second and len(first) > 450


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
