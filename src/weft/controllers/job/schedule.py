"""When a job with a schedule runs next, and what becomes of its runs. Pure.

A run's name follows from the minute it was due in, and the run is made in the commit that records that minute: so each is made
once. Of several runs that were missed only one is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.kinds.job import ENDED, JobSpec, JobStatus
from weft.objects.identity import cut_name
from weft.objects.schedule import next_run

LONGEST_WAIT_SECONDS = 600.0  # a clock may be set


class Run(msgspec.Struct, frozen=True):
    name: str
    phase: str
    created_at: float


class Outcome(msgspec.Struct):
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


def plan_runs(
    name: str, spec: JobSpec, former: JobStatus, runs: Sequence[Run], created_at: float, generation: int, now: float
) -> Outcome:
    """What is due at ``now`` (unix seconds)."""
    status = replace(former, phase="Scheduled", observed_generation=generation)
    out = Outcome(status)
    last = former.last_run if former.last_run is not None else created_at
    due = next_run(spec.schedule, spec.time_zone, last)
    under_way = [run.name for run in runs if run.phase not in ENDED]
    if due <= now:
        later = next_run(spec.schedule, spec.time_zone, now)
        status.last_run = due if next_run(spec.schedule, spec.time_zone, due) == later else now  # or some were missed
        if spec.hold:
            out.events.append(("Normal", "RunSkipped", "the job is held"))
        elif under_way and spec.concurrency == "forbid":
            out.events.append(("Warning", "RunSkipped", f"{under_way[0]} is still running"))
        else:
            out.make = run_name(name, due)
            if spec.concurrency == "replace":
                out.cancel = under_way
        due = later
    status.next_run = None if spec.hold else due
    out.requeue_after = min(max(0.0, due - now), LONGEST_WAIT_SECONDS)
    status.running = len(under_way)
    ended = sorted((run for run in runs if run.phase in ENDED), key=lambda run: (run.created_at, run.name))
    out.delete = [run.name for run in ended[: max(0, len(ended) - spec.history)]]
    return out
