"""The documents as the site has them: where each lies, in which order, and what its text becomes."""

from __future__ import annotations

from pathlib import Path

from tools.site.pages import CONTENTS, ROOT, convert, find_anchors, list_pages, place, read_order, slug


def test_every_document_has_a_place_of_its_own() -> None:
    pages = list_pages()
    places = {place(page) for page in pages}
    assert len(places) == len(pages) and None not in places
    assert {"index.md", "contents.md", "changelog.md", "guide/first-steps.md", "decisions/README.md"} <= places
    assert place("src/weft/__init__.py") is None


def test_the_order_is_that_of_the_list_of_all_pages() -> None:
    order = read_order()
    listed = [path for _, found in order for _, path in found]
    assert [title for title, _ in order][:2] == ["Start", "Run things"]
    assert order[0][1][0] == ("First steps", "docs/guide/first-steps.md")
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "docs/measured-archive.md", "docs/reference/cli.md"} <= {*listed}
    assert [path for path in listed if not (ROOT / path).is_file()] == [] and len(listed) == len({*listed})
    assert all("`" not in label for _, found in order for label, _ in found)


def test_links_lead_to_the_places_of_the_site(tmp_path: Path) -> None:
    for name in (
        "README.md",
        CONTENTS,
        "docs/guide/a.md",
        "docs/decisions/README.md",
        "src/b.py",
        "docs/reference/c.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    text = (
        "[1](a.md#x) [`2`](../../README.md) ![3](../reference/c.json) [4](../decisions) [5](../../src/b.py) [6](#y)\n"
    )
    text += "`[7](../../README.md)` [8](https://weft.example/a.md)\n```\n[9](../../README.md)\n- a\n```\n[10]: ../README.md\n"
    assert convert(text, "docs/guide/a.md", tmp_path) == (
        "[1](a.md#x) [`2`](../index.md) ![3](../reference/c.json) [4](../decisions/README.md) 5 [6](#y)\n"
        "`[7](../../README.md)` [8](https://weft.example/a.md)\n```\n[9](../../README.md)\n- a\n```\n[10]: ../contents.md\n"
    )


def test_lists_and_tables_stand_by_themselves() -> None:
    text = "words\n- a\n  goes on\n- b\n1. c\n\n```\nx\n```\n| d | `e\\|f` |\n|---|---|\nwords\n"
    assert convert(text, "docs/guide/a.md") == (
        "words\n\n- a\n  goes on\n- b\n1. c\n\n```\nx\n```\n\n| d | `e|f` |\n|---|---|\nwords\n"
    )


def test_a_heading_is_called_as_elsewhere() -> None:
    assert slug(" The server's `own` log ") == "the-servers-own-log"
    assert slug("`weft server --state DIR`") == "weft-server---state-dir"
    assert find_anchors("# A [b](c.md) d\n```\n# no\n```\n## Größe & Zahl\n") == {"a-b-d", "größe--zahl"}
