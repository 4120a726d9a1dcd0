"""Orders to nodes, and what nodes may remove: kept current by watches of the store, and sent in the answers to nodes' reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from weft.api.node.bells import NodeBells
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.orders import ORDER_KINDS, WARM, O, OrderKind, Orders, R
from weft.kinds.parts.image.work import WarmOrder
from weft.kinds.snapshot import SnapshotMarks, SnapshotStatus, is_dropped
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import kind_prefix

T = TypeVar("T")
ALL_NODES = ""


class DoomedSnapshot(msgspec.Struct, frozen=True):
    uid: str
    goes_with: frozenset[str]  # uids of its workload and of its volumes: it goes where these go


class OrdersByNode:
    """The orders in the store's objects. ``ring`` gets the uid of each node whose orders change."""

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._ring = ring
        # By the node's uid, the kind's name, and the object's key.
        self._orders: dict[str, dict[str, dict[str, Any]]] = {}
        self._known: dict[str, Mapping[str, Any]] = {}  # by the object's key, and the kind's name

    def list(self, kind: str, node_uid: str) -> Collection[Any]:
        return self._orders.get(node_uid, {}).get(kind, {}).values()

    def note(self, key: str, now: Mapping[str, Any]) -> None:
        """The object with this key has these orders now, by the names of their kinds."""
        before, changed = self._known.pop(key, {}), set[str]()
        if now:
            self._known[key] = now
        for name in [name for name in {**before, **now} if before.get(name) != now.get(name)]:
            former, order = before.get(name), now.get(name)
            if former is not None and (order is None or order.node_uid != former.node_uid):
                self._remove(former.node_uid, name, key)
                changed.add(former.node_uid)
            if order is not None:
                self._orders.setdefault(order.node_uid, {}).setdefault(name, {})[key] = order
                changed.add(order.node_uid)
        for node_uid in changed:
            self._ring(node_uid)

    def _remove(self, node_uid: str, name: str, key: str) -> None:
        left = self._orders[node_uid]
        del left[name][key]
        if not left[name]:
            del left[name]
        if not left:
            del self._orders[node_uid]


class NodeOrders:
    """``doomed_volumes``: uid and node uid of each volume that is being deleted and whose data lies on a node.
    ``doomed_snapshots``: each snapshot that is being deleted, or whose group failed. ``bells``: whom to tell that a node has other
    orders than before."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.bells = NodeBells()
        self._orders = OrdersByNode(self.bells.ring)
        self._caches = [self._follow(store, clock, kind) for kind in list_sources()]
        self.doomed_volumes: PrefixCache[tuple[str, str]] = PrefixCache(
            store,
            kind_prefix("volume"),
            of_envelope(find_doomed),
            clock,
            self.bells.follow(lambda key: self.doomed_volumes.found.get(key), lambda doomed: doomed[1]),
        )
        self.doomed_snapshots = PrefixCache(store, kind_prefix("snapshot"), of_envelope(find_doomed_snapshot), clock)

    def _follow(self, store: Store, clock: Clock, kind: str) -> PrefixCache[Mapping[str, Any]]:
        def note(key: str) -> None:
            self._orders.note(key, cache.found.get(key, {}))

        cache = PrefixCache(store, kind_prefix(kind), of_envelope(partial(find_orders, kind)), clock, note)
        return cache

    async def run(self) -> None:
        """Follow the store until cancelled."""
        runs = [cache.run() for cache in self._caches]
        await asyncio.gather(*runs, self.doomed_volumes.run(), self.doomed_snapshots.run())

    def find(self, node_uid: str) -> Orders:
        """All that this node is ordered to do."""
        return Orders(**{kind.name: self.find_all(kind, node_uid) for kind in ORDER_KINDS})

    def find_all(self, kind: OrderKind[O, R], node_uid: str) -> list[O]:
        """Its orders of one kind, those for all nodes among them."""
        uids = dict.fromkeys((node_uid, ALL_NODES))
        return [order for uid in uids for order in self._orders.list(kind.name, uid)]

    def list_warm(self) -> list[WarmOrder]:
        """The images of which people want all nodes to keep a booted machine."""
        return [order for order in self.find_all(WARM, ALL_NODES) if order.wanted]


def list_sources() -> list[str]:
    """The kinds of objects in which orders stand."""
    return list(dict.fromkeys(source.kind for kind in ORDER_KINDS for source in kind.sources))


def find_orders(kind: str, envelope: Envelope) -> Mapping[str, Any] | None:
    """The orders in an object of ``kind``, by the name of their kind."""
    found = {
        order.name: source.find(envelope) for order in ORDER_KINDS for source in order.sources if source.kind == kind
    }
    return {name: order for name, order in found.items() if order is not None} or None


def find_doomed(envelope: Envelope) -> tuple[str, str] | None:
    if envelope.deleting_since is None:
        return None
    status = decode_part(envelope.status, VolumeStatus)
    if status.node_uid is None or status.attached_to is not None:
        return None
    return envelope.uid, status.node_uid


def find_doomed_snapshot(envelope: Envelope) -> DoomedSnapshot | None:
    marks, status = decode_part(envelope.marks, SnapshotMarks), decode_part(envelope.status, SnapshotStatus)
    if envelope.deleting_since is None and not is_dropped(marks, status):
        return None
    return DoomedSnapshot(envelope.uid, frozenset({status.workload_uid, *(one.key for one in status.disks.values())}))
