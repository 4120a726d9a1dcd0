"""Orders the nodes for invocations, by the serverless score over the cluster in a view of the store.

Fed with the view's changes, and by the gateway with what instances take and where functions' data is. Writes nothing. The gateway
knows which nodes have an instance already; it asks for the order of all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.contracts.function_placement import KINDS as KINDS
from weft.contracts.function_placement import PlacementQuery, Ranking
from weft.contracts.policy import Datum, Request
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import AllocationReport
from weft.kinds.device import DEVICE, DeviceSpec
from weft.kinds.fields.strategy import SERVERLESS_STRATEGY, parse_strategy
from weft.kinds.node import NodeActions, NodeReport, NodeStatus
from weft.kinds.parts.workload import WorkloadSpec
from weft.objects.errors import WeftError
from weft.scheduler.allocation.count import count_allocation, count_booting, count_orphans
from weft.scheduler.constraint.expressions import Expressions, read_expressions
from weft.scheduler.constraint.near_device import read_near_device
from weft.scheduler.constraint.relax import relax
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.function.rank import rank_places
from weft.scheduler.node.facts import read_node
from weft.scheduler.table.facts import NodeFacts
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.workload.request import read_data
from weft.scheduler.workload.strategy import find_strategy

_UID = "invocation"  # one for all: no strategy must draw a new order for each


class FunctionPlacing:
    """See ``contracts.function_placement.FunctionPlacement``."""

    def __init__(self, view: View, *, seed: int = 0) -> None:
        self.epoch = 0
        self._view = view
        self._engine = Engine(Snapshot(), seed=seed)
        self._facts: dict[str, NodeFacts] = {}  # by uid, from the nodes' objects
        self._held: dict[str, frozenset[str]] = {}
        self._used: dict[str, int] = {}  # thousandths of a core

    def notice(self, changes: Sequence[Changed]) -> None:
        """Bring the order up to date with these changes of KINDS."""
        for change in changes:
            if change.kind == "allocation":
                if not _is_same_place(change) and has_changed(change, _relevant_allocation_state):
                    count_allocation(self._engine.snapshot, change.key, change.new, 0.0)
                    self.epoch += 1
                for item in (change.old, change.new):
                    if item is not None:  # it is counted, and there may be ten thousand
                        item.forget()
            elif change.kind == "node":
                self._notice_node(change)
            elif change.kind != DEVICE.name or has_changed(change, _relevant_device_state):
                self.epoch += 1
        self._engine.snapshot.improved.clear()
        self._engine.snapshot.groups.take_changed()

    def rank(self, wanted: PlacementQuery) -> Ranking:
        request = self._read(wanted)
        if isinstance(request, Ranking):
            return request
        places = rank_places(self._engine, request, _UID, max(1, len(self._facts)))
        if isinstance(places, Explanation):
            return Ranking(reason=places.error, message=places.message, nearest=places.nearest)
        return Ranking(nodes=tuple([place.uid for place in places]))

    def use(self, node: str, cpu: float) -> None:
        if self._used.get(node, 0) != (used := round(cpu * 1000)):
            self._used[node] = used
            self._count_used(node)

    def hold(self, node: str, data: frozenset[str]) -> None:
        if self._held.get(node, frozenset()) == data:
            return
        self._held[node] = data
        if node in self._facts:
            self._put(self._facts[node])

    def _notice_node(self, change: Changed) -> None:
        if not has_changed(change, _relevant_node_state):
            return
        snapshot = self._engine.snapshot
        if change.old is not None and (change.new is None or change.new.uid != change.old.uid):
            snapshot.drop_node(change.old.uid)
            self._facts.pop(change.old.uid, None)
            self._held.pop(change.old.uid, None)
            self._used.pop(change.old.uid, None)
            snapshot.drop_allocation(_name_used(change.old.uid))
            self.epoch += 1
        if change.new is not None:
            facts = read_node(change.new)
            if self._facts.get(facts.uid) != facts:
                self._facts[facts.uid] = facts
                self._put(facts)
        if has_changed(change, lambda item: (item.uid, item.report(NodeReport).booting_memory)):
            count_booting(snapshot, change)
            self.epoch += 1
        if has_changed(change, lambda item: (item.uid, item.report(NodeReport).orphan_allocations)):
            count_orphans(snapshot, self._view, change)
            self.epoch += 1

    def _put(self, facts: NodeFacts) -> None:
        held = self._held.get(facts.uid)
        self._engine.snapshot.put_node(msgspec.structs.replace(facts, data=facts.data | held) if held else facts)
        self._count_used(facts.uid)

    def _count_used(self, node: str) -> None:
        """Count what instances take, up to the capacity that is free."""
        snapshot, name = self._engine.snapshot, _name_used(node)
        snapshot.drop_allocation(name)
        row = snapshot.index_of(node)
        used = self._used.get(node, 0)
        if row is not None and used:
            free = int(snapshot.capacity[0, row] - snapshot.allocated[0, row])
            snapshot.put_allocation(name, node, (max(0, min(used, free)), 0, 0))
        self.epoch += 1

    def _read(self, wanted: PlacementQuery) -> Request | Ranking:
        code = wanted.code
        spec = WorkloadSpec(
            type="serverless",
            constraint=code.constraint,
            prefer=code.prefer,
            strategy=code.strategy,
            tolerate=code.tolerate,
            data_hints=code.data_hints,
        )
        try:
            chosen = find_strategy(self._view, wanted.project, spec, SERVERLESS_STRATEGY)
        except WeftError as problem:
            return Ranking(reason=problem.token, message=problem.message)
        if any(term.own for term in parse_strategy(chosen.strategy)):
            return Ranking(
                reason="invalidStrategy",
                message=f"{chosen.named or 'its strategy'} uses a custom policy; functions need one of weft's strategies",
            )
        expressions = read_expressions(self._view, wanted.project, spec)
        if not isinstance(expressions, Expressions):
            return Ranking(reason=expressions[0], message=expressions[1])
        hinted, leans = read_data(self._view, wanted.project, spec, None, [])
        request = Request(
            amounts=(0, code.memory, 0),
            machine="",
            strategy=chosen.strategy,
            mode="serverless",
            tolerations=tuple(sorted(code.tolerate)),
            constraint=expressions.constraint,
            preferences=expressions.preferences,
            data=(*(Datum(name, size) for name, size in wanted.data), *hinted),
            leans=leans + read_near_device(self._view, wanted.project, code.near),
            caller=wanted.caller or None,
        )
        return relax(request, self._engine.snapshot)[0]


def _is_same_place(change: Changed) -> bool:
    """Whether at most the status of an allocation has changed: compared without decoding anything."""
    if change.old is None or change.new is None:
        return False
    old, new = change.old.envelope, change.new.envelope
    return (old.uid, bytes(old.spec), bytes(old.report)) == (new.uid, bytes(new.spec), bytes(new.report))


def _relevant_allocation_state(item: Item) -> object:
    return item.uid, bytes(item.envelope.spec), item.report(AllocationReport).resize_limits


def _relevant_node_state(item: Item) -> object:
    """All that this module reads of a node."""
    of, asked, phase = item.envelope, item.actions(NodeActions), item.status(NodeStatus).phase
    return item.uid, bytes(of.spec), asked, bytes(of.report), of.labels, phase, item.deleting


def _relevant_device_state(item: Item) -> object:
    return item.uid, item.spec(DeviceSpec).node


def _name_used(node: str) -> str:
    return f"instances {node}"
