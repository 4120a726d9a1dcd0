"""Make the objects of a backup's restore: a VM, or new volumes, which begin from a snapshot that is fetched from the repository.
Pure."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from weft.kinds.allocation import LOCAL
from weft.kinds.fields.cells import dig
from weft.kinds.fields.subject import split_subject
from weft.kinds.parts.snapshot.restored import ROOT, make_restored_vm, make_restored_volumes, name_volume
from weft.kinds.record import Object
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import cut_name
from weft.objects.schema import field

# What nobody says of a VM that is restored: where its disks come from, and its volumes, which have a field of their own.
_RESTORE_SETS = ("origin", "volumes", "disk", "pool")


class RestoreBackupInput(msgspec.Struct, kw_only=True):
    new_name: Annotated[
        str, field("Name of the new VM or volume; of a container's volumes what their names begin with", name=True)
    ]
    volumes: Annotated[
        dict[str, str], field("Names of the new volumes, by those that they had; NEW_NAME-VOLUME where unset")
    ] = {}
    labels: Annotated[dict[str, str], field("Labels of the new VM or volume")] = {}
    spec: Annotated[dict[str, Any], field("Fields of the new VM's spec that differ from those that it had")] = {}
    instant: Annotated[bool, field("Start the VM before its disks are copied from the repository")] = False
    pool: Annotated[str, field("Storage pool of its disks; local is a node's own", name=True)] = LOCAL


def require_ready(obj: Object, verb: str) -> None:
    """Raises IllegalTransition."""
    what, phase = f"backup/{obj['name']}", dig(obj, "status.phase", "Pending")
    if phase == "Ready":
        return
    why = f"; {dig(obj, 'status.message')}" if dig(obj, "status.message") else ""
    waits = phase in ("Pending", "Snapshotting", "Copying")
    raise IllegalTransition(
        f"{what} is {phase}, so it can't be {verb} yet{why}" if waits else f"{what} is {phase}{why}",
        hint=f"weft wait {what}" if waits else "choose another backup: weft backup list",
        details={"phase": phase},
    )


def make_restored(obj: Object, given: RestoreBackupInput, _: str) -> dict[str, Any]:
    """The manifest of what is requested: the VM, the volume, or the first of a container's volumes."""
    require_ready(obj, "restored")
    _refuse_strange(obj, given)
    if not _is_of_vm(obj):
        return _make_volumes(obj, given)[0]
    disks = {name: disk.get("size", 0) for name, disk in dig(obj, "status.disks", {}).items()}
    snapshot = _name_snapshot(obj, given.new_name)
    former = {**dig(obj, "status.workload_spec", {}), "pool": given.pool}
    made = make_restored_vm(former, given.new_name, snapshot, disks, memory=False)
    volumes = [_name_volume(given, disk) for disk in disks if disk != ROOT]
    labels = {"labels": given.labels} if given.labels else {}
    return {**made, **labels, "spec": {**made["spec"], **given.spec, "volumes": volumes}}


def _refuse_strange(obj: Object, given: RestoreBackupInput) -> None:
    """Raises InvalidInput."""
    what = f"backup/{obj['name']}"
    if split_subject(str(dig(obj, "spec.of", "")))[0] == "project":
        raise InvalidInput(
            f"{what} is of a project, whose objects are created one by one",
            field="new_name",
            hint=f"weft backup restore {obj['name']} does that",
        )
    if given.spec and not _is_of_vm(obj):
        raise InvalidInput(f"spec: {what} is not of a VM", field="spec", hint="leave spec out")
    if own := sorted(given.spec.keys() & set(_RESTORE_SETS)):
        raise InvalidInput(f"spec.{own[0]}: the restore itself sets it", field=f"spec.{own[0]}", hint="leave it out")
    if unknown := sorted(given.volumes.keys() - (dig(obj, "status.disks") or {}).keys()):
        raise InvalidInput(
            f"volumes.{unknown[0][:80]}: {what} has no such disk",
            field="volumes",
            hint=f"weft backup describe {obj['name']}",
        )


def _name_volume(given: RestoreBackupInput, disk: str) -> str:
    return given.volumes.get(disk) or name_volume(given.new_name, disk)


def make_parts(obj: Object, given: RestoreBackupInput, _: str) -> list[dict[str, Any]]:
    """The manifests of the snapshot that is fetched, and of the other volumes that begin from it."""
    name, disks = _name_snapshot(obj, given.new_name), dig(obj, "status.disks", {})
    image = given.spec.get("image") or dig(obj, "status.image", "")
    marks = {"automatic": "backup", "backup": obj["name"], "image": image, "instant": given.instant, "pool": given.pool}
    if given.instant and not _is_of_vm(obj):
        raise InvalidInput(
            f"instant: backup/{obj['name']} is of {dig(obj, 'spec.of')}, and only a VM runs before its disks are copied",
            field="instant",
            hint="leave instant out",
        )
    if given.instant and given.pool != LOCAL:
        raise InvalidInput(
            "instant: a VM runs from a backup only while its disks are copied to its node's own pool, local",
            field="instant",
            hint="leave instant out, or the pool",
        )
    snapshot = {"kind": "snapshot", "name": name, "spec": {"of": dig(obj, "spec.of")}, "marks": marks}
    if not _is_of_vm(obj):
        return [snapshot, *_make_volumes(obj, given)[1:]]
    volumes = {disk: (one.get("size", 0), given.pool) for disk, one in disks.items()}
    made = make_restored_volumes(volumes, given.new_name, name)
    return [snapshot, *({**one, "name": _name_volume(given, one["marks"]["origin"]["disk"])} for one in made)]


def _is_of_vm(obj: Object) -> bool:
    return split_subject(str(dig(obj, "spec.of", "")))[0] == "vm"


def _make_volumes(obj: Object, given: RestoreBackupInput) -> list[dict[str, Any]]:
    """Volumes whose data comes without a VM."""
    snapshot, is_one = _name_snapshot(obj, given.new_name), str(dig(obj, "spec.of", "")).startswith("volume/")
    return [
        {
            "kind": "volume",
            "name": given.new_name if is_one else _name_volume(given, name),
            **({"labels": given.labels} if given.labels else {}),
            "spec": {"size": disk.get("size", 0), **({"pool": given.pool} if given.pool != LOCAL else {})},
            "marks": {"origin": {"snapshot": snapshot, "disk": name, "alone": True}},
        }
        for name, disk in sorted(dig(obj, "status.disks", {}).items())
    ]


def _name_snapshot(obj: Object, new_name: str) -> str:
    """Name of the snapshot that the new objects begin from; it goes once they have begun."""
    return cut_name(new_name, f"-{obj['uid'][:8]}-back")
