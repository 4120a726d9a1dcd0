"""The pages of what was measured begin with a table of their sections, which follows whatever is written into them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measurement import ARCHIVE, ARCHIVE_HEAD, HALF_SINCE, HEAD, PAGE, render_page, write_text

TITLES = "| what | weft | peer | ratio | goal | kept |\n|---|---|---|---|---|---|\n"


def make_section(name: str, taken: str, *kept: str) -> str:
    rows = "".join(f"| row {number} | 1 s | – | – | < 1 s | {one} |\n" for number, one in enumerate(kept, 1))
    return f"## {name}\n\nWords.\n\n_commit abc1234+, 2 cores, load 1/2/3, {taken} UTC_\n\n{TITLES}{rows}"


def test_the_tables_of_both_pages_are_what_their_sections_say() -> None:
    assert PAGE.read_text() == render_page(PAGE.read_text())
    assert ARCHIVE.read_text() == render_page(ARCHIVE.read_text(), ARCHIVE_HEAD)


def test_a_section_that_is_written_changes_its_line_of_the_table_and_no_other(tmp_path: Path) -> None:
    page = tmp_path / "measured.md"
    write_text(make_section("one of two", "2026-11-20 10:00", "yes", "**missed**"), "one of two", page)
    write_text(make_section("two", "2026-11-30 10:00", *["**missed**"] * 5), "two", page)
    text = page.read_text()
    assert text.startswith(HEAD) and text == render_page(text)
    assert "| [one of two](#one-of-two) | 2026-11-20 10:00, *old* | abc1234 | row 2 |\n" in text
    assert "| [two](#two) | 2026-11-30 10:00 | abc1234 | row 1; row 2; row 3 and 2 more |\n" in text
    write_text(make_section("one of two", HALF_SINCE, "yes"), "one of two", page)
    assert f"| [one of two](#one-of-two) | {HALF_SINCE} | abc1234 | – |\n" in page.read_text()
    assert page.read_text().count("\n## ") == 2 and page.read_text().index("## one") < page.read_text().index("## two")
