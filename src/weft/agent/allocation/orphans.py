"""What runs on this node without an allocation that explains it, and what the server is told of it: it is kept, never killed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.agent.state.allocation import LocalAllocation
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.parts.orphan import GuestLocation, OrphanCopy

MOST_ORPHAN_BYTES = 200_000


class FoundGuests:
    """The guests that were here at the start, by what the drivers say; ids are guests'."""

    def __init__(self, runtimes: Runtimes) -> None:
        self._runtimes = runtimes
        self._guests: dict[str, GuestFacts] = {}

    async def recover(self) -> int:
        """Find them; how many run."""
        found = await self._runtimes.recover()
        self._guests = {guest.id: guest for guest in found if guest.state != "absent"}
        return sum(guest.state in ("running", "starting", "paused") for guest in found)

    def __contains__(self, id: str) -> bool:
        return id in self._guests

    def forget(self, id: str) -> None:
        """It was taken away: else it would count as a guest that nothing explains."""
        self._guests.pop(id, None)

    def unexplained(self, explained: set[str]) -> list[GuestFacts]:
        """Those that are not among ``explained``."""
        return [guest for id, guest in self._guests.items() if id not in explained]

    async def review(self, explained: set[str]) -> bool:
        """Whether one of the unexplained has gone by now."""
        before = len(self._guests)
        for guest in self.unexplained(explained):
            driver = self._runtimes.who_found(guest.id)
            now = await driver.inspect(guest.id) if driver is not None else None
            if now is None or now.state == "absent":
                self.forget(guest.id)
        return len(self._guests) < before


def name_orphans(orphans: Iterable[LocalAllocation], unexplained: Iterable[tuple[GuestFacts, str]]) -> list[str]:
    """One line each: allocation uid, workload, incarnation. Of a guest without even a copy only the driver knows, and that is
    of its kind."""
    lines = [f"{orphan.uid} {orphan.what} {orphan.spec.incarnation}" for orphan in orphans]
    lines += [f"{guest.uid} {kind}/-/{guest.name} {guest.incarnation}" for guest, kind in unexplained]
    return sorted(lines)


def copy_orphans(orphans: Sequence[tuple[LocalAllocation, GuestLocation, str, bool]]) -> list[str]:
    """The orphans' specs as JSON, with their standing, their last move, and whether they run, so that the server can take them
    up again; without user data if that is too much."""
    whole = [_copy(*orphan, with_user_data=True) for orphan in orphans]
    if sum(map(len, whole)) <= MOST_ORPHAN_BYTES:
        return sorted(whole)
    return sorted(_copy(*orphan, with_user_data=False) for orphan in orphans)


def _copy(orphan: LocalAllocation, standing: GuestLocation, move: str, runs: bool, *, with_user_data: bool) -> str:
    spec = orphan.spec if with_user_data else msgspec.structs.replace(orphan.spec, user_data="")
    return msgspec.json.encode(OrphanCopy(orphan.uid, spec, standing, move, runs)).decode()
