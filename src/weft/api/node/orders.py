"""What nodes are asked to do in the answers to their reports, beside their allocations: kept from the store's watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from weft.api.node.bells import NodeBells
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.allocation import AllocatedImage
from weft.kinds.fields.backup_work import BackupOrder
from weft.kinds.fields.replication.work import AskOrder, ReceiveOrder, ReplicationOrder, SendOrder
from weft.kinds.image import ImageSpec, ImageStatus, read_cores
from weft.kinds.parts.image_work import ImageOrder
from weft.kinds.parts.snapshot.volume_work import VolumeOrder
from weft.kinds.replica import ReplicaStatus
from weft.kinds.replication import ReplicationStatus
from weft.kinds.snapshot import SnapshotSpec, SnapshotStatus, is_dropped
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import kind_prefix
from weft.protocol.report import WarmImage

T = TypeVar("T")

WITH_BACKUP_ORDERS = ("backuprepository", "backup", "snapshot")


class _HasBackupOrder(msgspec.Struct):
    """The part of these kinds' status that is read here."""

    order: BackupOrder | None = None


class _VolumeStatus(msgspec.Struct):
    """The part of a volume's status that is read here."""

    order: VolumeOrder | None = None


class OrdersByNode(Generic[T]):
    """Orders by the uid of their node: a replication has one at all times, and every report of a node asks for its own."""

    def __init__(self, find: Callable[[str], T | None], whose: Callable[[T], str]) -> None:
        self._find, self._whose = find, whose
        self._node_uids: dict[str, str] = {}  # by key
        self._orders: dict[str, dict[str, T]] = {}

    def note(self, key: str) -> None:
        """The order with this key may have changed."""
        now = self._find(key)
        node_uid = self._whose(now) if now is not None else None
        before = self._node_uids.pop(key, None)
        if before is not None and before != node_uid:
            left = self._orders[before]
            del left[key]
            if not left:
                del self._orders[before]
        if now is not None and node_uid is not None:
            self._node_uids[key] = node_uid
            self._orders.setdefault(node_uid, {})[key] = now

    def of(self, node_uid: str) -> list[T]:
        return list(self._orders.get(node_uid, {}).values())


class DoomedSnapshot(msgspec.Struct, frozen=True):
    uid: str
    goes_with: frozenset[str]  # uids of its workload and of its volumes: it goes where these go


class NodeOrders:
    """``doomed_volumes``: uid and node uid of each volume that is being deleted and whose data lies on a node.
    ``doomed_snapshots``: each snapshot that is being deleted, or whose group failed. ``warm_images``: nodes keep a booted
    machine of each. ``never_often``: uid of each image of which nodes keep none by themselves. ``bells``: whom to tell that a
    node has other orders than before."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.bells = NodeBells()

        def ringing(kind: str, pick: Callable[[Envelope], T | None], whose: Callable[[T], str]) -> PrefixCache[T]:
            cache = PrefixCache(
                store,
                kind_prefix(kind),
                of_envelope(pick),
                clock,
                self.bells.follow(lambda key: cache.found.get(key), whose),
            )
            return cache

        def by_node(
            kind: str, pick: Callable[[Envelope], T | None], whose: Callable[[T], str]
        ) -> tuple[PrefixCache[T], OrdersByNode[T]]:
            def note(key: str) -> None:
                orders.note(key)
                ring(key)

            cache = PrefixCache(store, kind_prefix(kind), of_envelope(pick), clock, note)
            orders = OrdersByNode[T](lambda key: cache.found.get(key), whose)
            ring = self.bells.follow(lambda key: cache.found.get(key), whose)
            return cache, orders

        self.doomed_volumes = ringing("volume", find_doomed, lambda doomed: doomed[1])
        self.doomed_snapshots = PrefixCache(store, kind_prefix("snapshot"), of_envelope(find_doomed_snapshot), clock)
        self.warm_images = PrefixCache(store, kind_prefix("image"), of_envelope(find_warm), clock)
        self.never_often = PrefixCache(store, kind_prefix("image"), of_envelope(find_never_often), clock)
        self._backup_work = [
            ringing(kind, find_backup_order, lambda order: order.node_uid) for kind in WITH_BACKUP_ORDERS
        ]
        self._volume_work = [
            ringing("volume", find_volume_order, lambda order: order.node_uid),
            ringing("snapshot", find_taking_order, lambda order: order.node_uid),
        ]
        self._image_work = ringing("image", find_image_order, lambda order: order.node_uid)
        self._replications, self._sends = by_node("replication", find_replication_order, lambda order: order.node_uid)
        self._replicas, self._receives = by_node("replica", find_receive_order, lambda order: order.node_uid)

    async def run(self) -> None:
        """Follow the store until cancelled."""
        runs = [cache.run() for cache in self._backup_work]
        runs += [self._image_work.run(), self._replications.run(), self._replicas.run()]
        runs += [cache.run() for cache in self._volume_work]
        runs += [self.doomed_volumes.run(), self.doomed_snapshots.run(), self.warm_images.run(), self.never_often.run()]
        await asyncio.gather(*runs)

    def find_backup_orders(self, node_uid: str) -> list[BackupOrder]:
        """The work on backups that this node is asked to do, oldest first."""
        return [order for cache in self._backup_work for order in cache.found.values() if order.node_uid == node_uid]

    def find_volume_orders(self, node_uid: str) -> list[VolumeOrder]:
        """The work on volumes that this node is asked to do by itself."""
        return [order for cache in self._volume_work for order in cache.found.values() if order.node_uid == node_uid]

    def find_image_orders(self, node_uid: str) -> list[ImageOrder]:
        """The images of VMs that this node is asked to make."""
        return [order for order in self._image_work.found.values() if order.node_uid == node_uid]

    def find_sends(self, node_uid: str) -> list[SendOrder]:
        """The points of replicas that this node is asked to send."""
        return [order for order in self._sends.of(node_uid) if isinstance(order, SendOrder)]

    def find_asks(self, node_uid: str) -> list[AskOrder]:
        """The replicas that this node is asked to ask after."""
        return [order for order in self._sends.of(node_uid) if isinstance(order, AskOrder)]

    def find_receives(self, node_uid: str) -> list[ReceiveOrder]:
        """The points of replicas that this node is asked to take in."""
        return self._receives.of(node_uid)

    def is_warm(self, sha256: str) -> bool:
        """Whether nodes keep a booted machine of the image with this content."""
        return any(warm.image.sha256 == sha256 for warm in self.warm_images.found.values())


def find_doomed(envelope: Envelope) -> tuple[str, str] | None:
    if envelope.deleting_since is None:
        return None
    status = decode_part(envelope.status, VolumeStatus)
    if status.node_uid is None or status.attached_to is not None:
        return None
    return envelope.uid, status.node_uid


def find_doomed_snapshot(envelope: Envelope) -> DoomedSnapshot | None:
    spec, status = decode_part(envelope.spec, SnapshotSpec), decode_part(envelope.status, SnapshotStatus)
    if envelope.deleting_since is None and not is_dropped(spec, status):
        return None
    return DoomedSnapshot(envelope.uid, frozenset({status.workload_uid, *(one.key for one in status.disks.values())}))


def find_never_often(envelope: Envelope) -> str | None:
    return None if decode_part(envelope.spec, ImageSpec).warm_often else envelope.uid


def find_backup_order(envelope: Envelope) -> BackupOrder | None:
    return decode_part(envelope.status, _HasBackupOrder).order


def find_image_order(envelope: Envelope) -> ImageOrder | None:
    return None if envelope.deleting_since is not None else decode_part(envelope.status, ImageStatus).order


def find_volume_order(envelope: Envelope) -> VolumeOrder | None:
    return decode_part(envelope.status, _VolumeStatus).order


def find_taking_order(envelope: Envelope) -> VolumeOrder | None:
    return decode_part(envelope.status, SnapshotStatus).volume_order


def find_replication_order(envelope: Envelope) -> ReplicationOrder | None:
    status = decode_part(envelope.status, ReplicationStatus)
    return status.order or status.ask


def find_receive_order(envelope: Envelope) -> ReceiveOrder | None:
    return decode_part(envelope.status, ReplicaStatus).order


def find_warm(envelope: Envelope) -> WarmImage | None:
    spec, status = decode_part(envelope.spec, ImageSpec), decode_part(envelope.status, ImageStatus)
    if spec.warm is None or status.phase != "Available" or envelope.deleting_since is not None:
        return None
    image = AllocatedImage(
        name=envelope.name,
        uid=envelope.uid,
        sha256=status.sha256,
        size=status.size,
        url=f"/v1/blobs/{status.sha256}",
    )
    return WarmImage(image, spec.warm.memory, *read_cores(spec.warm.cpu))
