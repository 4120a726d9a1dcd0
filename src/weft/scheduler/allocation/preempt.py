"""Which workloads are preempted for one that fits nowhere: preemptible ones, on one node, as few as possible, the youngest.
Pure but for the snapshot, in which trials are counted and removed again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from weft.contracts.journal import Event
from weft.contracts.policy import Request
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item, View
from weft.kinds.allocation import (
    PREEMPTIBLE,
    PREEMPTIBLE_ANYWHERE,
    AllocationReport,
    AllocationSpec,
    has_ended_for_good,
)
from weft.kinds.parts.workload import WORKLOADS_BY_UID
from weft.objects.envelope import merge_part
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.facts import amounts_of
from weft.scheduler.table.snapshot import without

MOST_NODES = 64  # tried for one decision
MOST_VICTIMS = 20
SOURCE = "scheduler"


class Way(msgspec.Struct, frozen=True):
    """The node of this row fits once ``victims`` have gone."""

    row: int
    victims: list[Item]


def may_preempt(request: Request) -> bool:
    return not request.gives_way and request.mode == "long-lived" and not request.gang


def find_way(view: View, engine: Engine, request: Request) -> Way | None:
    """The cheapest way; None if there is none. All filters hold here too."""
    snapshot = engine.snapshot
    by_node: dict[str, list[Item]] = defaultdict(list)
    for item in view.find(PREEMPTIBLE, PREEMPTIBLE_ANYWHERE):
        spec = item.spec(AllocationSpec)
        if not item.deleting and not has_ended_for_good(spec, item.report(AllocationReport)):
            by_node[spec.node_uid].append(item)
    if not by_node:
        return None
    snapshot.settle()
    ways = [
        way
        for uid in _choose_nodes(engine, request, by_node)
        if (way := _find_on(engine, request, uid, by_node[uid])) is not None
    ]
    return min(ways, key=lambda way: (len(way.victims), *_age(way), snapshot.names[way.row]), default=None)


def _choose_nodes(engine: Engine, request: Request, by_node: dict[str, list[Item]]) -> list[str]:
    """Nodes with enough capacity without their preemptible workloads, those with the most first."""
    snapshot, found = engine.snapshot, []
    for uid, items in by_node.items():
        row = snapshot.index_of(uid)
        if row is None:
            continue
        gained = [amounts_of(item.spec(AllocationSpec).resources) for item in items]
        free = [
            int(snapshot.capacity[kind, row] - snapshot.allocated[kind, row]) + sum(amounts[kind] for amounts in gained)
            for kind in range(len(request.amounts))
        ]
        if all(have >= want for have, want in zip(free, request.amounts, strict=True)):
            found.append((-free[0], snapshot.names[row], uid))
    return [uid for _, _, uid in sorted(found)[:MOST_NODES]]


def _find_on(engine: Engine, request: Request, uid: str, items: Sequence[Item]) -> Way | None:
    """Take the youngest until it fits; then spare those that needn't go, the oldest first."""
    snapshot = engine.snapshot
    row = snapshot.index_of(uid)
    young = sorted(items, key=lambda item: (-item.envelope.created_at, item.key))[:MOST_VICTIMS]

    def fits(victims: Sequence[Item]) -> bool:
        with without(snapshot, [item.key for item in victims]):
            return engine.may_fit(request, [uid])

    if row is None or not fits(young):
        return None
    count = next(n for n in range(1, len(young) + 1) if fits(young[:n]))
    victims = young[:count]
    for item in sorted(victims, key=lambda item: item.envelope.created_at):
        fewer = [one for one in victims if one is not item]
        if fewer and fits(fewer):
            victims = fewer
    return Way(row, victims)


def _age(way: Way) -> tuple[float, ...]:
    """Of ways with as many victims the one whose oldest victim is younger undoes less work."""
    return (-min(item.envelope.created_at for item in way.victims),)


def join_victims(view: View, commit: Commit, way: Way, winner: Item, now: float) -> Commit:
    """The winner's placement, with the deletion of its victims: it starts when those are gone."""
    names = ",".join(item.envelope.name for item in way.victims)
    made = []
    for item in commit.made:
        if item.envelope.kind == "allocation":
            spec = msgspec.structs.replace(item.spec(AllocationSpec), waits_for=names)
            envelope = edit(item)
            envelope.spec = merge_part(envelope.spec, spec)
            made.append(Item(envelope, spec=spec, report=item.report(AllocationReport)))
        else:
            made.append(item)
    writes, events = [put(item.envelope) for item in made], list(commit.events)
    what = f"{winner.envelope.kind}/{winner.envelope.name}"
    for victim in way.victims:
        envelope = edit(victim)
        envelope.deleting_since = now
        writes.append(put(envelope))
        events.extend(
            Event("Warning", "Preempted", f"preempted by {what}", workload.envelope.ref, SOURCE)
            for workload in view.find(WORKLOADS_BY_UID, victim.spec(AllocationSpec).workload.uid)
        )
    return Commit(
        key=commit.key,
        writes=writes,
        preconditions=[*commit.preconditions, *(unchanged(victim) for victim in way.victims)],
        events=events,
        made=made,
    )
