"""Describe a pool's storage in its object: pure functions of what nodes report of it and what is promised there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from weft.kinds.allocation import LOCAL
from weft.kinds.node import NodePool
from weft.kinds.pool import DEFAULT_OVERCOMMIT, FULL, MOST_NAMED, PoolSpec, PoolStatus
from weft.objects.identity import cut_name, is_name

SLACK = 0.01  # of the capacity: so much less must be in use before an alarm ends


class Offer(msgspec.Struct, frozen=True):
    """A pool, as one node offers it."""

    node: str
    ready: bool
    pool: NodePool
    disk: int = 0  # of the node, in bytes: what its own pool may promise


def fold_pool(
    former: PoolStatus, spec: PoolSpec, name: str, offers: Sequence[Offer], given: int, now: float
) -> PoolStatus:
    """The status of a pool that nodes call ``name``. Where nodes that share it differ, the least free space counts, of nodes that
    are ready."""
    heard = [offer.pool for offer in offers if offer.ready] or [offer.pool for offer in offers]
    status = msgspec.structs.replace(
        former, given=given, nodes=len(offers), node_names=sorted(offer.node for offer in offers)[:MOST_NAMED]
    )
    if heard:
        status.capacity = max(pool.total for pool in heard)
        status.free = min(status.capacity, *(pool.free for pool in heard))
        status.used = status.capacity - status.free
        own = offers[0].disk if name == LOCAL else None
        status.bound = int(status.capacity * (spec.overcommit or DEFAULT_OVERCOMMIT)) if own is None else own
    status.phase, status.message = _judge(former.phase, spec, status)
    status.since = former.since if status.phase == former.phase and former.since else now
    return status


def _judge(former: str, spec: PoolSpec, status: PoolStatus) -> tuple[str, str]:
    if not status.nodes:
        return "Missing", "no node offers it now"
    share = status.used / status.capacity if status.capacity else 0.0
    left = FULL - SLACK if former == "Full" else FULL
    if share >= left:
        return "Full", f"{share:.0%} in use; no new disks until less than {FULL - SLACK:.0%} are"
    alarm = spec.alarm - SLACK if former in ("NearlyFull", "Full") else spec.alarm
    if share >= alarm:
        return "NearlyFull", f"{share:.0%} in use, of an alarm at {spec.alarm:.0%}"
    return "Ready", ""


def choose_name(pool: str, storage: str, node: str, is_taken: Callable[[str], bool]) -> str:
    """The name of a new object: of a node's own pool NODE-local, of others the name that nodes use. Where another storage has that,
    NODE-NAME; the id settles what is left."""
    names = [f"{node}-{pool}", cut_name(pool, f"-{storage}")]
    if pool != LOCAL:
        names.insert(0, pool)
    return next(name for name in names if is_name(name) and not is_taken(name))
