from __future__ import annotations

import asyncio

import pytest
from hand_clock import HandClock

from weft.contracts.store import MAX_DIGEST_BYTES, Lease, LeaseHeld, LimitExceeded, PreconditionFailed, Put, Store
from weft.objects.errors import InvalidInput


async def test_a_lease_has_one_holder_until_it_lapses(store: Store, clock: HandClock) -> None:
    first = await store.grant("leader", "a", 10)
    assert first is not None and first.holder == "a" and first.remaining_seconds == 10
    clock.seconds += 9
    assert await store.grant("leader", "b", 10) is None
    clock.seconds += 1
    second = await store.grant("leader", "b", 10)
    assert second is not None and second.fence > first.fence


async def test_a_renewal_extends_the_lease_and_keeps_the_fence(store: Store, clock: HandClock) -> None:
    first = await store.grant("leader", "a", 10)
    clock.seconds += 8
    renewed = await store.grant("leader", "a", 10)
    assert first is not None and renewed is not None and renewed.fence == first.fence
    clock.seconds += 8
    assert await store.grant("leader", "b", 10) is None


async def test_a_lapsed_lease_taken_again_by_its_holder_has_a_new_fence(store: Store, clock: HandClock) -> None:
    first = await store.grant("leader", "a", 10)
    clock.seconds += 11
    again = await store.grant("leader", "a", 10)
    assert first is not None and again is not None and again.fence > first.fence


async def test_a_released_lease_is_free_at_once_and_only_its_holder_can_release_it(store: Store) -> None:
    await store.grant("leader", "a", 10)
    await store.release("leader", "b")
    assert await store.grant("leader", "b", 10) is None
    await store.release("leader", "a")
    await store.release("never-held", "a")
    assert await store.grant("leader", "b", 10) is not None


async def test_fences_grow_across_names(store: Store) -> None:
    fences = [lease.fence for n in range(2_100) if (lease := await store.grant(f"node/{n}", "x", 10))]
    assert len(fences) == 2_100 and fences == sorted(set(fences))


async def test_only_live_leases_under_the_prefix_are_listed(store: Store, clock: HandClock) -> None:
    await store.grant("node/b", "x", 20)
    await store.grant("node/a", "x", 10)
    await store.grant("leader", "x", 20)
    assert [lease.name for lease in await store.leases("node/")] == ["node/a", "node/b"]
    clock.seconds += 15
    [left] = await store.leases("node/")
    assert isinstance(left, Lease) and left.name == "node/b" and left.remaining_seconds == 5


async def test_a_commit_under_a_lease_stops_when_the_lease_is_lost(store: Store, clock: HandClock) -> None:
    lease = await store.grant("leader", "a", 10)
    assert lease is not None
    mine = LeaseHeld("leader", lease.fence)
    await store.commit([Put("/a", b"1")], [mine])
    with pytest.raises(PreconditionFailed):
        await store.commit([Put("/a", b"2")], [LeaseHeld("leader", lease.fence + 1)])
    clock.seconds += 10
    with pytest.raises(PreconditionFailed):
        await store.commit([Put("/a", b"2")], [mine])
    await store.grant("leader", "b", 10)
    with pytest.raises(PreconditionFailed) as caught:
        await store.commit([Put("/a", b"2")], [mine])
    assert caught.value.failed == mine
    entry = await store.get("/a")
    assert entry is not None and entry.value == b"1"


async def test_a_lease_says_what_its_holder_said_last(store: Store, clock: HandClock) -> None:
    digest = bytes(range(256))
    granted = await store.grant("node/a", "x", 10, digest)
    await store.grant("node/b", "x", 10)
    assert granted is not None and granted.digest == digest
    assert [lease.digest for lease in await store.leases("node/", digests=True)] == [digest, b""]
    assert [lease.digest for lease in await store.leases("node/")] == [b"", b""]
    renewed = await store.grant("node/a", "x", 10, b"newer")
    assert renewed is not None and renewed.fence == granted.fence
    assert await store.grant("node/a", "y", 10, b"stranger's") is None
    assert [lease.digest for lease in await store.leases("node/a", digests=True)] == [b"newer"]
    await store.grant("node/a", "x", 10)
    assert [lease.digest for lease in await store.leases("node/a", digests=True)] == [b""]


async def test_a_digest_has_a_largest_size(store: Store) -> None:
    await store.grant("node/a", "x", 10, bytes(MAX_DIGEST_BYTES))
    with pytest.raises(LimitExceeded):
        await store.grant("node/a", "x", 10, bytes(MAX_DIGEST_BYTES + 1))
    [kept] = await store.leases("node/a", digests=True)
    assert len(kept.digest) == MAX_DIGEST_BYTES


async def test_of_many_who_want_a_lease_at_once_one_gets_it(store: Store) -> None:
    leases = await asyncio.gather(*(store.grant("leader", f"holder-{n}", 10) for n in range(20)))
    assert len([lease for lease in leases if lease is not None]) == 1


@pytest.mark.parametrize("ttl_seconds", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_lease_needs_a_finite_time_to_live(store: Store, ttl_seconds: float) -> None:
    with pytest.raises(InvalidInput):
        await store.grant("leader", "a", ttl_seconds)
