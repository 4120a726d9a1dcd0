"""Backup: the disks of a VM, a volume or a container's volumes at one instant, copied into a repository: they outlive the fabric.

It begins with a snapshot, which stays until the next backup into that repository is made: only what changed since is copied then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.backup_verification import (
    VERIFIED,
    WITHIN_SECONDS,
    BackupTest,
    BackupVerification,
    Check,
    How,
    VerifyBackupInput,
    Within,
    check_request,
    find_verify_failure,
)
from weft.kinds.fields.backup_work import BackupOrder
from weft.kinds.fields.cells import AGE, NAME, dig, note, size, text
from weft.kinds.fields.subject import check_subject, list_named, split_subject
from weft.kinds.parts.goal import reaches
from weft.kinds.parts.snapshot.from_backup import RestoreBackupInput, make_parts, make_restored, require_ready
from weft.kinds.parts.stream_verbs import FILES
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
)
from weft.kinds.snapshot import SnapshotDisk
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import Envelope, decode_part, take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InUse, InvalidInput, WeftError
from weft.objects.identity import object_key
from weft.objects.quantity import format_limit, format_time
from weft.objects.schema import field, words

OF = ("vm", "volume", "container")
UNPROVEN = "unproven"  # the state of a backup that nobody has verified
PROJECT = "project"  # of its objects, without data
REPOSITORY_FAILED, REPOSITORY_MISSING = "repositoryFailed", "repositoryMissing"  # why one can't begin by itself
SET = "project-backup"  # the label with the name of the backup of a whole project that one is a part of
MADE_OF = "backups are made of"
_ID = re.compile(r"[0-9a-f-]{8,64}")


class BackupSpec(msgspec.Struct, kw_only=True):
    of: Annotated[
        str,
        field(
            "What it is of: vm/NAME, volume/NAME or container/NAME, in this project; project/NAME: the objects of the project",
            change="never",
        ),
    ]
    to: Annotated[str, field("Backup repository that it goes to", change="never", name=True)]
    keep: Annotated[
        float, field("How long it is kept; 0: until people delete it", quantity="period", change="live")
    ] = 0.0
    adopts: Annotated[
        str,
        field(
            "Id of a backup that the repository has already, which this one stands for; takes an administrator of the fabric",
            change="never",
        ),
    ] = ""


class BackupActions(msgspec.Struct, kw_only=True):
    verify_generation: Annotated[int, field("Number of verifications that were asked for")] = 0
    verify_how: Annotated[How, field("What the last of them does")] = "read"
    verify_check: Check = ""
    verify_within: Within = WITHIN_SECONDS


class BackupMarks(msgspec.Struct, kw_only=True):
    policy: Annotated[str, field("Backup policy that had it made", name=True)] = ""


class BackupStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Snapshotting", "Copying", "Ready", "Failed", "Deleting")] = "Pending"
    state: str = ""  # unproven, read, booted, damaged or failed (it does not boot); "": there is nothing yet
    progress: float = 0.0  # of the copy, 0 to 1
    bytes: int = 0  # of the disks, without holes
    stored_bytes: int = 0  # that it added to the repository
    locked_until: float = 0.0  # nobody can delete it before, in seconds since 1970; 0: it is not locked
    unique_bytes: int = 0  # that no other backup there needs
    taken_at: float | None = None  # the instant of its disks, in seconds since 1970
    finished_at: float | None = None
    consistency: str = ""  # filesystem, crash or stopped
    repository_id: str = ""  # the backup's id there is its uid
    order: BackupOrder | None = None  # what its node is asked to do now
    base: str = ""  # name of the backup that it continues; "": all was copied
    full_because: str = ""
    snapshot: str = ""  # name of its snapshot, while there is one
    snapshot_uid: str = ""
    node: str = ""  # that copies it
    workload_uid: str = ""
    workload_spec: dict[str, Any] = {}  # the VM's spec then, without its user data
    disks: dict[str, SnapshotDisk] = {}  # by name: root, or the volume's
    image: str = ""  # that its VM was made from
    image_sha256: str = ""
    verified_at: float | None = None
    verify: BackupVerification = BackupVerification()
    read_generation: int = 0  # of the verification whose reading found no damage
    test: BackupTest | None = None  # the boot that is under way
    reason: str = ""
    message: str = ""


def check_backup(spec: BackupSpec) -> None:
    """Raises InvalidInput."""
    check_subject(spec.of, "spec.of", (*OF, PROJECT), MADE_OF)
    if spec.adopts and not _ID.fullmatch(spec.adopts):
        raise InvalidInput(
            f"spec.adopts: {spec.adopts[:60]!r} is not the id of a backup",
            field="spec.adopts",
            hint="weft backuprepository import REPOSITORY adopts all that a repository has",
        )
    if not 0 <= spec.keep <= 100 * 366 * 86400:
        raise InvalidInput("spec.keep: out of range", field="spec.keep", hint="give 0 to 36600d")


def refuse_locked(envelope: Envelope, now: float) -> None:
    """Raises IllegalTransition while it is locked: an immutable repository would refuse, too."""
    until = decode_part(envelope.status, BackupStatus).locked_until
    if until > now:
        raise IllegalTransition(
            f"backup/{envelope.name} is locked until {format_time(until)}: nobody can delete it before",
            reason="backupLocked",
            hint="delete it after that; its repository is immutable",
        )


def refuse_shorter(envelope: Envelope, new: BackupSpec, now: float) -> None:
    """Raises IllegalTransition for a time that ends before its lock: nobody can shorten that."""
    until = decode_part(envelope.status, BackupStatus).locked_until
    if until > now and new.keep and envelope.created_at + new.keep < until - 1:
        least = format_limit(math.ceil(until - envelope.created_at))
        raise IllegalTransition(
            f"spec.keep: backup/{envelope.name} is locked until {format_time(until)}, and a lock can't be made shorter",
            reason="backupLocked",
            field="spec.keep",
            hint=f"give {least} or more; its repository is immutable",
        )


def refuse_attached(_: BackupSpec, volumes: Mapping[str, VolumeStatus]) -> None:
    """Raises InUse for a volume that a VM has: its snapshots are those of the VM, with all its disks."""
    for name, status in volumes.items():
        holder = status.attached_to
        if holder is not None and holder.kind == "vm":
            raise InUse(
                f"volume/{name} is attached to vm/{holder.name}, which is backed up with all its disks",
                field="spec.of",
                hint=f"weft backup create vm/{holder.name}",
            )


def subject_key(backup: Stored) -> str:
    """The key of what it is of."""
    kind, name = split_subject(backup.spec(BackupSpec).of)
    return object_key(kind, backup.envelope.project if kind != PROJECT else None, name)


def id_in_repository(uid: str, spec: BackupSpec) -> str:
    """Name in the repository of the backup with this uid."""
    return spec.adopts or uid


def is_of_project(spec: BackupSpec) -> bool:
    return split_subject(spec.of)[0] == PROJECT


def explain_encrypted(of: str, volume: str) -> str:
    """Why a backup of a whole project leaves out ``of``, as KIND/NAME."""
    its = f"it has the encrypted volume {volume}" if of != f"volume/{volume}" else "it is encrypted"
    return f"{of}: {its}, and encrypted volumes can't be backed up"


def _find_rights(old: BackupSpec | None, new: BackupSpec) -> Iterable[tuple[str, str]]:
    """A repository has backups of other projects, too: who adopts one must be allowed to see what is there."""
    return [("backuprepository:contents", "adopt a backup")] if new.adopts and old is None else []


def policy_key(backup: Stored) -> str:
    """The key of the policy that had it made."""
    return object_key("backuppolicy", backup.envelope.project, backup.marks(BackupMarks).policy)


def _ask_verify(obj: Object, given: VerifyBackupInput) -> dict[str, Any]:
    require_ready(obj, "verified")
    if given.boot and split_subject(str(dig(obj, "spec.of")))[0] != "vm":
        raise InvalidInput(
            f"boot: backup/{obj['name']} is of {dig(obj, 'spec.of')}, which doesn't boot",
            field="boot",
            hint="leave --boot out: all of it is read",
        )
    check_request(given.check, given.within, given.boot, "")
    if given.within != WITHIN_SECONDS and not given.boot:
        raise InvalidInput(
            "within needs boot: it limits how long the booted VM may take to become healthy",
            field="within",
            hint="give --boot, too",
        )
    return {
        "verify_generation": dig(obj, "actions.verify_generation", 0) + 1,
        "verify_how": "boot" if given.boot else "read",
        "verify_check": given.check,
        "verify_within": given.within,
    }


def find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """It failed; it can't begin, as its repository has failed; or it was verified, and isn't good."""
    phase, reason, message = dig(obj, "status.phase"), dig(obj, "status.reason", ""), dig(obj, "status.message", "")
    if phase in ("Pending", None) and reason in (REPOSITORY_FAILED, REPOSITORY_MISSING):
        to = dig(obj, "spec.to", "")
        remedy = "weft backuprepository " + (
            f"describe {to}" if reason == REPOSITORY_FAILED else f"create {to} --url URL"
        )
        return DriverFailed(
            f"{what} can't begin: {message}",
            reason=reason,
            hint=f"it stays Pending and begins once that is mended: {remedy} | weft delete {what}",
        )
    if phase == "Failed":
        return DriverFailed(f"{what} failed: {message or reason}", reason=reason or None, hint=f"weft describe {what}")
    return find_verify_failure(obj, what) if goal.words == VERIFIED.words else None


BACKUPS_BY_UID = Index("backups by uid, and by id in their repository")
BACKUPS_BY_SUBJECT = Index("backups by key of what they are of")
BACKUPS_BY_POLICY = Index("backups by key of their policy")
BACKUPS_BY_REPOSITORY = Index("backups by name of their repository")
BACKUPS_BY_SNAPSHOT = Index("backups by uid of their snapshot", reads_status=True)


def _list_subjects(kind: str, spec: BackupSpec) -> list[str]:
    """Subjects of a backup. Those of an adopted one need not be there."""
    return [] if spec.adopts else list_named(kind, [spec.of])


def _ids(backup: Stored) -> tuple[str, ...]:
    """Its uid, and its id in the repository if that is another one."""
    adopts = backup.spec(BackupSpec).adopts
    return (backup.uid, adopts) if adopts else (backup.uid,)


def _snapshot_uid(backup: Stored) -> Sequence[str]:
    uid = backup.status(BackupStatus).snapshot_uid
    return (uid,) if uid else ()


def _gather_verification(stored: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 kept how it was verified last, and what came of it, in fields of their own."""
    status = dict(stored.get("status", {}))
    how, found = status.pop("verify", ""), status.pop("verification", {})
    damaged = found.get("damaged", [])
    result = "damaged" if damaged else "passed" if how else ""
    if how or found:
        at = status.get("verified_at") or 0.0
        status["verify"] = {**found, "how": how, "at": at, "result": result}
    if status.get("state") == "verified":
        status["state"] = "read"
    return {**stored, "status": status}


BACKUP = Kind(
    name="backup",
    schema=4,
    upgrades=(_gather_verification, take_from_spec(actions=BackupActions), take_from_spec(marks=BackupMarks)),
    plural="backups",
    title="backup",
    summary="The disks of a VM, a volume or a container's volumes, copied into a backup repository",
    spec=BackupSpec,
    actions=BackupActions,
    marks=BackupMarks,
    status=BackupStatus,
    indexes={
        BACKUPS_BY_UID: _ids,
        BACKUPS_BY_SUBJECT: lambda item: (subject_key(item),),
        BACKUPS_BY_POLICY: lambda item: (policy_key(item),) if item.marks(BackupMarks).policy else (),
        BACKUPS_BY_REPOSITORY: lambda item: (item.spec(BackupSpec).to,),
        BACKUPS_BY_SNAPSHOT: _snapshot_uid,
    },
    references=(
        *(
            Reference(
                *(kind, "spec.of", partial(_list_subjects, kind)),
                blocks=False,
                suffices=refuse_attached if kind == "volume" else None,
                asks=lambda spec: spec.of,
            )
            for kind in OF
        ),
        Reference("backuprepository", "spec.to", lambda spec: [spec.to], blocks=True),
    ),
    verbs=(
        Verb(
            "restore",
            "Create a VM or volumes from it",
            input=RestoreBackupInput,
            make=make_restored,
            make_before=make_parts,
            needs="write",
        ),
        FILES.verb("List or read single files in it"),
        Verb(
            "verify",
            "Read all of it, and find damage; or boot it, too",
            input=VerifyBackupInput,
            act=_ask_verify,
            needs="operate",
        ),
    ),
    access=Access(
        readers="project",
        status_writer="backups",
        mark_writers={
            **dict.fromkeys(BackupActions.__struct_fields__, (":verify", "backup policies")),
            "policy": ("backup policies",),
        },
        further_rights=_find_rights,
    ),
    admission=Admission(
        check=check_backup,
        change_guard=refuse_shorter,
        delete_guard=refuse_locked,
    ),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("OF", text("spec.of")),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("STATE", text("status.state")),
            Column("SIZE", size("status.bytes"), align="right"),
            Column("STORED", size("status.stored_bytes"), align="right"),
            Column("TO", text("spec.to")),
            Column("CONSISTENCY", text("status.consistency"), wide=True),
            Column("BASE", text("status.base"), wide=True),
            Column("UNIQUE", size("status.unique_bytes"), align="right", wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={"create": reaches("Ready", ends_refused=False), "verify": VERIFIED},
        find_failure=find_failure,
        operation=Operation(act="backup", ended=("Ready", "Failed", "Deleting"), subject="spec.of"),
        finalizers=("backup",),
    ),
)


def tests_backup(item: Stored) -> bool:
    """Whether an object was made to verify a backup, and goes with the verification."""
    owner = item.envelope.owner
    return owner is not None and owner.kind == BACKUP.name
