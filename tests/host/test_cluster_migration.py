"""A guest goes to a node of another cluster, between two agents that have different CAs, uids and networks; its snapshots stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_migration_lab import Moving, change, linked

from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot
from weft.objects.identity import short_id

pytestmark = pytest.mark.host
READ = "echo 3 > /proc/sys/vm/drop_caches; (cat /root/data; dd if=/dev/vdb bs=64k count=70) 2>/dev/null | sha256sum"


class Guest(Moving):
    async def take(self, name: str) -> None:
        self.web = change(self.web, snapshots=[AllocatedSnapshot(uid=name, name=name)])
        self.here.put(self.web)
        await self.here.until(self.web, lambda r: any(one.uid == name and one.phase == "ready" for one in r.snapshots))
        self.web = change(self.web, snapshots=[])
        self.here.put(self.web)

    def check_alone(self) -> None:
        assert len(self.here.guests()) == 1 and self.there.guests() == []
        kept = Path(self.there.host.state_dir, "volumes", "layers")
        left = [path for path in Path(self.there.host.state_dir, "volumes").rglob("*") if path.is_file()]
        assert [path for path in left if path.name != ".lock" and kept not in path.parents] == []


async def test_a_guest_goes_to_another_cluster_whole_and_what_breaks_before_leaves_it_where_it_was(
    tiny: Path, verifier: bytes
) -> None:
    async with linked(tiny, apart=True) as pair:
        web = pair.allocate(pair.here)
        pair.here.put(web)
        await pair.here.until(web, lambda r: r.state == "running" and r.ready)
        guest = Guest(pair, web)
        write = "cd /dev; dd if=urandom of=/root/data bs=64k count=137; dd if=urandom of=vdb bs=64k count=48; sync"
        await guest.run("sh", "-c", write)
        await guest.take("kept")  # what its disks stand on from now on
        await guest.run("sh", "-c", "dd if=/dev/urandom of=/dev/vdb bs=64k seek=32 count=38; sync")
        await guest.begin_writing(verifier)
        whole, boot_id = await guest.run("sh", "-c", READ), pair.here.report(guest.web).boot_id

        source, target = await guest.begin(bytes_per_second=4 << 20)
        await pair.here.until(source, lambda r: r.migration is not None and r.migration.sent_bytes > 1 << 20)
        await guest.break_off(source, target)
        await guest.break_by_killing("target agent")

        source, target = await guest.begin()
        await guest.finish(source, target)
        await guest.look(after=await guest.look())
        assert await guest.run("sh", "-c", READ) == whole
        assert guest.here.report(guest.web).boot_id == boot_id

        source_pool, target_pool = DirectoryVolumes(pair.here.host), DirectoryVolumes(pair.there.host)
        assert [one.uid for one in await source_pool.layers.list_kept()] == ["kept"]
        assert await target_pool.layers.list_kept() == []
        assert await target_pool.layers.list_layers(short_id(guest.web.uid)) == []
        await pair.remove(guest.web, guest.here)
