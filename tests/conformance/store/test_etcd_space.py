"""An etcd that has used up its quota is given space again by those who use it, one member after the other."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from etcd_server import PROGRAM, EtcdServer
from test_etcd_bad_days import once_it_answers

from weft.contracts.clock import SystemClock
from weft.contracts.store import Put, StoreFull
from weft.store.etcd import EtcdStore
from weft.store.etcd.space import Compact, Defragment, EndAlarm, HandOver, MemberUse, describe_use, plan_step

QUOTA, EACH = 16 << 20, 200_000
needs_etcd = pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)")


class Hurried(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


def use(member: int, size: float, used: float, *, full: bool = False) -> MemberUse:
    """Shares of the quota."""
    return MemberUse(f"m{member}", member, 1, round(size * QUOTA), round(used * QUOTA), full)


def test_one_member_after_the_other_is_made_smaller_and_the_leader_gives_the_lead_away_first() -> None:
    large, small = (0.5, 0.1), (0.1, 0.1)
    for own, others, step in (
        (large, [large, large], Defragment("m2")),
        (large, [small, large], Defragment("m3")),
        (large, [small, small], HandOver(2)),
        (large, [], Defragment("m1")),
        (small, [small, small], None),
        ((0.2, 0.01), [], None),  # too small to be worth a pause
        ((0.85, 0.7), [], Defragment("m1")),
        ((0.85, 0.8), [], None),
    ):
        there = [use(n, *one) for n, one in enumerate(others, 2)]
        assert plan_step(use(1, *own), there, QUOTA, 1000) == step
        if there:
            assert plan_step(use(1, *own), [*there[1:], None], QUOTA, 1000) is None  # never while one is away


def test_history_is_forgotten_first_and_the_alarm_ends_when_all_have_room() -> None:
    assert plan_step(use(1, 0.7, 0.6), [], QUOTA) == Compact(1000)
    assert plan_step(use(1, 0.7, 0.6), [], QUOTA, 1000) is None
    full, other = use(1, 1, 1, full=True), use(2, 1, 0.1, full=True)
    assert plan_step(full, [other], QUOTA, 1000) == Compact(0)
    assert plan_step(full, [other, None], QUOTA, 0) == Defragment("m2")  # nothing can be written anyway
    assert plan_step(full, [use(2, 0.1, 0.1, full=True)], QUOTA, 0) == HandOver(2)
    assert plan_step(full, [use(2, 0.1, 0.1, full=True)], QUOTA, 0, {"m1"}) is None  # its objects need it all
    assert plan_step(use(1, 0.5, 0.4, full=True), [use(2, 0.1, 0.1, full=True)], QUOTA, 0) == EndAlarm()
    assert "takes no writes" in describe_use(full, QUOTA).problem
    assert "--store-quota" in describe_use(use(1, 0.9, 0.9), QUOTA).problem
    assert not describe_use(use(1, 0.9, 0.5), QUOTA).problem
    assert describe_use(use(1, 1, 1, full=True), 0).problem.startswith("etcd has used up its quota")


@needs_etcd
async def test_three_members_that_are_full_take_writes_again(tmp_path: Path) -> None:
    members = [EtcdServer(tmp_path / f"m{n}", f"m{n}", ("--quota-backend-bytes", str(QUOTA))) for n in range(3)]
    noted: list[str] = []

    async def note(reason: str, message: str) -> None:
        noted.append(reason)

    async with AsyncExitStack() as stack:
        for member in members:
            member.members = {one.name: one.peer for one in members}
            member.start()
            stack.callback(member.end)
        stores = [EtcdStore([one.endpoint for one in members], Hurried(), timeout_seconds=20) for _ in members]
        for store in stores:
            await once_it_answers(store.open)
            stack.push_async_callback(store.close)
        with pytest.raises(StoreFull, match="used up its quota"):
            for n in range(1000):
                await stores[0].commit([Put(f"/fill/{n % 8}", n.to_bytes(2) * (EACH // 2))])
                await asyncio.sleep(0.01)  # etcd looks at its size every 100 ms only
        # they are kept from now on: a test could not see them full otherwise
        keeping = [
            asyncio.create_task(store.space.keep(member.endpoint, QUOTA, note))
            for store, member in zip(stores, members, strict=True)
        ]
        async with asyncio.timeout(60):
            while True:
                with suppress(StoreFull):
                    await stores[1].commit([Put("/after", b"1")])
                    break
                await asyncio.sleep(0.1)
            while any(one.space.use is None or one.space.use.size > QUOTA // 2 for one in stores):
                await asyncio.sleep(0.1)
        assert [entry.value[:2] for entry in (await stores[2].list("/fill/")).entries]
        assert noted[0] == "StoreFull" and noted[-1] == "StoreHasSpace"
        for task in keeping:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    for member in members:
        [kept] = member.data.rglob("db")
        assert kept.stat().st_size < QUOTA // 2
