"""The store in force, and its exchange for another one while others use it.

Until then commits can be held: they wait, for a bounded time, while reads, watches and leases go on. The exchange is one step: it
is remembered durably, and commits go on in the new store. Watches end; leases are granted there anew, as after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

from weft.contracts.clock import Clock
from weft.contracts.store import Batch, Entry, Lease, Page, Precondition, Store, Write
from weft.contracts.wakeup import wait_for_event
from weft.objects.errors import InUse, StoreUnavailable, TimedOut

LONGEST_HOLD_SECONDS = 60.0
T = TypeVar("T")
Hold = asyncio.Task[None]  # ends in time

_log = logging.getLogger(__name__)


class StoreSwitch:
    """``store``, which ``url`` names, until another takes its place. ``make`` makes the one that a URL names, and ``remember``
    keeps durably which one is in force."""

    def __init__(
        self, url: str, store: Store, make: Callable[[str], Store], remember: Callable[[str], None], clock: Clock
    ) -> None:
        self.url = url
        self.store = store
        self._make, self._remember, self._clock = make, remember, clock
        self._flows = asyncio.Event()
        self._flows.set()
        self._in_hand = 0  # commits
        self._settled = asyncio.Event()
        self._hold: Hold | None = None
        self._switching: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.exchanged = asyncio.Event()  # set once ``store`` is another

    async def open(self) -> None:
        await self.store.open()

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        while not self._flows.is_set():
            await self._flows.wait()
        self._in_hand += 1
        try:
            return await self.store.commit(writes, preconditions, idempotency_key=idempotency_key)
        finally:
            self._in_hand -= 1
            if not self._in_hand:
                self._settled.set()

    async def get(self, key: str) -> Entry | None:
        return await self._ask(lambda store: store.get(key))

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        return await self._ask(lambda store: store.list(prefix, limit=limit, after=after))

    async def count(self, prefix: str) -> int:
        return await self._ask(lambda store: store.count(prefix))

    def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        return self.store.watch(prefix, cursor)

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        return await self._ask(lambda store: store.grant(name, holder, ttl_seconds, digest))

    async def release(self, name: str, holder: str) -> None:
        await self._ask(lambda store: store.release(name, holder))

    async def leases(self, prefix: str, *, digests: bool = False) -> Sequence[Lease]:
        return await self._ask(lambda store: store.leases(prefix, digests=digests))

    async def kept_keys(self) -> Sequence[str]:
        return await self._ask(lambda store: store.kept_keys())

    async def compact(self, keep_revisions: int) -> None:
        await self._ask(lambda store: store.compact(keep_revisions))

    async def close(self) -> None:
        if self._hold is not None:
            self.release_commits(self._hold)
        if self._switching is not None:
            await asyncio.wait([self._switching])
        if self._closing:
            await asyncio.wait(self._closing)
        await self.store.close()

    async def hold_commits(self, seconds: float) -> Hold:
        """Let every commit from now on wait until ``release_commits``, ``switch`` or the end of ``seconds``; returns when those in
        hand are done. Raises InUse when they are held already, and TimedOut when one took too long."""
        if self._hold is not None or self._switching is not None:
            raise InUse("writes are held already while the store is exchanged", hint="wait until it has ended")
        self._flows.clear()
        hold = self._hold = asyncio.create_task(self._end_hold(min(seconds, LONGEST_HOLD_SECONDS)))
        while self._in_hand:
            self._settled.clear()
            settled = asyncio.create_task(self._settled.wait())
            try:
                await asyncio.wait([settled, hold], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                self.release_commits(hold)
                raise
            finally:
                settled.cancel()
            if self._hold is not hold:
                raise TimedOut(f"a write was not done within {seconds:g} s: the store answers slowly", hint="try again")
        return hold

    def release_commits(self, hold: Hold) -> None:
        """Let commits go on, if this hold is the one that they wait for."""
        if self._hold is hold:
            hold.cancel()
            self._hold = None
            if self._switching is None:
                self._flows.set()

    async def switch(self, url: str) -> None:
        """Put the store that ``url`` names in force, while commits are held, and let them go on. It goes on to its end when the
        caller is cancelled. Raises TimedOut when they are no longer held, and what the new store's ``open`` raises; then the old
        one stays in force."""
        if self._hold is None:
            raise TimedOut("writes are not held any more: this took too long", hint="try again when less is written")
        self._switching = asyncio.create_task(self._switch(url, self._hold))
        await asyncio.shield(self._switching)

    async def _switch(self, url: str, hold: Hold) -> None:
        try:
            store = self._make(url)
            opening = asyncio.create_task(store.open())
            await asyncio.wait([opening, hold], return_when=asyncio.FIRST_COMPLETED)
            if not opening.done() or self._hold is not hold:
                opening.cancel()
                await asyncio.wait([opening])
                await store.close()
                raise TimedOut(f"store {url} was not opened in time", hint="check that it answers, and try again")
            opening.result()
            try:
                await asyncio.to_thread(self._remember, url)
            except OSError as problem:
                await store.close()
                raise StoreUnavailable(
                    f"the new store can't be remembered: {problem}", hint="free disk space"
                ) from None
            left, self.store, self.url = self.store, store, url
            self.exchanged.set()
            self.exchanged = asyncio.Event()
        finally:
            self._switching = self._hold = None
            hold.cancel()
            self._flows.set()
        closing = asyncio.create_task(left.close())  # reads in hand there are asked again here
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        _log.warning("objects are kept in %s now", url)

    async def _end_hold(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        _log.warning("writes were held for %g s: they go on", seconds)
        self._hold = None
        if self._switching is None:
            self._flows.set()

    async def _ask(self, ask: Callable[[Store], Awaitable[T]]) -> T:
        store = self.store
        try:
            return await ask(store)
        except StoreUnavailable:
            if store is self.store:
                raise
            return await ask(self.store)


async def pause(switch: StoreSwitch, seconds: float, clock: Clock) -> None:
    """Wait, for less long when another store is in force before: leases have to be granted there."""
    await wait_for_event(clock, switch.exchanged, seconds)
