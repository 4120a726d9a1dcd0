"""The verbs of volumes and containers about snapshots: what each takes, when it makes sense, and what it makes or changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.fields.mount import read_mount
from weft.kinds.parts.convert_verb import refuse_converting
from weft.kinds.parts.snapshot.verbs import describe_lost, has_disks
from weft.kinds.record import Object, Verb
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound
from weft.objects.identity import cut_name
from weft.objects.lifecycle import describe_phase
from weft.objects.schema import field


class TakeInput(msgspec.Struct, kw_only=True):
    name: Annotated[str | None, field("Name of the snapshot; the object's and a few letters if unset", name=True)] = (
        None
    )


class RestoreVolumeInput(msgspec.Struct, kw_only=True):
    snapshot: Annotated[str, field("Snapshot to go back to", name=True)]
    keep: Annotated[bool, field("Keep what stands there as a snapshot")] = True


def is_made_alone(obj: Object) -> bool:
    """Whether a volume's data comes from a snapshot without a VM, and isn't there yet."""
    return bool(dig(obj, "marks.origin.alone", False)) and not dig(obj, "status.node_uid")


def is_going_back(obj: Object) -> bool:
    """Whether a volume's last restore in place is neither done nor given up."""
    return int(dig(obj, "actions.restore.generation", 0) or 0) > int(dig(obj, "status.restored", 0) or 0)


def refuse_vms_volume(volume: Object) -> None:
    """Raises IllegalTransition for a volume that a VM has, whether it runs or not: snapshots of it are taken with the VM's."""
    holder = dig(volume, "status.attached_to")
    if holder and holder["kind"] == "vm":
        name = holder["name"]
        raise IllegalTransition(
            f"volume/{volume['name']} is attached to vm/{name}: its snapshots are taken with those of the VM",
            reason="inUse",
            hint=f"take a snapshot of the VM with all its disks: weft vm snapshot {name}; or detach it: "
            f"weft volume detach {volume['name']} {name}",
        )


def _refuse_without_data(volume: Object) -> None:
    what = f"volume/{volume['name']}"
    if is_made_alone(volume):
        raise IllegalTransition(f"{what} is being made from a snapshot", hint=f"wait for it: weft wait {what}")
    if not dig(volume, "status.node_uid"):
        raise IllegalTransition(
            f"{what} has no data yet: nothing has used it",
            reason="noData",
            hint="attach it to a VM or mount it in a container first",
        )


def _refuse_unavailable(volume: Object) -> None:
    """Raises IllegalTransition for one whose node was deleted with its data."""
    if dig(volume, "status.phase") == "Unavailable":
        raise IllegalTransition(
            f"volume/{volume['name']} is Unavailable: {dig(volume, 'status.message', '')}",
            reason=dig(volume, "status.reason") or None,
            hint="join that node again, or restore from a backup: weft backup list",
        )


def _refuse_going_back(volume: Object) -> None:
    if is_going_back(volume):
        what, source = f"volume/{volume['name']}", dig(volume, "actions.restore.snapshot", "")
        raise IllegalTransition(
            f"{what} is being restored from snapshot/{source}",
            reason="isRestoring",
            hint=f"weft describe {what} shows how it goes",
        )


def _make(obj: Object, given: TakeInput, mark: str) -> dict[str, Any]:
    name = given.name or cut_name(obj["name"], f"-{mark}")
    return {"kind": "snapshot", "name": name, "spec": {"of": f"{obj['kind']}/{obj['name']}"}}


def _take_of_volume(obj: Object, given: TakeInput, mark: str) -> dict[str, Any]:
    if dig(obj, "spec.encrypted", False):
        raise IllegalTransition(
            f"volume/{obj['name']} is encrypted, and snapshots of encrypted volumes can't be taken",
            hint="copy its data inside the VM to a volume that isn't encrypted, or back it up from there",
        )
    refuse_vms_volume(obj)
    _refuse_without_data(obj)
    _refuse_unavailable(obj)
    _refuse_going_back(obj)
    return _make(obj, given, mark)


def _take_of_container(obj: Object, given: TakeInput, mark: str) -> dict[str, Any]:
    what, phase = f"container/{obj['name']}", dig(obj, "status.phase", "Pending")
    refuse_converting(obj)
    if not dig(obj, "spec.mounts", []):
        raise IllegalTransition(
            f"{what} mounts no volumes, and the rest of it comes from its image",
            reason="noVolumes",
            hint="a snapshot of a container is one of its volumes; give it one with --mount VOLUME:PATH",
        )
    if not has_disks(phase, dig(obj, "status.node")):
        raise IllegalTransition(
            f"{what} is {describe_phase(phase)}: its volumes have no place yet, so snapshot is not possible",
            hint=f"wait until it runs: weft wait {what}, or take snapshots of its volumes: weft volume snapshot NAME",
            details={"phase": str(phase), "verb": "snapshot"},
        )
    return _make(obj, given, mark)


def list_mounted(spec: Mapping[str, Any]) -> list[str]:
    """The names of the volumes that a container's spec mounts."""
    return list(dict.fromkeys(read_mount(mount).volume for mount in spec.get("mounts", [])))


def _restore(obj: Object, given: RestoreVolumeInput) -> dict[str, Any]:
    """Request to a volume that goes back to a snapshot of it. Raises IllegalTransition, NotFound."""
    what, source = f"volume/{obj['name']}", f"snapshot/{given.snapshot}"
    as_new = (
        f"restore it under a new name: weft volume restore {obj['name']} --snapshot {given.snapshot} --new-name NAME"
    )
    holder = dig(obj, "status.attached_to")
    if holder:
        user = f"{holder['kind']}/{holder['name']}"
        apart = (
            f"detach it first: weft volume detach {obj['name']} {holder['name']}; or restore all of the VM: "
            f"weft vm restore {holder['name']} --snapshot NAME"
            if holder["kind"] == "vm"
            else f"delete the container first, its volumes stay: weft container delete {holder['name']}"
        )
        raise IllegalTransition(
            f"{what} is in use by {user}, which keeps it from going back", reason="inUse", hint=f"{apart}; or {as_new}"
        )
    _refuse_without_data(obj)
    _refuse_unavailable(obj)
    _refuse_going_back(obj)
    snapshot = obj["others"].get(source)
    if snapshot is None:
        raise NotFound(f'snapshot "{given.snapshot[:80]}" not found', field="snapshot", hint="weft snapshot list")
    if dig(snapshot, "status.phase", "Pending") != "Ready" or snapshot.get("deleting_since") is not None:
        phase = dig(snapshot, "status.phase", "Pending") if snapshot.get("deleting_since") is None else "being deleted"
        raise IllegalTransition(
            f"{source} is {phase}, so {what} can't be restored from it{describe_lost(snapshot)}",
            hint=f"weft describe {source}",
        )
    disks = dig(snapshot, "status.disks", {}) or {}
    if obj["uid"] not in {disk.get("key") for disk in disks.values()}:
        of = dig(snapshot, "spec.of", "")
        raise IllegalTransition(
            f"{source} of {of} has an earlier volume of that name" if obj["name"] in disks else f"{source} is of {of}",
            field="snapshot",
            hint=as_new if obj["name"] in disks else f"list those of it: weft snapshot list --field spec.of={what}",
        )
    if dig(snapshot, "status.node_uid") != dig(obj, "status.node_uid") and not dig(obj, "status.pool_id"):
        raise IllegalTransition(
            f"{source} is on {dig(snapshot, 'status.node')}, and {what} on {dig(obj, 'status.node')}",
            field="snapshot",
            hint=as_new,
        )
    restore = {"snapshot": given.snapshot, "keep": given.keep, "generation": obj["generation"] + 1}
    return {"restore": restore}


def find_disk(snapshot: Object, disk: str) -> tuple[str, int, str]:
    """Name, size and pool of the snapshot's disk that becomes a volume: the only one if ``disk`` is empty. Raises
    InvalidInput."""
    what, disks = f"snapshot/{snapshot['name']}", dig(snapshot, "status.disks", {}) or {}
    names = [name for name in sorted(disks) if name != "root"]
    if not disk and len(names) == 1:
        disk = names[0]
    if disk not in names:
        if not names:
            raise InvalidInput(f"disk: {what} has no volumes", field="disk", hint="leave disk out")
        has = f"{what} has {', '.join(names)}"
        command = f"weft volume restore {names[0]} --snapshot {snapshot['name']} --new-name NEW"
        raise InvalidInput(
            f"disk: {has}; restore them one by one" if not disk else f"disk: {has}, and none named {disk[:60]!r}",
            field="disk",
            hint=command,
        )
    return disk, int(disks[disk].get("size", 0)), str(disks[disk].get("pool", ""))


def make_volume(snapshot: Object, name: str, disk: str) -> dict[str, Any]:
    """The manifest of a volume with the data of a snapshot's disk. Raises InvalidInput."""
    found, size, pool = find_disk(snapshot, disk)
    origin = {"snapshot": snapshot["name"], "disk": found, "alone": True}
    return {
        "kind": "volume",
        "name": name,
        "spec": {"size": size, **({"pool": pool} if pool else {})},
        "marks": {"origin": origin},
    }


VOLUME_VERBS = (
    Verb("snapshot", "Take a snapshot of the volume", input=TakeInput, make=_take_of_volume, needs="operate"),
    Verb(
        "restore",
        "Go back to a snapshot of the volume",
        input=RestoreVolumeInput,
        reads=lambda _, given: [("snapshot", given.snapshot)],
        act=_restore,
        needs="write",
    ),
)
CONTAINER_SNAPSHOT = Verb(
    "snapshot", "Take a snapshot of the container's volumes", input=TakeInput, make=_take_of_container, needs="operate"
)
