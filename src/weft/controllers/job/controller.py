"""Runs jobs: makes their tasks' containers, records how they ended, retries, ends jobs; makes the runs of scheduled jobs.

Reads jobs and their containers; writes job.status, makes containers and jobs, stops tasks, and deletes what isn't kept. Woken by
either, and by time. ``plan.py`` decides on tasks, ``schedule.py`` on runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.job.plan import Attempt, JobFacts, JobOutcome, TaskFacts, TaskLedger, plan_tasks
from weft.controllers.job.schedule import Run, plan_runs
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.quotas import ProjectQuota, read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.container import CONTAINER, ContainerSpec
from weft.kinds.job import (
    ENDED,
    JOB,
    JOBS_BY_AFTER,
    JOBS_BY_SCHEDULE,
    NAME_TAKEN,
    JobActions,
    JobSpec,
    JobStatus,
    read_dependency,
    read_task_name,
    task_name,
)
from weft.kinds.parts.workload import WORKLOADS_BY_OWNER, WorkloadStatus
from weft.kinds.quota import quota_key
from weft.objects.envelope import Envelope
from weft.objects.identity import object_key, short_id

SOURCE = "jobs"
FINALIZER = "job"
MOST_AT_ONCE = 80  # containers in one commit, beside the job
MOST_BYTES = 700_000
LARGE = 200  # tasks: of more, not every change is written at once
WRITE_EVERY_SECONDS = 0.5
_ENVELOPE_BYTES = 1500


class Jobs:
    name = "jobs"
    kinds = ("job", "container")

    def __init__(self) -> None:
        self._books: dict[
            str, tuple[str, bytes, TaskLedger]
        ] = {}  # by key: uid, the status that the ledger is of, ledger
        self._written: dict[str, float] = {}  # large jobs: when last

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "container":
            job = change.item.envelope.owner_key("job")
            return (job,) if job is not None and has_changed(change, _job_relevant_state) else ()
        keys = [change.key]
        if change.new is None:
            self._books.pop(change.key, None)
            self._written.pop(change.key, None)
        if has_changed(change, lambda item: (item.uid, item.status(JobStatus).phase)):
            keys += [item.key for item in view.find(JOBS_BY_AFTER, change.key)]
            if (schedule := change.item.envelope.owner_key("job")) is not None:
                keys.append(schedule)
        return keys

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan, quotas, taken = Plan(), dict[str | None, ProjectQuota | None](), set[str]()
        for item in [item for key in keys if (item := view.get(key)) is not None]:
            project = item.envelope.project
            if item.deleting:
                commit = plan_removal(view, item, now)
            elif item.spec(JobSpec).schedule:
                commit, after = plan_schedule(view, item, now)
                plan.later |= {item.key: after} if after is not None else {}
            elif quota_key(project) in taken:  # another job's tasks count by then
                plan.later[item.key] = 0.0
                continue
            else:
                if project not in quotas:
                    quotas[project] = read_quota(view, project)
                commit, after = self._plan_job(view, item, quotas[project], now)
                plan.later |= {item.key: after} if after is not None else {}
            plan.commits += [commit] if commit is not None else []
            taken |= {write.key for write in commit.writes} if commit is not None else set()
        return plan

    def _plan_job(
        self, view: View, item: Item, quota: ProjectQuota | None, now: float
    ) -> tuple[Commit | None, float | None]:
        spec, status = item.spec(JobSpec), item.status(JobStatus)
        wait = self._written.get(item.key, 0.0) + WRITE_EVERY_SECONDS - now
        if status.tasks > LARGE and 0 < wait <= WRITE_EVERY_SECONDS and status.phase not in ENDED:
            return None, wait
        raw = bytes(item.envelope.status)
        uid, after, book = self._books.get(item.key, ("", b"", None))
        if book is None or (uid, after) != (item.uid, raw):
            book = TaskLedger(spec, status)
        seen = [one for one in (read_seen(item, c) for c in view.find(WORKLOADS_BY_OWNER, item.uid)) if one is not None]
        waits_for, hopeless = read_dependencies(view, item)
        fitting, excess = None, ""
        if quota is not None:
            fitting, excess = quota.count_fitting(CONTAINER.name, spec.task, item.envelope.creator, MOST_AT_ONCE)
        outcome = plan_tasks(
            JobFacts(
                spec=spec,
                actions=item.actions(JobActions),
                status=status,
                seen=seen,
                generation=item.envelope.generation,
                now=now,
                gang=f"job-{short_id(item.uid)}",
                waits_for=waits_for,
                hopeless=hopeless,
                fitting=fitting,
                excess=excess,
            ),
            book,
            max(1, min(MOST_AT_ONCE, MOST_BYTES // (_ENVELOPE_BYTES + len(item.envelope.spec)))),
        )
        taken = [one for one in outcome.make if view.get(_key(item, one.index, one.attempt)) is not None]
        if taken:
            self._books.pop(item.key, None)
            return plan_blocked(item, task_name(item.envelope.name, taken[0].index, taken[0].attempt)), 10.0
        commit, written = plan_writes(view, item, outcome, now, quota)
        self._books[item.key] = (item.uid, written, book)
        if commit is not None and outcome.status.tasks > LARGE:
            self._written[item.key] = now
        return commit, outcome.requeue_after


def read_seen(job: Item, container: Item) -> TaskFacts | None:
    """One of the job's containers as its plan sees it; None for one that the job didn't make."""
    named = read_task_name(job.envelope.name, container.envelope.name)
    if named is None:
        return None
    status, spec = container.status(WorkloadStatus), container.spec(ContainerSpec)
    ready, placed = container.envelope.condition("Ready"), container.envelope.condition("Placed")
    state = "ended" if status.ended else "running" if status.phase in ("Running", "Boot", "Unknown") else "waiting"
    return TaskFacts(
        index=named[0],
        attempt=named[1],
        state=state,  # type: ignore[arg-type]
        since=ready.since if ready is not None else container.envelope.created_at,
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        placed=status.node is not None or (placed is not None and placed.status == "True"),
        stopping=spec.run == "stop",
        deleting=container.deleting,
    )


def read_dependencies(view: View, job: Item) -> tuple[str, str]:
    """The dependencies that the job waits for, and why that will never come: a sentence each, or empty."""
    waits = []
    for text in job.spec(JobSpec).after:
        needed = read_dependency(text)
        other = view.get(object_key("job", job.envelope.project, needed.name))
        phase = other.status(JobStatus).phase if other is not None else None
        if phase is None and job.status(JobStatus).started_at is None:
            return "", f"job {needed.name}, which this job runs after, was deleted"
        if other is not None and other.spec(JobSpec).schedule:
            return "", f"job {needed.name}, which this job runs after, has a schedule and never ends"
        if phase in ENDED and phase != "Succeeded" and needed.condition == "succeeded":
            return "", f"job {needed.name}, which this job runs after, has ended as {phase}"
        if phase is not None and phase not in ENDED:
            waits.append(needed.name)
    return f"for {', '.join(waits)} to end" if waits else "", ""


def plan_writes(
    view: View, job: Item, outcome: JobOutcome, now: float, quota: ProjectQuota | None
) -> tuple[Commit | None, bytes]:
    """One commit for the whole ``outcome``, None if nothing changes; and the status as it will be stored. New tasks count in
    ``quota``, the project's."""
    draft, raw = Draft(job), job.envelope.status
    if outcome.status != job.status(JobStatus):
        raw = draft.change(job, status=outcome.status).status
    for one in outcome.make:
        draft.make(make_task(job, one, now))
    if outcome.make and quota is not None:
        quota.guard(draft)
    for seen in (*outcome.stop, *outcome.delete):
        item = view.get(_key(job, seen.index, seen.attempt))
        if item is None:
            continue
        if seen in outcome.stop:
            draft.change(item, spec=msgspec.structs.replace(item.spec(ContainerSpec), run="stop"))
        else:
            draft.change(item, deleting_since=now)
    events = [Event(kind, reason, text, job.envelope.ref, SOURCE) for kind, reason, text in outcome.events[:20]]
    return draft.commit(job.key, events), bytes(raw)


def make_task(job: Item, one: Attempt, now: float) -> Envelope:
    """The container that is one try of a task, as the API server would make it."""
    of, workload_spec = job.envelope, job.spec(JobSpec)
    env = {
        **workload_spec.task.env,
        "WEFT_JOB": of.name,
        "WEFT_TASK_INDEX": str(one.index),
        "WEFT_TASK_COUNT": str(job.status(JobStatus).tasks or _count(workload_spec)),
        "WEFT_TRY": str(one.attempt),
    }
    spec = msgspec.structs.replace(
        workload_spec.task, env=env, restart="never", once=True, preemptible=workload_spec.preemptible, gang=one.gang
    )
    labels = {**of.labels, "job": of.name, "task": str(one.index)}
    name = task_name(of.name, one.index, one.attempt)
    return CONTAINER.make(name, spec, now, project=of.project, labels=labels, owner=of)


def plan_blocked(job: Item, name: str) -> Commit | None:
    """Report that another container has a task's name."""
    status = msgspec.structs.replace(
        job.status(JobStatus),
        reason=NAME_TAKEN,
        message=f"container/{name} does not belong to this job; the job waits until that container is deleted",
        observed_generation=job.envelope.generation,
    )
    if status == job.status(JobStatus):
        return None
    draft = Draft()
    draft.change(job, status=status)
    return draft.commit(job.key, [Event("Warning", NAME_TAKEN, status.message, job.envelope.ref, SOURCE)])


def plan_removal(view: View, job: Item, now: float) -> Commit | None:
    """Delete what belongs to a deleted job, then release the job."""
    own = [*view.find(WORKLOADS_BY_OWNER, job.uid), *view.find(JOBS_BY_SCHEDULE, job.uid)]
    if not own:
        event = Event("Normal", "Deleted", f"{job.envelope.name} was deleted", job.envelope.ref, SOURCE)
        return Commit(job.key, [let_go(job, FINALIZER)], [unchanged(job)], [event])
    draft = Draft(job)
    for item in [item for item in own if not item.deleting][:MOST_AT_ONCE]:
        draft.change(item, deleting_since=now)
    return draft.commit(job.key)


def plan_schedule(view: View, job: Item, now: float) -> tuple[Commit | None, float | None]:
    """Make the run that is due, and delete old ones."""
    children = view.find(JOBS_BY_SCHEDULE, job.uid)
    runs = [Run(item.envelope.name, item.status(JobStatus).phase, item.envelope.created_at) for item in children]
    of = job.envelope
    parts = (job.spec(JobSpec), job.actions(JobActions), job.status(JobStatus))
    outcome = plan_runs(of.name, *parts, runs, of.created_at, of.generation, now)
    by_name = {item.envelope.name: item for item in children if not item.deleting}
    draft = Draft(job)
    if outcome.status != job.status(JobStatus):
        draft.change(job, status=outcome.status)
    if outcome.make is not None:
        child = make_run(job, outcome.make, now)
        if view.get(child.key) is None:
            draft.make(child)
    for name in (*outcome.cancel, *outcome.delete):
        item = by_name.get(name)
        if item is None:
            continue
        if name in outcome.cancel:
            draft.change(item, actions=msgspec.structs.replace(item.actions(JobActions), cancel=True))
        else:
            draft.change(item, deleting_since=now)
    events = [Event(kind, reason, text, job.envelope.ref, SOURCE) for kind, reason, text in outcome.events]
    return draft.commit(job.key, events), outcome.requeue_after


def make_run(job: Item, name: str, now: float) -> Envelope:
    """One run of a job with a schedule: the same without it."""
    of, workload_spec = job.envelope, job.spec(JobSpec)
    spec = msgspec.structs.replace(workload_spec, schedule="", time_zone="UTC")
    return JOB.make(name, spec, now, project=of.project, labels={**of.labels, "job": of.name}, owner=of)


def _key(job: Item, index: int, attempt: int) -> str:
    return object_key("container", job.envelope.project, task_name(job.envelope.name, index, attempt))


def _count(spec: JobSpec) -> int:
    return len(TaskLedger(spec, JobStatus()).order)


def _job_relevant_state(container: Item) -> object:
    """The parts of a container that concern its job."""
    status, of = container.status(WorkloadStatus), container.envelope
    placed = of.condition("Placed")
    return (
        of.uid,
        container.deleting,
        status.phase,
        status.ended,
        status.node,
        status.reason if status.phase not in ("Running", "Boot") else "",
        placed is not None and placed.status,
        bytes(of.spec),
    )
