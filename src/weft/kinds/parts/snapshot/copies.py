"""Copies that there are of a workload's root disk outside its node: backups, snapshots in a pool that other nodes share, replicas.
Pure."""

from __future__ import annotations

from collections.abc import Iterable

from weft.kinds.allocation import LOCAL, ROOT
from weft.kinds.fields.cells import dig
from weft.kinds.record import Object
from weft.kinds.registry import BY_NAME
from weft.objects.identity import Ref
from weft.objects.quantity import format_time

KINDS_WITH_COPIES = ("backup", "snapshot", "replication")


def has_root_disk(place: Object) -> bool:
    """Whether the spec of an allocation is that of a machine with a disk of its own on its node."""
    kind = BY_NAME.get(dig(place, "workload.kind", ""))
    return kind is not None and kind.snapshots == "machine" and dig(place, "resources.disk", 0) > 0


def describe_copies(objects: Iterable[Object], workload: Ref, node: str) -> str:
    """The newest of each sort, and what restores it; ``objects`` are those of the workload's project."""
    mine = [one for one in objects if dig(one, "status.workload_uid") == workload.uid]
    found = [
        _describe_newest(mine, "backup", "weft backup restore {name} --new-name NAME"),
        _describe_newest(
            [one for one in mine if _is_elsewhere(one, node)],
            "snapshot",
            "weft vm restore {of} --snapshot {name} --new-name NAME",
        ),
    ]
    found += [
        f"{_name_holder(one)} has a replica of {format_time(at)}"
        for one in mine
        if one["kind"] == "replication" and (at := dig(one, "status.point.taken_at"))
    ]
    return "; ".join(filter(None, found)) or "there is no backup, snapshot or replica of it"


def _name_holder(replication: Object) -> str:
    cluster = dig(replication, "spec.cluster")
    return f"cluster {cluster}" if cluster else f"node {dig(replication, 'status.node')}"


def _is_elsewhere(snapshot: Object, node: str) -> bool:
    """Whether the root disk's snapshot lies where other nodes have it too."""
    return bool(dig(snapshot, "status.node") != node or dig(snapshot, f"status.disks.{ROOT}.pool", LOCAL) != LOCAL)


def _describe_newest(objects: Iterable[Object], kind: str, restore: str) -> str:
    ready = [one for one in objects if one["kind"] == kind and dig(one, "status.phase") == "Ready"]
    newest = max(ready, key=lambda one: dig(one, "status.taken_at", 0.0) or 0.0, default=None)
    if newest is None:
        return ""
    of = str(dig(newest, "spec.of", "")).partition("/")[2]
    command = restore.format(of=of, name=newest["name"])
    return f"{kind}/{newest['name']} has it as of {format_time(dig(newest, 'status.taken_at', 0.0) or 0.0)}: {command}"
