"""A disk goes to another pool of its node with the layers that it stands on, and with its snapshots."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from agent_migration_lab import Pair, change
from guest_lab import GuestLab
from test_disk_relocation import READ, VOLUME, Guest

from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.allocation import LOCAL, ROOT
from weft.objects.identity import short_id

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
SNAPSHOT = short_id("first")


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


class Layered(Guest):
    def pool_of(self, pool: str) -> DirectoryVolumes:
        return DirectoryVolumes(self.node.host, pool, None if pool == LOCAL else str(self.folders[pool].parent))

    def id_of(self, disk: str) -> str:
        return short_id(self.web.uid) if disk == ROOT else disk

    async def turn(self, desired: str) -> None:
        self.web = change(self.web, desired=desired)
        self.node.put(self.web)
        state = "running" if desired == "run" else "stopped"
        await self.node.until(self.web, lambda r: r.state == state and (r.ready or state == "stopped"))

    async def snapshot(self) -> None:
        """Of the stopped guest, all of whose disks are in the local pool."""
        pool, disks = self.pool_of(LOCAL), {}
        for disk in (ROOT, VOLUME):
            await pool.layers.begin_layer(self.id_of(disk), short_id(f"first/{disk}"))
            await pool.layers.finish_layer(self.id_of(disk), short_id(f"first/{disk}"))
            disks[disk] = KeptDisk((short_id(f"first/{disk}"),), 1 << 30)
        await pool.layers.keep(KeptSnapshot(SNAPSHOT, "first", disks, workload="uid-of-web"))
        Path(pool.layers.memory_path(SNAPSHOT)).write_bytes(b"memory")

    async def list_kept(self) -> dict[str, list[str]]:
        """By pool, the disks of the snapshot that are kept there, and whether its memory is."""
        found = {}
        for name in (LOCAL, "san"):
            pool = self.pool_of(name)
            for kept in await pool.layers.list_kept():
                memory = ["memory"] if Path(pool.layers.memory_path(SNAPSHOT)).exists() else []
                found[name] = [*sorted(kept.disks), *memory]
                for disk in kept.disks.values():
                    for layer in disk.layers:
                        subprocess.run(
                            ["qemu-img", "check", self.folders[name] / "layers" / f"{layer}.qcow2"], check=True
                        )
        return found


@pytest.mark.long
async def test_layers_and_snapshots_go_with_a_disk_while_its_guest_runs_and_while_it_does_not(pair: Pair) -> None:
    web = pair.allocate(pair.here)
    pair.here.put(web)
    await pair.here.until(web, lambda r: r.state == "running" and r.ready)
    guest = Layered(pair, web)
    await guest.run(
        "sh", "-c", "cd /dev; dd if=urandom of=/root/data bs=64k count=46; dd if=urandom of=vdb bs=64k count=16; sync"
    )
    await guest.turn("stop")
    await guest.snapshot()
    await guest.turn("run")
    await guest.run("sh", "-c", "dd if=/dev/urandom of=/dev/vdb bs=64k seek=16 count=16 conv=fsync")
    whole = await guest.run("sh", "-c", READ)
    for disk in (ROOT, VOLUME):
        guest.begin(disk, "san")
        assert (await guest.until("takenOver")).pause_ms > 0
        guest.finish(disk, "san")
        assert await guest.run("sh", "-c", READ) == whole
        if disk == ROOT:
            assert await guest.list_kept() == {LOCAL: [VOLUME], "san": [ROOT, "memory"]}
    assert await guest.list_kept() == {"san": [ROOT, VOLUME, "memory"]}
    await guest.turn("stop")
    for disk in (ROOT, VOLUME):
        guest.begin(disk, LOCAL)
        await guest.until("takenOver")
        guest.finish(disk, LOCAL)
    await guest.turn("run")
    assert await guest.run("sh", "-c", READ) == whole
    assert await guest.list_kept() == {LOCAL: [ROOT, VOLUME, "memory"]}
    assert len(await guest.pool_of(LOCAL).layers.list_layers(guest.id_of(ROOT))) == 1
