"""The leader lease: while one process holds it, no other decides. Every commit carries the lease's fence.

So after the lease is lost no earlier commit can succeed: not from a process that slept through the end, and not one whose answer
was lost on the way. That is why an unknown outcome ends the lease: the next holder begins by reading the store.
Writes the lease, and the commits that it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

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
from weft.contracts.trace.span import Tracer
from weft.informer.cache import Cache
from weft.informer.commit import Commit
from weft.informer.commit_batch import CommitBatch, batch_commits, batch_of_one
from weft.informer.trace.commits import CommitTraces
from weft.informer.view import Item
from weft.objects.errors import InvalidInput, StoreUnavailable, Unavailable, WeftError

TTL_SECONDS = 10.0

_log = logging.getLogger(__name__)


class LeadershipLost(Unavailable):
    """This process may no longer decide: drop all plans, wait for the lease, read again."""


class LeaderLease:
    """The lease ``name``, held under ``fence`` from ``begin`` on until a LeadershipLost."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        journal: Journal,
        clock: Clock,
        name: str,
        holder: str,
        tracer: Tracer | None = None,
    ) -> None:
        self.store = store
        self.cache = cache
        self.clock = clock
        self.fence = 0
        self._traces = CommitTraces(tracer, cache.view) if tracer is not None else None
        self._epoch = ""
        self._journal = journal
        self.name = name
        self._holder = holder
        self._place = f"/-leader/{name}"  # the store's key, of no object

    async def perform(
        self, commits: Sequence[Commit], refused: Callable[[str, str], None] | None = None
    ) -> list[Commit]:
        """Commit all at once, each for itself; returns those that failed, of which nothing is written. ``refused`` gets the key and
        the reason of each that fails for what it is, or since the store is full, not because something was changed meanwhile.

        Returns after the cache has all writes, and the changes that made others fail. Raises LeadershipLost."""
        self._check_history()
        made = self._expect(commits)
        began = self.clock.now() if self._traces is not None else 0.0
        try:
            failed = await self._perform(commits, refused)
        finally:
            self.cache.expect_no_more(made)
        if self._traces is not None:
            stored = [commit for commit in commits if commit not in failed] if failed else commits
            self._traces.note(stored, began, self.clock.now() - began)
        return failed

    def _expect(self, commits: Sequence[Commit]) -> list[Item]:
        """Announce the written objects to the cache."""
        made = {item.key: item for commit in commits for item in commit.made}
        for commit in commits if made else ():
            for write in commit.writes:
                if isinstance(write, Put) and (item := made.get(write.key)) is not None:
                    self.cache.expect(write.value, item)
        return list(made.values())

    async def _perform(self, commits: Sequence[Commit], refused: Callable[[str, str], None] | None) -> list[Commit]:
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
                if refused is not None:
                    refused(commit.key, outcome.message)
        await self.cache.reached(reached)
        return failed

    def _check_history(self) -> None:
        if self.cache.epoch != self._epoch:
            raise LeadershipLost("the store was restored")

    async def _commit(self, together: CommitBatch) -> list[tuple[Commit, int | WeftError]]:
        """Each of the batch's commits with its revision, or with why it was not written."""
        commits = together.commits
        try:
            revision = await self._write(together.writes, together.preconditions)
        except (PreconditionFailed, StoreFull, LimitExceeded, InvalidInput) as problem:
            if len(commits) == 1:
                return [(commits[0], problem)]
            wrong = [
                c for c in commits if isinstance(problem, PreconditionFailed) and problem.failed in c.preconditions
            ]
            if wrong:  # the others may succeed together
                rest = batch_commits([commit for commit in commits if commit not in wrong])
            else:
                rest = [batch_of_one(commit) for commit in commits]
            outcomes: list[tuple[Commit, int | WeftError]] = [(commit, problem) for commit in wrong]
            for each in rest:
                outcomes += await self._commit(each)
            return outcomes
        return [(commit, revision) for commit in commits]

    async def _write(self, writes: Sequence[Write], preconditions: Sequence[Precondition]) -> int:
        lease = LeaseHeld(self.name, self.fence)
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
        """Wait until the lease is ours, under a fence that was never used, and the cache has all commits of former holders."""
        while True:
            try:
                # An old lease of this holder would be renewed with its old fence, and a late commit under it could succeed.
                await self.store.release(self.name, self._holder)
                lease = await self.store.grant(self.name, self._holder, TTL_SECONDS)
                if lease is not None:
                    self.fence = lease.fence
                    # A change that all watches bring, after all of former holders.
                    held = LeaseHeld(self.name, self.fence)
                    revision = await self.store.commit([Put(self._place, self._holder.encode())], [held])
                    await self.cache.catch_up(revision)
                    self._epoch = self.cache.epoch
                    return
            except PreconditionFailed:
                _log.info("the leader lease lapsed before it was used")
            except StoreUnavailable as problem:
                _log.info("waiting for the store: %s", problem)
            await self.clock.sleep(1.0)

    async def keep(self) -> None:
        """Renew the lease for ever. Raises LeadershipLost when it is lost."""
        held_until = self.clock.elapsed() + TTL_SECONDS
        while True:
            await self.clock.sleep(TTL_SECONDS / 4)
            self._check_history()
            asked_at = self.clock.elapsed()
            try:
                lease = await self.store.grant(self.name, self._holder, TTL_SECONDS)
            except StoreUnavailable as problem:
                if self.clock.elapsed() >= held_until:
                    raise LeadershipLost(f"the lease could not be renewed: {problem}") from problem
                continue
            if lease is None or lease.fence != self.fence:
                raise LeadershipLost("another process holds the leader lease now")
            held_until = asked_at + TTL_SECONDS

    async def end(self) -> None:
        """Release the lease at once, so that another process may take it."""
        try:
            await self.store.release(self.name, self._holder)
        except StoreUnavailable as problem:
            _log.info("the lease was not given back and will expire: %s", problem)
