"""When the runs of a job are due, after its schedule was changed, and after the clock was set."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from weft.controllers.job.schedule import Run, ScheduleOutcome, plan_runs
from weft.kinds.job import JobActions, JobSpec, JobStatus, TaskSpec


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


MADE = at("2026-01-02 06:30")


class Job:
    """A job whose runs are planned, and carried out at once."""

    def __init__(self, schedule: str, zone: str = "UTC", status: JobStatus | None = None) -> None:
        self.spec = JobSpec(task=TaskSpec(image="busybox"), schedule=schedule, time_zone=zone)
        self.asked = JobActions()
        self.status, self.made = status or JobStatus(), list[str]()

    def plan(self, now: float) -> ScheduleOutcome:
        out = plan_runs("nightly", self.spec, self.asked, self.status, [], MADE, 1, now)
        self.status = out.status
        self.made += [out.make] if out.make else []
        return out

    def change(self, schedule: str, zone: str = "UTC") -> None:
        self.spec = msgspec.structs.replace(self.spec, schedule=schedule, time_zone=zone)

    def run_until(self, now: float, until: float) -> list[str]:
        """The runs that are made by then."""
        before = len(self.made)
        while now < until:
            now += self.plan(now).requeue_after or 1.0
        return self.made[before:]


@pytest.mark.parametrize(
    ("schedule", "zone", "first"),
    [
        pytest.param("0 2 * * *", "UTC", "nightly-202606020200", marks=pytest.mark.long),
        pytest.param("31 * * * *", "UTC", "nightly-202606011531", marks=pytest.mark.long),
        ("0 0 1 1 *", "Asia/Tokyo", "nightly-202612311500"),
    ],
)
def test_after_a_change_the_first_run_is_the_first_due_time_after_it(schedule: str, zone: str, first: str) -> None:
    job, now = Job("0 0 1 1 *"), at("2026-06-01 15:00")
    assert not job.run_until(MADE, now)
    job.change(schedule, zone)
    assert job.plan(now).make is None
    due = at(f"{first[-12:-8]}-{first[-8:-6]}-{first[-6:-4]} {first[-4:-2]}:{first[-2:]}")
    assert not job.run_until(max(now, due - 86400.0), due) and job.run_until(due, due + 1.0) == [first]


def test_a_run_that_was_missed_under_the_schedule_in_force_is_made_up_for_once() -> None:
    job = Job("0 2 * * *")
    job.plan(MADE)
    assert job.plan(at("2026-01-06 15:00")).make == "nightly-202601030200"
    assert job.plan(at("2026-01-06 15:01")).make is None


def test_a_job_that_is_held_changed_and_released_waits_for_its_next_time() -> None:
    job = Job("0 0 1 1 *")
    job.plan(MADE)
    job.asked = JobActions(hold=True)
    job.change("0 2 * * *")
    job.plan(at("2026-06-01 15:00"))
    job.plan(at("2026-06-02 02:00"))
    job.asked = JobActions()
    assert job.plan(at("2026-06-02 15:00")).make is None and not job.made
    assert job.plan(at("2026-06-03 02:00")).make == "nightly-202606030200"


def test_a_job_of_a_release_that_noted_no_schedule_makes_up_for_what_it_missed() -> None:
    job = Job("0 2 * * *", status=JobStatus(last_run=at("2026-06-01 02:00")))
    assert job.plan(at("2026-06-02 15:00")).make == "nightly-202606020200"


def test_a_run_of_a_clock_that_was_ahead_pushes_no_later_one_out_of_the_history() -> None:
    runs = [Run(name, "Succeeded", MADE + seconds) for name, seconds in (("a", 1.0), ("ahead", 9e8), ("b", 2.0))]
    spec = JobSpec(task=TaskSpec(image="busybox"), schedule="0 2 * * *", history=2)
    assert plan_runs("nightly", spec, JobActions(), JobStatus(), runs, MADE, 1, MADE + 10.0).delete == ["ahead"]


@pytest.mark.parametrize("last", [at("2027-06-01 02:00"), None])
def test_a_clock_that_was_ahead_puts_no_run_off(last: float | None) -> None:
    """Neither by the newest run, nor by when the job was made."""
    job, now = Job("0 2 * * *", status=JobStatus(last_run=last)), at("2025-12-24 06:30")
    assert job.plan(now).make is None
    assert job.run_until(now, now + 86400.0) == ["nightly-202512250200"]
    assert job.run_until(now + 86400.0, now + 3 * 86400.0) == ["nightly-202512260200", "nightly-202512270200"]
