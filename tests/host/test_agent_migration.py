"""Guests move between two agents, over TLS, with their disks; whoever is killed on the way leaves exactly one, whole."""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from agent_migration_lab import VICTIMS, Moving, Node, Pair, change, linked
from tests.long import mark_long

from weft.drivers.runtime.qemu.devices.disk_counters import EVERY_SECONDS
from weft.kinds.allocation import AllocationSpec
from weft.objects.envelope import decode_part

pytestmark = [pytest.mark.host, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tiny: Path) -> AsyncIterator[Pair]:
    async with linked(tiny) as pair:
        yield pair


class Guest(Moving):
    def check_alone(self) -> None:
        assert len(self.here.guests()) == 1 and self.there.guests() == []
        assert not list(Path(self.there.host.state_dir).glob("volumes/*")), "its disks are where it is"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(pair: Pair, verifier: bytes) -> Guest:
    web = pair.allocate(pair.here)
    pair.here.put(web)
    await pair.here.until(web, lambda r: r.state == "running" and r.ready)
    guest = Guest(pair, web)
    await guest.begin_writing(verifier)
    return guest


@pytest.mark.long
async def test_a_guest_moves_there_and_back_with_its_disks_and_goes_on_writing(guest: Guest) -> None:
    boot_id, fill = guest.here.report(guest.web).boot_id, "dd if=/dev/urandom of=/dev/vdb bs=64k count=77"
    read = "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vdb bs=64k count=77 2>/dev/null | sha256sum"
    whole, seen = await guest.run("sh", "-c", f"{fill} 2>/dev/null; sync; {read}"), await guest.look()
    await guest.here.watch(guest.web)
    await guest.there.watch(guest.web)
    for way in ("there", "back"):
        limit = {"bytes_per_second": 16 << 20} if way == "there" else {}
        source, target = await guest.begin(**limit)
        told = (await guest.here.until(source, lambda r: r.migration is not None and r.migration.pause_ms)).migration
        assert told is not None and told.plan is not None and told.sent_bytes > 10_000_000, told
        taken = (
            await guest.there.until(target, lambda r: r.migration is not None and r.migration.phase == "takenOver")
        ).migration
        assert taken is not None and 0 < taken.pause_ms <= told.pause_ms, (taken, told)
        assert taken.sent_bytes > 10_000_000 and 0 < taken.elapsed_ms <= told.elapsed_ms + 5, (
            "a source may be gone by then"
        )
        await guest.finish(source, target)
        seen = await guest.look(after=seen + 1)
        assert guest.here.report(guest.web).boot_id == boot_id
        assert await guest.run("sh", "-c", read) == whole
        if way == "there":
            check_asked(guest.there)


STEERING = {"migrate-continue", "migrate-set-parameters", "block-job-cancel", "block-job-complete", "cont", "quit"}


def check_asked(source: Node) -> None:
    """From when memory is sent, its machine is asked for the migration's own counters, and for those of disks about once a second
    however closely somebody watches. How fast it writes memory is measured before, and nothing else is asked."""
    asked = source.read_asked()
    begun = [name for _, name in asked].index("migrate")
    assert "info ramblock" in {name for _, name in asked[:begun]}
    sent = Counter(name for _, name in asked[begun + 1 :])
    assert set(sent) - STEERING == {"query-migrate", "query-jobs", "query-status", "query-blockstats"}
    seconds = asked[-1][0] - asked[begun][0]
    assert sent["query-blockstats"] <= seconds / EVERY_SECONDS + 2, (sent, seconds)
    assert sent["query-migrate"] + sent["query-jobs"] > sent["query-blockstats"]


@pytest.mark.parametrize(
    ("victim", "death"),
    [
        ("source", "migration.source:MigrationSource._hand_over:before"),
        pytest.param("target", "migration.target:MigrationTarget._take_over:before", marks=pytest.mark.long),
    ],
)
async def test_an_agent_killed_at_the_hand_over_only_delays_it(guest: Guest, victim: str, death: str) -> None:
    seen = await guest.look()
    node = guest.here if victim == "source" else guest.there
    await node.kill()
    await node.start(death)
    source, target = await guest.begin()
    await node.await_death()
    assert len(guest.here.guests()) == len(guest.there.guests()) == 1
    await node.start()
    source = await guest.pair.introduce(source, target, guest.here, guest.there)
    await guest.finish(source, target)
    await guest.look(after=seen + 1)


@pytest.mark.long
async def test_an_agent_killed_right_after_its_guest_began_to_run_there_says_so_when_it_is_back(guest: Guest) -> None:
    seen = await guest.look()
    await guest.there.kill()
    await guest.there.start("migration.target:MigrationTarget._take_over:after")
    source, target = await guest.begin()
    await guest.there.await_death()
    guest.there.put(change(target, desired="stop"))  # its controller has lost patience
    await guest.there.start()
    await guest.finish(source, target)
    await guest.look(after=seen + 1)


@pytest.mark.parametrize("victim", mark_long(("agent", "agent and machine"), "agent"))
async def test_what_was_handed_over_and_never_taken_goes_on_at_the_source_by_the_targets_word(
    guest: Guest, victim: str
) -> None:
    seen = await guest.look()
    await guest.there.kill()
    await guest.there.start("migration.target:MigrationTarget._take_over:before")
    source, target = await guest.begin()
    await guest.there.await_death()
    if victim == "agent and machine":
        guest.there.kill_guest(target)
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
async def test_a_link_cut_on_the_way_leaves_it_where_it_is_and_one_cut_at_the_hand_over_only_delays_it(
    guest: Guest,
) -> None:
    seen = await guest.look()
    source, target = await guest.begin(bytes_per_second=4 << 20)
    await guest.here.until(source, lambda r: r.migration is not None and r.migration.sent_bytes > 1 << 20)
    guest.pair.link("down")
    await guest.here.until_phase(source, "failed")
    seen = await guest.look(after=seen + 1)
    await guest.break_off(source, target)
    guest.pair.link("up")
    await guest.here.kill()
    await guest.here.start("migration.source:MigrationSource._hand_over:before")
    source, target = await guest.begin()
    await guest.here.await_death()
    guest.pair.link("down")
    await guest.here.start()
    assert (await guest.here.until_phase(source, "handedOver")).reason == "lineLost"
    assert not guest.there.report(target).ready, "it waits for the word that the source's never will run again"
    guest.pair.link("up")
    await guest.finish(source, target)
    await guest.look(after=seen + 1)


@pytest.mark.parametrize("victim", mark_long(VICTIMS, "source machine", "target agent"))
async def test_who_is_killed_on_the_way_leaves_the_guest_at_the_source_and_nothing_at_the_target(
    guest: Guest, victim: str
) -> None:
    await guest.break_by_killing(victim)


@contextlib.contextmanager
def small(folder: Path, size: str) -> Iterator[None]:
    """``folder`` on a disk of its own that soon is full, for who is started now."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "small", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.long
async def test_a_disk_that_fills_up_there_on_the_way_is_told_and_the_guest_goes_on(guest: Guest) -> None:
    here, there, seen = guest.here, guest.there, await guest.look()
    await guest.run("sh", "-c", "dd if=/dev/urandom of=/dev/vdb bs=64k count=184; sync")
    await there.kill()
    try:
        with small(Path(there.host.state_dir, "volumes"), "8M"):
            await there.start()
            source, target = await guest.begin()
            told = await here.until_phase(source, "failed")
            assert told.reason == "noSpace" and "No space left" in told.message, told
            seen = await guest.look(after=seen + 1)
            await guest.break_off(source, target)
            await guest.look(after=seen + 1)
            await there.kill()
    finally:
        await there.start()


@pytest.mark.long
async def test_a_source_machine_that_dies_handed_over_leaves_one_that_starts_anew_where_it_was(guest: Guest) -> None:
    here, there = guest.here, guest.there
    await here.kill()
    await here.start("migration.source:MigrationSource._hand_over:before")
    source, target = await guest.begin()
    await here.await_death()
    here.kill_guest(source)
    await here.start()
    await here.until_phase(source, "failed")
    assert here.guests() == [] and not there.report(target).ready, "whose it is isn't known yet"
    await guest.break_off(source, target)


async def test_a_suspended_guest_goes_on_there_where_it_was_and_a_kill_on_the_way_leaves_it_suspended_here(
    guest: Guest,
) -> None:
    here, there, carried = guest.here, guest.there, {"mode": "cold", "saves": "must"}
    boot_id, seen = here.report(guest.web).boot_id, await guest.look()
    guest.web = change(guest.web, desired="suspend")
    here.put(guest.web)
    await here.until(guest.web, lambda r: r.state == "suspended")
    source, target = await guest.begin(bytes_per_second=4 << 20, **carried)
    await here.until(source, lambda r: r.migration is not None and r.migration.sent_bytes > 8 << 20)
    await there.kill()
    await there.start()
    await here.until_phase(source, "failed")
    assert here.guests() == there.guests() == [] and here.report(source).state == "suspended"
    there.put(change(target, desired="stop"))
    await there.until_phase(target, "abandoned", "failed")
    await guest.pair.remove(target, there)
    migration = decode_part(source.spec, AllocationSpec).migration
    assert migration is not None
    here.put(change(source, migration=msgspec.structs.replace(migration, never_ran=True)))
    await here.until(source, lambda r: r.migration is not None and r.migration.phase == "preparing", failing=True)
    source, target = await guest.begin(**carried)
    taken = await there.until_phase(target, "takenOver")
    assert here.guests() == there.guests() == [] and taken.sent_bytes > 30_000_000, "its memory went with its disks"
    for node in (here, there):
        await node.kill()
        await node.start()
    await guest.finish(source, target)
    assert there.report(guest.web).boot_id == boot_id
    await guest.look(after=seen + 1)


@pytest.mark.long
async def test_a_guest_that_moves_cold_is_shut_down_and_starts_there_with_all_that_is_on_its_disks(
    guest: Guest,
) -> None:
    here, there = guest.here, guest.there
    write = "dd if=urandom of=/root/data bs=64k count=137; dd if=urandom of=vdb bs=64k count=46; sync"
    read = "(cat /root/data; dd if=/dev/vdb bs=64k count=46) 2>/dev/null | sha256sum"
    whole = await guest.run("sh", "-c", f"(cd /dev; {write}) 2>/dev/null; {read}")
    source, target = await guest.begin(mode="cold", bytes_per_second=2 << 20)
    await here.until_phase(source, "migrating")
    await there.kill()
    await there.start()
    await here.until_phase(source, "failed")
    assert here.guests() == []
    there.put(change(target, desired="stop"))
    await there.until_phase(target, "abandoned", "failed")
    await guest.pair.remove(target, there)
    migration = decode_part(source.spec, AllocationSpec).migration
    assert migration is not None
    here.put(change(source, migration=msgspec.structs.replace(migration, never_ran=True)))
    await here.until(source, lambda r: r.migration is not None and r.migration.phase == "preparing", failing=True)
    source, target = await guest.begin(mode="cold")  # without a start between
    await guest.finish(source, target)
    assert await guest.run("sh", "-c", read) == whole
    await guest.pair.remove(guest.web, guest.here)
