"""Frees the workloads of a lost node whose guests have certainly ended there, so that they get another place.

Reads nodes, their leases (heartbeats), allocations, workloads; writes the role of an allocation that is lost and its status,
deletes it once the node that is back has released it, and writes the node's condition GuestsGoOn. Woken by nodes, by lost
allocations, and once a second. Silence alone frees nothing (``plan.py``); the scheduler then finds the place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from weft.contracts.clock import Clock
from weft.contracts.journal import Event
from weft.contracts.store import Store
from weft.controllers.loop import Plan
from weft.controllers.loss.outlook import find_bar
from weft.controllers.loss.plan import Silence, describe_many, find_evidence
from weft.informer.commit import Commit, Draft, delete, edit, put, unchanged
from weft.informer.loss.renewals import SUSPECT_SECONDS, Renewals
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import (
    ALLOCATIONS_BY_NODE,
    AllocationReport,
    AllocationSpec,
    AllocationStatus,
    EndedBy,
    is_held,
    is_lost,
)
from weft.kinds.node import NODES_BY_UID, SILENT_PHASES, NodeStatus
from weft.kinds.parts.node.loss import MASS_LOSS
from weft.kinds.parts.workload import WORKLOADS_BY_UID
from weft.objects.envelope import Condition, set_condition

CHECK_EVERY_SECONDS = 1.0
TICK = ""  # the key that stands for all silent nodes
SOURCE = "loss"
_NAMED = 5


class Losses:
    name = "loss"
    kinds = ("node", "allocation")

    def __init__(self, store: Store, clock: Clock) -> None:
        self._renewals = Renewals(store, clock)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "node":
            if has_changed(change, lambda node: node.envelope.report):
                self._renewals.note_report(change.item.uid)
            return (change.key, TICK)
        if change.new is None or not is_lost(change.new.spec(AllocationSpec)):
            return ()
        return (change.key,)

    async def observe(self) -> None:
        await self._renewals.observe()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        found = {key: item for key in keys if (item := view.get(key)) is not None}
        if TICK in keys:
            plan.later[TICK] = CHECK_EVERY_SECONDS
            uids = [*self._renewals.list_silent(SUSPECT_SECONDS)]
            found.update((node.key, node) for uid in uids for node in view.find(NODES_BY_UID, uid))
            found.update(
                (key, node)
                for key, node in view.of_kind("node").items()
                if node.status(NodeStatus).phase in SILENT_PHASES
            )
        nodes = found.keys() & view.of_kind("node").keys()
        silent = self._find_silent(view, now) if nodes else {}
        count = (
            sum(node.status(NodeStatus).phase != "Joining" for node in view.of_kind("node").values()) if silent else 0
        )
        for key, item in found.items():
            if key not in nodes:
                plan.commits += plan_release(view, item)
                continue
            many = describe_many(item, silent, count)
            silence = Silence(item, self._renewals.count_silence(item.uid), self._renewals.is_live(item.uid), many)
            plan.commits += plan_node(view, silence, now)
        return plan

    def _find_silent(self, view: View, now: float) -> dict[str, float]:
        """The uids of the nodes that are silent, or seem to be, with since when (seconds since 1970)."""
        silent = {uid: now - self._renewals.count_silence(uid) for uid in self._renewals.list_silent(SUSPECT_SECONDS)}
        for node in view.of_kind("node").values():
            status = node.status(NodeStatus)
            if status.phase in SILENT_PHASES:
                silent[node.uid] = status.lost_at or status.since
        return {uid: since for uid, since in silent.items() if view.find(NODES_BY_UID, uid)}


def plan_node(view: View, silence: Silence, now: float) -> list[Commit]:
    """Free what has certainly ended on a silent node; if nothing has, say what waits there."""
    node, commits, waiting = silence.node, list[Commit](), list[str]()
    for place in view.find(ALLOCATIONS_BY_NODE, node.uid) if silence.seconds > 0 else ():
        spec = place.spec(AllocationSpec)
        if spec.role == "reserved" or is_lost(spec):
            continue
        evidence = None if (bar := find_bar(view, node, place)) else find_evidence(silence, place, now)
        goes_on = not bar and is_held(spec, place.report(AllocationReport)) and not silence.many
        if evidence is None and not goes_on:
            waiting.append(f"{spec.workload.kind}/{spec.workload.name}{f' ({bar})' if bar else ''}")
        elif evidence is not None:
            commits += plan_loss(view, node, place, evidence)
    if commits:
        return commits
    condition, former, envelope = (
        fold_condition(silence, waiting, now),
        node.envelope.condition("GuestsGoOn"),
        edit(node),
    )
    if (former is None and condition.status == "True") or not set_condition(envelope, condition):
        return []
    is_news = condition.reason == MASS_LOSS and (former is None or former.reason != MASS_LOSS)
    events = [Event("Warning", "NodeLossHeld", condition.message, node.envelope.ref, SOURCE)] if is_news else []
    return [Commit(node.key, [put(envelope)], [unchanged(node)], events)]


def plan_loss(view: View, node: Item, place: Item, evidence: EndedBy) -> list[Commit]:
    """Free the workload of one place; nothing if it isn't there, which its own controller knows more of."""
    spec = place.spec(AllocationSpec)
    draft = Draft(node)
    for workload in view.find(WORKLOADS_BY_UID, spec.workload.uid):
        draft.preconditions.append(unchanged(workload))
        lost = AllocationStatus(ended_by=evidence)
        draft.change(place, spec=replace(spec, role="lost"), status=lost)
        said = f"{evidence.message}; it gets another place"
        commit = draft.commit(node.key, [Event("Warning", "NodeLost", said, workload.envelope.ref, SOURCE)])
        return [commit] if commit is not None else []
    return []


def plan_release(view: View, place: Item) -> list[Commit]:
    """Delete a lost allocation of which its node has nothing any more."""
    spec, report = place.spec(AllocationSpec), place.report(AllocationReport)
    released = report.state == "released" and report.incarnation >= spec.incarnation
    if is_lost(spec) and (released or not view.find(NODES_BY_UID, spec.node_uid)):
        return [Commit(place.key, [delete(place)], [unchanged(place)])]
    return []


def fold_condition(silence: Silence, waiting: Sequence[str], now: float) -> Condition:
    node = silence.node
    if node.status(NodeStatus).phase not in SILENT_PHASES or not waiting:
        return Condition("GuestsGoOn", "True", "", "", now)
    names = _name(waiting)
    if silence.many:
        message = (
            f"{silence.many}: nothing restarts elsewhere automatically; if this one is off: weft node confirm-off "
            f"{node.envelope.name}; {names}"
        )
        return Condition("GuestsGoOn", "False", MASS_LOSS, message, now)
    return Condition("GuestsGoOn", "False", "waiting", f"{len(waiting)} wait: {names}", now)


def _name(guests: Sequence[str]) -> str:
    """Not all of many."""
    more = f" and {len(guests) - _NAMED} more" if len(guests) > _NAMED else ""
    return ", ".join(sorted(guests)[:_NAMED]) + more
