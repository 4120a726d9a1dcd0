"""A term of office: the time in which one process, and no other, decides. Every commit in it carries the lease's fence.

So when a term has ended nothing of it can land any more: not from a process that slept through its end, and not a commit
whose answer was lost on the way. That is why an unknown outcome ends the term: the next one begins by reading what is.
Writes the lease; what else it writes is what it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from weft.client.cache import Cache
from weft.client.commit import Commit
from weft.contracts.clock import Clock
from weft.contracts.journal import Journal
from weft.contracts.store import LeaseHeld, LimitExceeded, Precondition, PreconditionFailed, Store, StoreFull
from weft.objects.errors import InvalidInput, StoreUnavailable, Unavailable

TTL_SECONDS = 10.0

_log = logging.getLogger(__name__)


class TermLost(Unavailable):
    """This process may no longer decide: drop all plans, begin a new term, read again."""


class Term:
    """The lease ``name``, held under ``fence`` from ``begin`` on until a TermLost."""

    def __init__(self, store: Store, cache: Cache, journal: Journal, clock: Clock, name: str, holder: str) -> None:
        self.store = store
        self.cache = cache
        self.clock = clock
        self.fence = 0
        self._epoch = ""
        self._journal = journal
        self._name = name
        self._holder = holder

    async def perform(self, commits: Sequence[Commit]) -> list[Commit]:
        """Commit all at once, each by itself; returns those that did not go through, nothing of them written.

        Returns after the cache has what was written, and what made others fail. Raises TermLost."""
        self._check_history()
        outcomes = await asyncio.gather(*(self._commit(commit) for commit in commits), return_exceptions=True)
        failed: list[Commit] = []
        reached = 0
        for commit, outcome in zip(commits, outcomes, strict=True):
            if isinstance(outcome, int):
                reached = max(reached, outcome)
                for event in commit.events:
                    self._journal.append(event)
                continue
            failed.append(commit)
            if isinstance(outcome, PreconditionFailed):
                reached = max(reached, outcome.current_revision or 0)
            elif isinstance(outcome, (StoreFull, LimitExceeded, InvalidInput)):
                _log.error("%s: the store refused a change: %s", commit.key, outcome)
            else:
                raise outcome
        await self.cache.reached(reached)
        return failed

    def _check_history(self) -> None:
        if self.cache.epoch != self._epoch:
            raise TermLost("the store was restored")

    async def _commit(self, commit: Commit) -> int:
        lease = LeaseHeld(self._name, self.fence)
        preconditions: list[Precondition] = [lease, *commit.preconditions]
        try:
            return await self.store.commit(commit.writes, preconditions)
        except PreconditionFailed as problem:
            if isinstance(problem.failed, LeaseHeld):
                raise TermLost("another process decides now") from problem
            raise
        except StoreFull:
            raise
        except StoreUnavailable as problem:
            raise TermLost(f"a commit's outcome is unknown: {problem}") from problem

    async def begin(self) -> None:
        """Wait until the lease is ours, under a fence that was never used, and the cache has all of former terms."""
        while True:
            try:
                # A lease left over by this holder would be renewed with its old fence: what was sent under it could land.
                await self.store.release(self._name, self._holder)
                lease = await self.store.grant(self._name, self._holder, TTL_SECONDS)
                if lease is not None:
                    self.fence = lease.fence
                    await self.cache.catch_up()
                    self._epoch = self.cache.epoch
                    return
            except StoreUnavailable as problem:
                _log.info("waiting for the store: %s", problem)
            await self.clock.sleep(1.0)

    async def keep(self) -> None:
        """Renew the lease for ever; raises TermLost when it is no longer ours."""
        held_until = self.clock.elapsed() + TTL_SECONDS
        while True:
            await self.clock.sleep(TTL_SECONDS / 4)
            self._check_history()
            asked_at = self.clock.elapsed()
            try:
                lease = await self.store.grant(self._name, self._holder, TTL_SECONDS)
            except StoreUnavailable as problem:
                if self.clock.elapsed() >= held_until:
                    raise TermLost(f"the lease could not be renewed: {problem}") from problem
                continue
            if lease is None or lease.fence != self.fence:
                raise TermLost("another process decides now")
            held_until = asked_at + TTL_SECONDS

    async def end(self) -> None:
        """Give the lease up at once, so that another may follow."""
        try:
            await self.store.release(self._name, self._holder)
        except StoreUnavailable as problem:
            _log.info("the lease will lapse by itself: %s", problem)
