"""The queue that runs is the queue that is simulated: a log of jobs through the scheduler gets the simulation's starts."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from tests.scenario.queue_lab import QueueLab

from weft.scheduler.lease.backfill import GUARD_SECONDS, MOST_HOPELESS
from weft.scheduler.queue.learned import WRITE_SECONDS
from weft.scheduler.simulate.lease_queue import replay
from weft.scheduler.simulate.swf import Job, read_swf

DATA = Path(os.environ.get("WEFT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")) / "swf"
KTH = DATA / "KTH-SP2-1996-2.part1.swf.gz"
JOBS = 500
PROCESSORS = 100
HOUR = 3600.0


def read_busy(first: int) -> list[Job]:
    """So many jobs of the log, as if the first came now."""
    jobs = read_swf(KTH)[first : first + JOBS]
    start = 1_700_010_000.0 - jobs[0].arrival
    return [msgspec.structs.replace(job, arrival=job.arrival + start) for job in jobs]


@pytest.mark.long
@pytest.mark.skipif(not KTH.exists(), reason=f"no job logs in {DATA}: set WEFT_DATA")
async def test_five_hundred_jobs_start_as_in_the_simulation() -> None:
    jobs = read_busy(1000)
    expected = replay(jobs, PROCESSORS, "weft").starts
    async with QueueLab([PROCESSORS]) as lab:
        await lab.run(jobs)
    found = {name.removeprefix("job-"): start for name, start in lab.starts.items()}
    late = {id_: (start - expected[id_]) for id_, start in found.items() if abs(start - expected[id_]) > 0.001}
    assert not late and found.keys() == expected.keys()
    waited = sum(found[job.id] > job.arrival for job in jobs)
    assert waited > JOBS // 4, "the log is too easy to tell anything"


async def test_work_without_an_end_takes_nothing_of_the_first_lease_once_that_has_waited_for_an_hour() -> None:
    async with QueueLab([4]) as lab:
        await lab.write(*(lab.make(f"now{number}", 1, 2 * HOUR) for number in range(4)))
        await lab.write(lab.make("large", 4, HOUR))
        await lab.pass_time(1.1 * HOUR)
        await lab.write(lab.end("now0"))
        await lab.write(*(lab.make(f"small{number}", 1, None) for number in range(4)))
        for number in range(1, 4):
            await lab.pass_time(60)
            await lab.write(lab.end(f"now{number}"))
        assert "large" in lab.placed and not any(name.startswith("small") for name in lab.placed)
        await lab.pass_time(HOUR)
        await lab.write(lab.end("large"))
        await lab.pass_time(10)
        assert {f"small{number}" for number in range(4)} <= lab.placed


async def test_nothing_waits_longer_than_the_guard_and_what_runs() -> None:
    """A stream of short jobs of higher priority, each of which is asked for just before the one before it ends."""
    async with QueueLab([4]) as lab:
        await lab.write(lab.make("stream0", 3, 3 * HOUR, priority=5))
        await lab.write(lab.make("large", 4, HOUR))
        began, number = lab.clock.now(), 0
        while "large" not in lab.placed:
            await lab.pass_time(2.9 * HOUR)
            await lab.write(lab.make(f"stream{number + 1}", 3, 3 * HOUR, priority=5))
            await lab.pass_time(0.1 * HOUR)
            await lab.write(lab.end(f"stream{number}"))
            number += 1
            assert number < 50
        waited = lab.clock.now() - began
        assert GUARD_SECONDS <= waited <= GUARD_SECONDS + 3 * HOUR


async def test_what_leases_took_is_known_to_the_next_scheduler() -> None:
    async with QueueLab([4]) as lab:
        for number in range(3):
            await lab.write(lab.make(f"past{number}", 4, 2 * HOUR, owner="bob"))
            await lab.pass_time(60)
            await lab.write(lab.end(f"past{number}"))
        await lab.pass_time(WRITE_SECONDS + 1)
        for name in list(lab.placed):  # all that a new one could read it from
            await lab.write(*lab.delete(name))
        await lab.stop()
        await lab.start()
        await lab.write(lab.make("running", 4, 2 * HOUR, owner="eve"))
        await lab.write(lab.make("first", 4, HOUR, owner="ann"), lab.make("bobs", 4, 2 * HOUR, owner="bob"))
        await lab.write(lab.end("running"))
        assert "bobs" in lab.placed and "first" not in lab.placed


async def test_many_leases_that_fit_nowhere_keep_no_reservation_away_and_start_once_they_can() -> None:
    async with QueueLab([4, 4]) as lab:
        await lab.write(lab.make("endless", 3, None, node="n0"), lab.make("running", 3, HOUR, node="n1"))
        for number in range(3 * MOST_HOPELESS):
            await lab.write(lab.make(f"nowhere{number}", 4, HOUR, priority=9, node="n0", memory=1_000_000 + number))
        await lab.write(lab.make("patient", 3, HOUR, priority=1, node="n0"), lab.make("large", 4, HOUR, priority=5))
        await lab.write(lab.make("small", 1, 2 * HOUR))
        queue = lab.scheduler._engine.leases
        assert queue.first is not None and queue.first.keys == ("/vm/default/large",) and "small" in lab.placed
        await lab.write(*lab.delete("endless"))
        assert "patient" in lab.placed
