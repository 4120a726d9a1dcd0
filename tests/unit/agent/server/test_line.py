"""The line to the server: bounded pauses that differ between nodes, and what is followed waits for an answered report."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from weft.agent.server.client import RemoteServer
from weft.agent.server.line import (
    LEAST_SECONDS,
    LONG_AFTER_SECONDS,
    LONG_CEILING_SECONDS,
    SHORT_CEILING_SECONDS,
    ServerLine,
)
from weft.client.answer import ClientAnswer
from weft.objects.errors import Unavailable, WeftError
from weft.protocol.report import ReportBody


class SetClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def elapsed(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None: ...


def test_pauses_grow_to_a_bound_that_is_greater_for_who_is_away_for_long() -> None:
    clock = SetClock()
    line = ServerLine(clock, "n1")
    line.note_failure()
    drawn = [line.choose_pause(tries) for tries in range(1, 400)]
    assert all(LEAST_SECONDS <= pause <= SHORT_CEILING_SECONDS for pause in drawn)
    assert drawn[0] <= 0.5 and max(drawn) > 0.9 * SHORT_CEILING_SECONDS and min(drawn[20:]) < 0.2
    clock.time = LONG_AFTER_SECONDS
    drawn = [line.choose_pause(tries) for tries in range(400, 800)]
    assert SHORT_CEILING_SECONDS < max(drawn) <= LONG_CEILING_SECONDS
    line.note_answer()
    line.note_failure()
    assert max(line.choose_pause(tries) for tries in range(1, 200)) <= SHORT_CEILING_SECONDS


def test_nodes_that_were_cut_off_together_try_at_different_times() -> None:
    clock = SetClock()
    lines = [ServerLine(clock, f"n{number}") for number in range(1000)]
    clock.time = LONG_AFTER_SECONDS
    for line in lines:
        line.note_failure()
    clock.time = 2 * LONG_AFTER_SECONDS
    seconds = [int(line.choose_pause(50)) for line in lines]
    assert max(seconds.count(second) for second in set(seconds)) < 200


def test_what_is_followed_waits_until_a_report_is_answered() -> None:
    line = ServerLine(SetClock())
    line.note_failure()
    rested = threading.Event()

    def follow() -> None:
        line.rest(1)
        rested.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert not rested.wait(0.1) and not line.works
    line.note_answer()
    thread.join(5.0)
    assert rested.is_set() and line.works


@pytest.mark.parametrize(("status", "works"), [(200, True), (403, True), (None, False)])
def test_any_answer_to_a_report_shows_that_the_line_works(status: int | None, works: bool) -> None:
    class Http:
        closed = threading.Event()

        def request(self, *given: Any, **more: Any) -> ClientAnswer:
            if status is None:
                raise Unavailable("no weft server answers")
            return ClientAnswer(status, {}, b"{}")

    client: Any = type("Client", (), {"http": Http()})()
    line = ServerLine(SetClock())
    server = RemoteServer(client, line)
    try:
        server.report("n1", ReportBody())
    except WeftError:
        assert status != 200
    assert line.works is works
