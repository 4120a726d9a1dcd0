"""The controllers' view of the store: always one whole revision, whatever happens to the line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import msgspec
import pytest
from tests.scenario.controllers_lab import Journal, VirtualClock

from weft.contracts.store import Absent, Batch, Delete, Page, Put
from weft.informer import cache
from weft.informer.cache import Cache
from weft.informer.commit import Commit
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.informer.view import Changed, Item, View, make_view
from weft.kinds.parts.workload import WORKLOADS_BY_IMAGE
from weft.kinds.vm import VmSpec
from weft.kinds.volume import VOLUMES_BY_HOME
from weft.objects.envelope import Envelope, decode_envelope, encode_envelope
from weft.objects.errors import StoreUnavailable
from weft.store.memory import MemoryStore


def vm(name: str, image: str = "tiny", uid: str = "") -> Put:
    spec = msgspec.Raw(msgspec.json.encode(VmSpec(image=image)))
    envelope = Envelope(kind="vm", name=name, uid=uid or name, project="default", spec=spec)
    return Put(envelope.key, encode_envelope(envelope))


class FlakyStore(MemoryStore):
    """A store whose line breaks when told to, and that can be swapped for another."""

    def __init__(self) -> None:
        super().__init__()
        self.behind: MemoryStore | None = None
        self.broken = asyncio.Event()
        self.lists = 0

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        self.lists += 1
        return await MemoryStore.list(self.behind or self, prefix, limit=limit, after=after)

    async def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        batches = MemoryStore.watch(self.behind or self, prefix, cursor)
        while True:
            coming = asyncio.ensure_future(anext(batches))
            breaking = asyncio.ensure_future(self.broken.wait())
            await asyncio.wait([coming, breaking], return_when=asyncio.FIRST_COMPLETED)
            breaking.cancel()
            if self.broken.is_set():
                coming.cancel()
                self.broken.clear()
                raise StoreUnavailable("the line broke")
            yield coming.result()


class Watcher:
    def __init__(self, store: MemoryStore, view: View | None = None) -> None:
        self.clock = VirtualClock()
        self.cache = Cache(store, view or make_view(), self.clock)
        self.told: list[list[str]] = []
        self.cache.subscribe(self._note)
        self.task = asyncio.ensure_future(self.cache.run())

    def _note(self, changes: Sequence[Changed]) -> None:
        # By the time anybody is told, the view has all of it.
        for change in changes:
            assert self.cache.view.get(change.key) is change.new
        self.told.append(
            sorted(f"{'-' if c.new is None else '+' if c.old is None else '~'}{c.item.envelope.name}" for c in changes)
        )

    async def rest(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)
        self.clock.advance(2.0)
        for _ in range(30):
            await asyncio.sleep(0)

    @property
    def names(self) -> list[str]:
        return sorted(item.envelope.name for item in self.cache.view.of_kind("vm").values())


async def test_what_was_there_and_what_comes_is_seen_whole() -> None:
    store = MemoryStore()
    await store.commit([vm("a"), vm("b")])
    watcher = Watcher(store)
    await watcher.rest()
    await store.commit([vm("c"), Delete("/vm/default/a"), vm("b", image="other")])
    await watcher.rest()
    assert watcher.told == [["+a", "+b"], ["+c", "-a", "~b"]]
    assert watcher.names == ["b", "c"]
    assert [i.envelope.name for i in watcher.cache.view.find(WORKLOADS_BY_IMAGE, "/image/default/other")] == ["b"]
    assert [i.envelope.name for i in watcher.cache.view.find(WORKLOADS_BY_IMAGE, "/image/default/tiny")] == ["c"]
    watcher.task.cancel()


async def test_who_waits_for_a_revision_is_told_when_it_is_there_and_not_before() -> None:
    store = MemoryStore()
    watcher = Watcher(store)
    revision = await store.commit([vm("a")])
    later = asyncio.ensure_future(watcher.cache.reached(revision + 1))
    await watcher.cache.reached(revision)
    assert watcher.names == ["a"] and not later.done()
    await store.commit([Put("/token/-/t", b"{}")])  # of no kind that is read here, but a revision all the same
    await asyncio.wait_for(later, 60)
    watcher.task.cancel()


async def test_a_broken_line_is_taken_up_again_where_it_broke() -> None:
    store = FlakyStore()
    watcher = Watcher(store)
    await store.commit([vm("a")])
    await watcher.rest()
    store.broken.set()
    await watcher.rest()
    await store.commit([vm("b")])
    await watcher.rest()
    assert watcher.told == [["+a"], ["+b"]] and store.lists == 1
    watcher.task.cancel()


async def test_after_compaction_only_the_difference_is_told() -> None:
    store = FlakyStore()
    watcher = Watcher(store)
    await store.commit([vm("a"), vm("b")])
    await watcher.rest()
    store.broken.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await store.commit([vm("c")])
    await store.commit([Delete("/vm/default/a")])
    await store.compact(0)
    await watcher.rest()
    assert watcher.told == [["+a", "+b"], ["+c", "-a"]] and store.lists == 2
    assert watcher.names == ["b", "c"]
    watcher.task.cancel()


async def test_a_restored_store_is_read_anew_even_if_its_revisions_look_the_same() -> None:
    store = FlakyStore()
    watcher = Watcher(store)
    await store.commit([vm("a", uid="first")])
    await watcher.rest()
    epoch = watcher.cache.epoch
    waiting = asyncio.ensure_future(watcher.cache.reached(1000))
    store.behind = MemoryStore()
    await store.behind.commit([vm("a", uid="second")])
    store.broken.set()
    await watcher.rest()
    item = watcher.cache.view.get("/vm/default/a")
    assert item is not None and item.uid == "second" and item.envelope.revision == 1
    assert watcher.cache.epoch != epoch
    await asyncio.wait_for(waiting, 60)  # that revision will never come in this history
    watcher.task.cancel()


async def test_a_vm_that_cannot_be_read_keeps_its_last_readable_state() -> None:
    store = MemoryStore()
    watcher = Watcher(store)
    await store.commit([vm("a")])
    await watcher.rest()
    await store.commit([Put("/vm/default/a", b"nonsense"), vm("b")])
    await watcher.rest()
    assert watcher.names == ["a", "b"]
    watcher.task.cancel()


async def test_to_catch_up_is_to_see_the_history_that_is_not_one_that_was() -> None:
    store = FlakyStore()
    watcher = Watcher(store)
    for name in ("a", "b", "c"):
        await store.commit([vm(name)])
    await watcher.rest()
    await asyncio.wait_for(watcher.cache.catch_up(), 60)
    store.behind = MemoryStore()  # with a lower revision than was seen already
    await store.behind.commit([vm("other")])
    catching = asyncio.ensure_future(watcher.cache.catch_up())
    await asyncio.sleep(0)
    assert not catching.done()
    store.broken.set()
    await watcher.rest()
    await asyncio.wait_for(catching, 60)
    assert watcher.names == ["other"]
    watcher.task.cancel()


async def test_a_term_ends_with_the_history_it_began_in() -> None:
    store = FlakyStore()
    watcher = Watcher(store)
    term = LeaderLease(store, watcher.cache, Journal(), watcher.clock, "controllers", "me")
    await term.begin()
    assert await term.perform([Commit("/x", [vm("a")])]) == []
    store.behind = MemoryStore()
    store.broken.set()
    await watcher.rest()
    with pytest.raises(LeadershipLost, match="restored"):
        await term.perform([Commit("/x", [vm("b")])])
    watcher.task.cancel()


async def test_what_a_term_has_written_comes_back_as_the_item_it_gave_and_what_others_wrote_is_read() -> None:
    store = MemoryStore()
    watcher = Watcher(store)
    view = watcher.cache.view
    term = LeaderLease(store, watcher.cache, Journal(), watcher.clock, "controllers", "me")
    await term.begin()
    written = vm("a")
    mine = Item(decode_envelope(written.value))
    assert await term.perform([Commit(mine.key, [written], made=[mine])]) == []
    assert view.get(mine.key) is mine
    entry = await store.get(mine.key)
    assert entry is not None and mine.envelope == decode_envelope(entry.value, entry.revision)
    late = Item(decode_envelope(vm("a", image="late").value))
    refused = Commit(late.key, [vm("a", image="late")], [Absent(late.key)], made=[late])
    assert await term.perform([refused]) == [refused]
    await store.commit([vm("a", image="late")])  # by another, after all
    await watcher.rest()
    seen = view.get(mine.key)
    assert seen is not None and seen is not late and seen.spec(VmSpec).image == "late"
    other = Item(decode_envelope(vm("b").value))
    watcher.cache.expect(vm("b").value, other)
    await store.commit([vm("b", image="other")])
    await watcher.rest()
    found = view.get(other.key)
    assert found is not None and found is not other and found.spec(VmSpec).image == "other"
    watcher.task.cancel()


def thing(kind: str, name: str) -> Put:
    envelope = Envelope(kind=kind, name=name, uid=name, project="default")
    return Put(envelope.key, encode_envelope(envelope))


def make_waiting_view() -> View:
    return View(["vm", "function"], once="function", later=["allocation", "vm"])


async def test_kinds_that_wait_for_another_are_here_with_the_first_of_it_whole_and_not_before() -> None:
    store = MemoryStore()
    await store.commit([thing("allocation", "a1"), thing("vm", "v1"), thing("volume", "w1")])
    watcher = Watcher(store, make_waiting_view())
    await watcher.rest()
    await store.commit([thing("allocation", "a2"), thing("vm", "v2")])
    await watcher.rest()
    assert watcher.told == [["+v1"], ["+v2"]]
    assert not watcher.cache.view.of_kind("allocation") and watcher.cache.view.get("/allocation/default/a1") is None
    revision = await store.commit([thing("function", "f1"), Delete("/allocation/default/a1")])
    await store.commit([thing("allocation", "a3")])
    await watcher.cache.reached(revision)
    assert watcher.told[2] == ["+a2", "+a3", "+f1"]  # nobody sees the function without them
    await store.commit([Delete("/function/default/f1"), Delete("/allocation/default/a2")])
    await store.commit([thing("function", "f2"), thing("allocation", "a4")])
    await watcher.rest()
    assert watcher.told[3:] == [["-a2", "-f1"], ["+a4", "+f2"]]
    watcher.task.cancel()


async def test_a_list_of_many_pages_holds_what_the_last_of_them_calls_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_ENTRIES_AT_ONCE", 2)
    store = MemoryStore()
    await store.commit([thing("allocation", f"a{n}") for n in range(5)])
    await store.commit([thing("function", "f1"), thing("vm", "v1")])
    watcher = Watcher(store, make_waiting_view())
    await watcher.rest()
    assert watcher.told == [["+a0", "+a1", "+a2", "+a3", "+a4", "+f1", "+v1"]]
    watcher.task.cancel()


def test_a_volume_is_found_by_the_home_that_its_status_comes_to_name() -> None:
    view = make_view()
    spec = msgspec.Raw(msgspec.json.encode({"size": 1}))
    volume = Envelope(kind="volume", name="data", uid="v1", project="default", spec=spec)
    view.put(volume.key, encode_envelope(volume), 1)
    for revision, home in ((2, "n1"), (3, "n2")):
        volume.status = msgspec.Raw(msgspec.json.encode({"node_uid": home}))
        view.put(volume.key, encode_envelope(volume), revision)
        assert [item.uid for item in view.find(VOLUMES_BY_HOME, home)] == ["v1"]
    assert not view.find(VOLUMES_BY_HOME, "n1")
