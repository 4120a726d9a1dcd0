"""Turn a decision into writes: the allocation, the addresses that the workload lacked, the Decision that explains it, and the
workload's conditions, in one commit. Pure.

A placement is stored only if workload, node and volumes are unchanged since the decision, and no other workload has one of its
addresses: a node that was cordoned, lost or shrunk in the meantime fails the commit, and the workload is decided anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.contracts.store import Absent, AtRevision, Present, Put
from weft.contracts.trace.context import pass_on
from weft.informer.addresses import make_addressed, make_endpoint
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item, View
from weft.informer.workloads import pass_on_starts, record_of, spec_of
from weft.kinds.allocation import (
    ALLOCATION,
    AllocatedGpu,
    AllocatedNic,
    AllocationReport,
    AllocationSpec,
    allocation_name,
    set_loss_guard,
)
from weft.kinds.arrival import FROM_UID
from weft.kinds.decision import DECISION, DecisionSpec
from weft.kinds.endpoint import EndpointStatus
from weft.kinds.node import NodeReport, NodeSpec, NodeStatus, pool_id
from weft.kinds.parts.workload import WorkloadMarks
from weft.objects.envelope import Condition, Envelope, merge_part, set_condition
from weft.objects.identity import object_key
from weft.objects.quantity import format_time
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.table.devices import WHOLE
from weft.scheduler.table.facts import Load
from weft.scheduler.workload.request import Candidate, Waiting, locate_volumes

SOURCE = "scheduler"


# Updates the status in the copy of a workload's envelope that is written with its allocation; returns events for the journal.
StatusUpdate = Callable[[View, Item, Envelope, Item, float], list[Event]]


def no_status_update(view: View, workload: Item, envelope: Envelope, allocation: Item, now: float) -> list[Event]:
    """The controller of workloads writes the status a moment later."""
    return []


class Timing(msgspec.Struct, frozen=True):
    """When a decision was made (unix seconds) and how long it took."""

    at: float
    took_ms: float


def plan_placement(
    view: View,
    candidate: Candidate,
    node: Item,
    uid: str,
    load: Load,
    explanation: Explanation,
    timing: Timing,
    log_line: str,
    update_status: StatusUpdate,
) -> Commit:
    """Give ``candidate`` a place on ``node``: an allocation with this ``uid`` that takes ``load``."""
    workload = candidate.workload
    at = EndpointStatus(
        node=node.envelope.name,
        node_address=node.report(NodeReport).address or None,
        groups=sorted(group.uid for group in candidate.groups),
    )
    reserved = [(nic, make_endpoint(workload, nic.reserved, at, timing.at)) for nic in candidate.nics if nic.reserved]
    endpoints = {nic.index: endpoint for nic, endpoint in reserved}
    nics = [nic.allocate(endpoints.get(nic.index)) for nic in candidate.nics]
    allocation = _make_allocation(candidate, node, uid, load, nics, timing.at)
    where = f"on {node.envelope.name}"
    if candidate.lease is not None and candidate.lease.start > timing.at:
        where = f"{where}, from {format_time(candidate.lease.start)}"
    if candidate.slot is not None:
        where = f"{where}, in reservation/{spec_of(workload).reservation}"
    placed = Condition("Placed", "True", "Placed", where, timing.at, workload.envelope.generation)
    envelope = edit(workload)
    set_condition(envelope, placed)
    if reserved:
        set_condition(envelope, make_addressed(workload, candidate.nics, None, timing.at))
    events = update_status(view, workload, envelope, allocation, timing.at)
    decision = Item(make_decision(view, workload, candidate, explanation, timing))
    made = [allocation, *endpoints.values(), decision, Item(envelope)]
    return Commit(
        key=workload.key,
        writes=[put(item.envelope) for item in made],
        preconditions=[
            unchanged(workload),
            unchanged(node),
            Absent(allocation.key),
            *(Absent(endpoint.key) for endpoint in endpoints.values()),
            # A VM that arrives with a MAC of its own writes its network: then the MACs that are free are looked at again.
            *dict.fromkeys(unchanged(nic.network) for nic, _ in reserved),
            *(AtRevision(item.key, item.envelope.revision) for item in candidate.volume_items),
            *([unchanged(candidate.begins.snapshot)] if candidate.begins is not None else []),
            *([Present(candidate.slot)] if candidate.slot is not None else []),
        ],
        events=[_event(workload, "Normal", "Placed", log_line), *_notes(candidate, explanation), *events],
        made=made,
        planned_at=timing.at,
    )


def plan_refusal(view: View, candidate: Candidate, explanation: Explanation, timing: Timing) -> Commit:
    """Record why no node fits."""
    workload = candidate.workload
    refused = Condition(
        "Placed", "False", explanation.error, explanation.message, timing.at, workload.envelope.generation
    )
    writes = [put_decision(view, workload, candidate, explanation, timing), _put_waiting(workload, refused)]
    return Commit(
        key=workload.key,
        writes=[write for write in writes if write is not None],
        preconditions=[unchanged(workload)],
        events=[_event(workload, "Warning", explanation.error, explanation.message), *_notes(candidate, explanation)],
        planned_at=timing.at,
    )


def plan_waiting(workload: Item, waiting: Waiting, now: float) -> Commit | None:
    """Record what a workload waits for, whatever nodes there are; None if nothing changes."""
    condition = Condition("Placed", "False", waiting.reason, waiting.message, now, workload.envelope.generation)
    addressed = make_addressed(workload, (), waiting.address, now) if waiting.address is not None else None
    write = _put_waiting(workload, condition, addressed)
    if write is None:
        return None
    type_: Literal["Normal", "Warning"] = "Warning" if waiting.address and waiting.address.lasts else "Normal"
    event = _event(workload, type_, waiting.reason, waiting.message)
    return Commit(workload.key, [write], [unchanged(workload)], [event])


def plan_addresses(candidate: Candidate, now: float) -> Commit:
    """Give it the addresses that it lacks before it has a place: for a gang that is too large for one commit."""
    workload = candidate.workload
    envelope = edit(workload)
    set_condition(envelope, make_addressed(workload, candidate.nics, None, now))
    made = [*(make_endpoint(workload, spec, EndpointStatus(), now) for spec in candidate.reserved), Item(envelope)]
    return Commit(
        key=workload.key,
        writes=[put(item.envelope) for item in made],
        preconditions=[
            unchanged(workload),
            *(Absent(item.key) for item in made[:-1]),
            *dict.fromkeys(unchanged(nic.network) for nic in candidate.nics),
        ],
        made=made,
    )


def plan_adopted(workload: Item, allocations: Sequence[Item], now: float) -> Commit | None:
    """Record that a workload has a place that no decision gave it, or one that it migrated to; None if nothing changes."""
    placed = workload.envelope.condition("Placed")
    elsewhere = has_migrated_from(workload, allocations)
    if placed is not None and placed.status == "True" and not elsewhere:
        return None
    node = allocations[0].spec(AllocationSpec).node
    reason, message = ("Placed", f"on {node}") if elsewhere else ("Adopted", f"found on {node}")
    condition = Condition("Placed", "True", reason, message, now, workload.envelope.generation)
    write = _put_condition(workload, condition)
    return None if write is None else Commit(workload.key, [write], [unchanged(workload)])


def has_migrated_from(workload: Item, allocations: Sequence[Item]) -> bool:
    """Whether its only allocation is on another node than its condition Placed names."""
    placed = workload.envelope.condition("Placed")
    if len(allocations) != 1 or placed is None or (placed.status, placed.reason) != ("True", "Placed"):
        return False
    node = allocations[0].spec(AllocationSpec).node
    return not f"{placed.message},".startswith(f"on {node},")


def plan_regrouped(workload: Item, allocation: Item, memberships: list[str]) -> Commit:
    """Write a workload's new groups into its allocation: a change of groups migrates nothing."""
    place = edit(allocation)
    place.spec = merge_part(
        place.spec, msgspec.structs.replace(allocation.spec(AllocationSpec), memberships=memberships)
    )
    return Commit(workload.key, [put(place)], [unchanged(workload), unchanged(allocation)])


def _make_allocation(
    candidate: Candidate, node: Item, uid: str, load: Load, nics: list[AllocatedNic], now: float
) -> Item:
    workload = candidate.workload
    workload_spec, record = spec_of(workload), record_of(workload)
    ask, arriving = record.needs(workload_spec), candidate.arriving
    spec = AllocationSpec(
        node=node.envelope.name,
        node_uid=node.uid,
        workload=workload.envelope.ref,
        workload_generation=workload.envelope.generation,
        incarnation=candidate.incarnation,
        desired=workload_spec.run,
        resources=candidate.resources,
        cpu_model=choose_cpu(node, ask.cpu_model) if arriving is None else arriving.cpu_model,
        role="active" if arriving is None else "target",
        migration=arriving.migration if arriving is not None else None,
        instance=workload.envelope.labels.get(FROM_UID, ""),
        image=candidate.image,
        volumes=locate_volumes(candidate.volumes, node.report(NodeReport)),
        nics=nics,
        groups=candidate.groups,
        iso=candidate.iso,
        restart=workload_spec.restart,
        grace_seconds=workload_spec.grace,
        memberships=list(load.groups),
        extras=dict(load.extras),
        gpus=read_gpus(node, load),
        lease=candidate.lease,
        slot=candidate.slot.rpartition("/")[2] if candidate.slot is not None else None,
        pool=ask.pool,
        pool_id=pool_id(node.report(NodeReport), ask.pool),
        continues=candidate.continues,
        origin=candidate.begins.origin if candidate.begins is not None else None,
        **record.allocate(workload_spec, workload.marks(WorkloadMarks)),
    )
    spec = set_loss_guard(spec, on=workload_spec.on_node_loss != "wait", after=node.spec(NodeSpec).autonomy_seconds)
    return make_allocation(workload, pass_on_starts(spec, workload), uid, now)


def make_allocation(workload: Item, spec: AllocationSpec, uid: str, now: float) -> Item:
    """A workload's new allocation as a whole object."""
    of, report = workload.envelope, AllocationReport()
    name = allocation_name(spec.node_uid, uid)
    envelope = ALLOCATION.make(name, spec, now, uid=uid, labels=of.labels, owner=of, report=report)
    pass_on(of, envelope)
    return Item(envelope, spec=spec, report=report)


def choose_cpu(node: Item, spec: str) -> str:
    """The CPU model that a guest gets on a node; "" if the node reports none."""
    models = node.report(NodeReport).cpu_models
    if spec == "host":
        return models[0] if models else ""
    return node.status(NodeStatus).cpu_model if spec == "common" else spec


def read_gpus(node: Item, load: Load) -> list[AllocatedGpu]:
    """The devices of a load; whole ones with their addresses on the node's bus."""
    there = node.report(NodeReport).gpus if load.gpus else []
    return [
        AllocatedGpu(index=index, share=share, address=there[index].address if share == WHOLE else "")
        for index, share in load.gpus
    ]


def put_decision(view: View, about: Item, candidate: Candidate, explanation: Explanation, timing: Timing) -> Put:
    return put(make_decision(view, about, candidate, explanation, timing))


def make_decision(view: View, about: Item, candidate: Candidate, explanation: Explanation, timing: Timing) -> Envelope:
    """The Decision ``about`` a workload, or a Migration of it."""
    of = about.envelope
    spec = DecisionSpec(
        workload=candidate.workload.envelope.ref,
        generation=candidate.workload.envelope.generation,
        policy=candidate.request.strategy,
        named=candidate.named,
        basis=candidate.request.basis,
        at=timing.at,
        took_ms=timing.took_ms,
        nodes=explanation.nodes,
        verdicts=explanation.verdicts,
        refused_by=explanation.refused_by,
        error=explanation.error,
        message=explanation.message,
        nearest=explanation.nearest,
        nearest_node=explanation.nearest_node,
        gang=explanation.gang,
        notes=[
            *candidate.preempts,
            *candidate.given_up,
            *candidate.skipped,
            *explanation.warnings,
            *explanation.notes,
        ],
    )
    name = f"{of.kind}.{of.name}"
    former = view.get(object_key("decision", of.project, name))
    if former is None or former.envelope.owner != of.ref:
        return DECISION.make(name, spec, timing.at, project=of.project, owner=of)
    envelope = edit(former)
    envelope.generation += 1
    envelope.spec = merge_part(envelope.spec, spec)
    return envelope


def _put_condition(workload: Item, condition: Condition) -> Put | None:
    envelope = edit(workload)
    return put(envelope) if set_condition(envelope, condition) else None


def _put_waiting(workload: Item, placed: Condition, addressed: Condition | None = None) -> Put | None:
    """Record why it has no place; a former condition that it lacks an address is removed."""
    envelope = edit(workload)
    changed = set_condition(envelope, placed)
    if addressed is not None:
        changed = set_condition(envelope, addressed) or changed
    elif any(each.type == "Addressed" and each.status == "False" for each in envelope.conditions):
        envelope.conditions = [each for each in envelope.conditions if each.type != "Addressed"]
        changed = True
    return put(envelope) if changed else None


def _notes(candidate: Candidate, explanation: Explanation) -> list[Event]:
    """Events on preferences that were given up, skipped policies, and warnings on its spec."""
    given_up = [_event(candidate.workload, "Normal", "PreferenceGivenUp", sentence) for sentence in candidate.given_up]
    given_up += [_event(candidate.workload, "Warning", "PolicySkipped", sentence) for sentence in candidate.skipped]
    return given_up + [
        _event(candidate.workload, "Warning", "ConstraintWarning", sentence) for sentence in explanation.warnings
    ]


def _event(workload: Item, type_: Literal["Normal", "Warning"], reason: str, message: str) -> Event:
    return Event(type_, reason, message, workload.envelope.ref, SOURCE)
