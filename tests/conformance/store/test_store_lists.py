from __future__ import annotations

import pytest

from weft.contracts.store import Compacted, Delete, Page, Put, Store
from weft.objects.errors import InvalidInput


def keys_of(page: Page) -> list[str]:
    return [entry.key for entry in page.entries]


async def test_a_list_holds_exactly_the_keys_under_its_prefix_in_order(store: Store) -> None:
    names = ["/vm/a", "/vm/b/c", "/vm", "/vm/", "/vmx", "/vn/a", "/vm/é", "/vm/z", "/vm/\ud7ff", "/vm/\ue000", "/vm/𝄞"]
    await store.commit([Put(name, name.encode()) for name in names])
    page = await store.list("/vm/")
    assert keys_of(page) == sorted(name for name in names if name.startswith("/vm/"))
    assert [entry.value for entry in page.entries] == [key.encode() for key in keys_of(page)]
    assert page.next is None
    assert keys_of(await store.list("/vm/\ud7ff")) == ["/vm/\ud7ff"]
    assert keys_of(await store.list("")) == sorted(names)
    assert keys_of(await store.list("/nothing/")) == []


async def test_pages_join_up_to_the_whole_list(store: Store) -> None:
    await store.commit([Put(f"/k/{n:02}", b"") for n in range(23)])
    for limit in (1, 7, 22, 23, 24):
        found, after = [], None
        while True:
            page = await store.list("/k/", limit=limit, after=after)
            assert len(page.entries) <= limit
            found += keys_of(page)
            after = page.next
            if after is None:
                break
            assert after == page.continue_after(page.entries[-1].key)
        assert found == [f"/k/{n:02}" for n in range(23)]


async def test_a_list_continues_after_any_key_of_a_page_at_its_instant(store: Store) -> None:
    await store.commit([Put(f"/k/{n}", b"") for n in range(9)])
    first = await store.list("/k/", limit=4)
    await store.commit([Delete("/k/1"), Delete("/k/7")])
    rest = await store.list("/k/", after=first.continue_after("/k/1"))
    assert keys_of(rest) == [f"/k/{n}" for n in range(2, 9)] and rest.cursor == first.cursor


async def test_all_pages_show_the_instant_of_the_first(store: Store) -> None:
    await store.commit([Put(f"/k/{n}", b"old") for n in range(9)])
    revision = await store.commit([Put("/k/4", b"older")])
    await store.commit([Put("/k/4", b"old")])
    first = await store.list("/k/", limit=2)
    for _ in range(2):  # changed twice: the first change since the pin is the one that counts
        await store.commit([Delete("/k/3"), Put("/k/4", b"new"), Put("/k/55", b"new"), Delete("/k/0"), Put("/j", b"")])
        await store.commit([Put("/k/3", b"new"), Delete("/k/5"), Put("/k/0", b"new"), Delete("/k/8")])
    second = await store.list("/k/", limit=4, after=first.next)
    third = await store.list("/k/", limit=4, after=second.next)
    pages = [first, second, third]
    entries = [entry for page in pages for entry in page.entries]
    assert [entry.key for entry in entries] == [f"/k/{n}" for n in range(9)]
    assert {entry.value for entry in entries} == {b"old"}
    assert {page.cursor for page in pages} == {first.cursor}
    assert third.next is None
    assert {entry.revision for entry in entries} == {revision - 1, revision + 1}
    now = await store.list("/k/")
    assert keys_of(now) == ["/k/0", "/k/1", "/k/2", "/k/3", "/k/4", "/k/55", "/k/6", "/k/7"]


async def test_a_list_whose_instant_was_compacted_must_begin_again(store: Store) -> None:
    await store.commit([Put(f"/k/{n}", b"") for n in range(9)])
    page = await store.list("/k/", limit=2)
    await store.commit([Delete("/k/5")])
    await store.compact(1)
    assert len((await store.list("/k/", after=page.next)).entries) == 7
    await store.compact(0)
    with pytest.raises(Compacted):
        await store.list("/k/", after=page.next)


async def test_what_no_list_gave_out_is_no_place_to_go_on(store: Store) -> None:
    await store.commit([Put(f"/k/{n}", b"") for n in range(9)])
    page = await store.list("/k/", limit=2)
    assert page.next is not None
    epoch, revision, key = page.next.split(":")
    later = f"{epoch}:{int(revision) + 100}:{key}"  # counted from now: etcd goes on counting from test to test
    for after in ("", "x", "other:1:/k/1", f"{epoch}:x:{key}", later, f"{epoch}:-1:{key}"):
        with pytest.raises(Compacted):
            await store.list("/k/", after=after)
    with pytest.raises(InvalidInput):
        await store.list("/other/", after=page.next)
    with pytest.raises(InvalidInput):
        await store.list("/k/", limit=-1)
    with pytest.raises(InvalidInput):
        await store.list("/k/", limit=2**63)
    with pytest.raises(InvalidInput):
        await store.list("k/")


async def test_a_list_of_thousands_is_whole(store: Store) -> None:
    for start in range(0, 2_500, 100):
        await store.commit([Put(f"/k/{n:04}", b"%d" % n) for n in range(start, start + 100)])
    page = await store.list("/k/")
    assert keys_of(page) == [f"/k/{n:04}" for n in range(2_500)]
    assert page.next is None
    await store.commit([Delete("/k/0000"), Put("/kk", b"")])
    assert [await store.count(prefix) for prefix in ("/k/", "/k/01", "/none/", "/k/0000", "")] == [
        2_499,
        100,
        0,
        0,
        2_500,
    ]


async def test_compaction_forgets_history_and_keeps_what_is_there_now(store: Store) -> None:
    for n in range(30):
        await store.commit([Put(f"/k/{n % 7}", b"%d" % n), Delete(f"/k/{(n + 3) % 7}")])
    before = await store.list("/k/")
    await store.compact(0)
    await store.commit([Put("/other", b"")])
    after = await store.list("/k/")
    assert after.entries == before.entries
