"""BackupPolicy: what is backed up regularly, where to, how often, and how long each backup is kept."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, Literal

import msgspec

from weft.kinds.backup import MADE_OF, OF
from weft.kinds.fields.backup_verification import WITHIN_SECONDS, Check, Within, check_request, read_hours
from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.fields.subject import check_subject, list_named, split_subject
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Object, Reference, Stored
from weft.objects.errors import InvalidInput
from weft.objects.identity import object_key
from weft.objects.quantity import format_duration
from weft.objects.schedule import check_schedule, check_zone, next_run, read_zone
from weft.objects.schema import field

LEAST_SECONDS, MOST_SECONDS = 60.0, 366 * 86400.0
MOST_SUBJECTS = 100
MOST_PERIODS = 1000
USUAL_EVERY, USUAL_KEEP = 86400.0, 30 * 86400.0


class BackupPolicySpec(msgspec.Struct, kw_only=True):
    of: Annotated[list[str], field("What is backed up: vm/NAME, volume/NAME or container/NAME")] = []
    pool: Annotated[
        str, field("Storage pool of which all is backed up that this project has there, now or later", name=True)
    ] = ""
    to: Annotated[str, field("Backup repository", name=True)]
    whole_project: Annotated[
        bool, field("Back up all that has data in this project, now or later: VMs, volumes, containers' volumes")
    ] = False
    every: Annotated[
        float,
        field("Time between two backups, which is how much may be lost; 24h without a schedule", quantity="period"),
    ] = 0.0
    schedule: Annotated[
        str, field("When backups are made, instead of every: hourly, daily, weekly, or cron's five fields")
    ] = ""
    time_zone: Annotated[
        str, field("Time zone of the schedule, of days that are kept and of quiet hours, like Europe/Berlin")
    ] = "UTC"
    keep: Annotated[
        float,
        field(
            "How long each backup is kept; 30d if unset, unless days, weeks or months to keep are set",
            quantity="period",
        ),
    ] = 0.0
    keep_daily: Annotated[int, field("Days whose newest backup is kept", ge=0, le=MOST_PERIODS)] = 0
    keep_weekly: Annotated[int, field("Weeks whose newest backup is kept", ge=0, le=MOST_PERIODS)] = 0
    keep_monthly: Annotated[int, field("Months whose newest backup is kept", ge=0, le=MOST_PERIODS)] = 0
    verify: Annotated[
        Literal["", "read", "boot"],
        field(
            "read: each backup is read once it is made; boot: and the newest of each VM is booted in the quiet hours"
        ),
    ] = "boot"
    verify_check: Check = ""
    verify_within: Within = WITHIN_SECONDS
    verify_hours: Annotated[str, field("Quiet hours in which backups are booted, like 01:00-05:00")] = "01:00-05:00"
    paused: Annotated[bool, field("Make no backups for now")] = False


class PolicySubject(msgspec.Struct, kw_only=True, frozen=True):
    of: str
    # When its newest backup was begun, it was first seen, or the schedule came into force, in seconds since 1970.
    last_run: float
    schedule: str = ""  # in force then, with its time zone; "every": an interval; "": not known


class BackupPolicyStatus(msgspec.Struct, kw_only=True):
    subjects: list[PolicySubject] = []
    next_run: float | None = None  # when the next backup is due; None: it is paused, or has nothing to back up
    reason: str = ""
    message: str = ""


def check_policy(spec: BackupPolicySpec) -> None:
    """Raises InvalidInput."""
    if not (spec.of or spec.pool or spec.whole_project) or len(spec.of) > MOST_SUBJECTS:
        raise InvalidInput(
            f"spec.of: {len(spec.of)} entries",
            field="spec.of",
            hint=f"name 1 to {MOST_SUBJECTS}, like vm/web, or a pool, or set whole_project",
        )
    for place, one in enumerate(spec.of):
        check_subject(one, f"spec.of[{place}]", OF, MADE_OF)
    if len(set(spec.of)) < len(spec.of):
        raise InvalidInput("spec.of: names one thing twice", field="spec.of", hint="name each once")
    check_request(spec.verify_check, spec.verify_within, spec.verify == "boot", "spec.verify_")
    read_hours(spec.verify_hours, "spec.verify_hours")
    _check_times(spec)


def _check_times(spec: BackupPolicySpec) -> None:
    if spec.schedule:
        check_schedule(spec.schedule, spec.time_zone)
    else:
        check_zone(spec.time_zone)
    if spec.schedule and spec.every:
        raise InvalidInput(
            "spec.every: the policy has a schedule, too", field="spec.every", hint="give either; --every 0 is none"
        )
    if spec.every and not LEAST_SECONDS <= spec.every <= MOST_SECONDS:
        raise InvalidInput(
            f"spec.every: {format_duration(spec.every)} is out of range", field="spec.every", hint="give 1m to 366d"
        )
    # A schedule has no single interval, and is never due more often than each minute.
    least = LEAST_SECONDS if spec.schedule else spec.every or USUAL_EVERY
    if spec.keep and not least <= spec.keep <= 100 * MOST_SECONDS:
        raise InvalidInput(
            f"spec.keep: {format_duration(spec.keep)} is shorter than the time between two backups or too long",
            field="spec.keep",
            hint=f"give {format_duration(least)} to 36600d",
        )


def read_keep(spec: BackupPolicySpec) -> float:
    """How long every backup is kept, in seconds; 0: only the newest of days, weeks or months are."""
    return spec.keep or (0.0 if spec.keep_daily or spec.keep_weekly or spec.keep_monthly else USUAL_KEEP)


def name_schedule(spec: BackupPolicySpec) -> str:
    """Name for the schedule of its backups, to be compared with the former one."""
    return f"{spec.schedule} {spec.time_zone}" if spec.schedule else "every"


def find_due(spec: BackupPolicySpec, last: float, now: float) -> float:
    """When the backup after that of ``last`` is due; a clock that was set back doesn't put it off."""
    if spec.schedule:
        return next_run(spec.schedule, spec.time_zone, min(last, now))
    return min(last, now) + (spec.every or USUAL_EVERY)


def is_quiet(spec: BackupPolicySpec, now: float) -> bool:
    """Whether ``now`` is within its quiet hours."""
    begin, end = read_hours(spec.verify_hours)
    clock = datetime.fromtimestamp(now, read_zone(spec.time_zone))
    minute = clock.hour * 60 + clock.minute
    return begin <= minute < end if begin < end else minute >= begin or minute < end


POLICIES_BY_SUBJECT = Index("backup policies by key of what they name")
POLICIES_BY_REPOSITORY = Index("backup policies by name of their repository")


def _list_subjects(kind: str, spec: BackupPolicySpec) -> list[str]:
    return list_named(kind, spec.of)


def _what(obj: Object) -> str:
    pool = dig(obj, "spec.pool", "")
    whole = ["the whole project"] if dig(obj, "spec.whole_project", False) else []
    return ", ".join([*whole, *([f"all in pool/{pool}"] if pool else []), *(dig(obj, "spec.of") or [])]) or "–"


def _when(obj: Object) -> str:
    return str(dig(obj, "spec.schedule", "")) or format_duration(dig(obj, "spec.every", 0.0) or USUAL_EVERY)


def _keep(obj: Object) -> str:
    periods = [(dig(obj, f"spec.keep_{name}", 0), name) for name in ("daily", "weekly", "monthly")]
    counted = [f"{count} {name}" for count, name in periods if count]
    keep = dig(obj, "spec.keep", 0.0) or (0.0 if counted else USUAL_KEEP)
    return ", ".join([*([format_duration(keep)] if keep else []), *counted])


def subjects_of(policy: Stored) -> list[str]:
    """The keys of what it is for."""
    pairs = map(split_subject, policy.spec(BackupPolicySpec).of)
    return [object_key(kind, policy.envelope.project, name) for kind, name in pairs]


BACKUP_POLICY = Kind(
    name="backuppolicy",
    plural="backuppolicies",
    title="backup policy",
    summary="Regular backups, and how long they are kept",
    spec=BackupPolicySpec,
    status=BackupPolicyStatus,
    indexes={
        POLICIES_BY_SUBJECT: subjects_of,
        POLICIES_BY_REPOSITORY: lambda item: (item.spec(BackupPolicySpec).to,),
    },
    references=(
        *(Reference(kind, "spec.of", partial(_list_subjects, kind), blocks=False) for kind in OF),
        Reference("pool", "spec.pool", lambda spec: [spec.pool] if spec.pool else [], blocks=False),
        Reference("backuprepository", "spec.to", lambda spec: [spec.to], blocks=True),
    ),
    in_backups="kept",
    access=Access(readers="project", status_writer="backup policies"),
    admission=Admission(check=check_policy),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("OF", _what, flexible=True),
            Column("TO", text("spec.to")),
            Column("WHEN", _when),
            Column("KEEP", _keep),
            Column("PAUSED", lambda obj: "yes" if dig(obj, "spec.paused", False) else "no", wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
)
