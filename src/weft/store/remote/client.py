"""The store in another process: the contract over its server's unix socket, one connection for all calls and watches.

A lost connection fails what was in hand with StoreUnavailable; the next call dials again. Only a commit that carries an
idempotency key is sent again by itself, because only that one is known to do no harm twice.
"""

from __future__ import annotations

import asyncio
import builtins
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.store import Batch, Entry, Lease, LimitExceeded, Page, Precondition, Write
from weft.objects.errors import InvalidInput, StoreUnavailable, WeftError
from weft.store.remote.frames import FrameProtocol, answer_to_error, encode_frame
from weft.store.remote.wire import (
    MAX_ANSWER_BYTES,
    MAX_CALL_BYTES,
    PAGE_ENTRIES,
    WINDOW_BYTES,
    Call,
    CommitCall,
    Committed,
    CompactCall,
    Consumed,
    Done,
    EndWatch,
    Failed,
    GetCall,
    Got,
    GrantCall,
    Granted,
    HoldCall,
    KeysCall,
    KeysKept,
    LeasesCall,
    LeasesFound,
    ListCall,
    Listed,
    ReleaseCall,
    StoreAnswer,
    SwitchCall,
    WatchCall,
    Watched,
)

A = TypeVar("A", bound=StoreAnswer)

_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class RemoteStore:
    """The store that a StoreServer serves at ``socket_path``.

    ``patience_seconds`` is how long ``open`` and commits with an idempotency key go on dialling."""

    def __init__(self, socket_path: str | Path, clock: Clock | None = None, *, patience_seconds: float = 10.0) -> None:
        self._path = Path(socket_path)
        self._clock = clock or SystemClock()
        self._patience_seconds = patience_seconds
        self._link: _Link | None = None
        self._dialling = asyncio.Lock()
        self._closed = False

    async def open(self) -> None:
        """Connect; raises StoreUnavailable when no server answers within ``patience_seconds``."""
        patience = _Patience(self._clock, self._patience_seconds)
        while True:
            try:
                await self._connected()
                return
            except LinkLost as lost:
                await patience.pause(lost)

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        def make_call(id: int) -> Call:
            return CommitCall(id, list(writes), list(preconditions), idempotency_key)

        patience = _Patience(self._clock, self._patience_seconds)
        while True:
            try:
                return (await self._ask(make_call, Committed)).revision
            except LinkLost as lost:
                if idempotency_key is None:
                    raise
                await patience.pause(lost)

    async def get(self, key: str) -> Entry | None:
        return (await self._ask(lambda id: GetCall(id, key), Got)).entry

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        if limit:
            return (await self._ask(lambda id: ListCall(id, prefix, limit, after), Listed)).page
        entries: builtins.list[Entry] = []
        while True:
            # One long answer would hold up all others on the connection; pages of one instant don't.
            page = await self._list_page(prefix, after)
            entries += page.entries
            if page.next is None:
                return Page(entries, page.cursor)
            after = page.next

    async def count(self, prefix: str) -> int:
        return len((await self.list(prefix)).entries)

    async def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        link = await self._connected()
        id = link.make_id()
        watch = link.watches[id] = _Watch(link, id)
        try:
            link.send(WatchCall(id, prefix, cursor))
            while True:
                yield await watch.take()
        finally:
            link.end_watch(id)

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        return (await self._ask(lambda id: GrantCall(id, name, holder, ttl_seconds, digest), Granted)).lease

    async def release(self, name: str, holder: str) -> None:
        await self._ask(lambda id: ReleaseCall(id, name, holder), Done)

    async def leases(self, prefix: str, *, digests: bool = False) -> Sequence[Lease]:
        return (await self._ask(lambda id: LeasesCall(id, prefix, digests), LeasesFound)).leases

    async def kept_keys(self) -> Sequence[str]:
        return (await self._ask(KeysCall, KeysKept)).keys

    async def hold_commits(self, seconds: float) -> None:
        """Hold everybody's commits, as StoreSwitch does, until ``close`` at the latest."""
        await self._ask(lambda id: HoldCall(id, seconds), Done)

    async def switch(self, url: str) -> None:
        """Put another store in force, as StoreSwitch does. After a LinkLost it may have been done."""
        await self._ask(lambda id: SwitchCall(id, url), Done)

    async def compact(self, keep_revisions: int) -> None:
        await self._ask(lambda id: CompactCall(id, keep_revisions), Done)

    async def close(self) -> None:
        """Hang up; calls in hand and watches end with StoreUnavailable."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            link.hang_up()

    async def _list_page(self, prefix: str, after: str | None) -> Page:
        return (await self._ask(lambda id: ListCall(id, prefix, PAGE_ENTRIES, after), Listed)).page

    async def _ask(self, make_call: Callable[[int], Call], expected: type[A]) -> A:
        link = self._link
        if link is None or link.lost:
            link = await self._connected()
        answer = await link.ask(make_call(link.make_id()))
        if not isinstance(answer, expected):
            raise StoreUnavailable(f"the store at {self._path} sent an answer of the wrong type")
        return answer

    async def _connected(self) -> _Link:
        async with self._dialling:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._link is None or self._link.lost:
                loop = asyncio.get_running_loop()
                try:
                    _, self._link = await loop.create_unix_connection(lambda: _Link(self._path), str(self._path))
                except OSError as problem:
                    raise LinkLost(
                        f"no store answers at {self._path}: {problem.strerror or problem}; nothing was sent",
                        hint="start the server, or wait for it",
                        retry_after_seconds=_LONGEST_PAUSE_SECONDS,
                    ) from problem
            return self._link


class LinkLost(StoreUnavailable):
    """The server can't be reached, or went away before it answered."""


class _Patience:
    """Growing pauses between attempts, until ``seconds`` have passed."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._ends_at = clock.elapsed() + seconds
        self._pause_seconds = _SHORTEST_PAUSE_SECONDS

    async def pause(self, lost: LinkLost) -> None:
        """Wait before the next attempt; raises ``lost`` when patience is at its end."""
        if self._clock.elapsed() + self._pause_seconds > self._ends_at:
            raise lost
        await self._clock.sleep(self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)


class _Link(FrameProtocol):
    """One connection, until it is lost: the calls that wait for an answer, and the watches."""

    def __init__(self, path: Path) -> None:
        super().__init__(MAX_ANSWER_BYTES, self._take_answer)
        self.lost = False
        self.watches: dict[int, _Watch] = {}
        self._path = path
        self._decode = msgspec.msgpack.Decoder(StoreAnswer).decode
        self._waiting: dict[int, asyncio.Future[StoreAnswer]] = {}
        self._last_id = 0

    def connection_lost(self, problem: Exception | None) -> None:
        self.lost = True
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self._make_lost())
        for watch in self.watches.values():
            watch.fail(self._make_lost())

    def make_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def ask(self, call: Call) -> StoreAnswer:
        """The answer to ``call``; raises what the server raised, or LinkLost."""
        future: asyncio.Future[StoreAnswer] = asyncio.get_running_loop().create_future()
        self.send(call)
        self._waiting[call.id] = future
        try:
            return await future
        finally:
            self._waiting.pop(call.id, None)

    def send(self, call: Call) -> None:
        if self.lost:
            raise self._make_lost()
        try:
            frame = encode_frame(call)
        except UnicodeEncodeError as problem:
            raise InvalidInput(f"a key is not valid Unicode: {problem.object!r}", field="key") from problem
        if len(frame) > MAX_CALL_BYTES:
            raise LimitExceeded(f"a call of {len(frame)} bytes: at most {MAX_CALL_BYTES}", hint="split it")
        self.send_frame(frame)

    def end_watch(self, id: int) -> None:
        self.watches.pop(id, None)
        if not self.lost:
            self.send(EndWatch(id))

    def hang_up(self) -> None:
        self.flush()
        self.transport.close()

    def _take_answer(self, body: bytes) -> None:
        answer = self._decode(body)
        if isinstance(answer, Watched):
            watch = self.watches.get(answer.id)
            if watch is not None:
                watch.offer(answer.batch, len(body))
            return
        future = self._waiting.get(answer.id)
        if isinstance(answer, Failed):
            error = answer_to_error(answer)
            if future is not None and not future.done():
                future.set_exception(error)
            elif answer.id in self.watches:
                self.watches[answer.id].fail(error)
        elif future is not None and not future.done():
            future.set_result(answer)

    def _make_lost(self) -> LinkLost:
        return LinkLost(
            f"the connection to the store at {self._path} was lost; if this was a commit, its outcome is unknown",
            hint="read what is there, then decide; a commit with an idempotency key is repeated automatically",
        )


class _Watch:
    """Batches that have come and were not read yet; the server bounds them by the bytes reported as consumed."""

    def __init__(self, link: _Link, id: int) -> None:
        self._link = link
        self._id = id
        self._queue: deque[tuple[Batch, int]] = deque()
        self._consumed = 0
        self._error: WeftError | None = None
        self._ready = asyncio.Event()

    def offer(self, batch: Batch, size: int) -> None:
        self._queue.append((batch, size))
        self._ready.set()

    def fail(self, error: WeftError) -> None:
        self._error = error
        self._ready.set()

    async def take(self) -> Batch:
        """The next batch; once all are read, raises what ended the watch."""
        while not self._queue:
            if self._error is not None:
                raise self._error
            self._ready.clear()
            await self._ready.wait()
        batch, size = self._queue.popleft()
        self._consumed += size
        if self._consumed >= WINDOW_BYTES // 4 and not self._link.lost:
            self._link.send(Consumed(self._id, self._consumed))
            self._consumed = 0
        return batch
