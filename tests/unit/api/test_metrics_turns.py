"""Who may ask for metrics now: so many at once, and nobody for a while whose query may have ended the database."""

from __future__ import annotations

import pytest

from weft.api.state.history import BARRED_SECONDS, History
from weft.contracts.clock import SystemClock
from weft.objects.errors import Throttled, Unavailable
from weft.telemetry.metrics.database import Database, DatabaseEnded
from weft.trust.credentials import Actor


class SetClock(SystemClock):
    at = 0.0

    def elapsed(self) -> float:
        return self.at


def test_a_person_whose_query_was_under_way_when_the_database_ended_waits_and_nobody_else() -> None:
    clock = SetClock()
    history = History(lambda: Database("victoriametrics", "http://127.0.0.1:1"), clock)
    ann, bea = (Actor("person", name, name) for name in ("ann", "bea"))
    with pytest.raises(DatabaseEnded), history.taking_turn(ann):
        raise DatabaseEnded("it ended")
    with pytest.raises(Throttled, match="was under way"), history.taking_turn(ann):
        pass
    with pytest.raises(Unavailable), history.taking_turn(bea):
        raise Unavailable("it isn't there")
    with history.taking_turn(bea):
        pass
    clock.at += BARRED_SECONDS
    with history.taking_turn(ann):
        pass
    history.asker.close()
