"""The samples of one moment, of what data lies in: pools, OSDs, backup repositories. Pure.

Nodes may be hostile: what they say of OSDs is bounded in number, and in its words and values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from weft.informer.view import Item, View
from weft.kinds.backup_repository import BACKUP_REPOSITORY, BackupRepositoryStatus
from weft.kinds.node import NodePool
from weft.kinds.pool import POOL, POOLS_BY_ID, PoolStatus
from weft.telemetry.metrics.devices import MOST_POOLS
from weft.telemetry.metrics.sample import Sample

MOST_OSDS = 64  # of a pool, on one node's machine
MOST_LATENCY_MS = 3_600_000.0
MOST_BYTES = 2**62
OPERATIONS = ("write", "read", "replica", "commit")
_OSD = re.compile(r"osd\.[0-9]{1,6}")


def list_storage(view: View, at: int) -> Iterator[Sample]:
    """Yield the samples of pools and backup repositories. ``at`` in ms."""
    for pool in view.of_kind(POOL.name).values():
        labels, status = (("pool", pool.envelope.name),), pool.status(PoolStatus)
        if status.phase != "Missing":  # else they are of the time when a node offered it
            yield Sample("weft_pool_capacity_bytes", labels, at, status.capacity)
            yield Sample("weft_pool_used_bytes", labels, at, status.used)
        yield Sample("weft_pool_given_bytes", labels, at, status.given)
    for repository in view.of_kind(BACKUP_REPOSITORY.name).values():
        yield from _list_of_repository(repository, at)


def _list_of_repository(item: Item, at: int) -> Iterator[Sample]:
    """Yield a repository's samples: none of one that no node has checked yet, and not the contents of one that can't be used."""
    labels, status = (("repository", item.envelope.name),), item.status(BackupRepositoryStatus)
    if status.checked_at is None:
        return
    usable = status.phase == "Ready"
    yield Sample("weft_backuprepository_up", labels, at, float(usable))
    if usable:
        yield Sample("weft_backuprepository_used_bytes", labels, at, status.bytes)
        yield Sample("weft_backuprepository_backups", labels, at, status.backups)
    if usable and status.free >= 0:
        yield Sample("weft_backuprepository_free_bytes", labels, at, status.free)


def list_osds(view: View, node: str, pools: Sequence[NodePool], at: int) -> Iterator[Sample]:
    """Yield the samples of the OSDs on the machine of ``node``, by the name of the Pool that a node's pool is. Each pool once, each
    OSD once.
    """
    told = set[str]()
    for offered in pools[:MOST_POOLS]:
        pool = next(iter(view.find(POOLS_BY_ID, offered.id)), None)
        if pool is None or pool.key in told:
            continue
        told.add(pool.key)
        names = set[str]()
        for osd in offered.osds[:MOST_OSDS]:
            if osd.name in names or not _OSD.fullmatch(osd.name):
                continue
            names.add(osd.name)
            labels = (("node", node), ("pool", pool.envelope.name), ("osd", osd.name))
            yield Sample("weft_osd_up", labels, at, float(not osd.problem))
            if osd.problem:
                continue
            if 0 < osd.total < MOST_BYTES and 0 <= osd.used < MOST_BYTES:
                yield Sample("weft_osd_capacity_bytes", labels, at, osd.total)
                yield Sample("weft_osd_used_bytes", labels, at, osd.used)
            for operation in OPERATIONS:
                value = osd.latency_ms.get(operation, -1.0)
                if 0.0 <= value < MOST_LATENCY_MS:
                    yield Sample("weft_osd_latency_seconds", (*labels, ("operation", operation)), at, value / 1000)
