"""Guests on this node without an allocation of the server, and their report to it: they are kept, never killed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.agent.allocation.facts import is_alive
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.departure import last_migration, locate_guest
from weft.agent.state.table import AllocationTable
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.parts.node.orphan import OrphanCopy

MOST_ORPHAN_BYTES = 200_000


async def recover_guests(table: AllocationTable, runtimes: Runtimes) -> int:
    """Find the guests that are here at the start; the number of running ones."""
    found = await runtimes.recover()
    table.found = {guest.id: guest for guest in found if guest.state != "absent"}
    return sum(guest.state in ("running", "starting", "paused") for guest in found)


async def review_unexplained(table: AllocationTable, runtimes: Runtimes) -> bool:
    """Whether an unexplained guest has gone by now."""
    before = len(table.found)
    for guest in table.unexplained():
        driver = runtimes.find_finder(guest.id)
        now = await driver.inspect(guest.id) if driver is not None else None
        if now is None or now.state == "absent":
            table.found.pop(guest.id, None)
    return len(table.found) < before


def name_orphans(orphans: Iterable[AllocationState], unexplained: Iterable[tuple[GuestFacts, str]]) -> list[str]:
    """One line each: allocation uid, workload, incarnation. A guest without a checkpoint is known only by its driver, and has the
    driver's kind."""
    lines = [f"{orphan.local.uid} {orphan.local.what} {orphan.local.spec.incarnation}" for orphan in orphans]
    lines += [f"{guest.uid} {kind}/-/{guest.name} {guest.incarnation}" for guest, kind in unexplained]
    return sorted(lines)


def copy_orphans(orphans: Sequence[AllocationState]) -> list[str]:
    """The orphans' specs as JSON, with their guests' location, last migration and whether they run, so that the server can adopt
    them; without user data if that is too long."""
    whole = [_copy(orphan, with_user_data=True) for orphan in orphans]
    if sum(map(len, whole)) <= MOST_ORPHAN_BYTES:
        return sorted(whole)
    return sorted(_copy(orphan, with_user_data=False) for orphan in orphans)


def _copy(orphan: AllocationState, *, with_user_data: bool) -> str:
    spec = orphan.local.spec
    spec = spec if with_user_data else msgspec.structs.replace(spec, user_data="")
    runs = orphan.guest is not None and is_alive(orphan.guest)
    location = locate_guest(orphan.checkpoint, orphan.local.spec)
    copy = OrphanCopy(orphan.local.uid, spec, location, last_migration(orphan.checkpoint), runs)
    return msgspec.json.encode(copy).decode()
