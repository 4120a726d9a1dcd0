"""Frees the workloads of a lost node whose guests have certainly ended there, so that they get another place.

Reads nodes, their leases (heartbeats), allocations, workloads; writes the role of an allocation that is lost and its status,
and the mark of a workload that goes on from a snapshot; deletes the allocation once the node that is back has released it; writes
the node's condition GuestsGoOn. Woken by nodes, by lost allocations, and once a second. Silence alone frees nothing (``plan.py``);
the scheduler then finds the place.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from msgspec.structs import replace

from weft.contracts.clock import Clock
from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.loss.outlook import find_way
from weft.controllers.loss.plan import Silence, describe_many, find_evidence
from weft.controllers.loss.source import LossSource, make_point
from weft.informer.commit import Commit, Draft, delete, edit, put, unchanged
from weft.informer.loss.renewals import SUSPECT_SECONDS, Renewals
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import gang_of
from weft.kinds.allocation import (
    ALLOCATIONS_BY_NODE,
    AllocationReport,
    AllocationSpec,
    AllocationStatus,
    EndedBy,
    is_held,
    is_lost,
)
from weft.kinds.fields.gang import MOST
from weft.kinds.node import NODES_BY_UID, SILENT_PHASES, NodeStatus, find_pause_end
from weft.kinds.parts.node.loss import MASS_LOSS
from weft.kinds.parts.workload import WORKLOADS_BY_UID, WorkloadMarks
from weft.kinds.replica import ReplicaMarks
from weft.objects.envelope import Condition, set_condition

CHECK_EVERY_SECONDS = 1.0
TICK = ""  # the key that stands for all silent nodes
SOURCE = "loss"
MOST_WRITES = 50  # of a plan for one node, whose commits come as one: each write has about two preconditions
_NAMED = 5


class _Pause(NamedTuple):
    until: float  # seconds since 1970
    ends_at: float  # of this process's clock that nobody sets


class Freed(NamedTuple):
    """A guest that ends its place on a lost node, why, and what it goes on from."""

    workload: Item
    place: Item
    evidence: EndedBy
    source: LossSource


class Losses:
    name = "loss"
    kinds = ("node", "allocation")

    def __init__(self, renewals: Renewals, clock: Clock) -> None:
        self._renewals, self._clock = renewals, clock
        self._pauses: dict[str, _Pause] = {}  # by the node's uid

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "node":
            if has_changed(change, lambda node: node.envelope.report):
                self._renewals.note_report(change.item.uid)
            self._note_pause(change)
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
            pause = self._pauses.get(item.uid)
            silence = Silence(
                item,
                self._renewals.count_silence(item.uid),
                self._renewals.is_live(item.uid),
                many,
                pause.ends_at - self._clock.elapsed() if pause is not None else -math.inf,
            )
            plan.commits += plan_node(view, silence, now)
        return plan

    def _note_pause(self, change: Changed) -> None:
        """A pause ends at a time of day, which is counted from here on: the clock may be set meanwhile."""
        uid, until = change.item.uid, find_pause_end(change.item)
        if change.new is None or not until:
            self._pauses.pop(uid, None)
        elif (known := self._pauses.get(uid)) is None or known.until != until:
            self._pauses[uid] = _Pause(until, self._clock.elapsed() + until - self._clock.now())

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
    node, freed, waiting = silence.node, list[Freed](), list[str]()
    for place in view.find(ALLOCATIONS_BY_NODE, node.uid) if silence.seconds > 0 else ():
        spec = place.spec(AllocationSpec)
        if spec.role == "reserved" or is_lost(spec):
            continue
        way, guest = find_way(view, node, place), f"{spec.workload.kind}/{spec.workload.name}"
        if isinstance(way, str):
            waiting.append(f"{guest} ({way})")
        elif (evidence := find_evidence(silence, place, now)) is not None:
            freed += [Freed(item, place, evidence, way) for item in view.find(WORKLOADS_BY_UID, spec.workload.uid)]
        elif silence.many or not is_held(spec, place.report(AllocationReport)):
            waiting.append(guest)
    if commits := plan_losses(node, freed, now):
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


def plan_losses(node: Item, freed: Sequence[Freed], now: float) -> list[Commit]:
    """Free these workloads, those of the highest priority first; more than the store takes in one commit come with the next plan,
    so that the scheduler sees them in this order. A gang is freed by one commit, so that no part of it comes back alone."""
    groups: dict[str, list[Freed]] = defaultdict(list)
    for one in freed:
        groups[gang_of(one.workload) or one.workload.key].append(one)
    ordered = sorted(groups.values(), key=lambda group: -max(_read_priority(one.place) for one in group))
    commits = [_plan_loss(node, group[at : at + MOST], now) for group in ordered for at in range(0, len(group), MOST)]
    counts = accumulate(len(commit.writes) for commit in commits)
    return [commit for commit, count in zip(commits, counts, strict=True) if count <= MOST_WRITES] or commits[:1]


def _plan_loss(node: Item, together: Sequence[Freed], now: float) -> Commit:
    draft, events = Draft(node), list[Event]()
    for one in together:
        marks, point = one.workload.marks(WorkloadMarks), make_point(draft, one.workload, one.source, now)
        if marks.continues != point:
            draft.change(one.workload, marks=replace(marks, continues=point))
        read = [one.workload, *([one.source.read] if one.source.read is not None else [])]
        draft.preconditions += [unchanged(item) for item in read]
        if one.source.replica is not None:
            _begin_again(draft, one.source.replica)
        spec = replace(one.place.spec(AllocationSpec), role="lost")
        draft.change(one.place, spec=spec, status=AllocationStatus(ended_by=one.evidence))
        then = f"it gets another place{describe_loss(one.source)}" if not one.workload.deleting else "it is deleted"
        said = f"{one.evidence.message}; {then}"
        events.append(Event("Warning", "NodeLost", said, one.workload.envelope.ref, SOURCE))
    return Commit(node.key, draft.writes, draft.preconditions, events)


def _read_priority(place: Item) -> int:
    lease = place.spec(AllocationSpec).lease
    return lease.priority if lease is not None else 0


def _begin_again(draft: Draft, replica: Item) -> None:
    """Begin the next generation of a copy from which a guest goes on: the lost node can send nothing into it any more."""
    marks = replica.marks(ReplicaMarks)
    draft.change(replica, marks=replace(marks, generation=marks.generation + 1))


def describe_loss(source: LossSource) -> str:
    """Name what the guest goes on from and loses, as the end of a sentence; empty if it loses nothing."""
    return f", and goes on{source.said}: what it wrote after that is lost" if source.said else ""


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
