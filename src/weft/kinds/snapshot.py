"""Snapshot: the disks of a VM as they were at one instant, and its memory if that was asked; or a volume, or all that a container
mounts. It lies in the pools of the node where they were, and outlives them. That node takes it; the snapshots controller has it
taken, and removed once it is deleted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.allocation import LOCAL
from weft.kinds.fields.backup_work import BackupOrder
from weft.kinds.fields.cells import AGE, NAME, dig, note, size, text
from weft.kinds.fields.subject import check_subject, split_subject
from weft.kinds.parts.convert_verb import describe_departure
from weft.kinds.parts.goal import find_ended, reaches
from weft.kinds.parts.snapshot.restored import make_restored_vm, make_restored_volumes
from weft.kinds.parts.snapshot.verbs import refuse_lost_memory
from weft.kinds.parts.snapshot.volume_verbs import make_volume
from weft.kinds.parts.snapshot.volume_work import VolumeOrder
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Counted,
    Derived,
    Display,
    Index,
    Kind,
    Lifetime,
    Object,
    Operation,
    Reference,
    Stored,
    Verb,
    uid_of,
)
from weft.objects.envelope import take_from_spec
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import object_key
from weft.objects.schema import field, words

# Who asked for it: "" people, restore and clone those verbs, schedule a schedule, backup a backup that is made or restored, test
# one that is booted to verify it, image an image that is made from a VM, replication what sends it to a replica, or a replica that
# it is a point of, loss that a VM goes on from it whose node was lost.
Automatic = Literal["", "restore", "clone", "schedule", "backup", "test", "replication", "image", "loss"]
DATA_GONE = "dataGone"  # reason of the phase Failed: it was ready
LEAST_COUNTED_BYTES = 2**20  # what one counts in a quota until its size is known


class SnapshotSpec(msgspec.Struct, kw_only=True):
    of: Annotated[str, field("What it is of: vm/NAME, volume/NAME or container/NAME, in this project", change="never")]
    memory: Annotated[bool, field("Keep the memory of the running VM too", change="never")] = False


class SnapshotMarks(msgspec.Struct, kw_only=True):
    """Decisions made at its creation."""

    automatic: Annotated[
        Automatic,
        field("What made it, if not people: restore, clone, schedule, backup, test, replication, image or loss"),
    ] = ""
    image: Annotated[str, field("Image that its root disk stands on", name=True, shared=True)] = ""
    group: Annotated[str, field("Group whose snapshots are of one instant", name=True)] = ""
    members: Annotated[list[str], field("VMs of the group", name=True)] = []
    backup: Annotated[str, field("Backup that it is fetched from", name=True)] = ""
    replica: Annotated[str, field("Replica that it is a point of", name=True)] = ""
    instant: Annotated[bool, field("A VM may begin from it before it is fetched")] = False
    pool: Annotated[str, field("Storage pool that it is fetched into", name=True)] = LOCAL


class SnapshotDisk(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A disk of a snapshot."""

    key: str  # in its node's records: root, or the uid that the volume had
    size: int = 0  # bytes that the guest sees
    pool: str = ""


class SnapshotStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Taking", "Ready", "Unavailable", "Failed", "Deleting")] = "Pending"
    consistency: str = ""  # memory, filesystem, crash or stopped; "": not taken yet
    size: int = 0  # bytes that it takes up beside lower snapshots, with its memory
    memory: int = 0  # bytes of its memory; 0: it has none
    disks: dict[str, SnapshotDisk] = {}  # by name: root, or the volume's
    pause_ms: float = 0.0  # how long the guest stood still
    taken_at: float | None = None  # seconds since 1970
    node: str | None = None  # where it lies
    node_uid: str | None = None
    pool: str = ""  # of its root disk
    pool_id: str = ""
    listed: bool = False  # a node has listed it among what it keeps
    image_sha256: str = ""  # content of the image that its root disk stands on
    parent: str = ""  # name of the VM's snapshot that it stands on
    restored: int = 0  # generation of the VM's last restore in place before it; 0: none
    order: BackupOrder | None = None  # to fetch it from a backup
    serves: bool = False  # a VM may begin from it, though it isn't Ready
    volume_order: VolumeOrder | None = None  # to take it of volumes without a VM
    workload_uid: str = ""  # of what it is of
    workload_spec: dict[str, Any] = {}  # the VM's spec at that time, without its user data
    reason: str = ""
    message: str = ""


def read_workload(spec: SnapshotSpec) -> tuple[str, str]:
    """Kind and name of what it is of."""
    return split_subject(spec.of)


def is_of_volumes(spec: SnapshotSpec) -> bool:
    """Whether it is of volumes alone, so that their node takes it without a VM."""
    return read_workload(spec)[0] in ("volume", "container")


def is_dropped(marks: SnapshotMarks, status: SnapshotStatus) -> bool:
    """Whether its group failed: what its node took of it nevertheless is removed."""
    return bool(marks.group) and status.phase == "Failed" and status.reason != DATA_GONE


def check_snapshot(spec: SnapshotSpec) -> None:
    check_subject(spec.of, "spec.of", ("vm", "volume", "container"), "snapshots are taken of")
    if spec.memory and read_workload(spec)[0] != "vm":
        raise InvalidInput(
            f"spec.memory: only snapshots of VMs have one, and this one is of {spec.of[:60]}",
            field="spec.memory",
            hint="leave spec.memory out",
        )


def _refuse_departed(_: SnapshotSpec, name: str, vm: WorkloadMarks) -> None:
    if vm.departed:
        raise describe_departure(f"vm/{name}", vm.departed)


def _agree(spec: SnapshotSpec, vms: Mapping[str, Any]) -> None:
    for name, vm in vms.items():
        if spec.memory and vm.gpus:
            raise InvalidInput(
                f"spec.memory: vm/{name} has GPUs, whose state can't be saved",
                field="spec.memory",
                hint="take the snapshot without memory",
            )


def _require_memory(spec: SnapshotSpec, statuses: Mapping[str, Any]) -> None:
    for name, status in statuses.items():
        if spec.memory:
            refuse_lost_memory(f"vm/{name}", status.phase)


def came_from_elsewhere(marks: SnapshotMarks) -> bool:
    """Whether it came from a backup, or from another cluster, and doesn't need what it is of."""
    return bool(marks.backup or marks.replica)


def _list_sources(spec: SnapshotSpec, marks: SnapshotMarks) -> list[tuple[str, str]]:
    """Objects that have the image that it stands on."""
    return [] if came_from_elsewhere(marks) or is_of_volumes(spec) else [read_workload(spec)]


def _put_image(marks: SnapshotMarks, sources: Mapping[str, Any]) -> None:
    """It keeps the image that its VM stands on: its layers mean nothing without it."""
    for source in sources.values():
        marks.image = getattr(source, "image", "")


def _name_sources(kind: str) -> Callable[[SnapshotSpec, SnapshotMarks], Sequence[str]]:
    """Name its subject, if that is of this kind, and it needs it."""

    def find(spec: SnapshotSpec, marks: SnapshotMarks) -> Sequence[str]:
        of, name = read_workload(spec)
        return [name] if of == kind and not came_from_elsewhere(marks) else []

    return find


def _name_backup(_: SnapshotSpec, marks: SnapshotMarks) -> Sequence[str]:
    return [marks.backup] if marks.backup and marks.automatic != "test" else []


class RestoreAsInput(msgspec.Struct, kw_only=True):
    new_name: Annotated[str, field("Name of the new VM, or of the new volume", name=True)]
    memory: Annotated[bool | None, field("Go on from the snapshot's memory; unset: if it has memory")] = None
    disk: Annotated[str, field("Create a volume from this disk alone, by the volume's name then", name=True)] = ""


def _require_ready(obj: Object) -> None:
    """Raises IllegalTransition unless VMs can begin from it."""
    what, phase = f"snapshot/{obj['name']}", dig(obj, "status.phase", "Pending")
    if phase != "Ready":
        why = f"; {dig(obj, 'status.message')}" if dig(obj, "status.message") else ""
        hint = f"weft wait {what}" if phase in ("Pending", "Taking") else "choose another snapshot: weft snapshot list"
        raise IllegalTransition(
            f"{what} is {phase}, so nothing can be restored from it{why}",
            hint=hint,
            details={"phase": phase, "verb": "restore"},
        )


def _is_volume(obj: Object, given: RestoreAsInput) -> bool:
    return bool(given.disk) or not str(dig(obj, "spec.of", "")).startswith("vm/")


def _make_restored(obj: Object, given: RestoreAsInput, _: str) -> dict[str, Any]:
    """A VM, or a volume."""
    _require_ready(obj)
    if _is_volume(obj, given):
        if given.memory is not None:
            raise InvalidInput("memory: a volume has none", field="memory", hint="leave memory out")
        return make_volume(obj, given.new_name, given.disk)
    has_memory = bool(dig(obj, "status.memory", 0))
    if given.memory and not has_memory:
        raise IllegalTransition(
            f"snapshot/{obj['name']} has no memory",
            field="memory",
            hint="leave memory out: the VM boots from the disks",
        )
    memory = has_memory if given.memory is None else given.memory
    disks = {name: disk.get("size", 0) for name, disk in dig(obj, "status.disks", {}).items()}
    return make_restored_vm(dig(obj, "status.workload_spec", {}), given.new_name, obj["name"], disks, memory=memory)


def _make_volumes(obj: Object, given: RestoreAsInput, _: str) -> list[dict[str, Any]]:
    """The volumes of a VM."""
    if _is_volume(obj, given):
        return []
    disks = dig(obj, "status.disks", {})
    volumes = {name: (disk.get("size", 0), disk.get("pool", "")) for name, disk in disks.items()}
    return make_restored_volumes(volumes, given.new_name, obj["name"])


SNAPSHOTS_BY_UID = Index("snapshots by uid")
SNAPSHOTS_BY_WORKLOAD = Index("snapshots by key of their workload")
SNAPSHOTS_BY_WORKLOAD_UID = Index("snapshots by uid of their workload", reads_status=True)
SNAPSHOTS_BY_BACKUP = Index("snapshots by key of the backup that they are fetched from")
SNAPSHOTS_BY_NODE = Index("snapshots by uid of their node", reads_status=True)


def workload_key(snapshot: Stored) -> str:
    """The key of what it is of."""
    kind, name = read_workload(snapshot.spec(SnapshotSpec))
    return object_key(kind, snapshot.envelope.project, name)


def _workload_uid(snapshot: Stored) -> tuple[str, ...]:
    uid = snapshot.status(SnapshotStatus).workload_uid
    return (uid,) if uid else ()


def _node_uid(snapshot: Stored) -> tuple[str, ...]:
    uid = snapshot.status(SnapshotStatus).node_uid
    return (uid,) if uid else ()


def _backup_key(snapshot: Stored) -> tuple[str, ...]:
    backup = snapshot.marks(SnapshotMarks).backup
    return (object_key("backup", snapshot.envelope.project, backup),) if backup else ()


def _count(_: SnapshotSpec, status: SnapshotStatus, marks: SnapshotMarks) -> Counted:
    """One that failed holds nothing; what tests a backup, or replaces the disks of a lost node, is weft's own; a point counts with
    its replica."""
    holds = status.phase != "Failed" and marks.automatic not in ("test", "loss") and not marks.replica
    return Counted({} if not holds else {"disk": max(status.size, LEAST_COUNTED_BYTES)})


SNAPSHOT = Kind(
    name="snapshot",
    plural="snapshots",
    title="snapshot",
    summary="The disks of a VM, a volume or a container's volumes at one instant",
    spec=SnapshotSpec,
    marks=SnapshotMarks,
    status=SnapshotStatus,
    schema=2,
    upgrades=(take_from_spec(marks=SnapshotMarks),),
    indexes={
        SNAPSHOTS_BY_UID: uid_of,
        SNAPSHOTS_BY_WORKLOAD: lambda item: (workload_key(item),),
        SNAPSHOTS_BY_WORKLOAD_UID: _workload_uid,
        SNAPSHOTS_BY_NODE: _node_uid,
        SNAPSHOTS_BY_BACKUP: _backup_key,
    },
    references=(
        Reference(
            *("vm", "spec.of", _name_sources("vm")),
            marked=True,
            blocks=False,
            agree=_agree,
            bars=_refuse_departed,
            agrees_once=True,
            suffices=_require_memory,
        ),
        Reference("volume", "spec.of", _name_sources("volume"), marked=True, blocks=False),
        Reference("container", "spec.of", _name_sources("container"), marked=True, blocks=False),
        Reference("backup", "marks.backup", _name_backup, marked=True),
        Reference("image", "marks.image", lambda _, marks: [marks.image] if marks.image else [], marked=True),
    ),
    verbs=(
        Verb(
            "restore",
            "Create a VM, or a volume, from it under a new name",
            input=RestoreAsInput,
            make=_make_restored,
            make_before=_make_volumes,
            needs="write",
        ),
    ),
    access=Access(
        readers="project",
        status_writer="snapshots",
        mark_writers={
            **dict.fromkeys(SnapshotMarks.__struct_fields__, ()),
            "automatic": ("snapshots", "restores", "volumes", "backups", "replications", "replicas", "images", "loss"),
            "image": ("restores", "backups", "replications", "replicas", "images", "loss"),
            "backup": ("backups", "loss"),
            "replica": ("replicas",),
            "pool": ("replicas",),
        },
        node_reads="kept",
    ),
    admission=Admission(
        check=check_snapshot,
        derived=Derived(_list_sources, _put_image),
        counts=_count,
    ),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("OF", text("spec.of")),
            Column("GROUP", text("marks.group"), flexible=True),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("SIZE", size("status.size"), align="right"),
            Column("CONSISTENCY", text("status.consistency")),
            Column("NODE", text("status.node")),
            Column("MEMORY", size("status.memory"), align="right", wide=True),
            Column("PARENT", text("status.parent"), wide=True),
            Column("MADE BY", lambda obj: str(dig(obj, "marks.automatic", "")) or "people", wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={"create": reaches("Ready", ends_refused=False)},
        find_failure=find_ended(("Unavailable",)),
        operation=Operation(act="snapshot", ended=("Ready", "Unavailable", "Failed", "Deleting"), subject="spec.of"),
        finalizers=("snapshot",),
    ),
)
