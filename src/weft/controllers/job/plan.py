"""Plan a job's next step with its tasks. Pure: facts in, what to make, end and record out.

A try is counted in the job's status in the same commit that makes its container under a name that follows from the count: so no
try begins twice or gets lost, whichever process dies when. The end of a try is recorded before the next one begins, and
before its container goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.kinds.job import (
    ENDED,
    LONGEST_PAUSE_SECONDS,
    MOST_AT_ONCE,
    NAME_TAKEN,
    JobActions,
    JobSpec,
    JobStatus,
    list_array,
)
from weft.kinds.quota import REASON
from weft.objects.index_ranges import format_indexes, read_indexes
from weft.objects.quantity import format_duration

# Ends that the task didn't cause: its node restarted, or its shim was killed. Trying again counts as no failure.
LOST = ("nodeRestarted", "shimLost", "lost", "startInterrupted")
UNSEEN = "none"
QUOTA_PAUSE_SECONDS = 2.0  # what is deleted or ends elsewhere in the project doesn't wake a job
_PASSING = ("starting", "stopping", "restarting", "preempted")  # reasons that a container gives for a moment


class TaskFacts(msgspec.Struct, frozen=True):
    """One try's container."""

    index: int
    attempt: int
    state: Literal["waiting", "running", "ended"]
    since: float = 0.0  # it runs, or has ended: unix seconds, by the server's clock
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    placed: bool = False  # so its node must end it
    stopping: bool = False  # its spec desires a stop
    deleting: bool = False


class Attempt(msgspec.Struct, frozen=True):
    """A try to make."""

    index: int
    attempt: int
    gang: str | None = None  # as in a workload's spec


class TaskLedger:
    """The tasks of a job's status as sets and maps: read once, then kept up to date. ``open`` are tasks whose last try has no
    recorded end."""

    def __init__(self, spec: JobSpec, status: JobStatus) -> None:
        self.order = list_array(spec)
        self.tries = {index: int(n) for n, text in status.tries.items() for index in read_indexes(text)}
        self.excused = {index: int(n) for n, text in status.excused.items() for index in read_indexes(text)}
        self.succeeded = set(read_indexes(status.succeeded_indexes))
        self.failed = {i: code for code, text in status.exit_codes.items() for i in read_indexes(text)}
        self.retry_at = {int(index): at for index, at in status.retry_at.items()}
        self.open = {i for i in self.tries if not self.is_settled(i)}
        self.begun = sum(1 for i in self.order if i in self.tries)  # tasks begin in their order

    def is_settled(self, index: int) -> bool:
        return index in self.succeeded or index in self.failed or index in self.retry_at

    def failures(self, index: int) -> int:
        return self.tries[index] - self.excused.get(index, 0)

    def write(self, status: JobStatus) -> None:
        """Write all of it into ``status``."""
        status.tasks = len(self.order)
        status.succeeded, status.failed = len(self.succeeded), len(self.failed)
        status.succeeded_indexes, status.failed_indexes = format_indexes(self.succeeded), format_indexes(self.failed)
        status.exit_codes = _group(self.failed.items())
        status.tries = _group((index, str(n)) for index, n in self.tries.items())
        status.excused = _group((index, str(n)) for index, n in self.excused.items() if n)
        status.retry_at = {str(index): at for index, at in sorted(self.retry_at.items())}


class JobOutcome(msgspec.Struct):
    status: JobStatus
    make: list[Attempt] = []
    stop: list[TaskFacts] = []
    delete: list[TaskFacts] = []
    requeue_after: float | None = None  # seconds after which to plan again even if nothing changes
    events: list[tuple[Literal["Normal", "Warning"], str, str]] = []  # kind, reason and sentence


class JobFacts(msgspec.Struct, frozen=True):
    spec: JobSpec
    actions: JobActions
    status: JobStatus
    seen: Sequence[TaskFacts]
    generation: int
    now: float
    gang: str = ""  # a name that no other job's gangs have
    waits_for: str = ""  # a sentence on jobs that must end first
    hopeless: str = ""  # why they will never end as they must
    fitting: int | None = None  # how many more tasks its project's quota has amounts left for; None: any number
    excess: str = ""  # a sentence on what one more would exceed


def plan_tasks(facts: JobFacts, book: TaskLedger, most: int) -> JobOutcome:
    """Plan what to do now, ``most`` things in parallel. ``book`` is brought up to the outcome's status."""
    now = facts.now
    status = replace(facts.status, observed_generation=facts.generation)
    out = JobOutcome(status)
    if status.phase in ENDED:
        if facts.actions.rounds <= status.round:
            out.delete = _trim(facts, book)[:most]
            return out
        _begin_round(out, book, facts)
    _note_ends(out, book, facts)
    _find_end(out, facts)
    live = [one for one in facts.seen if one.state != "ended"]
    if status.ending:
        _end_all(out, live, now)
    else:
        _end_late(out, live, facts)
        _begin(out, book, facts, live, most)
        if len(book.succeeded) + len(book.failed) == len(book.order):
            _end(out, "Failed" if book.failed else "Succeeded", now)
    left = most - len(out.make)
    out.stop, out.delete = out.stop[:left], (out.delete + _trim(facts, book))[: max(0, left - len(out.stop))]
    _count(out, book, facts, live)
    return out


def _begin_round(out: JobOutcome, book: TaskLedger, facts: JobFacts) -> None:
    """Retry all tasks that have not succeeded."""
    status = out.status
    for index in list(book.tries):
        if index not in book.succeeded:
            book.excused[index] = book.tries[index]
            book.retry_at[index] = int(facts.now)
    book.failed.clear()
    book.open.clear()
    status.phase, status.ending, status.round = "Running", "", facts.actions.rounds
    status.started_at, status.ended_at, status.reason, status.message = facts.now, None, "", ""
    out.events.append(("Normal", "Retried", "all tasks that have not succeeded are tried again"))


def _note_ends(out: JobOutcome, book: TaskLedger, facts: JobFacts) -> None:
    """Record how tries ended; a container that is gone without a recorded end was deleted by somebody."""
    if not book.open:
        return
    there = set()
    for one in facts.seen:
        if one.index not in book.open or one.attempt != book.tries[one.index]:
            continue
        there.add(one.index)
        if one.state == "ended":
            _note_end(out, book, facts, one)
    for index in [i for i in book.open if i not in there]:
        _note_end(
            out,
            book,
            facts,
            TaskFacts(index, book.tries[index], "ended", reason="deleted", message="its container was deleted"),
        )


def _note_end(out: JobOutcome, book: TaskLedger, facts: JobFacts, one: TaskFacts) -> None:
    spec, status, index = facts.spec, out.status, one.index
    if one.exit_code == 0 and not one.stopping:
        book.open.discard(index)
        book.succeeded.add(index)
        return
    if status.ending or facts.actions.cancel:
        return  # the job's end stopped it: it hasn't failed
    book.open.discard(index)
    if one.reason in LOST:
        book.excused[index] = excused = book.excused.get(index, 0) + 1
        status.lost += 1
        book.retry_at[index] = _pause(spec, facts.now, min(excused, book.tries[index]))
        out.events.append(("Warning", "TaskLost", f"task {index}: {one.message or one.reason}; weft tries again"))
        return
    failures, why = book.failures(index), one.message or one.reason or "its container failed"
    if one.stopping:
        why = (
            "it was stopped"
            if spec.task_timeout is None
            else f"it was stopped, by somebody or after its task_timeout of {format_duration(spec.task_timeout)}"
        )
    of = f"try {failures} of {spec.retries + 1}"
    status.reason, status.message = "taskFailed", f"task {index}: {why} ({of})"
    if failures > spec.retries:
        book.failed[index] = UNSEEN if one.exit_code is None else str(one.exit_code)
    else:
        status.retried += 1
        book.retry_at[index] = _pause(spec, facts.now, failures)
    out.events.append(("Warning", "TaskFailed", status.message))


def _pause(spec: JobSpec, now: float, failures: int) -> int:
    """When to try again, in unix seconds: twice as long each time."""
    return int(now + min(spec.backoff * 2.0 ** min(failures - 1, 30), LONGEST_PAUSE_SECONDS) + 0.999)


def _find_end(out: JobOutcome, facts: JobFacts) -> None:
    """Set why the whole job must end, if it must."""
    status, spec = out.status, facts.spec
    if status.ending:
        return
    over = None if spec.job_timeout is None or status.started_at is None else status.started_at + spec.job_timeout
    if facts.actions.cancel:
        status.ending, status.reason, status.message = "Cancelled", "cancelled", ""
    elif over is not None and facts.now >= over:
        status.ending, status.reason = "TimedOut", "jobTimedOut"
        status.message = (
            f"the job was not finished {format_duration(spec.job_timeout or 0.0)} after its start (spec.job_timeout)"
        )
    elif facts.hopeless:
        status.ending, status.reason, status.message = "Failed", "dependencyFailed", facts.hopeless
    elif over is not None:
        _requeue(out, over - facts.now)


def _end_all(out: JobOutcome, live: Sequence[TaskFacts], now: float) -> None:
    for one in live:
        if one.deleting or one.stopping:
            continue
        (out.stop if one.placed else out.delete).append(one)
    if not live and out.status.ending:
        _end(out, out.status.ending, now)


def _end(out: JobOutcome, phase: str, now: float) -> None:
    status = out.status
    status.phase, status.ended_at = phase, now  # type: ignore[assignment]
    if phase == "Succeeded":
        status.reason = status.message = ""
    kind: Literal["Normal", "Warning"] = "Warning" if phase in ("Failed", "TimedOut") else "Normal"
    out.events.append((kind, phase, f"{phase}: {status.message}" if status.message else phase))


def _end_late(out: JobOutcome, live: Sequence[TaskFacts], facts: JobFacts) -> None:
    """Stop tasks that have reached their timeout."""
    if facts.spec.task_timeout is None:
        return
    for one in live:
        if one.state == "running" and not one.stopping:
            left = one.since + facts.spec.task_timeout - facts.now
            if left <= 0:
                out.stop.append(one)
            else:
                _requeue(out, left)


def _begin(out: JobOutcome, book: TaskLedger, facts: JobFacts, live: Sequence[TaskFacts], most: int) -> None:
    """Make tries, due retries first: as many as may run at once."""
    spec, status, now = facts.spec, out.status, facts.now
    if facts.waits_for or facts.actions.hold:
        if not book.tries:
            status.phase = "Pending"
        status.reason, status.message = ("held", "") if facts.actions.hold else ("waiting", facts.waits_for)
        return
    if status.reason in ("held", "waiting", REASON, NAME_TAKEN):
        status.reason = status.message = ""
    if status.started_at is None:
        status.started_at = now
        if spec.job_timeout is not None:
            _requeue(out, spec.job_timeout)
    status.phase = "Running"
    free = min(spec.parallelism - len(live), most)
    if spec.gang and live:
        free = 0
    free = _keep_within_quota(out, book, facts, free)
    for index in [index for index, at in book.retry_at.items() if at > now + LONGEST_PAUSE_SECONDS + 1]:
        book.retry_at[index] = _pause(spec, now, book.tries.get(index, 1))  # the clock was set back
    due = sorted((at, index) for index, at in book.retry_at.items() if at <= now)
    chosen = [index for _, index in due[: max(0, free)]]
    waiting = len(book.retry_at) - len(chosen)
    while len(chosen) < free and book.begun < len(book.order) and waiting < MOST_AT_ONCE:
        chosen.append(book.order[book.begun])
        book.begun += 1
    if len(due) == len([i for i in chosen if i in book.retry_at]) and book.retry_at:
        later = [at for at in book.retry_at.values() if at > now]
        if later:
            _requeue(out, min(later) - now)
    gang = None
    if spec.gang and len(chosen) > 1:
        status.wave += 1
        gang = f"{facts.gang}-{status.wave}:{len(chosen)}"
    for index in chosen:
        book.retry_at.pop(index, None)
        book.tries[index] = attempt = book.tries.get(index, 0) + 1
        book.open.add(index)
        out.make.append(Attempt(index, attempt, gang))


def _keep_within_quota(out: JobOutcome, book: TaskLedger, facts: JobFacts, free: int) -> int:
    """How many of ``free`` tasks the quota leaves; if it keeps some back, the status says so. A gang is whole or waits."""
    now = facts.now
    due = sum(at <= now for at in book.retry_at.values()) + len(book.order) - book.begun
    wanted = min(free, due)
    if facts.fitting is None or wanted <= facts.fitting:
        return free
    out.status.reason, out.status.message = REASON, facts.excess
    _requeue(out, QUOTA_PAUSE_SECONDS)
    return 0 if facts.spec.gang else facts.fitting


def _requeue(out: JobOutcome, seconds: float) -> None:
    out.requeue_after = min(seconds, out.requeue_after) if out.requeue_after is not None else seconds


def _count(out: JobOutcome, book: TaskLedger, facts: JobFacts, live: Sequence[TaskFacts]) -> None:
    status = out.status
    book.write(status)
    status.running = sum(one.state == "running" for one in live)
    status.pending = status.tasks - status.running - status.succeeded - status.failed
    if status.reason in ("", "tasksWait"):
        waiting = (one for one in live if one.state == "waiting" and one.reason not in ("", *_PASSING))
        held = next(waiting, None)
        status.reason = "tasksWait" if held is not None else ""
        status.message = f"task {held.index}: {held.reason}: {held.message}" if held is not None else ""
    if status.phase == "Running" and not status.running and not status.ending:
        status.phase = "Waiting"


def _trim(facts: JobFacts, book: TaskLedger) -> list[TaskFacts]:
    """Ended tries whose containers go: all but the newest; failed ones go last."""
    ended = [
        one
        for one in facts.seen
        if one.state == "ended"
        and not one.deleting
        and (one.index not in book.open or one.attempt != book.tries.get(one.index) or facts.status.phase in ENDED)
    ]
    excess = len(ended) - facts.spec.keep_tasks
    if excess <= 0:
        return []
    ended.sort(key=lambda one: (one.index in book.failed, one.since, one.index, one.attempt))
    return ended[:excess]


def _group(pairs: Iterable[tuple[int, str]]) -> dict[str, str]:
    """Indexes by their word."""
    found: dict[str, list[int]] = {}
    for index, word in pairs:
        found.setdefault(word, []).append(index)
    return {word: format_indexes(found[word]) for word in sorted(found)}
