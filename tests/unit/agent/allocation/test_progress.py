"""What the steps of a start took."""

from __future__ import annotations

from tests.unit.agent.server.test_reporter import HandClock

from weft.agent.allocation.plan import StepName
from weft.agent.allocation.progress import StartProgress


def test_each_stage_has_the_seconds_that_it_took() -> None:
    clock = HandClock()
    progress = StartProgress(clock, [])
    for step, seconds, detail in (
        (StepName.IMAGE, 30.0, "58 MiB in 30 s"),
        (StepName.DISK, 1.5, ""),
        (StepName.VOLUMES, 0.5, ""),
        (StepName.NETWORK, 0.25, ""),
        (StepName.START, 2.0, ""),
    ):
        progress.begin(step)
        clock.time += seconds
        progress.end(step, detail)
    clock.time += 40.0
    assert [(one.name, one.state) for one in progress.list()][-1] == ("boot", "doing")
    progress.arrive()
    clock.time += 500.0
    progress.arrive()
    assert {one.name: one.seconds for one in progress.list()} == {
        "image": 30.0,
        "disk": 2.0,
        "network": 0.2,
        "boot": 42.0,
    }
