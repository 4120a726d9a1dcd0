"""Choose the workloads that are preempted for one that fits nowhere: on one node, the cheapest. A VM with a preemptible lease is
suspended, with its memory on disk; a preemptible container is deleted there and begins again elsewhere.

Cheaper is, in this order: a lower priority; less work lost, in seconds; preempted less often. No more give way than their
disruption budgets let. Pure but for the snapshot, in which trials are counted and removed again.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import msgspec

from weft.contracts.journal import Event
from weft.contracts.policy import Request
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.disruption.budgets import Allowance, Budgets, guard
from weft.informer.view import Item, View
from weft.kinds.allocation import (
    PREEMPTIBLE,
    PREEMPTIBLE_ANYWHERE,
    AllocationReport,
    AllocationSpec,
    has_ended_for_good,
)
from weft.kinds.fields.lease import ELSEWHERE_SECONDS, MOST_PRIORITY, MOST_SUSPENSIONS, LeaseRequest, Suspension
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.parts.workload import WORKLOADS_BY_UID
from weft.kinds.registry import find_kind
from weft.objects.envelope import merge_part
from weft.scheduler.allocation.lease import Opening, find_slot
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.facts import amounts_of, name_for, name_workload
from weft.scheduler.table.trial import Trial

MOST_NODES = 64  # tried for one decision
MOST_VICTIMS = 20
MOST_CHOICES = 64  # of victims of one node that budgets don't let go together, tried for one decision
SAVED_BYTES_PER_SECOND = 200 * 1024**2  # of memory; see docs/measured.md
LEAST = -MOST_PRIORITY - 1  # the priority of what has none
MOST_NAMED = 5
SOURCE = "scheduler"


class Need(msgspec.Struct, frozen=True):
    """A request that fits nowhere. ``firm``: it preempts leases of its own priority, too."""

    request: Request
    uid: str
    lease: LeaseRequest | None = None
    grace_seconds: float = 0.0
    priority: int = 0
    firm: bool = False


class Victim(msgspec.Struct, frozen=True):
    item: Item  # its allocation
    suspends: bool  # else it is deleted
    priority: int
    seconds: float  # of work lost
    hits: int  # how often it was preempted
    allowances: tuple[Allowance, ...] = ()  # of the disruption budgets that count it

    @property
    def rank(self) -> tuple[float, ...]:
        """Cheaper ones first, then the youngest."""
        return self.priority, self.seconds, self.hits, -self.item.envelope.created_at

    @property
    def key(self) -> str:
        return self.item.key


class Way(msgspec.Struct, frozen=True):
    """The node of this row fits once ``victims`` have given way; by ``slot``, if the winner's lease has an end."""

    row: int
    victims: list[Victim]
    slot: Opening | None = None

    @property
    def cost(self) -> tuple[float, ...]:
        victims = self.victims
        most = max(victim.priority for victim in victims)
        return most, sum(v.seconds for v in victims), sum(v.hits for v in victims), len(victims)


def may_preempt(request: Request) -> bool:
    return not request.preemptible and request.mode == "long-lived" and not request.gang


def read_need(request: Request, uid: str, lease: LeaseRequest | None, grace_seconds: float) -> Need:
    if lease is None:
        return Need(request, uid)
    firm = lease.mode != "best-effort"
    timed = lease if lease.duration is not None else None
    return Need(request, uid, timed, grace_seconds, lease.priority, firm)


def find_way(
    view: View, engine: Engine, need: Need, now: float, budgets: Budgets, kept: dict[Allowance, list[str]]
) -> Way | None:
    """The cheapest way; None if there is none. All filters hold here too. ``kept`` gets the workloads that budgets protect."""
    if not may_preempt(need.request):
        return None
    by_node: dict[str, list[Victim]] = defaultdict(list)
    for item in view.find(PREEMPTIBLE, PREEMPTIBLE_ANYWHERE):
        if (victim := read_victim(view, item, need, now)) is not None:
            victim = msgspec.structs.replace(victim, allowances=_find_allowances(view, item, budgets))
            by_node[item.spec(AllocationSpec).node_uid].append(victim)
    if not by_node:
        return None
    engine.snapshot.settle()
    protected = {uid: some for uid, some in by_node.items() if find_held(some)}
    for uid in _choose_nodes(engine, need, protected):
        for allowance, victims in find_held(by_node[uid]).items():
            kept.setdefault(allowance, []).extend(
                name_workload(one.item.spec(AllocationSpec).workload) for one in victims
            )
    may = {
        uid: [one for one in some if all(allowance.left for allowance in one.allowances)]
        for uid, some in by_node.items()
    }
    tries = iter(range(MOST_CHOICES))
    ways = [
        way
        for uid in _choose_nodes(engine, need, may)
        if (way := _find_on(engine, need, uid, may[uid], now, tries)) is not None
    ]
    return min(ways, key=lambda way: (*way.cost, engine.snapshot.names[way.row]), default=None)


def _find_allowances(view: View, item: Item, budgets: Budgets) -> tuple[Allowance, ...]:
    found = view.find(WORKLOADS_BY_UID, item.spec(AllocationSpec).workload.uid)
    return tuple(allowance for workload in found for allowance in budgets.find(workload))


def find_held(victims: Sequence[Victim]) -> dict[Allowance, list[Victim]]:
    """The budgets that don't let all of these go, with those of them that each counts."""
    counted: dict[Allowance, list[Victim]] = {}
    for victim in victims:
        for allowance in victim.allowances:
            counted.setdefault(allowance, []).append(victim)
    return {allowance: some for allowance, some in counted.items() if len(some) > allowance.left}


def read_victim(view: View, item: Item, need: Need, now: float) -> Victim | None:
    """The allocation as a victim of ``need``; None if it may not be preempted for it."""
    spec, report, lease = item.spec(AllocationSpec), item.report(AllocationReport), item.spec(AllocationSpec).lease
    if item.deleting or has_ended_for_good(spec, report):
        return None
    if spec.preemptible:
        began = report.started_at or item.envelope.created_at
        return Victim(item, False, LEAST, max(0.0, now - began), 0)
    if lease is None or not may_suspend(view, item) or lease.suspensions >= MOST_SUSPENSIONS:
        return None
    if lease.mode == "deadline":
        return None  # it might be late then; what can be planned around it is (``replan.py``)
    if lease.priority > need.priority or (lease.priority == need.priority and not need.firm):
        return None
    seconds = spec.resources.memory / SAVED_BYTES_PER_SECOND
    return Victim(item, True, lease.priority, seconds, lease.suspensions)


def may_suspend(view: View, item: Item) -> bool:
    """Whether it runs, and its node can save it. A GPU's state can't be saved."""
    spec, report, lease = item.spec(AllocationSpec), item.report(AllocationReport), item.spec(AllocationSpec).lease
    if lease is None or not lease.preemptible or lease.cancelled or lease.suspension is not None:
        return False
    if spec.gpus or spec.role != "active" or spec.migration or spec.storage or spec.desired != "run":
        return False
    if spec.waits_for or report.incarnation < spec.incarnation or report.state not in ("starting", "running"):
        return False
    kind = find_kind(spec.workload.kind)
    can = any("suspend" in node.report(NodeReport).capabilities for node in view.find(NODES_BY_UID, spec.node_uid))
    return can and any(verb.name == "suspend" for verb in kind.verbs)


def _choose_nodes(engine: Engine, need: Need, by_node: dict[str, list[Victim]]) -> list[str]:
    """Nodes with enough capacity without their preemptible workloads, those with the most first."""
    snapshot, found, wanted = engine.snapshot, [], need.request.amounts
    left = snapshot.left_for_leases()
    for uid, victims in by_node.items():
        row = snapshot.index_of(uid)
        if row is None:
            continue
        gained = [amounts_of(victim.item.spec(AllocationSpec).resources) for victim in victims]
        # A lease sees what is free at its time: at most what the node has beside all leases.
        free = [max(int(snapshot.free[kind, row]), int(left[kind, row]) if need.lease else 0) for kind in (0, 1)]
        if all(free[kind] + sum(amounts[kind] for amounts in gained) >= wanted[kind] for kind in (0, 1)):
            found.append((-free[0], snapshot.names[row], uid))
    return [uid for _, _, uid in sorted(found)[:MOST_NODES]]


def _find_on(
    engine: Engine, need: Need, uid: str, victims: Sequence[Victim], now: float, tries: Iterator[int]
) -> Way | None:
    snapshot = engine.snapshot
    row = snapshot.index_of(uid)

    def fits(some: Sequence[Victim]) -> bool:
        with preempting(engine, some):
            return _fits(engine, need, uid, now)

    chosen = None if row is None else choose_victims(victims, fits, tries)
    if row is None or chosen is None:
        return None
    with preempting(engine, chosen):
        slot = find_slot_on(engine, need, uid, now)
    return Way(row, chosen, slot)


def choose_victims(
    victims: Sequence[Victim], fits: Callable[[Sequence[Victim]], bool], tries: Iterator[int]
) -> list[Victim] | None:
    """Choose from the largest sets that budgets let go the cheapest of each until it fits, and the cheapest of these; then spare
    those that needn't go, the dearest first. None if nothing fits, or not within as many ``tries``."""
    ways = []
    for choice in _list_choices(victims, tries):
        if choice and fits(choice):
            count = bisect.bisect_left(range(len(choice)), True, key=lambda n: fits(choice[: n + 1])) + 1
            ways.append(choice[:count])
    if not ways:
        return None
    chosen = min(ways, key=lambda way: (way[-1].priority, sum(one.seconds for one in way), [one.key for one in way]))
    for victim in reversed(tuple(chosen)):
        fewer = [one for one in chosen if one is not victim]
        if fewer and fits(fewer):
            chosen = fewer
    return chosen


def _list_choices(victims: Sequence[Victim], tries: Iterator[int]) -> Iterator[list[Victim]]:
    """The largest sets that budgets let go, ranked: the one with the cheapest, and for each of ``tries`` one with others first."""
    ranked = sorted(victims, key=lambda victim: (*victim.rank, victim.key))[:MOST_VICTIMS]
    held = {id(one): one for some in find_held(ranked).values() for one in some}.values()
    seen = set[frozenset[int]]()
    for first in (some for count in range(len(held) + 1) for some in combinations(held, count)):
        if first and next(tries, None) is None:
            return
        left = {allowance: allowance.left for one in ranked for allowance in one.allowances}
        taken = set[int]()
        for victim in (*first, *ranked):
            if id(victim) not in taken and all(left[allowance] > 0 for allowance in victim.allowances):
                taken.add(id(victim))
                left.update({allowance: left[allowance] - 1 for allowance in victim.allowances})
        if (mark := frozenset(taken)) not in seen:
            seen.add(mark)
            yield [one for one in ranked if id(one) in taken]


def preempting(engine: Engine, victims: Sequence[Victim]) -> Trial:
    """A trial in which they have given way."""
    trial = engine.snapshot.trial()
    trial.drop(*(victim.key for victim in victims if not victim.suspends))
    trial.rest(victim.key for victim in victims if victim.suspends)
    return trial


def _fits(engine: Engine, need: Need, uid: str, now: float) -> bool:
    if need.lease is None:
        return engine.may_fit(need.request, [uid])
    return find_slot_on(engine, need, uid, now) is not None


def find_slot_on(engine: Engine, need: Need, uid: str, now: float) -> Opening | None:
    """When a lease with an end would run on this node: at once, or from its start."""
    row = engine.snapshot.index_of(uid)
    if need.lease is None or row is None or need.request.node not in (None, engine.snapshot.names[row]):
        return None
    request = msgspec.structs.replace(need.request, node=engine.snapshot.names[row])
    found = find_slot(engine, request, need.uid, need.lease, need.grace_seconds, now)
    return found if isinstance(found, Opening) else None


def name_victims(way: Way, project: str | None) -> str:
    """``vm/a, vm/b``, for people of ``project``."""
    names = [name_for(project, victim.item.spec(AllocationSpec).workload) for victim in way.victims]
    return ", ".join(dict.fromkeys(names))


def describe_kept(kept: dict[Allowance, list[str]], project: str | None) -> list[str]:
    """A sentence on each budget that protects workloads from giving way, for people of ``project``."""
    found = []
    for allowance, names in kept.items():
        who = f"{', '.join(names[:MOST_NAMED])}{' and others' if len(names) > MOST_NAMED else ''}"
        why, most = allowance.text, f"no more than {allowance.left}" if allowance.left else "none"
        if allowance.budget.envelope.project != project:
            who, why = "workloads of another project", "a disruption budget protects them"
        found.append(f"{who}: {most} of them gives way, since {why}")
    return list(dict.fromkeys(found))[:MOST_NAMED]


def describe_way(way: Way, project: str | None) -> list[str]:
    """A sentence on each victim, for the Decision, which people of ``project`` read; one on all of other projects that go alike."""
    act = {
        True: "is suspended for it, and resumes later, elsewhere if its node stays full",
        False: "is stopped for it, and begins again elsewhere",
    }
    return list(
        dict.fromkeys(
            f"{name_for(project, v.item.spec(AllocationSpec).workload)} {act[v.suspends]}" for v in way.victims
        )
    )


def join_victims(
    view: View, commit: Commit, way: Way, winner: Item, now: float, elsewhere_seconds: float = ELSEWHERE_SECONDS
) -> Commit:
    """The winner's placement, with what happens to its victims: it starts when they have given way. One that is suspended waits
    ``elsewhere_seconds`` for its own node."""
    names = ",".join(victim.item.envelope.name for victim in way.victims)
    made = []
    for item in commit.made:
        if item.envelope.kind == "allocation":
            spec = msgspec.structs.replace(item.spec(AllocationSpec), waits_for=names)
            envelope = edit(item)
            envelope.spec = merge_part(envelope.spec, spec)
            made.append(Item(envelope, spec=spec, report=item.report(AllocationReport)))
        else:
            made.append(item)
    project = winner.envelope.project
    writes, events = [put(item.envelope) for item in made], list(commit.events)
    named = f"{winner.envelope.project}/{name_workload(winner.envelope.ref)}"
    begin = way.slot.lease.prepare_at if way.slot is not None else now
    at = max(now, begin - sum(victim.seconds for victim in way.victims)) if begin > now else now
    for victim in way.victims:
        envelope, spec = edit(victim.item), victim.item.spec(AllocationSpec)
        what = name_for(spec.workload.project, winner.envelope.ref)
        if victim.suspends and spec.lease is not None:
            lease = msgspec.structs.replace(
                spec.lease,
                suspension=Suspension(what, at, named, elsewhere_seconds),
                suspensions=spec.lease.suspensions + 1,
            )
            envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(spec, lease=lease))
            envelope.generation += 1
        else:
            envelope.deleting_since = now
        writes.append(put(envelope))
        text = f"suspended for {what}; it resumes later" if victim.suspends else f"preempted by {what}"
        events.extend(
            Event("Warning", "Preempted", text, workload.envelope.ref, SOURCE)
            for workload in view.find(WORKLOADS_BY_UID, spec.workload.uid)
        )
    events.extend(
        Event("Normal", "Preempts", sentence, winner.envelope.ref, SOURCE) for sentence in describe_way(way, project)
    )
    guards, untouched = guard(allowance for victim in way.victims for allowance in victim.allowances)
    return Commit(
        key=commit.key,
        writes=[*writes, *guards],
        preconditions=[*commit.preconditions, *(unchanged(victim.item) for victim in way.victims), *untouched],
        events=events,
        made=made,
    )
