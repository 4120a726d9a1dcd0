"""The facts of a Migration to another cluster, read from the view, and the Arrival that it asks for there. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from weft.controllers.allocation.active import active_allocation
from weft.controllers.departure.plan import DepartureFacts
from weft.controllers.migration.controller import find_rival, read_endpoint
from weft.informer.shares import find_named
from weft.informer.view import Item, View
from weft.informer.workloads import count_starts
from weft.kinds.allocation import (
    ALLOCATIONS_BY_WORKLOAD,
    AllocationReport,
    AllocationSpec,
    is_restoring,
)
from weft.kinds.arrival import FROM_UID, LEFT_OUT
from weft.kinds.cluster import CLUSTER, ClusterMarks, ClusterSpec, ClusterStatus, describe_link, describe_unlinked
from weft.kinds.image import ImageStatus
from weft.kinds.migration import MigrationActions, MigrationSpec, MigrationStatus, migration_key, workload_key
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.parts.migration.departing import list_kept_here
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.vm import VmSpec
from weft.objects.identity import OWN_LABELS, cut_name, object_key

LINKED, LINK_REFUSED = "Linked", "linkRefused"
_BARRED = ("Refused", "Suspect", "Failed")  # phases of a link that waiting doesn't end


class Departure(msgspec.Struct, frozen=True):
    """A Migration with its facts, but for what the other cluster says."""

    item: Item
    facts: DepartureFacts
    workload: Item | None
    place: Item | None  # the active allocation of the VM, or the source


def read_departure(view: View, item: Item, now: float) -> Departure:
    spec, status = item.spec(MigrationSpec), item.status(MigrationStatus)
    workload = view.get(workload_key(item))
    key = migration_key(item.uid, status.tries)
    place = active_allocation(view, workload.uid) if workload is not None else None
    source = None
    for one in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid) if workload is not None else ():
        migration = one.spec(AllocationSpec).migration
        if migration is not None and migration.key == key and one.spec(AllocationSpec).role == "source":
            source = one
    link = view.get(object_key(CLUSTER.name, None, spec.cluster or ""))
    gone = link is None or link.deleting
    peer_uid = link.marks(ClusterMarks).peer_uid if link is not None else ""
    another = not gone and status.arrival is not None and status.arrival.cluster_uid not in ("", peer_uid)
    lives = workload is not None and not workload.deleting
    name = cut_name(item.envelope.name, f"-{item.uid[:8].lower()}")
    projects = link.spec(ClusterSpec).projects if link is not None else {}
    facts = DepartureFacts(
        name=item.envelope.name,
        spec=spec,
        actions=item.actions(MigrationActions),
        status=status,
        deleting=item.deleting,
        workload=workload.spec(VmSpec) if workload is not None and lives else None,
        starts=count_starts(workload) if workload is not None else 0,
        guarded=workload is not None and bool(workload.marks(WorkloadMarks).guard),
        place=read_endpoint(view, place),
        rival=find_rival(view, item),
        source=read_endpoint(view, source),
        key=key,
        arrival=name,
        manifest=make_arrival(view, item, workload, place, key) if workload is not None and place is not None else {},
        lacks=tuple(list_lacks(view, workload, place)) if workload is not None and place is not None else (),
        own_project=item.envelope.project or "",
        project=projects.get(item.envelope.project or "", ""),
        barred=_find_obstacle(link, spec.cluster or ""),
        unlinked=_find_why_unlinked(None if another else link, spec.cluster or ""),
        gone=gone or another,
        peer_uid=peer_uid,
        peer_ca=link.spec(ClusterSpec).ca if link is not None else "",
        now=now,
    )
    return Departure(item, facts, workload, source or place)


def _find_why_unlinked(link: Item | None, name: str) -> str:
    if link is None or link.deleting:
        return describe_unlinked(name)
    return describe_link(name, link.status(ClusterStatus))


def _find_obstacle(link: Item | None, name: str) -> tuple[str, str]:
    """Reason and message, with the remedy, of a link that only people mend; empty for another."""
    if link is None or link.deleting or (status := link.status(ClusterStatus)).phase not in _BARRED:
        return "", ""
    why, url = describe_link(name, status), link.spec(ClusterSpec).url
    if status.reason == LINK_REFUSED:
        why += f"; link it again: weft cluster link {name} {url} --token TOKEN, which weft cluster link-token draws at {name}"
    return status.reason or LINK_REFUSED, why


def list_lacks(view: View, workload: Item, place: Item) -> list[str]:
    """Features of the VM that another cluster can't provide, each with its remedy; beside what admission has refused."""
    spec, report, lacks = place.spec(AllocationSpec), place.report(AllocationReport), []
    name = workload.envelope.name
    lacks += list_kept_here(name, msgspec.to_builtins(workload.spec(VmSpec)), workload.marks(WorkloadMarks).guard)
    if not _is_directory(view, spec, spec.pool):
        lacks.append(
            f"pool {spec.pool} of its root disk isn't a folder of its node: weft vm migrate {name} --storage --pool local"
        )
    for volume in spec.volumes:
        if volume.encrypted:
            lacks.append(f"volume {volume.name} is encrypted: detach it first")
        elif not _is_directory(view, spec, volume.pool):
            relocate = f"weft vm migrate {name} --storage --pool local --volume {volume.name}"
            lacks.append(f"pool {volume.pool} of volume {volume.name} isn't a folder of its node: {relocate}")
    if spec.slot is not None:
        lacks.append("it is in a reservation of this cluster until that ends")
    if spec.snapshots or is_restoring(spec, report):
        lacks.append("its snapshot is being taken, or it is being restored: wait for that")
    if report.to_begin and spec.origin is not None:
        lacks.append("it has not begun from its snapshot yet: start it once first")
    if conversion := workload.status(WorkloadStatus).conversion:
        lacks.append(f"conversion/{conversion} of it is under way: confirm it, or undo it")
    return lacks


def _is_directory(view: View, spec: AllocationSpec, pool: str) -> bool:
    """Whether a pool of the allocation's node keeps disks as files, which are copied, or isn't reported."""
    report = _read_node(view, spec.node_uid)
    return all(one.driver == "directory" for one in report.pools if one.name == pool)


def _read_node(view: View, uid: str) -> NodeReport:
    return next((node.report(NodeReport) for node in view.find(NODES_BY_UID, uid)), NodeReport())


def make_arrival(view: View, item: Item, workload: Item, place: Item, key: str) -> dict[str, Any]:
    """The manifest of its Arrival, without name and project."""
    spec, at = workload.spec(VmSpec), place.spec(AllocationSpec)
    report = _read_node(view, at.node_uid)
    image = find_named(view, workload, "image", spec.image)
    whole = msgspec.to_builtins(spec)
    migration = item.spec(MigrationSpec)
    chosen = {network.partition(":")[0]: network for network in spec.networks}
    return {
        "kind": "arrival",
        "labels": {key_: text for key_, text in workload.envelope.labels.items() if not key_.startswith(OWN_LABELS)},
        "spec": {
            "of": migration.workload,
            "origin": workload.envelope.labels.get(
                FROM_UID, workload.uid
            ),  # cloud-init knows its guest by the first one
            "key": key,
            "workload": {name: value for name, value in whole.items() if name not in LEFT_OUT}
            | {"networks": [chosen[nic.network] for nic in at.nics if nic.network in chosen]},
            "disk": at.resources.disk,
            "volumes": {volume.name: volume.size for volume in at.volumes},
            "nics": [
                {"network": nic.network, "cidr": nic.cidr, "mac": nic.mac, "address": nic.address} for nic in at.nics
            ],
            "image": image.status(ImageStatus).sha256 if image is not None else at.image.sha256 if at.image else "",
            "node": at.node,
            "node_uid": at.node_uid,
            "allocation": place.uid,
            "incarnation": at.incarnation,
            "machine": _read_machine(report.machines, at.machine),
            "cpu_model": at.cpu_model,
            "bytes_per_second": migration.bytes_per_second,
            "pause_ms": migration.pause_ms,
            "timeout_seconds": migration.timeout_seconds,
        },
    }


def _read_machine(machines: Sequence[str], machine: str) -> str:
    """The machine type with its version, if the node reports it: the target must be able to build that very one."""
    return next((one for one in reversed(machines) if one.startswith(f"{machine}@")), machine)
