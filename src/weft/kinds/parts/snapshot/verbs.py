"""The verbs of VMs about snapshots: what each takes, when it makes sense, and what it makes or changes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.parts.convert_verb import refuse_converting, refuse_departed, refuse_fenced
from weft.kinds.parts.goal import find_condition
from weft.kinds.parts.nic import networks_of
from weft.kinds.parts.snapshot.restored import ROOT, make_restored_vm, make_restored_volumes
from weft.kinds.parts.workload import WorkloadStatus, sizes_of
from weft.kinds.record import Object, Verb
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound
from weft.objects.identity import MAX_NAME, cut_name
from weft.objects.lifecycle import Phase, describe_phase
from weft.objects.schema import field

RESTORED = "Restored"  # the condition that tells how the last restore in place goes
KEEPS_TOO_MUCH = "QuotaExceeded"  # the snapshot of what stands there has no place in the project's quota
# Reasons of that condition, after which another restore may take its place: it can't be done, ...
GIVEN_UP = frozenset({"SnapshotGone", "SnapshotFailed", "SnapshotElsewhere", "DisksDiffer", KEEPS_TOO_MUCH})
# ... or its node failed and tries again, so that it may be done yet.
RESTORE_FAILED = "RestoreFailed"
TRIED_AGAIN = frozenset({RESTORE_FAILED})
# A VM in one of these has disks. (One that migrates has, too: its snapshot waits.)
_HAS_DISKS = (*(Phase.BOOT, Phase.RUNNING, Phase.MIGRATE, Phase.SUSPENDED, Phase.STOPPED, Phase.FAILED, Phase.UNKNOWN),)
_AT_REST = (Phase.SUSPENDED, Phase.STOPPED, Phase.FAILED)
# What the machine must be like for its memory to go on in it.
_SHAPE = ("cpu", "memory", "machine", "cpu_model", "firmware", "iso", "screen", "gpus")


MOST_MEMBERS = 16  # of a group


class SnapshotInput(msgspec.Struct, kw_only=True):
    name: Annotated[str | None, field("Name of the snapshot; the VM's and a few letters if unset", name=True)] = None
    memory: Annotated[bool, field("Keep the memory, too")] = False
    group: Annotated[str, field("Group of snapshots of one instant; each is named GROUP-VM", name=True)] = ""
    others: Annotated[list[str], field("Other VMs of the group", name=True)] = []


class RestoreInput(msgspec.Struct, kw_only=True):
    snapshot: Annotated[str, field("Snapshot to go back to", name=True)]
    memory: Annotated[
        bool | None, field("Go on from the snapshot's memory; unset: if it has memory and the VM is the same")
    ] = None
    keep: Annotated[bool, field("Keep what stands there as a snapshot")] = True


class CloneInput(msgspec.Struct, kw_only=True):
    new_name: Annotated[str, field("Name of the new VM", name=True)]


def is_restoring(obj: Object) -> bool:
    """Whether a VM's last restore in place is neither done nor given up."""
    if dig(obj, "actions.restore") is None:
        return False
    told = find_condition(obj, RESTORED)
    if told is None or told.get("generation", 0) < dig(obj, "actions.restore.generation", 0):
        return True
    return told["status"] != "True" and told.get("reason", "") not in GIVEN_UP | TRIED_AGAIN


def has_disks(phase: str, node: str | None) -> bool:
    """Whether a VM in this phase has disks on its node."""
    return phase in _HAS_DISKS and bool(node)


def has_memory(phase: str, gpus: int) -> bool:
    """Whether a VM in this phase has memory that can be kept."""
    return phase == Phase.RUNNING and not gpus


def _require_disks(verb: str, obj: Object) -> None:
    """Raises IllegalTransition for a VM without disks, or whose disks went elsewhere, or go elsewhere or back."""
    what, phase = f"vm/{obj['name']}", dig(obj, "status.phase", "Pending")
    refuse_departed(obj)
    refuse_converting(obj)
    if not has_disks(phase, dig(obj, "status.node")):
        raise IllegalTransition(
            f"{what} is {describe_phase(phase)}: its disks {_describe_disks(phase, obj)}, so {verb} is not possible now",
            hint=f"wait until it runs: weft wait {what}",
            details={"phase": str(phase), "verb": verb},
        )
    if is_restoring(obj):
        raise IllegalTransition(
            f"{what} is being restored from snapshot/{dig(obj, 'actions.restore.snapshot', '')}",
            reason="isRestoring",
            hint=f"weft describe {what} shows how it goes",
        )


def _describe_disks(phase: str, obj: Object) -> str:
    """Reason that keeps a VM's disks from being snapshotted: they aren't made yet, or are being made ready for its next start."""
    ran = bool(dig(obj, "status.started_at")) or dig(obj, "status.incarnation", 0) > 1
    return "are being made ready for its start" if ran and phase == Phase.PROLOG else "are not made yet"


def find_lost_memory(what: str, phase: str) -> str:
    """Why a VM in this phase has no memory to keep; "" for one that runs, or is yet to."""
    return f"{what} is {phase.lower()}, so it has no memory to keep" if phase in _AT_REST else ""


def refuse_lost_memory(what: str, phase: str) -> None:
    """Raises IllegalTransition for a VM that has ended, and its memory with it."""
    if lost := find_lost_memory(what, phase):
        raise IllegalTransition(
            lost,
            field="memory",
            hint="take the snapshot without memory, or start the VM first",
            details={"phase": str(phase), "verb": "snapshot"},
        )


def _refuse_memory(obj: Object) -> None:
    """Raises IllegalTransition for a VM without memory that could be kept."""
    what, phase = f"vm/{obj['name']}", dig(obj, "status.phase", "Pending")
    if dig(obj, "spec.gpus", 0):
        raise IllegalTransition(
            f"{what} has GPUs, whose state can't be saved",
            field="memory",
            hint="take the snapshot without memory",
        )
    refuse_lost_memory(what, phase)
    if phase not in (Phase.RUNNING, Phase.BOOT, Phase.MIGRATE):
        raise IllegalTransition(
            f"{what} is {describe_phase(phase)}: it has no memory to keep now",
            field="memory",
            hint="take the snapshot without memory, or start the VM first",
            details={"phase": str(phase), "verb": "snapshot"},
        )


def name_member(group: str, vm: str) -> str:
    """The name of the snapshot of this VM in the group."""
    return f"{group}-{vm}"


def _check_group(group: str, members: Sequence[str]) -> None:
    """Raises InvalidInput."""
    if len(members) > MOST_MEMBERS:
        raise InvalidInput(
            f"a group has at most {MOST_MEMBERS} VMs, and this one has {len(members)}",
            field="others",
            hint="take several groups",
        )
    long = [one for one in members if len(name_member(group, one)) > MAX_NAME]
    if long:
        raise InvalidInput(
            f"group: the snapshot's name would be {name_member(group, long[0])[:80]!r}, which is longer than {MAX_NAME}",
            field="group",
            hint="choose a shorter name for the group",
        )


def make_snapshot(obj: Object, given: SnapshotInput, mark: str) -> dict[str, Any]:
    """The manifest of a Snapshot of a VM. Raises IllegalTransition."""
    _require_disks("snapshot", obj)
    if given.memory:
        _refuse_memory(obj)
    if given.others and not given.group:
        raise InvalidInput("others: VMs are taken together in a group only", field="others", hint="give group, too")
    if given.group and given.name is not None:
        raise InvalidInput(
            "name: a group's snapshots are named after it and their VMs", field="name", hint="leave name out"
        )
    if given.group:
        made = _snapshot(obj, name_member(given.group, obj["name"]), memory=given.memory)
        members = sorted({obj["name"], *given.others})
        _check_group(given.group, members)
        return {**made, "marks": {"group": given.group, "members": members}}
    name = given.name or cut_name(obj["name"], f"-{mark}")
    return _snapshot(obj, name, memory=given.memory)


def _make_others(obj: Object, given: SnapshotInput, mark: str) -> list[dict[str, Any]]:
    """The other snapshots of its group. Raises IllegalTransition, NotFound."""
    manifests = []
    for name in sorted({*given.others} - {obj["name"]}):
        other = obj["others"].get(f"vm/{name}")
        if other is None:
            raise NotFound(f'VM "{name[:80]}" not found', field="others", hint="weft vm list")
        if other.get("deleting_since") is not None:
            raise IllegalTransition(f"vm/{name} is being deleted", field="others", hint="leave it out")
        own = msgspec.structs.replace(given, others=[obj["name"], *given.others])
        manifests.append(make_snapshot(other, own, mark))
    return manifests


def _snapshot(obj: Object, name: str, *, memory: bool, automatic: str = "") -> dict[str, Any]:
    spec = {"of": f"vm/{obj['name']}", "memory": memory}
    return {"kind": "snapshot", "name": name, "spec": spec, "marks": {"automatic": automatic}}


def describe_lost(obj: Object | None) -> str:
    """The reason why a snapshot is Unavailable or Failed, to be put behind that word; "" for another phase."""
    message = (
        dig(obj or {}, "status.message", "") if dig(obj or {}, "status.phase") in ("Unavailable", "Failed") else ""
    )
    return f"; {message}" if message else ""


def _restore(obj: Object, given: RestoreInput) -> dict[str, Any]:
    """Request to a VM that goes back to a snapshot of it. Raises IllegalTransition, NotFound."""
    what, source = f"vm/{obj['name']}", f"snapshot/{given.snapshot}"
    snapshot = obj["others"].get(source)
    if dig(snapshot or {}, "status.phase") != "Unavailable":  # that is told first: the VM may wait for the same node
        _require_disks("restore", obj)
    refuse_fenced(obj)
    if migration := dig(obj, "status.migration", ""):
        raise IllegalTransition(
            f"{what} is migrating: migration/{migration}",
            reason="isMigrating",
            hint=f"weft wait migration/{migration}, or: weft migration cancel {migration}",
            details={"migration": migration},
        )
    if snapshot is None:
        raise NotFound(f'snapshot "{given.snapshot[:80]}" not found', field="snapshot", hint="weft snapshot list")
    as_new = f"restore it under a new name: weft vm restore {obj['name']} --snapshot {given.snapshot} --new-name NAME"
    if dig(snapshot, "status.phase", "Pending") != "Ready" or snapshot.get("deleting_since") is not None:
        phase = dig(snapshot, "status.phase", "Pending") if snapshot.get("deleting_since") is None else "being deleted"
        raise IllegalTransition(
            f"{source} is {phase}, so {what} can't be restored from it{describe_lost(snapshot)}",
            hint=f"weft describe {source}",
        )
    if dig(snapshot, "status.workload_uid", "") != obj["uid"]:
        of = dig(snapshot, "spec.of", "")
        which = "an earlier VM of that name" if of == what else f"another VM, {of}"
        raise IllegalTransition(f"{source} is of {which}", field="snapshot", hint=as_new)
    suspended = dig(obj, "status.phase") == Phase.SUSPENDED
    if suspended and not given.memory:
        raise IllegalTransition(
            f"{what} is suspended: the memory that it would resume from fits only its present disks",
            hint=f"stop it first (weft stop {what}), or resume it",
        )
    bar = _find_memory_bar(obj, snapshot)
    if given.memory and bar:
        raise IllegalTransition(
            f"{what} can't go on from the memory of {source}: {bar}",
            field="memory",
            hint=as_new if dig(snapshot, "status.memory", 0) else "leave memory out: the VM boots from the disks",
        )
    memory = given.memory if given.memory is not None else not bar
    restore = {"snapshot": given.snapshot, "memory": memory, "keep": given.keep, "generation": obj["generation"] + 1}
    return {"restore": restore}


def _run_restored(obj: Object, given: RestoreInput) -> dict[str, Any]:
    """Its spec: one that goes on from memory runs. Raises as ``_restore``."""
    return {**obj["spec"], **({"run": "run"} if _restore(obj, given)["restore"]["memory"] else {})}


def _find_memory_bar(obj: Object, snapshot: Object) -> str:
    """Why a VM can't go on from a snapshot's memory; "" if it can."""
    if not dig(snapshot, "status.memory", 0):
        return "the snapshot has none"
    then, now = dig(snapshot, "status.workload_spec", {}), obj["spec"]
    changed = [name for name in _SHAPE if then.get(name, now.get(name)) != now.get(name)]
    if networks_of(then.get("networks", [])) != networks_of(now.get("networks", [])):
        changed.append("networks")
    if {*dig(snapshot, "status.disks", {})} - {ROOT} != {*now.get("volumes", [])}:
        changed.append("volumes")
    return f"the VM was another machine then ({', '.join(changed)})" if changed else ""


def _make_twin(obj: Object, given: CloneInput, mark: str) -> dict[str, Any]:
    _require_disks("clone", obj)
    disks = {ROOT: 0, **dict.fromkeys(dig(obj, "spec.volumes", []), 0)}
    former = {**obj["spec"], **sizes_of(msgspec.convert(obj.get("status") or {}, WorkloadStatus), obj["spec"])}
    return make_restored_vm(former, given.new_name, _name_source(obj, mark), disks, memory=_has_memory(obj))


def _make_source(obj: Object, given: CloneInput, mark: str) -> list[dict[str, Any]]:
    """The snapshot that a twin begins from, and the twin's volumes."""
    source = _name_source(obj, mark)
    volumes = {
        name: (_find_size(volume), dig(volume, "status.pool", "") or dig(volume, "spec.pool", ""))
        for name in dig(obj, "spec.volumes", [])
        if (volume := obj["others"].get(f"volume/{name}")) is not None
    }
    made = make_restored_volumes(volumes, given.new_name, source)
    return [_snapshot(obj, source, memory=_has_memory(obj), automatic="clone"), *made]


def _find_size(volume: Object) -> int:
    """How large it is, not what it was to grow to."""
    size, has = dig(volume, "spec.size", 0), dig(volume, "status.size", 0)
    return min(size, has) if has else int(size)


def _name_source(obj: Object, mark: str) -> str:
    return cut_name(obj["name"], f"-clone-{mark}")


def _has_memory(obj: Object) -> bool:
    return has_memory(dig(obj, "status.phase", ""), dig(obj, "spec.gpus", 0))


SNAPSHOT_VERBS = (
    Verb(
        "snapshot",
        "Take a snapshot of the VM's disks",
        input=SnapshotInput,
        reads=lambda _, given: [("vm", name) for name in given.others[:MOST_MEMBERS]],
        make=make_snapshot,
        make_before=_make_others,
        needs="operate",
    ),
    Verb(
        "restore",
        "Go back to a snapshot of the VM",
        input=RestoreInput,
        reads=lambda _, given: [("snapshot", given.snapshot)],
        change=_run_restored,
        act=_restore,
        needs="write",
    ),
    Verb(
        "clone",
        "Create a twin of the VM, which goes on from the same instant",
        input=CloneInput,
        reads=lambda obj, _: [("volume", name) for name in dig(obj, "spec.volumes", [])],
        make=_make_twin,
        make_before=_make_source,
        needs="write",
    ),
)
