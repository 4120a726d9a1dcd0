"""Takes over the events of gateways whose lease has lapsed, as far as there are copies here; and asks those that took this
gateway's own over."""

from __future__ import annotations

import logging
from collections import Counter

from weft.gateway.event_copies.held_events import HeldEvents
from weft.gateway.event_copies.kept_copies import KeptCopies, Owner
from weft.gateway.event_copies.other_gateways import FIND_TAKEN, FORGET_TAKEN, OtherGateways
from weft.gateway.event_copies.record import CopyRecords
from weft.objects.errors import Unavailable

log = logging.getLogger("weft.gateway")


class TakeOver:
    def __init__(self, copies: KeptCopies, held: HeldEvents, records: CopyRecords, others: OtherGateways) -> None:
        self._copies, self._held, self._records, self._others = copies, held, records, others

    async def inspect(self) -> Counter[tuple[str, str]]:
        """Take over, and ask; how many events wait here since, by project and function. Raises Unavailable, and
        PreconditionFailed when an owner has just come back."""
        waiting = Counter[tuple[str, str]]()
        for taker in await self._held.list_takers():
            waiting += await self._ask(taker)
        if owners := await self._copies.list_owners():
            running = await self._others.list_running()
            for owner in owners:
                waiting += await self._inspect(owner, is_running=owner.name in running)
        return waiting

    async def _inspect(self, owner: Owner, *, is_running: bool) -> Counter[tuple[str, str]]:
        found = await self._records.read(owner.name)
        if found is None:  # the store is an older one, restored
            return Counter()
        record = found.record
        if record.holder != self._others.name or record.since > owner.since:
            await self._copies.drop(owner)
            return Counter()
        if is_running and not record.taken:
            return Counter()
        if not record.taken:
            await self._records.write(owner.name, record.take(), found)
        waiting = await self._copies.take_over(owner, record.era)
        log.warning("gateway %s is gone: %d events of it are run here", owner.name, waiting.total())
        return waiting

    async def _ask(self, taker: str) -> Counter[tuple[str, str]]:
        """Ask for events that are held which of them are the taker's; the others are free."""
        waiting = Counter[tuple[str, str]]()
        if taker not in self._others.live:
            if not self._others.is_gone(taker):
                return waiting
            log.warning("server of gateway %s was removed: the events that it may have run are run here", taker)
        while ids := await self._held.list_some(taker):
            taken = await self._others.ask(taker, FIND_TAKEN, ids, list[str]) if taker in self._others.live else []
            waiting += await self._held.settle(ids, taken)
        if taker in self._others.live:
            try:
                await self._others.ask(taker, FORGET_TAKEN, [], type(None))
            except Unavailable as problem:  # it keeps ids for nobody
                log.info("%s", problem.message)
        return waiting
