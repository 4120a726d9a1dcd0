"""VM: a virtual machine, as people specify it. Its status is folded from its allocations by the workload controller."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.allocation import LOCAL, AllocationSpec, Boot, HealthCheck
from weft.kinds.fields.cells import dig, text
from weft.kinds.image import ImageStatus
from weft.kinds.parts.convert_verb import (
    CONVERT,
    describe_departure,
    describe_fence,
    guard_workload,
    refuse_replaced,
)
from weft.kinds.parts.goal import WORKLOAD_GOALS, find_condition, find_workload_failure, is_settled, read_phase
from weft.kinds.parts.image.use import check_image_use
from weft.kinds.parts.lease_verbs import LEASE_VERBS
from weft.kinds.parts.migration.departing import (
    RECLAIMED,
    ReclaimInput,
    VmReclaim,
    find_not_reclaimed,
    is_reclaimed,
    reclaim_lost,
)
from weft.kinds.parts.migration.verb import MigrateInput, make_migration
from weft.kinds.parts.placement_spec import MIB, Name
from weft.kinds.parts.snapshot.restored import VmOrigin, VmRestore
from weft.kinds.parts.snapshot.schedule import SnapshotSchedule, check_schedule
from weft.kinds.parts.snapshot.verbs import KEEPS_TOO_MUCH, RESTORED, SNAPSHOT_VERBS, is_restoring
from weft.kinds.parts.stream_verbs import CAPTURE, CONSOLE, EXEC, FLOWS, FORWARD, LOGS, METRICS, SCREEN
from weft.kinds.parts.workload import (
    CONDITIONS,
    HOLD,
    KEPT,
    RELEASE,
    RESTART,
    START,
    STARTED_BY,
    WorkloadActions,
    WorkloadMarks,
    WorkloadSpec,
    WorkloadStatus,
    WorkloadTest,
    born,
    check_act,
    check_times,
    check_workload,
    claim_places,
    count_workload,
    find_publish_rights,
    index_workload,
    refuse_twice,
    set_fields,
    was_refused,
    what_is,
    workload_columns,
    workload_references,
)
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Display,
    Goal,
    Index,
    Kind,
    Lifetime,
    Needs,
    Object,
    Reference,
    Stored,
    Verb,
    Workload,
    keys_of,
)
from weft.kinds.volume import refuse_orphan
from weft.objects.envelope import Envelope, decode_part, take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.objects.lifecycle import Phase
from weft.objects.quantity import format_bytes
from weft.objects.schema import field

LEAST_MEMORY_BYTES = 64 * 2**20
MOST_DISK_BYTES = 2**50
MOST_GPUS = 8
_SSH_KEY = re.compile(r"(?:[^\s\"]|\"[^\"]*\")* ?(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]{16,}={0,3}( .*)?")
_CPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

SshKey = Annotated[str, field("", max_length=16384)]
UserName = Annotated[str, field("", max_length=32)]


class VmSpec(WorkloadSpec, msgspec.Struct, kw_only=True):
    image: Annotated[str, field("Image that the root disk is cloned from", change="replace", name=True, shared=True)]
    disk: Annotated[
        int, field("Size of the root disk, which may grow; 0 is the image's own size", change="plug", quantity="bytes")
    ] = 0
    pool: Annotated[str, field("Storage pool of the root disk; local is the node's own", change="never", name=True)] = (
        LOCAL
    )
    machine: Annotated[Literal["q35", "microvm"], field("Machine type", change="restart")] = "q35"
    cpu_model: Annotated[
        str,
        field(
            "CPU model: common (what all nodes with the same accelerator have, so that the VM can migrate to each), host (all "
            "that its node has), or the name of a model in QEMU",
            change="restart",
            max_length=64,
        ),
    ] = "common"
    volumes: Annotated[list[Name], field("Volumes to attach, in this order", change="plug")] = []
    user_data: Annotated[
        str, field("Script (#!…) or cloud-config for the guest's first boot", change="replace", max_length=65536)
    ] = ""
    ssh_keys: Annotated[
        list[SshKey], field("SSH keys that may log in, as root and as each user; needs cloud-init", change="replace")
    ] = []
    users: Annotated[list[UserName], field("Users to create, with sudo; needs cloud-init", change="replace")] = []
    firmware: Annotated[
        Literal["auto", "bios", "uefi"],
        field("Firmware: auto boots the image's kernel if it has one, otherwise bios", change="restart"),
    ] = "auto"
    iso: Annotated[
        str | None,
        field("Image to put into a CD drive, which firmware boots first", change="restart", name=True, shared=True),
    ] = None
    boot: Annotated[
        Boot,
        field(
            "First boot: warm starts from a booted machine of the image, cold boots, auto takes the machine where there is one",
            change="never",
        ),
    ] = "auto"
    screen: Annotated[
        Literal["auto", "yes", "no"],
        field("Screen, shown over VNC; auto: yes if the VM boots with firmware", change="restart"),
    ] = "auto"
    origin: Annotated[
        VmOrigin | None, field("Snapshot that its disks come from; set by restore and clone", change="never")
    ] = None
    snapshots: Annotated[
        SnapshotSchedule | None, field("Snapshots to take regularly; none if unset", change="live")
    ] = None
    copies: Annotated[
        int,
        field(
            "2: another node holds a copy of its disks too, from which it goes on once its node is lost; for disks in pools "
            "that only its node has",
            change="live",
            ge=1,
            le=2,
        ),
    ] = 1


class VmActions(WorkloadActions, msgspec.Struct, kw_only=True, frozen=True):
    restore: Annotated[VmRestore | None, field("Last restore in place")] = None
    reclaim: Annotated[
        VmReclaim | None, field("Take it back from another cluster, to which a lost migration handed it over")
    ] = None


def check_vm(spec: VmSpec) -> None:
    """Check what types can't say; what has several spellings gets its one. Raises InvalidInput."""
    check_workload(spec, least_memory=LEAST_MEMORY_BYTES)
    if spec.disk > MOST_DISK_BYTES:
        raise InvalidInput("spec.disk: a disk can't be that large", field="spec.disk", hint="at most 1P")
    if spec.cpu_model != "common" and not _CPU_MODEL.fullmatch(spec.cpu_model):
        raise InvalidInput(
            f"spec.cpu_model: {spec.cpu_model!r} is not the name of a CPU model",
            field="spec.cpu_model",
            hint="use common, host, or one of a node's report.cpu_models: weft get node NAME -o yaml",
        )
    if spec.volumes:
        refuse_twice(volumes=spec.volumes)
    for index, key in enumerate(spec.ssh_keys):
        if not _SSH_KEY.fullmatch(key):
            raise InvalidInput(
                f"spec.ssh_keys[{index}]: {key[:40]!r} is not a public SSH key",
                field=f"spec.ssh_keys[{index}]",
                hint="give the line of a .pub file: ssh-ed25519 AAAA… name",
            )
    for index, user in enumerate(spec.users):
        if not _USER.fullmatch(user):
            raise InvalidInput(
                f"spec.users[{index}]: {user[:40]!r} is not a user name",
                field=f"spec.users[{index}]",
                hint="begin with a letter; a-z, 0-9, - and _, at most 32",
            )
    check_schedule(spec.snapshots)
    if spec.machine == "microvm":
        _check_microvm(spec)
    if spec.gpus > MOST_GPUS:
        raise InvalidInput(f"spec.gpus: a VM can have at most {MOST_GPUS} GPUs", field="spec.gpus")
    if len(spec.volumes) > 16:
        raise InvalidInput("spec.volumes: a VM can have at most 16 volumes", field="spec.volumes")


def _check_microvm(spec: VmSpec) -> None:
    if spec.firmware != "auto" or spec.screen == "yes":
        raise InvalidInput(
            "spec.machine: a microvm has neither firmware nor a screen", field="spec.machine", hint="use machine q35"
        )
    if spec.gpus:
        raise InvalidInput(
            "spec.machine: a microvm has no PCI bus for a GPU", field="spec.machine", hint="use machine q35"
        )


def _suspend(obj: Object, _: Any) -> dict[str, Any]:
    """A GPU's state can't be saved."""
    check_act("suspend", obj)
    if obj["spec"].get("gpus"):
        raise IllegalTransition(f"{what_is(obj)} has GPUs, so it can't be suspended", hint=f"weft stop {what_is(obj)}")
    refuse_replaced(obj)
    return {**obj["spec"], "run": "suspend"}


def _guard_change(vm: Envelope, new: VmSpec, now: float) -> None:
    """Raises IllegalTransition for what another cluster has, InvalidInput for a root disk that would shrink."""
    marks, old = decode_part(vm.marks, WorkloadMarks), decode_part(vm.spec, VmSpec)
    if marks.departed:
        raise describe_departure("the VM", marks.departed)
    if marks.fenced and new.run != old.run:
        raise describe_fence("the VM", marks.fenced)
    refuse_shrinking(vm, new, now)


def refuse_shrinking(vm: Envelope, new: VmSpec, now: float) -> None:
    """Raises InvalidInput for a root disk that would be smaller than it is. A growth that hasn't happened can be taken back; 0 is
    the size that the image has, which the disk keeps at least."""
    old, status = decode_part(vm.spec, VmSpec), decode_part(vm.status, WorkloadStatus)
    if status.resources is not None:
        least = min(old.disk, status.resources.disk)
        is_taken_back = not new.disk and least < old.disk
    else:
        least, is_taken_back = old.disk, status.node is None and old.origin is None
    if new.disk < least and not is_taken_back:
        raise InvalidInput(
            f"spec.disk: a disk can't shrink from {format_bytes(least)} to {format_bytes(new.disk)}",
            field="spec.disk",
            hint="create a new VM with a smaller disk",
        )


_CHECK_IMAGE = check_image_use("VM", "spec.image")


def _refuse_image(new: VmSpec, images: Mapping[str, ImageStatus]) -> None:
    """Raises InvalidInput for an image that no VM can have, or that needs more than this one gets."""
    _CHECK_IMAGE(new, images)
    for name, status in images.items():
        if 0 < new.disk < status.virtual_size and new.origin is None:
            raise InvalidInput(
                f"spec.disk: {format_bytes(new.disk)} is less than image {name} takes: {format_bytes(status.virtual_size)}",
                reason="tooLittleDisk",
                field="spec.disk",
                hint=f"give at least {-(-status.virtual_size // MIB)}M, or 0 for the image's own size",
            )
        if new.memory < status.min_memory:
            raise InvalidInput(
                f"spec.memory: {format_bytes(new.memory)} is too little for image {name}: "
                f"it needs {format_bytes(status.min_memory)}",
                reason="tooLittleMemory",
                field="spec.memory",
                hint=f"give at least {-(-status.min_memory // MIB)}M",
            )


VERBS = (
    START,
    Verb(
        "stop",
        "Shut the workload down; it keeps its disks and its node",
        change=set_fields("stop", run="stop"),
        needs="operate",
    ),
    RESTART,
    Verb("suspend", "Save the VM's memory to disk and stop the VM", change=_suspend, needs="operate"),
    Verb("resume", "Resume the VM where it was suspended", change=set_fields("resume", run="run"), needs="operate"),
    Verb(
        "reclaim",
        "Let a VM go on here that was handed over to a cluster by a migration which a restore lost, once that cluster says that it "
        "never ran there",
        input=ReclaimInput,
        act=reclaim_lost,
        needs="write",
    ),
    Verb("migrate", "Migrate to another node", input=MigrateInput, make=make_migration, needs="operate"),
    *SNAPSHOT_VERBS,
    CONVERT,
    HOLD,
    RELEASE,
    *LEASE_VERBS,
    EXEC.verb("Run a command in the guest"),
    CONSOLE.verb("Open the guest's serial console"),
    FORWARD.verb("Forward a TCP port of the guest"),
    SCREEN.verb("Open the guest's screen, as RFB (VNC)"),
    LOGS.verb("Show the log of the guest's console"),
    FLOWS.verb("Show network flows of the VM"),
    CAPTURE.verb("Capture packets of the VM"),
    METRICS.verb("Show what the VM used, over time"),
)


def _needs(spec: VmSpec) -> Needs:
    return Needs(
        images=(spec.image, *([spec.iso] if spec.iso else [])),
        disk=spec.disk,
        pool=spec.pool,
        machine=spec.machine,
        cpu_model=spec.cpu_model,
    )


def _find_health_check(test: WorkloadTest | None) -> HealthCheck | None:
    """Health check of a VM which tests a backup; without a command it is asked whether it answers."""
    if test is None or not test.backup:
        return None
    command = ["sh", "-c", test.check] if test.check else []
    return HealthCheck(command=command, interval=1.0, timeout=test.within, retries=1, start_period=test.within)


def _allocate(spec: VmSpec, marks: WorkloadMarks) -> dict[str, Any]:
    return {
        "machine": spec.machine,
        "requested_cpu_model": spec.cpu_model,
        "user_data": spec.user_data,
        "ssh_keys": spec.ssh_keys,
        "users": spec.users,
        "firmware": spec.firmware,
        "screen": spec.screen,
        "boot": spec.boot,
        "health_check": _find_health_check(marks.test),
        "preemptible": marks.test is not None,
        "hostname": marks.test.hostname if marks.test is not None else "",
        "guard": marks.guard,
    }


def _is_same(place: AllocationSpec, spec: VmSpec) -> bool:
    return (
        place.resources.disk >= spec.disk
        and place.machine == spec.machine
        and place.requested_cpu_model == spec.cpu_model
        and place.firmware == spec.firmware
        and place.screen == spec.screen
        and (place.iso.name if place.iso else None) == spec.iso
        and [volume.name for volume in place.volumes] == spec.volumes
    )


def _is_alike(place: AllocationSpec, spec: VmSpec) -> bool:
    return place.machine == spec.machine and [volume.name for volume in place.volumes] == spec.volumes


def _compare(place: AllocationSpec, spec: VmSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    has = {
        "disk": place.resources.disk,
        "machine": place.machine,
        "cpu_model": place.requested_cpu_model,
        "firmware": place.firmware,
        "screen": place.screen,
        "iso": place.iso.name if place.iso else None,
        "volumes": [volume.name for volume in place.volumes],
    }
    asked = {name: getattr(spec, name) for name in has}
    return has, asked | {"disk": max(spec.disk, place.resources.disk)}


def _resize(place: AllocationSpec, spec: VmSpec, fields: set[str]) -> None:
    for name in fields & {"machine", "firmware", "screen"}:
        setattr(place, name, getattr(spec, name))
    if "cpu_model" in fields:
        place.requested_cpu_model = spec.cpu_model


def _is_restored(obj: Object | None) -> bool:
    """Whether its disks are the snapshot's and, if it shall run, it runs on them."""
    told = find_condition(obj, RESTORED)
    if obj is None or not is_settled(obj) or is_restoring(obj) or told is None or told["status"] != "True":
        return False
    has_begun = read_phase(obj) == Phase.RUNNING and dig(obj, "status.reason", "") != "restoring"
    return dig(obj, "spec.run") != "run" or has_begun


_RESTORED = Goal(_is_restored, "restored", ends_failed=False, ends_refused=False, asked=f"condition={RESTORED}")


_RECLAIMED = Goal(
    is_reclaimed,
    "taken back",
    ends_failed=False,
    ends_refused=False,
    asked=f"condition={RECLAIMED}",
    answer=lambda obj: f"goes on here ({(find_condition(obj, RECLAIMED) or {}).get('message', '')})",
)


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """A restore in place ends the wait for it only if it is given up."""
    if goal.asked == _RECLAIMED.asked:
        return find_not_reclaimed(obj, what)
    set_up = find_condition(obj, "SetUp") if goal.asked == "condition=SetUp" else None
    if set_up is not None and set_up["status"] == "False":  # it is carried out once
        return DriverFailed(f"{what} is not set up: {set_up.get('message', '')}", hint=f"weft logs {what}")
    if goal.asked != _RESTORED.asked:
        return find_workload_failure(obj, what, goal)
    told = find_condition(obj, RESTORED)
    if told is None or is_restoring(obj):
        return None
    if told["status"] == "True":
        return find_workload_failure(obj, what, WORKLOAD_GOALS["start"])
    hint = f"weft describe {what}"
    if told.get("reason") == KEEPS_TOO_MUCH:
        snapshot = dig(obj, "actions.restore.snapshot")
        hint = f"delete snapshots, or keep nothing: weft restore {what} --snapshot {snapshot}, which asks"
    return DriverFailed(f"{what} is not restored: {told.get('message', '')}", hint=hint)


def _check_new(spec: VmSpec) -> None:
    """Raises InvalidInput for one that can't start warm, which would fail on its node; later such fields may change, since only the
    first boot is warm."""
    if spec.boot != "warm":
        return
    barred = {
        "machine": ("a booted machine is a q35", spec.machine != "q35"),
        "firmware": ("a booted machine was booted without firmware", spec.firmware != "auto"),
        "gpus": ("a booted machine has no GPUs", bool(spec.gpus)),
        "iso": ("a booted machine has no CD", spec.iso is not None),
        "screen": ("a booted machine has no screen", spec.screen == "yes"),
        "pool": ("booted machines are in pool local", spec.pool != LOCAL),
        "networks": ("a booted machine has a network", not spec.networks),
        "user_data": (
            "cloud-init would run it in a boot",
            bool(spec.user_data) and not spec.user_data.startswith("#!"),
        ),
    }
    for name, (why, is_so) in barred.items():
        if is_so:
            raise InvalidInput(
                f"spec.{name}: the VM can't start warm: {why}",
                reason="notWarm",
                field=f"spec.{name}",
                hint=f"set spec.boot to auto or cold, or change spec.{name}",
            )


def _take_marks(stored: dict[str, Any]) -> dict[str, Any]:
    """The upgrade of a VM whose marks were in its spec, and its test in its origin."""
    taken = take_from_spec(marks=WorkloadMarks)(stored)
    origin = dict(taken["spec"].get("origin") or {})
    if test := origin.pop("test", None):
        taken["spec"] = {**taken["spec"], "origin": origin}
        taken["marks"] = {**taken["marks"], "test": test}
    return taken


VMS_BY_ORIGIN = Index("vms by the snapshots that they began from, or go on from")
VMS_BY_RESTORE = Index("vms by the snapshot that they went back to")
VMS_RECLAIMED = Index("vms that people take back from another cluster")


def origin_keys(item: Stored) -> list[str]:
    """The keys of the snapshot that a VM began from, and of the one that it goes on from, if any."""
    found = (item.spec(VmSpec).origin, item.marks(WorkloadMarks).continues)
    return keys_of("snapshot", item, [one.snapshot for one in found if one is not None])


def _restore_keys(item: Stored) -> list[str]:
    restore = item.actions(VmActions).restore
    return keys_of("snapshot", item, [restore.snapshot]) if restore is not None else []


WORKLOAD = Workload(
    needs=_needs,
    volumes=lambda spec: spec.volumes,
    volumes_field="volumes",
    origin=lambda spec: spec.origin,
    allocate=_allocate,
    compare=_compare,
    is_same=_is_same,
    is_alike=_is_alike,
    resize=_resize,
)

VM = Kind(
    name="vm",
    plural="vms",
    title="VM",
    summary="A virtual machine",
    spec=VmSpec,
    actions=VmActions,
    marks=WorkloadMarks,
    status=WorkloadStatus,
    schema=4,
    upgrades=(_take_marks, take_from_spec(actions=VmActions), take_from_spec(actions=WorkloadActions)),
    indexes=index_workload(VmSpec, WORKLOAD)
    | {
        VMS_BY_ORIGIN: origin_keys,
        VMS_BY_RESTORE: _restore_keys,
        VMS_RECLAIMED: lambda item: ("",) if item.actions(VmActions).reclaim else (),
    },
    references=(
        Reference(
            "image",
            "spec.image",
            lambda s: [s.image],
            blocks=True,
            suffices=_refuse_image,
            asks=lambda s: (s.image, s.memory, s.disk),  # what has too little already may be changed otherwise
        ),
        Reference(
            "image",
            "spec.iso",
            lambda s: [s.iso] if s.iso else [],
            blocks=True,
            suffices=check_image_use("VM", "spec.iso"),
            asks=lambda s: s.iso,
        ),
        Reference(
            "volume", "spec.volumes", lambda s: s.volumes, holder=lambda status: status.attached_to, bars=refuse_orphan
        ),
        Reference("snapshot", "spec.origin", lambda s: [s.origin.snapshot] if s.origin else [], blocks=False),
        *workload_references(),
    ),
    verbs=VERBS,
    snapshots="machine",
    workload=WORKLOAD,
    in_backups="renamed",
    access=Access(
        readers="project",
        further_rights=find_publish_rights,
        status_writer="workload",
        condition_writers=CONDITIONS
        | {
            "Healthy": "workload",
            "SetUp": "workload",
            RESTORED: "restores",
            "Snapshots": "snapshots",
            RECLAIMED: "migrations",
            "Copied": "copies",
        },
        mark_writers={
            "restart_generation": STARTED_BY,
            "restore": (":restore", "replicas"),
            "reclaim": (":reclaim", "migrations", "workload"),
            "fenced": ("replications", "replicas"),
            "arrives": ("arrivals",),
            "departed": ("workload",),
            "guard": ("witnesses", "workload"),
            "test": ("backups", "recovery plans"),
            "continues": ("loss",),
        },
    ),
    admission=Admission(
        check=check_vm,
        check_new=_check_new,
        check_times=check_times,
        change_guard=_guard_change,
        write_guard=guard_workload,
        other_version="weft vm update {} --config FILE lets another VM take its place, and keeps this one, stopped",
        resize_limits=lambda status: status.resize_limits,
        kept_fields=(*KEPT, "origin"),
        claims=claim_places,
        counts=count_workload(WORKLOAD),
        was_refused=was_refused,
    ),
    display=Display(
        topic="Workloads",
        aliases=("virtualmachine",),
        commands=("ssh", "cp", "attach", "detach"),
        columns=workload_columns(Column("IMAGE", text("spec.image"))),
    ),
    lifetime=Lifetime(
        initial_conditions=born,
        goals=WORKLOAD_GOALS | {"restore": _RESTORED, "reclaim": _RECLAIMED},
        find_failure=_find_failure,
        finalizers=("workload",),
    ),
)
