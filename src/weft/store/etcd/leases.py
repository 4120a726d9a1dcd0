"""Leases as keys of etcd: the fence is the revision at which the key was made, so it grows with every new grant.

A renewal writes the key again; a take-over deletes it and makes it anew. How long a lease lives is measured by the process that
looks: from the moment a holder asked, or another saw the key change. So no two machines' clocks are compared, and a
holder thinks its lease lapsed no later than anybody else does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Lease
from weft.store.etcd.connection import EtcdConnection
from weft.store.etcd.gathering import Gathering
from weft.store.etcd.transaction import choose, delete, find_value, is_absent, is_same, is_unchanged, put, read
from weft.store.limits import check_digest, check_ttl


class _Claim(msgspec.Struct, frozen=True):
    """Value of a lease's key."""

    holder: str
    ttl_seconds: float
    digest: bytes = b""


class _Seen(NamedTuple):
    """Newest sight of a lease; ``lapses_at`` on this clock, unless the key changes before."""

    fence: int
    mod_revision: int
    holder: str
    lapses_at: float
    digest: bytes


class EtcdLeases:
    """Leases under ``folder``, each judged by ``clock``."""

    def __init__(self, connection: EtcdConnection, clock: Clock, folder: bytes) -> None:
        self._connection = connection
        self._grants = Gathering(connection)
        self._clock = clock
        self._folder = folder
        self._seen: dict[str, _Seen] = {}

    def place(self, name: str) -> bytes:
        """The key that stands for lease ``name``."""
        return self._folder + name.encode(errors="surrogatepass")

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        """Take or renew ``name`` for ``ttl_seconds``; None if another holder has it."""
        check_ttl(name, ttl_seconds)
        check_digest(name, digest)
        key = self.place(name)
        write = put(key, msgspec.json.encode(_Claim(holder, ttl_seconds, digest)))
        while True:
            asked_at = self._clock.elapsed()
            seen = self._seen.get(name)
            if seen is None:
                condition = is_absent(key)
            elif seen.lapses_at <= asked_at:
                await self._end(name, seen)
                continue
            elif seen.holder == holder:
                condition = is_same(key, seen.fence)
            elif await self._inspect(name) == seen:
                return None
            else:
                continue
            done = await self._grants.do(key, choose(condition, write, read(key)))
            if not done.response.txn.succeeded:
                self._note(name, find_value(done.response.txn.responses[0]))
                continue
            revision = done.revision
            fence = revision if seen is None else seen.fence
            self._seen[name] = _Seen(fence, revision, holder, asked_at + ttl_seconds, digest)
            return Lease(name, holder, fence, ttl_seconds, digest)

    async def release(self, name: str, holder: str) -> None:
        while (seen := await self._inspect(name)) is not None and seen.holder == holder:
            await self._end(name, seen)

    async def live(self, prefix: str, *, digests: bool = False) -> list[Lease]:
        """Live leases whose name starts with ``prefix``, in order.

        Those seen to lapse are deleted: a process that starts later would take them for live until it had waited."""
        start = self.place(prefix)
        found = await self._connection.range(key=start, range_end=end_of(start))
        now = self._clock.elapsed()
        out, lapsed = [], []
        for kv in found.kvs:
            name = kv.key[len(self._folder) :].decode(errors="surrogatepass")
            seen = self._note(name, kv)
            if seen is not None and seen.lapses_at > now:
                out.append(Lease(name, seen.holder, seen.fence, seen.lapses_at - now, seen.digest if digests else b""))
            elif seen is not None:
                lapsed.append((name, seen))
        for name, seen in lapsed:
            await self._end(name, seen)
        return out

    async def holds(self, name: str, fence: int) -> bool:
        """Whether the lease is live with this fence, as far as this clock can tell; etcd has the last word on the fence."""
        seen = self._seen.get(name)
        if seen is None or seen.fence != fence or seen.lapses_at <= self._clock.elapsed():
            seen = await self._inspect(name)
        return seen is not None and seen.fence == fence and seen.lapses_at > self._clock.elapsed()

    async def _inspect(self, name: str) -> _Seen | None:
        found = await self._connection.range(key=self.place(name))
        return self._note(name, found.kvs[0] if found.kvs else None)

    async def _end(self, name: str, seen: _Seen) -> None:
        """Delete the lease's key unless somebody wrote it since it was seen."""
        key = self.place(name)
        answer = await self._connection.transact([is_unchanged(key, seen.mod_revision)], [delete(key)], [read(key)])
        self._note(name, None if answer.succeeded else find_value(answer.responses[0]))

    def _note(self, name: str, kv: Any | None) -> _Seen | None:
        """Remember what was read of the lease's key; a key that didn't change keeps the time it was first seen."""
        seen = self._seen.get(name)
        if kv is None:
            # Answers may overtake each other: a later grant of this process isn't forgotten by an earlier read,
            # it is only looked up once more.
            self._seen.pop(name, None)
            return None
        if seen is not None and seen.mod_revision >= kv.mod_revision:
            return seen
        claim = msgspec.json.decode(kv.value, type=_Claim)
        lapses_at = self._clock.elapsed() + claim.ttl_seconds
        fresh = _Seen(kv.create_revision, kv.mod_revision, claim.holder, lapses_at, claim.digest)
        self._seen[name] = fresh
        return fresh


def end_of(prefix: bytes) -> bytes:
    """The smallest key greater than every key that starts with ``prefix``, which must not be all 0xFF."""
    bare = prefix.rstrip(b"\xff")
    return bare[:-1] + bytes([bare[-1] + 1])
