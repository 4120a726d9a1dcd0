"""Job: containers that run to their end, one for each index of an array, retried if they fail. With a schedule it creates such
jobs instead of running tasks. Its tasks are containers that it owns; their results stay in its status."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.container import CONTAINER, ContainerSpec, check_container
from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.fields.gang import MOST as MOST_IN_GANG
from weft.kinds.parts.goal import reaches, read_phase
from weft.kinds.parts.workload import check_times, leave_out_starts
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Display,
    Goal,
    Index,
    Kind,
    Lifetime,
    Object,
    Operation,
    Reference,
    Stored,
    Verb,
    keys_of,
    uid_of_owner,
)
from weft.objects.envelope import take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.objects.identity import check_name, cut_name
from weft.objects.index_ranges import format_indexes, parse_indexes
from weft.objects.quantity import format_duration
from weft.objects.schedule import check_schedule
from weft.objects.schema import field

MOST_TASKS = 10_000
MOST_AT_ONCE = 1000
LARGEST_INDEX = 999_999
LONGEST_PAUSE_SECONDS = 600.0
TASK_DISK_BYTES = 256 << 20
# Of a task's container these are its job's own.
FIXED: dict[str, Any] = {
    "publish": [],
    "force_publish": False,
    "restart": "on-failure",
    "run": "run",
    "hold": False,
    "gang": None,
    "type": "long-lived",
    "on_node_loss": "wait",
    "health_check": None,
    "once": False,
    "preemptible": False,
}
# Waiting: it has begun, and none of its tasks runs now.
JobPhase = Literal["Pending", "Waiting", "Running", "Scheduled", "Succeeded", "Failed", "TimedOut", "Cancelled"]
ENDED = ("Succeeded", "Failed", "TimedOut", "Cancelled")
NAME_TAKEN = "nameTaken"  # reason of one that waits until a container with the name of one of its tasks is gone
_TASK = re.compile(r"-([0-9]{1,6})(?:-r([0-9]{1,6}))?$")
Condition = Literal["succeeded", "ended"]


class TaskSpec(ContainerSpec, msgspec.Struct, kw_only=True):
    """A container's, with less disk by default, because many of them share few nodes."""

    disk: Annotated[
        int,
        field(
            "Limit on what a task writes to its root file system; counts as disk of the node",
            change="never",
            quantity="bytes",
        ),
    ] = TASK_DISK_BYTES


class JobSpec(msgspec.Struct, kw_only=True):
    task: Annotated[TaskSpec, field("What each task runs: the spec of a container", change="never")]
    array: Annotated[str, field("Indexes, one for each task: 0-99 or 1,3,7-9", change="never")] = "0"
    parallelism: Annotated[int, field("Limit on tasks at the same time", change="live", ge=1, le=MOST_AT_ONCE)] = 100
    retries: Annotated[int, field("Retries of a failed task", change="live", ge=0, le=100)] = 0
    backoff: Annotated[
        float, field("Pause before the first retry; it doubles with each further one", quantity="duration")
    ] = 5.0
    task_timeout: Annotated[float | None, field("Timeout of one try", quantity="duration")] = None
    job_timeout: Annotated[float | None, field("Timeout of the whole job, from its start", quantity="duration")] = None
    gang: Annotated[bool, field("Place as many tasks together as parallelism says, or none", change="never")] = False
    preemptible: Annotated[bool, field("Tasks may be evicted for workloads that find no capacity", change="never")] = (
        False
    )
    after: Annotated[
        list[str],
        field("Jobs that must succeed first: NAME, or NAME:ended if they need only have ended", change="never"),
    ] = []
    schedule: Annotated[str, field("Schedule of runs: cron's five fields, or @daily")] = ""
    time_zone: Annotated[str, field("Time zone of the schedule, like Europe/Berlin")] = "UTC"
    concurrency: Annotated[
        Literal["allow", "forbid", "replace"],
        field("If a run is due while another goes on: run both, skip the new one, or cancel the old one"),
    ] = "forbid"
    history: Annotated[int, field("Ended runs of a schedule to keep", ge=0, le=100)] = 5
    keep_tasks: Annotated[int, field("How many of the newest ended tasks keep their logs", ge=0, le=1000)] = 100


class JobActions(msgspec.Struct, kw_only=True):
    hold: Annotated[bool, field("Start no new tasks")] = False
    cancel: Annotated[bool, field("End the job")] = False
    rounds: Annotated[int, field("Counter: failed tasks are retried when it grows", ge=0)] = 0


class JobStatus(msgspec.Struct, kw_only=True):
    """Counts are of tasks; indexes stand as in ``array``."""

    phase: JobPhase = "Pending"
    tasks: int = 0
    pending: int = 0  # neither running nor ended
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0  # tries after failures
    lost: int = 0  # tries after failures that weren't the task's fault
    succeeded_indexes: str = ""
    failed_indexes: str = ""
    exit_codes: dict[str, str] = {}  # indexes of failed tasks by exit code of the last try; none: unknown
    tries: dict[str, str] = {}  # indexes by number of tries
    excused: dict[str, str] = {}  # indexes by number of tries that don't count as failures
    retry_at: dict[str, int] = {}  # time of the next try, by index
    ending: Literal["", "Failed", "TimedOut", "Cancelled"] = ""  # the phase once no task is left
    round: int = 0
    wave: int = 0
    reason: str = ""
    message: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    last_run: float | None = None  # when a schedule's newest run was due
    next_run: float | None = None
    schedule: str = ""  # schedule and time zone that were in force when runs were last planned
    schedule_since: float | None = None  # since when: what would have been due before is no missed run
    observed_generation: int = 0


class Dependency(msgspec.Struct, frozen=True):
    name: str
    condition: Condition


def read_dependency(text_: str, field_: str = "spec.after") -> Dependency:
    """``build`` or ``build:ended``. Raises InvalidInput."""
    name, _, condition = text_.partition(":")
    check_name(name, field_)
    if condition not in ("", "succeeded", "ended"):
        raise InvalidInput(
            f"{field_}: {condition[:40]!r} is not a job to wait for", field=field_, hint="write NAME or NAME:ended"
        )
    return Dependency(name, "ended" if condition == "ended" else "succeeded")


def list_array(spec: JobSpec) -> list[int]:
    return parse_indexes(spec.array, "spec.array", most=MOST_TASKS)


def task_name(job: str, index: int, attempt: int) -> str:
    """The name of the container that is the ``attempt``-th try of a task: ``thumbs-3``, then ``thumbs-3-r2``."""
    suffix = f"-{index}" + (f"-r{attempt}" if attempt > 1 else "")
    return cut_name(job, suffix)


def read_task_name(job: str, name: str) -> tuple[int, int] | None:
    """Index and try of a task's container; None if it isn't named as one of the job's."""
    match = _TASK.search(name)
    if match is None:
        return None
    index, attempt = int(match[1]), int(match[2] or 1)
    return (index, attempt) if name == task_name(job, index, attempt) else None


def check_job(spec: JobSpec) -> None:
    """Check what types can't say; what has several spellings gets its one. Raises InvalidInput."""
    _check_task(check_container, spec)
    for name, value in FIXED.items():
        if getattr(spec.task, name) not in (value, "never" if name == "restart" else value):
            raise InvalidInput(
                f"spec.task.{name}: job tasks don't support {name}", field=f"spec.task.{name}", hint="leave it out"
            )
    if any(":" in network for network in spec.task.networks) and spec.array != "0":
        raise InvalidInput(
            "spec.task.networks: tasks can't share one address",
            field="spec.task.networks",
            hint="name networks without addresses",
        )
    indexes = list_array(spec)
    if indexes[-1] > LARGEST_INDEX:
        raise InvalidInput("spec.array: an index is too large", field="spec.array", hint=f"at most {LARGEST_INDEX}")
    spec.array = format_indexes(indexes)
    for name in ("task_timeout", "job_timeout"):
        value = getattr(spec, name)
        if value is not None and value < 1:
            raise InvalidInput(f"spec.{name}: shorter than 1 s", field=f"spec.{name}", hint="give at least 1s")
    if spec.task_timeout is not None and spec.job_timeout is not None and spec.task_timeout > spec.job_timeout:
        task, whole = format_duration(spec.task_timeout), format_duration(spec.job_timeout)
        raise InvalidInput(
            f"spec.task_timeout: {task} is longer than spec.job_timeout, {whole}, which ends the job before",
            field="spec.task_timeout",
            hint=f"give at most {whole}, or raise spec.job_timeout",
        )
    if spec.gang and min(spec.parallelism, len(indexes)) > MOST_IN_GANG:
        raise InvalidInput(
            f"spec.parallelism: at most {MOST_IN_GANG} tasks can be placed together",
            field="spec.parallelism",
            hint=f"--parallelism {MOST_IN_GANG}, or no gang",
        )
    named = [read_dependency(one, f"spec.after[{place}]").name for place, one in enumerate(spec.after)]
    if len(set(named)) != len(named) or len(named) > 32:
        raise InvalidInput("spec.after: at most 32 jobs, each once", field="spec.after")
    if spec.schedule:
        check_schedule(spec.schedule, spec.time_zone)
        if spec.after:
            raise InvalidInput(
                "spec.after: a job with a schedule can't wait for other jobs",
                field="spec.after",
                hint="set either schedule or after, not both",
            )


def _refuse_endless(_: JobSpec, named: Mapping[str, JobSpec]) -> None:
    """A job with a schedule never ends; its runs do. Raises InvalidInput."""
    for name, other in named.items():
        if other.schedule:
            raise InvalidInput(
                f"spec.after: job/{name} has a schedule, so it never ends",
                field="spec.after",
                hint=f"name one of its runs: weft job list -l job={name}",
            )


def _check_task(check: Callable[..., None], spec: JobSpec, *more: Any) -> None:
    """``check`` of its task. Raises InvalidInput that names the job's field."""
    try:
        check(spec.task, *more)
    except InvalidInput as problem:
        inner = problem.field or "spec"
        at = inner.replace("spec", "spec.task", 1)
        raise InvalidInput(
            problem.message.replace(inner, at, 1), reason=problem.token, field=at, hint=problem.hint
        ) from None


def check_job_change(old: JobSpec, new: JobSpec) -> None:
    if bool(old.schedule) != bool(new.schedule):
        raise InvalidInput(
            "spec.schedule: a job can't gain or lose its schedule", field="spec.schedule", hint="create a new job"
        )


def _set(verb: str, phases: Sequence[str], **fields: Any) -> Callable[[Object, Any], dict[str, Any]]:
    """The act of a verb that makes sense while the job's phase is none of ``phases``."""

    def act(obj: Object, _: Any) -> dict[str, Any]:
        phase = dig(obj, "status.phase", "Pending")
        if phase in phases:
            raise IllegalTransition(f"job/{obj['name']} is {phase}: it can't {verb}", details={"phase": phase})
        return fields

    return act


def _cancel(obj: Object, given: Any) -> dict[str, Any]:
    if dig(obj, "actions.cancel"):
        return {}
    return _set("cancel", (*ENDED, "Scheduled"), cancel=True)(obj, given)


def _retry(obj: Object, _: Any) -> dict[str, Any]:
    """Retries the tasks that failed, and those that a cancel or its timeout kept from running."""
    phase = dig(obj, "status.phase", "Pending")
    if phase not in ("Failed", "TimedOut", "Cancelled"):
        raise IllegalTransition(
            f"job/{obj['name']} is {phase}: there is nothing to retry",
            hint="failed tasks can be retried once the job has ended",
            details={"phase": phase},
        )
    rounds = dig(obj, "actions.rounds", 0)
    return {} if rounds > dig(obj, "status.round", 0) else {"rounds": rounds + 1, "cancel": False}


def first_exit_code(obj: Object) -> int:
    """The exit code for the shell of an ended job: 0, or the exit code of the failed task with the lowest index; 1 if it has
    none."""
    if dig(obj, "status.phase") == "Succeeded":
        return 0
    lowest, found = LARGEST_INDEX + 1, 1
    for code, indexes in (dig(obj, "status.exit_codes") or {}).items():
        first = int(indexes.partition(",")[0].partition("-")[0])
        if first < lowest:
            lowest, found = first, int(code) if code.isdigit() else 1
    return found or 1


_SUCCEEDS = reaches("Succeeded", "Scheduled")


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """The result of an ended job, unless a retry of its failed tasks was requested."""
    phase = read_phase(obj)
    if goal.ends_refused and dig(obj, "status.reason") == NAME_TAKEN:
        hint = f"It goes on when that is resolved.  weft wait {what} | weft delete {what}"
        return IllegalTransition(f"{what} waits: {dig(obj, 'status.message', '')}", reason=NAME_TAKEN, hint=hint)
    if not goal.ends_failed or phase not in ENDED or dig(obj, "actions.rounds", 0) > dig(obj, "status.round", 0):
        return None
    failed, total = dig(obj, "status.failed", 0), dig(obj, "status.tasks", 0)
    message = dig(obj, "status.message", "")
    count = f", {failed} of {total} tasks failed" if failed else ""
    first = str(dig(obj, "status.failed_indexes", "")).partition(",")[0].partition("-")[0]
    logs = f"weft job logs {obj['name']} --task {first}   " if first else ""
    return DriverFailed(
        f"{what} is {phase}{count}" + (f": {message}" if message else ""),
        reason=dig(obj, "status.reason", "") or None,
        hint=f"{logs}weft job retry {obj['name']}",
    )


def _tasks(obj: Object) -> str:
    return "–" if dig(obj, "spec.schedule") else f"{dig(obj, 'status.succeeded', 0)}/{dig(obj, 'status.tasks', 0)}"


def _of_task(one: Reference) -> Reference:
    agree, suffices, asks = one.agree, one.suffices, one.asks
    return Reference(
        one.kind,
        one.field.replace("spec.", "spec.task.", 1),
        partial(_names, one),
        blocks=False,
        awaited=one.awaited,
        else_=one.else_,
        groups=one.groups,
        bars=None if one.bars is None else partial(_check_task, one.bars),
        agree=None if agree is None else partial(_check_task, agree),
        suffices=None if suffices is None else partial(_check_task, suffices),
        asks=None if asks is None else lambda spec: asks(spec.task),
    )


def _names(one: Reference, spec: JobSpec) -> Sequence[str]:
    return one.names(spec.task)


JOBS_BY_SCHEDULE = Index("runs by the job with the schedule")
JOBS_BY_AFTER = Index("jobs by those that they follow")


def _jobs_before(item: Stored) -> list[str]:
    return keys_of("job", item, (read_dependency(one).name for one in item.spec(JobSpec).after))


def _name_timeouts(stored: dict[str, Any]) -> dict[str, Any]:
    """Schema 2: a deadline is a lease's time of day; a job's longest run is ``job_timeout``, and it ends as TimedOut."""
    spec, status = dict(stored.get("spec") or {}), dict(stored.get("status") or {})
    if "deadline" in spec:
        spec["job_timeout"] = spec.pop("deadline")
    for name in ("phase", "ending"):
        if status.get(name) == "DeadlineExceeded":
            status[name] = "TimedOut"
    if status.get("reason") == "deadlineExceeded":
        status["reason"] = "jobTimedOut"
    return {**stored, "spec": spec, "status": status}


def _leave_out_starts(stored: dict[str, Any]) -> dict[str, Any]:
    """The upgrade of a job whose tasks' container had its counters of starts in its spec."""
    spec = dict(stored["spec"])
    return {**stored, "spec": {**spec, "task": leave_out_starts(spec.get("task") or {})}}


JOB = Kind(
    name="job",
    plural="jobs",
    title="job",
    summary="Containers that run to their end, once, in an array, or by a schedule",
    spec=JobSpec,
    actions=JobActions,
    status=JobStatus,
    schema=4,
    upgrades=(_name_timeouts, take_from_spec(actions=JobActions), _leave_out_starts),
    indexes={JOBS_BY_SCHEDULE: uid_of_owner, JOBS_BY_AFTER: _jobs_before},
    references=(
        *(_of_task(one) for one in CONTAINER.references),
        Reference(
            "job",
            "spec.after",
            lambda s: [read_dependency(one).name for one in s.after],
            blocks=False,
            agree=_refuse_endless,
            agrees_once=True,
        ),
    ),
    verbs=(
        Verb("cancel", "End the job's tasks and start no more", act=_cancel, needs="operate"),
        Verb("retry", "Retry tasks that failed or were cancelled", act=_retry, needs="operate"),
        Verb("hold", "Start no new tasks; running ones go on", act=_set("hold", ENDED, hold=True), needs="operate"),
        Verb("release", "Let a held job go on", act=_set("release", ENDED, hold=False), needs="operate"),
    ),
    template=("container", "spec.task"),
    in_backups="unended",
    access=Access(readers="project", status_writer="jobs", mark_writers={"cancel": (":cancel", ":retry", "jobs")}),
    admission=Admission(
        check=check_job,
        check_times=lambda spec, now: check_times(spec.task, now),
        check_change=check_job_change,
    ),
    display=Display(
        topic="Workloads",
        commands=("run",),
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("DONE", _tasks, align="right"),
            Column("RUNNING", text("status.running", "0"), align="right"),
            Column("FAILED", text("status.failed", "0"), align="right"),
            Column("RETRIED", text("status.retried", "0"), align="right", wide=True),
            Column("LOST", text("status.lost", "0"), align="right", wide=True),
            Column("SCHEDULE", text("spec.schedule", ""), flexible=True),
            Column("IMAGE", text("spec.task.image"), flexible=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={
            "run": _SUCCEEDS,
            "wait": _SUCCEEDS,
            "cancel": Goal(
                lambda obj: read_phase(obj) in ENDED,
                "over",
                ends_failed=False,
                ends_refused=False,
                asked="phase=Cancelled",
            ),
        },
        find_failure=_find_failure,
        operation=Operation(act="run", cancel="cancel", ended=(*ENDED, "Scheduled"), started="status.started_at"),
        finalizers=("job",),
    ),
)
