"""An etcd that has used up its quota is given space again by those who use it, one member after the other."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from etcd_server import PROGRAM, EtcdServer
from test_etcd_bad_days import once_it_answers

from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete, Put, StoreFull
from weft.objects.errors import StoreUnavailable
from weft.store.etcd import EtcdStore
from weft.store.etcd.space import Compact, Defragment, EndAlarm, HandOver, MemberUse, describe_use, plan_step

QUOTA, LARGE, EACH = 16 << 20, 128 << 20, 200_000
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


def test_a_member_whose_disk_has_no_space_for_a_second_file_is_not_defragmented() -> None:
    tight, wide = ({f"m{n}": free for n in (1, 2, 3)} for free in (8 << 20, 1 << 40))
    sizes = use(1, 1, 0.1, full=True), [use(2, 1, 0.1, full=True), use(3, 1, 0.1, full=True)]
    assert plan_step(*sizes, QUOTA, 0, free=tight) is None
    assert plan_step(*sizes, QUOTA, 0, free={**tight, "m3": 1 << 40}) == Defragment("m3")
    assert plan_step(*sizes, QUOTA, 0, free={**wide, "m3": 0}) == plan_step(*sizes, QUOTA, 0) == Defragment("m2")
    assert "disk" in describe_use(use(1, 0.1, 0.1), QUOTA, 8 << 20).problem
    assert not describe_use(use(1, 0.1, 0.1), QUOTA, 1 << 40).problem


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def ignore(reason: str, message: str) -> None: ...


async def find_no_others() -> dict[str, int]:
    return {}


async def make_too_large(member: EtcdServer, stack: AsyncExitStack) -> EtcdStore:
    """A store whose file is worth a defragmentation, for which its disk has no space. Its log stays in one file."""
    stack.enter_context(member)
    store = EtcdStore([member.endpoint], Hurried(), timeout_seconds=5)
    await once_it_answers(store.open)
    stack.push_async_callback(store.close)
    for n in range(250):
        await store.commit([Put(f"/fill/{n}", bytes(EACH))])
    for n in range(190):
        await store.commit([Delete(f"/fill/{n}")])
    await store.compact(0)
    await asyncio.sleep(1)  # etcd writes its file later
    disk = member.folder.parent
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - (8 << 20)))
    return store


@needs_etcd
@pytest.mark.host
async def test_a_member_lives_on_a_disk_without_space_for_its_copy_and_is_made_smaller_once_there_is(
    small_disk: Path,
) -> None:
    """etcd 3.4 panics at the first write after a defragmentation that found no space."""
    member = EtcdServer(small_disk / "m", options=("--quota-backend-bytes", str(LARGE)))
    async with AsyncExitStack() as stack:
        store = await make_too_large(member, stack)
        [file] = member.data.rglob("db")
        keeping = asyncio.create_task(store.space.keep(member.endpoint, LARGE, ignore, small_disk, find_no_others))
        stack.callback(keeping.cancel)
        for n in range(10):
            await store.commit([Put(f"/small/{n}", b"")])
            await asyncio.sleep(0.1)
        assert store.space.use is not None and "its disk has only" in store.space.use.problem
        assert file.stat().st_size > 40 << 20
        (small_disk / "ballast").unlink()
        async with asyncio.timeout(20):
            while file.stat().st_size > 16 << 20 or store.space.use.problem:
                await asyncio.sleep(0.1)
        await store.commit([Put("/after", b"")])
        assert member.is_running


@needs_etcd
@pytest.mark.host
async def test_a_member_whose_defragmentation_failed_is_left_alone_for_a_while(
    small_disk: Path, tmp_path: Path
) -> None:
    member = EtcdServer(small_disk / "m", options=("--quota-backend-bytes", str(LARGE)))
    async with AsyncExitStack() as stack:
        store = await make_too_large(member, stack)
        # another disk is taken for the member's, and that has space
        keeping = asyncio.create_task(store.space.keep(member.endpoint, LARGE, ignore, tmp_path, find_no_others))
        stack.callback(keeping.cancel)
        async with asyncio.timeout(20):
            while member.is_running:
                with suppress(StoreUnavailable):
                    await store.commit([Put("/small", b"")])
                await asyncio.sleep(0.1)
        member.start()
        await once_it_answers(lambda: store.get("/small"))
        for n in range(20):  # looks at the space
            await store.commit([Put(f"/small/{n}", b"")])
            await asyncio.sleep(0.1)
        assert member.is_running


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
            asyncio.create_task(store.space.keep(member.endpoint, QUOTA, note, tmp_path, find_no_others))
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
