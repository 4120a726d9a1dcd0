"""What an agent that was started again says of the line before its first report is answered or lost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.unit.agent.server.test_reporter import HandClock

from weft.agent.server.line import ServerLine
from weft.agent.server.outbox import Outbox
from weft.agent.server.readiness import ReadinessSource
from weft.agent.state.wall_clock import WallClock
from weft.contracts.driver.host import Capacity, Host


class Reporter:
    def __init__(self, outbox: Outbox) -> None:
        self.outbox, self.answered_at = outbox, -math.inf


@pytest.mark.parametrize(("silent", "offline"), [(20.0, False), (200.0, True)])
def test_an_agent_that_is_started_while_nothing_is_heard_says_since_when(
    tmp_path: Path, silent: float, offline: bool
) -> None:
    clock: Any = HandClock()
    clock.time += 1000.0
    host = Host(
        "n1", "u1", str(tmp_path), str(tmp_path), "w", "127.0.0.1", "lo", "weft/test", Capacity(4.0, 2**33, 2**40)
    )
    wall, line = WallClock(tmp_path, clock), ServerLine(clock)
    reporter: Any = Reporter(Outbox(tmp_path, clock, wall))
    readiness = ReadinessSource(host, line, reporter, wall, clock)
    assert readiness.read().offline_since is None  # a new node, which no server has heard
    reporter.outbox.contact_at = heard = wall.now() - silent
    said = readiness.read()
    assert said.contact_age_seconds == pytest.approx(silent, abs=1.0)
    assert said.offline_since == (pytest.approx(heard, abs=1.0) if offline else None)
    reporter.answered_at = clock.elapsed()
    assert readiness.read().offline_since is None
