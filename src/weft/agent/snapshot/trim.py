"""How orders to trim are done: the VM that uses the volume gives back the blocks that no file uses, and what its pool got back is
measured.

A trim that is cut off is repeated from the beginning, which gives back what is left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec.structs import replace

from weft.agent.orders.executor import Handler
from weft.agent.problem import describe_problem
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.driver.runtime import CanTrim
from weft.kinds.parts.snapshot.volume_work import TrimOrder, TrimReport
from weft.objects.errors import DriverFailed, IllegalTransition

log = logging.getLogger("weft.agent")


class TrimWork(Handler[TrimOrder, TrimReport]):
    def __init__(self, pools: Pools, table: AllocationTable, runtimes: Runtimes) -> None:
        self._pools, self._table, self._runtimes = pools, table, runtimes

    def lane(self, order: TrimOrder) -> str:
        """Each trims all disks of its VM."""
        return order.workload

    def begin(self, order: TrimOrder, former: TrimReport | None) -> TrimReport:
        return TrimReport(uid=order.uid, generation=order.generation)

    async def do(self, order: TrimOrder, show: Callable[[TrimReport], None]) -> TrimReport:
        state = next((one for one in self._table if _has(one, order)), None)
        if state is None:
            raise IllegalTransition("no VM on this node has it now", reason="notAttached")
        local, guest = state.local, state.guest
        if guest is None or guest.state != "running":
            raise IllegalTransition(f"{local.what} doesn't run", reason="notRunning")
        runtime = self._runtimes.of(local)
        if not isinstance(runtime, CanTrim):
            raise DriverFailed(f"{local.what}: its runtime can't trim file systems", reason="unsupported")
        before = await self._measure(state, order.uid)
        trimmed = await runtime.trim(local.id)
        freed = max(0, before - await self._measure(state, order.uid))
        return replace(self.begin(order, None), phase="done", trimmed=trimmed, freed=freed)

    def fail(self, order: TrimOrder, problem: Exception) -> tuple[TrimReport, None]:
        reason, message = describe_problem(problem)
        log.warning("volume %s can't be trimmed: %s", order.uid, message)
        return replace(self.begin(order, None), phase="failed", reason=reason, message=message), None

    async def _measure(self, state: AllocationState, uid: str) -> int:
        """How many bytes the volume takes up in its pool. Raises DriverFailed."""
        facts = await (await self._pools.of(state.local.spec, uid)).inspect(uid)
        return facts.used_bytes if facts is not None else 0


def _has(state: AllocationState, order: TrimOrder) -> bool:
    spec = state.local.spec
    return spec.workload.uid == order.workload and order.uid in {volume.uid for volume in spec.volumes}
