"""Everything in an etcd store replaced while nobody has it open: how a backup is put back, or another store copied.

From ``begin`` to ``finish`` a mark lies there, and no store opens: a part of a copy is never taken for a whole."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.store import MAX_WRITES, Occupant, Write
from weft.objects.errors import InUse
from weft.store.cursors import make_epoch
from weft.store.etcd.connection import EtcdConnection, EtcdTls
from weft.store.etcd.leases import EtcdLeases, end_of
from weft.store.etcd.marks import name_kept
from weft.store.etcd.places import Places
from weft.store.etcd.space import end_alarms
from weft.store.etcd.transaction import delete, plan_writes, put

_log = logging.getLogger(__name__)
_PAGE_ENTRIES = 500  # of 256 KB at most
_LEAP = 1_000_000_000  # more than a copy that was in force for a while can have given out


class EtcdRefill:
    """Another content for the store at ``endpoints``. A live lease whose name begins with one of ``rivals`` means
    that somebody uses the store. ``is_own``: of an etcd that weft runs, which may have been full."""

    def __init__(
        self,
        endpoints: Sequence[str],
        clock: Clock | None = None,
        *,
        rivals: Sequence[str],
        is_own: bool = False,
        prefix: str = "/weft",
        tls: EtcdTls | None = None,
        timeout_seconds: float = 10.0,
        keepalive_seconds: float = 10.0,
    ) -> None:
        self._clock = clock or SystemClock()
        self._connection = EtcdConnection(endpoints, tls, timeout_seconds, keepalive_seconds)
        self._places = Places(prefix)
        self._leases = EtcdLeases(self._connection, self._clock, self._places.leases)
        self._rivals, self._is_own = rivals, is_own

    async def inspect(self) -> Occupant:
        await self._connect()
        mark = await self._connection.range(key=self._places.refilling)
        return Occupant(await self._count(self._places.of_key("/")), mark.kvs[0].value.decode() if mark.kvs else None)

    async def begin(self, revision: int, note: str = "") -> None:
        await self._connect()
        for rival in self._rivals:
            await self._see_that_nobody_holds(rival)
        if self._is_own:
            await end_alarms(self._connection)
        await self._connection.transact([], [put(self._places.refilling, note.encode())], [])
        await self._clear()

    async def apply(self, writes: Sequence[Write]) -> None:
        await self._connection.transact([], plan_writes(writes, self._places.of_key), [])

    async def keep(self, keys: Sequence[str]) -> None:
        places = [name_kept(self._places.marks, key, self._clock) for key in keys]
        for start in range(0, len(places), MAX_WRITES):
            await self._connection.transact([], [put(place, b"") for place in places[start : start + MAX_WRITES]], [])

    async def read(self) -> AsyncGenerator[list[tuple[str, bytes]], None]:
        start = self._places.of_key("/")
        end, pinned = end_of(start), 0
        while True:
            found = await self._connection.range(key=start, range_end=end, limit=_PAGE_ENTRIES, revision=pinned)
            pinned = pinned or found.header.revision
            yield [(kv.key[len(self._places.entries) :].decode(), kv.value) for kv in found.kvs]
            if not found.more:
                return
            start = found.kvs[-1].key + b"\0"

    async def finish(self, revision: int) -> None:
        await self._begin_history(max(revision, await self._find_base()))

    async def revive(self) -> None:
        await self._connect()
        await self._begin_history(await self._find_base() + _LEAP)

    async def _find_base(self) -> int:
        found = await self._connection.range(key=self._places.base)
        return int(found.kvs[0].value) if found.kvs else 0

    async def _begin_history(self, base: int) -> None:
        await self._connection.transact(
            [],
            [
                put(self._places.epoch, make_epoch().encode()),
                put(self._places.base, b"%d" % base),
                delete(self._places.refilling),
            ],
            [],
        )

    async def abandon(self) -> None:
        await self._clear()
        await self._connection.transact([], [delete(self._places.epoch), delete(self._places.refilling)], [])

    async def retire(self, note: str, *, keep: bool) -> None:
        await self._connect()
        await self._connection.transact([], [put(self._places.refilling, note.encode())], [])
        await self._connection.delete_range(self._places.leases, end_of(self._places.leases))
        if not keep:
            await self._clear()

    async def close(self) -> None:
        await self._connection.close()

    async def _connect(self) -> None:
        if self._connection.closed:
            await self._connection.open()

    async def _clear(self) -> None:
        for folder in (self._places.entries, self._places.leases, self._places.marks):
            await self._connection.delete_range(folder, end_of(folder))

    async def _count(self, folder: bytes) -> int:
        return int((await self._connection.range(key=folder, range_end=end_of(folder), count_only=True)).count)

    async def _see_that_nobody_holds(self, name: str) -> None:
        """Wait until lease ``name`` has lapsed; raises InUse if its holder renews it meanwhile."""
        for held in await self._leases.live(name):
            _log.warning("%s may use the store: waiting %.0f s for its end", held.holder, held.remaining_seconds)
            await self._clock.sleep(held.remaining_seconds)
            if any(now.name == held.name for now in await self._leases.live(name)):
                raise InUse(
                    f"{held.holder} uses store etcd {self._connection.name}", hint="stop every server that uses it"
                )
