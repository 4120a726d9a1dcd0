"""``DELETE /v1/nodes/NAME?force=1``: gives up a node that doesn't come back; its workloads are placed on others.

Deletes the node's allocations and the Node. Volumes keep their home: a workload waits for data on a lost disk, and never gets an
empty one instead. The node's certificate stays valid: a node that returns is taken back once it has followed the deletion of its
allocations, and learns which of its guests have a later incarnation elsewhere, or were deleted since (``report.py``).
"""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import msgspec

from weft.api.admission.commit import read_again, retry
from weft.api.auth.authorise import GivenUp, given_up_key
from weft.api.context import ApiContext
from weft.api.node.ended import AT_ONCE, plan_stopped, report_stopped
from weft.api.request.call import Call
from weft.contracts.store import Absent, AtRevision, Delete, Precondition, Put, Write
from weft.kinds.allocation import LOCAL, AllocationSpec, is_lost
from weft.kinds.node import NodeSpec, NodeStatus, find_autonomy_end
from weft.kinds.parts.snapshot.copies import KINDS_WITH_COPIES, describe_copies, has_root_disk
from weft.kinds.record import Kind
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import kind_prefix, object_key
from weft.objects.quantity import format_duration, format_time

_MOST_PLACES = 4000  # allocations that are recorded of a node; guests of more stay as orphans


async def give_up(context: ApiContext, call: Call, kind: Kind, envelope: Envelope) -> Envelope:
    """Delete a lost node with all its allocations; its last state. Raises IllegalTransition while it is Ready or
    Autonomous."""
    if not kind.lifetime.runs_workloads:
        raise InvalidInput(f"force is only for a lost node; delete the {kind.title} without it", field="force")
    status, spec = decode_part(envelope.status, NodeStatus), decode_part(envelope.spec, NodeSpec)
    if status.phase == "Autonomous":
        raise refuse_autonomous(envelope.name, spec, status)
    if status.phase == "Ready":
        raise IllegalTransition(
            f'node "{envelope.name}" is Ready, and its workloads run: it can\'t be given up',
            hint="drain the node or delete its workloads; or switch it off and wait until it is NotReady",
        )
    lost: list[str] = []
    while (found := await retry(context, lambda: _forget_some(context, envelope))) is not None:
        lost += found
    said = f"by {call.actor.name}, with the allocations of {', '.join(lost) or 'no workload'}"
    if (until := status.autonomous_until) is not None and until > context.clock.now():
        said = f"{said}; its autonomy would have lasted until {format_time(until)}"
    if settings := describe_settings(envelope):
        said = f"{said}; if it comes back, set again: {settings}"
    context.add_event(envelope.ref, "GivenUp", said)
    return envelope


def refuse_autonomous(name: str, spec: NodeSpec, status: NodeStatus) -> IllegalTransition:
    """The error for deleting a node whose workloads go on without the server; it has the autonomy, which must end first."""
    until, autonomy = format_time(find_autonomy_end(spec, status) or 0.0), format_duration(spec.autonomy_seconds)
    return IllegalTransition(
        f'node "{name}" is Autonomous until {until} (autonomy {autonomy}): its workloads go on there',
        hint=f"if it doesn't come back: weft node set {name} --autonomy 0, then weft node delete {name} --force",
    )


def describe_settings(node: Envelope) -> str:
    """Pure. What people have set of the node and a returned one lacks, as they would see it; at most 300 characters."""
    spec, usual = (msgspec.to_builtins(one) for one in (decode_part(node.spec, NodeSpec), NodeSpec()))
    changed = [f"{name}={_write(value)}" for name, value in spec.items() if value != usual[name]]
    parts = [*(f"label {name}={value}" for name, value in sorted(node.labels.items())), *changed]
    return shorten(", ".join(parts), 300, placeholder=" …")


def _write(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={one}" for name, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


async def _forget_some(context: ApiContext, node: Envelope) -> list[str] | None:
    """Delete a few of the node's allocations, and with the last of them the Node. Their workloads; None once all are deleted. An
    allocation that was made meanwhile is deleted after the Node."""
    page = await context.store.list(object_key("allocation", None, f"{node.uid}."), limit=AT_ONCE)
    doomed = [(entry.key, entry.revision) for entry in page.entries]
    current = await read_again(context, node.key)
    if page.next is None and current is not None and current.uid == node.uid:
        doomed.append((current.key, current.revision))
    if not doomed:
        return None
    writes: list[Write] = [Delete(key) for key, _ in doomed]
    preconditions: list[Precondition] = [AtRevision(key, revision) for key, revision in doomed]
    places = [decode_envelope(entry.value) for entry in page.entries]
    stopped = await plan_stopped(context, places, writes, preconditions)
    if places:
        key = given_up_key(node.uid)
        former = await context.store.get(key)
        known = msgspec.json.decode(former.value, type=GivenUp).places if former is not None else []
        uids = [*known, *(place.uid for place in places)][-_MOST_PLACES:]
        writes.append(Put(key, msgspec.json.encode(GivenUp(node.name, uids, context.clock.now()))))
        preconditions.append(Absent(key) if former is None else AtRevision(key, former.revision))
    await context.store.commit(writes, preconditions)
    report_stopped(context, stopped, node.name, given_up=True)
    specs = [decode_part(place.spec, AllocationSpec) for place in places]
    for spec in specs:
        await _report_loss(context, node.name, spec)
    return [f"{spec.workload.kind}/{spec.workload.name}" for spec in specs]


async def _report_loss(context: ApiContext, node: str, spec: AllocationSpec) -> None:
    """Say of a workload that lost its root disk with the node, what becomes of it, and what copies there are."""
    if is_lost(spec) or not has_root_disk(msgspec.to_builtins(spec)):
        return
    found = await context.store.get(object_key(spec.workload.kind, spec.workload.project, spec.workload.name))
    workload = decode_envelope(found.value) if found is not None else None
    if workload is None or workload.uid != spec.workload.uid or workload.deleting_since is not None:
        return  # it needs no disk any more
    copies = describe_copies(await _read_objects(context, spec.workload.project), spec.workload, node)
    said = f"node {node}, which has its root disk, was given up: {describe_next(workload, spec, node)}; {copies}"
    context.add_event(spec.workload, "RootDiskLost", said, "Warning")


def describe_next(workload: Envelope, place: AllocationSpec, node: str) -> str:
    """Pure. What becomes of a workload whose root disk was on the node, in one clause."""
    wanted = msgspec.json.decode(workload.spec)
    volumes = [one.name for one in place.volumes if one.pool == LOCAL]
    if wanted.get("node") == node:
        return "it waits for that node, which its spec names"
    if volumes:
        return f"it waits for that node, which has volume {', '.join(volumes)}, too"
    starts = "" if wanted.get("run", "run") == "run" else " at its next start"
    return f"it gets a new one from its image{starts}"


async def _read_objects(context: ApiContext, project: str | None) -> list[dict[str, Any]]:
    """The objects of the project among which a copy of a disk may be."""
    found: list[dict[str, Any]] = []
    for kind in KINDS_WITH_COPIES:
        page = await context.store.list(kind_prefix(kind, project))
        found += [msgspec.json.decode(entry.value) for entry in page.entries]
    return found
