"""Keeps the chains of points short: what a point that is gone holds is united with the next one, from below.

One layer at a time on a node. It gives way to steps of allocations, and never touches a layer that a volume stands on. It may be
cut off anywhere and is repeated: until a layer is united, the chain has it.
"""

from __future__ import annotations

import logging

from weft.agent.snapshot.turns import DiskTurns
from weft.agent.volume.pools import Pools
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import CopiesDisks
from weft.objects.errors import WeftError

CHECK_SECONDS = 5.0
RETRY_SECONDS = 60.0

log = logging.getLogger("weft.agent")


class Merging:
    def __init__(self, pools: Pools, turns: DiskTurns, clock: Clock) -> None:
        self._pools, self._turns, self._clock = pools, turns, clock
        self._troubled = ""

    async def keep(self) -> None:
        """Merge again and again, for ever."""
        while True:
            pause = CHECK_SECONDS
            try:
                await self.merge_all()
                self._troubled = ""
            except (WeftError, OSError) as problem:
                pause, why = RETRY_SECONDS, str(problem)
                if why != self._troubled:
                    log.warning("points can't be merged yet: %s", why)
                self._troubled = why
            except Exception:  # a defect in it must not end the agent
                log.exception("merging of points")
                pause = RETRY_SECONDS
            await self._clock.sleep(pause)

    async def merge_all(self) -> None:
        """Merge what may be merged now. Raises WeftError, OSError."""
        for driver in self._pools.drivers():
            while isinstance(driver, CopiesDisks) and (layers := await driver.copies.list_mergeable()):
                if not await self._turns.work((layers[0],), driver.copies.merge(layers[0])):
                    return  # what gave way is done later
                if layers[0] in await driver.copies.list_mergeable():
                    return  # it was needed meanwhile
