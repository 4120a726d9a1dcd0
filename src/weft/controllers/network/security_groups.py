"""Copies the rules of a workload's security groups into its allocations, and counts the workloads of each group.

Reads workloads, security groups, allocations; writes ``groups`` in allocations and securitygroup.status. Woken by workloads whose
groups change, by groups, and by new allocations (the scheduler gives them the rules of that moment).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.security_groups import read_groups
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec
from weft.kinds.parts.workload import WORKLOADS_BY_GROUP, WORKLOADS_BY_UID
from weft.kinds.registry import WORKLOADS, is_workload
from weft.kinds.securitygroup import SecurityGroupSpec, SecurityGroupStatus
from weft.objects.envelope import merge_part
from weft.objects.identity import object_key


class SecurityGroups:
    name = "securitygroups"
    kinds = (*WORKLOADS, "securitygroup", "allocation")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case kind if is_workload(kind):
                if has_changed(change, lambda item: (item.uid, spec_of(item).security_groups)):
                    return (change.key, *_groups_of(change))
            case "securitygroup":
                if has_changed(change, lambda item: (item.uid, item.spec(SecurityGroupSpec))):
                    return (change.key, *(item.key for item in view.find(WORKLOADS_BY_GROUP, change.key)))
            case "allocation":
                if has_changed(change, lambda item: (item.uid, item.spec(AllocationSpec).groups)):
                    return [
                        item.key for item in view.find(WORKLOADS_BY_UID, change.item.spec(AllocationSpec).workload.uid)
                    ]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            item = view.get(key)
            if item is None:
                continue
            if item.envelope.kind == "securitygroup":
                commit = plan_count(view, item)
                plan.commits += [commit] if commit is not None else []
            elif not item.deleting:
                plan.commits += plan_rules(view, item)
        return plan


def plan_count(view: View, group: Item) -> Commit | None:
    status = SecurityGroupStatus(used=view.count(WORKLOADS_BY_GROUP, group.key))
    if status == group.status(SecurityGroupStatus):
        return None
    envelope = edit(group)
    envelope.status = merge_part(envelope.status, status)
    return Commit(group.key, [put(envelope)], [unchanged(group)])


def plan_rules(view: View, workload: Item) -> list[Commit]:
    """Give each of a workload's allocations the rules of its present groups."""
    groups = read_groups(view, workload)
    if isinstance(groups, str):
        return []  # the API refuses unknown groups; until the group exists the former rules stay
    commits = []
    for allocation in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid):
        spec = allocation.spec(AllocationSpec)
        if allocation.deleting or spec.groups == groups:
            continue
        envelope = edit(allocation)
        envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(spec, groups=groups))
        envelope.generation += 1
        names = ", ".join(group.name for group in groups) or "none"
        event = Event("Normal", "SecurityGroups", f"security groups: {names}", workload.envelope.ref, "securitygroups")
        commits.append(Commit(workload.key, [put(envelope)], [unchanged(allocation), unchanged(workload)], [event]))
    return commits


def _groups_of(change: Changed) -> set[str]:
    items = [item for item in (change.old, change.new) if item is not None]
    return {
        object_key("securitygroup", item.envelope.project, name)
        for item in items
        for name in spec_of(item).security_groups
    }
