"""The lease of a gateway, by which others know that it runs its events itself; with it comes what functions were invoked."""

from __future__ import annotations

from collections.abc import Callable

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.protocol.function_counts import LEASE_PREFIX, LEASE_SECONDS


class GatewayLease:
    """``write_digest`` gives what is attached. ``lapses``: how often it wasn't held before it was taken. ``is_wanted``: also by a
    gateway without functions."""

    def __init__(self, store: Store, name: str, write_digest: Callable[[], bytes], clock: Clock) -> None:
        self._store, self.name, self._write_digest, self._clock = store, name, write_digest, clock
        self._renewed_at = float("-inf")
        self.lapses, self.is_wanted = 0, False

    def is_held(self) -> bool:
        """Whether no other gateway can think that it has lapsed."""
        return self._clock.elapsed() - self._renewed_at < LEASE_SECONDS

    async def renew(self) -> None:
        """Take or renew it. Raises StoreUnavailable."""
        now = self._clock.elapsed()
        if (
            await self._store.grant(LEASE_PREFIX + self.name, self.name, LEASE_SECONDS, self._write_digest())
            is not None
        ):
            self.lapses += not self.is_held()
            self._renewed_at = now
