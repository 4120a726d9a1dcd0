"""Tables fit the terminal, or aren't cut at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weft.cli.output.table import Column, draw_table
from weft.cli.output.terminal import Paint, clean
from weft.cli.verbs.events import COLUMNS as EVENTS

COLUMNS = [Column("NAME"), Column("CPU", right=True), Column("NOTE", flexible=True)]
ROWS = [["web", "1", ""], ["big", "64", "insufficientResources: needs 900 GiB memory, largest free is 22 GiB (n1)"]]


def test_a_line_of_a_guest_has_neither_its_colours_nor_what_moves_the_cursor() -> None:
    assert clean("\x1b[0;1;38mfailed\x1b[0m \x1b[2Jgone") == "failed ?[2Jgone"


def test_off_a_terminal_no_cell_is_cut() -> None:
    lines = draw_table(COLUMNS, ROWS).splitlines()
    assert lines[0] == "NAME  CPU  NOTE"
    assert lines[1] == "web     1"
    assert lines[2].endswith("22 GiB (n1)")


def test_on_a_terminal_the_flexible_column_is_cut_first() -> None:
    lines = draw_table(COLUMNS, ROWS, 40).splitlines()
    assert lines[2] == "big    64  insufficientResources: needs…"
    assert max(map(len, lines)) == 40


def test_a_flexible_column_that_says_nothing_is_left_out() -> None:
    assert draw_table(COLUMNS, ROWS[:1]).splitlines() == ["NAME  CPU", "web     1"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in draw_table(COLUMNS, [["web\x1b[31m", "1", "a\nb"]])


def test_a_phase_is_coloured_only_when_colour_is_wanted() -> None:
    column = [Column("PHASE")]
    assert draw_table(column, [["Running"]], paint=Paint(True)).endswith("\x1b[32mRunning\x1b[0m")
    assert draw_table(column, [["Running"]]) == "PHASE\nRunning"


@given(st.lists(st.lists(st.text(min_size=0, max_size=30), min_size=3, max_size=3), max_size=5), st.integers(30, 200))
def test_no_line_is_wider_than_the_terminal(rows: list[list[str]], width: int) -> None:
    assert max(map(len, draw_table(COLUMNS, rows, width).splitlines())) <= width


WORKLOADS = [
    *(Column("NAME"), Column("PHASE", keep=True), Column("NODE"), Column("ADDRESS", keep=True)),
    *(Column("CPU", right=True), Column("IMAGE"), Column("AGE"), Column("NOTE", flexible=True)),
]
ROW = ["web-frontend", "Running", "n1", "10.214.100.200", "2", "debian-12", "12m", ""]


def test_a_narrow_terminal_loses_columns_the_last_first_and_no_address_is_cut() -> None:
    whole = draw_table(WORKLOADS, [ROW], 200).splitlines()[0].split()
    assert whole == ["NAME", "PHASE", "NODE", "ADDRESS", "CPU", "IMAGE", "AGE"]
    shown = {width: draw_table(WORKLOADS, [ROW], width) for width in (60, 50, 42, 30)}
    assert shown[60].splitlines()[0].split() == whole[:6]
    assert shown[50].splitlines()[0].split() == whole[:5]
    assert shown[42].splitlines()[0].split() == ["NAME", "PHASE", "ADDRESS"]
    assert shown[30].splitlines()[0].split() == ["NAME", "PHASE"]
    assert not any("…" in text for text in shown.values())


def test_a_table_without_titles_has_only_its_rows() -> None:
    assert draw_table(COLUMNS, ROWS[:1], header=False) == "web  1"


def test_events_on_a_narrow_terminal_keep_what_they_are_about() -> None:
    rows = [
        ["114s", "Normal", "ImageAvailable", "container/busybox-36rt-0", "tiny is available: bundle, 60436480 bytes"]
    ]
    for width in (60, 80, 120):
        titles, row = draw_table(EVENTS, rows, width).splitlines()
        assert "OBJECT" in titles and "container/busybox-36rt-0" in row and "tiny is" in row, width
        assert len(row) <= width
