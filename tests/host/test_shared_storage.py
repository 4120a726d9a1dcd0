"""Guests whose disks lie where both nodes see them move without them; whoever is killed leaves one guest and one copy, whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from agent_migration_lab import VICTIMS, Moving, Pair, change, linked
from tests.long import mark_long

from weft.kinds.allocation import ROOT, AllocatedVolume, AllocationSpec
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import short_id

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]
MIB = 1 << 20
VOLUME = "volume-of-web"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with linked(tiny, tmp_path_factory.mktemp("san")) as pair:
        yield pair


class Guest(Moving):
    shared = (ROOT, VOLUME)

    def __init__(self, pair: Pair, web: Envelope) -> None:
        super().__init__(pair, web)
        assert pair.here.pool is not None
        self.files = pair.here.pool / "volumes"

    def check_alone(self) -> None:
        """One guest, one root disk under one name, one volume, and nothing beside."""
        assert len(self.here.guests()) == 1 and self.there.guests() == []
        names = sorted(path.name for path in self.files.iterdir())
        assert names == sorted([f"{short_id(self.web.uid)}.qcow2", f"{VOLUME}.qcow2"])
        for node in (self.here, self.there):
            assert not list(Path(node.host.state_dir).glob("volumes/*"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(pair: Pair, verifier: bytes) -> Guest:
    volume = AllocatedVolume(name="data", uid=VOLUME, size=64 * MIB, pool="san")
    web = pair.allocate(pair.here, pool="san", volumes=[volume])
    pair.here.put(web)
    await pair.here.until(web, lambda r: r.state == "running" and r.ready)
    guest = Guest(pair, web)
    await guest.begin_writing(verifier)
    return guest


FILL = "for to in /root/data /dev/vdb; do dd if=/dev/urandom of=$to bs=64k count=30 2>/dev/null; done; sync"
READ = "echo 3 > /proc/sys/vm/drop_caches; (cat /root/data; dd if=/dev/vdb bs=64k count=30) 2>/dev/null | sha256sum"


@pytest.mark.long
async def test_a_guest_goes_there_and_back_and_its_disks_stay(guest: Guest) -> None:
    whole, seen = await guest.run("sh", "-c", f"{FILL}; {READ}"), await guest.look()
    inode = (guest.files / f"{VOLUME}.qcow2").stat().st_ino
    root = (guest.files / f"{short_id(guest.web.uid)}.qcow2").stat().st_ino
    for _ in ("there", "back"):
        await guest.finish(*await guest.begin())
        seen = await guest.look(after=seen + 1)
        assert await guest.run("sh", "-c", READ) == whole
    assert (guest.files / f"{VOLUME}.qcow2").stat().st_ino == inode
    assert (guest.files / f"{short_id(guest.web.uid)}.qcow2").stat().st_ino == root


@pytest.mark.parametrize("victim", mark_long(VICTIMS, "source agent", "source machine", "target machine"))
async def test_who_is_killed_on_the_way_leaves_the_guest_and_its_disks_where_they_were(
    guest: Guest, victim: str
) -> None:
    await guest.break_by_killing(victim)


@pytest.mark.parametrize(
    ("victim", "death"),
    [
        pytest.param("source", "migration.source:MigrationSource._hand_over:before", marks=pytest.mark.long),
        pytest.param("target", "migration.target:MigrationTarget._take_over:before", marks=pytest.mark.long),
        ("target", "migration.target:MigrationTarget._take_over:after"),
    ],
)
async def test_an_agent_killed_at_the_hand_over_only_delays_it(guest: Guest, victim: str, death: str) -> None:
    seen = await guest.look()
    node = guest.here if victim == "source" else guest.there
    await node.kill()
    await node.start(death)
    source, target = await guest.begin()
    await node.await_death()
    await node.start()
    source = await guest.pair.introduce(source, target, guest.here, guest.there)
    await guest.finish(source, target)
    await guest.look(after=seen + 1)


@pytest.mark.long
async def test_what_was_handed_over_and_never_taken_goes_on_at_the_source_with_its_disks(guest: Guest) -> None:
    seen = await guest.look()
    await guest.there.kill()
    await guest.there.start("migration.target:MigrationTarget._take_over:before")
    source, target = await guest.begin()
    await guest.there.await_death()
    guest.there.put(change(target, desired="stop"))
    await guest.there.start()
    await guest.there.until_phase(target, "abandoned")
    await guest.here.until_phase(source, "handedOver")
    migration = decode_part(source.spec, AllocationSpec).migration
    assert migration is not None
    source = change(source, migration=msgspec.structs.replace(migration, never_ran=True))
    guest.here.put(source)
    await guest.break_off(source, target)
    await guest.look(after=seen + 1)


@pytest.mark.long
async def test_machines_killed_after_the_hand_over_leave_the_disks_to_the_target(guest: Guest) -> None:
    """The source's machine, standing still for good, and then the target's, which starts again there."""
    await guest.here.kill()
    await guest.here.start("migration.source:MigrationSource._hand_over:before")
    source, target = await guest.begin()
    await guest.here.await_death()
    guest.here.kill_guest(source)
    await guest.here.start()
    await guest.here.until(
        source, lambda r: r.migration is not None and r.migration.phase in ("failed", "handedOver"), failing=True
    )
    there = guest.there
    there.put(change(target, desired="stop"))
    await there.until_phase(target, "abandoned", "takenOver")
    await guest.break_off(source, target)
    await guest.go_on_writing()


@pytest.mark.long
async def test_a_guest_that_moves_cold_leaves_its_disks_where_they_are(guest: Guest) -> None:
    whole = await guest.run("sh", "-c", f"{FILL}; {READ}")
    source, target = await guest.begin(mode="cold")
    await guest.finish(source, target)
    assert await guest.run("sh", "-c", READ) == whole
    await guest.pair.remove(guest.web, guest.here)
    assert [path.name for path in guest.files.iterdir()] == [f"{VOLUME}.qcow2"], "volumes outlive their guests"
