"""Whether the path to the target is slow. Measured before a guest migrates, on its control connection: what migrations carried
before may be nothing, or of a better day, and a mode that was chosen for a fast path can't be left for another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from weft.contracts.clock import Clock
from weft.protocol.migration import MigrationAnswer, MigrationRequest

FIRST_BYTES, MORE_BYTES = 64 << 10, 256 << 10
BEGINS, BEGUN = 4, 2  # round trips until a new connection sends as fast as the path allows, and one that has sent some
SUSPECT_SECONDS, SURE_SECONDS = 0.02, 0.25
SLOW_BYTES = 4_000_000  # a second; faster ones are told by what they carry, for hiccups of either node look like them


async def find_slow_path(ask: Callable[[MigrationRequest], Awaitable[MigrationAnswer]], clock: Clock) -> float | None:
    """Bytes a second to the target, None if it isn't slow or can't be told: some 64 KiB go there to see, and on a path of a few
    Mbit/s 256 KiB. Raises what ``ask`` does."""

    async def measure(size: int) -> float:
        began = clock.elapsed()
        await ask(MigrationRequest("status", padding="x" * size))
        return clock.elapsed() - began

    trip = min([await measure(0), await measure(0)])
    seconds = await measure(FIRST_BYTES) - BEGINS * trip
    if seconds < SUSPECT_SECONDS:
        return None
    rate = FIRST_BYTES / seconds
    if seconds < SURE_SECONDS:  # a hiccup is told from a slow path by a second look
        rate = MORE_BYTES / max(1e-3, await measure(MORE_BYTES) - BEGUN * trip)
    return rate if rate < SLOW_BYTES else None
