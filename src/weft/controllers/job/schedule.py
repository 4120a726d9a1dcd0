"""When a job with a schedule runs next, and what becomes of its runs. Pure.

A run's name follows from the minute it was due in, and the run is made in the commit that records that minute: so each is made
once. Of several runs that were missed only one is made, and none that the schedule of the time didn't ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.kinds.job import ENDED, JobActions, JobSpec, JobStatus
from weft.objects.identity import cut_name
from weft.objects.schedule import next_run

LONGEST_WAIT_SECONDS = 600.0  # a clock may be set


class Run(msgspec.Struct, frozen=True):
    name: str
    phase: str
    created_at: float


class ScheduleOutcome(msgspec.Struct):
    status: JobStatus
    make: str | None = None  # the name of a run
    cancel: list[str] = []
    delete: list[str] = []
    requeue_after: float | None = None
    events: list[tuple[Literal["Normal", "Warning"], str, str]] = []


def run_name(job: str, due: float) -> str:
    """``nightly-202611210230``: the minute in UTC."""
    suffix = f"-{datetime.fromtimestamp(due, UTC):%Y%m%d%H%M}"
    return cut_name(job, suffix)


def _find_base(spec: JobSpec, former: JobStatus, status: JobStatus, created_at: float, now: float) -> float:
    """Time after which the next run is due: the newest run, or the start of the schedule, which ``status`` gets. Neither lies
    ahead, however the clock was set.
    """
    last = former.last_run if former.last_run is not None else created_at
    since = former.schedule_since
    status.schedule = f"{spec.schedule} {spec.time_zone}"
    is_changed = former.schedule not in ("", status.schedule)  # "": of a release that didn't note it, or a new job
    if is_changed or (since or 0.0) > now or (since is None and last > now):
        since = status.schedule_since = now
    if former.last_run is not None and former.last_run > now:
        last = status.last_run = now
    return max(one for one in (last, since) if one is not None and one <= now)


def plan_runs(
    name: str,
    spec: JobSpec,
    asked: JobActions,
    former: JobStatus,
    runs: Sequence[Run],
    created_at: float,
    generation: int,
    now: float,
) -> ScheduleOutcome:
    """Plan the runs that are due at ``now`` (unix seconds)."""
    status = replace(former, phase="Scheduled", observed_generation=generation)
    out = ScheduleOutcome(status)
    due = next_run(spec.schedule, spec.time_zone, _find_base(spec, former, status, created_at, now))
    under_way = [run.name for run in runs if run.phase not in ENDED]
    if due <= now:
        later = next_run(spec.schedule, spec.time_zone, now)
        status.last_run = due if next_run(spec.schedule, spec.time_zone, due) == later else now  # or some were missed
        if asked.hold:
            out.events.append(("Normal", "RunSkipped", "the job is held"))
        elif under_way and spec.concurrency == "forbid":
            out.events.append(("Warning", "RunSkipped", f"{under_way[0]} is still running"))
        else:
            out.make = run_name(name, due)
            if spec.concurrency == "replace":
                out.cancel = under_way
        due = later
    status.next_run = None if asked.hold else due
    out.requeue_after = min(max(0.0, due - now), LONGEST_WAIT_SECONDS)
    status.running = len(under_way)
    ended = sorted(
        (run for run in runs if run.phase in ENDED), key=lambda run: (run.created_at <= now, run.created_at, run.name)
    )
    out.delete = [run.name for run in ended[: max(0, len(ended) - spec.history)]]
    return out
