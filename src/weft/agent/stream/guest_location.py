"""The location of a guest, for open consoles, screens and logs. Reads the runtime and the agent's allocations; decides nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.agent.allocation.facts import is_alive
from weft.agent.state.allocation import LocalAllocation
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import has_ended_for_good, is_at_rest
from weft.kinds.fields.allocated_migration import is_between_clusters, names_other_cluster
from weft.kinds.parts.convert_verb import describe_departure
from weft.objects.errors import IllegalTransition
from weft.objects.identity import short_id

SETTLE_SECONDS = 2.0  # from the end of a machine's socket until its driver knows that it ended
CHECK_SECONDS = 0.05


class Departed(msgspec.Struct, frozen=True):
    """The guest isn't here any more."""

    place: dict[str, str] | None = None  # where it went, in the gateway's form; None: unknown
    refusal: IllegalTransition | None = None  # of one that another cluster has taken over


class GuestLocator:
    def __init__(
        self,
        local: LocalAllocation,
        runtimes: Runtimes,
        find_guest: Callable[[str], LocalAllocation | None],
        clock: Clock,
    ) -> None:
        self._last, self._runtimes, self._find_guest, self._clock = local, runtimes, find_guest, clock

    async def inspect(self) -> Departed | None:
        """Whether it has gone for good; a guest that is stopped, or whose disks are being sent, hasn't."""
        current = self._find_guest(self._last.uid)
        self._last = current or self._last
        role = self._last.spec.role
        if current is not None and not current.deleting and role != "source":
            return None
        facts = await self._runtimes.inspect(self._last)
        refusal = find_departure(self._last, facts)
        if refusal is not None:
            return Departed(refusal=refusal)
        if current is not None and not current.deleting:
            return Departed(place_of_target(current, facts)) if facts.reason == "migrated" else None
        if role == "source":
            return Departed(place_of_target(self._last, facts))
        return None if current is not None and is_alive(facts) else Departed()

    def has_ended(self) -> bool:
        """Whether it is stopped and won't start by itself."""
        current = self._find_guest(self._last.uid) or self._last
        return has_ended_for_good(current.spec, current.report) or is_at_rest(current.spec, current.report)

    async def settle(self) -> Departed | None:
        """Find, after its machine has hung up, where it migrates or migrated; None if it has merely ended."""
        deadline = self._clock.elapsed() + SETTLE_SECONDS
        facts = await self._runtimes.inspect(self._last)
        while is_alive(facts) and self._clock.elapsed() < deadline:
            await self._clock.sleep(CHECK_SECONDS)
            facts = await self._runtimes.inspect(self._last)
        self._last = self._find_guest(self._last.uid) or self._last
        place, refusal = place_of_target(self._last, facts), find_departure(self._last, facts)
        if refusal is not None:
            return Departed(refusal=refusal)
        return None if place is None else Departed(place)


def place_of_target(local: LocalAllocation, facts: GuestFacts) -> dict[str, str] | None:
    """The target of a guest that migrates or migrated and doesn't run here, in the gateway's form; None without one, or if it is
    another cluster's, where no stream goes on."""
    migration = local.spec.migration
    if local.spec.role != "source" or migration is None or facts.state == "running" or is_between_clusters(migration):
        return None
    uid = migration.peer_allocation.rpartition(".")[2]
    return {
        "node_uid": migration.peer_uid,
        "allocation": migration.peer_allocation,
        "guest_id": short_id(uid),
        "node": migration.peer,
    }


def find_departure(local: LocalAllocation, facts: GuestFacts | None = None) -> IllegalTransition | None:
    """The refusal for a guest that another cluster has taken over, or that by its ``facts`` was handed over to it."""
    migration = local.spec.migration
    if local.spec.role != "source" or migration is None or not names_other_cluster(migration.peer):
        return None
    if not migration.taken_over and (facts is None or facts.reason != "migrated"):
        return None
    return describe_departure(local.short_name, migration.peer.partition("/")[0])
