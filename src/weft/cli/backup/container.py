"""Restores of a container's backup: the container's volumes come back, and the container doesn't."""

from __future__ import annotations

from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.wait.finish import Done
from weft.kinds.fields.cells import dig
from weft.kinds.fields.mount import read_mount
from weft.kinds.parts.snapshot.restored import name_volume
from weft.kinds.record import Object
from weft.kinds.registry import BY_NAME


def is_of_container(backup: Object) -> bool:
    return str(dig(backup, "spec.of", "")).startswith("container/")


def describe_restored(backup: Object) -> str:
    """Describe, before a restore, what it brings back."""
    return (
        f"{dig(backup, 'spec.of')} itself is in no backup: only its volumes are restored, and no container is created"
    )


def list_restored(session: Session, backup: Object, made: Object, new_name: str) -> list[Done]:
    """List all that a restore made: its answer, and of a container the other volumes."""
    disks = dig(backup, "status.disks", {}) or {} if is_of_container(backup) else {}
    names = sorted({name_volume(new_name, disk) for disk in disks} - {made["name"]})
    found = [made, *(session.client.get(made["kind"], name) for name in names)]
    return [Done(Target(BY_NAME[one["kind"]], one["name"]), one, "create") for one in found]


def describe_next(backup: Object, new_name: str, project: str) -> str:
    """Describe, after a restore, the command for a container that has the volumes; ``project`` ends what to type."""
    mounts = map(read_mount, dig(backup, "status.workload_spec.mounts", []) or [])
    paths = {mount.volume: f"{mount.path}{':ro' if mount.read_only else ''}" for mount in mounts}
    flags = [
        f" --mount {name_volume(new_name, disk)}:{paths.get(disk, '/PATH')}"
        for disk in sorted(dig(backup, "status.disks", {}) or {})
    ]
    return f"no container was created; next: weft container create {new_name} --image IMAGE{''.join(flags)}{project}"
