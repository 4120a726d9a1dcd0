"""Whether the path to the target is slow. Measured on the control connection before a guest migrates: rates of earlier migrations
may be missing or outdated, and a mode that was chosen for a fast path can't be changed later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from weft.contracts.clock import Clock
from weft.protocol.migration import MigrationAnswer, MigrationRequest

FIRST_BYTES, MORE_BYTES = 64 << 10, 256 << 10
BEGINS, BEGUN = 4, 2  # round trips until a new connection, and one that has sent some, send as fast as the path allows
SUSPECT_SECONDS, SURE_SECONDS = 0.02, 0.25
SLOW_BYTES = 4_000_000  # a second; faster paths can't be measured this way: a hiccup of either node takes as long


async def find_slow_path(ask: Callable[[MigrationRequest], Awaitable[MigrationAnswer]], clock: Clock) -> float | None:
    """Bytes a second to the target; None if the path isn't slow. Sends 64 KiB, and on a path of a few Mbit/s 256 KiB more. Raises
    the errors of ``ask``."""

    async def measure(size: int) -> float:
        began = clock.elapsed()
        await ask(MigrationRequest("status", padding="x" * size))
        return clock.elapsed() - began

    trip = min([await measure(0), await measure(0)])
    seconds = await measure(FIRST_BYTES) - BEGINS * trip
    if seconds < SUSPECT_SECONDS:
        return None
    rate = FIRST_BYTES / seconds
    if seconds < SURE_SECONDS:  # measure again: it may have been a hiccup
        rate = MORE_BYTES / max(1e-3, await measure(MORE_BYTES) - BEGUN * trip)
    return rate if rate < SLOW_BYTES else None
