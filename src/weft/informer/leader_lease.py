"""A term of office: the time in which one process, and no other, decides. Every commit in it carries the lease's fence.

So when a term has ended nothing of it can land any more: not from a process that slept through its end, and not a commit
whose answer was lost on the way. That is why an unknown outcome ends the term: the next one begins by reading what is.
Writes the lease; what else it writes is what it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from weft.contracts.clock import Clock
from weft.contracts.journal import Journal
from weft.contracts.store import (
    LeaseHeld,
    LimitExceeded,
    Precondition,
    PreconditionFailed,
    Put,
    Store,
    StoreFull,
    Write,
)
from weft.informer.cache import Cache
from weft.informer.commit import Commit
from weft.informer.commit_batch import CommitBatch, batch_commits, batch_of_one
from weft.informer.view import Item
from weft.objects.errors import InvalidInput, StoreUnavailable, Unavailable, WeftError

TTL_SECONDS = 10.0

_log = logging.getLogger(__name__)


class LeadershipLost(Unavailable):
    """This process may no longer decide: drop all plans, begin a new term, read again."""


class LeaderLease:
    """The lease ``name``, held under ``fence`` from ``begin`` on until a LeadershipLost."""

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
        """Commit all at once, each for itself; returns those that did not go through, nothing of them written.

        Returns after the cache has what was written, and what made others fail. Raises LeadershipLost."""
        self._check_history()
        made = self._expect(commits)
        try:
            return await self._perform(commits)
        finally:
            self.cache.expect_no_more(made)

    def _expect(self, commits: Sequence[Commit]) -> list[Item]:
        """Have the cache know what it will see."""
        made = {item.key: item for commit in commits for item in commit.made}
        for commit in commits if made else ():
            for write in commit.writes:
                if isinstance(write, Put) and (item := made.get(write.key)) is not None:
                    self.cache.expect(write.value, item)
        return list(made.values())

    async def _perform(self, commits: Sequence[Commit]) -> list[Commit]:
        sent = await asyncio.gather(*(self._commit(each) for each in batch_commits(commits)), return_exceptions=True)
        outcomes: list[tuple[Commit, int | WeftError]] = []
        for result in sent:
            if isinstance(result, BaseException):
                raise result
            outcomes += result
        failed: list[Commit] = []
        reached = 0
        for commit, outcome in outcomes:
            if isinstance(outcome, int):
                reached = max(reached, outcome)
                for event in commit.events:
                    self._journal.append(event)
                continue
            failed.append(commit)
            if isinstance(outcome, PreconditionFailed):
                reached = max(reached, outcome.current_revision or 0)
            else:
                _log.error("%s: the store refused a change: %s", commit.key, outcome)
        await self.cache.reached(reached)
        return failed

    def _check_history(self) -> None:
        if self.cache.epoch != self._epoch:
            raise LeadershipLost("the store was restored")

    async def _commit(self, together: CommitBatch) -> list[tuple[Commit, int | WeftError]]:
        """Each of the bundle's commits with its revision, or with why it was not written."""
        commits = together.commits
        try:
            revision = await self._write(together.writes, together.preconditions)
        except (PreconditionFailed, StoreFull, LimitExceeded, InvalidInput) as problem:
            if len(commits) == 1:
                return [(commits[0], problem)]
            wrong = [
                c for c in commits if isinstance(problem, PreconditionFailed) and problem.failed in c.preconditions
            ]
            if wrong:  # the others may still stand, together
                rest = batch_commits([commit for commit in commits if commit not in wrong])
            else:
                rest = [batch_of_one(commit) for commit in commits]
            outcomes: list[tuple[Commit, int | WeftError]] = [(commit, problem) for commit in wrong]
            for each in rest:
                outcomes += await self._commit(each)
            return outcomes
        return [(commit, revision) for commit in commits]

    async def _write(self, writes: Sequence[Write], preconditions: Sequence[Precondition]) -> int:
        lease = LeaseHeld(self._name, self.fence)
        try:
            return await self.store.commit(writes, [lease, *preconditions])
        except PreconditionFailed as problem:
            if problem.failed == lease:
                raise LeadershipLost("another process holds the leader lease now") from problem
            raise
        except StoreFull:
            raise
        except StoreUnavailable as problem:
            raise LeadershipLost(f"a commit's outcome is unknown: {problem}") from problem

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
        """Renew the lease for ever; raises LeadershipLost when it is no longer ours."""
        held_until = self.clock.elapsed() + TTL_SECONDS
        while True:
            await self.clock.sleep(TTL_SECONDS / 4)
            self._check_history()
            asked_at = self.clock.elapsed()
            try:
                lease = await self.store.grant(self._name, self._holder, TTL_SECONDS)
            except StoreUnavailable as problem:
                if self.clock.elapsed() >= held_until:
                    raise LeadershipLost(f"the lease could not be renewed: {problem}") from problem
                continue
            if lease is None or lease.fence != self.fence:
                raise LeadershipLost("another process holds the leader lease now")
            held_until = asked_at + TTL_SECONDS

    async def end(self) -> None:
        """Give the lease up at once, so that another may follow."""
        try:
            await self.store.release(self._name, self._holder)
        except StoreUnavailable as problem:
            _log.info("the lease will expire by itself: %s", problem)
