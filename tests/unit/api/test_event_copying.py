"""Another server's events, whose answers can't be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.api.servers.event_copies import EventCopies, OwnEvents
from weft.client.answer import ClientAnswer
from weft.contracts.clock import SystemClock
from weft.telemetry.journal import SqliteJournal


class Garbling:
    """A server that answers another thing each time, but for the fourth, which is right."""

    asked = 0

    async def ask(self, *_: Any) -> ClientAnswer:
        self.asked += 1
        body = msgspec.json.encode(OwnEvents("j", [])) if self.asked == 4 else b"x" * self.asked
        return ClientAnswer(200, {}, body)


async def test_answers_that_cannot_be_read_are_logged_once_until_one_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, others = SystemClock(), Garbling()
    journal = SqliteJournal(tmp_path / "journal.db", clock)
    copies = EventCopies(journal, others, clock)  # type: ignore[arg-type]
    assert [await copies._copy("s2") for _ in range(7)] == [False] * 3 + [True] + [False] * 3
    assert caplog.text.count("events of server s2 can't be copied") == 2
    journal.close()
