"""When each token was last used, to the minute: gathered in memory, and written into tokens' status now and then."""

from __future__ import annotations

from contextlib import suppress

from weft.contracts.clock import Clock
from weft.contracts.store import AtRevision, PreconditionFailed, Put, Store
from weft.kinds.token import TokenStatus
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import WeftError

WRITE_SECONDS = 10.0  # between two writes
FRESH_SECONDS = 60.0  # a use so soon after the one that is written isn't


def find_fresh(used_at: float | None) -> float:
    """Time until which a further use of a token needs no note, if ``used_at`` is written of it (unix seconds)."""
    return 0.0 if used_at is None else used_at + FRESH_SECONDS


class TokenUse:
    """``note`` costs a comparison for a token whose use is written already."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._used: dict[str, float] = {}

    def note(self, key: str, used_at: float | None, now: float) -> None:
        """The token at ``key`` is used ``now``; ``used_at`` is the time that is written (unix seconds)."""
        if now >= find_fresh(used_at):
            self._used[key] = now

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._clock.sleep(WRITE_SECONDS)
            with suppress(WeftError):  # the next use is noted again
                await self.write()

    async def write(self) -> None:
        """Write what was noted. Raises StoreUnavailable."""
        used, self._used = self._used, {}
        for key, now in used.items():
            try:
                await self._write(key, now)
            except PreconditionFailed:  # the token was changed meanwhile
                self._used.setdefault(key, now)

    async def _write(self, key: str, now: float) -> None:
        entry = await self._store.get(key)
        if entry is None:
            return
        envelope: Envelope = decode_envelope(entry.value, entry.revision)
        status = decode_part(envelope.status, TokenStatus)
        if status.used_at is None or now - status.used_at >= FRESH_SECONDS:
            status.used_at = now
            envelope.status = merge_part(envelope.status, status)
            await self._store.commit([Put(key, encode_envelope(envelope))], [AtRevision(key, entry.revision)])
