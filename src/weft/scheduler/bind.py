"""What a decision writes: the allocation, the Decision that explains it, and the VM's condition, in one commit. Pure.

A placement stands only if VM, node and volumes are what the decision saw: a node that was cordoned, lost or shrunk in the
meantime fails the commit, and the VM is decided anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from weft.client.commit import Commit, edit, put, unchanged
from weft.client.view import Item, View
from weft.contracts.journal import Event
from weft.contracts.store import Absent, AtRevision, Put
from weft.kinds.allocation import AllocatedGpu, AllocationReport, AllocationSpec, allocation_name
from weft.kinds.decision import DecisionSpec
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Condition, Envelope, merge_part, set_condition
from weft.objects.identity import new_uid, object_key
from weft.scheduler.explain import Explanation
from weft.scheduler.facts import Load
from weft.scheduler.request import Candidate, Waiting

SOURCE = "scheduler"


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
) -> Commit:
    """Give ``candidate`` a place on ``node``: an allocation with this ``uid`` that takes ``load``."""
    vm = candidate.vm
    allocation = _make_allocation(candidate, node, uid, load, timing.at)
    placed = Condition("Placed", "True", "Placed", f"on {node.envelope.name}", timing.at, vm.envelope.generation)
    writes = [put(allocation), _put_decision(view, candidate, explanation, timing), _put_condition(vm, placed)]
    return Commit(
        key=vm.key,
        writes=[write for write in writes if write is not None],
        preconditions=[
            unchanged(vm),
            unchanged(node),
            Absent(allocation.key),
            *(AtRevision(item.key, item.envelope.revision) for item in candidate.volume_items),
        ],
        events=[_event(vm, "Normal", "Placed", log_line), *_notes(candidate, explanation)],
    )


def plan_refusal(view: View, candidate: Candidate, explanation: Explanation, timing: Timing) -> Commit:
    """Say why no node fits."""
    vm = candidate.vm
    refused = Condition("Placed", "False", explanation.error, explanation.message, timing.at, vm.envelope.generation)
    writes = [_put_decision(view, candidate, explanation, timing), _put_condition(vm, refused)]
    return Commit(
        key=vm.key,
        writes=[write for write in writes if write is not None],
        preconditions=[unchanged(vm)],
        events=[_event(vm, "Warning", explanation.error, explanation.message), *_notes(candidate, explanation)],
    )


def plan_waiting(vm: Item, waiting: Waiting, now: float) -> Commit | None:
    """Say what a VM waits for before nodes are looked at; None if that is said already."""
    condition = Condition("Placed", "False", waiting.reason, waiting.message, now, vm.envelope.generation)
    write = _put_condition(vm, condition)
    if write is None:
        return None
    return Commit(vm.key, [write], [unchanged(vm)], [_event(vm, "Normal", waiting.reason, waiting.message)])


def plan_adopted(vm: Item, allocations: Sequence[Item], now: float) -> Commit | None:
    """Say that a VM has a place that no decision of ours gave it; None if that is said already."""
    placed = vm.envelope.condition("Placed")
    if placed is not None and placed.status == "True":
        return None
    node = allocations[0].spec(AllocationSpec).node
    condition = Condition("Placed", "True", "Adopted", f"found on {node}", now, vm.envelope.generation)
    write = _put_condition(vm, condition)
    return None if write is None else Commit(vm.key, [write], [unchanged(vm)])


def plan_regrouped(vm: Item, allocation: Item, memberships: list[str]) -> Commit:
    """Count a VM in other groups, where it is: a change of these moves nothing."""
    place = edit(allocation)
    place.spec = merge_part(
        place.spec, msgspec.structs.replace(allocation.spec(AllocationSpec), memberships=memberships)
    )
    return Commit(vm.key, [put(place)], [unchanged(vm), unchanged(allocation)])


def _make_allocation(candidate: Candidate, node: Item, uid: str, load: Load, now: float) -> Envelope:
    vm = candidate.vm
    wish = vm.spec(VmSpec)
    spec = AllocationSpec(
        node=node.envelope.name,
        node_uid=node.uid,
        workload=vm.envelope.ref,
        workload_generation=vm.envelope.generation,
        incarnation=candidate.incarnation,
        wish=wish.run,
        boots=wish.boots,
        resources=candidate.resources,
        machine=wish.machine,
        image=candidate.image,
        volumes=candidate.volumes,
        nics=candidate.nics,
        groups=candidate.groups,
        user_data=wish.user_data,
        ssh_keys=wish.ssh_keys,
        users=wish.users,
        firmware=wish.firmware,
        iso=candidate.iso,
        screen=wish.screen,
        restart=wish.restart,
        grace_seconds=wish.grace,
        memberships=list(load.groups),
        extras=dict(load.extras),
        gpus=[AllocatedGpu(index=index, share=share) for index, share in load.gpus],
    )
    return Envelope(
        kind="allocation",
        name=allocation_name(node.uid, uid),
        uid=uid,
        labels=vm.envelope.labels,
        owner=vm.envelope.ref,
        created_at=now,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        report=msgspec.Raw(msgspec.json.encode(AllocationReport())),
        finalizers=["node"],
    )


def _put_decision(view: View, candidate: Candidate, explanation: Explanation, timing: Timing) -> Put:
    vm = candidate.vm.envelope
    spec = DecisionSpec(
        workload=vm.ref,
        policy=candidate.request.strategy,
        named=candidate.named,
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
        notes=[*candidate.given_up, *candidate.skipped, *explanation.warnings],
    )
    name = f"{vm.kind}.{vm.name}"
    former = view.get(object_key("decision", vm.project, name))
    if former is None or former.envelope.owner != vm.ref:
        envelope = Envelope(
            kind="decision", name=name, uid=new_uid(), project=vm.project, owner=vm.ref, created_at=timing.at
        )
    else:
        envelope = edit(former)
        envelope.generation += 1
    envelope.spec = merge_part(envelope.spec, spec)
    return put(envelope)


def _put_condition(vm: Item, condition: Condition) -> Put | None:
    envelope = edit(vm)
    return put(envelope) if set_condition(envelope, condition) else None


def _notes(candidate: Candidate, explanation: Explanation) -> list[Event]:
    """What was given up of its wishes, and what of them looks wrong."""
    given_up = [_event(candidate.vm, "Normal", "PreferenceGivenUp", told) for told in candidate.given_up]
    given_up += [_event(candidate.vm, "Warning", "PolicySkipped", told) for told in candidate.skipped]
    return given_up + [_event(candidate.vm, "Warning", "ConstraintWarning", told) for told in explanation.warnings]


def _event(vm: Item, type_: Literal["Normal", "Warning"], reason: str, message: str) -> Event:
    return Event(type_, reason, message, vm.envelope.ref, SOURCE)
