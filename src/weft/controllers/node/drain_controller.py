"""Drains nodes: migrates their workloads away, a few at a time.

Reads nodes, allocations, workloads, Migrations, disruption budgets; makes Migrations (labelled with the node's name), and writes
the node's condition Drained: what is left, what migrates, and what can't leave, by name and with its verdict. VMs migrate while
they run; containers stop here and start there, no more at once than their budgets let; what runs once ends here. What can't
migrate stays and is tried again. Woken by any of those. A drain's state is in these objects only, so it survives the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.contracts.store import Absent
from weft.contracts.trace.context import pass_on
from weft.controllers.loop import Plan
from weft.controllers.node.drain_plan import (
    DrainWindow,
    Evictee,
    Way,
    choose_next,
    describe_drain,
    describe_silence,
    find_end,
)
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.disruption.budgets import Budgets, guard
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import (
    ALLOCATIONS_BY_NODE,
    AllocationReport,
    AllocationSpec,
    has_nothing_to_migrate,
    is_lost,
    is_reservation,
)
from weft.kinds.fields.lease import LEASE_AT_RISK, LEASE_WAITS
from weft.kinds.migration import (
    ENDED,
    MIGRATION,
    MIGRATIONS_BY_WORKLOAD,
    MigrationActions,
    MigrationSpec,
    MigrationStatus,
)
from weft.kinds.node import NODES_BY_UID, SILENT_PHASES, NodeActions, NodeStatus, find_cordon
from weft.kinds.parts.migration.verb import MIGRATION_MODES, Mode
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.registry import WORKLOADS, is_workload
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.identity import cut_name, object_key
from weft.objects.lifecycle import Phase

SOURCE = "drain"
LABEL = "drain"  # of the Migrations that a drain has made: the node's name
TO_EACH = 2  # migrations that a node can take at once, as an average over all
RETRY_SECONDS = 20.0
FORCE = "drain with --force to stop it all the same"
HELD_SECONDS = 5.0  # until budgets are looked at again
_LIVE = (Phase.RUNNING, Phase.BOOT, Phase.PROLOG, Phase.UNKNOWN)
_SETTLING = (Phase.MIGRATE, Phase.SHUTDOWN, Phase.EPILOG, Phase.PENDING)


class Drain:
    name = "drain"
    # Nodes first: the others concern it only of drained nodes.
    kinds = ("node", "allocation", "migration", "disruptionbudget", *WORKLOADS)

    def __init__(self) -> None:
        self._drained: dict[str, None] = {}  # keys of nodes

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "node":
                concerned = change.key in self._drained
                if change.new is not None and change.new.actions(NodeActions).drain:
                    self._drained[change.key] = None
                else:
                    self._drained.pop(change.key, None)
                    concerned = concerned or change.item.envelope.condition("Drained") is not None
                if has_changed(
                    change, lambda item: (item.uid, item.envelope.generation, item.status(NodeStatus).phase)
                ):
                    return {*self._drained, *([change.key] if concerned else [])}
            case "allocation" if self._drained:
                nodes = view.find(NODES_BY_UID, change.item.spec(AllocationSpec).node_uid)
                return [node.key for node in nodes if node.key in self._drained]
            case "disruptionbudget":
                if has_changed(change, lambda item: (item.uid, item.envelope.generation, item.deleting)):
                    return list(self._drained)
            case "migration":
                status, label = change.item.status(MigrationStatus), change.item.envelope.labels.get(LABEL)
                return _named(label, status.source, status.target)
            case kind if self._drained and is_workload(kind):
                if has_changed(change, lambda item: (item.uid, item.status(WorkloadStatus).phase)):
                    return _named(change.item.status(WorkloadStatus).node)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan, budgets = Plan(), Budgets(view)
        for key in keys:
            node = view.get(key)
            if node is None or node.deleting:
                continue
            if not node.actions(NodeActions).drain:
                plan.commits += plan_return(view, node)
                continue
            begun_at = read_beginning(node, now)
            evictees = find_evictees(view, node, begun_at, now, budgets)
            window = DrainWindow.of(node.actions(NodeActions), now)
            left = {one.budget.key: one.left for one in budgets.allowances.values()}
            begins = window.open and not _is_silent(node)
            begun = choose_next(evictees, _count_free(view, node), left) if begins else []
            plan.commits += [plan_migration(node, evictee, now, budgets) for evictee in begun]
            commit = plan_condition(node, evictees, begun, window, now)
            plan.commits += [commit] if commit is not None else []
            waits = [evictee.retry_seconds for evictee in evictees if evictee.retry_seconds > 0]
            waits += [HELD_SECONDS] if any(one.held or (one.budgets and one.verdict) for one in evictees) else []
            waits += [window.changes_after] if window.changes_after > 0 else []
            if waits:
                plan.later[key] = min(waits)
        return plan


def read_beginning(node: Item, now: float) -> float:
    """When this drain began; an earlier one that was ended by uncordon doesn't count."""
    condition = node.envelope.condition("Drained")
    return condition.since if condition is not None and condition.status == "False" else now


def find_evictees(view: View, node: Item, begun_at: float, now: float, budgets: Budgets) -> list[Evictee]:
    """Workloads with an allocation on the node, also those that just migrate to it or are being deleted."""
    evictees = []
    for allocation in view.find(ALLOCATIONS_BY_NODE, node.uid):
        if is_reservation(allocation):
            continue  # the migrations controller releases it
        spec = allocation.spec(AllocationSpec)
        if is_lost(spec) or has_nothing_to_migrate(spec, allocation.report(AllocationReport)):
            continue
        evictee = Evictee(
            key=object_key(spec.workload.kind, spec.workload.project, spec.workload.name),
            name=f"{spec.workload.kind}/{spec.workload.name}",
            uid=spec.workload.uid,
            project=spec.workload.project,
            creator=allocation.envelope.creator,
            way="notYet",
            phase="",
            cost=spec.resources.memory,
            networks=tuple(sorted({nic.network_uid for nic in spec.nics})),
        )
        workload = view.get(evictee.key)
        stays = workload is not None and workload.uid == spec.workload.uid and not workload.deleting
        if workload is not None and stays and spec.role in ("active", "source"):
            phase = workload.status(WorkloadStatus).phase
            way = "runsOut" if spec.once else _find_way(phase, MIGRATION_MODES[spec.workload.kind][0])
            evictee = msgspec.structs.replace(evictee, way=way, phase=phase)
            if conversion := workload.status(WorkloadStatus).conversion:
                why = f"conversion/{conversion} is under way; confirm it, or undo it"
                evictee = msgspec.structs.replace(evictee, way="never", verdict=why)
            if waits_for_lease(spec, allocation.report(AllocationReport)):
                placed = workload.envelope.condition("Placed")
                why = placed.message if placed is not None and placed.reason == LEASE_AT_RISK else ""
                evictees.append(msgspec.structs.replace(evictee, way="notYet", verdict=why))
                continue
            evictee = _read_migrations(view, node, evictee, begun_at, now)
            if way == "cold" and not evictee.migration and not node.actions(NodeActions).drain_force:
                allowances = budgets.find(workload)
                held = min((one for one in allowances if not one.left), key=lambda one: one.most, default=None)
                keys = tuple(allowance.budget.key for allowance in allowances)
                evictee = msgspec.structs.replace(evictee, budgets=keys)
                if held is not None and held.most:
                    evictee = msgspec.structs.replace(evictee, held=held.text)
                elif held is not None:
                    evictee = msgspec.structs.replace(evictee, verdict=f"{held.text}; {FORCE}")
        evictees.append(evictee)
    return evictees


def waits_for_lease(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether there is nothing of it to migrate yet: the scheduler gives it another place, or it begins here."""
    return spec.lease is not None and report.state in ("pending", "preparing") and report.reason == LEASE_WAITS


def _find_way(phase: str, mode: str) -> Way:
    if phase in _LIVE:
        return "live" if mode == "live" else "cold"
    if phase == Phase.STOPPED or (phase == Phase.SUSPENDED and mode == "live"):
        return "cold"
    return "notYet" if phase in _SETTLING else "never"


def _read_migrations(view: View, node: Item, evictee: Evictee, begun_at: float, now: float) -> Evictee:
    """``evictee`` with the state of its Migrations, of ended ones only since ``begun_at``."""
    ended: list[tuple[float, Item]] = []
    for item in view.find(MIGRATIONS_BY_WORKLOAD, evictee.key):
        status, spec = item.status(MigrationStatus), item.spec(MigrationSpec)
        if status.phase not in ENDED:
            if spec.not_before is not None and status.started_at is None:
                continue  # planned for later
            placed = item.envelope.condition("Placed")
            verdict = f"{placed.reason}: {placed.message}" if placed is not None and placed.status == "False" else ""
            return msgspec.structs.replace(
                evictee,
                migration=item.envelope.name,
                target=status.target,
                verdict="" if status.target else verdict,
                link_free_in=find_end(status),
            )
        if item.envelope.labels.get(LABEL) == node.envelope.name:
            ended.append((item.envelope.created_at, item))
    if not ended:
        return evictee
    last = max(ended, key=lambda one: one[0])[1]
    status = last.status(MigrationStatus)
    ended_at, left = status.ended_at or 0.0, 0.0
    if status.phase != "Succeeded" and ended_at > begun_at:
        left = max(0.0, ended_at + RETRY_SECONDS - now)
    verdict = f"{status.reason}: {status.message}" if left else ""
    return msgspec.structs.replace(evictee, last=last.uid, verdict=verdict, retry_seconds=left)


def plan_migration(node: Item, evictee: Evictee, now: float, budgets: Budgets) -> Commit:
    """Make the Migration, and guard its ``budgets``. Its name follows from the one before, so it is made once."""
    mark = hashlib.sha256(f"{node.uid}/{evictee.uid}/{evictee.last}".encode()).hexdigest()[:6]
    name = evictee.name.partition("/")[2]
    reason = node.actions(NodeActions).drain_reason
    why = f"drain of {node.envelope.name}" + (f": {reason}" if reason else "")
    best = MIGRATION_MODES[evictee.name.partition("/")[0]][0]
    rests: Mode = "saved" if evictee.phase == Phase.SUSPENDED else "cold"
    mode = rests if evictee.way == "cold" and best == "live" else best
    spec = MigrationSpec(workload=evictee.name, mode=mode, reason=why[:200])
    name = cut_name(name, f"-{mark}")
    envelope = MIGRATION.make(
        name, spec, now, project=evictee.project, creator=evictee.creator, labels={LABEL: node.envelope.name}
    )
    pass_on(node.envelope, envelope)
    event = Event(
        "Normal",
        "Draining",
        f"{evictee.name} is being migrated away from {node.envelope.name}",
        node.envelope.ref,
        SOURCE,
    )
    guards, untouched = guard(budgets.allowances[key] for key in evictee.budgets)
    return Commit(node.key, [put(envelope), *guards], [Absent(envelope.key), *untouched], [event])


def plan_condition(
    node: Item, evictees: Sequence[Evictee], begun: Sequence[Evictee], window: DrainWindow, now: float
) -> Commit | None:
    """Write the condition Drained, if it changes."""
    reason, message = describe_drain(evictees, {evictee.key for evictee in begun})
    if evictees and _is_silent(node):
        reason, message = describe_silence(evictees, window)
    elif evictees and not window.open and not any(evictee.migration for evictee in evictees):
        reason, message = "Waiting", f"{len(evictees)} left; {window.note}"
    status: Literal["True", "False"] = "False" if evictees else "True"
    envelope = edit(node)
    if not set_condition(envelope, Condition("Drained", status, reason, message, now, node.envelope.generation)):
        return None
    former = node.envelope.condition("Drained")
    events = []
    if reason != (former.reason if former is not None else "") and reason not in ("Draining", "Waiting"):
        kind: Literal["Warning", "Normal"] = "Warning" if reason == "Blocked" else "Normal"
        events.append(Event(kind, reason, message, node.envelope.ref, SOURCE))
    return Commit(node.key, [put(envelope)], [unchanged(node)], events)


def _is_silent(node: Item) -> bool:
    """Whether no migration from it can begin: each would fail, for a reason that isn't the guest's."""
    return node.status(NodeStatus).phase in SILENT_PHASES


def plan_return(view: View, node: Item) -> list[Commit]:
    """Return a node after a drain: cancel Migrations that haven't begun, and remove the condition."""
    commits = []
    for item in view.of_kind("migration").values():
        if item.envelope.labels.get(LABEL) != node.envelope.name or item.actions(MigrationActions).cancel:
            continue
        if item.status(MigrationStatus).phase == "Pending":
            envelope = edit(item)
            envelope.actions = merge_part(envelope.actions, {"cancel": True})
            envelope.generation += 1
            commits.append(Commit(node.key, [put(envelope)], [unchanged(item)]))
    if node.envelope.condition("Drained") is not None:
        envelope = edit(node)
        envelope.conditions = [one for one in envelope.conditions if one.type != "Drained"]
        commits.append(Commit(node.key, [put(envelope)], [unchanged(node)]))
    return commits


def _count_free(view: View, node: Item) -> int:
    """How many more migrations all other nodes can take together."""
    others = [
        other
        for other in view.of_kind("node").values()
        if other.key != node.key
        and other.status(NodeStatus).phase == "Ready"
        and not find_cordon(other.actions(NodeActions), other.status(NodeStatus))
    ]
    under_way = sum(
        item.status(MigrationStatus).phase not in ENDED
        and bool(item.status(MigrationStatus).target)
        and item.status(MigrationStatus).source != node.envelope.name
        for item in view.of_kind("migration").values()
    )
    return max(1, TO_EACH * len(others) - under_way)


def _named(*nodes: str | None) -> list[str]:
    return [object_key("node", None, node) for node in nodes if node]
