"""Times that people read: in UTC where they are stored, by the local clock where they are shown."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from weft.cli.command.errors import complain
from weft.cli.output.local_time import localize
from weft.cli.output.table import draw_table, make_columns
from weft.objects.errors import Unplaceable

SAID = "earliest: 2026-11-24 23:30 UTC on n1"
HERE = "earliest: 2026-11-25 00:30 CET on n1"


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_notes_refusals_and_tables_have_one_form_of_times_by_the_local_clock(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert localize(SAID) == HERE
    assert localize("restarts at 2026-11-24 23:30:05 UTC if") == "restarts at 2026-11-25 00:30:05 CET if"
    assert HERE in draw_table(make_columns("NAME", "NOTE~"), [["web", SAID]])
    complain(Unplaceable("vm/web is refused: " + SAID, hint=SAID), "table", False)
    assert capsys.readouterr().err.count(HERE) == 2
    complain(Unplaceable(SAID), "json", False)  # for programs
    assert SAID in capsys.readouterr().err


@pytest.mark.parametrize("text", ["at UTC", "2026-13-45 29:99 UTC", "2026-11-24T23:30:00Z", "9999-99-99 99:99 UTC"])
def test_what_is_no_such_time_stays_as_it_is(text: str) -> None:
    assert localize(text) == text
