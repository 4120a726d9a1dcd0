"""The volumes whose data is on this node, and their removal on the server's request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from weft.agent.server.reporter import Reporter
from weft.agent.state.table import AllocationTable
from weft.agent.tasks import Tasks
from weft.agent.volume.pools import CHECK_SECONDS, Pools
from weft.contracts.clock import Clock
from weft.contracts.driver.volume import HasPool
from weft.objects.errors import WeftError
from weft.objects.identity import SHORT_ID

log = logging.getLogger("weft.agent")


class Volumes:
    def __init__(self, pools: Pools, table: AllocationTable, reporter: Reporter, clock: Clock, tasks: Tasks) -> None:
        self._pools, self._table, self._reporter, self._clock, self._tasks = pools, table, reporter, clock, tasks
        self._removing: set[str] = set()
        self.uids: set[str] = set()

    @property
    def unattached(self) -> set[str]:
        """Volumes that the server might want removed."""
        return self.uids - self._table.volumes()

    async def find(self) -> None:
        """List the volumes that are here; root disks have short ids, volumes uids."""
        for disks in self._pools.drivers():
            try:
                self.uids |= {facts.id for facts in await disks.list() if len(facts.id) > SHORT_ID}
            except (WeftError, OSError) as problem:
                log.warning("can't list volumes: %s", problem)

    async def keep(self) -> None:
        """Check, again and again, whether another node has removed volumes from a shared pool. Attached volumes are skipped: their
        disks may not be made yet."""
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            if gone := await self._pools.find_gone(self.unattached) - self._table.volumes():
                self.uids -= gone
                self._reporter.wake()

    async def remove(self, uid: str) -> None:
        """Remove a volume's data for good; it may be absent. Raises DriverFailed."""
        for disks in self._pools.drivers():
            if isinstance(disks, HasPool):
                await asyncio.to_thread(disks.pool)  # raises if the pool isn't mounted: then absence proves nothing
            await disks.remove(uid)
        self.uids.discard(uid)

    def let_go(self, uids: Iterable[str]) -> None:
        """Remove these on the server's request, except those that an allocation has."""
        for uid in uids:
            if uid not in self._table.volumes() and uid not in self._removing:
                self._removing.add(uid)
                self._tasks.spawn(self._let_go(uid))

    async def _let_go(self, uid: str) -> None:
        try:
            await self.remove(uid)
            self._reporter.put_removed_volume(uid)
        except (WeftError, OSError) as problem:
            log.warning("can't remove volume %s: %s", uid, problem)
        finally:
            self._removing.discard(uid)
