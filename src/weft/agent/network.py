"""This node's share of the tenant networks: keeps segments, ports and published ports as its allocations need them.

Reads endpoints and publications as the feed tells them; acts through the network driver, one change at a time. Woken
when either changes, when an allocation comes or goes, and every HEAL_SECONDS to mend what died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from weft.agent.known import Wanted
from weft.agent.offline import Copies, Surroundings
from weft.agent.segments import fold_segments, keep_forwards, ports_of
from weft.agent.waiting import wait_for_event
from weft.contracts.clock import Clock
from weft.contracts.host import Host
from weft.contracts.network import Endpoint, Forward, NetworkDriver, Segment
from weft.objects.errors import InUse, WeftError
from weft.objects.identity import short_id

log = logging.getLogger("weft.agent")
HEAL_SECONDS = 10.0


class NetworkKeeper:
    """Brings the driver to what ``hosted`` allocations need; ``orphans`` are those of them that no list explains."""

    def __init__(
        self,
        driver: NetworkDriver,
        host: Host,
        copies: Copies,
        clock: Clock,
        hosted: Callable[[], list[Wanted]],
        orphans: Callable[[], list[Wanted]],
        on_healed: Callable[[list[str]], None],
    ) -> None:
        self._driver, self._host, self._copies, self._clock = driver, host, copies, clock
        self._hosted, self._orphans, self._on_healed = hosted, orphans, on_healed
        self._changing = asyncio.Lock()
        self._woken = asyncio.Event()
        known = copies.load_surroundings()
        self._neighbours = {uid: {e.address: e for e in found} for uid, found in known.endpoints.items()}
        self._forwards: dict[tuple[int, str], Forward] = {(f.port, f.protocol): f for f in known.forwards}
        self._faded_neighbours: dict[str, dict[str, Endpoint]] = {}
        self._faded_forwards: dict[tuple[int, str], Forward] = {}
        self._applied: dict[str, Segment] = {}
        self._applied_forwards: list[Forward] | None = None
        self._saved = known

    def wake(self) -> None:
        """Something that segments depend on has changed."""
        self._woken.set()

    def put_neighbour(self, network_uid: str, address: str, endpoint: Endpoint | None) -> None:
        """What the server says of one endpoint; None: it is gone, or plugged in nowhere."""
        known = self._neighbours.setdefault(network_uid, {})
        self._faded_neighbours.get(network_uid, {}).pop(address, None)
        if endpoint is None:
            known.pop(address, None)
        else:
            known[address] = endpoint
        self.wake()

    def fade_neighbours(self, network_uid: str, listed: set[str]) -> None:
        """A list holds only these addresses: the others are kept for networks that have an orphan here."""
        known = self._neighbours.get(network_uid, {})
        for address in [a for a in known if a not in listed]:
            self._faded_neighbours.setdefault(network_uid, {})[address] = known.pop(address)
        self.wake()

    def put_forward(self, port: int, protocol: str, forward: Forward | None) -> None:
        """What the server says of one published port; None: it leads nowhere any more."""
        key = (port, protocol)
        self._faded_forwards.pop(key, None)
        if forward is None:
            self._forwards.pop(key, None)
        else:
            self._forwards[key] = forward
        self.wake()

    def fade_forwards(self, listed: set[tuple[int, str]]) -> None:
        """A list holds only these ports: the others are kept if they lead to an orphan here."""
        for key in [k for k in self._forwards if k not in listed]:
            self._faded_forwards[key] = self._forwards.pop(key)
        self.wake()

    async def plug(self, wanted: Wanted) -> list[str]:
        """Make the allocation's segments and ports; the interface names in the order of its NICs. Raises WeftError."""
        async with self._changing:
            segments = self._fold([*self._hosted(), wanted])
            for uid in dict.fromkeys(nic.network_uid for nic in wanted.spec.nics):
                await self._ensure(uid, segments[uid])
            return [await self._driver.plug(port) for port in ports_of(wanted)]

    async def unplug(self, wanted: Wanted) -> None:
        """Take the allocation's ports away, and segments that no other allocation here needs. Raises WeftError."""
        async with self._changing:
            for port in ports_of(wanted):
                await self._driver.unplug(port.id)
            others = [other for other in self._hosted() if other.uid != wanted.uid]
            needed = {nic.network_uid for other in others for nic in other.spec.nics}
            for uid in {nic.network_uid for nic in wanted.spec.nics} - needed:
                self._applied.pop(uid, None)
                try:
                    await self._driver.remove_segment(short_id(uid))
                except InUse as problem:
                    log.warning("segment kept: %s", problem.message)

    async def keep(self) -> None:
        """Follow changes and mend for ever; what fails is told in the log and tried again."""
        heal_at = self._clock.elapsed()
        while True:
            self._woken.clear()
            healing = self._clock.elapsed() >= heal_at
            try:
                if healing:
                    heal_at = self._clock.elapsed() + HEAL_SECONDS
                    await self._heal()
                await self.refresh()
            except (WeftError, OSError) as problem:
                log.warning("network: %s", problem)
            await wait_for_event(self._clock, self._woken, heal_at - self._clock.elapsed())

    async def refresh(self) -> None:
        """Bring every hosted segment and all published ports up to date. Raises the first problem, after trying all."""
        problems: list[WeftError] = []
        async with self._changing:
            await self._save()
            for uid, segment in self._fold(self._hosted()).items():
                try:
                    await self._ensure(uid, segment)
                except WeftError as problem:
                    problems.append(problem)
            forwards = keep_forwards(self._forwards.values(), self._faded_forwards.values(), self._orphans())
            if forwards != self._applied_forwards:
                await self._driver.ensure_forwards(forwards)
                self._applied_forwards = forwards
        if problems:
            raise problems[0]

    async def _heal(self) -> None:
        async with self._changing:
            mended = await self._driver.heal()
        if mended:
            self._on_healed(mended)

    async def _ensure(self, uid: str, segment: Segment) -> None:
        if self._applied.get(uid) != segment:
            self._applied.pop(uid, None)
            await self._driver.ensure_segment(segment)
            self._applied[uid] = segment

    def _fold(self, here: Iterable[Wanted]) -> dict[str, Segment]:
        networks_of_orphans = {nic.network_uid for orphan in self._orphans() for nic in orphan.spec.nics}
        neighbours = {uid: list(found.values()) for uid, found in self._neighbours.items()}
        for uid in networks_of_orphans:
            faded = self._faded_neighbours.get(uid, {})
            neighbours[uid] = list({**faded, **self._neighbours.get(uid, {})}.values())
        return fold_segments(here, neighbours, self._host.underlay_address)

    async def _save(self) -> None:
        needed = {nic.network_uid for wanted in self._hosted() for nic in wanted.spec.nics}
        now = Surroundings(
            endpoints={
                uid: [found[a] for a in sorted(found)] for uid, found in self._neighbours.items() if uid in needed
            },
            forwards=[self._forwards[key] for key in sorted(self._forwards)],
        )
        if now != self._saved:
            await asyncio.to_thread(self._copies.save_surroundings, now)
            self._saved = now
