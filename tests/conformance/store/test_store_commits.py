from __future__ import annotations

import asyncio

import pytest
from hand_clock import HandClock

from weft.contracts.store import (
    MAX_PRECONDITIONS,
    MAX_VALUE_BYTES,
    MAX_WRITES,
    Absent,
    AtRevision,
    Delete,
    Entry,
    LeaseHeld,
    LimitExceeded,
    Precondition,
    PreconditionFailed,
    Present,
    Put,
    Store,
)
from weft.objects.errors import InvalidInput, StaleRevision


async def test_all_writes_of_a_commit_share_one_revision(store: Store) -> None:
    revision = await store.commit([Put("/a", b"1"), Put("/b", b"2")])
    assert await store.get("/a") == Entry("/a", b"1", revision)
    assert await store.get("/b") == Entry("/b", b"2", revision)


async def test_each_commit_has_a_higher_revision_than_the_one_before(store: Store) -> None:
    revisions = [await store.commit([Put("/a", b"same")]) for _ in range(5)]
    assert revisions == sorted(set(revisions))
    entry = await store.get("/a")
    assert entry is not None and entry.revision == revisions[-1]


async def test_any_bytes_and_no_bytes_can_be_a_value(store: Store) -> None:
    every_byte = bytes(range(256))
    await store.commit([Put("/a", every_byte), Put("/empty", b"")])
    entry = await store.get("/a")
    empty = await store.get("/empty")
    assert entry is not None and entry.value == every_byte
    assert empty is not None and empty.value == b""


async def test_a_deleted_key_is_gone_and_can_come_back(store: Store) -> None:
    await store.commit([Put("/a", b"1")])
    await store.commit([Delete("/a")])
    assert await store.get("/a") is None
    again = await store.commit([Put("/a", b"2")], [Absent("/a")])
    assert await store.get("/a") == Entry("/a", b"2", again)


async def test_a_commit_that_changes_nothing_returns_the_current_revision(store: Store) -> None:
    revision = await store.commit([Put("/a", b"1")])
    assert await store.commit([]) == revision
    assert await store.commit([Delete("/nothing")]) == revision
    assert await store.commit([], [Present("/a")]) == revision


async def test_a_failed_precondition_writes_nothing_and_says_which_it_was(store: Store) -> None:
    first = await store.commit([Put("/a", b"1")])
    second = await store.commit([Put("/a", b"2")])
    cases: list[tuple[Precondition, int | None]] = [
        (AtRevision("/a", first), second),
        (AtRevision("/a", second + 1), second),
        (AtRevision("/none", 1), None),
        (Absent("/a"), second),
        (Present("/none"), None),
        (LeaseHeld("leader", 1), None),
    ]
    for failing, current in cases:
        with pytest.raises(PreconditionFailed) as caught:
            await store.commit([Put("/x", b"no"), Delete("/a")], [Present("/a"), failing, Absent("/a")])
        assert caught.value.failed == failing
        assert caught.value.current_revision == current
        assert isinstance(caught.value, StaleRevision)
        assert await store.get("/x") is None
        assert await store.get("/a") == Entry("/a", b"2", second)
    assert await store.commit([]) == second


async def test_a_commit_whose_preconditions_hold_goes_through(store: Store) -> None:
    revision = await store.commit([Put("/a", b"1")], [Absent("/a"), Absent("/b")])
    lease = await store.grant("leader", "me", 10)
    assert lease is not None
    await store.commit(
        [Put("/a", b"2")], [AtRevision("/a", revision), Present("/a"), Absent("/b"), LeaseHeld("leader", lease.fence)]
    )


async def test_many_tasks_counting_by_compare_and_swap_lose_no_count(store: Store) -> None:
    await store.commit([Put("/count", b"0")])

    async def count(times: int) -> None:
        while times:
            entry = await store.get("/count")
            assert entry is not None
            try:
                await store.commit(
                    [Put("/count", b"%d" % (int(entry.value) + 1))], [AtRevision("/count", entry.revision)]
                )
            except PreconditionFailed:
                continue
            times -= 1

    await asyncio.gather(*(count(10) for _ in range(8)))
    entry = await store.get("/count")
    assert entry is not None and entry.value == b"80"


async def test_of_commits_made_at_once_each_fails_alone(store: Store) -> None:
    results = await asyncio.gather(
        *(store.commit([Put(f"/k{n % 10}", b"%d" % n)], [Absent(f"/k{n % 10}")]) for n in range(40)),
        return_exceptions=True,
    )
    made = [n for n, result in enumerate(results) if isinstance(result, int)]
    refused = [result for result in results if isinstance(result, PreconditionFailed)]
    # which of those made at once is first is the engine's to say
    assert sorted(n % 10 for n in made) == list(range(10)) and len(refused) == 30
    assert {entry.value for entry in (await store.list("/k")).entries} == {b"%d" % n for n in made}


async def test_the_limits_are_kept_and_nothing_over_them_is_written(store: Store) -> None:
    too_much = [
        [Put(f"/many/{n}", b"") for n in range(MAX_WRITES + 1)],
        [Put("/big", b"x" * (MAX_VALUE_BYTES + 1))],
        [Put(f"/sum/{n}", b"x" * 250_000) for n in range(4)],
    ]
    for writes in too_much:
        with pytest.raises(LimitExceeded):
            await store.commit(writes)
    with pytest.raises(LimitExceeded):
        await store.commit([], [Absent(f"/none/{n}") for n in range(MAX_PRECONDITIONS + 1)])
    assert (await store.list("")).entries == []


async def test_commits_up_to_the_limits_go_through(store: Store) -> None:
    await store.commit([Put(f"/many/{n}", b"") for n in range(MAX_WRITES)], [Absent(f"/n/{n}") for n in range(120)])
    await store.commit([Put("/big/0", b"x" * MAX_VALUE_BYTES), Put("/big/1", b"y" * MAX_VALUE_BYTES)])
    assert len((await store.list("/many/")).entries) == MAX_WRITES


@pytest.mark.parametrize("key", ["", "a", "a/b", "/nul\0", "/lone\ud800"])
async def test_a_key_that_cannot_be_stored_is_refused(store: Store, key: str) -> None:
    with pytest.raises(InvalidInput):
        await store.commit([Put("/good", b""), Put(key, b"")])
    with pytest.raises(InvalidInput):
        await store.commit([Put("/good", b"")], [Absent(key)])
    with pytest.raises(InvalidInput):
        await store.get(key)
    assert await store.get("/good") is None


@pytest.mark.parametrize("idempotency_key", ["x" * 257, "lone\ud800", "line\nbreak"])
async def test_an_idempotency_key_that_cannot_be_kept_is_refused(store: Store, idempotency_key: str) -> None:
    with pytest.raises(InvalidInput):
        await store.commit([Put("/good", b"")], idempotency_key=idempotency_key)
    assert await store.get("/good") is None


async def test_a_key_written_twice_in_one_commit_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput):
        await store.commit([Put("/a", b"1"), Delete("/a")])
    assert await store.get("/a") is None


async def test_a_repeated_idempotency_key_writes_nothing_and_returns_the_first_revision(store: Store) -> None:
    first = await store.commit([Put("/a", b"1")], [Absent("/a")], idempotency_key="once")
    await store.commit([Put("/a", b"2")])
    assert await store.commit([Put("/a", b"1")], [Absent("/a")], idempotency_key="once") == first
    entry = await store.get("/a")
    assert entry is not None and entry.value == b"2"


async def test_commits_sent_twice_at_once_with_one_key_are_made_once(store: Store) -> None:
    revisions = await asyncio.gather(
        *(store.commit([Put("/a", b"1")], [Absent("/a")], idempotency_key="once") for _ in range(5))
    )
    assert len(set(revisions)) == 1


async def test_a_refused_commit_does_not_use_up_its_idempotency_key(store: Store) -> None:
    with pytest.raises(PreconditionFailed):
        await store.commit([Put("/a", b"1")], [Present("/a")], idempotency_key="once")
    await store.commit([Put("/a", b"1")], idempotency_key="once")
    assert await store.get("/a") is not None


async def test_a_commit_that_changed_nothing_is_remembered_by_its_key_too(store: Store) -> None:
    await store.commit([Delete("/a")], idempotency_key="once")
    await store.commit([Put("/a", b"1")])
    await store.commit([Delete("/a")], idempotency_key="once")
    assert await store.get("/a") is not None


async def test_an_idempotency_key_is_kept_for_an_hour_and_not_for_ever(store: Store, clock: HandClock) -> None:
    clock.seconds += 1_800
    first = await store.commit([Put("/a", b"1")], idempotency_key="once")
    for _ in range(4):
        clock.seconds += 899
        assert await store.commit([Put("/a", b"2")], idempotency_key="once") == first
        await store.commit([Put("/tick", b"")])
    for _ in range(4):
        clock.seconds += 1_801
        await store.commit([Put("/tick", b"")])
    assert await store.commit([Put("/a", b"3")], idempotency_key="once") > first


async def test_the_idempotency_keys_that_are_kept_can_be_read(store: Store) -> None:
    for n in range(3):
        await store.commit([Put(f"/a{n}", b"1")], idempotency_key=f"key {n}/é")
    await store.commit([Put("/b", b"1")])
    assert sorted(await store.kept_keys()) == ["key 0/é", "key 1/é", "key 2/é"]
