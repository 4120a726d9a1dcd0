"""The store on an etcd cluster: durable when a majority has it, shared by any number of servers.

weft's revisions and fences are etcd's revisions, counted on from where the history was when it was copied here. One watch of the
entries feeds all watchers of this process; what they missed is replayed from etcd's own log. The prefix is needed to share a
cluster with something else; compaction is etcd-wide all the same.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.store import (
    COPY,
    LEFT,
    AtRevision,
    Batch,
    Change,
    Compacted,
    Entry,
    Lease,
    LeaseHeld,
    Page,
    Precondition,
    PreconditionFailed,
    StoreFull,
    Write,
)
from weft.objects.errors import StoreUnavailable
from weft.store.cursors import check_reach, format_continuation, format_cursor, make_epoch, parse_continuation
from weft.store.etcd.commits import Commits
from weft.store.etcd.connection import EtcdConnection, EtcdTls
from weft.store.etcd.gathering import Gathering
from weft.store.etcd.history import EtcdHistory
from weft.store.etcd.leases import EtcdLeases, end_of
from weft.store.etcd.members import EtcdMembers
from weft.store.etcd.places import Places
from weft.store.etcd.space import EtcdSpace
from weft.store.etcd.transaction import find_value, is_absent, put, read
from weft.store.limits import check_commit, check_key, check_limit, check_prefix
from weft.store.watches import Watches

_PAGE_ENTRIES = 500  # of 256 KB at most
_REPLAY_BATCHES = 2_000
_REPLAY_BYTES = 16_000_000
_RECENT_BYTES = 16_000_000  # of commits in memory, for those who resume their watches
_RESUME_SECONDS = 0.1
_LONGEST_LAG_SECONDS = 10.0

_log = logging.getLogger(__name__)


class EtcdStore:
    """A store in the etcd cluster at ``endpoints`` (``host:port`` each, or one path of a unix socket).

    Remembers ``keep_revisions`` revisions of history; a call fails after ``timeout_seconds`` without an answer, and a member
    that hangs is dropped after ``keepalive_seconds`` and 3 s more."""

    def __init__(
        self,
        endpoints: Sequence[str],
        clock: Clock | None = None,
        *,
        prefix: str = "/weft",
        tls: EtcdTls | None = None,
        keep_revisions: int = 100_000,
        timeout_seconds: float = 10.0,
        keepalive_seconds: float = 10.0,
    ) -> None:
        self._clock = clock or SystemClock()
        self._keep_revisions = keep_revisions
        self._connection = EtcdConnection(endpoints, tls, timeout_seconds, keepalive_seconds)
        self._reads = Gathering(self._connection)
        self._places = Places(prefix)
        self._entries = self._places.entries
        self._leases = EtcdLeases(self._connection, self._clock, self._places.leases)
        self._commits = Commits(self._connection, self._clock, self._leases, self._places.of_key, self._places.marks)
        self.members = EtcdMembers(self._connection)
        self.space = EtcdSpace(self._connection, self.compact, self._clock)
        self._history = EtcdHistory(self._connection, self._entries, end_of(self._entries))
        self._epoch = ""
        self._base = 0  # what weft's numbers are more than etcd's
        self._born = 0  # the revision at which this history began: no cursor of it lies before
        self._may_be_full = False
        self._watches: Watches | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = False  # something was missed: watchers must begin again
        self._position = 0  # the revision up to which everything is known
        self._published = 0  # the newest one at which an entry changed
        self._compacted = 0
        self._published_more = asyncio.Condition()

    async def open(self, *, may_be_full: bool = False) -> None:
        """Connect, and begin a history if there is none. Raises StoreUnavailable when no endpoint answers in time, and StoreFull
        unless a store that can only be read will do."""
        if self._watches is not None:
            return
        self._may_be_full = may_be_full
        try:
            await self._connection.open()
            await self._begin()
        except BaseException:
            await self._connection.close()
            raise
        self._may_be_full = True
        self._task = asyncio.create_task(self._publish_changes())

    async def reopen(self, endpoints: Sequence[str], tls: EtcdTls | None) -> None:
        """Go on at other endpoints of the same cluster; watchers notice nothing. Raises StoreUnavailable."""
        await self._connection.reopen(endpoints, tls)

    async def see_one_cluster(self) -> None:
        """Raises OtherStore if an endpoint answers for another cluster than the others."""
        await self._connection.see_one_cluster()

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        check_commit(writes, preconditions, idempotency_key)
        self._live()
        base = self._base
        within = [_shift(precondition, -base) for precondition in preconditions] if base else preconditions
        try:
            return base + await self._commits.commit(writes, within, idempotency_key)
        except PreconditionFailed as refused:
            current = refused.current_revision
            raise PreconditionFailed(
                preconditions[within.index(refused.failed)], None if current is None else base + current
            ) from None

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        self._live()
        place = self._places.of_key(key)
        kv = find_value((await self._reads.do(place, read(place))).response)
        return None if kv is None else self._entry(kv)

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        check_prefix(prefix)
        check_limit(limit)
        self._live()
        epoch, pinned = self._epoch, 0
        start = self._places.of_key(prefix) if prefix else self._places.of_key("/")
        end = end_of(start)
        if after is not None:
            pinned, last_key = parse_continuation(after, epoch, prefix)
            pinned -= self._base
            check_reach(pinned, self._born, 2**62)
            start = self._places.of_key(last_key) + b"\0"
        entries: builtins.list[Entry] = []
        while True:
            wanted = min(_PAGE_ENTRIES, limit - len(entries)) if limit else _PAGE_ENTRIES
            found = await self._connection.range(key=start, range_end=end, limit=wanted, revision=pinned)
            pinned = pinned or found.header.revision
            entries += map(self._entry, found.kvs)
            if not found.more:
                return Page(entries, format_cursor(epoch, self._base + pinned))
            if limit and len(entries) >= limit:
                follow = format_continuation(epoch, self._base + pinned, entries[-1].key)
                return Page(entries, format_cursor(epoch, self._base + pinned), follow)
            start = found.kvs[-1].key + b"\0"

    async def count(self, prefix: str) -> int:
        check_prefix(prefix)
        self._live()
        start = self._places.of_key(prefix) if prefix else self._places.of_key("/")
        return int((await self._connection.range(key=start, range_end=end_of(start), count_only=True)).count)

    def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        return self._live().follow(prefix, cursor)

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        self._live()
        lease = await self._leases.grant(name, holder, ttl_seconds, digest)
        return None if lease is None else self._raise_fence(lease)

    async def release(self, name: str, holder: str) -> None:
        self._live()
        await self._leases.release(name, holder)

    async def leases(self, prefix: str, *, digests: bool = False) -> Sequence[Lease]:
        self._live()
        return [self._raise_fence(lease) for lease in await self._leases.live(prefix, digests=digests)]

    async def kept_keys(self) -> Sequence[str]:
        self._live()
        return await self._commits.kept_keys()

    async def compact(self, keep_revisions: int) -> None:
        self._live()
        # The watch needs the value before each change until it has delivered it.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_LAG_SECONDS):
                await self._catch_up()
        revision = (await self._connection.range(key=self._entries)).header.revision
        await self._forget(revision - max(0, keep_revisions))

    async def close(self) -> None:
        """End the watches and hang up; what was asked and not answered fails with StoreUnavailable."""
        watches, self._watches = self._watches, None
        if watches is None:
            return
        watches.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._connection.close()

    def _live(self) -> Watches:
        if self._watches is None:
            raise StoreUnavailable(f"store etcd {self._connection.name} is closed")
        return self._watches

    def _entry(self, kv: object) -> Entry:
        key: bytes = kv.key  # type: ignore[attr-defined]
        return Entry(key[len(self._entries) :].decode(), kv.value, self._base + kv.mod_revision)  # type: ignore[attr-defined]

    def _raise_fence(self, lease: Lease) -> Lease:
        return msgspec.structs.replace(lease, fence=self._base + lease.fence) if self._base else lease

    async def _begin(self) -> None:
        """Learn the epoch, or write the first one; watches begun before end, those from now on start at the mark."""
        key, refilling = self._places.epoch, self._places.refilling
        reads = [read(self._places.base), read(key)]
        try:
            await self._connection.transact([is_absent(key)], [put(key, make_epoch().encode())], [])
            answer = await self._connection.transact(
                [is_absent(refilling)], [*reads, put(self._entries, b"")], [read(refilling)]
            )
        except StoreFull:  # all that is there can be read; a transaction that might write is refused
            answer = await self._connection.transact([is_absent(refilling)], reads, [read(refilling)])
            if not self._may_be_full or (answer.succeeded and find_value(answer.responses[1]) is None):
                raise
        if not answer.succeeded:
            raise self._refuse(find_value(answer.responses[0]))
        base, kv = (find_value(response) for response in answer.responses[:2])
        assert kv is not None
        mark = answer.header.revision
        # a snapshot put into another cluster is another history, too
        cluster = f"{answer.header.cluster_id & 0xFFFFFFFF:08x}"
        former, self._watches = self._watches, None
        self._epoch, self._born = kv.value.decode() + cluster, int(kv.mod_revision)
        self._base = int(base.value) if base is not None else 0
        self._position = self._published = mark
        self._lost = False
        self._watches = Watches(self._epoch, self._base + mark, self._replay, recent_bytes=_RECENT_BYTES)
        if former is not None:
            former.close()

    def _refuse(self, mark: Any | None) -> StoreUnavailable:
        """Why there is no store here: ``mark`` is the key that says so, or its note."""
        note = "" if mark is None else mark.value.decode(errors="replace")
        name = f"store etcd {self._connection.name}"
        if note.startswith(COPY):
            return StoreUnavailable(
                f"{name} holds a part of a copy", hint="copy the store again, or name another store"
            )
        if note.startswith(LEFT):
            return StoreUnavailable(
                f"{name} was left: its fabric keeps its objects in another store",
                hint="start the server without --store",
            )
        return StoreUnavailable(
            f"{name} holds half a backup: its restore was cut short", hint="weft server restore FILE again"
        )

    async def _publish_changes(self) -> None:
        """Hand every change to the watchers, through lost connections, until the store is closed."""
        while True:
            try:
                if self._lost:
                    await self._begin()
                await self._follow()
            except Compacted as problem:
                _log.warning("the watch's position is gone; watchers restart: %s", problem.message)
                self._lost = True
            except StoreUnavailable as problem:
                _log.warning("watching again: %s", problem.message)
                await self._clock.sleep(_RESUME_SECONDS)
            except Exception:
                # Silence would look like quiet to every watcher.
                _log.exception("the etcd watch failed unexpectedly; watchers restart")
                self._lost = True
                await self._clock.sleep(_RESUME_SECONDS)

    async def _follow(self) -> None:
        """One connection's worth of changes; ends when an older copy of etcd was put back."""
        seen = max(self._position, self._connection.newest_revision)
        # Asked for, since the member that watches may lag behind the others; what they agreed on never goes back.
        now = (await self._connection.range(key=self._entries, keys_only=True)).header.revision
        if now < seen:
            _log.warning("etcd is at revision %d, before %d: restored", now, seen)
            self._connection.newest_revision = 0
            await self._connection.transact([], [put(self._places.epoch, make_epoch().encode())], [])
            await self._begin()
            return
        async with aclosing(self._history.follow(self._position)) as steps:
            async for step in steps:
                if step.changes:
                    await self._publish(step.revision, [change for change in step.changes if change.key])
                self._position = max(self._position, step.revision)
                if self._position - self._compacted > self._keep_revisions * 11 // 10:
                    await self._forget(self._position - self._keep_revisions)

    async def _publish(self, revision: int, changes: builtins.list[Change]) -> None:
        self._live().publish(self._base + revision, changes)
        async with self._published_more:
            self._published = revision
            self._published_more.notify_all()

    async def _catch_up(self) -> None:
        async with self._published_more:
            await self._published_more.wait_for(lambda: self._published >= self._commits.newest_write)

    async def _forget(self, revision: int) -> None:
        if revision > self._born:
            await self._connection.compact(revision)
            self._compacted = revision
            self._live().forget(self._base + revision)

    async def _replay(self, prefix: str, position: int, until: int) -> tuple[builtins.list[Batch], int]:
        epoch, base, size = self._epoch, self._base, 0
        position, until = position - base, until - base
        check_reach(position, self._born, 2**62)
        batches: builtins.list[Batch] = []
        reached = position
        if position < until:
            async with aclosing(self._history.replay(position, until)) as steps:
                async for step in steps:
                    reached = step.revision
                    changes = [change for change in step.changes if change.key and change.key.startswith(prefix)]
                    if changes:
                        revision = base + step.revision
                        batches.append(Batch(revision, format_cursor(epoch, revision), changes))
                        size += sum(len(change.value or b"") + len(change.previous or b"") for change in changes)
                    if len(batches) >= _REPLAY_BATCHES or size >= _REPLAY_BYTES:
                        break
                else:
                    reached = until
        # Still readable at the end: then nothing after it was forgotten meanwhile, and it isn't ahead of etcd.
        await self._connection.range(key=self._entries, revision=position, keys_only=True)
        return batches, base + reached


def _shift(precondition: Precondition, by: int) -> Precondition:
    """The same one with its revision or fence counted from elsewhere."""
    match precondition:
        case AtRevision():
            return AtRevision(precondition.key, precondition.revision + by)
        case LeaseHeld():
            return LeaseHeld(precondition.name, precondition.fence + by)
    return precondition
