"""Volume: a disk that outlives the VMs it is attached to. It lies in a pool of the node that first used it; one that other
nodes share can be used there too."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.allocation import LOCAL
from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.parts.goal import find_condition, read_phase
from weft.kinds.parts.snapshot.restored import VolumeOrigin, VolumeRestore
from weft.kinds.parts.snapshot.schedule import SnapshotSchedule, check_schedule
from weft.kinds.parts.snapshot.volume_verbs import VOLUME_VERBS, is_going_back, is_made_alone
from weft.kinds.parts.snapshot.volume_work import TrimOrder, VolumeOrder
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Counted,
    Display,
    Goal,
    Index,
    Kind,
    Lifetime,
    Object,
    Reference,
    Stored,
    Verb,
    keys_of,
    uid_of,
)
from weft.kinds.secret import SealedSpec, check_values
from weft.objects.envelope import Envelope, decode_part, take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, Unplaceable, WeftError
from weft.objects.identity import MAX_NAME, Ref, derive_uid
from weft.objects.quantity import format_bytes
from weft.objects.schema import field, words

MOST_BYTES = 2**50
NODE_DELETED = "nodeDeleted"  # reason of what is Unavailable: the node with its data was deleted, and may come back
GROWN = "Grown"  # the condition that says whether it could get the larger size of its spec, where it is
KEY = "key"  # 32 bytes in hexadecimal digits
_KEY_TEXT = re.compile(r"[0-9a-f]{64}")


class VolumeOrphan(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Mark of a volume that is a disk of a VM that was placed elsewhere while its node was away."""

    of: Annotated[str, field("VM whose disk it was, as vm/NAME")]
    workload_uid: Annotated[str, field("Uid of that VM")]
    node: Annotated[str, field("Node that kept it", name=True)]
    since: Annotated[float, field("When the node came back, in seconds since 1970")]
    lost_at: Annotated[float, field("When the node was given up, in seconds since 1970; 0: not known")] = 0.0
    volume: Annotated[str, field("Volume that it was; unset: the root disk", name=True)] = ""


class VolumeSpec(SealedSpec, kw_only=True):
    size: Annotated[int, field("Size; it may grow, also while a VM uses it", change="live", quantity="bytes")]
    pool: Annotated[str, field("Storage pool of the disk; local is the node's own", change="never", name=True)] = LOCAL
    encrypted: Annotated[
        bool, field("Encrypt what lies in the pool, with a key that only the server keeps; for VMs", change="never")
    ] = False
    snapshots: Annotated[
        SnapshotSchedule | None, field("Snapshots to take regularly; none if unset", change="live")
    ] = None
    copies: Annotated[
        int,
        field(
            "2: while a VM has it, another node holds a copy of that VM's disks, this one among them, as with copies of the VM",
            change="live",
            ge=1,
            le=2,
        ),
    ] = 1


class VolumeActions(msgspec.Struct, kw_only=True):
    trim: Annotated[int, field("Number of trims that were asked for", ge=0)] = 0
    restore: Annotated[VolumeRestore | None, field("Last restore in place")] = None


class VolumeMarks(msgspec.Struct, kw_only=True):
    origin: Annotated[VolumeOrigin | None, field("Disk of a snapshot that its data comes from")] = None
    orphan: Annotated[VolumeOrphan | None, field("What it was a disk of, until somebody reclaims it")] = None


class VolumeTrim(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Outcome of a trim."""

    generation: int  # which one it was
    at: float = 0.0  # when it ended, in seconds since 1970
    trimmed: int = 0  # bytes that the guest says it gave back, of all its disks
    freed: int = 0  # bytes of the volume that its pool got back
    reason: str = ""  # why it failed
    message: str = ""


class VolumeStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Available", "Attached", "Restoring", "Orphaned", "Unavailable", "Deleting")] = (
        "Available"
    )
    node: str | None = None  # node with its data, once it has any
    node_uid: str | None = None
    pool: str = ""  # pool with its data
    pool_id: str = ""  # the storage that this pool is
    size: int = 0  # bytes that placement has given it there; 0: none, or by an older weft
    attached_to: Ref | None = None  # the workload whose allocation has it now
    # Other nodes with unexplained data of it, as after a restore of an older store: never used, and removed only with the volume.
    copies: list[str] = []
    order: VolumeOrder | None = None  # to have its data made from a snapshot, or taken back to one
    restored: int = 0  # generation of the last restore in place that is done or given up
    trim_order: TrimOrder | None = None
    trimmed: VolumeTrim | None = None  # the last one that ended
    reason: str = ""  # why its data isn't there yet, or a restore was given up
    message: str = ""


def describe_deleted(node: str | None) -> str:
    """Why the data of a volume or a snapshot can't be had, and until when."""
    return f"its data is on node {node}, which was deleted; it is available once that node is back"


def check_volume(spec: VolumeSpec) -> None:
    check_values(spec)
    if given := sorted({*spec.values, *spec.sealed} - ({KEY} if spec.encrypted else set())):
        raise InvalidInput(
            f"spec.values.{given[0][:60]} means nothing to a volume that is{'' if spec.encrypted else ' not'} encrypted",
            field=f"spec.values.{given[0][:60]}",
            hint=f"an encrypted volume has one value, {KEY}, which the server draws",
        )
    if spec.size < 1024 * 1024:
        raise InvalidInput(f"spec.size: {spec.size} bytes is too small", field="spec.size", hint="give at least 1M")
    if spec.size > MOST_BYTES:
        raise InvalidInput("spec.size: a disk can't be that large", field="spec.size", hint="at most 1P")
    check_schedule(spec.snapshots)
    if spec.copies > 1 and spec.encrypted:
        raise InvalidInput(
            "spec.copies: encrypted volumes can't be copied",
            field="spec.copies",
            hint="leave spec.copies out, or create the volume without encrypted",
        )
    if spec.snapshots is not None and spec.encrypted:
        raise InvalidInput(
            "spec.snapshots: snapshots of encrypted volumes can't be taken",
            field="spec.snapshots",
            hint="leave spec.snapshots out",
        )
    if spec.snapshots is not None and spec.snapshots.memory:
        raise InvalidInput(
            "spec.snapshots.memory: a volume has no memory",
            field="spec.snapshots.memory",
            hint="leave spec.snapshots.memory out",
        )


def _check_given(values: Mapping[str, str]) -> None:
    if not _KEY_TEXT.fullmatch(values.get(KEY, "0" * 64)):
        raise InvalidInput(
            f"spec.values.{KEY} must be 64 hexadecimal digits",
            field=f"spec.values.{KEY}",
            hint="leave it out: the server draws one",
        )


def has_size(spec: VolumeSpec, marks: VolumeMarks, status: VolumeStatus) -> int:
    """How large its disk is at most: what placement has given it, not a growth that nothing was given for; 0: it has none yet."""
    if status.node_uid is None:
        return spec.size if marks.origin is not None else 0  # which the data of the snapshot needs
    return min(spec.size, status.size) if status.size else spec.size


def guard_size(volume: Envelope, new: VolumeSpec, now: float) -> None:
    """Raises InvalidInput for a smaller size: a file system on it would lose its end. A growth that hasn't happened can be taken
    back. Raises IllegalTransition for another size of an orphan."""
    spec, marks = decode_part(volume.spec, VolumeSpec), decode_part(volume.marks, VolumeMarks)
    if new.size != spec.size:
        refuse_orphan(None, volume.name, marks)
    least = has_size(spec, marks, decode_part(volume.status, VolumeStatus))
    if new.size < least:
        raise InvalidInput(
            f"spec.size: a volume can't shrink from {format_bytes(least)} to {format_bytes(new.size)}",
            field="spec.size",
            hint="create a smaller volume and copy what is needed",
        )


def count(spec: VolumeSpec, _: VolumeStatus, marks: VolumeMarks) -> Counted:
    """Count a volume. One that tests a backup is weft's own, and so is a disk that a node kept, until people reclaim it."""
    is_own = marks.orphan is not None or (marks.origin is not None and marks.origin.test)
    return Counted({} if is_own else {"disk": spec.size})


def name_orphan(vm: str, uid: str, volume: str = "") -> str:
    """The name of the volume that the root disk of a VM becomes, or a ``volume`` of it, from the uid of its allocation."""
    end = f"-{volume or 'root'}"[:30].rstrip("-") + f"-{hashlib.sha256(uid.encode()).hexdigest()[:6]}"
    return f"{vm[: MAX_NAME - len(end)].rstrip('-')}{end}"


def derive_kept_uid(allocation: str, volume: str) -> str:
    """The uid that the data of a volume gets on a node that has lost the VM, whose new data has the volume's uid."""
    return derive_uid(f"{allocation}/{volume}")


def describe_disk(orphan: VolumeOrphan) -> str:
    return f"{f'volume {orphan.volume}' if orphan.volume else 'the root disk'} of {orphan.of}"


def refuse_orphan(_: Any, name: str, marks: VolumeMarks) -> None:
    """Raises IllegalTransition for a volume that no workload gets, as it is."""
    orphan = marks.orphan
    if orphan is not None:
        raise IllegalTransition(
            f"volume/{name} is an orphan, {describe_disk(orphan)} that node {orphan.node} kept, and can't be "
            "attached, mounted or resized",
            hint=f"make it an ordinary volume first: weft volume reclaim {name}",
        )


def _reclaim(obj: Object, _: Any) -> dict[str, Any]:
    what = f"volume/{obj['name']}"
    if dig(obj, "marks.orphan") is None:
        raise IllegalTransition(f"{what} is not an orphan", hint="weft volume list --orphans")
    if dig(obj, "status.node_uid") is None:
        raise IllegalTransition(
            f"node {dig(obj, 'marks.orphan.node')} has not made {what} of the VM's disk yet",
            hint="try again in a moment",
        )
    return {"orphan": None}


RECLAIM = Verb(
    "reclaim", "Keep the disk of a VM that a returned node had as an ordinary volume", act=_reclaim, needs="write"
)


def _trim(obj: Object, _: Any) -> dict[str, Any]:
    what, of = f"volume/{obj['name']}", dig(obj, "status.attached_to")
    if of is None or of["kind"] != "vm":
        raise IllegalTransition(
            f"{what} is attached to no VM: only a running guest knows which blocks its files don't use"
            if of is None
            else f"{what} is mounted by {of['kind']}/{of['name']}: only volumes of VMs can be trimmed",
            reason="notAttached",
            hint=f"weft volume attach VM {obj['name']}" if of is None else "attach it to a VM",
        )
    return {"trim": int(dig(obj, "actions.trim") or 0) + 1}


TRIM = Verb("trim", "Have its VM give back the blocks that no file uses, on all its disks", act=_trim, needs="operate")


def _is_trimmed(obj: Object | None) -> bool:
    return obj is not None and _find_trim(obj) is not None and not dig(obj, "status.trimmed.reason")


def _find_trim(obj: Object) -> Any:
    """Outcome of the last requested trim; None: it goes on."""
    found = dig(obj, "status.trimmed")
    return found if found and found["generation"] >= int(dig(obj, "actions.trim") or 0) else None


def _describe_trim(obj: Object) -> str:
    found = _find_trim(obj) or {}
    pool, trimmed = dig(obj, "status.pool") or LOCAL, format_bytes(found.get("trimmed", 0))
    return f"trimmed: pool {pool} got back {format_bytes(found.get('freed', 0))} (the VM trimmed {trimmed} on all its disks)"


def _check_change(old: VolumeSpec, new: VolumeSpec) -> None:
    if new.values or new.sealed != old.sealed:
        raise InvalidInput(
            "spec.values: what lies on a volume is encrypted with the key that it was created with",
            field="spec.values",
            hint="create another volume and copy what is needed",
        )


def pool_of(spec: VolumeSpec, status: VolumeStatus) -> str:
    """The pool where its data lies, or will lie."""
    return status.pool or spec.pool


VOLUMES_BY_UID = Index("volumes by uid")
VOLUMES_BY_HOME = Index("volumes by home", reads_status=True)
VOLUMES_BY_SOURCE = Index("volumes by key of the snapshot that their data comes from, or goes back to")


def _home(item: Stored) -> tuple[str, ...]:
    home = item.status(VolumeStatus).node_uid
    return (home,) if home else ()


def _sources(item: Stored) -> list[str]:
    named = [one.snapshot for one in (read_origin(item), read_restore(item)) if one is not None]
    return keys_of("snapshot", item, named)


def read_origin(volume: Stored) -> VolumeOrigin | None:
    """The disk of a snapshot that its data comes from."""
    return volume.marks(VolumeMarks).origin


def read_restore(volume: Stored) -> VolumeRestore | None:
    """The last restore in place that was asked for."""
    return volume.actions(VolumeActions).restore


def is_coming(volume: Stored, status: VolumeStatus) -> bool:
    """Whether its data is yet to come from a snapshot by itself, or is about to go back to one: until then nothing may use it."""
    origin, asked = read_origin(volume), read_restore(volume)
    alone = origin is not None and origin.alone and status.node_uid is None
    return alone or status.order is not None or (asked is not None and asked.generation > status.restored)


def _name_origin(_: VolumeSpec, marks: VolumeMarks) -> list[str]:
    return [marks.origin.snapshot] if marks.origin is not None else []


def _is_restored(obj: Object | None) -> bool:
    return obj is not None and not is_going_back(obj) and not dig(obj, "status.reason")


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """Failure that keeps its data from coming for good. What may pass has a message and no reason."""
    if goal.words == _TRIMMED.words:  # a command may wait for a variant of it
        found = _find_trim(obj)
        if found is None or not found.get("reason"):
            return None
        hint = f"weft volume trim {obj['name']} tries it again"
        return DriverFailed(f"{what} is not trimmed: {found.get('message', '')}", reason=found["reason"], hint=hint)
    if goal.ends_refused and read_phase(obj) == "Unavailable":
        message = f"{what} is Unavailable: {dig(obj, 'status.message', '')}"
        return DriverFailed(message, reason=str(dig(obj, "status.reason", "")) or None, hint=f"weft describe {what}")
    if goal.words != _RESTORED.words and (refusal := _find_refusal(obj, what)) is not None:
        return refusal
    reason, message = str(dig(obj, "status.reason", "")), dig(obj, "status.message", "")
    if not reason or is_going_back(obj) or not (goal.words == _RESTORED.words or is_made_alone(obj)):
        return None
    return DriverFailed(f"{what} is not restored: {message}", reason=reason, hint=f"weft describe {what}")


def _is_as_asked(obj: Object | None) -> bool:
    """Whether it is there, and as large as its spec says; one that nothing has attached grows with its next place."""
    size = dig(obj, "status.size", 0) if obj is not None else 0
    grows = dig(obj or {}, "status.phase") == "Attached" and 0 < size < dig(obj or {}, "spec.size", 0)
    return read_phase(obj) in ("Available", "Attached") and not grows


def _find_refusal(obj: Object, what: str) -> WeftError | None:
    """Why it can't grow where it is."""
    grown = find_condition(obj, GROWN)
    if grown is None or grown["status"] != "False" or grown.get("generation", 0) != obj.get("generation", 0):
        return None
    has = format_bytes(dig(obj, "status.size", 0))
    return Unplaceable(
        f"{what} can't grow: {grown.get('message', '')}",
        reason=grown.get("reason", ""),
        hint=f"It grows when there is capacity.  To take that back: weft volume resize {obj['name']} {has.replace(' ', '')}",
    )


_RESTORED = Goal(_is_restored, "restored", ends_failed=False, ends_refused=False)
_TRIMMED = Goal(_is_trimmed, "trimmed", ends_failed=False, ends_refused=False, answer=_describe_trim)


def _find_size(obj: Object) -> int:
    """Size that it has; what it shall have, before it has a place."""
    size, has = int(dig(obj, "spec.size", 0)), int(dig(obj, "status.size", 0))
    return min(size, has) if has else size


def _find_note(obj: Object) -> str:
    asked, orphan = int(dig(obj, "spec.size", 0)), dig(obj, "marks.orphan")
    if orphan is not None and not note(obj):
        disk = f"volume {orphan['volume']}" if orphan.get("volume") else "root disk"
        return f"{disk} of {dig(orphan, 'of')}, kept by {dig(orphan, 'node')}: weft volume reclaim {obj['name']}"
    return note(obj) or (f"{format_bytes(asked)} requested" if _find_size(obj) < asked else "")


VOLUME = Kind(
    name="volume",
    plural="volumes",
    title="volume",
    summary="A disk that outlives VMs",
    spec=VolumeSpec,
    actions=VolumeActions,
    marks=VolumeMarks,
    status=VolumeStatus,
    schema=2,
    upgrades=(take_from_spec(actions=VolumeActions, marks=VolumeMarks),),
    indexes={VOLUMES_BY_UID: uid_of, VOLUMES_BY_HOME: _home, VOLUMES_BY_SOURCE: _sources},
    references=(Reference("snapshot", "marks.origin", _name_origin, marked=True, blocks=False),),
    verbs=(*VOLUME_VERBS, TRIM, RECLAIM),
    snapshots="volume",
    in_backups="renamed",
    access=Access(
        readers="project",
        status_writer="volumes",
        condition_writers={"Snapshots": "snapshots", GROWN: "scheduler"},
        mark_writers={"origin": ("backups", "recovery plans", "witnesses"), "orphan": (":reclaim",)},
    ),
    admission=Admission(
        check=check_volume,
        kept_fields=("sealed",),
        check_change=_check_change,
        change_guard=guard_size,
        check_values=_check_given,
        seals=True,
        makes_values=lambda spec: {KEY: secrets.token_hex(32)} if spec.get("encrypted") is True else {},
        counts=count,
    ),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Available"), keep=True),
            Column("SIZE", lambda obj: format_bytes(_find_size(obj)), align="right"),
            Column("POOL", lambda obj: dig(obj, "status.pool") or dig(obj, "spec.pool", LOCAL), wide=True),
            Column("ENCRYPTED", lambda obj: "yes" if dig(obj, "spec.encrypted") else "no", wide=True),
            Column("NODE", text("status.node")),
            Column("ATTACHED", text("status.attached_to.name")),
            Column("COPIES", lambda obj: ",".join(dig(obj, "status.copies") or []) or "–", wide=True),
            AGE,
            Column("NOTE", _find_note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={"create": Goal(_is_as_asked, "Available"), "restore": _RESTORED, "trim": _TRIMMED},
        find_failure=_find_failure,
        finalizers=("volume",),
    ),
)
