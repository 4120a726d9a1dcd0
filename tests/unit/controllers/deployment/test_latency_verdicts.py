"""Whether a new version answers more slowly, by what the database says of readings that nodes send every eight seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from weft.controllers.deployment.facts import Verdict
from weft.controllers.deployment.requests import REQUESTS, SECONDS, Watched, ask_verdict, plan_span
from weft.telemetry.metrics.history import SampleHistory
from weft.telemetry.metrics.sample import Sample

SINCE, HEARTBEAT, PER_SECOND = 10_000.0, 8, 20
NODES = ("n1", "n2", "n3")
OLD = tuple(f"vm/web-1-{slot}" for slot in range(6))
NEW = "vm/web-2-0"
Seconds = Callable[[float], float]  # until an answer, by the seconds since the step began


def read_rows(workload: str, node: str, seconds: Seconds, first: float, now: float) -> Iterator[Sample]:
    """A value at each second, as the database answers: a reading stands until the next one."""
    labels = (("node", node), ("project", "default"), ("workload", workload))
    for at in range(int(first), int(now) + 1):
        reading = at - at % HEARTBEAT
        if reading >= first:
            requests = PER_SECOND * (reading - first)
            yield Sample(REQUESTS, (*labels, ("code_class", "2xx")), int((SINCE + at) * 1000), requests)
            yield Sample(SECONDS, labels, int((SINCE + at) * 1000), seconds(reading))


def judge(now: float, new: Seconds, old: Mapping[str, Seconds], first: float = 20.0) -> Verdict:
    """The verdict after ``now`` seconds on an instance that serves after ``first``."""
    samples = [one for node in NODES for one in read_rows(NEW, node, new, first, now)]
    for name, seconds in old.items():
        samples += [one for node in NODES for one in read_rows(name, node, seconds, 0.0, now)]
    watched = Watched(project="default", since=SINCE, new=frozenset({NEW}), old=frozenset(old), threshold=0.999)
    assert plan_span(SINCE, SINCE + now).count <= 210
    return asyncio.run(ask_verdict(SampleHistory(samples), watched, SINCE + now))[0]


def jitter(mean: float, seed: int) -> Seconds:
    return lambda at: mean * (1.0 + 0.05 * ((int(at) * 7919 + seed * 104729) % 13 - 6) / 6)


ALIKE = {name: jitter(0.02, seed) for seed, name in enumerate(OLD)}


def test_a_guest_that_is_slow_only_just_after_its_boot_is_not_a_slow_version() -> None:
    def warms_up(at: float) -> float:
        return 0.06 if at < 44 else jitter(0.02, 9)(at)

    for now in range(30, 200, 5):
        assert judge(now, warms_up, ALIKE).word != "bad", now


def test_a_reading_that_stands_for_eight_seconds_counts_once() -> None:
    def is_busy_once(at: float) -> float:
        return 0.03 if 64 <= at < 80 else jitter(0.02, 9)(at)

    for now in range(60, 90, 5):
        assert judge(now, is_busy_once, ALIKE).word != "bad", now


def test_a_version_that_stays_slower_is_found_within_a_minute_and_a_half() -> None:
    verdict = judge(110, jitter(0.05, 9), ALIKE)
    assert verdict.word == "bad"
    assert verdict.why == "it answers in 50.4 ms, the old revision in 19.8 ms (medians)"


def test_an_instance_that_is_no_slower_than_an_old_one_is_not_a_slow_version() -> None:
    """It may share that one's busy node."""
    old = {**ALIKE, OLD[0]: jitter(0.05, 1)}
    assert judge(180, jitter(0.04, 9), old).word != "bad"


def test_a_difference_that_nobody_notices_is_none() -> None:
    old = {name: jitter(0.001, seed) for seed, name in enumerate(OLD)}
    assert judge(180, jitter(0.003, 9), old).word != "bad"


def test_an_hour_that_is_slow_for_both_says_nothing_of_the_version() -> None:
    """The old ones were fast before there was a new one."""
    old: dict[str, Seconds] = {
        name: lambda at, seed=seed: jitter(0.02 if at < 60 else 0.06, seed)(at)  # type: ignore[misc]
        for seed, name in enumerate(OLD)
    }
    assert judge(180, jitter(0.06, 9), old, first=60.0).word != "bad"
