"""Keep who holds which lease, in memory: a renewal costs one dictionary write and reaches no disk.

Leases die with the process, fences do not: the engine keeps a ceiling that fences may grow to, and raises it durably
before it is reached. Called from the loop; ``holds`` may be called from any thread.
"""

from __future__ import annotations

from typing import NamedTuple

from weft.contracts.clock import Clock
from weft.contracts.store import Lease
from weft.objects.errors import StoreUnavailable
from weft.store.limits import check_digest, check_ttl

_SWEEP_AT_LEAST = 1_000


class _Claim(NamedTuple):
    # immutable, and replaced in one dictionary store: a reader in another thread sees an old claim or a new one, whole
    holder: str
    fence: int
    lapses_at: float
    digest: bytes


class LeaseTable:
    """Live leases by name. Fences are ``last_fence`` + 1 and on, never above ``ceiling``."""

    def __init__(self, clock: Clock, *, last_fence: int = 0, ceiling: int = 2**62) -> None:
        self._clock = clock
        self._claims: dict[str, _Claim] = {}
        self._last_fence = last_fence
        self._ceiling = ceiling
        self._sweep_at = _SWEEP_AT_LEAST

    def needs_ceiling(self, name: str) -> bool:
        """True when granting ``name`` may take a new fence and the ceiling must be raised first."""
        if self._last_fence < self._ceiling:
            return False
        claim = self._claims.get(name)
        return claim is None or claim.lapses_at <= self._clock.elapsed()

    def raise_ceiling(self, ceiling: int) -> None:
        self._ceiling = max(self._ceiling, ceiling)

    def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        """Take or renew ``name`` for ``ttl_seconds``; None if another holder has it."""
        check_ttl(name, ttl_seconds)
        check_digest(name, digest)
        now = self._clock.elapsed()
        claim = self._claims.get(name)
        if claim is not None and claim.lapses_at > now:
            if claim.holder != holder:
                return None
            fence = claim.fence
        else:
            if self._last_fence >= self._ceiling:
                raise StoreUnavailable(f"lease {name}: no fence is left below the durable ceiling")
            self._last_fence += 1
            fence = self._last_fence
            self._sweep(now)
        self._claims[name] = _Claim(holder, fence, now + ttl_seconds, digest)
        return Lease(name, holder, fence, ttl_seconds, digest)

    def release(self, name: str, holder: str) -> None:
        claim = self._claims.get(name)
        if claim is not None and claim.holder == holder:
            del self._claims[name]

    def live(self, prefix: str, *, digests: bool = False) -> list[Lease]:
        now = self._clock.elapsed()
        return [
            Lease(name, claim.holder, claim.fence, claim.lapses_at - now, claim.digest if digests else b"")
            for name, claim in sorted(self._claims.items())
            if claim.lapses_at > now and name.startswith(prefix)
        ]

    def holds(self, name: str, fence: int) -> bool:
        claim = self._claims.get(name)
        return claim is not None and claim.fence == fence and claim.lapses_at > self._clock.elapsed()

    def _sweep(self, now: float) -> None:
        if len(self._claims) < self._sweep_at:
            return
        self._claims = {name: claim for name, claim in self._claims.items() if claim.lapses_at > now}
        self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self._claims))
