"""Samples of the node itself."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.agent.volume.pools import Pools
from weft.contracts.driver.runtime import Counted, Counters

MOST_POOLS = 8


class NodeToMeasure(msgspec.Struct, frozen=True):
    """The node itself: ``open_counters`` gives what its kernel counts, and its pools are in ``pools``."""

    uid: str
    open_counters: Callable[[], list[Counters]]
    pools: Pools


class PoolSizes:
    """Counters (contracts.driver.runtime) of the node's pools, as they were found last."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self.names = tuple(f"pool.{pool.name}.{part}" for pool in pools.facts[:MOST_POOLS] for part in ("used", "free"))

    def read(self, at: float, *, often: bool) -> Counted:
        values: dict[str, float] = {}
        for pool in self._pools.facts:
            if pool.total:
                values[f"pool.{pool.name}.used"], values[f"pool.{pool.name}.free"] = pool.total - pool.free, pool.free
        return Counted(at, values)

    def close(self) -> None: ...
