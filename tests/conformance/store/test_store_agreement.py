"""The engines against a model a screen long: whatever is done to them, they answer the same."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from etcd_server import EtcdServer
from hand_clock import HandClock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from tests.long import examples
from tests.shelf import SHELF

from weft.contracts.store import (
    Absent,
    AtRevision,
    Compacted,
    Delete,
    LeaseHeld,
    Page,
    Precondition,
    PreconditionFailed,
    Present,
    Put,
    Store,
    Write,
    revision_of,
)
from weft.store.etcd import EtcdStore
from weft.store.memory import MemoryStore
from weft.store.remote import RemoteStore, StoreServer
from weft.store.sqlite import SqliteStore

KEYS = ["/a", "/a/1", "/a/2", "/b/1", "/b/é", "/c"]
PREFIXES = ["", "/", "/a", "/a/", "/b/", "/c", "/none"]

keys = st.sampled_from(KEYS)
writes = st.lists(
    st.one_of(st.builds(Put, keys, st.binary(max_size=4)), st.builds(Delete, keys)),
    max_size=4,
    unique_by=lambda write: write.key,
)
back = st.integers(0, 3)  # how many revisions ago


class Model:
    """The contract in the fewest words: every state there ever was, and what each commit changed."""

    def __init__(self) -> None:
        self.states: list[dict[str, tuple[bytes, int]]] = [{}]
        self.changes: list[list[tuple[str, bytes | None, bytes | None]]] = [[]]
        self.compacted = 0
        self.made: dict[str, int] = {}
        self.leases: dict[str, tuple[str, int]] = {}  # holder, and the number of the grant
        self.grants = 0

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def holds(self, precondition: Precondition) -> bool:
        now = self.states[-1]
        match precondition:
            case AtRevision(key, revision):
                return key in now and now[key][1] == revision
            case Absent(key):
                return key not in now
            case Present(key):
                return key in now
            case LeaseHeld(name, fence):
                return name in self.leases and self.leases[name][1] == fence

    def commit(self, writes: list[Write], preconditions: list[Precondition], key: str | None) -> int | str:
        if key is not None and key in self.made:
            return self.made[key]
        for place, precondition in enumerate(preconditions):
            if not self.holds(precondition):
                return f"precondition {place} failed"
        then, changed = dict(self.states[-1]), []
        for write in writes:
            value = write.value if isinstance(write, Put) else None
            previous = then[write.key][0] if write.key in then else None
            if value is None:
                if then.pop(write.key, None) is None:
                    continue
            else:
                then[write.key] = (value, self.revision + 1)
            changed.append((write.key, value, previous))
        if changed:
            self.states.append(then)
            self.changes.append(changed)
        if key is not None:
            self.made[key] = self.revision
        return self.revision

    def watch(self, prefix: str, after: int) -> list[Any]:
        found = []
        for revision in range(after + 1, self.revision + 1):
            under = [change for change in self.changes[revision] if change[0].startswith(prefix)]
            if under:
                found.append((revision, under))
        return found


class Numbers:
    """An engine's revisions as the model counts them: others lie between, of leases and whatever else it keeps."""

    def __init__(self, first: int) -> None:
        self.revisions = [first]

    def add(self, revision: int) -> None:
        assert revision > self.revisions[-1]
        self.revisions.append(revision)

    def count(self, revision: int) -> int:
        return bisect_right(self.revisions, revision) - 1

    def revision(self, number: int) -> int:
        return self.revisions[number] if 0 <= number < len(self.revisions) else number


class Engines(RuleBasedStateMachine):
    instants = Bundle("instants")  # revisions, and each engine's own cursor and continuation there

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory(dir=SHELF)
        self.path = Path(self.folder.name)
        self.clock = HandClock()
        self.model = Model()
        self.fences: dict[tuple[int, int], int] = {}  # by engine and number of the grant

    @initialize()
    def start(self) -> None:
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self.memory = MemoryStore(self.clock)
        self.sqlite = SqliteStore(self.path / "a.db", self.clock, readers=1)
        self.served = SqliteStore(self.path / "b.db", self.clock, readers=1)
        self.server = StoreServer(self.served, self.path / "sock")
        self.remote = RemoteStore(self.path / "sock", self.clock)
        await self.served.open()
        await self.server.start()
        self.stores: list[Store] = [self.memory, self.sqlite, self.remote]
        self.stores += self.more_stores()
        for store in self.stores:
            await store.open()
        self.numbers = [Numbers(revision_of((await store.list("/")).cursor)) for store in self.stores]

    def more_stores(self) -> Sequence[Store]:
        return ()

    def teardown(self) -> None:
        self.loop.run_until_complete(self._stop())
        self.loop.close()
        self.folder.cleanup()

    async def _stop(self) -> None:
        for store in self.stores:
            await store.close()
        await self.server.close()
        await self.served.close()

    def of_all(self, act: Any) -> Any:
        """What ``act(store)`` gives on every engine, which must be one and the same."""

        async def act_on_all() -> Sequence[Any]:
            return await asyncio.gather(*(act(n, store) for n, store in enumerate(self.stores)))

        results = self.loop.run_until_complete(act_on_all())
        assert results[1:] == results[:-1], results
        return results[0]

    @rule(
        writes=writes,
        revisions=st.lists(st.tuples(keys, back), max_size=1),
        absent=st.lists(keys, max_size=1),
        present=st.lists(keys, max_size=1),
        lease=st.lists(st.sampled_from(["l1", "l2"]), max_size=1),
        key=st.one_of(st.none(), st.none(), st.sampled_from(["k1", "k2", "k3", "k4"])),
    )
    def commit(self, writes: Any, revisions: Any, absent: Any, present: Any, lease: Any, key: str | None) -> None:
        now = self.model.states[-1]
        preconditions: list[Precondition] = [
            *(AtRevision(name, now[name][1] - ago if name in now else ago) for name, ago in revisions),
            *map(Absent, absent),
            *map(Present, present),
            *(LeaseHeld(name, self.model.leases.get(name, ("", 1))[1]) for name in lease),
        ]
        before = self.model.revision
        expected = self.model.commit(writes, preconditions, key)

        def own_of(n: int, p: Precondition) -> Precondition:
            if isinstance(p, LeaseHeld):
                return LeaseHeld(p.name, self.fences.get((n, p.fence), 0))
            return AtRevision(p.key, self.numbers[n].revision(p.revision)) if isinstance(p, AtRevision) else p

        async def act(n: int, store: Store) -> Any:
            own = [own_of(n, p) for p in preconditions]
            try:
                revision = await store.commit(writes, own, idempotency_key=key)
                if self.model.revision > before:
                    self.numbers[n].add(revision)
                return self.numbers[n].count(revision)
            except PreconditionFailed as failure:
                return f"precondition {own.index(failure.failed)} failed"

        assert self.of_all(act) == expected

    @rule(target=instants, prefix=st.sampled_from(PREFIXES), limit=st.integers(0, 3))
    def list(self, prefix: str, limit: int) -> Any:
        pages: dict[int, Any] = {}

        async def act(n: int, store: Store) -> Any:
            pages[n] = page = await store.list(prefix, limit=limit)
            return self.told(n, page), page.next is None

        entries, ended = self.of_all(act)
        expected = self.listed(prefix, self.model.revision)
        assert entries == (expected[:limit] if limit else expected)
        assert ended == (not limit or len(expected) <= limit)
        return self.model.revision, prefix, pages, expected[len(entries) :]

    def told(self, n: int, page: Page) -> Any:
        return [(e.key, e.value, self.numbers[n].count(e.revision)) for e in page.entries]

    def listed(self, prefix: str, revision: int) -> Any:
        state = self.model.states[revision]
        return [(key, *state[key]) for key in sorted(state) if key.startswith(prefix)]

    @rule(instant=instants, limit=st.integers(0, 2))
    def continue_list(self, instant: Any, limit: int) -> None:
        revision, prefix, pages, rest = instant
        if pages[0].next is None:
            return

        async def act(n: int, store: Store) -> Any:
            try:
                page = await store.list(prefix, limit=limit, after=pages[n].next)
            except Compacted:
                return "compacted"
            assert page.cursor == pages[n].cursor
            return self.told(n, page)

        gone = revision < self.model.compacted
        assert self.of_all(act) == ("compacted" if gone else rest[:limit] if limit else rest)

    @rule(instant=instants, prefix=st.sampled_from(PREFIXES))
    def watch(self, instant: Any, prefix: str) -> None:
        revision, _, pages, _ = instant
        expected = self.model.watch(prefix, revision)

        async def act(n: int, store: Store) -> Any:
            seen: list[Any] = []
            async with asyncio.timeout(20), aclosing(store.watch(prefix, pages[n].cursor)) as watch:
                try:
                    while len(seen) < max(1, len(expected)):
                        if not expected and not gone:
                            return seen
                        batch = await anext(watch)
                        seen.append(
                            (
                                self.numbers[n].count(batch.revision),
                                [(c.key, c.value, c.previous) for c in batch.changes],
                            )
                        )
                except Compacted:
                    return "compacted"
            return seen

        gone = revision < self.model.compacted
        assert self.of_all(act) == ("compacted" if gone else expected)

    @rule(keep=st.integers(0, 5))
    def compact(self, keep: int) -> None:
        self.model.compacted = max(self.model.compacted, self.model.revision - keep)
        oldest = self.model.revision - keep

        async def act(n: int, store: Store) -> None:
            now = revision_of((await store.list("/none")).cursor)
            await store.compact(now - self.numbers[n].revision(oldest) if oldest >= 0 else now)

        self.of_all(act)

    @rule(name=st.sampled_from(["l1", "l2"]), holder=st.sampled_from(["x", "y"]))
    def grant(self, name: str, holder: str) -> None:
        if name not in self.model.leases:
            self.model.grants += 1
            self.model.leases[name] = (holder, self.model.grants)
        held_by, grant = self.model.leases[name]

        async def act(n: int, store: Store) -> Any:
            lease = await store.grant(name, holder, 1e6)
            if lease is None:
                return None
            assert self.fences.setdefault((n, grant), lease.fence) == lease.fence
            assert all(lease.fence > fence for (of, before), fence in self.fences.items() if of == n and before < grant)
            return lease.holder

        assert self.of_all(act) == (holder if held_by == holder else None)

    @rule(name=st.sampled_from(["l1", "l2"]), holder=st.sampled_from(["x", "y"]))
    def release(self, name: str, holder: str) -> None:
        if self.model.leases.get(name, ("", 0))[0] == holder:
            del self.model.leases[name]
        self.of_all(lambda n, store: store.release(name, holder))

    @rule()
    def reopen(self) -> None:
        """Close the SQLite store and open it again; leases end there, so end them everywhere."""
        for name, (holder, _) in list(self.model.leases.items()):
            self.release(name, holder)
        self.loop.run_until_complete(self.sqlite.close())
        self.loop.run_until_complete(self.sqlite.open())

    @invariant()
    def every_key_reads_the_same(self) -> None:
        if not hasattr(self, "stores"):
            return

        async def act(n: int, store: Store) -> Any:
            return [
                (e.value, self.numbers[n].count(e.revision)) if (e := await store.get(key)) else None for key in KEYS
            ]

        assert self.of_all(act) == [self.model.states[-1].get(key) for key in KEYS]


Engines.TestCase.settings = settings(
    max_examples=examples(40), stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


class EnginesAndEtcd(Engines):
    """The same beside a real etcd, which every example shares."""

    etcd: EtcdServer
    examples = itertools.count()

    def more_stores(self) -> Sequence[Store]:
        return [EtcdStore([self.etcd.endpoint], self.clock, prefix=f"/agree/{next(self.examples)}")]


EnginesAndEtcd.TestCase.settings = settings(Engines.TestCase.settings, max_examples=examples(40))


class TestEnginesAgree(Engines.TestCase):  # type: ignore[misc]
    pass


@pytest.fixture(scope="class")
def etcd_to_agree_with(etcd: EtcdServer) -> None:
    EnginesAndEtcd.etcd = etcd


@pytest.mark.usefixtures("etcd_to_agree_with")
class TestEtcdAgreesToo(EnginesAndEtcd.TestCase):  # type: ignore[misc]
    pass
