"""A guest whose disks stand on layers goes from node to node, with its snapshots and their memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from agent_migration_lab import Moving, Node, Pair, change, linked
from tests.long import mark_long

from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.allocation import ROOT, AllocationSpec
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot
from weft.objects.envelope import decode_part
from weft.objects.identity import short_id

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
VOLUME, READ = "volume-of-web", "(cat /root/data; dd if=/dev/vdb bs=64k count=70) 2>/dev/null | sha256sum"


@pytest_asyncio.fixture(loop_scope="module")
async def pair(tiny: Path) -> AsyncIterator[Pair]:
    async with linked(tiny) as pair:
        yield pair


class Guest(Moving):
    async def stop(self) -> None:
        self.web = change(self.web, desired="stop")
        self.here.put(self.web)
        await self.here.until(self.web, lambda r: r.state == "stopped")

    async def start(self) -> None:
        self.web = change(self.web, desired="run")
        self.here.put(self.web)
        await self.here.until(self.web, lambda r: r.state == "running" and r.ready)

    async def snapshot(self, name: str, memory: bytes) -> None:
        """Of the stopped guest."""
        pool, disks = open_pool(self.here), {}
        for disk, id_ in ((ROOT, short_id(self.web.uid)), (VOLUME, VOLUME)):
            layer = short_id(f"{name}/{disk}")
            await pool.layers.begin_layer(id_, layer)
            await pool.layers.finish_layer(id_, layer)
            layers = tuple(one.id for one in await pool.layers.list_layers(id_))
            facts = await pool.inspect(id_)
            assert facts is not None
            disks[disk] = KeptDisk(layers, facts.size_bytes)
        await pool.layers.keep(KeptSnapshot(short_id(name), name, disks, workload="uid-of-web"))
        Path(pool.layers.memory_path(short_id(name))).write_bytes(memory)

    async def take(self, name: str) -> None:
        """Of the running guest, with its memory, by its agent."""
        self.web = change(self.web, snapshots=[AllocatedSnapshot(uid=name, name=name, memory=True)])
        self.here.put(self.web)
        await self.here.until(self.web, lambda r: any(one.uid == name and one.phase == "ready" for one in r.snapshots))
        self.web = change(self.web, snapshots=[])
        self.here.put(self.web)

    async def break_among_layers(self, **how: Any) -> None:
        """The target's agent dies while layers come: the guest and its snapshots stay, and nothing is left there."""
        source, target = await self.begin(bytes_per_second=1 << 20, **how)
        await self.here.until(source, lambda r: r.migration is not None and r.migration.sent_bytes > 1 << 20)
        assert any(Path(self.there.host.state_dir, "volumes", "layers").glob("*.held")), "layers are coming"
        await self.there.kill()
        await self.there.start()
        await self.here.until_phase(source, "failed")
        if not how:
            await self.break_off(source, target)
            return
        self.there.put(change(target, desired="stop"))
        await self.there.until_phase(target, "abandoned", "failed")
        await self.pair.remove(target, self.there)
        migration = decode_part(source.spec, AllocationSpec).migration
        assert migration is not None
        self.here.put(change(source, migration=msgspec.structs.replace(migration, never_ran=True)))
        await self.here.until(
            source, lambda r: r.migration is not None and r.migration.phase == "preparing", failing=True
        )
        left = [path for path in Path(self.there.host.state_dir, "volumes").rglob("*") if path.is_file()]
        assert [path.name for path in left if path.name != ".lock"] == []

    def check_alone(self) -> None:
        assert len(self.here.guests()) == 1 and self.there.guests() == []
        left = [path for path in Path(self.there.host.state_dir, "volumes").rglob("*") if path.is_file()]
        assert [path.name for path in left if path.name != ".lock"] == []

    async def find_kept(self) -> dict[str, str]:
        """The snapshots here, all whole, by uid, and what their memory is."""
        pool, found = open_pool(self.here), {}
        for one in await pool.layers.list_kept():
            assert sorted(one.disks) == sorted((ROOT, VOLUME))
            memory = Path(pool.layers.memory_path(one.id)).read_bytes()
            found[one.uid] = f"{len(memory)} {hashlib.sha256(memory).hexdigest()}"
            for disk in one.disks.values():
                folder = Path(pool.layers.memory_path("x")).parent
                assert all((folder / f"{layer}.qcow2").exists() for layer in disk.layers)
        return found


def open_pool(node: Node) -> DirectoryVolumes:
    return DirectoryVolumes(node.host)


@pytest.mark.parametrize("killed", mark_long((False, True), True))
async def test_a_guest_goes_there_stopped_and_back_running_with_its_layers_and_snapshots_also_after_a_kill(
    pair: Pair, killed: bool
) -> None:
    web = pair.allocate(pair.here)
    pair.here.put(web)
    await pair.here.until(web, lambda r: r.state == "running" and r.ready)
    guest = Guest(pair, web)
    await guest.run(
        "sh",
        "-c",
        "cd /dev; dd if=urandom of=/root/data bs=64k count=137; dd if=urandom of=vdb bs=64k count=32; sync",
    )
    await guest.stop()
    await guest.snapshot("first", b"first" * 1000)
    await guest.start()
    await guest.run("sh", "-c", "dd if=/dev/urandom of=/dev/vdb bs=64k seek=32 count=16; sync")
    await guest.take("second")
    kept = await guest.find_kept()
    assert sorted(kept) == ["first", "second"]
    await guest.run("sh", "-c", "dd if=/dev/urandom of=/dev/vdb bs=64k seek=48 count=16; sync")
    whole = await guest.run("sh", "-c", READ)
    drop = "echo 3 > /proc/sys/vm/drop_caches; "
    for how in ({"mode": "cold"}, {}):
        if killed:
            await guest.break_among_layers(**how)
            assert await guest.find_kept() == kept
        source, target = await guest.begin(**how)
        await guest.finish(source, target)
        assert await guest.run("sh", "-c", drop + READ) == whole
        assert await guest.find_kept() == kept
    pool, root = open_pool(guest.here), short_id(guest.web.uid)
    assert len(await pool.layers.list_layers(root)) == len(await pool.layers.list_layers(VOLUME)) == 2
    await guest.pair.remove(guest.web, guest.here)
    assert len(await pool.layers.list_kept()) == 2, "snapshots outlive their VM"
