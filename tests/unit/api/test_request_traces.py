"""Whoever has all of their reads traced fills no more than a part: others' traces stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from weft.api.request.trace import MOST_READS, SLOW_SECONDS, RequestTraces


class HandClock:
    time = 0.0

    def elapsed(self) -> float:
        return self.time


def test_a_person_s_reads_are_recorded_up_to_a_bound_and_slow_or_failed_ones_beyond_it() -> None:
    clock = HandClock()
    tracer: Any = SimpleNamespace(clock=clock)
    traces = RequestTraces(tracer, 0.0)

    def count(person: str, times: int, seconds: float = 0.01, status: int = 200) -> int:
        return sum(traces._may_fill(person, seconds, status) for _ in range(times))

    assert count("mallory", 10 * MOST_READS) == MOST_READS
    assert count("mallory", 10, seconds=SLOW_SECONDS) == 10 and count("mallory", 10, status=503) == 10
    assert count("mallory", 10 * MOST_READS, status=503) == MOST_READS - 20
    assert count("alice", 5) == 5
    clock.time = 61.0
    assert count("mallory", 1) == 1
