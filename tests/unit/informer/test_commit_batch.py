"""Commits in bundles: what becomes of each is what would have become of it alone, and few reach the store."""

from __future__ import annotations

from collections.abc import Sequence

from weft.contracts.clock import SystemClock
from weft.contracts.journal import Event
from weft.contracts.store import MAX_WRITES, Absent, AtRevision, Precondition, Put, Write
from weft.informer.cache import Cache
from weft.informer.commit import Commit
from weft.informer.commit_batch import batch_commits
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import make_view
from weft.store.memory import MemoryStore


class CountingStore(MemoryStore):
    commits = 0

    async def commit(
        self, writes: Sequence[Write], preconditions: Sequence[Precondition] = (), *, idempotency_key: str | None = None
    ) -> int:
        self.commits += 1
        return await super().commit(writes, preconditions, idempotency_key=idempotency_key)


class Journal:
    def append(self, event: Event) -> None: ...


def commit(name: str, *preconditions: Precondition, size: int = 1) -> Commit:
    return Commit(name, [Put(f"/x/-/{name}", b"1" * size)], preconditions)


def names(commits: Sequence[Commit]) -> list[list[str]]:
    return [[each.key for each in one.commits] for one in batch_commits(commits)]


def test_a_bundle_is_no_larger_than_a_commit_may_be() -> None:
    assert [len(one) for one in names([commit(f"{n}") for n in range(250)])] == [MAX_WRITES, MAX_WRITES, 50]
    assert [len(one) for one in names([commit(f"{n}", size=200_000) for n in range(5)])] == [4, 1]
    many = [commit(f"{n}", *(Absent(f"/y/-/{n}-{m}") for m in range(50))) for n in range(4)]
    assert [len(one) for one in names(many)] == [2, 2]
    shared = [commit(f"{n}", AtRevision("/node/-/n", 7)) for n in range(MAX_WRITES)]
    assert [len(one) for one in names(shared)] == [MAX_WRITES]


def test_what_might_get_in_each_others_way_goes_one_after_the_other() -> None:
    assert names([commit("a"), commit("a")]) == [["a"], ["a"]]
    assert names([commit("a"), commit("b", Absent("/x/-/a")), commit("c")]) == [["a"], ["b", "c"]]
    assert names([commit("b", AtRevision("/x/-/a", 3)), commit("a")]) == [["b"], ["a"]]


async def test_one_that_fails_takes_no_other_with_it() -> None:
    store, clock = CountingStore(SystemClock()), SystemClock()
    revision = await store.commit([Put("/x/-/there", b"0")])
    cache = Cache(store, make_view(), clock)
    cache.epoch, cache.revision = "any", 10**9
    term = LeaderLease(store, cache, Journal(), clock, "lease", "me")
    lease = await store.grant("lease", "me", 10.0)
    assert lease is not None
    term.fence, term._epoch = lease.fence, "any"
    stale = [commit(f"stale{n}", AtRevision("/x/-/there", revision + 7)) for n in range(3)]
    good = [commit(f"good{n}", AtRevision("/x/-/there", revision)) for n in range(20)]
    taken = commit("taken", Absent("/x/-/there"))
    store.commits = 0
    failed = await term.perform([*good[:10], *stale, taken, *good[10:]])
    assert sorted(one.key for one in failed) == ["stale0", "stale1", "stale2", "taken"]
    keys = {entry.key for entry in (await store.list("/x/")).entries}
    assert keys == {"/x/-/there", *(f"/x/-/good{n}" for n in range(20))}
    assert store.commits == 3
