"""Copies of this gateway's events at the gateway of another server: an event is acknowledged when that one has it, too.

Events are sent together: while a batch is on its way, others gather. Where no other server serves, one copy is enough, and the
second one follows when there is another. A gateway whose lease has lapsed runs nothing until it knows whether another has taken
its events over."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import PreconditionFailed
from weft.contracts.wakeup import Wake
from weft.gateway.event_copies.changes import Changes
from weft.gateway.event_copies.held_events import HeldEvents
from weft.gateway.event_copies.kept_copies import CopyAnswer, CopyBatch, KeptCopies
from weft.gateway.event_copies.other_gateways import KEEP, OtherGateways
from weft.gateway.event_copies.record import CopyRecord, CopyRecords, FoundRecord
from weft.gateway.event_copies.take_over import TakeOver
from weft.gateway.function.lease import GatewayLease
from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import Event, EventQueue
from weft.objects.errors import Unavailable

log = logging.getLogger("weft.gateway")
LOOK_SECONDS = 2.0
AGAIN_SECONDS = 0.3
ACKNOWLEDGE_SECONDS = 5.0
REST_SECONDS = 3.0  # for which a gateway that kept nothing isn't asked again
Stir = Callable[[str, str, int], None]


class Copying:
    """``lease``: by which the others know that this gateway runs its events itself."""

    def __init__(
        self,
        file: EventFile,
        queue: EventQueue,
        others: OtherGateways,
        lease: GatewayLease,
        records: CopyRecords,
        clock: Clock,
    ) -> None:
        self._file, self._queue, self._others, self._lease, self._clock = file, queue, others, lease, clock
        self.copies, self._held, self._records = KeptCopies(file), HeldEvents(file), records
        self._take_over = TakeOver(self.copies, self._held, records, others)
        self._changes, self._wake = Changes(file), Wake(clock)
        self._waiting: dict[str, asyncio.Future[None]] = {}  # for their copies, by event
        self._has_inspected = self._begun = False
        self._lapses = 0  # of the lease, at the begin
        self._found: FoundRecord | None = None  # None: there was nothing to copy yet, or no other server
        self._failed: dict[str, float] = {}  # when a gateway kept nothing, in elapsed seconds
        self._problem = self._troubled = ""  # what the log has of copies, and of other gateways' events

    async def add(self, event: Event) -> None:
        """Accept an event: when this returns, it is on the disks of two servers, or of the only one that serves. Raises
        Unavailable; then it isn't accepted, but may have run."""
        copied = self._waiting[event.id] = asyncio.get_running_loop().create_future()
        try:
            if await self.copies.accept(event):
                async with asyncio.timeout(ACKNOWLEDGE_SECONDS):
                    await copied
        except TimeoutError:
            await self._queue.done(event.id)
            raise Unavailable(
                f"no other server has a copy of the event yet: {self._problem or 'none was asked so far'}",
                hint="weft server list shows which servers serve",
                retry_after_seconds=5.0,
            ) from None
        finally:
            del self._waiting[event.id]

    def may_run(self) -> bool:
        """Whether this gateway's events are surely its own."""
        if not self._begun:
            return False
        return self._found is None or (self._lease.is_held() and self._lease.lapses == self._lapses)

    async def run(self, stir: Stir) -> None:
        """Copy, and take over what belongs to gateways that are gone, for ever. ``stir`` as of Deliveries."""
        self._file.on_written = self._wake.ring
        inspecting = asyncio.ensure_future(self._keep_inspecting(stir))
        try:
            while True:
                try:
                    await self._wake.wait(await self._step())
                except PreconditionFailed:
                    self._begun = False
                except Unavailable as problem:
                    if self._problem != problem.message:
                        log.warning("copies of events: %s", problem.message)
                    self._problem = problem.message
                    await self._clock.sleep(AGAIN_SECONDS)
                except Exception:  # a defect, or a file that can't be read, must not end the copies for good
                    log.exception("copies of events")
                    await self._clock.sleep(LOOK_SECONDS)
        finally:
            self._file.on_written = lambda: None
            self._begun = self._has_inspected = False
            inspecting.cancel()
            await asyncio.gather(inspecting, return_exceptions=True)
            with suppress(Unavailable):
                await self._changes.end()

    async def _keep_inspecting(self, stir: Stir) -> None:
        while True:
            try:
                await self._others.refresh()
                self._has_inspected = True
                self._wake.ring()
                if self._begun:
                    stir_all(await self._take_over.inspect(), stir)
                self._troubled = ""
            except PreconditionFailed:
                log.info("events of another gateway are its own again")
            except Unavailable as problem:
                if self._troubled != problem.message:
                    log.warning("events of other gateways: %s", problem.message)
                self._troubled = problem.message
            except Exception:  # a defect must not end taking over for good
                log.exception("events of other gateways")
            await self._clock.sleep(LOOK_SECONDS)

    async def _step(self) -> float:
        """Do what is next; how long to wait at most for something to do."""
        if not self._has_inspected:
            return LOOK_SECONDS
        if not self.may_run():
            await self._begin()
        if self._found is None:
            if await self._has_to_copy():
                self._begun = False
                return 0.0
            if not self._others.live:
                self._acknowledge(list(self._waiting))
            return LOOK_SECONDS
        holder = await self._find_holder(self._found)
        if not holder:
            self._acknowledge(list(self._waiting))
            return LOOK_SECONDS
        return await self._send(holder, self._found.record)

    async def _begin(self) -> None:
        """Begin an era: events that another gateway has taken over are held."""
        self._begun = False
        found = await self._records.read(self._others.name)
        if found is None and not await self._has_to_copy():
            await self._changes.end()
            self._found, self._begun = None, True
            return
        self._lease.is_wanted = True
        await self._lease.renew()
        if not self._lease.is_held():
            raise Unavailable("another gateway has this one's lease")
        lapses, former = self._lease.lapses, found.record if found is not None else CopyRecord()
        if former.taken:
            log.warning("%s has taken this gateway's events over: they wait until it was asked", former.holder)
            await self._held.hold(former.holder)
            former = CopyRecord(era=former.era, since=former.since)
        await self._begin_era(former.holder, former, found)
        self._begun, self._lapses = True, lapses

    async def _begin_era(self, holder: str, former: CopyRecord, found: FoundRecord | None) -> None:
        era = former.era + 1
        since = former.since if holder == former.holder else era
        self._found = await self._records.write(self._others.name, CopyRecord(holder, era, since), found)
        await (self._changes.begin() if holder else self._changes.end())

    async def _find_holder(self, found: FoundRecord) -> str:
        """The gateway that has the copies, another one if that is gone; "" if there is none. Raises Unavailable if there is
        none now, but will be."""
        now, holder = self._clock.elapsed(), found.record.holder
        resting = {name for name, at in self._failed.items() if now - at < REST_SECONDS}
        if holder in self._others.live and holder not in resting:
            return holder
        chosen = choose(self._others.name, self._others.live.keys() - resting)
        if not chosen and self._others.live:
            raise Unavailable(self._problem or "no other gateway answers")
        if chosen != holder:
            if not chosen:
                log.warning("no other server serves: events have one copy")
            await self._begin_era(chosen, found.record, found)
        return chosen

    async def _send(self, holder: str, record: CopyRecord) -> float:
        """Send changes; how long to wait then."""
        changed = await self._changes.take()
        if changed is None:
            return LOOK_SECONDS
        batch = CopyBatch(
            owner=self._others.name,
            era=record.era,
            since=record.since,
            begins=changed.begins,
            whole=changed.whole,
            put=changed.put,
            gone=changed.gone,
        )
        sent = False
        try:
            answer = await self._others.ask(holder, KEEP, batch, CopyAnswer)
            sent = answer.kept
        except Unavailable:
            self._failed[holder] = self._clock.elapsed()
            raise
        finally:
            await self._changes.settle(changed, sent=sent)
        if answer.problem:
            raise Unavailable(f"{holder} keeps no more copies: {answer.problem}")
        if not sent:
            await self._begin_era(holder, msgspec.structs.replace(record, era=max(record.era, answer.era)), self._found)
            return 0.0
        self._failed.pop(holder, None)
        self._problem = ""
        self._acknowledge([*(event.id for event in changed.put), *changed.gone])
        return 0.0

    async def _has_to_copy(self) -> bool:
        """Whether there are events, and another server: without events this gateway needs no lease and no record."""
        return bool(self._others.live) and (bool(self._waiting) or await self._queue.has_any())

    def _acknowledge(self, ids: Iterable[str]) -> None:
        for id in ids:
            if (waiting := self._waiting.get(id)) is not None and not waiting.done():
                waiting.set_result(None)


def stir_all(waiting: Counter[tuple[str, str]], stir: Stir) -> None:
    for (project, name), count in waiting.items():
        stir(project, name, count)


def choose(owner: str, gateways: Iterable[str]) -> str:
    """The gateway that gets the copies of ``owner``, so that no gateway gets those of all; "" of none."""
    return max(gateways, key=lambda name: hashlib.sha256(f"{owner}/{name}".encode()).digest(), default="")
