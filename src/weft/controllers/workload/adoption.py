"""Restores the allocation of a guest that runs without one, after an older store was restored under a running fabric, or on a node
that was lost and is back before the guest went on elsewhere.

Reads nodes' reports of such guests with their copies of the allocations; writes the allocation again, with its endpoints. Pure. It
adopts only a guest that certainly belongs to the workload, or that must be deleted with it; any other stays an orphan, and the
scheduler starts no second one.
"""

from __future__ import annotations

import msgspec

from weft.contracts.journal import Event
from weft.contracts.store import Absent, Precondition, Write
from weft.informer.addresses import make_endpoint
from weft.informer.commit import Commit, delete, edit, put, unchanged
from weft.informer.loss.former import has_gone_on
from weft.informer.view import Item, View
from weft.informer.workloads import name_of, record_of, spec_of
from weft.kinds.allocation import (
    ALLOCATION,
    AllocationReport,
    AllocationSpec,
    allocation_name,
    come_back,
    is_lost,
    set_desired,
)
from weft.kinds.endpoint import ENDPOINTS_BY_WORKLOAD, EndpointSpec, EndpointStatus, endpoint_name
from weft.kinds.image import ImageStatus
from weft.kinds.migration import MIGRATED_ON, MIGRATIONS_BY_UID, MigrationStatus
from weft.kinds.node import NODES_BY_ORPHAN, NodeReport, read_orphan
from weft.kinds.parts.nic import are_plugged
from weft.kinds.parts.node.orphan import OrphanCopy, read_copies
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.objects.envelope import Envelope, merge_part
from weft.objects.identity import named_key, object_key


def plan_adoption(view: View, workload: Item, silent: bool, now: float) -> Commit | None:
    """Adopt the guest that runs under this workload's name; None if there is none that certainly belongs to it. Adopting starts a
    guest that doesn't run: that waits until no node is ``silent``, which may have another one that runs. Copies of a deleted
    workload that are uncertain are adopted too, to be deleted with it, once no node is silent."""
    found = [
        (node, copy) for node in view.find(NODES_BY_ORPHAN, workload.key) for copy in find_copies(node, workload.key)
    ]
    fitting = [
        (node, copy)
        for node, copy in found
        if _is_of(view, workload, copy.spec) and not _has_gone_on(view, workload, copy)
    ]
    certain = [(node, copy) for node, copy in fitting if has_guest(view, copy, [other for _, other in fitting])]
    unsure = (
        [pair for pair in fitting if pair[1].standing in ("here", "open")] if workload.deleting and not silent else []
    )
    if not certain and not unsure:
        return None
    node, copy = max(certain or unsure, key=lambda pair: (pair[1].runs, pair[1].spec.incarnation, pair[0].key))
    if silent and not (copy.runs or workload.deleting):
        return None
    allocation = _make_allocation(workload, node, copy, now, sure=bool(certain))
    writes: list[Write] = [put(allocation)]
    lost = view.get(allocation.key)
    taken = unchanged(lost) if lost is not None and is_lost(lost.spec(AllocationSpec)) else Absent(allocation.key)
    preconditions: list[Precondition] = [unchanged(workload), unchanged(node), taken]
    place = EndpointStatus(node=node.envelope.name, node_address=node.report(NodeReport).address or None)
    used = set()
    for index, nic in enumerate(copy.spec.nics):
        key = object_key("endpoint", None, endpoint_name(nic.network_uid, nic.address))
        used.add(key)
        endpoint = view.get(key)
        known = endpoint.spec(EndpointSpec) if endpoint is not None else None
        if known is not None and known.workload.uid != workload.uid:
            if not workload.deleting:
                return None  # its address belongs to somebody else by now
            continue  # it is adopted to be deleted, which needs no endpoint
        if endpoint is None or known is None or known.mac != nic.mac:
            # Absent, or given to this workload anew before the guest was found, with another MAC: the guest's counts.
            spec = EndpointSpec(
                workload=workload.envelope.ref,
                network=nic.network,
                network_uid=nic.network_uid,
                index=index,
                mac=nic.mac,
                address=nic.address,
            )
            writes.append(put(make_endpoint(workload, spec, place, now, uid=nic.uid).envelope))
            preconditions.append(Absent(key) if endpoint is None else unchanged(endpoint))
    for endpoint in view.find(ENDPOINTS_BY_WORKLOAD, workload.uid):
        if endpoint.key not in used:
            writes.append(delete(endpoint))
            preconditions.append(unchanged(endpoint))
    # The workload is written too, so that another plan made with its old revision fails.
    envelope = edit(workload)
    status = msgspec.structs.replace(
        workload.status(WorkloadStatus),
        node=node.envelope.name,
        incarnation=max(workload.status(WorkloadStatus).incarnation, *(other.spec.incarnation for _, other in fitting)),
    )
    envelope.status = merge_part(envelope.status, status)
    writes.append(put(envelope))
    message = f"the guest on {node.envelope.name} that had no allocation belongs to {name_of(workload)} again"
    return Commit(
        workload.key, writes, preconditions, [Event("Normal", "Adopted", message, workload.envelope.ref, "workload")]
    )


def _has_gone_on(view: View, workload: Item, copy: OrphanCopy) -> bool:
    return has_gone_on(view, workload, copy.spec.node_uid, copy.uid, copy.spec.incarnation)


def has_guest(view: View, copy: OrphanCopy, others: list[OrphanCopy]) -> bool:
    """Whether the guest is certainly where this copy is from (decision 0041)."""
    if copy.standing == "here":
        return not any(copy.migration in other.spec.back_from for other in others)
    return copy.standing == "open" and copy.spec.role != "target" and _never_ran(view, copy.migration, others)


def _never_ran(view: View, key: str, others: list[OrphanCopy]) -> bool:
    """Whether the target of the migration ``key`` certainly never ran: by its node's report, or by the Migration's end."""
    if any((other.standing, other.migration) == ("abandoned", key) for other in others):
        return True
    ended = [item.status(MigrationStatus) for item in view.find(MIGRATIONS_BY_UID, key.partition(".")[0])]
    return any(status.phase in ("Failed", "Cancelled") and status.reason != MIGRATED_ON for status in ended)


def find_copies(node: Item, key: str) -> list[OrphanCopy]:
    """The node's copies of allocations of the workload at ``key`` that it reports as orphans."""
    report = node.report(NodeReport)
    uids = {orphan.uid for text in report.orphans if (orphan := read_orphan(text)) is not None and orphan.key == key}
    return [copy for copy in read_copies(report) if copy.uid in uids and copy.spec.node_uid == node.uid]


def _is_of(view: View, workload: Item, spec: AllocationSpec) -> bool:
    """Whether a guest is this workload's: made for it, or for one that was specified in the same way."""
    if spec.workload.uid == workload.uid:
        return True
    if workload.deleting:
        return False  # another workload's guest must not be deleted with it
    workload_spec = spec_of(workload)
    record = record_of(workload)
    images = [
        view.get(named_key("image", workload.envelope.project, name)) for name in record.needs(workload_spec).images[:1]
    ]
    wanted = [image.status(ImageStatus).sha256 if image is not None else "" for image in images]
    return (
        wanted == ([spec.image.sha256] if spec.image is not None else [])
        and record.is_alike(spec, workload_spec)
        and spec.resources.cpu == workload_spec.cpu
        and spec.resources.memory == workload_spec.memory
        and are_plugged(spec.nics, workload_spec.networks)
    )


def _make_allocation(workload: Item, node: Item, copy: OrphanCopy, now: float, *, sure: bool) -> Envelope:
    workload_spec = spec_of(workload)
    # A guest that is "here" came by its migration, if any: there the target did run it.
    own = come_back(copy.spec, copy.migration) if sure and copy.standing == "open" else copy.spec
    spec = msgspec.structs.replace(
        set_desired(own, workload_spec.run),
        role="active",
        migration=None,
        node=node.envelope.name,
        workload=workload.envelope.ref,
        workload_generation=workload.envelope.generation,
        restart=workload_spec.restart,
        grace_seconds=workload_spec.grace,
        guard=workload.marks(WorkloadMarks).guard,
    )
    of = workload.envelope
    made = ALLOCATION.make(
        allocation_name(node.uid, copy.uid),
        spec,
        now,
        uid=copy.uid,
        labels=of.labels,
        owner=of,
        report=AllocationReport(incarnation=spec.incarnation, restart_generation=spec.restart_generation),
    )
    made.deleting_since = now if workload.deleting else None  # at once: its node must not start it again first
    return made
