"""BackupPolicy: what is backed up regularly, where to, how often, and how long each backup is kept."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.backup import check_subject
from weft.kinds.fields.cells import AGE, NAME, dig, joined, note, text
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Object, Reference, Stored
from weft.objects.errors import InvalidInput
from weft.objects.identity import object_key
from weft.objects.quantity import format_duration
from weft.objects.schema import field

LEAST_SECONDS, MOST_SECONDS = 60.0, 366 * 86400.0
MOST_SUBJECTS = 100


class BackupPolicySpec(msgspec.Struct, kw_only=True):
    of: Annotated[list[str], field("What is backed up: vm/NAME")]
    to: Annotated[str, field("Backup repository", name=True)]
    every: Annotated[float, field("Time between two backups, which is how much may be lost", quantity="duration")] = (
        86400.0
    )
    keep: Annotated[float, field("How long each backup is kept", quantity="duration")] = 30 * 86400.0
    verify: Annotated[Literal["", "read"], field("read: each backup is read from its repository once it is made")] = (
        "read"
    )
    paused: Annotated[bool, field("Make no backups for now")] = False


class PolicySubject(msgspec.Struct, kw_only=True, frozen=True):
    of: str
    last_run: float  # when its newest backup was made, in seconds since 1970


class BackupPolicyStatus(msgspec.Struct, kw_only=True):
    subjects: list[PolicySubject] = []
    reason: str = ""
    message: str = ""


def check_policy(spec: BackupPolicySpec) -> None:
    """Raises InvalidInput."""
    if not spec.of or len(spec.of) > MOST_SUBJECTS:
        raise InvalidInput(
            f"spec.of: {len(spec.of)} entries", field="spec.of", hint=f"name 1 to {MOST_SUBJECTS}: vm/web, vm/db"
        )
    for place, one in enumerate(spec.of):
        check_subject(one, f"spec.of[{place}]")
    if len(set(spec.of)) < len(spec.of):
        raise InvalidInput("spec.of: names one thing twice", field="spec.of", hint="name each once")
    if not LEAST_SECONDS <= spec.every <= MOST_SECONDS:
        raise InvalidInput(
            f"spec.every: {format_duration(spec.every)} is out of range", field="spec.every", hint="give 1m to 366d"
        )
    if not spec.every <= spec.keep <= 100 * MOST_SECONDS:
        raise InvalidInput(
            f"spec.keep: {format_duration(spec.keep)} is shorter than the time between two backups or too long",
            field="spec.keep",
            hint=f"give {format_duration(spec.every)} to 36600d",
        )


POLICIES_BY_SUBJECT = Index("backup policies by key of what they are for")
POLICIES_BY_REPOSITORY = Index("backup policies by name of their repository")


def _every(obj: Object) -> str:
    return format_duration(dig(obj, "spec.every", 0.0))


def _keep(obj: Object) -> str:
    return format_duration(dig(obj, "spec.keep", 0.0))


def subjects_of(policy: Stored) -> list[str]:
    """The keys of what it is for."""
    pairs = [one.partition("/") for one in policy.spec(BackupPolicySpec).of]
    return [object_key(kind, policy.envelope.project, name) for kind, _, name in pairs]


def _named(kind: str, spec: BackupPolicySpec) -> list[str]:
    return [name for one in spec.of for of, _, name in [one.partition("/")] if of == kind]


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
        Reference("vm", "spec.of", lambda spec: _named("vm", spec), blocks=False),
        Reference("backuprepository", "spec.to", lambda spec: [spec.to], blocks=True),
    ),
    access=Access(readers="project", status_writer="backup policies"),
    admission=Admission(check=check_policy),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("OF", joined("spec.of"), flexible=True),
            Column("TO", text("spec.to")),
            Column("EVERY", _every, align="right"),
            Column("KEEP", _keep, align="right"),
            Column("PAUSED", lambda obj: "yes" if dig(obj, "spec.paused", False) else "no", wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
)
