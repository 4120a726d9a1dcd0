"""A disk goes to another pool of its node while its guest runs, or stands still; agents and machines are killed on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from agent_migration_lab import Pair, Verifying, change
from guest_lab import GuestLab

from weft.kinds.allocation import LOCAL, ROOT, AllocatedVolume
from weft.kinds.fields.allocated_migration import AllocatedDiskRelocation
from weft.objects.envelope import Envelope
from weft.objects.identity import short_id

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
MIB = 1 << 20
VOLUME = "volume-of-web"
READ = "echo 3 > /proc/sys/vm/drop_caches; (cat /root/data; dd if=/dev/vdb bs=64k count=32) 2>/dev/null | sha256sum"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    labs = GuestLab(tiny), GuestLab(tiny)
    pair = Pair(*labs)
    pair.here.pool = tmp_path_factory.mktemp("san")
    try:
        await pair.here.start()
        yield pair
    finally:
        await pair.close()
        for lab in labs:
            lab.close()


class Guest(Verifying):
    """One that stays on its node; ``pools`` says where its disks are by the server's word."""

    def __init__(self, pair: Pair, web: Envelope) -> None:
        self.node, self.web, self.migrations = pair.here, web, 0
        assert pair.here.pool is not None
        self.folders = {LOCAL: Path(pair.here.host.state_dir) / "volumes", "san": pair.here.pool / "volumes"}
        self.pools = {ROOT: LOCAL, VOLUME: LOCAL}

    def storage(self, pool: str) -> str:
        return (self.folders[pool].parent / "weft-pool-id").read_text().strip()

    def other_pool(self) -> str:
        """Where its root disk isn't."""
        return "san" if self.pools[ROOT] == LOCAL else LOCAL

    def begin(self, disk: str, pool: str, **fields: Any) -> None:
        self.migrations += 1
        order = AllocatedDiskRelocation(
            key=f"s{self.migrations}", disk=disk, pool=pool, pool_id=self.storage(pool), **fields
        )
        self.web = change(self.web, storage=order)
        self.node.put(self.web)

    def cancel(self, disk: str, pool: str) -> None:
        order = AllocatedDiskRelocation(
            key=f"s{self.migrations}", disk=disk, pool=pool, pool_id=self.storage(pool), cancel=True
        )
        self.web = change(self.web, storage=order)
        self.node.put(self.web)

    async def until(self, *phases: str) -> Any:
        key = f"s{self.migrations}"
        report = await self.node.until(
            self.web,
            lambda r: r.migration is not None and r.migration.key == key and r.migration.phase in phases,
            failing="failed" in phases,
        )
        return report.migration

    def finish(self, disk: str, pool: str) -> None:
        """The server has heard of it."""
        self.pools[disk] = pool
        self.settle()

    def settle(self) -> None:
        root = {"pool": self.pools[ROOT], "pool_id": self.storage(self.pools[ROOT])}
        at = self.pools[VOLUME]
        volume = AllocatedVolume(name="data", uid=VOLUME, size=64 * MIB, pool=at, pool_id=self.storage(at))
        self.web = change(self.web, storage=None, volumes=[volume], **root)
        self.node.put(self.web)

    def check_files(self) -> None:
        """Each disk is in its pool, and nothing else is anywhere."""
        names = {ROOT: f"{short_id(self.web.uid)}.qcow2", VOLUME: f"{VOLUME}.qcow2"}
        for pool, folder in self.folders.items():
            there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
            assert there == sorted(names[disk] for disk, at in self.pools.items() if at == pool), pool

    async def run(self, *argv: str, stdin: bytes = b"") -> str:
        return await self.node.run(self.web, *argv, stdin=stdin)

    async def begin_writing(self) -> None:
        await self.run("sh", "-c", "/root/verifier 4 2000 /root/counter /dev/shm/verdict >/dev/null 2>&1 &")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(pair: Pair, verifier: bytes) -> Guest:
    web = pair.allocate(pair.here)
    pair.here.put(web)
    await pair.here.until(web, lambda r: r.state == "running" and r.ready)
    guest = Guest(pair, web)
    await guest.run("sh", "-c", "cat > /root/verifier; chmod +x /root/verifier", stdin=verifier)
    await guest.run(
        "sh",
        "-c",
        "cd /dev; dd if=urandom of=/root/data bs=64k count=46; dd if=urandom of=vdb bs=64k count=31 conv=fsync; sync",
    )
    await guest.begin_writing()
    return guest


async def test_each_disk_goes_and_comes_back_while_the_guest_runs_on(guest: Guest) -> None:
    whole, seen, boot_id = await guest.run("sh", "-c", READ), await guest.look(), guest.node.report(guest.web).boot_id
    for disk, pool in ((ROOT, "san"), (VOLUME, "san"), (ROOT, LOCAL), (VOLUME, LOCAL)):
        guest.begin(disk, pool)
        told = await guest.until("takenOver")
        assert told.pause_ms > 0
        guest.finish(disk, pool)
        guest.check_files()
        seen = await guest.look(after=seen + 1)
        assert await guest.run("sh", "-c", READ) == whole
    assert guest.node.report(guest.web).boot_id == boot_id


async def test_it_is_broken_off_as_asked_and_the_agent_may_die_meanwhile(guest: Guest) -> None:
    seen = await guest.look()
    guest.begin(ROOT, "san", bytes_per_second=MIB // 2)
    await guest.until("migrating")
    await guest.node.kill()
    await guest.node.start()
    await guest.until("migrating", "preparing")
    guest.cancel(ROOT, "san")
    assert (await guest.until("abandoned")).reason == "cancelled"
    guest.settle()
    guest.check_files()
    await guest.look(after=seen + 1)


async def test_an_agent_that_dies_on_the_way_goes_on_and_one_that_dies_after_the_switch_says_so(guest: Guest) -> None:
    seen = await guest.look()
    guest.begin(ROOT, "san", bytes_per_second=2 * MIB)
    await guest.until("migrating")
    await guest.node.kill()
    await guest.node.start("migration.disk_relocation:DiskRelocator._clear:before")
    await guest.node.await_death()
    await guest.node.start()
    await guest.until("takenOver")
    guest.finish(ROOT, "san")
    guest.check_files()
    await guest.look(after=seen + 1)


async def test_a_disk_is_not_lost_by_the_word_of_a_server_that_was_restored_from_before_it_moved(guest: Guest) -> None:
    whole, seen = await guest.run("sh", "-c", READ), await guest.look()
    if guest.pools[ROOT] == LOCAL:
        guest.begin(ROOT, "san")
        await guest.until("takenOver")
        guest.finish(ROOT, "san")
    await guest.node.until(guest.web, lambda r: r.migration is None)
    guest.pools[ROOT] = LOCAL  # by that server's word
    guest.settle()
    guest.begin(ROOT, "san")
    await guest.until("takenOver")
    guest.finish(ROOT, "san")
    guest.check_files()
    guest.begin(ROOT, "san")
    await guest.until("takenOver")
    guest.settle()
    guest.check_files()
    await guest.look(after=seen + 1)
    assert await guest.run("sh", "-c", READ) == whole


async def test_a_disk_that_another_pool_has_is_not_made_anew(guest: Guest) -> None:
    whole = await guest.run("sh", "-c", READ)
    guest.begin(VOLUME, "san")
    await guest.until("takenOver")
    guest.finish(VOLUME, "san")
    await guest.node.until(guest.web, lambda r: r.migration is None)
    guest.pools[VOLUME] = LOCAL  # by the word of a server that was restored from before
    guest.node.kill_guest(guest.web)
    guest.settle()
    report = await guest.node.until(guest.web, lambda r: r.reason == "otherPool", failing=True)
    assert "its volume data is in storage pool san" in report.message and not report.ready
    guest.begin(VOLUME, "san")
    await guest.until("takenOver")
    guest.finish(VOLUME, "san")
    await guest.node.until(guest.web, lambda r: r.state == "running" and r.ready, failing=True)
    guest.check_files()
    assert await guest.run("sh", "-c", READ) == whole


@pytest.mark.long
async def test_a_machine_that_dies_on_the_way_starts_again_on_the_disk_that_it_had(guest: Guest) -> None:
    whole = await guest.run("sh", "-c", READ)
    guest.begin(ROOT, guest.other_pool(), bytes_per_second=MIB // 2)
    await guest.until("migrating")
    guest.node.kill_guest(guest.web)
    assert "ended" in (await guest.until("failed")).message
    guest.settle()
    await guest.node.until(guest.web, lambda r: r.state == "running" and r.ready, failing=True)
    guest.check_files()
    assert await guest.run("sh", "-c", READ) == whole


@pytest.mark.long
async def test_agent_and_machine_that_die_after_the_switch_leave_the_new_disk(guest: Guest) -> None:
    whole = await guest.run("sh", "-c", READ)
    await guest.node.kill()
    await guest.node.start("migration.disk_relocation:DiskRelocator._clear:before")
    pool = guest.other_pool()
    guest.begin(ROOT, pool)
    await guest.node.await_death()
    guest.node.kill_guest(guest.web)
    await guest.node.start()
    await guest.until("takenOver")
    guest.finish(ROOT, pool)
    await guest.node.until(guest.web, lambda r: r.state == "running" and r.ready, failing=True)
    guest.check_files()
    assert await guest.run("sh", "-c", READ) == whole


async def test_a_stopped_guests_disk_is_copied_and_a_deleted_one_leaves_only_its_volume(guest: Guest) -> None:
    if guest.pools[ROOT] == "san":  # the tests before may have left it there
        guest.begin(ROOT, LOCAL)
        await guest.until("takenOver")
        guest.finish(ROOT, LOCAL)
    whole = await guest.run("sh", "-c", READ)
    guest.web = change(guest.web, desired="stop")
    guest.node.put(guest.web)
    await guest.node.until(guest.web, lambda r: r.state == "stopped")
    for disk in (ROOT, VOLUME):
        guest.begin(disk, "san")
        assert (await guest.until("takenOver")).pause_ms == 0
        guest.finish(disk, "san")
        guest.check_files()
    guest.web = change(guest.web, desired="run")
    guest.node.put(guest.web)
    await guest.node.until(guest.web, lambda r: r.state == "running" and r.ready)
    assert await guest.run("sh", "-c", READ) == whole
    guest.begin(ROOT, LOCAL, bytes_per_second=MIB // 2)
    await guest.until("migrating")
    guest.node.put(msgspec.structs.replace(change(guest.web, desired="stop"), deleting_since=1.0))
    await guest.node.until(guest.web, lambda r: r.state == "released", failing=True)
    assert not list(guest.folders[LOCAL].iterdir())
    assert [path.name for path in guest.folders["san"].iterdir()] == [f"{VOLUME}.qcow2"]
