"""Makes a Pool for each storage that nodes report, and keeps its status: how full it is, and how much of it is promised.

Reads nodes, allocations, volumes; writes pools: makes them, writes their status and conditions, and removes those that no node
offers any more, if they hold nothing and nobody has set anything in them. Woken by any of those. All that it keeps is a sum that
follows from them. What is decided in the meantime doesn't depend on a status that is a moment old: placement counts for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.pool.plan import Offer, choose_name, fold_pool
from weft.informer.commit import Commit, Draft, edit, put, unchanged
from weft.informer.pool.claims import Claims, note_claims
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import LOCAL
from weft.kinds.node import NODES_BY_POOL, NODES_BY_UID, NodePool, NodeReport, NodeSpec, NodeStatus, pool_id
from weft.kinds.pool import POOL, POOLS_BY_ID, Driver, PoolMarks, PoolSpec, PoolStatus, pool_key
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.identity import is_name, object_key

SOURCE = "pools"
TICK = ""  # the key that stands for "write what has changed"
WRITE_EVERY_SECONDS = 1.0
AT_ONCE = 200  # pools that are written in one round


class Pools:
    """Its keys are ids of storage."""

    name = "pools"
    kinds = (POOL.name, "node", "allocation", "volume")

    def __init__(self) -> None:
        self._claims = Claims()
        self._changed: dict[str, None] = {}  # ids, and what own pools are counted by
        self._written_at = 0.0

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == POOL.name:
            return (change.item.marks(PoolMarks).id,)
        touched = set(note_claims(self._claims, change))
        if change.kind == "node" and has_changed(change, _offer_of):
            for item in (change.old, change.new):
                touched.update(pool.id for pool in item.report(NodeReport).pools if pool.id) if item else None
        new = [key for key in touched if change.kind == "node" and not view.find(POOLS_BY_ID, key)]
        self._changed.update(dict.fromkeys(sorted(touched)))
        return (*new, TICK) if touched else ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan, ids = Plan(), dict.fromkeys(key for key in keys if key != TICK)
        if TICK in keys:
            wait = self._written_at + WRITE_EVERY_SECONDS - now
            if 0 < wait <= WRITE_EVERY_SECONDS:
                plan.later[TICK] = wait
            else:
                self._written_at = now
                for key in [key for key, _ in zip(self._changed, range(AT_ONCE), strict=False)]:
                    del self._changed[key]
                    own = view.find(NODES_BY_UID, key)
                    ids[pool_id(own[0].report(NodeReport), LOCAL) if own else key] = None
                if self._changed:
                    plan.later[TICK] = WRITE_EVERY_SECONDS
        taken: set[str] = set()
        for storage in ids:
            commit = self._plan_one(view, storage, now, taken) if is_name(storage) else None
            if commit is not None:
                plan.commits.append(commit)
        return plan

    def _plan_one(self, view: View, storage: str, now: float, taken: set[str]) -> Commit | None:
        offers = [(node, pool) for node in view.find(NODES_BY_POOL, storage) for pool in _find(node, storage)]
        pools, draft = view.find(POOLS_BY_ID, storage), Draft()
        if pools:
            return plan_pool(pools[0], [read_offer(*one) for one in offers], self._find_given(pools[0], offers), now)
        if not offers or not offers[0][1].total:
            return None
        node, pool = min(offers, key=lambda one: one[0].envelope.name)
        name = choose_name(
            pool.name,
            storage,
            node.envelope.name,
            lambda name: name in taken or view.get(object_key(POOL.name, None, name)) is not None,
        )
        taken.add(name)
        marks = PoolMarks(id=storage, pool=pool.name, driver=read_driver(pool))
        draft.make(POOL.make(name, PoolSpec(), now, marks=marks))
        return draft.commit(storage)  # its status follows, once it is there

    def _find_given(self, pool: Item, offers: Sequence[tuple[Item, NodePool]]) -> int:
        marks = pool.marks(PoolMarks)
        return self._claims.given.get(pool_key(marks.pool, marks.id, offers[0][0].uid if offers else ""), 0)


def plan_pool(pool: Item, offers: Sequence[Offer], given: int, now: float) -> Commit | None:
    """Write a pool's status and conditions if they change; remove one that is gone for good."""
    spec, marks, former, draft = pool.spec(PoolSpec), pool.marks(PoolMarks), pool.status(PoolStatus), Draft()
    if not offers and not given and spec == PoolSpec():
        draft.delete(pool)
        return draft.commit(marks.id)
    status = fold_pool(former, spec, marks.pool, offers, given, now)
    envelope = edit(pool)
    nearly, full = (status.message if status.phase == phase else "" for phase in ("NearlyFull", "Full"))
    changed = set_condition(envelope, Condition("NearlyFull", "True" if nearly else "False", "", nearly, now))
    changed |= set_condition(envelope, Condition("Full", "True" if full else "False", "", full, now))
    if status == former and not changed:
        return None
    envelope.status = merge_part(envelope.status, status)
    return Commit(marks.id, [put(envelope)], [unchanged(pool)], _make_events(pool, former, status))


def _make_events(pool: Item, former: PoolStatus, status: PoolStatus) -> list[Event]:
    if status.phase == former.phase:
        return []
    ready, what = status.phase == "Ready", pool.envelope
    message = status.message or f"{what.name} takes new disks"
    return [Event("Normal" if ready else "Warning", f"Pool{status.phase}", message, what.ref, SOURCE)]


def read_offer(node: Item, pool: NodePool) -> Offer:
    report = node.report(NodeReport)
    disk = int(report.disk * node.spec(NodeSpec).overcommit.get("disk", 1.0))
    return Offer(node.envelope.name, node.status(NodeStatus).phase == "Ready", pool, disk)


def read_driver(pool: NodePool) -> Driver:
    """The driver of its storage by a node's word; a folder, where this server doesn't know it."""
    return "rbd" if pool.driver == "rbd" else "directory"


def _find(node: Item, storage: str) -> list[NodePool]:
    return [pool for pool in node.report(NodeReport).pools if pool.id == storage][:1]


def _offer_of(node: Item) -> object:
    """The parts of a node that its pools depend on."""
    report = node.report(NodeReport)
    return node.uid, report.pools, report.disk, node.spec(NodeSpec).overcommit, node.status(NodeStatus).phase
